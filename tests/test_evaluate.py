"""The metrics against independent implementations, and the table's order of good and bad predictions."""
import anndata
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import cdist

import data
from baselines import linear_knockout, shifted
from evaluate import activation_pcc, e_distance, emd, gap_closed, read_predicted, score_condition, welch_t
from toy_data import simulate_screen

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


def test_predicted_genes_are_matched_by_name_whatever_their_order(tmp_path):
    """A file whose columns are shuffled is the same prediction."""
    simulate_screen(30, 3, 300, seed=0).write_h5ad(tmp_path / "truth.h5ad")
    screen = data.prepare(str(tmp_path / "truth.h5ad"))
    truth = anndata.read_h5ad(tmp_path / "truth.h5ad")
    theirs = truth[truth.obs["control"] == 0, rng.permutation(30)].copy()
    theirs.obs = theirs.obs[["cell_type"]].assign(perturbation=theirs.obs["condition"].astype(str).str.removesuffix("+ctrl"))
    theirs.write_h5ad(tmp_path / "theirs.h5ad")
    read = read_predicted(str(tmp_path / "theirs.h5ad"), screen)
    assert len(read) == 6 and all(np.array_equal(x.toarray(), screen.dense(screen.groups[key])) for key, x in read.items())


def test_linear_knockout_is_ridge_regression_on_the_covariance(tmp_path):
    """B = S_P (S_PP + 0.1 I)^-1, S per cell and around each cell type's mean; the target falls from its mean to zero."""
    simulate_screen(30, 3, 900, seed=0).write_h5ad(tmp_path / "s.h5ad")
    screen = data.prepare(str(tmp_path / "s.h5ad"), fraction=0)
    names = sorted({p for p, _ in screen.groups if p != "control"})
    x = {t: screen.dense(screen.controls(t)).astype(float) for t in screen.cell_types}
    S = np.cov(np.concatenate([c - c.mean(0) for c in x.values()]).T, bias=True)
    P = [list(screen.genes).index(g) for g in names]
    fitted = ridge_regression(S, P)
    moved = linear_knockout(screen)(names[0], "typeA", x["typeA"])
    shift = -x["typeA"][:, P[0]].mean() * fitted[:, 0]
    assert np.allclose(moved, shifted(x["typeA"], shift), atol=1e-4) and np.abs(shift).max() > 0.1


def ridge_regression(S, P, penalty=0.1):
    """The minimiser of E|x - B x_P|^2 + penalty |B|^2 by least squares on the square root of S, with the penalty as extra rows."""
    values, vectors = np.linalg.eigh(S)
    root = np.sqrt(np.maximum(values, 0))[:, None] * vectors.T             # root' root = S
    rows = np.concatenate([root[:, P], np.sqrt(penalty) * np.eye(len(P))])
    return np.linalg.lstsq(rows, np.concatenate([root, np.zeros((len(P), len(S)))]), rcond=None)[0].T


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
    assert 0.85 < min(distances) and max(distances) < 1.2                  # the floor is no closer than other real cells can be
    assert "absent" not in scores and set(ranked[:6]) == set(range(6))
    assert energy["twin"] < 0.5 * energy["control"] and energy["floor"] < 0.5 * energy["control"]
    assert min(energy["opposite"], energy["mean"], energy["shuffled"]) > energy["control"]
