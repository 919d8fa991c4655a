"""Trackability: bounds within which the true pairing is found, and LAOT, which finds it beyond.

Cells x (n, d) become W x in an unknown order (Jafari et al. 2026).
"""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

import course.trackability
from course.gaussian import fit_bridge
from course.trackability import BOUNDS, moved_cells, track, track_by_bridge
from departures import ImprovedSettings, Noise, pair
from rivals.laot import laot
from toy_data import near_identity, rip_constant, trackable_displacement

SEED = st.integers(0, 9999)


def normal_cells(n, d, rng):
    """Cells (n, d) of about length 1."""
    return rng.normal(0, d**-0.5, (n, d))


def directions(n, d, rng):
    """Random vectors (n, d) of length 1."""
    step = rng.normal(size=(n, d))
    return step / np.linalg.norm(step, axis=1, keepdims=True)


def by_transport(xT, x0):
    """The order that the project's exact pairing finds."""
    choice = ImprovedSettings(pairing="exact")
    return pair(torch.as_tensor(xT), torch.as_tensor(x0), choice, Noise(0))[0].numpy()


def by_laot(xT, x0):
    return laot(x0, xT)[0]


def by_laots_first_step(xT, x0):
    return laot(x0, xT, iterations=1)[0]


# ---- Bounds --------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 12), st.integers(1, 40), SEED)
def test_delta_is_the_farthest_that_an_eigenvalue_is_from_1(n, d, seed):
    """Of the Gram matrices of all pairs of cells: the definition of (2, delta)-RIP."""
    x = normal_cells(n, d, np.random.default_rng(seed))
    grams = [x[list(two)] @ x[list(two)].T for two in itertools.combinations(range(n), 2)]
    assert rip_constant(x) == pytest.approx(np.abs(np.linalg.eigvalsh(grams) - 1).max())


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 12), st.integers(1, 40), SEED)
def test_no_vector_of_two_entries_is_outside_delta(n, d, seed):
    """|sum v_i x_i|^2 is within (1 +- delta) |v|^2."""
    rng = np.random.default_rng(seed)
    x = normal_cells(n, d, rng)
    delta = rip_constant(x)
    for _ in range(20):
        two = rng.choice(n, 2, replace=False)
        v = rng.normal(size=2)
        length = ((v @ x[two]) ** 2).sum() / (v @ v)
        assert abs(length - 1) <= delta + 1e-9


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 20), st.integers(2, 60), SEED)
def test_the_three_bounds_are_what_they_say(n, d, seed):
    """sqrt((1 - delta) / 2n), the same without n, and half the smallest distance."""
    x = normal_cells(n, d, np.random.default_rng(seed))
    room = max(0.0, 1 - rip_constant(x))
    with_n, without_n, distance = trackable_displacement(x)
    assert with_n == pytest.approx(np.sqrt(room / (2 * n)))
    assert without_n == pytest.approx(np.sqrt(room / 2))
    assert distance == pytest.approx(pdist(x).min() / 2)


@settings(deadline=None, max_examples=30)
@given(st.integers(2, 20), st.integers(2, 60), SEED)
def test_the_bounds_rise(n, d, seed):
    """For two cells are at least sqrt(2 (1 - delta)) apart."""
    x = normal_cells(n, d, np.random.default_rng(seed))
    with_n, without_n, distance = trackable_displacement(x)
    assert with_n <= without_n <= distance + 1e-9


@pytest.mark.parametrize("bound", [0, 1, 2])
@settings(deadline=None, max_examples=30)
@given(n=st.integers(2, 20), d=st.integers(2, 60), seed=SEED)
def test_within_every_bound_the_true_pairing_is_found(bound, n, d, seed):
    """Cells that each move less, in any directions: by transport and by LAOT's first step."""
    rng = np.random.default_rng(seed)
    x = normal_cells(n, d, rng)
    order = rng.permutation(n)
    reach = trackable_displacement(x)[bound]
    assume(reach > 1e-6)
    xT = (x + 0.99 * reach * directions(n, d, rng))[order]
    assert np.array_equal(by_transport(xT, x), order)
    assert np.array_equal(by_laots_first_step(xT, x), order)


@pytest.mark.parametrize("find", [by_transport, by_laots_first_step])
def test_beyond_half_the_distance_two_cells_may_be_exchanged(find):
    """Two that approach each other by just more than half of it are; by just less, they are not."""
    x = np.array([[0.0, 0.0], [1.0, 0.0]])
    towards = np.array([[1.0, 0.0], [-1.0, 0.0]])
    assert find(x + 0.49 * towards, x).tolist() == [0, 1]
    assert find(x + 0.51 * towards, x).tolist() == [1, 0]


@pytest.mark.parametrize("find", [by_transport, by_laot])
@settings(deadline=None, max_examples=20)
@given(n=st.integers(3, 15), d=st.integers(2, 20), deviation=st.floats(0, 10), seed=SEED)
def test_recovery_is_equivariant_to_relabelling(find, n, d, deviation, seed):
    """New numbers for the cells on either side give the same pairs under their new numbers."""
    rng = np.random.default_rng(seed)
    x, E = near_identity(n, d, "Gaussian", rng)
    xT = x @ (np.eye(d) + deviation * E).T
    a = rng.permutation(n)
    b = rng.permutation(n)
    assert np.array_equal(a[find(xT[b], x[a])], find(xT, x)[b])


# ---- LAOT ----------------------------------------------------------------------------------------


def hard_toy(seed):
    """(x, xT, order, W): ten dimensions, a uniform E of norm 10, where one plan is not enough."""
    rng = np.random.default_rng(seed)
    x, E = near_identity(100, 10, "uniform", rng)
    W = np.eye(10) + 10 * E
    order = rng.permutation(100)
    return x, x[order] @ W.T, order, W


@pytest.fixture(scope="module")
def toys():
    return [hard_toy(seed) for seed in range(8)]


def test_laot_finds_the_order_where_one_assignment_does_not(toys):
    """Over eight toys: nearly all cells, against fewer than four in five by the first step."""
    first = [(by_laots_first_step(xT, x) == order).mean() for x, xT, order, _ in toys]
    last = [(by_laot(xT, x) == order).mean() for x, xT, order, _ in toys]
    assert np.mean(first) < 0.8
    assert np.mean(last) > 0.95


def test_where_laot_finds_the_order_it_has_the_map(toys):
    """W is then determined by least squares; in most of the toys."""
    solved = 0
    for x, xT, order, W in toys:
        found, learned = laot(x, xT)
        if np.array_equal(found, order):
            assert np.allclose(learned, W)
            solved += 1
    assert solved >= 5


def test_laots_objective_never_rises(toys):
    """|xT - W x0[order]|^2, with every iteration: each of both halves lowers it."""
    for x, xT, _, _ in toys:
        objective = []
        for iterations in range(1, 8):
            order, W = laot(x, xT, iterations)
            objective.append(((xT - x[order] @ W.T) ** 2).sum())
        assert all(b <= a + 1e-9 for a, b in itertools.pairwise(objective))


def test_laot_stops_at_a_fixed_point(toys):
    """Its map asks for the order that it was fitted to, and more iterations change nothing."""
    x, xT, _, _ = toys[0]
    order, W = laot(x, xT, iterations=50)
    assert np.array_equal(by_laots_first_step(xT, x @ W.T), order)
    assert np.array_equal(laot(x, xT, iterations=51)[1], W)


def test_laot_refuses_unequal_numbers_of_cells():
    """A pairing is one-to-one."""
    with pytest.raises(ValueError, match="equal numbers"):
        laot(np.zeros((3, 2)), np.zeros((4, 2)))


# ---- The toy and its grid ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["uniform", "Gaussian"])
def test_the_toy_is_what_the_benchmark_describes(kind):
    """Cells with N(0, 1/d) entries, a map that departs from I by an E of norm 1."""
    x, E = near_identity(2000, 50, kind, np.random.default_rng(0))
    assert x.shape == (2000, 50)
    assert x.var() == pytest.approx(1 / 50, rel=0.03)
    assert np.linalg.norm(E) == pytest.approx(1)


def share_of_rank_one(kind):
    """How much of |E|^2 one direction holds, and whether E has negative entries."""
    E = near_identity(2, 50, kind, np.random.default_rng(0))[1]
    return np.linalg.norm(E, 2) ** 2, E.min() < 0


def test_a_uniform_e_is_nearly_rank_one_and_a_gaussian_one_is_not():
    """The uniform one moves all cells along one line: 3/4 of its square is that of its mean."""
    assert share_of_rank_one("uniform") == (pytest.approx(0.75, abs=0.03), False)
    share, negative = share_of_rank_one("Gaussian")
    assert share < 0.2 and negative


def test_a_point_of_the_grid_has_cells_that_moved_as_it_says():
    """W = I + deviation E, in an unknown order, with twice as many cells held out."""
    x, held_out, order, W, E = moved_cells(30, 5, "Gaussian", 0.7, np.random.default_rng(0))
    assert np.allclose(W - np.eye(5), 0.7 * E)
    assert sorted(order) == list(range(30))
    assert len(x) == 30 and len(held_out) == 60


@pytest.fixture(scope="module")
def points():
    """Three points of the grid, in 20 dimensions: nothing moves, little does, everything does."""
    return [track(("Gaussian", 20, deviation), trials=4) for deviation in (0, 1, 200)]


@pytest.mark.parametrize("method", ["LAOT", "OT pairing"])
def test_the_grid_sees_the_transition(points, method):
    """All cells are found while they move little, hardly any when they move far."""
    still, near, far = points
    assert still[method] == near[method] == 1
    assert far[method] < 0.2


def test_the_map_is_right_where_the_order_is(points):
    """MMD^2 of LAOT's map between held-out cells."""
    _, near, far = points
    assert abs(near["MMD2"]) < 0.005
    assert far["MMD2"] > 0.01


def test_the_grid_gives_the_bounds_as_deviations(monkeypatch):
    """At that deviation the farthest-moving cell has moved as far as the bound allows."""
    toy = moved_cells(5, 60, "Gaussian", 1, np.random.default_rng(0))
    monkeypatch.setattr(course.trackability, "moved_cells", lambda *point: toy)
    found = track(("Gaussian", 60, 1), n=5, trials=1)
    x, _, _, _, E = toy
    moves = [found[bound] * np.linalg.norm(x @ E.T, axis=1).max() for bound in BOUNDS]
    assert np.allclose(moves, trackable_displacement(x))
    assert moves[0] > 0.1


def test_laot_goes_beyond_one_plan_for_a_uniform_e_in_few_dimensions():
    """As the benchmark has it."""
    few = track(("uniform", 10, 10), trials=8)
    assert few["LAOT"] > few["OT pairing"] + 0.1


# ---- The bridge ----------------------------------------------------------------------------------


def quickly_fitted(*arguments, **options):
    """A bridge of a few training steps."""
    return fit_bridge(*arguments, **{**options, "steps": 150})


@pytest.fixture(scope="module")
def bridges():
    """Below the threshold, and far above it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(course.trackability, "fit_bridge", quickly_fitted)
        return [track_by_bridge(("Gaussian", deviation)) for deviation in (0.5, 100)]


def test_below_the_threshold_every_pair_is_true_and_the_bridge_follows(bridges):
    """The farthest cell moves less than the distance bound; most starts reach their own end."""
    below, _ = bridges
    assert below["farthest move"] < below["distance bound"]
    assert below["OT pairing"] == below["LAOT"] == 1
    assert below["bridge"] > 0.9


def test_above_the_threshold_the_bridge_follows_wrong_pairs(bridges):
    """Most pairs are wrong, and most starts reach the end of another."""
    _, above = bridges
    assert above["farthest move"] > above["distance bound"]
    assert above["OT pairing"] < 0.2
    assert above["bridge"] < 0.2


def test_the_bridges_cells_are_right_below_the_threshold(bridges):
    """MMD^2 on held-out cells is near 0 there and rises beyond."""
    below, above = bridges
    assert abs(below["bridge MMD2"]) < 0.05
    assert above["bridge MMD2"] > below["bridge MMD2"]
