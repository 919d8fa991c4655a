"""Hand wrong answers to the grader of the course: how many does it mark wrong?

    python tests/submissions.py        a table, less than a minute

Four kinds: the stubs of course/exercises.py; the wrong edits of tests/mutants that are made in a
function of an exercise; the students' mistakes of tests/mistakes.py; and, to be marked right, the
answers and the project's own functions. Whoever hands in has no access to the project, so a
submission holds the functions and what they call, and nothing else of it.
"""

import ast
import multiprocessing
import os
import runpy
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import ot  # noqa: E402, F401  (once, before the processes fork)
from tqdm import tqdm  # noqa: E402

from course.grade import FORMS, message_of  # noqa: E402
from mistakes import MISTAKES  # noqa: E402

SECONDS = 60  # for an exercise, on a machine that has other things to do

FUNCTIONS = {  # {file: {function: the exercise that it belongs to}}
    "departures.py": {
        "bridge_sample": "bridge_sample",
        "bridge_drift": "bridge_drift",
        "endpoint_loss": "endpoint_loss",
        "mixture_sample": "mixture_sample",
        "ctmc_rate": "ctmc_rate",
        "activation_loss": "activation_loss",
        "transport_cost": "transport_cost",
        "coupling": "sinkhorn",
        "draw_partners": "draw_partners",
        "propagate": "propagate",
        "euler_maruyama_step": "euler_maruyama_step",
        "ctmc_step": "ctmc_step",
        "sample": "sample",
    },
    "report/metrics.py": {
        "squared_distances": "e_distance",
        "mean_kernels": "e_distance",
        "two_sample": "e_distance",
        "rooted": "e_distance",
        "e_distance": "e_distance",
        "wasserstein": "wasserstein",
    },
}
# What stands above the functions. The blocks of rows are short: an edit that goes wrong from the
# second block on shows with few cells.
ABOVE = (
    "import math\n\nimport numpy as np\nimport ot\nimport torch\nimport torch.nn.functional as F\n"
)
ABOVE += "\nBLOCK = 8\n"
# The exercise is one of three plans that `coupling` makes, and runs as long as it is told.
SINKHORN = """

def sinkhorn(C, epsilon, iterations):
    return coupling(C, "entropic", epsilon, iterations, tolerance=0.0)
"""
# Edits that break no law of an exercise, {the text that they replace: why they are right here}.
RIGHT_HERE = {
    "epsilon = max(epsilon, 1e-12)": "the exercise's epsilon is above 0",
    '    if method == "exact":\n': "the exercise is the entropic plan alone",
    "for v in (rows, columns, C)]": "the exercise is the entropic plan alone",
    '    if method != "entropic":\n': "the exercise is the entropic plan alone",
    '    if cost == "euclidean":\n': "the exercise names its three costs",
    "columns = C.new_full((m,), 1 / m)": (
        "columns of another weight, all the same, are undone by the next step of the rows"
    ),
    "block -= values.trace(offset=start, dtype=np.float64)": (
        "a cell's distance to itself is 0, taken off or not (in another kernel it is 1)"
    ),
    "within_y = mean_kernels(y, y, kernels, True) if own is None else own": (
        "e_distance never hands on a term that is known already"
    ),
}


class Submission(NamedTuple):
    """A file that is handed in for an exercise, and why it is wrong. right: though it is not."""

    kind: str
    exercise: str
    why: str
    text: str
    right: str = ""


# ---- What is handed in ---------------------------------------------------------------------------


def functions_of(file, names):
    """{name: its text, with decorators} of some functions of a file."""
    text = (ROOT / file).read_text()
    lines = text.splitlines(keepends=True)
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name in names:
            first = min(part.lineno for part in [node, *node.decorator_list])
            found[node.name] = "".join(lines[first - 1 : node.end_lineno])
    return found


def project():
    """{(file, function): text} of the project's own functions."""
    return {
        (file, name): text
        for file, functions in FUNCTIONS.items()
        for name, text in functions_of(file, functions).items()
    }


def as_file(functions):
    """A file of functions {key: text} that a student might have written."""
    return "\n\n".join([ABOVE, *functions.values()]) + SINKHORN


def mutants():
    """The wrong edits of tests/mutants that are made in a function of an exercise."""
    lists = runpy.run_path(str(ROOT / "tests/mutants/__main__.py"))["all_mutants"]()
    functions = project()
    for file, old, new, why in dict.fromkeys(edit for edits in lists.values() for edit in edits):
        for key, text in functions.items():
            if key[0] == file and old in text:
                edited = functions | {key: text.replace(old, new)}
                exercise = FUNCTIONS[file][key[1]]
                right = RIGHT_HERE.get(old, "")
                yield Submission("mutants", exercise, why, as_file(edited), right)


def mistakes():
    """The students' mistakes. Raises ValueError if the text that is edited does not stand there."""
    answers = (ROOT / "course/answers.py").read_text()
    functions = functions_of("course/answers.py", FORMS)
    for exercise, edits in MISTAKES.items():
        text = functions[exercise]
        for old, new, why in edits:
            if text.count(old) != 1:
                raise ValueError(f"{exercise}: {old!r} stands {text.count(old)} times")
            wrong = answers.replace(text, text.replace(old, new))
            yield Submission("mistakes", exercise, why, wrong)


def whole_files():
    """The stubs, which are wrong, and two files that are right."""
    files = {
        "stubs": (ROOT / "course/exercises.py").read_text(),
        "answers": (ROOT / "course/answers.py").read_text(),
        "project": as_file(project()),
    }
    for kind, text in files.items():
        for exercise in FORMS:
            yield Submission(kind, exercise, kind, text)


# ---- What becomes of it --------------------------------------------------------------------------


def marked(submission):
    """A submission and the grader's message, which is empty where it passes."""
    multiprocessing.current_process()._config.pop("daemon", None)  # workers may have children
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder).resolve() / "mine.py"
        path.write_text(submission.text)
        return submission, message_of(path, submission.exercise, SECONDS)


def mark_all(submissions):
    """(submission, message) of all of them, two at a time."""
    submissions = list(submissions)
    with multiprocessing.get_context("fork").Pool(min(2, os.cpu_count())) as pool:
        results = pool.imap(marked, submissions)
        return list(tqdm(results, total=len(submissions), unit="submission", mininterval=2))


def share_marked_wrong(results, kind):
    """(marked wrong, all) of a kind, without the edits that are right here."""
    of_kind = [result for result in results if result[0].kind == kind and not result[0].right]
    return sum(bool(message) for _, message in of_kind), len(of_kind)


def main():
    results = mark_all([*whole_files(), *mutants(), *mistakes()])
    for submission, message in results:
        print(f"{submission.kind:<9} {submission.exercise:<20} {submission.why}")
        print(f"          {message or 'passed'}")
    print()
    for kind in ("stubs", "mutants", "mistakes", "answers", "project"):
        wrong, total = share_marked_wrong(results, kind)
        print(f"{kind:<9} {wrong:>4} of {total:<4} marked wrong")
    for submission, message in results:
        if submission.right:
            verdict = "marked wrong" if message else "passed"
            print(f"left out, {verdict}: {submission.why}: {submission.right}")


if __name__ == "__main__":
    main()
