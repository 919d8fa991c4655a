"""Which genes are kept.

Axes: C cells, N genes.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from screens.command_line import InputError
from screens.files import blocks, stacked
from screens.labels import targets_of


def seurat_dispersion(X, rows=None):
    """How variable each gene is for its mean: the normalised dispersion (N,).

    X (C, N): log1p expression, sparse; rows: some of its rows. log(variance / mean) of expm1(X),
    standardised within 20 bins of log1p(mean): Satija et al. 2015, with the conventions of Scanpy's
    `highly_variable_genes(flavor="seurat")`. NaN for a gene that does not vary.
    """
    n = X.shape[0] if rows is None else len(rows)
    total = 0
    squares = 0
    for block in blocks(X, rows):
        counts = block.astype(np.float64).expm1()
        total = total + np.asarray(counts.sum(0)).ravel()
        squares = squares + np.asarray(counts.power(2).sum(0)).ravel()
    mean = total / n
    variance = (squares / n - mean**2) * n / max(n - 1, 1)
    mean[mean == 0] = 1e-12
    dispersion = np.log(np.where(variance > 0, variance / mean, np.nan))
    bins = pd.Series(pd.cut(np.log1p(mean), bins=20))
    grouped = pd.Series(dispersion).groupby(bins, observed=False)
    centre = grouped.transform("mean")
    spread = grouped.transform("std")
    alone = spread.isna()  # a bin of one gene: its dispersion counts as 1
    spread[alone] = centre[alone]
    centre[alone] = 0
    return ((dispersion - centre) / spread).to_numpy()


def choose_genes(screen, n):
    """The screen with at most n genes: the perturbed ones first, then the most variable.

    Perturbed genes count if they are measured, and "variable" is among the training cells.
    InputError if n does not even hold the perturbed ones.
    """
    if n >= len(screen.genes):
        return screen
    perturbed = set()
    for perturbation in set(screen.perturbation):
        perturbed |= {gene for gene, _ in targets_of(perturbation, screen.kind)}
    perturbed &= set(screen.genes)
    if n < max(2, len(perturbed)):
        raise InputError(
            f"--genes {n}: no genes left beside the {len(perturbed)} perturbed ones that "
            f"{screen.source} measures; give more"
        )
    training_rows = np.sort(np.concatenate(list(screen.training_groups().values())))
    dispersion = seurat_dispersion(screen.X, training_rows)
    rank = np.nan_to_num(dispersion, nan=-np.inf)
    rank[np.isin(screen.genes, list(perturbed))] = np.inf
    screen.found.append(f"kept {n:,} genes: the perturbed ones, then the most variable")
    best = np.argsort(-rank, kind="stable")[:n]
    return take_genes(screen, np.sort(best))


def take_genes(screen, columns):
    """The screen with some of its genes, by column number, in that order."""
    parts = (block[:, columns] for block in blocks(screen.X))
    X = stacked(parts, screen.X.nnz, len(columns))
    return replace(screen, X=X, genes=screen.genes[columns], var_names=screen.var_names[columns])
