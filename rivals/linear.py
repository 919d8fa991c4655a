"""Linear: ridge regression between embeddings of genes and of perturbations."""

import numpy as np

import screens
from rivals.shifts import doses_of, shifted
from screens.statistics import mean_of


def linear(screen, components=10, ridge=0.1):
    """Predict shift = G K p + b (Ahlmann-Eltze et al. 2025).

    G (N, components): the genes' principal scores in the training condition means; p: a target's
    own row of it (summed over several); b (N,): the mean of the shifts Y (N, Q);
    K = (G'G + ridge I)^-1 G' (Y - b) P' (P P' + ridge I)^-1 with P (components, Q).
    Applies where every target is a measured gene, and two such were trained on.
    """
    shifts = screens.mean_shifts(screen)
    place = {gene: i for i, gene in enumerate(screen.genes)}

    def measured(perturbation):
        return screen.kind == "gene" and set(doses_of(perturbation, screen)) <= set(place)

    def embed(perturbation):
        return sum(G[place[target]] for target in doses_of(perturbation, screen))

    known = [key for key in shifts if measured(key[0])]
    if len(known) >= 2:
        means = np.stack([mean_of(screen, screen.groups[key]) for key in known], 1)
        means = means.astype(np.float64)
        U, scale, _ = np.linalg.svd(means - means.mean(0), full_matrices=False)
        G = (U * scale)[:, :components]
        P = np.stack([embed(perturbation) for perturbation, _ in known], 1)
        Y = np.stack([shifts[key] for key in known], 1)
        b = Y.mean(1)
        penalty = ridge * np.eye(G.shape[1])
        right = G.T @ (Y - b[:, None]) @ P.T
        K = np.linalg.solve(G.T @ G + penalty, right) @ np.linalg.inv(P @ P.T + penalty)

    def predict(perturbation, cell_type, x0):
        if len(known) < 2 or not measured(perturbation):
            return None
        return shifted(x0, G @ K @ embed(perturbation) + b)

    return predict
