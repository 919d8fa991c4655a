"""Small wrong edits of what says how far to trust a prediction."""

MUTANTS = {
    "maths/test_trust.py": [
        (
            "departures.py",
            "surprise = (covariance @ weights[:, out, None])[..., 0]",
            "surprise = weights[:, out]",
            "a condition that is left out is still half there",
        ),
        (
            "departures.py",
            "covariance.diagonal(dim1=1, dim2=2) - V[rows][:, out]",
            "covariance.diagonal(dim1=1, dim2=2)",
            "the error of the measurement counts as doubt of the prediction",
        ),
        (
            "departures.py",
            " + V * encoder.weights[some]  # as",
            "  # as",
            "what was fitted is taken for what was measured",
        ),
        (
            "departures.py",
            "FLAT**2 * counted[:, 0] + squared @ of_itself - known",
            "FLAT**2 * counted[:, 0] + squared @ of_itself",
            "nothing that was measured makes a prediction surer",
        ),
        (
            "departures.py",
            "c = FLAT**2 * counted * of_type +",
            "c = FLAT**2 * of_type +",
            "controls that were not fitted are as well known as if they had been",
        ),
        (
            "departures.py",
            '"likeness": said([0, 1, 4], (1 - same_type) * same_target)',
            '"likeness": said([0, 1, 4], same_target)',
            "memory in the same cell type counts twice",
        ),
        (
            "train.py",
            " - noise[out].sum(1) / cells[out, 0]\n",
            "\n",
            "chance of few cells counts as an error of the prediction",
        ),
        (
            "report/trust.py",
            "(np.sqrt(2 * variance + squared) -",
            "(np.sqrt(variance + squared) -",
            "cells of two populations are as near as to their means",
        ),
        (
            "report/trust.py",
            "2 * (np.asarray(variances) ** 2).sum()",
            "2 * np.asarray(variances).sum()",
            "the chance of a squared distance from the genes' variances, not their squares",
        ),
        (
            "report/trust.py",
            "            fitted[rows] *= factor\n",
            "",
            "a factor for the cell type repeats that for the kind of question",
        ),
        (
            "report/trust.py",
            "np.sqrt(ridge) * np.eye(2)",
            "1e6 * np.eye(2)",
            "the error is a share of the change, whatever the left-out conditions show",
        ),
    ],
    "program/test_trust.py": [
        (
            "report/trust.py",
            "if len(targets) == 1 and cell_type == key[1]:",
            "if cell_type == key[1]:",
            "a target seen only in a pair counts as seen by itself",
        ),
        (
            "report/trust.py",
            "if len(targets) == 1 and cell_type == key[1]:",
            "if len(targets) == 1:",
            "a target seen in another cell type counts as seen here",
        ),
        (
            "report/trust.py",
            "(*screens.unlikeness(key, other, kind), distance)",
            "(*screens.unlikeness(key, other, kind)[:3], distance)",
            "a condition of another cell type is nearest",
        ),
        (
            "report/trust.py",
            'within = (held_out["low"] <= measured) & (measured <= held_out["high"])',
            'within = held_out["low"] <= measured',
            "an error above its range counts as in it",
        ),
        (
            "report/trust.py",
            'fcluster(tree, 1, "distance")',
            'fcluster(tree, 1000, "distance")',
            "different predictions are said to be alike",
        ),
        (
            "report/trust.py",
            '    table.loc[table["targets"] == "in training", EXPECTED] = np.nan\n',
            "",
            "a condition that was trained on gets the error of one that was not",
        ),
        (
            "sample.py",
            "        if perturbation != CONTROL and not held_out\n",
            "        if perturbation != CONTROL\n",
            "held-out conditions count as trained on",
        ),
        (
            "evaluate.py",
            "        if not np.isnan(rho):\n",
            "        if True:\n",
            "a rank correlation of two conditions is nan",
        ),
    ],
}
