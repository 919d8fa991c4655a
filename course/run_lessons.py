"""Run the lessons and store what they print and draw.

    python course/run_lessons.py                 all of them
    python course/run_lessons.py 2 3             lessons 2 and 3

tests/course/test_lessons.py runs them too, and compares the outputs with the stored ones.
"""

import argparse
from pathlib import Path

try:
    import nbformat
    from nbclient import NotebookClient
except ImportError:  # without course/requirements.txt --help works all the same
    NotebookClient = None

COURSE = Path(__file__).resolve().parent
LESSONS = sorted(COURSE.glob("[0-9]_*.ipynb"))
SECONDS = 120  # a cell may take


def run(path):
    """The notebook at `path`, run in the folder of the lessons; raises CellExecutionError."""
    lesson = nbformat.read(path, as_version=4)
    client = NotebookClient(
        lesson,
        timeout=SECONDS,
        resources={"metadata": {"path": str(COURSE)}},
        record_timing=False,  # times would change from run to run, and so would the pieces
        coalesce_streams=True,  # in which a cell's text arrives
    )
    client.execute()
    lesson.metadata["language_info"] = {"name": "python"}  # the version would change with machines
    return lesson


def main():
    parser = argparse.ArgumentParser(description="Run the lessons and store their outputs.")
    parser.add_argument("numbers", nargs="*", help="of the lessons to run (default: all)")
    numbers = parser.parse_args().numbers
    known = [path.name[0] for path in LESSONS]
    unknown = [number for number in numbers if number not in known]
    if unknown:
        parser.error(f"no lesson {unknown[0]}; there are {', '.join(known)}")
    if NotebookClient is None:
        parser.error("lessons need Jupyter: pip install -r course/requirements.txt")
    for path in LESSONS:
        if not numbers or path.name[0] in numbers:
            print(path.name, flush=True)
            nbformat.write(run(path), path)


if __name__ == "__main__":
    main()
