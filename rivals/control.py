"""Control cells: a perturbation does nothing."""


def control(screen):
    """Predict the control cells themselves."""

    def predict(perturbation, cell_type, x0):
        return x0

    return predict
