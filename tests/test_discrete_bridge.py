"""Facts about the discrete mixture bridge: laws by enumeration and matrix exponential, Monte Carlo with a seed and a 5 sigma bound."""
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from scipy.linalg import expm

from departures import KAPPA, KAPPA_DOT, Departures, Settings, ctmc_rate, ctmc_step, joint_loss, mixture_sample, sample

n = 200_000
schedules = pytest.mark.parametrize("kappa", sorted(KAPPA))
probability = st.floats(0.02, 0.98)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def f64(x):
    return torch.tensor(x, dtype=torch.float64)


def kappa_of(name, t):
    return KAPPA[name](f64(t)).item()


def within_5_sigma(draws, p, slack=0.0):
    """The share of ones among 0/1 draws against p."""
    assert abs(draws.double().mean().item() - p) <= 5 * math.sqrt(p * (1 - p) / draws.numel()) + 1e-12 + slack


# --------------------------------------------------------------------------------------------------------- fact 7: the path

@schedules
def test_schedules_run_from_0_to_1_and_know_their_slope(kappa):
    t = torch.linspace(0, 1, 11, dtype=torch.float64, requires_grad=True)
    value = KAPPA[kappa](t)
    slope, = torch.autograd.grad(value.sum(), t)
    assert abs(value[0].item()) < 1e-12 and abs(value[-1].item() - 1) < 1e-12 and (value.diff() > 0).all()
    assert torch.allclose(KAPPA_DOT[kappa](t), slope)


def test_schedules_are_the_named_curves():
    assert [round(kappa_of(k, 0.5), 6) for k in ("linear", "quadratic", "cosine")] == [0.5, 0.25, round(1 - 0.5 ** 0.5, 6)]


@schedules
@pytest.mark.parametrize("t", [0.0, 0.3, 0.7, 1.0])
def test_mixture_takes_the_end_state_with_probability_kappa_independently_across_genes(kappa, t):
    """Eq. 11: the law of three genes is the product of their own, at any time."""
    d0, dT = torch.tensor([[0.0, 1.0, 0.0]]).expand(n, -1), torch.tensor([[1.0, 0.0, 1.0]]).expand(n, -1)
    shown = (mixture_sample(d0, dT, torch.full((n, 1), t), kappa, generator()) == dT).float()
    k = kappa_of(kappa, t)
    for on in itertools.product((0, 1), repeat=3):
        within_5_sigma((shown == torch.tensor(on)).all(1), math.prod(k if o else 1 - k for o in on))


@schedules
def test_chain_with_a_known_end_flips_at_a_time_of_law_kappa(kappa):
    """P(flipped by t) = kappa(t) at every step of the chain, and a flipped gene stays."""
    d, dT, g = torch.zeros(n, 1), torch.ones(n, 1), generator(1)
    for i in range(10):
        before, d = d, ctmc_step(d, dT, i / 10, 0.1, kappa, g)
        assert (d >= before).all()
        within_5_sigma(d, kappa_of(kappa, (i + 1) / 10))


# --------------------------------------------------------------------------------------------------------- fact 8: the rate

def posterior(joint, k):
    """P(d_t = 1), and P(d_T = 1 | d_t) for d_t = 0 and 1, of the mixture path of a joint law [d_0, d_T] (2, 2) at kappa = k: Bayes."""
    p = torch.stack([torch.stack([(1 - k) * joint[y, end] + k * joint[:, end].sum() * (y == end) for end in (0, 1)])
                     for y in (0, 1)])                                     # [d_t, d_T]
    return p[1].sum(), p[0, 1] / p[0].sum(), p[1, 1] / p[1].sum()


JOINT = f64([[0.35, 0.25], [0.1, 0.3]])
ZERO, ONE = f64(0.0), f64(1.0)


@settings(deadline=None)
@given(st.lists(st.floats(0.05, 1), min_size=4, max_size=4), st.floats(0.05, 0.95), st.sampled_from(sorted(KAPPA)))
def test_rate_satisfies_the_kolmogorov_forward_equation_and_the_printed_one_does_not(weights, t, kappa):
    """Eq. 13: d/dt P(d_t = 1) = sum_d u_t(1, d) P(d_t = d) with kappa' / (1 - kappa); the printed kappa / (1 - kappa) fails it."""
    joint = f64(weights).view(2, 2) / sum(weights)
    time = f64(t).requires_grad_()
    on, if_off, if_on = posterior(joint, KAPPA[kappa](time))
    slope, = torch.autograd.grad(on, time)
    flow = lambda off, one: off * (1 - on) + one * on  # noqa: E731
    ours = flow(ctmc_rate(ONE, ZERO, if_off, time, kappa), ctmc_rate(ONE, ONE, if_on, time, kappa))
    assert ours.item() == pytest.approx(slope.item(), rel=1e-9, abs=1e-12)
    k, k_dot = KAPPA[kappa](time), KAPPA_DOT[kappa](time)
    if abs(slope) > 1e-3 and abs(k / k_dot - 1) > 0.01:
        printed = flow(k / (1 - k) * if_off, k / (1 - k) * (if_on - 1))
        assert printed.item() != pytest.approx(slope.item(), rel=1e-3)


@schedules
def test_forward_equation_with_the_rate_returns_the_mixtures_marginals(kappa):
    """Integrated numerically from P(d_0 = 1): the marginal at interior times and, up to the singular end, the law of d_T."""
    def flow(t, p):
        _, if_off, if_on = posterior(JOINT, KAPPA[kappa](f64(t)))
        return [(ctmc_rate(ONE, ZERO, if_off, f64(t), kappa) * (1 - p[0]) + ctmc_rate(ONE, ONE, if_on, f64(t), kappa) * p[0]).item()]
    times = [0.25, 0.5, 0.75, 0.999]
    path = solve_ivp(flow, (0, 0.999), [JOINT[1].sum().item()], t_eval=times, rtol=1e-9, atol=1e-11)
    for t, p in zip(times, path.y[0]):
        k = kappa_of(kappa, t)
        assert p == pytest.approx(((1 - k) * JOINT[1].sum() + k * JOINT[:, 1].sum()).item(), abs=1e-6)


@given(st.floats(0, 1), st.floats(0, 0.99), st.sampled_from(sorted(KAPPA)))
def test_rates_out_of_a_state_sum_to_zero_and_only_staying_is_negative(p, t, kappa):
    """Eq. 12's conditions on a rate."""
    for d in (0.0, 1.0):
        rate = [ctmc_rate(f64(y), f64(d), f64(p), f64(t), kappa).item() for y in (0.0, 1.0)]
        assert abs(sum(rate)) < 1e-9 * (1 + abs(rate[0]))
        assert rate[int(1 - d)] >= 0 >= rate[int(d)]
        if 0.05 < p < 0.95 and t > 0.05:                                   # the quadratic and cosine schedules start at rest
            assert rate[int(1 - d)] > 0 > rate[int(d)]


@schedules
@pytest.mark.parametrize("t, h", [(0.0, 0.3), (0.4, 0.3), (0.7, 0.3)])
def test_step_is_the_matrix_exponential_of_the_rate_while_the_posterior_stands_still(kappa, t, h):
    """Eq. 17, corrected: the product of exp(u dt) over many slices of [t, t + h], u from ctmc_rate, against drawn frequencies."""
    p = 0.7
    slices = np.linspace(t, min(t + h, 1 - 1e-9), 4001)
    transition = np.eye(2)
    for a, b in zip(slices[:-1], slices[1:]):
        u = [[ctmc_rate(f64(y), f64(d), f64(p), f64((a + b) / 2), kappa).item() for d in (0.0, 1.0)] for y in (0.0, 1.0)]
        transition = expm(np.array(u) * (b - a)) @ transition
    for d in (0, 1):
        drawn = ctmc_step(torch.full((n, 1), float(d)), torch.full((n, 1), p), t, h, kappa, generator(d))
        within_5_sigma(drawn, float(np.clip(transition[1, d], 0, 1)), slack=1e-4)


@given(probability, st.integers(0, 48))
def test_printed_eq_17_is_no_probability_and_the_corrected_one_is(p, i):
    """delta + h (p - delta) / (T - t), which is delta + h u_t, is a law over {0, 1}; the printed delta + h p / (T - t) sums to more than 1."""
    t, h = i / 50, 1 / 50
    for d in (0.0, 1.0):
        law = [(y == d) + h * ctmc_rate(f64(y), f64(d), f64(p), f64(t)).item() for y in (0.0, 1.0)]
        assert sum(law) == pytest.approx(1) and min(law) > -1e-12 and law[1] == pytest.approx(d + h / (1 - t) * (p - d))
        printed = [(y == d) + h / (1 - t) * (p if y else 1 - p) for y in (0.0, 1.0)]
        assert sum(printed) == pytest.approx(1 + h / (1 - t)) and sum(printed) > 1.01


@pytest.mark.parametrize("d", [0.0, 1.0])
def test_step_has_the_corrected_law_and_not_the_printed_one_normalised(d):
    p, t, h = 0.7, 0.5, 0.2
    drawn = ctmc_step(torch.full((n, 1), d), torch.full((n, 1), p), t, h, "linear", generator())
    within_5_sigma(drawn, d + h / (1 - t) * (p - d))
    printed = (d + h / (1 - t) * p) / (1 + h / (1 - t))
    assert abs(drawn.mean().item() - printed) > 20 * math.sqrt(0.25 / n)


def test_last_step_redraws_every_gene_from_its_posterior():
    for start, end in ((0.0, 1.0), (1.0, 0.0)):
        assert (ctmc_step(torch.full((50, 4), start), torch.full((50, 4), end), 0.98, 0.02, "linear", generator()) == end).all()
    redrawn = ctmc_step(torch.zeros(n, 1), torch.full((n, 1), 0.3), 49 / 50, 1 / 50, "cosine", generator())
    within_5_sigma(redrawn, 0.3)


def test_genes_and_cells_jump_independently():
    d = ctmc_step(torch.zeros(n, 2), torch.full((n, 2), 0.5), 0.0, 0.5, "linear", generator())
    within_5_sigma(d[:, 0] * d[:, 1], 0.25 ** 2)


# ---------------------------------------------------------------------------------------- fact 9: posterior and tau-leaping

@settings(deadline=None)
@given(probability, st.floats(-2, 2), st.floats(-2, 2), st.floats(0, 0.98), st.sampled_from(sorted(KAPPA)))
def test_evidence_turns_prior_odds_into_bayes_posterior_for_one_gene(fraction, below, above, t, kappa):
    """Closed form: logit P(d_T = 1 | d_t) = logit P(d_T = 1) + evidence(t, d_t), from the enumerated joint law."""
    model = Departures(Settings(kappa=kappa), ["g"], ["p"], ["c"]).double()
    with torch.no_grad():
        model.control_fraction[:], model.start_given_end[0], model.start_given_end[1] = fraction, below, above
    prior = 0.4
    on_given = torch.sigmoid(torch.logit(f64(fraction)) + f64([below, above]))             # P(d_0 = 1 | d_T = 0 or 1)
    joint = torch.stack([(1 - on_given) * f64([1 - prior, prior]), on_given * f64([1 - prior, prior])])
    _, *expected = posterior(joint, KAPPA[kappa](f64(t)))
    for d, p in zip((0.0, 1.0), expected):
        got = model.evidence(f64([[t]]), f64([[d]]), torch.tensor([0])) + torch.logit(f64(prior))
        assert torch.sigmoid(got).item() == pytest.approx(p.item(), abs=1e-4)


@schedules
@pytest.mark.parametrize("steps", [5, 20])
def test_tau_leap_of_one_gene_with_the_true_posterior_is_exact_at_every_grid_point(kappa, steps):
    """However coarse the steps: one gene's marginal is the mixture's, in the middle and at T."""
    g = generator(5)
    d = (torch.rand(n, 1, generator=g) < JOINT[1].sum()).float()
    for i in range(steps):
        _, if_off, if_on = posterior(JOINT, KAPPA[kappa](f64(i / steps)))
        d = ctmc_step(d, torch.where(d == 1, if_on, if_off).float(), i / steps, 1 / steps, kappa, g)
        k = kappa_of(kappa, (i + 1) / steps)
        within_5_sigma(d, ((1 - k) * JOINT[1].sum() + k * JOINT[:, 1].sum()).item())


def states_of(genes):
    return list(itertools.product((0.0, 1.0), repeat=genes))


def gene_posteriors(joint, k):
    """P(d_T,i = 1 | d_t) for every state d_t: (2^N, N); joint: {(d_0, d_T): probability}, tuples of 0.0 and 1.0."""
    states = states_of(len(next(iter(joint))[0]))
    table = np.zeros((len(states), len(states)))                           # [d_t, d_T]
    for (d0, dT), weight in joint.items():
        for row, y in enumerate(states):
            table[row, states.index(dT)] += weight * math.prod(k * (a == e) + (1 - k) * (a == s) for a, s, e in zip(y, d0, dT))
    return table @ np.array(states) / table.sum(1, keepdims=True)


def tau_leap(joint, steps):
    """The exact law of d_T (2^N,) after `steps` Euler steps of Eq. 17, genes jumping on their own, with the true posteriors."""
    states = states_of(len(next(iter(joint))[0]))
    law = np.array([sum(w for (d0, _), w in joint.items() if d0 == y) for y in states])
    for i in range(steps):
        p_on, transition = gene_posteriors(joint, i / steps), np.zeros((len(states), len(states)))
        for a, y in enumerate(states):
            on = [d + ctmc_rate(ONE, f64(d), f64(p), f64(i / steps)).item() / steps for d, p in zip(y, p_on[a])]
            transition[:, a] = [math.prod(q if s else 1 - q for q, s in zip(on, state)) for state in states]
        law = transition @ law
    return law


def end_law(joint):
    states = states_of(len(next(iter(joint))[0]))
    return np.array([sum(w for (_, dT), w in joint.items() if dT == y) for y in states])


def test_joint_error_of_the_tau_leap_halves_with_the_step():
    """Two genes on together or off together, from independent starts: the joint law is off by O(h)."""
    joint = {((a, b), (c, c)): 0.125 for a, b, c in itertools.product((0.0, 1.0), repeat=3)}
    off = []
    for steps in (20, 40, 80):
        law = tau_leap(joint, steps)
        off.append(np.abs(law - end_law(joint)).sum() / 2)
    assert off[0] > 0.005 and off[0] / off[1] == pytest.approx(2, rel=0.1) and off[1] / off[2] == pytest.approx(2, rel=0.1)


# -------------------------------------------------------------------------------------------- three genes, end to end

def three_genes():
    """Independent starts (0.2, 0.5, 0.7 on); an end where genes 1 and 2 agree nine times in ten and gene 3 opposes gene 1."""
    start = dict(zip(states_of(3), [math.prod(p if s else 1 - p for p, s in zip((0.2, 0.5, 0.7), y)) for y in states_of(3)]))
    end = {y: 0.5 * (0.9 if y[0] == y[1] else 0.1) * (0.75 if y[0] != y[2] else 0.25) for y in states_of(3)}
    return {(a, b): p * q for (a, p), (b, q) in itertools.product(start.items(), end.items())}


def test_learned_chain_returns_the_joint_law_of_three_correlated_genes_and_its_interior_marginals():
    """Train joint_loss, sample: every state's share within 5 sigma plus the tau-leap's own O(h) error plus 0.01 of learning error,
    the total variation a fifth of that of independent genes with the same marginals. In the middle, marginals on the mixture's."""
    joint, states = three_genes(), torch.tensor(states_of(3))
    weights = torch.tensor(list(joint.values()))
    starts, ends = (torch.tensor([key[i] for key in joint]) for i in (0, 1))
    torch.manual_seed(0)
    model = Departures(Settings(width=64, if_expressed=False, label_dropout=0.0, target_dropout=0.0), ["a", "b", "c"], ["p"], ["t"])
    model.add_cell_type("t", np.ones(3), np.full(3, 5.0), np.array([0.2, 0.5, 0.7]), 10_000)
    model.encoder.seen[:] = model.encoder.seen_pair[:] = True
    condition, g = model.condition([("p", 1.0)], "t"), generator(3)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    cooling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, 800)
    model.train()
    for _ in range(800):
        pairs = torch.multinomial(weights, 1024, replacement=True, generator=g)
        optimiser.zero_grad()
        sum(joint_loss(model, 5 * starts[pairs], 5 * ends[pairs], [condition], torch.zeros_like(pairs), None, None, g)).backward()
        optimiser.step()
        cooling.step()
    m, steps = 40_000, 50
    x0 = starts[torch.multinomial(weights, m, replacement=True, generator=g)]
    cells, _ = sample(model, 5 * x0, condition, None, g, steps)            # levels of 5 stay far from 0
    law = ((cells > 0).float()[:, None] == states).all(2).double().mean(0).numpy()
    true, leap = end_law(joint), tau_leap(joint, steps)
    bound = 5 * np.sqrt(true * (1 - true) / m) + np.abs(leap - true) + 0.01
    on = np.array(states_of(3)).T @ true
    independent = np.array([math.prod(p if s else 1 - p for p, s in zip(on, y)) for y in states_of(3)])
    assert (np.abs(law - true) <= bound).all(), (law, true, bound)
    assert np.abs(law - true).sum() / 2 < 0.2 * np.abs(independent - true).sum() / 2
    d = x0.clone()
    for i in range(steps // 2):
        time = torch.full((m, 1), i / steps)
        with torch.no_grad():
            encoded = type(model.encoder([condition], model))(*(part.expand(m, -1) for part in model.encoder([condition], model)))
            logit = model.predict_logit(time, d, d, torch.zeros(m, dtype=torch.long), torch.zeros(m, dtype=torch.long), encoded)
        d = ctmc_step(d, torch.sigmoid(logit), i / steps, 1 / steps, "linear", g)
    for gene, (start, end) in enumerate(zip((0.2, 0.5, 0.7), on)):
        within_5_sigma(d[:, gene], 0.5 * start + 0.5 * end, slack=0.01)
