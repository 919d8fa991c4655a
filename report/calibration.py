"""What a metric is worth on a screen: its positive control, its range and its ceiling.

And a test whether a perturbation does anything. Cells x (n, N) are log1p; evaluate.py applies
these functions to its metrics.
"""

import numpy as np
import scipy

from report.metrics import moments

PERMUTATIONS = 999


def interpolated_duplicate(half, rest, mean):
    """A positive control for scores of means: measured where genes differ, the average elsewhere.

    The mean of each gene is alpha * (mean of the half) + (1 - alpha) * mean, where alpha is
    1 - adjusted p (Benjamini and Hochberg) of Welch's test between the half and the cells of the
    other perturbations (Miller et al. 2025). half (n, N): measured cells, not those that are scored
    against; rest: the `moments` of the other perturbations' cells; mean (N,): of the training
    perturbations.

    Returns the half's cells moved to that mean (n, N), for metrics of means; the source has means
    only. For metrics of cells take the half as it is: the noise of its mean does not count against
    it in unbiased distances, and moved cells may be below 0. Taking genes that do not differ from
    cells of the perturbed mean was tried: they are farther from the measured cells than the half is
    (E 0.18 and 0.05 on A172).
    """
    of_half = moments(half)
    with np.errstate(divide="ignore", invalid="ignore"):
        p = scipy.stats.ttest_ind_from_stats(*of_half, *rest, equal_var=False).pvalue
    alpha = 1 - scipy.stats.false_discovery_control(np.nan_to_num(p, nan=1.0))
    return half + (1 - alpha) * (mean - of_half[0])


def dynamic_range(negative, positive, perfect):
    """How far a positive control is on the way from a negative one (0) to a perfect score (1).

    The dynamic range fraction of Miller et al. 2025. NaN where the negative control is perfect.
    """
    if negative == perfect:
        return float("nan")
    return float((positive - negative) / (perfect - negative))


def full_depth(r):
    """What two halves that correlate at r would correlate at if each were as large as the whole.

    2 r / (1 + r) (Spearman 1910, Brown 1910); NaN where r is not above 0. r: a number or an array.
    """
    r = np.where(np.asarray(r) > 0, r, np.nan)
    return 2 * r / (1 + r)


def permutation_p(distances, n, rng, permutations=PERMUTATIONS):
    """The p-value of a permutation test that the first n cells are drawn as the other m are.

    distances (n + m, n + m): between all cells. The statistic is the unbiased squared E-distance.
    The groups as they are count as one of the permutations, so p is never 0 (Phipson and Smyth
    2010).
    """
    distances = np.asarray(distances, np.float64)
    m = len(distances) - n
    first = np.arange(n + m) < n
    chosen = np.vstack([first, rng.permuted(np.tile(first, (permutations, 1)), axis=1)])
    chosen = chosen.astype(np.float64)
    within = ((chosen @ distances) * chosen).sum(1)
    between = chosen @ distances.sum(1) - within
    others = distances.sum() - 2 * between - within
    energy = 2 * between / (n * m) - within / (n * (n - 1)) - others / (m * (m - 1))
    rounding = 1e-9 * distances.mean()  # the same choice, in another order, is as far
    return float(np.mean(energy >= energy[0] - rounding))
