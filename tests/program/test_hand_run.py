"""The training step by hand in docs/method.md: what it prints is what the page shows of it.

Its numbers are those of one order of the random numbers; the mathematics is in tests/maths.
"""

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch

from departures import Departures, Noise, pair

PAGE = Path(__file__).resolve().parents[2] / "docs" / "method.md"


@pytest.fixture(scope="module")
def block():
    """The code of the section, and what it is said to print."""
    section = PAGE.read_text().split("## One training step by hand")[1].split("\n## ")[0]
    return re.fullmatch(r".*```python\n(.*?)```.*```\n(.*?)```.*", section, re.DOTALL).groups()


@pytest.fixture(scope="module")
def printed(block):
    """What the code prints, and all its names."""
    names = {}
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(block[0], names)
    return out.getvalue(), names


def test_the_step_by_hand_prints_what_the_page_shows(block, printed):
    assert printed[0] == block[1]


def test_the_step_by_hand_needs_no_more_than_torch_and_departures(block):
    """And every intermediate is shown."""
    imported = re.findall(r"^\s*(?:import|from) (\w+)", block[0], re.MULTILINE)
    assert imported == ["torch", "departures"]
    assert len(block[1].splitlines()) == 15


def test_the_loss_by_hand_is_the_models_own(printed):
    """With the same weights and the same random numbers."""
    names = printed[1]
    torch.manual_seed(0)
    model = Departures(names["settings"], ["A", "B", "C"], ["A"], ["K562"])
    noise = Noise(0)
    pair(names["xT"], names["controls"], names["settings"], noise)
    cells = [names[name] for name in ("x0", "xT", "d0", "dT")]
    losses = model.loss(*cells, names["knock_out"], torch.tensor([0, 0]), noise)
    assert torch.equal(sum(losses), names["loss"])
