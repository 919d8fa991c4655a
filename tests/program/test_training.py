"""Training: what a model is told of a screen, the pairs it is shown, and the steps it takes."""

import math
import os

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from tqdm import tqdm

import sample
import screens
import train
from departures import ImprovedSettings, Noise, ShiftEncoder, coexpression_network, propagate
from examples import screen_of, screen_with
from screens import CONTROL
from toy_data import simulate_screen

QUICK = {"width": 16, "embedding": 4, "steps": 3, "grn": "none"}


def quick(paper=False, **changes):
    """Settings of a small model."""
    own = ImprovedSettings()
    if paper:
        own.paper()
    for name, value in {**QUICK, **changes}.items():
        setattr(own, name, value)
    return own


def gene_screen():
    """Two cell types, two knocked-down genes and a third one, g2, that is held out.

    A gene, g5, is silent in the controls, and one, g4, does not vary.
    """
    rng = np.random.default_rng(0)
    means = {}
    for cell_type in "tu":
        for perturbation in (CONTROL, "g0", "g1", "g2"):
            means[perturbation, cell_type] = rng.gamma(2.0, 1.0, 6)
    screen = screen_of(means, cells=30, noise=0.8)
    X = screen.dense(np.arange(len(screen.cells)))
    X[:, 4] = 1.0
    X[screen.perturbation == CONTROL, 5] = 0
    return hold_out(screen, X, ["g2"], missing=("g0", "u"))


def hold_out(screen, X, perturbations, missing=None):
    """The screen with other values, without the cells of one group, and with some held out."""
    keep = np.ones(len(screen.cells), bool)
    if missing is not None:
        keep[screen.groups[missing]] = False
    labels = screen.perturbation[keep], screen.cell_type[keep]
    screen = screen_with(X[keep], *labels, screen.genes, screen.kind)
    screen.held_out = {key for key in screen.groups if key[0] in perturbations}
    return screen


def drug_screen():
    """Two drugs at doses of 1, 10 and 1000, with structures; the largest is held out."""
    labels = [CONTROL, "b:1", "a:10", "a:1000"]
    cells = [7, 4, 6, 9]
    perturbation = np.repeat(labels, cells)
    X = np.random.default_rng(0).gamma(2.0, 1.0, (sum(cells), 4))
    screen = screen_with(X, perturbation, ["t"] * len(X), kind="drug")
    screen.uns["drug_embedding"] = {"a": [1.0, 0.0], "b": [0.0, 3.0], "c": [2.0, 2.0]}
    screen.held_out = {("a:1000", "t")}
    return screen


def training_rows(screen):
    """The row numbers of all cells that are not held out."""
    return np.concatenate(list(screen.training_groups().values()))


def built(screen, **changes):
    """An untrained model of a screen."""
    return train.build(screen, quick(**changes), "cpu")


# ---- What a model is told of a screen ------------------------------------------------------------


def all_that_is_told(correlation, cells, genes, knock, shift, error, **options):
    """In place of the structural network, which takes seconds: some function of its evidence."""
    return correlation[genes] + cells + knock.square().sum() + shift.square().sum() + error.sum()


@pytest.mark.parametrize(
    "paper, grn", [(False, "coexpression"), (False, "structural"), (True, "coexpression")]
)
def test_nothing_of_a_model_is_measured_on_held_out_cells(paper, grn, monkeypatch):
    """Their values can be anything: scales, networks and weights stay what they are."""
    monkeypatch.setattr(train, "structural_effects", all_that_is_told)
    screen = gene_screen()
    X = screen.dense(np.arange(len(screen.cells)))
    held_out = np.setdiff1d(np.arange(len(X)), training_rows(screen))
    X[held_out] = 9 - 0.5 * X[held_out][::-1]
    other = hold_out(screen, X, ["g2"])
    before = built(screen, paper=paper, grn=grn).state_dict()
    after = built(other, paper=paper, grn=grn).state_dict()
    assert len(held_out) == 60
    assert [name for name in before if not torch.equal(before[name], after[name])] == []


def test_the_scale_of_levels_is_that_of_the_expressing_cells_within_training_groups():
    """At least 0.05; how the groups differ from each other does not count."""
    screen = gene_screen()
    squares, degrees = np.zeros(6), np.zeros(6)
    for rows in screen.training_groups().values():
        for i, column in enumerate(screen.dense(rows).T):
            level = column[column > 0]
            if len(level):
                squares[i] += ((level - level.mean()) ** 2).sum()
                degrees[i] += len(level) - 1
    expected = np.maximum(np.sqrt(squares / degrees), 0.05)
    assert expected[4] == pytest.approx(0.05)
    assert np.allclose(built(screen).level_scale, expected, atol=1e-5)


def test_the_usual_fraction_is_that_of_all_training_cells():
    """With half a cell on either side, so that it is neither 0 nor 1."""
    screen = gene_screen()
    on = screen.dense(training_rows(screen)) > 0
    expected = (on.sum(0) + 0.5) / (len(on) + 1)
    assert np.allclose(built(screen).usual_fraction, expected, atol=1e-6)


@pytest.mark.parametrize("rise", [1.0, -1.0])
def test_a_model_knows_whether_its_screen_knocks_down_or_activates(rise):
    """So that a target that nobody perturbed is moved the right way."""
    base = np.full(3, 2.0)
    moved = {("g0", "t"): base + [rise, 0, 0], ("g1", "t"): base + [0, rise, 0]}
    model = built(screen_of({(CONTROL, "t"): base, **moved}))
    assert model.direction.tolist() == [rise]


def test_a_cell_type_is_described_by_its_own_controls():
    """Where these are silent, the level is that of the training cells."""
    screen = gene_screen()
    model = built(screen)
    elsewhere = screen.dense(training_rows(screen))[:, 5]
    for k, cell_type in enumerate(model.cell_types):
        controls = screen.dense(screen.controls(cell_type))
        expected = torch.from_numpy(controls.mean(0))
        assert torch.allclose(model.control_mean[k], expected, atol=1e-5)
    assert torch.allclose(model.control_level[:, 5], torch.tensor(elsewhere[elsewhere > 0].mean()))


def test_the_units_of_a_knock_down_are_deviations_within_training_groups():
    """`gene_scale` is the root of the pooled variance around each group's own mean."""
    screen = gene_screen()
    groups = [screen.dense(rows) for rows in screen.training_groups().values()]
    centred = np.concatenate([X - X.mean(0) for X in groups])
    expected = np.sqrt((centred**2).mean(0)).clip(1e-3)
    assert np.allclose(built(screen).gene_scale, expected, atol=1e-5)


def test_targets_are_seen_if_they_were_perturbed_in_training():
    """g0 was perturbed in t only, g2 is held out."""
    model = built(gene_screen())
    assert model.targets == ["g0", "g1", "g2"]
    assert model.encoder.seen.tolist() == [True, True, False]


def fitted_to(screen, monkeypatch, **changes):
    """The model, and the populations that its expected shifts were fitted to."""
    given = []

    def fit(encoder, populations, model, progress):
        given.append(populations)

    monkeypatch.setattr(ShiftEncoder, "fit", fit)
    model = built(screen, **changes)
    (populations,) = given
    return model, populations


@pytest.mark.parametrize("discrete", [True, False])
def test_shifts_are_fitted_to_what_was_counted_in_each_training_group(monkeypatch, discrete):
    """Levels in the gene's units. For one bridge alone every cell expresses every gene."""
    screen = gene_screen()
    model, counted = fitted_to(screen, monkeypatch, discrete=discrete, if_expressed=discrete)
    groups = [screen.dense(rows) for rows in screen.training_groups().values()]
    on = np.stack([(X > 0).sum(0) if discrete else np.full(6, len(X)) for X in groups])
    level = np.stack([X.sum(0) for X in groups]) / np.maximum(on, 1) / model.level_scale.numpy()
    assert counted.cells.tolist() == [[len(X)] for X in groups]
    assert np.allclose(counted.on, on, atol=1e-4)
    assert np.allclose(counted.level, level, rtol=1e-4)


def test_shifts_are_fitted_to_the_training_groups_under_their_names(monkeypatch):
    """The held-out dose is not among them."""
    model, counted = fitted_to(drug_screen(), monkeypatch)
    target, dose, cell_type = counted.conditions
    assert target.tolist() == [[0], [1], [-1]]
    assert dose.tolist() == [[10], [1], [1]]
    assert cell_type.tolist() == [0, 0, 0]


def test_a_screen_of_genes_has_the_structures_of_its_embedding(tmp_path):
    """And those of other genes, which can be asked for; a gene without one has none."""
    table = tmp_path / "genes.csv"
    table.write_text("gene,a,b\ng0,1,0\ng2,0,3\nX,2,2\n")
    screen = gene_screen()
    model = built(screen, gene_embedding=str(table))
    expected = screens.structures(screen, str(table))
    assert model.targets == ["X", "g0", "g1", "g2"]
    for gene, structure in zip(model.targets, model.encoder.structure, strict=True):
        assert np.allclose(structure, expected.get(gene, 0))
    assert model.encoder.reachable().tolist() == [True, True, False, True]


def test_every_drug_has_its_own_structure():
    """One that nobody measured is a target too."""
    screen = drug_screen()
    model = built(screen)
    expected = screens.structures(screen, "")
    assert model.targets == ["a", "b", "c"]
    for drug, structure in zip(model.targets, model.encoder.structure, strict=True):
        assert np.allclose(structure, expected[drug])


def test_the_same_seed_builds_the_same_model_and_another_seed_another():
    """Down to the last weight."""
    weights = [built(gene_screen(), seed=seed).x_network.state.weight for seed in (0, 0, 1)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# ---- Gene networks -------------------------------------------------------------------------------


def with_edges(tmp_path, lines):
    """Path of a CSV of edges."""
    path = tmp_path / "edges.csv"
    path.write_text("\n".join(["source,target,weight", *lines]))
    return str(path)


def test_a_users_network_may_lead_through_genes_outside_the_panel(tmp_path, monkeypatch):
    """From X, which nobody measured, through H to g1, which g2 reaches as well, and on to g3."""
    monkeypatch.setattr(train, "fitted_effects", lambda *arguments: torch.zeros(4, 6))
    edges = ["X,H,5", "H,g1,-3", "g2,g1,1", "g1,g3,0.1"]
    screen = gene_screen()
    grn = with_edges(tmp_path, edges)
    model = train.build(screen, quick(grn=grn), "cpu", also=["X"])
    expected = torch.tensor([0, -0.75, 0, -0.75, 0, 0])
    assert torch.allclose(model.encoder.effects[1, model.targets.index("X")], expected)
    expected = torch.tensor([0, 0.25, 1, 0.25, 0, 0])
    assert torch.allclose(model.encoder.effects[1, model.targets.index("g2")], expected)


def test_part_one_has_the_users_network_in_place_of_coexpression(tmp_path):
    """As its only one."""
    screen = gene_screen()
    model = built(screen, paper=True, grn=with_edges(tmp_path, ["g0,g3,-2"]))
    expected = torch.tensor([1.0, 0, 0, -1, 0, 0])
    assert torch.equal(model.encoder.response[model.targets.index("g0")], expected)


def coexpressed_screen():
    """g1 follows B in the controls only; a perturbed gene, A, is not measured; C is the last."""
    rng = np.random.default_rng(0)
    X = rng.gamma(4.0, 1.0, (120, 4))
    X[:30, 1] = X[:30, 0] + 0.5 * X[:30, 1]
    perturbation = np.repeat([CONTROL, "A", "B", "C"], 30)
    return screen_with(X, perturbation, ["t"] * 120, ["B", "g1", "g2", "C"])


@pytest.mark.parametrize("paper", [False, True])
def test_coexpression_is_that_of_the_controls(paper):
    """Along it each measured target reaches other genes, one that is not measured none."""
    screen = coexpressed_screen()
    model = built(screen, paper=paper, grn="coexpression")
    S = torch.tensor(np.cov(screen.dense(screen.controls("t")).T), dtype=torch.float32)
    expected = propagate(coexpression_network(S), torch.tensor([0, 3]))
    found = model.encoder.response if paper else model.encoder.effects[0]
    assert expected[0, 1] != 0
    assert torch.allclose(found[1:], expected, atol=1e-5)
    assert not found[0].any()


def test_the_structural_network_is_asked_for_the_measured_targets(monkeypatch):
    """With the correlations within training groups, and their number of cells."""
    asked = []

    def structural_effects(correlation, cells, genes, *evidence, **options):
        asked.append((correlation, cells, genes, *evidence))
        return torch.arange(8.0).reshape(2, 4)

    monkeypatch.setattr(train, "structural_effects", structural_effects)
    model = built(coexpressed_screen(), grn="structural")
    correlation, cells, genes, knock, *_ = asked[0]
    assert model.encoder.effects[0].tolist() == [[0, 0, 0, 0], [0, 1, 2, 3], [4, 5, 6, 7]]
    assert (genes.tolist(), cells, knock.shape) == ([0, 3], 120, (2, 2))
    assert torch.allclose(correlation.diagonal(), torch.ones(4))


def test_the_effects_of_a_training_target_are_of_a_fit_that_never_saw_it_perturbed(monkeypatch):
    """Alone or in a pair; those of a held-out one are of the fit that saw all the others."""
    rng = np.random.default_rng(0)
    names = ["g0", "g1", "g2", "g3", "g4", "g5", "g6"]
    means = {(p, "t"): rng.gamma(4.0, 1.0, 7) for p in (CONTROL, *names, "g0+g1", "g2+g5")}
    screen = screen_of(means, cells=9, noise=0.5)
    screen.held_out = {("g6", "t")}
    knocks = []

    def structural_effects(correlation, cells, genes, knock, *evidence, **options):
        knocks.append(knock)
        return torch.full((7, 7), float(len(knocks) - 1))

    monkeypatch.setattr(train, "structural_effects", structural_effects)
    effects = built(screen, grn="structural").encoder.effects[0, :, 0].long()
    assert [len(knock) for knock in knocks[:1]] == [8] and effects[6] == 0
    for p, fit in enumerate(effects.tolist()[:6]):
        knocked = knocks[0][:, p] != 0
        assert fit > 0 and not knocks[fit][:, p].any()
        assert len(knocks[fit]) >= 8 - 2 * knocked.sum() - 1


def test_the_structural_network_knows_which_target_fell():
    """In the units of standard deviations a target moves by itself most."""
    model = built(coexpressed_screen(), grn="structural")
    effects = model.encoder.effects[0]
    assert effects[1].abs().argmax() == 0
    assert effects[2].abs().argmax() == 3
    assert not effects[0].any()


def test_without_a_network_nothing_is_reached():
    """--grn none."""
    assert not built(coexpressed_screen()).encoder.effects.any()


# ---- Dealing cells to plans ----------------------------------------------------------------------

SIZES = st.tuples(*[st.integers(1, 12)] * 5)  # of the groups below
GROUPS = [(CONTROL, "t"), ("g0", "t"), (CONTROL, "u"), ("g0", "u"), ("g1", "u")]
DEALING = {"sizes": SIZES, "most": st.integers(1, 6), "seed": st.integers(0, 99)}


def dealt(sizes, most, seed):
    """A screen of groups of these sizes, its groups, and the plans that its cells were dealt to."""
    perturbation = np.repeat([key[0] for key in GROUPS], sizes)
    cell_type = np.repeat([key[1] for key in GROUPS], sizes)
    order = np.random.default_rng(seed).permutation(sum(sizes))
    screen = screen_with(np.ones((sum(sizes), 1)), perturbation[order], cell_type[order])
    groups = list(screen.training_groups())
    own = quick(plan_cells=most)
    generator = torch.Generator().manual_seed(seed)
    return screen, groups, train.deal_plans(screen, groups, own, generator)


@given(**DEALING)
@settings(deadline=None)
def test_every_perturbed_cell_is_dealt_once(sizes, most, seed):
    """To a plan of its own group."""
    screen, groups, plans = dealt(sizes, most, seed)
    ends = np.concatenate([plan.ends for plan in plans])
    perturbed = np.flatnonzero(screen.perturbation != CONTROL)
    assert np.array_equal(np.sort(ends[screen.perturbation[ends] != CONTROL]), perturbed)
    for plan in plans:
        assert np.isin(plan.ends, screen.groups[groups[plan.group]]).all()


@given(**DEALING)
@settings(deadline=None)
def test_a_plan_has_as_many_controls_of_the_same_type(sizes, most, seed):
    """And no more than --plan-cells."""
    screen, groups, plans = dealt(sizes, most, seed)
    for plan in plans:
        assert np.isin(plan.starts, screen.controls(groups[plan.group][1])).all()
        assert len(plan.starts) == len(plan.ends) <= most


@given(**DEALING)
@settings(deadline=None)
def test_no_control_is_used_twice_in_a_plan_while_another_is_not_used(sizes, most, seed):
    """Where controls are fewer than the perturbed cells, they are used equally often."""
    screen, groups, plans = dealt(sizes, most, seed)
    for plan in plans:
        perturbation, cell_type = groups[plan.group]
        if perturbation != CONTROL:
            controls = screen.controls(cell_type)
            used = (plan.starts[:, None] == controls).sum(0)
            assert used.max() - used.min() <= 1


def test_cells_are_dealt_in_a_random_order():
    """A cell's place in its file does not decide with whom it shares a plan."""
    screen, groups, plans = dealt((2, 200, 2, 2, 2), 50, 0)
    number = groups.index(("g0", "t"))
    ends = np.concatenate([plan.ends for plan in plans if plan.group == number])
    rank = np.searchsorted(np.sort(ends), ends)
    assert abs(np.corrcoef(rank, np.arange(200))[0, 1]) < 5 / math.sqrt(200)


# ---- Drawing pairs -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """A simulated screen of which nothing is held out."""
    path = str(tmp_path_factory.mktemp("pairs") / "s.h5ad")
    simulate_screen(30, 3, 600, seed=0).write_h5ad(path)
    return screens.prepare(path, fraction=0)


def drawn(screen, seed=0, **changes):
    """The groups of a screen, and an epoch's pairs."""
    groups = list(screen.training_groups())
    own = quick(**{"plan_cells": 40, "pairing": "exact", **changes})
    generator = torch.Generator().manual_seed(seed)
    cells = screens.Cells(screen.X, "cpu")
    return groups, train.draw_pairs(screen, cells, groups, own, generator, "cpu")


def mean_cost(screen, pairs):
    """The mean squared distance of the pairs."""
    return ((screen.dense(pairs.start) - screen.dense(pairs.end)) ** 2).sum(1).mean()


def test_pairs_start_at_a_control_of_their_type_and_carry_their_groups_number(simulated):
    """Every perturbed cell is the end of one pair."""
    groups, pairs = drawn(simulated)
    labels = zip(simulated.perturbation[pairs.end], simulated.cell_type[pairs.end], strict=True)
    starts = simulated.perturbation[pairs.start], simulated.cell_type[pairs.start]
    assert [groups[number] for number in pairs.group] == list(labels)
    assert (starts[0] == CONTROL).all() and (starts[1] == simulated.cell_type[pairs.end]).all()
    perturbed = np.flatnonzero(simulated.perturbation != CONTROL)
    assert np.isin(perturbed, pairs.end).all()


def test_a_plan_of_transport_pairs_nearer_cells_than_chance(simulated):
    """`pair` draws from it; random pairs cost a tenth more at least."""
    _, near = drawn(simulated)
    _, random = drawn(simulated, pairing="random")
    assert mean_cost(simulated, near) < 0.9 * mean_cost(simulated, random)


def test_every_plan_is_described(simulated):
    """An exact one is one-to-one and has uniform marginals; a random one tells nothing."""
    _, exact = drawn(simulated)
    _, random = drawn(simulated, pairing="random")
    assert exact.marginal_error.max() < 1e-6
    assert exact.information.min() > 0.99
    assert np.allclose(random.information, 0, atol=1e-5)


def test_the_same_generator_draws_the_same_pairs_and_another_others(simulated):
    """So that an epoch can be repeated."""
    first, again, other = [drawn(simulated, seed)[1].start for seed in (0, 0, 1)]
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_processes_draw_the_pairs_that_one_would_draw(simulated, monkeypatch):
    """Each solves every third plan; dealt back in turn, they are all."""
    _, whole = drawn(simulated)
    groups, cells = list(simulated.training_groups()), screens.Cells(simulated.X, "cpu")
    own = quick(plan_cells=40, pairing="exact")
    parts = []

    def fill(collective, received, mine):
        received[:] = parts

    monkeypatch.setattr(train, "PROCESSES", 3)
    monkeypatch.setattr(train, "gather", parts.append)
    for rank in range(3):
        monkeypatch.setattr(train, "RANK", rank)
        with pytest.raises(TypeError):  # there is nothing to go on with
            generator = torch.Generator().manual_seed(0)
            train.draw_pairs(simulated, cells, groups, own, generator, "cpu")
    monkeypatch.undo()
    monkeypatch.setattr(train, "PROCESSES", 3)
    monkeypatch.setattr(train, "exchange", fill)
    assert len(parts[0]) == math.ceil(len(whole.information) / 3)
    together = np.concatenate([start for start, _, _ in train.gather(parts[0])])
    assert np.array_equal(together, whole.start)


def test_plan_information_is_0_for_independent_pairs_and_1_for_an_assignment():
    """A plan of unequal sides is measured by the shorter; one cell has one partner."""
    assert abs(train.plan_information(torch.full((5, 7), 1 / 35))) < 1e-6
    for plan in (torch.eye(6).flip(0) / 6, torch.eye(3).repeat_interleave(2, 0) / 6):
        assert train.plan_information(plan) == pytest.approx(1, abs=1e-6)
    assert train.plan_information(torch.ones(1, 4) / 4) == 1


def test_plan_information_is_the_mutual_information_of_its_sides():
    """By hand, over log 2."""
    expected = (0.8 * math.log(1.6) + 0.2 * math.log(0.4)) / math.log(2)
    plan = torch.tensor([[0.4, 0.1], [0.1, 0.4]])
    assert train.plan_information(plan) == pytest.approx(expected, abs=1e-6)


def test_the_marginal_error_is_that_of_the_worse_side():
    """Relative to a marginal's weight, 1 / 2 of the rows and 1 / 3 of the columns."""
    plan = torch.full((2, 3), 1 / 6)
    plan[0, 1] += 0.1
    assert train.marginal_error(plan) == pytest.approx(0.3, rel=1e-5)
    assert train.marginal_error(plan.T) == pytest.approx(0.3, rel=1e-5)


# ---- A batch -------------------------------------------------------------------------------------


def training_data(screen=None, **changes):
    """TrainingData of an untrained model, and an epoch's pairs."""
    screen = screen or gene_screen()
    groups = list(screen.training_groups())
    model = built(screen, **changes).train()
    torch.nn.init.normal_(model.x_network.out[2].weight)
    torch.nn.init.normal_(model.d_network.out[2].weight)
    data = train.TrainingData(model, screen, groups, "cpu")
    generator = torch.Generator().manual_seed(0)
    pairs = train.draw_pairs(screen, data.cells, groups, model.settings, generator, "cpu")
    return data, pairs


def shown_to_the_model(data, pairs, batch):
    """What the model's loss is given of a batch."""
    shown = []

    def loss(*arguments):
        shown.extend(arguments)
        return [torch.zeros(())]

    data.model.loss = loss
    data.losses(pairs, batch, batch, Noise(0))
    return shown


def test_each_pair_meets_its_own_condition():
    """In its own cell type, under its own target, whatever the order of the batch."""
    data, pairs = training_data()
    batch = np.random.default_rng(0).permutation(len(pairs.end))[:40]
    *_, conditions, which, _ = shown_to_the_model(data, pairs, batch)
    for i, row in zip(batch, which.tolist(), strict=True):
        perturbation, cell_type = data.groups[pairs.group[i]]
        target = conditions.target[row].item()
        assert data.model.cell_types[conditions.cell_type[row]] == cell_type
        assert (data.model.targets[target] if target >= 0 else CONTROL) == perturbation


def test_a_batch_encodes_each_of_its_conditions_once():
    """And none that it does not hold."""
    data, pairs = training_data()
    batch = np.flatnonzero(np.isin(pairs.group, np.unique(pairs.group)[:2]))
    *_, conditions, _, _ = shown_to_the_model(data, pairs, batch)
    assert len(conditions.cell_type) == 2


@pytest.mark.parametrize("if_expressed", [True, False])
def test_a_pair_goes_from_its_control_to_its_perturbed_cell(if_expressed):
    """Expressed levels are the cells' own, and so is which genes are on."""
    data, pairs = training_data(if_expressed=if_expressed)
    batch = np.arange(0, len(pairs.end), 3)
    x0, xT, d0, dT, *_ = shown_to_the_model(data, pairs, batch)
    ends = [(pairs.start, x0, d0), (pairs.end, xT, dT)]
    for rows, x, d in ends:
        measured = torch.from_numpy(data.screen.dense(rows[batch]))
        assert torch.equal(d, (measured != 0).float())
        assert torch.equal(x * d, measured)
        assert (x == measured).all() != if_expressed


def test_silent_genes_are_filled_from_the_controls_at_the_start_and_the_own_group_at_the_end():
    """With a level for every group, the draws tell which group they are from."""
    cells = 20
    perturbation = np.repeat([CONTROL, "g0", CONTROL, "g0"], cells)
    cell_type = np.repeat(["t", "t", "u", "u"], cells)
    level = np.repeat([1.0, 2.0, 3.0, 4.0], cells)
    on = np.random.default_rng(0).random((4 * cells, 3)) < 0.5
    screen = screen_with(on * level[:, None], perturbation, cell_type)
    data, pairs = training_data(screen)
    batch = np.arange(len(pairs.end))
    x0, xT, *_ = shown_to_the_model(data, pairs, batch)
    assert torch.equal(
        x0, torch.tensor(level[pairs.start], dtype=torch.float32)[:, None].expand(-1, 3)
    )
    assert torch.equal(
        xT, torch.tensor(level[pairs.end], dtype=torch.float32)[:, None].expand(-1, 3)
    )


OPTIONS = [
    {},
    {"skip_gate": False, "if_expressed": False},
    {"discrete": False, "if_expressed": False},
    {"paper": True},
]


@pytest.mark.parametrize("make", [gene_screen, drug_screen])
@pytest.mark.parametrize("options", OPTIONS)
def test_a_training_step_never_reads_a_number_from_the_device(make, options):
    """With tensors that have shapes and no values, whatever reads one raises.

    `item`, `bool` and a mask's size do: a GPU would be waited for.
    """
    data, pairs = training_data(make(), **options)
    batch = np.arange(8)
    data.losses(pairs, batch, batch, train.SharedNoise(Noise(0), 8))  # the first may
    with FakeTensorMode(allow_non_fake_inputs=True):
        losses = data.losses(pairs, batch, batch, train.SharedNoise(Noise(0), 8))
        losses.sum().backward()
        with pytest.raises(DataDependentOutputException):
            losses[0].item()


def test_all_that_a_batch_sends_to_a_gpu_is_not_waited_for(monkeypatch):
    """Cells, groups and conditions go from page-locked memory, without blocking."""
    data, pairs = training_data()
    batch = np.arange(12)
    sent = []

    def pin_memory(tensor):
        sent.append("locked")
        return tensor

    def to(tensor, *where, non_blocking=False):
        sent.append("sent" if non_blocking else "waited for")
        return tensor

    monkeypatch.setattr(data.cells, "device", torch.device("cuda"))
    monkeypatch.setattr(data.model, "loss", lambda *arguments: [torch.zeros(())])
    monkeypatch.setattr(data, "values", FillNothing())
    monkeypatch.setattr(data.model, "activation", torch.ones_like)
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", to)
    data.losses(pairs, batch, batch, Noise(0))
    assert sent == ["locked", "sent"] * 6


class FillNothing:
    """If-expressed values in the tests of what is sent."""

    def fill(self, x, population, noise):
        return x


# ---- An epoch ------------------------------------------------------------------------------------


class Epoch:
    """An epoch of training, recorded: its batches, and the learning rate after each.

    The loss of batch i is (i, 10 i).
    """

    def __init__(self, screen, epoch=0, epochs=2, **changes):
        self.batches = []
        self.rates = []
        groups = list(screen.training_groups())
        model = built(screen, **changes)
        self.data = train.TrainingData(model, screen, groups, "cpu")
        self.data.losses = self.losses
        weight = torch.zeros(1, requires_grad=True)
        self.optimiser = torch.optim.SGD([weight], lr=model.settings.learning_rate)
        self.weight = weight
        progress = tqdm(disable=True)
        arguments = self.data, self.optimiser, epoch, epochs, progress
        self.mean, self.pairs = train.train_epoch(*arguments)

    def losses(self, pairs, batch, mine, noise):
        """In place of the model's."""
        i = len(self.batches)
        self.batches.append(batch)
        self.rates.append(self.optimiser.param_groups[0]["lr"])
        return self.weight.sum() * 0 + torch.tensor([i, 10.0 * i])


def test_every_pair_is_in_one_batch(simulated):
    """Batches are as large as --batch at most, and of equal size within one."""
    epoch = Epoch(simulated, batch=50)
    sizes = [len(batch) for batch in epoch.batches]
    order = np.concatenate(epoch.batches)
    assert np.array_equal(np.sort(order), np.arange(len(epoch.pairs.end)))
    assert max(sizes) <= 50 and max(sizes) - min(sizes) <= 1


def test_batches_are_shuffled(simulated):
    """The order of the pairs, which come group by group, is not that of the batches."""
    epoch = Epoch(simulated, batch=50)
    order = np.concatenate(epoch.batches)
    correlation = np.corrcoef(order, np.arange(len(order)))[0, 1]
    assert abs(correlation) < 5 / math.sqrt(len(order))


def test_an_epoch_can_be_repeated_and_the_next_is_another(simulated):
    """In its pairs and in its batches, and so is that of another seed."""
    first, again = Epoch(simulated), Epoch(simulated)
    others = Epoch(simulated, epoch=1), Epoch(simulated, seed=1)
    assert np.array_equal(first.pairs.start, again.pairs.start)
    assert np.array_equal(first.batches[0], again.batches[0])
    for other in others:
        assert not np.array_equal(first.pairs.start, other.pairs.start)


def test_as_many_batches_were_foretold(simulated):
    """`count_steps`."""
    epoch = Epoch(simulated)
    assert len(epoch.batches) == train.count_steps(simulated, epoch.data.groups, quick())


def test_an_epochs_losses_are_means_over_its_batches(simulated):
    """Of Eq. 9 and of Eq. 14."""
    epoch = Epoch(simulated)
    middle = (len(epoch.batches) - 1) / 2
    assert np.allclose(epoch.mean, [middle, 10 * middle], rtol=1e-5)


def test_the_learning_rate_falls_evenly_to_0_over_all_epochs(simulated):
    """A resumed run goes on where the line had come to; the paper's stays as it is."""
    both = Epoch(simulated).rates + Epoch(simulated, epoch=1).rates
    line = 0.002 * (1 - np.arange(len(both)) / len(both))
    assert np.allclose(both, line)
    assert set(Epoch(simulated, decay=False).rates) == {0.002}
    assert not ImprovedSettings().paper().decay


# ---- A run ---------------------------------------------------------------------------------------


def new_state(screen):
    """The state of a run that has not begun."""
    state = {"epoch": 0, "epochs": 1, "optimiser": None, "log": []}
    state |= {"groups": screen.fingerprint(), "library": screen.library, "left_out": []}
    return state


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of three epochs: its folder, state, model, and the epochs after which it was saved."""
    out = tmp_path_factory.mktemp("run")
    screen = gene_screen()
    model = built(screen)
    state = new_state(screen)
    saved = []

    def save(state):
        saved.append((state["epoch"], len(state["log"])))
        train.write_checkpoint(str(out), model, model.settings, {"path": "s.h5ad"}, state)

    own = quick(epochs=3, batch=12, learning_rate=0.01)
    model.settings = own
    train.train(model, screen, own, str(out), state, "cpu", save)
    return out, state, model, saved


def test_training_lowers_both_losses(trained):
    """Of three epochs, from the first to the last."""
    log = np.array(trained[1]["log"])
    assert (log[-1, 1:3] < log[0, 1:3]).all()


def test_a_run_is_saved_after_every_epoch(trained):
    """With the row of that epoch in its log."""
    assert trained[3] == [(i, i) for i in range(1, 4)]


def test_the_log_has_a_row_an_epoch(trained):
    """All that is said of an epoch, under names; and a picture of the losses."""
    log = pd.read_csv(trained[0] / "log.csv")
    assert tuple(log) == train.LOG and log["epoch"].tolist() == [1, 2, 3]
    assert np.allclose(log, trained[1]["log"])
    assert os.path.getsize(trained[0] / "loss.png") > 10_000


def test_a_checkpoint_restores_the_model(trained):
    """Its settings, names and every number."""
    out, _, model, _ = trained
    restored = sample.restore_model(sample.read_checkpoint(str(out)), "cpu")
    assert restored.settings == model.settings
    assert (restored.genes, restored.targets) == (model.genes, model.targets)
    before, after = model.state_dict(), restored.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("steps, epochs, expected", [(100, 0, 10), (400, 0, 5), (100, 7, 7)])
def test_by_default_a_run_has_1000_steps(tmp_path, monkeypatch, steps, epochs, expected):
    """In whole epochs, and five of them at least."""
    screen = gene_screen()
    state = {**new_state(screen), "epoch": 25}  # so that nothing is left to do
    monkeypatch.setattr(train, "count_steps", lambda *arguments: steps)
    own = quick(epochs=epochs)
    train.train(built(screen), screen, own, str(tmp_path), state, "cpu", None)
    assert state["epochs"] == expected


def test_a_row_of_the_log_counts_the_plans_that_did_not_converge():
    """More than 1 % off, or not a number; and it names the worst and the mean information."""
    none = np.zeros(0, int)
    pairs = train.Pairs(none, none, none, np.array([0.0, 0.02, 0.01]), np.array([0.2, 0.4, 0.9]))
    row = train.log_row(4, torch.tensor([1.0, 2.0]), pairs, 8.5)
    assert row == pytest.approx([5, 1, 2, 3, 1, 0.02, 0.5, 8.5])
    pairs = pairs._replace(marginal_error=np.array([math.nan, 0.0, 0.0]))
    assert train.log_row(0, torch.zeros(2), pairs, 1.0)[4] == 1


def test_sinkhorns_failures_are_told_at_the_end(capsys):
    """Of all epochs together; where there are none nothing is said."""
    log = [[1, 0, 0, 7, 0, 0.001, 1, 1], [2, 0, 0, 7, 2, 0.25, 1, 1]]
    train.warn_of_sinkhorn(log[:1])
    assert capsys.readouterr().out == ""
    train.warn_of_sinkhorn(log)
    assert "left 2 of 14 plans more than 1 % off their marginals (worst 0.25)" in (
        capsys.readouterr().out
    )


# ---- Several processes ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["normal", "uniform"])
@pytest.mark.parametrize("cells, processes", [(12, 3), (11, 3), (2, 2)])
def test_the_processes_numbers_are_the_whole_batchs_dealt_out(monkeypatch, kind, cells, processes):
    """Row by row: the first to the first process, the second to the second."""
    whole = getattr(Noise(0), kind)(torch.empty(cells, 4))
    monkeypatch.setattr(train, "PROCESSES", processes)
    for rank in range(processes):
        monkeypatch.setattr(train, "RANK", rank)
        mine = torch.empty(len(range(rank, cells, processes)), 4)
        numbers = getattr(train.SharedNoise(Noise(0), cells), kind)(mine)
        assert torch.equal(numbers, whole[rank::processes])


@pytest.mark.parametrize("make", [gene_screen, drug_screen])
def test_the_processes_losses_add_up(monkeypatch, make):
    """Each is weighed by its share of a batch, which need not be a third."""
    data, pairs = training_data(make())
    batch = np.random.default_rng(0).permutation(len(pairs.end))[:10]
    whole = data.losses(pairs, batch, batch, train.SharedNoise(Noise(0), 10))
    total = 0
    monkeypatch.setattr(train, "PROCESSES", 3)
    for rank in range(3):
        monkeypatch.setattr(train, "RANK", rank)
        mine = batch[rank::3]
        losses = data.losses(pairs, batch, mine, train.SharedNoise(Noise(0), 10))
        total = total + losses * len(mine) / 10
    assert torch.allclose(total, whole, rtol=1e-4)


def test_each_process_takes_its_own_cells_of_a_batch_and_weighs_them(simulated, monkeypatch):
    """The second of two has the odd ones; its loss counts by their share."""
    shares = []

    class Second(Epoch):
        def losses(self, pairs, batch, mine, noise):
            shares.append((batch, mine, noise.total))
            return self.weight.sum() * 0 + torch.ones(2)

    monkeypatch.setattr(train, "RANK", 1)
    monkeypatch.setattr(train, "PROCESSES", 2)
    monkeypatch.setattr(train, "gather", lambda mine: mine * 2)
    monkeypatch.setattr(train, "exchange", lambda *arguments: None)
    epoch = Second(simulated, plan_cells=10_000, batch=45)
    for batch, mine, total in shares:
        assert np.array_equal(mine, batch[1::2]) and total == len(batch)
    expected = np.mean([len(mine) / len(batch) for batch, mine, _ in shares])
    assert np.allclose(epoch.mean, expected, rtol=1e-5)


def test_a_step_goes_down_the_sum_of_all_processes_gradients(monkeypatch):
    """The others' are added before the optimiser moves; those of the step before are gone."""
    weights = torch.nn.Parameter(torch.tensor([1.0, 2.0])), torch.nn.Parameter(torch.tensor([3.0]))

    def exchange(collective, whole):
        whole += torch.tensor([10.0, 20.0, 30.0])  # what the other process found

    monkeypatch.setattr(train, "PROCESSES", 2)
    monkeypatch.setattr(train, "exchange", exchange)
    weights[0].grad = torch.full((2,), 100.0)  # of the step before
    train.descend(torch.optim.SGD(weights, lr=1.0), weights[0].sum() + 2 * weights[1].sum())
    assert weights[0].tolist() == [1 - 11, 2 - 21]
    assert weights[1].tolist() == [3 - 32]


@given(items=st.integers(0, 12), processes=st.integers(1, 5))
def test_what_was_dealt_to_processes_comes_back_in_order(items, processes):
    """Item by item, also where they do not divide evenly."""
    parts = [list(range(rank, items, processes)) for rank in range(processes)]

    def exchange(collective, received, mine):
        received[:] = parts

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "PROCESSES", processes)
        patch.setattr(train, "exchange", exchange)
        assert train.gather(parts[0]) == list(range(items))


def test_a_lost_process_is_a_lost_connection(monkeypatch):
    """Whatever the collective raised, in one line; one process alone calls none."""

    def broken(*arguments):
        raise RuntimeError("connection reset by peer\nand a long trace")

    assert train.exchange(broken) is None
    monkeypatch.setattr(train, "PROCESSES", 2)
    with pytest.raises(ConnectionError, match=r"lost another .* \(connection reset by peer\)$"):
        train.exchange(broken)
