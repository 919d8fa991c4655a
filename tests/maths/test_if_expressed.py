"""Levels if expressed: silent genes are filled before the bridge, and hidden from the networks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import sparse

import sample
import screens
import train
from departures import (
    ActiveValues,
    Conditions,
    ImprovedSettings,
    Noise,
    bridge_sample,
    euler_maruyama_step,
    model_class,
)
from examples import screen_with

CELLS = 4000


def values_of(X, *populations):
    """The non-zero values of X (C, N) in populations, each a list of its rows."""
    X = sparse.csr_matrix(np.array(X, np.float32))
    return ActiveValues(*screens.active_values(X, [np.array(rows) for rows in populations]))


def draws(values, population, genes):
    """What the silent genes of many cells of a population are filled with: (CELLS, genes)."""
    everyone = torch.full((CELLS,), population)
    return values.fill(torch.zeros(CELLS, genes), everyone, Noise(0))


def within_5_sigma(happens, p):
    """Whether an event, one entry a cell, happens in a share p of them."""
    error = (p * (1 - p) / len(happens)) ** 0.5
    return abs(happens.double().mean().item() - p) < 5 * error


# ---- What silent genes are filled with -----------------------------------------------------------

# Two cells of one population, two of another. Gene 0 is on in both, gene 1 in the second alone,
# gene 2 nowhere.
FOUR_CELLS = [[1, 0, 0], [2, 0, 0], [3, 5, 0], [7, 6, 0]]


@pytest.fixture(scope="module")
def four_cells():
    return values_of(FOUR_CELLS, [0, 1], [2, 3])


def test_silent_genes_are_filled_from_their_own_gene_and_population(four_cells):
    """Gene 0 with the first population's values, then with the second's; gene 1 with its own."""
    first = draws(four_cells, 0, 3)
    second = draws(four_cells, 1, 3)
    assert set(first[:, 0].tolist()) == {1, 2}
    assert set(second[:, 0].tolist()) == {3, 7}
    assert set(second[:, 1].tolist()) == {5, 6}


def test_each_cell_of_a_batch_draws_from_its_own_population(four_cells):
    """Cells of both populations, in turn."""
    population = torch.tensor([0, 1, 1, 0] * 50)
    filled = four_cells.fill(torch.zeros(200, 3), population, Noise(0))[:, 0]
    assert torch.equal(filled >= 3, population == 1)


def test_a_gene_silent_in_its_population_borrows_from_all_of_them(four_cells):
    """Gene 1 in the first population."""
    assert set(draws(four_cells, 0, 3)[:, 1].tolist()) == {5, 6}


def test_a_gene_silent_everywhere_stays_at_0(four_cells):
    """Gene 2: nothing is known of its level, and no loss ever asks."""
    assert not draws(four_cells, 0, 3)[:, 2].any()


def test_expressed_levels_are_kept(four_cells):
    """Only zeros are filled."""
    x = torch.tensor([[9.0, 0.0, 8.0]]).expand(CELLS, -1)
    filled = four_cells.fill(x, torch.ones(CELLS, dtype=torch.long), Noise(0))
    assert torch.equal(filled[:, [0, 2]], x[:, [0, 2]])
    assert set(filled[:, 1].tolist()) == {5, 6}


def test_every_value_is_drawn_equally_often():
    """Each of five, and one that stands there twice, twice as often."""
    drawn = draws(values_of([[1], [2], [3], [3], [4]], range(5)), 0, 1)[:, 0]
    for value, share in ((1, 0.2), (2, 0.2), (3, 0.4), (4, 0.2)):
        assert within_5_sigma(drawn == value, share)


def test_every_silent_gene_of_every_cell_has_a_draw_of_its_own():
    """Two genes of a cell, and one gene of two cells, are as often equal as independent ones."""
    drawn = draws(values_of([[1, 1], [2, 2]], [0, 1]), 0, 2)
    assert within_5_sigma(drawn[:, 0] == drawn[:, 1], 0.5)
    assert within_5_sigma(drawn[1:, 0] == drawn[:-1, 0], 0.5)


# ---- Why -----------------------------------------------------------------------------------------
#
# One gene whose level is 1 wherever it is on, in half of the cells, at the start as at the end. Its
# right endpoint is 1, then: Eq. 9 asks for expressed genes only.

LATE = 0.9


def shown_late_in_training(x0, xT):
    """x_t at t = 0.9 on bridges between the pairs: (CELLS, 1)."""
    return bridge_sample(x0, xT, torch.full((CELLS, 1), LATE), 0.05, Noise(2))


def shown_late_in_sampling(x):
    """x_t at t = 0.9 by Eq. 16 with the right endpoint: (CELLS, 1)."""
    noise = Noise(3)
    for i in range(9):
        x = euler_maruyama_step(x, torch.ones(CELLS, 1), i / 10, 0.1, 0.05, noise)
    return x


def half_are_on(seed):
    return (Noise(seed).uniform(torch.empty(CELLS, 1)) < 0.5).float()


def test_with_zeros_left_in_sampling_is_not_what_training_showed():
    """Late in training every other cell is near 0, late in sampling none is."""
    training = shown_late_in_training(half_are_on(0), half_are_on(1))
    sampling = shown_late_in_sampling(half_are_on(0))
    assert within_5_sigma(training < 0.5, 0.5)
    assert (sampling > 0.5).all()


def test_with_silent_genes_filled_sampling_is_what_training_showed():
    """Both are near 1 in every cell, on the average the same within 5 standard errors."""
    values = values_of([[0], [1]], [0, 1])
    everyone = torch.zeros(CELLS, dtype=torch.long)
    x0, xT = (values.fill(half_are_on(seed), everyone, Noise(seed)) for seed in (0, 1))
    training = shown_late_in_training(x0, xT)
    sampling = shown_late_in_sampling(x0)
    error = ((training.var() + sampling.var()) / CELLS).sqrt()
    assert abs(training.mean() - sampling.mean()) < 5 * error
    assert (training > 0.5).all()
    assert (sampling > 0.5).all()


# ---- Where: both ends of the bridges in training, the start in sampling --------------------------

# Six cells, two a group, a level for each: control@a, control@b, g0@b.
LEVELS = [10, 10, 20, 20, 30, 30]
GROUPS = [("control", "a"), ("control", "b"), ("g0", "b")]


def model_of(n_genes, **changed):
    """An untrained model that knows one target, g0."""
    torch.manual_seed(0)
    own = ImprovedSettings(width=8, **changed)
    genes = [f"g{i}" for i in range(n_genes)]
    return model_class(own)(own, genes, ["g0"], ["a", "b"]).eval()


def six_cells():
    """A screen of three genes; every cell expresses two of them, at its group's level."""
    X = np.array(LEVELS)[:, None] * (np.arange(6)[:, None] % 3 != np.arange(3))
    perturbation = ["control"] * 4 + ["g0"] * 2
    return screen_with(X, perturbation, ["a", "a", "b", "b", "b", "b"])


def ends_in_training(monkeypatch, **changed):
    """(x0, xT, d0, dT) that the loss is given of three pairs, one of each of GROUPS.

    The pairs start at cells 0, 2 and 3, and end at cells 1, 3 and 5.
    """
    model = model_of(3, **changed)
    given = []

    def loss(*arguments):
        given.extend(arguments[:4])
        return (torch.zeros(()),)

    monkeypatch.setattr(model, "loss", loss)
    data = train.TrainingData(model, six_cells(), GROUPS, "cpu")
    pairs = SimpleNamespace(
        start=np.array([0, 2, 3]), end=np.array([1, 3, 5]), group=np.array([0, 1, 2])
    )
    data.losses(pairs, np.arange(3), np.arange(3), Noise(0))
    return given


def test_in_training_both_ends_are_filled_from_their_own_groups(monkeypatch):
    """Starts from the controls of the cell type, ends from the group's own cells."""
    x0, xT, _, _ = ends_in_training(monkeypatch)
    assert torch.equal(x0, torch.tensor([[10.0], [20.0], [20.0]]).expand(3, 3))
    assert torch.equal(xT, torch.tensor([[10.0], [20.0], [30.0]]).expand(3, 3))


def test_in_training_the_states_are_those_before_filling(monkeypatch):
    """What was filled is still off: d says so, to the discrete bridge and to the loss of Eq. 9."""
    _, _, d0, dT = ends_in_training(monkeypatch)
    X = six_cells().X.toarray()
    assert np.array_equal(d0, X[[0, 2, 3]] != 0)
    assert np.array_equal(dT, X[[1, 3, 5]] != 0)


def test_without_the_switch_zeros_are_left_in(monkeypatch):
    """The paper's bridges run between the cells as they are."""
    x0, xT, _, _ = ends_in_training(monkeypatch, if_expressed=False)
    X = six_cells().X.toarray()
    assert np.array_equal(x0, X[[0, 2, 3]])
    assert np.array_equal(xT, X[[1, 3, 5]])


def start_of_sampling(monkeypatch, **changed):
    """(x0, d0) that the sampler is given for 40 cells of g0 in type b, or more."""
    model = model_of(3, **changed)
    given = []

    def sampler(model, x0, d0, *rest):
        given.extend([x0, d0])
        return x0 * d0, x0

    monkeypatch.setattr(sample, "sample", sampler)
    screen = six_cells()
    cells = screens.Cells(screen.X, "cpu")
    values = sample.control_values(model, screen, "cpu")
    sample.predict(model, screen, cells, "g0", "b", 40, values, seed=0, device="cpu")
    return given


def test_in_sampling_the_start_is_filled_from_the_types_controls(monkeypatch):
    """Every gene begins at the level of type b's controls, and is off where it was."""
    x0, d0 = start_of_sampling(monkeypatch)
    assert (x0 == 20).all()
    assert (d0.sum(1) == 2).all()


def test_without_the_switch_sampling_starts_from_zeros_too(monkeypatch):
    """Silent genes start at 0."""
    x0, d0 = start_of_sampling(monkeypatch, if_expressed=False)
    assert torch.equal(x0, 20 * d0)


# ---- The networks do not see it ------------------------------------------------------------------

GENES = 5
OTHERS = [1, 2, 3, 4]  # than gene 0


def endpoint_and_log_odds(x0=1.0, d0=1.0):
    """Both predictions (2, GENES) for one cell whose genes are on at level 1, except for gene 0.

    The networks are untrained, with random weights in their last layers. Without the anchor: one
    cell is its own mean.
    """
    model = model_of(GENES, anchor=False)
    noise = Noise(0)
    for network in (model.x_network, model.d_network):
        torch.nn.init.normal_(network.out[2].weight, generator=noise.generator)
    nothing = Conditions(torch.tensor([[-1]]), torch.ones(1, 1), torch.tensor([0]))
    one = np.ones(GENES)
    model.describe_cell_type("a", one, one, 0.5 * one, one, 100)
    condition = model.encode(nothing, torch.tensor([0]))
    x = torch.ones(1, GENES)
    d = torch.ones(1, GENES)
    x[0, 0] = x0
    d[0, 0] = d0
    return torch.cat(model.predict(torch.tensor([[0.5]]), x, d, condition)).detach()


def test_the_answers_for_other_genes_do_not_change_with_a_filled_level():
    """Gene 0 is off: whatever it is filled with, both networks say the same of the others."""
    one = endpoint_and_log_odds(x0=1.0, d0=0.0)
    another = endpoint_and_log_odds(x0=3.0, d0=0.0)
    assert torch.equal(one[:, OTHERS], another[:, OTHERS])


def test_the_answers_for_other_genes_change_with_an_expressed_level():
    """Gene 0 is on: x_theta sees its level; d_theta, as in the paper, sees states alone."""
    one = endpoint_and_log_odds(x0=1.0)
    another = endpoint_and_log_odds(x0=3.0)
    assert (one[0, OTHERS] - another[0, OTHERS]).abs().min() > 1e-3
    assert torch.equal(one[1], another[1])


def test_the_level_network_sees_which_genes_are_on():
    """At the controls' own level, a gene that is on and one that is off are told apart."""
    on = endpoint_and_log_odds(d0=1.0)
    off = endpoint_and_log_odds(d0=0.0)
    assert (on[0, OTHERS] - off[0, OTHERS]).abs().min() > 1e-3
