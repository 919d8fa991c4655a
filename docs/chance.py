"""How much of a gap is owed to chance that a prediction does not have?

    python docs/chance.py RUN [RUN …]

The E-distance that scores is unbiased for cells that were drawn independently. Anchored cells were
not: their mean is the expected one, without the chance of so few cells, and that chance is taken
off all the same. The hurdle rivals, which use every control once, gain likewise. Printed is gap
closed in E-distance, all genes / DE20, in two ways. By distinct pairs of cells, as everywhere. And
by all pairs, a cell with itself among them: then no chance is taken off from anybody.

The third column asks what the predictions are worth where nobody gains by chance: which share is
closed of the squared distance between the means of the two populations, of controls and of
perturbed cells. What few cells add to that distance is taken off, for the controls too; a method
says one mean, from all controls, and its error is its own. (The 20 are those that change most in
these very cells: where the controls are off by chance a gene is chosen for it.)
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
from rivals import RIVALS  # noqa: E402

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


def means_apart(x, y):
    """The squared distance of two means, gene by gene (N,).

    y: measured cells (m, N), whose chance is taken off, and so is that of x, where it is cells
    (n, N) of the controls and not a mean (N,) that a method says.
    """
    squared = -y.var(0, ddof=1) / len(y)
    if x.ndim == 2:
        squared -= x.var(0, ddof=1) / len(x)
        x = x.mean(0)
    return squared + (x - y.mean(0)) ** 2


def scored_means(run):
    """[{method: `means_apart` of what it says, on all genes and on DE20}] of a run's conditions."""
    predicted = f"{run}/predicted.h5ad"
    screen = evaluate.screen_of_run(predicted)
    cells = evaluate.read_predicted(predicted, screen)
    predictors = {name: rival(screen) for name, rival in RIVALS.items() if name != "control"}
    rows = []
    for key in sorted(key for key in cells if evaluate.can_be_scored(screen, cells, key)):
        y = screen.dense(screen.groups[key]).astype(np.float64)
        controls = screen.dense(screen.controls(key[1]))
        de20 = metrics.welch_t(y, controls).argsort()[-20:]
        said = {name: predict(*key, controls) for name, predict in predictors.items()}
        said = {name: x.mean(0) for name, x in said.items() if x is not None}
        said |= {"model": np.asarray(cells[key].mean(0))[0], "control": controls}
        apart = {name: means_apart(x, y) for name, x in said.items()}
        rows.append({name: [d.sum(), d[de20].sum()] for name, d in apart.items()})
        rows[-1]["floor"] = [0.0, 0.0]
    return rows


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
    gaps.append(closed([row for run in args.run for row in scored_means(run)]))
    print("".join(text.rjust(18) for text in ("", "distinct pairs", "all pairs", "means")))
    for name in gaps[0]:
        entries = ("{:.2f} / {:.2f}".format(*gap[name]) for gap in gaps)
        print("".join(text.rjust(18) for text in (name, *entries)))


if __name__ == "__main__":
    screens.run_script(main)
