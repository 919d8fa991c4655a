"""Which genes a perturbation changes: a table for every condition, and a line of words.

Order and numbers are those of Scanpy's `rank_genes_groups(method="t-test")` on the same cells.
Axes: n cells, N genes.
"""

import os

import numpy as np
import pandas as pd
import scipy

import screens

PSEUDOCOUNT = 1e-9  # Scanpy's: a gene that one side never expresses changes by about 30 doublings
COLUMNS = (  # of a table; docs/using.md says what each of them is
    "gene", "control_mean", "predicted_mean", "log2_fold_change", "fraction_change", "score", "p",
    "p_adjusted",
)  # fmt: skip
MEASURED = ("mean", "log2_fold_change", "fraction_change", "p_adjusted")  # `measured_` and these


def describe_cells(X, rows=None):
    """How many cells there are, and the mean, variance and expressing fraction of each gene (N,).

    X (n, N) CSR, log1p; rows: some of its rows. The variance is the unbiased one, NaN of one cell.
    """
    n, (expressing, total, squares) = screens.sums_of_cells(X, rows)
    mean = total / n
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = np.maximum(squares - n * mean**2, 0) / np.float64(n - 1)
    return n, mean, variance, expressing / n


def compare(cells, controls):
    """How cells differ from controls, {column: (N,)}; both as `describe_cells` has them.

    A gene that does not vary, or cells of which there is one, have score 0 and p 1, as in Scanpy.
    """
    n, mean, variance, fraction = cells
    n_controls, control_mean, control_variance, control_fraction = controls
    with np.errstate(invalid="ignore", divide="ignore"):
        score, p = scipy.stats.ttest_ind_from_stats(
            mean, variance**0.5, n, control_mean, control_variance**0.5, n_controls, equal_var=False
        )
    p = np.nan_to_num(p, nan=1.0)
    folds = (np.expm1(mean) + PSEUDOCOUNT) / (np.expm1(control_mean) + PSEUDOCOUNT)
    return {
        "mean": mean,
        "log2_fold_change": np.log2(folds),
        "fraction_change": fraction - control_fraction,
        "score": np.where(np.isnan(score), 0.0, score),
        "p": p,
        "p_adjusted": scipy.stats.false_discovery_control(p),
    }


def gene_table(genes, predicted, controls, measured=None):
    """What a condition changes: a row for each of the genes (N,), sorted by falling score.

    predicted, controls, measured: cells of one cell type, as `describe_cells` has them. The columns
    are COLUMNS and, where there are measured cells, `measured_` and each of MEASURED. score is
    Welch's t of the predicted cells against the controls.
    """
    change = compare(predicted, controls)
    table = {"gene": genes, "control_mean": controls[1], "predicted_mean": change.pop("mean")}
    table |= change
    if measured is not None:
        truth = compare(measured, controls)
        table |= {f"measured_{name}": truth[name] for name in MEASURED}
    return pd.DataFrame(table).sort_values("score", ascending=False, kind="stable")


def all_tables(screen, parts):
    """The tables of all conditions below each other, with a first column `condition`.

    parts: [(perturbation, cell type, predicted cells (n, N) CSR, …)]. The controls and the measured
    cells are the screen's.
    """
    types = {cell_type for _, cell_type, *_ in parts}
    controls = {name: describe_cells(screen.X, screen.controls(name)) for name in types}
    tables = []
    for perturbation, cell_type, predicted, *_ in parts:
        rows = screen.groups.get((perturbation, cell_type))
        measured = None if rows is None else describe_cells(screen.X, rows)
        table = gene_table(screen.genes, describe_cells(predicted), controls[cell_type], measured)
        table.insert(0, "condition", f"{perturbation}@{cell_type}")
        tables.append(table)
    if not tables:
        return pd.DataFrame(columns=["condition", *COLUMNS])
    return pd.concat(tables, ignore_index=True)


def in_words(table, n=4):
    """A line for each condition: up to n genes that surely rise, and fall; the surest first.

    Surely: with an adjusted p below 0.05.
    """
    lines = []
    for condition, rows in table.groupby("condition", sort=False):
        sure = rows[rows["p_adjusted"] < 0.05]
        up = sure["gene"][sure["score"] > 0][:n]
        down = sure["gene"][sure["score"] < 0][::-1][:n]
        lines.append(f"{condition}: up {', '.join(up) or 'none'}; down {', '.join(down) or 'none'}")
    return lines


def read_genes(predicted):
    """The table of genes in an h5ad of predicted cells, or None. InputError for a damaged one."""
    texts = ("condition", "gene")
    form = {name: str if name in texts else float for name in ("condition", *COLUMNS)}
    measured = {f"measured_{name}": float for name in MEASURED}
    return screens.read_table(predicted, "predicted_genes", form | measured, form)


def genes_path(path):
    """The path of the CSV of genes beside an h5ad: RUN/predicted_genes.csv of predicted.h5ad."""
    return f"{os.path.splitext(path)[0]}_genes.csv"
