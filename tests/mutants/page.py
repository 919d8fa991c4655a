"""Mutants of the report: (file, old text, new text, why it is wrong)."""

VERDICT = [
    (
        "report/verdict.py",
        'NO_RIVALS = ("control", "model", "interpolated duplicate", "floor")',
        'NO_RIVALS = ("control", "model", "floor")',
        "the positive control counts as a rival",
    ),
    (
        "report/verdict.py",
        "return min(of_most, key=",
        "return max(of_most, key=",
        "compared with the worst rival",
    ),
    (
        "report/verdict.py",
        '    better = energy(summary, "model")["mean"] < entry["mean"]\n',
        '    better = energy(summary, "model")["mean"] > entry["mean"]\n',
        "farther counts as better",
    ),
    ("report/verdict.py", "if gap < 0:", "if gap < -9:", "worse than doing nothing is not said"),
    ("report/verdict.py", "if gap > 1 else", "if gap > 9 else", "more than 1 is not explained"),
    (
        "report/verdict.py",
        'if entry["p"] > 0.05:',
        'if entry["p"] > 1:',
        "chance is never said",
    ),
    (
        "report/verdict.py",
        'if entry["units"] < FEWEST_TO_DECIDE:',
        'if entry["units"] < 2:',
        "five conditions decide",
    ),
    (
        "report/verdict.py",
        "many = wins > n / 2",
        "many = better",
        "a mean that most conditions contradict",
    ),
    (
        "report/verdict.py",
        'excess[row["condition"]] = model - other',
        'excess[row["condition"]] = other - model',
        "names the conditions in which it is better",
    ),
    (
        "report/verdict.py",
        "        if not types & {cell_type for _, cell_type in conditions}:",
        "        if types & {cell_type for _, cell_type in conditions}:",
        "a known cell type is said to be new",
    ),
    (
        "report/verdict.py",
        "screen.training_groups() if key[0]",
        "screen.groups if key[0]",
        "what is held out counts as seen",
    ),
]

VERDICT += [
    (
        "evaluate.py",
        "of_units = pd.Series(better).groupby(units[scored]).mean()",
        "of_units = pd.Series(better)",
        "cell types of a perturbation count as independent",
    ),
    (
        "report/verdict.py",
        "if gap < 0 else",
        "if gap > 9 else",
        "a rival that is worse than doing nothing reads as a good one",
    ),
]

PAGE = [
    (
        "report/page.py",
        'if value not in (None, ""):',
        'if value not in (None, "") and key != "scope":',
        "headers of tables say nothing to a screen reader",
    ),
    (
        "report/page.py",
        'tag("table", tag("caption", caption), ',
        'tag("table", ',
        "tables without a caption",
    ),
    (
        "report/page.py",
        'class_="scroll", tabindex="0", ',
        'class_="scroll", ',
        "what is wide cannot be reached by keyboard",
    ),
    (
        "report/page.py",
        "            alt=alt,\n",
        '            alt="figure",\n',
        "pictures say nothing to who cannot see them",
    ),
    (
        "report/page.py",
        "return text.replace(path, os.path.basename(path))",
        "return text",
        "folders of the machine stand in the page",
    ),
    (
        "report/page.py",
        'options = ["--data", os.path.basename(how["path"]), *options]',
        'options = ["--data", how["path"], *options]',
        "folders of the machine stand in the commands",
    ),
    (
        "report/page.py",
        'method="html")',
        'method="xml")',
        "empty elements that HTML does not close",
    ),
    (
        "report/page.py",
        'screens.flag(name if value else f"no_{name}")',
        "screens.flag(name)",
        "a switch that was off is on in the command",
    ),
    (
        "report/page.py",
        "        if largest < 0:\n",
        "        if False:\n",
        "a page of any size",
    ),
    (
        "report/page.py",
        "best = (min if falls or",
        "best = (max if falls or",
        "the farthest method is bold",
    ),
    (
        "report/page.py",
        '"interpolated duplicate", "floor", "paper, ")',
        '"interpolated duplicate", "paper, ")',
        "the floor is the best method",
    ),
    (
        "report/page.py",
        'if p <= 0.05 and float(f"{without_ties:.1g}") == p:',
        "if p <= 0.05:",
        "six wins and eighteen ties are coloured as losses",
    ),
    (
        "report/page.py",
        "[] if i in table.greyed else best_of(table, i)",
        "best_of(table, i)",
        "a metric that says nothing has a winner",
    ),
    (
        "report/page.py",
        "if p <= 0.05 and wins >",
        "if wins >",
        "what may be chance is coloured",
    ),
    (
        "report/page.py",
        "min(4, 1 + int(4 * gap))",
        "min(4, int(4 * gap))",
        "colours one quarter too pale",
    ),
    (
        "report/page.py",
        'rows["score"].abs().nlargest(10)',
        'rows["score"].nlargest(10)',
        "genes that fall are not shown",
    ),
    (
        "report/page.py",
        "    if after == 0 != before:\n",
        "    if change < -20:\n",
        "a gene that is off from a low level has a fold change of the pseudocount",
    ),
    (
        "report/page.py",
        '(sure["log2_fold_change"] * sure["measured_log2_fold_change"] > 0)',
        '(rows["log2_fold_change"] * rows["measured_log2_fold_change"] > 0)',
        "genes that may be chance count as right",
    ),
    (
        "report/page.py",
        'return "" if np.isnan(value) else',
        'return "0.00" if np.isnan(value) else',
        "an error that is not known is said to be none",
    ),
    ("report/page.css", "--quiet: #595959", "--quiet: #8a8a8a", "text too pale to read"),
    ("report/page.css", "--closed-4: #245074", "--closed-4: #6aa6d6", "too light for its text"),
    (
        "evaluate.py",
        "    if verbose:\n        print(as_text(tables, squared))\n",
        "    print(as_text(tables, squared))\n",
        "five tables on the console",
    ),
    (
        "evaluate.py",
        "    print(line)\n    screen.found.append(line)\n",
        "    print(line)\n",
        "copied cells are not mentioned in the report",
    ),
]

MUTANTS = {"program/test_page.py": [*VERDICT, *PAGE]}
