"""Each trained rival is what it says it is: against closed forms, where there are any.

scGen and the two arithmetics, CellOT and Compact CellOT, LAOT's published figures.
"""

import copy
import itertools
import operator
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg, stats
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import nn

import rivals.cellot
import rivals.compact_cellot
import rivals.scgen
from examples import screen_of, screen_with
from rivals.cellot import (
    CELLOT,
    ConvexNetwork,
    cellot,
    loss_f,
    loss_g,
    train_pair,
    transport,
    transport_map,
)
from rivals.compact_cellot import COMPACT, compact_cellot
from rivals.laot import laot
from rivals.matching_mean import matching_mean
from rivals.scgen import VAE, scgen, train_vae, vae_loss
from rivals.training import minimise
from rivals.vector_arithmetic import (
    arithmetic,
    as_cells,
    pca_arithmetic,
    vector_arithmetic,
    zeros_kept,
)
from screens import CONTROL
from toy_data import near_identity

SEED = st.integers(0, 9999)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def tensor(values):
    return torch.as_tensor(np.asarray(values), dtype=torch.float64)


def unchanged(values):
    return values


# ---- The training loop ---------------------------------------------------------------------------


def adam(start, slope, steps, rate, betas, decay, largest):
    """Where Adam goes from a point down a function of this slope, and its losses' count."""
    x = np.array(start)
    first = second = 0.0
    for step in range(1, steps + 1):
        g = slope(x) + decay * x
        first = betas[0] * first + (1 - betas[0]) * g
        second = betas[1] * second + (1 - betas[1]) * g**2
        by = first / (1 - betas[0] ** step) / (np.sqrt(second / (1 - betas[1] ** step)) + 1e-8)
        x = x - rate * by
    return x


def descended(start, steps, **options):
    """Where `minimise` goes down sum of x^4, and the losses."""
    x = tensor(start).requires_grad_()
    losses = minimise([x], lambda step: (x**4).sum(), steps, 0.03, "x", **options)
    return x.detach().numpy(), losses


def test_training_is_adam_with_a_decay_of_the_weights():
    """By its equations."""
    betas = (0.5, 0.8)
    found, losses = descended([1.0, -2.0], 9, betas=betas, weight_decay=0.3)
    expected = adam([1.0, -2.0], lambda x: 4 * x**3, 9, 0.03, betas, 0.3, None)
    assert np.allclose(found, expected, atol=1e-6)
    assert losses[0] == 17 and len(losses) == 9


def test_gradients_are_cut_to_the_largest_norm():
    """Of all parameters together; smaller ones are left as they are."""

    def slope(x):
        g = 4 * x**3
        return g * min(1, 6 / np.linalg.norm(g))

    found, _ = descended([1.0, -2.0], 60, largest_gradient=6.0)
    expected = adam([1.0, -2.0], slope, 60, 0.03, (0.9, 0.999), 0, None)
    assert np.allclose(found, expected, atol=1e-5)
    assert not np.allclose(found, descended([1.0, -2.0], 60)[0], atol=1e-3)


def test_training_ends_where_the_loss_is_none():
    """And tells the losses until then."""
    x = torch.ones(1, requires_grad=True)
    losses = minimise([x], lambda step: x.sum() if step < 3 else None, 10, 0.1, "x")
    assert np.allclose(losses, [1, 0.9, 0.8], atol=1e-6)


def test_what_takes_no_part_in_a_step_stays_where_it_is():
    """Its moments too: else it would coast on."""
    x, y = torch.ones(1, requires_grad=True), torch.ones(1, requires_grad=True)

    def loss(step):
        x.requires_grad_(step % 2 == 0)
        return (x**2 + (y * (step % 2)) ** 2).sum() if step % 2 == 0 else (y**2).sum()

    where = []
    for steps in (1, 2, 3):
        x.data.fill_(1)
        y.data.fill_(1)
        x.requires_grad_()
        minimise([x, y], loss, steps, 0.1, "x")
        where.append(x.item())
    assert where[0] == where[1] != where[2]


# ---- One interface -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", rivals.TRAINED)
def test_every_trained_rival_takes_a_seed_and_a_device_and_counts_its_numbers(name):
    """As `evaluate.py --rivals` calls it."""
    predict = rivals.TRAINED[name](two_types(np.random.default_rng(0)), seed=1, device="cpu")
    assert isinstance(predict.parameters, int)
    assert predict("never seen", "x", np.ones((2, 3))) is None


# ---- Arithmetic ----------------------------------------------------------------------------------


def labelled(parts):
    """A screen of groups {(perturbation, cell type): cells (n, N)}."""
    sizes = [len(cells) for cells in parts.values()]
    labels = [np.repeat(names, sizes) for names in zip(*parts, strict=True)]
    return screen_with(np.concatenate(list(parts.values())), *labels)


def exponential_code(cells):
    return np.log(np.asarray(cells, float))


@settings(deadline=None, max_examples=20)
@given(SEED)
def test_arithmetic_is_exact_where_effects_add_up_in_the_latent_space(seed):
    """Codes are logarithms: treated cells are controls times a factor, whatever their type."""
    rng = np.random.default_rng(seed)
    controls = {t: rng.uniform(1, 3, (5, 4)) + i for i, t in enumerate("xyz")}
    factor = rng.uniform(0.5, 2, 4)
    parts = {(CONTROL, t): cells for t, cells in controls.items()}
    parts |= {("A", t): controls[t] * factor for t in "xy"}
    predicted = arithmetic(labelled(parts), exponential_code, np.exp)("A", "z", controls["z"])
    assert np.allclose(predicted, controls["z"] * factor, rtol=1e-5)


def test_every_treated_type_counts_once_in_delta_and_no_other_type_does():
    """However many cells it has; the effect is 1 in x and 3 in y, z is never treated."""
    means = {(CONTROL, "x"): 10, (CONTROL, "y"): 20, (CONTROL, "z"): 90, ("A", "x"): 11}
    parts = {key: np.full((4, 3), float(mean)) for key, mean in means.items()}
    parts["A", "y"] = np.full((40, 3), 23.0)
    predicted = vector_arithmetic(labelled(parts))("A", "z", np.full((2, 3), 90.0))
    assert np.allclose(predicted, 92)


def test_arithmetic_masks_no_zero_and_goes_not_below_zero():
    """As published: a gene that rises is on in every cell."""
    screen = screen_of({(CONTROL, "x"): np.array([1.0, 2.0]), ("A", "x"): np.array([1.5, 0.5])})
    predicted = vector_arithmetic(screen)("A", "y", np.array([[0.0, 1.0], [2.0, 4.0]]))
    assert np.allclose(predicted, [[0.5, 0], [2.5, 2.5]])
    assert predicted.dtype == np.float32


def rough_codes(seed, genes=6):
    """encode and decode by two random codes with a bend, which lose most of a cell; and cells."""
    rng = np.random.default_rng(seed)
    there, back = rng.normal(size=(genes, 2)), rng.normal(size=(2, genes))
    cells = rng.gamma(2, 1, (9, genes)) * (rng.random((9, genes)) < 0.4)
    return lambda x: np.tanh(x @ there), lambda z: z @ back, cells.astype(np.float32)


@settings(deadline=None, max_examples=30)
@given(SEED)
def test_with_zeros_kept_a_control_whose_code_stays_comes_back_exactly(seed):
    """However much of it the code has lost."""
    encode, decode, x0 = rough_codes(seed)
    own = as_cells(decode(encode(x0)))
    assert not np.allclose(own, x0, atol=0.1)
    assert np.array_equal(zeros_kept(encode, decode, x0, own), x0)


@settings(deadline=None, max_examples=30)
@given(SEED, st.floats(-1, 1))
def test_with_zeros_kept_expressed_genes_move_by_what_was_decoded_and_zeros_stay(seed, change):
    encode, decode, x0 = rough_codes(seed)
    own = as_cells(decode(encode(x0)))
    cells = as_cells(decode(encode(x0) + change))
    expected = np.where(x0 > 0, np.maximum(x0 + cells - own, 0), 0)
    assert np.allclose(zeros_kept(encode, decode, x0, cells), expected, atol=1e-6)


def test_arithmetic_with_zeros_kept_is_a_treatments_mean_shift_of_the_expressed():
    """By hand: A adds 0.5 to the one gene and takes 1.5 from the other."""
    screen = screen_of({(CONTROL, "x"): np.array([1.0, 2.0]), ("A", "x"): np.array([1.5, 0.5])})
    predict = vector_arithmetic(screen)
    x0 = np.array([[0.0, 1.0], [2.0, 4.0], [1.0, 0.0]], np.float32)
    assert np.allclose(
        predict.zeros_kept(x0, predict("A", "y", x0)), [[0, 0], [2.5, 2.5], [1.5, 0]]
    )


def test_vector_arithmetic_with_zeros_kept_is_the_matching_mean(rng):
    """Where the treatment was seen: the same rival by another way."""
    screen = two_types(rng)
    x0 = rng.gamma(2, 3, (9, 3)) * (rng.random((9, 3)) < 0.5)
    predict = vector_arithmetic(screen)
    kept = predict.zeros_kept(x0, predict("A", "z", x0))
    assert np.allclose(kept, matching_mean(screen)("A", "z", x0), atol=1e-4)


def test_pca_arithmetic_is_a_shift_within_the_principal_components(rng):
    """By NumPy's eigenvectors of the training cells' covariance; held-out cells are none."""
    parts = {(CONTROL, "x"): rng.gamma(3, 1, (40, 6)), ("A", "x"): rng.gamma(4, 1, (30, 6))}
    cells = np.concatenate(list(parts.values()))
    screen = labelled(parts | {("B", "x"): 9 * rng.gamma(4, 1, (30, 6))})
    screen.held_out = {("B", "x")}
    axes = np.linalg.eigh(np.cov(cells.T))[1][:, -3:]
    x0 = rng.gamma(3, 1, (5, 6))
    shift = parts["A", "x"].mean(0) - parts[CONTROL, "x"].mean(0)
    expected = cells.mean(0) + (x0 - cells.mean(0) + shift) @ axes @ axes.T
    found = pca_arithmetic(screen, components=3)("A", "x", x0)
    assert np.allclose(found, np.maximum(expected, 0), atol=1e-4)


# ---- scGen ---------------------------------------------------------------------------------------


class LinearVAE:
    """x ~ N(A z + b, I) with z ~ N(0, I), and one Gaussian q(z|x) for all x."""

    def __init__(self, seed, d=2, N=4):
        rng = np.random.default_rng(seed)
        self.A = rng.normal(size=(N, d))
        self.b = rng.normal(size=N)
        self.x = rng.normal(size=N)
        self.mean = rng.normal(size=d)
        self.variance = rng.uniform(0.1, 2, d)

    def encode(self, x):
        shape = (len(x), len(self.mean))
        return [tensor(q).expand(shape) for q in (self.mean, np.log(self.variance))]

    def decode(self, z):
        return z @ tensor(self.A.T) + tensor(self.b)

    def loss(self, **options):
        """The loss, exact: it is quadratic in the noise, so that 2 d points have its mean."""
        d = len(self.mean)
        noise = np.sqrt(d) * np.concatenate([np.eye(d), -np.eye(d)])
        x = np.tile(self.x, (2 * d, 1))
        return vae_loss(self, tensor(x), tensor(noise), **options).item()


def gaussian_divergence(m, S, mean, covariance):
    """KL(N(m, S), N(mean, covariance))."""
    precision = np.linalg.inv(covariance)
    far = (mean - m) @ precision @ (mean - m)
    log_ratio = np.linalg.slogdet(covariance)[1] - np.linalg.slogdet(S)[1]
    return (np.trace(precision @ S) + far - len(m) + log_ratio) / 2


@settings(deadline=None, max_examples=30)
@given(SEED)
def test_the_elbo_is_the_evidence_less_the_divergence_from_the_posterior(seed):
    """Both known for a linear decoder and Gaussian data."""
    vae = LinearVAE(seed)
    precision = np.eye(2) + vae.A.T @ vae.A
    posterior = np.linalg.solve(precision, vae.A.T @ (vae.x - vae.b))
    gap = gaussian_divergence(vae.mean, np.diag(vae.variance), posterior, np.linalg.inv(precision))
    evidence = stats.multivariate_normal(vae.b, np.eye(4) + vae.A @ vae.A.T).logpdf(vae.x)
    elbo = -vae.loss(kl_weight=1) - 4 / 2 * np.log(2 * np.pi)
    assert elbo == pytest.approx(evidence - gap)


def test_the_divergence_counts_as_little_as_published():
    """5e-5 of KL(q, N(0, I)), which is known."""
    vae = LinearVAE(0)
    kl = gaussian_divergence(vae.mean, np.diag(vae.variance), np.zeros(2), np.eye(2))
    assert vae.loss() - vae.loss(kl_weight=0) == pytest.approx(5e-5 * kl, rel=1e-4)


def of_kind(network, kind):
    return [part for part in network.modules() if isinstance(part, kind)]


def test_the_network_is_the_published_one():
    """800 units twice on either side, batch normalisation, LeakyReLU, dropout 0.2, 100 latent."""
    vae = VAE(30)
    shapes = [tuple(part.weight.shape) for part in of_kind(vae, nn.Linear)]
    to_latent, from_latent = [(800, 30), (800, 800)], [(800, 100), (800, 800)]
    assert shapes == [*to_latent, (100, 800), (100, 800), *from_latent, (30, 800)]
    assert [part.p for part in of_kind(vae, nn.Dropout)] == [0.2] * 4
    assert len(of_kind(vae, nn.BatchNorm1d)) == len(of_kind(vae, nn.LeakyReLU)) == 4


def test_training_stops_early_and_keeps_the_best_weights(monkeypatch, rng):
    """Here every step is for the worse."""
    taken = []

    def for_the_worse(parameters, loss, steps, *options):
        weights = list(parameters)
        for step in range(steps):
            if loss(step) is None:
                break
            taken.append(step)
            for weight in weights:
                weight.data += 1.0

    monkeypatch.setattr(rivals.scgen, "minimise", for_the_worse)
    screen = labelled({(CONTROL, "x"): rng.gamma(3, 1, (150, 5))})
    vae = VAE(5, latent=2, hidden=4)
    before = [weight.clone() for weight in vae.parameters()]
    train_vae(vae, screen, "cpu", 1000, "x", patience=3)
    assert len(taken) == 3 * (135 // 32)  # epochs of the nine tenths that are trained on
    assert all(map(torch.equal, before, vae.parameters()))
    assert not vae.training


def carried_over(rng):
    """A, seen in type x, raises half of 20 genes by 2 and lowers the others: what is it in y?"""
    effect = np.repeat([2.0, -1.5], 10)
    means = {t: rng.uniform(2, 4, 20) for t in "xy"}
    parts = {}
    for perturbation, cell_type in itertools.product((CONTROL, "A"), "xy"):
        mean = means[cell_type] + effect * (perturbation == "A")
        state = rng.normal(size=(150, 1)) * np.linspace(-0.5, 0.5, 20)
        parts[perturbation, cell_type] = np.maximum(mean + state + rng.normal(0, 0.2, (150, 20)), 0)
    screen = labelled(parts)
    screen.held_out = {("A", "y")}
    return screen, parts


def share_explained(predicted, controls, treated):
    """How much of the mean squared shift of the treated cells is predicted."""
    missed = predicted.mean(0) - treated.mean(0)
    return 1 - (missed**2).sum() / ((controls.mean(0) - treated.mean(0)) ** 2).sum()


@pytest.mark.parametrize("system", [vector_arithmetic, pca_arithmetic, scgen])
def test_an_effect_is_carried_to_a_type_never_seen_treated(system, rng):
    """Most of the shift of the mean."""
    screen, parts = carried_over(rng)
    controls = parts[CONTROL, "y"]
    predicted = (partial(system, steps=120) if system is scgen else system)(screen)
    assert share_explained(predicted("A", "y", controls), controls, parts["A", "y"]) > 0.8


# ---- Convex networks -----------------------------------------------------------------------------


def networks(d, form, seed=0, double=True):
    """f and g, with weights other than at the start of training."""
    torch.manual_seed(seed)
    pair = [ConvexNetwork(d, **form) for _ in "fg"]
    return [network.double() if double else network for network in pair]


def randomised(form, d, seed):
    """A convex network of random weights and biases."""
    network = networks(d, form, seed)[0]
    with torch.no_grad():
        for weights in network.parameters():
            weights.normal_(0, 0.5)
    network.clamp() if not form["positive"] else None
    return network


FORMS = pytest.mark.parametrize("form", [CELLOT, COMPACT], ids=["CellOT", "compact"])


@FORMS
@settings(deadline=None, max_examples=30)
@given(d=st.integers(1, 6), seed=SEED)
def test_the_networks_are_convex(form, d, seed):
    """Between any two points they lie on or below the chord."""
    network = randomised(form, d, seed)
    rng = np.random.default_rng(seed)
    x, y = tensor(rng.normal(0, 2, (2, 50, d)))
    t = tensor(rng.random(50))
    chord = t * network(x) + (1 - t) * network(y)
    between = network(t[:, None] * x + (1 - t[:, None]) * y)
    assert (between <= chord + 1e-8 * (1 + chord.abs())).all()


def test_with_a_weight_below_zero_a_network_is_not_convex():
    """Else the test above could not fail."""
    network = randomised(CELLOT, 1, 0)
    with torch.no_grad():
        network.W[-1][0, :2] = tensor([-3, -400])
    x = tensor(np.linspace(-3, 3, 101))[:, None]
    assert torch.diff(network(x), 2).min() < -1e-3


@FORMS
def test_a_network_is_its_layers_one_by_one(form):
    """The first squared, the last without its LeakyReLU; by NumPy."""
    network = randomised(form, 3, 1)
    sizes = [*form["hidden"], 1]
    A = np.split(network.A.weight.detach().numpy(), np.cumsum(sizes)[:-1])
    b = np.split(network.A.bias.detach().numpy(), np.cumsum(sizes)[:-1])
    W = [matrix.detach().numpy() for matrix in network.W]
    if form["positive"]:
        W = [np.log(1 + np.exp(matrix)) for matrix in W]
    x = np.random.default_rng(0).normal(size=(7, 3))

    def s(values):
        return np.where(values > 0, values, {"CellOT": 0.2, "compact": 0}[kind] * values)

    kind = "compact" if form["positive"] else "CellOT"
    z = s(x @ A[0].T + b[0]) ** 2
    for i in range(1, len(sizes)):
        z = z @ W[i - 1].T + x @ A[i].T + b[i]
        z = z if i == len(sizes) - 1 else s(z)
    assert len(W) == {"CellOT": 4, "compact": 3}[kind]
    assert np.allclose(network(tensor(x)).detach().numpy(), z[:, 0])


def test_cells_are_brought_where_the_gradient_points():
    """By differences; and it is a function of the weights only where it is to be learnt."""
    network = randomised(CELLOT, 2, 3)
    x = tensor(np.random.default_rng(0).normal(size=(5, 2)))
    h = 1e-6 * torch.eye(2, dtype=torch.float64)
    differences = torch.stack([(network(x + e) - network(x - e)) / 2e-6 for e in h], 1)
    assert torch.allclose(transport(network, x), differences, atol=1e-4)
    assert not transport(network, x).requires_grad
    assert transport(network, x, learn=True).requires_grad


# ---- The dual ------------------------------------------------------------------------------------
#
# Between Gaussians N(0, S0) and N(m, S1) the map of least cost is x -> m + A x, with
# A = S0^-1/2 (S0^1/2 S1 S0^1/2)^1/2 S0^-1/2 (Brenier's; Bures and Wasserstein's cost).


class Gaussians:
    """Two random Gaussians in d dimensions, about 1 wide and 1 apart, and what is known of them."""

    def __init__(self, d, seed=0):
        rng = np.random.default_rng(seed)
        Q = [np.linalg.qr(rng.normal(size=(d, d)))[0] for _ in range(2)]
        self.S0, self.S1 = [(q * rng.uniform(0.5, 1.5, d)) @ q.T for q in Q]
        self.m = rng.normal(size=d) / np.sqrt(d)
        root = np.real(linalg.sqrtm(self.S0))
        middle = np.real(linalg.sqrtm(root @ self.S1 @ root))
        self.A = np.linalg.inv(root) @ middle @ np.linalg.inv(root)
        self.cost = (self.m @ self.m + np.trace(self.S0 + self.S1 - 2 * middle)) / 2

    def draw(self, n):
        """n cells of either, independent."""
        d = len(self.m)
        x, y = torch.randn(2, n, d, dtype=torch.float64)
        roots = [tensor(np.linalg.cholesky(S)) for S in (self.S0, self.S1)]
        return x @ roots[0].T, y @ roots[1].T + tensor(self.m)


class Quadratic:
    """(y - m)' B (y - m) / 2, as a potential."""

    positive = True

    def __init__(self, B, m):
        self.B, self.m = tensor(B), tensor(m)

    def __call__(self, y):
        return ((y - self.m) @ self.B * (y - self.m)).sum(1) / 2


class Conjugate(Quadratic):
    """<x, m> + x' B^-1 x / 2."""

    def __call__(self, x):
        return (x @ torch.linalg.inv(self.B) * x).sum(1) / 2 + x @ self.m


def half_squares(x, y):
    return ((x**2).sum(1).mean() + (y**2).sum(1).mean()).item() / 2


def test_at_the_optimum_the_loss_is_half_the_squared_distance():
    """Brenier's potentials of two Gaussians, and 400,000 cells."""
    torch.manual_seed(0)
    known = Gaussians(2)
    f, g = [kind(np.linalg.inv(known.A), known.m) for kind in (Quadratic, Conjugate)]
    x, y = known.draw(400_000)
    value = half_squares(x, y) + loss_g(f, g, x).item() - f(y).mean().item()
    assert value == pytest.approx(known.cost, rel=0.02)
    assert loss_f(f, g, x, y).item() == pytest.approx(0, abs=0.01)


def test_the_loss_of_g_is_least_where_it_is_minus_the_conjugate():
    """At the gradient of f's conjugate; any other g has a larger one."""
    torch.manual_seed(0)
    known = Gaussians(3)
    B = np.linalg.inv(known.A)
    f = Quadratic(B, known.m)
    x, _ = known.draw(50)
    least = loss_g(f, Conjugate(B, known.m), x).item()
    assert least == pytest.approx(-Conjugate(B, known.m)(x).mean().item())
    for other in (Conjugate(1.2 * B, known.m), Conjugate(B, known.m + 0.1)):
        assert loss_g(f, other, x).item() > least + 1e-4


def test_g_pays_for_weights_below_zero():
    """In the loss, by their norm; a softplus is never below."""
    f, g = networks(2, CELLOT)
    x = torch.randn(9, 2, dtype=torch.float64)
    with torch.no_grad():
        g.W[0][:] = -0.25
    unpaid = (f(transport(g, x)) - (x * transport(g, x)).sum(1)).mean()
    assert (loss_g(f, g, x) - unpaid).item() == pytest.approx(0.25 * 64)


def test_g_takes_ten_steps_in_a_clamped_f_then_f_takes_one():
    """While one moves the other stays."""
    f, g = networks(2, CELLOT, double=False)
    with torch.no_grad():
        f.W[0][0, 0] = -1.0
    seen = []

    def note():
        seen.append((f.A.weight.tolist(), f.W[0][0, 0].item(), g.A.weight.tolist()))
        return torch.randn(8, 2)

    train_pair(f, g, note, lambda: torch.randn(8, 2), 2, learning_rate=0.01, desc="x")
    of_f, clamped, of_g = zip(*seen, strict=True)
    moved = [[a != b for a, b in itertools.pairwise(weights)] for weights in (of_f, of_g)]
    assert moved == [[turn == 10 for turn in range(21)], [turn != 10 for turn in range(21)]]
    assert clamped[:11] == (0.0,) * 11


# ---- On a screen ---------------------------------------------------------------------------------


def two_types(rng):
    """A in two types, of which x has most controls and y most treated cells; B elsewhere."""
    sizes = {(CONTROL, "x"): 300, (CONTROL, "y"): 20, (CONTROL, "z"): 50}
    sizes |= {("A", "x"): 40, ("A", "y"): 120, ("A", "z"): 30, ("B", "z"): 30}
    place = {"x": 0, "y": 10, "z": 50}
    parts = {}
    for (name, cell_type), n in sizes.items():
        parts[name, cell_type] = 5 + place[cell_type] + 3 * (name == "A") + rng.random((n, 3))
    screen = labelled(parts)
    screen.held_out = {("A", "z")}
    return screen


@pytest.fixture
def drawn(monkeypatch):
    """What networks that move codes by 0.5 are asked to train on, 4,000 cells a side."""
    drawn = []

    class Mover(nn.Module):
        positive = True

        def __init__(self, d, **form):
            super().__init__()
            self.weights = nn.Parameter(torch.zeros(7))

        def forward(self, x):
            return ((x + 0.5) ** 2).sum(1) / 2

    def asked(f, g, draw_x, draw_y, **training):
        cells = [torch.cat([draw() for _ in range(16)]).numpy() for draw in (draw_x, draw_y)]
        drawn.append((*cells, training))

    monkeypatch.setattr(rivals.cellot, "ConvexNetwork", Mover)
    monkeypatch.setattr(rivals.cellot, "train_pair", asked)
    return drawn


def moved(screen, standardise=False):
    return transport_map(
        screen, lambda x: 2 * x, lambda z: z / 2, {}, {"steps": 3}, 0, "cpu", standardise
    )


def test_a_pair_sees_as_many_controls_of_a_type_as_treated_cells(drawn, rng):
    """Three quarters of A's training cells are of type y; held-out cells are never seen."""
    moved(two_types(rng))("A", "z", np.full((2, 3), 60.0))
    ((x, y, training),) = drawn
    assert (x > 25).mean() == pytest.approx(0.75, abs=0.03)
    assert (y > 30).mean() == pytest.approx(0.75, abs=0.03)
    assert x.max() < 33 and y.max() < 40 and training == {"steps": 3}


def test_codes_are_standardised_for_the_networks_and_back(drawn, rng):
    """Mean 0 and variance 1 over the cells of a pair, where that is asked for."""
    screen = two_types(rng)
    x0 = np.full((2, 3), 60.0)
    assert np.allclose(moved(screen)("A", "z", x0), x0 + 0.5 / 2)
    keys = [(CONTROL, "x"), (CONTROL, "y"), ("A", "x"), ("A", "y")]
    scale = np.concatenate([screen.dense(screen.groups[key]) for key in keys]).std(0)
    assert np.allclose(moved(screen, True)("A", "z", x0), x0 + 0.5 * scale, rtol=1e-4)
    assert np.abs(np.concatenate(drawn[1][:2])).max() < 4


def test_a_transported_cell_with_zeros_kept_moves_as_its_code_does(drawn, rng):
    predict = moved(two_types(rng))
    x0 = np.array([[60.0, 0, 58], [0, 61, 59]], np.float32)
    expected = np.where(x0 > 0, x0 + 0.5 / 2, 0)
    assert np.allclose(predict.zeros_kept(x0, predict("A", "z", x0)), expected)


def test_a_treatment_has_networks_of_its_own_trained_once_and_when_asked_for(drawn, rng):
    """The trained numbers are counted then."""
    predict = moved(two_types(rng))
    x0 = np.full((2, 3), 60.0)
    counts = [predict.parameters]
    for name in ("A", "A", "C", "B"):
        predict(name, "z", x0)
        counts.append(predict.parameters)
    assert counts == [0, 14, 14, 14, 28]
    assert len(drawn) == 2


@pytest.mark.parametrize("system, module", [(cellot, "cellot"), (compact_cellot, "compact_cellot")])
def test_the_two_forms_are_the_published_ones(monkeypatch, rng, system, module):
    """Four layers of 64 in 50 components; three of 32, standardised, gradients cut to 0.5."""
    asked = []

    def answer(screen, encode, decode, form, training, seed, device, standardise=False):
        codes = encode(screen.dense(screen.controls("x")))
        gradient = training.get("largest_gradient")
        asked.append((form["hidden"], form["slope"], codes.shape[1], standardise, gradient))
        return unchanged

    monkeypatch.setattr(f"rivals.{module}.transport_map", answer)
    screen = labelled({(CONTROL, "x"): rng.gamma(3, 1, (80, 60)), ("A", "x"): np.ones((5, 60))})
    system(screen, **({} if system is cellot else {"vae_steps": 2}))
    published = {
        cellot: ((64,) * 4, 0.2, 50, False, None),
        compact_cellot: ((32,) * 3, 0, 50, True, 0.5),
    }
    assert asked == [published[system]]


QUICK = {
    "vector arithmetic": vector_arithmetic,
    "PCA": pca_arithmetic,
    "scGen": lambda screen: scgen(screen, steps=3),
    "CellOT": lambda screen: cellot(screen, steps=2),
    "Compact CellOT": lambda screen: compact_cellot(screen, steps=2, vae_steps=3),
}


def drugs(change=unchanged):
    """D:1 in two types and D:10 in y; held out is E:1 in y, and D:1 in z."""
    rng = np.random.default_rng(0)
    keys = [(CONTROL, "x"), (CONTROL, "y"), (CONTROL, "z"), ("D:1", "x"), ("D:1", "y")]
    parts = {key: rng.gamma(3, 1, (60, 8)) for key in [*keys, ("D:10", "y")]}
    held_out = {("E:1", "y"), ("D:1", "z")}
    parts |= {key: change(rng.gamma(3, 1, (60, 8))) for key in sorted(held_out)}
    screen = labelled(parts)
    screen.kind = "drug"
    screen.held_out = held_out
    return screen


@pytest.mark.parametrize("name", QUICK)
def test_trained_rivals_apply_where_this_very_treatment_was_trained_on(name):
    """In any type; another dose is another treatment."""
    predict = QUICK[name](drugs())
    x0 = np.ones((4, 8))
    assert predict("E:1", "y", x0) is None and predict("D:2", "y", x0) is None
    predicted = predict("D:1", "z", x0)
    assert predicted.shape == (4, 8) and predicted.dtype == np.float32 and predicted.min() >= 0


@pytest.mark.parametrize("name", QUICK)
def test_every_one_has_cells_with_zeros_kept(name):
    """They are not the controls, and are what they were if asked again."""
    predict = QUICK[name](drugs())
    rng = np.random.default_rng(1)
    x0 = (rng.gamma(3, 1, (20, 8)) * (rng.random((20, 8)) < 0.5)).astype(np.float32)
    cells = predict("D:1", "z", x0)
    kept = predict.zeros_kept(x0, cells)
    assert kept.dtype == np.float32 and kept.min() >= 0 and not kept[x0 == 0].any()
    assert not np.array_equal(kept, x0) and (cells > 0).mean() > (kept > 0).mean()
    assert np.array_equal(kept, predict.zeros_kept(x0, cells))


@pytest.mark.parametrize("name", QUICK)
def test_no_trained_rival_looks_at_held_out_cells_and_a_seed_repeats_it(name):
    """To the bit, whatever random numbers were drawn before."""
    x0 = np.random.default_rng(1).gamma(3, 1, (5, 8))
    before = QUICK[name](drugs())("D:1", "z", x0)
    torch.rand(3)
    after = QUICK[name](drugs(lambda cells: cells + 5))("D:1", "z", x0)
    assert np.array_equal(before, after)


def autoencoder(hidden, latent, genes=8):
    """How many weights a VAE has: matrices, scales and shifts of normalisation, outer biases."""
    matrices = hidden * (genes + hidden + 2 * latent) + hidden * (latent + hidden + genes)
    return matrices + 8 * hidden + 2 * latent + genes


def test_the_trained_numbers_are_counted():
    """scGen's network; CellOT's two; both kinds of the compact form. By their layers."""
    screen = drugs()
    x0 = np.ones((4, 8))
    counts = {}
    for name in ("scGen", "CellOT", "Compact CellOT"):
        predict = QUICK[name](screen)
        predict("D:1", "z", x0)
        counts[name] = predict.parameters

    def convex(hidden):
        sizes = [*hidden, 1]
        return 9 * sum(sizes) + sum(map(operator.mul, sizes, sizes[1:]))

    small = autoencoder(512, 50)
    assert counts["scGen"] == autoencoder(800, 100)
    assert counts["CellOT"] == 2 * convex([64] * 4) - 2 * sum([64] * 4 + [1])  # of 7 components
    assert counts["Compact CellOT"] == small + 2 * (convex([32] * 3) + 42 * sum([32] * 3 + [1]))


# ---- LAOT ----------------------------------------------------------------------------------------


def laot_by_distance(x0, xT, power):
    """The benchmark's own code: 10 times an assignment of least |W x - y|^power and its W."""
    W = np.eye(x0.shape[1])
    for _ in range(10):
        order = linear_sum_assignment(cdist(xT, x0 @ W.T) ** power)[1]
        W = np.linalg.lstsq(x0[order], xT, rcond=None)[0].T
    return order


@pytest.mark.parametrize(
    "deviation, published", [(30, 1.0), (50, 0.996), (100, 0.47), (200, 0.145)]
)
def test_the_benchmarks_recovery_is_that_of_distances_without_their_squares(deviation, published):
    """n = d = 100, uniform E, six trials. Its text has the squares, as we do: they find no less."""
    recovered = []
    for seed in range(6):
        rng = np.random.default_rng([seed, deviation])
        x0, E = near_identity(100, 100, "uniform", rng)
        order = rng.permutation(100)
        xT = x0[order] @ (np.eye(100) + deviation * E).T
        found = [laot_by_distance(x0, xT, 1), laot_by_distance(x0, xT, 2), laot(x0, xT)[0]]
        recovered.append([(each == order).mean() for each in found])
    theirs, squared, ours = np.mean(recovered, 0)
    assert theirs == pytest.approx(published, abs=0.06)
    assert ours == pytest.approx(squared, abs=1e-9) and ours >= theirs


# ---- Pairs trained between two Gaussians ---------------------------------------------------------
#
# Last, for they take longest.


def conjugate_of(f, x, start):
    """f*(x) = max over y of <x, y> - f(y), at each of x (n, d): a concave maximisation."""
    y = start.clone().requires_grad_()
    optimiser = torch.optim.LBFGS([y], max_iter=200, line_search_fn="strong_wolfe")

    def missed():
        optimiser.zero_grad()
        value = (f(y) - (x * y).sum(1)).sum()
        value.backward()
        return value

    optimiser.step(missed)
    return ((x * y).sum(1) - f(y)).detach()


class Trained:
    """A pair trained between two Gaussians.

    And the dual value after each third of the steps; and how far the map is from Brenier's, as a
    share of the target's variance, six times in the last quarter: f and g circle about their aim.
    """

    def __init__(self, d, form, steps, **options):
        self.known = Gaussians(d)
        f, self.g = networks(d, form, double=False)
        torch.manual_seed(0)
        self.x, self.y = self.known.draw(600)
        self.dual = []
        self.unexplained = []
        steps_of_f = itertools.count(1)

        def draw_x():
            return self.known.draw(128)[0].float()

        def draw_y():
            step = next(steps_of_f)
            if step % (steps // 3) == 1:
                self.dual.append(self.dual_value(f))
            if step > 0.75 * steps and step % (steps // 24) == 0:
                self.unexplained.append(self.missed())
            return self.known.draw(128)[1].float()

        train_pair(f, self.g, draw_x, draw_y, steps, desc="pair", **options)
        f.clamp()
        self.dual.append(self.dual_value(f))

    def dual_value(self, f):
        """A bound on half the squared distance between the two samples, whatever f is."""
        f, g = [copy.deepcopy(network).double() for network in (f, self.g)]
        conjugate = conjugate_of(f.requires_grad_(False), self.x, transport(g, self.x))
        return half_squares(self.x, self.y) - (conjugate.mean() + f(self.y).mean()).item()

    def missed(self):
        """Mean squared distance of the map from Brenier's, as a share of the target's variance."""
        x = self.known.draw(1000)[0]
        true = x @ tensor(self.known.A) + tensor(self.known.m)
        missed = (transport(self.g, x.float()) - true) ** 2
        return missed.sum(1).mean().item() / np.trace(self.known.S1)


@pytest.fixture(scope="module", params=["CellOT", "compact"])
def trained(request):
    """One form in ten dimensions, one in two, with as few steps as end near the map."""
    if request.param == "CellOT":
        return Trained(10, CELLOT, 240, learning_rate=1e-3)
    return Trained(2, COMPACT, 450, learning_rate=5e-4, largest_gradient=0.5)


def test_the_map_between_gaussians_is_within_5_percent_of_breniers(trained):
    """Of the target's variance, which is how such maps are judged (Korotin et al. 2021)."""
    assert len(trained.unexplained) >= 5
    assert np.mean(trained.unexplained) < 0.05


def test_the_dual_value_rises_and_stays_below_the_cost(trained):
    """The true cost between the same two samples, by an assignment; in few cells it is too high."""
    squared = cdist(trained.x.numpy(), trained.y.numpy(), "sqeuclidean")
    cost = squared[linear_sum_assignment(squared)].mean() / 2
    first, *_, last = trained.dual
    assert max(trained.dual) <= cost + 1e-6
    assert first < 0.6 * trained.known.cost < last < 1.1 * trained.known.cost
