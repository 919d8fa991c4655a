"""The tables of cheats: which metric each of them fools, and in which it is exposed."""

import numpy as np

from report.tables import SHORT, Table

SAID = (
    "Each cheat is handed in for every held-out condition and scored as any method is. Honest are "
    "the rivals, without the controls, and the model."
)


def make_cheat_tables(standings, exposed):
    """Two `Table`s: the gap closed in every metric, and what each cheat fools and where it fails.

    standings: a row per method, metric and gene set, of `evaluate.standings`; exposed: {cheat:
    (metric, gene set)} that it cannot pass.
    """
    scores = standings.set_index(["method", "metric", "genes"])
    columns = list(dict.fromkeys(scores.index.droplevel(0)))
    header = ["", *(label_of(*column) for column in columns)]
    lines = []
    for name in dict.fromkeys(standings["method"]):
        cells = [written_gap(scores.loc[(name, *column)]) for column in columns]
        lines.append([name, *cells])
    title = (
        "gap closed: 0 the control cells, 1 the floor (*: above all honest methods; copied: share)"
    )
    return [Table(title, header, lines), table_of_exposures(scores, columns, exposed)]


def table_of_exposures(scores, columns, exposed):
    """A line a cheat: the metrics that it fools, and its rank in the one that it cannot pass."""
    lines = []
    for name, column in exposed.items():
        fooled = [label_of(*other) for other in columns if fools(scores.loc[(name, *other)])]
        there = scores.loc[(name, *column)]
        best_to_worst = f"{there['best_honest']:.3f} … {there['worst_honest']:.3f}"
        rank = f"{there['rank']:.0f} of {there['of']:.0f}"
        score = f"{there['score']:.3f}"
        lines.append(
            [name, label_of(*column), score, best_to_worst, rank, ", ".join(fooled) or "none"]
        )
    header = ["", "exposed in", "score", "honest, best … worst", "rank", "fools"]
    return Table(
        "where each is exposed, and the metrics in which it is above all honest methods",
        header,
        lines,
    )


def label_of(metric, genes):
    """The name of a column, with its gene set where that is not plain."""
    label = SHORT.get(metric, metric)
    return label if genes == "all" or metric == "DE overlap" else f"{label} {genes}"


def fools(standing):
    """Whether a cheat is above all honest methods."""
    return standing["cheat"] and standing["rank"] == 1


def written_gap(standing):
    """The text of a method's standing in a metric; a dash where it is not defined."""
    value = standing["score"] if standing.name[1] == "copied" else standing["gap_closed"]
    if np.isnan(value):
        return "–"
    return f"{value:.2f}".replace("-0.00", "0.00") + ("*" if fools(standing) else "")
