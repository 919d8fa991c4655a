"""When the true pairing can be found: the bounds, the solver, and the metric of its map."""
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist, pdist

import evaluate
import toy_data
from baselines import laot, rip_constant, trackable_displacement
from departures import Settings, pair
from evaluate import gamma_by_median, mmd2
from toy_data import near_identity, track, track_by_bridge

seeds = st.integers(0, 9999)


def directions(n, d, rng):
    step = rng.normal(size=(n, d))
    return step / np.linalg.norm(step, axis=1, keepdims=True)


def ot_pairing(xT, x0):
    return pair(torch.as_tensor(xT), torch.as_tensor(x0), Settings(pairing="exact"), torch.Generator().manual_seed(0))[0].numpy()


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 12), st.integers(1, 40), seeds)
def test_rip_constant_is_the_smallest_that_holds_for_all_vectors_of_two_entries(n, d, seed):
    """Against the eigenvalues of every pair's Gram matrix, and no two-entry vector breaks it."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0, d ** -0.5, (n, d))
    delta = rip_constant(x)
    eigenvalues = [np.linalg.eigvalsh(x[[i, j]] @ x[[i, j]].T) for i, j in itertools.combinations(range(n), 2)]
    assert delta == pytest.approx(np.abs(np.array(eigenvalues) - 1).max())
    for _ in range(20):
        i, v = rng.choice(n, 2, replace=False), rng.normal(size=2)
        assert abs(((v @ x[i]) ** 2).sum() / (v @ v) - 1) <= delta + 1e-9


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 20), st.integers(2, 60), seeds)
def test_bounds_are_ordered_and_follow_from_delta(n, d, seed):
    """Fact 13: sqrt((1-d)/2n) <= sqrt((1-d)/2) <= half the smallest distance; the first shrinks with n, the second does not."""
    x = np.random.default_rng(seed).normal(0, d ** -0.5, (n, d))
    room = max(0.0, 1 - rip_constant(x))
    with_n, without, distance = trackable_displacement(x)
    assert with_n ** 2 * 2 * n == pytest.approx(room) and without ** 2 * 2 == pytest.approx(room)
    assert distance == pytest.approx(pdist(x).min() / 2, abs=1e-7) and with_n <= without <= distance + 1e-9


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 20), st.integers(2, 60), seeds, st.integers(0, 2))
def test_within_every_bound_the_true_pairing_is_recovered(n, d, seed, which):
    """Fact 13: cells that each move less than the bound, in any directions, are all paired truly, by transport and by LAOT's first step."""
    rng = np.random.default_rng(seed)
    x, order = rng.normal(0, d ** -0.5, (n, d)), rng.permutation(n)
    reach = trackable_displacement(x)[which]
    if reach < 1e-6:
        return
    xT = (x + 0.99 * reach * directions(n, d, rng))[order]
    assert np.array_equal(ot_pairing(xT, x), order) and np.array_equal(laot(x, xT, 1)[0], order)


def test_beyond_the_distance_bound_the_pairing_may_be_lost():
    """Fact 13's other side: two cells that pass each other by just over half their distance are exchanged; by just under, not."""
    x = np.array([[0.0, 0.0], [1.0, 0.0]])
    for share, right in ((0.49, True), (0.51, False)):
        xT = x + share * np.array([[1.0, 0.0], [-1.0, 0.0]])
        assert np.array_equal(ot_pairing(xT, x), [0, 1]) == np.array_equal(laot(x, xT, 1)[0], [0, 1]) == right


@settings(deadline=None, max_examples=20)
@given(st.integers(3, 15), st.integers(2, 20), st.floats(0, 10), seeds)
def test_pairing_and_laot_are_equivariant_to_relabelling(n, d, deviation, seed):
    """Fact 13: renaming the cells on either side renames the answer and nothing else."""
    rng = np.random.default_rng(seed)
    x, E = near_identity(n, d, "Gaussian", rng)
    xT, a, b = x @ (np.eye(d) + deviation * E).T, rng.permutation(n), rng.permutation(n)
    for solve in (ot_pairing, lambda xT, x: laot(x, xT)[0]):
        assert np.array_equal(a[solve(xT[b], x[a])], solve(xT, x)[b])


@pytest.mark.parametrize("kind", ["uniform", "Gaussian"])
def test_near_identity_toy_is_what_the_benchmark_describes(kind):
    x, E = near_identity(4000, 50, kind, np.random.default_rng(0))
    assert x.var() == pytest.approx(1 / 50, rel=0.02) and np.linalg.norm(E) == pytest.approx(1)
    rank_one = np.linalg.svd(E, compute_uv=False)[0] ** 2
    assert (E.min() >= 0 and rank_one > 0.7) if kind == "uniform" else (E.min() < 0 and rank_one < 0.2)


def test_laot_finds_the_map_where_one_plan_is_not_enough_and_its_objective_never_rises():
    """Ten dimensions, a uniform E of norm 10: alternating recovers every cell and W; the first assignment alone does not."""
    first, last = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        x, E = near_identity(100, 10, "uniform", rng)
        W, order = np.eye(10) + 10 * E, rng.permutation(100)
        xT = x[order] @ W.T
        found, learned = laot(x, xT)
        first.append((laot(x, xT, 1)[0] == order).mean())
        last.append((found == order).mean())
        cost = [((xT - x[o] @ w.T) ** 2).sum() for o, w in (laot(x, xT, k) for k in range(1, 8))]
        assert all(b <= a + 1e-9 for a, b in zip(cost, cost[1:]))
        if last[-1] == 1:
            assert np.allclose(learned, W)
    assert np.mean(first) < 0.8 and np.mean(last) > 0.95


def test_laot_refuses_unequal_numbers_of_cells():
    with pytest.raises(ValueError, match="equal numbers"):
        laot(np.zeros((3, 2)), np.zeros((4, 2)))


def test_point_of_the_grid_sees_the_transition():
    """The README's grid, four points of it: all found at s = 1, hardly any at 200, nothing lost when nothing moves; MMD^2 follows."""
    still, near, far = (track(("Gaussian", 20, s), trials=4) for s in (0, 1, 200))
    assert still["LAOT"] == near["LAOT"] == near["OT pairing"] == 1 and far["LAOT"] < 0.2 and far["OT pairing"] < 0.2
    assert abs(near["MMD2"]) < 0.02 and near["RIP bound"] <= near["distance bound"] and 0 < near["distance bound"] < 3
    few = track(("uniform", 10, 10), trials=8)
    assert few["LAOT"] > few["OT pairing"] + 0.1


def test_bridge_follows_its_pairing_on_both_sides_of_the_threshold(monkeypatch):
    """With few steps: below, its pairs are all true and most starts reach their own end; far above, neither."""
    monkeypatch.setattr(toy_data, "fit_bridge", lambda *a, fit=toy_data.fit_bridge, **k: fit(*a, **{**k, "steps": 150}))
    below, above = (track_by_bridge(("Gaussian", s)) for s in (0.5, 100))
    assert below["farthest move"] < below["distance bound"] < above["farthest move"]
    assert below["OT pairing"] == below["LAOT"] == 1 and below["bridge"] > 0.9
    assert above["OT pairing"] < 0.2 and above["bridge"] < 0.2 and above["bridge MMD2"] > below["bridge MMD2"]


def test_trackability_demonstration_writes_its_numbers_and_figure(tmp_path, monkeypatch):
    """`python toy_data.py trackability` on a corner of the grid, without processes."""
    class Here:
        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *error: None  # noqa: E731
        imap = staticmethod(lambda f, items, size=1: map(f, items))
    monkeypatch.setattr(toy_data, "DIMENSIONS", (10, 20))
    monkeypatch.setattr(toy_data, "DEVIATIONS", (0, 1, 100))
    monkeypatch.setattr(toy_data.multiprocessing, "get_context", lambda _: type("", (), {"Pool": Here}))
    monkeypatch.setattr(toy_data, "fit_bridge", lambda *a, **k: lambda start: start)
    bridges = toy_data.trackability(str(tmp_path), trials=2)
    assert len(bridges) == 8 and (tmp_path / "trackability.png").stat().st_size > 10_000
    assert len((tmp_path / "grid.csv").read_text().splitlines()) == 13


# --------------------------------------------------------------------------------------------------------------- MMD^2

@settings(deadline=None)
@given(st.integers(2, 9), st.integers(2, 9), st.floats(0.05, 3), seeds)
def test_mmd2_equals_the_double_loop(n, m, gamma, seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=(n, 3)), rng.normal(1, 1, size=(m, 3))
    k = lambda a, b: math.exp(-gamma * ((a - b) ** 2).sum())  # noqa: E731
    within = [sum(k(a, b) for a, b in itertools.permutations(z, 2)) / (len(z) * (len(z) - 1)) for z in (x, y)]
    across = sum(k(a, b) for a, b in itertools.product(x, y)) / (n * m)
    assert mmd2(x, y, gamma) == pytest.approx(sum(within) - 2 * across, abs=1e-12)


def test_mmd2_is_unbiased_and_has_the_gaussian_closed_form():
    """One dimension, N(0, 1) against N(1, 1), E k = (1 + 4 gamma)^-1/2 exp(-gamma m^2 / (1 + 4 gamma)): within 5 standard errors."""
    rng, gamma = np.random.default_rng(0), 0.7
    expected = lambda m: math.exp(-gamma * m ** 2 / (1 + 4 * gamma)) / math.sqrt(1 + 4 * gamma)  # noqa: E731
    for shift in (0.0, 1.0):
        drawn = [mmd2(rng.normal(size=(20, 1)), rng.normal(shift, 1, (30, 1)), gamma) for _ in range(2000)]
        assert abs(np.mean(drawn) - 2 * (expected(0) - expected(shift))) < 5 * np.std(drawn) / math.sqrt(2000)


def test_kernel_width_is_the_median_heuristic():
    x = np.random.default_rng(0).normal(size=(30, 4))
    assert gamma_by_median(x) == pytest.approx(1 / np.median(pdist(x) ** 2))
    assert np.allclose(evaluate.squared_distances(x, x[:5]), cdist(x, x[:5]) ** 2)
