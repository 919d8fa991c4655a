"""Which genes are kept.

Axes: C cells, N genes.
"""

from dataclasses import replace

import numpy as np
import pandas as pd

from screens.command_line import InputError, some
from screens.files import blocks, stacked
from screens.labels import did_you_mean, targets_of


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
    perturbed = perturbed_targets(screen) & set(screen.genes)
    if n < max(2, len(perturbed)):
        raise InputError(
            f"--genes {n}: no genes left beside the {len(perturbed)} perturbed ones that "
            f"{screen.source} measures; give more"
        )
    screen.found.append(f"kept {n:,} genes: the perturbed ones, then the most variable")
    best = order_of_genes(screen, perturbed)[:n]
    return take_genes(screen, np.sort(best))


def perturbed_targets(screen):
    """The names of all that is perturbed, measured or not: a set."""
    perturbations = set(screen.perturbation)
    return {name for text in perturbations for name, _ in targets_of(text, screen.kind)}


def order_of_genes(screen, perturbed):
    """Column numbers (N,), the perturbed genes first, then by falling dispersion."""
    training_rows = np.sort(np.concatenate(list(screen.training_groups().values())))
    dispersion = seurat_dispersion(screen.X, training_rows)
    rank = np.nan_to_num(dispersion, nan=-np.inf)
    rank[np.isin(screen.genes, list(perturbed))] = np.inf
    return np.argsort(-rank, kind="stable")


def describe_genes(screen, asked=(), n=5000):
    """What is known of a screen's genes, or of those that are asked for, in lines for a person.

    screen: with all that it measures; n: how many would be kept.
    """
    targets = perturbed_targets(screen)
    order = screen.genes[order_of_genes(screen, targets)]
    number = {gene: i + 1 for i, gene in enumerate(order)}
    if asked:
        return [describe_gene(gene, targets, number, n) for gene in asked]
    measured = sorted(targets & number.keys())
    unmeasured = sorted(targets - number.keys())
    variable = [gene for gene in order if gene not in targets]
    lines = []
    if screen.kind == "gene":
        lines += [
            f"{len(measured):,} perturbed genes are measured: {', '.join(measured)}",
            f"{len(unmeasured):,} are not: {', '.join(unmeasured)}",
        ]
    return [
        *lines,
        f"{len(order):,} genes are measured, of which --genes {n} keeps {min(n, len(order)):,}",
        f"the most variable first: {some(variable, 20)}",
    ]


def describe_gene(gene, targets, number, n):
    """What is known of one gene, in a line. number: {gene: its place among all measured}."""
    perturbed = "perturbed" if gene in targets else "not perturbed"
    if gene in number:
        kept = "kept" if number[gene] <= n else "not kept"
        return f"{gene}: {perturbed}, measured, {kept} ({number[gene]:,} of {len(number):,})"
    near = "" if gene in targets else did_you_mean(gene, [*number, *targets])
    return f"{gene}: {perturbed}, not measured{near}"


def take_genes(screen, columns):
    """The screen with some of its genes, by column number, in that order."""
    parts = (block[:, columns] for block in blocks(screen.X))
    X = stacked(parts, screen.X.nnz, len(columns))
    return replace(screen, X=X, genes=screen.genes[columns], var_names=screen.var_names[columns])
