"""Perturbed mean: every perturbation does what the average one does."""

from rivals.shifts import in_type, mean_shift, shifts_and_mover


def perturbed_mean(screen, form="plain"):
    """Predict the mean shift of the training perturbations in that cell type.

    In all types, if there is none in that one.
    form: "plain" or "hurdle" (`shifts_and_mover`).
    """
    shifts, move = shifts_and_mover(screen, form)

    def predict(perturbation, cell_type, x0):
        if not shifts:
            return None
        return move(x0, mean_shift(shifts, in_type(shifts, cell_type)), (perturbation, cell_type))

    return predict
