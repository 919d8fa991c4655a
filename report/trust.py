"""How far to trust a prediction: how novel its condition is, and what error to expect.

Training conditions that were left out (train.py, `leave_out`) show how far off predictions are,
and so what error to expect of a like condition (`expected_errors`). All distances are E-distances
of all genes, computed from means as if cells varied alike around them (`as_e_distance`).
"""

import os

import numpy as np
import pandas as pd
import scipy

import screens
from report.metrics import squared_distances
from screens import CONTROL, targets_of

RANGE = (0.1, 0.9)  # quantiles of error / expected error over left-out conditions
FEWEST = 4  # left-out conditions that an expected error needs
FARTHEST = 1e9  # no E-distance of log1p values comes near
MOST_GROUPS = 3  # groups of predictions that can hardly be told apart, each in a warning
SEEN = ("seen here", "seen elsewhere", "unseen")  # of all targets, from known to new
# The form of a row on a training condition that was left out (`left_out_table` has the names): the
# condition, its targets (of SEEN), whether its cell type was seen perturbed; and as E-distances the
# size of the predicted change, its standard deviation and the error.
LEFT_OUT = (str, str, bool, float, float, float)
EXPECTED = ["expected", "low", "high", "left_out"]
NOVELTY = [
    "condition", "perturbation", "cell_type", "cells", "targets", "unseen", "cell_type_seen",
    "nearest", "shared_targets", "dose_ratio", "same_cell_type", "distance",
]  # fmt: skip
PARTS = {  # of a prediction, and what it then rests on
    "memory": "memory of its targets",
    "own": "how targets' own transcripts move",
    "network": "the gene network",
    "features": "targets of like structure or embedding",
    "likeness": "its targets in other cell types",
    "shared": "what all perturbations share",
}


# ---- Novelty -------------------------------------------------------------------------------------


def target_status(key, training, kind):
    """One of SEEN, and the targets that were never perturbed, for (perturbation, cell type).

    training: the perturbed training conditions, the like; kind: "gene" or "drug".
    "seen here": each target by itself in this cell type, perhaps at another dose; "seen elsewhere":
    each in some condition.
    """
    wanted = {target for target, _ in targets_of(key[0], kind)}
    anywhere, here = set(), set()
    for perturbation, cell_type in training:
        targets = {target for target, _ in targets_of(perturbation, kind)}
        anywhere |= targets
        if len(targets) == 1 and cell_type == key[1]:
            here |= targets
    if wanted <= here:
        return SEEN[0], []
    return SEEN[1] if wanted <= anywhere else SEEN[2], sorted(wanted - anywhere)


def nearest(key, training, kind, distances):
    """Which training condition is nearest (its number), the targets in common, the dose ratio.

    The least unlike (`screens.unlikeness`), then that at the smallest of the distances (training,).
    Without a common target the ratio is NaN.
    """
    ranks = [
        (*screens.unlikeness(key, other, kind), distance)
        for other, distance in zip(training, distances, strict=True)
    ]
    closest = min(range(len(training)), key=ranks.__getitem__)
    ratios = screens.dose_ratios(key[0], training[closest][0], kind)
    return closest, len(ratios), next(iter(ratios.values()), np.nan)


def groups_to_leave_out(keys, kind):
    """Which training conditions are left out together, and asked for: lists of their numbers.

    Each perturbed condition alone; each target, with all conditions that it is part of; each cell
    type, with all its perturbed conditions. keys: {number: (perturbation, cell type)}, controls
    among them.
    """
    perturbed = {i: key for i, key in keys.items() if key[0] != CONTROL}
    of_target, of_type = {}, {}
    for i, (perturbation, cell_type) in perturbed.items():
        of_type.setdefault(cell_type, []).append(i)
        for target, _ in targets_of(perturbation, kind):
            of_target.setdefault(target, []).append(i)
    groups = [[i] for i in perturbed]
    groups += [group for group in [*of_target.values(), *of_type.values()] if len(group) > 1]
    return [group for group in groups if len(group) < len(perturbed)]


# ---- Distances -----------------------------------------------------------------------------------


def as_e_distance(squared, variance):
    """The E-distance of two populations whose means are so far apart, variances alike.

    squared: the squared distance of their means; variance: of a cell, summed over the genes. In
    many genes every distance between two cells is near the root of its mean square, which is
    2 variance within a population, and that plus `squared` between two.
    """
    squared = np.maximum(squared, 0)
    variance = np.asarray(variance, np.float64)
    return np.sqrt(2 * (np.sqrt(2 * variance + squared) - np.sqrt(2 * variance)))


def distance_by_means(x, y, controls):
    """How far predicted cells x (n, N) are from measured ones y (m, N), as their means tell.

    In the terms of an expected error (`as_e_distance`), which is one of means: the chance of the
    measured mean is taken off. The E-distance of the cells themselves takes off that of the
    predicted mean, too, which an anchored one does not have. controls: cells of this type.
    """
    squared = ((x.mean(0) - y.mean(0)) ** 2).sum(dtype=np.float64)
    chance = y.var(0, ddof=1).sum(dtype=np.float64) / len(y)
    return float(as_e_distance(squared - chance, controls.var(0).sum(dtype=np.float64)))


def in_units_of_chance(squared, variances, n, m):
    """How far apart two means are, by what chance does: below 1 they can hardly be told apart.

    squared: the squared distance of the expected means; variances (N,): of the genes; n, m: cells
    of either. The means of two samples of one population have a squared distance of standard
    deviation sqrt(2 sum(v^2)) (1/n + 1/m), if genes are independent. The unit is twice that.
    """
    chance = np.sqrt(2 * (np.asarray(variances) ** 2).sum()) * (1 / n + 1 / m)
    return squared / max(2 * chance, 1e-12)


# ---- Expected error ------------------------------------------------------------------------------


def expected_errors(asked, left_out):
    """Expected E-distance, its RANGE and how many left-out conditions are of the same kind: (n, 4).

    asked: a table with the columns targets, cell_type_seen, cell_type, size, sd; left_out: rows as
    LEFT_OUT. The error is a power law of size and sd, times a factor for each of the other three
    columns: the errors of the left-out conditions with this value over what the law expects of
    them. Four more conditions with the mean error are added to both, so that few left-out ones
    change little. The range is that of the ratio of error and expectation, over left-out conditions
    of the same `targets` and `cell_type_seen` where there are eight, otherwise over all of them.
    """
    if len(left_out) < FEWEST:
        return np.full((len(asked), 4), np.nan)
    known = left_out_table(left_out)
    errors = known["error"].clip(lower=1e-6)
    mean = errors.mean()
    law = power_law(known)
    fitted, expected = law(known), law(asked)
    fitted, expected = (of * errors.sum() / fitted.sum() for of in (fitted, expected))
    for column in ("targets", "cell_type_seen", "cell_type"):
        for value in known[column].unique():
            rows = (known[column] == value).to_numpy()
            factor = (errors[rows].sum() + 4 * mean) / (fitted[rows].sum() + 4 * mean)
            fitted[rows] *= factor
            expected[(asked[column] == value).to_numpy()] *= factor
    kind = ["targets", "cell_type_seen"]
    ratios = errors / fitted
    answers = []
    for value, row in zip(expected, asked[kind].itertuples(index=False), strict=True):
        same = ratios[(known[kind] == tuple(row)).all(axis=1)]
        low, high = np.quantile(same if len(same) >= 8 else ratios, RANGE)
        answers.append([value, low * value, high * value, len(same)])
    return np.array(answers)


def power_law(known, ridge=20.0):
    """How the error grows with `size` and `sd`, but for a factor: a function of such a table.

    size^a sd^b, by least squares of logarithms. A ridge draws to a = 1 and b = 0, an error that is
    proportional to the predicted change; neither is below 0.
    """
    least = {name: max(known[name].median(), 1e-6) / 4 for name in ("size", "sd")}

    def logarithms(table):
        # Even where no change is predicted some error is to be expected.
        return np.stack([np.log(np.hypot(table[name], least[name])) for name in least], 1)

    errors = known["error"]
    wanted = np.log(np.hypot(errors, max(errors.mean(), 1e-6) / 4)).to_numpy()
    X = logarithms(known)
    centre = X.mean(0)
    proportional = np.array([1.0, 0.0])
    left = wanted - wanted.mean() - (X - centre) @ proportional
    rows = np.vstack([X - centre, np.sqrt(ridge) * np.eye(2)])
    bounds = (-proportional - 1e-9, np.inf)
    exponents = scipy.optimize.lsq_linear(rows, np.append(left, [0, 0]), bounds).x + proportional
    return lambda table: np.exp((logarithms(table) - centre) @ exponents)


def left_out_table(left_out):
    """The left-out training conditions as a table."""
    names = ["condition", "targets", "cell_type_seen", "size", "sd", "error"]
    table = pd.DataFrame(left_out, columns=names)
    table["cell_type"] = [condition.rpartition("@")[2] for condition in table["condition"]]
    return table


def is_left_out(value):
    """Whether a checkpoint's part is rows as LEFT_OUT, of distances that there can be."""
    if not screens.has_form(value, [LEFT_OUT]):
        return False
    return all(row[1] in SEEN and all(0 <= far <= FARTHEST for far in row[3:]) for row in value)


# ---- The table -----------------------------------------------------------------------------------


def trust_table(asked, cells, training, kind, left_out, explained=None):
    """A row per predicted condition: how novel it is and what error to expect (docs/using.md).

    asked: [(perturbation, cell type)]; cells: how many of each are predicted; training: the
    perturbed training conditions, one at least; left_out: rows as LEFT_OUT; explained: what
    `explain` of departures.py says of these conditions, as arrays, or None for a model without
    expected shifts.
    """
    apart = np.full((len(asked), len(training)), np.nan)
    if explained:
        change, variances, uncertainty, of_training, lengths = explained
        spread = variances.sum(1)
        apart = as_e_distance(squared_distances(change, of_training), spread[:, None])
    rows = []
    for i, (key, n) in enumerate(zip(asked, cells, strict=True)):
        status, unseen = target_status(key, training, kind)
        closest, shared, ratio = nearest(key, training, kind, apart[i])
        row = {
            "condition": "@".join(key),
            "perturbation": key[0],
            "cell_type": key[1],
            "cells": n,
            "targets": "in training" if key in training else status,
            "unseen": "+".join(unseen),
            "cell_type_seen": any(key[1] == cell_type for _, cell_type in training),
            "nearest": "@".join(training[closest]),
            "shared_targets": shared,
            "dose_ratio": ratio,
            "same_cell_type": training[closest][1] == key[1],
            "distance": apart[i, closest],
        }
        rows.append(row)
    table = pd.DataFrame(rows, columns=NOVELTY)
    if not explained:
        return table
    total = np.maximum(sum(lengths.values()), 1e-12)
    shares = pd.DataFrame({name: lengths[name] / total for name in PARTS})
    table["rests_on"] = shares.idxmax(axis=1).map(PARTS)
    table[list(PARTS)] = shares
    table["size"] = as_e_distance((change**2).sum(1), spread)
    table["sd"] = as_e_distance(uncertainty, spread)
    table[EXPECTED] = expected_errors(table, left_out)
    table.loc[table["targets"] == "in training", EXPECTED] = np.nan
    table["left_out"] = table["left_out"].fillna(0).astype(int)
    table["alike"] = alike(table, change, variances)
    return table


def alike(table, changes, variances):
    """The other conditions of the table that each can hardly be told from, joined by "; ": (n,).

    Conditions of one cell type, in groups of which all pairs are nearer than 1 by
    `in_units_of_chance`. changes (n, N): expected, of the genes' means; variances (n, N): of cells.
    """
    others = np.full(len(table), "", dtype=object)
    for _, of_type in table.groupby("cell_type"):
        rows = of_type.index.to_numpy()
        if len(rows) < 2:
            continue
        n = of_type["cells"].to_numpy()
        squared = squared_distances(changes[rows], changes[rows])
        apart = [
            in_units_of_chance(squared[i, j], variances[rows[i]], n[i], n[j])
            for i in range(len(rows))
            for j in range(i + 1, len(rows))
        ]
        tree = scipy.cluster.hierarchy.linkage(apart, "complete")
        group = scipy.cluster.hierarchy.fcluster(tree, 1, "distance")
        for i, row in enumerate(rows):
            same = rows[(group == group[i]) & (rows != row)]
            others[row] = "; ".join(table["condition"][same])
    return others


def alike_groups(table):
    """Which conditions can hardly be told from each other, group by group."""
    if "alike" not in table:
        return []
    pairs = zip(table["condition"], table["alike"], strict=True)
    groups = (tuple(sorted([one, *others.split("; ")])) for one, others in pairs if others)
    return list(dict.fromkeys(groups))


# ---- In words ------------------------------------------------------------------------------------


def sentences(table, each):
    """What to print of a table: a line per condition, or one on all of them; then warnings."""
    lines = [say(row) for _, row in table.iterrows()] if each else [summary(table)]
    groups = sorted(alike_groups(table), key=len, reverse=True)
    for group in groups[:MOST_GROUPS]:
        lines.append(
            f"warning: {len(group)} predictions can hardly be told apart, in so many cells: "
            f"{screens.some(group, 8)}"
        )
    if len(groups) > MOST_GROUPS:
        lines.append(f"warning: and {len(groups) - MOST_GROUPS:,} more such groups: column 'alike'")
    return lines


def say(row):
    """How far to trust the prediction of a row of the table, in a sentence."""
    text = f"{row['condition']}: {novelty(row)}"
    if "rests_on" in row:
        text += f"; rests on {row['rests_on']} ({row[list(PARTS)].max():.0%})"
        if row["shared_targets"] or row["distance"] > 0:  # otherwise all are as near
            text += f"; nearest is {row['nearest']}, {row['distance']:.2f} away"
        text += f"; predicted change {row['size']:.2f}, {expectation(row)}"
    return text


def novelty(row):
    """What is new about a row's condition, in words."""
    words = {
        "in training": "it was trained on",
        SEEN[0]: "targets seen in this cell type",
        SEEN[1]: "targets seen elsewhere or together",
        SEEN[2]: f"{row['unseen']} never perturbed in training",
    }[row["targets"]]
    return words if row["cell_type_seen"] else f"{words}, a cell type never seen perturbed"


def expectation(row):
    """The expected error of a row, in words."""
    if np.isnan(row["expected"]):
        return "expected error unknown"
    return f"expected E-distance {row['expected']:.2f} ({row['low']:.2f} to {row['high']:.2f})"


def summary(table):
    """A table of many conditions in a line."""
    new = (table["targets"] == SEEN[2]).sum()
    many = f"{len(table)} condition{'s' * (len(table) != 1)}"
    text = f"how far to trust them: {many}, {new} of targets never perturbed"
    if "expected" in table and table["expected"].notna().any():
        low, middle, high = table["expected"].quantile([0, 0.5, 1])
        text += f"; expected E-distance {low:.2f} to {high:.2f}, median {middle:.2f}"
    return text


# ---- Files ---------------------------------------------------------------------------------------


def path_of(predicted):
    """Where the table beside an h5ad of predicted cells is."""
    if os.path.basename(predicted) == "predicted.h5ad":
        return os.path.join(os.path.dirname(predicted), "trust.csv")
    return os.path.splitext(predicted)[0] + "_trust.csv"


def write_trust(predicted, table):
    """Write the table beside an h5ad of predicted cells."""
    screens.save(path_of(predicted), table.to_csv(index=False).encode())


def read_trust(predicted):
    """The table in an h5ad of predicted cells, or None. InputError for a damaged one."""
    numbers = ("cells", "shared_targets", "dose_ratio", "distance", *PARTS, "size", "sd", *EXPECTED)
    kinds = dict.fromkeys(numbers, float) | dict.fromkeys(
        ("cell_type_seen", "same_cell_type"), bool
    )
    novelty = {name: kinds.get(name, str) for name in NOVELTY}
    mixed = {name: kinds.get(name, str) for name in ("rests_on", *PARTS, "size", "sd", *EXPECTED)}
    table = screens.read_table(predicted, "trust", novelty | mixed | {"alike": str}, novelty)
    if table is None:
        return None
    known = table["targets"].isin(["in training", *SEEN]).all()
    if not known or np.isinf(table.select_dtypes(float)).any(axis=None):
        raise screens.InputError(f"{predicted}: its table 'trust' is damaged; sample again")
    return table


# ---- The figure ----------------------------------------------------------------------------------


def draw_expected_error(path, table, actual, left_out):
    """Draw expected against actual E-distance.

    table: see `trust_table`; actual: {condition: E-distance}, each of `distance_by_means`;
    left_out: training conditions that were left out, rows as LEFT_OUT, in grey. Returns the rank
    correlation of the two, NaN of too few, and how many are in their range.
    """
    import matplotlib.pyplot as plt  # these take a while to load

    from report.style import CONTROLS, DASHED, PREDICTED, finish

    known = left_out_table(left_out)
    expected = expected_errors(known, left_out)[:, 0]
    held_out = table[table["condition"].isin(actual) & table["expected"].notna()]
    measured = held_out["condition"].map(actual).to_numpy()
    wanted = held_out["expected"].to_numpy()
    rho = np.nan
    if len(held_out) > 2:
        rho = scipy.stats.spearmanr(wanted, measured).statistic
    figure, panel = plt.subplots(figsize=(5, 4.6), layout="constrained")
    panel.plot(expected, known["error"], "o", color=CONTROLS, markersize=3, alpha=0.5)
    panel.vlines(wanted, held_out["low"], held_out["high"], color=PREDICTED, alpha=0.3)
    panel.plot(wanted, measured, "o", color=PREDICTED)
    end = 1.05 * max([*expected, *wanted, *known["error"], *measured, 1e-3])
    panel.plot([0, end], [0, end], color="black", linewidth=0.8, linestyle=DASHED)
    panel.set(xlim=(0, 1.1 * max([*expected, *wanted, 1e-3])), ylim=(-0.02 * end, end))
    panel.set_xlabel("expected E-distance")
    panel.set_ylabel(
        "E-distance to the measured cells, by the means\n(lines: where four in five are expected)"
    )
    said = "held out" if np.isnan(rho) else f"held out: rank correlation {rho:.2f}"
    panel.set_title(said, loc="left", fontsize=10, color=PREDICTED)
    panel.set_title("training, left out", loc="right", fontsize=10, color="#707070")
    finish(figure, path)
    within = (held_out["low"] <= measured) & (measured <= held_out["high"])
    return rho, int(within.sum())
