"""What happens before a script begins: libraries that it does not need are not loaded.

And Ctrl-C ends in one line while they are.
"""

import os
import shlex
import signal
import subprocess
import sys
from dataclasses import fields

import pytest

from departures import ImprovedSettings
from examples import ROOT, Script
from report.options import settings_class

SLOW = {"torch", "torch._dynamo", "sympy", "ot", "matplotlib.pyplot", "scipy.stats"}
SHAPES = """
settings = train.ImprovedSettings(width=2)
with train.torch.device("meta"):  # as in sample.restore_model
    train.model_class(settings)(settings, ["A", "B"], ["A"], ["K562"])
"""


@pytest.mark.parametrize(
    "script, loads",
    [
        ("import screens, toy_data", set()),
        ("import evaluate", set()),
        ("import train, sample" + SHAPES, {"torch"}),
    ],
    ids=["screens", "evaluate", "train"],
)
def test_what_takes_a_second_to_load_is_loaded_where_it_is_needed(script, loads):
    """torch for tensors, not its compiler for their shapes; POT for plans; what draws to draw."""
    code = f"{script}\nimport sys\nprint(*sys.modules)"
    command = [sys.executable, "-c", code]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert set(printed.split()) & SLOW == loads


@pytest.mark.parametrize(
    "arguments, code",
    [
        ("train.py --help", 0),
        ("train.py --sigma 1e300", 2),
        ("train.py --no-shifts", 2),
        ("train.py --data ''", 2),
        ("sample.py --help", 0),
        ("sample.py x --data y", 2),
        ("evaluate.py --help", 0),
        ("toy_data.py --help", 0),
    ],
)
def test_help_and_mistakes_in_the_command_are_answered_before_torch_loads(arguments, code):
    """The slow libraries, replaced by nothing, cannot be imported."""
    script, *options = shlex.split(arguments)
    code_of = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({sorted(SLOW)}))
sys.argv = {[script, *options]}
runpy.run_path(sys.argv[0], run_name="__main__")
"""
    command = [sys.executable, "-c", code_of]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == code, result.stderr
    assert result.stderr.count("\n") == code / 2


def test_the_settings_of_the_command_line_are_those_of_the_model():
    """Though they are read without the rest of departures.py."""

    def described(settings):
        return [(f.name, f.type, f.default, dict(f.metadata)) for f in fields(settings)]

    assert described(settings_class()) == described(ImprovedSettings)
    assert vars(settings_class()().paper()) == vars(ImprovedSettings().paper())


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
