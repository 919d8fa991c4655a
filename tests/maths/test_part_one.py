"""Part I of departures.py is the paper, complete: cut off below it, the file trains and samples."""

import ast
import builtins
import dis
import re
import sys
from dataclasses import fields
from pathlib import Path
from types import CodeType, ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

import departures
import train
from departures import Departures, ImprovedSettings, Noise, Settings, model_class
from evaluate import e_distance
from examples import screen_with

PATH = Path(departures.__file__)
MARKER = "# ==== PART II"
NAMES = ["g0", "g1", "g2", "g3", "g4"]  # of the genes


def parts():
    """The text above the marker, and the text below it."""
    above, marker, below = PATH.read_text().partition(f"\n{MARKER}")
    assert marker and MARKER not in below
    return above + "\n", below


@pytest.fixture(scope="module")
def part_one():
    """What stands above the marker, as a module of its own."""
    module = ModuleType("part_one")
    exec(compile(parts()[0], "part_one.py", "exec"), vars(module))
    return module


# ---- It is by itself -----------------------------------------------------------------------------


def test_part_one_imports_torch_the_transport_solver_and_the_standard_library():
    """No NumPy, and none of our own modules."""
    imported = set()
    for node in ast.walk(ast.parse(parts()[0])):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported - sys.stdlib_module_names == {"torch", "ot"}


def names_used(code):
    """The names that a piece of code takes from its module, inner functions included."""
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from names_used(inner)


def test_part_one_uses_no_name_that_it_does_not_define(part_one):
    """Also in functions that no test below calls."""
    used = set(names_used(compile(parts()[0], "part_one", "exec")))
    assert {"bridge_sample", "transport_cost", "Encoded"} <= used
    assert used <= vars(part_one).keys() | vars(builtins).keys() | {"__annotations__"}


def switches():
    """The settings that only the additions have, and the name of their gene network."""
    ours, papers = ({field.name for field in fields(kind)} for kind in (ImprovedSettings, Settings))
    return ours - papers - {"discrete"} | {"structural"}  # --no-discrete is the paper's Fig. 6


def test_the_switches_of_part_two_are_these():
    """The list that the next test looks for."""
    assert switches() == {
        "shifts", "skip_gate", "anchor", "if_expressed", "decay", "gene_embedding", "structural",
    }  # fmt: skip


@pytest.mark.parametrize("switch", sorted(switches()))
def test_part_one_mentions_no_addition(switch):
    """Neither in code nor in words, in the singular or the plural."""
    words = switch.removesuffix("s").replace("_", "[ _-]")
    above, below = parts()
    assert re.search(words, below, re.IGNORECASE)
    assert not re.search(words, above, re.IGNORECASE)


def test_part_one_mentions_no_class_or_function_of_part_two():
    """The arrow runs one way."""
    above, below = parts()
    defined = set(re.findall(r"^(?:class|def) (\w+)", below, re.MULTILINE))
    assert {"Shifted", "Anchored", "ActiveValues", "model_class"} <= defined
    assert not [name for name in defined if re.search(rf"\b{name}\b", above)]


def test_the_settings_are_the_published_ones(part_one):
    """AdamW's 1e-3, batches of 64, sigma 0.2, 50 steps, entropic plans with 0.1 of the largest."""
    own = part_one.Settings()
    assert (own.learning_rate, own.batch, own.sigma, own.steps) == (1e-3, 64, 0.2, 50)
    assert (own.pairing, own.cost, own.epsilon) == ("entropic", "sqeuclidean", "0.1max")
    assert own.grn == "coexpression"


# ---- It trains and samples -----------------------------------------------------------------------
#
# The knock-out of gene 0 switches it off in most cells, lowers gene 1, which follows it, and raises
# gene 2 in those cells that express it. The controls of two types differ in gene 4.


def population(n, perturbed, cell_type, noise):
    """Cells of one group: (n, N)."""
    level = torch.tensor([2.0, 2.0, 2.0, 1.0, 1.0 + cell_type]).repeat(n, 1)
    level[:, :2] += 0.5 * noise.normal(level[:, :1])
    on = torch.tensor([0.9, 0.9, 0.5, 0.5, 0.9])
    if perturbed:
        level = level + torch.tensor([-1.0, -1.0, 1.0, 0.0, 0.0])
        on = torch.tensor([0.1, 0.8, 0.8, 0.5, 0.9])
    level = (level + 0.1 * noise.normal(level)).clamp_min(0.05)
    return level * (noise.uniform(level) < on)


class Trained:
    """Part I alone, from cells to predictions: both cell types, knocked out and sampled."""

    def __init__(self, module, epochs=30, cells=256):
        own = module.Settings(width=64)
        noise = module.Noise(0)
        self.controls = [population(cells, False, k, noise) for k in (0, 1)]
        self.measured = [population(cells, True, k, noise) for k in (0, 1)]
        torch.manual_seed(0)
        model = module.Departures(own, NAMES, ["g0"], ["a", "b"])
        W = module.coexpression_network(torch.cov(self.controls[0].T))
        model.encoder.response.copy_(module.propagate(W, torch.tensor([0])))
        conditions = module.Conditions(
            torch.zeros(2, 1, dtype=torch.long), torch.ones(2, 1), torch.arange(2)
        )
        optimiser = torch.optim.AdamW(model.parameters(), lr=own.learning_rate)
        for _ in range(epochs):
            x0, xT, which = self.pairs(module, own, noise)
            order = torch.randperm(len(x0), generator=noise.generator)
            for batch in order.split(own.batch):
                ends = x0[batch], xT[batch]
                states = [module.activation(x) for x in ends]
                level, on = model.loss(*ends, *states, conditions, which[batch], noise)
                optimiser.zero_grad()
                (level + on).backward()
                optimiser.step()
        self.predicted = []
        for k, x0 in enumerate(self.controls):
            asked = conditions.take(torch.tensor([k]))
            d0 = module.activation(x0)
            self.predicted.append(module.sample(model, x0, d0, asked, noise)[0])

    def pairs(self, module, own, noise):
        """An epoch's pairs: x_0, x_T, and the row of each pair's condition."""
        starts, ends, which = [], [], []
        for k in (0, 1):
            for xT in self.measured[k].split(own.plan_cells):
                x0 = self.controls[k]
                x0 = x0[torch.randperm(len(x0), generator=noise.generator)[: len(xT)]]
                partners, _ = module.pair(xT, x0, own, noise)
                starts.append(x0[partners])
                ends.append(xT)
                which.append(torch.full((len(xT),), k))
        return torch.cat(starts), torch.cat(ends), torch.cat(which)


@pytest.fixture(scope="module")
def trained(part_one):
    return Trained(part_one)


def test_the_response_follows_the_gene_network(part_one):
    """Gene 1 co-varies with the target, and the others do not."""
    controls = population(2000, False, 0, part_one.Noise(0))
    W = part_one.coexpression_network(torch.cov(controls.T))
    response = part_one.propagate(W, torch.tensor([0]))
    assert response[0, :2].tolist() == [1, 1]
    assert not response[0, 2:].any()


@pytest.mark.parametrize("cell_type", [0, 1])
def test_part_one_carries_controls_to_the_perturbed_cells(trained, cell_type):
    """In each cell type the predicted cells are at less than half of the controls' distance."""
    measured, controls = trained.measured[cell_type], trained.controls[cell_type]
    before = e_distance(controls.numpy(), measured.numpy())
    after = e_distance(trained.predicted[cell_type].numpy(), measured.numpy())
    assert after < 0.5 * before


@pytest.mark.parametrize("cell_type", [0, 1])
def test_part_one_predicts_cells_of_the_right_type(trained, cell_type):
    """They are nearer to the perturbed cells of their own type than to those of the other."""
    predicted = trained.predicted[cell_type].numpy()
    own, other = (trained.measured[k].numpy() for k in (cell_type, 1 - cell_type))
    assert e_distance(predicted, own) < 0.7 * e_distance(predicted, other)


# ---- It is what --paper runs ---------------------------------------------------------------------


def test_with_all_additions_off_the_model_is_part_ones():
    """No subclass of it."""
    assert model_class(ImprovedSettings().paper()) is Departures


def test_paper_switches_every_addition_off():
    """And keeps the discrete bridge, which is the paper's."""
    paper = ImprovedSettings().paper()
    off = [getattr(paper, name) for name in switches() - {"structural"}]
    assert not any(off)
    assert paper.discrete
    assert vars(paper).items() >= vars(Settings()).items()


def test_paper_comes_before_what_the_user_sets():
    """It changes the settings in place and hands them back."""
    own = ImprovedSettings(sigma=0.9)
    assert own.paper() is own
    assert own.sigma == 0.2


@pytest.mark.parametrize("switch", ["shifts", "if_expressed"])
def test_with_one_addition_on_the_model_is_another(switch):
    """The comparison above could fail."""
    own = ImprovedSettings().paper()
    setattr(own, switch, True)
    assert model_class(own) is not Departures


def numbers(module, model_kind, own):
    """The losses of five training steps, then predicted cells, from one seed."""
    noise = module.Noise(0)
    torch.manual_seed(0)
    model = model_kind(own, NAMES, ["g0"], ["a"])
    conditions = module.Conditions(torch.tensor([[0]]), torch.ones(1, 1), torch.tensor([0]))
    which = torch.zeros(64, dtype=torch.long)
    optimiser = torch.optim.AdamW(model.parameters(), lr=own.learning_rate)
    losses = []
    for _ in range(5):
        x0 = population(64, False, 0, noise)
        xT = population(64, True, 0, noise)
        d0, dT = model.activation(x0), model.activation(xT)
        of_batch = model.loss(x0, xT, d0, dT, conditions, which, noise)
        optimiser.zero_grad()
        sum(of_batch).backward()
        optimiser.step()
        losses += of_batch
    return torch.stack(losses), *module.sample(model, x0, d0, conditions, noise)


def test_paper_gives_the_numbers_of_part_one_to_the_bit(part_one):
    """The same losses, then the same cells, from the same seed."""
    alone = numbers(part_one, part_one.Departures, part_one.Settings())
    paper = ImprovedSettings().paper()
    whole = numbers(departures, model_class(paper), paper)
    assert len(whole) == len(alone)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(whole, alone, strict=True))


def test_train_paper_hands_part_one_the_cells_as_they_are(part_one):
    """The loss that train.py takes of a batch of a screen is Part I's of the same cells."""
    noise = Noise(0)
    cells = torch.cat([population(8, False, 0, noise), population(8, True, 0, noise)])
    screen = screen_with(cells.numpy(), ["control"] * 8 + ["g0"] * 8, ["a"] * 16, NAMES)
    groups = [("control", "a"), ("g0", "a")]
    model = train.build(screen, ImprovedSettings().paper(), "cpu")
    for network in (model.x_network, model.d_network):  # so that they answer what they are shown
        torch.nn.init.normal_(network.out[2].weight)
    pairs = SimpleNamespace(start=np.arange(8), end=np.arange(8, 16), group=np.ones(8, int))
    data = train.TrainingData(model, screen, groups, "cpu")
    found = data.losses(pairs, np.arange(8), np.arange(8), Noise(1))
    alone = part_one.Departures(part_one.Settings(), NAMES, ["g0"], ["a"])
    alone.load_state_dict(model.state_dict())
    x0, xT = cells[:8], cells[8:]
    d0, dT = part_one.activation(x0), part_one.activation(xT)
    conditions = part_one.Conditions(torch.tensor([[0]]), torch.ones(1, 1), torch.tensor([0]))
    which = torch.zeros(8, dtype=torch.long)
    expected = alone.loss(x0, xT, d0, dT, conditions, which, part_one.Noise(1))
    assert torch.equal(found, torch.stack(expected))
