"""The tables of cheats: which metric each of them fools, and in which it is exposed."""

import numpy as np

from report.tables import SHORT, Table

SAID = (
    "Each cheat is handed in for every held-out condition and scored as any method is. Honest are "
    "the rivals, without the controls, and the model."
)
GAPS = (
    "gap closed: 0 the control cells, 1 the floor (copied: share of training cells); "
    "+: fools the metric, above all rivals; ++: above the model too"
)
MARKS = {"": "", "rivals": "+", "all": "++"}


def make_cheat_tables(standings, exposed):
    """Two `Table`s: the gap closed in every metric, and what each cheat fools and where it fails.

    standings: a row per method, metric and gene set, of `evaluate.standings`; exposed: {cheat:
    (metric, gene set)} that it cannot pass.
    """
    standings = standings.set_index(["method", "metric", "genes"])
    columns = list(dict.fromkeys(standings.index.droplevel(0)))
    gaps, exposures = [], []
    for name in dict.fromkeys(standings.index.droplevel([1, 2])):
        gaps.append([name, *(written_gap(standings.loc[(name, *column)]) for column in columns)])
    for name, column in exposed.items():
        there = standings.loc[(name, *column)]
        others = f"{there['best_honest']:.3f} … {there['worst_honest']:.3f}"
        rank = f"{there['rank']:.0f} of {there['of']:.0f}"
        fooled = [label_of(other) for other in columns if standings.loc[(name, *other), "fools"]]
        line = [name, label_of(column), f"{there['score']:.3f}", others, rank]
        exposures.append([*line, ", ".join(fooled) or "none"])
    header = ["", "exposed in", "score", "honest, best … worst", "rank", "fools"]
    return [
        Table(GAPS, ["", *map(label_of, columns)], gaps),
        Table("where each is exposed, and what it fools", header, exposures),
    ]


def label_of(column):
    """The name of a column (metric, gene set), all of which stand for one gene set."""
    return SHORT.get(column[0], column[0])


def written_gap(standing):
    """The text of a method's standing in a metric; a dash where it is not defined."""
    value = standing["score"] if standing.name[1] == "copied" else standing["gap_closed"]
    if np.isnan(value):
        return "–"
    return f"{value:.2f}".replace("-0.00", "0.00") + MARKS[standing["fools"]]
