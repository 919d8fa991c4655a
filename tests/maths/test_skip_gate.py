"""The skip gate: the exact answer of one gene, which both networks begin from (additions)."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from departures import (
    Conditions,
    ImprovedSettings,
    Noise,
    Populations,
    bridge_sample,
    model_class,
)

SCALE = st.floats(0.05, 3)
CORRELATION = st.floats(-0.95, 0.95)
GENES = 4


def model_of(n_genes=GENES, **changed):
    """An untrained model of two cell types, whose networks still answer 0.

    Without the anchor: these predictions are those of single cells.
    """
    torch.manual_seed(0)
    own = ImprovedSettings(width=8, anchor=False, **changed)
    genes = [f"g{i}" for i in range(n_genes)]
    return model_class(own)(own, genes, ["g0"], ["a", "b"], conditions=3).eval()


def f64(*values):
    """Numbers as cells of one gene, (B, 1)."""
    return torch.tensor(values, dtype=torch.float64)[:, None]


# ---- The gate ------------------------------------------------------------------------------------


def one_gene_gate(s0, sT, correlation, sigma):
    """The gate of one gene: its ends have these scales, in the cell type's unit, and correlate."""
    model = model_of(1, sigma=sigma).double()
    with torch.no_grad():
        model.log_scale[0] = math.log(s0)
        model.log_scale[1] = math.log(sT)
        model.correlation[:] = math.atanh(correlation)
    return model.gate


def regression(s0, sT, correlation, sigma, t):
    """Cov(x_T, x_t) / Var(x_t); x_t's weights of its ends, and its noise, from bridge_sample."""
    zero, one, time = f64(0), f64(1), f64(t)
    z = Noise(0).normal(zero)
    of_start = bridge_sample(one, zero, time, 0.0, Noise(0)).item()
    of_end = bridge_sample(zero, one, time, 0.0, Noise(0)).item()
    sd = (bridge_sample(zero, zero, time, sigma, Noise(0)) / z).item()
    c = correlation * s0 * sT
    ends = np.array([[s0**2, c], [c, sT**2]])
    weights = np.array([of_start, of_end])
    return (weights @ ends)[1] / (weights @ ends @ weights + sd**2)


@settings(deadline=None, max_examples=50)
@given(SCALE, SCALE, CORRELATION, SCALE, st.floats(0.1, 4), st.floats(0, 1))
def test_the_gate_is_the_regression_of_the_end_on_x_t(s0, sT, correlation, sigma, unit, t):
    """For Gaussian ends and a Brownian bridge between them, whatever the ends are counted in."""
    found = one_gene_gate(s0, sT, correlation, sigma)(f64(t), f64(unit)).item()
    expected = regression(unit * s0, unit * sT, correlation, sigma, t)
    assert found == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_every_cell_and_gene_has_a_unit_of_its_own():
    """Two cell types' levels of two genes, at one time: four regressions."""
    model = model_of(2, sigma=0.7).double()
    unit = torch.tensor([[0.3, 1.0], [2.0, 0.5]], dtype=torch.float64)
    found = model.gate(f64(0.4, 0.4), unit).detach().numpy()
    own = [regression(u, u, math.tanh(0.2), 0.7, 0.4) for u in unit.flatten().tolist()]
    assert found.flatten() == pytest.approx(own)


@settings(deadline=None, max_examples=50)
@given(SCALE, SCALE, CORRELATION, SCALE)
def test_the_gate_is_1_at_the_end(s0, sT, correlation, sigma):
    """At T, x_t is the end itself."""
    gate = one_gene_gate(s0, sT, correlation, sigma)
    assert gate(f64(1), f64(0.6)).item() == pytest.approx(1)


def train_gate(s0, sT, correlation, sigma, unit):
    """A gate trained by least squares on bridges between correlated normals, from its own start."""
    model = model_of(1, sigma=sigma)
    noise = Noise(0)
    optimiser = torch.optim.Adam([model.log_scale, model.correlation], lr=0.03)
    cooling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, 300)
    cells = torch.empty(4096, 1)
    for _ in range(300):
        a = noise.normal(cells)
        b = noise.normal(cells)
        x0 = s0 * a
        xT = sT * (correlation * a + math.sqrt(1 - correlation**2) * b)
        t = noise.uniform(cells)
        xt = bridge_sample(x0, xT, t, sigma, noise)
        loss = ((xT - model.gate(t, torch.full_like(t, unit)) * xt) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        cooling.step()
    return model.gate


def test_training_finds_the_regression():
    """From 0.2 at t = 0, where it should be 2.0, to within 0.06 at every time, in units of 0.4."""
    own = {"s0": 0.6, "sT": 1.5, "correlation": 0.8, "sigma": 0.5}
    times = np.linspace(0, 1, 11)
    t = torch.tensor(times, dtype=torch.float32)[:, None]
    found = train_gate(**own, unit=0.4)(t, torch.full_like(t, 0.4))
    expected = np.array([regression(**own, t=t) for t in times])
    assert expected[0] == pytest.approx(2.0)
    assert found.detach().numpy()[:, 0] == pytest.approx(expected, abs=0.06)


# ---- The evidence --------------------------------------------------------------------------------


def one_gene_evidence(fraction, given_off, given_on):
    """The evidence (B, 1) at t (B, 1) of states d (B, 1) of one gene, on in a fraction of controls.

    given_off, given_on: how the log odds of d_0 differ from the controls' where d_T is 0, or 1.
    """
    model = model_of(1).double()
    with torch.no_grad():
        model.control_log_odds[:] = math.log(fraction / (1 - fraction))
        model.start_given_end[0] = given_off
        model.start_given_end[1] = given_on

    def evidence(t, d):
        return model.evidence(t, d, model.control_log_odds[:1].expand(len(t), -1))

    return evidence


def posterior(start_on, end_on, t, d):
    """P(d_T = 1 | d_t = d) of one gene on the path of Eq. 11, by Bayes' rule.

    start_on: P(d_0 = 1 | d_T) for d_T = 0 and 1; end_on: P(d_T = 1).
    """
    weight = []
    for end, p in enumerate([1 - end_on, end_on]):
        start = start_on[end] if d == 1 else 1 - start_on[end]
        weight.append(p * (t * (d == end) + (1 - t) * start))
    return weight[1] / sum(weight)


@settings(deadline=None, max_examples=50)
@given(
    st.floats(0.02, 0.98),
    st.floats(-2, 2),
    st.floats(-2, 2),
    st.floats(0, 0.98),
    st.floats(0.05, 0.95),
    st.sampled_from([0.0, 1.0]),
)
def test_the_evidence_turns_prior_odds_into_bayes_posterior(
    fraction, given_off, given_on, t, end_on, d
):
    """logit P(d_T = 1 | d_t) = logit P(d_T = 1) + evidence(t, d_t), for one gene."""
    before = math.log(fraction / (1 - fraction))
    start_on = [1 / (1 + math.exp(-before - shift)) for shift in (given_off, given_on)]
    evidence = one_gene_evidence(fraction, given_off, given_on)(f64(t), f64(d)).item()
    log_odds = math.log(end_on / (1 - end_on)) + evidence
    expected = posterior(start_on, end_on, t, d)
    assert 1 / (1 + math.exp(-log_odds)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("d", "sign"), [(1.0, 1), (0.0, -1)])
def test_the_evidence_grows_like_minus_log_of_the_time_left(d, sign):
    """A tenth of the time left is log 10 more of it, for on as for off; at T it is finite."""
    t = f64(0.99, 0.999, 1.0)
    found = one_gene_evidence(0.5, -0.1, 0.3)(t, torch.full_like(t, d)).flatten()
    assert (found[1] - found[0]).item() == pytest.approx(sign * math.log(10), abs=0.02)
    assert torch.isfinite(found[2])


# ---- Both in the model's predictions -------------------------------------------------------------


@pytest.fixture
def model():
    return described(model_of())


def described(model):
    """A model of other controls in each type, to which a knock-out does something in type b."""
    noise = Noise(0)
    like = torch.empty(GENES)
    model.level_scale[:] = torch.linspace(0.5, 2, GENES)
    for cell_type in ("a", "b"):
        level = 1 + noise.uniform(like)
        fraction, variance = noise.uniform(like), 0.2 + noise.uniform(like)
        model.describe_cell_type(cell_type, 0.3 * level, level, fraction, variance, 100)
    conditions = Conditions(
        torch.tensor([[-1], [-1], [0]]), torch.ones(3, 1), torch.tensor([0, 1, 1])
    )
    on = (10 + 80 * noise.uniform(torch.empty(3, GENES))).round()
    cells = torch.full((3, 1), 100.0)
    level = 3 * noise.uniform(on)
    model.encoder.fit(Populations(conditions, cells, on, level), model)
    return model


class Asked:
    """Three cells of type b under the knock-out, at t = 0.4, and what Part II knows of them."""

    def __init__(self, model):
        noise = Noise(1)
        which = torch.zeros(3, dtype=torch.long)
        knock_out = Conditions(torch.tensor([[0]]), torch.ones(1, 1), torch.tensor([1]))
        self.condition = model.encode(knock_out, which)
        self.t = torch.full((3, 1), 0.4)
        self.x = 3 * noise.uniform(torch.empty(3, GENES))
        self.d = (noise.uniform(self.x) < 0.5).float()
        self.start = model.control_level[1]
        self.unit = model.control_scale[1].expand(3, -1)
        self.end = self.start + self.condition.level  # of the mean path
        self.mean = 0.6 * self.start + 0.4 * self.end
        self.prior = model.control_log_odds[1] + self.condition.log_odds


def close(found, expected):
    return torch.allclose(found, expected, atol=1e-5)


def test_on_the_mean_path_the_untrained_prediction_is_its_end(model):
    """The mean path goes from the controls' level to the level that the condition shifts it to."""
    asked = Asked(model)
    assert asked.condition.level.abs().max() > 0.1
    assert close(model.predict(asked.t, asked.mean, asked.d, asked.condition)[0], asked.end)


def test_off_the_mean_path_the_untrained_prediction_differs_by_the_gate(model):
    """How far a cell is from the mean path, times g(t), gene by gene."""
    asked = Asked(model)
    found, _ = model.predict(asked.t, asked.x, asked.d, asked.condition)
    assert close(found - asked.end, model.gate(asked.t, asked.unit) * (asked.x - asked.mean))


def test_the_untrained_log_odds_are_the_shifted_prior_and_the_evidence(model):
    """log odds of being on in the controls + the condition's shift + what d_t says."""
    asked = Asked(model)
    _, found = model.predict(asked.t, asked.x, asked.d, asked.condition)
    evidence = model.evidence(asked.t, asked.d, model.control_log_odds[1].expand(3, -1))
    assert asked.condition.log_odds.abs().max() > 0.1
    assert close(found, asked.prior + evidence)


def answers(network, value):
    """Make a network answer the same, whatever it is asked."""
    with torch.no_grad():
        network.out[2].bias[:] = value


def test_what_the_networks_learn_is_added(model):
    """To the level in proportion to the time left, in the type's own unit; and to the log odds."""
    asked = Asked(model)
    before = model.predict(asked.t, asked.x, asked.d, asked.condition)
    learnt = torch.linspace(-1, 1, GENES)
    answers(model.x_network, learnt)
    answers(model.d_network, learnt)
    level, log_odds = model.predict(asked.t, asked.x, asked.d, asked.condition)
    assert close(level - before[0], 0.6 * asked.unit * learnt)
    assert close(log_odds - before[1], learnt.expand(3, -1))


def test_at_the_end_the_prediction_is_x_t_whatever_the_networks_say(model):
    """Eq. 16 divides by T - t, so that an error that stayed would grow without bound."""
    asked = Asked(model)
    answers(model.x_network, 7.0)
    found, _ = model.predict(torch.ones(3, 1), asked.x, asked.d, asked.condition)
    assert close(found, asked.x)


def test_without_the_gate_the_untrained_prediction_is_the_shifted_control():
    """It asks neither x_t nor d_t; what the networks learn counts in full at all times."""
    model = described(model_of(skip_gate=False))
    asked = Asked(model)
    level, log_odds = model.predict(asked.t, asked.x, asked.d, asked.condition)
    assert close(level, asked.end)
    assert close(log_odds, asked.prior)
    answers(model.x_network, 7.0)
    level, _ = model.predict(asked.t, asked.x, asked.d, asked.condition)
    assert close(level, asked.end + 7 * asked.unit)


# ---- What the networks see -----------------------------------------------------------------------


def shown(model, asked, x, d):
    """What x_theta and d_theta are shown of cells x, d (B, N) at the time that was asked for."""
    seen = []
    for network in (model.x_network, model.d_network):
        network.forward = lambda state, t, context: seen.append(state) or state.new_zeros(x.shape)
    model.predict(asked.t, x, asked.d if d is None else d, asked.condition)
    return seen


@pytest.mark.parametrize("if_expressed", [True, False])
def test_levels_are_shown_as_standard_deviations_from_the_mean_path(if_expressed):
    """In the type's own unit; of silent genes nothing, where the level is if expressed."""
    model = described(model_of(if_expressed=if_expressed))
    asked = Asked(model)
    levels, _ = shown(model, asked, asked.mean + 2 * asked.unit, None)
    expected = 2 * asked.d if if_expressed else torch.full_like(asked.d, 2)
    assert close(levels[:, :GENES], expected)


def test_states_are_shown_as_standard_deviations_from_the_share_that_is_on(model):
    """Eq. 11: (1 - t) that of the controls + t that of the end. 0.02 keeps rare genes finite."""
    asked = Asked(model)
    levels, states = shown(model, asked, asked.x, None)
    share = 0.6 * model.control_log_odds[1].sigmoid() + 0.4 * asked.prior.sigmoid()
    assert close(states, (asked.d - share) / (share * (1 - share) + 0.02).sqrt())
    assert torch.equal(levels[:, GENES:], states)
