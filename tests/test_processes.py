"""Several processes (torchrun, gloo) do what one does."""
import os
import shutil
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import torch

from toy_data import simulate_screen

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", f"{ROOT}/train.py"]
SETTINGS = ["--data", "s.h5ad", "--width", "16", "--embedding", "4", "--steps", "3", "--epochs", "3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A screen, and a run of three epochs by one process."""
    folder = tmp_path_factory.mktemp("processes")
    simulate_screen(40, 8, 500, seed=0).write_h5ad(folder / "s.h5ad")
    assert run(folder, [sys.executable, f"{ROOT}/train.py"], *SETTINGS, "--out", "one").returncode == 0
    return folder


def run(folder, command, *arguments):
    return subprocess.run([*command, *arguments], cwd=folder, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)


def weights(folder, name):
    return torch.load(folder / name / "model.pt", weights_only=True)["model"]


def apart(folder, a, b):
    """The largest relative difference between the weights of two runs."""
    a, b = weights(folder, a), weights(folder, b)
    return max((a[name].float() - b[name].float()).norm() / a[name].float().norm().clamp_min(1e-6) for name in a)


def one_line(stderr):
    """The only line that is ours, among torchrun's."""
    line, = (line for line in stderr.splitlines() if line.startswith(("error:", "stopped;")))
    return line


def test_two_processes_train_the_model_that_one_trains(folder):
    two = run(folder, TWO, *SETTINGS, "--out", "two")
    assert two.returncode == 0 and two.stdout.count("gap closed") == 1
    assert apart(folder, "one", "two") < 1e-3
    logs = [pd.read_csv(folder / name / "log.csv").drop(columns="seconds") for name in ("one", "two")]
    assert np.allclose(*logs, rtol=1e-4) and os.path.exists(folder / "two/metrics.json")


def test_a_killed_process_ends_the_job_with_a_line_and_what_is_left_can_be_resumed_by_two(folder):
    job = subprocess.Popen([*TWO, *SETTINGS[:-1], "40", "--out", "killed"], cwd=folder, stderr=subprocess.PIPE, text=True,
                           env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not os.path.exists(folder / "killed/log.csv"):
        time.sleep(0.1)
        assert job.poll() is None
    children = open(f"/proc/{job.pid}/task/{job.pid}/children").read().split()
    os.kill(next(int(p) for p in children if b"\0RANK=1\0" in open(f"/proc/{p}/environ", "rb").read()), 9)
    assert "torchrun --nproc-per-node 2 train.py --resume killed --device cpu" in one_line(job.communicate(timeout=120)[1])
    assert job.returncode != 0
    reached = torch.load(folder / "killed/model.pt", weights_only=True)["epoch"]
    assert 1 <= reached < 40
    assert run(folder, TWO, "--resume", "killed").returncode == 0
    assert len(pd.read_csv(folder / "killed/log.csv")) == 40


def test_a_run_begun_by_one_process_is_ended_by_two_as_by_one(folder):
    job = subprocess.Popen([sys.executable, f"{ROOT}/train.py", *SETTINGS[:-1], "12", "--out", "begun"], cwd=folder, stderr=subprocess.PIPE,
                           env={**os.environ, "OMP_NUM_THREADS": "1"})
    while not os.path.exists(folder / "begun/log.csv"):
        time.sleep(0.05)
        assert job.poll() is None
    job.terminate()
    job.communicate(timeout=120)
    assert torch.load(folder / "begun/model.pt", weights_only=True)["epoch"] < 12
    shutil.copytree(folder / "begun", folder / "again")
    assert run(folder, [sys.executable, f"{ROOT}/train.py"], "--resume", "again").returncode == 0
    assert run(folder, TWO, "--resume", "begun").returncode == 0
    assert 0 < apart(folder, "again", "begun") < 1e-2


def test_bad_input_is_one_line_of_the_first_process(folder):
    for arguments, message in ((["--data", "none.h5ad"], "no such file"), ([*SETTINGS, "--batch", "3", "--out", "small"], "too small for 2 processes"),
                               (["--resume", "nowhere"], "nowhere is not a run")):
        result = run(folder, TWO, *arguments)
        assert result.returncode != 0 and message in one_line(result.stderr)
    assert not os.path.exists(folder / "small")
    for arguments, message in ((["--ablate", "1"], "one process"), (["--device", "cuda:0"], "use --device cuda")):             # each says it
        result = run(folder, TWO, *arguments)
        assert result.returncode != 0 and f"error: {arguments[0]}" in result.stderr and message in result.stderr
