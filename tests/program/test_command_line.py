"""The scripts as a user runs them: from a tiny screen to its scores, and what --help says."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import fields

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import sample
import screens
import toy_data
import train
from departures import Departures, ImprovedSettings, Settings, model_class
from examples import ROOT, Script, without_figures, without_scores
from report.options import note_effects, parser_of_settings, settings_of

TINY = shlex.split("--epochs 2 --width 32 --embedding 8 --steps 5 --grn coexpression")


# ---- Settings ------------------------------------------------------------------------------------


ADDITIONS = {field.name for field in fields(ImprovedSettings)} - {"discrete", "gene_embedding"}
ADDITIONS -= {field.name for field in fields(Settings)}


def settings_from(*arguments):
    """The settings that a command line asks for."""
    return settings_of(parser_of_settings().parse_args(arguments), ImprovedSettings())


def test_without_options_the_settings_are_the_default():
    """Every addition is on."""
    assert settings_from() == ImprovedSettings()


def test_paper_takes_the_papers_values_and_switches_every_addition_off():
    """The model is then Part I's, with no class of Part II."""
    paper = settings_from("--paper")
    values = vars(Settings())
    assert {name: getattr(paper, name) for name in values} == values
    assert [name for name in ADDITIONS if getattr(paper, name)] == []
    assert model_class(paper) is Departures


@pytest.mark.parametrize("order", [("--paper", "--shifts"), ("--shifts", "--paper")])
def test_an_option_beside_paper_counts_wherever_it_stands(order):
    """An addition can be switched on again by itself."""
    settings = settings_from(*order)
    expected = ImprovedSettings().paper()
    expected.shifts = True
    assert settings == expected


@pytest.mark.parametrize("field", fields(ImprovedSettings), ids=lambda field: field.name)
def test_every_setting_can_be_set_from_the_command_line(field):
    """It changes itself and nothing else."""
    values = {
        "pairing": "exact",
        "cost": "cosine",
        "epsilon": "0.5",
        "grn": "none",
        "drug_embedding": "drugs.csv",
        "gene_embedding": "genes.csv",
        "test_fraction": 0.5,
    }
    value = values.get(field.name, 7 if field.type is not bool else not field.default)
    flag = screens.flag(field.name)
    words = [flag, str(value)]
    if field.type is bool:
        words = [flag if value else flag.replace("--", "--no-", 1)]
    arguments = parser_of_settings().parse_args(words)
    names = {other.name for other in fields(ImprovedSettings)}
    assert {name: given for name, given in vars(arguments).items() if name in names} == {
        field.name: value
    }


@pytest.mark.parametrize(
    "options, said",
    [
        ("--embedding 8", "note: --embedding has no effect with --shifts\n"),
        ("--paper --embedding 8 --epsilon 0.1 --cost cosine", ""),
        ("--pairing exact --epsilon 0.1", "note: --epsilon has no effect with --pairing exact\n"),
        ("--pairing random --cost cosine", "note: --cost has no effect with --pairing random\n"),
    ],
)
def test_a_setting_that_changes_nothing_beside_the_others_is_named(options, said, capsys):
    """And no other is."""
    args = parser_of_settings().parse_args(options.split())
    note_effects(settings_of(args, ImprovedSettings()), args)
    assert capsys.readouterr().out == said


# ---- Help ----------------------------------------------------------------------------------------


def help_by_group():
    """{group: {option: its text on one line}} of train.py's help."""
    groups = {}
    for block in re.split(r"\n\n(?=\w+:\n)", parser_of_settings(train.__doc__).format_help())[1:]:
        title, _, text = block.partition(":\n")
        options = re.split(r"^  (?=-)", text, flags=re.MULTILINE)[1:]
        lines = [" ".join(option.split()) for option in options]
        groups[title] = {re.match(r"--[\w-]+|-h", line)[0]: line for line in lines}
    return groups


def test_the_help_of_train_is_grouped():
    """By what a setting is of."""
    groups = help_by_group()
    assert list(groups) == ["options", "run", "screen", "method", "training", "additions"]
    assert {"--data", "--out", "--device", "--resume", "--paper"} <= set(groups["run"])


def test_every_setting_is_in_the_help_once():
    """And every option of a group is a setting, but those of the run and of the file's columns."""
    groups = help_by_group()
    shown = [option for options in groups.values() for option in options]
    wanted = [screens.flag(field.name) for field in fields(ImprovedSettings)]
    assert [shown.count(flag) for flag in wanted] == [1] * len(wanted)
    settings = {*groups["method"], *groups["training"], *groups["additions"]}
    assert settings <= set(wanted)


def test_the_additions_are_what_the_paper_does_not_have():
    """And the discrete bridge, whose absence is an ablation of the paper."""
    flags = {screens.flag(name) for name in ADDITIONS | {"discrete"}}
    assert set(help_by_group()["additions"]) == flags


PUBLISHED = {  # the paper's own values, and ours where they differ: what --help must say
    "--sigma": "(0.2, as the paper)",
    "--steps": "(50, as the paper)",
    "--test-fraction": "(0.3, as the paper)",
    "--genes": "(5000; paper 5000 and 2000)",
    "--batch": "(64; paper 64 and 256)",
    "--epochs": "(0; paper 5 and 40)",
    "--learning-rate": "(0.002; paper 0.001)",
    "--epsilon": "(0.05; paper 0.1max)",
    "--cost": "(sqeuclidean, as the paper)",
    "--pairing": "(entropic, as the paper)",
    "--grn": "(structural; paper coexpression)",
    "--discrete": "(on, as the paper)",
    "--shifts": "(on; paper off)",
    "--skip-gate": "(on; paper off)",
    "--decay": "(on; paper off)",
    "--anchor": "(on; paper off)",
    "--if-expressed": "(on; paper off)",
    "--width": "(256)",
    "--embedding": "(64)",
    "--seed": "(0)",
    "--drug-embedding": "(none)",
    "--gene-embedding": "(none)",
}


@pytest.mark.parametrize("option", PUBLISHED)
def test_the_help_has_the_papers_value_beside_ours(option):
    """Where the paper says one."""
    texts = {name: text for options in help_by_group().values() for name, text in options.items()}
    assert texts[option].endswith(PUBLISHED[option])


# ---- One line for everything that goes wrong -----------------------------------------------------


def test_some_names_are_the_first_and_how_many_more():
    """As many as asked for, and no remark where that is all."""
    assert screens.some(["a", "b", 3], 3) == "a, b, 3"
    assert screens.some(range(1234), 2) == "0, 1 and 1,232 more"


@pytest.mark.parametrize(
    "error, line",
    [
        (screens.InputError("x.h5ad: bad;\n  mend it"), "x.h5ad: bad; mend it"),
        (OSError(13, "Permission denied", "x"), "x: Permission denied; check the path"),
        (OSError(28, "No space left on device"), "output: No space left on device; check"),
        (MemoryError(), "out of memory; try fewer --genes"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(error, line, capsys):
    """Whatever it is of what can be expected."""

    def main():
        raise error

    with pytest.raises(SystemExit) as ended:
        screens.run_script(main)
    printed = capsys.readouterr().err
    assert ended.value.code == 2
    assert printed.startswith(f"error: {line}") and printed.count("\n") == 1


def test_a_mistake_of_ours_is_not_hidden():
    """A traceback is what we want to see then."""

    def main():
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        screens.run_script(main)


# ---- A run ---------------------------------------------------------------------------------------


def done(folder, *arguments, first=without_figures):
    """What a script printed that ended well; it draws nothing, if not told otherwise."""
    code, printed, errors = Script(folder, *arguments, first=first).ended()
    assert code == 0, errors
    return printed


def checkpoint(run):
    """The content of a run's model.pt."""
    return torch.load(run / "model.pt", weights_only=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A screen of 600 cells, and a run of two epochs on it."""
    folder = tmp_path_factory.mktemp("scripts")
    toy_data.simulate_screen(40, 5, 600, seed=3).write_h5ad(folder / "tiny.h5ad")
    options = ["--data", "tiny.h5ad", "--out", "run", *TINY]
    printed = done(folder, "train.py", *options, first=None)
    (folder / "train.txt").write_text(printed)
    return folder


@pytest.fixture(scope="module")
def screen(folder):
    """The run's screen."""
    return screens.prepare(str(folder / "tiny.h5ad"))


@pytest.fixture(scope="module")
def predicted(folder):
    """The run's predicted cells."""
    return anndata.read_h5ad(folder / "run/predicted.h5ad")


def test_a_run_holds_all_its_files(folder):
    """As docs/using.md lists them."""
    expected = {"model.pt", "log.csv", "loss.png", "predicted.h5ad", "figures"}
    expected |= {"metrics.json", "metrics.csv", "metrics.md", "trust.csv", "predicted_genes.csv"}
    expected |= {"report.html"}
    assert set(os.listdir(folder / "run")) == expected
    drawn = [folder / "run/loss.png", *(folder / "run/figures").iterdir()]
    assert min(path.stat().st_size for path in drawn) > 10_000
    assert folder / "run/figures/paths.png" in drawn


def test_training_prints_what_was_understood_and_the_verdict(folder):
    """From the file's first line to where the report is; no table."""
    printed = (folder / "train.txt").read_text()
    assert "tiny.h5ad: 600 cells x 40 genes" in printed
    assert "never perturbed in training" in printed and "report: run/report.html" in printed
    assert "standard deviation" not in printed and len(printed.splitlines()) < 20


def test_the_log_has_a_row_for_every_epoch(folder):
    """Numbered from 1, with finite losses."""
    log = pd.read_csv(folder / "run/log.csv")
    assert list(log.columns) == list(train.LOG)
    assert log["epoch"].tolist() == [1, 2]
    assert np.isfinite(log.to_numpy()).all()


def test_a_checkpoint_is_plain_tensors_and_values(folder):
    """It loads with weights_only, and knows its settings and how far it got."""
    content = checkpoint(folder / "run")
    assert set(content) == {*sample.PARTS, "format"}
    assert content["settings"]["steps"] == 5
    assert content["epoch"] == content["epochs"] == 2


def test_a_run_gives_the_same_cells_from_another_folder(folder, predicted, tmp_path):
    """Its checkpoint has the screen's whole path. This one is a process as a user starts it."""
    command = [sys.executable, ROOT / "sample.py", folder / "run", "--out", "here.h5ad"]
    code = subprocess.run(command, cwd=tmp_path, capture_output=True).returncode
    assert code == 0
    here = anndata.read_h5ad(tmp_path / "here.h5ad")
    assert np.array_equal(here.X.toarray(), predicted.X.toarray())


def test_without_out_a_run_is_named_after_its_file(folder, monkeypatch):
    """The second one is NAME-2, the third NAME-3; without a file it is `simulated`."""
    monkeypatch.chdir(folder)
    args = parser_of_settings().parse_args(["--data", "some/tiny.h5ad"])
    (folder / "runs").mkdir(exist_ok=True)
    names = []
    for _ in range(3):
        names.append(train.free_folder(args))
        os.mkdir(names[-1])
    assert names == ["runs/tiny", "runs/tiny-2", "runs/tiny-3"]
    assert train.free_folder(parser_of_settings().parse_args([])) == "runs/simulated"


def test_without_data_a_screen_is_simulated_with_the_seed(tmp_path, monkeypatch):
    """Into the run's folder, where the run finds it again."""
    real = toy_data.simulate_screen

    def small(seed):
        return real(40, 5, 400, seed=seed)

    monkeypatch.setattr(toy_data, "simulate_screen", small)
    monkeypatch.chdir(tmp_path)
    args = parser_of_settings().parse_args(["--seed", "7", "--out", "x", *TINY])
    run = train.new_run(args, "cpu")
    expected = screens.log1p_csr(small(seed=7).X, "")[0]
    assert run.reading["path"] == str(tmp_path / "x/screen.h5ad")
    assert np.allclose(run.screen.X.toarray(), expected.toarray())
    assert checkpoint(tmp_path / "x")["epoch"] == 0


def test_a_screen_without_held_out_conditions_can_be_trained_on(folder):
    """There is nothing to sample and nothing to score, and it says so."""
    options = ["--data", "tiny.h5ad", "--out", "all", "--test-fraction", 0, *TINY]
    printed = done(folder, "train.py", *options)
    assert "no held-out conditions" in printed
    assert "Nothing was scored" in printed and (folder / "all/report.html").exists()


def test_the_papers_method_trains_and_is_what_the_checkpoint_says(folder):
    """With one addition switched on again and another cost."""
    options = ["--data", "tiny.h5ad", "--out", "paper", "--paper", "--shifts"]
    options += ["--cost", "euclidean", *TINY]
    done(folder, "train.py", *options, first=without_scores)
    settings = checkpoint(folder / "paper")["settings"]
    expected = ImprovedSettings().paper()
    for name, value in (("shifts", True), ("cost", "euclidean"), ("epochs", 2)):
        setattr(expected, name, value)
    expected.width, expected.embedding, expected.steps = 32, 8, 5
    assert settings == vars(expected)


# ---- Predicted cells -----------------------------------------------------------------------------


def test_predicted_cells_are_sparse_positive_levels_of_the_screens_genes(predicted, screen):
    """float32, with no zero stored."""
    assert predicted.X.dtype == np.float32
    assert (predicted.X.data > 0).all()
    assert predicted.var_names.tolist() == screen.var_names.tolist()


def test_every_held_out_condition_is_predicted_with_as_many_cells_as_measured(predicted, screen):
    """And no other condition is."""
    counts = predicted.obs["condition"].value_counts().to_dict()
    assert counts == {"@".join(key): len(screen.groups[key]) for key in screen.held_out}
    assert predicted.obs["is_predicted"].all()


def test_every_predicted_cell_names_the_control_it_started_from(predicted, screen):
    """A control of its own type, and none twice while there are others."""
    for cell_type, cells in predicted.obs.groupby("cell_type", observed=True):
        controls = set(screen.cells[screen.controls(cell_type)])
        assert set(cells["control_cell"]) <= controls
        for _, of_condition in cells.groupby("condition", observed=True):
            assert len(set(of_condition["control_cell"])) == min(len(of_condition), len(controls))


def test_two_conditions_of_a_type_start_from_controls_of_their_own(predicted):
    """Each has random numbers of its own."""
    for _, cells in predicted.obs.groupby("cell_type", observed=True):
        groups = cells.groupby("condition", observed=True)["control_cell"]
        orders = [tuple(of_condition[:20]) for _, of_condition in groups]
        assert len(set(orders)) == len(orders) > 1


def test_a_prediction_is_the_level_if_expressed_or_nothing(predicted):
    """Eq. 18; the levels before the mask are kept beside."""
    X = predicted.X.toarray()
    levels = predicted.layers["if_expressed"].toarray()
    assert np.array_equal(X[X > 0], levels[X > 0])
    assert (levels > 0).sum() > (X > 0).sum()


def test_predicted_cells_say_which_run_made_them(predicted):
    """With its settings and how it read its file."""
    about = predicted.uns["departures"]
    assert about["run"] == "run"
    assert json.loads(about["settings"])["steps"] == 5
    assert json.loads(about["reading"])["fraction"] == 0.3


@pytest.mark.parametrize("seed, same", [(0, True), (1, False)])
def test_the_same_seed_gives_the_same_cells_whatever_else_is_sampled(folder, predicted, seed, same):
    """One condition alone is what it was among the others."""
    name = predicted.obs["condition"].iloc[-1]
    mine = predicted[(predicted.obs["condition"] == name).to_numpy()].X.toarray()
    options = ["--condition", name, "--cells", len(mine), "--seed", seed, "--out", "again.h5ad"]
    done(folder, "sample.py", "run", *options)
    again = anndata.read_h5ad(folder / "again.h5ad")
    assert np.array_equal(again.X.toarray(), mine) == same


def test_training_conditions_can_be_sampled_and_scored(folder, screen):
    """Into files of their own."""
    done(folder, "sample.py", "run", "--training")
    made = anndata.read_h5ad(folder / "run/training.h5ad")
    training = {"@".join(key) for key in screen.training_groups() if key[0] != "control"}
    assert set(made.obs["condition"]) == training
    printed = done(folder, "evaluate.py", "run", "--training")
    assert "conditions that it was trained on the model closes" in " ".join(printed.split())
    assert (folder / "run/metrics_training.json").exists()
    assert (folder / "run/report_training.html").exists()


def test_the_real_controls_can_be_copied_in(folder, screen):
    """All of them, as they are, marked as not predicted."""
    done(folder, "sample.py", "run", "--with-controls", "--out", "both.h5ad")
    both = anndata.read_h5ad(folder / "both.h5ad")
    controls = both[~both.obs["is_predicted"].to_numpy()]
    rows = np.flatnonzero(screen.perturbation == "control")
    assert set(controls.obs["perturbation"]) == {"control"}
    assert controls.obs["control_cell"].tolist() == screen.cells[rows].tolist()
    assert np.array_equal(controls.X.toarray(), screen.dense(rows))


def test_new_controls_of_an_unseen_cell_type_are_carried(folder):
    """The third command of docs/using.md, for a file with a column of its own."""
    adata = anndata.read_h5ad(folder / "tiny.h5ad")
    wanted = (adata.obs["cell_type"] == "typeA") & (adata.obs["condition"] == "ctrl")
    adata = adata[wanted.to_numpy()].copy()
    adata.obs = adata.obs[["condition"]].assign(tissue="typeC")
    adata.write_h5ad(folder / "new.h5ad")
    options = ["--data", "new.h5ad", "--condition", "TF001", "--cells", 7, "--out", "c.h5ad"]
    done(folder, "sample.py", "run", *options, "--cell-type-column", "tissue")
    made = anndata.read_h5ad(folder / "c.h5ad")
    assert made.obs["condition"].tolist() == ["TF001@typeC"] * 7
    assert set(made.obs["control_cell"]) <= set(adata.obs_names)


def test_the_genes_of_a_file_of_controls_may_stand_in_any_order(folder, tmp_path):
    """They are put into the run's own order."""
    adata = anndata.read_h5ad(folder / "tiny.h5ad")
    adata[:, ::-1].copy().write_h5ad(tmp_path / "reversed.h5ad")
    made = []
    for data in (folder / "tiny.h5ad", tmp_path / "reversed.h5ad"):
        options = ["--data", data, "--condition", "TF006", "--out", tmp_path / "made.h5ad"]
        done(folder, "sample.py", "run", *options)
        made.append(anndata.read_h5ad(tmp_path / "made.h5ad"))
    assert made[0].var_names.tolist() == made[1].var_names.tolist()
    assert np.array_equal(made[0].X.toarray(), made[1].X.toarray())


def test_an_unfinished_run_can_be_sampled_and_says_that_it_is(folder, tmp_path):
    """And how to go on."""
    content = {**checkpoint(folder / "run"), "epoch": 1}
    (folder / "half").mkdir()
    torch.save(content, folder / "half/model.pt")
    printed = done(folder, "sample.py", "half", "--out", tmp_path / "x.h5ad")
    assert "half is not finished: 1 of 2 epochs; train.py --resume half goes on" in printed


# ---- Scores --------------------------------------------------------------------------------------


def test_any_models_cells_can_be_scored(folder):
    """A condition's own cells, as a prediction, close the gap; relabelled controls do not."""
    truth = anndata.read_h5ad(folder / "tiny.h5ad")
    gap = {}
    for name, label in (("twin", "TF001+ctrl"), ("relabelled", "ctrl")):
        cells = truth[(truth.obs["condition"] == label).to_numpy()].copy()
        cells.obs = cells.obs[["cell_type"]].assign(perturbation="TF001")
        cells.write_h5ad(folder / f"{name}.h5ad")
        done(folder, "evaluate.py", "--predicted", f"{name}.h5ad", "--data", "tiny.h5ad")
        scores = json.loads((folder / f"{name}_scores/metrics.json").read_text())
        gap[name] = scores["summary"]["model"]["EMD"]["DE20"]["gap_closed"]
    assert gap["twin"] > 0.8
    assert gap["relabelled"] < 0.4


def test_a_finished_run_is_scored_again_and_verbose_prints_its_tables(folder, tmp_path):
    """Of a copy, for the files are written again."""
    shutil.copytree(folder / "run", tmp_path / "run")
    shutil.copy(folder / "tiny.h5ad", tmp_path)
    words = ["--resume", "run", "--data", "tiny.h5ad", "--verbose"]
    assert "mean ± standard deviation" in done(tmp_path, "train.py", *words)


def test_scoring_again_gives_the_same_numbers(folder):
    """What training printed, evaluate.py prints."""
    printed = done(folder, "evaluate.py", "run", "--out", "scores")
    assert printed.splitlines()[0] in (folder / "train.txt").read_text()
    again = pd.read_csv(folder / "scores/metrics.csv")
    pd.testing.assert_frame_equal(again, pd.read_csv(folder / "run/metrics.csv"))


def test_runs_are_pooled_from_the_command_line(folder):
    """A run with itself is the run, for one screen is averaged first."""
    summary = json.loads((folder / "run/metrics.json").read_text())["summary"]
    energy = summary["model"]["E-distance"]["all"]
    printed = done(folder, "evaluate.py", "run", "run", "--out", "pooled")
    assert f"{energy['mean']:.3f} ± {energy['sd']:.3f}" in printed
    assert (folder / "pooled/metrics.md").read_text().count("|") > 100


def test_the_seed_of_the_scores_draws_other_halves(folder):
    """So that what a split changes can be seen."""
    done(folder, "evaluate.py", "run", "--seed", 1, "--out", "seed1")
    scores = [pd.read_csv(folder / f"{name}/metrics.csv")["score"] for name in ("run", "seed1")]
    assert not np.allclose(*scores, equal_nan=True)


# ---- Stopping and resuming -----------------------------------------------------------------------


def stop_after_the_first_epoch():
    """In the process of a script: stop when the second checkpoint is written, that of epoch 1."""
    save = screens.save
    written = []

    def stop(path, content):
        save(path, content)
        written.append(path)
        if [os.path.basename(path) for path in written].count("model.pt") == 2:
            raise KeyboardInterrupt

    screens.save = stop
    without_scores()


@pytest.fixture(scope="module")
def cut(folder):
    """What a run that was stopped after its first epoch said, and its folder when it is resumed."""
    options = ["--data", "tiny.h5ad", "--out", "cut", *TINY]
    script = Script(folder, "train.py", *options, first=stop_after_the_first_epoch)
    code, _, errors = script.ended()
    epoch = checkpoint(folder / "cut")["epoch"]
    done(folder, "train.py", "--resume", "cut", first=without_scores)
    return code, errors.strip().splitlines()[-1], epoch, folder / "cut"


def test_a_stopped_run_says_how_to_go_on(cut):
    """In one line, with exit code 130, and the last complete epoch is kept."""
    code, line, epoch, _ = cut
    assert code == 130
    assert line.endswith("epoch with: python train.py --resume cut --device cpu")
    assert epoch == 1


def test_a_resumed_run_has_the_weights_of_one_that_nobody_stopped(folder, cut):
    """To the bit; so has one that begins again with the same seed."""
    whole = checkpoint(folder / "run")["model"]
    resumed = checkpoint(cut[-1])["model"]
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_resumed_run_has_the_log_of_one_that_nobody_stopped(folder, cut):
    """But for the seconds."""
    logs = [
        pd.read_csv(run / "log.csv").drop(columns="seconds") for run in (folder / "run", cut[-1])
    ]
    pd.testing.assert_frame_equal(*logs)


def test_a_resumed_run_predicts_the_cells_of_one_that_nobody_stopped(predicted, cut):
    """To the bit."""
    cells = anndata.read_h5ad(cut[-1] / "predicted.h5ad").X
    assert np.array_equal(cells.toarray(), predicted.X.toarray())


@pytest.fixture(scope="module")
def other(folder):
    """The folder of a run with another seed."""
    options = ["--data", "tiny.h5ad", "--out", "other", "--seed", 1, "--test", "TF006", *TINY]
    done(folder, "train.py", *options, first=without_scores)
    return folder / "other"


def test_another_seed_trains_other_weights(folder, other):
    """In the layers that begin at zero, too."""
    name = "x_network.out.2.weight"
    weights = [checkpoint(run)["model"][name] for run in (folder / "run", other)]
    assert not torch.allclose(*weights)


@pytest.mark.parametrize("seed, same", [([], True), (["--seed", 1], True), (["--seed", 0], False)])
def test_cells_have_the_runs_seed_if_none_is_given(folder, other, tmp_path, seed, same):
    """And the seed that is given, be it 0."""
    done(folder, "sample.py", "other", "--out", tmp_path / "x.h5ad", *seed)
    runs_own, made = (anndata.read_h5ad(p) for p in (other / "predicted.h5ad", tmp_path / "x.h5ad"))
    assert np.array_equal(runs_own.X.toarray(), made.X.toarray()) == same


def test_a_finished_run_samples_again_when_it_is_resumed(folder, cut):
    """It says that all epochs are done, and the weights stay."""
    before = checkpoint(cut[-1])
    (cut[-1] / "predicted.h5ad").unlink()
    printed = done(folder, "train.py", "--resume", "cut", first=without_scores)
    assert "all 2 epochs are done; sampling and scoring again" in printed
    assert (cut[-1] / "predicted.h5ad").exists()
    weight = "x_network.out.2.weight"
    assert torch.equal(checkpoint(cut[-1])["model"][weight], before["model"][weight])


def test_a_run_whose_file_has_moved_can_be_resumed(folder, cut, tmp_path):
    """--data says where it is now."""
    moved = tmp_path / "moved.h5ad"
    moved.write_bytes((folder / "tiny.h5ad").read_bytes())
    content = checkpoint(cut[-1])
    content["reading"]["path"] = "gone.h5ad"
    (tmp_path / "cut").mkdir()
    torch.save(content, tmp_path / "cut/model.pt")
    done(tmp_path, "train.py", "--resume", "cut", "--data", moved, first=without_scores)
    assert (tmp_path / "cut/predicted.h5ad").exists()
    done(tmp_path, "sample.py", "cut")  # which knows it from then on
    done(tmp_path, "evaluate.py", "cut")


def test_a_condition_that_two_names_mean_is_predicted_once(folder, tmp_path):
    """Its cells would be there twice."""
    words = ["--condition", "TF001", "--condition", "TF001@typeA", "--cells", 5]
    done(folder, "sample.py", "run", *words, "--out", tmp_path / "x.h5ad")
    counts = anndata.read_h5ad(tmp_path / "x.h5ad").obs["condition"].value_counts()
    assert counts.to_dict() == {"TF001@typeA": 5, "TF001@typeB": 5}


def test_a_folder_that_would_write_to_the_terminal_is_no_place_to_work_in(folder, tmp_path):
    """Its path is printed, and kept in checkpoints."""
    red = tmp_path / "\x1b[31mred"
    red.mkdir()
    code, printed, errors = Script(red, "-m", "screens", folder / "tiny.h5ad").ended()
    assert (code, printed) == (2, "")
    assert errors.startswith("error: the current folder: ") and "\x1b" not in errors


def ascii_only():
    """In the process of a script: a terminal that knows no other letters."""
    sys.stdout.reconfigure(encoding="ascii", errors="strict")
    without_figures()


def test_a_terminal_that_cannot_show_a_letter_gets_its_code(folder):
    """As on Windows, where a traceback would end the run."""
    printed = done(folder, "evaluate.py", "run", "--verbose", first=ascii_only)
    assert r"mean \xb1 standard deviation" in printed


# ---- A user's network ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def without_target(folder):
    """A screen that does not measure its target TF001, and a network that reaches it.

    UPSTREAM and NOT_MEASURED are in the network only; GENE040 nobody perturbed.
    """
    adata = anndata.read_h5ad(folder / "tiny.h5ad")
    adata[:, (adata.var["gene_name"] != "TF001").to_numpy()].write_h5ad(folder / "without.h5ad")
    spare = adata.var["gene_name"].iloc[-1]
    rows = ["source,target,weight", "TF001,NOT_MEASURED,1", f"NOT_MEASURED,{spare},0.5"]
    rows += [f"UPSTREAM,{spare},1"]
    (folder / "edges.csv").write_text("\n".join(rows) + "\n")
    return ["--data", "without.h5ad", "--test", "TF001", *TINY], spare


def test_an_unmeasured_unseen_target_is_refused_without_a_network(folder, without_target):
    """Before training, and nothing is left."""
    options, _ = without_target
    code, _, errors = Script(folder, "train.py", *options, "--out", "refused").ended()
    assert code == 2
    assert "cannot predict 'TF001'" in errors and "--also GENE" in errors
    assert not (folder / "refused").exists()


def test_a_users_network_and_also_let_unseen_genes_be_asked_for(folder, without_target):
    """An unmeasured target, a measured one that nobody perturbed, and a source of the network."""
    options, spare = without_target
    (folder / "edges").mkdir()  # a folder that holds no run may be named
    options = [*options, "--out", "edges", "--grn", "edges.csv", "--also", spare]
    done(folder, "train.py", *options, "--also", "UPSTREAM", first=without_scores)
    asked = ["--condition", spare, "--condition", "UPSTREAM", "--cells", 5]
    done(folder, "sample.py", "edges", *asked)
    made = anndata.read_h5ad(folder / "edges/asked.h5ad").obs["condition"].value_counts()
    expected = {
        f"{gene}@{cell_type}" for gene in (spare, "UPSTREAM") for cell_type in ("typeA", "typeB")
    }
    assert made.to_dict() == dict.fromkeys(expected, 5)


# ---- Simulated screens ---------------------------------------------------------------------------


def test_a_simulated_screen_is_written_as_asked(tmp_path):
    """It says how to learn more of it, and that command understands it."""
    options = ["--cells", 200, "--genes", 30, "--perturbed", 3, "--seed", 5]
    printed = done(tmp_path, "toy_data.py", "screen", "s.h5ad", *options)
    assert "200 cells x 30 genes; python -m screens s.h5ad" in printed
    expected = toy_data.simulate_screen(30, 3, 200, seed=5)
    assert np.array_equal(anndata.read_h5ad(tmp_path / "s.h5ad").X.toarray(), expected.X.toarray())
    assert "3 genetic perturbations" in done(tmp_path, "-m", "screens", "s.h5ad")


def test_a_simulated_screen_of_drugs_is_one_of_drugs(tmp_path):
    """With so many of them."""
    done(tmp_path, "toy_data.py", "screen", "d.h5ad", "--drugs", 4, "--cells", 400, "--genes", 20)
    printed = done(tmp_path, "-m", "screens", "d.h5ad", "--split-column", "split_drug")
    assert "4 drugs at 4 doses from" in printed
    assert "structures from uns" in printed


# ---- Help of all scripts -------------------------------------------------------------------------

SCRIPTS = [["train.py"], ["sample.py"], ["evaluate.py"], ["toy_data.py"], ["-m", "screens"]]
SCRIPTS += [["-m", f"course.{name}"] for name in ("gaussian", "pairing", "trackability")]
SCRIPTS += [[f"docs/{name}.py"] for name in ("bridges", "ceilings", "chance", "rivals")]
SCRIPTS += [[f"course/{name}.py"] for name in ("figures", "grade", "run_lessons")]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script[-1])
def test_help_prints_and_fits_a_page(tmp_path, script):
    """No line is wider than 100 columns, and nothing goes wrong."""
    code, printed, errors = Script(tmp_path, *script, "--help").ended()
    assert code == 0, errors
    assert len(printed.splitlines()) > 5 and errors == ""
    assert max(map(len, printed.splitlines())) <= 100


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script[-1])
def test_help_says_a_word_on_every_option(tmp_path, script):
    """An option without a text would end its line, and the next would begin with another one."""
    printed = done(tmp_path, *script, "--help")
    silent = re.findall(r"^  (-\S+(?: \S+)*)\n(?!  {6,}\S)", printed, flags=re.MULTILINE)
    assert silent == []
