"""The metrics: how alike predicted cells x (n, N) and measured cells y (m, N) are.

Each a pure function of log1p cells, which are not changed; its docstring has formula and source.
"""

import numpy as np
import scipy

BLOCK = 1024  # rows of distances at a time


# ---- Distances between populations ---------------------------------------------------------------


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
            block = values.sum(dtype=np.float64)
            if within:
                block -= values.trace(offset=start, dtype=np.float64)
            total[i] += block
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


# ---- Correlations, overlaps and ranks ------------------------------------------------------------


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

    The controls', or that of the training perturbations: of their means, so that each weighs the
    same however many cells it has (Systema's reference, Vinas Torne et al. 2025).
    """
    return correlation(x.mean(0) - reference, y.mean(0) - reference)


def de_overlap(x, y, controls, k):
    """Share of the k genes of largest Welch |t| against the controls that x and y have in common.

    Each cells, or their `moments`.
    """
    top_x = np.argsort(-welch_t(x, controls), kind="stable")[:k]
    top_y = np.argsort(-welch_t(y, controls), kind="stable")[:k]
    return len(np.intersect1d(top_x, top_y)) / len(top_x)


def discrimination(x, y, others, without=()):
    """How well the mean of x points to y among other conditions, means `others` (Q, N).

    1 - (share of the others that are nearer in L1; ties half). 1: y is the nearest; 0.5: chance.
    The Virtual Cell Challenge's score, with the share of the others and not of all. NaN without
    others. without: columns that do not count. The challenge leaves out the target gene, which
    alone would tell a knock-down from the others.
    """
    if not len(others):
        return float("nan")
    far = np.delete(np.abs(others - x.mean(0)), without, 1).sum(1)
    own = np.delete(np.abs(y.mean(0) - x.mean(0)), without).sum()
    return float(1 - np.mean((far < own) + 0.5 * (far == own)))


def centroid_accuracy(x, y, others):
    """The share of other conditions, means `others` (Q, N), that are farther from x than y is.

    Euclidean distances of means (Systema, Vinas Torne et al. 2025). 0.5 is chance, and a tie does
    not count. NaN without others.
    """
    if not len(others):
        return float("nan")
    far = ((others - x.mean(0)) ** 2).sum(1)
    own = ((y.mean(0) - x.mean(0)) ** 2).sum()
    return float(np.mean(far > own))


# ---- Means, genes weighted -----------------------------------------------------------------------


def gene_weights(t):
    """How much each gene weighs (N,): ((|t| - min) / (max - min))^2, divided by their sum.

    t (N,): Welch's |t| of a condition's measured cells against the cells of the other perturbations
    (Mejia et al. 2025): what sets this perturbation apart. An infinite one counts as the largest
    finite one. NaN where all are the same.
    """
    t = np.minimum(t, t[np.isfinite(t)].max(initial=0))
    with np.errstate(invalid="ignore"):
        weights = ((t - t.min()) / np.ptp(t)) ** 2
        return weights / weights.sum()


def wmse(x, y, weights):
    """Weighted mean squared error of the means of x and y: sum_i w_i (x_i - y_i)^2.

    weights (N,): of `gene_weights` (Mejia et al. 2025).
    """
    return float(weights @ (x.mean(0) - y.mean(0)) ** 2)


def weighted_r2(x, y, reference, weights):
    """R^2 of the mean changes of x, for those of y, from a reference mean (N,), genes weighted.

    1 - sum_i w_i (D_i - d_i)^2 / sum_i w_i (D_i - D)^2, where d and D are the changes of x and of y
    and D without i is their weighted mean (Mejia et al. 2025). The reference is the mean of the
    perturbations: from the controls' mean, what all perturbations share would count as right.
    """
    change = y.mean(0) - reference
    variance = weights @ (change - weights @ change) ** 2
    return float(1 - wmse(x, y, weights) / variance) if variance > 0 else float("nan")


# ---- Which genes change, and the gap closed ------------------------------------------------------


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
        t = scipy.stats.ttest_ind_from_stats(*of_x, *of_y, equal_var=False).statistic
    return np.nan_to_num(np.abs(t), posinf=np.inf)


def gap_closed(score, control, floor):
    """1 - (score - floor) / (control - floor).

    0: no better than the controls; 1: as close as another half of the measured cells.
    """
    if control > floor:
        return 1 - (score - floor) / (control - floor)
    return float("nan")
