"""Score predicted cells against measured ones: a table beside honest rivals, and figures.

    python evaluate.py runs/x                   the held-out conditions of a run
    python evaluate.py runs/x --training        its training conditions (sample.py runs/x --training)
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

import argparse
import json
import os
import re

import anndata
import numpy as np
import pandas as pd
from scipy import stats
from tqdm import tqdm

import screens
from report.scores import draw_scores
from report.tables import as_markdown, as_text, make_tables, paper_of
from rivals import RIVALS
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
            total[i] += values.sum(dtype=np.float64)
            if within:
                total[i] -= values.trace(offset=start, dtype=np.float64)
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


def all_scores(x, y, sets, kernels, own, controls, reference, others, squared=False):
    """{metric: {gene set: score}} of cells x (n, N) against y (n, N).

    kernels: of every gene set those of E and MMD^2; own: their means within y, the same for every
    x; controls: their moments; reference: the training perturbations' mean, or None.
    """
    out = {metric: {} for metric in METRICS}
    for genes, columns in sets.items():
        a, b = x[:, columns], y[:, columns]
        energy, similarity = two_sample(a, b, kernels[genes], own[genes])  # one pass for both
        out["E-distance"][genes] = rooted(energy, squared)
        out["EMD"][genes] = emd(a, b)
        out["MMD2"][genes] = -similarity
        out["activation PCC"][genes] = activation_pcc(a, b)
        out["Pearson delta"][genes] = pearson_delta(a, b, controls[0][columns])
        if reference is not None:
            out["Pearson delta from mean"][genes] = pearson_delta(a, b, reference[columns])
    of_x, of_y = moments(x), moments(y)
    out["DE overlap"] = {f"DE{k}": de_overlap(of_x, of_y, controls, k) for k in (20, 40)}
    out["discrimination"]["all"] = discrimination(x, y, others)
    return out


def averaged(several):
    """The mean of nests {method: {metric: {gene set: score}}}, of methods that all of them hold."""
    out = {}
    for name, by_metric in several[0].items():
        if not all(name in scores for scores in several):
            continue
        out[name] = {
            metric: {
                genes: float(np.mean([scores[name][metric][genes] for scores in several]))
                for genes in by_set
            }
            for metric, by_set in by_metric.items()
        }
    return out


def score_condition(
    measured, controls, methods, rng, orders=None, training=None, reference=None, others=(),
    squared=False,
):  # fmt: skip
    """{method: {metric: {gene set: score}}} of one condition, and the genes ranked by |t|.

    Each score is the mean over splits. measured (n, N), controls (m, N), methods {name: cells or
    None}; the floor is added. orders: the random orders of the measured cells; training: cells
    (c, N) that set the kernel's width; others: of every split, the means (Q, N) of halves of the
    other conditions.
    """
    of_controls = moments(controls)
    ranked = np.argsort(-welch_t(measured, of_controls), kind="stable")
    sets = gene_sets(measured, controls, ranked)
    training = controls if training is None else training
    kernels = {}
    for genes, columns in sets.items():
        kernels[genes] = (np.sqrt, gaussian_kernel(gamma_by_median(training[:, columns])))
    methods = {name: cells for name, cells in methods.items() if cells is not None}
    half = len(measured) // 2
    size = min(half, *(len(cells) for cells in methods.values()))
    splits = []
    for split in range(SPLITS):
        order = rng.permutation(len(measured)) if orders is None else orders[split]
        target = measured[order[:size]]
        scored = {name: x[rng.permutation(len(x))[:size]] for name, x in methods.items()}
        scored["floor"] = measured[order[half : half + size]]
        own = {}
        for genes, columns in sets.items():
            y = target[:, columns]
            own[genes] = mean_kernels(y, y, kernels[genes], True)
        apart = others[split] if len(others) else ()
        scores = {}
        for name, x in scored.items():
            scores[name] = all_scores(
                x, target, sets, kernels, own, of_controls, reference, apart, squared
            )
        splits.append(scores)
    return averaged(splits), ranked


# ---- Scoring a screen ----------------------------------------------------------------------------


def score(screen, predicted, seed=0, squared=False):
    """Score predicted {(perturbation, cell type): cells (n, N) sparse}, and the rivals.

    Returns a list of rows, one per condition. Nothing that is fitted sees a held-out cell.
    """
    fitted = {name: rival(screen) for name, rival in RIVALS.items()}
    shifts = screens.mean_shifts(screen)
    rng = np.random.default_rng(seed)
    rows_of_training = np.concatenate(list(screen.training_groups().values()))
    training = screen.dense(rng.permutation(rows_of_training)[:500])
    scored = [key for key in sorted(predicted) if can_be_scored(screen, predicted, key)]
    orders = random_orders(screen, {cell_type for _, cell_type in scored}, rng)
    halves = {key: means_of_halves(screen, key, of_key) for key, of_key in orders.items()}
    rows = []
    for key in tqdm(scored, desc="scoring", unit="condition", leave=False):
        measured = screen.dense(screen.groups[key])
        controls = screen.dense(screen.controls(key[1]))
        # No control twice: within-group means are of distinct cells.
        x0 = controls[rng.permutation(len(controls))[: len(measured)]]
        methods = {name: predict(*key, x0) for name, predict in fitted.items()}
        methods["model"] = predicted[key].toarray()
        mean = None
        if shifts:
            mean = controls.mean(0) + mean_shift(shifts, in_type(shifts, key[1]))
        scores, ranked = score_condition(
            measured, controls, methods, rng, orders[key], training, mean,
            other_means(halves, key), squared,
        )  # fmt: skip
        row = {
            "condition": "@".join(key),
            "cells": len(measured),
            "scores": scores,
            "top_genes": [str(gene) for gene in screen.genes[ranked[:20]]],
        }
        rows.append(row)
    if len(scored) < len(predicted):
        left = screens.some(map("@".join, sorted(predicted.keys() - set(scored))))
        print(f"not scored, fewer than {FEWEST} measured or 2 predicted cells: {left}")
    if not rows:
        raise InputError(
            f"{screen.source}: no condition has {FEWEST} measured and 2 predicted cells; there is "
            "nothing to score"
        )
    return rows


def can_be_scored(screen, predicted, key):
    """Whether a condition has cells enough."""
    return len(screen.groups[key]) >= FEWEST and predicted[key].shape[0] >= 2


def random_orders(screen, cell_types, rng):
    """{condition: random orders of its cells}, of all conditions in some cell types."""
    orders = {}
    for key, rows in screen.groups.items():
        if key[0] != CONTROL and len(rows) >= FEWEST and key[1] in cell_types:
            orders[key] = [rng.permutation(len(rows)) for _ in range(SPLITS)]
    return orders


def means_of_halves(screen, key, orders):
    """The mean (splits, N) of the first half of a condition's cells, in every order."""
    means = []
    for order in orders:
        rows = np.sort(screen.groups[key][order[: len(order) // 2]])
        means.append(np.asarray(screen.X[rows].mean(0)).ravel())
    return np.stack(means)


def other_means(halves, key):
    """Of every split, the means (Q, N) of the other conditions in a condition's cell type."""
    others = [means for other, means in halves.items() if other[1] == key[1] and other != key]
    return [np.stack(means) for means in zip(*others, strict=True)]


def summarise(rows):
    """{method: {metric: {gene set: entry}}} over conditions.

    An entry holds mean, sd, conditions and gap_closed, that of the means over the conditions that
    the method applies to, so that weak perturbations, whose own gap is a division by almost
    nothing, weigh what they should; beaten_in: in how many of these the model scores better than
    the method; p: of a two-sided sign test of that.
    """
    summary = {}
    for name in [*RIVALS, "model", "floor"]:
        mine = [row["scores"] for row in rows if name in row["scores"]]
        for metric in METRICS if mine else ():
            for genes in GENE_SETS:
                entry = summary_entry(mine, name, metric, genes)
                if entry:
                    summary.setdefault(name, {}).setdefault(metric, {})[genes] = entry
    return summary


def summary_entry(scores, name, metric, genes):
    """One entry of a summary; None where the method has no such score."""
    methods = (name, "control", "floor", "model")
    values = [[of_one[m].get(metric, {}).get(genes) for m in methods] for of_one in scores]
    values = np.array(values, float)  # None, which JSON has for NaN, becomes NaN
    values = values[~np.isnan(values[:, 0])]
    if not len(values):
        return None
    x, control, floor, model = values.T
    entry = {"mean": float(x.mean()), "sd": float(x.std()), "conditions": len(x)}
    if metric in DISTANCES:
        entry["gap_closed"] = gap_closed(x.mean(), control.mean(), floor.mean())
    if name not in ("model", "floor"):
        better = x - model if metric in DISTANCES else model - x
        wins = int((better > 0).sum())
        contested = wins + int((better < 0).sum())  # NaN takes no side
        entry["beaten_in"] = wins
        entry["p"] = float(stats.binomtest(wins, contested).pvalue) if contested else 1.0
    return entry


def per_condition(rows):
    """Every score as a table: condition, cells, method, metric, genes, score, gap_closed."""
    table = []
    for row in rows:
        for name, by_metric in row["scores"].items():
            for metric, by_set in by_metric.items():
                for genes, value in by_set.items():
                    gap = np.nan
                    if metric in DISTANCES:
                        control = row["scores"]["control"][metric][genes]
                        floor = row["scores"]["floor"][metric][genes]
                        gap = gap_closed(value, control, floor)
                    line = (row["condition"], row["cells"], name, metric, genes, value, gap)
                    table.append(line)
    columns = ["condition", "cells", "method", "metric", "genes", "score", "gap_closed"]
    return pd.DataFrame(table, columns=columns)


# ---- Files ---------------------------------------------------------------------------------------


def read_predicted(path, screen):
    """{(perturbation, cell type): cells (n, N) CSR} of an h5ad, its genes in the screen's order."""
    adata = screens.open_h5ad(path)
    if not adata.var_names.is_unique:
        raise InputError(
            f"{path}: duplicate gene names; make them unique with adata.var_names_make_unique()"
        )
    where = {str(gene): i for i, gene in enumerate(adata.var_names)}
    names = screen.var_names if set(screen.var_names) <= set(where) else screen.genes
    missing = [gene for gene in names if gene not in where]
    if missing:
        raise InputError(
            f"{path}: lacks {len(missing):,} of the {len(names):,} genes of {screen.source}, such "
            f"as {missing[0]}"
        )
    label = condition_labels(adata.obs, path)
    X = screens.log1p_csr(adata.X, path, counts=False)[0][:, [where[gene] for gene in names]]
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
    return {key: X[np.concatenate(parts)] for key, parts in rows.items()}


def condition_labels(obs, path):
    """The condition of every predicted cell, perturbation@cell_type."""
    if "perturbation" in obs and "cell_type" in obs:
        return obs["perturbation"].astype(str) + "@" + obs["cell_type"].astype(str)
    if "condition" in obs:
        return obs["condition"].astype(str)
    raise InputError(
        f"{path}: needs obs columns perturbation and cell_type, or condition; it has "
        f"{', '.join(obs) or 'none'}"
    )


def write_truth(path, screen, conditions, predicted):
    """Write the measured cells of some conditions, and those types' controls, as an h5ad.

    Under predicted.h5ad's column names. conditions: {(perturbation, cell type)}.
    """
    if os.path.realpath(path) in [os.path.realpath(name) for name in (screen.source, predicted)]:
        raise InputError(f"--write-truth {path}: is an input; choose another name")
    keys = {*conditions, *((CONTROL, cell_type) for _, cell_type in conditions)}
    rows = np.sort(np.concatenate([screen.groups[key] for key in keys]))
    labels = {"perturbation": screen.perturbation[rows], "cell_type": screen.cell_type[rows]}
    obs = pd.DataFrame(labels, screen.cells[rows], dtype="category")
    var = pd.DataFrame({"gene_name": screen.genes}, screen.var_names)
    screens.write_h5ad(anndata.AnnData(screen.X[rows], obs, var), path)


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


def screen_of_run(predicted):
    """The screen that a run's predicted cells are scored against."""
    about = screens.open_h5ad(predicted).uns.get("departures")
    if about is None:
        raise InputError(
            f"{predicted}: not written by sample.py; score it with --predicted and --data"
        )
    return screens.prepare(**json.loads(about["reading"]))


def hide_from_rivals(screen, conditions):
    """Hold out what was predicted, and what the file marks as test."""
    screen.held_out |= set(conditions)
    if "split" in screen.obs:
        marked = screen.obs["split"].astype(str).isin(("test", "ood")).to_numpy()
        for key, group in screen.groups.items():
            if key[0] != CONTROL and marked[group].all():
                screen.held_out.add(key)


def evaluate_run(
    run, screen=None, training=False, predicted=None, path=None, out=None, seed=0, truth=None,
    columns=None, squared=False,
):  # fmt: skip
    """Score a run, or any model's cells; print the table, write all files; returns the summary.

    metrics.json, .csv, .md and the figures go into `out` (the run's folder).
    """
    if run:
        predicted = predicted or f"{run}/{'training' if training else 'predicted'}.h5ad"
        out = out or run
        screen = screen or screen_of_run(predicted)
    else:
        out = out or os.path.splitext(predicted)[0] + "_scores"
        screen = shared_genes(predicted, screens.read_screen(path, **columns or {}))
    cells = read_predicted(predicted, screen)
    if run and not training and not set(cells) <= screen.held_out:
        changed = screens.some(map("@".join, sorted(set(cells) - screen.held_out)), 3)
        raise InputError(
            f"{screen.source}: {changed} of {predicted} are not held out: the file has changed "
            "since; restore it, or train again"
        )
    if not run:
        hide_from_rivals(screen, cells)
    if truth:
        write_truth(truth, screen, cells, predicted)
    rows = score(screen, cells, seed, squared)
    rows = sorted(rows, key=lambda row: -row["scores"]["control"]["E-distance"]["all"])
    summary = summarise(rows)
    tables = grids(summary, rows, None if squared else paper_of(screen))
    suffix = "_training" if training else ""
    write_scores(out, suffix, screen, rows, summary, tables, squared)
    draw_scores(f"{out}/figures{suffix}", screen, rows, summary, cells)
    print(text(tables, squared))
    print(
        f"per condition: {out}/metrics{suffix}.csv    these tables: {out}/metrics{suffix}.md    "
        f"figures: {out}/figures{suffix}/"
    )
    return summary


def write_scores(out, suffix, screen, rows, summary, tables, squared):
    """Write metrics.json, .csv and .md into a folder."""
    os.makedirs(f"{out}/figures{suffix}", exist_ok=True)
    content = {
        "source": screen.source,
        "squared": squared,
        "summary": summary,
        "conditions": rows,
    }
    metrics = re.sub(r"\bNaN\b(?=,?\n)", "null", json.dumps(content, indent=1))  # no NaN in JSON
    screens.save(f"{out}/metrics{suffix}.json", metrics.encode())
    table = per_condition(rows).to_csv(index=False)
    screens.save(f"{out}/metrics{suffix}.csv", table.encode())
    screens.save(f"{out}/metrics{suffix}.md", markdown(tables, squared).encode())


def pool_runs(runs, suffix="", out=None):
    """Print one table over the conditions of several runs that were scored already.

    With a folder, write it there too. Runs on one screen (several seeds) share conditions; these
    are averaged first, for they are not independent.
    """
    found = {}
    conventions = set()
    for run in runs:
        try:
            with open(f"{run}/metrics{suffix}.json") as file:
                content = json.load(file, object_hook=null_to_nan)
            for row in content["conditions"]:
                found.setdefault((content["source"], row["condition"]), []).append(row)
            conventions.add(content["squared"])
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{run}/metrics{suffix}.json: not readable; score each run first, with "
                f"evaluate.py {run}"
            ) from error
    if len(conventions) > 1:
        raise InputError(
            f"{', '.join(runs)}: some were scored with --squared, some without; score them alike"
        )
    rows = []
    for same in found.values():
        rows.append({**same[0], "scores": averaged([row["scores"] for row in same])})
    squared = conventions.pop()
    tables = grids(summarise(rows), rows)
    if out:
        os.makedirs(out, exist_ok=True)
        screens.save(f"{out}/metrics{suffix}.md", markdown(tables, squared).encode())
    print(text(tables, squared))


def null_to_nan(entry):
    """An entry of a JSON file, with NaN in place of null."""
    return {key: np.nan if value is None else value for key, value in entry.items()}


# ---- Command line --------------------------------------------------------------------------------

CELL_COLUMNS = [name for name in screens.COLUMNS if name != "split_column"]


def parse():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, **screens.ONE_LINE)
    of_run = parser.add_argument_group("a run of train.py")
    of_run.add_argument("run", nargs="*", help="its folder; of several, scored before, one table")
    of_run.add_argument("--training", action="store_true", help="score its training conditions")
    others = parser.add_argument_group("any model's cells")
    others.add_argument("--predicted", metavar="H5AD", help="predicted cells")
    others.add_argument("--data", metavar="H5AD", help="the measured cells they are scored against")
    for name in CELL_COLUMNS:
        option = "--" + name.replace("_", "-")
        others.add_argument(option, help=f"of --data: {screens.COLUMNS[name]}")
    how = parser.add_argument_group("how")
    how.add_argument("--out", help="folder for metrics and figures")
    how.add_argument("--seed", type=int, default=0, help="of the random halves (0)")
    how.add_argument("--squared", action="store_true", help="E-distance without its root")
    how.add_argument(
        "--write-truth", metavar="H5AD", help="write the measured cells and controls, for cell-eval"
    )
    args = parser.parse_args()
    theirs = args.predicted and args.data
    if bool(args.run) == bool(theirs) or (args.run and (args.predicted or args.data)):
        raise InputError("give a run, or --predicted and --data together")
    if args.squared and (not args.out or len(args.run) > 1):
        raise InputError("--squared scores one run, into a folder of its own: give --out")
    if args.seed < 0:
        raise InputError(f"--seed must not be negative, it is {args.seed}")
    return args


def main():
    """Read the command line, score."""
    args = parse()
    if len(args.run) > 1:
        pool_runs(args.run, "_training" if args.training else "", args.out)
        return
    columns = {name: getattr(args, name) for name in CELL_COLUMNS}
    run = args.run[0] if args.run else None
    evaluate_run(
        run, None, args.training, args.predicted, args.data, args.out, args.seed,
        args.write_truth, columns, args.squared,
    )  # fmt: skip


if __name__ == "__main__":
    screens.run_script(main)
