"""How far predictions of a kind could come at best: scores of predictions that know the answer.

    python docs/ceilings.py FILE CONDITION [CONDITION …]     KLF1@k562, panobinostat@PW034 …

Each condition is held out, and its cells made from the controls by the hurdle rivals' way, with

    own shift       its own measured shift, all genes: what the way of making cells loses
    own transcript  the same, of the genes that are perturbed alone
    best scale      the mean shift of the others (in its cell type, or of the other cell types),
                    times the best of 0, 1/4 … 2: the most that a method knows which can tell how
                    strong a response is, and not which genes it moves

Printed is gap closed in E-distance, all genes / DE20, of each condition, and of the mean distances.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import screens  # noqa: E402  (what follows needs the repository's folder)
from evaluate import gap_closed, score_condition, starting_rows  # noqa: E402
from rivals.shifts import doses_of, in_type, mean_shift, switched  # noqa: E402

SCALES = np.arange(9) / 4
GENES = ("all", "DE20")
METHODS = ("own shift", "own transcript", "best scale")


def scores_of(screen, key, cells):
    """{method: its E-distance on (all genes, DE20)} of {method: cells (n, N)}, control and floor.

    The best of all scales stands in place of each.
    """
    measured = screen.dense(screen.groups[key])
    controls = screen.dense(screen.controls(key[1]))
    scores, _ = score_condition(measured, controls, cells, 0, key)
    energy = {name: [of["E-distance"][genes] for genes in GENES] for name, of in scores.items()}
    scaled = [energy.pop(name) for name in list(energy) if name.startswith("scale")]
    energy["best scale"] = np.min(scaled, 0)
    return energy


def best_predictions(screen, key):
    """{method: cells (n, N)} of what knows the answer to a condition, and of its control.

    Nothing is held out any more.
    """
    screen.held_out = set()
    shifts = screens.hurdle_shifts(screen)
    own = shifts.pop(key)
    mean = mean_shift(shifts, in_type(shifts, key[1]))
    target = np.isin(screen.genes, list(doses_of(key[0], screen)))
    wanted = {"own shift": own, "own transcript": own * target}
    wanted |= {f"scale {scale}": scale * mean for scale in SCALES}
    x0 = screen.dense(starting_rows(screen, key, 0))
    cells = {name: switched(x0, shift, np.random.default_rng(0)) for name, shift in wanted.items()}
    return {"control": x0, **cells}


def written(energy):
    """A line of the table: the gap that each prediction closes; a dash where there is no gap."""
    entries = []
    for method in METHODS:
        three = zip(energy[method], energy["control"], energy["floor"], strict=True)
        all_genes, de20 = (f"{gap_closed(*of_set):.2f}".replace("nan", "–") for of_set in three)
        entries.append(f"{all_genes} / {de20}")
    return entries


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, **screens.ONE_LINE)
    parser.add_argument("file", help="the h5ad of a screen")
    parser.add_argument("condition", nargs="+", help="A, A+B or drug:dose, with @celltype")
    args = parser.parse_args()
    energies = []
    lines = [["", *METHODS]]
    for name in args.condition:
        screen = screens.prepare(args.file, test=(name,))
        if len(screen.held_out) > 1:
            raise screens.InputError(f"{name}: several conditions; name one, as {name}@celltype")
        (key,) = screen.held_out
        energies.append(scores_of(screen, key, best_predictions(screen, key)))
        lines.append([name, *written(energies[-1])])
    means = {name: np.mean([energy[name] for energy in energies], 0) for name in energies[0]}
    lines.append(["all", *written(means)])
    for line in lines:
        print("".join(text.rjust(20) for text in line))


if __name__ == "__main__":
    screens.run_script(main)
