"""Which genes a prediction changes: the table beside the cells, and its words."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from examples import screen_with
from report import genes


def cells_of(n, seed, shift=0.0):
    """Random log1p cells (n, 12); gene 0 is never on, gene 1 always at 1, and gene 2 often off."""
    rng = np.random.default_rng(seed)
    X = rng.gamma(2.0, 0.7, (n, 12)) * (rng.random((n, 12)) < 0.6)
    X[:, 3:] += shift * np.linspace(-1, 1, 9) * (X[:, 3:] > 0)
    X[:, 2] *= rng.random(n) < 0.2
    X[:, 0] = 0
    X[:, 1] = 1
    return np.maximum(X, 0).astype(np.float32)


CONTROLS = cells_of(60, 0)
PREDICTED = cells_of(35, 1, shift=0.8)
MEASURED = cells_of(25, 2, shift=0.6)
PREDICTED[:, 2] = 0
NAMES = np.array([f"G{i}" for i in range(12)])


def table_of(predicted, controls, measured=None):
    """The table of dense cells, one row a gene, in the genes' own order."""
    described = [genes.describe_cells(sparse.csr_matrix(X)) for X in (predicted, controls)]
    if measured is not None:
        described.append(genes.describe_cells(sparse.csr_matrix(measured)))
    return genes.gene_table(NAMES, *described)


def adjusted(p):
    """Benjamini and Hochberg's adjusted p-values, one by one: min over q >= p of q N / rank(q)."""
    return np.array([min(1, min(q * len(p) / (p <= q).sum() for q in p[p >= own])) for own in p])


@pytest.mark.filterwarnings("ignore:Precision loss")
def test_order_and_score_are_those_of_scanpys_t_test():
    """Welch's, falling; a gene without spread has score 0. Independent of how it is computed."""
    table = table_of(PREDICTED, CONTROLS)
    with np.errstate(invalid="ignore", divide="ignore"):
        t, p = stats.ttest_ind(
            PREDICTED.astype(np.float64), CONTROLS.astype(np.float64), equal_var=False
        )
    t, p = np.nan_to_num(t), np.nan_to_num(p, nan=1.0)
    assert table["gene"].tolist() == NAMES[np.argsort(-t, kind="stable")].tolist()
    mine = table.set_index("gene").loc[NAMES]
    assert np.allclose(mine["score"], t, rtol=1e-9)
    assert np.allclose(mine["p"], p, rtol=1e-9)


def test_fold_changes_are_scanpys():
    """log2 of expm1 of the means of log1p, with 1e-9 added to both."""
    mine = table_of(PREDICTED, CONTROLS).set_index("gene").loc[NAMES]
    means = [X.astype(np.float64).mean(0) for X in (PREDICTED, CONTROLS)]
    above, below = [np.exp(mean) - 1 + 1e-9 for mean in means]
    assert np.allclose(mine["log2_fold_change"], np.log(above / below) / np.log(2))
    assert mine["log2_fold_change"]["G2"] < -25 and mine["log2_fold_change"]["G0"] == 0


def test_p_values_are_adjusted_over_the_genes():
    """Benjamini and Hochberg 1995."""
    table = table_of(PREDICTED, CONTROLS)
    assert np.allclose(table["p_adjusted"], adjusted(table["p"].to_numpy()))
    assert (table["p_adjusted"] > table["p"]).any()


def test_fractions_are_of_cells_that_express_the_gene():
    mine = table_of(PREDICTED, CONTROLS).set_index("gene").loc[NAMES]
    expected = (PREDICTED > 0).mean(0) - (CONTROLS > 0).mean(0)
    assert np.allclose(mine["fraction_change"], expected)
    assert mine["fraction_change"]["G2"] < -0.05


def test_measured_columns_are_what_measured_cells_would_have_as_predicted_ones():
    """And the predicted ones do not change beside them."""
    both = table_of(PREDICTED, CONTROLS, MEASURED).set_index("gene")
    alone = table_of(PREDICTED, CONTROLS).set_index("gene")
    truth = table_of(MEASURED, CONTROLS).set_index("gene").loc[both.index]
    assert both[alone.columns].equals(alone)
    assert both["measured_mean"].equals(truth["predicted_mean"].rename("measured_mean"))
    for name in ("log2_fold_change", "fraction_change", "p_adjusted"):
        assert (both[f"measured_{name}"] == truth[name]).all()


def screen_of_two_types():
    """A measured condition A in t and none in u, whose controls express all genes more."""
    X = np.concatenate([CONTROLS, MEASURED, CONTROLS + 1])
    perturbation = ["control"] * 60 + ["A"] * 25 + ["control"] * 60
    return screen_with(X, perturbation, ["t"] * 85 + ["u"] * 60, NAMES)


def test_a_condition_is_compared_with_the_controls_of_its_own_cell_type():
    """What nobody measured has no measured numbers."""
    predicted = sparse.csr_matrix(PREDICTED)
    table = genes.all_tables(screen_of_two_types(), [("A", "t", predicted), ("A", "u", predicted)])
    in_t, in_u = [rows for _, rows in table.groupby("condition", sort=False)]
    expected = table_of(PREDICTED, CONTROLS, MEASURED)
    assert list(table["condition"].unique()) == ["A@t", "A@u"]
    pd.testing.assert_frame_equal(
        in_t.drop(columns="condition").reset_index(drop=True), expected.reset_index(drop=True)
    )
    assert in_u["measured_mean"].isna().all() and (in_u["control_mean"] >= 1).all()


def test_cells_are_described_in_blocks_as_at_once(monkeypatch):
    """A large screen's controls do not fit in memory."""
    monkeypatch.setattr("screens.files.BLOCK", 7)
    n, *described = genes.describe_cells(sparse.csr_matrix(CONTROLS), np.arange(50))
    some = CONTROLS[:50].astype(np.float64)
    assert n == 50
    for mine, expected in zip(
        described, (some.mean(0), some.var(0, ddof=1), (some > 0).mean(0)), strict=True
    ):
        assert np.allclose(mine, expected)


def test_a_single_cell_has_means_and_no_test():
    """Its variance is not known."""
    table = table_of(PREDICTED[:1], CONTROLS)
    assert (table["score"] == 0).all() and (table["p_adjusted"] == 1).all()
    assert np.isfinite(table["log2_fold_change"]).all()


def small_table(scores, p):
    """A table of one condition, sorted by score."""
    names = [f"G{i}" for i in range(len(scores))]
    return pd.DataFrame({"condition": "A@t", "gene": names, "score": scores, "p_adjusted": p})


WORDS = {
    "both": ([3.0, 2.0, 1.0, -2.0, -4.0], "A@t: up G0, G1; down G4, G3"),
    "only what is sure": ([9.0, 0.0, -1.0], "A@t: up G0; down none"),
}


@pytest.mark.parametrize("case", WORDS)
def test_in_words_the_surest_come_first(case):
    """Those of an adjusted p below 0.05."""
    scores, words = WORDS[case]
    table = small_table(scores, np.where(np.abs(scores) > 1.5, 0.01, 0.2))
    assert genes.in_words(table, 2) == [words]
