"""Sampling: what can be asked for of a run, and the cells that it answers with."""

import json
import os
import re
import shlex
import shutil
import sys
from functools import partial
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import evaluate
import sample
import screens
import train
from departures import ImprovedSettings
from examples import SYMBOLS, screen_of, screen_with, write
from interop import snippets
from screens import CONTROL
from toy_data import simulate_drug_screen, simulate_screen

QUICK = {"epochs": 1, "width": 16, "embedding": 4, "steps": 3, "grn": "coexpression"}
TRIPLE = "AHR+BAK1+KLF1"


def train_on(path, out, test, also=(), **changes):
    """Train on a file with conditions held out; returns the screen and the model."""
    own = ImprovedSettings(**{**QUICK, **changes})
    reading = {"path": str(path), "test": test}
    screen = screens.prepare(**reading)
    model = train.build(screen, own, "cpu", also)
    sample.check_predictable(model, screen, screen.held_out)
    state = {"epoch": 0, "epochs": 1, "optimiser": None, "log": []}
    state |= {"groups": screen.fingerprint(), "library": screen.library}
    state["left_out"] = train.leave_out(model, screen)
    save = partial(train.write_checkpoint, str(out), model, own, reading)
    train.train(model, screen, own, str(out), state, "cpu", save)
    return screen, model


@pytest.fixture(scope="module")
def genes(tmp_path_factory):
    """A run on single genes, pairs and a triple that is held out; STAT1 may be asked for."""
    out = tmp_path_factory.mktemp("genes")
    train_on(write("triples", out), out, [TRIPLE], also=["STAT1"])
    return str(out)


@pytest.fixture(scope="module")
def drugs(tmp_path_factory):
    """A run on sci-Plex3's three cell types, with a dose of a drug in one of them held out."""
    out = tmp_path_factory.mktemp("drugs")
    train_on(write("sciplex_chemcpa", out), out, ["Givinostat:0.1@A549"])
    return str(out)


def restored(run):
    """The screen, the model and the groups of a run."""
    content = sample.read_checkpoint(run)
    screen = screens.prepare(**content["reading"])
    return screen, sample.restore_model(content, "cpu"), content["groups"]


def cells_of(run, *names, **options):
    """The cells that a run answers with to the names of conditions."""
    out = f"{run}/cells.h5ad"
    return anndata.read_h5ad(sample.sample_run(run, conditions=names, out=out, **options))


# ---- What is asked for ---------------------------------------------------------------------------


def asked(run, name):
    """The conditions that a name means in a run."""
    screen, model, groups = restored(run)
    return sample.asked(screen, model, name, groups)


def test_a_drugs_name_alone_asks_for_each_dose_that_was_measured(drugs):
    """In every cell type, or in the one that is named."""
    doses = ["Givinostat:0.1", "Givinostat:1"]
    types = ["A549", "K562", "MCF7"]
    assert asked(drugs, "Givinostat@K562") == [(dose, "K562") for dose in doses]
    assert asked(drugs, "Givinostat") == [(dose, t) for dose in doses for t in types]


def test_a_drug_can_be_asked_for_at_any_dose(drugs):
    """However the number is written."""
    assert asked(drugs, "Belinostat:0.30@MCF7") == [("Belinostat:0.3", "MCF7")]


def test_genes_can_be_asked_for_in_any_order(genes):
    """Measured together or not."""
    assert asked(genes, "KLF1+AHR") == [("AHR+KLF1", "A549")]
    assert asked(genes, "STAT1+KLF1+AHR@A549") == [("AHR+KLF1+STAT1", "A549")]


UNPREDICTABLE = {
    "KLF1+MALAT1": "'MALAT1': .* measured, but no node of the network; .* train with --also GENE",
    "KLF1+XYZ1": "'XYZ1': .* not among the measured genes; .* train with --also GENE",
}


@pytest.mark.parametrize("name", UNPREDICTABLE)
def test_a_target_of_which_nothing_is_known_is_refused(genes, tmp_path, name):
    """Even beside one that is known; the line says why, and what to do."""
    with pytest.raises(screens.InputError, match=f"cannot predict {UNPREDICTABLE[name]}"):
        sample.sample_run(genes, conditions=[name], out=str(tmp_path / "cells.h5ad"))
    assert os.listdir(tmp_path) == []


SPELLED = {  # names that are not there, and what was meant
    "KLF11+AHR": "did you mean KLF1?",
    "bak1": "did you mean BAK1?",
    "KLF1@A594": "did you mean A549?",
}


@pytest.mark.parametrize("name", SPELLED)
def test_a_name_that_is_spelled_almost_like_another_is_told(genes, name):
    """Of a gene, whatever its case, and of a cell type."""
    with pytest.raises(screens.InputError) as error:
        cells_of(genes, name)
    assert str(error.value).endswith(SPELLED[name])


def test_names_of_conditions_to_hold_out_and_of_genes_to_ask_for_later_are_told_too(genes):
    """--test and --also of train.py."""
    screen, _, _ = restored(genes)
    with pytest.raises(screens.InputError, match=r"did you mean BAK1\+KLF1 or"):
        screens.resolve(screen, "BAK1+KLF2")
    with pytest.raises(screens.InputError, match="did you mean STAT1"):
        train.check_also(["STAT11"], screen, None, {})
    with pytest.raises(screens.InputError, match="gene-embedding$"):
        train.check_also(["XYZ"], screen, None, {})


def test_a_drug_of_which_nothing_is_known_is_refused(drugs):
    """The remedy is a table of structures."""
    screen, model, _ = restored(drugs)
    message = "'Aspirin': .* nothing is known of its structure; .* train with --drug-embedding"
    with pytest.raises(screens.InputError, match=message):
        sample.check_predictable(model, screen, [("Aspirin:1", "A549")])


def test_what_was_seen_or_is_reached_can_be_predicted(genes):
    """STAT1 is reached only; without the network it is refused."""
    screen, model, _ = restored(genes)
    wanted = [("KLF1+STAT1", "A549")]
    assert sample.check_predictable(model, screen, wanted) is None
    model.encoder.effects.zero_()
    with pytest.raises(screens.InputError, match="cannot predict 'STAT1'"):
        sample.check_predictable(model, screen, wanted)


NAMES = {  # combinations that nobody measured, and their canonical names
    "KLF1+AHR": "AHR+KLF1@A549",
    "STAT1+KLF1@A549": "KLF1+STAT1@A549",
    "STAT1+AHR+KLF1": "AHR+KLF1+STAT1@A549",
}


@pytest.mark.parametrize("name", NAMES)
def test_combinations_of_two_and_three_can_be_predicted(genes, name):
    """Of seen genes, and with one that nobody perturbed."""
    cells = cells_of(genes, name, cells=7)
    assert cells.obs["condition"].tolist() == [NAMES[name]] * 7
    assert cells.var["gene_name"].tolist() == SYMBOLS
    assert np.isfinite(cells.X.data).all()


def conditions_in(path):
    """{condition: number of cells} of a file."""
    return anndata.read_h5ad(path).obs["condition"].value_counts().to_dict()


def test_by_default_every_held_out_condition_is_predicted(drugs):
    """With as many cells as were measured."""
    assert conditions_in(sample.sample_run(drugs)) == {"Givinostat:0.1@A549": 12}
    assert os.path.exists(f"{drugs}/predicted.h5ad")


def test_all_training_conditions_can_be_predicted_instead(drugs):
    """Without the controls and what is held out; in a file of their own."""
    path = sample.sample_run(drugs, training=True, cells=2)
    screen, _, _ = restored(drugs)
    expected = {"@".join(key) for key in screen.training_groups() if key[0] != CONTROL}
    assert path == f"{drugs}/training.h5ad"
    assert conditions_in(path) == dict.fromkeys(expected, 2)


def test_a_condition_that_nobody_measured_has_200_cells(genes):
    """Those asked for by name have a file of their own."""
    path = sample.sample_run(genes, conditions=["KLF1+AHR", "AHR"])
    assert path == f"{genes}/asked.h5ad"
    assert conditions_in(path) == {"AHR+KLF1@A549": 200, "AHR@A549": 12}


def test_cells_that_were_asked_for_before_are_not_lost_without_a_word(genes, tmp_path):
    """Unless the file is named; to ask for the same again, or for more, needs no name."""
    shutil.copy(f"{genes}/model.pt", tmp_path)
    run = str(tmp_path)
    path = sample.sample_run(run, conditions=["KLF1"], cells=2)
    before = Path(path).read_bytes()
    with pytest.raises(screens.InputError, match="holds cells of KLF1@A549.* --out .*asked.h5ad"):
        sample.sample_run(run, conditions=["BAK1"])
    assert Path(path).read_bytes() == before
    for _ in range(2):
        sample.sample_run(run, conditions=["KLF1", "BAK1"], cells=3, with_controls=True)
    sample.sample_run(run, conditions=["BAK1"], cells=4, out=path)
    assert conditions_in(path) == {"BAK1@A549": 4}


def test_where_nothing_is_held_out_the_file_is_empty_and_it_says_so(genes, tmp_path, capsys):
    """It names the option that helps."""
    screen, _, _ = restored(genes)
    screen.held_out = set()
    path = sample.sample_run(genes, screen=screen, out=str(tmp_path / "none.h5ad"))
    assert anndata.read_h5ad(path).shape == (0, 10)
    assert "no held-out conditions" in capsys.readouterr().out


def test_a_run_that_is_not_finished_is_sampled_with_a_note(genes, tmp_path, capsys):
    """It says how to go on."""
    content = sample.read_checkpoint(genes)
    torch.save({**content, "epochs": 9}, tmp_path / "model.pt")
    cells_of(tmp_path, "KLF1", cells=1)
    assert f"1 of 9 epochs; train.py --resume {tmp_path} goes on" in capsys.readouterr().out


def test_a_file_that_changed_since_is_refused(genes, tmp_path):
    """Nothing is written."""
    content = sample.read_checkpoint(genes)
    adata = anndata.read_h5ad(content["reading"]["path"])
    adata = adata[(adata.obs["condition"] != "KLF1+BAK1").to_numpy()]
    adata.write_h5ad(tmp_path / "changed.h5ad")
    reading = {**content["reading"], "path": str(tmp_path / "changed.h5ad")}
    torch.save({**content, "reading": reading}, tmp_path / "model.pt")
    with pytest.raises(screens.InputError, match="the file has changed since"):
        sample.sample_run(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["changed.h5ad", "model.pt"]


# ---- Seeds ---------------------------------------------------------------------------------------


def test_the_cells_of_a_condition_do_not_depend_on_what_else_is_sampled(genes):
    """Each has a seed of its own."""
    alone = cells_of(genes, "KLF1")
    both = cells_of(genes, "BAK1", "KLF1")
    same = both[both.obs["perturbation"] == "KLF1"]
    assert np.array_equal(alone.X.toarray(), same.X.toarray())
    assert alone.obs["control_cell"].tolist() == same.obs["control_cell"].tolist()


def test_another_seed_gives_other_cells_and_the_runs_own_is_the_default(genes):
    """It is written into the file."""
    default, own, other = [cells_of(genes, "KLF1", seed=seed) for seed in (None, 0, 1)]
    assert np.array_equal(default.X.toarray(), own.X.toarray())
    assert not np.array_equal(default.X.toarray(), other.X.toarray())
    assert [cells.uns["departures"]["seed"] for cells in (default, other)] == [0, 1]


def test_conditions_do_not_share_their_random_numbers(genes):
    """Nor do they start at the same controls in the same order."""
    one, other = cells_of(genes, "KLF1"), cells_of(genes, "BAK1")
    assert one.obs["control_cell"].tolist() != other.obs["control_cell"].tolist()
    seeds = [sample.own_seed(0, p, t) for p, t in (("A", "t"), ("B", "t"), ("A", "u"))]
    assert len({*seeds, sample.own_seed(1, "A", "t")}) == 4


def test_a_conditions_seed_is_the_same_in_every_process():
    """Unlike Python's own hash of a text."""
    assert sample.own_seed(3, "KLF1", "A549") == 3800988295


# ---- Where cells start ---------------------------------------------------------------------------


@given(controls=st.integers(1, 9), n=st.integers(1, 40), seed=st.integers(0, 9))
@settings(deadline=None)
def test_each_control_is_used_once_before_any_is_used_again(controls, n, seed):
    """And those of other cell types never."""
    labels = [CONTROL] * controls + [CONTROL] * 5
    screen = screen_with(np.ones((len(labels), 1)), labels, ["t"] * controls + ["u"] * 5)
    rows = sample.draw_controls(screen, "t", n, np.random.default_rng(seed))
    used = np.bincount(rows, minlength=controls)
    assert len(rows) == n == used[:controls].sum()
    assert used[:controls].max() - used[:controls].min() <= 1


def test_controls_are_drawn_in_a_random_order():
    """So that few cells are not the first of the file."""
    screen = screen_with(np.ones((400, 1)), [CONTROL] * 400, ["t"] * 400)
    rows = sample.draw_controls(screen, "t", 400, np.random.default_rng(0))
    assert abs(np.corrcoef(rows, np.arange(400))[0, 1]) < 5 / 20


class Recorder:
    """In place of `departures.sample`: records what it is shown, and hands the start back."""

    def __init__(self):
        self.conditions = []
        self.numbers = []
        self.starts = []

    def __call__(self, model, x0, d0, conditions, noise):
        self.conditions.append(conditions)
        self.numbers.append(noise.normal(torch.empty(1)).item())
        self.starts.append((x0, d0))
        return x0 * d0, x0


def recorded(run, monkeypatch, perturbation, cell_type, n):
    """What the sampler is shown for n cells of a condition in batches of 5, and what comes back."""
    screen, model, _ = restored(run)
    recorder = Recorder()
    monkeypatch.setattr(sample, "sample", recorder)
    values = sample.control_values(model, screen, "cpu")
    cells = screens.Cells(screen.X, "cpu")
    made = sample.predict(
        model, screen, cells, perturbation, cell_type, n, values, 0, "cpu", batch=5
    )
    return screen, model, recorder, made


def test_each_predicted_cell_is_in_the_row_of_the_control_that_it_started_from(genes, monkeypatch):
    """Over all batches."""
    screen, _, recorder, made = recorded(genes, monkeypatch, "KLF1", "A549", 12)
    predicted, levels, rows = made
    assert np.array_equal(predicted.toarray(), screen.dense(rows))
    assert levels.shape == predicted.shape == (12, 10)
    assert np.isin(rows, screen.controls("A549")).all()


def test_silent_genes_begin_with_a_draw_from_the_controls_of_the_same_type(drugs, monkeypatch):
    """And are known to be off."""
    screen, _, recorder, _ = recorded(drugs, monkeypatch, "Givinostat:1", "K562", 12)
    controls = screen.dense(screen.controls("K562"))
    x0, d0 = (torch.cat(parts).numpy() for parts in zip(*recorder.starts, strict=True))
    assert (d0 == 0).any() and (x0 > 0).all()
    for i in range(x0.shape[1]):
        assert np.isin(x0[:, i], controls[:, i]).all()


def test_the_sampler_is_asked_for_the_condition(drugs, monkeypatch):
    """The drug, its dose and the cell type, by their numbers."""
    _, model, recorder, _ = recorded(drugs, monkeypatch, "Givinostat:0.3", "K562", 2)
    target, dose, cell_type = recorder.conditions[0]
    assert target.tolist() == [[model.targets.index("Givinostat")]]
    assert dose.tolist() == [[pytest.approx(0.3)]]
    assert cell_type.tolist() == [model.cell_types.index("K562")]


def test_batches_of_a_condition_have_random_numbers_of_their_own(genes, monkeypatch):
    """Three batches of five cells at most."""
    _, _, recorder, _ = recorded(genes, monkeypatch, "KLF1", "A549", 12)
    assert len(set(recorder.numbers)) == 3


@pytest.mark.parametrize("anchor, simulated", [(True, 64), (False, 5)])
def test_with_an_anchor_64_cells_stand_for_a_condition_of_few(
    genes, monkeypatch, anchor, simulated
):
    """Without one no cell is simulated for nothing."""
    recorder = Recorder()
    monkeypatch.setattr(sample, "sample", recorder)
    screen, model, _ = restored(genes)
    model.settings.anchor = anchor
    cells = screens.Cells(screen.X, "cpu")
    made = sample.predict(model, screen, cells, "KLF1", "A549", 5, None, 0, "cpu")
    assert [len(x0) for x0, _ in recorder.starts] == [simulated]
    assert [part.shape[0] for part in made] == [5, 5, 5]


def test_few_cells_are_the_first_of_64(genes):
    """Their means over cells were put in the same place."""
    screen, model, _ = restored(genes)
    values = sample.control_values(model, screen, "cpu")
    cells = screens.Cells(screen.X, "cpu")
    few, many = (
        sample.predict(model, screen, cells, "KLF1", "A549", n, values, 0, "cpu") for n in (5, 64)
    )
    assert np.array_equal(few[0].toarray(), many[0].toarray()[:5])
    assert np.array_equal(few[1].toarray(), many[1].toarray()[:5])
    assert np.array_equal(few[2], many[2][:5])


# ---- Other control cells -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def other_cells(genes, tmp_path_factory):
    """A file of controls only, of A549 and HeLa, with the genes in another order and one more."""
    symbols = ["EXTRA", *reversed(SYMBOLS)]
    rng = np.random.default_rng(1)
    X = rng.gamma(2.0, 0.7, (40, 11)) * (rng.random((40, 11)) < 0.6)
    X[:, 0] = 0.5
    obs = pd.DataFrame(
        {"condition": "ctrl", "cell_type": np.repeat(["A549", "HeLa"], 20)},
        [f"new{i}" for i in range(40)],
    )
    path = tmp_path_factory.mktemp("other") / "other.h5ad"
    X = sparse.csr_matrix(X.astype(np.float32))
    anndata.AnnData(X, obs, pd.DataFrame(index=symbols)).write_h5ad(path)
    return str(path)


def test_other_controls_have_the_runs_genes_in_the_runs_order(genes, other_cells):
    """Whatever theirs is."""
    content = sample.read_checkpoint(genes)
    screen = sample.run_screen(content, other_cells, {})
    X = anndata.read_h5ad(other_cells)[:, SYMBOLS].X.toarray()
    assert screen.genes.tolist() == content["genes"] == SYMBOLS
    assert np.array_equal(screen.dense(np.arange(40)), X)


@pytest.fixture(scope="module")
def scales(tmp_path_factory):
    """A screen of counts, what a run on it keeps of it, and the small cells among its controls.

    These as counts and as log1p: the paths of two files.
    """
    folder = tmp_path_factory.mktemp("scales")
    simulate_screen(30, 4, 400, seed=0).write_h5ad(folder / "log1p.h5ad")
    adata = anndata.read_h5ad(folder / "log1p.h5ad")
    adata.X = adata.layers["counts"]
    adata.write_h5ad(folder / "counts.h5ad")
    reading = {"path": str(folder / "counts.h5ad")}
    screen = screens.prepare(**reading)
    size = np.asarray(adata.X.sum(1)).ravel()
    few = size < np.median(size)
    rows = np.flatnonzero(few & (screen.perturbation == CONTROL))
    adata[rows].copy().write_h5ad(folder / "few.h5ad")
    log1p = anndata.AnnData(screen.X[rows], adata.obs.iloc[rows], adata.var)
    log1p.write_h5ad(folder / "few_log1p.h5ad")
    content = {
        "genes": screen.genes.tolist(),
        "kind": "gene",
        "reading": reading,
        "library": screen.library,
    }
    return screen.dense(rows), content, str(folder / "few.h5ad"), str(folder / "few_log1p.h5ad")


def test_counts_of_other_controls_are_scaled_to_the_runs_library(scales, capsys):
    """The run's own controls are what they were in the run; what was understood is printed."""
    own, content, counts, _ = scales
    screen = sample.run_screen(content, counts, {})
    assert np.allclose(screen.X.toarray(), own, atol=1e-6)
    printed = capsys.readouterr().out
    assert f"normalised to the run's library ({content['library'][0]:,.0f})" in printed
    assert "cell types from 'cell_type'" in printed and "warning" not in printed


def test_log1p_of_other_controls_is_said_to_be_of_another_scale_than_counts(scales, capsys):
    """And the reverse, where the run's file was log1p."""
    _, content, counts, log1p = scales
    sample.run_screen(content, log1p, {})
    assert "it is log1p already, that was counts" in capsys.readouterr().out
    sample.run_screen({**content, "library": None}, counts, {})
    assert "it is counts, that was log1p of a library that is not known" in capsys.readouterr().out


def test_libraries_over_other_genes_are_said_to_be_another_scale(scales, capsys):
    """They are smaller, where a file holds the run's genes only."""
    _, content, counts, _ = scales
    few = {**content, "genes": content["genes"][:20], "library": [content["library"][0], 29]}
    sample.run_screen(few, counts, {})
    printed = capsys.readouterr().out
    assert "its libraries are counted over 30 genes, that file's over 29" in printed


def other_file(other_cells, folder, change):
    """Another file of controls, as it was changed; its path."""
    adata = change(anndata.read_h5ad(other_cells))
    adata.write_h5ad(folder / "changed.h5ad")
    return str(folder / "changed.h5ad")


def without_column(adata):
    """Cells of which no column says the perturbation."""
    del adata.obs["condition"]
    return adata


@pytest.mark.parametrize("reading", [{}, {"perturbation_column": "mine", "control": "none"}])
def test_cells_of_which_nothing_says_the_perturbation_are_all_controls(
    genes, other_cells, tmp_path, capsys, reading
):
    """Whatever the column was called in the run's own file; a line says so."""
    path = other_file(other_cells, tmp_path, without_column)
    content = sample.read_checkpoint(genes)
    content["reading"] |= reading
    screen = sample.run_screen(content, path, {})
    assert len(screen.controls("A549")) == len(screen.controls("HeLa")) == 20
    assert "every cell is taken as a control" in capsys.readouterr().out


@pytest.mark.parametrize("named", [{"perturbation_column": "mine"}, {"control": "none"}])
def test_a_column_or_a_label_that_was_named_has_to_be_there(genes, other_cells, tmp_path, named):
    """A slip of the pen does not make treated cells controls."""
    path = other_file(other_cells, tmp_path, without_column)
    with pytest.raises(screens.InputError, match="no column 'mine'|no perturbation column"):
        sample.run_screen(sample.read_checkpoint(genes), path, named)


def test_other_controls_without_some_of_the_runs_genes_are_refused(genes, other_cells, tmp_path):
    """With the way out."""
    path = other_file(other_cells, tmp_path, lambda adata: adata[:, 3:])
    message = "lacks 2 of the run's 10 genes, such as AHR; .* train on the genes of both files"
    with pytest.raises(screens.InputError, match=message):
        sample.run_screen(sample.read_checkpoint(genes), path, {})


def test_columns_of_other_controls_can_be_named(genes, other_cells, tmp_path):
    """Where they are not those of the run's own file."""
    adata = anndata.read_h5ad(other_cells)
    adata.obs = adata.obs.rename(columns={"cell_type": "mine"})
    adata.write_h5ad(tmp_path / "renamed.h5ad")
    content = sample.read_checkpoint(genes)
    screen = sample.run_screen(
        content, str(tmp_path / "renamed.h5ad"), {"cell_type_column": "mine"}
    )
    assert screen.cell_types == ["A549", "HeLa"]


def test_cells_of_a_new_type_start_from_its_own_controls(genes, other_cells):
    """It is enough to have controls of it."""
    cells = cells_of(genes, "KLF1@HeLa", cells=20, path=other_cells)
    assert set(cells.obs["cell_type"]) == {"HeLa"}
    assert sorted(cells.obs["control_cell"]) == sorted(f"new{i}" for i in range(20, 40))
    assert cells.uns["departures"]["controls"] == other_cells


def test_every_cell_type_of_other_controls_is_described_by_them(genes, other_cells):
    """The new one, and the known one again."""
    screen = sample.run_screen(sample.read_checkpoint(genes), other_cells, {})
    _, model, _ = restored(genes)
    sample.describe_new_types(model, screen, replace=True)
    assert model.cell_types == ["A549", "HeLa"]
    for k, cell_type in enumerate(model.cell_types):
        X = screen.dense(screen.controls(cell_type))
        assert np.allclose(model.control_mean[k], X.mean(0), atol=1e-5)


def test_unperturbed_other_controls_stay_where_they_are(genes, other_cells):
    """What training found of the run's own controls, which are samples, is not said of them."""
    _, model, _ = restored(genes)
    control = sample.conditions_of(model, [(CONTROL, "A549")])
    assert model.encoder.eval()(control, model).any()
    screen = sample.run_screen(sample.read_checkpoint(genes), other_cells, {})
    sample.describe_new_types(model, screen, replace=True)
    both = sample.conditions_of(model, [(CONTROL, "A549"), (CONTROL, "HeLa")])
    assert not model.encoder(both, model).any()


def test_cell_types_of_the_runs_own_screen_stay_as_they_were_described(genes):
    """Nothing is described twice."""
    screen, model, _ = restored(genes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.control_mean += 1
    sample.describe_new_types(model, screen, replace=False)
    assert torch.equal(model.control_mean, before["control_mean"] + 1)


def test_a_gene_that_a_new_types_controls_never_express_has_the_level_of_the_others(genes):
    """Of all the controls in that file together."""
    means = {(CONTROL, "HeLa"): np.ones(10), (CONTROL, "Jurkat"): np.full(10, 3.0)}
    means[CONTROL, "HeLa"][4] = 0
    _, model, _ = restored(genes)
    sample.describe_new_types(model, screen_of(means, genes=SYMBOLS), replace=True)
    assert model.cell_types == ["A549", "HeLa", "Jurkat"]
    assert model.control_level[1].tolist() == [1, 1, 1, 1, 3, 1, 1, 1, 1, 1]


def test_each_type_draws_from_its_own_values_where_others_of_the_run_have_no_cells(genes):
    """A549 has none in this file; HeLa's and Jurkat's values are their own."""
    means = {(CONTROL, "HeLa"): np.ones(10), (CONTROL, "Jurkat"): np.full(10, 3.0)}
    screen = screen_of(means, genes=SYMBOLS)
    _, model, _ = restored(genes)
    sample.describe_new_types(model, screen, replace=True)
    values = sample.control_values(model, screen, "cpu")
    filled = values.fill(torch.zeros(2, 10), torch.tensor([1, 2]), sample.Noise(0))
    assert filled.tolist() == [[1.0] * 10, [3.0] * 10]


def test_a_model_without_if_expressed_levels_has_no_values_to_draw(genes):
    """--no-if-expressed."""
    screen, model, _ = restored(genes)
    model.settings.if_expressed = False
    assert sample.control_values(model, screen, "cpu") is None


# ---- predicted.h5ad ------------------------------------------------------------------------------


def test_predicted_cells_are_sparse_and_not_negative(drugs):
    """The layer holds the levels before the mask, and X those of the genes that are on."""
    cells = anndata.read_h5ad(sample.sample_run(drugs))
    levels = cells.layers["if_expressed"].toarray()
    X = cells.X.toarray()
    assert sparse.isspmatrix_csr(cells.X) and cells.X.dtype == np.float32
    assert (levels >= 0).all() and (X >= 0).all()
    assert np.array_equal(X[X > 0], levels[X > 0])


def test_the_level_of_a_gene_that_is_off_is_kept_in_the_layer(drugs):
    """Some genes are off, and have a level nevertheless."""
    cells = anndata.read_h5ad(sample.sample_run(drugs))
    off = cells.X.toarray() == 0
    assert off.any()
    assert (cells.layers["if_expressed"].toarray()[off] > 0).any()


def test_predicted_cells_say_what_they_are(drugs):
    """In the columns that Scanpy and cell-eval look for, and a drug's dose."""
    obs = anndata.read_h5ad(sample.sample_run(drugs)).obs
    expected = {
        "perturbation": "Givinostat:0.1",
        "cell_type": "A549",
        "condition": "Givinostat:0.1@A549",
        "is_predicted": True,
        "dose": 0.1,
    }
    assert set(obs) == {*expected, "control_cell"}
    assert obs.index.is_unique
    for name, value in expected.items():
        assert (obs[name] == value).all()


def test_each_predicted_cell_names_the_control_that_it_started_from(drugs):
    """Twelve of twelve, each once."""
    screen, _, _ = restored(drugs)
    obs = anndata.read_h5ad(sample.sample_run(drugs)).obs
    assert sorted(obs["control_cell"]) == sorted(screen.cells[screen.controls("A549")])


def test_predicted_cells_of_genes_have_no_dose_and_the_files_own_gene_names(genes):
    """The index is the file's, the symbols are beside it."""
    cells = cells_of(genes, "KLF1")
    source = anndata.read_h5ad(sample.read_checkpoint(genes)["reading"]["path"])
    assert "dose" not in cells.obs
    assert cells.var_names.tolist() == source.var_names.tolist()
    assert cells.var["gene_name"].tolist() == SYMBOLS


def test_a_predicted_file_says_which_run_made_it(genes):
    """With its settings, and how its screen is read."""
    about = cells_of(genes, "KLF1").uns["departures"]
    content = sample.read_checkpoint(genes)
    assert about["run"] == genes and about["controls"] == content["reading"]["path"]
    assert json.loads(about["settings"]) == content["settings"]
    assert json.loads(about["reading"]) == content["reading"]


@pytest.fixture(scope="module")
def copied(drugs):
    """The controls that were copied in beside a prediction, and their rows in the screen."""
    cells = cells_of(drugs, "Givinostat:1@K562", with_controls=True)
    screen, _, _ = restored(drugs)
    return cells[~cells.obs["is_predicted"].to_numpy()], screen, screen.controls("K562")


def test_the_real_controls_can_be_copied_in(copied):
    """Those of the predicted types, as they were measured; what was measured is their level."""
    controls, screen, rows = copied
    assert controls.obs["control_cell"].tolist() == screen.cells[rows].tolist()
    for values in (controls.X, controls.layers["if_expressed"]):
        assert np.array_equal(values.toarray(), screen.dense(rows))


def test_real_controls_are_called_that_and_have_no_dose(copied):
    """In a screen of drugs a control's dose is not a number."""
    obs = copied[0].obs
    assert set(obs["condition"]) == {"control@K562"}
    assert obs["dose"].isna().all()


def test_which_genes_change_is_written_beside_the_cells_and_into_the_file(genes, capsys):
    """The same table, by condition; what was asked for by name is said in words, too."""
    cells = cells_of(genes, "KLF1", "KLF1+AHR")
    inside = cells.uns["predicted_genes"]
    beside = pd.read_csv(f"{genes}/cells_genes.csv")
    assert list(beside) == list(inside)
    assert beside["gene"].tolist() == inside["gene"].tolist() and len(inside) == 2 * len(SYMBOLS)
    assert "\nKLF1@A549: up " in capsys.readouterr().out


def test_the_table_of_genes_is_of_the_cells_in_the_file(genes):
    """Predicted against the real controls; measured where the condition was."""
    cells = cells_of(genes, "KLF1", "KLF1+AHR", with_controls=True)
    table = cells.uns["predicted_genes"].set_index(["condition", "gene"])
    for condition, column in (("KLF1@A549", "predicted_mean"), ("control@A549", "control_mean")):
        mean = cells[cells.obs["condition"] == condition].X.toarray().mean(0)
        assert np.allclose(table.loc["KLF1@A549"].loc[SYMBOLS, column], mean, atol=1e-6)
    assert table["measured_mean"].isna().tolist() == [False] * 10 + [True] * 10


def test_the_snippets_for_other_tools_run(genes, tmp_path, monkeypatch, capsys):
    """Those that need no other tool, on this run under the name of theirs: see tests/interop.sh."""
    (tmp_path / "runs/simulated").mkdir(parents=True)
    shutil.copy(f"{genes}/model.pt", tmp_path / "runs/simulated")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("report.scores.draw_scores", lambda *arguments, **options: None)
    monkeypatch.setattr("report.paths.draw_paths", lambda *arguments: None)
    sample.sample_run("runs/simulated")  # as train.py does
    ran = []
    names = {}
    for language, text in snippets():
        text = text.replace("TF003", TRIPLE).replace("typeA", "A549")
        if language != "python":
            for command in [line for line in text.splitlines() if line.startswith("python ")]:
                _, script, *arguments = shlex.split(command)
                monkeypatch.setattr(sys, "argv", [script, *arguments])
                {"sample.py": sample, "evaluate.py": evaluate}[script].main()
                ran.append(script)
        elif not re.search("scanpy|pertpy", text):
            exec(text, names)
            ran.append("python")
    assert sorted(ran) == ["evaluate.py", "python", "sample.py"]
    assert len(names["of_one"]) == len(SYMBOLS)
    for path in ("runs/simulated/predicted.h5ad", "truth.h5ad"):
        assert (anndata.read_h5ad(path).obs["perturbation"] == CONTROL).any()


def test_the_snippet_cuts_a_screen_to_the_genes_of_other_controls(
    other_cells, tmp_path, monkeypatch
):
    """Which then lack none of the genes of a run on it."""
    monkeypatch.chdir(tmp_path)
    anndata.read_h5ad(other_cells).write_h5ad("screen.h5ad")
    anndata.read_h5ad(other_cells)[:, 3:9].write_h5ad("new_controls.h5ad")
    for _, text in snippets("Other control cells"):
        exec(text, {})
    assert anndata.read_h5ad("shared.h5ad").var_names.tolist() == [*reversed(SYMBOLS)][2:8]


# ---- Paths ---------------------------------------------------------------------------------------


def test_the_paths_are_drawn_of_the_genes_that_rise_fall_and_switch_most(genes, monkeypatch):
    """From the controls, through all steps, to the end."""
    drawn = []

    def fake(model, x0, d0, conditions, noise, trace):
        end = x0.clone()
        end[:, 2] += 5
        end[:, 6] = 0
        end[:, 8] = 0.01
        middle = d0.clone()
        middle[:, 8] = 1
        middle[:, 9] = 1 - d0[:, 9]  # and back again in the last step
        trace += [(x0, d0), (0.5 * (x0 + end), middle)]
        return end, end

    monkeypatch.setattr(sample, "sample", fake)
    monkeypatch.setattr("report.paths.draw_paths", lambda *arguments: drawn.append(arguments))
    screen, model, _ = restored(genes)
    X = screen.dense(np.arange(len(screen.cells)))
    X[:, 6] += 4
    X[:, 8] = 0
    other = screen_with(X, screen.perturbation, screen.cell_type, screen.genes)
    sample.trace_paths("paths.png", model, other, "KLF1", "A549", None, 0, "cpu", cells=8)
    ((path, x, d, names, condition),) = drawn
    assert names.tolist() == [SYMBOLS[i] for i in (2, 6, 8)]
    assert x.shape == d.shape == (3, 8, 3)
    assert np.array_equal(x[0], X[other.controls("A549")[:8]][:, [2, 6, 8]])


def test_paths_are_drawn_of_the_held_out_conditions_only(genes):
    """In the run's figures."""
    figure = Path(genes, "figures/paths.png")
    cells_of(genes, "KLF1")
    assert not figure.exists()
    sample.sample_run(genes)
    assert figure.stat().st_size > 10_000


# ---- What is learnt ------------------------------------------------------------------------------

LEARNING = {"epochs": 10, "batch": 128, "width": 64, "embedding": 64, "steps": 50}


def distances(out, screen):
    """{condition: {method: mean E-distance over all genes}} of what a run predicts."""
    predicted = evaluate.read_predicted(sample.sample_run(str(out), screen=screen), screen)
    rows = evaluate.score(screen, predicted)
    return {
        row["condition"]: {
            name: scores["E-distance"]["all"] for name, scores in row["scores"].items()
        }
        for row in rows
    }


def total(found, start):
    """The sum over the conditions that begin with `start`, by method, and their number."""
    mine = [scores for condition, scores in found.items() if condition.startswith(start)]
    methods = ("model", "control", "perturbed mean")
    return {method: sum(scores[method] for scores in mine) for method in methods}, len(mine)


@pytest.fixture(scope="module")
def unseen(tmp_path_factory):
    """Distances of a drug screen of three families with a dose, a cell type and a drug unseen."""
    out = tmp_path_factory.mktemp("unseen")
    simulate_drug_screen(100, 12, 4000, seed=1).write_h5ad(out / "s.h5ad")
    screen, _ = train_on(out / "s.h5ad", out, ["B-1:0.1", "B-2@typeB", "C-3"], **LEARNING)
    return distances(out, screen)


UNSEEN = {  # start of the conditions' names, how many there are, and how near they must come
    "dose": ("B-1:0.1@", 3, 0.5),
    "cell type": ("B-2:", 4, 0.6),
    "drug": ("C-3:", 12, 0.75),
}


@pytest.mark.parametrize("kind", UNSEEN)
def test_what_is_unseen_of_a_drug_is_nearer_than_controls_and_the_mean(unseen, kind):
    """A dose between others, a cell type, and a drug known by its structure."""
    start, conditions, share = UNSEEN[kind]
    distance, n = total(unseen, start)
    assert n == conditions
    assert distance["model"] < share * min(distance["control"], distance["perturbed mean"])


@pytest.fixture(scope="module")
def unmeasured(tmp_path_factory):
    """A screen without a gene that was perturbed, and its symbol.

    Beside it stand the network it belongs to, and eight numbers of each perturbed gene, in which
    genes of like effects are alike.
    """
    out = tmp_path_factory.mktemp("unmeasured")
    adata = simulate_screen(100, 12, 4000, seed=2)
    symbols = adata.var["gene_name"].to_numpy()
    W = adata.varp["grn"].tocoo()
    target = adata.varm["effect"].abs().sum(0).nlargest(2).index[1]
    edges = {"source": symbols[W.col], "target": symbols[W.row], "weight": W.data}
    pd.DataFrame(edges).to_csv(out / "edges.csv", index=False)
    effect = adata.varm["effect"].T  # a row for each perturbed gene
    axes = np.random.default_rng(0).normal(size=(effect.shape[1], 8))
    (effect @ axes).to_csv(out / "genes.csv")
    panel = adata[:, symbols != target].copy()
    del panel.varm["effect"]
    panel.write_h5ad(out / "s.h5ad")
    return out, target


def test_a_target_that_is_neither_measured_nor_seen_is_refused(unmeasured):
    """Before any training."""
    out, target = unmeasured
    with pytest.raises(
        screens.InputError, match=f"cannot predict '{target}'.* --grn or --gene-embedding"
    ):
        train_on(out / "s.h5ad", out, [target])
    assert not os.path.exists(out / "model.pt")


def test_a_users_network_makes_it_predictable(unmeasured):
    """Nearer than the controls and the perturbed mean, in both cell types."""
    out, target = unmeasured
    grn = str(out / "edges.csv")
    screen, _ = train_on(out / "s.h5ad", out, [target], **{**LEARNING, "grn": grn})
    distance, n = total(distances(out, screen), target)
    assert target not in screen.genes and n == 2
    assert distance["model"] < 0.9 * min(distance["control"], distance["perturbed mean"])


def test_structures_of_genes_make_it_predictable(unmeasured):
    """By what like genes did, without any network of it."""
    out, target = unmeasured
    table = str(out / "genes.csv")
    own = {**LEARNING, "epochs": 2, "gene_embedding": table}
    screen, _ = train_on(out / "s.h5ad", out, [target], **own)
    distance, n = total(distances(out, screen), target)
    assert target not in screen.genes and n == 2
    assert distance["model"] < 0.9 * min(distance["control"], distance["perturbed mean"])


def test_a_screen_of_drugs_has_no_structures_of_genes(drugs, tmp_path):
    """Before any training."""
    path = sample.read_checkpoint(drugs)["reading"]["path"]
    with pytest.raises(screens.InputError, match="--gene-embedding genes.csv: .* is a screen of d"):
        train_on(path, tmp_path, ["Givinostat:0.1@A549"], gene_embedding="genes.csv")
    assert os.listdir(tmp_path) == []
