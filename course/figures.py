"""Write every figure of the lessons as a PNG file, for slides.

    python course/figures.py                 into runs/course/
    python course/figures.py FOLDER

The figures are those stored in the notebooks: lesson_2_1.png is the first one of lesson 2.
"""

import argparse
import base64
import json
from pathlib import Path

COURSE = Path(__file__).resolve().parent


def stored_figures(path):
    """The PNG files (bytes) that a notebook shows, from top to bottom."""
    lesson = json.loads(path.read_text(encoding="utf-8"))
    outputs = [output for cell in lesson["cells"] for output in cell.get("outputs", [])]
    images = [output.get("data", {}).get("image/png") for output in outputs]
    return [base64.b64decode("".join(image)) for image in images if image]


def main():
    parser = argparse.ArgumentParser(description="Write the figures of the lessons as PNG files.")
    parser.add_argument("folder", nargs="?", default="runs/course", help="(default: runs/course)")
    folder = Path(parser.parse_args().folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(COURSE.glob("[0-9]_*.ipynb")):
            for i, image in enumerate(stored_figures(path), start=1):
                target = folder / f"lesson_{path.name[0]}_{i}.png"
                target.write_bytes(image)
                print(target)
    except OSError as problem:
        parser.error(f"FOLDER {folder}: {problem.strerror}; name one that can be written to")


if __name__ == "__main__":
    main()
