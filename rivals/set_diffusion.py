"""Diffusion over sets of cells: the network, the loss and the sampler of `perturbdiff.py`.

Axes: B sets, S cells in a set, L tokens, N genes, P parts of conditions, W width.
"""

import torch
import torch.nn.functional as F
from torch import nn

STEPS = 1000  # of noising
KEPT = (1 - torch.linspace(1e-4, 0.02, STEPS)).cumprod(0)  # share of the data's variance, alpha-bar


def modulated(x, shift, scale):
    """Tokens (B, L, W), normalised, then scaled and shifted by the condition."""
    return F.layer_norm(x, x.shape[-1:]) * (1 + scale) + shift


class Block(nn.Module):
    """A transformer block with adaLN-zero (Peebles and Xie 2023): the identity, until trained."""

    def __init__(self, width, heads=4):
        super().__init__()
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        wide = nn.Linear(width, 4 * width)
        self.mlp = nn.Sequential(wide, nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens, condition):
        """Tokens (B, L, W) after one block; condition (B, W)."""
        of_block = self.modulation(F.silu(condition))[:, None]
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = of_block.chunk(6, -1)
        x = modulated(tokens, shift, scale)
        tokens = tokens + gate * self.attention(x, x, x, need_weights=False)[0]
        return tokens + mlp_gate * self.mlp(modulated(tokens, mlp_shift, mlp_scale))


class Denoiser(nn.Module):
    """Predicts a set of cells from the noisy set, an earlier prediction, and controls."""

    def __init__(self, genes, parts, width=128, blocks=2):
        super().__init__()
        self.cell = nn.Linear(2 * genes, width)
        self.control = nn.Linear(genes, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.parts = nn.Linear(parts, width, bias=False)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.modulation = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, genes)

    def forward(self, x, earlier, controls, t, condition):
        """The expected cells (B, S, N), not below 0.

        x, earlier (B, S, N): the noisy set; what was predicted before, or zeros (self-conditioning,
        Chen et al. 2023). controls (B, any, N). t (B,) int64. condition (B, P): 1 for each of its
        parts, a target at its dose or a cell type; all zeros tell nothing.
        """
        rates = torch.logspace(0, -4, self.control.out_features // 2, device=x.device)
        waves = torch.cat([(t[:, None] * rates).sin(), (t[:, None] * rates).cos()], -1)
        c = self.time(waves) + self.parts(condition)
        cells = self.cell(torch.cat([x, earlier], -1))
        tokens = torch.cat([cells, self.control(controls)], 1)
        for block in self.blocks:
            tokens = block(tokens, c)
        shift, scale = self.modulation(F.silu(c))[:, None].chunk(2, -1)
        made = self.out(modulated(tokens[:, : x.shape[1]], shift, scale))
        kept = KEPT.to(x.device)[t][:, None, None]
        return F.relu(kept.sqrt() * x + (1 - kept).sqrt() * made)  # little noise, little to change


def energy_distance(x, y):
    """2 E|x-y| - E|x-x'| - E|y-y'| of sets x, y (B, S, N), over distinct cells: (B,)."""
    pairs = max(1, x.shape[1] * (x.shape[1] - 1))  # none, in a set of one cell
    within = (torch.cdist(x, x).sum((1, 2)) + torch.cdist(y, y).sum((1, 2))) / pairs
    return 2 * torch.cdist(x, y).mean((1, 2)) - within


def set_loss(model, x, controls, condition, generator, drop=0.1, energy=1.0):
    """Squared error per gene + energy times the energy distance / sqrt(N), at random times.

    The condition is dropped from a share of the sets; half of the calls have an earlier prediction.
    """
    device = x.device
    t = torch.randint(STEPS, (len(x),), generator=generator, device=device)
    kept = KEPT.to(device)[t][:, None, None]
    noise = torch.randn(x.shape, generator=generator, device=device)
    noisy = kept.sqrt() * x + (1 - kept).sqrt() * noise
    condition = condition * (torch.rand(len(x), 1, generator=generator, device=device) >= drop)
    made = torch.zeros_like(x)
    if torch.rand(1, generator=generator, device=device) < 0.5:
        with torch.no_grad():
            made = model(noisy, made, controls, t, condition)
    made = model(noisy, made, controls, t, condition)
    distance = energy_distance(made, x).mean() / x.shape[-1] ** 0.5
    return (made - x).square().mean() + energy * distance


def ddim(denoise, x, steps=50):
    """Carry noise x to data, adding none (DDIM, Song et al. 2021, Eq. 12 with eta = 0).

    denoise(x, earlier, t): the expected data; earlier: what it said before, at first zeros.
    """
    times = torch.linspace(STEPS - 1, 0, steps).round().long().tolist()
    kept = [*KEPT[times].tolist(), 1.0]
    made = torch.zeros_like(x)
    for i, t in enumerate(times):
        made = denoise(x, made, t)
        noise = (x - kept[i] ** 0.5 * made) / (1 - kept[i]) ** 0.5
        x = kept[i + 1] ** 0.5 * made + (1 - kept[i + 1]) ** 0.5 * noise
    return x


@torch.no_grad()
def draw_sets(model, controls, condition, generator, guidance=1.0):
    """Draw a set of cells beside each set of controls (B, S, N); condition (B, P).

    Classifier-free guidance (Ho and Salimans 2022): 1 predicts with the condition, 0 without it,
    more than 1 exaggerates the difference.
    """

    def denoise(x, earlier, t):
        t = torch.full((len(x),), t, device=x.device)
        told = model(x, earlier, controls, t, condition)
        if guidance == 1:
            return told
        untold = model(x, earlier, controls, t, torch.zeros_like(condition))
        return F.relu(untold + guidance * (told - untold))

    return ddim(denoise, torch.randn(controls.shape, generator=generator, device=controls.device))
