"""Mark a filled-in copy of course/exercises.py by the laws of course/laws.py.

    python course/grade.py mine.py                            all exercises
    python course/grade.py mine.py --only sinkhorn sample     some of them
    python course/grade.py mine.py --json results.json        also for Gradescope's autograder

A line an exercise: passed, or the first law that does not hold. Each exercise runs in a process of
its own with a time limit, and what it prints is not shown. The exit code is 0 whatever the mark is,
and 2 where there is no file to be marked.
"""

import argparse
import inspect
import json
import multiprocessing
import os
import sys
import time
import traceback
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import NamedTuple

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # for the student's imports too

from course.laws import FORMS, LAWS, Broken, Unfit, Watched  # noqa: E402

SECONDS = 8  # that an exercise may take; most take less than one
FORK = multiprocessing.get_context("fork")  # a process that has torch already


class Result(NamedTuple):
    """What became of an exercise; message is empty where it passed."""

    exercise: str
    message: str

    @property
    def passed(self):
        return not self.message


# ---- In the process of an exercise ---------------------------------------------------------------


def load(path):
    """The student's file as a module. Its folder is where it imports from."""
    sys.path.insert(0, str(path.parent))
    sys.dont_write_bytecode = True
    spec = spec_from_file_location("submission", path)
    module = sys.modules["submission"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def written_function(module, path, exercise):
    """The student's function, or `Unfit` where it is missing or not written in this file."""
    function = getattr(module, exercise, None)
    if function is None:
        raise Unfit(f"there is no function {exercise} in {path.name}")
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None or Path(code.co_filename) != path:
        raise Unfit(f"it is not a function that is written in {path.name}; write it there")
    return function


def what_happened(error, path, exercise):
    """An exception in a student's words, with the line of the student's file."""
    frames = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in frames if frame.filename == str(path)]
    if isinstance(error, NotImplementedError) and frames and frames[-1].name != "<module>":
        if frames[-1].name == exercise:
            return "not written yet"
        return (
            f"it calls {frames[-1].name}, which is not written yet"
            f" (line {frames[0].lineno} of {path.name})"
        )
    if isinstance(error, SystemExit):
        text = "it ends the program (sys.exit or exit)"
    elif isinstance(error, SyntaxError) and error.lineno:
        return f"{type(error).__name__}: {error.msg} (line {error.lineno} of {path.name})"
    else:
        said = " ".join(str(error).split())
        text = f"it raises {type(error).__name__}" + (f": {said[:200]}" if said else "")
    if hasattr(error, "hint"):
        text = f"{text}; {error.hint}"
    if not frames:
        return text
    first, last = frames[0].lineno, frames[-1].lineno
    called = f", called from line {first}" if first != last else ""
    return f"{text} (line {last}{called} of {path.name})"


def first_broken(path, exercise):
    """The message of the first law that a student's function breaks, or ""."""
    law = None
    try:
        module = load(path)
        if exercise is None:
            return ""
        function = Watched(written_function(module, path, exercise), FORMS[exercise])
        for law in LAWS[exercise]:
            law(function)
    except Broken as broken:
        return f"{broken}. {' '.join(law.__doc__.split())}"
    except Unfit as unfit:
        return str(unfit)
    except BaseException as error:  # a student's exit is a result too
        return what_happened(error, path, exercise)
    return ""


def work(path, exercise, answer):
    """Send the message for an exercise, in a process whose input and output lead nowhere."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(nowhere, number)
    sys.stdout = sys.stderr = os.fdopen(nowhere, "w")
    torch.set_num_threads(1)  # and no library waits for a thread that was not forked
    answer.send(first_broken(path, exercise))


# ---- Beside it -----------------------------------------------------------------------------------


def message_of(path, exercise, seconds):
    """Run one exercise, or with None only load the file: its message, "" if all is well."""
    ours, theirs = FORK.Pipe(duplex=False)
    process = FORK.Process(target=work, args=(path, exercise, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        if not ours.poll(seconds):
            return f"it is not done after {seconds:g} seconds; does a loop never end?"
        return ours.recv()
    except EOFError:
        process.join()
        return f"it ends the whole process (exit code {process.exitcode})"
    finally:
        process.kill()
        process.join()


def grade(path, exercises=tuple(FORMS), seconds=SECONDS):
    """Mark some exercises of a student's file, one after the other: an iterator of `Result`.

    A file that cannot be loaded gives every exercise the reason.
    """
    path = Path(path).resolve()
    unloadable = message_of(path, None, seconds)
    for exercise in exercises:
        if unloadable:
            yield Result(exercise, f"{path.name} cannot be loaded: {unloadable}")
        else:
            yield Result(exercise, message_of(path, exercise, seconds))


def mark(results):
    """The mark in words: one point an exercise."""
    points = sum(result.passed for result in results)
    return f"{points} of {len(results)} exercises passed ({points / len(results):.0%})"


def gradescope(results, seconds):
    """What Gradescope reads from results.json, as a dict."""
    tests = [
        {
            "name": result.exercise,
            "score": float(result.passed),
            "max_score": 1.0,
            "status": "passed" if result.passed else "failed",
            "output": result.message or "passed",
        }
        for result in results
    ]
    score = sum(test["score"] for test in tests)
    return {
        "score": score,
        "execution_time": round(seconds, 1),
        "output": mark(results),
        "tests": tests,
    }


def exercise_name(text):
    """The name of an exercise, or an error that says what else was meant."""
    if text in FORMS:
        return text
    if text.endswith(".py"):
        raise argparse.ArgumentTypeError(
            f"{text} is no exercise; the file comes first: python course/grade.py {text} --only …"
        )
    raise argparse.ArgumentTypeError(f"invalid choice: {text!r} (choose from {', '.join(FORMS)})")


def time_limit(text):
    """A number of seconds above 0."""
    seconds = float(text)
    if not 0 < seconds < 1e6:
        raise argparse.ArgumentTypeError(f"must be above 0 and below a million, not {text}")
    return seconds


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        usage=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, help="a filled-in copy of course/exercises.py")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write Gradescope's results here")
    parser.add_argument(
        "--only", nargs="+", type=exercise_name, default=FORMS, metavar="NAME", help="exercises"
    )
    parser.add_argument(
        "--seconds", type=time_limit, default=SECONDS, help=f"time limit of an exercise ({SECONDS})"
    )
    args = parser.parse_args()
    if args.file.is_dir():
        parser.error(f"{args.file}: is a folder; give the path of your copy of exercises.py")
    if not args.file.is_file():
        parser.error(f"{args.file}: no such file; give the path of your copy of exercises.py")
    if args.file.suffix != ".py":
        parser.error(f"{args.file}: not a .py file; export a notebook as a script first")
    if args.json and not args.json.resolve().parent.is_dir():
        parser.error(f"--json {args.json}: no such folder; make it first")
    if args.json:
        try:  # before minutes of marking, not after
            args.json.open("a").close()
        except OSError as problem:
            parser.error(f"--json {args.json}: {problem.strerror}; name a file to be written")
    started = time.time()
    results = []
    for result in grade(args.file, dict.fromkeys(args.only), args.seconds):
        results.append(result)
        print(f"{result.exercise:<20} {result.message or 'passed'}", flush=True)
    print(f"\nmark: {mark(results)}", flush=True)
    if args.json:
        content = gradescope(results, time.time() - started)
        args.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `| head -1` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
