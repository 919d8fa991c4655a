"""Rivals: what a model must beat. One file each, and one interface:

    rival(screen) -> predict(perturbation, cell_type, x0) -> cells (n, N), or None

x0 (n, N) are control cells of that type, dense log1p. A rival looks at training conditions only,
and predicts None where it does not apply. Those of TRAINED are trained when they are asked for, and
take a seed and a device; how many numbers they fit is predict.parameters. What they predict is the
published form; predict.zeros_kept(x0, cells) makes of its cells those of the improved one, which is
our one attempt to make each of them stronger.
"""

from functools import partial
from importlib import import_module

from rivals.additive import additive
from rivals.control import control
from rivals.laot import laot_map
from rivals.linear import linear
from rivals.linear_knockout import linear_knockout
from rivals.matching_mean import matching_mean
from rivals.perturbed_mean import perturbed_mean

RIVALS = {
    "control": control,
    "perturbed mean": perturbed_mean,
    "matching mean": matching_mean,
    "additive": additive,
    "hurdle mean": partial(perturbed_mean, form="hurdle"),
    "hurdle matching": partial(matching_mean, form="hurdle"),
    "hurdle additive": partial(additive, form="hurdle"),
    "linear": linear,
    "linear knock-out": linear_knockout,
    "LAOT": laot_map,
}


def imported(module, function):
    """The rival rival(screen, seed, device) in a file that is imported when it is asked for."""

    def rival(screen, seed=0, device="cpu"):
        train = getattr(import_module(f"rivals.{module}"), function)
        return train(screen, seed=seed, device=device)

    return rival


TRAINED = {
    "scGen": imported("scgen", "scgen"),
    "vector arithmetic": imported("vector_arithmetic", "vector_arithmetic"),
    "PCA arithmetic": imported("vector_arithmetic", "pca_arithmetic"),
    "CellOT": imported("cellot", "cellot"),
    "compact CellOT": imported("compact_cellot", "compact_cellot"),
    "PerturbDiff": imported("perturbdiff", "perturbdiff"),
}


def option_of(name):
    """A rival's name on the command line, and of the file that keeps its cells."""
    return name.lower().replace(" ", "-")


def forms_of(name):
    """The rows of a trained rival in a table: as published, and improved."""
    return name, f"{name}, zeros kept"
