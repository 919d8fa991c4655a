"""The discrete bridge and its sampler (Eq. 11 to 14 and 17).

Laws are computed by enumeration, matrix exponential or an ODE solver; draws are seeded and must
lie within five standard errors.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad, solve_ivp
from scipy.linalg import expm

from departures import (
    Conditions,
    Departures,
    Noise,
    Settings,
    activation,
    ctmc_rate,
    ctmc_step,
    mixture_sample,
)

CELLS = 200_000
PROBABILITY = st.floats(0.02, 0.98)


def f64(x):
    return torch.tensor(x, dtype=torch.float64)


OFF = f64(0.0)
ON = f64(1.0)


def within_5_sigma(draws, p, slack=0.0):
    """Whether the share of ones among 0/1 draws is p, up to five standard errors."""
    error = math.sqrt(p * (1 - p) / draws.numel())
    return abs(draws.double().mean().item() - p) <= 5 * error + slack


# ---- The path: Eq. 11 ----------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.0, 0.3, 0.7, 1.0])
def test_genes_take_the_end_state_with_probability_t_independently(t):
    """Eq. 11: what three genes do is the product of what each does, at any time."""
    d0 = torch.tensor([[0.0, 1.0, 0.0]]).expand(CELLS, -1)
    dT = 1 - d0
    ended = mixture_sample(d0, dT, torch.full((CELLS, 1), t), Noise(0)) == dT
    for pattern in itertools.product((False, True), repeat=3):
        share = (ended == torch.tensor(pattern)).all(1)
        p = math.prod(t if end else 1 - t for end in pattern)
        assert within_5_sigma(share, p)


def test_each_cell_has_its_own_time():
    """Of two cells, one at t = 0 and one at t = T, one shows its start and one its end."""
    t = torch.tensor([[0.0], [1.0]])
    shown = mixture_sample(torch.zeros(2, 5), torch.ones(2, 5), t, Noise(0))
    assert torch.equal(shown, t.expand(2, 5))


def test_a_chain_with_a_known_end_flips_once_at_a_uniform_time():
    """Eq. 11 and 17: at every step a share t has flipped, and what has flipped stays."""
    d = torch.zeros(CELLS, 1)
    noise = Noise(1)
    for i in range(10):
        before = d
        d = ctmc_step(d, torch.ones(CELLS, 1), i / 10, 0.1, noise)
        assert (d >= before).all()
        assert within_5_sigma(d, (i + 1) / 10)


def test_the_printed_eq_11_mixes_levels_which_are_no_states():
    """A level y has a share in neither state, so that the rates out of it do not sum to 0."""
    x0 = torch.tensor([[0.0, 2.5]])
    xT = torch.tensor([[1.5, 0.0]])
    printed = mixture_sample(x0, xT, torch.tensor([[1.0]]), Noise(0))[0, 0]
    ours = mixture_sample(activation(x0), activation(xT), torch.tensor([[1.0]]), Noise(0))[0, 0]

    def out_of(d):
        return sum(ctmc_rate(y, d, f64(0.3), 0.5).item() for y in (OFF, ON))

    assert out_of(ours) == pytest.approx(0)
    assert out_of(printed) > 1


# ---- The rate: Eq. 12 and 13 ---------------------------------------------------------------------


def posterior(joint, t):
    """P(d_t = 1), and P(d_T = 1 | d_t) for d_t = 0 and 1, by Bayes' rule.

    joint (2, 2): the probabilities of a gene's start (rows) and end (columns).
    """
    end = joint.sum(0)
    off_now = torch.stack([(1 - t) * joint[0, 0] + t * end[0], (1 - t) * joint[0, 1]])
    on_now = torch.stack([(1 - t) * joint[1, 0], (1 - t) * joint[1, 1] + t * end[1]])
    return on_now.sum(), off_now[1] / off_now.sum(), on_now[1] / on_now.sum()


JOINT = f64([[0.35, 0.25], [0.1, 0.3]])


def flow(rate, joint, t):
    """How fast P(d_t = 1) grows under a rate: the right side of Kolmogorov's forward equation."""
    p, if_off, if_on = posterior(joint, t)
    return rate(ON, OFF, if_off, t) * (1 - p) + rate(ON, ON, if_on, t) * p


def growth(joint, t):
    """How fast P(d_t = 1) grows along the path of Eq. 11, by autograd."""
    t = t.clone().requires_grad_()
    (slope,) = torch.autograd.grad(posterior(joint, t)[0], t)
    return slope


def printed_rate(y, d, p_on, t):
    """Eq. 13 with its printed factor kappa / (1 - kappa)."""
    p_y = p_on if y == 1 else 1 - p_on
    return t / (1 - t) * (p_y - (y == d).double())


def rate_with_p_twice(y, d, p_on, t):
    """Eq. 13 with kappa', but averaged over d_T as printed, although p already stands in it."""
    rate = 0.0
    for end, p in ((OFF, 1 - p_on), (ON, p_on)):
        rate = rate + p**2 * ((y == end).double() - (y == d).double()) / (1 - t)
    return rate


JOINTS = st.lists(st.floats(0.05, 1), min_size=4, max_size=4)


def joint_of(weights):
    return f64(weights).view(2, 2) / sum(weights)


@settings(deadline=None)
@given(JOINTS, st.floats(0.05, 0.95))
def test_the_rate_solves_kolmogorovs_forward_equation(weights, t):
    """Eq. 13: d/dt P(d_t = 1) is the sum over d of u_t(1, d) P(d_t = d)."""
    joint = joint_of(weights)
    expected = growth(joint, f64(t)).item()
    assert flow(ctmc_rate, joint, f64(t)).item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(deadline=None)
@given(JOINTS, st.floats(0.05, 0.95))
def test_the_printed_eq_13_fails_kolmogorovs_forward_equation(weights, t):
    """Its flow is t times too small, whatever the two ends are."""
    joint = joint_of(weights)
    expected = growth(joint, f64(t)).item()
    assume(abs(expected) > 1e-3)
    assert flow(printed_rate, joint, f64(t)).item() == pytest.approx(t * expected, rel=1e-6)


def test_with_the_printed_eq_13_nothing_moves_at_the_start():
    """Both rates out of a state are 0 at t = 0, where ours are p and its negative."""
    assert printed_rate(ON, OFF, f64(0.3), OFF) == 0
    assert ctmc_rate(ON, OFF, f64(0.3), OFF).item() == pytest.approx(0.3)


@pytest.mark.parametrize("t", [0.1, 0.5, 0.9])
def test_eq_13_with_p_twice_fails_kolmogorovs_forward_equation(t):
    """The expectation over d_T that is printed around p(d_T | d_t) counts it again."""
    expected = growth(JOINT, f64(t)).item()
    assert abs(flow(rate_with_p_twice, JOINT, f64(t)).item() / expected - 1) > 0.1


def test_the_forward_equation_returns_the_marginals_of_the_path():
    """Solved from P(d_0 = 1) on: (1 - t) P(d_0 = 1) + t P(d_T = 1), almost up to T."""
    start = JOINT[1].sum().item()
    end = JOINT[:, 1].sum().item()

    def change(t, p):
        _, if_off, if_on = posterior(JOINT, f64(t))
        into = ctmc_rate(ON, OFF, if_off, t).item()
        out = ctmc_rate(ON, ON, if_on, t).item()
        return [into * (1 - p[0]) + out * p[0]]

    times = np.array([0.25, 0.5, 0.75, 0.999])
    path = solve_ivp(change, (0, 0.999), [start], t_eval=times, rtol=1e-9, atol=1e-11)
    assert path.y[0] == pytest.approx((1 - times) * start + times * end, abs=1e-6)


@given(st.floats(0, 1), st.floats(0, 0.99), st.sampled_from([0, 1]))
def test_rates_out_of_a_state_sum_to_0_and_only_staying_is_negative(p_on, t, d):
    """The conditions that Eq. 12 puts on a rate."""
    rate = [ctmc_rate(y, f64(float(d)), f64(p_on), t).item() for y in (OFF, ON)]
    assert sum(rate) == pytest.approx(0, abs=1e-9)
    assert rate[1 - d] >= 0
    assert rate[d] <= 0


@pytest.mark.parametrize(("t", "h"), [(0.0, 0.3), (0.4, 0.3), (0.7, 0.29)])
@pytest.mark.parametrize("d", [0, 1])
def test_a_step_is_the_matrix_exponential_of_the_rate(t, h, d):
    """Eq. 13 and 17: exp of the integral of u over [t, t + h], while the posterior stands still."""
    p = 0.7

    def rate(y, start):
        return quad(lambda s: ctmc_rate(f64(y), f64(start), f64(p), s).item(), t, t + h)[0]

    transition = expm(np.array([[rate(y, start) for start in (0.0, 1.0)] for y in (0.0, 1.0)]))
    drawn = ctmc_step(torch.full((CELLS, 1), float(d)), torch.full((CELLS, 1), p), t, h, Noise(d))
    assert within_5_sigma(drawn, transition[1, d])


# ---- The step: Eq. 17 ----------------------------------------------------------------------------


def corrected_law(p_on, d, t, h):
    """delta + h (p - delta) / (T - t), the probabilities of off and on."""
    return [float(y == d) + h * ctmc_rate(f64(y), f64(d), f64(p_on), t).item() for y in (0.0, 1.0)]


def printed_law(p_on, d, t, h):
    """delta + h p / (T - t): Eq. 17 as printed, with all weight on d_t for its d_t."""
    return [float(d == 0) + h * (1 - p_on) / (1 - t), float(d == 1) + h * p_on / (1 - t)]


STATE = st.sampled_from([0.0, 1.0])


@given(PROBABILITY, STATE, st.integers(0, 49))
def test_the_steps_law_is_a_probability(p_on, d, i):
    """Eq. 17, corrected, at each of 50 steps; on has the probability d + h (p - d) / (T - t)."""
    t, h = i / 50, 1 / 50
    law = corrected_law(p_on, d, t, h)
    assert sum(law) == pytest.approx(1)
    assert min(law) > -1e-12
    assert law[1] == pytest.approx(d + h / (1 - t) * (p_on - d))


@given(PROBABILITY, STATE, st.integers(0, 49))
def test_the_printed_eq_17_is_no_probability(p_on, d, i):
    """It sums to 1 + h / (T - t): to 1.02 at the first of 50 steps, to 2 at the last."""
    total = sum(printed_law(p_on, d, i / 50, 1 / 50))
    assert total == pytest.approx(1 + 1 / (50 - i))
    assert total > 1.01


@pytest.mark.parametrize("d", [0.0, 1.0])
def test_a_step_has_the_corrected_law_and_not_the_printed_one(d):
    """Not even where the printed one is divided by its sum."""
    p_on, t, h = 0.7, 0.5, 0.2
    drawn = ctmc_step(torch.full((CELLS, 1), d), torch.full((CELLS, 1), p_on), t, h, Noise(0))
    printed = printed_law(p_on, d, t, h)
    assert within_5_sigma(drawn, corrected_law(p_on, d, t, h)[1])
    assert not within_5_sigma(drawn, printed[1] / sum(printed), slack=0.01)


@pytest.mark.parametrize("steps", [1, 7, 49, 50])
def test_the_last_step_draws_every_gene_anew(steps):
    """Where the posterior is sure, every gene obeys it, whatever it was before."""
    t, h = (steps - 1) / steps, 1 / steps
    d = (torch.arange(2000.0) % 2)[:, None]
    assert torch.equal(ctmc_step(d, 1 - d, t, h, Noise(0)), 1 - d)


def test_the_last_step_draws_from_the_posterior():
    """Eq. 17 at t + h = T is p itself."""
    drawn = ctmc_step(torch.zeros(CELLS, 1), torch.full((CELLS, 1), 0.3), 0.98, 0.02, Noise(0))
    assert within_5_sigma(drawn, 0.3)


def test_genes_and_cells_jump_independently():
    """Two genes, then two cells, are on together as often as independent ones are."""
    drawn = ctmc_step(torch.zeros(CELLS, 2), torch.full((CELLS, 2), 0.5), 0.0, 0.5, Noise(0))
    assert within_5_sigma(drawn[:, 0] * drawn[:, 1], 0.25**2)
    assert within_5_sigma(drawn[::2] * drawn[1::2], 0.25**2)


# ---- Many steps with the true posterior ----------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_with_the_true_posterior_one_gene_is_exact_for_any_step(steps):
    """Eq. 17: however coarse the grid, at each of its times the marginal is that of Eq. 11."""
    noise = Noise(5)
    start, end = JOINT[1].sum(), JOINT[:, 1].sum()
    d = (noise.uniform(torch.empty(CELLS, 1)) < start).float()
    for i in range(steps):
        _, if_off, if_on = posterior(JOINT, f64(i / steps))
        d = ctmc_step(d, torch.where(d == 1, if_on, if_off).float(), i / steps, 1 / steps, noise)
        t = (i + 1) / steps
        assert within_5_sigma(d, ((1 - t) * start + t * end).item())


def states_of(genes):
    """All 2^N states of N genes, as tuples of 0.0 and 1.0."""
    return list(itertools.product((0.0, 1.0), repeat=genes))


def gene_posteriors(joint, states, t):
    """P(d_T,i = 1 | d_t) of every gene for every state d_t: (2^N, N).

    joint: {(d_0, d_T): probability}.
    """
    table = np.zeros((len(states), len(states)))  # of d_t and d_T
    for (d0, dT), weight in joint.items():
        for row, state in enumerate(states):
            genes = zip(state, d0, dT, strict=True)
            shown = math.prod(t * (now == end) + (1 - t) * (now == was) for now, was, end in genes)
            table[row, states.index(dT)] += weight * shown
    return table @ np.array(states) / table.sum(1, keepdims=True)


def law_of_steps(joint, states, steps):
    """The exact law (2^N,) of d_T after steps of Eq. 17 with the true posteriors.

    Genes jump independently within a step.
    """
    law = marginal(joint, states, 0)
    for i in range(steps):
        p_on = gene_posteriors(joint, states, i / steps)
        transition = np.zeros((len(states), len(states)))
        for column, state in enumerate(states):
            genes = zip(state, p_on[column], strict=True)
            on = [corrected_law(p, d, i / steps, 1 / steps)[1] for d, p in genes]
            for row, after in enumerate(states):
                pairs = zip(on, after, strict=True)
                transition[row, column] = math.prod(q if d else 1 - q for q, d in pairs)
        law = transition @ law
    return law


def marginal(joint, states, side):
    """The law (2^N,) of d_0 (side 0) or d_T (side 1)."""
    law = np.zeros(len(states))
    for key, weight in joint.items():
        law[states.index(key[side])] += weight
    return law


def total_variation(a, b):
    return np.abs(a - b).sum() / 2


def test_with_the_true_posterior_the_error_of_two_genes_halves_with_the_step():
    """Eq. 17, for genes that end on together or off together, from independent starts."""
    joint = {((a, b), (c, c)): 0.125 for a, b, c in states_of(3)}
    states = states_of(2)
    truth = marginal(joint, states, 1)
    off = [total_variation(law_of_steps(joint, states, n), truth) for n in (20, 40, 80)]
    assert off[0] > 0.005
    assert off[0] / off[1] == pytest.approx(2, rel=0.1)
    assert off[1] / off[2] == pytest.approx(2, rel=0.1)


# ---- A trained chain: Eq. 14 and 17 --------------------------------------------------------------
#
# Three genes start independently (on in 0.2, 0.5 and 0.7 of the cells). At the end the first two
# agree nine times in ten and the third opposes the first.

STATES = states_of(3)
START_ON = (0.2, 0.5, 0.7)
STEPS = 50


def three_genes():
    """{(d_0, d_T): probability}; d_0 and d_T are independent of each other."""
    joint = {}
    for d0 in STATES:
        start = math.prod(p if d else 1 - p for p, d in zip(START_ON, d0, strict=True))
        for dT in STATES:
            agree = 0.9 if dT[0] == dT[1] else 0.1
            oppose = 0.75 if dT[0] != dT[2] else 0.25
            joint[d0, dT] = start * 0.5 * agree * oppose
    return joint


def train_chain(joint, noise):
    """The model of Part I, trained by Eq. 14 on pairs from the joint law."""
    torch.manual_seed(0)
    model = Departures(Settings(width=32), ["a", "b", "c"], ["p"], ["t"])
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    cooling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, 400)
    weights = torch.tensor(list(joint.values()))
    starts = torch.tensor([d0 for d0, _ in joint])
    ends = torch.tensor([dT for _, dT in joint])
    for _ in range(400):
        pairs = torch.multinomial(weights, 1024, replacement=True, generator=noise.generator)
        d0, dT = starts[pairs], ends[pairs]
        which = torch.zeros_like(pairs)
        _, loss = model.loss(d0, dT, d0, dT, CONDITION, which, noise)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        cooling.step()
    return model


CONDITION = Conditions(torch.tensor([[0]]), torch.ones(1, 1), torch.tensor([0]))


@torch.no_grad()
def run_chain(model, d, noise):
    """The states (B, 3) at T / 2 and at T, from the starts d."""
    condition = model.encode(CONDITION, torch.zeros(len(d), dtype=torch.long))
    for i in range(STEPS):
        if i == STEPS // 2:
            middle = d
        t = torch.full((len(d), 1), i / STEPS)
        _, log_odds = model.predict(t, d, d, condition)
        d = ctmc_step(d, torch.sigmoid(log_odds), i / STEPS, 1 / STEPS, noise)
    return middle, d


@pytest.fixture(scope="module")
def trained():
    """The joint law, and 40,000 cells that a trained chain carries to T / 2 and to T."""
    joint = three_genes()
    noise = Noise(3)
    model = train_chain(joint, noise)
    starts = (noise.uniform(torch.empty(40_000, 3)) < torch.tensor(START_ON)).float()
    return joint, *run_chain(model, starts, noise)


def shares(d):
    """The share of cells in each state: (8,)."""
    return (d[:, None] == torch.tensor(STATES)).all(2).double().mean(0).numpy()


def test_a_trained_chain_returns_the_joint_law_of_three_genes(trained):
    """Each state within 5 sigma, the steps' own error, and 0.01 for what was not learnt."""
    joint, _, d = trained
    truth = marginal(joint, STATES, 1)
    of_steps = np.abs(law_of_steps(joint, STATES, STEPS) - truth)
    error = np.sqrt(truth * (1 - truth) / len(d))
    assert (np.abs(shares(d) - truth) <= 5 * error + of_steps + 0.01).all()


def test_a_trained_chain_knows_that_the_genes_depend_on_each_other(trained):
    """It is ten times nearer to the joint law than independent genes of the same marginals."""
    joint, _, d = trained
    truth = marginal(joint, STATES, 1)
    on = truth @ np.array(STATES)
    genes = [zip(on, state, strict=True) for state in STATES]
    independent = np.array([math.prod(p if s else 1 - p for p, s in one) for one in genes])
    assert total_variation(shares(d), truth) < 0.1 * total_variation(independent, truth)


def test_a_trained_chain_is_half_way_at_half_time(trained):
    """Eq. 11: every gene's marginal is the mean of its start and its end, 0.01 apart at most."""
    joint, middle, _ = trained
    on = marginal(joint, STATES, 1) @ np.array(STATES)
    for gene in range(3):
        assert within_5_sigma(middle[:, gene], (START_ON[gene] + on[gene]) / 2, slack=0.01)
