"""The metrics against independent implementations, and the table's order of good and bad predictions."""
import anndata
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, stats
from scipy.spatial.distance import cdist

import data
import evaluate
import figures
from evaluate import (activation_pcc, de_overlap, discrimination, e_distance, emd, gamma_by_median, gap_closed, mmd2, pearson_delta,
                      read_predicted, score, score_condition, summarise, wasserstein, welch_t)
from toy_data import simulate_screen

rng = np.random.default_rng(0)


def test_e_distance_equals_scipys_in_one_dimension():
    """SciPy keeps the zero self-distances (n^2 pairs); ours leaves them out."""
    x, y = rng.normal(size=30), rng.normal(1, 2, size=20)
    within = lambda a: cdist(a[:, None], a[:, None]).sum() * (1 / len(a) ** 2 - 1 / (len(a) * (len(a) - 1)))  # noqa: E731
    expected = stats.energy_distance(x, y) ** 2 + within(x) + within(y)
    assert e_distance(x[:, None], y[:, None], squared=True) == pytest.approx(expected)
    assert e_distance(x[:, None], y[:, None]) == pytest.approx(expected ** 0.5)


def test_e_distance_is_unbiased_and_grows_with_a_shift():
    """Mean of the unrooted statistic over equal samples is 0 within 5 standard errors."""
    x = rng.normal(size=(200, 10, 4))
    E = [2 * cdist(a, b).mean() - cdist(a, a).sum() / 20 - cdist(b, b).sum() / 20 for a, b in zip(x[:, :5], x[:, 5:])]
    assert abs(np.mean(E)) < 5 * np.std(E) / np.sqrt(len(E))
    y = rng.normal(size=(300, 4))
    far = [e_distance(y[:150], y[150:] + s) for s in (0, 0.5, 1, 2)]
    assert far == sorted(far) and far[3] > 1


@settings(deadline=None)
@given(st.integers(2, 30), st.integers(2, 30), st.integers(0, 99))
def test_emd_equals_scipys_wasserstein_gene_by_gene_for_unequal_sizes_too(n, m, seed):
    g = np.random.default_rng(seed)
    x, y = g.exponential(size=(n, 3)) * (g.random((n, 3)) < 0.6), g.exponential(size=(m, 3))
    assert emd(x, y) == pytest.approx(np.mean([stats.wasserstein_distance(a, b) for a, b in zip(x.T, y.T)]), abs=1e-9)


def test_nan_cells_do_not_score_as_perfect():
    assert np.isnan(e_distance(np.full((3, 2), np.nan), np.ones((3, 2))))


def test_metrics_do_not_depend_on_the_order_of_cells_and_vanish_on_equal_ones():
    x, y = rng.exponential(size=(40, 5)), rng.exponential(size=(40, 5))
    for f in (e_distance, emd, lambda a, b: mmd2(a, b, 0.3)):
        assert f(x, y) == pytest.approx(f(x[::-1], y[rng.permutation(40)])) == pytest.approx(f(y, x))
        assert f(x, x[::-1]) == pytest.approx(0, abs=1e-7) or f(x, x[::-1]) < 0           # unbiased MMD is below 0 there
        assert f(x, y + 1) > f(x, y + 0.5) > max(f(x, y), 0.05)


@settings(deadline=None)
@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 50), st.integers(0, 99))
def test_distances_in_blocks_equal_a_double_loop(n, m, block, seed):
    """However many rows are taken at a time; the unbiased means leave each cell's distance to itself out."""
    g = np.random.default_rng(seed)
    x, y = g.normal(size=(n, 3)), g.normal(0.5, 1, size=(m, 3))
    kernels = {"distance": lambda u, v: np.sqrt(((u - v) ** 2).sum()), "gauss": lambda u, v: np.exp(-0.7 * ((u - v) ** 2).sum())}
    mean = {name: [np.mean([k(u, v) for u in x for v in y]),
                   *(np.mean([k(a[i], a[j]) for i in range(len(a)) for j in range(len(a)) if i != j]) for a in (x, y))]
            for name, k in kernels.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "BLOCK", block)
        between, *within = mean["distance"]
        assert e_distance(x, y, squared=True) == pytest.approx(max(0, 2 * between - sum(within)), abs=1e-6)
        between, *within = mean["gauss"]
        assert mmd2(x, y, 0.7) == pytest.approx(sum(within) - 2 * between)


def test_distances_of_normals_are_the_closed_forms():
    """N(0, 1) and N(1, 1): W1 = 1; E|X - Y| of a normal difference; the Gaussian kernel's mean is a Gaussian of variance 2 + 1/(2 gamma).
    Within 5 standard errors over 40 samples of 500."""
    x, y = rng.normal(size=(40, 500, 1)), rng.normal(1, 1, size=(40, 500, 1))
    folded = 2 / np.sqrt(np.pi) * np.exp(-0.25) + 1 - 2 * stats.norm.cdf(-1 / np.sqrt(2))      # mean of |N(1, 2)|
    kernel = lambda shift: np.sqrt(1 / (1 + 4 * 0.4)) * np.exp(-0.4 * shift ** 2 / (1 + 4 * 0.4))             # noqa: E731
    for f, expected in ((lambda a, b: e_distance(a, b, squared=True), 2 * folded - 4 / np.sqrt(np.pi)),
                        (lambda a, b: mmd2(a, b, 0.4), 2 * kernel(0) - 2 * kernel(1)), (lambda a, b: (a.mean() < b.mean()) and emd(a, b), 1.0)):
        found = np.array([f(a, b) for a, b in zip(x, y)])
        assert abs(found.mean() - expected) < 5 * found.std() / np.sqrt(40) + 2e-3


def test_mmd_is_unbiased_and_its_width_is_the_median_of_the_cells_given():
    x = rng.normal(size=(300, 10, 4))
    found = np.array([mmd2(a[:5], a[5:], 0.2) for a in x])
    assert abs(found.mean()) < 5 * found.std() / np.sqrt(300)
    assert gamma_by_median(x[0]) == pytest.approx(1 / np.median(cdist(x[0], x[0], "sqeuclidean")[np.triu_indices(10, 1)]))
    assert gamma_by_median(np.zeros((3, 2))) == 1


def test_wasserstein_is_of_every_gene_and_does_not_change_its_input():
    x, y = rng.exponential(size=(11, 6)).astype(np.float32), rng.exponential(size=(7, 6)).astype(np.float32)
    before = x.copy()
    assert np.allclose(wasserstein(x, y), [stats.wasserstein_distance(a, b) for a, b in zip(x.T, y.T)], atol=1e-6)
    assert np.array_equal(before, x)


def test_pearson_delta_correlates_changes_from_the_reference():
    x, y, reference = rng.normal(size=(20, 30)), rng.normal(size=(25, 30)), rng.normal(size=30)
    expected = stats.pearsonr(x.mean(0) - reference, y.mean(0) - reference).statistic
    assert pearson_delta(x, y, reference) == pytest.approx(expected)
    assert np.isnan(pearson_delta(x, y, x.mean(0)))                        # a prediction of no change has no direction


def test_de_overlap_counts_shared_top_genes():
    controls, up = rng.normal(size=(200, 40)), lambda genes: rng.normal(size=(60, 40)) + 3 * np.isin(np.arange(40), genes)      # noqa: E731
    assert de_overlap(up(range(10)), up(range(10)), controls, 10) == 1
    assert de_overlap(up(range(10)), up(range(6, 16)), controls, 10) == 0.4
    assert de_overlap(up(range(3)), up(range(3)), controls, 50) == 1       # of 40 genes there are


def test_discrimination_is_the_rank_of_the_true_condition_among_all():
    others, x, y = rng.normal(size=(9, 5)), rng.normal(size=(6, 5)), rng.normal(size=(6, 5))
    distances = [np.abs(o - x.mean(0)).sum() for o in others]
    nearer = sum(d < np.abs(y.mean(0) - x.mean(0)).sum() for d in distances)
    assert discrimination(x, y, others) == pytest.approx(1 - nearer / 9)
    assert discrimination(y, y, others) == 1 and np.isnan(discrimination(x, y, ()))
    assert discrimination(x, y, np.tile(y.mean(0), (4, 1))) == 0.5         # all alike: chance
    far = others + 100
    assert discrimination(far[:3], y, far) == 0


def test_activation_pcc_correlates_the_fractions_of_expressing_cells():
    x = np.array([[1, 0, 3.0], [0, 0, 1], [0, 2, 1], [0, 0, 1]])          # fractions 1/4, 1/4, 1
    y = np.array([[1, 0, 3.0], [0, 0, 1], [0, 2, 1], [1, 0, 1]])          # 1/2, 1/4, 1
    assert activation_pcc(x, y) == pytest.approx(np.corrcoef([0.25, 0.25, 1], [0.5, 0.25, 1])[0, 1])


def test_gap_closed_is_0_at_the_controls_and_1_at_the_floor():
    assert gap_closed(0.8, 0.8, 0.1) == 0 and gap_closed(0.1, 0.8, 0.1) == 1 and gap_closed(1.5, 0.8, 0.1) == pytest.approx(-1)
    assert np.isnan(gap_closed(0.5, 0.1, 0.2))


def test_welch_t_equals_the_textbook_formula():
    x, y = rng.normal(size=(20, 3)), rng.normal(1, 3, size=(30, 3))
    x[:, 2] = y[:, 2] = 0
    by_hand = np.abs(x.mean(0) - y.mean(0))[:2] / np.sqrt(x.var(0, ddof=1) / 20 + y.var(0, ddof=1) / 30)[:2]
    assert np.allclose(welch_t(x, y), [*by_hand, 0])


def test_predicted_genes_are_matched_by_name_whatever_their_order(tmp_path):
    """A file whose columns are shuffled is the same prediction."""
    simulate_screen(30, 3, 300, seed=0).write_h5ad(tmp_path / "truth.h5ad")
    screen = data.prepare(str(tmp_path / "truth.h5ad"))
    truth = anndata.read_h5ad(tmp_path / "truth.h5ad")
    theirs = truth[truth.obs["control"] == 0, rng.permutation(30)].copy()
    theirs.obs = theirs.obs[["cell_type"]].assign(perturbation=theirs.obs["condition"].astype(str).str.removesuffix("+ctrl"))
    theirs.write_h5ad(tmp_path / "theirs.h5ad")
    read = read_predicted(str(tmp_path / "theirs.h5ad"), screen)
    assert len(read) == 6 and all(np.array_equal(x.toarray(), screen.dense(screen.groups[key])) for key, x in read.items())


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("screen") / "s.h5ad")
    simulate_screen(60, 12, 2400, seed=3).write_h5ad(path)
    return data.prepare(path, fraction=0.4)


def screen_with(groups, genes=12, seed=0):
    """A screen of so many cells {(perturbation, cell type): n}, all alike but for noise."""
    g = np.random.default_rng(seed)
    labels = [key for key, n in groups.items() for _ in range(n)]
    X = (np.maximum(g.normal(2, 1, (len(labels), genes)), 0) * (g.random((len(labels), genes)) < 0.7)).astype(np.float32)
    names = np.array([f"g{i}" for i in range(genes)])
    return data.Screen(sparse.csr_matrix(X), names, names, np.array([f"c{i}" for i in range(len(labels))]), *map(np.array, zip(*labels)), "gene",
                       pd.DataFrame(index=range(len(labels))))


def test_one_condition_in_a_cell_type_is_scored_without_discrimination():
    """As stimulated PBMC: nothing to be told apart from."""
    screen = screen_with({(p, t): 20 for p in ("control", "A") for t in ("x", "y")} | {("B", "y"): 20})
    rows = score(screen, {key: screen.X[screen.groups[key]] for key in (("A", "x"), ("A", "y"))})
    discrimination = {r["condition"]: r["scores"]["model"]["discrimination"]["all"] for r in rows}
    assert np.isnan(discrimination["A@x"]) and 0 <= discrimination["A@y"] <= 1


@pytest.mark.parametrize("squared", (False, True))
def test_the_table_holds_the_distances_of_each_gene_set_alone(monkeypatch, squared):
    monkeypatch.setattr(evaluate, "SPLITS", 1)
    controls, measured, model = (np.maximum(0, rng.normal(size=(n, 60)) + np.linspace(0, shift, 60)) for n, shift in ((90, 0), (40, 2), (20, 1)))
    order = rng.permutation(40)
    scores, ranked = score_condition(measured, controls, {"model": model}, rng, [order], squared=squared)
    for genes, columns in {"all": ranked, "DE20": ranked[:20], "DE40": ranked[:40]}.items():
        x, y, gamma = model[:, columns], measured[order[:20]][:, columns], gamma_by_median(controls[:, columns])
        expected = {"E-distance": e_distance(x, y, squared), "EMD": emd(x, y), "MMD2": mmd2(x, y, gamma)}
        assert {metric: scores["model"][metric][genes] for metric in expected} == pytest.approx(expected)


def test_few_controls_or_few_predicted_cells_bias_no_distance():
    """Nothing happens in this screen: whoever is scarce, all are scored on as many cells, none of them twice, and no gap opens."""
    screen = screen_with({("control", "x"): 30, ("A", "x"): 400, ("B", "x"): 30})
    for n in (400, 12):
        (row,) = score(screen, {("A", "x"): screen_with({("A", "x"): n}, seed=1).X})
        energy, w = ({name: s[m]["all"] for name, s in row["scores"].items()} for m in ("E-distance", "EMD"))
        assert max(energy.values()) < 0.5 and max(w.values()) < 1.4 * min(w.values()), (n, energy, w)


def test_an_undefined_score_takes_no_side_in_the_sign_test():
    rows = [row(1.0, 0.4) for _ in range(6)]
    for r in rows[2:]:
        r["scores"]["model"]["discrimination"]["all"] = float("nan")
    control = summarise(rows)["control"]["discrimination"]["all"]
    assert control["beaten_in"] == 2 and control["p"] == pytest.approx(stats.binomtest(2, 2).pvalue)


def test_nothing_that_scoring_learns_comes_from_held_out_cells(screen, monkeypatch):
    """Neither the kernel's width nor the mean of the training perturbations changes with the held-out cells that are not scored."""
    scored, other = sorted(screen.held_out)[0], sorted(screen.held_out)[-1]
    asked = []
    monkeypatch.setattr(evaluate, "score_condition", lambda m, c, methods, rng, orders, training, reference, others, squared: (
        asked.append((training, reference)), ({"control": {}}, np.arange(60)))[1])
    score(screen, {scored: screen.X[:10]})
    changed = screen.X.copy()
    changed[screen.groups[other]] = 50
    monkeypatch.setattr(screen, "X", changed.tocsr())
    score(screen, {scored: screen.X[:10]})
    assert all(np.array_equal(a, b) for a, b in zip(*asked))


def test_what_the_truth_marks_as_test_is_hidden_from_the_baselines(tmp_path, monkeypatch):
    simulate_screen(30, 4, 600, seed=0).write_h5ad(tmp_path / "truth.h5ad")
    truth = anndata.read_h5ad(tmp_path / "truth.h5ad")
    names = sorted(set(truth.obs["condition"]) - {"ctrl"})
    truth.obs["split"] = np.where(truth.obs["condition"].isin(names[:2]), "test", "train")
    truth.write_h5ad(tmp_path / "truth.h5ad")
    theirs = truth[(truth.obs["condition"] == names[0]).to_numpy()].copy()
    theirs.obs = theirs.obs[["cell_type"]].assign(perturbation=names[0].removesuffix("+ctrl"))
    theirs.write_h5ad(tmp_path / "theirs.h5ad")
    seen = []
    monkeypatch.setattr(evaluate, "score", lambda screen, cells, seed, squared: seen.append(screen.held_out) or (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate_run(None, predicted=str(tmp_path / "theirs.h5ad"), path=str(tmp_path / "truth.h5ad"))
    assert {p for p, _ in seen[0]} == {name.removesuffix("+ctrl") for name in names[:2]}


def row(control, model, floor=0.1, **more):
    sets = lambda v: {"E-distance": {"all": v}, "discrimination": {"all": 1 - v}}                             # noqa: E731
    return {"condition": "A@x", "cells": 9, "top_genes": [], "scores": {name: sets(v) for name, v in
            {"control": control, "model": model, "floor": floor, **more}.items()}}


def test_the_summary_weighs_the_gap_and_tests_the_signs():
    rows = [row(1.0, 0.4), row(0.8, 0.3), row(0.6, 0.7), row(0.5, 0.2, additive=0.1), row(0.2, 0.2)]
    summary = summarise(rows)
    energy = summary["model"]["E-distance"]["all"]
    assert energy["gap_closed"] == pytest.approx(1 - (np.mean([0.4, 0.3, 0.7, 0.2, 0.2]) - 0.1) / (np.mean([1, 0.8, 0.6, 0.5, 0.2]) - 0.1))
    assert energy["sd"] == pytest.approx(np.std([0.4, 0.3, 0.7, 0.2, 0.2])) and "p" not in energy
    control = summary["control"]["E-distance"]["all"]
    assert control["beaten_in"] == 3 and control["p"] == pytest.approx(stats.binomtest(3, 4).pvalue)          # a tie takes no side
    assert summary["control"]["discrimination"]["all"]["beaten_in"] == 3   # where more is better
    alone = summary["additive"]["E-distance"]["all"]
    assert alone["conditions"] == 1 and alone["beaten_in"] == 0 and alone["gap_closed"] == pytest.approx(1)


def test_text_and_markdown_show_the_same_numbers_and_leave_blank_what_does_not_apply():
    rows = [row(1.0, 0.4), row(0.8, 0.3, additive=0.25)]
    shown = figures.grids(summarise(rows), rows, "Adamson")
    written, marked = figures.text(shown), figures.markdown(shown)
    for value in ("0.900 ± 0.100", "0.350 ± 0.050", "0.250 ± 0.000", "additive: the 1 that it applies to", "0.596 ± 0.121", "paper, Adamson", "2/2, 0.5"):
        assert value in written and value in marked
    each = next(lines for title, _, lines in shown if title == "each condition")
    assert ["additive", "", "0.250"] in each
    assert "paper" not in figures.text(figures.grids(summarise(rows), rows))
    assert all(len(line) == len(header) for _, header, lines in shown for line in lines)


def test_the_papers_data_sets_are_recognised_by_what_they_hold(screen):
    def with_targets(kind, names, types):
        groups = {(p, t): [0] for p in (*names, "control") for t in types}
        return type("Screen", (), {"kind": kind, "groups": groups, "cell_types": list(types)})
    assert evaluate.paper_of(with_targets("gene", ["TMEM167A", "HSD17B12", "CREB1", "XBP1"], ["K562(?)"])) == "Adamson"
    assert evaluate.paper_of(with_targets("gene", ["TMEM167A", "HSD17B12", "CREB1"], ["RPE1"])) is None
    assert evaluate.paper_of(with_targets("drug", [f"d{i}:0.1" for i in range(188)], ["A549", "K562", "MCF7"])) == "sci-Plex3"
    assert evaluate.paper_of(with_targets("drug", [f"d{i}:0.1" for i in range(20)], ["A549", "K562", "MCF7"])) is None
    assert evaluate.paper_of(screen) is None


def test_bad_predictions_rank_below_the_controls_and_real_cells_on_top():
    """Other cells of the condition close the gap; another condition's cells, the repeated mean and shuffled genes do not."""
    rng, effect = np.random.default_rng(0), np.r_[np.full(6, 2.0), np.zeros(24)]

    def cells(n, effect):
        level = np.maximum(rng.normal(2, 0.6, size=(n, 30)) + effect, 0.1)
        return level * (rng.random((n, 30)) < 0.6)

    measured, controls = cells(120, effect), cells(200, 0)
    methods = {"control": controls, "twin": cells(120, effect), "opposite": cells(120, -effect),
               "mean": np.tile(measured.mean(0), (60, 1)), "shuffled": measured[:, rng.permutation(30)], "absent": None}
    scores, ranked = score_condition(measured, controls, methods, np.random.default_rng(0))
    energy = {name: s["E-distance"]["all"] for name, s in scores.items()}
    distances = [scores["floor"]["EMD"][genes] / scores["twin"]["EMD"][genes] for genes in ("all", "DE20", "DE40")]
    assert 0.85 < min(distances) and max(distances) < 1.2                  # the floor is no closer than other real cells can be
    assert "absent" not in scores and set(ranked[:6]) == set(range(6))
    assert energy["twin"] < 0.5 * energy["control"] and energy["floor"] < 0.5 * energy["control"]
    assert min(energy["opposite"], energy["mean"], energy["shuffled"]) > energy["control"]


def test_the_table_ranks_bad_predictions_below_the_baselines(screen):
    """The condition's own cells come out on top; controls under another label, cells of another condition, the repeated mean and shuffled
    genes below the best baseline by every distance."""
    g, keys = np.random.default_rng(0), sorted(screen.held_out)
    others = dict(zip(keys, keys[3:] + keys[:3]))
    pick = lambda rows, n: screen.X[g.choice(rows, n)]                     # noqa: E731
    bad = {"twin": {k: screen.X[screen.groups[k]] for k in keys},
           "controls": {k: pick(screen.controls(k[1]), 80) for k in keys},
           "other condition": {k: pick(screen.groups[others[k]], 80) for k in keys},
           "mean": {k: type(screen.X)(np.tile(screen.dense(screen.groups[k]).mean(0), (80, 1))) for k in keys},
           "shuffled": {k: screen.X[screen.groups[k]][:, g.permutation(60)] for k in keys}}
    summary = {name: summarise(score(screen, predicted)) for name, predicted in bad.items()}
    for metric in ("E-distance", "EMD", "MMD2"):
        gap = {name: s["model"][metric]["all"]["gap_closed"] for name, s in summary.items()}
        best = max(v[metric]["all"]["gap_closed"] for name, v in summary["twin"].items() if name not in ("model", "floor"))
        assert max(gap[name] for name in bad if name != "twin") < best < 0.9 < gap["twin"], (metric, gap, best)
    assert summary["twin"]["model"]["discrimination"]["all"]["mean"] > 0.95 > 0.6 > summary["controls"]["model"]["discrimination"]["all"]["mean"]
    assert summary["twin"]["linear knock-out"]["E-distance"]["all"]["beaten_in"] == len(keys)
    assert summary["shuffled"]["control"]["E-distance"]["all"]["beaten_in"] == 0
