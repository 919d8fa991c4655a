"""Cheats: each is below all honest methods in the metric that its table names."""

import json
import sys

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import evaluate
import screens
from evaluate import cheating_cells, score, standings
from report.cheats import make_cheat_tables
from rivals import RIVALS
from rivals.cheats import CHEATS, Given
from toy_data import simulate_drug_screen


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    """A simulated screen of drugs, whose families push alike: the honest methods know something."""
    path = str(tmp_path_factory.mktemp("screen") / "d.h5ad")
    adata = simulate_drug_screen(60, 8, 5000, doses=(0.01, 0.1, 1.0), seed=0)
    screens.write_h5ad(adata, path)
    return screens.prepare(path, fraction=0.3, seed=0)


@pytest.fixture(scope="module")
def predicted(screen):
    """What an honest method predicts of the held-out conditions."""
    honest = RIVALS["hurdle matching"](screen)
    starts = {key: evaluate.starting_rows(screen, key, 1) for key in sorted(screen.held_out)}
    return {
        key: sparse.csr_matrix(honest(*key, screen.dense(rows))) for key, rows in starts.items()
    }


@pytest.fixture(scope="module")
def handed_in(screen, predicted):
    """{cheat: {condition: cells}}, and what is said of doctored controls."""
    return cheating_cells(screen, predicted)


@pytest.fixture(scope="module")
def standing(screen, predicted, handed_in):
    """How all stand, by (method, metric, gene set)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "SPLITS", 2)
        rows = score(screen, predicted, trained=handed_in[0])
    return standings(rows).set_index(["method", "metric", "genes"])


def test_a_sign_test_counts_drugs_without_their_doses(screen, predicted, monkeypatch):
    """In the rows that are scored and kept."""
    monkeypatch.setattr(evaluate, "SPLITS", 1)
    entry = evaluate.summarise(score(screen, predicted))["control"]["E-distance"]["all"]
    drugs = {perturbation.partition(":")[0] for perturbation, _ in screen.held_out}
    assert (entry["unit"], entry["units"]) == ("perturbation", len(drugs))
    assert entry["conditions"] > 2 * len(drugs)


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_is_below_all_honest_methods_in_the_metric_that_is_named(standing, name):
    there = standing.xs("all", level="genes").loc[(name, CHEATS[name].exposed)]
    assert there["rank"] == there["of"] > 5


def test_correlations_and_ranks_alone_would_be_fooled(standing):
    """Three times the shift keeps r and the genes of largest t."""
    honest = standing.loc["model"]
    tripled = standing.loc["shift × 3"]
    r = ("Pearson delta", "all")
    assert tripled.loc[r, "score"] > honest.loc[r, "score"] - 0.05 and tripled.loc[r, "fools"]
    assert tripled.loc[("E-distance", "all"), "gap_closed"] < 0
    assert not standing["fools"].xs("model").any()


def test_doctored_controls_move_nothing_that_is_scored(screen, predicted, handed_in, standing):
    """From its own controls a worthless prediction correlates, from the measured ones not."""
    gained = float(handed_in[1].split()[-1].rstrip("."))
    assert gained > 0.4
    assert abs(standing.loc[("doctored controls", "Pearson delta", "all"), "score"]) < 0.2


def test_the_table_says_what_each_fools_and_where_it_is_exposed(standing):
    """And marks what is above all rivals."""
    exposed = {name: cheat.exposed for name, cheat in CHEATS.items()}
    gaps, exposures = make_cheat_tables(standing.reset_index(), exposed)
    marks = {line[0]: sum("+" in cell for cell in line) for line in gaps.lines}
    fooled = {line[0]: line[-1] for line in exposures.lines}
    assert list(fooled) == list(CHEATS)
    assert "copied" not in "".join(fooled.values())  # all but two are as good as honest methods
    for name, said in fooled.items():
        assert marks[name] == (0 if said == "none" else 1 + said.count(", "))
    assert marks["control"] == marks["floor"] == marks["model"] == 0


def test_cells_of_the_training_set_are_found_to_the_digit(screen, predicted, handed_in, capsys):
    known = evaluate.hashes_of_training(screen)
    copied = next(iter(handed_in[0]["training cells"].values())).toarray()
    mixed = np.concatenate([copied[:3], copied[:1] + 1e-6, np.zeros_like(copied[:1])])
    assert evaluate.share_copied(mixed, known) == 3 / 5
    evaluate.say_what_is_copied([{"copied": {"model": 0.6}}])
    assert "60% of the predicted cells are training cells" in capsys.readouterr().out


def test_the_command_writes_the_table_beside_a_run(
    screen, predicted, tmp_path, monkeypatch, capsys
):
    """Of two conditions, in a folder that holds what a run's does."""
    keys = list(predicted)[:2]
    labels = [key for key in keys for _ in range(predicted[key].shape[0])]
    obs = pd.DataFrame(labels, columns=["perturbation", "cell_type"])
    obs.index = obs.index.astype(str)
    X = sparse.vstack([predicted[key] for key in keys], format="csr")
    reading = {"path": screen.source, "fraction": 0.3, "seed": 0}
    theirs = anndata.AnnData(X, obs, pd.DataFrame(index=screen.var_names))
    theirs.uns["departures"] = {"reading": json.dumps(reading)}
    theirs.write_h5ad(tmp_path / "predicted.h5ad")
    monkeypatch.setattr(sys, "argv", ["evaluate.py", str(tmp_path), "--cheats"])
    evaluate.main()
    table = pd.read_csv(tmp_path / "cheats.csv")
    assert set(CHEATS) < set(table["method"])
    assert "| counts as logs | E |" in (tmp_path / "cheats.md").read_text()
    assert "counts as logs: the model's cells with the logarithm undone" in capsys.readouterr().out


@pytest.mark.parametrize("more", [["run2"], ["--training"], ["--squared"], ["--rivals", "all"]])
def test_what_does_not_go_with_cheats_is_refused(monkeypatch, more):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", "run", *more, "--cheats", "--out", "x"])
    with pytest.raises(screens.InputError, match="--cheats takes one run"):
        evaluate.main()


def given(x, x0):
    """What a cheat is given of an honest prediction and controls, without a screen."""
    return Given(x, x0, x0, {}, None, ("A", "x"), np.random.default_rng(0))


def test_variance_and_shift_are_what_the_cheats_are_named_after():
    """Of genes that all cells express, far from 0."""
    rng = np.random.default_rng(0)
    x0, x = 9 + rng.random((40, 5)), 10 + rng.random((40, 5))
    wide = CHEATS["variance × 4"].make(given(x, x0))
    far = CHEATS["shift × 3"].make(given(x, x0))
    assert np.allclose(wide.var(0), 4 * x.var(0)) and np.allclose(wide.mean(0), x.mean(0))
    assert np.allclose(far.mean(0) - x0.mean(0), 3 * (x.mean(0) - x0.mean(0)), rtol=1e-5)


def test_independent_noise_keeps_mean_and_spread_and_no_correlation():
    rng = np.random.default_rng(0)
    x = 9 + rng.normal(size=(4000, 1)) + 0.1 * rng.normal(size=(4000, 2))
    noise = CHEATS["independent noise"].make(given(x, x))
    assert np.allclose(noise.mean(0), x.mean(0), atol=0.1)
    assert np.allclose(noise.std(0), x.std(0), atol=0.1)
    assert abs(np.corrcoef(noise.T)[0, 1]) < 0.1 < 0.9 < np.corrcoef(x.T)[0, 1]


def test_control_cells_of_a_predicted_file_are_not_read(screen, predicted, tmp_path):
    """Whatever they hold."""
    key = next(iter(predicted))
    own = predicted[key].toarray()
    for name, controls in (("plain", own), ("doctored", own + 5)):
        obs = pd.DataFrame({"perturbation": [key[0]] * len(own) + ["control"] * len(own)})
        obs["cell_type"] = key[1]
        X = np.vstack([own, controls]).astype(np.float32)
        var = pd.DataFrame(index=screen.var_names)
        anndata.AnnData(X, obs.set_index(obs.index.astype(str)), var).write_h5ad(
            tmp_path / f"{name}.h5ad"
        )
    plain, doctored = (
        evaluate.read_predicted(str(tmp_path / f"{name}.h5ad"), screen)
        for name in ("plain", "doctored")
    )
    assert plain.keys() == doctored.keys() == {key}
    assert (plain[key] != doctored[key]).nnz == 0
