"""The Schroedinger bridge between Gaussians: closed forms, the pairing that has them, and training.

S0 and S1 (d, d) are the covariances of the start and the end, C (d, d) = Cov(x_0, x_T).
"""

import functools
import itertools
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import quad

from course.gaussian import fit_bridge, off, paired
from departures import (
    ImprovedSettings,
    Noise,
    bridge_drift,
    coupling,
    regularisation,
    transport_cost,
)
from toy_data import learned_covariance, schrodinger_covariance
from train import marginal_error

SCALE = st.floats(0.3, 2)
SEED = st.integers(0, 999)


def covariance(d, seed):
    """A random covariance (d, d)."""
    rng = np.random.default_rng(seed)
    rotation = stats.ortho_group.rvs(d, random_state=rng) if d > 1 else np.eye(1)
    return (rotation * rng.uniform(0.3, 2, d)) @ rotation.T


def two_covariances(d, seed):
    return covariance(d, seed), covariance(d, seed + 1000)


def number(value):
    """One number as a covariance (1, 1)."""
    return np.array([[value]])


def closed_form(s0, s1, sigma):
    """c* = (sqrt(4 s0^2 s1^2 + sigma^4) - sigma^2) / 2."""
    return (math.sqrt(4 * s0**2 * s1**2 + sigma**4) - sigma**2) / 2


# ---- The closed form: Eq. 1 ----------------------------------------------------------------------


@given(SCALE, SCALE, SCALE)
def test_in_one_dimension_the_closed_form_is_c_star(s0, s1, sigma):
    """c* = (sqrt(4 s0^2 s1^2 + sigma^4) - sigma^2) / 2."""
    found = schrodinger_covariance(number(s0**2), number(s1**2), sigma).item()
    assert found == pytest.approx(closed_form(s0, s1, sigma))


@settings(deadline=None)
@given(st.integers(1, 6), SEED, SCALE)
def test_the_closed_form_couples_as_brownian_motion_does(d, seed, sigma):
    """Schroedinger's coupling, and no other, has a density a(x) b(y) exp(x.y / sigma^2).

    Between Gaussians that is: the off-diagonal block of the joint precision is -I / sigma^2.
    """
    S0, S1 = two_covariances(d, seed)
    C = schrodinger_covariance(S0, S1, sigma)
    precision = np.linalg.inv(np.block([[S0, C], [C.T, S1]]))
    assert np.allclose(sigma**2 * precision[:d, d:], -np.eye(d), atol=1e-6)


@pytest.mark.parametrize("s0, s1, sigma", [(1.0, 1.0, 1.0), (0.7, 1.4, 0.8), (1.5, 0.6, 0.5)])
def test_entropic_pairing_with_the_bridges_epsilon_has_that_covariance(s0, s1, sigma):
    """Cost |x - y|^2 and epsilon 2 sigma^2, between 400 quantiles of two normals."""
    quantiles = Quantiles(s0, s1)
    epsilon = regularisation(quantiles.cost(), "sqeuclidean", "bridge", sigma)
    plan = coupling(quantiles.cost(), "entropic", epsilon, tolerance=1e-6)
    assert marginal_error(plan) < 1e-4
    assert quantiles.covariance(plan) == pytest.approx(closed_form(s0, s1, sigma), rel=0.015)


@pytest.mark.parametrize("factor", [1, 4])
def test_half_or_twice_that_epsilon_has_another_covariance(factor):
    """Epsilon sigma^2 belongs to half the squared distance."""
    quantiles = Quantiles(0.7, 1.4)
    plan = coupling(quantiles.cost(), "entropic", factor * 0.8**2)
    assert abs(quantiles.covariance(plan) / closed_form(0.7, 1.4, 0.8) - 1) > 0.05


class Quantiles(NamedTuple):
    """400 quantiles of N(0, s0^2) and of N(0, s1^2), as cells of one gene."""

    s0: float
    s1: float

    def cells(self):
        z = torch.as_tensor(stats.norm.ppf((np.arange(400) + 0.5) / 400))[:, None]
        return self.s1 * z, self.s0 * z

    def cost(self):
        return transport_cost(*self.cells())

    def covariance(self, plan):
        """Of the pairs of a plan."""
        xT, x0 = self.cells()
        return (xT.T @ plan @ x0).item()


# ---- What a trained bridge gives back: Eq. 3 -----------------------------------------------------


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 4), st.integers(0, 99), st.floats(0.5, 1.5))
def test_the_closed_form_is_the_fixed_point_of_bridge_matching(d, seed, sigma):
    """A perfectly trained bridge gives Schroedinger's coupling back unchanged."""
    S0, S1 = two_covariances(d, seed)
    C = schrodinger_covariance(S0, S1, sigma)
    assert np.allclose(learned_covariance(C, S0, S1, sigma), C, atol=1e-6)


def relative_entropy(C, target, S0, S1):
    """Of normal pairs of covariance C to those of covariance `target`, in nats."""
    mine = np.block([[S0, C], [C.T, S1]])
    theirs = np.block([[S0, target], [target.T, S1]])
    ratio = np.linalg.solve(theirs, mine)
    return (np.trace(ratio) - len(ratio) - np.linalg.slogdet(ratio)[1]) / 2


@settings(deadline=None, max_examples=10)
@given(st.integers(1, 4), st.integers(0, 99), st.floats(0.5, 1.5))
def test_independent_pairs_come_nearer_to_it_with_each_round(d, seed, sigma):
    """In relative entropy, when each round trains on what the last one made (Shi et al. 2023).

    The first round alone takes away nine tenths of it.
    """
    S0, S1 = two_covariances(d, seed)
    target = schrodinger_covariance(S0, S1, sigma)
    pairs = [np.zeros((d, d))]
    for _ in range(3):
        pairs.append(learned_covariance(pairs[-1], S0, S1, sigma))
    entropy = [relative_entropy(C, target, S0, S1) for C in pairs]
    assert all(b < a for a, b in itertools.pairwise(entropy))
    assert entropy[1] < 0.1 * entropy[0]


@pytest.mark.parametrize("c", [-0.4, 0.0, 0.5, 0.9])
def test_what_is_learnt_follows_the_drift_of_eq_8(c):
    """Cov(x_0, x_T) = s_0^2 exp(integral of the slope of E[v | x_t]), by quadrature.

    The mean end given x_t is its regression on x_t, and the drift to it is `bridge_drift`.
    """
    s0, s1, sigma = 1.0, 1.3, 0.8  # variances of start and end, and the bridge's noise

    def slope(t):
        variance = (1 - t) ** 2 * s0 + t**2 * s1 + 2 * t * (1 - t) * c + sigma**2 * t * (1 - t)
        end = ((1 - t) * c + t * s1) / variance  # E[x_T | x_t = 1]
        return bridge_drift(1.0, end, t)

    expected = s0 * math.exp(quad(slope, 0, 1)[0])
    found = learned_covariance(number(c), number(s0), number(s1), sigma).item()
    assert found == pytest.approx(expected, rel=1e-6)


# ---- From pairing to sampler: Eq. 1 to 16 --------------------------------------------------------

SIGMA = 1.0


class Trained(NamedTuple):
    """A bridge between two Gaussians that was trained, and the covariances around it."""

    S0: np.ndarray
    S1: np.ndarray
    pairs: np.ndarray  # covariance of the training pairs
    mean: np.ndarray  # of the predicted ends
    start_end: np.ndarray  # covariance of start and predicted end
    end: np.ndarray  # covariance of the predicted ends

    def target(self):
        return schrodinger_covariance(self.S0, self.S1, SIGMA)


@functools.cache
def trained(d, how):
    """The project's own pairing, loss, networks and sampler, from N(0, S0) to N(1, S1)."""
    rng = np.random.default_rng(0)
    S0, S1 = covariance(d, 1), covariance(d, 2)
    x0 = rng.multivariate_normal(np.zeros(d), S0, 4096)
    xT = rng.multivariate_normal(np.ones(d), S1, 4096)
    choice = ImprovedSettings(sigma=SIGMA, pairing=how, epsilon="bridge")
    partners = paired(x0, xT, 128, choice, Noise(0))
    start = rng.multivariate_normal(np.zeros(d), S0, 10_000)
    end = fit_bridge(partners, xT, SIGMA, steps=800, batch=128)(start)
    pairs = np.cov(partners.T, xT.T)[:d, d:]
    joint = np.cov(start.T, end.T)
    return Trained(S0, S1, pairs, end.mean(0), joint[:d, d:], joint[d:, d:])


CASES = pytest.mark.parametrize("d, how", [(1, "entropic"), (1, "random"), (3, "exact")])


@CASES
def test_a_trained_bridge_ends_in_the_target(d, how):
    """The mean and the covariance of the predicted ends are those of N(1, S1)."""
    bridge = trained(d, how)
    assert np.abs(bridge.mean - 1).max() < 0.08
    assert off(bridge.end, bridge.S1) < 0.15


@CASES
def test_a_trained_bridge_gives_back_what_a_perfect_one_would(d, how):
    """The covariance of start and end is `learned_covariance` of its training pairs."""
    bridge = trained(d, how)
    expected = learned_covariance(bridge.pairs, bridge.S0, bridge.S1, SIGMA)
    assert off(bridge.start_end, expected) < 0.15


def test_entropic_pairs_train_the_schroedinger_bridge():
    """The pairs have its covariance of start and end, and so has what the bridge predicts."""
    bridge = trained(1, "entropic")
    assert off(bridge.pairs, bridge.target()) < 0.05
    assert off(bridge.start_end, bridge.target()) < 0.1


def test_random_pairs_train_it_almost():
    """They have no covariance; their bridge comes to within 30 % of the target, not within 6 %."""
    bridge = trained(1, "random")
    assert off(bridge.pairs, bridge.target()) > 0.9
    assert 0.06 < off(bridge.start_end, bridge.target()) < 0.3
