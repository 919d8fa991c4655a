"""What happens before a script begins: libraries that it does not need are not loaded.

And Ctrl-C ends in one line while they are.
"""

import os
import signal
import subprocess
import sys

import pytest

from examples import ROOT, Script

SLOW = {"torch", "torch._dynamo", "ot", "matplotlib.pyplot", "scipy.stats"}
SHAPES = """
settings = train.ImprovedSettings(width=2)
with train.torch.device("meta"):  # as in sample.restore_model
    train.model_class(settings)(settings, ["A", "B"], ["A"], ["K562"])
"""


@pytest.mark.parametrize(
    "script, loads",
    [
        ("import screens, toy_data", set()),
        ("import evaluate", {"scipy.stats"}),
        ("import train, sample" + SHAPES, {"torch", "scipy.stats"}),
    ],
    ids=["screens", "evaluate", "train"],
)
def test_what_takes_a_second_to_load_is_loaded_where_it_is_needed(script, loads):
    """torch for tensors, not its compiler for their shapes; POT for plans; what draws to draw."""
    code = f"{script}\nimport sys\nprint(*sys.modules)"
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(printed.split()) & SLOW == loads


def hear_ctrl_c():
    """In a process about to start: do not inherit that tests which run unattended ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.parametrize("script", ["train.py", "sample.py", "evaluate.py", "toy_data.py"])
def test_ctrl_c_while_libraries_load_is_one_line(tmp_path, script):
    """It comes from what the script takes for the first of them."""
    (tmp_path / "numpy.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    result = subprocess.run(
        [sys.executable, ROOT / script],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        preexec_fn=hear_ctrl_c,
    )
    assert (result.returncode, result.stdout) == (130, b"")
    assert result.stderr == b"stopped; start again\n"


def into_one_file():
    """In the process of a Script: `> FILE 2>&1`, and what is printed waits for its block."""
    os.dup2(1, 2)
    sys.stdout.reconfigure(line_buffering=False, write_through=False)


def test_in_a_file_the_error_stands_below_what_was_printed_before(tmp_path):
    """Though a file is written in blocks, and errors at once."""
    options = ["--also", "NOGENE", "--out", "x"]
    script = Script(tmp_path, "train.py", *options, first=into_one_file)
    code, printed, _ = script.ended()
    lines = [line.split(":")[0] for line in printed.splitlines()]
    assert code == 2 and lines == ["no --data", "error"]
