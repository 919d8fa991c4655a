"""LAOT: linear alternating optimal transport (Jafari et al. 2026)."""

from functools import cache

import numpy as np
from scipy.optimize import linear_sum_assignment

from rivals.shifts import in_type, nearest, shifted
from screens import CONTROL


def laot(x0, xT, iterations=10):
    """Find the order in which cells x0 (n, d) became xT (n, d) = W x0, and the map W (d, d).

    From W = I, in turn: the assignment of W x0 to xT that is cheapest in squared distance (of the
    largest inner products: the sum of squared lengths is the same for every assignment), and the
    least-squares W. Stops at a fixed point. Returns the order, xT[i] coming from x0[order[i]], and
    W. Raises ValueError for unequal shapes.
    """
    if x0.shape != xT.shape:
        raise ValueError(
            f"LAOT pairs equal numbers of cells in the same genes, not {x0.shape} and {xT.shape}"
        )
    inverse = np.linalg.pinv(x0)
    moved = x0
    order = None
    for _ in range(iterations):
        before = order
        order = linear_sum_assignment(xT @ moved.T, maximize=True)[1]
        if before is not None and np.array_equal(before, order):
            break
        W = (inverse[:, order] @ xT).T  # pinv(x0[order]) xT, transposed
        moved = x0 @ W.T
    return order, W


def with_constant(scores):
    """Scores (n, k) with a column of ones beside them."""
    return np.column_stack([scores, np.ones(len(scores))])


def laot_map(screen, components=20, cells=512, seed=0):
    """Predict by the linear map from controls to the cells of the nearest training conditions.

    (Of all in that cell type, where no target was seen.) LAOT finds the map and the pairing at
    once, in the controls' principal components with a constant beside them, on at most `cells`
    cells a side. Each control is shifted by what the map moves it.
    """
    conditions = [key for key in screen.training_groups() if key[0] != CONTROL]

    @cache  # unseen targets share their source
    def fit(keys):
        rng = np.random.default_rng(seed)
        rows = np.concatenate([screen.groups[key] for key in keys])
        ends = rng.permutation(rows)[:cells]
        starts = []
        for cell_type, n in zip(
            *np.unique(screen.cell_type[ends], return_counts=True), strict=True
        ):
            controls = screen.controls(cell_type)
            starts.append(rng.permutation(controls)[np.arange(n) % len(controls)])
        x0 = screen.dense(np.concatenate(starts)).astype(np.float64)
        xT = screen.dense(ends).astype(np.float64)
        centre = x0.mean(0)
        directions = np.linalg.svd(x0 - centre, full_matrices=False)[2]
        axes = directions[: min(components, len(x0) // 5)].T
        start = with_constant((x0 - centre) @ axes)
        end = with_constant((xT - centre) @ axes)
        W = laot(start, end)[1]
        return centre, axes, W, xT.mean(0) - x0.mean(0)

    def predict(perturbation, cell_type, x0):
        near = nearest(screen, conditions, perturbation, cell_type)
        keys = near or in_type(conditions, cell_type)
        if not keys:
            return None
        centre, axes, W, shift = fit(tuple(keys))
        start = with_constant((x0 - centre) @ axes)
        moved = (start @ W.T - start)[:, :-1] @ axes.T
        beside = shift - shift @ axes @ axes.T  # there cells move as their mean does
        return shifted(x0, moved + beside)

    return predict
