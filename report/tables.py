"""Tables that a person reads, as text and as Markdown."""

import screens

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
    ("gap", DISTANCES),
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
    "gap": "gap closed: 0 as far as the control cells, 1 as close as the floor",
    "wins": "conditions in which the model is better, and the p-value of a two-sided sign test",
}
COSTS = "; seconds to train and to predict (of the model: of its epochs)"
SHORT = {
    "E-distance": "E",
    "MMD2": "MMD²",
    "activation PCC": "PCC on",
    "Pearson delta": "r of Δ",
    "Pearson delta from mean": "r from mean",
    "discrimination": "discrim.",
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
    "rank of the true condition, 0.5 is chance."
)

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


def make_tables(summary, rows, paper=None, costs=None):
    """The tables [(title, header, lines)], all of text.

    summary: of `evaluate.summarise`; rows: one per condition; paper: the data set whose published
    numbers go below ours; costs: {method: {"seconds", "parameters"}} of those that were trained,
    which stand beside the gap that they close.
    """
    shown = dict(summary)
    if paper:
        shown[f"paper, {paper}"] = published(paper, len(rows))
    tables = []
    for kind, columns in TABLES:
        columns = [column for column in columns if is_scored(summary, *column)]
        header = ["", *(f"{SHORT.get(metric, metric)} {genes}" for metric, genes in columns)]
        lines = []
        for name, scores in shown.items():
            cells = [written(kind, scores.get(metric, {}).get(genes)) for metric, genes in columns]
            if any(cells):
                lines.append([name, *cells])
        title = TITLES[kind].format(n=len(rows))
        if kind == "gap" and costs:
            title += COSTS
            header += ["seconds", "parameters"]
            lines = [[*line, *written_costs(costs.get(line[0]))] for line in lines]
        tables.append((title, header, lines))
    title, header, lines = tables[0]
    tables[0] = (title + said_of_partial(summary, len(rows)), header, lines)
    if 1 < len(rows) <= 8:
        tables.append(each_condition(summary, rows))
    return tables


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
    return said


def each_condition(summary, rows):
    """A table of the E-distance in every condition."""
    header = ["E-distance, all genes", *(row["condition"] for row in rows)]
    lines = []
    for name in summary:
        line = [name]
        for row in rows:
            scores = row["scores"].get(name)
            line.append(f"{scores['E-distance']['all']:.3f}" if scores else "")
        lines.append(line)
    return "each condition", header, lines


def written(kind, entry):
    """The text of one entry of a summary; empty where there is none of that kind."""
    if entry is None:
        return ""
    if kind == "raw":
        return f"{entry['mean']:.3f} ± {entry['sd']:.3f}"
    if kind == "gap" and "gap_closed" in entry:
        return f"{entry['gap_closed']:.3f}"
    if kind == "wins" and "p" in entry:
        return f"{entry['beaten_in']}/{entry['conditions']}, {entry['p']:.1g}"
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


def as_text(tables, squared=False):
    """The tables for a terminal."""
    out = [convention(squared), ""]
    for title, header, lines in tables:
        widths = [max(map(len, column)) + 2 for column in zip(header, *lines, strict=True)]
        out.append(title)
        for line in (header, *lines):
            cells = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
            cells[0] = line[0].ljust(widths[0])
            out.append("".join(cells).rstrip())
        out.append("")
    return "\n".join(out)


def as_markdown(tables, squared=False):
    """The tables as Markdown."""
    out = [convention(squared), ""]
    for title, header, lines in tables:
        out += [f"**{title}**", ""]
        out += [markdown_line(line) for line in (header, ["---"] * len(header), *lines)]
        out.append("")
    return "\n".join(out)


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
