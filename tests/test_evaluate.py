"""The metrics against independent implementations, and the table's order of good and bad predictions."""
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import cdist

from baselines import shifted
from evaluate import activation_pcc, e_distance, emd, gap_closed, score_condition, welch_t

rng = np.random.default_rng(0)


def test_e_distance_equals_scipys_in_one_dimension():
    """SciPy keeps the zero self-distances (n^2 pairs); ours leaves them out."""
    x, y = rng.normal(size=30), rng.normal(1, 2, size=20)
    within = lambda a: cdist(a[:, None], a[:, None]).sum() * (1 / len(a) ** 2 - 1 / (len(a) * (len(a) - 1)))  # noqa: E731
    expected = stats.energy_distance(x, y) ** 2 + within(x) + within(y)
    assert e_distance(x[:, None], y[:, None], squared=True) == pytest.approx(expected)
    assert e_distance(x[:, None], y[:, None]) == pytest.approx(expected ** 0.5)


def test_e_distance_is_unbiased_and_grows_with_a_shift():
    """Mean of the unrooted statistic over equal samples is 0 within 5 standard errors."""
    x = rng.normal(size=(200, 10, 4))
    E = [2 * cdist(a, b).mean() - cdist(a, a).sum() / 20 - cdist(b, b).sum() / 20 for a, b in zip(x[:, :5], x[:, 5:])]
    assert abs(np.mean(E)) < 5 * np.std(E) / np.sqrt(len(E))
    y = rng.normal(size=(300, 4))
    far = [e_distance(y[:150], y[150:] + s) for s in (0, 0.5, 1, 2)]
    assert far == sorted(far) and far[3] > 1


@settings(deadline=None)
@given(st.integers(2, 30), st.integers(2, 30), st.integers(0, 99))
def test_emd_equals_scipys_wasserstein_gene_by_gene_for_unequal_sizes_too(n, m, seed):
    g = np.random.default_rng(seed)
    x, y = g.exponential(size=(n, 3)) * (g.random((n, 3)) < 0.6), g.exponential(size=(m, 3))
    assert emd(x, y) == pytest.approx(np.mean([stats.wasserstein_distance(a, b) for a, b in zip(x.T, y.T)]), abs=1e-9)


def test_nan_cells_do_not_score_as_perfect():
    assert np.isnan(e_distance(np.full((3, 2), np.nan), np.ones((3, 2))))


def test_metrics_do_not_depend_on_the_order_of_cells_and_vanish_on_equal_ones():
    x, y = rng.exponential(size=(40, 5)), rng.exponential(size=(40, 5))
    for f in (e_distance, emd):
        assert f(x, y) == pytest.approx(f(x[::-1], y[rng.permutation(40)])) == pytest.approx(f(y, x))
        assert f(x, x[::-1]) == pytest.approx(0, abs=1e-7) and f(x, y + 1) > 0.5


def test_activation_pcc_correlates_the_fractions_of_expressing_cells():
    x = np.array([[1, 0, 3.0], [0, 0, 1], [0, 2, 1], [0, 0, 1]])          # fractions 1/4, 1/4, 1
    y = np.array([[1, 0, 3.0], [0, 0, 1], [0, 2, 1], [1, 0, 1]])          # 1/2, 1/4, 1
    assert activation_pcc(x, y) == pytest.approx(np.corrcoef([0.25, 0.25, 1], [0.5, 0.25, 1])[0, 1])


def test_gap_closed_is_0_at_the_controls_and_1_at_the_floor():
    assert gap_closed(0.8, 0.8, 0.1) == 0 and gap_closed(0.1, 0.8, 0.1) == 1 and gap_closed(1.5, 0.8, 0.1) == pytest.approx(-1)
    assert np.isnan(gap_closed(0.5, 0.1, 0.2))


def test_welch_t_equals_the_textbook_formula():
    x, y = rng.normal(size=(20, 3)), rng.normal(1, 3, size=(30, 3))
    x[:, 2] = y[:, 2] = 0
    by_hand = np.abs(x.mean(0) - y.mean(0))[:2] / np.sqrt(x.var(0, ddof=1) / 20 + y.var(0, ddof=1) / 30)[:2]
    assert np.allclose(welch_t(x, y), [*by_hand, 0])


def test_shifted_controls_keep_their_zeros_and_reach_the_mean():
    x0 = np.abs(rng.normal(3, 0.5, size=(200, 4))) * (rng.random((200, 4)) < 0.7)
    moved = shifted(x0, np.array([0.5, -0.5, 0.0, -99.0]))
    assert ((moved > 0) <= (x0 > 0)).all() and np.allclose((moved - x0).mean(0)[:3], [0.5, -0.5, 0], atol=1e-5)
    assert not moved[:, 3].any()


def test_bad_predictions_rank_below_the_controls_and_real_cells_on_top():
    """Other cells of the condition close the gap; another condition's cells, the repeated mean and shuffled genes do not."""
    def cells(n, effect):
        level = np.maximum(rng.normal(2, 0.6, size=(n, 30)) + effect, 0.1)
        return level * (rng.random((n, 30)) < 0.6)

    effect = np.r_[np.full(6, 1.2), np.zeros(24)]
    measured, controls = cells(120, effect), cells(200, 0)
    methods = {"control": controls, "twin": cells(120, effect), "opposite": cells(120, -effect),
               "mean": np.tile(measured.mean(0), (60, 1)), "shuffled": measured[:, rng.permutation(30)], "absent": None}
    scores, ranked = score_condition(measured, controls, methods, np.random.default_rng(0))
    energy = {name: s["E-distance"]["all"] for name, s in scores.items()}
    distances = [scores["floor"]["EMD"][genes] / scores["twin"]["EMD"][genes] for genes in ("all", "DE20", "DE40")]
    assert 0.7 < min(distances) and max(distances) < 1.4                   # the floor is no closer than other real cells can be
    assert "absent" not in scores and set(ranked[:6]) == set(range(6))
    assert energy["twin"] < 0.5 * energy["control"] and energy["floor"] < 0.5 * energy["control"]
    assert min(energy["opposite"], energy["mean"], energy["shuffled"]) > energy["control"]
