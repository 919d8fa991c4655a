"""Cheats: worthless or spoiled predictions, to see which metric each of them fools.

    cheat(given) -> cells (n, N), what is handed in for a condition

None looks at a held-out cell. `CHEATS` holds them all, and the metric that each cannot pass.
"""

from functools import partial
from typing import NamedTuple

import numpy as np

import screens
from rivals.shifts import in_type, shifted


class Given(NamedTuple):
    """What a cheat has: an honest prediction of a condition, and what a rival may look at."""

    x: np.ndarray  # (n, N) an honest model's cells
    x0: np.ndarray  # (m, N) control cells
    average: np.ndarray  # (m, N) cells of the perturbed mean
    shifts: dict  # {training condition: how far it moved the mean (N,)}
    screen: screens.Screen
    key: tuple  # (perturbation, cell type)
    rng: np.random.Generator


class Cheat(NamedTuple):
    """A cheat, what is handed in, and the metric and gene set in which it is exposed."""

    make: callable
    said: str
    exposed: tuple


def controls_relabelled(given):
    """Control cells under the name of the perturbation."""
    return given.x0


def mean_repeated(given):
    """The perturbed mean's mean, for every cell."""
    return np.tile(given.average.mean(0), (len(given.x), 1))


def another_condition(given):
    """Measured cells of the training condition that moved the mean farthest, whatever was asked."""
    shifts = given.shifts
    if not shifts:
        return given.x0
    strongest = max(in_type(shifts, given.key[1]), key=lambda key: np.abs(shifts[key]).sum())
    return drawn_from(given, given.screen.groups[strongest])


def training_cells(given):
    """Measured cells of all training perturbations, drawn at random."""
    groups = given.screen.training_groups()
    keys = in_type([key for key in groups if key[0] != screens.CONTROL], given.key[1])
    return drawn_from(given, np.concatenate([groups[key] for key in keys])) if keys else given.x0


def drawn_from(given, rows):
    """As many measured cells as the honest prediction has, some twice if there are fewer."""
    return given.screen.dense(
        given.rng.choice(rows, len(given.x), replace=len(rows) < len(given.x))
    )


def variance_times(given, factor):
    """The honest cells, the variance of each gene's level where expressed times a factor."""
    x = given.x
    level = x.sum(0) / np.maximum((x > 0).sum(0), 1)
    return np.where(x > 0, np.maximum(level + factor**0.5 * (x - level), 0), 0).astype(x.dtype)


def shift_times(given, factor):
    """The honest cells, moved to where their mean is `factor` times as far from the controls'."""
    return shifted(given.x, (factor - 1) * (given.x.mean(0) - given.x0.mean(0)))


def independent_noise(given):
    """The honest mean plus normal noise of the honest variance, each gene by itself."""
    x = given.x
    noise = given.rng.normal(size=x.shape) * x.std(0)
    return np.maximum(x.mean(0) + noise, 0).astype(x.dtype)


def counts_as_logs(given):
    """The honest cells with the logarithm undone."""
    return np.expm1(given.x)


def doctored_controls(given):
    """Control cells, less the mean shift of the training perturbations: a file's own controls.

    Handed in beside unchanged control cells as the prediction: whoever takes the controls of the
    predicted file sees the right shift. They may be below 0, which a reader of means does not
    notice.
    """
    return given.x0 - (given.average.mean(0) - given.x0.mean(0))


CHEATS = {
    "controls relabelled": Cheat(
        controls_relabelled,
        "control cells under the name of the perturbation",
        ("Pearson delta", "all"),
    ),
    "doctored controls": Cheat(
        controls_relabelled,
        "the same, beside controls that were moved the other way",
        ("Pearson delta", "all"),
    ),
    "mean repeated": Cheat(
        mean_repeated,
        "the mean of the training perturbations, for every cell",
        ("E-distance", "all"),
    ),
    "another condition": Cheat(
        another_condition,
        "measured cells of the strongest training condition, whatever was asked for",
        ("R2w delta", "all"),
    ),
    "training cells": Cheat(
        training_cells,
        "measured cells of all training perturbations, copied",
        ("copied", "all"),
    ),
    "variance × 4": Cheat(
        partial(variance_times, factor=4.0),
        "the model's levels twice as far from their mean",
        ("EMD", "all"),
    ),
    "shift × 3": Cheat(
        partial(shift_times, factor=3.0),
        "the model's cells with three times the shift",
        ("E-distance", "all"),
    ),
    "independent noise": Cheat(
        independent_noise,
        "the model's mean plus normal noise, each gene by itself",
        ("activation PCC", "all"),
    ),
    "counts as logs": Cheat(
        counts_as_logs,
        "the model's cells with the logarithm undone",
        ("E-distance", "all"),
    ),
}
