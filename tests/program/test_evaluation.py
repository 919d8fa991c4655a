"""Scoring a screen: what the table holds, what it must not see, and the files that are written."""

import json
import sys

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

import evaluate
import screens
from evaluate import (
    DISTANCES,
    e_distance,
    emd,
    gamma_by_median,
    mmd2,
    read_predicted,
    score,
    score_condition,
    summarise,
)
from examples import screen_of, screen_with
from report import tables
from toy_data import simulate_screen


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    """A simulated screen with held-out genes."""
    path = str(tmp_path_factory.mktemp("screen") / "s.h5ad")
    simulate_screen(60, 12, 2400, seed=3).write_h5ad(path)
    return screens.prepare(path, fraction=0.4)


def noise_screen(groups, seed=0):
    """A screen of so many cells {(perturbation, cell type): n}, all alike but for noise."""
    rng = np.random.default_rng(seed)
    labels = [key for key, n in groups.items() for _ in range(n)]
    level = np.maximum(rng.normal(2, 1, (len(labels), 12)), 0)
    X = level * (rng.random((len(labels), 12)) < 0.7)
    return screen_with(X, [key[0] for key in labels], [key[1] for key in labels])


# ---- One condition -------------------------------------------------------------------------------


def test_a_methods_scores_do_not_depend_on_what_else_is_in_the_table(rng):
    """Another method before it takes none of its random numbers."""
    controls = cells_around(rng, 60, 0)
    measured = cells_around(rng, 60, 1)
    model = cells_around(rng, 60, 1)
    alone, _ = score_condition(measured, controls, {"model": model})
    beside, _ = score_condition(measured, controls, {"other": controls, "model": model})
    for metric in DISTANCES:
        assert beside["model"][metric] == alone["model"][metric]


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("genes", ["all", "DE20", "DE40"])
def test_the_table_holds_the_distances_of_each_gene_set_alone(monkeypatch, rng, genes, squared):
    monkeypatch.setattr(evaluate, "SPLITS", 1)
    controls = np.maximum(0, rng.normal(size=(90, 60)))
    measured = np.maximum(0, rng.normal(size=(40, 60)) + np.linspace(0, 2, 60))
    model = np.maximum(0, rng.normal(size=(20, 60)) + np.linspace(0, 1, 60))
    order = rng.permutation(40)
    scores, ranked = score_condition(
        measured, controls, {"model": model}, orders=[order], squared=squared
    )
    columns = {"all": ranked, "DE20": ranked[:20], "DE40": ranked[:40]}[genes]
    x = model[:, columns]
    y = measured[order[:20]][:, columns]
    expected = {
        "E-distance": e_distance(x, y, squared),
        "EMD": emd(x, y),
        "MMD2": mmd2(x, y, gamma_by_median(controls[:, columns])),
    }
    found = {metric: scores["model"][metric][genes] for metric in expected}
    assert found == pytest.approx(expected)


def cells_around(rng, n, effect):
    """Cells (n, 30) of a condition that changes the level of some genes; 60 % of genes are on."""
    level = np.maximum(rng.normal(2, 0.6, size=(n, 30)) + effect, 0.1)
    return level * (rng.random((n, 30)) < 0.6)


@pytest.fixture(scope="module")
def known():
    """Scores of good and bad predictions of a condition that raises six genes, and their ranks."""
    rng = np.random.default_rng(0)
    effect = np.r_[np.full(6, 2.0), np.zeros(24)]
    measured = cells_around(rng, 120, effect)
    controls = cells_around(rng, 200, 0)
    methods = {
        "control": controls,
        "twin": cells_around(rng, 120, effect),
        "opposite": cells_around(rng, 120, -effect),
        "mean": np.tile(measured.mean(0), (60, 1)),
        "shuffled": measured[:, rng.permutation(30)],
        "absent": None,
    }
    return score_condition(measured, controls, methods)


def test_the_genes_that_change_most_come_first(known):
    _, ranked = known
    assert set(ranked[:6]) == set(range(6))


def test_other_cells_of_the_condition_score_as_the_floor_does(known):
    """The floor is no nearer than other real cells can be, by any gene set."""
    scores, _ = known
    ratios = [
        scores["floor"]["EMD"][genes] / scores["twin"]["EMD"][genes]
        for genes in ("all", "DE20", "DE40")
    ]
    assert min(ratios) > 0.85 and max(ratios) < 1.2


@pytest.mark.parametrize("name", ["twin", "floor"])
def test_real_cells_of_the_condition_are_nearer_than_the_controls(known, name):
    scores, _ = known
    energy = scores[name]["E-distance"]["all"]
    assert energy < 0.5 * scores["control"]["E-distance"]["all"]


@pytest.mark.parametrize("name", ["opposite", "mean", "shuffled"])
def test_a_bad_prediction_is_farther_than_the_controls(known, name):
    """The opposite effect, the repeated mean, and measured cells with their genes exchanged."""
    scores, _ = known
    assert scores[name]["E-distance"]["all"] > scores["control"]["E-distance"]["all"]


def test_a_method_that_does_not_apply_has_no_scores(known):
    scores, _ = known
    assert "absent" not in scores


# ---- A whole screen ------------------------------------------------------------------------------


def test_one_condition_in_a_cell_type_is_scored_without_discrimination():
    """As stimulated PBMC: there is nothing to tell it apart from."""
    groups = {(p, t): 20 for p in ("control", "A") for t in ("x", "y")}
    screen = noise_screen({**groups, ("B", "y"): 20})
    predicted = {key: screen.X[screen.groups[key]] for key in (("A", "x"), ("A", "y"))}
    in_x, in_y = score(screen, predicted)
    assert np.isnan(in_x["scores"]["model"]["discrimination"]["all"])
    assert 0 <= in_y["scores"]["model"]["discrimination"]["all"] <= 1


@pytest.mark.parametrize("n", [400, 12])
def test_few_controls_or_few_predicted_cells_bias_no_distance(n):
    """Nothing happens in this screen.

    Whoever is scarce, all are scored on as many cells, none of them twice, and no gap opens.
    """
    screen = noise_screen({("control", "x"): 30, ("A", "x"): 400, ("B", "x"): 30})
    (row,) = score(screen, {("A", "x"): noise_screen({("A", "x"): n}, seed=1).X})
    learnt_nothing = [row["scores"][name] for name in ("control", "model", "floor")]
    energy = [scores["E-distance"]["all"] for scores in learnt_nothing]
    transport = [scores["EMD"]["all"] for scores in learnt_nothing]
    assert max(energy) < 0.5
    assert max(transport) < 1.4 * min(transport)


@pytest.mark.parametrize("given", ["training", "reference"])
def test_nothing_that_scoring_learns_comes_from_held_out_cells(screen, monkeypatch, given):
    """Neither the kernel's width nor the mean of the training perturbations changes with them."""
    scored = sorted(screen.held_out)[0]
    other = sorted(screen.held_out)[-1]
    asked = []

    def instead(measured, controls, methods, seed, condition, **options):
        asked.append(options[given])
        return {"control": {}}, np.arange(60)

    monkeypatch.setattr(evaluate, "score_condition", instead)
    score(screen, {scored: screen.X[:10]})
    changed = screen.X.tolil()
    changed[screen.groups[other]] = 50
    monkeypatch.setattr(screen, "X", changed.tocsr())
    score(screen, {scored: screen.X[:10]})
    assert np.array_equal(asked[0], asked[1])


def test_conditions_with_too_few_cells_are_named_and_not_scored(capsys):
    screen = noise_screen({("control", "x"): 20, ("A", "x"): 20, ("B", "x"): 3})
    predicted = {("A", "x"): screen.X[:9], ("B", "x"): screen.X[:9]}
    assert [row["condition"] for row in score(screen, predicted)] == ["A@x"]
    assert "fewer than 4 measured, 2 control or 2 predicted cells: B@x" in capsys.readouterr().out
    with pytest.raises(screens.InputError, match="there is nothing to score"):
        score(screen, {("B", "x"): screen.X[:9]})


def copies(screen, kind, rng):
    """Predictions of a kind for all held-out conditions, made from measured cells."""
    keys = sorted(screen.held_out)
    others = dict(zip(keys, keys[3:] + keys[:3], strict=True))
    predicted = {}
    for key in keys:
        measured = screen.X[screen.groups[key]]
        if kind == "twin":
            predicted[key] = measured
        if kind == "controls":
            predicted[key] = screen.X[rng.choice(screen.controls(key[1]), 80)]
        if kind == "other condition":
            predicted[key] = screen.X[rng.choice(screen.groups[others[key]], 80)]
        if kind == "mean":
            predicted[key] = sparse.csr_matrix(np.tile(measured.toarray().mean(0), (80, 1)))
        if kind == "shuffled":
            predicted[key] = measured[:, rng.permutation(60)]
    return predicted


BAD = ["controls", "other condition", "mean", "shuffled"]


@pytest.fixture(scope="module")
def summaries(screen):
    """{kind: summary} of predictions that are good or bad by construction."""
    rng = np.random.default_rng(0)
    return {kind: summarise(score(screen, copies(screen, kind, rng))) for kind in ("twin", *BAD)}


def best_rival(summary, metric):
    """The largest gap that a rival closes."""
    rivals = [name for name in summary if name not in ("model", *evaluate.REFERENCES)]
    return max(summary[name][metric]["all"]["gap_closed"] for name in rivals)


@pytest.mark.parametrize("metric", ["E-distance", "EMD", "MMD2"])
def test_the_conditions_own_cells_come_out_on_top(summaries, metric):
    twin = summaries["twin"]["model"][metric]["all"]["gap_closed"]
    assert best_rival(summaries["twin"], metric) < 0.9 < twin


@pytest.mark.parametrize("metric", ["E-distance", "EMD", "MMD2"])
@pytest.mark.parametrize("kind", BAD)
def test_the_table_ranks_bad_predictions_below_the_best_rival(summaries, metric, kind):
    """Controls, cells of another condition, the repeated mean, and shuffled genes."""
    gap = summaries[kind]["model"][metric]["all"]["gap_closed"]
    assert gap < best_rival(summaries["twin"], metric)


def test_discrimination_tells_the_conditions_own_cells_from_controls(summaries):
    def mean(kind):
        return summaries[kind]["model"]["discrimination"]["all"]["mean"]

    assert mean("twin") > 0.95
    assert mean("controls") < 0.6


def test_a_summary_counts_the_conditions_in_which_the_model_is_better(screen, summaries):
    twin = summaries["twin"]["linear knock-out"]["E-distance"]["all"]
    shuffled = summaries["shuffled"]["control"]["E-distance"]["all"]
    assert twin["beaten_in"] == len(screen.held_out)
    assert shuffled["beaten_in"] == 0
    assert (twin["unit"], twin["units"]) == ("perturbation", len({p for p, _ in screen.held_out}))


# ---- What the metrics are worth on a screen ------------------------------------------------------


@pytest.fixture(scope="module")
def strong_and_idle():
    """Rows of a screen in which A and B each move three genes of their own and C does nothing."""
    means = {("control", "x"): np.full(12, 3.0)}
    for name, moved in (
        ("A", slice(0, 3)),
        ("B", slice(3, 6)),
        ("C", slice(0)),
        ("D", slice(6, 9)),
    ):
        means[name, "x"] = means["control", "x"].copy()
        means[name, "x"][moved] += 1
    screen = screen_of(means, 40, 0.5, seed=1)
    screen.held_out = {(name, "x") for name in "ABC"}
    return score(screen, {key: screen.X[screen.controls("x")] for key in screen.held_out})


def test_a_perturbation_that_does_nothing_is_marked(strong_and_idle):
    p = [row["p_anything"] for row in strong_and_idle]
    assert [row["nothing"] for row in strong_and_idle] == [False, False, True]
    assert p[:2] == pytest.approx([1.5 / 1000] * 2)  # of three, the two smallest at 1 / 1000
    assert p[2] > 0.05


def test_the_gap_is_shown_with_and_without_conditions_that_do_nothing(strong_and_idle):
    shown = evaluate.tables_of(summarise(strong_and_idle), strong_and_idle)
    without = next(table for table in shown if "that do something, 2 of 3" in table.title)
    gap = summarise(strong_and_idle[:2])["perturbed mean"]["EMD"]["DE20"]["gap_closed"]
    assert ["perturbed mean", f"{gap:.3f}"] == [without.lines[1][0], without.lines[1][4]]
    assert "adjusted p > 0.05): C@x" in shown[0].title


def test_where_all_do_something_there_is_one_summary(strong_and_idle):
    shown = evaluate.tables_of(summarise(strong_and_idle[:2]), strong_and_idle[:2])
    assert not any("that do something" in table.title for table in shown)
    assert "adjusted p" not in shown[0].title


def test_the_positive_control_is_the_floor_with_a_better_mean_and_no_rival(strong_and_idle):
    """To the digit in the metrics of cells."""
    summary = summarise(strong_and_idle)
    duplicate, floor = summary[evaluate.DUPLICATE], summary["floor"]
    assert duplicate["E-distance"] == floor["E-distance"]
    assert duplicate["WMSE"]["all"]["mean"] < 0.1 * summary["perturbed mean"]["WMSE"]["all"]["mean"]
    assert "beaten_in" not in duplicate["WMSE"]["all"]


def test_a_range_is_that_of_the_means_over_conditions():
    rows = [row_of(1.0, 0.4), row_of(0.8, 0.3), row_of(0.6, 0.3)]
    for row, negative, positive in zip(rows, (0.8, 0.6, 0.4), (0.2, 0.7, 0.3), strict=True):
        row["scores"]["perturbed mean"] = {"EMD": {"all": negative}}
        row["scores"][evaluate.DUPLICATE] = {"EMD": {"all": positive}}
    found = evaluate.dynamic_ranges(rows)
    assert found["EMD"]["all"] == pytest.approx({"range": (0.6 - 0.4) / 0.6, "told": 2 / 3})
    assert evaluate.dynamic_ranges([row_of(1.0, 0.4)]) == {}


def test_without_other_perturbations_the_floor_is_the_positive_control():
    row = row_of(1.0, 0.4)
    row["scores"]["perturbed mean"] = {"E-distance": {"all": 0.5}}
    found = evaluate.dynamic_ranges([row])["E-distance"]["all"]
    assert found == pytest.approx({"range": 0.8, "told": 1})


def test_the_gap_is_also_closed_from_the_perturbed_mean(rows):
    for row in rows:
        row["scores"]["perturbed mean"] = {"E-distance": {"all": 0.6}}
    summary = summarise(rows)
    energy = summary["model"]["E-distance"]["all"]
    assert energy["gap_closed_from_mean"] == pytest.approx(1 - (energy["mean"] - 0.1) / 0.5)
    assert summary["perturbed mean"]["E-distance"]["all"]["gap_closed_from_mean"] == 0


@pytest.mark.parametrize(("r", "ceiling"), [((0.5, -0.1), 2 / 3), ((-0.5, 0.0), np.nan)])
def test_the_ceiling_is_missing_where_halves_do_not_correlate(r, ceiling):
    rows = [row_of(1.0, 0.4), row_of(0.8, 0.3)]
    for row, of_halves in zip(rows, r, strict=True):
        row["scores"]["floor"]["Pearson delta"] = {"all": of_halves}
    entry = summarise(rows)["floor"]["Pearson delta"]["all"]
    assert entry["ceiling"] == pytest.approx(ceiling, nan_ok=True)


def test_weights_compare_a_condition_with_the_cells_of_all_others_of_its_type(screen):
    """The moments from sums are those of the cells themselves."""
    keys = [key for key in sorted(screen.groups) if key[0] != "control"]
    key = keys[0]
    sums = {key: screens.sums_of_cells(screen.X, screen.groups[key]) for key in keys}
    others = [screen.groups[other] for other in keys if other[1] == key[1] and other != key]
    cells = screen.dense(np.concatenate(others)).astype(float)
    mean, sd, n = evaluate.moments_of_rest(sums, key)
    assert np.allclose(mean, cells.mean(0))
    assert np.allclose(sd, cells.std(0, ddof=1))
    assert n == len(cells)


def test_the_reference_weighs_perturbations_alike_not_cells(monkeypatch):
    """As Systema's: the mean of the training perturbations' means."""
    screen = noise_screen({("control", "x"): 30, ("A", "x"): 90, ("B", "x"): 9, ("C", "x"): 20})
    screen.held_out = {("C", "x")}
    asked = []

    def instead(measured, controls, methods, seed, condition, **options):
        asked.append(options["reference"])
        return {"control": {}}, np.arange(12)

    monkeypatch.setattr(evaluate, "score_condition", instead)
    score(screen, {("C", "x"): screen.X[:10]})
    means = [screen.dense(screen.groups[name, "x"]).mean(0) for name in "AB"]
    assert np.allclose(asked[0], np.mean(means, 0), atol=1e-6)


def test_the_target_gene_is_the_perturbations_own(screen):
    """Of a drug there is none, even if it is named as a gene is."""
    gene = str(screen.genes[7])
    drugs = screen_with(np.ones((2, 3)), ["control", "A:1"], ["x"] * 2, ["A", "B", "C"], "drug")
    assert evaluate.target_columns(screen, f"{gene}+nobody").tolist() == [7]
    assert len(evaluate.target_columns(drugs, "A:1")) == 0


# ---- The summary ---------------------------------------------------------------------------------


def row_of(control, model, floor=0.1, **more):
    """A row of a scoring: every method's E-distance; its discrimination is one less that."""
    scores = {}
    for name, value in {"control": control, "model": model, "floor": floor, **more}.items():
        scores[name] = {"E-distance": {"all": value}, "discrimination": {"all": 1 - value}}
    return {"condition": "A@x", "cells": 9, "top_genes": [], "scores": scores}


@pytest.fixture
def rows():
    return [
        row_of(1.0, 0.4),
        row_of(0.8, 0.3),
        row_of(0.6, 0.7),
        row_of(0.5, 0.2, additive=0.1),
        row_of(0.2, 0.2),
    ]


def test_the_gap_closed_is_that_of_the_means(rows):
    """A weak perturbation, whose own gap is a division by almost nothing, weighs what it should."""
    energy = summarise(rows)["model"]["E-distance"]["all"]
    model = np.mean([0.4, 0.3, 0.7, 0.2, 0.2])
    control = np.mean([1, 0.8, 0.6, 0.5, 0.2])
    assert energy["gap_closed"] == pytest.approx(1 - (model - 0.1) / (control - 0.1))
    assert energy["mean"] == pytest.approx(model)
    assert energy["sd"] == pytest.approx(np.std([0.4, 0.3, 0.7, 0.2, 0.2]))


def test_a_tie_takes_no_side_in_the_sign_test(rows):
    control = summarise(rows)["control"]["E-distance"]["all"]
    assert control["beaten_in"] == 3
    assert control["p"] == pytest.approx(stats.binomtest(3, 4).pvalue)


def test_an_undefined_score_takes_no_side_in_the_sign_test():
    rows = [row_of(1.0, 0.4) for _ in range(6)]
    for row in rows[2:]:
        row["scores"]["model"]["discrimination"]["all"] = float("nan")
    control = summarise(rows)["control"]["discrimination"]["all"]
    assert control["beaten_in"] == 2
    assert control["p"] == pytest.approx(stats.binomtest(2, 2).pvalue)


def test_where_more_is_better_the_larger_score_wins(rows):
    assert summarise(rows)["control"]["discrimination"]["all"]["beaten_in"] == 3


def test_the_model_and_the_floor_are_not_tested_against_the_model(rows):
    summary = summarise(rows)
    assert "p" not in summary["model"]["E-distance"]["all"]
    assert "p" not in summary["floor"]["E-distance"]["all"]


def test_a_rival_is_summed_up_over_the_conditions_that_it_applies_to(rows):
    alone = summarise(rows)["additive"]["E-distance"]["all"]
    assert alone["conditions"] == 1
    assert alone["beaten_in"] == 0
    assert alone["gap_closed"] == pytest.approx(1)


# ---- Tables --------------------------------------------------------------------------------------


@pytest.fixture
def two_rows():
    return [row_of(1.0, 0.4), row_of(0.8, 0.3, additive=0.25)]


@pytest.mark.parametrize(
    "text",
    [
        "0.900 ± 0.100",
        "0.350 ± 0.050",
        "0.250 ± 0.000",
        "additive: the 1 that it applies to",
        "0.596 ± 0.121",
        "paper, Adamson",
        "2/2, 0.5",
    ],
)
def test_text_and_markdown_show_the_same_numbers(two_rows, text):
    """0.596 is the paper's E-distance on Adamson."""
    shown = tables.make_tables(summarise(two_rows), two_rows, "Adamson")
    assert text in tables.as_text(shown)
    assert text in tables.as_markdown(shown)


def test_what_does_not_apply_is_left_blank(two_rows):
    shown = tables.make_tables(summarise(two_rows), two_rows)
    each = next(table.lines for table in shown if table.title == "each condition")
    assert ["additive", "", "0.250"] in each
    assert all(len(line) == len(table.header) for table in shown for line in table.lines)


RANGES = {"E-distance": {"all": {"range": 0.43, "told": 0.9}}}


@pytest.mark.parametrize("form", [tables.as_text, tables.as_markdown])
def test_ranges_stand_over_the_columns_and_a_metric_without_is_in_parentheses(two_rows, form):
    """Discrimination has none, and E-distance has some."""
    shown = tables.make_tables(summarise(two_rows), two_rows, ranges=RANGES)
    lines = form(shown[:2]).splitlines()
    at = [i for i, line in enumerate(lines) if "dynamic range" in line and "0.43" in line]
    assert len(at) == 1
    assert "E all" in "".join(lines[at[0] - 2 : at[0] + 2])
    assert "(discrim. all)" in form(shown) and "(E all)" not in form(shown)


@pytest.mark.parametrize(("told", "has"), [(0.75, True), (0.7, False), (np.nan, False)])
def test_a_metric_has_range_if_it_ranks_the_controls_right_in_three_of_four(told, has):
    assert tables.has_range({"range": 0.5, "told": told}) == has


def test_the_papers_numbers_are_shown_below_its_own_data_only(two_rows):
    shown = tables.make_tables(summarise(two_rows), two_rows)
    assert "paper" not in tables.as_text(shown)


@pytest.mark.parametrize(
    ("kind", "names", "types", "expected"),
    [
        ("gene", ["TMEM167A", "HSD17B12", "CREB1", "XBP1"], ["K562(?)"], "Adamson"),
        ("gene", ["TMEM167A", "HSD17B12", "CREB1"], ["RPE1"], None),
        ("gene", ["TMEM167A", "HSD17B12"], ["K562"], None),
        ("drug", [f"d{i}:0.1" for i in range(188)], ["A549", "K562", "MCF7"], "sci-Plex3"),
        ("drug", [f"d{i}:0.1" for i in range(20)], ["A549", "K562", "MCF7"], None),
    ],
)
def test_the_papers_data_sets_are_recognised_by_what_they_hold(kind, names, types, expected):
    labels = [(name, cell_type) for name in ("control", *names) for cell_type in types]
    perturbation, cell_type = zip(*labels, strict=True)
    screen = screen_with(np.ones((len(labels), 2)), perturbation, cell_type, kind=kind)
    assert tables.paper_of(screen) == expected


# ---- Files in ------------------------------------------------------------------------------------


@pytest.fixture
def truth(tmp_path):
    """A simulated screen in the folder: its path and its cells."""
    path = str(tmp_path / "truth.h5ad")
    simulate_screen(30, 4, 600, seed=0).write_h5ad(path)
    return path, anndata.read_h5ad(path)


def perturbed_names(truth):
    return sorted(set(truth.obs["condition"]) - {"ctrl"})


def relabelled(cells, condition, path):
    """Write cells as another model's prediction of a condition."""
    theirs = cells.copy()
    labels = condition if isinstance(condition, str) else condition.astype(str)
    theirs.obs = theirs.obs[["cell_type"]].assign(perturbation=labels)
    theirs.obs["perturbation"] = theirs.obs["perturbation"].str.removesuffix("+ctrl")
    theirs.write_h5ad(path)
    return str(path)


def test_predicted_genes_are_matched_by_name_whatever_their_order(truth, tmp_path, rng):
    """A file whose columns are shuffled is the same prediction."""
    path, cells = truth
    screen = screens.prepare(path)
    perturbed = cells[(cells.obs["control"] == 0).to_numpy(), rng.permutation(30)]
    theirs = relabelled(perturbed, perturbed.obs["condition"], tmp_path / "theirs.h5ad")
    read = read_predicted(theirs, screen)
    assert len(read) == 8
    for key, found in read.items():
        assert np.array_equal(found.toarray(), screen.dense(screen.groups[key]))


def test_rivals_see_neither_what_is_scored_nor_what_the_truth_marks_as_test(
    truth, tmp_path, monkeypatch
):
    path, cells = truth
    first, second, *_ = perturbed_names(cells)
    cells.obs["split"] = np.where(cells.obs["condition"] == second, "test", "train")
    cells.write_h5ad(path)
    one = cells[(cells.obs["condition"] == first).to_numpy()]
    theirs = relabelled(one, first, tmp_path / "theirs.h5ad")
    hidden = []

    def instead(screen, predicted, *options):
        hidden.extend(screen.held_out)
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "score", instead)
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate_run(None, predicted=theirs, path=path)
    expected = {name.removesuffix("+ctrl") for name in (first, second)}
    assert {perturbation for perturbation, _ in hidden} == expected


def test_a_run_whose_conditions_are_no_longer_held_out_is_refused():
    screen = noise_screen({("control", "x"): 9, ("A", "x"): 9, ("B", "x"): 9})
    screen.held_out = {("A", "x")}
    evaluate.check_held_out(screen, {("A", "x"): None}, "predicted.h5ad")
    with pytest.raises(screens.InputError, match="B@x of predicted.h5ad are not held out"):
        evaluate.check_held_out(screen, {("B", "x"): None}, "predicted.h5ad")


def test_a_prediction_with_some_of_the_genes_is_scored_on_these(truth, tmp_path, capsys):
    path, cells = truth
    name = perturbed_names(cells)[0]
    some = cells[(cells.obs["condition"] == name).to_numpy(), :25]
    theirs = relabelled(some, name, tmp_path / "theirs.h5ad")
    screen = evaluate.shared_genes(theirs, screens.read_screen(path))
    assert screen.var_names.tolist() == cells.var_names[:25].tolist()
    assert "scored on the 25 genes of 30" in capsys.readouterr().out


def test_the_truth_for_other_tools_holds_the_scored_cells_and_their_controls(truth, tmp_path):
    screen = screens.prepare(truth[0])
    key = next(key for key in sorted(screen.groups) if key[0] != "control")
    evaluate.write_truth(str(tmp_path / "out.h5ad"), screen, {key: None})
    written = anndata.read_h5ad(tmp_path / "out.h5ad")
    rows = np.sort(np.concatenate([screen.groups[key], screen.controls(key[1])]))
    assert written.obs_names.tolist() == screen.cells[rows].tolist()
    assert (screen.X[rows] != written.X).nnz == 0
    assert set(written.obs["perturbation"]) == {"control", key[0]}


def test_a_cell_type_with_a_single_control_is_not_scored(capsys):
    """A distance needs two of them; the other type is."""
    groups = {("control", "a"): 30, ("x", "a"): 20, ("control", "b"): 1, ("x", "b"): 20}
    screen = noise_screen(groups)
    predicted = {key: screen.X[screen.groups[key]] for key in (("x", "a"), ("x", "b"))}
    rows = score(screen, predicted)
    assert [row["condition"] for row in rows] == ["x@a"]
    assert "2 control or 2 predicted cells: x@b" in capsys.readouterr().out


def spoilt(truth, folder, change):
    """A file of a condition's own cells as a prediction, with their values changed; the screen."""
    path, cells = truth
    name = perturbed_names(cells)[0]
    own = cells[(cells.obs["condition"] == name).to_numpy()].copy()
    own.X = sparse.csr_matrix(change(own.X.toarray()).astype(np.float32))
    return relabelled(own, name, folder / "theirs.h5ad"), screens.read_screen(path)


SAID = {  # of what is scored, but said to be suspect
    "counts": (lambda X: np.round(X), "X is whole numbers, counts?"),
    "copies": (lambda X: X, "predicted cells are measured cells of the condition"),
    "others": (lambda X: 1.01 * X, ""),
}


@pytest.mark.parametrize("what", SAID)
def test_predictions_that_are_suspect_are_said_to_be(truth, tmp_path, capsys, what):
    """Counts beside log1p, and the truth itself; nothing is said of others."""
    change, said = SAID[what]
    read_predicted(*spoilt(truth, tmp_path, change))
    printed = capsys.readouterr().out
    assert said in printed if said else printed == ""


@pytest.mark.parametrize(
    "value, why", [(np.nan, "NaN or infinite"), (1e4, "above 20"), (-1, "neg")]
)
def test_predictions_that_are_no_log1p_are_refused(truth, tmp_path, value, why):
    """NaN, large counts, scaled values."""
    theirs, screen = spoilt(truth, tmp_path, lambda X: np.where(X > 0, X + value, X))
    with pytest.raises(screens.InputError, match=why):
        read_predicted(theirs, screen)


# ---- Files out -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A folder with three scorings of conditions' own cells: `root`, `squared` and `other`."""
    folder = tmp_path_factory.mktemp("scored")
    path = str(folder / "truth.h5ad")
    simulate_screen(30, 4, 600, seed=0).write_h5ad(path)
    cells = anndata.read_h5ad(path)
    first, second, *_ = perturbed_names(cells)
    for out, name in (("root", first), ("squared", first), ("other", second)):
        own = cells[(cells.obs["condition"] == name).to_numpy()]
        theirs = relabelled(own, name, folder / "theirs.h5ad")
        evaluate.evaluate_run(
            None, predicted=theirs, path=path, out=str(folder / out), squared=out == "squared"
        )
    return folder


def test_all_forms_of_the_scores_agree(scored):
    """metrics.csv holds the conditions, metrics.json their summary, metrics.md the tables."""
    lines = pd.read_csv(scored / "root/metrics.csv")
    summary = json.loads((scored / "root/metrics.json").read_text())["summary"]
    written = (scored / "root/metrics.md").read_text()
    assert set(lines["metric"]) == set(evaluate.METRICS)
    for (method, metric, genes), mine in lines.dropna(subset="score").groupby(
        ["method", "metric", "genes"]
    ):
        assert summary[method][metric][genes]["mean"] == pytest.approx(mine["score"].mean())
    shown = {
        f"{name} {genes}" for name, genes in zip(lines["shown_as"], lines["genes"], strict=True)
    }
    headers = {cell.strip() for line in written.splitlines() for cell in line.split("|")}
    assert {"E all", "MMD² DE20", "r of Δ all", "R²w of Δ all"} <= shown & headers
    energy = summary["model"]["E-distance"]["all"]
    assert f"{energy['mean']:.3f} ± {energy['sd']:.3f}" in written


def test_every_condition_has_its_figures(scored):
    drawn = list((scored / "root/figures").iterdir())
    violins = [path.name for path in drawn if path.name.startswith("violin_")]
    others = sorted(path.name for path in drawn if path.name not in violins)
    expected = ["activation.png", "activation_map.png", "gap_closed.png", "mean_change.png"]
    assert others == [*expected, "pca.png"]
    assert len(violins) == 2  # of a perturbation in two cell types
    assert min(path.stat().st_size for path in drawn) > 10_000


def test_squared_energy_distances_are_the_squares_and_say_so(scored):
    """By Jensen's inequality, for a score is a mean over splits; all other metrics are the same."""
    index = ["condition", "method", "metric", "genes"]
    root = pd.read_csv(scored / "root/metrics.csv").set_index(index)["score"]
    squared = pd.read_csv(scored / "squared/metrics.csv").set_index(index)["score"]
    energy = root.index.get_level_values("metric") == "E-distance"
    assert np.allclose(root[~energy], squared[~energy], equal_nan=True)
    assert (squared[energy] >= root[energy] ** 2 - 1e-9).all()
    assert "E: unbiased energy" in (scored / "squared/metrics.md").read_text()


def test_runs_are_pooled_over_all_their_conditions(scored, capsys):
    evaluate.pool_runs([str(scored / "root"), str(scored / "other")], out=str(scored / "pooled"))
    assert "over 4 conditions" in capsys.readouterr().out
    assert (scored / "pooled/metrics.md").read_text().count("|") > 100


def test_seeds_on_one_screen_are_averaged_before_they_are_pooled(tmp_path, capsys):
    """They are not independent: one condition of two seeds is one condition."""
    runs = []
    for model in (0.3, 0.5):
        content = {"source": "s", "squared": False, "conditions": [row_of(1.0, model)]}
        folder = tmp_path / str(model)
        folder.mkdir()
        (folder / "metrics.json").write_text(json.dumps(content))
        runs.append(str(folder))
    evaluate.pool_runs(runs)
    printed = capsys.readouterr().out
    assert "over 1 conditions" in printed
    assert "0.400 ± 0.000" in printed


def test_rooted_and_squared_distances_are_not_pooled(scored):
    runs = [str(scored / name) for name in ("root", "squared")]
    with pytest.raises(screens.InputError, match="some were scored with --squared"):
        evaluate.pool_runs(runs)


def test_a_run_that_was_not_scored_is_named(scored):
    with pytest.raises(screens.InputError, match="nowhere/metrics.json: not readable; score each"):
        evaluate.pool_runs([str(scored / "root"), "nowhere"])


ROW = row_of(1.0, 0.4)
SCORES = ROW["scores"]
WHOLE = {"source": "x.h5ad", "squared": False, "costs": {}, "conditions": [ROW]}
NO_SCORES = [  # what is no metrics.json
    None,
    [],
    {**WHOLE, "conditions": ["A@x"]},
    {**WHOLE, "conditions": [{"condition": "A@x"}]},
    {**WHOLE, "conditions": [{**ROW, "condition": ["A"]}]},
    {**WHOLE, "conditions": [{**ROW, "scores": {**SCORES, "linear": {"EMD": {"all": "low"}}}}]},
    {**WHOLE, "conditions": [{**ROW, "scores": {**SCORES, "linear": {"EMD": {"all": 1.0}}}}]},
    {**WHOLE, "conditions": [{**ROW, "scores": {**SCORES, "linear": {"E-distance": {}}}}]},
    {**WHOLE, "conditions": [{**ROW, "scores": {"model": SCORES["model"]}}]},
    {**WHOLE, "conditions": [{**ROW, "perturbation": ["A"]}]},
    {**WHOLE, "conditions": [{**ROW, "spread": 5}]},
    {**WHOLE, "costs": {"model": {"seconds": 1}}},
    {**WHOLE, "source": ["x.h5ad"]},
    {**WHOLE, "costs": {"model": {"seconds": "few"}}},
]


@pytest.mark.parametrize("content", NO_SCORES)
def test_scores_that_are_damaged_are_not_pooled(tmp_path, content):
    """Whatever JSON stands there; the whole one is read."""
    (tmp_path / "metrics.json").write_text(json.dumps(content))
    with pytest.raises(screens.InputError, match="not readable; score each run first"):
        evaluate.read_scores(str(tmp_path), "")
    (tmp_path / "metrics.json").write_text(json.dumps(WHOLE))
    assert evaluate.read_scores(str(tmp_path), "")[2] == {"A@x": ROW}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a run, or --predicted and --data together"),
        (["--predicted", "p.h5ad"], "give a run, or --predicted and --data together"),
        (["run", "--data", "t.h5ad"], "give a run, or --predicted and --data together"),
        (["run", "--squared"], "give --out"),
        (["run", "run2", "--squared", "--out", "x"], "give --out"),
    ],
)
def test_arguments_that_do_not_go_together_are_refused(monkeypatch, arguments, message):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    with pytest.raises(screens.InputError, match=message):
        evaluate.main()
