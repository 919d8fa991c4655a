"""What the rivals share: cells from a shift of the mean, and which training conditions are near."""

import numpy as np

import screens


def shifted(x0, shift):
    """Control cells x0 (n, N) moved by a shift, (N,) or each by its own (n, N).

    Zeros stay zero and nothing goes below zero, so a gene's mean moves by the shift times the
    fraction of cells that express it. Of the ways that were tried (the whole shift laid on the
    expressing cells, or on all cells) this makes the rivals strongest: rare genes, whose shifts are
    mostly noise, hardly move.
    """
    return np.where(x0 > 0, np.maximum(x0 + shift, 0), 0).astype(np.float32)


def doses_of(perturbation, screen):
    """{target: dose} of a perturbation."""
    return dict(screens.targets_of(perturbation, screen.kind))


def in_type(keys, cell_type):
    """Those of the conditions that are of a cell type; all of them, if none is."""
    return [key for key in keys if key[1] == cell_type] or list(keys)


def mean_shift(shifts, keys):
    """The mean (N,) of some conditions' shifts."""
    return np.mean([shifts[key] for key in keys], 0)


def nearest(screen, keys, perturbation, cell_type):
    """Those of the training conditions that are nearest to one, as far as they share a target.

    With the most targets in common, then with the fewest others, then at the nearest dose, then in
    the same cell type.
    """
    wanted = doses_of(perturbation, screen)
    distance = {}
    for key in keys:
        theirs = doses_of(key[0], screen)
        common = wanted.keys() & theirs.keys()
        if common:
            others = theirs.keys() - wanted.keys()
            ratios = [max(wanted[t], 1e-12) / max(theirs[t], 1e-12) for t in common]
            dose = round(sum(abs(np.log(ratio)) for ratio in ratios), 6)
            distance[key] = (-len(common), len(others), dose, key[1] != cell_type)
    least = min(distance.values(), default=None)
    return [key for key, far in distance.items() if far == least]
