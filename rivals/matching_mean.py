"""Matching mean: the average effect of the nearest training conditions."""

from rivals.shifts import mean_shift, nearest, shifts_and_mover


def matching_mean(screen, form="plain"):
    """Predict the mean shift of the training conditions that share most with the one wanted.

    Applies where any of its targets was seen.
    form: "plain" or "hurdle" (`shifts_and_mover`).
    """
    shifts, move = shifts_and_mover(screen, form)

    def predict(perturbation, cell_type, x0):
        near = nearest(screen, shifts, perturbation, cell_type)
        if not near:
            return None
        return move(x0, mean_shift(shifts, near), (perturbation, cell_type))

    return predict
