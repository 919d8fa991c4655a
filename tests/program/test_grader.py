"""The grader of the course: what it marks right and wrong, and that nothing makes it stumble.

`python tests/submissions.py` prints every wrong answer that is handed in here, and its message.
"""

import ast
import json
import math
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from course.grade import FORMS, LAWS, grade, message_of
from examples import Script
from submissions import mark_all, mistakes, mutants, share_marked_wrong, whole_files

ROOT = Path(__file__).resolve().parents[2]
ANSWERS = ROOT / "course" / "answers.py"

# ---- It marks right what is right, and wrong what is wrong ---------------------------------------


@pytest.fixture(scope="module")
def proof():
    """[(submission, message)] of all that is handed in."""
    return mark_all([*whole_files(), *mutants(), *mistakes()])


def misjudged(proof, kind, wrong):
    """The submissions of a kind that are not marked as they should be."""
    return [
        f"{submission.exercise}: {submission.why}: {message or 'passed'}"
        for submission, message in proof
        if submission.kind == kind and not submission.right and bool(message) != wrong
    ]


def test_every_answer_passes(proof):
    assert misjudged(proof, "answers", wrong=False) == []
    assert share_marked_wrong(proof, "answers") == (0, 15)


def test_the_projects_own_functions_pass(proof):
    """They draw other random numbers than the answers do."""
    assert misjudged(proof, "project", wrong=False) == []
    assert share_marked_wrong(proof, "project") == (0, 15)


def test_every_stub_fails(proof):
    """None is solved already, and each says so."""
    assert share_marked_wrong(proof, "stubs") == (15, 15)
    stubs = {message for submission, message in proof if submission.kind == "stubs"}
    assert stubs == {"not written yet"}


def test_every_wrong_edit_of_these_functions_is_marked_wrong(proof):
    """Those of tests/mutants, at least 90; what is left out passes, for it is right here."""
    assert misjudged(proof, "mutants", wrong=True) == []
    assert share_marked_wrong(proof, "mutants")[1] >= 90
    assert {message for submission, message in proof if submission.right} == {""}


def test_every_students_mistake_is_marked_wrong(proof):
    """At least 30, and some in every exercise."""
    assert misjudged(proof, "mistakes", wrong=True) == []
    assert share_marked_wrong(proof, "mistakes")[1] >= 30
    assert {s.exercise for s, _ in proof if s.kind == "mistakes"} == set(FORMS)


def test_every_law_is_broken_by_somebody(proof):
    """A law that no wrong answer breaks, before any other, would be no law."""
    idle = []
    for exercise, laws in LAWS.items():
        said = [message for submission, message in proof if submission.exercise == exercise]
        for law in laws:
            text = " ".join(law.__doc__.split())
            if not any(message.endswith(text) for message in said):
                idle.append(law.__name__)
    assert idle == []


def test_no_check_stumbles_over_a_wrong_answer(proof):
    """Exceptions that are reported were raised in the student's file, on a line that is named."""
    raised = [message for _, message in proof if message.startswith("it raises")]
    assert raised
    assert all(message.endswith(" of mine.py)") for message in raised)


def counts(page):
    """The table of what was handed in: [(how many, marked wrong)]."""
    rows = re.findall(r"^\|.*\| (\d+) \| (\d+) \|$", page.read_text(), flags=re.MULTILINE)
    return [(int(wrong), int(total)) for total, wrong in rows]


def test_the_readme_says_how_good_the_grader_is(proof):
    """Its table is what was just marked."""
    kinds = ("stubs", "mutants", "mistakes", "answers", "project")
    found = [share_marked_wrong(proof, kind) for kind in kinds]
    assert counts(ROOT / "course/README.md") == found


OTHERWISE = {  # right in law, with other random numbers than the answers and the project draw
    "bridge_sample": """
        z = noise.normal(x0.T.contiguous()).T
        return x0.lerp(xT, t) - sigma * ((1 - t) * t) ** 0.5 * z
        """,
    "euler_maruyama_step": """
        for _ in range(4):  # four short increments of Brownian motion
            increment = (sigma**2 * h / 4) ** 0.5 * noise.normal(x)
            xT = xT + increment * (1 - t) / h
        return x + (xT - x) * h / (1 - t)
        """,
    "mixture_sample": """
        d = d0.clone()
        for gene in reversed(range(d.shape[1])):
            late = noise.uniform(d[:, 0]) >= 1 - t[:, 0]
            d[late, gene] = dT[late, gene]
        return d
        """,
    "ctmc_step": """
        drawn = (noise.uniform(d) >= 1 - p_on).to(d)
        jumps = noise.uniform(d.T.contiguous()).T < h / (1 - t)
        return torch.where(jumps, drawn, d)
        """,
    "draw_partners": """
        race = -torch.log1p(-noise.uniform(plan)) / plan  # the first of exponential times
        return torch.where(plan > 0, race, torch.inf).argmin(1)
        """,
}


@pytest.mark.parametrize("exercise", OTHERWISE)
def test_a_right_answer_may_draw_its_numbers_otherwise(tmp_path, exercise):
    """The laws look at laws and not at draws."""
    header = (ROOT / "course/exercises.py").read_text().split(f"def {exercise}(")[1].split(":")[0]
    body = textwrap.indent(textwrap.dedent(OTHERWISE[exercise]), "    ")
    path = handed_in(tmp_path, f"import torch\n\ndef {exercise}({header}:{body}")
    assert message_of(path, exercise, 60) == ""


# ---- Nothing makes it stumble --------------------------------------------------------------------


def handed_in(folder, text):
    """The path of a student's file."""
    path = Path(folder).resolve() / "mine.py"
    path.write_text(text)
    return path


def of_drift(folder, body, above="", seconds=60):
    """The message for a file whose bridge_drift has a body of one line."""
    return message_of(
        handed_in(folder, f"{above}\ndef bridge_drift(x, xT, t):\n    {body}\n"),
        "bridge_drift",
        seconds,
    )


RIGHT = "return (xT - x) / (1 - t)"

BODIES = {
    "return None": "it returns nothing where a torch tensor of shape (6, 3) is due",
    "return ((xT - x) / (1 - t)).numpy()": (
        "it returns a ndarray where a torch tensor of shape (6, 3) is due"
    ),
    "return ((xT - x) / (1 - t)).mean(1)": "it returns the shape (6,) where (6, 3) is due",
    "return ((xT - x) / (1 - t)).float()": "it returns torch.float32 where torch.float64 is due",
    "x -= xT; return -x / (1 - t)": "it changes its argument `x` in place; leave it as it came",
    "return (xT - x) / 0 / 1": "it returns NaN or infinity",
    "return 1 / 0": "it raises ZeroDivisionError: division by zero (line 3 of mine.py)",
    "return x @ xT": "it raises RuntimeError: mat1 and mat2",
    "raise NotImplementedError": "not written yet",
    "import sys; sys.exit(0)": "it ends the program (sys.exit or exit) (line 3 of mine.py)",
    "import os; os._exit(3)": "it ends the whole process (exit code 3)",
    "return bridge_drift(x, xT, t)": "it raises RecursionError",
    "return input()": "it raises EOFError",
    "return drift": "it raises NameError: name 'drift' is not defined (line 3 of mine.py)",
}


@pytest.mark.parametrize("body", BODIES)
def test_a_wrong_form_or_an_exception_is_a_message(tmp_path, body):
    """What was returned or raised, and on which line."""
    assert of_drift(tmp_path, body).startswith(BODIES[body])


def test_a_loop_that_never_ends_is_stopped(tmp_path):
    message = of_drift(tmp_path, "while True: pass", seconds=0.5)
    assert message == "it is not done after 0.5 seconds; does a loop never end?"


def test_a_function_that_prints_a_lot_passes_and_nothing_is_shown(tmp_path, capfd):
    """Not even what goes past Python's own streams."""
    loud = "print('x' * 10**6); import os; os.system('echo loud'); "
    assert of_drift(tmp_path, loud + RIGHT) == ""
    assert capfd.readouterr() == ("", "")


def test_a_function_is_called_as_the_exercises_say(tmp_path):
    path = handed_in(tmp_path, "def bridge_drift(x, xT):\n    return xT - x\n")
    assert "takes 2 positional arguments but 3 were given" in message_of(path, "bridge_drift", 60)


def test_an_exception_in_a_function_that_is_called_names_both_lines(tmp_path):
    above = "def way(x, xT):\n    return xT - y\n"
    message = of_drift(tmp_path, "return way(x, xT) / (1 - t)", above)
    assert message.endswith("name 'y' is not defined (line 2, called from line 5 of mine.py)")


def test_a_function_that_is_called_and_not_written_is_named(tmp_path):
    """The exercise is written; what it calls is not."""
    above = "def way(x, xT):\n    raise NotImplementedError\n"
    message = of_drift(tmp_path, "return way(x, xT) / (1 - t)", above)
    assert message == "it calls way, which is not written yet (line 5 of mine.py)"


def test_a_missing_function_is_a_message(tmp_path):
    path = handed_in(tmp_path, "def bridge_drfit(x, xT, t):\n    return x\n")
    assert message_of(path, "bridge_drift", 60) == "there is no function bridge_drift in mine.py"


def test_what_is_imported_is_not_written(tmp_path):
    """Neither from the answers nor from anywhere."""
    path = handed_in(tmp_path, "from course.answers import bridge_drift\n")
    assert message_of(path, "bridge_drift", 60) == (
        "it is not a function that is written in mine.py; write it there"
    )


def test_a_decorator_does_not_hide_where_a_function_is_written(tmp_path):
    """torch.no_grad wraps the sampler, as a rule."""
    path = handed_in(tmp_path, ANSWERS.read_text())
    assert message_of(path, "sample", 60) == ""


UNLOADABLE = {
    "def bridge_drift(x, xT, t)\n    pass\n": "SyntaxError: expected ':' (line 1 of mine.py)",
    "import a_module_that_is_not_there\n": (
        "it raises ModuleNotFoundError: No module named 'a_module_that_is_not_there'"
        " (line 1 of mine.py)"
    ),
    "exit()\n": "it ends the program (sys.exit or exit) (line 1 of mine.py)",
    "import torch\nraise NotImplementedError\n": (
        "it raises NotImplementedError (line 2 of mine.py)"
    ),
}


@pytest.mark.parametrize("text", UNLOADABLE)
def test_a_file_that_cannot_be_loaded_is_a_result_of_every_exercise(tmp_path, text):
    results = list(grade(handed_in(tmp_path, text)))
    assert [result.exercise for result in results] == list(FORMS)
    expected = f"mine.py cannot be loaded: {UNLOADABLE[text]}"
    assert {result.message for result in results} == {expected}


def test_a_file_may_import_what_stands_beside_it_and_leaves_nothing_there(tmp_path):
    """As a student runs it, and without bytecode in the student's folder."""
    (tmp_path / "beside.py").write_text("ONE = 1\n")
    right = RIGHT.replace("1 -", "ONE -")
    assert of_drift(tmp_path, right, above="from beside import ONE\n") == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beside.py", "mine.py"]


def test_what_a_student_breaks_is_broken_in_one_process_alone(tmp_path):
    """Each exercise has its own, and ours is none of them."""
    body = f"math.tau = 0; {RIGHT}"
    above = "import math\nassert math.tau > 6\n"
    assert [of_drift(tmp_path, body, above) for _ in range(2)] == ["", ""]
    assert math.tau > 6
    assert "submission" not in sys.modules


@pytest.mark.parametrize("name", ["exercises", "grade", "laws", "noise"])
def test_what_is_handed_out_for_an_exam_needs_torch_and_numpy_only(name):
    """Nothing of the project, where the solutions are."""
    imported = set()
    for node in ast.walk(ast.parse((ROOT / f"course/{name}.py").read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            imported.add(node.module)
    others = {module for module in imported if module.split(".")[0] not in sys.stdlib_module_names}
    assert others <= {"torch", "numpy", "course.laws", "course.noise"}


# ---- The command ---------------------------------------------------------------------------------

TWO = f"def bridge_drift(x, xT, t):\n    {RIGHT}\n\ndef bridge_sample(*a):\n    return a[0]\n"


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """A file with a right and a wrong function, marked: exit code, output, errors, results.json."""
    folder = tmp_path_factory.mktemp("command")
    handed_in(folder, TWO)
    only = ["--only", "bridge_drift", "bridge_sample", "sample"]
    script = Script(folder, "course/grade.py", "mine.py", "--json", "results.json", *only)
    return *script.ended(), json.loads((folder / "results.json").read_text())


def test_the_command_prints_a_line_an_exercise_and_a_mark(command):
    """And ends well, whatever the mark is."""
    code, out, errors, _ = command
    lines = out.splitlines()
    assert (code, errors, len(lines)) == (0, "", 5)
    assert lines[0] == "bridge_drift         passed"
    assert lines[4] == "mark: 1 of 3 exercises passed (33%)"


def test_results_json_is_what_gradescope_reads(command):
    """A score for each test, and their sum."""
    *_, results = command
    assert results["score"] == 1.0
    assert results["tests"][0] == {
        "name": "bridge_drift",
        "score": 1.0,
        "max_score": 1.0,
        "status": "passed",
        "output": "passed",
    }
    assert [test["status"] for test in results["tests"]] == ["passed", "failed", "failed"]


def test_results_json_says_what_the_command_prints(command):
    _, out, _, results = command
    for line, test in zip(out.splitlines(), results["tests"], strict=False):
        assert line.split(maxsplit=1) == [test["name"], test["output"]]


def test_an_exercise_that_is_named_twice_is_marked_once(tmp_path):
    handed_in(tmp_path, TWO)
    twice = ["--only", "bridge_drift", "bridge_drift"]
    code, out, _ = Script(tmp_path, "course/grade.py", "mine.py", *twice).ended()
    assert (code, out.count("bridge_drift")) == (0, 1)


def test_a_reader_that_has_read_enough_is_no_error(tmp_path):
    """As `| head -1` has."""
    path = handed_in(tmp_path, TWO)
    command = [sys.executable, ROOT / "course/grade.py", path]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 0)


BAD = {
    "nothing.py": "nothing.py: no such file; give the path of your copy of exercises.py",
    "mine.ipynb": "mine.ipynb: not a .py file; export a notebook as a script first",
    "mine.py --json no/r.json": "--json no/r.json: no such folder; make it first",
    "mine.py --json .": "--json .: Is a directory; name a file to be written",
    "mine.py --seconds nan": "argument --seconds: must be above 0 and below a million, not nan",
    "mine.py --only bridge": "argument --only: invalid choice: 'bridge'",
    ".": ".: is a folder; give the path of your copy of exercises.py",
    "--only bridge_drift mine.py": "mine.py is no exercise; the file comes first: python",
}


@pytest.mark.parametrize("arguments", BAD)
def test_what_cannot_be_marked_is_one_line(tmp_path, arguments):
    """And exit code 2."""
    handed_in(tmp_path, TWO)
    (tmp_path / "mine.ipynb").write_text("{}")
    code, out, errors = Script(tmp_path, "course/grade.py", *arguments.split()).ended()
    assert (code, out) == (2, "")
    assert errors.count("\n") == 1 and BAD[arguments] in errors
