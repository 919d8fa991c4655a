"""Nothing is lost: a training process stopped at any moment, in any way, goes on to the weights and cells of one that nobody stopped."""
import os
import random
import signal
import subprocess
import sys
import time

import anndata
import numpy as np
import pytest
import torch

import toy_data

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TRAIN = [sys.executable, f"{ROOT}/train.py"]
SETTINGS = ["--data", "tiny.h5ad", "--epochs", "45", "--width", "32", "--embedding", "8", "--steps", "5"]


def start(folder, *arguments):
    return subprocess.Popen([*TRAIN, *arguments], cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
                            env={**os.environ, "OMP_NUM_THREADS": "1"},       # a shell that runs the tests in the background ignores Ctrl-C
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


def epochs(folder, run):
    return torch.load(folder / run / "model.pt", weights_only=True)["epoch"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A screen, and a run on it that nobody stopped."""
    folder = tmp_path_factory.mktemp("stop")
    toy_data.simulate_screen(40, 5, 600, seed=3).write_h5ad(folder / "tiny.h5ad")
    assert start(folder, *SETTINGS, "--out", "whole").wait() == 0
    return folder


def test_ten_kills_at_random_moments_change_nothing(folder):
    """SIGKILL, SIGTERM and SIGINT, at moments spread over the run; every checkpoint in between is whole,
    and the weights, the optimiser, the losses and the cells at the end are the same to the bit."""
    rng, reached, checkpoint = random.Random(0), [], folder / "cut/model.pt"
    for i in range(10):
        process = start(folder, *(["--resume", "cut"] if checkpoint.exists() else [*SETTINGS, "--out", "cut"]))
        for _ in range(i and rng.randint(1, 4)):                           # the first kill comes before there is any checkpoint
            written = checkpoint.exists() and os.stat(checkpoint).st_mtime_ns
            while process.poll() is None and (not checkpoint.exists() or os.stat(checkpoint).st_mtime_ns == written):
                time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))                                    # anywhere within an epoch or between two
        process.send_signal((signal.SIGKILL, signal.SIGTERM, signal.SIGINT)[i % 3])
        process.wait()
        reached.append(epochs(folder, "cut") if checkpoint.exists() else -1)
    print("complete epochs after each kill:", reached)
    assert reached[0] == -1 and reached == sorted(reached) and len(set(reached)) > 4       # they did fall at different epochs
    assert start(folder, "--resume", "cut").wait() == 0
    whole, cut = (torch.load(folder / run / "model.pt", weights_only=True) for run in ("whole", "cut"))
    assert all(torch.equal(a, b) for a, b in zip(whole["model"].values(), cut["model"].values()))
    assert all(torch.equal(torch.as_tensor(a[k]), torch.as_tensor(b[k])) for a, b in zip(
        whole["optimiser"]["state"].values(), cut["optimiser"]["state"].values()) for k in a)
    assert [row[:-1] for row in whole["log"]] == [row[:-1] for row in cut["log"]]          # the last column is seconds
    cells = [anndata.read_h5ad(folder / run / "predicted.h5ad").X.toarray() for run in ("whole", "cut")]
    assert np.array_equal(*cells)
    assert not [name for name in os.listdir(folder / "cut") if name.endswith(".tmp")]


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_with_one_line_that_says_how_to_resume(folder, how):
    process = start(folder, *SETTINGS[:2], "--epochs", "5000", "--out", f"long{how}")
    while not os.path.exists(folder / f"long{how}/log.csv"):
        time.sleep(0.1)
        assert process.poll() is None
    process.send_signal(how)
    last = process.communicate(timeout=120)[1].strip().splitlines()[-1]    # or it was lost
    assert process.returncode == 130
    assert last == f"stopped; continue from the last complete epoch with: python train.py --resume long{how} --device cpu"
    assert epochs(folder, f"long{how}") >= 1


SWALLOWED = """
import os, signal, sys, time
sys.path.insert(0, {root!r})
import data, train
class Owner:
    def __del__(self):                                                     # Python prints what is raised in here, and drops it
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.01)
write_log = train.write_log
train.write_log = lambda *a: (write_log(*a), Owner())[0]
data.run_script(train.main)
"""


def test_a_signal_that_a_librarys_callback_swallows_still_stops_the_run(folder):
    done = subprocess.run([sys.executable, "-c", SWALLOWED.format(root=ROOT), *SETTINGS, "--out", "swallowed"], cwd=folder, capture_output=True, text=True,
                          env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert "Exception ignored" in done.stderr and done.returncode == 130
    assert done.stderr.strip().splitlines()[-1].startswith("stopped; continue") and epochs(folder, "swallowed") == 1
