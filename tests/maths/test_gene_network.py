"""The gene network: co-expression and messages (Part I), structural equations (additions)."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

import departures
import train
from departures import (
    coexpression_network,
    fit_structural_equations,
    propagate,
    structural_effects,
    structural_likelihood,
)
from examples import screen_with
from screens import CONTROL

SEED = st.integers(0, 10_000)


def f32(array):
    """An array as a float32 tensor."""
    return torch.as_tensor(np.asarray(array), dtype=torch.float32)


# ---- Co-expression -------------------------------------------------------------------------------


def test_edges_are_the_correlations_above_the_threshold():
    """Of either sign; a gene has no edge to itself."""
    S = torch.tensor([[4.0, 1.0, 0.2], [1.0, 1.0, -0.5], [0.2, -0.5, 1.0]])
    expected = torch.tensor([[0, 0.5, 0], [0.5, 0, -0.5], [0, -0.5, 0]])
    assert torch.allclose(coexpression_network(S), expected)


@settings(deadline=None, max_examples=50)
@given(SEED)
def test_the_network_of_a_covariance_is_numpys_correlation(seed):
    """Whatever the scales of the genes."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(30, 2)) @ rng.normal(size=(2, 6)) + rng.normal(size=(30, 6))
    X = X * rng.uniform(0.1, 10, 6)
    correlation = np.corrcoef(X.T) - np.eye(6)
    assume((np.abs(np.abs(correlation) - 0.3) > 1e-4).all())
    expected = np.where(np.abs(correlation) > 0.3, correlation, 0)
    assert np.allclose(coexpression_network(f32(np.cov(X.T))), expected, atol=1e-5)


def test_a_gene_that_never_varies_has_no_edges():
    """It has no correlation."""
    W = coexpression_network(torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    assert not W.any()


# ---- Messages ------------------------------------------------------------------------------------


def test_messages_follow_the_edges():
    """0 -> 1 -| 2, and 3 alone: the weight of a gene's only edge does not matter, its sign does."""
    W = torch.zeros(4, 4)
    W[1, 0] = 0.5
    W[2, 1] = -2.0
    expected = torch.tensor([[1.0, 1.0, -1.0, 0.0], [0.0, 1.0, -1.0, 0.0]])
    assert torch.equal(propagate(W, torch.tensor([0, 1])), expected)


def test_a_held_gene_does_not_answer_to_its_own_regulators():
    """A loop of two genes: what comes back to the held one is lost."""
    W = torch.tensor([[0.0, -1.0], [1.0, 0.0]])
    assert torch.equal(propagate(W, torch.tensor([0])), torch.tensor([[1.0, 1.0]]))


def test_a_gene_takes_the_mean_of_its_messages_weighted_by_their_edges():
    """Gene 2 hears gene 0 with weight 3, and gene 1, which does not move, with weight -1."""
    W = torch.zeros(3, 3)
    W[2] = torch.tensor([3.0, -1.0, 0.0])
    assert propagate(W, torch.tensor([0]))[0].tolist() == [1.0, 0.0, 0.75]
    assert propagate(W, torch.tensor([1]))[0].tolist() == [0.0, 1.0, -0.25]


def test_a_message_goes_as_many_hops_as_it_is_told():
    """Three, if not told."""
    W = torch.diag(torch.ones(5), -1)  # 0 -> 1 -> ... -> 5
    node = torch.tensor([0])
    assert propagate(W, node)[0].tolist() == [1, 1, 1, 1, 0, 0]
    assert propagate(W, node, hops=1)[0].tolist() == [1, 1, 0, 0, 0, 0]


def walk(W, node):
    """The messages of one node along W in three hops, gene by gene."""
    n = len(W)
    signal = [float(i == node) for i in range(n)]
    for _ in range(3):
        before = list(signal)
        for j in range(n):
            weight = sum(abs(W[j, i]) for i in range(n))
            if j != node:
                message = sum(W[j, i] * before[i] for i in range(n))
                signal[j] = message / weight if weight else 0.0
    return signal


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 6), SEED)
def test_the_messages_of_any_network_are_those_of_a_walk_from_gene_to_gene(n, seed):
    """Of every node by itself; some genes hear nobody."""
    rng = np.random.default_rng(seed)
    W = rng.normal(size=(n, n)) * (rng.random((n, n)) < 0.5)
    found = propagate(torch.tensor(W), torch.arange(n))
    assert np.allclose(found, [walk(W, node) for node in range(n)])


# ---- A user's edges ------------------------------------------------------------------------------


def model_of(targets, genes):
    """What the networks' functions in train.py ask of a model."""
    seen = torch.zeros(len(targets), dtype=torch.bool)
    own = SimpleNamespace(seed=0)
    encoder = SimpleNamespace(seen=seen)
    down = torch.tensor([-1.0])
    return SimpleNamespace(
        targets=targets, genes=genes, settings=own, encoder=encoder, direction=down
    )


def edges_of(*rows):
    """A table of edges, (source, target, weight) each."""
    return pd.DataFrame(rows, columns=["source", "target", "weight"])


def test_a_users_edge_leads_from_its_source_to_its_target():
    """Here from a to b, with half the weight that b hears in all."""
    model = model_of(["a", "b"], ["b", "a", "c"])
    found = train.edge_effects(model, edges_of(("a", "b", -1.0), ("c", "b", 1.0)))
    assert found.tolist() == [[-0.5, 1.0, 0.0], [1.0, 0.0, 0.0]]


def test_a_users_edges_may_pass_through_a_gene_that_nobody_measured():
    """Neither the target nor what stands between it and gene b is in the panel."""
    model = model_of(["x"], ["a", "b"])
    found = train.edge_effects(model, edges_of(("x", "between", 2.0), ("between", "b", -0.1)))
    assert found.tolist() == [[0.0, -1.0]]


def test_the_targets_that_are_measured_are_found_among_the_genes():
    """By their numbers on both sides."""
    targets, genes = train.measured_targets(model_of(["c", "x", "a"], ["a", "b", "c"]))
    assert targets.tolist() == [0, 2]
    assert genes.tolist() == [2, 0]


# ---- Structural equations: the likelihood --------------------------------------------------------


def random_factor_model(seed, n_genes=5, factors=2, cells=7):
    """Cells, and the loadings and log variances of a model of them, in float64."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(cells, n_genes))
    loadings = torch.tensor(rng.normal(size=(n_genes, factors)), requires_grad=True)
    log_psi = torch.tensor(rng.normal(size=n_genes), requires_grad=True)
    return x, loadings, log_psi


def covariance_of(loadings, log_psi):
    """L L' + psi, written out; no variance is below 0.001."""
    return loadings @ loadings.T + torch.diag(log_psi.exp() + 1e-3)


@settings(deadline=None, max_examples=30)
@given(SEED)
def test_the_likelihood_is_that_of_gaussian_cells(seed):
    """By SciPy, but for the constant of 2 pi."""
    x, loadings, log_psi = random_factor_model(seed)
    n, n_genes = x.shape
    found = structural_likelihood(torch.tensor(x.T @ x / n), n, loadings, log_psi).item()
    covariance = covariance_of(loadings, log_psi).detach().numpy()
    expected = -stats.multivariate_normal(np.zeros(n_genes), covariance).logpdf(x).sum()
    expected -= 0.5 * n * n_genes * np.log(2 * np.pi)
    assert found == pytest.approx(expected, rel=1e-6, abs=1e-6)


@settings(deadline=None, max_examples=30)
@given(SEED)
def test_its_gradient_is_that_of_the_formula_written_out(seed):
    """Though the program saves one of two products with S."""
    x, loadings, log_psi = random_factor_model(seed)
    S = torch.tensor(x.T @ x / len(x))
    covariance = covariance_of(loadings, log_psi)
    formula = torch.logdet(covariance) + torch.linalg.solve(covariance, S).trace()
    expected = torch.autograd.grad(0.5 * len(x) * formula, (loadings, log_psi))
    likelihood = structural_likelihood(S, len(x), loadings, log_psi)
    found = torch.autograd.grad(likelihood, (loadings, log_psi))
    assert all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))


# ---- Structural equations: what is found ---------------------------------------------------------
#
# In each case below the truth is a linear structural equation model x = W x + H f + e, whose total
# effects and covariance are known in closed form, and everything is in the units of the genes'
# standard deviations.


class Truth:
    """A linear structural equation model: edges W (N, N), from column to row, and factors H."""

    def __init__(self, W, n_nodes, H=None, own_noise=0.0):
        n = len(W)
        H = np.zeros((n, 1)) if H is None else H
        total = np.linalg.inv(np.eye(n) - W)
        S = total @ (np.eye(n) + H @ H.T) @ total.T + own_noise * np.eye(n)
        sd = np.sqrt(np.diag(S))
        self.n_nodes = n_nodes
        self.effects = (total / sd[:, None] * sd)[:, :n_nodes].T  # (P, N)
        self.correlation = S / sd[:, None] / sd

    def evidence(self, seen):
        """What the knock-downs of some nodes by one unit show: nodes, falls, shifts, variances."""
        fall = -torch.eye(self.n_nodes)[seen]
        shift = f32(-self.effects[seen])
        return torch.arange(self.n_nodes), fall, shift, torch.full((len(seen), 1), 0.003)

    def fitted(self, fit, seen, **options):
        """Effects (P, N) by a function that is given 5,000 cells and some knock-downs."""
        return fit(f32(self.correlation), 5000, *self.evidence(seen), **options).numpy()

    def ridge(self):
        """Effects (P, N) by ridge regression of all genes on the nodes."""
        P = slice(self.n_nodes)
        penalty = 0.1 * np.eye(self.n_nodes)
        return np.linalg.solve(self.correlation[P, P] + penalty, self.correlation[P])

    def error(self, effects, rows, columns=slice(None)):
        """How far some rows of effects are from the truth, relative."""
        true = self.effects[rows, columns]
        return np.linalg.norm(effects[rows, columns] - true) / np.linalg.norm(true)


def signs(rng, n):
    """n numbers that are 1 or -1."""
    return rng.choice([-1, 1], n)


class Regulated(Truth):
    """40 genes, each with two causes among the first six; four of these are knocked down."""

    SEEN = [0, 1, 2, 3]
    UNSEEN = slice(4, 6)

    def __init__(self):
        rng = np.random.default_rng(0)
        W = np.zeros((40, 40))
        for j in range(1, 40):
            causes = rng.choice(min(j, 6), min(2, j), replace=False)
            W[j, causes] = signs(rng, len(causes)) * rng.uniform(0.5, 1.0, len(causes))
        super().__init__(W, n_nodes=6, own_noise=0.5)
        options = {"factors": 1, "sparsity": 20.0, "steps": 400}
        self.found = self.fitted(fit_structural_equations, self.SEEN, **options)


@pytest.fixture(scope="module")
def regulated():
    return Regulated()


def test_structural_equations_find_the_effects_of_genes_that_nobody_perturbed(regulated):
    """With less than half the error of ridge regression, for which a consequence is a cause."""
    others = slice(6, None)
    error = regulated.error(regulated.found, regulated.UNSEEN, others)
    assert error < 0.35
    assert error < 0.5 * regulated.error(regulated.ridge(), regulated.UNSEEN, others)


def test_structural_equations_find_the_effects_of_the_genes_that_were_perturbed(regulated):
    """Nearly as they were measured."""
    assert regulated.error(regulated.found, regulated.SEEN) < 0.15


def test_the_effects_are_settled_and_no_gene_is_its_own_cause(regulated):
    """The effects of the nodes on each other are strength (I - E)^-1, where E has diagonal 0."""
    among_nodes = regulated.found[:, :6]
    diagonal = np.diag(np.linalg.inv(among_nodes))
    assert diagonal == pytest.approx(np.full(6, diagonal[0]), rel=1e-4)
    assert np.abs(among_nodes - np.diag(np.diag(among_nodes))).max() > 0.1  # or it proved nothing


@pytest.fixture(scope="module")
def chain():
    """0 -> 1 -> 2 -> 3, and eight genes that each hear one of these."""
    rng = np.random.default_rng(0)
    W = np.diag([0.9, 0.9, 0.9] + [0.0] * 8, -1)
    for j in range(4, 12):
        W[j, rng.integers(4)] = 0.8 * signs(rng, None)
    return Truth(W, n_nodes=4)


def test_an_effect_travels_through_all_genes_between(chain):
    """Gene 0, which nobody perturbed, acts on most genes through two or three others."""
    options = {"factors": 1, "sparsity": 20.0, "steps": 400}
    found = chain.fitted(fit_structural_equations, [1, 2, 3], **options)
    assert chain.error(found, slice(1)) < 0.3


def test_what_a_hidden_factor_does_is_no_effect_of_a_gene_that_moves_with_it():
    """Gene 0 and 21 others share a factor, and its knock-down moves none of them."""
    rng = np.random.default_rng(0)
    W = np.zeros((24, 24))
    H = np.zeros((24, 1))
    H[0] = 1.0
    for j in range(3, 24):
        W[j, rng.integers(1, 3)] = signs(rng, None) * rng.uniform(0.5, 1.0)
        H[j] = signs(rng, None) * rng.uniform(0.7, 1.2)
    truth = Truth(W, n_nodes=3, H=H)
    found = truth.fitted(fit_structural_equations, [0, 1], steps=300)
    assert np.linalg.norm(truth.ridge()[0, 3:]) > 1
    assert np.linalg.norm(found[0, 3:]) < 0.05
    assert truth.error(found, slice(2, 3)) < 0.1


# ---- Structural equations: how strong a knock-down is --------------------------------------------
#
# Four genes that do nothing to each other and do not co-vary. The edges stay 0, and what is left of
# the fit is: move_q = fall_q strength exp(spread_p), where the spreads have standard deviation 0.3.


def found_strength(fall, move, error):
    """The strength that is fitted where four unconnected genes fell (Q, 4) and moved (Q, 4)."""
    nodes = torch.arange(4)
    evidence = [f32(part) for part in (fall, move, error)]
    effects = fit_structural_equations(torch.eye(4), 5000, nodes, *evidence, factors=1, steps=400)
    assert torch.allclose(effects, torch.eye(4) * effects[0, 0], atol=1e-3)
    return effects[0, 0].item()


def best_strength(strengths, variance):
    """The same by SciPy, where gene p fell by one unit and moved by strengths[p]."""

    def loss(unknowns):
        strength, spread = unknowns[0], unknowns[1:]
        misfit = ((strength * np.exp(spread) - strengths) ** 2).sum() / variance
        return 0.5 * (misfit + ((spread / 0.3) ** 2).sum())

    return optimize.minimize(loss, [1, 0, 0, 0, 0], tol=1e-10).x[0]


@pytest.mark.parametrize("strengths", [(0.4, 0.4, 0.4, 0.4), (1, 1, 1, 0.1), (0.2, 0.4, 0.4, 0.8)])
def test_knock_downs_share_a_strength_and_differ_from_it_by_about_30_percent(strengths):
    """The most likely one, by SciPy. Were they free to differ, none would be the most likely."""
    found = found_strength(-np.eye(4), -np.diag(strengths), np.full((4, 1), 0.02))
    assert found == pytest.approx(best_strength(strengths, 0.02), abs=1e-3)


def test_a_measurement_counts_by_the_inverse_of_its_error_variance():
    """Gene 0 fell twice: the strength is the weighted least squares of how far it moved."""
    fall = np.array([-1.0, -2.0])
    move = np.array([-0.3, -1.4])
    variance = np.array([0.01, 0.05])
    expected = (fall * move / variance).sum() / (fall**2 / variance).sum()
    padding = [(0, 0), (0, 3)]
    columns = [np.pad(part[:, None], padding) for part in (fall, move)]
    assert found_strength(*columns, variance[:, None]) == pytest.approx(expected, abs=1e-3)


# ---- Hubs ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub():
    """The last of 24 genes drives all others but gene 1, and nobody perturbs it."""
    rng = np.random.default_rng(0)
    W = np.zeros((24, 24))
    W[0, 23] = 1.0
    for j in range(2, 23):
        W[j, 23] = signs(rng, None) * rng.uniform(0.7, 1.2)
        W[j, 1] = signs(rng, None) * rng.uniform(0.3, 0.6)
    return Truth(W, n_nodes=2)


def test_what_a_hub_does_is_no_effect_of_a_target_that_answers_to_it(hub):
    """Nobody perturbed target 0 either. By ridge regression, or without hubs, it moves them all."""
    found = hub.fitted(structural_effects, [1], hubs=10, steps=200)
    without = hub.fitted(structural_effects, [1], hubs=0, steps=200)
    assert np.linalg.norm(found[0, 2:]) < 0.1
    assert min(np.linalg.norm(row[0, 2:]) for row in (without, hub.ridge())) > 1


def asked_of_the_fit(monkeypatch, S, nodes, hubs):
    """Nodes and falls that `structural_effects` hands on, and what it returns of the answer."""
    asked = []

    def fit(S, cells, nodes, fall, shift, error):
        asked.append((nodes.tolist(), fall))
        return torch.arange(float(len(nodes)))[:, None].expand(-1, len(S))

    monkeypatch.setattr(departures, "fit_structural_equations", fit)
    fall = -torch.eye(len(nodes))
    shift = torch.zeros(len(nodes), len(S))
    returned = structural_effects(S, 10, torch.tensor(nodes), fall, shift, shift[:, :1], hubs)
    return *asked[0], returned


def test_hubs_are_the_genes_that_co_vary_most_and_are_no_targets(monkeypatch):
    """Whatever the sign; the targets keep the first places."""
    S = torch.eye(5)
    S[0, 1] = S[1, 0] = 0.9
    S[1, 2] = S[2, 1] = 0.3
    S[3, 4] = S[4, 3] = -0.5
    nodes, fall, _ = asked_of_the_fit(monkeypatch, S, [4, 1], hubs=2)
    assert nodes == [4, 1, 0, 3]
    assert fall.tolist() == [[-1, 0, 0, 0], [0, -1, 0, 0]]


def test_only_the_targets_effects_are_returned(monkeypatch):
    """And there are no more hubs than genes that are no targets."""
    nodes, _, returned = asked_of_the_fit(monkeypatch, torch.eye(5), [4, 1], hubs=20)
    assert sorted(nodes) == [0, 1, 2, 3, 4]
    assert returned[:, 0].tolist() == [0, 1]


# ---- From cells to effects -----------------------------------------------------------------------


def cells_where(rng, held, n):
    """n cells of 12 genes: g0 -> g1 -> g2 and noise of its own; g0 and g1 drive three others each.

    held: genes that are silenced, at level 0. Every gene has mean 6 otherwise.
    """
    W = np.zeros((12, 12))
    W[1, 0] = 0.9
    W[2, 1] = -0.9
    W[3:6, 0] = 0.8
    W[6:9, 1] = -0.8
    constant = (np.eye(12) - W) @ np.full(12, 6.0)
    x = np.zeros((n, 12))
    for j in range(12):
        x[:, j] = constant[j] + x @ W[j] + rng.normal(size=n)
        if j in held:
            x[:, j] = 0
    return np.maximum(x, 0)


def test_from_cells_and_knock_downs_to_the_effects_of_an_unseen_gene(monkeypatch):
    """g1 was perturbed, g0 was not: it moves what g1 moves, and the genes of its own.

    A gene that hears neither is not moved, and a target that is not measured has no effects.
    """
    rng = np.random.default_rng(0)
    quick = partial(structural_effects, hubs=2, factors=1, sparsity=20.0, steps=200)
    monkeypatch.setattr(train, "structural_effects", quick)
    X = np.concatenate([cells_where(rng, (), 600), cells_where(rng, (1,), 200)])
    screen = screen_with(X, [CONTROL] * 600 + ["g1"] * 200, ["t"] * 800)
    S = np.cov(X[:600].T)
    sd = np.sqrt(np.diag(S))
    model = model_of(["g0", "g1", "x"], list(screen.genes))
    found = train.fitted_effects(model, screen, S, 600, sd).numpy()
    true = np.array([1, 0.9, -0.81, 0.8, 0.8, 0.8, -0.72, -0.72, -0.72, 0, 0, 0]) / sd * sd[0]
    assert np.linalg.norm(found[0] - true) < 0.35 * np.linalg.norm(true)
    assert np.abs(found[0, 9:]).max() < 0.05
    assert not found[2].any()


def test_the_effects_of_a_training_target_are_from_a_fit_that_never_saw_it_perturbed(monkeypatch):
    """And those of an unseen one from all that there is."""
    rng = np.random.default_rng(0)
    names = [f"g{i}" for i in range(7)]
    X = 5 + rng.normal(size=(140, 7))
    screen = screen_with(X, np.repeat([CONTROL, *names[:6]], 20), ["t"] * 140)

    def what_was_seen(S, cells, nodes, knock, shift, error, seed):
        seen = (knock != 0).any(0).float()
        return torch.stack([seen, *[torch.full((7,), float(len(knock)))] * 6], 1)

    monkeypatch.setattr(train, "structural_effects", what_was_seen)
    model = model_of(names, list(screen.genes))
    model.encoder.seen[:6] = True
    found = train.fitted_effects(model, screen, np.eye(7), 140, np.ones(7))
    assert not found[:, 0].any()
    assert sorted(found[:6, 1].tolist()) == [4, 4, 5, 5, 5, 5]  # 6 in 5 folds
    assert found[6, 1] == 6
