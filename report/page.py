"""The page of a run, report.html: one file that a browser shows without a server or a script.

Elements are made by `tag`, which escapes whatever text it is given; their look is in page.css.
"""

import base64
import glob
import os
import platform
import re
import shlex
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import scipy

import screens
from report.scores import gap_of
from report.tables import convention, in_parentheses
from report.trust import novelty, sentences
from report.verdict import best_rival, counted, energy, verdict, what_was_predicted

STYLE = Path(__file__).with_suffix(".css")
LARGEST = 3_500_000  # bytes of figures in a page; as text they take a third more
MOST = 40  # conditions whose genes are shown
MOST_LINES = 200  # conditions whose distances are shown
# HTML may not hold these.
NO_TEXT = r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]"
NO_EPOCHS = "0 epochs: as many as make 1,000 steps, at least 5."
# Lines of the tables of scores that no method can win.
NO_METHODS = ("ceiling", "interpolated duplicate", "floor", "paper, ")
GENE_SETS = "DE20, DE40: the 20 or 40 genes that change most in a condition"
RIVALS = {  # what each predicts; docs/results.md says more
    "control": "the control cells themselves",
    "perturbed mean": "the average effect of the training perturbations",
    "matching mean": "that of the training conditions that are nearest",
    "additive": "the sum of what the targets do alone",
    "hurdle mean": "the average effect on whether a gene is on, and on its level if it is",
    "hurdle matching": "the same of the training conditions that are nearest",
    "hurdle additive": "the same, the sum of what the targets do alone",
    "linear": "ridge regression between embeddings of genes and of perturbations",
    "linear knock-out": "ridge regression on the controls, with the target set to zero",
    "LAOT": "a linear map of the controls, found together with their pairing",
}
PACKAGES = ("torch", "numpy", "scipy", "pandas", "anndata", "pot", "matplotlib")


def write_page(
    path,
    title,
    screen,
    run,
    about,
    defaults,
    command,
    rows=(),
    summary=None,
    tables=(),
    figures="",
    genes=None,
    trust=None,
    training=False,
    squared=False,
):
    """Write the page of predicted cells; returns its verdict, three sentences.

    run: the folder of their run; about: what its predicted.h5ad says of itself; both None for
    another model's cells. defaults: {name: value} of a run's settings; command: what repeats the
    scoring. rows, summary: of `evaluate`; tables: of `report.tables`; figures: their folder; genes:
    what changes in every condition, as predicted_genes.csv; trust: how far to trust each, as
    trust.csv; training: whether training conditions were scored. Without rows, nothing was.
    """
    said = verdict(said_of_scored(screen, rows, about, training), rows, summary)
    sections = {
        "What was read and held out": reading(screen),
        "How training went": training_went(run),
        "Scores": scores(tables, squared, rows, summary),
        "Figures": drawn(figures, rows, summary),
        "Which genes change": genes_of(genes),
        "How far to trust each": trust_of(trust, rows, figures),
        "Settings": settings(about, defaults),
        "How to repeat it": repeat(about, defaults, command),
    }
    body = page_of(title, said, notes_on(rows), sections)
    screens.save(path, html(title, body).encode())
    return said


# ---- HTML ----------------------------------------------------------------------------------------


def tag(name, /, *content, **attributes):
    """An element that holds texts and elements.

    The attribute class_ is class, aria_label aria-label; one that is None or empty is left out.
    """
    element = ElementTree.Element(name)
    for key, value in attributes.items():
        if value not in (None, ""):
            element.set(key.rstrip("_").replace("_", "-"), str(value))
    for part in content:
        if isinstance(part, ElementTree.Element):
            element.append(part)
        elif len(element):
            element[-1].tail = (element[-1].tail or "") + part
        else:
            element.text = (element.text or "") + part
    return element


def html(title, body):
    """The text of a whole page."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", STYLE.read_text()),
    )
    root = tag("html", head, body, lang="en")
    page = ElementTree.tostring(root, "unicode", method="html")
    return "<!doctype html>\n" + re.sub(NO_TEXT, "\ufffd", page)


def page_of(title, said, notes, sections):
    """The body: title, verdict, notes on it, contents, sections {heading: elements}, if any."""
    sections = {name: parts for name, parts in sections.items() if parts}
    links = [tag("li", tag("a", name, href=f"#{anchor(name)}")) for name in sections]
    return tag(
        "body",
        tag(
            "main",
            tag("h1", title),
            tag("section", *[tag("p", text) for text in said], class_="verdict"),
            *notes,
            tag("nav", tag("ul", *links), aria_label="Contents"),
            *[
                tag("section", tag("h2", name, id=anchor(name)), *parts)
                for name, parts in sections.items()
            ],
        ),
    )


def anchor(name):
    """The name of a heading in links."""
    return re.sub(r"\W+", "-", name.lower())


def scrolled(element, label):
    """An element in a box of its own, which scrolls, by keyboard too, where it is too wide."""
    return tag("div", element, class_="scroll", tabindex="0", role="group", aria_label=label)


def table_of(caption, header, lines, ranges=None, looks=None):
    """A table; header: texts; lines: lists of the line's name and of its cells (`td`).

    ranges: a line of texts above the header; looks: {number of a column: class of its header}.
    """
    looks = looks or {}
    head = [tag("th", text, scope="col", class_=looks.get(i)) for i, text in enumerate(header)]
    rows = [tag("tr", *head)]
    if ranges:
        name, *texts = ranges
        numbers = [tag("td", text, class_=looks.get(i)) for i, text in enumerate(texts, start=1)]
        rows.insert(0, tag("tr", tag("th", name, scope="row"), *numbers))
    body = [tag("tr", tag("th", line[0], scope="row"), *line[1:]) for line in lines]
    table = tag("table", tag("caption", caption), tag("thead", *rows), tag("tbody", *body))
    return scrolled(table, caption)


def folded(summary, *content, opened=False):
    """Something long that is shown when it is asked for."""
    return tag("details", tag("summary", summary), *content, open="open" if opened else None)


# ---- What was read, and training -----------------------------------------------------------------


def reading(screen):
    """What was understood of the file, in the lines that the console prints."""
    lines = [without_folder(line, screen.source) for line in screens.describe(screen)]
    items = [
        tag("li", line, class_="warning" if line.startswith("warning") else "") for line in lines
    ]
    return [tag("ul", *items)]


def without_folder(text, path):
    """A text in which a file goes by its name alone: a page is read on other machines."""
    return text.replace(path, os.path.basename(path))


def training_went(run):
    """Seconds and losses of a run, and their figure; nothing without a log."""
    if not run or not os.path.exists(f"{run}/log.csv"):
        return []
    log = screens.read_log(run)
    first, last = log.iloc[0], log.iloc[-1]
    losses = (
        f"The loss of the expression bridge (Eq. 9) went from {first['endpoint_loss']:.3f} to "
        f"{last['endpoint_loss']:.3f}, that of the activation bridge (Eq. 14) from "
        f"{first['activation_loss']:.3f} to {last['activation_loss']:.3f}."
    )
    took = f"{counted(len(log), 'epoch')} in {log['seconds'].sum():,.0f} seconds. "
    parts = [tag("p", took + losses)]
    if log["unconverged"].any():
        off = f"{log['unconverged'].sum():,.0f} of {log['plans'].sum():,.0f} transport plans"
        said = f"Sinkhorn left {off} more than 1 % off their marginals."
        parts.append(tag("p", said, class_="warning"))
    alt = f"Two curves over the epochs. {losses}"
    caption = (
        "Losses, means over each epoch. Those of the default hardly fall: it begins from the "
        "counted shifts and the exact answer of a single gene (--shifts, --skip-gate)."
    )
    return parts + figures_of([(f"{run}/loss.png", caption, alt)])


# ---- Scores --------------------------------------------------------------------------------------


def said_of_scored(screen, rows, about, training):
    """On what the cells were scored, in words."""
    count = counted(len(rows), "condition")
    if training:
        return f"{count} that it was trained on"
    if about is None or not rows:  # nobody says what another model has seen
        return count
    return what_was_predicted(screen, [tuple(row["condition"].rsplit("@", 1)) for row in rows])


def notes_on(rows):
    """What the verdict is by, and a warning of the conditions that do nothing which cells show."""
    if not rows:
        return []
    note = (
        "By the E-distance over all genes. The gap is that between untouched control cells (0) and "
        "another half of the measured cells (1), so 1 is as good as a repeat of the experiment."
    )
    notes = [tag("p", note, class_="note")]
    names = [row["condition"] for row in rows if row.get("nothing")]
    if names:
        said = (
            f"In {len(names)} of {counted(len(rows), 'condition')} the measured cells are as near "
            "to the controls as chance has it: no score of these means much "
            f"({screens.some(names, 4)})."
        )
        notes.append(tag("p", said, class_="warning"))
    return notes


def scores(tables, squared, rows, summary):
    """How to read the tables of scores, and these; the gap closed and the wins come first."""
    colours = (
        "Bold: the best method of a column, the floor aside. Blue: part of the gap is closed, the "
        "deeper the more, or the model wins beyond chance (p up to 0.05); orange: the opposite. "
        "Grey, in parentheses: the metric has no range on this screen, and says nothing."
    )
    if not tables:
        return []
    first = sorted(tables, key=lambda table: kind_of(table) not in ("gap", "conditions"))
    known = [f"{name}: {does}" for name, does in RIVALS.items() if name in summary]
    paragraphs = [" ".join(convention(squared).split()), "; ".join([GENE_SETS, *known]) + "."]
    made = folded("How these scores are made", *(tag("p", text) for text in paragraphs))
    return [
        tag("p", colours),
        made,
        *map(score_table, first),
        condition_table(rows, best_rival(summary)),
    ]


def kind_of(table):
    """The first word of a table's title: gap, conditions (won), mean or each."""
    return table.title.split()[0]


def score_table(table):
    """A table of `report.tables` with its colours."""
    columns = range(1, len(table.header))
    best = {i: [] if i in table.greyed else best_of(table, i) for i in columns}
    lines = []
    for line in table.lines:
        cells = []
        for i in columns:
            shown = tag("strong", line[i]) if line[0] in best[i] else line[i]
            look = "no-range" if i in table.greyed else shade(table, table.header[i], line[i])
            cells.append(tag("td", shown, class_=look))
        lines.append([line[0], *cells])
    title = table.title
    if kind_of(table) == "mean":  # several tables have this title
        metrics = dict.fromkeys(name.rsplit(" ", 1)[0] for name in table.header[1:])
        title = f"{', '.join(metrics)}: {title}"
    header = [table.header[0] or "method", *in_parentheses(table)[1:]]
    looks = dict.fromkeys(table.greyed, "no-range")
    return table_of(title, header, lines, table.ranges, looks)


def best_of(table, i):
    """The names of the methods with the best number in column i; none where that means nothing."""
    column = table.header[i]
    if kind_of(table) == "conditions" or column in ("seconds", "parameters"):
        return []
    numbers = {
        line[0]: float(line[i].split()[0])
        for line in table.lines
        if not line[0].startswith(NO_METHODS) and re.match(r"-?\d", line[i])
    }
    falls = column.split()[0] in ("E", "EMD", "MMD²", "WMSE") and kind_of(table) == "mean"
    best = (min if falls or kind_of(table) == "each" else max)(numbers.values(), default=None)
    return [name for name in numbers if numbers[name] == best]


def shade(table, column, text):
    """The class that colours a cell; none for what has no good and bad.

    Of a gap `shade_of_gap`; of wins that are beyond chance "closed-2", of such losses "opened".
    """
    if not text or column in ("seconds", "parameters"):
        return None
    if kind_of(table) == "gap":
        return shade_of_gap(float(text))
    if kind_of(table) == "conditions":
        wins, conditions, p = map(float, re.split("/|, ", text))
        if p <= 0.05 and wins > conditions / 2:
            return "closed-2"
        # Few wins may be few losses, too, and many ties: then p is another.
        without_ties = scipy.stats.binomtest(int(wins), int(conditions)).pvalue
        if p <= 0.05 and float(f"{without_ties:.1g}") == p:
            return "opened"
    return None


def shade_of_gap(gap):
    """The class that colours a gap closed: by quarters above 0, or below."""
    if gap > 0:
        return f"closed-{min(4, 1 + int(4 * gap))}"
    return "opened" if gap < 0 else None


def condition_table(rows, rival):
    """Every condition's E-distances over all genes, and the gap that the model closes, folded."""
    methods = [name for name in ("control", rival, "model", "floor") if name]
    lines = []
    for row in rows[:MOST_LINES]:
        cells = [tag("td", f"{row['cells']:,}")]
        for name in methods:
            scored = row["scores"].get(name)
            cells.append(tag("td", f"{scored['E-distance']['all']:.3f}" if scored else ""))
        gap = gap_of(row["scores"], "model")
        closed = f"{gap:.2f}" if gap == gap else "no gap"
        cells.append(tag("td", closed, class_=shade_of_gap(gap)))
        mark = " (hardly differs from the controls)" if row.get("nothing") else ""
        lines.append([row["condition"] + mark, *cells])
    header = ["condition", "cells", *methods, "gap closed"]
    table = table_of("E-distance over all genes, condition by condition", header, lines)
    return folded(f"{counted(len(lines), 'condition')}, those that change most first", table)


# ---- Figures -------------------------------------------------------------------------------------


def drawn(folder, rows, summary):
    """The figures of a scoring, in the order in which one asks; those beyond LARGEST are named."""
    if not rows:
        return []
    names = [row["condition"] for row in rows[:6]]
    listed = [
        (
            "gap_closed.png",
            "Gap closed by every method over all conditions, and by the best of them in each.",
            said_of_gaps(rows, summary),
        ),
        (
            "mean_change.png",
            "How every gene's mean changes from the controls, predicted against measured. On the "
            "dashed line they agree.",
            f"A point a gene. {said_of_correlation(rows[:6], 'Pearson delta')}",
        ),
        *[
            (
                f"violin_{i}_*.png",
                f"{row['condition']}: the genes that change most, measured and predicted.",
                "A pair of half violins a gene, measured on the left and predicted on the right, "
                "and the mean of the controls as a dashed line. The genes: "
                f"{', '.join(row['top_genes'][:10])}.",
            )
            for i, row in enumerate(rows[:6], start=1)
        ],
        (
            "activation.png",
            "The share of cells that express each gene, predicted against measured.",
            f"A point a gene. {said_of_correlation(rows[:6], 'activation PCC')}",
        ),
        (
            "activation_map.png",
            "Which genes are on: controls, measured and predicted cells in one map.",
            f"Clouds of cells of {screens.some(names[:2])} on two principal components. Crosses "
            "mark the means: the nearer the predicted one is to the measured, the better.",
        ),
        (
            "pca.png",
            "Measured cells (left) and predicted cells (right), on the same axes.",
            f"Two clouds of cells a condition, of {screens.some(names)}, beside the controls, on "
            "the two principal components of the measured cells.",
        ),
        (
            "paths.png",
            "How both bridges carry single control cells to a condition.",
            "Above, the level of three genes in single cells over time from 0 to 1; below, in "
            "which cells each gene is on.",
        ),
    ]
    found = [
        (path, caption, alt)
        for pattern, caption, alt in listed
        for path in glob.glob(f"{glob.escape(folder)}/{pattern}")
    ]
    return figures_of(found)


def said_of_gaps(rows, summary):
    """What the figure of the gap closed shows, for those who do not see it."""
    methods = [name for name in summary if name not in ("control", *NO_METHODS)]
    gaps = {name: energy(summary, name)["gap_closed"] for name in methods}
    order = sorted((gap, name) for name, gap in gaps.items() if not np.isnan(gap))
    bars = ", ".join(f"{name} {gap:.2f}" for gap, name in order[::-1])
    nearer = sum(
        row["scores"]["model"]["E-distance"]["all"] < row["scores"]["control"]["E-distance"]["all"]
        for row in rows
    )
    return (
        f"Bars of the gap closed: {bars}. The model's bar is right of 0 in {nearer} of "
        f"{counted(len(rows), 'condition')}."
    )


def said_of_correlation(rows, metric):
    """The correlation over genes in some conditions, by the tables of scores."""
    values = [
        f"{row['condition']} {row['scores']['model'][metric]['all']:.2f}"
        for row in rows
        if metric in row["scores"]["model"]
    ]
    return f"Correlation over genes, on halves of the cells: {', '.join(values)}."


def figures_of(listed, largest=LARGEST):
    """Figures [(path, caption, alt)], within the page as long as there is room, else named.

    Those that were not drawn are left out.
    """
    parts = []
    for path, caption, alt in listed:
        if not os.path.exists(path):
            continue
        content = Path(path).read_bytes()
        largest -= len(content)
        if largest < 0:
            parts.append(tag("p", f"{caption} See {os.path.basename(path)} in the run's folder."))
            continue
        image = tag(
            "img",
            src="data:image/png;base64," + base64.b64encode(content).decode(),
            alt=alt,
            # Two thirds of its pixels: sharp on fine screens, and its letters as large as the text.
            width=int.from_bytes(content[16:20]) * 2 // 3,
            height=int.from_bytes(content[20:24]) * 2 // 3,
        )
        shown = scrolled(image, f"Figure: {caption}")
        parts.append(tag("figure", shown, tag("figcaption", caption)))
    return parts


# ---- Genes ---------------------------------------------------------------------------------------


def genes_of(table):
    """The genes whose change stands out most, in every condition; nothing without a table."""
    if table is None or not len(table):
        return []
    conditions = list(dict.fromkeys(table["condition"]))
    said = (
        "Of every condition the ten genes whose predicted change stands out most, by Welch's t "
        "against the controls, from those that rise to those that fall. Means are of log1p "
        "expression, fold changes of the means without the logarithm; on or off: the controls or "
        "the cells never express the gene. p is adjusted over all genes; that of predicted cells "
        "falls the more cells are asked for."
    )
    parts = [tag("p", said)]
    shown = table[table["condition"].isin(conditions[:MOST])]
    for name, rows in shown.groupby("condition", sort=False):
        parts.append(genes_of_condition(name, rows, opened=name == conditions[0]))
    if len(conditions) > MOST:
        more = (
            f"{counted(len(conditions) - MOST, 'more condition')}: in a run's predicted_genes.csv."
        )
        parts.append(tag("p", more))
    return parts


def genes_of_condition(name, rows, opened):
    """The ten strongest genes of a condition, folded, and how many of the sure ones are right."""
    rows = rows.loc[sorted(rows["score"].abs().nlargest(10).index)]
    sure = rows[rows["p_adjusted"] < 0.05]
    said = f"{name}: {len(sure)} of {len(rows)} with p < 0.05"
    header = ["gene", "controls", "predicted", "log2 fold", "p"]
    sides = [("predicted_mean", "log2_fold_change", "p_adjusted")]
    if "measured_mean" in rows and rows["measured_mean"].notna().all():
        right = (sure["log2_fold_change"] * sure["measured_log2_fold_change"] > 0).sum()
        said += f"; the same way in the measured cells: {right} of these"
        header += ["measured", "log2 fold, measured", "p, measured"]
        sides.append(("measured_mean", "measured_log2_fold_change", "measured_p_adjusted"))
    lines = []
    for row in rows.to_dict("records"):
        before = row["control_mean"]
        cells = [level(before)]
        for mean, change, p in sides:
            cells += [level(row[mean]), fold(row[change], before, row[mean]), chance(row[p])]
        lines.append([row["gene"], *(tag("td", cell) for cell in cells)])
    table = table_of(f"{name}: the genes whose change stands out most", header, lines)
    return folded(said, table, opened=opened)


def chance(p):
    """A p-value, for a person."""
    return f"{p:.1g}"


def level(mean):
    """A mean, for a person."""
    return f"{mean:.2f}"


def fold(change, before, after):
    """A log2 fold change of means, for a person; on or off where one of them is 0."""
    if before == 0 != after:
        return "on"
    if after == 0 != before:
        return "off"
    return f"{change:+.2f}"


# ---- Trust ---------------------------------------------------------------------------------------


TRUSTED = {  # column of trust.csv: what stands over it
    "size": "change",
    "expected": "expected",
    "low": "from",
    "high": "to",
    "error": "error",
    "new": "what is new",
    "rests_on": "rests on",
    "nearest": "nearest in training",
    "alike": "hardly told from",
}
IN_WORDS = ("new", "rests_on", "nearest", "alike")


def trust_of(table, rows, figures):
    """What each prediction rests on, and how far off to expect it; nothing without a table."""
    if table is None or not len(table):
        return []
    said = (
        "What the model knew of a condition before it was measured. Change: how far it moves the "
        "cells. Expected: how far from the measured cells the predicted ones are to be expected; "
        "of training conditions that were left out, four in five fell between the two numbers "
        "beside it. Error: how far they are. All are E-distances, as means alone tell them."
    )
    warnings = [tag("p", line, class_="warning") for line in sentences(table, False)[1:]]
    found = {row["condition"]: row["by_means"] for row in rows}
    if found:
        table = table.assign(error=table["condition"].map(found))
    table = table.assign(new=table.apply(novelty, axis=1))
    columns = {name: title for name, title in TRUSTED.items() if name in table}
    looks = {i: "words" for i, name in enumerate(columns, start=1) if name in IN_WORDS}
    lines = []
    for row in table.head(MOST_LINES).to_dict("records"):
        texts = [known(row[name]) for name in columns]
        cells = [tag("td", text, class_=looks.get(i)) for i, text in enumerate(texts, start=1)]
        lines.append([row["condition"], *cells])
    title = "How far to trust each prediction"
    shown = table_of(title, ["condition", *columns.values()], lines, looks=looks)
    alt = (
        "A point for each held-out condition, and grey ones for training conditions that were left "
        "out. On the dashed line the error is the expected one; above it, larger."
    )
    caption = "Expected and actual error."
    drawn = figures_of([(f"{figures}/expected_error.png", caption, alt)])
    return [tag("p", said), *warnings, shown, *drawn]


def known(value):
    """A text or a distance, for a person."""
    if isinstance(value, str):
        return value
    return "" if np.isnan(value) else f"{value:.2f}"


# ---- Settings, and how to repeat it --------------------------------------------------------------


def settings(about, defaults):
    """A run's settings: those that are not the default, then all, folded."""
    if about is None:
        return []
    own = about["settings"]
    changed = {name: own[name] for name in own if own[name] != defaults.get(name)}
    header = ["setting", "here", "default"]
    lines = {
        name: [name, *(tag("td", worded(of.get(name))) for of in (own, defaults))] for name in own
    }
    parts = [tag("p", "All settings are the defaults.")]
    if changed:
        shown = [lines[name] for name in changed]
        parts = [table_of("Settings that are not the defaults", header, shown)]
    every = table_of("Settings of the run", header, list(lines.values()))
    notes = [tag("p", NO_EPOCHS)] if own.get("epochs") == 0 else []
    return [*parts, folded(f"All {len(own)} settings", *notes, every)]


def worded(value):
    """A setting's value, for a person."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return "none" if value in ("", None) else str(value)


def repeat(about, defaults, command):
    """The commands, seed and device that made it, and the versions of what it was made with."""
    commands = [command]
    parts = []
    if about is not None:
        commands = [training_command(about, defaults), command]
        made = f"Cells: seed {about['seed']}"
        if "device" in about:
            made += f", device {about['device']}"
        parts = [tag("p", f"{made}. Files go by their names here, without their folders.")]
    versions = {"python": platform.python_version(), **{p: metadata.version(p) for p in PACKAGES}}
    lines = [[name, tag("td", version)] for name, version in versions.items()]
    table = table_of("Versions that scored", ["package", "version"], lines)
    return [scrolled(tag("pre", tag("code", "\n".join(commands))), "Commands"), *parts, table]


def training_command(about, defaults):
    """The command line of train.py that asks for a run's data, split and settings."""
    run = about["run"]
    how = about["reading"]
    options = ["--out", run]
    if how["path"] != os.path.abspath(f"{run}/screen.h5ad"):  # else it was simulated
        options = ["--data", os.path.basename(how["path"]), *options]
    for condition in how.get("test", ()):
        options += ["--test", condition]
    for name in screens.COLUMNS:
        if how.get(name):
            options += [screens.flag(name), how[name]]
    for name, value in about["settings"].items():
        if value != defaults.get(name):
            options += option_of_setting(name, value)
    return shlex.join(["python", "train.py", *map(str, options)])


def option_of_setting(name, value):
    """The words on a command line that give a setting a value."""
    if isinstance(value, bool):
        return [screens.flag(name if value else f"no_{name}")]
    return [screens.flag(name), value]
