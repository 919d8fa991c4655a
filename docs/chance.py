"""How much of a gap is owed to chance that a prediction does not have?

    python docs/chance.py RUN [RUN …]

The E-distance that scores is unbiased for cells that were drawn independently. Anchored cells were
not: their mean is the expected one, without the chance of so few cells, and that chance is taken
off all the same. The hurdle rivals, which use every control once, gain likewise. Printed is gap
closed in E-distance, all genes / DE20, by distinct pairs of cells, as everywhere; and by all pairs,
a cell with itself among them, of which nothing is taken off: there independent cells pay for their
chance, and cells without it only do not pay.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import evaluate  # noqa: E402  (what follows needs the repository's folder)
import screens  # noqa: E402
from report import metrics  # noqa: E402

GENES = ("all", "DE20")


def scored(run, pairs):
    """{method: its E-distances (conditions, 2) on all genes and DE20}, by means over such pairs."""
    predicted = f"{run}/predicted.h5ad"
    screen = evaluate.screen_of_run(predicted)
    before = evaluate.mean_kernels
    evaluate.mean_kernels = metrics.mean_kernels = pairs
    rows = evaluate.score(screen, evaluate.read_predicted(predicted, screen))
    evaluate.mean_kernels = metrics.mean_kernels = before
    return [{name: distances(of) for name, of in row["scores"].items()} for row in rows]


def distances(scores):
    """Of one method's scores its E-distances on all genes and DE20."""
    return [scores["E-distance"][genes] for genes in GENES]


def distinct(x, y, kernels, within=False, of=metrics.mean_kernels):
    """The means that are unbiased, over distinct cells."""
    return of(x, y, kernels, within)


def every(x, y, kernels, within=False, of=metrics.mean_kernels):
    """The means over all pairs, a cell with itself among them."""
    return of(x, y, kernels)


def closed(rows):
    """{method: gap closed (2,)} of the mean distances over conditions, where all have the method."""
    names = [name for name in rows[0] if all(name in row for row in rows)]
    mean = {name: np.mean([row[name] for row in rows], 0) for name in names}
    return {
        name: 1 - (mean[name] - mean["floor"]) / (mean["control"] - mean["floor"])
        for name in names
        if name not in ("control", "floor", evaluate.DUPLICATE)
    }


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, **screens.ONE_LINE)
    parser.add_argument("run", nargs="+", help="folder of a run of train.py")
    args = parser.parse_args()
    gaps = [closed(sum((scored(run, pairs) for run in args.run), [])) for pairs in (distinct, every)]
    print("".join(text.rjust(18) for text in ("", "distinct pairs", "all pairs")))
    for name in gaps[0]:
        entries = ("{:.2f} / {:.2f}".format(*gap[name]) for gap in gaps)
        print("".join(text.rjust(18) for text in (name, *entries)))


if __name__ == "__main__":
    screens.run_script(main)
