"""Tables that a person reads, as text and as Markdown."""

from typing import NamedTuple

import screens

LEAST_TOLD = 0.75  # a metric that ranks the controls right in fewer conditions has no range

DISTANCES = [
    ("E-distance", "all"),
    ("EMD", "all"),
    ("E-distance", "DE20"),
    ("EMD", "DE20"),
    ("E-distance", "DE40"),
    ("EMD", "DE40"),
]
TABLES = [  # (what is shown, of which scores); the first two are the paper's tables 1 and 2
    ("raw", DISTANCES),
    (
        "raw",
        [
            ("activation PCC", "all"),
            ("activation PCC", "DE20"),
            ("activation PCC", "DE40"),
            ("MMD2", "all"),
            ("MMD2", "DE20"),
            ("MMD2", "DE40"),
        ],
    ),
    (
        "raw",
        [
            ("Pearson delta", "all"),
            ("Pearson delta", "DE20"),
            ("Pearson delta from mean", "all"),
            ("DE overlap", "DE20"),
            ("DE overlap", "DE40"),
            ("discrimination", "all"),
        ],
    ),
    (
        "raw",
        [
            ("WMSE", "all"),
            ("R2w delta", "all"),
            ("centroid accuracy", "all"),
            ("discrimination without target", "all"),
        ],
    ),
    ("gap_closed", DISTANCES),
    ("gap_closed_from_mean", DISTANCES),
    (
        "wins",
        [
            ("E-distance", "all"),
            ("E-distance", "DE20"),
            ("EMD", "all"),
            ("EMD", "DE20"),
            ("Pearson delta", "all"),
            ("discrimination", "all"),
        ],
    ),
]
TITLES = {
    "raw": "mean ± standard deviation over {n} conditions",
    "few": "mean ± standard deviation over the halves (conditions: {n}, too few for one over them)",
    "gap_closed": "gap closed: 0 as far as the control cells, 1 as close as the floor",
    "gap_closed_from_mean": "gap closed from the perturbed mean: 0 as far as that, 1 as the floor",
    "active": "gap closed over the conditions that do something, {n} of {all}",
    "wins": "conditions in which the model is better, and the p-value of a two-sided sign test "
    "over {unit}s",
}
COSTS = "; seconds to train and to predict (of the model: of its epochs)"
SHORT = {
    "E-distance": "E",
    "MMD2": "MMD²",
    "activation PCC": "PCC on",
    "Pearson delta": "r of Δ",
    "Pearson delta from mean": "r from mean",
    "discrimination": "discrim.",
    "discrimination without target": "discrim. w/o target",
    "centroid accuracy": "centroid acc.",
    "R2w delta": "R²w of Δ",
}
CONVENTION = (
    "Measured cells are halved at random, 5 times; every method is scored against the same half, "
    "with as many cells as it holds (fewer,\n"
    "for all, where a method has fewer); the floor is the other half. E: root of the unbiased "
    "energy distance; EMD: mean Wasserstein-1 over\n"
    "genes; MMD²: Gaussian kernel; of log1p, lower is better. PCC on: correlation of the fractions "
    "of expressing cells; r of Δ: of mean\n"
    "changes from the controls; r from mean: from the mean of the training perturbations; overlap: "
    "of the genes that change most; discrim.:\n"
    "rank of the true condition, 0.5 is chance; centroid acc.: the same in Euclidean distance; "
    "WMSE, R²w: of means, genes weighted by what\n"
    "sets the perturbation apart from others. Ceiling: what a repeat at full depth would correlate "
    "at. Interpolated duplicate: the floor, with\n"
    "the mean of the training perturbations in genes that do not differ. Dynamic range: which "
    "share of the way from the perturbed mean to a\n"
    "perfect answer the duplicate covers. A metric in (parentheses) puts it above the perturbed "
    f"mean in fewer than {LEAST_TOLD:.0%} of the conditions:\n"
    "it has no range here, and says nothing."
)


class Table(NamedTuple):
    """A table of text: the first column names the methods.

    ranges: the text above every column, the metrics' dynamic range; greyed: the numbers of the
    columns whose metric has none.
    """

    title: str
    header: list
    lines: list
    ranges: list | None = None
    greyed: frozenset = frozenset()


# arXiv 2511.13124, Tables 1 and 2, Departures on its own split and cells: (mean, sd) by gene set.
PAPER = {
    "Adamson": {
        "E-distance": {"all": (0.5955, 0.1212), "DE20": (0.5028, 0.1942), "DE40": (0.5243, 0.2243)},
        "EMD": {"all": (0.0356, 0.0053), "DE20": (0.0953, 0.0487), "DE40": (0.1013, 0.0442)},
        "activation PCC": {
            "all": (0.9910, 0.0078),
            "DE20": (0.9515, 0.0685),
            "DE40": (0.9493, 0.0716),
        },
    },
    "sci-Plex3": {
        "E-distance": {"all": (0.5478, 0.1461), "DE20": (0.2764, 0.1246), "DE40": (0.2827, 0.1113)},
        "EMD": {"all": (0.0254, 0.0051), "DE20": (0.0623, 0.0317), "DE40": (0.0565, 0.0340)},
        "activation PCC": {
            "all": (0.9652, 0.0690),
            "DE20": (0.9437, 0.0969),
            "DE40": (0.9520, 0.0722),
        },
    },
}


def paper_of(screen):
    """Which of the paper's two data sets a screen is, by names that no other holds together."""
    targets = {
        target
        for perturbation, _ in screen.groups
        for target, _ in screens.targets_of(perturbation, screen.kind)
    }
    in_k562 = all(name.startswith("K562") for name in screen.cell_types)
    if {"TMEM167A", "HSD17B12", "CREB1"} <= targets and in_k562:
        return "Adamson"
    if screen.kind == "drug" and len(targets) > 150:
        cell_lines = {"A549", "K562", "MCF7"}
        if cell_lines <= set(screen.cell_types):
            return "sci-Plex3"
    return None


def make_tables(summary, rows, paper=None, costs=None, ranges=None, active=None):
    """The tables, a list of `Table`.

    summary: of `evaluate.summarise`; rows: one per condition; paper: the data set whose published
    numbers go below ours; costs: {method: {"seconds", "parameters"}} of those that were trained,
    which stand beside the gap that they close; ranges: of `evaluate.dynamic_ranges`; active: the
    summary of the conditions that do something, where some do nothing.
    """
    shown = dict(summary)
    if paper:
        shown[f"paper, {paper}"] = published(paper, len(rows))
    tables = []
    units = {scores["E-distance"]["all"].get("unit", "condition") for scores in summary.values()}
    for kind, columns in TABLES:
        columns = [column for column in columns if is_scored(summary, *column)]
        table = one_table(kind, columns, shown, ranges)
        if tables and not table.lines:
            continue
        told = "few" if kind == "raw" and of_halves(summary) else kind
        table = table._replace(title=TITLES[told].format(n=len(rows), unit=" or ".join(units)))
        if kind == "gap_closed" and costs:
            table = with_costs(table, costs)
        tables.append(table)
        if kind == "gap_closed" and active:
            n = sum(not row.get("nothing") for row in rows)
            title = TITLES["active"].format(n=n, all=len(rows))
            tables.append(one_table(kind, columns, active, ranges)._replace(title=title))
    said = said_of_partial(summary, len(rows)) + said_of_nothing(rows)
    tables[0] = tables[0]._replace(title=tables[0].title + said)
    if 1 < len(rows) <= 8:
        tables.append(each_condition(summary, rows))
    return tables


def one_table(kind, columns, shown, ranges):
    """A `Table`, without a title, of some (metric, gene set) of a summary."""
    lines = []
    for name, scores in shown.items():
        entries = [scores.get(metric, {}).get(genes) for metric, genes in columns]
        cells = [written(kind, entry) for entry in entries]
        if any(cells):
            lines.append([name, *cells])
        ceilings = [written("ceiling", entry) for entry in entries]
        if kind == "raw" and any(ceilings):
            lines.append(["ceiling", *ceilings])
    header = ["", *(f"{SHORT.get(metric, metric)} {genes}" for metric, genes in columns)]
    if not ranges:
        return Table("", header, lines)
    of_columns = [ranges.get(metric, {}).get(genes) for metric, genes in columns]
    texts = [written("range", entry) for entry in of_columns]
    greyed = [i for i, entry in enumerate(of_columns, 1) if not has_range(entry)]
    return Table("", header, lines, ["dynamic range", *texts], frozenset(greyed))


def has_range(entry):
    """Whether a metric can tell a good answer from the average of all perturbations on a screen.

    entry: of `evaluate.dynamic_ranges`, or None.
    """
    return entry is not None and entry["told"] >= LEAST_TOLD


def with_costs(table, costs):
    """A table with two columns of what methods cost."""
    return table._replace(
        title=table.title + COSTS,
        header=[*table.header, "seconds", "parameters"],
        lines=[[*line, *written_costs(costs.get(line[0]))] for line in table.lines],
        ranges=table.ranges and [*table.ranges, "", ""],
    )


def published(paper, n):
    """The paper's own numbers for a data set, in the form of a summary."""
    return {
        metric: {
            genes: {"mean": mean, "sd": sd, "conditions": n}
            for genes, (mean, sd) in by_genes.items()
        }
        for metric, by_genes in PAPER[paper].items()
    }


def is_scored(summary, metric, genes):
    """Whether any method has a score."""
    return any(genes in scores.get(metric, {}) for scores in summary.values())


def said_of_partial(summary, n):
    """Which methods do not apply to all n conditions, for a title."""
    names_of = {}
    for name, scores in summary.items():
        names_of.setdefault(scores["E-distance"]["all"]["conditions"], []).append(name)
    said = ""
    for conditions in sorted(names_of.keys() - {n}):
        names = names_of[conditions]
        applies = "it applies" if len(names) == 1 else "each applies"
        said += f"; {', '.join(names)}: the {conditions} that {applies} to"
        if of_halves({name: summary[name] for name in names}) and not of_halves(summary):
            said += ", ± over the halves"
    return said


def of_halves(summary):
    """Whether the standard deviations of a summary are over the halves of the measured cells."""
    return all("sd_halves" in scores["E-distance"]["all"] for scores in summary.values())


def said_of_nothing(rows):
    """Which conditions do nothing that could be measured, for a title."""
    names = [row["condition"] for row in rows if row.get("nothing")]
    if not names:
        return ""
    return (
        f"; as near the controls as chance has it (E-distance, permutations, adjusted p > 0.05): "
        f"{screens.some(names, 4)}"
    )


def each_condition(summary, rows):
    """A table of the E-distance in every condition; in parentheses those that do nothing."""
    names = [f"({row['condition']})" if row.get("nothing") else row["condition"] for row in rows]
    header = ["E-distance, all genes", *names]
    lines = []
    for name in summary:
        line = [name]
        for row in rows:
            scores = row["scores"].get(name)
            line.append(f"{scores['E-distance']['all']:.3f}" if scores else "")
        lines.append(line)
    return Table("each condition", header, lines)


def written(kind, entry):
    """The text of one entry of a summary; empty where there is none of that kind."""
    if entry is None:
        return ""
    if kind == "raw":
        return f"{entry['mean']:.3f} ± {entry.get('sd_halves', entry['sd']):.3f}"
    if kind == "wins" and "p" in entry:
        return f"{entry['beaten_in']}/{entry['conditions']}, {entry['p']:.1g}"
    if kind in entry:
        return f"{entry[kind]:.{2 if kind == 'range' else 3}f}"
    return ""


def written_costs(costs):
    """The text of a method's seconds and parameters; empty where it was not trained."""
    if costs is None:
        return ["", ""]
    return [f"{costs['seconds']:,.0f}", f"{costs['parameters']:,.0f}"]


def convention(squared):
    """How the scores were made, in a paragraph."""
    if not squared:
        return CONVENTION
    return CONVENTION.replace("root of the unbiased energy", "unbiased energy")


def as_text(tables, squared=False, said=None):
    """The tables for a terminal, below how they were made; said: in other words than ours."""
    out = [said or convention(squared), ""]
    for table in tables:
        lines = [*([table.ranges] if table.ranges else []), in_parentheses(table), *table.lines]
        widths = [max(map(len, column)) + 2 for column in zip(*lines, strict=True)]
        out.append(table.title)
        for line in lines:
            cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
            cells[0] = line[0].ljust(widths[0])
            out.append("".join(cells).rstrip())
        out.append("")
    return "\n".join(out)


def as_markdown(tables, squared=False, said=None):
    """As `as_text`, in Markdown. It has one line of header: the ranges stand right below it."""
    out = [said or convention(squared), ""]
    for table in tables:
        header = in_parentheses(table)
        ranges = [table.ranges] if table.ranges else []
        out += [f"**{table.title}**", ""]
        out += map(markdown_line, (header, ["---"] * len(header), *ranges, *table.lines))
        out.append("")
    return "\n".join(out)


def in_parentheses(table):
    """The header of a table, with its greyed columns in parentheses."""
    return [f"({name})" if i in table.greyed else name for i, name in enumerate(table.header)]


def markdown_line(cells):
    """A line of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def ablation_table(table):
    """Mean ± standard deviation over seeds of every variant, as Markdown.

    table: a row per variant and seed, of `report.ablation`.
    """
    measures = [column for column in table if column not in ("name", "seed")]
    columns = [column for column in measures if table[column].notna().any()]
    by_name = table.groupby("name", sort=False)[columns]
    means, deviations = by_name.mean(), by_name.std(ddof=0)
    seeds = table["seed"].nunique()
    lines = [f"Distances: gap closed. {seeds} seeds.", "", markdown_line(["", *columns])]
    lines.append(markdown_line(["---"] * (len(columns) + 1)))
    for name in means.index:
        both = zip(means.loc[name], deviations.loc[name], strict=True)
        lines.append(markdown_line([name, *(f"{mean:.2f} ± {sd:.2f}" for mean, sd in both)]))
    return "\n".join([*lines, ""])
