"""Pairing: costs, transport plans, the pairs drawn from them, and the pairs of an epoch.

The perturbed cells are the rows of a plan, n of them; the controls are its columns, m of them.
"""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from departures import (
    COSTS,
    PLANS,
    ImprovedSettings,
    Noise,
    coupling,
    draw_partners,
    pair,
    regularisation,
    transport_cost,
)
from examples import screen_of
from screens import CONTROL, Cells
from toy_data import minibatch_covariance
from train import deal_plans, draw_pairs, marginal_error, plan_information

SEED = st.integers(0, 999)


def clouds(n, m, d=5, seed=0):
    """Two clouds of normal points, (n, d) and (m, d) in float64."""
    generator = torch.Generator().manual_seed(seed)
    xT = torch.randn(n, d, generator=generator, dtype=torch.float64)
    x0 = torch.randn(m, d, generator=generator, dtype=torch.float64)
    return xT, x0 + 0.3


def cost_matrix(n, m, seed=0):
    return transport_cost(*clouds(n, m, seed=seed))


def price(plan, C):
    """What a plan costs, <C, P>."""
    return (plan * C).sum().item()


def exactly(**others):
    """Settings of exact pairing."""
    return ImprovedSettings(pairing="exact", **others)


# ---- Costs and epsilon ---------------------------------------------------------------------------


@pytest.mark.parametrize("cost", COSTS)
def test_the_three_costs_are_scipys(cost):
    """Squared Euclidean, Euclidean and cosine, perturbed cells in rows and controls in columns."""
    xT, x0 = clouds(7, 4)
    assert np.allclose(transport_cost(xT, x0, cost), cdist(xT, x0, cost))


@pytest.mark.parametrize("cost", ["cityblock", "", "Euclidean"])
def test_a_cost_that_is_not_there_raises(cost):
    """It is not silently another one; the error names those that there are."""
    with pytest.raises(ValueError, match="; there are " + ", ".join(COSTS)):
        transport_cost(*clouds(3, 3), cost)


@pytest.mark.parametrize("method", ["sinkhorn", "", "Exact"])
def test_a_plan_that_is_not_there_raises(method):
    """It is not silently another one; the error names those that there are."""
    with pytest.raises(ValueError, match="; there are " + ", ".join(PLANS)):
        coupling(cost_matrix(3, 3), method)


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean"])
def test_equal_cells_are_at_no_distance_in_float32(cost):
    """Where rounding makes the expanded square negative the cost is 0, not NaN."""
    x = (100 + clouds(50, 1)[0]).float()
    to_itself = transport_cost(x, x, cost).diagonal()
    assert (to_itself >= 0).all()
    assert (to_itself < 1).all()


def test_epsilon_is_a_share_of_the_mean_or_of_the_largest_cost():
    """ "0.1" and "0.1max", whatever the cost."""
    C = cost_matrix(5, 6)
    assert regularisation(C, "cosine", "0.1", 0.2) == pytest.approx(0.1 * C.mean().item())
    assert regularisation(C, "cosine", "0.1max", 0.2) == pytest.approx(0.1 * C.max().item())


def test_epsilon_of_the_bridge_is_2_sigma_squared():
    """The cost is |x - y|^2, twice that of the static Schroedinger bridge, so epsilon is too."""
    C = cost_matrix(5, 6)
    assert regularisation(C, "sqeuclidean", "bridge", 0.3) == pytest.approx(2 * 0.3**2)


@pytest.mark.parametrize("cost", [cost for cost in COSTS if cost != "sqeuclidean"])
def test_no_other_cost_has_an_epsilon_of_the_bridge(cost):
    """Brownian motion knows squared distances only."""
    with pytest.raises(ValueError, match="squared Euclidean"):
        regularisation(cost_matrix(5, 5), cost, "bridge", 0.2)


# ---- Plans ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", PLANS)
@settings(deadline=None, max_examples=15)
@given(st.integers(1, 12), st.integers(1, 12), SEED)
def test_plans_have_uniform_marginals(method, n, m, seed):
    """Rows sum to 1 / n and columns to 1 / m, and no weight is negative."""
    C = cost_matrix(n, m, seed)
    plan = coupling(C, method, 0.2 * C.mean().item())
    assert (plan >= 0).all()
    assert torch.allclose(plan.sum(1) * n, torch.ones(n).double(), atol=1e-3)
    assert torch.allclose(plan.sum(0) * m, torch.ones(m).double(), atol=1e-3)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), SEED, st.sampled_from(COSTS))
def test_the_exact_plan_is_the_cheapest_of_all_assignments(n, seed, cost):
    """Against all n! of them; every cell has one partner, with weight 1 / n."""
    C = transport_cost(*clouds(n, n, seed=seed), cost)
    plan = coupling(C, "exact")
    rows = range(n)
    prices = [C[rows, list(order)].mean().item() for order in itertools.permutations(rows)]
    assert price(plan, C) == pytest.approx(min(prices), abs=1e-9)
    weights = (n * plan).flatten().sort().values.round(decimals=9)
    assert weights.tolist() == [0.0] * (n * n - n) + [1.0] * n


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 40), SEED)
def test_exact_pairing_in_one_dimension_sorts(n, seed):
    """The k-th smallest goes to the k-th smallest, in whatever order the cells come."""
    xT, x0 = clouds(n, n, d=1, seed=seed)
    partners, _ = pair(xT, x0, exactly(), Noise(seed))
    in_order_of_the_ends = x0[partners][xT.squeeze(1).argsort()]
    assert torch.equal(in_order_of_the_ends, x0.sort(0).values)


def across(A):
    """A_ij + A_11 - A_1j - A_i1 of all i, j."""
    return A - A[:1] - A[:, :1] + A[0, 0]


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 8), st.integers(2, 8), st.floats(0.3, 5), SEED)
def test_the_entropic_plan_has_sinkhorns_form(n, m, epsilon, seed):
    """log(P_ij P_kl / P_il P_kj) = -(C_ij + C_kl - C_il - C_kj) / epsilon, and uniform marginals.

    Together they are a certificate: only the one entropic optimum has both. (Where epsilon is a
    hundredth of a cost the usual 1,000 iterations are too few for it.)
    """
    C = cost_matrix(n, m, seed)
    plan = coupling(C, "entropic", epsilon, iterations=100_000)
    assert torch.allclose(across(plan.log()), -across(C) / epsilon, atol=1e-6)
    assert marginal_error(plan) < 1e-3


@settings(deadline=None, max_examples=8)
@given(st.integers(2, 8), SEED)
def test_the_cost_of_the_plan_rises_with_epsilon(n, seed):
    """From the exact plan's cost to that of random pairs."""
    C = cost_matrix(n, n, seed)
    epsilons = [share * C.mean().item() for share in (0.05, 0.2, 1, 10)]
    plans = [coupling(C, "entropic", epsilon, iterations=10_000) for epsilon in epsilons]
    ends = coupling(C, "exact"), coupling(C, "random")
    prices = [price(plan, C) for plan in (ends[0], *plans, ends[1])]
    little = 1e-3 * prices[-1]  # that Sinkhorn's tolerance leaves
    assert all(b > a - little for a, b in itertools.pairwise(prices))


@settings(deadline=None, max_examples=15)
@given(st.integers(2, 12), st.integers(2, 12), SEED)
def test_for_a_large_epsilon_every_pair_is_as_likely(n, m, seed):
    """The entropic plan tends to the independent coupling, 1 / (n m) everywhere: random pairs."""
    C = cost_matrix(n, m, seed)
    uniform = torch.full_like(C, 1 / (n * m))
    plan = coupling(C, "entropic", 1e4 * C.mean().item())
    assert torch.allclose(plan, uniform, atol=1e-3 / (n * m))
    assert torch.allclose(coupling(C, "random"), uniform)


@settings(deadline=None, max_examples=8)
@given(st.integers(2, 8), SEED)
def test_for_a_small_epsilon_the_plan_costs_what_the_exact_one_does(n, seed):
    """No less, and at most epsilon log n more.

    For <C, P> - epsilon H(P) is least at the entropic plan, whose entropy H is at most 2 log n, and
    the exact plan's is log n.
    """
    C = cost_matrix(n, n, seed)
    epsilon = 0.03 * C.mean().item()
    plan = coupling(C, "entropic", epsilon, iterations=10_000)
    extra = price(plan, C) - price(coupling(C, "exact"), C)
    little = 1e-3 * C.mean().item()  # that Sinkhorn's tolerance leaves
    assert -little < extra < epsilon * math.log(n) + little


@pytest.mark.parametrize("n, known", [(2, 1 / math.pi), (4, 0.574), (32, 0.923)])
def test_small_plans_are_biased_as_order_statistics_say(n, known):
    """Exactly paired standard normals would have covariance 1; in plans of n they have less."""
    assert minibatch_covariance(n) == pytest.approx(known, abs=5e-4)


@pytest.mark.parametrize("n", [2, 4, 32])
def test_the_pairs_themselves_have_that_bias(n):
    """The covariance of pairs that `pair` makes, over 3,200 pairs, within 5 standard errors."""
    generator = torch.Generator().manual_seed(0)
    noise = Noise(0)
    products = []
    for _ in range(3200 // n):
        xT, x0 = torch.randn(2, n, 1, generator=generator)
        partners, _ = pair(xT, x0, exactly(), noise)
        products.append((xT * x0[partners]).mean().item())
    error = np.std(products) / math.sqrt(len(products))
    assert abs(np.mean(products) - minibatch_covariance(n)) < 5 * error


# ---- What is said of a plan ----------------------------------------------------------------------


def test_the_marginal_error_is_the_worst_of_both_sides():
    """Relative to 1 / n and 1 / m: here a row that is 20 % off, then a column that is 50 % off."""
    rows_off = torch.tensor([[0.3, 0.3], [0.2, 0.2]])
    columns_off = torch.tensor([[0.125, 0.375], [0.125, 0.375]])
    assert marginal_error(rows_off) == pytest.approx(0.2)
    assert marginal_error(columns_off) == pytest.approx(0.5)


def test_sinkhorn_that_did_not_converge_says_so():
    """After three iterations its marginals are off, and the plan's marginal error tells."""
    C = transport_cost(*clouds(30, 30, d=50))
    assert marginal_error(coupling(C, "entropic", 0.002, iterations=3)) > 0.01
    assert marginal_error(coupling(C, "entropic", 0.3 * C.mean().item())) < 0.01


def test_cells_that_are_all_alike_are_paired_at_random():
    """Their mean cost is 0, and so is epsilon; the plan is uniform, not undefined."""
    x = torch.ones(3, 4)
    _, plan = pair(x, x, ImprovedSettings(), Noise(0))
    assert torch.allclose(plan, torch.full((3, 3), 1 / 9))


def test_independent_pairs_say_nothing():
    """The information of a uniform plan is 0."""
    assert abs(plan_information(torch.full((5, 7), 1 / 35))) < 1e-6


def test_one_to_one_pairs_say_all_there_is():
    """The information is 1 for an assignment, for the shorter side of 2 to 1, and for one cell."""
    assert plan_information(torch.eye(6)[torch.randperm(6)] / 6) == pytest.approx(1)
    assert plan_information(torch.eye(3).repeat_interleave(2, 0) / 6) == pytest.approx(1)
    assert plan_information(torch.ones(1, 4) / 4) == 1


def test_in_between_it_is_the_mutual_information():
    """By hand: weights 0.4 and 0.1 where independent pairs have 0.25, over log 2."""
    plan = torch.tensor([[0.4, 0.1], [0.1, 0.4]])
    expected = 2 * 0.4 * math.log(0.4 / 0.25) + 2 * 0.1 * math.log(0.1 / 0.25)
    assert plan_information(plan) == pytest.approx(expected / math.log(2), abs=1e-6)


# ---- Pairs drawn from a plan ---------------------------------------------------------------------


def test_partners_are_drawn_with_the_plans_frequencies():
    """Given its row: within 5 standard errors over 40,000 draws a row, whose sums may differ."""
    plan = torch.tensor([[0.1, 0.3, 0.1], [0.0, 0.25, 0.2]], dtype=torch.float64)
    n = 40_000
    drawn = draw_partners(plan.repeat_interleave(n, 0), Noise(0)).view(2, n)
    for row, weights in zip(drawn, plan, strict=True):
        p = weights / weights.sum()
        share = torch.bincount(row, minlength=3) / n
        assert ((share - p).abs() <= 5 * (p * (1 - p) / n).sqrt()).all()


def test_every_perturbed_cell_draws_for_itself():
    """Two cells with one plan draw alike in half of the cases, within 5 standard errors."""
    n = 10_000
    drawn = draw_partners(torch.full((2 * n, 2), 0.5), Noise(0)).view(n, 2)
    alike = (drawn[:, 0] == drawn[:, 1]).double().mean().item()
    assert abs(alike - 0.5) < 5 * 0.5 / math.sqrt(n)


@pytest.mark.parametrize("u", [0.0, 1 - 2**-53])
def test_a_pair_without_weight_is_never_drawn(u):
    """Not even for the least and the greatest of random numbers."""
    least_or_greatest = SimpleNamespace(uniform=lambda like: torch.full_like(like, u))
    plan = torch.tensor([[0.0, 0.5, 0.0], [0.0, 0.0, 0.5]])
    assert draw_partners(plan, least_or_greatest).tolist() == [1, 2]


def test_a_row_that_sinkhorn_lost_has_a_partner_all_the_same():
    """Where a whole row has underflowed to 0, one of the controls is drawn, not one past them."""
    assert 0 <= draw_partners(torch.zeros(1, 4), Noise(0)).item() < 4


def partners_of(xT, x0, **choice):
    """Exact pairing of a few cells by hand."""
    ends = torch.tensor(xT, dtype=torch.float64)
    starts = torch.tensor(x0, dtype=torch.float64)
    return pair(ends, starts, exactly(**choice), Noise(0))[0].tolist()


def test_squares_prefer_two_short_moves_and_lengths_one_long_one():
    """Pairing uses the cost of its settings: squared Euclidean, or Euclidean."""
    xT = [[0, 0], [1, 0]]
    x0 = [[1, 0], [1.9, 0.9]]
    assert partners_of(xT, x0, cost="sqeuclidean") == [0, 1]
    assert partners_of(xT, x0, cost="euclidean") == [1, 0]


def test_cosines_see_directions_and_not_lengths():
    """Pairing uses the cost of its settings: squared Euclidean, or cosine."""
    xT = [[10, 0], [1, 1]]
    x0 = [[10, 9], [1, 0]]
    assert partners_of(xT, x0, cost="sqeuclidean") == [0, 1]
    assert partners_of(xT, x0, cost="cosine") == [1, 0]


@pytest.mark.parametrize("epsilon", ["0.3", "0.3max", "bridge"])
def test_entropic_pairing_uses_the_epsilon_and_sigma_of_its_settings(epsilon):
    """The plan is Sinkhorn's for the epsilon that the settings name."""
    xT, x0 = clouds(6, 9)
    C = transport_cost(xT, x0)
    choice = ImprovedSettings(pairing="entropic", epsilon=epsilon, sigma=0.9)
    plan = pair(xT, x0, choice, Noise(0))[1]
    expected = {"0.3": 0.3 * C.mean(), "0.3max": 0.3 * C.max(), "bridge": 2 * 0.9**2}[epsilon]
    assert torch.allclose(plan, coupling(C, "entropic", float(expected)))


@pytest.mark.parametrize("method, least, most", [("exact", 1, 1), ("entropic", 0.9, 1)])
def test_a_small_displacement_is_recovered(method, least, most):
    """Of 60 cells that all moved by less than half their distances, in an unknown order."""
    assert least <= share_recovered(method) <= most


def test_random_pairs_recover_nothing():
    """One in 60 finds its own start by chance."""
    assert share_recovered("random") < 0.15


def share_recovered(method):
    """The share of 60 cells, moved by 0.1 a gene and shuffled, that are paired with themselves."""
    x, _ = clouds(60, 1, d=30)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    choice = ImprovedSettings(pairing=method, epsilon="0.01")
    partners, _ = pair(x + 0.1, x[order], choice, Noise(2))
    return (order[partners] == torch.arange(60)).double().mean().item()


# ---- From a screen to the pairs of an epoch ------------------------------------------------------


@pytest.fixture(scope="module")
def screen():
    """Two cell types of 41 cells a group; the second gene was perturbed in one type only."""
    means = {
        (CONTROL, "A"): np.zeros(6) + 3,
        (CONTROL, "B"): np.arange(6.0) + 3,
        ("g1", "A"): np.zeros(6) + 3.5,
        ("g1", "B"): np.arange(6.0) + 3.5,
        ("g2", "A"): np.zeros(6) + 2.5,
    }
    return screen_of(means, cells=41, noise=0.5)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def plans_of(screen, **choice):
    return deal_plans(screen, list(screen.groups), ImprovedSettings(**choice), generator(0))


def pairs_of(screen, seed=0, **choice):
    """An epoch's pairs of all groups, by exact plans of at most 16 cells unless told otherwise."""
    cells = Cells(screen.X, "cpu")
    choice = ImprovedSettings(**{"pairing": "exact", "plan_cells": 16, **choice})
    return draw_pairs(screen, cells, list(screen.groups), choice, generator(seed), "cpu")


def mean_square(screen, pairs):
    """The mean squared distance of the pairs of perturbed cells."""
    perturbed = screen.perturbation[pairs.end] != CONTROL
    moves = screen.dense(pairs.end[perturbed]) - screen.dense(pairs.start[perturbed])
    return (moves**2).sum(1).mean()


@pytest.mark.parametrize("most", [1, 16, 41, 100])
def test_the_plans_of_a_group_are_as_few_and_as_even_as_they_can_be(screen, most):
    """So that none is needlessly small; its 41 cells at most so many at a time."""
    sizes = [len(plan.ends) for plan in plans_of(screen, plan_cells=most) if plan.group == 2]
    assert sum(sizes) == 41
    assert len(sizes) == math.ceil(41 / most)
    assert max(sizes) - min(sizes) <= 1


def test_every_perturbed_cell_is_paired_once_in_an_epoch(screen):
    """So the marginal of the targets is exact."""
    pairs = pairs_of(screen)
    perturbed = screen.perturbation != CONTROL
    used = pairs.end[perturbed[pairs.end]]
    assert np.array_equal(np.sort(used), np.flatnonzero(perturbed))


def test_its_partner_is_a_control_of_its_cell_type(screen):
    """Cells of different types are never paired."""
    pairs = pairs_of(screen)
    assert (screen.perturbation[pairs.start] == CONTROL).all()
    assert np.array_equal(screen.cell_type[pairs.start], screen.cell_type[pairs.end])


def test_every_pair_has_the_number_of_its_group(screen):
    """From which training takes the condition."""
    pairs = pairs_of(screen)
    groups = list(screen.groups)
    labels = zip(screen.perturbation[pairs.end], screen.cell_type[pairs.end], strict=True)
    assert [groups[number] for number in pairs.group] == list(labels)


@pytest.mark.parametrize("seed", [0, 1])
def test_optimal_pairs_are_nearer_than_random_ones(screen, seed):
    """The drawn partners are used, and in the order of the cells that they belong to."""
    best = mean_square(screen, pairs_of(screen, seed))
    random = mean_square(screen, pairs_of(screen, seed, pairing="random"))
    assert best < 0.8 * random


def test_every_plan_draws_with_noise_of_its_own(screen):
    """Two plans of 41 random pairs do not make the same choices."""
    plans = plans_of(screen, plan_cells=41)
    pairs = pairs_of(screen, plan_cells=41, pairing="random")
    places = []
    for plan, start in zip(plans, np.split(pairs.start, 3), strict=True):
        places.append([np.flatnonzero(plan.starts == cell).item() for cell in start])
    assert not np.array_equal(places[0], places[1])


def test_it_is_said_of_every_plan_how_one_to_one_it_is(screen):
    """A number for each of the 3 x 3 plans of perturbed cells."""
    exact = pairs_of(screen).information
    random = pairs_of(screen, pairing="random").information
    assert len(exact) == len(random) == 9
    assert np.allclose(exact, 1)
    assert np.allclose(random, 0, atol=1e-5)


def test_it_is_said_of_every_plan_how_far_off_its_marginals_are(screen):
    """Where epsilon is tiny, Sinkhorn does not converge; the exact plans are never off."""
    exact = pairs_of(screen).marginal_error
    entropic = pairs_of(screen, pairing="entropic", epsilon="0.0001").marginal_error
    assert len(exact) == len(entropic) == 9
    assert exact.max() < 1e-5
    assert entropic.max() > 0.01
