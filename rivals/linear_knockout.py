"""Linear knock-out: regress all genes on the perturbable ones, then set the target to zero."""

import numpy as np

import screens
from rivals.shifts import doses_of, shifted
from screens.statistics import mean_of


def linear_knockout(screen, ridge=0.1):
    """Predict shift = -m B[:, p] when the target p, of mean m in the controls, falls to zero.

    B = S[:, P] (S[P, P] + ridge I)^-1 is the ridge regression of all genes on the perturbable ones
    P; S is the controls' covariance around each cell type's mean. Applies where every target is a
    measured gene.
    """
    genes = set()
    if screen.kind == "gene":
        genes = {gene for p, _ in screen.groups for gene in doses_of(p, screen)}
    names = sorted(genes & set(screen.genes))
    P = [int(np.flatnonzero(screen.genes == gene)[0]) for gene in names]
    if names:
        controls = [screen.controls(cell_type) for cell_type in screen.cell_types]
        S, _ = screens.within_covariance(screen, controls, P)
        B = S @ np.linalg.inv(S[P] + ridge * np.eye(len(P)))
    mean = {t: mean_of(screen, screen.controls(t)) for t in screen.cell_types}

    def predict(perturbation, cell_type, x0):
        targets = list(doses_of(perturbation, screen))
        if screen.kind != "gene" or not set(targets) <= set(names):
            return None
        nodes = [names.index(target) for target in targets]
        return shifted(x0, -sum(mean[cell_type][P[i]] * B[:, i] for i in nodes))

    return predict
