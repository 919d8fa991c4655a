"""Score predicted cells against measured ones, beside simple rivals: tables and figures.

    python evaluate.py runs/x                   the held-out conditions of a run
    python evaluate.py runs/x --training        its training conditions (of sample.py --training)
    python evaluate.py runs/x --rivals all      beside rivals that are trained for it
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
import zlib

import anndata
import numpy as np
import pandas as pd
from scipy import stats
from tqdm import tqdm

import screens
from report.tables import as_markdown, as_text, make_tables, paper_of
from rivals import RIVALS, TRAINED, option_of
from rivals.kept import kept_cells
from rivals.shifts import in_type, mean_shift
from screens import CONTROL, InputError

SPLITS = 5  # how often the measured cells are halved
FEWEST = 4  # measured cells that a condition needs to be scored
BLOCK = 1024  # rows of distances at a time

DISTANCES = ("E-distance", "EMD", "MMD2")  # lower is better
CORRELATIONS = (  # higher is better
    "activation PCC",
    "Pearson delta",
    "Pearson delta from mean",
    "DE overlap",
    "discrimination",
)
METRICS = (*DISTANCES, *CORRELATIONS)
GENE_SETS = ("all", "DE20", "DE40", "switched")


# ---- Metrics -------------------------------------------------------------------------------------
#
# Each a pure function of predicted cells x (n, N) and measured cells y (m, N), log1p, which are not
# changed.


def squared_distances(x, y):
    """Squared Euclidean distances (n, m) of cells x (n, N) and y (m, N)."""
    squared = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
    return np.maximum(squared, 0)


def mean_kernels(x, y, kernels, within=False):
    """Mean of each kernel(squared distance) over pairs of a cell of x and one of y: (kernels,).

    within: y is x, and a cell's pair with itself does not count. Made in blocks of rows: the memory
    is that of BLOCK x m distances, whatever n. Sums are float64; distances of float32 cells are
    good to 7 digits.
    """
    total = np.zeros(len(kernels))
    for start in range(0, len(x), BLOCK):
        squared = squared_distances(x[start : start + BLOCK], y)
        for i, kernel in enumerate(kernels):
            values = kernel(squared)
            block = values.sum(dtype=np.float64)
            if within:
                block -= values.trace(offset=start, dtype=np.float64)
            total[i] += block
    if within:
        return total / (len(x) * (len(x) - 1))
    return total / (len(x) * len(y))


def two_sample(x, y, kernels, own=None):
    """2 E k(x, y) - E k(x, x') - E k(y, y') of each kernel k, (kernels,), over distinct cells.

    own: the last term, where it is known.
    """
    between = mean_kernels(x, y, kernels)
    within_x = mean_kernels(x, x, kernels, True)
    within_y = mean_kernels(y, y, kernels, True) if own is None else own
    return 2 * between - within_x - within_y


def rooted(energy, squared=False):
    """The root of an energy distance, or with `squared` itself; not below 0. NaN stays NaN."""
    energy = np.maximum(0.0, energy)
    return energy if squared else energy**0.5


def e_distance(x, y, squared=False):
    """Energy distance sqrt(max(0, 2 E|x-y| - E|x-x'| - E|y-y'|)), n and m at least 2.

    Unbiased within-group means, over distinct cells (Szekely and Rizzo 2013); the root is the
    paper's released convention.
    """
    return rooted(two_sample(x, y, [np.sqrt])[0], squared)


def wasserstein(x, y):
    """1-D Wasserstein-1 distance of every gene (N,) between x (n, N) and y (m, N), in log1p units.

    The area between the two quantile functions, which are constant between multiples of 1/n and of
    1/m.
    """
    n, m = len(x), len(y)
    x = np.sort(x, 0)
    y = np.sort(y, 0)
    if n == m:
        return np.abs(x - y).mean(0, dtype=np.float64)
    jumps = [np.arange(n + 1) * m, np.arange(1, m) * n]  # in units of 1 / (n m): no rounding
    edges = np.unique(np.concatenate(jumps))
    gap = x[edges[:-1] // m]
    gap -= y[edges[:-1] // n]
    width = (np.diff(edges) / (n * m)).astype(gap.dtype)
    return width @ np.abs(gap, out=gap)


def emd(x, y):
    """Mean over genes of the 1-D Wasserstein-1 distance (Rubner et al. 2000), in log1p units."""
    return float(wasserstein(x, y).mean())


def gaussian_kernel(gamma):
    """The kernel exp(-gamma |u - v|^2) as a function of squared distances."""
    return lambda squared: np.exp(-gamma * squared)


def mmd2(x, y, gamma):
    """Squared maximum mean discrepancy, kernel exp(-gamma |u - v|^2) (Gretton et al. 2012, Eq. 3).

    Unbiased, so it may be negative.
    """
    return -two_sample(x, y, [gaussian_kernel(gamma)])[0]


def gamma_by_median(x):
    """The gamma of the kernel, 1 / median |u - v|^2 over distinct cells of x (n, N).

    x should be training cells only.
    """
    upper = np.triu_indices(len(x), 1)
    median = np.median(squared_distances(x, x)[upper])
    return 1 / median if median > 0 else 1.0


def correlation(a, b):
    """Pearson correlation of a and b (N,); NaN where either is constant."""
    if np.ptp(a) > 0 and np.ptp(b) > 0:
        return float(np.corrcoef(a, b)[0, 1])
    return float("nan")


def activation_pcc(x, y):
    """Correlation over genes of the fractions of cells that express each (the paper's Table 2)."""
    return correlation((x > 0).mean(0), (y > 0).mean(0))


def pearson_delta(x, y, reference):
    """Correlation over genes of the mean changes of x and y from a reference mean (N,).

    The controls', or that of the training perturbations.
    """
    return correlation(x.mean(0) - reference, y.mean(0) - reference)


def de_overlap(x, y, controls, k):
    """Share of the k genes of largest Welch |t| against the controls that x and y have in common.

    Each cells, or their `moments`.
    """
    top_x = np.argsort(-welch_t(x, controls), kind="stable")[:k]
    top_y = np.argsort(-welch_t(y, controls), kind="stable")[:k]
    return len(np.intersect1d(top_x, top_y)) / len(top_x)


def discrimination(x, y, others):
    """How well the mean of x points to y among other conditions, means `others` (Q, N).

    1 - (share of the others that are nearer in L1; ties half). 1: y is the nearest; 0.5: chance.
    The Virtual Cell Challenge's score, with the share of the others and not of all. NaN without
    others.
    """
    if not len(others):
        return float("nan")
    far = np.abs(others - x.mean(0)).sum(1)
    own = np.abs(y.mean(0) - x.mean(0)).sum()
    return float(1 - np.mean((far < own) + 0.5 * (far == own)))


def moments(x):
    """Mean, standard deviation (N,) and number of cells x (n, N): all that Welch's test asks."""
    return x.mean(0), x.std(0, ddof=1), len(x)


def welch_t(x, y):
    """Welch's |t| of each gene (N,) between x (n, N) and y (m, N); 0 where neither varies.

    Either of them cells or their `moments`.
    """
    of_x = x if isinstance(x, tuple) else moments(x)
    of_y = y if isinstance(y, tuple) else moments(y)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = stats.ttest_ind_from_stats(*of_x, *of_y, equal_var=False).statistic
    return np.nan_to_num(np.abs(t), posinf=np.inf)


def gap_closed(score, control, floor):
    """1 - (score - floor) / (control - floor).

    0: no better than the controls; 1: as close as another half of the real cells.
    """
    if control > floor:
        return 1 - (score - floor) / (control - floor)
    return float("nan")


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


def all_scores(x, y, sets, kernels, own, controls, reference, others, squared=False):
    """{metric: {gene set: score}} of cells x (n, N) against y (n, N).

    sets, kernels: of `gene_sets` and `kernels_of`; own: {gene set: the kernels' means within y},
    which are the same for every x; controls: their moments; reference (N,): the mean of the
    training perturbations, or None; others (Q, N): means of the other conditions.
    """
    scores = {metric: {} for metric in METRICS}
    for genes, columns in sets.items():
        a = x[:, columns]
        b = y[:, columns]
        # One pass over the distances for both.
        energy, similarity = two_sample(a, b, kernels[genes], own[genes])
        scores["E-distance"][genes] = rooted(energy, squared)
        scores["EMD"][genes] = emd(a, b)
        scores["MMD2"][genes] = -similarity
        scores["activation PCC"][genes] = activation_pcc(a, b)
        scores["Pearson delta"][genes] = pearson_delta(a, b, controls[0][columns])
        if reference is not None:
            scores["Pearson delta from mean"][genes] = pearson_delta(a, b, reference[columns])
    of_x = moments(x)
    of_y = moments(y)
    for k in (20, 40):
        scores["DE overlap"][f"DE{k}"] = de_overlap(of_x, of_y, controls, k)
    scores["discrimination"]["all"] = discrimination(x, y, others)
    return scores


def averaged(several):
    """The mean of nests {method: {metric: {gene set: score}}}, of methods that all of them hold."""
    mean = {}
    for name in several[0]:
        if all(name in scores for scores in several):
            mean[name] = mean_scores([scores[name] for scores in several])
    return mean


def mean_scores(several):
    """The mean of nests {metric: {gene set: score}}, all of one form."""
    mean = {}
    for metric, by_set in several[0].items():
        mean[metric] = {}
        for genes in by_set:
            values = [scores[metric][genes] for scores in several]
            mean[metric][genes] = float(np.mean(values))
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
):
    """{method: {metric: {gene set: score}}} of one condition, and the genes ranked by |t|.

    Each score is the mean over splits. measured (n, N), controls (m, N); methods: {name: cells, or
    None}; the floor is added. seed, condition: from them every method has random numbers of its own
    (`own_generator`). orders: the random orders of the measured cells; training (c, N):
    cells that set the kernel's width (the controls, if none are given); reference (N,): the mean of
    the training perturbations; others: of every split, the means (Q, N) of halves of the other
    conditions.
    """
    methods = {name: cells for name, cells in methods.items() if cells is not None}
    of_controls = moments(controls)
    ranked = np.argsort(-welch_t(measured, of_controls), kind="stable")
    sets = gene_sets(measured, controls, ranked)
    kernels = kernels_of(sets, controls if training is None else training)
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
        scores = {}
        for name, x in drawn.items():
            scores[name] = all_scores(
                x, target, sets, kernels, own, of_controls, reference, far, squared
            )
        splits.append(scores)
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
        )
        row = {
            "condition": "@".join(key),
            "cells": len(measured),
            "scores": scores,
            "top_genes": [str(gene) for gene in screen.genes[ranked[:20]]],
        }
        rows.append(row)
    say_what_is_not_scored(screen, predicted, scored)
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


def say_what_is_not_scored(screen, predicted, scored):
    """Name the conditions that have too few cells; InputError if these are all."""
    if len(scored) < len(predicted):
        left_out = sorted(predicted.keys() - set(scored))
        names = screens.some(map("@".join, left_out))
        print(f"not scored, fewer than {FEWEST} measured, 2 control or 2 predicted cells: {names}")
    if not scored:
        raise InputError(
            f"{screen.source}: no condition has {FEWEST} measured, 2 control and 2 predicted "
            "cells; there is nothing to score"
        )


# ---- Summary -------------------------------------------------------------------------------------


def summarise(rows):
    """{method: {metric: {gene set: entry}}} over conditions; rows: of `score`.

    For an entry see `summary_entry`.
    """
    summary = {}
    for name in [*RIVALS, *TRAINED, "model", "floor"]:
        scores = [row["scores"] for row in rows if name in row["scores"]]
        for metric in METRICS:
            for genes in GENE_SETS:
                entry = summary_entry(scores, name, metric, genes)
                if entry:
                    summary.setdefault(name, {}).setdefault(metric, {})[genes] = entry
    return summary


def summary_entry(scores, name, metric, genes):
    """What a method scores over the conditions that it applies to; None if there are none.

    mean, sd, conditions: over conditions, and how many they are. gap_closed (of distances): of the
    means, so that weak perturbations, whose own gap is a division by almost nothing, weigh what
    they should. beaten_in (of rivals): in how many conditions the model scores better than the
    method; p: of a two-sided sign test of that.
    """
    values = []
    for of_condition in scores:
        four = [of_condition[method] for method in (name, "control", "floor", "model")]
        values.append([by_metric.get(metric, {}).get(genes) for by_metric in four])
    values = np.array(values, float).reshape(-1, 4)  # None, where there is no score, becomes NaN
    x, control, floor, model = values[~np.isnan(values[:, 0])].T
    if not len(x):
        return None
    entry = {"mean": float(x.mean()), "sd": float(x.std()), "conditions": len(x)}
    if metric in DISTANCES:
        entry["gap_closed"] = gap_closed(x.mean(), control.mean(), floor.mean())
    if name not in ("model", "floor"):
        better = x - model if metric in DISTANCES else model - x
        entry["beaten_in"], entry["p"] = sign_test(better)
    return entry


def sign_test(differences):
    """How many of some differences are above 0, and the p-value of a two-sided sign test.

    Ties and NaN take no side.
    """
    above = int((differences > 0).sum())
    contested = above + int((differences < 0).sum())
    if not contested:
        return above, 1.0
    return above, float(stats.binomtest(above, contested).pvalue)


def per_condition(rows):
    """Every score as a table: condition, cells, method, metric, genes, score, gap_closed."""
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
                    line = (row["condition"], row["cells"], name, metric, genes, value, gap)
                    lines.append(line)
    columns = ["condition", "cells", "method", "metric", "genes", "score", "gap_closed"]
    return pd.DataFrame(lines, columns=columns)


# ---- Files ---------------------------------------------------------------------------------------


def read_predicted(path, screen):
    """{(perturbation, cell type): cells (n, N) CSR} of an h5ad, its genes in the screen's order."""
    adata = screens.open_h5ad(path)
    columns = columns_of(adata.var_names, path, screen)
    label = condition_labels(adata.obs, path)
    X = screens.log1p_csr(adata.X, path, counts=False)[0][:, columns]
    if (X.data == np.round(X.data)).all() and not (screen.X.data == np.round(screen.X.data)).all():
        print(f"warning: {path}: X is whole numbers, counts? scored as log1p, as the truth is")
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
        print(
            f"warning: {path}: {copied:,} predicted cells are measured cells of the condition that "
            "they predict, to the digit"
        )


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
        return obs["perturbation"].astype(str) + "@" + obs["cell_type"].astype(str)
    if "condition" in obs:
        return obs["condition"].astype(str)
    raise InputError(
        f"{path}: needs obs columns perturbation and cell_type, or condition; it has "
        f"{', '.join(obs) or 'none'}"
    )


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
        "summary": summary,
        "conditions": rows,
    }
    metrics = json.dumps(content, indent=1)
    metrics = re.sub(r"\bNaN\b(?=,?\n)", "null", metrics)  # JSON has no NaN
    table = per_condition(rows).to_csv(index=False)
    screens.save(f"{out}/metrics{suffix}.json", metrics.encode())
    screens.save(f"{out}/metrics{suffix}.csv", table.encode())
    screens.save(f"{out}/metrics{suffix}.md", as_markdown(tables, squared).encode())


def read_scores(run, suffix):
    """Source, squared, {condition: row} and costs of a metrics.json; NaN where it has null."""
    path = f"{run}/metrics{suffix}.json"
    try:
        with open(path) as file:
            content = json.load(file, object_hook=null_to_nan)
        rows = {row["condition"]: row for row in content["conditions"]}
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
):
    """Score a run, or any model's cells; print the table and write all files; return the summary.

    run: a run's folder, or None; then `predicted` and `path` are the h5ad files of predicted and of
    measured cells, and `columns` options of `screens.read_screen`. screen: of the run, if it is in
    memory already. training: score the run's training conditions. out: folder for metrics.json,
    .csv, .md and the figures (the run's own, if not given). truth: path for `write_truth`. rivals:
    names in TRAINED, to be trained on a device unless the run holds their cells.
    """
    if run:
        predicted = predicted or f"{run}/{'training' if training else 'predicted'}.h5ad"
        out = out or run
        screen = screen or screen_of_run(predicted)
        cells = read_predicted(predicted, screen)
        if not training:
            check_held_out(screen, cells, predicted)
    else:
        out = out or os.path.splitext(predicted)[0] + "_scores"
        screen = shared_genes(predicted, screens.read_screen(path, **columns or {}))
        cells = read_predicted(predicted, screen)
        hide_from_rivals(screen, cells)
    screens.check_folder(f"{out}/metrics.json")  # before minutes of scoring, not after
    if truth:
        screens.check_folder(truth, screen.source, predicted)
        write_truth(truth, screen, cells)
    trained, costs = train_rivals(rivals, run, screen, seed, device)
    rows = score(screen, cells, seed, squared, trained)
    rows = sorted(rows, key=lambda row: -row["scores"]["control"]["E-distance"]["all"])
    summary = summarise(rows)
    tables = make_tables(summary, rows, None if squared else paper_of(screen), costs)
    suffix = "_training" if training else ""
    figures = f"{out}/figures{suffix}"
    os.makedirs(figures, exist_ok=True)
    write_scores(out, suffix, screen, rows, summary, tables, squared, costs)
    from report.scores import draw_scores  # it takes a while to load

    draw_scores(figures, screen, rows, summary, cells)
    print(as_text(tables, squared))
    print(
        f"per condition: {out}/metrics{suffix}.csv    these tables: {out}/metrics{suffix}.md    "
        f"figures: {figures}/"
    )
    return summary


def train_rivals(names, run, screen, seed, device):
    """{rival: {condition: cells}} of some names in TRAINED for a run's held-out conditions.

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
        trained[name], costs[name] = kept_cells(path, name, screen, starts, seed, device)
    if names:
        costs["model"] = costs_of_model(run)
    return trained, costs


def costs_of_model(run):
    """The seconds of a run's epochs, and how many parameters its model has."""
    from sample import read_checkpoint, restore_model  # torch, which nothing else here needs

    model = restore_model(read_checkpoint(run), "cpu")
    return {
        "seconds": float(pd.read_csv(f"{run}/log.csv")["seconds"].sum()),
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
    return screens.prepare(**reading)


def reading_of(about):
    """What predicted cells say of how their run's screen was read; None if they do not."""
    try:
        return json.loads(about["reading"])
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
        print(f"scored on the {len(columns):,} genes of {len(screen.genes):,} that {path} holds")
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
    tables = make_tables(summarise(rows), rows, costs=mean_costs(costs_of))
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
    group.add_argument("--device", default="cpu", help="of --rivals: cpu, cuda, cuda:1 … (cpu)")
    group = parser.add_argument_group("any model's cells")
    group.add_argument("--predicted", metavar="H5AD", help="predicted cells")
    group.add_argument("--data", metavar="H5AD", help="measured cells to score them against")
    group = parser.add_argument_group("how to read --data")
    for name, text in COLUMNS.items():
        group.add_argument("--" + name.replace("_", "-"), metavar="NAME", help=text)
    group = parser.add_argument_group("scoring")
    group.add_argument(
        "--seed", type=screens.SEED, default=0, help="of the halves and of --rivals (0)"
    )
    group.add_argument(
        "--squared", action="store_true", help="the E-distance without its root; needs --out"
    )
    group = parser.add_argument_group("what is written")
    group.add_argument("--out", metavar="FOLDER", help="folder for metrics and figures")
    group.add_argument(
        "--write-truth", metavar="H5AD", help="also the measured cells and controls, for cell-eval"
    )
    args = parser.parse_args()
    check_arguments(args)
    args.rivals = rivals_named(args.rivals)
    return args


def check_arguments(args):
    """Raise InputError for arguments that do not go together."""
    both = bool(args.predicted and args.data)
    either = bool(args.predicted or args.data)
    if (args.run and either) or not (args.run or both):
        raise InputError("give a run, or --predicted and --data together")
    if args.rivals and (len(args.run) != 1 or args.training):
        raise InputError(
            "--rivals are trained for the held-out conditions of a run: give one run, and not "
            "--training"
        )
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
    if len(args.run) > 1:
        pool_runs(args.run, "_training" if args.training else "", args.out)
        return
    evaluate_run(
        args.run[0] if args.run else None,
        training=args.training,
        predicted=args.predicted,
        path=args.data,
        out=args.out,
        seed=args.seed,
        truth=args.write_truth,
        columns={name: getattr(args, name) for name in COLUMNS},
        squared=args.squared,
        rivals=args.rivals,
        device=args.device,
    )


if __name__ == "__main__":
    screens.run_script(main)
