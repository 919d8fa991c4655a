"""What the rivals share: cells from a shift, and which training conditions are near."""

import zlib

import numpy as np
from scipy.special import expit, logit

import screens

FORMS = ("plain", "hurdle")  # of a rival that averages shifts


def shifts_and_mover(screen, form):
    """The training conditions' shifts, and move(x0, shift, condition), which makes cells of one.

    form: "plain" shifts the expressed values (`shifted`), "hurdle" the log odds of being on and the
    level if expressed (`switched`). condition: (perturbation, cell type); its random numbers are
    its own, whatever else is predicted.
    """
    if form == "plain":
        return screens.mean_shifts(screen), lambda x0, shift, condition: shifted(x0, shift)
    if form != "hurdle":
        raise ValueError(f"form must be one of {FORMS}, not {form!r}")

    def move(x0, shift, condition):
        return switched(x0, shift, np.random.default_rng(zlib.crc32("@".join(condition).encode())))

    return screens.hurdle_shifts(screen), move


def shifted(x0, shift):
    """Control cells x0 (n, N) moved by a shift, (N,) or each by its own (n, N).

    Zeros stay zero and nothing goes below zero, so a gene's mean moves by the shift times the
    fraction of cells that express it. Of the ways that were tried (the whole shift laid on the
    expressing cells, or on all cells) this makes the rivals strongest: rare genes, whose shifts are
    mostly noise, hardly move.
    """
    return np.where(x0 > 0, np.maximum(x0 + shift, 0), 0).astype(np.float32)


def switched(x0, shift, rng):
    """Control cells x0 (n, N) moved by a shift (2, N) of the log odds of being on and of the level.

    As few cells as possible switch a gene: only on, or only off. Where a gene is switched on, its
    level is drawn from the controls that express it.
    """
    log_odds, level = shift
    on = x0 > 0
    before = on.sum(0)
    wanted = logit((before + 0.5) / (len(x0) + 1)) + log_odds  # half a cell more on either side
    after = ((len(x0) + 1) * expit(wanted) - 0.5).clip(0, len(x0))
    switches = np.floor(np.abs(after - before) + rng.random(len(before)))
    may_switch = on != (after > before)
    order = np.where(may_switch, rng.random(x0.shape), 2)
    nth = order.argsort(0).argsort(0)  # each cell's place in a random order of those that may
    is_on = on != (may_switch & (nth < switches))
    expressed_first = -np.sort(-x0, 0)
    nth_drawn = (rng.random(x0.shape) * before).astype(int)
    levels = np.where(on, x0, np.take_along_axis(expressed_first, nth_drawn, 0))
    return np.where(is_on & (levels > 0), np.maximum(levels + level, 0), 0).astype(np.float32)


def doses_of(perturbation, screen):
    """{target: dose} of a perturbation."""
    return dict(screens.targets_of(perturbation, screen.kind))


def in_type(keys, cell_type):
    """Those of the conditions that are of a cell type; all of them, if none is."""
    return [key for key in keys if key[1] == cell_type] or list(keys)


def mean_shift(shifts, keys):
    """The mean of some conditions' shifts, (N,) or (2, N)."""
    return np.mean([shifts[key] for key in keys], 0)


def nearest(screen, keys, perturbation, cell_type):
    """Those of the training conditions that are least unlike one (`screens.unlikeness`).

    An empty list, if none has a target in common with it.
    """
    wanted = perturbation, cell_type
    unlike = {key: screens.unlikeness(wanted, key, screen.kind) for key in keys}
    least = min(unlike.values(), default=None)
    return [key for key, of_key in unlike.items() if of_key == least and of_key[0] < 0]


def same_perturbation(screen, perturbation):
    """The training conditions of one perturbation, of any cell type: same targets, same doses."""
    return [key for key in screen.training_groups() if key[0] == perturbation]
