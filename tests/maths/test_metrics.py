"""The metrics and what they are worth, against independent implementations and closed forms.

Of report/metrics.py and report/calibration.py.
"""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import cdist

from report import metrics
from report.calibration import (
    dynamic_range,
    full_depth,
    interpolated_duplicate,
    permutation_p,
)
from report.metrics import (
    activation_pcc,
    centroid_accuracy,
    correlation,
    de_overlap,
    discrimination,
    e_distance,
    emd,
    gamma_by_median,
    gap_closed,
    gene_weights,
    mmd2,
    moments,
    pearson_delta,
    squared_distances,
    two_sample,
    wasserstein,
    weighted_r2,
    welch_t,
    wmse,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def mean_over_pairs(kernel, x, y):
    """Mean of kernel(u, v) over all pairs of a row of x and one of y."""
    return np.mean([kernel(u, v) for u in x for v in y])


def mean_over_distinct(kernel, x):
    """Mean of kernel(u, v) over all pairs of two different rows of x."""
    n = len(x)
    return np.mean([kernel(x[i], x[j]) for i in range(n) for j in range(n) if i != j])


def length(u, v):
    return np.sqrt(((u - v) ** 2).sum())


def gauss(u, v):
    return np.exp(-0.7 * ((u - v) ** 2).sum())


def mmd_of_fixed_width(x, y):
    return mmd2(x, y, 0.3)


DISTANCES = pytest.mark.parametrize("distance", [e_distance, emd, mmd_of_fixed_width])


# ---- Distances between populations ---------------------------------------------------------------


def test_squared_distances_are_those_of_scipy(rng):
    x = rng.normal(size=(9, 4))
    assert np.allclose(squared_distances(x, x[:5]), cdist(x, x[:5]) ** 2)
    assert (squared_distances(x, x) >= 0).all()


def distances_to_itself(a):
    """By how much the mean distance grows when a's n zero distances to itself are left out."""
    total = cdist(a[:, None], a[:, None]).sum()
    n = len(a)
    return total / (n * (n - 1)) - total / n**2


def test_e_distance_is_scipys_without_the_distances_of_cells_to_themselves(rng):
    """SciPy keeps the n zero distances in its means over n^2 pairs; ours leaves them out."""
    x = rng.normal(size=30)
    y = rng.normal(1, 2, size=20)
    biased = stats.energy_distance(x, y) ** 2
    expected = biased - distances_to_itself(x) - distances_to_itself(y)
    assert e_distance(x[:, None], y[:, None], squared=True) == pytest.approx(expected)
    assert e_distance(x[:, None], y[:, None]) == pytest.approx(expected**0.5)


def test_the_energy_statistic_is_unbiased(rng):
    """Over equal populations its mean, before the root, is 0 within 5 standard errors."""
    samples = rng.normal(size=(200, 10, 4))
    found = np.array([two_sample(x[:5], x[5:], [np.sqrt])[0] for x in samples])
    assert abs(found.mean()) < 5 * found.std() / np.sqrt(len(found))


def test_mmd2_is_unbiased(rng):
    """Over equal populations its mean is 0 within 5 standard errors (Gretton 2012, Eq. 3)."""
    samples = rng.normal(size=(300, 10, 4))
    found = np.array([mmd2(x[:5], x[5:], 0.2) for x in samples])
    assert abs(found.mean()) < 5 * found.std() / np.sqrt(len(found))


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 50), st.integers(0, 99))
def test_distances_in_blocks_equal_a_double_loop(n, m, block, seed):
    """However many rows are taken at a time; a cell's distance to itself never counts."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    y = rng.normal(0.5, 1, size=(m, 3))
    energy = 2 * mean_over_pairs(length, x, y)
    energy -= mean_over_distinct(length, x) + mean_over_distinct(length, y)
    similarity = mean_over_distinct(gauss, x) + mean_over_distinct(gauss, y)
    similarity -= 2 * mean_over_pairs(gauss, x, y)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "BLOCK", block)
        assert e_distance(x, y, squared=True) == pytest.approx(max(0, energy), abs=1e-6)
        assert mmd2(x, y, 0.7) == pytest.approx(similarity)


@settings(deadline=None)
@given(st.integers(2, 30), st.integers(2, 30), st.integers(0, 99))
def test_emd_is_scipys_wasserstein_distance_of_every_gene_whatever_the_sizes(n, m, seed):
    rng = np.random.default_rng(seed)
    x = rng.exponential(size=(n, 3)) * (rng.random((n, 3)) < 0.6)
    y = rng.exponential(size=(m, 3)) * (rng.random((m, 3)) < 0.6)
    by_gene = [stats.wasserstein_distance(a, b) for a, b in zip(x.T, y.T, strict=True)]
    assert np.allclose(wasserstein(x, y), by_gene, atol=1e-9)
    assert emd(x, y) == pytest.approx(np.mean(by_gene), abs=1e-9)


@pytest.mark.parametrize("m", [7, 11])
def test_wasserstein_does_not_change_its_input(rng, m):
    x = rng.exponential(size=(11, 6)).astype(np.float32)
    y = rng.exponential(size=(m, 6)).astype(np.float32)
    before = x.copy(), y.copy()
    wasserstein(x, y)
    assert np.array_equal(before[0], x)
    assert np.array_equal(before[1], y)


@DISTANCES
def test_a_distance_does_not_depend_on_the_order_of_cells_or_samples(rng, distance):
    x = rng.exponential(size=(40, 5))
    y = rng.exponential(size=(30, 5))
    assert distance(x[::-1], rng.permutation(y)) == pytest.approx(distance(x, y))
    assert distance(y, x) == pytest.approx(distance(x, y))


@DISTANCES
def test_equal_cells_are_at_no_distance(rng, distance):
    """An unbiased MMD^2 is below 0 there."""
    x = rng.exponential(size=(40, 5))
    assert distance(x, x[::-1]) < 1e-7


@DISTANCES
def test_a_distance_grows_with_a_shift(rng, distance):
    x = rng.exponential(size=(150, 4))
    y = rng.exponential(size=(150, 4))
    far = [distance(x, y + shift) for shift in (0, 0.5, 1, 2)]
    assert far == sorted(far)
    assert far[1] > 0.02 + max(far[0], 0)


@DISTANCES
def test_nan_cells_do_not_score_as_perfect(distance):
    assert np.isnan(distance(np.full((3, 2), np.nan), np.ones((3, 2))))


def mean_kernel_of_normals(shift):
    """E exp(-0.4 Z^2) of Z ~ N(shift, 2): a Gaussian integral."""
    width = 1 + 4 * 0.4
    return np.exp(-0.4 * shift**2 / width) / np.sqrt(width)


def squared_e_distance(x, y):
    return e_distance(x, y, squared=True)


def mmd_of_width_04(x, y):
    return mmd2(x, y, 0.4)


# E |N(1, 2)|, a folded normal; E |N(0, 2)| is 2 / sqrt(pi).
FOLDED = 2 / np.sqrt(np.pi) * np.exp(-0.25) + 1 - 2 * stats.norm.cdf(-1 / np.sqrt(2))


@pytest.mark.parametrize(
    ("distance", "expected"),
    [
        (squared_e_distance, 2 * FOLDED - 4 / np.sqrt(np.pi)),
        (mmd_of_width_04, 2 * mean_kernel_of_normals(0) - 2 * mean_kernel_of_normals(1)),
        (emd, 1.0),
    ],
)
def test_distances_of_normals_are_the_closed_forms(rng, distance, expected):
    """N(0, 1) and N(1, 1), within 5 standard errors over 40 samples of 500."""
    x = rng.normal(size=(40, 500, 1))
    y = rng.normal(1, 1, size=(40, 500, 1))
    found = np.array([distance(a, b) for a, b in zip(x, y, strict=True)])
    assert abs(found.mean() - expected) < 5 * found.std() / np.sqrt(40) + 2e-3


def test_the_kernels_width_is_the_median_distance_of_distinct_cells(rng):
    x = rng.normal(size=(10, 4))
    distances = cdist(x, x, "sqeuclidean")[np.triu_indices(10, 1)]
    assert gamma_by_median(x) == pytest.approx(1 / np.median(distances))
    assert gamma_by_median(np.zeros((3, 2))) == 1


# ---- Correlations, overlaps and ranks ------------------------------------------------------------


def test_a_correlation_with_a_constant_is_undefined():
    assert correlation(np.arange(4), 2 - 3 * np.arange(4)) == pytest.approx(-1)
    assert np.isnan(correlation(np.ones(4), np.arange(4)))
    assert np.isnan(correlation(np.arange(4), np.ones(4)))


def test_pearson_delta_correlates_changes_from_the_reference(rng):
    x = rng.normal(size=(20, 30))
    y = rng.normal(size=(25, 30))
    reference = rng.normal(size=30)
    expected = stats.pearsonr(x.mean(0) - reference, y.mean(0) - reference).statistic
    assert pearson_delta(x, y, reference) == pytest.approx(expected)


def test_a_prediction_of_no_change_has_no_direction(rng):
    x = rng.normal(size=(20, 30))
    y = rng.normal(size=(25, 30))
    assert np.isnan(pearson_delta(x, y, x.mean(0)))


def test_activation_pcc_correlates_the_fractions_of_expressing_cells():
    """The paper's Table 2. Fractions of x: 1/4, 1/4, 1; of y: 1/2, 1/4, 1."""
    x = np.array([[1, 0, 3.0], [0, 0, 1], [0, 2, 1], [0, 0, 1]])
    y = np.array([[1, 0, 3.0], [0, 0, 1], [0, 2, 1], [1, 0, 1]])
    expected = np.corrcoef([0.25, 0.25, 1], [0.5, 0.25, 1])[0, 1]
    assert activation_pcc(x, y) == pytest.approx(expected)


def test_de_overlap_counts_shared_top_genes(rng):
    controls = rng.normal(size=(200, 40))

    def raised(genes):
        return rng.normal(size=(60, 40)) + 3 * np.isin(np.arange(40), genes)

    assert de_overlap(raised(range(10)), raised(range(10)), controls, 10) == 1
    assert de_overlap(raised(range(10)), raised(range(6, 16)), controls, 10) == 0.4
    assert de_overlap(raised(range(3)), raised(range(3)), controls, 50) == 1  # of the 40 there are


def test_discrimination_is_the_share_of_other_conditions_that_are_farther(rng):
    others = rng.normal(size=(9, 5))
    x = rng.normal(size=(6, 5))
    y = rng.normal(size=(6, 5))
    own = np.abs(y.mean(0) - x.mean(0)).sum()
    farther = sum(np.abs(other - x.mean(0)).sum() > own for other in others)
    assert discrimination(x, y, others) == pytest.approx(farther / 9)


def test_discrimination_is_1_at_the_truth_and_0_at_another_condition(rng):
    others = rng.normal(size=(9, 5))
    y = rng.normal(size=(6, 5))
    assert discrimination(y, y, others) == 1
    assert discrimination(others[:3] + 100, y, others + 100) == 0


def test_discrimination_is_chance_where_nothing_can_be_told_apart(rng):
    x = rng.normal(size=(6, 5))
    y = rng.normal(size=(6, 5))
    assert discrimination(x, y, np.tile(y.mean(0), (4, 1))) == 0.5
    assert np.isnan(discrimination(x, y, ()))


def test_discrimination_can_leave_genes_out(rng):
    """As if they had not been measured; ties still count half."""
    others = rng.normal(size=(9, 5))
    x = rng.normal(size=(6, 5))
    y = rng.normal(size=(6, 5))
    kept = [0, 1, 4]
    alone = discrimination(x[:, kept], y[:, kept], others[:, kept])
    assert discrimination(x, y, others, [2, 3]) == alone
    assert discrimination(x, y, np.tile(y.mean(0), (4, 1)), [2, 3]) == 0.5


def test_a_prediction_that_knows_the_target_alone_is_at_chance_without_it(rng):
    """Every perturbation silences its own gene, and nothing else happens."""
    means = 3 - 3 * np.eye(8)
    scores = [discrimination(m[None], m[None], np.delete(means, i, 0)) for i, m in enumerate(means)]
    without = [
        discrimination(m[None], np.full((1, 8), 3.0), np.full((7, 8), 3.0), [i])
        for i, m in enumerate(means)
    ]
    assert scores == [1] * 8
    assert without == [0.5] * 8


def test_centroid_accuracy_is_the_share_of_others_that_are_farther_in_scipys_distances(rng):
    others = rng.normal(size=(40, 3))
    x = rng.normal(size=(6, 3))
    y = rng.normal(size=(6, 3))
    far = cdist(others, x.mean(0)[None])[:, 0]
    own = cdist(y.mean(0)[None], x.mean(0)[None]).item()
    assert centroid_accuracy(x, y, others) == pytest.approx((far > own).mean())
    assert centroid_accuracy(x, y, np.tile(y.mean(0), (4, 1))) == 0
    assert np.isnan(centroid_accuracy(x, y, ()))


# ---- Means, genes weighted -----------------------------------------------------------------------


def test_weights_are_the_squares_of_t_brought_to_0_and_1():
    """By hand: |t| of 1, 2, 3 and 5 become 0, 1/4, 1/2 and 1, whose squares add up to 21/16."""
    assert np.allclose(gene_weights(np.array([1.0, 2, 3, 5])), np.array([0, 1, 4, 16]) / 21)
    assert np.allclose(gene_weights(np.array([0, np.inf, 4, 2])), np.array([0, 4, 4, 1]) / 9)
    assert np.isnan(gene_weights(np.ones(3))).all()


def test_wmse_is_a_weighted_average_of_squared_errors(rng):
    x = rng.normal(size=(20, 30))
    y = rng.normal(size=(25, 30))
    weights = gene_weights(rng.exponential(size=30))
    expected = np.average((x.mean(0) - y.mean(0)) ** 2, weights=weights)
    assert wmse(x, y, weights) == pytest.approx(expected)


def test_weighted_r2_is_what_is_left_of_the_weighted_variance(rng):
    """NumPy's covariance with weights has the variance; a perfect answer scores 1."""
    x = rng.normal(size=(20, 30))
    y = rng.normal(size=(25, 30))
    reference = rng.normal(size=30)
    weights = gene_weights(rng.exponential(size=30))
    variance = np.cov(y.mean(0) - reference, aweights=weights, ddof=0)
    expected = 1 - np.average((x.mean(0) - y.mean(0)) ** 2, weights=weights) / variance
    assert weighted_r2(x, y, reference, weights) == pytest.approx(expected)
    assert weighted_r2(y, y, reference, weights) == 1


def test_the_mean_of_the_perturbations_never_scores_above_0_in_weighted_r2(rng):
    """It says that nothing sets a perturbation apart: R^2 is -(weighted mean)^2 / variance."""
    reference = rng.normal(size=30)
    y = rng.normal(size=(25, 30))
    weights = gene_weights(rng.exponential(size=30))
    change = y.mean(0) - reference
    mean = weights @ change
    expected = -(mean**2) / (weights @ change**2 - mean**2)
    assert weighted_r2(reference[None], y, reference, weights) == pytest.approx(expected)


# ---- What a metric is worth ----------------------------------------------------------------------


def adjusted_by_hand(p):
    """Benjamini and Hochberg's p: the least n p / rank of all that are not smaller."""
    n = len(p)
    rank = stats.rankdata(p, method="max")
    return np.array([min(n * p[j] / rank[j] for j in range(n) if p[j] >= q) for q in p])


def test_the_duplicates_mean_is_interpolated_by_adjusted_p(rng):
    """With SciPy's Welch test of the cells themselves; and the spread stays that of the half."""
    half = (rng.exponential(size=(40, 20)) + np.linspace(0, 1.5, 20)) * (rng.random((40, 20)) < 0.7)
    rest = rng.exponential(size=(500, 20)) * (rng.random((500, 20)) < 0.7)
    mean = rng.exponential(size=20)
    alpha = 1 - adjusted_by_hand(stats.ttest_ind(half, rest, equal_var=False).pvalue)
    found = interpolated_duplicate(half, moments(rest), mean)
    assert alpha.min() < 0.5 < 0.99 < alpha.max()
    assert np.allclose(found.mean(0), alpha * half.mean(0) + (1 - alpha) * mean)
    assert np.allclose(found.std(0), half.std(0))


def test_a_gene_that_nobody_expresses_has_the_average_in_the_duplicate(rng):
    """Welch's test says nothing of it: p counts as 1."""
    half, rest = np.zeros((5, 3)), np.zeros((9, 3))
    half[:, 0], rest[:, 0] = rng.random(5) + 9, rng.random(9)
    found = interpolated_duplicate(half, moments(rest), np.full(3, 0.2))
    assert np.allclose(found[:, 1:], 0.2)
    assert np.allclose(found[:, 0], half[:, 0], atol=1e-3)


def test_a_dynamic_range_is_the_share_of_the_way_to_a_perfect_score():
    assert dynamic_range(0.2, 0.6, 1) == pytest.approx(0.5)
    assert dynamic_range(0.8, 0.2, 0) == pytest.approx(0.75)
    assert np.isnan(dynamic_range(1, 0.9, 1))


@settings(deadline=None)
@given(st.floats(0.1, 9), st.floats(0.1, 9))
def test_the_ceiling_is_the_correlation_of_means_of_twice_as_many_cells(signal, noise):
    """Variance of the signal over that of the whole; twice the cells have half the noise."""
    assert full_depth(signal / (signal + noise)) == pytest.approx(signal / (signal + noise / 2))


def test_there_is_no_ceiling_where_the_halves_do_not_correlate():
    assert np.isnan(full_depth([0.0, -0.2])).all()


def unbiased_energy(distances, chosen):
    """The squared E-distance of some cells from the others, by loops over pairs."""
    other = [i for i in range(len(distances)) if i not in chosen]
    between = np.mean([distances[i, j] for i in chosen for j in other])
    within = [
        np.mean([distances[i, j] for i, j in combinations(group, 2)]) for group in (chosen, other)
    ]
    return 2 * between - sum(within)


@pytest.mark.parametrize(("moved", "wider"), [(0.7, 1), (0, 4)])
def test_the_permutation_test_is_the_share_of_all_choices_that_are_as_far(rng, moved, wider):
    """All 84 choices of three cells of nine, within 5 standard errors of 3,999 permutations."""
    cells = rng.normal(size=(9, 2))
    cells[:3] = moved + wider * cells[:3]
    distances = cdist(cells, cells)
    energy = [unbiased_energy(distances, chosen) for chosen in combinations(range(9), 3)]
    exact = np.mean(np.array(energy) >= energy[0] - 1e-9)
    found = permutation_p(distances, 3, rng, 3999)
    assert 0.02 < exact < 0.98
    assert abs(found - exact) < 5 * np.sqrt(exact * (1 - exact) / 4000) + 1 / 4000


def test_groups_that_differ_have_the_least_p_there_is_and_never_0(rng):
    cells = np.r_[rng.normal(size=(20, 3)), rng.normal(3, 1, size=(30, 3))]
    assert permutation_p(cdist(cells, cells), 20, rng, 99) == 1 / 100


def test_p_of_groups_that_are_alike_is_uniform(rng):
    """Kolmogorov and Smirnov's test of 200 of them."""
    cells = rng.normal(size=(200, 24, 2))
    p = [permutation_p(cdist(x, x), 10, rng, 99) for x in cells]
    assert stats.kstest(p, "uniform").pvalue > 1e-4


# ---- Which genes change, and the gap closed ------------------------------------------------------


def test_welch_t_is_the_textbook_formula(rng):
    x = rng.normal(size=(20, 3))
    y = rng.normal(1, 3, size=(30, 3))
    error = np.sqrt(x.var(0, ddof=1) / 20 + y.var(0, ddof=1) / 30)
    assert np.allclose(welch_t(x, y), np.abs(x.mean(0) - y.mean(0)) / error)
    assert np.array_equal(welch_t(moments(x), moments(y)), welch_t(x, y))


def test_a_gene_that_never_varies_has_t_0_unless_its_mean_moved():
    x = np.array([[0.0, 0.0]] * 5)
    y = np.array([[0.0, 2.0]] * 5)
    assert welch_t(x, y).tolist() == [0, np.inf]


def test_gap_closed_is_0_at_the_controls_and_1_at_the_floor():
    assert gap_closed(0.8, 0.8, 0.1) == 0
    assert gap_closed(0.1, 0.8, 0.1) == 1
    assert gap_closed(1.5, 0.8, 0.1) == pytest.approx(-1)


def test_there_is_no_gap_where_the_controls_are_nearer_than_the_floor():
    assert np.isnan(gap_closed(0.5, 0.1, 0.2))
