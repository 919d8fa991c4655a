"""What a model must beat. Each baseline is a function of a screen that returns a predictor:

    predictor(perturbation, cell_type, x0) -> cells (n, N), or None where the baseline does not apply

x0 (n, N) are control cells of that type, dense log1p. A baseline that only knows a mean turns it into cells in one way, `shifted`.
Only training conditions are looked at. `laot`, a solver for pairs without a screen, is not in the table yet.
"""
import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import pdist

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


def matching_mean(screen):
    """The average effect of the training conditions that share a target: with the most targets in common, then with the fewest others,
    then at the nearest dose, then in the same cell type, as far as there are such. Applies where any target was seen."""
    mean = _means(screen)
    shift = {key: m - mean[data.CONTROL, key[1]] for key, m in mean.items() if key[0] != data.CONTROL}
    targets = {p: dict(data.targets_of(p, screen.kind)) for p, _ in shift}

    def distance(wanted, cell_type, key):
        its = targets[key[0]]
        dose = sum(abs(np.log(max(wanted[t], 1e-12) / max(its[t], 1e-12))) for t in wanted.keys() & its.keys())
        return -len(wanted.keys() & its.keys()), len(its.keys() - wanted.keys()), round(dose, 6), key[1] != cell_type

    def predict(perturbation, cell_type, x0):
        wanted = dict(data.targets_of(perturbation, screen.kind))
        near = {key: distance(wanted, cell_type, key) for key in shift if wanted.keys() & targets[key[0]].keys()}
        return shifted(x0, np.mean([shift[key] for key in near if near[key] == min(near.values())], 0)) if near else None
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


def rip_constant(x):
    """The exact (2, delta)-RIP constant of cells x (n, d): the smallest delta with |sum v_i x_i|^2 within (1 +- delta) |v|^2
    for all v with two entries: from the eigenvalues of the 2 x 2 Gram matrix of every pair of cells."""
    G = x @ x.T
    i, j = np.triu_indices(len(x), 1)
    middle, half = (G[i, i] + G[j, j]) / 2, np.hypot((G[i, i] - G[j, j]) / 2, G[i, j])
    return max((middle + half).max() - 1, 1 - (middle - half).min())


def trackable_displacement(x):
    """How far cells x (n, d) may move for the true pairing to stay recoverable: three sufficient bounds on L t, rising.

    sqrt((1 - delta) / 2n)   Jafari et al. 2026: L times their Delta (trackable is t < Delta; their text has ">" for both regimes)
    sqrt((1 - delta) / 2)    does not shrink with n: a cell that moved less than half the smallest distance between two cells is
                             nearer to its own start than to any other, and that distance is at least sqrt(2 (1 - delta))
    half that distance       says something even where delta exceeds 1, in few dimensions
    """
    room = max(0.0, 1 - rip_constant(x))
    return np.sqrt(room / (2 * len(x))), np.sqrt(room / 2), pdist(x).min() / 2


BASELINES = {"control": control, "perturbed mean": perturbed_mean, "matching mean": matching_mean, "linear knock-out": linear_knockout}
