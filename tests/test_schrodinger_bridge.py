"""The Schroedinger bridge between Gaussians: closed forms against each other, the pairing that approximates it, a trained bridge."""
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import toy_data
from departures import Settings, bridge_drift, coupling, regularisation, transport_cost
from toy_data import fit_bridge, learned_covariance, paired, schrodinger_covariance

scale = st.floats(0.3, 2)


def covariance(d, seed):
    rng = np.random.default_rng(seed)
    rotation = stats.ortho_group.rvs(d, random_state=rng) if d > 1 else np.eye(1)
    return (rotation * rng.uniform(0.3, 2, d)) @ rotation.T


@given(scale, scale, scale)
def test_one_dimensional_closed_form(s0, s1, sigma):
    """Fact 6: c* = (sqrt(4 s0^2 s1^2 + sigma^4) - sigma^2) / 2."""
    c = schrodinger_covariance(np.array([[s0 ** 2]]), np.array([[s1 ** 2]]), sigma)
    assert c.item() == pytest.approx((math.sqrt(4 * s0 ** 2 * s1 ** 2 + sigma ** 4) - sigma ** 2) / 2)


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(0, 999), scale)
def test_closed_form_is_the_coupling_that_brownian_motion_would_give(d, seed, sigma):
    """Fact 6: a coupling is Schroedinger's if its density is a(x) b(y) exp(x.y / sigma^2): then, and only then, the off-diagonal block
    of the joint precision is -I / sigma^2."""
    S0, S1 = covariance(d, seed), covariance(d, seed + 1000)
    C = schrodinger_covariance(S0, S1, sigma)
    precision = np.linalg.inv(np.block([[S0, C], [C.T, S1]]))
    assert np.allclose(precision[:d, d:], -np.eye(d) / sigma ** 2, atol=1e-6 / sigma ** 2)


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 4), st.integers(0, 99), st.floats(0.5, 1.5))
def test_closed_form_is_the_fixed_point_of_training_and_independent_pairs_move_towards_it(d, seed, sigma):
    """Fact 6: a perfectly trained bridge returns Schroedinger's coupling unchanged; independent pairs come back nearer to it, twice."""
    S0, S1 = covariance(d, seed), covariance(d, seed + 1000)
    C = schrodinger_covariance(S0, S1, sigma)
    assert np.allclose(learned_covariance(C, S0, S1, sigma), C, atol=1e-6)
    first = learned_covariance(np.zeros((d, d)), S0, S1, sigma)
    off = [np.linalg.norm(c - C) for c in (np.zeros((d, d)), first, learned_covariance(first, S0, S1, sigma))]
    assert off[1] < 0.5 * off[0] and off[2] < off[1]


@pytest.mark.parametrize("c", [-0.4, 0.0, 0.5, 0.9])
def test_learned_covariance_is_what_the_drift_of_eq_8_does(c):
    """d/dt Cov(x_0, x_t) = Cov(x_0, v(x_t)), stepped with bridge_drift and E[x_T | x_t] by least squares on the joint moments."""
    s0, s1, sigma, steps = 1.0, 1.3, 0.8, 4000
    start_cov, h = s0, 1 / steps
    for i in range(steps):
        t = (i + 0.5) * h
        variance = (1 - t) ** 2 * s0 + t ** 2 * s1 + 2 * t * (1 - t) * c + sigma ** 2 * t * (1 - t)
        end = ((1 - t) * c + t * s1) / variance                            # E[x_T | x_t = 1]
        start_cov *= math.exp(h * bridge_drift(1.0, end, t))               # linear drift
    assert learned_covariance(*(np.array([[v]]) for v in (c, s0, s1)), sigma).item() == pytest.approx(start_cov, rel=1e-4)


@pytest.mark.parametrize("s0, s1, sigma", [(1.0, 1.0, 1.0), (0.7, 1.4, 0.8), (1.5, 0.6, 0.5)])
def test_entropic_pairing_with_the_bridges_epsilon_is_the_schroedinger_coupling(s0, s1, sigma):
    """Fact 11: the plan between the quantiles of two Gaussians, cost |x - y|^2, epsilon 'bridge' = 2 sigma^2: its covariance is c*."""
    z = torch.as_tensor(stats.norm.ppf((np.arange(600) + 0.5) / 600))[:, None]
    x, y = s0 * z, s1 * z
    C = transport_cost(y, x)
    plan, error = coupling(C, "entropic", regularisation(C, "sqeuclidean", "bridge", sigma), tolerance=1e-6)
    c = schrodinger_covariance(np.array([[s0 ** 2]]), np.array([[s1 ** 2]]), sigma).item()
    assert error < 1e-4 and (y.T @ plan @ x).item() == pytest.approx(c, rel=0.01)
    for wrong in (sigma ** 2, 4 * sigma ** 2):
        assert abs((y.T @ coupling(C, "entropic", wrong)[0] @ x).item() / c - 1) > 0.02


@pytest.mark.parametrize("d, how, tolerance", [(1, "entropic", 0.1), (1, "random", 0.1), (3, "exact", 0.15)])
def test_trained_bridge_matches_the_closed_forms_end_to_end(d, how, tolerance):
    """Pairs of two Gaussians, the project's pairing, loss, networks and sampler: terminal mean and covariance are the target's; the
    start-end covariance is the closed form's, or for other pairs the one that a perfect bridge would learn from them."""
    sigma, S0, S1, rng = 1.0, covariance(d, 1), covariance(d, 2), np.random.default_rng(0)
    x0, xT = rng.multivariate_normal(np.zeros(d), S0, 8192), rng.multivariate_normal(np.ones(d), S1, 8192)
    partner = paired(x0, xT, 128, Settings(sigma=sigma, pairing=how, epsilon="bridge"), torch.Generator().manual_seed(0))
    pairs = np.cov(partner.T, xT.T)[:d, d:]
    start = rng.multivariate_normal(np.zeros(d), S0, 20_000)
    end = fit_bridge(partner, xT, sigma)(start)
    joint = np.cov(start.T, end.T)
    off = lambda A, B: np.linalg.norm(A - B) / np.linalg.norm(B)  # noqa: E731
    assert np.abs(end.mean(0) - 1).max() < 0.07 and off(joint[d:, d:], S1) < tolerance
    assert off(joint[:d, d:], learned_covariance(pairs, S0, S1, sigma)) < tolerance
    target = schrodinger_covariance(S0, S1, sigma)
    if how == "entropic":
        assert off(pairs, target) < 0.05 and off(joint[:d, d:], target) < tolerance
    if how == "random":
        assert off(pairs, target) > 0.9 and 0.06 < off(joint[:d, d:], target) < 0.3


def test_gaussian_demonstration_returns_its_numbers_and_draws_them(tmp_path, monkeypatch):
    """`python toy_data.py gaussian`, with bridges that hardly train."""
    monkeypatch.setattr(toy_data, "fit_bridge", lambda *a, **k: fit_bridge(*a, **{**k, "steps": 2}))
    table = toy_data.gaussian(str(tmp_path), dimensions=(1, 2), batches=(64,), pairs=256)
    assert len(table) == 6 and (tmp_path / "gaussian.png").stat().st_size > 10_000
    exact, entropic, random = (table[(table["pairing"] == how) & (table["dimensions"] == 1)]["pairs"].iloc[-1]
                               for how in ("exact", "entropic", "random"))
    assert exact > entropic > 0.6 > 0.3 > abs(random)
