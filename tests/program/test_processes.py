"""Several processes do what one does.

One test starts them by torchrun. The others are in forks with torchrun's environment, or look at
one process's share at a time.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import screens
import toy_data
import train
from departures import ImprovedSettings, Noise
from examples import ROOT, Script, without_scores

SETTINGS = ["--data", "s.h5ad", "--width", "16", "--embedding", "4", "--steps", "3"]
SETTINGS += ["--grn", "coexpression", "--epochs"]


# ---- One process's share -------------------------------------------------------------------------


def as_process(patch, rank, processes):
    """Be one of several processes."""
    patch.setattr(train, "RANK", rank)
    patch.setattr(train, "PROCESSES", processes)


@pytest.mark.parametrize("kind", ["normal", "uniform"])
@given(total=st.integers(1, 12), processes=st.integers(1, 4), genes=st.integers(1, 3))
def test_the_shares_of_the_random_numbers_are_those_of_one_process(kind, total, processes, genes):
    """Twice in a row, so that no process is ahead of another."""
    whole = Noise(5)
    expected = [getattr(whole, kind)(torch.empty(total, genes)) for _ in range(2)]
    for rank in range(processes):
        mine = len(range(rank, total, processes))
        with pytest.MonkeyPatch.context() as patch:
            as_process(patch, rank, processes)
            share = train.SharedNoise(Noise(5), total)
            drawn = [getattr(share, kind)(torch.empty(mine, genes)) for _ in range(2)]
        assert all(torch.equal(a[rank::processes], b) for a, b in zip(expected, drawn, strict=True))


@given(n=st.integers(0, 9), processes=st.integers(1, 4))
def test_what_was_dealt_is_gathered_in_its_order(n, processes):
    """Whether it deals out evenly or not."""
    dealt = [list(range(rank, n, processes)) for rank in range(processes)]

    def exchange(collective, parts, mine):
        parts[:] = dealt

    with pytest.MonkeyPatch.context() as patch:
        as_process(patch, 0, processes)
        patch.setattr(train, "exchange", exchange)
        assert train.gather(dealt[0]) == list(range(n))


@pytest.fixture(scope="module")
def screen(tmp_path_factory):
    """A small screen of genes in two cell types."""
    path = tmp_path_factory.mktemp("shares") / "s.h5ad"
    toy_data.simulate_screen(40, 6, 400, seed=0).write_h5ad(path)
    return screens.prepare(str(path))


@pytest.fixture(scope="module", params=["all additions", "the paper's"])
def data(request, screen):
    """What batches are made of, with a model that has learnt nothing."""
    settings = ImprovedSettings(width=8, embedding=4, batch=25, grn="coexpression")
    if request.param == "the paper's":
        settings = settings.paper()
        settings.width, settings.embedding, settings.batch = 8, 4, 25
    model = train.build(screen, settings, "cpu")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=torch.manual_seed(1))
    return train.TrainingData(model, screen, list(screen.training_groups()), "cpu")


def pairs_of(data, patch, processes):
    """An epoch's pairs, as each of several processes gets them."""
    found = []
    arguments = (data.screen, data.cells, data.groups, data.model.settings)

    def draw(rank):
        as_process(patch, rank, processes)
        generator = torch.Generator().manual_seed(3)
        return train.draw_pairs(*arguments, generator, "cpu")

    dealt = []
    patch.setattr(train, "gather", lambda mine: dealt.append(mine) or mine * processes)
    for rank in range(processes):
        draw(rank)
    patch.undo()

    def exchange(collective, parts, mine):
        parts[:] = dealt

    patch.setattr(train, "exchange", exchange)
    for rank in range(processes):
        found.append(draw(rank))
    patch.undo()
    return found


def test_the_pairs_of_an_epoch_are_those_of_one_process(data, monkeypatch):
    """Though each process solves some of the plans only."""
    (one,) = pairs_of(data, monkeypatch, 1)
    for of_process in pairs_of(data, monkeypatch, 3):
        assert all(np.array_equal(a, b) for a, b in zip(one, of_process, strict=True))


class NoProgress:
    """What train_epoch tells how far it is."""

    def update(self, n=1):
        """Do nothing."""


def epoch_of(data, pairs, patch, rank, processes):
    """What one of several processes gives in an epoch: its losses and gradients, a row a batch."""
    rows = []

    def descend(optimiser, loss):
        data.model.zero_grad()
        loss.backward()
        gradients = [p.grad.flatten() for p in data.model.parameters() if p.grad is not None]
        rows.append(torch.cat([loss.detach()[None], *gradients]))

    as_process(patch, rank, processes)
    patch.setattr(train, "draw_pairs", lambda *arguments: pairs)
    patch.setattr(train, "descend", descend)
    patch.setattr(train, "exchange", lambda *arguments: None)
    optimiser = torch.optim.SGD(data.model.parameters(), 1.0)
    train.train_epoch(data, optimiser, 0, 1, NoProgress())
    patch.undo()
    return torch.stack(rows)


def test_the_shares_of_losses_and_gradients_add_up_to_those_of_one_process(data, monkeypatch):
    """In every batch of an epoch; they are of 25 pairs, so that the shares are uneven."""
    (pairs,) = pairs_of(data, monkeypatch, 1)
    whole = epoch_of(data, pairs, monkeypatch, 0, 1)
    shares = [epoch_of(data, pairs, monkeypatch, rank, 3) for rank in range(3)]
    assert len(whole) > 5
    assert torch.allclose(sum(shares), whole, rtol=1e-3, atol=1e-5)


def test_gradients_are_summed_over_the_processes_each_in_its_place(monkeypatch):
    """In one message; a weight without a gradient is not in it."""
    weights = [torch.zeros(2, 3, requires_grad=True), torch.zeros(4, requires_grad=True)]
    spare = torch.ones(1, requires_grad=True)
    others = torch.arange(10.0)

    def exchange(collective, whole):
        whole += others

    as_process(monkeypatch, 0, 2)
    monkeypatch.setattr(train, "exchange", exchange)
    loss = weights[0].sum() + 2 * weights[1].sum()
    train.descend(torch.optim.SGD([weights[0], spare, weights[1]], 1.0), loss)
    assert torch.equal(-weights[0].detach(), 1 + others[:6].view(2, 3))
    assert torch.equal(-weights[1].detach(), 2 + others[6:])
    assert spare.item() == 1


def lost(*arguments):
    """A collective whose other process is gone."""
    raise RuntimeError("Connection closed by peer\nat some line of gloo")


def test_one_process_alone_asks_no_other():
    """There may be no torch.distributed at all."""
    assert train.exchange(lost, 1) is None


def test_a_lost_process_is_told_in_one_line(monkeypatch):
    """With the first line of the reason."""
    as_process(monkeypatch, 0, 2)
    message = r"^lost another process of this run \(Connection closed by peer\)$"
    with pytest.raises(ConnectionError, match=message):
        train.exchange(lost, 1)


# ---- What several processes refuse ---------------------------------------------------------------


def test_a_batch_that_leaves_a_process_without_cells_is_refused(monkeypatch):
    """An epoch's batches may be half as large as --batch."""
    as_process(monkeypatch, 0, 2)
    with pytest.raises(screens.InputError, match="--batch 3 is too small for 2 processes"):
        train.check(ImprovedSettings(batch=3))
    assert train.check(ImprovedSettings(batch=4)) is None


def test_several_processes_do_not_share_one_gpu(monkeypatch):
    """--device cuda gives each its own, by its local number."""
    as_process(monkeypatch, 0, 2)
    monkeypatch.setenv("LOCAL_RANK", "99")
    with pytest.raises(screens.InputError, match="--device cuda:1: .* use --device cuda"):
        train.join("cuda:1")
    with pytest.raises(screens.InputError, match="--device cuda:99: not available here"):
        train.join("cuda")


# ---- Two processes -------------------------------------------------------------------------------


class Two:
    """`torchrun --nproc-per-node 2 train.py ARGUMENTS` in a folder, in two forks."""

    def __init__(self, folder, *arguments):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.scripts = []
        for rank in "01":
            environment = {
                "TORCHELASTIC_RUN_ID": "test",
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": "2",
                "LOCAL_WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            }
            script = Script(folder, "train.py", *arguments, first=without_scores, **environment)
            self.scripts.append(script)

    def ended(self):
        """Wait for their end: what `Script.ended` says of both."""
        return [script.ended() for script in self.scripts]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A screen, and a run of three epochs by one process."""
    folder = tmp_path_factory.mktemp("processes")
    toy_data.simulate_screen(40, 8, 500, seed=0).write_h5ad(folder / "s.h5ad")
    alone(folder, *SETTINGS, "3", "--out", "one")
    return folder


def alone(folder, *arguments):
    """Let one process train to the end."""
    code, _, errors = Script(folder, "train.py", *arguments, first=without_scores).ended()
    assert code == 0, errors


def checkpoint(run):
    """The content of a run's model.pt."""
    return torch.load(run / "model.pt", weights_only=True)


def apart(a, b):
    """The largest relative difference between the weights of two runs."""
    a = checkpoint(a)["model"]
    b = checkpoint(b)["model"]
    differences = []
    for name in a:
        size = a[name].float().norm().clamp_min(1e-6)
        differences.append((a[name].float() - b[name].float()).norm() / size)
    return max(differences)


def wait_for_an_epoch(run, script):
    """Wait until a run has its first row of the log."""
    while not (run / "log.csv").exists():
        time.sleep(0.01)
        assert script.process.is_alive()


@pytest.fixture(scope="module")
def two(folder):
    """What torchrun's two processes print of the same run."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", ROOT / "train.py", *SETTINGS, "3", "--out", "two"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, env=environment, timeout=300
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_two_processes_train_the_model_that_one_trains(folder, two):
    """Up to rounding, and with the same losses."""
    assert apart(folder / "one", folder / "two") < 1e-3
    logs = [pd.read_csv(folder / name / "log.csv") for name in ("one", "two")]
    assert np.allclose(*[log.drop(columns="seconds") for log in logs], rtol=1e-4)


def test_of_two_processes_the_first_alone_samples_scores_and_prints(folder, two):
    """Everything once."""
    assert two.count("report: ") == 1
    assert two.count("model: ") == 1
    assert (folder / "two/metrics.json").exists()


@pytest.mark.parametrize("killed", [0, 1])
def test_the_process_that_is_left_says_how_to_go_on(folder, killed):
    """In one line, with exit code 2, and the last complete epoch is there."""
    run = folder / f"killed{killed}"
    job = Two(folder, *SETTINGS, "400", "--out", run.name)
    wait_for_an_epoch(run, job.scripts[0])
    os.kill(job.scripts[killed].process.pid, signal.SIGKILL)
    code, _, errors = job.ended()[1 - killed]
    command = f"torchrun --nproc-per-node 2 train.py --resume {run.name} --device cpu"
    assert code == 2
    assert errors.strip().splitlines()[-1].endswith(f"last complete epoch with: {command}")
    assert 1 <= checkpoint(run)["epoch"] < 400


def test_a_run_begun_by_one_process_is_ended_by_two_as_by_one(folder):
    """Up to rounding."""
    script = Script(folder, "train.py", *SETTINGS, "9", "--out", "begun", first=without_scores)
    wait_for_an_epoch(folder / "begun", script)
    os.kill(script.process.pid, signal.SIGTERM)
    script.ended()
    assert checkpoint(folder / "begun")["epoch"] < 9
    shutil.copytree(folder / "begun", folder / "again")
    alone(folder, "--resume", "again")
    assert [code for code, _, _ in Two(folder, "--resume", "begun").ended()] == [0, 0]
    assert 0 < apart(folder / "again", folder / "begun") < 1e-2


BAD = {  # what the first process says, and that alone
    "no such file": ["--data", "none.h5ad"],
    "too small for 2 processes": [*SETTINGS, "1", "--batch", "3", "--out", "small"],
    "nowhere is not a run": ["--resume", "nowhere"],
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_one_line_of_the_first_process(folder, message):
    """All of them end with exit code 2."""
    first, second = Two(folder, *BAD[message]).ended()
    assert first[0] == second[0] == 2
    assert first[2].startswith("error: ") and first[2].count("\n") == 1
    assert message in first[2] and second[2] == ""


def test_ablations_are_not_for_several_processes(folder):
    """Each says so, for none waits for another."""
    for code, _, errors in Two(folder, "--ablate", "1").ended():
        assert code == 2
        assert errors.startswith("error: --ablate needs one process, and no --resume")
