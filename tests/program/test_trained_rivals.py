"""Rivals that are trained: whose cells a run keeps, when they are trained again, what is shown."""

import json
import os
import shutil
import sys
from functools import partial

import anndata
import numpy as np
import pytest

import evaluate
import rivals
import sample
import screens
import toy_data
import train
from departures import ImprovedSettings
from report import scores
from rivals.kept import fingerprint, kept_cells


class Counted:
    """Fake rivals, which add a number to the controls and note how often each was trained."""

    def __init__(self):
        self.trained = []

    def rival(self, name, shift, applies=lambda key: True, stops=False):
        """A rival of that name; stops: as if by Ctrl-C."""

        def train(screen, seed=0, device="cpu"):
            self.trained.append(name)
            if stops:
                raise KeyboardInterrupt

            def predict(perturbation, cell_type, x0):
                return x0 + shift + seed if applies((perturbation, cell_type)) else None

            predict.parameters = 1234
            predict.zeros_kept = lambda x0, cells: np.where(x0 > 0, cells, 0)
            return predict

        return train


@pytest.fixture
def counted(monkeypatch):
    """Two fake rivals in place of TRAINED: one that applies everywhere, one only in typeA."""
    counted = Counted()
    fakes = {
        "plus one": counted.rival("plus one", 1),
        "Half": counted.rival("Half", 0.5, applies=lambda key: key[1] == "typeA"),
    }
    monkeypatch.setattr(rivals, "TRAINED", fakes)
    monkeypatch.setattr(evaluate, "TRAINED", fakes)
    return counted


@pytest.fixture
def screen(tmp_path):
    """A simulated screen with conditions held out."""
    path = str(tmp_path / "s.h5ad")
    toy_data.simulate_screen(20, 4, 400, seed=3).write_h5ad(path)
    return screens.prepare(path, fraction=0.5)


def starts_of(screen):
    """The controls that each held-out condition starts from."""
    return {key: evaluate.starting_rows(screen, key, 0) for key in sorted(screen.held_out)}


# ---- What is kept --------------------------------------------------------------------------------


def test_a_rival_is_trained_once_and_its_cells_are_those_of_the_first_time(
    counted, screen, tmp_path
):
    path = str(tmp_path / "rivals/plus-one.h5ad")
    first, costs = kept_cells(path, "plus one", screen, starts_of(screen))
    again, same_costs = kept_cells(path, "plus one", screen, starts_of(screen))
    assert counted.trained == ["plus one"]
    assert costs == same_costs and costs["parameters"] == 1234
    for key, rows in starts_of(screen).items():
        x0 = screen.dense(rows)
        expected = {"plus one": x0 + 1, "plus one, zeros kept": np.where(x0 > 0, x0 + 1, 0)}
        for forms in (first, again):
            assert list(forms) == list(expected)
            assert all(np.array_equal(forms[row][key].toarray(), expected[row]) for row in forms)


def test_a_file_without_the_improved_form_is_made_again(counted, screen, tmp_path, monkeypatch):
    path = str(tmp_path / "half.h5ad")
    with monkeypatch.context() as patch:
        patch.setattr("rivals.kept.LAYER", "another form")
        kept_cells(path, "Half", screen, starts_of(screen))
    assert len(kept_cells(path, "Half", screen, starts_of(screen))[0]) == 2
    assert counted.trained == ["Half"] * 2


def test_where_a_rival_does_not_apply_it_has_no_cells(counted, screen, tmp_path):
    path = str(tmp_path / "half.h5ad")
    for _ in range(2):  # trained, and read
        forms, _ = kept_cells(path, "Half", screen, starts_of(screen))
        for cells in forms.values():
            assert set(cells) == {key for key in screen.held_out if key[1] == "typeA"}


def test_a_rival_that_applies_nowhere_is_not_trained_again_either(
    counted, screen, tmp_path, monkeypatch
):
    nowhere = counted.rival("nowhere", 0, applies=lambda key: False)
    monkeypatch.setitem(rivals.TRAINED, "nowhere", nowhere)
    for _ in range(2):
        forms, _ = kept_cells(str(tmp_path / "n.h5ad"), "nowhere", screen, starts_of(screen))
        assert list(forms.values()) == [{}, {}]
    assert counted.trained == ["nowhere"]


def test_the_cells_are_kept_in_the_form_of_predicted_cells(counted, screen, tmp_path):
    """evaluate.py --predicted scores them; each names the control that it started from."""
    path = str(tmp_path / "half.h5ad")
    cells = kept_cells(path, "Half", screen, starts_of(screen))[0]["Half"]
    read = evaluate.read_predicted(path, screen)
    assert all((read[key] != cells[key]).nnz == 0 for key in cells) and set(read) == set(cells)
    obs = anndata.read_h5ad(path).obs
    key = sorted(cells)[0]
    mine = obs[obs["condition"] == "@".join(key)]
    assert mine["control_cell"].tolist() == screen.cells[starts_of(screen)[key]].tolist()


def changed_value(screen):
    screen.X.data[-1] += 1


def changed_split(screen):
    screen.held_out.remove(sorted(screen.held_out)[0])


def changed_genes(screen):
    screen.genes = np.array([*screen.genes[:-1], "other"])


def changed_label(screen):
    screen.cell_type = screen.cell_type.copy()
    screen.cell_type[0] = "typeB" if screen.cell_type[0] == "typeA" else "typeA"


@pytest.mark.parametrize(
    "change", [changed_value, changed_split, changed_genes, changed_label, None]
)
def test_a_changed_run_is_noticed_and_said_in_one_line(counted, screen, tmp_path, capsys, change):
    """A value, the split, the genes, a cell's label; without a change the seed."""
    path = str(tmp_path / "plus-one.h5ad")
    kept_cells(path, "plus one", screen, starts_of(screen))
    capsys.readouterr()
    if change:
        change(screen)
    kept_cells(path, "plus one", screen, starts_of(screen), seed=0 if change else 1)
    assert counted.trained == ["plus one"] * 2
    assert capsys.readouterr().out.splitlines() == [
        f"{path}: of another screen, split, genes or seed; plus one is trained again"
    ]


def without_note(kept):
    del kept.uns["departures"]


def note_of_text(kept):
    kept.uns["departures"] = "text"


def without_labels(kept):
    del kept.obs["perturbation"]


def without_costs(kept):
    del kept.uns["departures"]["seconds"]


def without_layer(kept):
    del kept.layers["zeros_kept"]


@pytest.mark.parametrize(
    "damage", [without_note, note_of_text, without_labels, without_costs, without_layer]
)
def test_a_kept_file_that_lost_a_part_is_made_again(counted, screen, tmp_path, capsys, damage):
    path = str(tmp_path / "plus-one.h5ad")
    first, _ = kept_cells(path, "plus one", screen, starts_of(screen))
    kept = anndata.read_h5ad(path)
    damage(kept)
    kept.write_h5ad(path)
    again, _ = kept_cells(path, "plus one", screen, starts_of(screen))
    assert counted.trained == ["plus one"] * 2 and list(again) == list(first)
    said = f"{path}: not as it was written; plus one is trained again"
    assert said in capsys.readouterr().out


def test_the_fingerprint_is_that_of_the_content(screen, tmp_path):
    """Not of the file's name, nor of the object in memory."""
    copy = tmp_path / "copy.h5ad"
    copy.write_bytes((tmp_path / "s.h5ad").read_bytes())
    same = screens.prepare(str(copy), fraction=0.5)
    assert fingerprint(same, 0) == fingerprint(screen, 0)


# ---- The command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained_once(tmp_path_factory):
    """A folder with a small run in it."""
    folder = tmp_path_factory.mktemp("runs")
    toy_data.simulate_screen(20, 4, 400, seed=3).write_h5ad(folder / "s.h5ad")
    reading = {"path": str(folder / "s.h5ad"), "fraction": 0.5}
    screen = screens.prepare(**reading)
    own = ImprovedSettings(epochs=1, width=8, embedding=4, steps=2, grn="coexpression")
    model = train.build(screen, own, "cpu")
    groups = screen.fingerprint()
    state = {"epoch": 0, "epochs": 1, "optimiser": None, "log": [], "groups": groups}
    state["library"] = screen.library
    state["left_out"] = []
    save = partial(train.write_checkpoint, str(folder), model, own, reading)
    train.train(model, screen, own, str(folder), state, "cpu", save)
    sample.sample_run(str(folder), screen=screen)
    return folder


@pytest.fixture
def run(trained_once, tmp_path, monkeypatch):
    """A run, scored without figures, whose rivals/ is empty."""
    shutil.copytree(trained_once, tmp_path / "run")
    monkeypatch.setattr("report.scores.draw_scores", lambda *arguments: None)
    monkeypatch.setattr(evaluate, "SPLITS", 1)
    return tmp_path / "run"


def score(monkeypatch, *arguments):
    """`python evaluate.py ARGUMENTS`."""
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    evaluate.main()


def metrics(run):
    return json.loads((run / "metrics.json").read_text())


def test_a_trained_rival_is_scored_beside_the_others(counted, run, monkeypatch, capsys):
    """In every table; where it does not apply its entry is empty."""
    score(monkeypatch, run, "--rivals", "all", "--verbose")
    content = metrics(run)
    rows = {row["condition"]: row["scores"] for row in content["conditions"]}
    assert {c for c in rows if "Half" in rows[c]} == {c for c in rows if c.endswith("@typeA")}
    assert all("plus one" in rows[condition] for condition in rows)
    lines = [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]
    for row in ("plus one", "plus one, zeros kept", "Half", "Half, zeros kept"):
        assert lines.count(row) == lines.count("LAOT") > 0


def test_its_cells_score_what_they_are_worth(counted, run, monkeypatch):
    """A rival that answers with the controls scores as the controls do."""
    monkeypatch.setitem(evaluate.TRAINED, "still", counted.rival("still", 0))
    score(monkeypatch, run, "--rivals", "all")
    names = ("still", "control", "plus one", "plus one, zeros kept")
    for row in metrics(run)["conditions"]:
        still, control, plus, kept = (row["scores"][name]["EMD"]["all"] for name in names)
        assert still == pytest.approx(control, rel=0.1)
        assert plus > 1.1 * kept > 2 * still


def test_seconds_and_parameters_stand_beside_the_gap_that_is_closed(
    counted, run, monkeypatch, capsys
):
    """Those of the model too; of what was not trained, none."""
    score(monkeypatch, run, "--rivals", "half", "--verbose")
    parameters = sum(p.numel() for p in restored(run).parameters())
    costs = metrics(run)["costs"]
    assert costs["model"]["parameters"] == parameters and costs["Half"]["parameters"] == 1234
    assert costs["Half, zeros kept"] == costs["Half"]
    table = capsys.readouterr().out.split("gap closed: 0")[1].split("\n\n")[0].splitlines()
    assert table[2].split()[-2:] == ["seconds", "parameters"]
    ends = {line.split("  ")[0]: line.split()[-1] for line in table[3:]}
    assert (ends["Half"], ends["model"]) == ("1,234", f"{parameters:,}")
    assert "." in ends["LAOT"]  # its last number is a gap


def restored(run):
    """A run's model."""
    return sample.restore_model(sample.read_checkpoint(str(run)), "cpu")


def test_without_the_option_no_rival_is_trained_and_no_cost_is_shown(
    counted, run, monkeypatch, capsys
):
    score(monkeypatch, run, "--verbose")
    assert counted.trained == [] and not (run / "rivals").exists()
    assert "seconds" not in capsys.readouterr().out


def test_ctrl_c_loses_one_rival_at_most(counted, run, monkeypatch):
    """What was trained before it is not trained again."""
    fakes = {**evaluate.TRAINED, "slow": counted.rival("slow", 0, stops=True)}
    monkeypatch.setattr(evaluate, "TRAINED", fakes)
    monkeypatch.setattr(rivals, "TRAINED", fakes)
    with pytest.raises(KeyboardInterrupt):
        score(monkeypatch, run, "--rivals", "all")
    assert sorted(os.listdir(run / "rivals")) == ["half.h5ad", "plus-one.h5ad"]
    fakes["slow"] = counted.rival("slow", 0)
    score(monkeypatch, run, "--rivals", "all")
    assert counted.trained == ["plus one", "Half", "slow", "slow"]


def test_a_rivals_scores_do_not_depend_on_which_others_are_asked_for(counted, run, monkeypatch):
    score(monkeypatch, run, "--rivals", "half")
    alone = metrics(run)["summary"]["Half"]
    shutil.rmtree(run / "rivals")
    score(monkeypatch, run, "--rivals", "plus-one", "half")
    assert metrics(run)["summary"]["Half"] == alone


def test_the_seed_and_the_device_reach_the_rival(counted, run, monkeypatch):
    asked = []

    def noting(screen, seed=0, device="cpu"):
        asked.append((seed, device))
        return counted.rival("noting", 0)(screen)

    monkeypatch.setitem(evaluate.TRAINED, "noting", noting)
    score(monkeypatch, run, "--rivals", "noting", "--seed", 3, "--device", "cpu:0")
    assert asked == [(3, "cpu:0")]


def test_costs_are_averaged_over_pooled_runs(counted, run, tmp_path, monkeypatch, capsys):
    """A rival that some of the runs lack has none."""
    score(monkeypatch, run, "--rivals", "all")
    content = metrics(run)
    content["costs"] = {
        "plus one": {"seconds": 10.0, "parameters": 100},
        "Half": {"seconds": 1.0, "parameters": 1},
    }
    (run / "metrics.json").write_text(json.dumps(content))
    content["costs"] = {"plus one": {"seconds": 30.0, "parameters": 300}}
    (tmp_path / "other").mkdir()
    (tmp_path / "other/metrics.json").write_text(json.dumps(content))
    capsys.readouterr()
    score(monkeypatch, run, tmp_path / "other")
    table = capsys.readouterr().out.split("gap closed: 0")[1].splitlines()
    line = next(line for line in table if line.startswith("plus one"))
    assert line.split()[-2:] == ["20", "200"]
    assert "." in next(line for line in table if line.startswith("Half")).split()[-1]


def test_the_figure_shows_every_rival_and_the_five_best_in_each_condition(tmp_path, monkeypatch):
    drawn = []

    def instead(panel, rows, methods, colour, conditions):
        drawn.append((panel.figure.axes[0], methods))

    names = [f"rival {i}" for i in range(17)]
    gaps = {name: i / 20 for i, name in enumerate(names)} | {"model": 0.5}
    gaps = {
        name: {"E-distance": {"all": {"gap_closed": gap, "conditions": 0}}}
        for name, gap in gaps.items()
    }
    monkeypatch.setattr(scores, "draw_gap_of_conditions", instead)
    scores.draw_gap(str(tmp_path / "gap.png"), [], gaps)
    ((left, methods),) = drawn
    assert len(left.patches) == 18
    assert methods == ["model", *names[:-6:-1]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--rivals", "scgan"], "--rivals scgan: no such rival; there are all, scgen, ve"),
        (["run", "--rivals", "all", "PCA"], "--rivals PCA: no such rival"),
        (["a", "b", "--rivals", "all"], "--rivals are trained for .*: give one run"),
        (["run", "--training", "--rivals", "all"], "--rivals are .*: give one run, and not --tra"),
        (["--predicted", "p", "--data", "d", "--rivals", "all"], "--rivals are .*: give one run"),
        (["run", "--rivals", "all", "--device", "abacus"], "--device abacus: not available here"),
    ],
)
def test_what_cannot_be_trained_is_refused_in_one_line(monkeypatch, arguments, message):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *arguments])
    with pytest.raises(screens.InputError, match=message):
        evaluate.main()


def test_every_trained_rival_has_a_name_without_spaces_of_its_own():
    options = [rivals.option_of(name) for name in rivals.TRAINED]
    assert options[:2] == ["scgen", "vector-arithmetic"] and len(set(options)) == 6
    assert not set(rivals.TRAINED) & set(rivals.RIVALS)
