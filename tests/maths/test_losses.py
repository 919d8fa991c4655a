"""The losses (Eq. 9, 14 and 15), and what they are computed on."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from departures import (
    Conditions,
    ImprovedSettings,
    Noise,
    Populations,
    Settings,
    activation,
    activation_loss,
    endpoint_loss,
    model_class,
)
from examples import Oracle

GENES = 6

# Of two conditions: gene 0 in cell type a, gene 1 in cell type b.
TWO_CONDITIONS = Conditions(torch.tensor([[0], [1]]), torch.ones(2, 1), torch.tensor([0, 1]))


def first_of_all(x):
    """Every pair belongs to the first condition: (B,)."""
    return torch.zeros(len(x), dtype=torch.long)


def model_of(own):
    """An untrained model whose networks answer at random instead of with 0."""
    torch.manual_seed(0)
    genes = [f"g{i}" for i in range(GENES)]
    sizes = {"conditions": 4} if own.shifts else {}
    model = model_class(own)(own, genes, ["g0", "g1"], ["a", "b"], **sizes)
    for network in (model.x_network, model.d_network):
        torch.nn.init.normal_(network.out[2].weight)
    model.encoder.seen[:] = True
    if own.shifts:
        half = np.full(GENES, 0.5)
        for cell_type in ("a", "b"):
            model.describe_cell_type(cell_type, half, 2 * half, half, 2 * half, 100)
        count(model)
    return model


def count(model):
    """Let a model count shifts at random in TWO_CONDITIONS and the controls of both types."""
    conditions = Conditions(
        torch.tensor([[-1], [-1], [0], [1]]), torch.ones(4, 1), torch.tensor([0, 1, 0, 1])
    )
    noise = Noise(0)
    on = (20 + 60 * noise.uniform(torch.empty(4, GENES))).round()
    level = 1 + noise.normal(on)
    model.encoder.fit(Populations(conditions, torch.full((4, 1), 100.0), on, level), model)


def paper(**changed):
    """The settings of the paper's method, small, with some changed."""
    own = ImprovedSettings().paper()
    own.width = 16
    for name, value in changed.items():
        setattr(own, name, value)
    return own


def small(**changed):
    """The default settings, small, with some changed."""
    return ImprovedSettings(width=16, **changed)


class Pairs:
    """64 pairs: half of the genes are on, the last one is on in no perturbed cell."""

    def __init__(self, cells=64):
        noise = Noise(0)
        like = torch.empty(cells, GENES)
        self.d0 = (noise.uniform(like) < 0.5).float()
        self.dT = (noise.uniform(like) < 0.5).float()
        self.dT[:, -1] = 0
        self.x0 = self.d0 * (1 + noise.uniform(like))
        self.xT = self.dT * (1 + noise.uniform(like))

    def losses(self, model, conditions=TWO_CONDITIONS, which=None, noise=None):
        """The losses of a model, with the noise of seed 0 if no other is given."""
        which = first_of_all(self.x0) if which is None else which
        ends = self.x0, self.xT, self.d0, self.dT
        return model.loss(*ends, conditions, which, noise or Noise(0))


class AtTime(Noise):
    """Noise that draws one time for every pair."""

    def __init__(self, time):
        super().__init__(0)
        self.time = time

    def uniform(self, like):
        """The time, where a number for each pair is asked for."""
        return torch.full_like(like, self.time) if like.shape[1] == 1 else super().uniform(like)


# ---- The level: Eq. 9 and 10 ---------------------------------------------------------------------


def test_a_gene_is_on_where_its_expression_is_not_0():
    """Eq. 10, in the tensor's own type."""
    x = torch.tensor([[0.0, 1e-6, 3.5, -0.1]], dtype=torch.float64)
    assert torch.equal(activation(x), torch.tensor([[0.0, 1, 1, 1]], dtype=torch.float64))


@st.composite
def ends_and_predictions(draw):
    """x_T and d_T of some cells, and predictions, all (B, N) in float64."""
    cells = draw(st.integers(1, 6))
    genes = draw(st.integers(1, 6))
    noise = Noise(draw(st.integers(0, 999)))
    like = torch.empty(cells, genes, dtype=torch.float64)
    dT = (noise.uniform(like) < 0.5).double()
    xT = dT * (1 + noise.uniform(like))
    return xT, dT, noise.normal(like)


@settings(deadline=None)
@given(ends_and_predictions())
def test_eq_9_has_no_gradient_on_silent_genes(case):
    """It is exactly 0 there, and the loss does not change with what is predicted for them."""
    xT, dT, predicted = case
    predicted.requires_grad_()
    loss = endpoint_loss(xT, predicted, dT)
    loss.backward()
    assert not predicted.grad[dT == 0].any()
    elsewhere = torch.where(dT == 0, 99.0, predicted)
    assert torch.equal(endpoint_loss(xT, elsewhere, dT), loss)


@settings(deadline=None)
@given(ends_and_predictions())
def test_the_gradient_of_eq_9_on_expressed_genes(case):
    """2 (prediction - x_T) / (genes that the cell expresses) / cells."""
    xT, dT, predicted = case
    predicted.requires_grad_()
    endpoint_loss(xT, predicted, dT).backward()
    expressed = dT.sum(1, keepdim=True).expand_as(dT)
    expected = 2 * (predicted - xT) / expressed / len(xT)
    assert torch.allclose(predicted.grad[dT == 1], expected.detach()[dT == 1], atol=1e-12)


def test_a_cells_loss_is_the_mean_over_its_own_expressed_genes():
    """Of squared errors 1 and 4, then of 9 alone; a cell that expresses nothing costs nothing."""
    xT = torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
    predicted = torch.tensor([[2.0, 9.0, 4.0], [5.0, 6.0, 5.0], [5.0, 5.0, 5.0]])
    expected = ((1 + 4) / 2 + 9 + 0) / 3
    assert endpoint_loss(xT, predicted, activation(xT)).item() == pytest.approx(expected)


# ---- On or off: Eq. 14 ---------------------------------------------------------------------------

LOG_ODDS = st.lists(st.floats(-20, 20), min_size=6, max_size=6)
STATES = st.lists(st.sampled_from([0.0, 1.0]), min_size=6, max_size=6)


@given(LOG_ODDS, STATES)
def test_the_activation_loss_is_the_cross_entropy(log_odds, states):
    """Minus SciPy's log likelihood of the states, per gene and cell."""
    log_odds = torch.tensor(log_odds, dtype=torch.float64).reshape(2, 3)
    states = torch.tensor(states, dtype=torch.float64).reshape(2, 3)
    chance = 1 / (1 + np.exp(-log_odds.numpy()))
    expected = -stats.bernoulli.logpmf(states.numpy(), chance).mean()
    assert activation_loss(states, log_odds).item() == pytest.approx(expected, rel=1e-6)


def test_both_losses_are_least_at_what_is_true_on_average():
    """Eq. 3: of cells that look alike, the mean level of those that are on, and their share."""
    xT = torch.tensor([[1.0], [2.0], [6.0], [0.0]])
    level = torch.tensor(3.0, requires_grad=True)
    log_odds = torch.tensor(math.log(3), requires_grad=True)  # three to one
    endpoint_loss(xT, level.expand(4, 1), activation(xT)).backward()
    activation_loss(activation(xT), log_odds.expand(4, 1)).backward()
    assert abs(level.grad.item()) < 1e-6
    assert abs(log_odds.grad.item()) < 1e-6


# ---- What is shown in training: Eq. 7, 11 and 15 -------------------------------------------------


class Shown:
    """What both networks are shown of 20,000 pairs, all from 1 to 3 and from off to on."""

    def __init__(self):
        self.sigma = 0.37
        model = Oracle(Settings(sigma=self.sigma), 2, 0.0, 0.0)
        self.x0 = torch.ones(20_000, 2)
        self.xT = 3 * self.x0
        d0 = torch.zeros_like(self.x0)
        which = first_of_all(d0)
        model.loss(self.x0, self.xT, d0, 1 + d0, TWO_CONDITIONS, which, Noise(0))
        (self.asked,) = model.asked
        self.t, self.x, self.d, _ = self.asked


@pytest.fixture(scope="module")
def shown():
    return Shown()


def mean_is(values, expected):
    """Whether independent values have this mean, within five standard errors."""
    error = values.std().item() / values.numel() ** 0.5
    return abs(values.mean().item() - expected) < 5 * error


def test_every_pair_has_a_uniform_time_of_its_own(shown):
    """Mean 1/2 and variance 1/12, all of them different, and every one in [0, 1)."""
    assert shown.t.shape == (20_000, 1)
    assert mean_is(shown.t, 1 / 2) and mean_is((shown.t - 0.5) ** 2, 1 / 12)
    assert len(shown.t.unique()) > 19_900  # of 2^24 numbers


def test_training_shows_the_brownian_bridge_from_control_to_perturbed_cell(shown):
    """Eq. 7 at the time that the networks are told: its mean, and sigma of the settings."""
    away = shown.x - (1 - shown.t) * shown.x0 - shown.t * shown.xT
    variance = shown.t * (1 - shown.t) * shown.sigma**2
    normal = away / variance.sqrt()
    assert mean_is(normal, 0)
    assert mean_is(normal**2, 1)
    assert mean_is(normal[:, 0] * shown.t[:, 0], 0)


def test_training_shows_the_discrete_bridge_at_the_same_time(shown):
    """Eq. 11: a share t of the genes has the end state, early and late."""
    for d, t in zip(shown.d.T, shown.t.expand(-1, 2).T, strict=True):
        assert mean_is(d - t, 0)
        assert mean_is((d - t)[t < 0.2], 0)
        assert mean_is((d - t)[t > 0.8], 0)


def test_both_bridges_start_at_the_control_and_end_at_the_perturbed_cell():
    """Where the time is 0, and 1, the networks see one or the other."""
    pairs = Pairs()
    for time, x, d in ((0.0, pairs.x0, pairs.d0), (1.0, pairs.xT, pairs.dT)):
        model = Oracle(Settings(), GENES, 0.0, 0.0)
        pairs.losses(model, noise=AtTime(time))
        assert torch.equal(model.asked[0][1], x)
        assert torch.equal(model.asked[0][2], d)


def test_the_right_answers_cost_nothing():
    """The true ends, as the networks' answers."""
    pairs = Pairs()
    level, on = pairs.losses(Oracle(Settings(), GENES, pairs.xT, 200 * pairs.dT - 100))
    assert level.item() == 0
    assert on.item() == pytest.approx(0, abs=1e-6)


def test_wrong_answers_cost_what_eq_9_and_eq_14_say():
    """Half a unit off in every level costs 1/4 a cell; knowing nothing of a state costs log 2."""
    pairs = Pairs()
    level, on = pairs.losses(Oracle(Settings(), GENES, pairs.xT + 0.5, 0.0))
    expresses = pairs.dT.any(1).float().mean().item()
    assert level.item() == pytest.approx(0.25 * expresses)
    assert on.item() == pytest.approx(math.log(2))


@pytest.mark.parametrize("own", [paper(), small()], ids=["paper", "default"])
def test_a_gene_that_is_off_in_every_end_trains_the_discrete_bridge_alone(own):
    """Eq. 9 and 14, through the networks, at the biases of their last layers."""
    model = model_of(own)
    level, on = Pairs().losses(model)
    (level + on).backward()
    of_level = model.x_network.out[2].bias.grad
    assert not of_level[-1] and of_level[:-1].all()
    assert model.d_network.out[2].bias.grad.all()


@pytest.mark.parametrize("own", [paper(), small()], ids=["paper", "default"])
def test_each_pair_meets_its_own_condition(own):
    """What the encoder says of many pairs is for each what it says of its condition alone."""
    model = model_of(own).eval()
    which = torch.tensor([1, 0, 0, 1, 0])
    together = model.encode(TWO_CONDITIONS, which)
    alone = [model.encode(TWO_CONDITIONS.take(row), first_of_all(row)) for row in which[:, None]]
    for part, parts in zip(together, zip(*alone, strict=True), strict=True):
        assert torch.allclose(part, torch.cat(parts))
        assert not torch.allclose(part[0], part[1])


@pytest.mark.parametrize("own", [paper(), small()], ids=["paper", "default"])
def test_the_order_of_the_conditions_does_not_matter_and_whose_they_are_does(own):
    """The losses, when conditions change places and `which` follows, and when it does not."""
    model = model_of(own)
    pairs = Pairs()
    which = torch.arange(64) % 3 // 2
    turned = TWO_CONDITIONS.take(torch.tensor([1, 0]))
    before = torch.stack(pairs.losses(model, which=which))
    assert torch.allclose(torch.stack(pairs.losses(model, turned, 1 - which)), before)
    assert (torch.stack(pairs.losses(model, turned, which)) - before).abs().min() > 1e-3


# ---- One bridge alone (the paper's Fig. 6) -------------------------------------------------------

ALONE = pytest.mark.parametrize(
    "own",
    [paper(discrete=False), small(discrete=False, if_expressed=False)],
    ids=["paper", "default"],
)
BOTH = pytest.mark.parametrize(
    "own", [paper(), small(if_expressed=False)], ids=["paper", "default"]
)


def loss_of_silent_cells(model):
    """Eq. 9 for cells that express nothing in the end."""
    x = torch.zeros(8, GENES)
    d = model.activation(x)
    return model.loss(1 + x, x, 1 + d, d, TWO_CONDITIONS, first_of_all(x), Noise(0))[0].item()


@ALONE
def test_one_bridge_alone_answers_for_silent_genes_too(own):
    """Eq. 9 counts every gene."""
    assert loss_of_silent_cells(model_of(own)) > 0.1


@BOTH
def test_with_both_bridges_silent_genes_cost_no_level(own):
    """The same cells, for comparison."""
    assert loss_of_silent_cells(model_of(own)) == 0


@ALONE
def test_one_bridge_alone_trains_no_discrete_bridge(own):
    """Eq. 14 is 0, and so is the gradient of d_theta."""
    model = model_of(own)
    pairs = Pairs()
    pairs.d0 = model.activation(pairs.x0)
    pairs.dT = model.activation(pairs.xT)
    level, on = pairs.losses(model)
    (level + on).backward()
    assert on.item() == pytest.approx(0, abs=1e-30)
    gradients = [parameter.grad for parameter in model.d_network.parameters()]
    assert all(gradient is None or not gradient.any() for gradient in gradients)


def test_one_bridge_alone_knows_a_cell_type_by_its_means_with_zeros():
    """The level of its controls is the mean over all cells, and every cell counts as expressing."""
    model = model_of(small(discrete=False, if_expressed=False))
    mean = np.linspace(0.1, 0.6, GENES)
    model.describe_cell_type("a", mean, np.full(GENES, 2.0), np.full(GENES, 0.3), mean, 100)
    assert torch.allclose(model.control_level[0], torch.tensor(mean).float())
    fraction = torch.sigmoid(model.control_log_odds[0])
    assert torch.allclose(fraction, torch.tensor(100.5 / 101))
