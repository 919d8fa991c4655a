"""CellOT: optimal transport by two convex networks for each treatment (Bunne et al. 2023).

Axes: n cells, d numbers in a cell's code.
"""

from functools import cache, partial

import numpy as np
import torch
from torch import nn
from torch.nn.functional import leaky_relu, softplus

from rivals.shifts import same_perturbation
from rivals.training import minimise
from rivals.vector_arithmetic import as_cells, encoded, principal_components, zeros_kept

INNER = 10  # steps of g to one of f
BATCH = 256
CELLOT = {"hidden": (64,) * 4, "slope": 0.2, "weights": (0.0, 0.1), "positive": False}


class ConvexNetwork(nn.Module):
    """A convex function of codes (n, d) -> (n,) (ICNN; Amos, Xu and Kolter 2017).

    z_1 = s(A_0 x + b_0)^2, z_l+1 = s(W_l z_l + A_l x + b_l); the last has one unit and no s.
    Convex where no W is below 0: s, a LeakyReLU of that slope, is convex and rising, and its square
    is convex. weights: where A and W begin; positive: W is the softplus of what is learnt.
    """

    def __init__(self, d, hidden, slope, weights, positive):
        super().__init__()
        self.sizes = [*hidden, 1]
        self.slope = slope
        self.positive = positive
        self.A = nn.Linear(d, sum(self.sizes))  # A_0, A_1, …, one below the other
        self.W = nn.ParameterList(map(torch.empty, self.sizes[1:], self.sizes[:-1]))
        for matrix in (self.A.weight, *self.W):
            nn.init.uniform_(matrix, *weights)
        nn.init.zeros_(self.A.bias)

    def forward(self, x):
        first, *others, last = self.A(x).split(self.sizes, 1)
        *matrices, final = [softplus(W) if self.positive else W for W in self.W]
        z = leaky_relu(first, self.slope) ** 2
        for W, a in zip(matrices, others, strict=True):
            z = leaky_relu(torch.addmm(a, z, W.T), self.slope)
        return torch.addmm(last, z, final.T).squeeze(1)

    @torch.no_grad()
    def clamp(self):
        """Raise each W to 0 where it is below."""
        for W in self.W:
            W.clamp_(min=0)


def transport(g, x, learn=False):
    """The gradient of g at x (n, d): where x is brought. learn: as a function of g's weights."""
    x = x.detach().requires_grad_()
    return torch.autograd.grad(g(x).sum(), x, create_graph=learn)[0]


def loss_g(f, g, x):
    """f(T x) - <x, T x> with T = grad g: least where it is minus the conjugate of f.

    And the norm of each W of g below 0, which keeps g nearly convex.
    """
    moved = transport(g, x, learn=True)
    loss = (f(moved) - (x * moved).sum(1)).mean()
    return loss if g.positive else loss + sum(torch.relu(-W).norm() for W in g.W)


def loss_f(f, g, x, y):
    """f(y) - f(T x): no f can tell the two apart where T x is distributed as y."""
    return f(y).mean() - f(transport(g, x)).mean()


def train_pair(f, g, draw_x, draw_y, steps, **options):
    """Train in turns: INNER steps of g, one of f, `steps` times. Returns the losses.

    draw_x(), draw_y(): a batch of codes (n, d) of controls and of treated cells; options: of
    `minimise`. Together they seek max over f of min over g of E |x|^2 / 2 + |y|^2 / 2 - f(y)
    + f(T x) - <x, T x>, half the squared Wasserstein distance (Makkuva et al. 2020).
    """

    def loss(step):
        turn_of_f = step % (INNER + 1) == INNER
        f.requires_grad_(turn_of_f)  # no gradient of f's loss reaches g
        if turn_of_f:
            return loss_f(f, g, draw_x(), draw_y())
        if not f.positive:
            f.clamp()
        return loss_g(f, g, draw_x())

    parameters = [*f.parameters(), *g.parameters()]
    return minimise(parameters, loss, steps * (INNER + 1), betas=(0.5, 0.9), **options)


def transport_map(screen, encode, decode, form, training, seed, device, standardise=False):
    """Predict decode(T(encode(x0))), nothing below 0, with networks of its own for each treatment.

    They are trained when it is first asked for, on the cells of all types in which it was trained;
    of each as many controls are drawn as treated cells. form: of `ConvexNetwork`; training: of
    `train_pair`; standardise: give the codes of these cells mean 0 and variance 1.
    """

    def to_tensor(values):
        return torch.as_tensor(values, dtype=torch.float32, device=device)

    @cache
    def trained(perturbation):
        treated = same_perturbation(screen, perturbation)
        y = [encoded(screen, screen.groups[key], encode) for key in treated]
        x = [encoded(screen, screen.controls(key[1]), encode) for key in treated]
        weights = [np.full(len(a), len(b) / len(a)) for a, b in zip(x, y, strict=True)]
        codes = np.concatenate(x + y)
        centre, scale = (codes.mean(0), codes.std(0)) if standardise else (0, 1)
        x, y = [to_tensor((np.concatenate(part) - centre) / scale) for part in (x, y)]
        weights = to_tensor(np.concatenate(weights))
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            f, g = [ConvexNetwork(codes.shape[1], **form).to(device) for _ in "fg"]
            draw_x = partial(torch.multinomial, weights, BATCH, replacement=True)
            draw_y = partial(torch.randint, len(y), (BATCH,), device=device)
            train_pair(f, g, lambda: x[draw_x()], lambda: y[draw_y()], **training)
        predict.parameters += sum(part.numel() for part in [*f.parameters(), *g.parameters()])
        return g, centre, scale

    def predict(perturbation, cell_type, x0):
        if not same_perturbation(screen, perturbation):
            return None
        g, centre, scale = trained(perturbation)
        moved = transport(g, to_tensor((encode(x0) - centre) / scale)).cpu().numpy()
        return as_cells(decode(moved * scale + centre))

    predict.parameters = 0
    predict.zeros_kept = partial(zeros_kept, encode, decode)
    return predict


def cellot(screen, seed=0, device="cpu", steps=500):
    """Predict by a convex network's gradient in 50 principal components.

    The published code takes an autoencoder's codes, 100,000 steps and a learning rate of 1e-4; ours
    is 5e-4, for 500 steps (half a minute a treatment on a core) of 1e-4 end far from any map.
    Applies where this very perturbation, dose included, was trained on in some cell type.
    """
    encode, decode = principal_components(screen, 50, seed)
    training = {"steps": steps, "learning_rate": 5e-4, "desc": "CellOT"}
    return transport_map(screen, encode, decode, CELLOT, training, seed, device)
