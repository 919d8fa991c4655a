"""Nothing is lost: a run that was stopped at any moment, in any way, can be resumed.

It comes to the weights, the log and the cells of one that nobody stopped.
"""

import os
import random
import signal
import time

import anndata
import numpy as np
import pytest
import torch

import report.training
import screens
import toy_data
from departures import ImprovedSettings
from examples import Script, without_scores
from train import TrainingData, build, train_epoch

SETTINGS = ["--data", "tiny.h5ad", "--epochs", "60", "--width", "32", "--embedding", "8"]
SETTINGS += ["--steps", "5", "--grn", "coexpression"]
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def checkpoint(run):
    """The content of a run's model.pt."""
    return torch.load(run / "model.pt", weights_only=True)


def training(folder, *arguments, first=without_scores):
    """Begin or resume a run, which is sampled and not scored."""
    return Script(folder, "train.py", *arguments, first=first)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A screen, and a run on it that nobody stopped."""
    folder = tmp_path_factory.mktemp("stop")
    toy_data.simulate_screen(40, 5, 600, seed=3).write_h5ad(folder / "tiny.h5ad")
    code, _, errors = training(folder, *SETTINGS, "--out", "whole").ended()
    assert code == 0, errors
    return folder


# ---- Random numbers ------------------------------------------------------------------------------


class NoProgress:
    """What train_epoch tells how far it is."""

    def update(self, n=1):
        """Do nothing."""


def test_every_epoch_has_random_numbers_of_its_own(folder):
    """So that a resumed run needs none of those before; another seed has others."""
    screen = screens.prepare(str(folder / "tiny.h5ad"))
    settings = ImprovedSettings(width=4, embedding=2, grn="coexpression")
    groups = list(screen.training_groups())
    data = TrainingData(build(screen, settings, "cpu"), screen, groups, "cpu")
    optimiser = torch.optim.SGD(data.model.parameters(), 0.01)
    starts = []
    for settings.seed, epoch in ((0, 0), (0, 1), (1, 0), (1, 1), (0, 0)):
        _, pairs = train_epoch(data, optimiser, epoch, 2, NoProgress())
        starts.append(tuple(pairs.start))
    assert len(set(starts)) == 4
    assert starts[0] == starts[-1]


# ---- Ten kills -----------------------------------------------------------------------------------


def wait_for_a_new(path, process):
    """Wait until a file is written, or written again, or the process has ended."""
    before = path.exists() and os.stat(path).st_mtime_ns
    while process.is_alive() and (not path.exists() or os.stat(path).st_mtime_ns == before):
        time.sleep(0.001)


@pytest.fixture(scope="module")
def cut(folder):
    """The folder of a run that was killed ten times, and how many epochs it had after each kill.

    By three signals in turn, at random moments: anywhere within an epoch, or between two. The first
    kill comes before there is any checkpoint. -1 stands for no checkpoint.
    """
    rng = random.Random(0)
    run = folder / "cut"
    reached = []
    for i in range(10):
        begun = (run / "model.pt").exists()
        script = training(folder, *(["--resume", "cut"] if begun else [*SETTINGS, "--out", "cut"]))
        for _ in range(i and rng.randint(1, 4)):
            wait_for_a_new(run / "model.pt", script.process)
        time.sleep(rng.uniform(0, 0.05))
        os.kill(script.process.pid, SIGNALS[i % 3])
        script.process.join()
        reached.append(checkpoint(run)["epoch"] if (run / "model.pt").exists() else -1)
    code, _, errors = training(folder, "--resume", "cut").ended()
    assert code == 0, errors
    return run, reached


def test_every_checkpoint_between_two_kills_is_whole_and_none_is_lost(cut):
    """The kills fell at different epochs, and never back before an earlier one."""
    _, reached = cut
    assert reached[0] == -1
    assert reached == sorted(reached)
    assert len(set(reached)) > 4 and max(reached) < 60


def test_ten_kills_change_no_weight(folder, cut):
    """To the bit."""
    whole = checkpoint(folder / "whole")["model"]
    resumed = checkpoint(cut[0])["model"]
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_ten_kills_change_no_moment_of_the_optimiser(folder, cut):
    """To the bit: another epoch would go on as it would have."""
    whole, resumed = (checkpoint(run)["optimiser"]["state"] for run in (folder / "whole", cut[0]))
    pairs = [(whole[i][name], resumed[i][name]) for i in whole for name in whole[i]]
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(torch.as_tensor(a), torch.as_tensor(b)) for a, b in pairs)


def test_ten_kills_change_no_loss(folder, cut):
    """Of all columns of the log but the last, which is seconds."""
    logs = [checkpoint(run)["log"] for run in (folder / "whole", cut[0])]
    whole, resumed = ([row[:-1] for row in log] for log in logs)
    assert len(whole) == 60
    assert whole == resumed


def test_ten_kills_change_no_predicted_cell(folder, cut):
    """To the bit."""
    whole, resumed = (run / "predicted.h5ad" for run in (folder / "whole", cut[0]))
    cells = [anndata.read_h5ad(path).X.toarray() for path in (whole, resumed)]
    assert np.array_equal(*cells)


def test_ten_kills_leave_no_temporary_file(folder, cut):
    """Only what the run that nobody stopped has."""
    assert sorted(os.listdir(cut[0])) == sorted(os.listdir(folder / "whole"))


def test_a_log_that_was_lost_is_written_again(folder, cut):
    """A run may be killed after a checkpoint and before its log."""
    (cut[0] / "log.csv").unlink()
    code, _, errors = training(folder, "--resume", "cut").ended()
    assert code == 0, errors
    assert len((cut[0] / "log.csv").read_text().splitlines()) == 61


# ---- Signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_ends_with_one_line_that_says_how_to_resume(folder, how):
    """With exit code 130, and with the last complete epoch."""
    run = folder / f"long{how}"
    script = training(folder, *SETTINGS, "--epochs", "5000", "--out", run.name)
    while not (run / "log.csv").exists():
        time.sleep(0.01)
        assert script.process.is_alive()
    os.kill(script.process.pid, how)
    code, _, errors = script.ended()
    assert code == 130
    command = f"python train.py --resume {run.name} --device cpu"
    last = "stopped; continue from the last complete epoch with: " + command
    assert errors.strip().splitlines()[-1] == last
    assert checkpoint(run)["epoch"] >= 1


def send(number):
    """Send a signal to this process, and let it arrive."""
    os.kill(os.getpid(), number)
    time.sleep(0.01)


class Owner:
    """Python prints what is raised while it is deleted, and drops it."""

    def __del__(self):
        send(signal.SIGTERM)


def with_a_signal_in_a_destructor():
    """In the process of a script: a SIGTERM comes where a library would swallow it."""
    without_scores()

    def draw(*arguments):
        Owner()

    report.training.draw_loss = draw


def test_a_signal_that_a_library_swallows_stops_the_run_all_the_same(folder):
    """At the next batch."""
    script = training(folder, *SETTINGS, "--out", "late", first=with_a_signal_in_a_destructor)
    code, _, errors = script.ended()
    assert "Exception ignored" not in errors
    assert code == 130
    assert checkpoint(folder / "late")["epoch"] == 1


def with_ctrl_c_ignored():
    """In the process of a script: Ctrl-C comes in every epoch, and is ignored."""
    without_scores()
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def draw(*arguments):
        send(signal.SIGINT)

    report.training.draw_loss = draw


def test_a_run_in_a_shells_background_does_not_hear_ctrl_c(folder):
    """The shell ignores it for such a process, and so does the script."""
    options = [*SETTINGS, "--epochs", "2", "--out", "background"]
    code, _, errors = training(folder, *options, first=with_ctrl_c_ignored).ended()
    assert code == 0, errors
    assert checkpoint(folder / "background")["epoch"] == 2


def stopped_while_reading():
    """In the process of a script: a SIGTERM comes while it reads its screen."""

    def stop(*arguments, **options):
        send(signal.SIGTERM)

    screens.prepare_again = stop


def test_another_script_that_is_stopped_says_to_start_it_again(folder):
    """In one line, with exit code 130, and nothing is written."""
    options = ["sample.py", "whole", "--out", "never.h5ad"]
    code, _, errors = Script(folder, *options, first=stopped_while_reading).ended()
    assert code == 130
    assert errors == "stopped; start again\n"
    assert not (folder / "never.h5ad").exists()
