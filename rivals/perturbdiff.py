"""PerturbDiff: diffusion over sets of cells (Yuan et al. 2026, arXiv 2602.19685).

A set of perturbed cells is noised and denoised as a whole, beside a set of control cells. So what
the cells of a set share, such as their batch, is drawn once for the set and not once for each cell.

Axes: B sets, S cells in a set, L tokens, N genes, P parts of conditions, W width.
"""

import math
import zlib

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import screens
from rivals.training import minimise
from screens import CONTROL

SET = 64  # cells in a set
STEPS = 1000  # of the noising
KEPT = (1 - torch.linspace(1e-4, 0.02, STEPS)).cumprod(0)  # share of the data's variance, alpha-bar


def modulated(x, shift, scale):
    """Tokens (B, L, W), normalised, then scaled and shifted as the condition says."""
    return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


class Block(nn.Module):
    """A transformer block with adaLN-zero (Peebles and Xie 2023): the identity, until trained."""

    def __init__(self, width, heads=4):
        super().__init__()
        self.modulation = zeros(nn.Linear(width, 6 * width))
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        wide = nn.Linear(width, 4 * width)
        self.mlp = nn.Sequential(wide, nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens, condition):
        """Tokens (B, L, W) after one block; condition (B, W)."""
        six = self.modulation(F.silu(condition))[:, None].chunk(6, -1)
        x = modulated(tokens, six[0], six[1])
        tokens = tokens + six[2] * self.attention(x, x, x, need_weights=False)[0]
        return tokens + six[5] * self.mlp(modulated(tokens, six[3], six[4]))


def zeros(layer):
    """A layer whose weights start at zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Denoiser(nn.Module):
    """Predicts a set of cells from the noisy set, an earlier estimate of it, and controls."""

    def __init__(self, genes, parts, width=128, blocks=2):
        super().__init__()
        self.cell = nn.Linear(2 * genes, width)
        self.control = nn.Linear(genes, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.parts = nn.Linear(parts, width, bias=False)
        self.blocks = nn.ModuleList([Block(width) for _ in range(blocks)])
        self.modulation = zeros(nn.Linear(width, 2 * width))
        self.out = nn.Linear(width, genes)

    def forward(self, x, estimate, controls, t, condition):
        """The expected cells (B, S, N), not below 0.

        x, estimate (B, S, N): noisy, and of an earlier call or zeros (self-conditioning, Chen et
        al. 2023); controls (B, any, N); t (B,) int64; condition (B, P): 1 for each part that it
        has, all 0 where nothing is told.
        """
        c = self.time(waves(t, self.control.out_features)) + self.parts(condition)
        cells = self.cell(torch.cat([x, estimate], -1))
        tokens = torch.cat([cells, self.control(controls)], 1)
        for block in self.blocks:
            tokens = block(tokens, c)
        shift, scale = self.modulation(F.silu(c))[:, None].chunk(2, -1)
        return F.relu(self.out(modulated(tokens[:, : x.shape[1]], shift, scale)))


def waves(t, width):
    """Sines and cosines (B, width) of times (B,), of wavelengths 2 pi to 20,000 pi."""
    rates = torch.logspace(0, -4, width // 2, device=t.device)
    return torch.cat([(t[:, None] * rates).sin(), (t[:, None] * rates).cos()], -1)


def energy_distance(x, y):
    """2 E|x-y| - E|x-x'| - E|y-y'| of sets (B, S, N), over distinct cells: (B,)."""
    pairs = max(1, x.shape[1] * (x.shape[1] - 1))  # a cell alone has no distance within
    within = (torch.cdist(x, x).sum((1, 2)) + torch.cdist(y, y).sum((1, 2))) / pairs
    return 2 * torch.cdist(x, y).mean((1, 2)) - within


def set_loss(model, x, controls, condition, generator, drop=0.1):
    """Squared error and energy distance of the predicted sets, per gene.

    At random times, with an estimate in half of the calls, and with the condition dropped (which
    guidance needs) from a fraction `drop` of the sets.
    """
    device = x.device
    t = torch.randint(STEPS, (len(x),), generator=generator, device=device)
    kept = KEPT.to(device)[t][:, None, None]
    noise = torch.randn(x.shape, generator=generator, device=device)
    noisy = kept.sqrt() * x + (1 - kept).sqrt() * noise
    told = torch.rand((len(x), 1), generator=generator, device=device) >= drop
    estimate = torch.zeros_like(x)
    if torch.rand(1, generator=generator, device=device) < 0.5:
        with torch.no_grad():
            estimate = model(noisy, estimate, controls, t, condition * told)
    made = model(noisy, estimate, controls, t, condition * told)
    # An energy distance grows as the root of the number of genes.
    return (made - x).square().mean() + energy_distance(made, x).mean() / x.shape[-1] ** 0.5


def ddim(denoise, x, steps=50):
    """Carry noise x to data without further noise (Song et al. 2021, Eq. 12 with eta = 0).

    denoise(x, estimate, t): the expected data; estimate: what it said before, zeros at first.
    """
    times = torch.linspace(STEPS - 1, 0, steps, device=x.device).round().long()
    kept = torch.cat([KEPT.to(x.device)[times], torch.ones(1, device=x.device)])
    estimate = torch.zeros_like(x)
    for t, now, after in zip(times, kept, kept[1:], strict=False):
        estimate = denoise(x, estimate, t)
        noise = (x - now.sqrt() * estimate) / (1 - now).sqrt()
        x = after.sqrt() * estimate + (1 - after).sqrt() * noise
    return x


@torch.no_grad()
def draw_sets(model, controls, condition, generator, guidance=1.5):
    """Draw a set of cells beside each set of controls (B, S, N); condition (B, P).

    guidance: how far from the prediction without the condition; 1 is as predicted with it
    (classifier-free guidance, Ho and Salimans 2022).
    """

    def denoise(x, estimate, t):
        t = t.expand(len(x))
        told = model(x, estimate, controls, t, condition)
        untold = model(x, estimate, controls, t, torch.zeros_like(condition))
        return (untold + guidance * (told - untold)).clamp(min=0)

    noise = torch.randn(controls.shape, generator=generator, device=controls.device)
    return ddim(denoise, noise)


def perturbdiff(screen, seed=0, device="cpu", steps=1000, sets=8):
    """Predict sets of cells by diffusion, from a network that sees the condition's names.

    Applies where every target at its dose and the cell type were trained on, together or not; a
    combination is the sum of its parts. The values are scaled to a mean variance of 1.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    generator = torch.Generator(device).manual_seed(seed)
    keys = [key for key in screen.training_groups() if key[0] != CONTROL]

    def parts_of(perturbation, cell_type):
        return [*screens.targets_of(perturbation, screen.kind), cell_type]

    names = {part: i for i, part in enumerate(dict.fromkeys(p for k in keys for p in parts_of(*k)))}
    conditions = torch.zeros(len(keys), len(names), device=device)
    for row, key in enumerate(keys):
        conditions[row, [names[part] for part in parts_of(*key)]] = 1
    rows = np.concatenate(list(screen.training_groups().values()))
    scale = spread(screen.X[rows])
    cells = screens.Cells(screen.X, device)
    model = Denoiser(len(screen.genes), len(names)).to(device)

    def draw(groups):
        rows = np.concatenate([np.resize(rng.permutation(group), SET) for group in groups])
        return cells(rows).unflatten(0, (len(groups), SET)) / scale

    def loss(step):
        drawn = rng.integers(len(keys), size=sets)
        x = draw([screen.groups[keys[i]] for i in drawn])
        controls = draw([screen.controls(keys[i][1]) for i in drawn])
        return set_loss(model, x, controls, conditions[drawn], generator)

    minimise(model.parameters(), loss, steps, 1e-3, "PerturbDiff")

    def predict(perturbation, cell_type, x0):
        parts = parts_of(perturbation, cell_type)
        if not names.keys() >= set(parts):
            return None
        own = zlib.crc32(f"{seed} {perturbation}@{cell_type}".encode())
        count = math.ceil(len(x0) / SET)
        controls = torch.from_numpy(np.resize(x0, (count, SET, x0.shape[1]))).to(device) / scale
        condition = torch.zeros(count, len(names), device=device)
        condition[:, [names[part] for part in parts]] = 1
        x = draw_sets(model, controls, condition, torch.Generator(device).manual_seed(own))
        return (x.flatten(0, 1)[: len(x0)] * scale).cpu().numpy()

    predict.parameters = sum(weights.numel() for weights in model.parameters())
    return predict


def spread(X):
    """The root of the genes' mean variance, of sparse cells X (n, N)."""
    return float(np.sqrt((X.power(2).mean(0) - np.square(X.mean(0))).mean()))
