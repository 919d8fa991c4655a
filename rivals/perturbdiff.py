"""PerturbDiff: diffusion over sets of cells (Yuan et al. 2026, arXiv 2602.19685).

A set of perturbed cells is noised and denoised as a whole, beside a set of controls. So what the
cells of a set share, such as their batch, is drawn once for the set and not once for each cell.
The network, the loss and the sampler stand in `set_diffusion.py`.
"""

import math
import zlib
from functools import cache

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import screens
from rivals.set_diffusion import Denoiser, draw_sets, set_loss
from rivals.shifts import shifted
from rivals.training import minimise
from screens import CONTROL

SET = 64  # cells in a set


def perturbdiff(screen, seed=0, device="cpu", steps=1000, sets=8):
    """Predict sets of cells from a moving average of the trained weights.

    Applies where every target at its dose, and the cell type, were trained on, together or not.
    Values are scaled so that a gene's mean variance is 1.
    """
    rng = np.random.default_rng(seed)
    keys = [key for key in screen.training_groups() if key[0] != CONTROL]
    parts = {}  # the place of every target at its dose and of every cell type

    def parts_of(perturbation, cell_type):
        return [*screens.targets_of(perturbation, screen.kind), cell_type]

    for key in keys:
        for part in parts_of(*key):
            parts.setdefault(part, len(parts))

    def told(keys):
        condition = torch.zeros(len(keys), len(parts))
        for row, key in enumerate(keys):
            condition[row, [parts[part] for part in parts_of(*key)]] = 1
        return condition.to(device)

    rows = np.concatenate([screen.groups[key] for key in keys])
    _, level, fraction, variance = screens.population_statistics(screen.X, rows)
    scale = float((fraction * (variance + (1 - fraction) * level**2)).mean() ** 0.5)
    cells = screens.Cells(screen.X, device)
    generator = torch.Generator(device).manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Denoiser(len(screen.genes), len(parts)).to(device)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.995))

    def draw(groups):
        rows = np.concatenate([np.resize(rng.permutation(group), SET) for group in groups])
        return cells(rows).unflatten(0, (len(groups), SET)) / scale

    def loss(step):
        average.update_parameters(model)
        drawn = [keys[i] for i in rng.integers(len(keys), size=sets)]
        x = draw([screen.groups[key] for key in drawn])
        controls = draw([screen.controls(cell_type) for _, cell_type in drawn])
        return set_loss(model, x, controls, told(drawn), generator)

    @cache  # once, and only where it applies
    def train():
        minimise(model.parameters(), loss, steps, 2e-3, "PerturbDiff")

    def predict(perturbation, cell_type, x0):
        if not set(parts_of(perturbation, cell_type)) <= parts.keys():
            return None
        train()
        own = torch.Generator(device)
        own.manual_seed(zlib.crc32(f"{seed} {perturbation}@{cell_type}".encode()))
        n_sets = math.ceil(len(x0) / SET)
        controls = np.resize(x0, (n_sets, SET, x0.shape[1])) / scale
        controls = torch.as_tensor(controls, dtype=torch.float32, device=device)
        x = draw_sets(average, controls, told([(perturbation, cell_type)] * n_sets), own)
        return (x.flatten(0, 1)[: len(x0)] * scale).cpu().numpy()

    predict.parameters = sum(weights.numel() for weights in model.parameters())
    predict.zeros_kept = zeros_kept
    return predict


def zeros_kept(x0, cells):
    """Controls x0 (n, N), moved by the mean of predicted cells less their own (`shifted`).

    A predicted cell has no control that it came from, and values just above 0 where a measured one
    has none: the lowest of each gene count as 0, so that as many cells express it as controls do.
    """
    place = cells.argsort(0).argsort(0)
    cleared = np.where(place < (x0 == 0).sum(0), 0, cells)
    return shifted(x0, cleared.mean(0) - x0.mean(0))
