"""Additive: a combination does the sum of what its targets do alone."""

from rivals.shifts import doses_of, in_type, mean_shift, shifts_and_mover


def additive(screen, form="plain"):
    """Predict the sum of the targets' own shifts in that cell type.

    On average over the other types, for a target that was not seen alone in that one. Applies to
    two or more targets, each of them seen alone.
    form: "plain" or "hurdle" (`shifts_and_mover`).
    """
    shifts, move = shifts_and_mover(screen, form)

    def predict(perturbation, cell_type, x0):
        targets = doses_of(perturbation, screen)
        alone = [[key for key in shifts if key[0] == target] for target in targets]
        if len(alone) < 2 or not all(alone):
            return None
        shift = sum(mean_shift(shifts, in_type(keys, cell_type)) for keys in alone)
        return move(x0, shift, (perturbation, cell_type))

    return predict
