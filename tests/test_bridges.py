"""Facts about the two bridges. Formulas are checked in float64; Monte Carlo with a fixed seed and a 5 sigma bound."""
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from departures import (KAPPA, KAPPA_DOT, bridge_drift, bridge_sample, ctmc_rate, ctmc_step, euler_maruyama_step,
                        exact_bridge_step, mixture_sample)

n = 200_000


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def close_mean(samples, expected, sd):
    assert abs(samples.mean().item() - expected) < 5 * sd / math.sqrt(len(samples))


def close_variance(samples, expected):
    """The variance of a Gaussian sample has standard error variance * sqrt(2 / n)."""
    assert abs(samples.var().item() - expected) < 5 * expected * math.sqrt(2 / len(samples))


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_bridge_marginal_has_the_interpolated_mean_and_variance_sigma2_t_1_minus_t(t):
    """Eq. 7: N((1-t) x0 + t xT, sigma^2 t (1-t))."""
    x0, xT = torch.full((n, 1), -1.0, dtype=torch.float64), torch.full((n, 1), 2.0, dtype=torch.float64)
    x = bridge_sample(x0, xT, torch.full((n, 1), t, dtype=torch.float64), 0.7, generator())
    close_mean(x, (1 - t) * -1 + t * 2, 0.7 * math.sqrt(t * (1 - t)))
    close_variance(x.squeeze(), 0.49 * t * (1 - t))


def test_bridge_starts_and_ends_at_its_endpoints():
    x0, xT = torch.randn(5, 3, generator=generator()), torch.randn(5, 3, generator=generator(1))
    assert torch.equal(bridge_sample(x0, xT, torch.zeros(5, 1), 0.2, generator()), x0)
    assert torch.equal(bridge_sample(x0, xT, torch.ones(5, 1), 0.2, generator()), xT)


@given(st.floats(-3, 3), st.floats(-3, 3), st.floats(0, 0.95), st.floats(0.1, 2))
def test_drift_is_doobs_transform_of_brownian_motion(x, xT, t, sigma):
    """sigma^2 d/dx log N(xT; x, sigma^2 (1-t)), by autograd."""
    x, xT = (torch.tensor(v, dtype=torch.float64) for v in (x, xT))
    x.requires_grad_()
    density = torch.distributions.Normal(x, sigma * math.sqrt(1 - t)).log_prob(xT)
    score, = torch.autograd.grad(density, x)
    assert torch.allclose(sigma ** 2 * score, bridge_drift(x.detach(), xT, t), atol=1e-9)


@pytest.mark.parametrize("step, left_over", [(euler_maruyama_step, 0.3 ** 2 / 10), (exact_bridge_step, 0.0)])
def test_samplers_with_an_oracle_endpoint_leave_sigma2_h_and_nothing(step, left_over):
    """At T, Euler-Maruyama is off by N(0, sigma^2 h); the exact step is at the endpoint."""
    x, end, h = torch.zeros(n, 1, dtype=torch.float64), torch.full((n, 1), 1.5, dtype=torch.float64), 0.1
    g = generator()
    for i in range(10):
        x = step(x, end, i * h, h, 0.3, g)
    if left_over:
        close_variance(x.squeeze(), left_over)
        close_mean(x, 1.5, math.sqrt(left_over))
    else:
        assert torch.allclose(x, end, atol=1e-6)


@pytest.mark.parametrize("t, h", [(0.0, 0.4), (0.3, 0.2), (0.5, 0.5)])
def test_exact_step_continues_the_bridges_own_law(t, h):
    """bridge_sample at t, then one exact step, has the marginal of bridge_sample at t + h."""
    x0, xT = torch.full((n, 1), 1.0, dtype=torch.float64), torch.full((n, 1), -2.0, dtype=torch.float64)
    g = generator(3)
    x = exact_bridge_step(bridge_sample(x0, xT, torch.full((n, 1), t, dtype=torch.float64), 0.8, g), xT, t, h, 0.8, g)
    s = t + h
    if s < 1:
        close_variance(x.squeeze(), 0.64 * s * (1 - s))
        close_mean(x, (1 - s) * 1 + s * -2, 0.8 * math.sqrt(s * (1 - s)))
    else:
        assert torch.allclose(x, xT)


@pytest.mark.parametrize("kappa", KAPPA)
def test_schedules_run_from_0_to_1_and_know_their_slope(kappa):
    t = torch.linspace(0, 1, 11, dtype=torch.float64, requires_grad=True)
    value = KAPPA[kappa](t)
    slope, = torch.autograd.grad(value.sum(), t)
    assert abs(value[0].item()) < 1e-12 and abs(value[-1].item() - 1) < 1e-12 and (value.diff() > 0).all()
    assert torch.allclose(KAPPA_DOT[kappa](t), slope)


@pytest.mark.parametrize("kappa", KAPPA)
def test_mixture_path_takes_the_end_state_with_probability_kappa_independently(kappa):
    """Eq. 11, and no correlation between genes."""
    t = torch.full((n, 1), 0.3)
    d = mixture_sample(torch.zeros(n, 2), torch.ones(n, 2), t, kappa, generator())
    p = KAPPA[kappa](torch.tensor(0.3)).item()
    for gene in d.T:
        close_mean(gene, p, math.sqrt(p * (1 - p)))
    close_mean(d[:, 0] * d[:, 1], p * p, math.sqrt(p * p * (1 - p * p)))


def joint_path(joint, kappa, t):
    """P(d_t = 1), P(d_T = 1 | d_t = 0), P(d_T = 1 | d_t = 1) of the mixture of a joint law [d_0, d_T] (2, 2), by Bayes."""
    k = KAPPA[kappa](t)
    p = torch.stack([torch.stack([(1 - k) * joint[y, end] + k * joint[:, end].sum() * (y == end) for end in (0, 1)])
                     for y in (0, 1)])                                     # [d_t, d_T]
    return p[1].sum(), p[0, 1] / p[0].sum(), p[1, 1] / p[1].sum()


JOINT = torch.tensor([[0.35, 0.25], [0.1, 0.3]], dtype=torch.float64)


@pytest.mark.parametrize("kappa", KAPPA)
@pytest.mark.parametrize("t", [0.2, 0.5, 0.8])
def test_rate_satisfies_the_kolmogorov_forward_equation_and_the_printed_one_does_not(kappa, t):
    """d/dt P(d_t = 1) = sum over d of u_t(1, d) P(d_t = d) with kappa' / (1 - kappa); Eq. 13's kappa / (1 - kappa) fails."""
    t = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    on, if_off, if_on = joint_path(JOINT, kappa, t)
    slope, = torch.autograd.grad(on, t)
    zero, one = torch.tensor(0.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    flow = ctmc_rate(one, zero, if_off, t, kappa) * (1 - on) + ctmc_rate(one, one, if_on, t, kappa) * on
    assert torch.allclose(flow, slope)
    printed = flow * KAPPA[kappa](t) / KAPPA_DOT[kappa](t)
    assert not torch.allclose(printed, slope, rtol=1e-3)


@given(st.floats(0, 1), st.floats(0, 0.99), st.sampled_from(sorted(KAPPA)))
def test_rates_out_of_a_state_sum_to_zero_and_only_staying_is_negative(p, t, kappa):
    p, t = torch.tensor(p, dtype=torch.float64), torch.tensor(t, dtype=torch.float64)
    for d in (0.0, 1.0):
        rate = [ctmc_rate(torch.tensor(y), torch.tensor(d), p, t, kappa).item() for y in (0.0, 1.0)]
        assert abs(sum(rate)) < 1e-9 * (1 + abs(rate[0]))
        assert rate[int(1 - d)] >= 0 >= rate[int(d)]


@pytest.mark.parametrize("kappa", KAPPA)
@settings(deadline=None)
@given(st.integers(0, 8))
def test_step_matches_the_rate_to_first_order(kappa, i):
    """(p_{t+h} - delta) / h -> u_t: the jump probability of a tiny step, against ctmc_rate. Printed Eq. 17 sums to 1 + h/(T-t)."""
    t, h, m = i / 10 + 0.05, 0.02, 100_000
    d = torch.zeros(m, 1)
    flipped = ctmc_step(d, torch.full((m, 1), 0.7), t, h, kappa, generator(i))
    middle = torch.tensor(t + h / 2, dtype=torch.float64)                  # second order in h
    expected = h * ctmc_rate(torch.tensor(1.0), torch.tensor(0.0), torch.tensor(0.7, dtype=torch.float64), middle, kappa).item()
    slack = 0.05 * expected + 5 * math.sqrt(expected / m)
    assert abs(flipped.mean().item() - expected) < slack


@pytest.mark.parametrize("kappa", KAPPA)
def test_chain_with_the_true_posterior_returns_the_terminal_law_for_one_gene(kappa):
    """The tau-leap of one gene is a mixture step with frozen posterior; its terminal law is exact, its middle within O(h)."""
    g = generator(5)
    d = (torch.rand(n, 1, generator=g) < JOINT[1].sum()).float()
    for i in range(50):
        _, if_off, if_on = joint_path(JOINT, kappa, torch.tensor(i / 50, dtype=torch.float64))
        p_on = torch.where(d == 1, if_on, if_off).float()
        d = ctmc_step(d, p_on, i / 50, 0.02, kappa, g)
    p = JOINT[:, 1].sum().item()
    close_mean(d, p, math.sqrt(p * (1 - p)))


def test_last_step_redraws_every_gene_from_its_posterior():
    assert torch.equal(ctmc_step(torch.zeros(50, 4), torch.ones(50, 4), 0.98, 0.02, "linear", generator()), torch.ones(50, 4))
    assert torch.equal(ctmc_step(torch.ones(50, 4), torch.zeros(50, 4), 0.98, 0.02, "linear", generator()), torch.zeros(50, 4))
