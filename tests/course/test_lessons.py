"""Every lesson runs, warns of nothing, and prints and draws what is stored in it.

A number holds if it is the stored one up to one unit of its last printed digit: training is not the
same to the bit on all machines. Whole numbers hold exactly. Figures are compared by their presence.
"""

import copy
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

nbformat = pytest.importorskip("nbformat", reason="pip install -r course/requirements.txt")
pytest.importorskip("nbclient", reason="pip install -r course/requirements.txt")
pytest.importorskip("ipykernel", reason="pip install -r course/requirements.txt")

from course.run_lessons import COURSE, LESSONS, run  # noqa: E402  (needs nbclient)

NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?")


def unit(number):
    """One in the last digit of a printed number; 0 if it is whole."""
    digits, _, exponent = number.partition("e")
    decimals = len(digits.partition(".")[2])
    return 10.0 ** (int(exponent or 0) - decimals) if decimals or exponent else 0.0


def holds(stored, found):
    """Whether a text is the stored one, up to the last digit of its numbers and to its spaces."""
    if NUMBER.sub("#", stored).split() != NUMBER.sub("#", found).split():
        return False
    numbers = zip(NUMBER.findall(stored), NUMBER.findall(found), strict=True)
    return all(abs(float(a) - float(b)) <= 1.01 * max(unit(a), unit(b)) for a, b in numbers)


def shown(cell):
    """What a cell shows, by its kind: the texts, and for each figure a word."""
    kinds = {}
    for output in cell.get("outputs", []):
        data = output.get("data", {})
        if "image/png" in data:
            kind, text = "figures", "figure"
        elif output.output_type == "stream":
            kind, text = output.name, output.text
        else:
            kind, text = output.output_type, data.get("text/plain", "")
        kinds[kind] = kinds.get(kind, "") + text + "\n"
    return kinds


def differences(stored, found):
    """What a lesson that was run shows otherwise than the stored one, or warns of: a list."""
    problems = []
    cells = zip(stored.cells, found.cells, strict=True)
    for i, (before, after) in enumerate(cells):
        was, now = shown(before), shown(after)
        if "stderr" in now:
            problems.append(f"cell {i} warns: {now['stderr']}")
        for kind in sorted(was.keys() | now.keys()):
            if not holds(was.get(kind, ""), now.get(kind, "")):
                problems.append(f"cell {i} showed {was.get(kind)}, now shows {now.get(kind)}")
    return problems


@pytest.fixture(scope="module")
def runs():
    """The lessons, begun at once and run two at a time, each by a kernel of its own."""
    pool = ThreadPoolExecutor(2)
    yield {path: pool.submit(run, path) for path in LESSONS}
    pool.shutdown(cancel_futures=True)


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_runs_and_its_stored_outputs_hold(path, runs):
    """Without an error or a warning. If a change was meant: python course/run_lessons.py."""
    assert differences(nbformat.read(path, as_version=4), runs[path].result()) == []


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_is_stored_with_its_outputs(path):
    """Every code cell was run, in order, and the lesson has figures."""
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    figures = [output for cell in cells for output in cell.outputs if "image/png" in str(output)]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert len(figures) >= 2


def test_every_figure_of_the_lessons_becomes_a_file(tmp_path):
    """python course/figures.py FOLDER: as many PNG files as the notebooks show."""
    subprocess.run([sys.executable, COURSE / "figures.py", tmp_path], check=True)
    lessons = [nbformat.read(path, as_version=4) for path in LESSONS]
    cells = [cell for lesson in lessons for cell in lesson.cells]
    figures = sum(len(shown(cell).get("figures", "").split()) for cell in cells)
    files = sorted(tmp_path.glob("lesson_?_*.png"))
    assert len(files) == figures
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in files)


# ---- The comparison itself -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "stored, found, same",
    [
        ("sd 0.21", "sd 0.22", True),
        ("sd 0.21", "sd 0.23", False),
        ("sd 0.21", "var 0.21", False),
        ("12 cells", "13 cells", False),
        ("a  1.0\nb 2.0", "a 1.0\nb  2.0", True),
        ("1.5 2.5", "1.5", False),
        ("-0.0", "0.0", True),
    ],
)
def test_a_number_holds_up_to_its_last_digit(stored, found, same):
    assert holds(stored, found) is same


def lesson_that_shows(*outputs):
    """A notebook of one cell."""
    cell = nbformat.v4.new_code_cell("show()", outputs=list(outputs))
    return nbformat.v4.new_notebook(cells=[cell])


def stream(name, text):
    return nbformat.v4.new_output("stream", name=name, text=text)


FIGURE = nbformat.v4.new_output("display_data", data={"image/png": "AAAA"})


def test_a_warning_is_told_even_if_it_is_stored():
    lesson = lesson_that_shows(stream("stderr", "RuntimeWarning: divide by zero"))
    assert "warns" in differences(lesson, copy.deepcopy(lesson))[0]


def test_a_text_that_changed_and_a_figure_that_is_gone_are_told():
    stored = lesson_that_shows(stream("stdout", "mean 0.5"), FIGURE)
    found = lesson_that_shows(stream("stdout", "mean 0.7"))
    assert len(differences(stored, found)) == 2


def test_a_lesson_that_shows_the_same_holds():
    lesson = lesson_that_shows(stream("stdout", "mean 0.5"), FIGURE)
    assert differences(lesson, copy.deepcopy(lesson)) == []
