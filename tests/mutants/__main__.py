"""Make small wrong edits of the project, one at a time, and show that a test fails for each.

    python tests/mutants              every edit, two at a time: about an hour on two cores
    python tests/mutants sinkhorn     those whose file, text or reason holds this word
    python tests/mutants maths --every 16     every sixteenth of the mathematics, as .ci/run does
    python -m pytest && python tests/mutants --tested      without running the tests unedited first
    python tests/mutants --right              edits that are right: other random numbers, same law

The files beside this one hold the edits: MUTANTS, {test file: [(file, old text, new text, why it is
wrong)]}. Each edit is made alone, in a scratch copy of the project, and the test file that it
stands under runs there until one test fails: the edit is killed. This script fails when an edit
survives, when its old text does not stand in the file exactly once, or when a test file fails
without any edit (it would kill everything), and with --right, when it fails with one.
"""

import argparse
import contextlib
import importlib.util
import multiprocessing
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

os.environ.setdefault("OMP_NUM_THREADS", "1")  # of each of the two processes; before NumPy

import anndata  # noqa: F401  (these are imported once, before the processes fork)
import hypothesis
import matplotlib  # noqa: F401
import ot  # noqa: F401
import pytest
import scipy.stats  # noqa: F401
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
MOST_SECONDS = 300  # for the tests of one edit


class Task(NamedTuple):
    """A test file, and the edit that it must notice, or None."""

    tests: str
    edit: tuple | None
    right: bool = False

    def said(self):
        """The task in words."""
        if self.edit is None:
            return f"{self.tests}  without any edit"
        return f"{self.tests}  {self.edit[0]}: {self.edit[3]}"


# ---- What is to be run ---------------------------------------------------------------------------


def all_mutants(kind="MUTANTS"):
    """{test file: [(file, old text, new text, why)]} of all files beside this one; or RIGHT."""
    mutants = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        for tests, edits in getattr(module, kind, {}).items():
            mutants.setdefault(tests, []).extend(edits)
    return mutants


def tasks_of(mutants, word, tested):
    """The edits that hold a word, and before them their test files without any edit."""
    edits = []
    for tests, of_file in mutants.items():
        for edit in of_file:
            if word.lower() in " ".join([tests, *edit]).lower():
                edits.append(Task(tests, edit))
    unedited = dict.fromkeys(task.tests for task in edits)
    return [] if tested else [Task(tests, None) for tests in unedited], edits


# ---- One of them ---------------------------------------------------------------------------------


def copy_project(folder, edit):
    """Copy the project into a folder with one edit made.

    Raises ValueError if the edit's old text does not stand in its file exactly once.
    """
    ignore = shutil.ignore_patterns(".git", "__pycache__", "runs", "*.h5ad", ".hypothesis")
    shutil.copytree(ROOT, folder, ignore=ignore, dirs_exist_ok=True)
    if edit is None:
        return
    name, old, new, _ = edit
    path = Path(folder, name)
    text = path.read_text()
    if text.count(old) != 1:
        raise ValueError(f"BAD: the old text stands {text.count(old)} times")
    path.write_text(text.replace(old, new))


def run_task(task):
    """Run one task in a process that has torch already: (task, verdict, seconds)."""
    started = time.time()
    late = []

    def too_long(number, frame):
        late.append(number)
        raise TimeoutError

    with tempfile.TemporaryDirectory() as folder:
        try:
            copy_project(folder, task.edit)
        except ValueError as error:
            return task, str(error), 0.0
        os.chdir(folder)
        sys.path[:0] = [folder, f"{folder}/tests"]
        sys.dont_write_bytecode = True
        torch.set_num_threads(1)
        signal.signal(signal.SIGALRM, too_long)
        signal.alarm(MOST_SECONDS)
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stdout(nowhere),
            contextlib.redirect_stderr(nowhere),
        ):
            options = ["-x", "-q", "-p", "no:cacheprovider"]
            code = int(pytest.main([*options, f"{folder}/tests/{task.tests}"]))
        signal.alarm(0)
        os.chdir(ROOT)
    if late:  # whether a test caught it or not
        verdict = f"BAD: not over in {MOST_SECONDS} s"
    elif code not in (0, 1):
        verdict = f"BAD: pytest ended with {code}"
    elif task.edit is None or task.right:
        verdict = "FAILS" if code else "passes"
    else:
        verdict = "killed" if code else "SURVIVED"
    return task, verdict, time.time() - started


# ---- All of them ---------------------------------------------------------------------------------


def main():
    parser = argparse.ArgumentParser(prog="python tests/mutants", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("word", nargs="?", default="", help="of the edits' files, texts, reasons")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only each N-th edit")
    parser.add_argument("--tested", action="store_true", help="the tests pass without an edit")
    parser.add_argument("--right", action="store_true", help="the edits that no test must notice")
    parser.add_argument("--verbose", action="store_true", help="a line for every edit")
    args = parser.parse_args()
    # To find a failure is enough: the smallest one is not looked for.
    phases = [hypothesis.Phase.explicit, hypothesis.Phase.generate]
    hypothesis.settings.register_profile(
        "mutants", phases=phases, derandomize=True, database=None, deadline=None
    )
    hypothesis.settings.load_profile("mutants")
    if args.right:
        unedited, edits = tasks_of(all_mutants("RIGHT"), args.word, tested=True)
        edits = [task._replace(right=True) for task in edits]
    else:
        unedited, edits = tasks_of(all_mutants(), args.word, args.tested)
    edits = edits[:: args.every]
    bad = 0
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        results = pool.imap_unordered(run_task, [*unedited, *edits], chunksize=1)
        progress = tqdm(results, total=len(unedited) + len(edits), unit="edit", mininterval=5)
        for task, verdict, seconds in progress:
            good = verdict in ("killed", "passes")
            bad += not good
            if args.verbose or not good:
                tqdm.write(f"{verdict}  {seconds:.0f} s  {task.said()}", file=sys.stdout)
    if bad or not edits:
        print(f"{bad} of {len(edits)} edits did not end as they should")
        sys.exit(1)
    print(f"{len(edits)} edits, {'no test noticed one' if args.right else 'all killed'}")


if __name__ == "__main__":
    main()
