"""Rivals: what a model must beat. One file each, and one interface:

    rival(screen) -> predict(perturbation, cell_type, x0) -> cells (n, N), or None

x0 (n, N) are control cells of that type, dense log1p. A rival looks at training conditions only,
and predicts None where it does not apply.
"""

from functools import partial

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
