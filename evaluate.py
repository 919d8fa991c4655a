"""Score predicted cells against measured ones: a table beside honest baselines, metrics.json and figures.

    python evaluate.py runs/x                                        the held-out conditions of a run
    python evaluate.py runs/x --training                             its training conditions (sample.py runs/x --training)
    python evaluate.py --predicted theirs.h5ad --data truth.h5ad     any model's cells

theirs.h5ad: log1p X; obs with `condition` (such as KLF1+TGFBR2@k562), or `perturbation` and `cell_type`; the truth's gene names.

One convention. The measured cells of a condition are split into random halves, 5 times. Every method is scored against the
same half with as many cells as it holds, so that the finite-sample bias is the same for all; the floor is the other half.
Gene sets: all, and the 20 and 40 genes of the largest Welch |t| of measured perturbed cells against controls.
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

import data
from baselines import BASELINES
from figures import draw_pca, draw_violins

SPLITS, FEWEST = 5, 4                                                       # random halves; cells of a condition to be scored


# ------------------------------------------------------------------------------------------------------------- metrics

def squared_distances(x, y):
    """Squared Euclidean distances (n, m) of cells x (n, N) and y (m, N)."""
    return np.maximum((x ** 2).sum(1)[:, None] + (y ** 2).sum(1) - 2 * x @ y.T, 0)


def mean_distance(x, y, paired_with_self=False):
    """Mean Euclidean distance between cells x (n, N) and y (m, N); of distinct cells where y is x."""
    squared = squared_distances(np.asarray(x, np.float64), np.asarray(y, np.float64))
    if paired_with_self:
        np.fill_diagonal(squared, 0)
    distance = np.sqrt(squared)
    return distance.sum() / (len(x) * (len(x) - 1)) if paired_with_self else distance.mean()


def e_distance(x, y, squared=False):
    """Energy distance of cells x (n, N) and y (m, N), n and m at least 2: sqrt(max(0, 2 E|x-y| - E|x-x'| - E|y-y'|)).

    Unbiased within-group means (distinct cells); Szekely and Rizzo 2013; the root is the paper's released convention.
    """
    energy = np.maximum(0.0, 2 * mean_distance(x, y) - mean_distance(x, x, True) - mean_distance(y, y, True))  # NaN stays NaN
    return energy if squared else energy ** 0.5


def emd(x, y):
    """Mean over genes of the 1-D Wasserstein-1 distance between x (n, N) and y (m, N), in log1p units.

    W1 is the area between the two quantile functions, which are constant between multiples of 1/n and 1/m.
    """
    x, y = np.sort(x, 0), np.sort(y, 0)
    if len(x) == len(y):
        return float(np.abs(x - y).mean(dtype=np.float64))
    edges = np.unique(np.concatenate([[0.0], np.arange(1, len(x) + 1) / len(x), np.arange(1, len(y) + 1) / len(y)]).round(12))
    middle = (edges[1:] + edges[:-1]) / 2
    gaps = np.abs(x[(middle * len(x)).astype(int)] - y[(middle * len(y)).astype(int)])
    return float((np.diff(edges) @ gaps.astype(np.float64)).mean())


def mmd2(x, y, gamma):
    """Squared maximum mean discrepancy of x (n, N) and y (m, N), kernel exp(-gamma |u - v|^2): unbiased, so it may be negative.

    Gretton et al. 2012, Eq. 3.
    """
    n, m = len(x), len(y)
    within = ((np.exp(-gamma * squared_distances(a, a)).sum() - len(a)) / (len(a) * (len(a) - 1)) for a in (x, y))
    return sum(within) - 2 * np.exp(-gamma * squared_distances(x, y)).sum() / (n * m)


def gamma_by_median(x):
    """The gamma of the kernel, 1 / median |u - v|^2 over distinct cells of x (n, N), which should be training cells only."""
    return 1 / np.median(squared_distances(x, x)[np.triu_indices(len(x), 1)])


def activation_pcc(x, y):
    """Pearson correlation over genes between the fractions of cells of x (n, N) and y (m, N) that express each (Table 2)."""
    a, b = (x > 0).mean(0), (y > 0).mean(0)
    return float(np.corrcoef(a, b)[0, 1]) if a.std() > 0 and b.std() > 0 else float("nan")


METRICS = {"E-distance": e_distance, "EMD": emd, "activation PCC": activation_pcc}


def gap_closed(score, control, floor):
    """1 - (score - floor) / (control - floor): 0 no better than the controls, 1 as close as another half of the real cells."""
    return 1 - (score - floor) / (control - floor) if control > floor else float("nan")


def welch_t(x, y):
    """|t| of each gene (N,) between x (n, N) and y (m, N), unequal variances; 0 where neither varies."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num(np.abs(stats.ttest_ind(x, y, axis=0, equal_var=False).statistic), posinf=np.inf)


# ------------------------------------------------------------------------------------------------------------- scoring

def score_condition(measured, controls, methods, rng):
    """{method: {metric: {gene set: score}}} of one condition, each the mean over splits, and the genes ranked by |t|.

    measured (n, N), controls (m, N), methods {name: cells or None}. The floor is added.
    """
    ranked = np.argsort(-welch_t(measured, controls), kind="stable")
    sets = {"all": slice(None), "DE20": ranked[:20], "DE40": ranked[:40]}
    half = len(measured) // 2
    scores = {}
    for _ in range(SPLITS):
        order = rng.permutation(len(measured))
        target = measured[order[:half]]
        rivals = {name: x[rng.permutation(len(x))[:half]] for name, x in methods.items() if x is not None}
        rivals["floor"] = measured[order[half:2 * half]]
        for name, x in rivals.items():
            for metric, f in METRICS.items():
                for genes, columns in sets.items():
                    scores.setdefault(name, {}).setdefault(metric, {}).setdefault(genes, []).append(
                        f(x[:, columns], target[:, columns]))
    mean = {name: {m: {g: float(np.mean(v)) for g, v in by_set.items()} for m, by_set in by_metric.items()}
            for name, by_metric in scores.items()}
    return mean, ranked


def score(screen, predicted, seed=0):
    """Score predicted {(perturbation, cell type): cells (n, N) sparse} and the baselines: a list of rows, one per condition."""
    fitted = {name: baseline(screen) for name, baseline in BASELINES.items()}
    rows, skipped = [], []
    for key in tqdm(sorted(predicted), desc="scoring", unit="condition", leave=False):
        measured = screen.dense(screen.groups[key])
        model = predicted[key].toarray()
        if len(measured) < FEWEST or len(model) < 2:
            skipped.append("@".join(key))
            continue
        rng = np.random.default_rng([seed, len(rows)])
        pool = rng.permutation(screen.controls(key[1]))
        x0 = screen.dense(pool[np.arange(len(measured)) % len(pool)])
        methods = {name: predict(*key, x0) for name, predict in fitted.items()}
        scores, ranked = score_condition(measured, screen.dense(screen.controls(key[1])), {**methods, "model": model}, rng)
        rows.append({"condition": "@".join(key), "cells": len(measured), "scores": scores,
                     "top_genes": [str(g) for g in screen.genes[ranked[:20]]]})
    if skipped:
        print(f"not scored, fewer than {FEWEST} measured or 2 predicted cells: {data.some(skipped)}")
    if not rows:
        raise data.InputError(f"{screen.source}: no condition has {FEWEST} measured and 2 predicted cells; there is nothing to score")
    return rows


def summarise(rows):
    """{method: {metric: {gene set: {mean, sd, gap_closed, conditions}}}} over conditions.

    Gap closed is that of the means, over the conditions that the method applies to, so that weak perturbations, whose own
    gap is a division by almost nothing, weigh what they should.
    """
    summary = {}
    for name in [*BASELINES, "model", "floor"]:
        mine = [r["scores"] for r in rows if name in r["scores"]]
        for metric in METRICS if mine else ():
            for genes in ("all", "DE20", "DE40"):
                x, control, floor = (np.array([s[m][metric][genes] for s in mine]) for m in (name, "control", "floor"))
                entry = {"mean": float(np.nanmean(x)), "sd": float(np.nanstd(x)), "conditions": len(mine)}
                if metric != "activation PCC":
                    entry["gap_closed"] = gap_closed(x.mean(), control.mean(), floor.mean())
                summary.setdefault(name, {}).setdefault(metric, {})[genes] = entry
    return summary


def without_nan(x):
    """The same nest of dicts and lists with None for NaN, which JSON does not have."""
    if isinstance(x, dict):
        return {k: without_nan(v) for k, v in x.items()}
    if isinstance(x, list):
        return [without_nan(v) for v in x]
    return None if isinstance(x, float) and np.isnan(x) else x


def table(summary, n):
    """The table that a person reads: raw scores, then the gap closed."""
    lines = [f"{n} conditions; each method against the same half of the measured cells, {SPLITS} splits; E-distance is the root "
             "of the unbiased energy distance;", "gap closed: 0 as far as the control cells, 1 as close as the other half of the "
             "measured cells (the floor).", ""]
    sets = ("all", "DE20", "DE40")
    for value, metrics in (("mean", list(METRICS)), ("gap_closed", ["E-distance", "EMD"])):
        titles = [m if value == "mean" else f"gap closed, {m}" for m in metrics]
        lines.append(" " * 18 + "".join(f"{title:^27}" for title in titles))
        lines.append(" " * 18 + "".join(f"{g:>9}" for _ in metrics for g in sets))
        for name, scores in summary.items():
            cells = "".join(f"{scores[m][g][value]:>9.3f}" for m in metrics for g in sets)
            lines.append(f"{name:<18}{cells}" + _coverage(scores, n))
        lines.append("")
    return "\n".join(lines)


def _coverage(scores, n):
    applies = scores["E-distance"]["all"]["conditions"]
    return "" if applies == n else f"  ({applies} of {n} conditions)"


# -------------------------------------------------------------------------------------------------------- command line

def read_predicted(path, screen):
    """{(perturbation, cell type): cells (n, N) CSR} of an h5ad of predicted cells, its genes in the screen's order."""
    adata = data.open_h5ad(path)
    if not adata.var_names.is_unique:
        raise data.InputError(f"{path}: duplicate gene names; make them unique with adata.var_names_make_unique()")
    where = {str(g): i for i, g in enumerate(adata.var_names)}
    names = screen.var_names if set(screen.var_names) <= set(where) else screen.genes
    missing = [g for g in names if g not in where]
    if missing:
        raise data.InputError(f"{path}: lacks {len(missing):,} of the {len(names):,} genes of {screen.source}, such as "
                              f"{missing[0]}")
    obs = adata.obs
    if "perturbation" in obs and "cell_type" in obs:
        label = obs["perturbation"].astype(str) + "@" + obs["cell_type"].astype(str)
    elif "condition" in obs:
        label = obs["condition"].astype(str)
    else:
        raise data.InputError(f"{path}: needs obs columns perturbation and cell_type, or condition; it has "
                              f"{', '.join(obs) or 'none'}")
    X, _ = data.log1p_csr(adata.X, path, counts=False)
    X = X[:, [where[g] for g in names]]
    out = {}
    for name in label.unique():
        if data.is_control(data.at_type(screen, name)[0]):
            continue
        keys = data.resolve(screen, name)
        if len(keys) > 1:
            raise data.InputError(f"{path}: '{name}' means several measured conditions ({data.some(map('@'.join, sorted(keys)))}); name one")
        out.setdefault(keys.pop(), []).append(np.flatnonzero(label == name))                   # A+B and B+A are one
    out = {key: X[np.concatenate(rows)] for key, rows in out.items()}
    if not out:
        raise data.InputError(f"{path}: holds no predicted cells of any condition")
    return out


def write_truth(path, screen, conditions):
    """An h5ad of the measured cells of {(perturbation, cell type)} and of those types' controls, under predicted.h5ad's column names."""
    keys = {*conditions, *((data.CONTROL, t) for _, t in conditions)}
    rows = np.sort(np.concatenate([screen.groups[key] for key in keys]))
    obs = pd.DataFrame({"perturbation": screen.perturbation[rows], "cell_type": screen.cell_type[rows]}, screen.cells[rows], dtype="category")
    truth = anndata.AnnData(screen.X[rows], obs, pd.DataFrame({"gene_name": screen.genes}, screen.var_names))
    data.write_h5ad(truth, path)


def shared_genes(path, screen):
    """The screen cut to the genes that another model's file predicts."""
    theirs = set(data.open_h5ad(path).var_names)
    by_index, by_symbol = ([i for i, g in enumerate(names) if g in theirs] for names in (screen.var_names, screen.genes))
    columns = max(by_index, by_symbol, key=len)
    if len(columns) < 2:
        raise data.InputError(f"{path}: its genes are not those of {screen.source}")
    if len(columns) < len(screen.genes):
        print(f"scored on the {len(columns):,} genes of {len(screen.genes):,} that {path} holds")
    return data.take_genes(screen, columns)


def evaluate_run(run, screen=None, training=False, predicted=None, path=None, out=None, seed=0, truth=None):
    """Score, print the table, write metrics.json and figures; returns the summary."""
    suffix = "_training" if training else ""
    if run:
        predicted, out = predicted or f"{run}/{'training' if training else 'predicted'}.h5ad", out or run
        if screen is None:
            about = data.open_h5ad(predicted).uns.get("departures")
            if about is None:
                raise data.InputError(f"{predicted}: not written by sample.py; score it with --predicted and --data")
            screen = data.prepare(**json.loads(about["reading"]))
    else:
        screen = data.read_screen(path)
        out = out or os.path.splitext(predicted)[0] + "_scores"
    if not run:
        screen = shared_genes(predicted, screen)
    cells = read_predicted(predicted, screen)
    if run and not training and not set(cells) <= screen.held_out:
        raise data.InputError(f"{screen.source}: {data.some(map('@'.join, sorted(set(cells) - screen.held_out)), 3)} of {predicted} are not held "
                              "out: the file has changed since; restore it, or train again")
    if not run:
        screen.held_out |= set(cells)                                      # what was predicted is not for the baselines to see
    if truth and os.path.realpath(truth) in [os.path.realpath(name) for name in (screen.source, predicted)]:
        raise data.InputError(f"--write-truth {truth}: is an input; choose another name")
    if truth:
        write_truth(truth, screen, cells)
    rows = score(screen, cells, seed)
    rows.sort(key=lambda r: -r["scores"]["control"]["E-distance"]["all"])
    summary = summarise(rows)
    os.makedirs(f"{out}/figures{suffix}", exist_ok=True)
    metrics = without_nan({"summary": summary, "conditions": rows, "splits": SPLITS})
    data.save(f"{out}/metrics{suffix}.json", json.dumps(metrics, indent=1, allow_nan=False).encode())
    strongest = re.sub(r"[^\w.+@-]", "_", rows[0]["condition"])
    draw_violins(f"{out}/figures{suffix}/violin_{strongest}.png", screen, rows[0], cells)
    draw_pca(f"{out}/figures{suffix}/pca.png", screen, rows, cells)
    print(table(summary, len(rows)))
    print(f"per condition: {out}/metrics{suffix}.json    figures: {out}/figures{suffix}/")
    return summary


def main():
    parser = argparse.ArgumentParser(description=__doc__, **data.ONE_LINE)
    add = parser.add_argument
    add("run", nargs="?", help="folder of a run of train.py")
    add("--training", action="store_true", help="score the training conditions of the run")
    add("--predicted", help="an h5ad of predicted cells")
    add("--data", help="the h5ad of measured cells that they are scored against")
    add("--out", help="folder for metrics.json and figures")
    add("--seed", type=int, default=0, help="of the random halves (default 0)")
    add("--write-truth", metavar="H5AD", help="also write the measured cells of the scored conditions and their controls, for cell-eval")
    args = parser.parse_args()
    if bool(args.run) == bool(args.predicted and args.data) or (args.run and (args.predicted or args.data)):
        raise data.InputError("give a run, or --predicted and --data together")
    if args.seed < 0:
        raise data.InputError(f"--seed must not be negative, it is {args.seed}")
    evaluate_run(args.run, None, args.training, args.predicted, args.data, args.out, args.seed, args.write_truth)


if __name__ == "__main__":
    data.run_script(main)
