"""Matching mean: the average effect of the nearest training conditions."""

import screens
from rivals.shifts import mean_shift, nearest, shifted


def matching_mean(screen):
    """Predict the mean shift of the training conditions that share most with the one wanted.

    Applies where any of its targets was seen.
    """
    shifts = screens.mean_shifts(screen)

    def predict(perturbation, cell_type, x0):
        near = nearest(screen, shifts, perturbation, cell_type)
        if not near:
            return None
        return shifted(x0, mean_shift(shifts, near))

    return predict
