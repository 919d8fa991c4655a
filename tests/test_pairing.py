"""Facts about the transport plans and the pairs drawn from them."""
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from departures import Settings, coupling, draw_partners, pair, regularisation, transport_cost


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


@pytest.mark.parametrize("n", [2, 4, 6])
def test_exact_plan_is_the_cheapest_assignment(n):
    """Against all n! of them."""
    x, y = clouds(n, n, seed=n)
    C = transport_cost(x, y)
    plan, _ = coupling(C, "exact")
    best = min(sum(C[i, p[i]].item() for i in range(n)) for p in itertools.permutations(range(n))) / n
    assert abs((plan * C).sum().item() - best) < 1e-9


def test_entropic_plan_has_the_sinkhorn_form():
    """log(P_ij P_kl / (P_il P_kj)) = -(C_ij + C_kl - C_il - C_kj) / epsilon: the certificate of entropic optimality."""
    x, y = clouds(6, 8)
    C, epsilon = transport_cost(x, y), 1.7
    plan, _ = coupling(C, "entropic", epsilon)
    cross = lambda A: A[:-1, :-1] + A[1:, 1:] - A[:-1, 1:] - A[1:, :-1]  # noqa: E731
    assert torch.allclose(cross(plan.log()), -cross(C) / epsilon, atol=1e-6)


def test_entropic_cost_lies_between_exact_and_random_and_grows_with_epsilon():
    x, y = clouds(20, 20)
    C = transport_cost(x, y)
    price = lambda *a: (coupling(C, *a)[0] * C).sum().item()  # noqa: E731
    entropic = [price("entropic", e) for e in (0.1, 1.0, 10.0, 1000.0)]
    assert price("exact") <= entropic[0] < entropic[1] < entropic[2] < entropic[3] <= price("random") + 1e-6
    assert entropic[0] < 1.1 * price("exact") and entropic[3] > 0.99 * price("random")


def test_bridge_epsilon_is_2_sigma_squared_and_only_for_the_squared_cost():
    C = transport_cost(*clouds(5, 5))
    assert regularisation(C, "sqeuclidean", "bridge", 0.2) == pytest.approx(2 * 0.2 ** 2)
    assert regularisation(C, "cosine", "0.1", 0.2) == pytest.approx(0.1 * C.mean().item())
    assert regularisation(C, "cosine", "0.1max", 0.2) == pytest.approx(0.1 * C.max().item())
    with pytest.raises(ValueError, match="squared Euclidean"):
        regularisation(C, "euclidean", "bridge", 0.2)


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
        partner, _ = pair(moved, x[order], Settings(pairing=method, epsilon="0.01"), torch.Generator().manual_seed(2))
        right[method] = (order[partner] == torch.arange(60)).double().mean().item()
    assert right["exact"] == 1 and right["entropic"] > 0.95 and right["random"] < 0.2
