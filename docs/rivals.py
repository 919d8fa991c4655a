"""Draw what each rival predicts for a gene that switches on and for a gene with two states.

    python docs/rivals.py        writes docs/rivals.png; a minute or two

A treatment is measured in one simulated cell type and predicted in another, which differs in the
levels of all genes. Every cell of both types obeys the same two rules, so an exact answer exists.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import sparse

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import matplotlib.pyplot as plt  # noqa: E402  (what follows needs the repository's folder)

from report.style import CONTROLS, MEASURED, PREDICTED, finish  # noqa: E402
from rivals.cellot import cellot  # noqa: E402
from rivals.compact_cellot import compact_cellot  # noqa: E402
from rivals.laot import laot_map  # noqa: E402
from rivals.scgen import scgen  # noqa: E402
from rivals.vector_arithmetic import pca_arithmetic, vector_arithmetic  # noqa: E402
from screens import CONTROL, ONE_LINE, Screen, run_script  # noqa: E402

CELLS = 400
GENES = 30
TITLES = ["a gene that\nswitches on", "a gene that rises in\none of two states"]
SYSTEMS = {
    "vector arithmetic": vector_arithmetic,
    "PCA arithmetic": lambda screen: pca_arithmetic(screen, components=10),
    "scGen": lambda screen: scgen(screen, steps=1500),
    "CellOT": cellot,
    "Compact CellOT": lambda screen: compact_cellot(screen, vae_steps=1500),
    "LAOT": laot_map,
}


def simulate(treated, level, rng):
    """Cells (CELLS, GENES) of a type whose genes have these levels.

    The treatment switches gene 0 on in three quarters of the cells instead of one quarter, and
    raises gene 1 by 2, but only in cells of the second state, which genes 1 to 9 show.
    """
    second_state = rng.random((CELLS, 1)) < 0.5
    cells = level + rng.normal(0, 0.25, (CELLS, GENES))
    cells[:, 1:10] += 1.5 * second_state
    if treated:
        cells[:, 1:2] += 2 * second_state
    on = rng.random((CELLS, GENES)) < 0.9
    on[:, 0] = rng.random(CELLS) < (0.75 if treated else 0.25)
    on[:, 1] = True
    return np.maximum(cells, 0) * on


def two_types(rng):
    """A screen with treatment A in the types x and y, and {(perturbation, type): cells}."""
    level = {"x": rng.uniform(1, 2.5, GENES), "y": rng.uniform(1, 2.5, GENES)}
    for genes in level.values():
        genes[:2] = 2, 1
    keys = [(CONTROL, "x"), (CONTROL, "y"), ("A", "x"), ("A", "y")]
    cells = {key: simulate(key[0] == "A", level[key[1]], rng) for key in keys}
    names = np.array([f"g{i}" for i in range(GENES)])
    perturbation, cell_type = [np.repeat(part, CELLS) for part in zip(*keys, strict=True)]
    screen = Screen(
        X=sparse.csr_matrix(np.concatenate(list(cells.values())).astype(np.float32)),
        genes=names,
        var_names=names,
        cells=np.arange(len(perturbation)).astype(str),
        perturbation=perturbation,
        cell_type=cell_type,
        kind="gene",
        obs=pd.DataFrame(index=range(len(perturbation))),
        held_out={("A", "y")},
    )
    return screen, cells


def draw_gene(panel, controls, measured, predicted):
    """Draw how many controls, measured and predicted cells there are at each level of a gene."""
    bins = np.linspace(0, 6, 41)
    panel.hist(measured, bins, color=MEASURED, alpha=0.45)
    panel.hist(controls, bins, color=CONTROLS, histtype="step", linewidth=1)
    panel.hist(predicted, bins, color=PREDICTED, histtype="step", linewidth=1.4)
    panel.set_yscale("symlog", linthresh=30)  # else a bar of zeros hides all others
    panel.set(xlim=(0, 6), xticks=[0, 2, 4, 6])
    panel.tick_params(axis="y", which="both", left=False, labelleft=False)


def main():
    """Draw them."""
    argparse.ArgumentParser(description=__doc__, **ONE_LINE).parse_args()
    screen, cells = two_types(np.random.default_rng(0))
    controls = cells[CONTROL, "y"]
    measured = cells["A", "y"]
    plt.rcParams.update({"font.size": 8, "axes.titlesize": 9})
    figure, panels = plt.subplots(
        2, len(SYSTEMS), figsize=(11, 3.6), sharex=True, sharey=True, layout="constrained"
    )
    for column, (name, system) in enumerate(SYSTEMS.items()):
        predicted = system(screen)("A", "y", controls)
        panels[0, column].set_title(name)
        for gene in (0, 1):
            draw_gene(
                panels[gene, column], controls[:, gene], measured[:, gene], predicted[:, gene]
            )
    for gene in (0, 1):
        panels[gene, 0].set_ylabel(TITLES[gene])
    figure.supxlabel(
        "expression, log1p (height: number of cells, logarithmic above 30)", fontsize=8
    )
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=MEASURED, alpha=0.45),
        plt.Line2D([], [], color=PREDICTED),
        plt.Line2D([], [], color=CONTROLS),
    ]
    labels = ["treated cells, measured", "predicted", "controls"]
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    finish(figure, str(ROOT / "docs/rivals.png"))


if __name__ == "__main__":
    run_script(main)
