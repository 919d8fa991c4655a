"""Each baseline against its definition, computed another way."""
import numpy as np
import pandas as pd
from scipy import sparse

import data
from baselines import BASELINES, additive, knock_downs, laot_map, linear, linear_knockout, matching_mean, mean_shifts, perturbed_mean, shifted
from toy_data import simulate_screen

rng = np.random.default_rng(0)


def screen_of(means, cells=40, noise=0.0, genes=None):
    """A screen whose every group {(perturbation, type): mean (N,)} has `cells` cells around its mean."""
    X = np.concatenate([np.maximum(m + noise * rng.normal(size=(cells, len(m))), 0) for m in means.values()])
    labels = [key for key in means for _ in range(cells)]
    n = len(X[0])
    genes = np.array(genes if genes is not None else [f"g{i}" for i in range(n)])
    return data.Screen(sparse.csr_matrix(X.astype(np.float32)), genes, genes, np.array([f"c{i}" for i in range(len(X))]),
                       np.array([p for p, _ in labels]), np.array([t for _, t in labels]), "gene", pd.DataFrame(index=range(len(X))))


def test_shifted_controls_keep_their_zeros_and_move_where_they_are_expressed():
    x0 = np.abs(rng.normal(3, 0.5, size=(200, 4))) * (rng.random((200, 4)) < 0.7)
    moved = shifted(x0, np.array([0.5, -0.5, 0.0, -99.0]))
    on = x0 > 0
    assert not moved[~on].any() and np.allclose((moved - x0)[on[:, 0], 0], 0.5, atol=1e-5) and np.allclose((moved - x0)[on[:, 1], 1], -0.5, atol=1e-5)
    assert np.allclose(moved[:, 2], x0[:, 2]) and not moved[:, 3].any()
    own = rng.normal(0, 0.1, (200, 4))
    assert np.allclose(shifted(x0, own)[on], np.maximum(x0 + own, 0)[on], atol=1e-5)           # each cell by its own


def test_the_additive_baseline_sums_what_each_target_does_alone():
    """In the same cell type if it was seen there; not for one target, nor where one was never seen alone."""
    base = rng.uniform(2, 3, 5)
    A, B, elsewhere = rng.uniform(-0.5, 0.5, (3, 5))
    screen = screen_of({("control", "x"): base, ("control", "y"): base + 1, ("A", "x"): base + A, ("B", "x"): base + B, ("A+B", "y"): base,
                        ("A", "y"): base + 1 + elsewhere, ("A+C", "x"): base, ("C+D", "x"): base})
    screen.held_out = {("A+B", "x"), ("A+B", "y")}
    predict, x0 = additive(screen), np.tile(base, (10, 1))
    assert np.allclose(predict("A+B", "x", x0), base + A + B, atol=1e-5)
    assert np.allclose(predict("A+B", "y", x0), base + elsewhere + B, atol=1e-5)       # B was not seen in y
    assert predict("A", "x", x0) is None and predict("A+C", "x", x0) is None and predict("C+D", "x", x0) is None


def test_held_out_conditions_are_not_looked_at():
    """Whatever their cells are, no baseline's prediction changes."""
    means = {("control", "x"): np.full(6, 2.0), **{(g, "x"): 2 + rng.uniform(-1, 1, 6) for g in ("g0", "g1", "g2", "g0+g1", "g0+g2", "g4")}}
    def predictions(changed):
        g = np.random.default_rng(1)
        screen = screen_of({key: m + changed * (key[0] in ("g0+g1", "g4")) for key, m in means.items()})
        screen.held_out = {("g0+g1", "x"), ("g4", "x")}
        x0 = g.uniform(1, 3, (8, 6))
        return [np.zeros(0) if x is None else x for f in BASELINES.values() for p in ("g0+g1", "g4") for x in [f(screen)(p, "x", x0)]]
    assert all(np.array_equal(a, b) for a, b in zip(predictions(0), predictions(5)))


def test_linear_is_two_ridge_regressions_one_on_each_side():
    """First the shifts on the gene embedding, then its coefficients on the perturbations' embedding; each by least squares with the
    penalty as extra rows."""
    means = {("control", "x"): rng.uniform(1, 3, 30), **{(f"g{i}", "x"): rng.uniform(1, 3, 30) for i in range(12)}}
    screen = screen_of(means)
    screen.held_out = {("g11", "x")}
    Y = np.stack([means[f"g{i}", "x"] - means["control", "x"] for i in range(11)], 1)
    M = np.stack([means[f"g{i}", "x"] for i in range(11)], 1)
    M = M - M.mean(0)
    values, vectors = np.linalg.eigh(M.T @ M)
    G = M @ vectors[:, ::-1][:, :10]                                       # principal scores of the genes
    ridge = lambda A, y: np.linalg.lstsq(np.concatenate([A, np.sqrt(0.1) * np.eye(A.shape[1])]),              # noqa: E731
                                         np.concatenate([y, np.zeros((A.shape[1], y.shape[1]))]), rcond=None)[0]
    b = Y.mean(1)
    K = ridge(G[:11], ridge(G, Y - b[:, None]).T).T
    x0 = np.full((4, 30), 2.0)
    assert np.allclose(linear(screen)("g11", "x", x0), shifted(x0, G @ K @ G[11] + b), atol=1e-4)
    assert np.allclose(linear(screen)("g2+g11", "x", x0), shifted(x0, G @ K @ (G[2] + G[11]) + b), atol=1e-4)
    assert linear(screen)("elsewhere", "x", x0) is None


def test_laot_finds_a_planted_linear_map_without_the_pairs():
    """Cells move by a small linear map and are shuffled: the baseline moves new controls by the same map."""
    rng = np.random.default_rng(0)
    axes, map_ = np.linalg.qr(rng.normal(size=(20, 3)))[0].T, np.eye(20) + 0.04 * rng.normal(size=(20, 20))
    control, new = (rng.normal(size=(n, 3)) @ axes for n in (300, 50))
    X = np.concatenate([control, (control @ map_.T)[rng.permutation(300)]]) + 20
    screen = screen_of({("control", "x"): np.zeros(20), ("A", "x"): np.zeros(20)}, cells=300)
    screen.X = sparse.csr_matrix(X)
    moved, truth = laot_map(screen, components=3)("A", "x", new + 20) - (new + 20), new @ (map_ - np.eye(20)).T
    within = np.corrcoef((moved @ axes.T).ravel(), (truth @ axes.T).ravel())[0, 1]          # the components; beside them it moves as the mean
    assert within > 0.95 and np.abs(moved @ axes.T).max() > 0.05


def test_baselines_leave_blank_what_they_cannot_say():
    base = np.full(5, 2.0)
    screen = screen_of({("control", "x"): base, ("A", "x"): base + 0.3})
    x0 = np.tile(base, (4, 1))
    applies = {name: f(screen)("Z", "x", x0) is not None for name, f in BASELINES.items()}
    assert applies == {"control": True, "perturbed mean": True, "matching mean": False, "additive": False, "linear": False,
                       "linear knock-out": False, "LAOT": True}
    screen.held_out = {("A", "x")}
    assert perturbed_mean(screen)("A", "x", x0) is None and laot_map(screen)("A", "x", x0) is None and matching_mean(screen)("A", "x", x0) is None
    assert mean_shifts(screen) == {}


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


def test_a_pair_is_predicted_where_its_targets_are_measured_genes():
    """Effects of the linear knock-out add; the pair is named in any order."""
    base = rng.uniform(2, 3, 6)
    screen = screen_of({("control", "x"): base, ("g0", "x"): base, ("g1", "x"): base, ("g0+g1", "x"): base}, noise=0.5)
    predict, x0 = linear_knockout(screen), np.tile(base + 20, (5, 1))
    single = [predict(p, "x", x0) - x0 for p in ("g0", "g1")]
    assert np.allclose(predict("g0+g1", "x", x0) - x0, sum(single), atol=1e-4) and np.abs(single).max() > 0.5


def test_knock_downs_are_the_training_conditions_of_known_targets_in_units_of_sd():
    """A fell by its own mean; A+B count for both; C is no name, B@t is held out, D@u is another type with a mean of its own."""
    base, other, sd = np.array([2.0, 4, 1, 3]), np.array([1.0, 4, 1, 6]), np.array([1.0, 2, 1, 3])
    A, AB, D = (np.array(change, float) for change in ([-2, 0, 1, 0], [-2, -4, 0, 3], [0, 0, 1, -6]))
    screen = screen_of({("control", "t"): base, ("control", "u"): other, ("A", "t"): base + A, ("A+B", "t"): base + AB, ("B", "t"): base,
                        ("C", "t"): base, ("D", "u"): other + D}, genes=["A", "B", "C", "D"])
    screen.held_out = {("B", "t")}
    knock, shift, noise = knock_downs(screen, ["A", "B", "D"], sd)
    assert np.allclose(knock, [[-2, 0, 0], [-2, -2, 0], [0, 0, -2]]) and np.allclose(shift, [A / sd, AB / sd, D / sd], atol=1e-6)
    assert np.allclose(noise, 1 / 40 + 1 / 40 + 0.003) and noise.shape == (3, 1)
