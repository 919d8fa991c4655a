"""How much of a gap is owed to chance that a prediction does not have?

    python docs/chance.py RUN [RUN …]

The E-distance that scores is unbiased for cells that were drawn independently. Anchored cells were
not: their mean is the expected one, without the chance of so few cells, and that chance is taken
off all the same. The hurdle rivals, which use every control once, gain likewise. Printed is gap
closed in E-distance, all genes / DE20, in two ways. By distinct pairs of cells, as everywhere. And
by all pairs, a cell with itself among them: then no chance is taken off from anybody.
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
UNBIASED = metrics.mean_kernels


def of_all_pairs(x, y, kernels, within=False):
    """The means over all pairs of a cell of x and one of y, within a sample too."""
    return UNBIASED(x, y, kernels)


def scored(run, mean_kernels):
    """[{method: its E-distance on all genes and on DE20}] of a run's conditions, by such means."""
    predicted = f"{run}/predicted.h5ad"
    screen = evaluate.screen_of_run(predicted)
    # Both modules call it by this name: for the measured cells, and for the predicted ones.
    evaluate.mean_kernels = metrics.mean_kernels = mean_kernels
    rows = evaluate.score(screen, evaluate.read_predicted(predicted, screen))
    return [
        {name: [of["E-distance"][genes] for genes in GENES] for name, of in row["scores"].items()}
        for row in rows
    ]


def closed(rows):
    """{method: gap closed (2,)} of the means over conditions, of methods that all of them have."""
    names = [name for name in rows[0] if all(name in row for row in rows)]
    mean = {name: np.mean([row[name] for row in rows], 0) for name in names}
    gap = mean["control"] - mean["floor"]
    shown = [name for name in names if name not in ("control", "floor", evaluate.DUPLICATE)]
    return {name: 1 - (mean[name] - mean["floor"]) / gap for name in shown}


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, **screens.ONE_LINE)
    parser.add_argument("run", nargs="+", help="folder of a run of train.py")
    args = parser.parse_args()
    gaps = []
    for mean_kernels in (UNBIASED, of_all_pairs):
        gaps.append(closed([row for run in args.run for row in scored(run, mean_kernels)]))
    print("".join(text.rjust(18) for text in ("", "distinct pairs", "all pairs")))
    for name in gaps[0]:
        entries = ("{:.2f} / {:.2f}".format(*gap[name]) for gap in gaps)
        print("".join(text.rjust(18) for text in (name, *entries)))


if __name__ == "__main__":
    screens.run_script(main)
