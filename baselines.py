"""What a model must beat. Each baseline is a function of a screen that returns a predictor:

    predictor(perturbation, cell_type, x0) -> cells (n, N), or None where the baseline does not apply

x0 (n, N) are control cells of that type, dense log1p. All but `control` predict a shift of the mean, and all turn it into cells in
one way, `shifted`. Only training conditions are looked at. N genes, Q training conditions.
"""
from functools import lru_cache

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import pdist

import data


def shifted(x0, shift):
    """Control cells x0 (n, N) moved by a shift, (N,) or each by its own (n, N): zeros stay zero, nothing goes below zero.

    So a gene's mean moves by the shift times the fraction of cells expressing it. Of the ways that were tried (the whole mean shift laid on the
    expressing cells, or on all cells) this one makes the baselines strongest: rare genes, whose mean shifts are mostly noise, hardly move.
    """
    return np.where(x0 > 0, np.maximum(x0 + shift, 0), 0).astype(np.float32)


def mean_shifts(screen):
    """{(perturbation, cell type): mean expression minus that of the type's controls (N,)} of the training conditions."""
    mean = {key: np.asarray(screen.X[rows].mean(0)).ravel() for key, rows in screen.training_groups().items()}
    return {key: m - mean[data.CONTROL, key[1]] for key, m in mean.items() if key[0] != data.CONTROL}


def _targets(perturbation, screen):
    return dict(data.targets_of(perturbation, screen.kind))


def _nearest(screen, keys, perturbation, cell_type):
    """Those of the training conditions that share a target: with the most in common, then with the fewest others, then at the nearest
    dose, then in the same cell type, as far as there are such."""
    wanted = _targets(perturbation, screen)

    def distance(key):
        its = _targets(key[0], screen)
        dose = sum(abs(np.log(max(wanted[t], 1e-12) / max(its[t], 1e-12))) for t in wanted.keys() & its.keys())
        return -len(wanted.keys() & its.keys()), len(its.keys() - wanted.keys()), round(dose, 6), key[1] != cell_type

    near = {key: distance(key) for key in keys if wanted.keys() & _targets(key[0], screen).keys()}
    return [key for key in near if near[key] == min(near.values())]


def in_type(keys, cell_type):
    """The conditions of a cell type; all of them, if it has none."""
    return [key for key in keys if key[1] == cell_type] or list(keys)


def control(screen):
    """The control cells themselves: a perturbation does nothing."""
    return lambda perturbation, cell_type, x0: x0


def perturbed_mean(screen):
    """Every perturbation does what the average training perturbation did in that cell type (in all types, if none there)."""
    shift = mean_shifts(screen)
    return lambda perturbation, cell_type, x0: (
        shifted(x0, np.mean([shift[key] for key in in_type(shift, cell_type)], 0)) if shift else None)


def matching_mean(screen):
    """The average effect of the nearest training conditions. Applies where any target was seen."""
    shift = mean_shifts(screen)

    def predict(perturbation, cell_type, x0):
        near = _nearest(screen, shift, perturbation, cell_type)
        return shifted(x0, np.mean([shift[key] for key in near], 0)) if near else None
    return predict


def additive(screen):
    """A combination does the sum of what its targets do alone, in that cell type (on average over the others, for one not seen there).

    Applies to two or more targets, each of them seen alone.
    """
    shift = mean_shifts(screen)

    def predict(perturbation, cell_type, x0):
        alone = [[key for key in shift if key[0] == target] for target in _targets(perturbation, screen)]
        if len(alone) < 2 or not all(alone):
            return None
        return shifted(x0, sum(np.mean([shift[key] for key in in_type(keys, cell_type)], 0) for keys in alone))
    return predict


def linear(screen, components=10, ridge=0.1):
    """Ridge regression between gene and perturbation embeddings (Ahlmann-Eltze et al. 2025): shift = G K p + b.

    G (N, components): the genes' principal scores in the training condition means; p, a target's own row of it (summed over several);
    K = (G'G + ridge I)^-1 G' (Y - b) P' (P P' + ridge I)^-1 with the shifts Y (N, Q), their mean b, and P (components, Q).
    Applies where every target is a measured gene.
    """
    shift, place = mean_shifts(screen), {g: i for i, g in enumerate(screen.genes)}
    known = [key for key in shift if screen.kind == "gene" and set(_targets(key[0], screen)) <= set(place)]
    if len(known) < 2:
        return lambda perturbation, cell_type, x0: None
    means = np.stack([np.asarray(screen.X[screen.groups[key]].mean(0)).ravel() for key in known], 1).astype(np.float64)
    U, scale, _ = np.linalg.svd(means - means.mean(0), full_matrices=False)
    G = (U * scale)[:, :components]
    embed = lambda perturbation: sum(G[place[t]] for t in _targets(perturbation, screen))                     # noqa: E731
    Y, P, penalty = np.stack([shift[key] for key in known], 1), np.stack([embed(p) for p, _ in known], 1), ridge * np.eye(G.shape[1])
    b = Y.mean(1)
    K = np.linalg.solve(G.T @ G + penalty, G.T @ (Y - b[:, None]) @ P.T) @ np.linalg.inv(P @ P.T + penalty)
    return lambda perturbation, cell_type, x0: (
        shifted(x0, G @ K @ embed(perturbation) + b) if set(_targets(perturbation, screen)) <= set(place) else None)


def within_covariance(screen, groups, columns=slice(None)):
    """Covariance (N, N) of the genes around their own group's mean, pooled over groups, and the number of cells; some columns of it only.

    Dense blocks of at most 4,096 cells: memory is N^2, not cells x N.
    """
    S, cells = 0.0, 0
    for rows in groups:
        mean = np.asarray(screen.X[rows].mean(0), np.float32).ravel()
        for block in np.array_split(rows, max(1, -(-len(rows) // 4096))):
            Z = screen.dense(block) - mean
            S = S + Z.T @ Z[:, columns]
        cells += len(rows)
    return np.asarray(S, np.float64) / cells, cells


def knock_downs(screen, names, sd):
    """What training perturbations did to the means, in units of the genes' sd (N,): how far each gene of names (P,) fell (Q, P), what that moved
    (Q, N), and the error variance of this (Q, 1). Of the conditions whose targets are all among the names."""
    shift, place = mean_shifts(screen), {name: i for i, name in enumerate(names)}
    level = {t: np.asarray(screen.X[screen.controls(t)].mean(0)).ravel() / sd for t in screen.cell_types}
    at = [int(np.flatnonzero(screen.genes == name)[0]) for name in names]
    used = {key: [place[t] for t in _targets(key[0], screen)] for key in shift if set(_targets(key[0], screen)) <= set(place)}
    knock = [np.bincount(nodes, -level[t][np.take(at, nodes)], minlength=len(names)) for (_, t), nodes in used.items()]
    # The 0.003 is the model's own error: effects are not linear, so no mean is known to better than 0.05 sd.
    noise = [1 / len(screen.groups[key]) + 1 / len(screen.controls(key[1])) + 0.003 for key in used]
    tables = ((knock, len(names)), ([shift[key] / sd for key in used], len(sd)), (noise, 1))
    return [np.reshape(table, (-1, width)) for table, width in tables]


def linear_knockout(screen, ridge=0.1):
    """Ridge regression of all genes on the perturbable ones in control cells; then the target is set to zero.

    Shift of gene j when target p of mean m falls to 0: -m B[j, p], B = S[:, P] (S[P, P] + ridge I)^-1, S the controls'
    covariance around each cell type's mean. Applies where every target is a measured gene.
    """
    if screen.kind != "gene":
        return lambda perturbation, cell_type, x0: None
    names = sorted({g for p, _ in screen.groups for g, _ in data.targets_of(p, "gene")} & set(screen.genes))
    P = [int(np.flatnonzero(screen.genes == g)[0]) for g in names]
    mean = {t: np.asarray(screen.X[screen.controls(t)].mean(0)).ravel() for t in screen.cell_types}
    S, _ = within_covariance(screen, map(screen.controls, screen.cell_types), P)
    B = S @ np.linalg.inv(S[P] + ridge * np.eye(len(P))) if P else S

    def predict(perturbation, cell_type, x0):
        targets = _targets(perturbation, screen)
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


def laot_map(screen, components=20, cells=512, seed=0):
    """The linear map from controls to the cells of the nearest training conditions (of all in that cell type, where no target was seen),
    by LAOT: the pairing is the map's own.

    In the controls' principal components with a constant beside them, on at most `cells` cells a side; each control is shifted by
    what the map moves it.
    """
    conditions = [key for key in screen.training_groups() if key[0] != data.CONTROL]

    @lru_cache(maxsize=None)                                               # unseen targets share their source
    def fit(keys):
        rng = np.random.default_rng(seed)
        ends = rng.permutation(np.concatenate([screen.groups[key] for key in keys]))[:cells]
        starts = [rng.permutation(screen.controls(t))[np.arange(n) % len(screen.controls(t))]
                  for t, n in zip(*np.unique(screen.cell_type[ends], return_counts=True))]
        x0, xT = (screen.dense(rows).astype(np.float64) for rows in (np.concatenate(starts), ends))
        centre, axes = x0.mean(0), np.linalg.svd(x0 - x0.mean(0), full_matrices=False)[2][:min(components, len(x0) // 5)].T
        start, end = (np.column_stack([(x - centre) @ axes, np.ones(len(x))]) for x in (x0, xT))
        W = laot(start, end)[1]
        return centre, axes, W, xT.mean(0) - x0.mean(0)

    def predict(perturbation, cell_type, x0):
        keys = _nearest(screen, conditions, perturbation, cell_type) or in_type(conditions, cell_type)
        if not keys:
            return None
        centre, axes, W, shift = fit(tuple(keys))
        start = np.column_stack([(x0 - centre) @ axes, np.ones(len(x0))])
        moved = (start @ W.T - start)[:, :-1] @ axes.T
        return shifted(x0, moved + shift - shift @ axes @ axes.T)          # beside the components, cells move as their mean does
    return predict


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


BASELINES = {"control": control, "perturbed mean": perturbed_mean, "matching mean": matching_mean, "additive": additive,
             "linear": linear, "linear knock-out": linear_knockout, "LAOT": laot_map}
