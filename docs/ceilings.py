"""How far predictions of a kind could come at best: scores of predictions that know the answer.

    python docs/ceilings.py FILE CONDITION [CONDITION …]     KLF1@k562, panobinostat@PW034 …

Each condition is held out, and its cells made from the controls by the hurdle rivals' way, with

    own shift       its own measured shift, all genes: what the way of making cells loses
    own transcript  the same, of the genes that are perturbed alone
    best scale      the mean shift of the others (in its cell type, or of the other cell types),
                    times the best of 0, 1/4 … 2: the most that a method knows which can tell how
                    strong a response is, and not which genes it moves

Printed is gap closed in E-distance, all genes / DE20, of each condition and on average.
"""

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import screens  # noqa: E402  (what follows needs the repository's folder)
from evaluate import gap_closed, score_condition, starting_rows  # noqa: E402
from rivals.shifts import doses_of, in_type, mean_shift, switched  # noqa: E402

SCALES = np.arange(9) / 4


def gaps_of(screen, key, cells):
    """{method: (gap closed on all genes, on DE20)} of some predicted cells {method: (n, N)}."""
    measured = screen.dense(screen.groups[key])
    controls = screen.dense(screen.controls(key[1]))
    methods = {"control": screen.dense(starting_rows(screen, key, 0)), **cells}
    scores, _ = score_condition(measured, controls, methods, 0, key)
    gaps = {}
    for name in cells:
        of_sets = []
        for genes in ("all", "DE20"):
            three = [scores[method]["E-distance"][genes] for method in (name, "control", "floor")]
            of_sets.append(gap_closed(*three))
        gaps[name] = of_sets
    return gaps


def best_predictions(screen, key):
    """{method: (gap closed on all genes, on DE20)} of what knows the answer to a condition."""
    screen.held_out = set()
    shifts = screens.hurdle_shifts(screen)
    own = shifts.pop(key)
    mean = mean_shift(shifts, in_type(shifts, key[1]))
    target = np.isin(screen.genes, list(doses_of(key[0], screen)))
    wanted = {"own shift": own, "own transcript": own * target}
    wanted |= {f"scale {scale}": scale * mean for scale in SCALES}
    x0 = screen.dense(starting_rows(screen, key, 0))
    cells = {name: switched(x0, shift, np.random.default_rng(0)) for name, shift in wanted.items()}
    gaps = gaps_of(screen, key, cells)
    scaled = [gaps.pop(f"scale {scale}") for scale in SCALES]
    gaps["best scale"] = np.max(scaled, 0)
    return gaps


def main(path, names):
    """Print the table."""
    rows = {}
    for name in names:
        screen = screens.prepare(path, test=(name,))
        (key,) = screen.held_out
        rows[name] = best_predictions(screen, key)
    print("".join(text.rjust(18) for text in ("", *rows[names[0]])))
    everything = np.array([list(gaps.values()) for gaps in rows.values()])
    for name, of_methods in [*zip(names, everything, strict=True), ("mean", everything.mean(0))]:
        entries = [f"{all_genes:.2f} / {de20:.2f}" for all_genes, de20 in of_methods]
        print("".join(text.rjust(18) for text in (name, *entries)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
