"""What a model must beat. Each baseline is a function of a screen that returns a predictor:

    predictor(perturbation, cell_type, x0) -> cells (n, N), or None where the baseline does not apply

x0 (n, N) are control cells of that type, dense log1p. A baseline that only knows a mean turns it into cells in one way, `shifted`.
Only training conditions are looked at. `laot`, a solver for pairs without a screen, is not in the table yet.
"""
import numpy as np
from scipy.optimize import linear_sum_assignment

import data


def shifted(x0, shift):
    """Control cells moved by a mean shift (N,): zeros stay zero, nothing goes below zero.

    A gene's non-zero values move by shift / (fraction expressing), so that its mean moves by the shift unless it is clipped.
    """
    on = x0 > 0
    return np.where(on, np.maximum(x0 + shift / np.maximum(on.mean(0), 1 / len(x0)), 0), 0).astype(np.float32)


def _means(screen):
    """{(perturbation, cell type): mean expression (N,)} of the training groups."""
    return {key: np.asarray(screen.X[rows].mean(0)).ravel() for key, rows in screen.training_groups().items()}


def control(screen):
    """The control cells themselves: a perturbation does nothing."""
    return lambda perturbation, cell_type, x0: x0


def perturbed_mean(screen):
    """Every perturbation does what the average training perturbation did in that cell type (in all types, if none there)."""
    mean = _means(screen)
    shift = {key: m - mean[data.CONTROL, key[1]] for key, m in mean.items() if key[0] != data.CONTROL}

    def predict(perturbation, cell_type, x0):
        here = [s for key, s in shift.items() if key[1] == cell_type] or list(shift.values())
        return shifted(x0, np.mean(here, 0)) if here else None
    return predict


def linear_knockout(screen, ridge=0.1):
    """Ridge regression of all genes on the perturbable ones in control cells; then the target is set to zero.

    Shift of gene j when target p of mean m falls to 0: -m B[j, p], B = S[:, P] (S[P, P] + ridge I)^-1, S the controls'
    covariance around each cell type's mean. Applies where every target is a measured gene.
    """
    if screen.kind != "gene":
        return lambda perturbation, cell_type, x0: None
    names = sorted({g for p, _ in screen.groups for g, _ in data.targets_of(p, "gene")} & set(screen.genes))
    P = [int(np.flatnonzero(screen.genes == g)[0]) for g in names]
    S, cells = np.zeros((len(screen.genes), len(P))), 0
    mean = {}
    for t in screen.cell_types:
        x = screen.dense(screen.controls(t))
        mean[t] = x.mean(0)
        S += (x - mean[t]).T @ (x - mean[t])[:, P]
        cells += len(x)
    B = S / cells @ np.linalg.inv(S[P] / cells + ridge * np.eye(len(P))) if P else S

    def predict(perturbation, cell_type, x0):
        targets = [g for g, _ in data.targets_of(perturbation, "gene")]
        if not set(targets) <= set(names):
            return None
        return shifted(x0, -sum(mean[cell_type][P[i]] * B[:, i] for i in map(names.index, targets)))
    return predict


def laot(x0, xT, iterations=10):
    """Linear alternating optimal transport: cells x0 (n, d) became xT (n, d) = W x0 in an unknown order (Jafari et al. 2026).

    From W = I, in turn: the assignment of W x0 to xT that is cheapest in squared distance (of the largest inner products: the sum of
    squared lengths is the same for every assignment), and the least-squares W. Returns the order, xT[i]
    coming from x0[order[i]], and W (d, d). Stops at a fixed point. Raises ValueError for unequal shapes.
    """
    if x0.shape != xT.shape:
        raise ValueError(f"LAOT pairs equal numbers of cells in the same genes, not {x0.shape} and {xT.shape}")
    inverse, moved, order = np.linalg.pinv(x0), x0, None
    for _ in range(iterations):
        before, order = order, linear_sum_assignment(xT @ moved.T, maximize=True)[1]
        if before is not None and np.array_equal(before, order):
            break
        W = (inverse[:, order] @ xT).T                                     # pinv(x0[order]) xT, transposed
        moved = x0 @ W.T
    return order, W


BASELINES = {"control": control, "perturbed mean": perturbed_mean, "linear knock-out": linear_knockout}
