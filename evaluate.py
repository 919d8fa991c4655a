"""Score predicted cells against measured ones: a table beside honest baselines, metrics.json and figures.

    python evaluate.py runs/x                                        the held-out conditions of a run
    python evaluate.py runs/x --training                             its training conditions (sample.py runs/x --training)
    python evaluate.py runs/x runs/y runs/z                          the conditions of several runs in one table
    python evaluate.py --predicted theirs.h5ad --data truth.h5ad     any model's cells
theirs.h5ad: log1p X; obs with `condition` (such as KLF1+TGFBR2@k562), or `perturbation` and `cell_type`; the truth's gene names.

One convention. The measured cells of a condition are split into random halves, 5 times. Every method is scored against the same half with as
many cells as it holds (fewer, for all, where one has fewer), so that the finite-sample bias is the same for all; the floor is the other half.
Gene sets: all, the 20 and 40 of the largest Welch |t| of measured cells against controls, and those that a fifth of the cells switch.
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
from baselines import BASELINES, in_type, mean_shifts
from figures import draw_scores, grids, markdown, paper_of, text

SPLITS, FEWEST, BLOCK = 5, 4, 1024                                          # random halves; cells of a condition to be scored; rows at a time


# ------------------------------------------------------------------------------------------------------------- metrics
# Each a pure function of predicted cells x (n, N) and measured cells y (m, N), log1p, which are not changed.

def squared_distances(x, y):
    """Squared Euclidean distances (n, m) of cells x (n, N) and y (m, N)."""
    return np.maximum((x ** 2).sum(1)[:, None] + (y ** 2).sum(1) - 2 * x @ y.T, 0)


def mean_kernels(x, y, kernels, within=False):
    """Mean of each kernel(squared distance) over pairs of a cell of x (n, N) and one of y (m, N), (kernels,); of distinct cells, where y is x.
    In blocks of rows: the memory is that of BLOCK x m distances, whatever n. Sums are float64; distances of float32 cells are good to 7 digits."""
    total = np.zeros(len(kernels))
    for start in range(0, len(x), BLOCK):
        squared = squared_distances(x[start:start + BLOCK], y)
        for i, kernel in enumerate(kernels):
            values = kernel(squared)
            total[i] += values.sum(dtype=np.float64) - (values.trace(offset=start, dtype=np.float64) if within else 0)
    return total / (len(x) * (len(x) - 1) if within else len(x) * len(y))


def two_sample(x, y, kernels, own=None):
    """2 E k(x, y) - E k(x, x') - E k(y, y') of each kernel k, (kernels,), unbiased: of distinct cells. own: the last term, where it is known."""
    return 2 * mean_kernels(x, y, kernels) - mean_kernels(x, x, kernels, True) - (mean_kernels(y, y, kernels, True) if own is None else own)


def rooted(energy, squared=False):
    return np.maximum(0.0, energy) ** (1 if squared else 0.5)              # NaN stays NaN


def e_distance(x, y, squared=False):
    """Energy distance, n and m at least 2: sqrt(max(0, 2 E|x-y| - E|x-x'| - E|y-y'|)), unbiased within-group means (distinct cells); Szekely and
    Rizzo 2013; the root is the paper's released convention."""
    return rooted(two_sample(x, y, [np.sqrt])[0], squared)


def wasserstein(x, y):
    """1-D Wasserstein-1 distance of every gene (N,) between x (n, N) and y (m, N), in log1p units: the area between the two quantile
    functions, which are constant between multiples of 1/n and 1/m."""
    x, y, n, m = np.sort(x, 0), np.sort(y, 0), len(x), len(y)
    if n == m:
        return np.abs(x - y).mean(0, dtype=np.float64)
    edges = np.unique(np.concatenate([np.arange(n + 1) * m, np.arange(1, m) * n]))            # in units of 1 / (n m): no rounding
    gap = x[edges[:-1] // m]
    gap -= y[edges[:-1] // n]
    return (np.diff(edges) / (n * m)).astype(gap.dtype) @ np.abs(gap, out=gap)


def emd(x, y):
    """Mean over genes of the 1-D Wasserstein-1 distance (Rubner et al. 2000), in log1p units."""
    return float(wasserstein(x, y).mean())


def mmd2(x, y, gamma):
    """Squared maximum mean discrepancy, kernel exp(-gamma |u - v|^2): unbiased, so it may be negative (Gretton et al. 2012, Eq. 3)."""
    return -two_sample(x, y, [lambda d: np.exp(-gamma * d)])[0]


def gamma_by_median(x):
    """The gamma of the kernel, 1 / median |u - v|^2 over distinct cells of x (n, N), which should be training cells only."""
    median = np.median(squared_distances(x, x)[np.triu_indices(len(x), 1)])
    return 1 / median if median > 0 else 1.0


def correlation(a, b):
    """Pearson correlation of a and b (N,); NaN where either is constant."""
    return float(np.corrcoef(a, b)[0, 1]) if np.ptp(a) > 0 and np.ptp(b) > 0 else float("nan")


def activation_pcc(x, y):
    """Correlation over genes between the fractions of cells of x and y that express each (the paper's Table 2)."""
    return correlation((x > 0).mean(0), (y > 0).mean(0))


def pearson_delta(x, y, reference):
    """Correlation over genes between the mean changes of x and y from a reference mean (N,): the controls', or the training perturbations'."""
    return correlation(x.mean(0) - reference, y.mean(0) - reference)


def de_overlap(x, y, controls, k):
    """Share of the k genes of largest Welch |t| against the controls that x and y have in common; each cells or their `moments`."""
    top = [np.argsort(-welch_t(a, controls), kind="stable")[:k] for a in (x, y)]
    return len(np.intersect1d(*top)) / len(top[0])


def discrimination(x, y, others):
    """How well the mean of x points to y among other conditions, means `others` (Q, N): 1 - (share of them nearer in L1; ties half). 1: y is the
    nearest; 0.5: chance. As the Virtual Cell Challenge's, with the share of the others and not of all. NaN without others."""
    if not len(others):
        return float("nan")
    far, own = np.abs(others - x.mean(0)).sum(1), np.abs(y.mean(0) - x.mean(0)).sum()
    return float(1 - np.mean((far < own) + 0.5 * (far == own)))


def moments(x):
    """Mean, standard deviation (N,) and number of cells x (n, N): all that Welch's test asks of them."""
    return x.mean(0), x.std(0, ddof=1), len(x)


def welch_t(x, y):
    """|t| of each gene (N,) between x (n, N) and y (m, N), either of them cells or their `moments`; 0 where neither varies."""
    with np.errstate(divide="ignore", invalid="ignore"):
        t = stats.ttest_ind_from_stats(*(part for a in (x, y) for part in (a if isinstance(a, tuple) else moments(a))), equal_var=False).statistic
    return np.nan_to_num(np.abs(t), posinf=np.inf)


def gap_closed(score, control, floor):
    """1 - (score - floor) / (control - floor): 0 no better than the controls, 1 as close as another half of the real cells."""
    return 1 - (score - floor) / (control - floor) if control > floor else float("nan")


DISTANCES, SETS = ("E-distance", "EMD", "MMD2"), ("all", "DE20", "DE40", "switched")
CORRELATIONS = ("activation PCC", "Pearson delta", "Pearson delta from mean", "DE overlap", "discrimination")        # higher is better


# ------------------------------------------------------------------------------------------------------------- scoring

def all_scores(x, y, sets, kernels, own, controls, reference, others, squared=False):
    """{metric: {gene set: score}} of cells x (n, N) against y (n, N). kernels: of every gene set those of E and MMD^2, own: their means within y,
    the same for every x; controls: their moments; reference: the training perturbations' mean, or None."""
    out = {metric: {} for metric in (*DISTANCES, *CORRELATIONS)}
    for genes, columns in sets.items():
        a, b = x[:, columns], y[:, columns]
        energy, similarity = two_sample(a, b, kernels[genes], own[genes])                      # one pass over the distances for both
        out["E-distance"][genes], out["EMD"][genes], out["MMD2"][genes] = rooted(energy, squared), emd(a, b), -similarity
        out["activation PCC"][genes], out["Pearson delta"][genes] = activation_pcc(a, b), pearson_delta(a, b, controls[0][columns])
        if reference is not None:
            out["Pearson delta from mean"][genes] = pearson_delta(a, b, reference[columns])
    its, target = moments(x), moments(y)
    out["DE overlap"] = {f"DE{k}": de_overlap(its, target, controls, k) for k in (20, 40)}
    out["discrimination"]["all"] = discrimination(x, y, others)
    return out


def averaged(several):
    """The mean of nests {method: {metric: {gene set: score}}}, of the methods that all of them hold."""
    return {name: {metric: {genes: float(np.mean([s[name][metric][genes] for s in several])) for genes in by_set}
                   for metric, by_set in by_metric.items()}
            for name, by_metric in several[0].items() if all(name in s for s in several)}


def score_condition(measured, controls, methods, rng, orders=None, training=None, reference=None, others=(), squared=False):
    """{method: {metric: {gene set: score}}} of one condition, each the mean over splits, and the genes ranked by |t|.
    measured (n, N), controls (m, N), methods {name: cells or None}; the floor is added. orders: the random orders of the measured cells,
    training: cells (c, N) that set the kernel's width; others: of every split, the means (Q, N) of halves of the other conditions."""
    control_moments = moments(controls)
    ranked = np.argsort(-welch_t(measured, control_moments), kind="stable")
    switched = np.abs((measured > 0).mean(0) - (controls > 0).mean(0)) > 0.2          # more than a fifth of the cells change state
    sets = {"all": slice(None), "DE20": ranked[:20], "DE40": ranked[:40], **({"switched": np.flatnonzero(switched)} if switched.any() else {})}
    training = controls if training is None else training
    kernels = {genes: (np.sqrt, lambda d, gamma=gamma_by_median(training[:, columns]): np.exp(-gamma * d)) for genes, columns in sets.items()}
    half, splits = len(measured) // 2, []
    size = min(half, *(len(x) for x in methods.values() if x is not None))
    for split in range(SPLITS):
        order = rng.permutation(len(measured)) if orders is None else orders[split]
        target = measured[order[:size]]
        rivals = {name: x[rng.permutation(len(x))[:size]] for name, x in methods.items() if x is not None}
        rivals["floor"] = measured[order[half:half + size]]
        own = {genes: mean_kernels(target[:, columns], target[:, columns], kernels[genes], True) for genes, columns in sets.items()}
        splits.append({name: all_scores(x, target, sets, kernels, own, control_moments, reference, others[split] if len(others) else (), squared)
                       for name, x in rivals.items()})
    return averaged(splits), ranked


def score(screen, predicted, seed=0, squared=False):
    """Score predicted {(perturbation, cell type): cells (n, N) sparse} and the baselines: a list of rows, one per condition."""
    fitted = {name: baseline(screen) for name, baseline in BASELINES.items()}
    shifts, rng = mean_shifts(screen), np.random.default_rng(seed)
    training = screen.dense(rng.permutation(np.concatenate(list(screen.training_groups().values())))[:500])
    scored = [key for key in sorted(predicted) if len(screen.groups[key]) >= FEWEST and predicted[key].shape[0] >= 2]
    orders = {key: [rng.permutation(len(rows)) for _ in range(SPLITS)] for key, rows in screen.groups.items()
              if key[0] != data.CONTROL and len(rows) >= FEWEST and key[1] in {t for _, t in scored}}
    halves = {key: np.stack([np.asarray(screen.X[np.sort(screen.groups[key][o[:len(o) // 2]])].mean(0)).ravel() for o in mine])
              for key, mine in orders.items()}
    rows = []
    for key in tqdm(scored, desc="scoring", unit="condition", leave=False):
        measured, controls = screen.dense(screen.groups[key]), screen.dense(screen.controls(key[1]))
        x0 = controls[rng.permutation(len(controls))[:len(measured)]]      # none twice: within-group means are of distinct cells
        methods = {name: predict(*key, x0) for name, predict in fitted.items()}
        mean = controls.mean(0) + np.mean([shifts[k] for k in in_type(shifts, key[1])], 0) if shifts else None
        others = [np.stack(means) for means in zip(*(mine for k, mine in halves.items() if k[1] == key[1] and k != key))]
        scores, ranked = score_condition(measured, controls, {**methods, "model": predicted[key].toarray()}, rng, orders[key],
                                         training, mean, others, squared)
        rows.append({"condition": "@".join(key), "cells": len(measured), "scores": scores,
                     "top_genes": [str(g) for g in screen.genes[ranked[:20]]]})
    if len(scored) < len(predicted):
        print(f"not scored, fewer than {FEWEST} measured or 2 predicted cells: {data.some(map('@'.join, sorted(predicted.keys() - set(scored))))}")
    if not rows:
        raise data.InputError(f"{screen.source}: no condition has {FEWEST} measured and 2 predicted cells; there is nothing to score")
    return rows


def summarise(rows):
    """{method: {metric: {gene set: {mean, sd, conditions, gap_closed, beaten_in, p}}}} over conditions.
    Gap closed is that of the means, over the conditions that the method applies to, so that weak perturbations, whose own
    gap is a division by almost nothing, weigh what they should. beaten_in: in how many of these conditions the model scores better
    than the method; p: of a two-sided sign test of that."""
    summary = {}
    for name in [*BASELINES, "model", "floor"]:
        mine = [r["scores"] for r in rows if name in r["scores"]]
        for metric in (*DISTANCES, *CORRELATIONS) if mine else ():
            for genes in SETS:
                x, control, floor, model = np.array([[s[m].get(metric, {}).get(genes) for m in (name, "control", "floor", "model")]
                                                     for s in mine], float).T            # None: not there, or NaN in JSON
                there = ~np.isnan(x)
                if not there.any():
                    continue
                x, control, floor, model = x[there], control[there], floor[there], model[there]
                gap = {"gap_closed": gap_closed(x.mean(), control.mean(), floor.mean())} if metric in DISTANCES else {}
                entry = {"mean": float(x.mean()), "sd": float(x.std()), "conditions": len(x), **gap}
                if name not in ("model", "floor"):
                    better = (model - x) * (-1 if metric in DISTANCES else 1)
                    entry["beaten_in"], contested = int((better > 0).sum()), int(((better > 0) | (better < 0)).sum())          # NaN takes no side
                    entry["p"] = float(stats.binomtest(entry["beaten_in"], contested).pvalue) if contested else 1.0
                summary.setdefault(name, {}).setdefault(metric, {})[genes] = entry
    return summary


def per_condition(rows):
    """Every score as a table: condition, cells, method, metric, genes, score, gap_closed."""
    return pd.DataFrame([(r["condition"], r["cells"], name, metric, genes, value, gap_closed(
        value, *(r["scores"][other][metric][genes] for other in ("control", "floor"))) if metric in DISTANCES else np.nan)
        for r in rows for name, by_metric in r["scores"].items() for metric, by_set in by_metric.items() for genes, value in by_set.items()],
        columns=["condition", "cells", "method", "metric", "genes", "score", "gap_closed"])


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
        raise data.InputError(f"{path}: lacks {len(missing):,} of the {len(names):,} genes of {screen.source}, such as {missing[0]}")
    obs = adata.obs
    if "perturbation" in obs and "cell_type" in obs:
        label = obs["perturbation"].astype(str) + "@" + obs["cell_type"].astype(str)
    elif "condition" in obs:
        label = obs["condition"].astype(str)
    else:
        raise data.InputError(f"{path}: needs obs columns perturbation and cell_type, or condition; it has {', '.join(obs) or 'none'}")
    X = data.log1p_csr(adata.X, path, counts=False)[0][:, [where[g] for g in names]]
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


def write_truth(path, screen, conditions, predicted):
    """An h5ad of the measured cells of {(perturbation, cell type)} and of those types' controls, under predicted.h5ad's column names."""
    if os.path.realpath(path) in [os.path.realpath(name) for name in (screen.source, predicted)]:
        raise data.InputError(f"--write-truth {path}: is an input; choose another name")
    keys = {*conditions, *((data.CONTROL, t) for _, t in conditions)}
    rows = np.sort(np.concatenate([screen.groups[key] for key in keys]))
    obs = pd.DataFrame({"perturbation": screen.perturbation[rows], "cell_type": screen.cell_type[rows]}, screen.cells[rows], dtype="category")
    data.write_h5ad(anndata.AnnData(screen.X[rows], obs, pd.DataFrame({"gene_name": screen.genes}, screen.var_names)), path)


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


def evaluate_run(run, screen=None, training=False, predicted=None, path=None, out=None, seed=0, truth=None, columns=None, squared=False):
    """Score, print the table, write metrics.json, .csv and .md and the figures; returns the summary."""
    suffix = "_training" if training else ""
    if run:
        predicted, out = predicted or f"{run}/{'training' if training else 'predicted'}.h5ad", out or run
        if not screen:
            about = data.open_h5ad(predicted).uns.get("departures")
            if about is None:
                raise data.InputError(f"{predicted}: not written by sample.py; score it with --predicted and --data")
            screen = data.prepare(**json.loads(about["reading"]))
    else:
        out, screen = out or os.path.splitext(predicted)[0] + "_scores", shared_genes(predicted, data.read_screen(path, **columns or {}))
    cells = read_predicted(predicted, screen)
    if run and not training and not set(cells) <= screen.held_out:
        raise data.InputError(f"{screen.source}: {data.some(map('@'.join, sorted(set(cells) - screen.held_out)), 3)} of {predicted} are not held "
                              "out: the file has changed since; restore it, or train again")
    if not run:
        screen.held_out |= set(cells)                                      # what was predicted is not for the baselines to see,
        if "split" in screen.obs:                                          # nor is what the file marks as test
            marked = screen.obs["split"].astype(str).isin(("test", "ood")).to_numpy()
            screen.held_out |= {key for key, group in screen.groups.items() if key[0] != data.CONTROL and marked[group].all()}
    if truth:
        write_truth(truth, screen, cells, predicted)
    rows = sorted(score(screen, cells, seed, squared), key=lambda r: -r["scores"]["control"]["E-distance"]["all"])
    summary = summarise(rows)
    shown = grids(summary, rows, None if squared else paper_of(screen))
    os.makedirs(f"{out}/figures{suffix}", exist_ok=True)
    metrics = json.dumps({"source": screen.source, "squared": squared, "summary": summary, "conditions": rows}, indent=1)
    data.save(f"{out}/metrics{suffix}.json", re.sub(r"\bNaN\b(?=,?\n)", "null", metrics).encode())          # JSON has no NaN
    data.save(f"{out}/metrics{suffix}.csv", per_condition(rows).to_csv(index=False).encode())
    data.save(f"{out}/metrics{suffix}.md", markdown(shown, squared).encode())
    draw_scores(f"{out}/figures{suffix}", screen, rows, summary, cells)
    print(text(shown, squared))
    print(f"per condition: {out}/metrics{suffix}.csv    these tables: {out}/metrics{suffix}.md    figures: {out}/figures{suffix}/")
    return summary


def pool_runs(runs, suffix="", out=None):
    """Print one table over the conditions of several runs that were scored already; with a folder, write it there too. Runs on one screen
    (several seeds) share conditions; these are averaged first, for they are not independent."""
    found, conventions = {}, set()
    for run in runs:
        try:
            with open(f"{run}/metrics{suffix}.json") as file:
                content = json.load(file, object_hook=lambda entry: {key: np.nan if value is None else value for key, value in entry.items()})
            for row in content["conditions"]:
                found.setdefault((content["source"], row["condition"]), []).append(row)
            conventions.add(content["squared"])
        except (OSError, ValueError, KeyError) as e:
            raise data.InputError(f"{run}/metrics{suffix}.json: not readable; score each run first, with evaluate.py {run}") from e
    if len(conventions) > 1:
        raise data.InputError(f"{', '.join(runs)}: some were scored with --squared, some without; score them alike")
    rows = [{**same[0], "scores": averaged([row["scores"] for row in same])} for same in found.values()]
    shown, squared = grids(summarise(rows), rows), conventions.pop()
    if out:
        os.makedirs(out, exist_ok=True)
        data.save(f"{out}/metrics{suffix}.md", markdown(shown, squared).encode())
    print(text(shown, squared))


def main():
    parser = argparse.ArgumentParser(description=__doc__, **data.ONE_LINE)
    add = parser.add_argument
    add("run", nargs="*", help="folder of a run of train.py; of several, scored before, the conditions are pooled in one table")
    add("--training", action="store_true", help="score the training conditions of the run")
    add("--predicted", help="an h5ad of predicted cells")
    add("--data", help="the h5ad of measured cells that they are scored against")
    add("--out", help="folder for metrics.json and figures")
    add("--seed", type=int, default=0, help="of the random halves (default 0)")
    add("--squared", action="store_true", help="the E-distance without its root, in all that is written; needs --out")
    add("--write-truth", metavar="H5AD", help="also write the measured cells of the scored conditions and their controls, for cell-eval")
    columns = [name for name in data.COLUMNS if name != "split_column"]
    for name in columns:
        add("--" + name.replace("_", "-"), help=f"of --data: {data.COLUMNS[name]}")
    args = parser.parse_args()
    if bool(args.run) == bool(args.predicted and args.data) or (args.run and (args.predicted or args.data)):
        raise data.InputError("give a run, or --predicted and --data together")
    if args.squared and (not args.out or len(args.run) > 1):
        raise data.InputError("--squared scores one run, into a folder of its own: give --out")
    if args.seed < 0:
        raise data.InputError(f"--seed must not be negative, it is {args.seed}")
    if len(args.run) > 1:
        return pool_runs(args.run, "_training" if args.training else "", args.out)
    evaluate_run(args.run[0] if args.run else None, None, args.training, args.predicted, args.data, args.out, args.seed, args.write_truth,
                 {c: getattr(args, c) for c in columns}, args.squared)


if __name__ == "__main__":
    data.run_script(main)
