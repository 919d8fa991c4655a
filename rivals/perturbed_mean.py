"""Perturbed mean: every perturbation does what the average one does."""

import screens
from rivals.shifts import in_type, mean_shift, shifted


def perturbed_mean(screen):
    """Predict the mean shift of the training perturbations in that cell type.

    In all types, if there is none in that one.
    """
    shifts = screens.mean_shifts(screen)

    def predict(perturbation, cell_type, x0):
        if not shifts:
            return None
        return shifted(x0, mean_shift(shifts, in_type(shifts, cell_type)))

    return predict
