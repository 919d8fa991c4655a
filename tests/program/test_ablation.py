"""`train.py --ablate`: each variant is trained and scored once for every seed, and summed up."""

import json
import os
import subprocess
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

import screens
import train
from departures import Conditions, ImprovedSettings, Noise, model_class, sample
from examples import Script
from report import ablation
from report.options import parser_of_settings, settings_of
from report.tables import ablation_table
from toy_data import simulate_screen

GIVEN = ["--data", "s.h5ad", "--epochs", "1", "--width=16", "--steps", "3"]
GIVEN += ["--grn", "coexpression"]
TWO = {"default": "", "random pairing": "--pairing random"}


# ---- The variants --------------------------------------------------------------------------------


def settings_from(options):
    """The settings that options of train.py ask for."""
    args = parser_of_settings().parse_args(options.split())
    settings = settings_of(args, ImprovedSettings())
    train.check(settings)
    return settings


@pytest.mark.parametrize("variant", ablation.ABLATIONS)
def test_every_variant_is_a_run_that_can_be_trained_and_is_not_the_default(variant):
    """Its options exist and go together."""
    settings = settings_from(ablation.ABLATIONS[variant])
    assert (settings == ImprovedSettings()) == (variant == "default")


def test_every_addition_is_left_out_by_a_variant_of_its_own():
    """Every one that `--paper` switches off, and the bridge of Fig. 6."""
    paper = ImprovedSettings().paper()
    variants = [settings_from(options) for options in ablation.ABLATIONS.values()]
    others = [one for one in variants if one != paper]
    for name, value in vars(ImprovedSettings()).items():
        if isinstance(value, bool):
            assert any(not getattr(one, name) for one in others), name


def small_model(**changes):
    """A model of three genes with weights of no meaning."""
    torch.manual_seed(0)
    settings = ImprovedSettings(width=16, embedding=4, steps=8, if_expressed=False, **changes)
    model = model_class(settings)(settings, ["a", "b", "c"], ["a"], ["x"])
    mean, level, fraction = [1.0, 0.5, 2.0], [1.5, 1.0, 2.0], [0.6, 0.5, 1.0]
    model.describe_cell_type("x", mean, level, fraction, [0.2, 0.3, 0.4], 100)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


NULL = Conditions(torch.tensor([[-1]]), torch.ones(1, 1), torch.tensor([0]))
CELLS = torch.tensor([[0.0, 1, 2], [1, 0, 0]])


def losses_of(model, xT):
    """Eq. 9 and Eq. 14 on pairs from ones to xT (B, N)."""
    x0 = torch.ones_like(xT)
    ends = x0, xT, model.activation(x0), model.activation(xT)
    which = torch.zeros(len(xT), dtype=torch.long)
    return model.loss(*ends, NULL, which, Noise(0))[:2]


def test_without_the_discrete_bridge_silent_genes_count_in_the_loss():
    """Of a cell that expresses nothing Eq. 9 has nothing to say otherwise."""
    silent = torch.zeros(2, 3)
    assert losses_of(small_model(discrete=False), silent)[0].item() > 0.01
    assert losses_of(small_model(), silent)[0].item() == 0


def test_without_the_discrete_bridge_nothing_trains_the_chain():
    """Its loss is 0, and no gradient reaches its network."""
    model = small_model(discrete=False)
    endpoint, activation = losses_of(model, CELLS)
    (endpoint + activation).backward()
    gradients = [parameter.grad for parameter in model.d_network.parameters()]
    assert activation.item() < 1e-30
    assert not any(gradient is not None and gradient.any() for gradient in gradients)


def test_without_the_discrete_bridge_no_prediction_is_switched_off():
    """The level is the prediction; with it some genes are off."""
    for discrete in (False, True):
        model = small_model(discrete=discrete)
        x0 = CELLS.repeat(200, 1)
        cells, level = sample(model, x0, model.activation(x0), NULL, Noise(0))
        assert torch.equal(cells, level) != discrete


# ---- What is run ---------------------------------------------------------------------------------


class Trainings:
    """In place of `subprocess.run`: the options that train.py got; each leaves its results behind.

    error: what a run that fails writes on stderr.
    """

    def __init__(self):
        self.options = []
        self.error = None

    def __call__(self, command, **how):
        assert command[1] == ablation.TRAIN
        options = command[2:]
        self.options.append(options)
        if self.error is not None:
            return SimpleNamespace(returncode=2, stderr=self.error)
        run = options[1 + options.index("--out" if "--out" in options else "--resume")]
        os.makedirs(run, exist_ok=True)
        leave_results(run, len(self.options) / 10)
        return SimpleNamespace(returncode=0, stderr="")


def leave_results(run, gap):
    """Write what a scored run leaves: the gap closed over all genes, and less over fewer."""
    distance = {
        "all": {"gap_closed": gap},
        "DE20": {"gap_closed": gap - 1},
        "DE40": {"gap_closed": gap - 2},
    }
    scores = {
        "E-distance": distance,
        "EMD": {**distance, "switched": {"gap_closed": -7.0}},
        "activation PCC": {"all": {"mean": 0.9}},
    }
    with open(f"{run}/metrics.json", "w") as file:
        json.dump({"summary": {"model": scores}}, file)
    pd.DataFrame({"plan_information": [0.2, 0.6]}).to_csv(f"{run}/log.csv", index=False)


@pytest.fixture
def trainings(tmp_path, monkeypatch):
    """Trainings of two variants, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ablation, "ABLATIONS", TWO)
    trainings = Trainings()
    monkeypatch.setattr(subprocess, "run", trainings)
    return trainings


def test_every_variant_is_trained_once_for_every_seed(trainings):
    """In a folder of its own; seeds are counted from --seed."""
    ablation.ablate(["--ablate", "2", "--seed", "4", "--out", "o"])
    runs = ["o/default-4", "o/random-pairing-4", "o/default-5", "o/random-pairing-5"]
    assert [options[options.index("--out") + 1] for options in trainings.options] == runs
    seeds = [options[options.index("--seed") + 1] for options in trainings.options]
    assert seeds == ["4", "4", "5", "5"]


def test_the_commands_other_options_are_those_of_every_run(trainings):
    """And what the variant adds comes last, so that it holds."""
    given = ["--ablate", "1", "--pairing", "exact", "--width=16", "--data", "s.h5ad"]
    ablation.ablate([*given, "--device", "cuda"])
    options = "--pairing exact --width=16 --data s.h5ad --seed 0"
    own = "--out runs/ablation-s/random-pairing-0 --pairing random --device cuda"
    assert " ".join(trainings.options[1]) == f"{options} {own}"


@pytest.mark.parametrize("content", ["[" * 100_000, '{"summary": {"model": {}}}', "{"])
def test_a_damaged_result_is_one_line_that_names_it(trainings, content):
    """Of a run that is not trained again, for it was scored."""
    os.makedirs("o/default-0")
    leave_results("o/default-0", 0.1)
    with open("o/default-0/metrics.json", "w") as file:
        file.write(content)
    with pytest.raises(
        screens.InputError, match="^o/default-0: its metrics.json or log.csv is dam"
    ):
        ablation.ablate(["--ablate", "1", "--out", "o"])


def test_without_a_number_there_are_three_seeds_and_without_data_simulated_ones(trainings):
    """Each run simulates its own screen."""
    ablation.ablate(["--ablate"])
    assert len(trainings.options) == 6
    expected = "--seed 0 --out runs/ablation-simulated/default-0 --device cpu"
    assert " ".join(trainings.options[0]) == expected


def test_what_is_done_is_not_done_again(trainings):
    """More seeds are added to those that are there."""
    ablation.ablate(["--ablate", "1", "--out", "o"])
    ablation.ablate(["--ablate", "1", "--out", "o"])
    assert len(trainings.options) == 2
    ablation.ablate(["--ablate", "2", "--out", "o"])
    assert [options[3] for options in trainings.options[2:]] == [
        "o/default-1",
        "o/random-pairing-1",
    ]


def test_what_was_begun_is_resumed(trainings):
    """With its own settings, on the device of this command."""
    os.makedirs("o/default-0")
    open("o/default-0/model.pt", "w").close()
    ablation.ablate(["--ablate", "1", "--out", "o", "--epochs", "3", "--device", "cuda"])
    assert trainings.options[0] == ["--resume", "o/default-0", "--device", "cuda"]


@pytest.mark.parametrize("other", [["--epochs", "4"], ["--epochs", "3", "--data", "s.h5ad"]])
def test_a_folder_with_an_ablation_of_other_options_is_refused(trainings, other):
    """Its runs would be mixed with others; the same options go on."""
    ablation.ablate(["--ablate", "1", "--out", "o", "--epochs", "3"])
    with pytest.raises(screens.InputError, match="o: an ablation with other options"):
        ablation.ablate(["--ablate", "1", "--out", "o", *other])
    assert len(trainings.options) == 2


@pytest.mark.parametrize(
    "error, said", [("trace\nerror: no such file\n", "no such file"), ("", "2")]
)
def test_a_run_that_fails_ends_the_ablation_with_its_command_and_last_line(trainings, error, said):
    """So that it can be repeated alone."""
    trainings.error = error
    with pytest.raises(screens.InputError, match=f"train.py --seed 0 --out o/default-0.*{said}$"):
        ablation.ablate(["--ablate", "1", "--out", "o"])
    assert not os.path.exists("o/ablation.csv")


# ---- What is told --------------------------------------------------------------------------------


def test_a_row_tells_the_gap_closed_by_every_distance(trainings):
    """And how much its plans said; genes that no condition switches are left blank."""
    ablation.ablate(["--ablate", "1", "--out", "o"])
    row = pd.read_csv("o/ablation.csv").iloc[1]
    assert (row["name"], row["seed"]) == ("random pairing", 0)
    expected = {
        "plan information": 0.4,
        "activation PCC, all": 0.9,
        "E-distance, all": 0.2,
        "E-distance, DE20": -0.8,
        "E-distance, DE40": -1.8,
        "E-distance, switched": np.nan,
        "EMD, switched": -7.0,
    }
    assert row[list(expected)].tolist() == pytest.approx(list(expected.values()), nan_ok=True)


def test_the_table_has_means_and_deviations_over_seeds():
    """In the order of the variants; a column without a number is left out."""
    table = pd.DataFrame(
        {
            "name": ["z", "a", "z", "a"],
            "seed": [0, 0, 1, 1],
            "EMD, all": [0.1, 0.5, 0.3, 0.5],
            "EMD, switched": [np.nan] * 4,
        }
    )
    assert ablation_table(table).splitlines() == [
        "Distances: gap closed. 2 seeds.",
        "",
        "|  | EMD, all |",
        "| --- | --- |",
        "| z | 0.20 ± 0.10 |",
        "| a | 0.50 ± 0.00 |",
    ]


# ---- All of it -----------------------------------------------------------------------------------


def in_a_fork(command, **pipes):
    """Run a command of Python as subprocess.run does, in a fork that has torch already."""
    code, _, errors = Script(os.getcwd(), *command[1:]).ended()
    return SimpleNamespace(returncode=code, stderr=errors)


@pytest.fixture(scope="module")
def ablated(tmp_path_factory):
    """The folder of an ablation that was really run, of two variants with one seed."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("ablation"))
    simulate_screen(30, 4, 500, seed=0).write_h5ad("s.h5ad")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ablation, "ABLATIONS", TWO)
        patch.setattr(subprocess, "run", in_a_fork)
        patch.setattr("sys.argv", ["train.py", "--ablate", "1", *GIVEN, "--seed", "4"])
        train.main()
    yield "runs/ablation-s"
    os.chdir(before)


def test_train_ablate_writes_a_table_and_a_figure(ablated):
    """With a row for each variant."""
    table = pd.read_csv(f"{ablated}/ablation.csv")
    assert table["name"].tolist() == list(TWO) and table["seed"].tolist() == [4, 4]
    with open(f"{ablated}/ablation.md") as file:
        assert "| random pairing |" in file.read()
    assert os.path.getsize(f"{ablated}/ablation.png") > 10_000


def test_the_variants_were_trained_as_they_are_called(ablated):
    """Random pairs tell nothing, those of the default something; both were scored."""
    table = pd.read_csv(f"{ablated}/ablation.csv")
    information = table["plan information"]
    assert information[0] > 0.2 and abs(information[1]) < 0.01
    assert table["E-distance, all"].notna().all()


def test_the_variants_have_the_commands_settings(ablated):
    """And what their own options change."""
    settings = torch.load(f"{ablated}/random-pairing-4/model.pt", weights_only=True)["settings"]
    expected = {"pairing": "random", "epochs": 1, "width": 16, "seed": 4, "grn": "coexpression"}
    assert {name: settings[name] for name in expected} == expected
