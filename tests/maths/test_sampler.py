"""The sampler (Eq. 16 to 18): with known ends, anchored (additions), and after training.

Draws are seeded and must lie within five standard errors of what the equations say.
"""

import functools

import numpy as np
import pytest
import torch
from scipy import sparse

import screens
from departures import (
    ActiveValues,
    Conditions,
    ImprovedSettings,
    Noise,
    Populations,
    Settings,
    model_class,
    sample,
)
from examples import Oracle

GENES = 6
CELLS = 20_000
STEPS = 10
SIGMA = 0.3
END = 5.0
P_ON = 0.4

# Gene 1, perturbed in cell type b.
CONDITION = Conditions(torch.tensor([[1]]), torch.ones(1, 1), torch.tensor([1]))


def oracle(endpoint=END, p_on=P_ON, sigma=SIGMA, steps=STEPS):
    """A model that knows the end, and how likely a gene is on."""
    log_odds = torch.logit(torch.tensor(p_on))
    return Oracle(Settings(sigma=sigma, steps=steps), GENES, endpoint, log_odds)


def mean_is(values, expected):
    """Whether independent values have this mean, within five standard errors."""
    error = values.std().item() / values.numel() ** 0.5
    return abs(values.mean().item() - expected) <= 5 * error


def variance_is(values, expected):
    """Whether independent normal values have this variance, within five standard errors."""
    return abs(values.var().item() / expected - 1) < 5 * (2 / values.numel()) ** 0.5


# ---- With known ends -----------------------------------------------------------------------------


class Carried:
    """Cells at level 1, all off, that are carried to a known end."""

    def __init__(self):
        self.model = oracle()
        self.x0 = torch.ones(CELLS, GENES)
        self.d0 = torch.zeros(CELLS, GENES)
        self.trace = []
        self.noise = Noise(0)
        self.cells, self.level = sample(
            self.model, self.x0, self.d0, CONDITION, self.noise, self.trace
        )


@pytest.fixture(scope="module")
def carried():
    return Carried()


def test_the_networks_are_asked_at_equal_steps_from_0(carried):
    """At t = 0, 0.1 … 0.9, the same for every cell."""
    times = torch.cat([t for t, _, _, _ in carried.model.asked], 1)
    assert torch.allclose(times, torch.arange(STEPS) / STEPS)
    assert times.shape == (CELLS, STEPS)


def test_sampling_starts_at_the_controls(carried):
    """Both networks first see x_0 and d_0."""
    _, x, d, _ = carried.model.asked[0]
    assert torch.equal(x, carried.x0)
    assert torch.equal(d, carried.d0)


def test_the_trace_holds_what_the_networks_were_shown(carried):
    """x_t and d_t of every step, the first one being the start."""
    assert len(carried.trace) == STEPS
    for (x, d), (_, shown_x, shown_d, _) in zip(carried.trace, carried.model.asked, strict=True):
        assert torch.equal(x, shown_x)
        assert torch.equal(d, shown_d)


def test_the_networks_are_told_the_condition_of_all_cells(carried):
    """The one that was asked for."""
    expected = carried.model.encode(CONDITION, torch.zeros(CELLS, dtype=torch.long))
    for _, _, _, told in carried.model.asked:
        assert torch.equal(told.cell_type, expected.cell_type)
        assert torch.equal(told.z, expected.z)


def variances_of_eq_16(steps, sigma):
    """Of x_t at every time of the grid: each step keeps a share of the last, and adds sigma^2 h."""
    h = 1 / steps
    variances = [0.0]
    for i in range(steps):
        kept = 1 - h / (1 - i / steps)
        variances.append(kept**2 * variances[-1] + sigma**2 * h)
    return variances


def test_levels_follow_eq_16_all_the_way(carried):
    """At every step the mean is on the line from x_0 to x_T, and the variance Eq. 16's."""
    variances = variances_of_eq_16(STEPS, SIGMA)
    for i, (x, _) in enumerate(carried.trace):
        t = i / STEPS
        assert (
            abs(x.mean().item() - (1 - t) - t * END) < 5 * (variances[i] / x.numel()) ** 0.5 + 1e-5
        )
        assert i == 0 or variance_is(x, variances[i])


def test_the_level_ends_at_x_T_up_to_the_last_steps_noise(carried):
    """Eq. 16: mean x_T, variance sigma^2 h."""
    assert mean_is(carried.level, END)
    assert variance_is(carried.level, SIGMA**2 / STEPS)


def test_states_follow_eq_17_all_the_way(carried):
    """From off, a share t of the genes has been drawn anew, so that t p of them are on."""
    for i, (_, d) in enumerate(carried.trace):
        assert mean_is(d, P_ON * i / STEPS)


def test_states_end_as_likely_on_as_the_network_says(carried):
    """Eq. 17."""
    assert mean_is((carried.cells > 0).float(), P_ON)


def test_a_prediction_is_the_level_times_the_state(carried):
    """Eq. 18: the level where a gene is on, and exactly 0 elsewhere."""
    on = carried.cells != 0
    assert torch.equal(carried.cells[on], carried.level[on])
    assert (carried.level > 0).all()


def test_level_and_state_are_drawn_independently(carried):
    """Eq. 18 multiplies two samplers that have noise of their own: no level tells the state."""
    away = carried.level - carried.level.mean()
    on = (carried.cells != 0).float()
    assert mean_is(away * (on - on.mean()), 0)


def few_cells(model, seed=0, cells=50):
    """Prediction and level of some cells."""
    x0 = torch.ones(cells, GENES)
    return sample(model, x0, x0, CONDITION, Noise(seed))


def test_levels_are_never_negative():
    """An end below 0 becomes 0, as in the released code."""
    cells, level = few_cells(oracle(endpoint=-1.0, p_on=0.99))
    assert not level.any()
    assert not cells.any()


@pytest.mark.parametrize("steps", [1, 3])
def test_the_settings_say_how_many_steps(steps):
    """One step is enough to run."""
    model = oracle(steps=steps)
    few_cells(model)
    assert [t[0].item() for t, _, _, _ in model.asked] == pytest.approx(np.arange(steps) / steps)


# The controls of both types, and both targets in type b.
COUNTED = Conditions(
    torch.tensor([[-1], [-1], [0], [1]]), torch.ones(4, 1), torch.tensor([0, 1, 1, 1])
)


def untrained(own, on, level, scale):
    """A model that has seen both targets perturbed in type b, and both types' controls.

    on, level (4, N): of COUNTED, the share of 500 cells that express a gene and their mean level;
    scale: the standard deviation of the level.
    """
    torch.manual_seed(0)
    genes = [f"g{i}" for i in range(GENES)]
    sizes = {"conditions": 4} if own.shifts else {}
    model = model_class(own)(own, genes, ["g0", "g1"], ["a", "b"], **sizes)
    model.encoder.seen[:] = True
    if own.shifts:
        model.level_scale.fill_(scale)
        variance = np.full(GENES, scale**2)
        for k, cell_type in enumerate(model.cell_types):
            mean = on[k] * level[k]
            model.describe_cell_type(cell_type, mean, level[k], on[k], variance, 500)
        cells = torch.full((4, 1), 500.0)
        model.encoder.fit(Populations(COUNTED, cells, 500 * on, level / scale), model)
    return model


def model_of(own):
    """A model whose networks answer at random, and that has counted shifts at random."""
    noise = Noise(5)
    like = torch.empty(4, GENES)
    on = 0.2 + 0.6 * noise.uniform(like)
    model = untrained(own, on, 1 + noise.uniform(like), 0.5)
    for network in (model.x_network, model.d_network):
        torch.nn.init.normal_(network.out[2].weight)
    return model


def papers_settings(**changed):
    """The paper's method, small, with some settings changed."""
    own = ImprovedSettings().paper()
    own.width = 16
    for name, value in changed.items():
        setattr(own, name, value)
    return own


def default_settings(**changed):
    """The default method, small, with some settings changed."""
    return ImprovedSettings(**{"width": 16, **changed})


SETTINGS = pytest.mark.parametrize(
    "own", [papers_settings(), default_settings()], ids=["paper", "default"]
)


@SETTINGS
def test_the_same_seed_gives_the_same_cells_and_another_gives_others(own):
    """To the bit."""
    first, second, third = (few_cells(model_of(own), seed) for seed in (0, 0, 1))
    assert torch.equal(first[0], second[0]) and torch.equal(first[1], second[1])
    assert not torch.equal(first[0], third[0])


@SETTINGS
def test_a_model_in_training_samples_as_one_at_rest(own):
    """What drops out in training is there, and the model stays at rest."""
    model = model_of(own)
    at_rest = few_cells(model.eval())[1]
    assert torch.equal(few_cells(model.train())[1], at_rest)
    assert not model.training


@SETTINGS
def test_no_gradient_is_kept(own):
    """That of fifty steps would fill the memory."""
    cells, level = few_cells(model_of(own))
    assert not cells.requires_grad
    assert not level.requires_grad


@SETTINGS
def test_another_condition_gives_other_cells(own):
    """From the same controls and the same noise."""
    model = model_of(own)
    x0 = torch.ones(50, GENES)
    other = CONDITION._replace(target=torch.tensor([[0]]))
    one, another = (sample(model, x0, x0, asked, Noise(0))[1] for asked in (CONDITION, other))
    assert (one - another).abs().mean() > 0.01


def test_a_cell_type_that_only_appears_in_sampling_is_known_by_its_controls():
    """Their mean, their level if expressed, and the share that is on, never exactly 0 or 1."""
    model = model_of(default_settings())
    share = np.linspace(0, 1, GENES)
    model.describe_cell_type("new", share / 2, share / 3, share, share, 10)
    assert torch.allclose(model.control_mean[2], torch.tensor(share / 2).float())
    assert torch.allclose(model.control_level[2], torch.tensor(share / 3).float())
    fraction = torch.sigmoid(model.control_log_odds[2])
    assert torch.allclose(fraction, torch.tensor((10 * share + 0.5) / 11).float())


def test_a_share_of_many_cells_is_not_nearer_to_0_than_its_log_odds_tell():
    """A million cells, none of which expresses a gene, or all: log odds of 7 and no more."""
    model = model_of(default_settings())
    share = (np.arange(GENES) % 2).astype(float)
    model.describe_cell_type("new", share, share, share, share, 1_000_000)
    assert torch.equal(model.control_log_odds[2], torch.tensor(14 * share - 7).float())


def sd_of_new_type(variance, fraction, cells, usual):
    """The standard deviations (N,) that a model believes of a cell type that it meets."""
    model = model_of(default_settings())
    model.level_scale[:] = torch.as_tensor(usual).sqrt()
    one = np.ones(GENES)
    model.describe_cell_type("new", one, one, fraction, variance, cells)
    return model.control_scale[2].numpy()


def test_the_sd_of_a_cell_type_is_that_of_its_controls_where_many_are_on():
    """Among 10,000 controls, where half are on, ten more hardly count."""
    variance = np.linspace(0.1, 2, GENES)
    found = sd_of_new_type(variance, np.full(GENES, 0.5), 10_000, np.ones(GENES))
    assert found == pytest.approx(np.sqrt(variance), rel=0.02)


def test_where_few_controls_are_on_the_sd_is_the_genes_usual_in_the_types_proportion():
    """A type that varies a quarter as much: where nobody is on, and mixed in where ten are."""
    usual = np.linspace(0.5, 3, GENES)
    variance = 0.25 * usual
    fraction = np.full(GENES, 0.5)
    variance[0], fraction[0] = 0.0, 0.0
    assert sd_of_new_type(variance, fraction, 100, usual) == pytest.approx(0.5 * usual**0.5)
    fraction[1] = 0.1
    variance[1] = 9.0
    others = 0.25 * 50 * usual[2:].sum()  # of 50 cells that are on
    proportion = (10 * 9.0 + others) / (10 * usual[1] + 50 * usual[2:].sum())
    expected = ((10 * 9.0 + 10 * proportion * usual[1]) / 20) ** 0.5
    found = sd_of_new_type(variance, fraction, 100, usual)[1]
    assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    "own",
    [
        papers_settings(discrete=False),
        default_settings(discrete=False, if_expressed=False),
    ],
    ids=["paper", "default"],
)
def test_one_bridge_alone_switches_no_gene_off(own):
    """The paper's Fig. 6: the prediction is the level, whatever d_theta would have said."""
    model = model_of(own)
    for network, answer in ((model.x_network, 1.0), (model.d_network, -50.0)):
        torch.nn.init.zeros_(network.out[2].weight)
        torch.nn.init.constant_(network.out[2].bias, answer)
    x0 = Noise(0).uniform(torch.empty(200, GENES))
    x0[:, 0] = 0
    nothing = CONDITION._replace(target=torch.tensor([[-1]]))
    cells, level = sample(model, x0, model.activation(x0), nothing, Noise(1))
    assert torch.equal(cells, level)
    assert (cells > 0).any(0).all()


# ---- Anchored (additions) ------------------------------------------------------------------------


class Asked:
    """What a model that was carried away says of 300 cells under CONDITION at a time.

    Both its networks answer at random, x_theta about 2 too much and d_theta about 0.7, or `bias`.
    """

    def __init__(self, t, training=False, bias=0.7, **changed):
        model = model_of(default_settings(**changed)).train(training)
        for network, mean in ((model.x_network, 2.0), (model.d_network, bias)):
            network.out[2].weight.data *= 0.3
            torch.nn.init.constant_(network.out[2].bias, mean)
        noise = Noise(3)
        like = torch.empty(300, GENES)
        condition = model.encode(CONDITION, torch.zeros(300, dtype=torch.long))
        level, log_odds = (end[0] for end in model.expected_end(condition))
        self.level, self.fraction = level.numpy(), torch.sigmoid(log_odds).numpy()
        before = torch.sigmoid(model.control_log_odds[1])
        d = (noise.uniform(like) < (1 - t) * before + t * torch.sigmoid(log_odds)).float()
        x = 1 + noise.uniform(like)
        with torch.no_grad():
            time = torch.full((300, 1), t)
            self.endpoint, self.log_odds = model.predict(time, x, d, condition)
        self.p = torch.sigmoid(self.log_odds).double().numpy()

    def mean_level(self):
        """Of the cells that will be on: (N,)."""
        return (self.p * self.endpoint.numpy()).sum(0) / self.p.sum(0)


AT_ANY_TIME = pytest.mark.parametrize("t", [0.0, 0.3, 0.6, 0.9])


@AT_ANY_TIME
def test_in_sampling_the_cells_are_on_as_often_as_is_expected(t):
    """On average, gene by gene; without the anchor they are not."""
    anchored = Asked(t)
    assert anchored.p.mean(0) == pytest.approx(anchored.fraction, abs=0.002)
    assert np.abs(Asked(t, anchor=False).p.mean(0) - anchored.fraction).max() > 0.02


@AT_ANY_TIME
def test_in_sampling_the_mean_level_is_the_expected_one(t):
    """That of the cells that will be on; without the anchor it is not."""
    anchored = Asked(t)
    assert anchored.mean_level() == pytest.approx(anchored.level, abs=1e-4)
    assert np.abs(Asked(t, anchor=False).mean_level() - anchored.level).max() > 0.05


@AT_ANY_TIME
def test_the_anchor_leaves_the_differences_between_cells(t):
    """In log odds and in level: every cell of a gene is moved as far, and the cells do differ."""
    anchored, loose = Asked(t), Asked(t, anchor=False)
    for found, before in ((anchored.log_odds, loose.log_odds), (anchored.endpoint, loose.endpoint)):
        assert (found - before).std(0).max() < 1e-5
        assert found.std(0).min() > 0.01


@pytest.mark.parametrize("bias", [-20.0, 20.0])
def test_the_anchor_moves_log_odds_by_2_and_no_farther(bias):
    """What both networks and the evidence are sure of stays so."""
    moved = Asked(0.5, bias=bias).log_odds - Asked(0.5, bias=bias, anchor=False).log_odds
    assert moved.numpy() == pytest.approx(-np.sign(bias) * 2 * np.ones(moved.shape), abs=1e-5)


def test_training_is_not_anchored():
    """A batch has cells of many conditions; the mean is left to the losses."""
    anchored, loose = Asked(0.5, training=True), Asked(0.5, training=True, anchor=False)
    assert torch.equal(anchored.endpoint, loose.endpoint)
    assert torch.equal(anchored.log_odds, loose.log_odds)


def test_a_gene_that_no_cell_will_express_stays_finite():
    """Where d_theta is certain of it, so that there is no mean level to anchor."""
    model = model_of(default_settings())
    torch.nn.init.constant_(model.d_network.out[2].bias, -200.0)
    cells, level = few_cells(model)
    assert torch.isfinite(level).all()
    assert torch.isfinite(cells).all()


# ---- After training ------------------------------------------------------------------------------
#
# One gene rises from 1 to 2 and is switched on, from half of the cells to nine in ten. The others
# stay.


def cells_of(n, perturbed, noise):
    """Controls or perturbed cells: (n, N)."""
    level = torch.ones(GENES)
    on = torch.full((GENES,), 0.5)
    if perturbed:
        level[0] = 2.0
        on[0] = 0.9
    like = torch.empty(n, GENES)
    x = level + 0.2 * noise.normal(like)
    return x * (noise.uniform(like) < on)


STEPS_OF_TRAINING = 250


class ToFill:
    """Controls and perturbed cells, and for --if-expressed the values that each may be filled with.

    In training silent genes are filled, or not, on both sides; in sampling at the start.
    """

    def __init__(self, if_expressed):
        self.noise = Noise(0)
        self.values = None
        if if_expressed:
            cells = torch.cat([cells_of(500, False, self.noise), cells_of(500, True, self.noise)])
            rows = [np.arange(500), np.arange(500, 1000)]
            X = sparse.csr_matrix(cells.numpy())
            self.values = ActiveValues(*screens.active_values(X, rows))

    def draw(self, n, perturbed):
        """x and d of some cells."""
        x = cells_of(n, perturbed, self.noise)
        d = (x != 0).float()
        if self.values is not None:
            x = self.values.fill(x, torch.full((n,), int(perturbed)), self.noise)
        return x, d


def train(model, populations):
    """Steps of Adam, with a falling learning rate, on pairs at random."""
    optimiser = torch.optim.Adam(model.train().parameters(), lr=5e-3)
    cooling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, STEPS_OF_TRAINING)
    which = torch.zeros(256, dtype=torch.long)
    for _ in range(STEPS_OF_TRAINING):
        x0, d0 = populations.draw(256, False)
        xT, dT = populations.draw(256, True)
        optimiser.zero_grad()
        sum(model.loss(x0, xT, d0, dT, CONDITION, which, populations.noise)).backward()
        optimiser.step()
        cooling.step()


@functools.cache
def predicted(method):
    """2,000 cells that a trained model carries, and as many that were perturbed."""
    own = papers_settings(width=64) if method == "paper" else default_settings(width=64)
    cells = torch.stack([cells_of(500, k == 3, Noise(k)) for k in range(4)])  # COUNTED
    on = (cells > 0).float().mean(1)
    model = untrained(own, on, cells.mean(1) / on, 0.2)
    populations = ToFill(own.if_expressed)
    train(model, populations)
    x0, d0 = populations.draw(2000, False)
    cells, _ = sample(model, x0, d0, CONDITION, populations.noise)
    return cells, cells_of(2000, True, populations.noise)


METHODS = pytest.mark.parametrize("method", ["paper", "default"])


@METHODS
def test_a_trained_model_switches_the_right_share_of_cells_on(method):
    """Gene by gene."""
    cells, measured = predicted(method)
    off = (cells > 0).float().mean(0) - (measured > 0).float().mean(0)
    assert off.abs().max() < 0.06


@METHODS
def test_a_trained_model_carries_one_population_to_another(method):
    """The mean of every gene, zeros among them; that of gene 0 moves by 1.3."""
    cells, measured = predicted(method)
    assert measured[:, 0].mean() > 1.7
    assert (cells.mean(0) - measured.mean(0)).abs().max() < 0.15


def spread_if_expressed(x):
    """One number a gene: (N,)."""
    return torch.stack([gene[gene > 0].std() for gene in x.T])


def test_a_trained_model_keeps_the_spread_of_the_levels():
    """With all additions: the standard deviation of every gene where it is on."""
    cells, measured = predicted("default")
    ratio = spread_if_expressed(cells) / spread_if_expressed(measured)
    assert (ratio - 1).abs().max() < 0.15
