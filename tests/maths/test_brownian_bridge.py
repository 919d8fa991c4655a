"""The Brownian bridge and its sampler (Eq. 2 to 8 and 16), in float64.

Every draw here is linear in its Gaussian noise, so two calls tell its law exactly: without noise it
is the mean, and what the noise adds, divided by the noise itself, is the standard deviation.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from departures import Noise, bridge_drift, bridge_sample, euler_maruyama_step

LEVEL = st.floats(-5, 5)
SIGMA = st.floats(0.05, 3)
TIME = st.floats(0, 1)


def number(value):
    """One number as a batch of one cell with one gene, (1, 1)."""
    return torch.tensor([[value]], dtype=torch.float64)


ZERO = number(0.0)
ONE = number(1.0)


def law(draw, sigma):
    """Mean and standard deviation of draw(sigma, noise), which is linear in one normal number."""
    z = Noise(1).normal(ZERO)
    mean = draw(0.0, Noise(1))
    return mean, (draw(sigma, Noise(1)) - mean) / z


def bridge_law(x0, xT, t, sigma):
    """Mean and standard deviation of x_t on a bridge, as tensors (1, 1)."""

    def draw(sigma, noise):
        return bridge_sample(number(x0), number(xT), number(t), sigma, noise)

    return law(draw, sigma)


def bridge_variance(t, sigma):
    return bridge_law(0.0, 0.0, t, sigma)[1].item() ** 2


# ---- The bridge: Eq. 4 and 7 ---------------------------------------------------------------------


@given(LEVEL, LEVEL, TIME, SIGMA)
def test_the_bridge_has_mean_and_variance_of_eq_7(x0, xT, t, sigma):
    """x_t ~ N((1 - t) x_0 + t x_T, sigma^2 t (1 - t))."""
    mean, sd = bridge_law(x0, xT, t, sigma)
    assert mean.item() == pytest.approx(x0 + t * (xT - x0), abs=1e-12)
    assert sd.item() ** 2 == pytest.approx(sigma**2 * t * (1 - t), abs=1e-9)


@given(LEVEL, LEVEL, SIGMA)
def test_the_bridge_meets_both_ends(x0, xT, sigma):
    """However large the noise, x_t is x_0 at t = 0 and x_T at t = T."""
    ends = [number(x0), number(xT)]
    assert torch.equal(bridge_sample(*ends, ZERO, sigma, Noise(0)), ends[0])
    assert torch.equal(bridge_sample(*ends, ONE, sigma, Noise(0)), ends[1])


def variance_of_eq_7(t, covariance):
    """Variance of B_t - t B_T for the covariance (2, 2) of B_t and B_T."""
    weights = np.array([1, -t])
    return weights @ np.array(covariance) @ weights


@given(TIME, SIGMA)
def test_brownian_motion_of_variance_t_gives_the_bridge(t, sigma):
    """Eq. 7, corrected: B_t ~ N(0, t Id), so that Cov(B_t, B_T) = t."""
    expected = variance_of_eq_7(t, [[t, t], [t, 1]])
    assert bridge_variance(t, sigma) == pytest.approx(sigma**2 * expected, abs=1e-9)


@given(st.floats(0, 0.45), st.floats(-1, 1), SIGMA)
def test_the_printed_eq_7_gives_too_much_variance(t, correlation, sigma):
    """B_t ~ N(0, Id) misses the bridge before T / 2, however B_t and B_T may be correlated."""
    printed = variance_of_eq_7(t, [[1, correlation], [correlation, 1]])
    assert sigma**2 * printed > 1.1 * bridge_variance(t, sigma)


def draw_of_the_bridge(x, noise):
    return bridge_sample(x, x, number(0.5), 1.0, noise)


def draw_of_the_sampler(x, noise):
    return euler_maruyama_step(x, x, 0.5, 0.1, 1.0, noise)


@pytest.mark.parametrize("draw", [draw_of_the_bridge, draw_of_the_sampler])
def test_every_gene_of_every_cell_has_noise_of_its_own(draw):
    """The law of one entry is proved elsewhere; here no two of 6,000 share a random number."""
    x = torch.zeros(300, 20, dtype=torch.float64)
    assert len(draw(x, Noise(0)).unique()) == x.numel()


# ---- Its drift: Eq. 2, 5 and 8 -------------------------------------------------------------------


@given(LEVEL, LEVEL, st.floats(0, 0.95), SIGMA)
def test_the_drift_is_doobs_transform_of_brownian_motion(x, xT, t, sigma):
    """Eq. 2: sigma^2 times the gradient in x of log N(x_T; x, sigma^2 (1 - t))."""
    x = number(x).requires_grad_()
    transition = torch.distributions.Normal(x, sigma * math.sqrt(1 - t))
    (score,) = torch.autograd.grad(transition.log_prob(number(xT)).sum(), x)
    assert torch.allclose(sigma**2 * score, bridge_drift(x.detach(), number(xT), t), atol=1e-9)


def gradient(y, x):
    return torch.autograd.grad(y.sum(), x, create_graph=True)[0]


@settings(deadline=None)
@given(LEVEL, LEVEL, st.floats(0.05, 0.95), st.floats(0.3, 2), st.floats(-2, 2))
def test_density_and_drift_solve_the_fokker_planck_equation(x0, xT, t, sigma, away):
    """dp/dt = -d(v p)/dx + sigma^2 / 2 d2p/dx2: p is the density of Eq. 7, v the drift of Eq. 5."""
    t = number(t).requires_grad_()

    def draw(sigma, noise):
        return bridge_sample(number(x0), number(xT), t, sigma, noise)

    mean, sd = law(draw, sigma)
    x = (mean + away * sd).detach().requires_grad_()
    p = torch.exp(-0.5 * ((x - mean) / sd) ** 2) / (sd * math.sqrt(2 * math.pi))
    drifts = -gradient(bridge_drift(x, number(xT), t) * p, x)
    spreads = 0.5 * sigma**2 * gradient(gradient(p, x), x)
    expected = (drifts + spreads).item()
    assert gradient(p, t).item() == pytest.approx(expected, rel=1e-6, abs=1e-8)


def carried(s, t):
    """What share of a change of x_s is left at t when x follows the drift of Eq. 5."""

    def slope(u):
        return (bridge_drift(ONE, ZERO, u) - bridge_drift(ZERO, ZERO, u)).item()

    return math.exp(quad(slope, s, t)[0])


TWO_TIMES = st.tuples(st.floats(0.02, 0.95), st.floats(0.02, 0.95)).map(sorted)


@settings(deadline=None)
@given(TWO_TIMES, SIGMA)
def test_two_times_of_the_bridge_have_covariance_sigma2_s_1_minus_t(times, sigma):
    """Eq. 4: Cov(X_s, X_t), with X_s by Eq. 7, which the drift of Eq. 5 carries to X_t."""
    s, t = times
    covariance = carried(s, t) * bridge_variance(s, sigma)
    assert covariance == pytest.approx(sigma**2 * s * (1 - t), abs=1e-9)


@settings(deadline=None, max_examples=20)
@given(TWO_TIMES, SIGMA)
def test_the_equation_of_eq_5_spreads_as_eq_7_says(times, sigma):
    """What x_s leaves at t, and the noise of each moment between, add up to the variance at t."""
    s, t = times
    fresh = quad(lambda u: (sigma * carried(u, t)) ** 2, s, t)[0]
    variance = carried(s, t) ** 2 * bridge_variance(s, sigma) + fresh
    assert variance == pytest.approx(bridge_variance(t, sigma), abs=1e-9)


# ---- Its sampler: Eq. 8 and 16 -------------------------------------------------------------------


def sampler_laws(step, steps, sigma, endpoint):
    """The law of x_t at every time of the grid, t = 0 and T included, for a start at 0.

    endpoint(t): (a, b) of the predicted end a + b x_t. Returns three arrays (steps + 1,): means,
    variances, and how much of a change of the start is left.
    """
    h = 1 / steps
    mean, variance, kept = [0.0], [0.0], [1.0]
    for i in range(steps):
        t = i / steps
        a, b = endpoint(t)
        from_zero = step(ZERO, number(a), t, h, 0.0, Noise(0)).item()
        slope = step(ONE, number(a + b), t, h, 0.0, Noise(0)).item() - from_zero

        def draw(sigma, noise, t=t):
            return step(ZERO, ZERO, t, h, sigma, noise)

        sd = law(draw, sigma)[1].item()
        mean.append(from_zero + slope * mean[-1])
        variance.append(slope**2 * variance[-1] + sd**2)
        kept.append(slope * kept[-1])
    return np.array(mean), np.array(variance), np.array(kept)


def known_end(t):
    """The end is 1, wherever x is."""
    return 1.0, 0.0


@settings(deadline=None)
@given(st.integers(2, 60), SIGMA)
def test_with_a_known_end_the_sampler_ends_there_up_to_variance_sigma2_h(steps, sigma):
    """Eq. 16: the mean is on the straight line at every step, and only the last noise is left."""
    mean, variance, _ = sampler_laws(euler_maruyama_step, steps, sigma, known_end)
    assert mean == pytest.approx(np.linspace(0, 1, steps + 1))
    assert variance[-1] == pytest.approx(sigma**2 / steps)


def variance_half_way(step, steps):
    return sampler_laws(step, steps, 0.7, known_end)[1][steps // 2]


def test_half_way_the_error_of_the_samplers_variance_halves_with_the_step():
    """Eq. 16 goes to the bridge of Eq. 7 as h falls."""
    exact = bridge_variance(0.5, 0.7)
    errors = [variance_half_way(euler_maruyama_step, steps) - exact for steps in (20, 40, 80)]
    assert 0 < errors[0] < 0.1 * exact
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.05)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.05)


def printed_step(x, xT, t, h, sigma, noise):
    """Eq. 16 with the noise of Eq. 8 as printed, N(0, Id) a step, however short it is."""
    return x + h * bridge_drift(x, xT, t) + sigma * noise.normal(x)


def test_the_printed_eq_8_has_no_limit_as_the_steps_get_shorter():
    """Half way its variance is 20, 40, 80 times the bridge's and more, for as many steps."""
    for steps in (20, 40, 80):
        assert variance_half_way(printed_step, steps) > steps * bridge_variance(0.5, 0.7)


def exact_step(x, xT, t, h, sigma, noise):
    """What was dropped: x_{t+h} drawn from the bridge between x at t and x_T at T."""
    left = max(1 - t - h, 0.0)
    spread = sigma * math.sqrt(h * left / (1 - t))
    return x + h * bridge_drift(x, xT, t) + spread * noise.normal(x)


def test_with_a_known_end_the_exact_step_leaves_no_noise():
    """The exact step below is what its name says: at every step it has the variance of Eq. 7."""
    variance = sampler_laws(exact_step, 10, 0.7, known_end)[1]
    expected = [bridge_variance(i / 10, 0.7) for i in range(11)]
    assert variance == pytest.approx(expected, abs=1e-12)


def variance_with_the_mean_endpoint(step, sigma, steps=50):
    """The variance at T from standard normal starts, which should end standard normal.

    Paired as Schroedinger would, both have the covariance c, and x_theta at its best is the mean
    E[x_T | x_t], the regression of x_T on x_t.
    """
    c = (math.sqrt(4 + sigma**4) - sigma**2) / 2

    def endpoint(t):
        covariance = (1 - t) * c + t
        variance = (1 - t) ** 2 + t**2 + 2 * t * (1 - t) * c + sigma**2 * t * (1 - t)
        return 0.0, covariance / variance

    _, variance, kept = sampler_laws(step, steps, sigma, endpoint)
    return kept[-1] ** 2 + variance[-1]


SOME_SIGMAS = pytest.mark.parametrize("sigma", [0.2, 0.5, 1.0])


@SOME_SIGMAS
def test_with_the_mean_endpoint_eq_16_is_right_within_sigma2_h(sigma):
    """A network predicts a mean. For sigma = 0.2 and 50 steps the bound is 0.0008."""
    assert abs(variance_with_the_mean_endpoint(euler_maruyama_step, sigma) - 1) < sigma**2 / 50


@SOME_SIGMAS
def test_with_the_mean_endpoint_the_exact_step_loses_variance(sigma):
    """Between half and all of sigma^2 h (log(1/h) + 0.6), which is 0.0036 for sigma = 0.2."""
    lost = 1 - variance_with_the_mean_endpoint(exact_step, sigma)
    most = sigma**2 / 50 * (math.log(50) + 0.6)
    assert 0.5 * most < lost < most
