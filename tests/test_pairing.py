"""Facts about the transport plans and the pairs drawn from them."""
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

import data
from departures import Settings, coupling, draw_partners, pair, plan_information, regularisation, transport_cost
from sample import Cells
from toy_data import against_truth, gene_spaces, minibatch_covariance, simulate_screen
from train import draw_pairs


def clouds(n, m, d=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g, dtype=torch.float64), torch.randn(m, d, generator=g, dtype=torch.float64) + 0.3


@pytest.mark.parametrize("cost", ["sqeuclidean", "euclidean", "cosine"])
def test_costs_equal_scipys(cost):
    x, y = clouds(7, 4)
    assert np.allclose(transport_cost(x, y, cost), cdist(x, y, cost))


@pytest.mark.parametrize("method", ["exact", "entropic", "random"])
@settings(deadline=None, max_examples=15)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 99))
def test_plans_have_uniform_marginals(method, n, m, seed):
    x, y = clouds(n, m, seed=seed)
    C = transport_cost(x, y)
    plan, error = coupling(C, method, 0.2 * C.mean().item())
    assert (plan >= 0).all() and error < 1e-3
    assert torch.allclose(plan.sum(1), torch.full((n,), 1 / n, dtype=plan.dtype), atol=1e-4)
    assert torch.allclose(plan.sum(0), torch.full((m,), 1 / m, dtype=plan.dtype), atol=1e-4)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(0, 999), st.sampled_from(["sqeuclidean", "euclidean", "cosine"]))
def test_exact_plan_is_the_cheapest_assignment(n, seed, cost):
    """Fact 12: against all n! of them; and the plan is a permutation over n."""
    x, y = clouds(n, n, seed=seed)
    C = transport_cost(x, y, cost)
    plan, _ = coupling(C, "exact")
    best = min(sum(C[i, p[i]].item() for i in range(n)) for p in itertools.permutations(range(n))) / n
    assert (plan * C).sum().item() == pytest.approx(best, abs=1e-9)
    assert sorted((plan * n).flatten().round(decimals=9).tolist()) == [0.0] * (n * n - n) + [1.0] * n


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 40), st.integers(0, 999))
def test_exact_pairing_in_one_dimension_sorts(n, seed):
    """Fact 12: the k-th smallest goes to the k-th smallest, whatever the order of the rows."""
    x, y = clouds(n, n, d=1, seed=seed)
    partner, *_ = pair(x, y, Settings(pairing="exact"), torch.Generator().manual_seed(seed))
    assert torch.equal(y[partner][x.squeeze(1).argsort()], y.sort(0).values)


@pytest.mark.parametrize("n, known", [(2, 1 / math.pi), (4, 0.574), (32, 0.923)])
def test_small_batches_bias_the_plan_as_order_statistics_say(n, known):
    """Fact 12: exactly paired standard normals have covariance 1 at n = infinity but 1/pi, .574, .923 at n = 2, 4, 32: in closed
    form, and of pairs that `pair` makes, within 5 standard errors."""
    assert minibatch_covariance(n) == pytest.approx(known, abs=5e-4)
    g = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(3200 // n):
        x, y = torch.randn(2, n, 1, generator=g)
        batches.append((x * y[pair(x, y, Settings(pairing="exact"), g)[0]]).mean().item())
    assert abs(np.mean(batches) - known) < 5 * np.std(batches) / math.sqrt(len(batches))


@settings(deadline=None, max_examples=25)
@given(st.integers(2, 8), st.integers(2, 8), st.floats(0.3, 5), st.integers(0, 999))
def test_entropic_plan_has_the_sinkhorn_form(n, m, epsilon, seed):
    """Fact 10: log(P_ij P_kl / (P_il P_kj)) = -(C_ij + C_kl - C_il - C_kj) / epsilon for all i, j, k, l, and uniform marginals: together
    a certificate that this is the one entropic optimum."""
    x, y = clouds(n, m, seed=seed)
    C = transport_cost(x, y)
    plan, error = coupling(C, "entropic", epsilon, iterations=100_000)     # where epsilon is a hundredth of a cost 1,000 are not enough
    cross = lambda A: A - A[:1] - A[:, :1] + A[0, 0]  # noqa: E731
    assert torch.allclose(cross(plan.log()), -cross(C) / epsilon, atol=1e-6) and error < 1e-3


@settings(deadline=None, max_examples=15)
@given(st.integers(2, 12), st.integers(0, 999))
def test_entropic_plan_goes_from_the_assignment_to_the_product_as_epsilon_grows(n, seed):
    """Fact 10: the cost <C, P> rises with epsilon, from the exact plan's to that of the independent coupling, which is also reached as a plan."""
    x, y = clouds(n, n, seed=seed)
    C = transport_cost(x, y)
    price = lambda plan: (plan * C).sum().item()  # noqa: E731
    plans = [coupling(C, "entropic", e * C.mean().item(), iterations=20_000)[0] for e in (0.02, 0.1, 0.5, 2.0, 1e4)]
    exact, independent = coupling(C, "exact")[0], coupling(C, "random")[0]
    prices = [price(exact), *map(price, plans), price(independent)]
    assert all(a <= b + 1e-3 * prices[-1] for a, b in zip(prices, prices[1:])) and prices[0] <= prices[1] * 1.001
    assert torch.allclose(plans[-1], independent, atol=1e-3 / n ** 2) and torch.allclose(independent, torch.full_like(C, n ** -2))
    assert price(plans[0]) < 1.05 * prices[0] + 1e-9


def test_bridge_epsilon_is_2_sigma_squared_and_only_for_the_squared_cost():
    C = transport_cost(*clouds(5, 5))
    assert regularisation(C, "sqeuclidean", "bridge", 0.2) == pytest.approx(2 * 0.2 ** 2)
    assert regularisation(C, "cosine", "0.1", 0.2) == pytest.approx(0.1 * C.mean().item())
    assert regularisation(C, "cosine", "0.1max", 0.2) == pytest.approx(0.1 * C.max().item())
    with pytest.raises(ValueError, match="squared Euclidean"):
        regularisation(C, "euclidean", "bridge", 0.2)


def test_pairing_uses_the_cost_of_its_settings():
    """Two cells and two controls each: squares choose two short moves, lengths one long and one none, cosines the directions."""
    def partners(xT, x0, cost):
        cells = (torch.tensor(x, dtype=torch.float64) for x in (xT, x0))
        return pair(*cells, Settings(pairing="exact", cost=cost), torch.Generator().manual_seed(0))[0].tolist()
    corner = [[0, 0], [1, 0]], [[1, 0], [1.9, 0.9]]
    assert partners(*corner, "sqeuclidean") == [0, 1] and partners(*corner, "euclidean") == [1, 0]
    rays = [[10, 0], [1, 1]], [[10, 9], [1, 0]]
    assert partners(*rays, "sqeuclidean") == [0, 1] and partners(*rays, "cosine") == [1, 0]


def test_sinkhorn_that_did_not_converge_says_so():
    x, y = clouds(30, 30, d=50)
    C = transport_cost(x, y)
    assert coupling(C, "entropic", 0.002, iterations=3)[1] > 0.01
    assert coupling(C, "entropic", 0.3 * C.mean().item())[1] < 0.01


def test_partners_follow_the_plan_given_the_row():
    """Every perturbed cell draws once, from its own row; frequencies within 5 sigma of the plan."""
    plan = torch.tensor([[0.1, 0.3, 0.1], [0.0, 0.25, 0.25]], dtype=torch.float64)
    n = 40_000
    g = torch.Generator().manual_seed(0)
    drawn = draw_partners(plan.repeat_interleave(n, 0), g).view(2, n)
    for row, p in zip(drawn, plan / plan.sum(1, keepdim=True)):
        share = torch.bincount(row, minlength=3) / n
        assert ((share - p).abs() <= 5 * (p * (1 - p) / n).sqrt() + 1e-12).all()


def test_pairing_recovers_a_small_displacement_and_random_pairing_does_not():
    x, _ = clouds(60, 60, d=30)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(1))
    moved = x + 0.1
    right = {}
    for method in ("exact", "entropic", "random"):
        partner, *_ = pair(moved, x[order], Settings(pairing=method, epsilon="0.01"), torch.Generator().manual_seed(2))
        right[method] = (order[partner] == torch.arange(60)).double().mean().item()
    assert right["exact"] == 1 and right["entropic"] > 0.95 and right["random"] < 0.2


def test_pairing_scores_know_a_perfect_pairing_and_chance():
    """`toy_data.py pairing`: recovered, share of the pool that is nearer, distance over chance."""
    x, _ = clouds(200, 1)
    x, order = x.numpy(), np.arange(200)
    assert against_truth(x, x, order) == (1.0, 0.0, 0.0)
    found, nearer, distance = against_truth(x, x, np.random.default_rng(0).permutation(200))
    assert found < 0.05 and abs(nearer - 0.5) < 5 * 0.29 / 200 ** 0.5 and distance == pytest.approx(1, abs=0.1)
    second = np.linalg.norm(x[:, None] - x, axis=2).argsort(1)[:, 1]       # each cell's nearest other
    assert against_truth(x, x, second)[1] == pytest.approx(1 / 199)


def test_gene_spaces_are_the_genes_their_leading_axes_and_the_highest():
    x = np.random.default_rng(0).normal(size=(400, 60)).astype(np.float32) * np.linspace(0.1, 2, 60) + np.arange(60)
    spaces = {name: torch.from_numpy(x.astype(np.float32)) @ axes for name, axes in gene_spaces(x.astype(np.float32)).items()}
    assert torch.allclose(spaces["all genes"], torch.from_numpy(x).float())
    assert torch.allclose(spaces["50 highest genes"].sort(1).values, torch.from_numpy(x[:, 10:]).float().sort(1).values)
    leading = np.linalg.eigvalsh(np.cov(x.T))[::-1][:20]
    assert np.allclose(np.cov(spaces["20 PCs"].numpy().T), np.diag(leading), atol=1e-2)


def test_plan_information_is_0_for_independent_pairs_and_1_for_an_assignment():
    """In between it is the mutual information by hand, over log n; a plan of unequal sides is measured by the shorter."""
    assert abs(plan_information(torch.full((5, 7), 1 / 35))) < 1e-6
    assert plan_information(torch.eye(6)[torch.randperm(6)] / 6) == pytest.approx(1, abs=1e-6)
    P = torch.tensor([[0.4, 0.1], [0.1, 0.4]])
    assert plan_information(P) == pytest.approx((2 * 0.4 * math.log(1.6) + 2 * 0.1 * math.log(0.4)) / math.log(2), abs=1e-6)
    assert plan_information(torch.eye(3).repeat_interleave(2, 0) / 6) == pytest.approx(1, abs=1e-6)
    assert plan_information(torch.ones(1, 4) / 4) == 1


def test_training_pairs_every_perturbed_cell_once_with_a_near_control_of_its_type(tmp_path):
    """And halves the controls for null pairs: no cell is on both sides. Each epoch's generator draws other pairs."""
    simulate_screen(30, 3, 600, seed=0).write_h5ad(tmp_path / "s.h5ad")
    screen = data.prepare(str(tmp_path / "s.h5ad"), fraction=0)
    groups = list(screen.training_groups())
    drawn = lambda seed, **options: draw_pairs(screen, Cells(screen.X, "cpu"), groups, Settings(pairing_batch=40, **{"pairing": "exact", **options}),  # noqa: E731
                                               torch.Generator().manual_seed(seed), "cpu")
    sources, ends, which, plans = drawn(0)
    perturbed = screen.perturbation[ends] != "control"
    assert np.array_equal(np.sort(ends[perturbed]), np.flatnonzero(screen.perturbation != "control")) and plans[:, 0].max() < 1e-6 < 0.99 < plans[:, 1].min()
    assert (screen.perturbation[sources] == "control").all() and (screen.cell_type[sources] == screen.cell_type[ends]).all()
    assert [groups[g] for g in which] == list(zip(screen.perturbation[ends], screen.cell_type[ends]))
    assert not set(sources[~perturbed]) & set(ends[~perturbed]) and (~perturbed).sum() > 50
    x, y = screen.dense(sources), screen.dense(ends)
    random = screen.dense(drawn(0, pairing="random")[0])
    assert np.allclose(drawn(0, pairing="random")[3][:, 1], 0, atol=1e-5)
    assert ((x - y) ** 2).sum() < 0.9 * ((random - screen.dense(drawn(0, pairing="random")[1])) ** 2).sum()
    assert not np.array_equal(drawn(1)[0], sources) and np.array_equal(drawn(0)[0], sources)
    assert (screen.perturbation[drawn(0, null_pairs=False)[1]] != "control").all()
