"""Additive: a combination does the sum of what its targets do alone."""

import screens
from rivals.shifts import doses_of, in_type, mean_shift, shifted


def additive(screen):
    """Predict the sum of the targets' own shifts in that cell type.

    On average over the other types, for a target that was not seen alone in that one. Applies to
    two or more targets, each of them seen alone.
    """
    shifts = screens.mean_shifts(screen)

    def predict(perturbation, cell_type, x0):
        targets = doses_of(perturbation, screen)
        alone = [[key for key in shifts if key[0] == target] for target in targets]
        if len(alone) < 2 or not all(alone):
            return None
        return shifted(x0, sum(mean_shift(shifts, in_type(keys, cell_type)) for keys in alone))

    return predict
