"""What a run says of how far to trust its predictions: the table, the sentences, the figure."""

import os

import anndata
import numpy as np
import pandas as pd
import pytest

import evaluate
import sample
import screens
import train
from report import trust
from toy_data import simulate_screen

TINY = "--epochs 1 --width 16 --steps 3 --plan-cells 16 --grn coexpression --test TF001"


# ---- Novelty, on a screen made by hand -----------------------------------------------------------

GENES = [("A", "x"), ("B", "x"), ("A+B", "x"), ("A+C", "x"), ("A", "y"), ("D", "y")]
DRUGS = [("drug:1", "x"), ("drug:10", "x"), ("other:1", "y")]


@pytest.mark.parametrize(
    ("key", "status", "unseen"),
    [
        (("B", "x"), "seen here", []),
        (("A+B", "x"), "seen here", []),
        (("C", "x"), "seen elsewhere", []),  # only beside A
        (("B", "y"), "seen elsewhere", []),
        (("A+D", "x"), "seen elsewhere", []),
        (("E", "x"), "unseen", ["E"]),
        (("A+E", "x"), "unseen", ["E"]),
        (("E+F", "z"), "unseen", ["E", "F"]),
        (("A", "z"), "seen elsewhere", []),
    ],
)
def test_each_target_was_seen_here_or_elsewhere_or_never(key, status, unseen):
    """By itself in this cell type, in any condition, in none."""
    assert trust.target_status(key, GENES, "gene") == (status, unseen)


def test_another_dose_of_a_drug_is_the_same_target():
    """In that cell type and in another one."""
    assert trust.target_status(("drug:3", "x"), DRUGS, "drug") == ("seen here", [])
    assert trust.target_status(("drug:3", "y"), DRUGS, "drug") == ("seen elsewhere", [])


@pytest.mark.parametrize(
    ("key", "kind", "wanted", "shared", "ratio"),
    [
        (("A+B+E", "x"), "gene", ("A+B", "x"), 2, 1),  # most targets in common
        (("A", "z"), "gene", ("A", "x"), 1, 1),  # fewest others; then the smaller distance
        (("D", "x"), "gene", ("D", "y"), 1, 1),
        (("E", "y"), "gene", ("D", "y"), 0, np.nan),  # no common target: its own cell type
        (("drug:4", "y"), "drug", ("drug:10", "x"), 1, 0.4),  # the nearest dose
    ],
)
def test_the_nearest_training_condition(key, kind, wanted, shared, ratio):
    """By targets, then others, then dose, then cell type, then distance."""
    training = GENES if kind == "gene" else DRUGS
    far = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.45])[: len(training)]
    place, common, dose_ratio = trust.nearest(key, training, kind, far)
    assert (training[place], common) == (wanted, shared)
    assert dose_ratio == pytest.approx(ratio, nan_ok=True)


def test_conditions_targets_and_cell_types_are_left_out_in_turn():
    """Never all that is perturbed, and no controls."""
    keys = [("control", "x"), *GENES[:4], ("control", "y"), *GENES[4:]]
    groups = trust.groups_to_leave_out(dict(enumerate(keys)), "gene")
    assert groups[:6] == [[1], [2], [3], [4], [6], [7]]
    assert groups[6:] == [[1, 3, 4, 6], [2, 3], [1, 2, 3, 4], [6, 7]]
    twice = {0: ("control", "x"), 1: ("A", "x"), 2: ("A", "x")}
    assert trust.groups_to_leave_out(twice, "gene") == [[1], [2]]


# ---- Predictions that can hardly be told apart ---------------------------------------------------


def three(shift):
    """A table of three conditions of 100 cells whose means are 0, 0 and `shift` away; 50 genes."""
    means = np.zeros((3, 50))
    means[2, 0] = shift
    asked = [("A", "x"), ("B", "x"), ("C", "x")]
    lengths = {name: np.ones(3) for name in trust.PARTS}
    explained = means, np.ones((3, 50)), np.ones(3), means[:1], lengths
    return trust.trust_table(asked, [100] * 3, [("D", "x")], "gene", [], explained)


def test_two_copies_are_named_and_a_different_prediction_is_not():
    """Chance alone puts means of 100 cells 1 apart, in squares, with a deviation of 0.2."""
    lines = trust.sentences(three(2.0), each=False)
    assert len(lines) == 2 and "2 predictions can hardly be told apart" in lines[1]
    assert "A@x" in lines[1] and "B@x" in lines[1] and "C@x" not in lines[1]
    assert "3 predictions" in trust.sentences(three(0.1), each=False)[1]


def test_of_many_groups_of_copies_the_three_largest_are_named():
    """The others are counted."""
    others = {"a": "b", "c": "d", "e": "f", "g": "h", "i": "j; k"}
    groups = [[name, *others[name].split("; ")] for name in others]
    rows = [(one, "; ".join(m for m in group if m != one)) for group in groups for one in group]
    table = pd.DataFrame(rows, columns=["condition", "alike"]).assign(targets="unseen")
    lines = trust.sentences(table, each=False)
    assert len(lines) == 5 and lines[1].endswith("i, j, k")
    assert lines[4] == "warning: and 2 more such groups: column 'alike'"


def test_the_same_prediction_in_two_cell_types_needs_no_warning():
    """Cells of two types are not taken for each other."""
    table = three(2.0)
    table["cell_type"] = ["x", "y", "x"]
    others = trust.alike(table, np.zeros((3, 50)), np.ones((3, 50)))
    assert others.tolist() == ["C@x", "", "A@x"]


# ---- A run ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on a tiny screen with a target held out, trained, sampled and scored."""
    folder = tmp_path_factory.mktemp("run")
    simulate_screen(20, 6, 500, seed=3).write_h5ad(folder / "screen.h5ad")
    before = os.getcwd()
    os.chdir(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "sys.argv", ["train.py", "--data", "screen.h5ad", "--out", "run", *TINY.split()]
        )
        patch.setattr("report.training.draw_loss", lambda *_: None)
        patch.setattr("report.paths.draw_paths", lambda *_: None)
        patch.setattr("report.scores.draw_scores", lambda *_: None)
        train.main()
        yield folder / "run"
    os.chdir(before)


def test_the_table_stands_beside_the_cells_and_in_them(run):
    """The same in both, a row per held-out condition; and as many cells as were predicted."""
    table = pd.read_csv(run / "trust.csv", keep_default_na=False, na_values="")
    table[["unseen", "alike"]] = table[["unseen", "alike"]].fillna("")
    cells = anndata.read_h5ad(run / "predicted.h5ad")
    inside = cells.uns["trust"].reset_index(drop=True)
    pd.testing.assert_frame_equal(inside, table, check_dtype=False)
    assert (
        table["cells"].tolist()
        == cells.obs["condition"].value_counts()[table["condition"]].tolist()
    )


@pytest.mark.parametrize("change", [{"targets": "novel"}, {"expected": np.inf}, {"low": "x"}])
def test_a_damaged_table_is_refused(run, tmp_path, change):
    """One that says what there is not, or no number."""
    cells = anndata.read_h5ad(run / "predicted.h5ad")
    cells.uns["trust"] = cells.uns["trust"].assign(**change)
    cells.write_h5ad(tmp_path / "predicted.h5ad")
    with pytest.raises(screens.InputError, match="its table 'trust' is damaged; sample again"):
        trust.read_trust(str(tmp_path / "predicted.h5ad"))


def test_a_held_out_target_is_called_unseen_and_its_error_is_expected(run):
    """Shares add up to 1, the range is in order, left-out conditions are counted."""
    table = trust.read_trust(f"{run}/predicted.h5ad")
    assert (table["targets"] == "unseen").all() and (table["unseen"] == "TF001").all()
    assert table[list(trust.PARTS)].sum(axis=1).to_numpy() == pytest.approx(1)
    assert (
        (table["low"] < table["high"]) & (table["expected"] > 0) & (table["left_out"] > 4)
    ).all()


def test_the_evaluation_draws_expected_against_actual_errors(run):
    """The figure is there; rank correlation and range are those of the table and the distances."""
    assert (run / "figures" / "expected_error.png").exists()
    table = pd.DataFrame(
        {"condition": list("abcd"), "expected": [1, 2, 3, 4], "low": 0.15, "high": 0.3}
    )
    actual = {"a": 0.1, "b": 0.4, "c": 0.2, "d": 0.3}
    rows = [["e@x", "unseen", True, 0.1, 0.1, 0.2]] * 4
    rho, within = trust.draw_expected_error(str(run / "figure.png"), table, actual, rows)
    assert rho == pytest.approx(0.4)
    assert within == 2  # of a, b, c and d from 0.15 to 0.3


def test_two_conditions_have_no_rank_correlation(run, monkeypatch, capsys):
    """And neither the console nor the figure's title says "nan" of them."""
    titles = []
    monkeypatch.setattr(
        "matplotlib.axes.Axes.set_title", lambda self, said, **_: titles.append(said)
    )
    rows = [{"condition": name, "by_means": 0.2} for name in ("TF001@typeA", "TF001@typeB")]
    table = trust.read_trust(f"{run}/predicted.h5ad")
    evaluate.draw_expected(str(run / "figures"), str(run), table, rows)
    assert titles == ["held out", "training, left out"]
    assert capsys.readouterr().out == ""


def test_a_condition_that_is_asked_for_gets_a_sentence(run, capsys):
    """One that was trained on has no expected error; its table has a name of its own."""
    out = sample.sample_run(str(run), conditions=["TF001@typeA", "TF003@typeA"], cells=5)
    lines = capsys.readouterr().out.splitlines()
    [held_out] = [line for line in lines if line.startswith("TF001@typeA: TF001 never perturbed")]
    assert "expected E-distance" in held_out
    [known] = [line for line in lines if line.startswith("TF003@typeA: it was trained on")]
    assert "expected error unknown" in known
    assert out.endswith("asked.h5ad") and (run / "asked_trust.csv").exists()


def test_without_expected_shifts_only_novelty_is_said(run):
    """`--paper` and `--no-shifts` have no mixed model to ask."""
    table = trust.trust_table([("A", "x")], [10], [("B", "x")], "gene", [])
    assert "expected" not in table and table["targets"].tolist() == ["unseen"]
    assert trust.sentences(table, each=True) == ["A@x: A never perturbed in training"]
