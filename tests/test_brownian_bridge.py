"""Facts about the Brownian bridge and its samplers, in float64.

Every function here is affine in its Gaussian noise, so its law is known exactly from two calls: with sigma = 0 it returns the mean,
and the difference at sigma, divided by the noise that the same seed gives, is the standard deviation. Nothing is averaged.
"""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from departures import Departures, Settings, bridge_drift, bridge_sample, euler_maruyama_step, exact_bridge_step

level, scale = st.floats(-5, 5), st.floats(0.05, 3)
inside = st.floats(0.02, 0.98)


def f64(*values):
    return [torch.tensor([[v]], dtype=torch.float64) for v in values]


def law(f, sigma):
    """Mean and standard deviation of f(sigma, generator), which is affine in one draw of torch.randn."""
    z = torch.randn(1, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    mean = f(0.0, torch.Generator().manual_seed(1))
    return mean, (f(sigma, torch.Generator().manual_seed(1)) - mean) / z


@given(level, level, st.floats(0, 1), scale)
def test_bridge_has_the_interpolated_mean_and_variance_sigma2_t_1_minus_t(x0, xT, t, sigma):
    """Fact 1, Eq. 7: N((1-t) x0 + t xT, sigma^2 t (1-t)); at 0 and at T it is pinned to its ends."""
    x0, xT, time = f64(x0, xT, t)
    mean, sd = law(lambda s, g: bridge_sample(x0, xT, time, s, g), sigma)
    assert mean.item() == pytest.approx((x0 + t * (xT - x0)).item(), abs=1e-12)
    assert sd.item() ** 2 == pytest.approx(sigma ** 2 * t * (1 - t), abs=1e-9)


@given(inside, inside, scale, level, level)
def test_bridge_covariance_between_two_times_is_sigma2_s_1_minus_t(a, b, sigma, x0, xT):
    """Fact 1: bridge_sample at s, then the exact step to t: Cov(X_s, X_t) = sigma^2 s (1-t), and X_t has bridge_sample's own law."""
    s, t = sorted((a, b))
    if t - s < 1e-3:
        return
    x0, xT, time, zero, one = f64(x0, xT, s, 0.0, 1.0)
    mean_s, sd_s = law(lambda g, r: bridge_sample(x0, xT, time, g, r), sigma)
    mean_t, sd_t = law(lambda g, r: exact_bridge_step(mean_s, xT, s, t - s, g, r), sigma)
    carried = (exact_bridge_step(one, xT, s, t - s, 0.0) - exact_bridge_step(zero, xT, s, t - s, 0.0)).item()
    assert carried * sd_s.item() ** 2 == pytest.approx(sigma ** 2 * s * (1 - t), abs=1e-9)
    assert carried ** 2 * sd_s.item() ** 2 + sd_t.item() ** 2 == pytest.approx(sigma ** 2 * t * (1 - t), abs=1e-9)
    assert mean_t.item() == pytest.approx(bridge_sample(x0, xT, f64(t)[0], 0.0).item(), abs=1e-9)


def test_every_gene_of_every_cell_has_its_own_noise():
    """The two facts above are about one entry; here: no two entries share a draw, in any sampler."""
    zero, t = torch.zeros(300, 20), torch.full((300, 1), 0.5)
    for x in (bridge_sample(zero, zero, t, 1.0, torch.Generator().manual_seed(0)),
              euler_maruyama_step(zero, zero, 0.5, 0.1, 1.0, torch.Generator().manual_seed(0)),
              exact_bridge_step(zero, zero, 0.5, 0.1, 1.0, torch.Generator().manual_seed(0))):
        assert len(x.unique()) > 5900                                      # float32 draws repeat now and then


@given(level, level, st.floats(0, 0.95), scale)
def test_drift_is_doobs_transform_of_brownian_motion(x, xT, t, sigma):
    """Fact 2, Eq. 5 and 8: sigma^2 d/dx log N(xT; x, sigma^2 (1-t)), by autograd."""
    x, xT = (torch.tensor(v, dtype=torch.float64) for v in (x, xT))
    x.requires_grad_()
    density = torch.distributions.Normal(x, sigma * math.sqrt(1 - t)).log_prob(xT)
    score, = torch.autograd.grad(density, x)
    assert torch.allclose(sigma ** 2 * score, bridge_drift(x.detach(), xT, t), atol=1e-9)


@settings(deadline=None)
@given(level, level, st.floats(0.05, 0.95), st.floats(0.3, 2), st.floats(-2, 2))
def test_density_and_drift_solve_the_fokker_planck_equation(x0, xT, t, sigma, away):
    """Fact 3: dp/dt = -d(v p)/dx + sigma^2/2 d2p/dx2 by autograd, p from bridge_sample's mean and spread, v from bridge_drift."""
    x0, xT = f64(x0, xT)
    time = torch.tensor([[t]], dtype=torch.float64, requires_grad=True)
    mean, sd = law(lambda s, g: bridge_sample(x0, xT, time, s, g), sigma)
    x = (mean + away * sd).detach().requires_grad_()
    p = torch.exp(-0.5 * ((x - mean) / sd) ** 2) / (sd * math.sqrt(2 * math.pi))
    grad = lambda y, v: torch.autograd.grad(y.sum(), v, create_graph=True)[0]  # noqa: E731
    flow = -grad(bridge_drift(x, xT, time) * p, x) + 0.5 * sigma ** 2 * grad(grad(p, x), x)
    assert grad(p, time).item() == pytest.approx(flow.item(), rel=1e-6, abs=1e-8)


def through_steps(step, steps, sigma, endpoint=lambda t: (0.0, 1.0)):
    """Mean from 0, variance from 0 and the start's coefficient after `steps` steps where x̂_T = b x + a, (b, a) = endpoint(t)."""
    variance, kept, mean, h, zero, one = 0.0, 1.0, 0.0, 1 / steps, *f64(0.0, 1.0)
    for i in range(steps):
        b, a = endpoint(i * h)
        rate = (step(one, b * one + a, i * h, h, 0.0) - step(zero, zero + a, i * h, h, 0.0)).item()
        _, sd = law(lambda s, g: step(zero, zero, i * h, h, s, g), sigma)
        mean = step(torch.full_like(zero, mean), torch.full_like(zero, b * mean + a), i * h, h, 0.0).item()
        variance, kept = rate ** 2 * variance + sd.item() ** 2, rate * kept
    return mean, variance, kept


@settings(deadline=None)
@given(st.integers(2, 60), st.floats(0.1, 2))
def test_samplers_with_an_oracle_endpoint_leave_sigma2_h_and_nothing(steps, sigma):
    """Fact 4: both end at the endpoint on average; Euler-Maruyama off by variance sigma^2 h, the exact step by none."""
    mean, variance, _ = through_steps(euler_maruyama_step, steps, sigma)
    assert mean == pytest.approx(1) and variance == pytest.approx(sigma ** 2 / steps)
    mean, variance, _ = through_steps(exact_bridge_step, steps, sigma)
    assert mean == pytest.approx(1) and variance == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("sigma", [0.2, 0.5, 1.0])
def test_with_the_mean_endpoint_the_exact_step_loses_variance_and_eq_16_does_not(sigma):
    """Fact 4's other side. Between standard normals in the Schroedinger coupling, E[x_T | x_t] = g(t) x_t. From x_0 ~ N(0, 1) the end's
    variance should be 1: the exact step lacks up to sigma^2 h (log(1/h) + 0.6), Euler-Maruyama is within sigma^2 h."""
    c = (math.sqrt(4 + sigma ** 4) - sigma ** 2) / 2
    g = lambda t: (((1 - t) * c + t) / ((1 - t) ** 2 + t ** 2 + t * (1 - t) * (2 * c + sigma ** 2)), 0.0)  # noqa: E731
    end = {}
    for step in (exact_bridge_step, euler_maruyama_step):
        _, variance, kept = through_steps(step, 50, sigma, g)
        end[step] = kept ** 2 + variance
    assert 0.5 < (1 - end[exact_bridge_step]) / (sigma ** 2 / 50 * (math.log(50) + 0.6)) < 1
    assert abs(end[euler_maruyama_step] - 1) < sigma ** 2 / 50


@settings(deadline=None)
@given(scale, scale, st.floats(-0.95, 0.95), scale, st.floats(0, 1))
def test_gate_is_the_regression_of_the_end_on_the_middle(s0, sT, correlation, sigma, t):
    """Fact 5: Cov(x_T, x_t) / Var(x_t) for Gaussian ends, x_t's weights read off bridge_sample; g(T) = 1."""
    model = Departures(Settings(sigma=sigma), ["g"], ["p"], ["c"]).double()
    with torch.no_grad():
        model.log_scale[0], model.log_scale[1], model.correlation[:] = math.log(s0), math.log(sT), math.atanh(correlation)
    zero, one, time = f64(0.0, 1.0, t)
    on_start, on_end = (bridge_sample(a, b, time, 0.0).item() for a, b in ((one, zero), (zero, one)))
    _, sd = law(lambda s, g: bridge_sample(zero, zero, time, s, g), sigma)
    ends = np.array([[s0 ** 2, correlation * s0 * sT], [correlation * s0 * sT, sT ** 2]])
    w = np.array([on_start, on_end])
    slope = (w @ ends)[1] / (w @ ends @ w + sd.item() ** 2)
    assert model.gate(time).item() == pytest.approx(slope, rel=1e-5, abs=1e-7)
    assert model.gate(torch.ones(1, 1, dtype=torch.float64)).item() == pytest.approx(1)


def test_training_finds_the_closed_form_regression():
    """Fact 5, trained: least squares on bridges between correlated normals moves the gate to E[x_T | x_t], from another start."""
    s0, sT, correlation, sigma = 0.6, 1.5, 0.8, 0.5
    torch.manual_seed(0)
    model, g = Departures(Settings(sigma=sigma), ["g"], ["p"], ["c"]), torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam([model.log_scale, model.correlation], lr=0.03)
    cooling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, 300)
    for _ in range(300):
        a, b, t = torch.randn(4096, 1, generator=g), torch.randn(4096, 1, generator=g), torch.rand(4096, 1, generator=g)
        x0, xT = s0 * a, sT * (correlation * a + math.sqrt(1 - correlation ** 2) * b)
        xt = bridge_sample(x0, xT, t, sigma, g)
        optimiser.zero_grad()
        ((xT - model.gate(t) * xt) ** 2).mean().backward()
        optimiser.step()
        cooling.step()
    t = torch.linspace(0, 1, 11)[:, None]
    c = correlation * s0 * sT
    closed = ((1 - t) * c + t * sT ** 2) / ((1 - t) ** 2 * s0 ** 2 + t ** 2 * sT ** 2 + t * (1 - t) * (2 * c + sigma ** 2))
    assert closed[0].item() == pytest.approx(2.0, abs=0.01) and closed.max() - closed.min() > 0.8      # it is not a constant
    assert (model.gate(t) - closed).abs().max() < 0.06
