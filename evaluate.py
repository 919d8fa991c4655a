"""Score predicted cells against measured ones, beside simple rivals: a report, tables, figures.

    python evaluate.py runs/x                   the held-out conditions of a run
    python evaluate.py runs/x --training        its training conditions (of sample.py --training)
    python evaluate.py runs/x --rivals all      beside rivals that are trained for it
    python evaluate.py runs/x --cheats          which metric do cheats fool?
    python evaluate.py runs/x runs/y runs/z     the conditions of several runs in one table
    python evaluate.py --predicted theirs.h5ad --data truth.h5ad            any model's cells

theirs.h5ad: log1p X; obs with `condition` (such as KLF1+TGFBR2@k562), or `perturbation` and
`cell_type`; the truth's gene names.

One convention. The measured cells of a condition are split into random halves, 5 times. Every
method is scored against the same half with as many cells as it holds (fewer, for all, where one has
fewer), so that the finite-sample bias is the same for all; the floor is the other half. Gene sets:
all, the 20 and 40 of the largest Welch |t| of measured cells against controls, and those that a
fifth of the cells switch.
"""

if __name__ == "__main__":
    import report.loading  # noqa: F401  (what follows takes a while)

import argparse
import json
import os
import re
import shlex
import sys
import textwrap
import zlib

import anndata
import numpy as np
import pandas as pd
import scipy
from scipy.sparse import csr_matrix
from tqdm import tqdm

import screens
from report.calibration import dynamic_range, full_depth, interpolated_duplicate, permutation_p
from report.cheats import SAID, make_cheat_tables
from report.genes import all_tables, read_genes
from report.metrics import (  # noqa: F401 (lessons and tests take all metrics from here)
    activation_pcc,
    centroid_accuracy,
    correlation,
    de_overlap,
    discrimination,
    e_distance,
    emd,
    gamma_by_median,
    gap_closed,
    gaussian_kernel,
    gene_weights,
    mean_kernels,
    mmd2,
    moments,
    pearson_delta,
    rooted,
    squared_distances,
    two_sample,
    wasserstein,
    weighted_r2,
    welch_t,
    wmse,
)
from report.options import settings_class
from report.tables import SHORT, as_markdown, as_text, make_tables, paper_of
from report.trust import distance_by_means, read_trust
from rivals import RIVALS, TRAINED, forms_of, option_of
from rivals.cheats import CHEATS, Given, doctored_controls
from rivals.kept import kept_cells
from rivals.shifts import in_type, mean_shift
from screens import CONTROL, InputError, mean_of, sums_of_cells

SPLITS = 5  # how often the measured cells are halved
FEWEST = 4  # measured cells that a condition needs to be scored
FEW = 2  # conditions, over which a standard deviation would mean nothing

DISTANCES = ("E-distance", "EMD", "MMD2", "WMSE")  # lower is better, a perfect answer is at 0
CORRELATIONS = (  # higher is better, a perfect answer is at 1
    "activation PCC",
    "Pearson delta",
    "Pearson delta from mean",
    "DE overlap",
    "discrimination",
    "discrimination without target",
    "centroid accuracy",
    "R2w delta",
)
METRICS = (*DISTANCES, *CORRELATIONS)
OF_CELLS = ("E-distance", "EMD", "MMD2", "activation PCC", "DE overlap")  # others see means
RELIABILITIES = ("activation PCC", "Pearson delta", "Pearson delta from mean")  # have a ceiling
GENE_SETS = ("all", "DE20", "DE40", "switched")
BASELINE, DUPLICATE = "perturbed mean", "interpolated duplicate"  # negative, positive control
REFERENCES = (DUPLICATE, "floor")  # made of measured cells of the condition: no rivals
TESTED = 1000  # cells of either group, at most, in the test whether a perturbation does anything
SIGNIFICANT = 0.05  # its adjusted p


# ---- Scoring one condition -----------------------------------------------------------------------


def gene_sets(measured, controls, ranked):
    """{gene set: its columns}; ranked (N,): the genes by falling |t|."""
    sets = {"all": slice(None), "DE20": ranked[:20], "DE40": ranked[:40]}
    change = np.abs((measured > 0).mean(0) - (controls > 0).mean(0))
    switched = np.flatnonzero(change > 0.2)  # more than a fifth of the cells change state
    if len(switched):
        sets["switched"] = switched
    return sets


def kernels_of(sets, training):
    """{gene set: the kernels of its E-distance and MMD^2}; training: the cells that set gamma."""
    kernels = {}
    for genes, columns in sets.items():
        gamma = gamma_by_median(training[:, columns])
        kernels[genes] = (np.sqrt, gaussian_kernel(gamma))
    return kernels


def scores_of_cells(x, y, sets, kernels, own, controls, squared=False):
    """{metric: {gene set: score}} of cells x (n, N) against y (n, N), by what sees cells.

    sets, kernels: of `gene_sets` and `kernels_of`; own: {gene set: the kernels' means within y},
    which are the same for every x; controls: their moments.
    """
    scores = {metric: {} for metric in OF_CELLS}
    for genes, columns in sets.items():
        a = x[:, columns]
        b = y[:, columns]
        # One pass over the distances for both.
        energy, similarity = two_sample(a, b, kernels[genes], own[genes])
        scores["E-distance"][genes] = rooted(energy, squared)
        scores["EMD"][genes] = emd(a, b)
        scores["MMD2"][genes] = -similarity
        scores["activation PCC"][genes] = activation_pcc(a, b)
    of_x = moments(x)
    of_y = moments(y)
    for k in (20, 40):
        scores["DE overlap"][f"DE{k}"] = de_overlap(of_x, of_y, controls, k)
    return scores


def scores_of_means(x, y, sets, controls, reference, others, weights, targets):
    """{metric: {gene set: score}} of cells x (n, N) against y (n, N), by what sees means.

    sets: of `gene_sets`; controls: their moments; reference (N,): the mean of the training
    perturbations, or None; others (Q, N): means of the other conditions; weights (N,): of
    `gene_weights`, or None; targets: columns of the perturbed genes.
    """
    scores = {metric: {} for metric in METRICS if metric not in OF_CELLS}
    for genes, columns in sets.items():
        a = x[:, columns]
        b = y[:, columns]
        scores["Pearson delta"][genes] = pearson_delta(a, b, controls[0][columns])
        if reference is not None:
            scores["Pearson delta from mean"][genes] = pearson_delta(a, b, reference[columns])
    scores["discrimination"]["all"] = discrimination(x, y, others)
    scores["discrimination without target"]["all"] = discrimination(x, y, others, targets)
    scores["centroid accuracy"]["all"] = centroid_accuracy(x, y, others)
    if weights is not None:
        scores["WMSE"]["all"] = wmse(x, y, weights)
        if reference is not None:
            scores["R2w delta"]["all"] = weighted_r2(x, y, reference, weights)
    return scores


def averaged(several, by=np.mean):
    """The mean of nests {method: {metric: {gene set: score}}}, of methods that all of them hold.

    by: what is taken in place of the mean.
    """
    mean = {}
    for name in several[0]:
        if all(name in scores for scores in several):
            mean[name] = mean_scores([scores[name] for scores in several], by)
    return mean


def mean_scores(several, by=np.mean):
    """The mean of nests {metric: {gene set: score}}, of the metrics that all of them hold."""
    mean = {}
    for metric, by_set in several[0].items():
        if all(metric in scores for scores in several):
            mean[metric] = {}
            for genes in by_set:
                values = [scores[metric][genes] for scores in several]
                mean[metric][genes] = float(by(values))
    return mean


def score_condition(
    measured,
    controls,
    methods,
    seed=0,
    condition=(),
    orders=None,
    training=None,
    reference=None,
    others=(),
    squared=False,
    rest=None,
    targets=(),
    spread=None,
):
    """{method: {metric: {gene set: score}}} of one condition, and the genes ranked by |t|.

    Each score is the mean over splits. measured (n, N), controls (m, N); methods: {name: cells, or
    None}; the floor is added. seed, condition: from them every method has random numbers of its own
    (`own_generator`). orders: the random orders of the measured cells; training (c, N):
    cells that set the kernel's width (the controls, if none are given); reference (N,): the mean of
    the training perturbations; others: of every split, the means (Q, N) of halves of the other
    conditions. rest: the moments of all cells of other perturbations; with them and a reference a
    positive control is added too. targets: columns of the perturbed genes. spread: a dictionary
    that receives the standard deviation of each score over the splits, in the same form.
    """
    methods = {name: cells for name, cells in methods.items() if cells is not None}
    of_controls = moments(controls)
    ranked = np.argsort(-welch_t(measured, of_controls), kind="stable")
    sets = gene_sets(measured, controls, ranked)
    kernels = kernels_of(sets, controls if training is None else training)
    weights = None if rest is None else gene_weights(welch_t(measured, rest))
    half = len(measured) // 2
    size = min(half, *(len(cells) for cells in methods.values()))
    splits = []
    for split in range(SPLITS):
        if orders is None:
            order = own_generator(seed, "halves", *condition, split).permutation(len(measured))
        else:
            order = orders[split]
        target = measured[order[:size]]
        own = {}
        for genes, columns in sets.items():
            y = target[:, columns]
            own[genes] = mean_kernels(y, y, kernels[genes], within=True)
        drawn = {}
        for name, x in methods.items():
            rng = own_generator(seed, name, *condition, split)
            drawn[name] = x[rng.permutation(len(x))[:size]]
        drawn["floor"] = measured[order[half : half + size]]
        far = others[split] if len(others) else ()
        means = (target, sets, of_controls, reference, far, weights, targets)
        scores = {}
        for name, x in drawn.items():
            scores[name] = scores_of_cells(x, target, sets, kernels, own, of_controls, squared)
            scores[name] |= scores_of_means(x, *means)
        if rest is not None and reference is not None:
            x = interpolated_duplicate(drawn["floor"], rest, reference)
            of_cells = {metric: scores["floor"][metric] for metric in OF_CELLS}
            scores[DUPLICATE] = of_cells | scores_of_means(x, *means)
        splits.append(scores)
    if spread is not None:
        spread.update(averaged(splits, np.std))
    return averaged(splits), ranked


# ---- Scoring a screen ----------------------------------------------------------------------------


def own_generator(seed, *names):
    """Random numbers for what is named, so that nobody's depend on what else is in the table."""
    return np.random.default_rng([seed, *(zlib.crc32(str(name).encode()) for name in names)])


def score(screen, predicted, seed=0, squared=False, trained=None):
    """Score predicted cells and the rivals: a list of rows, one per condition.

    predicted: {(perturbation, cell type): cells (n, N) sparse}; trained: {rival: the like}. Nothing
    that is fitted sees a held-out cell. InputError if no condition has cells enough.
    """
    predictors = {name: rival(screen) for name, rival in RIVALS.items()}
    shifts = screens.mean_shifts(screen)
    training = some_training_cells(screen, own_generator(seed, "training cells"))
    scored = [key for key in sorted(predicted) if can_be_scored(screen, predicted, key)]
    orders = random_orders(screen, {cell_type for _, cell_type in scored}, seed)
    halves = {key: means_of_halves(screen, key, of_key) for key, of_key in orders.items()}
    sums = {key: sums_of_cells(screen.X, screen.groups[key]) for key in orders}
    known = hashes_of_training(screen)
    rows = []
    for key in tqdm(scored, desc="scoring", unit="condition", leave=False):
        measured = screen.dense(screen.groups[key])
        controls = screen.dense(screen.controls(key[1]))
        x0 = screen.dense(starting_rows(screen, key, seed))
        methods = {name: predict(*key, x0) for name, predict in predictors.items()}
        for name, cells in (trained or {}).items():
            methods[name] = cells[key].toarray() if key in cells else None
        methods["model"] = predicted[key].toarray()
        reference = None
        if shifts:
            reference = controls.mean(0) + mean_shift(shifts, in_type(shifts, key[1]))
        spread = {}
        scores, ranked = score_condition(
            measured,
            controls,
            methods,
            seed,
            key,
            orders=orders[key],
            training=training,
            reference=reference,
            others=means_of_others(halves, key),
            squared=squared,
            rest=moments_of_rest(sums, key),
            targets=target_columns(screen, key[0]),
            spread=spread,
        )
        targets = [target for target, _ in screens.targets_of(key[0], screen.kind)]
        row = {
            "condition": "@".join(key),
            "perturbation": "+".join(targets),
            "cell type": str(key[1]),
            "cells": len(measured),
            "scores": scores,
            "spread": spread,
            "top_genes": [str(gene) for gene in screen.genes[ranked[:20]]],
            "copied": {
                name: share_copied(x, known) for name, x in methods.items() if x is not None
            },
            "by_means": distance_by_means(methods["model"], measured, controls),
            "p_anything": p_of_any_change(measured, controls, own_generator(seed, "test", *key)),
        }
        rows.append(row)
    say_what_is_not_scored(screen, predicted, scored)
    say_what_is_copied(rows)
    mark_what_does_nothing(rows)
    return rows


def starting_rows(screen, key, seed):
    """Which controls the rivals start a condition from: as many as it has cells, or all."""
    measured = screen.groups[key]
    controls = screen.controls(key[1])
    rng = own_generator(seed, "controls", *key)
    # No control twice: within-group means are of distinct cells.
    return controls[rng.permutation(len(controls))[: len(measured)]]


def some_training_cells(screen, rng, most=500):
    """Some training cells (most, N), controls among them, drawn at random."""
    rows = np.concatenate(list(screen.training_groups().values()))
    return screen.dense(rng.permutation(rows)[:most])


def can_be_scored(screen, predicted, key):
    """Whether a condition has cells enough, and its cell type controls."""
    enough = len(screen.groups[key]) >= FEWEST and len(screen.controls(key[1])) >= 2
    return enough and predicted[key].shape[0] >= 2


def random_orders(screen, cell_types, seed):
    """{condition: random orders of its cells}, of all conditions in some cell types."""
    orders = {}
    for key, rows in screen.groups.items():
        if key[0] != CONTROL and len(rows) >= FEWEST and key[1] in cell_types:
            rng = own_generator(seed, "halves", *key)
            orders[key] = [rng.permutation(len(rows)) for _ in range(SPLITS)]
    return orders


def means_of_halves(screen, key, orders):
    """The mean (splits, N) of the first half of a condition's cells, in every order."""
    means = []
    for order in orders:
        rows = np.sort(screen.groups[key][order[: len(order) // 2]])
        means.append(np.asarray(screen.X[rows].mean(0)).ravel())
    return np.stack(means)


def means_of_others(halves, key):
    """Of every split, the means (Q, N) of the other conditions in a condition's cell type."""
    others = [means for other, means in halves.items() if other[1] == key[1] and other != key]
    return [np.stack(of_split) for of_split in zip(*others, strict=True)]


def moments_of_rest(sums, key):
    """The `moments` of all cells of the other perturbations in a condition's cell type, or None.

    sums: {condition: its `sums_of_cells`}. None where there are not two such cells.
    """
    others = [of_key for other, of_key in sums.items() if other[1] == key[1] and other != key]
    n = sum(cells for cells, _ in others)
    if n < 2:
        return None
    _, total, squares = sum(sums_of_genes for _, sums_of_genes in others)
    mean = total / n
    return mean, np.sqrt(np.maximum(squares - n * mean**2, 0) / (n - 1)), n


def target_columns(screen, perturbation):
    """The columns of the genes that a perturbation targets, of those that are measured."""
    if screen.kind != "gene":
        return np.array([], int)
    names = [name for name, _ in screens.targets_of(perturbation, screen.kind)]
    return np.flatnonzero(np.isin(screen.genes, names))


def hashes(cells):
    """The hash of every cell (n, N) that expresses anything."""
    return [hash(cell.tobytes()) for cell in cells if cell.any()]


def hashes_of_training(screen, at_once=4096):
    """The hashes of all cells of training perturbations, without the controls."""
    groups = screen.training_groups().items()
    rows = np.concatenate([rows for key, rows in groups if key[0] != CONTROL] or [[]]).astype(int)
    known = set()
    for start in range(0, len(rows), at_once):
        known.update(hashes(screen.dense(rows[start : start + at_once])))
    return known


def share_copied(cells, known):
    """Which share of some cells (n, N) is known, to the digit; known: of `hashes_of_training`."""
    return sum(cell in known for cell in hashes(cells)) / len(cells)


def say_what_is_copied(rows):
    """Warn of a model that hands in cells of training perturbations."""
    share = np.mean([row["copied"]["model"] for row in rows])
    if share > 0:
        print(f"warning: {share:.0%} of the predicted cells are training cells, to the digit")


def p_of_any_change(measured, controls, rng):
    """The p-value that measured cells (n, N) are no farther from the controls than chance has it.

    `permutation_p`, by at most TESTED cells of either.
    """
    x = rng.permutation(measured)[:TESTED]
    both = np.concatenate([x, rng.permutation(controls)[:TESTED]])
    distances = np.sqrt(squared_distances(both, both))
    np.fill_diagonal(distances, 0)
    return permutation_p(distances, len(x), rng)


def mark_what_does_nothing(rows):
    """Adjust the rows' p_anything over conditions (Benjamini and Hochberg), and mark `nothing`."""
    adjusted = scipy.stats.false_discovery_control([row["p_anything"] for row in rows])
    for row, p in zip(rows, adjusted, strict=True):
        row["p_anything"] = float(p)
        row["nothing"] = bool(p > SIGNIFICANT)


def say_what_is_not_scored(screen, predicted, scored):
    """Name the conditions that have too few cells; InputError if these are all."""
    if len(scored) < len(predicted):
        left_out = sorted(predicted.keys() - set(scored))
        names = screens.some(map("@".join, left_out))
        few = f"fewer than {FEWEST} measured, 2 control or 2 predicted cells"
        say(screen, f"not scored, {few}: {names}")
    if not scored:
        raise InputError(
            f"{screen.source}: no condition has {FEWEST} measured, 2 control and 2 predicted "
            "cells; there is nothing to score"
        )


# ---- Summary -------------------------------------------------------------------------------------


def summarise(rows, more=()):
    """{method: {metric: {gene set: entry}}} over conditions; rows: of `score`.

    For an entry see `summary_entry`. more: names of further methods.
    """
    summary = {}
    unit = independent_unit(rows)
    both = [form for name in TRAINED for form in forms_of(name)]
    for name in [*RIVALS, *both, "model", *REFERENCES, *more]:
        scored = [row for row in rows if name in row["scores"]]
        scores = [row["scores"] for row in scored]
        units = np.array([i if unit == "condition" else row[unit] for i, row in enumerate(scored)])
        for metric in METRICS:
            for genes in GENE_SETS:
                entry = summary_entry(scores, name, metric, genes, units)
                if entry:
                    entry["unit"] = unit
                    entry |= spread_over_halves(rows, name, metric, genes, entry["conditions"])
                    summary.setdefault(name, {}).setdefault(metric, {})[genes] = entry
    return summary


def independent_unit(rows):
    """What a sign test counts: perturbations, for their cell types and doses repeat one another.

    Cell types where all is of one perturbation; conditions in rows that do not say, of an older
    version.
    """
    for unit in ("perturbation", "cell type"):
        if all(unit in row for row in rows) and len({row[unit] for row in rows}) > 1:
            return unit
    return "perturbation" if all("perturbation" in row for row in rows) else "condition"


def summary_entry(scores, name, metric, genes, units):
    """What a method scores over the conditions that it applies to; None if there are none.

    mean, sd, conditions: over conditions, and how many they are. gap_closed (of distances): of the
    means, so that weak perturbations, whose own gap is a division by almost nothing, weigh what
    they should. gap_closed_from_mean: the same with the perturbed mean at 0. beaten_in (of rivals):
    in how many conditions the model scores better than the method; p: of a two-sided sign test, in
    which each of the `units` (one for each of the scores) counts once, by its mean; their number.
    ceiling (of the floor's correlations): `full_depth`, its mean over conditions.
    """
    values = values_of(scores, metric, genes, (name, "control", BASELINE, "floor", "model"))
    scored = ~np.isnan(values[:, 0])
    x, control, average, floor, model = values[scored].T
    if not len(x):
        return None
    entry = {"mean": float(x.mean()), "sd": float(x.std()), "conditions": len(x)}
    if metric in DISTANCES:
        entry["gap_closed"] = gap_closed(x.mean(), control.mean(), floor.mean())
        if not np.isnan(average).any():
            entry["gap_closed_from_mean"] = gap_closed(x.mean(), average.mean(), floor.mean())
    if name == "floor" and metric in RELIABILITIES:
        ceilings = full_depth(x)
        entry["ceiling"] = float(np.nanmean(ceilings)) if (x > 0).any() else float("nan")
    if name not in ("model", *REFERENCES):
        better = x - model if metric in DISTANCES else model - x
        entry["beaten_in"] = int((better > 0).sum())
        of_units = pd.Series(better).groupby(units[scored]).mean()
        entry["units"], entry["p"] = len(of_units), sign_test(of_units)
    return entry


def spread_over_halves(rows, name, metric, genes, conditions):
    """{"sd_halves": a method's standard deviation over the splits, mean over the conditions}.

    Where there are so few conditions that none over conditions means anything; else empty.
    """
    values = values_of([row.get("spread", {}) for row in rows], metric, genes, [name])
    values = values[~np.isnan(values)]
    return {"sd_halves": float(values.mean())} if conditions <= FEW and len(values) else {}


def values_of(scores, metric, genes, names):
    """A score of some methods in every condition (conditions, methods); NaN where there is none."""
    values = [
        [of_condition.get(name, {}).get(metric, {}).get(genes) for name in names]
        for of_condition in scores
    ]
    return np.array(values, float).reshape(-1, len(names))


def dynamic_ranges(rows):
    """{metric: {gene set: {"range", "told"}}}: what the metrics are worth on a screen.

    rows: of `score`. range: `dynamic_range` from the perturbed mean to the interpolated duplicate
    (or the floor, where no other perturbation is measured in the cell type), of their means over
    the conditions in which both are scored; told: the share of these conditions in which the
    positive control scores better. Empty if there are no such conditions.
    """
    scores = [
        {DUPLICATE: row["scores"]["floor"], **row["scores"]}
        for row in rows
        if BASELINE in row["scores"]
    ]
    ranges = {}
    for metric in METRICS if scores else ():
        for genes in GENE_SETS:
            values = values_of(scores, metric, genes, (BASELINE, DUPLICATE))
            negative, positive = values[~np.isnan(values).any(1)].T
            if len(negative):
                farther = metric in DISTANCES
                told = np.mean(positive < negative if farther else positive > negative)
                value = dynamic_range(negative.mean(), positive.mean(), 0 if farther else 1)
                ranges.setdefault(metric, {})[genes] = {"range": value, "told": float(told)}
    return ranges


def sign_test(differences):
    """The p-value of a two-sided sign test of some differences. Ties and NaN take no side."""
    above = int((differences > 0).sum())
    contested = above + int((differences < 0).sum())
    if not contested:
        return 1.0
    return float(scipy.stats.binomtest(above, contested).pvalue)


def per_condition(rows):
    """Every score as a table; shown_as is what the tables call the metric."""
    lines = []
    for row in rows:
        scores = row["scores"]
        for name, by_metric in scores.items():
            for metric, by_set in by_metric.items():
                for genes, value in by_set.items():
                    gap = np.nan
                    if metric in DISTANCES:
                        control = scores["control"][metric][genes]
                        floor = scores["floor"][metric][genes]
                        gap = gap_closed(value, control, floor)
                    shown_as = SHORT.get(metric, metric)
                    line = (row["condition"], row["cells"], name, metric, genes, value, gap)
                    lines.append((*line, shown_as))
    columns = ["condition", "cells", "method", "metric", "genes", "score", "gap_closed", "shown_as"]
    return pd.DataFrame(lines, columns=columns)


# ---- Files ---------------------------------------------------------------------------------------


def read_predicted(path, screen):
    """{(perturbation, cell type): cells (n, N) CSR} of an h5ad, its genes in the screen's order."""
    adata = screens.open_h5ad(path)
    columns = columns_of(adata.var_names, path, screen)
    label = condition_labels(adata.obs, path)
    X = screens.log1p_csr(adata.X, path, counts=False)[0][:, columns]
    if (X.data == np.round(X.data)).all() and not (screen.X.data == np.round(screen.X.data)).all():
        say(
            screen, f"warning: {path}: X is whole numbers, counts? scored as log1p, as the truth is"
        )
    rows = {}
    for name in label.unique():
        if screens.is_control(screens.at_type(screen, name)[0]):
            continue
        keys = screens.resolve(screen, name)
        if len(keys) > 1:
            meant = screens.some(map("@".join, sorted(keys)))
            raise InputError(
                f"{path}: '{name}' means several measured conditions ({meant}); name one"
            )
        # A+B and B+A are one condition.
        rows.setdefault(keys.pop(), []).append(np.flatnonzero(label == name))
    if not rows:
        raise InputError(f"{path}: holds no predicted cells of any condition")
    cells = {key: X[np.concatenate(parts)] for key, parts in rows.items()}
    say_what_was_measured(screen, cells, path)
    return cells


def say_what_was_measured(screen, predicted, path):
    """Warn of predicted cells that are measured cells of their own condition, to the digit."""
    copied = 0
    for key, cells in predicted.items():
        measured = {row.tobytes() for row in screen.dense(screen.groups[key])}
        copied += sum(row.tobytes() in measured for row in cells.toarray() if row.any())
    if copied:
        say(
            screen,
            f"warning: {path}: {copied:,} predicted cells are measured cells of the condition that "
            "they predict, to the digit",
        )


def say(screen, line):
    """Print a line on a screen, and keep it for the report."""
    print(line)
    screen.found.append(line)


def columns_of(names, path, screen):
    """Where the screen's genes stand among a file's, which go by the screen's index or symbols."""
    if not names.is_unique:
        raise InputError(
            f"{path}: duplicate gene names; make them unique with adata.var_names_make_unique()"
        )
    place = {str(gene): i for i, gene in enumerate(names)}
    genes = screen.var_names if set(screen.var_names) <= set(place) else screen.genes
    missing = [gene for gene in genes if gene not in place]
    if missing:
        raise InputError(
            f"{path}: lacks {len(missing):,} of the {len(genes):,} genes of {screen.source}, such "
            f"as {missing[0]}"
        )
    return [place[gene] for gene in genes]


def condition_labels(obs, path):
    """The condition of every predicted cell, as perturbation@cell_type where both are known."""
    if "perturbation" in obs and "cell_type" in obs:
        labels = obs["perturbation"].astype(str) + "@" + obs["cell_type"].astype(str)
    elif "condition" in obs:
        labels = obs["condition"].astype(str)
    else:
        raise InputError(
            f"{path}: needs obs columns perturbation and cell_type, or condition; it has "
            f"{', '.join(obs) or 'none'}"
        )
    screens.check_plain(labels.unique(), path)
    return labels


def write_truth(path, screen, conditions):
    """Write the measured cells of some conditions, and those types' controls, as an h5ad.

    Under predicted.h5ad's column names. conditions: {(perturbation, cell type)}.
    """
    keys = set(conditions) | {(CONTROL, cell_type) for _, cell_type in conditions}
    rows = np.sort(np.concatenate([screen.groups[key] for key in keys]))
    labels = {"perturbation": screen.perturbation[rows], "cell_type": screen.cell_type[rows]}
    obs = pd.DataFrame(labels, screen.cells[rows], dtype="category")
    var = pd.DataFrame({"gene_name": screen.genes}, screen.var_names)
    screens.write_h5ad(anndata.AnnData(screen.X[rows], obs, var), path)


def write_scores(out, suffix, screen, rows, summary, tables, squared, costs):
    """Write metrics.json, .csv and .md into a folder, with a suffix to their names."""
    content = {
        "source": screen.source,
        "squared": squared,
        "costs": costs,
        "dynamic_range": dynamic_ranges(rows),
        "summary": summary,
        "conditions": rows,
    }
    metrics = json.dumps(content, indent=1)
    metrics = re.sub(r"\bNaN\b(?=,?\n)", "null", metrics)  # JSON has no NaN
    table = per_condition(rows).to_csv(index=False)
    screens.save(f"{out}/metrics{suffix}.json", metrics.encode())
    screens.save(f"{out}/metrics{suffix}.csv", table.encode())
    screens.save(f"{out}/metrics{suffix}.md", as_markdown(tables, squared).encode())


NEST = {str: {str: {str: float | int}}}  # {method: {metric: {gene set: score}}}
SCORED = {  # the form of a metrics.json (`screens.has_form`)
    "source": str,
    "squared": bool,
    "costs": {str: {"seconds": float | int, "parameters": float | int}},
    "conditions": [
        {
            "condition": str,
            "perturbation": str,
            "cell type": str,
            "scores": NEST,
            "spread": NEST,
            str: object,
        },
    ],
    str: object,
}


def read_scores(run, suffix):
    """Source, squared, {condition: row} and costs of a metrics.json; NaN where it has null."""
    path = f"{run}/metrics{suffix}.json"
    try:
        with open(path) as file:
            content = screens.from_json(file.read(), object_hook=null_to_nan)
        if not screens.has_form(content, SCORED):
            raise ValueError("not as write_scores has it")
        rows = {row["condition"]: row for row in content["conditions"] if row["scores"]}
        for scores in (row["scores"] for row in rows.values()):
            needed = [scores[name] for name in {"control", "model", "floor", *scores}]
            if not all("all" in of_method["E-distance"] for of_method in needed):
                raise ValueError("a method without its E-distance")
        if not all(len(costs) == 2 for costs in content.get("costs", {}).values()):
            raise ValueError("costs without their seconds or parameters")
        return content["source"], content["squared"], rows, content.get("costs", {})
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: not readable; score each run first, with evaluate.py {run}"
        ) from error


def null_to_nan(entry):
    """An object of a JSON file, with NaN in place of null."""
    return {key: np.nan if value is None else value for key, value in entry.items()}


# ---- Scoring files -------------------------------------------------------------------------------


def evaluate_run(
    run,
    screen=None,
    training=False,
    predicted=None,
    path=None,
    out=None,
    seed=0,
    truth=None,
    columns=None,
    squared=False,
    rivals=(),
    device="cpu",
    report=None,
    verbose=False,
    command=None,
):
    """Score a run, or any model's cells; write all files, say the verdict; return the summary.

    run: a run's folder, or None; then `predicted` and `path` are the h5ad files of predicted and of
    measured cells, and `columns` options of `screens.read_screen`. screen: of the run, if it is in
    memory already. training: score the run's training conditions. out: folder for metrics.json,
    .csv, .md and the figures (the run's own, if not given). truth: path for `write_truth`. rivals:
    names in TRAINED, to be trained on a device unless the run holds their cells. report: path of
    the page (report.html in `out`); verbose: print the tables too; command: what the page says
    repeats it.
    """
    if run:
        predicted = predicted or f"{run}/{'training' if training else 'predicted'}.h5ad"
        out = out or run
        screen = screen or screen_of_run(predicted)
        cells = read_predicted(predicted, screen)
        about = origin_of(predicted)
        if not training:
            check_held_out(screen, cells, predicted)
    else:
        about = None
        out = out or os.path.splitext(predicted)[0] + "_scores"
        screen = shared_genes(predicted, screens.read_screen(path, **columns or {}))
        cells = read_predicted(predicted, screen)
        hide_from_rivals(screen, cells)
    trusted = read_trust(predicted) if run and not squared else None
    genes = read_genes(predicted) if run else genes_of(screen, cells)
    suffix = "_training" if training else ""
    report = report or f"{out}/report{suffix}.html"
    screens.check_folder(f"{out}/metrics.json")  # before minutes of scoring, not after
    screens.check_folder(report, screen.source, predicted, ending=".html")
    if truth:
        screens.check_folder(truth, screen.source, predicted, ending=".h5ad")
        write_truth(truth, screen, cells)
    trained, costs = train_rivals(rivals, run, screen, seed, device)
    rows = score(screen, cells, seed, squared, trained)
    rows = sorted(rows, key=lambda row: -row["scores"]["control"]["E-distance"]["all"])
    summary = summarise(rows)
    tables = tables_of(summary, rows, None if squared else paper_of(screen), costs)
    figures = f"{out}/figures{suffix}"
    os.makedirs(figures, exist_ok=True)
    write_scores(out, suffix, screen, rows, summary, tables, squared, costs)
    from report.scores import draw_scores  # it takes a while to load

    draw_scores(figures, screen, rows, summary, cells)
    if trusted is not None:
        draw_expected(figures, run, trusted, rows)
    if verbose:
        print(as_text(tables, squared))
    write_report(
        report,
        screen,
        predicted,
        run,
        about,
        command or f"python evaluate.py {run}",
        rows=rows,
        summary=summary,
        tables=tables,
        figures=figures,
        genes=genes,
        trust=trusted,
        training=training,
        squared=squared,
    )
    print(f"tables: {out}/metrics{suffix}.md    per condition: {out}/metrics{suffix}.csv")
    return summary


def genes_of(screen, cells):
    """The table of genes of predicted cells {(perturbation, cell type): cells (n, N) CSR}."""
    return all_tables(screen, [(*key, of_key) for key, of_key in cells.items()])


def write_report(path, screen, predicted, run, about, command, **scored):
    """Write the page of predicted cells, an h5ad, and print its verdict.

    run, about: the folder of their run, and what they say of it; or None. command: what scores
    them; scored: of `write_page`, what came out, if anything was scored.
    """
    title = f"{os.path.basename(os.path.abspath(run or predicted))}: predicted and measured cells"
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    from report.page import write_page  # what draws, which takes a while to load

    default = vars(settings_class()())
    sentences = write_page(path, title, screen, run, about, default, command, **scored)
    print(textwrap.fill(" ".join(sentences), 100))
    print(f"report: {path}")


def origin_of(predicted):
    """What predicted cells say of the run that made them: run, seed, device, settings, reading."""
    about = screens.open_h5ad(predicted).uns["departures"]
    try:
        parts = {name: screens.from_json(about[name]) for name in ("settings", "reading")}
        own = {name: str(about[name]) for name in ("run", "device")}
        plain = {str: float | int | str | bool | None}
        if not (screens.has_form(parts["settings"], plain) and screens.has_form(own, plain)):
            raise TypeError("settings are plain values by name")
        return {**about, **parts, **own, "seed": int(about["seed"])}
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"{predicted}: damaged, it does not say which run made it; sample again"
        ) from error


def draw_expected(figures, run, table, rows):
    """Draw the expected against the actual errors of a run, where its table says what to expect."""
    if "expected" in table and table["expected"].notna().any():
        actual = {row["condition"]: row["by_means"] for row in rows}
        from report.trust import draw_expected_error
        from sample import read_checkpoint

        left_out = read_checkpoint(run)["left_out"]
        rho, within = draw_expected_error(f"{figures}/expected_error.png", table, actual, left_out)
        if not np.isnan(rho):
            said = f"expected and actual E-distance of {len(rows)} conditions, as means tell it"
            print(f"{said}: rank correlation {rho:.2f}, {within} in the range")


def tables_of(summary, rows, paper=None, costs=None):
    """The tables of a scoring (`make_tables`), with the metrics' ranges.

    And with the summary of the conditions that do something, where some do nothing.
    """
    acting = [row for row in rows if not row.get("nothing")]
    active = summarise(acting) if acting and len(acting) < len(rows) else None
    return make_tables(summary, rows, paper, costs, dynamic_ranges(rows), active)


def train_rivals(names, run, screen, seed, device):
    """{row: {condition: cells}} of some names in TRAINED for a run's held-out conditions.

    Two rows of each (`forms_of`), as published and improved, from one training.
    And {rival, and "model" beside them: {"seconds", "parameters"}}, what each of them costs.
    """
    starts = {
        key: starting_rows(screen, key, seed)
        for key in sorted(screen.held_out)
        if len(screen.groups[key]) >= FEWEST
    }
    trained, costs = {}, {}
    for name in names:
        path = f"{run}/rivals/{option_of(name)}.h5ad"
        forms, costs_of_both = kept_cells(path, name, screen, starts, seed, device)
        trained |= forms
        costs |= dict.fromkeys(forms, costs_of_both)
    if names:
        costs["model"] = costs_of_model(run)
    return trained, costs


def costs_of_model(run):
    """The seconds of a run's epochs, and how many parameters its model has."""
    from sample import read_checkpoint, restore_model  # torch, which nothing else here needs

    model = restore_model(read_checkpoint(run), "cpu")
    return {
        "seconds": float(screens.read_log(run)["seconds"].sum()),
        "parameters": sum(weights.numel() for weights in model.parameters()),
    }


def screen_of_run(predicted):
    """The screen that a run's predicted cells are scored against, read as the run read it."""
    about = screens.open_h5ad(predicted).uns.get("departures")
    if about is None:
        raise InputError(
            f"{predicted}: not written by sample.py; score it with --predicted and --data"
        )
    reading = reading_of(about)
    screens.check_reading(reading, predicted)
    return screens.prepare_again(reading, os.path.dirname(predicted))


def reading_of(about):
    """What predicted cells say of how their run's screen was read; None if they do not."""
    try:
        return screens.from_json(about["reading"])
    except (LookupError, TypeError, ValueError):
        return None


def check_held_out(screen, cells, predicted):
    """Raise InputError if some of the predicted conditions are not held out."""
    trained = set(cells) - screen.held_out
    if trained:
        names = screens.some(map("@".join, sorted(trained)), 3)
        raise InputError(
            f"{screen.source}: {names} of {predicted} are not held out: the file has changed "
            "since; restore it, or train again"
        )


def shared_genes(path, screen):
    """The screen cut to the genes that another model's file predicts."""
    theirs = set(screens.open_h5ad(path).var_names)
    by_index = [i for i, gene in enumerate(screen.var_names) if gene in theirs]
    by_symbol = [i for i, gene in enumerate(screen.genes) if gene in theirs]
    columns = max(by_index, by_symbol, key=len)
    if len(columns) < 2:
        raise InputError(f"{path}: its genes are not those of {screen.source}")
    if len(columns) < len(screen.genes):
        say(
            screen,
            f"scored on the {len(columns):,} genes of {len(screen.genes):,} that {path} holds",
        )
    return screens.take_genes(screen, columns)


def hide_from_rivals(screen, conditions):
    """Hold out what was predicted, and what the file marks as test."""
    screen.held_out |= set(conditions)
    if "split" in screen.obs:
        marked = screen.obs["split"].astype(str).isin(("test", "ood")).to_numpy()
        for key, group in screen.groups.items():
            if key[0] != CONTROL and marked[group].all():
                screen.held_out.add(key)


def pool_runs(runs, suffix="", out=None):
    """Print one table over the conditions of several runs that were scored already.

    With a folder, write it there too. Runs on one screen (several seeds) share conditions; these
    are averaged first, for they are not independent.
    """
    rows_of = {}
    costs_of = []
    conventions = set()
    for run in runs:
        source, squared, rows, costs = read_scores(run, suffix)
        costs_of.append(costs)
        conventions.add(squared)
        for condition, row in rows.items():
            rows_of.setdefault((source, condition), []).append(row)
    if len(conventions) > 1:
        raise InputError(
            f"{', '.join(runs)}: some were scored with --squared, some without; score them alike"
        )
    rows = []
    for same in rows_of.values():
        scores = averaged([row["scores"] for row in same])
        rows.append({**same[0], "scores": scores})
    tables = tables_of(summarise(rows), rows, costs=mean_costs(costs_of))
    if out:
        screens.check_folder(f"{out}/metrics{suffix}.md")
        os.makedirs(out, exist_ok=True)
        screens.save(f"{out}/metrics{suffix}.md", as_markdown(tables, squared).encode())
    print(as_text(tables, squared))


def mean_costs(several):
    """The means of what methods cost in several runs, of methods that all of these hold."""
    in_all = [name for name in several[0] if all(name in costs for costs in several)]
    return {
        name: {
            what: float(np.mean([costs[name][what] for costs in several]))
            for what in ("seconds", "parameters")
        }
        for name in in_all
    }


# ---- Cheats --------------------------------------------------------------------------------------

OF_CHEATS = (  # the metrics that the cheats are scored by
    ("E-distance", "all"),
    ("EMD", "all"),
    ("MMD2", "all"),
    ("activation PCC", "all"),
    ("Pearson delta", "all"),
    ("Pearson delta from mean", "all"),
    ("DE overlap", "DE20"),
    ("discrimination", "all"),
    ("centroid accuracy", "all"),
    ("WMSE", "all"),
    ("R2w delta", "all"),
    ("copied", "all"),
)


def score_cheats(run, out=None, seed=0):
    """Score cheats beside a run's model, print what each fools, and write cheats.md and .csv."""
    predicted = f"{run}/predicted.h5ad"
    folder = out or run
    screen = screen_of_run(predicted)
    cells = read_predicted(predicted, screen)
    check_held_out(screen, cells, predicted)
    for name in ("cheats.md", "cheats.csv"):
        screens.check_folder(f"{folder}/{name}")
    handed_in, fooled = cheating_cells(screen, cells, seed)
    table = standings(score(screen, cells, seed, trained=handed_in))
    exposed = {name: cheat.exposed for name, cheat in CHEATS.items()}
    said = [SAID, *(f"{name}: {cheat.said}" for name, cheat in CHEATS.items()), fooled]
    shown = make_cheat_tables(table, exposed)
    os.makedirs(folder, exist_ok=True)
    screens.save(f"{folder}/cheats.csv", table.to_csv(index=False).encode())
    screens.save(f"{folder}/cheats.md", as_markdown(shown, said="  \n".join(said)).encode())
    print(as_text(shown, said="\n".join(said)))
    print(f"these tables: {folder}/cheats.md    every standing: {folder}/cheats.csv")
    return table


def cheating_cells(screen, predicted, seed=0):
    """{cheat: {condition: cells}} made from a model's, and what doctored controls would gain.

    The latter as a sentence: r of the mean changes from a prediction's own controls, which nothing
    here looks at.
    """
    average = RIVALS[BASELINE](screen)
    shifts = screens.mean_shifts(screen)
    handed_in = {name: {} for name in CHEATS}
    correlations = []
    for key in tqdm(sorted(predicted), desc="cheating", unit="condition", leave=False):
        if not can_be_scored(screen, predicted, key):
            continue
        x0 = screen.dense(starting_rows(screen, key, seed))
        x = predicted[key].toarray()
        mean = average(*key, x0)
        for name, cheat in CHEATS.items():
            rng = own_generator(seed, name, *key)
            given = Given(x, x0, x0 if mean is None else mean, shifts, screen, key, rng)
            handed_in[name][key] = csr_matrix(cheat.make(given))
        change = mean_of(screen, screen.groups[key]) - mean_of(screen, screen.controls(key[1]))
        correlations.append(correlation(x0.mean(0) - doctored_controls(given).mean(0), change))
    return handed_in, (
        "Doctored controls are not read: the measured ones are the reference. From its own it "
        f"would have an r of Δ of {pd.Series(correlations).mean():.2f}."
    )


def standings(rows):
    """How every method stands in every metric of OF_CHEATS: a table.

    Columns: method, metric, genes, score (its mean over conditions), gap_closed (0 the controls, 1
    the floor), rank (among the honest methods, the rivals and the model: 1 + how many of them do
    not score worse; the last, where it has no score), of (how many they are, and it), best_honest,
    worst_honest; and of cheats fools: "rivals" if all of these score worse, "all" if the model does
    too.
    """
    for row in rows:
        for name, share in row["copied"].items():
            row["scores"][name]["copied"] = {"all": share}
    scores = [row["scores"] for row in rows]
    honest = [name for name in (*RIVALS, "model") if name != "control"]
    honest = [name for name in honest if all(name in of_condition for of_condition in scores)]
    lines = []
    for metric, genes in OF_CHEATS:
        lower = metric in (*DISTANCES, "copied")
        names = ["control", *honest, *CHEATS, "floor"]
        values = pd.DataFrame(values_of(scores, metric, genes, names), columns=names)
        mean = values.mean()  # of the conditions in which there is a score
        gap = (mean - mean["control"]) / (mean["floor"] - mean["control"])
        for name in names:
            others = mean[[other for other in honest if other != name]]
            beaten = others > mean[name] if lower else others < mean[name]
            ends = [others.min(), others.max()] if lower else [others.max(), others.min()]
            rank = [1 + (~beaten).sum(), 1 + len(others)]
            fools = ""
            if name in CHEATS and beaten.drop("model").all():
                fools = "all" if beaten["model"] else "rivals"
            lines.append([name, metric, genes, mean[name], gap[name], *rank, *ends, fools])
    columns = ["method", "metric", "genes", "score", "gap_closed", "rank", "of"]
    return pd.DataFrame(lines, columns=[*columns, "best_honest", "worst_honest", "fools"])


# ---- Command line --------------------------------------------------------------------------------

COLUMNS = {name: text for name, text in screens.COLUMNS.items() if name != "split_column"}


def read_arguments():
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=__doc__, **screens.ONE_LINE)
    group = parser.add_argument_group("a run of train.py")
    group.add_argument("run", nargs="*", help="folder of a run; several, scored before, are pooled")
    group.add_argument("--training", action="store_true", help="score its training conditions")
    names = ", ".join(map(option_of, TRAINED))
    group.add_argument(
        "--rivals", nargs="+", metavar="NAME", default=[], help=f"rivals to train: all, or {names}"
    )
    group.add_argument(
        "--cheats", action="store_true", help="score cheats beside its model: what fools a metric?"
    )
    group.add_argument("--device", help="of --rivals: cpu, cuda, cuda:1 … (cpu)")
    group = parser.add_argument_group("any model's cells")
    group.add_argument("--predicted", metavar="H5AD", help="predicted cells")
    group.add_argument(
        "--data",
        metavar="H5AD",
        help="measured cells to score them against, or a public screen's name",
    )
    group = parser.add_argument_group("how to read --data")
    for name, text in COLUMNS.items():
        group.add_argument("--" + name.replace("_", "-"), metavar="NAME", help=text)
    group = parser.add_argument_group("scoring")
    group.add_argument("--seed", type=screens.SEED, help="of the halves and of --rivals (0)")
    group.add_argument(
        "--squared", action="store_true", help="the E-distance without its root; needs --out"
    )
    group = parser.add_argument_group("what is written")
    group.add_argument("--out", metavar="FOLDER", help="folder for report, metrics and figures")
    group.add_argument("--report", metavar="HTML", help="another place for the report")
    group.add_argument("--verbose", action="store_true", help="print the tables, too")
    group.add_argument(
        "--write-truth", metavar="H5AD", help="also the measured cells and controls, for cell-eval"
    )
    args = parser.parse_args()
    check_arguments(args)
    args.rivals = rivals_named(args.rivals)
    args.seed = args.seed or 0
    args.device = args.device or "cpu"
    return args


def check_arguments(args):
    """Raise InputError for arguments that do not go together."""
    both = bool(args.predicted and args.data)
    either = bool(args.predicted or args.data)
    for run in filter(os.path.isfile, args.run):
        raise InputError(f"{run}: is a file; give the folder of a run, or --predicted and --data")
    if (args.run and either) or not (args.run or both):
        raise InputError("give a run, or --predicted and --data together")
    as_read = "on a run, which knows how its file is read"
    screens.check_effects(
        *((screens.flag(name), args.run and getattr(args, name), as_read) for name in COLUMNS),
        ("--training", args.training and not args.run, "without a run"),
        ("--device", args.device and not args.rivals, "without --rivals"),
        ("--seed", args.seed is not None and len(args.run) > 1, "on runs that are scored already"),
    )
    if (args.report or args.write_truth) and len(args.run) > 1:
        raise InputError("--report and --write-truth are of one run: score each run by itself")
    if args.rivals and (len(args.run) != 1 or args.training):
        raise InputError(
            "--rivals are trained for the held-out conditions of a run: give one run, and not "
            "--training"
        )
    other = args.training or args.rivals or args.squared or args.report or args.write_truth
    if args.cheats and (len(args.run) != 1 or other):
        raise InputError("--cheats takes one run, and of the other options --seed and --out")
    if args.squared and (not args.out or len(args.run) > 1):
        raise InputError("--squared scores one run, into a folder of its own: give --out")


def rivals_named(options):
    """The names in TRAINED that some values of --rivals mean, in the order of TRAINED."""
    names = {option_of(name): name for name in TRAINED}
    for option in options:
        if option not in names and option != "all":
            raise InputError(f"--rivals {option}: no such rival; there are all, {', '.join(names)}")
    return [name for option, name in names.items() if {option, "all"} & set(options)]


def main():
    """Score what the command line names."""
    args = read_arguments()
    if args.rivals:
        screens.check_device(args.device)
    if args.cheats:
        score_cheats(args.run[0], args.out, args.seed)
        return
    if len(args.run) > 1:
        pool_runs(args.run, "_training" if args.training else "", args.out)
        return
    evaluate_run(
        args.run[0] if args.run else None,
        training=args.training,
        predicted=args.predicted,
        path=screens.data_path(args.data) if args.data else None,
        out=args.out,
        seed=args.seed,
        truth=args.write_truth,
        columns={name: getattr(args, name) for name in COLUMNS},
        squared=args.squared,
        rivals=args.rivals,
        device=args.device,
        report=args.report,
        verbose=args.verbose,
        command=shlex.join(["python", "evaluate.py", *sys.argv[1:]]),
    )


if __name__ == "__main__":
    screens.run_script(main)
