"""Figure of the sample paths: how both bridges carry single cells to a condition."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap

from report.style import CONTROLS, DASHED, MEASURED, PREDICTED, finish


def draw_paths(path, x, d, genes, condition):
    """Draw the paths of three genes; x and d are (steps + 1, cells, 3).

    Above the Brownian bridge of the level if expressed, below the chain that switches the gene.
    Levels that end below 0 were cut there; where some did, a dashed line says so.
    """
    figure, panels = plt.subplots(
        2, 3, figsize=(10, 5.6), sharex=True, layout="constrained", height_ratios=(1.2, 1)
    )
    for i, gene in enumerate(genes):
        draw_levels(panels[0, i], x[:, :, i], d[:, :, i])
        panels[0, i].set_title(gene, loc="left")
        draw_chain(panels[1, i], d[:, :, i])
    panels[0, 0].set_ylabel("Brownian bridge:\nlevel if expressed (log1p)")
    panels[1, 0].set_ylabel("Markov chain: cells, sorted\n(blue: gene is on)")
    figure.suptitle(f"From control cells to {condition}", x=0.01, ha="left", fontsize=11)
    entries = {}
    for panel in panels[0]:
        handles, labels = panel.get_legend_handles_labels()
        entries |= dict(zip(labels, handles, strict=True))
    figure.legend(
        entries.values(), entries, loc="outside lower center", ncols=2, frameon=False, fontsize=9
    )
    finish(figure, path)


def draw_levels(panel, x, d):
    """Draw the level of one gene in some cells over time; x, d (steps + 1, cells)."""
    time = np.linspace(0, 1, len(x))
    ends_on = d[-1] > 0
    kinds = [
        (~ends_on, CONTROLS, "off: the level is not looked at"),
        (ends_on, PREDICTED, "cells in which it ends on"),
    ]
    for cells, colour, label in kinds:
        panel.plot(time, x[:, cells][:, :25], color=colour, linewidth=0.7, alpha=0.6)
        panel.plot([], [], color=colour, label=label)
    mean = x.mean(1)
    panel.plot(time, mean, color="black", linewidth=2, label="mean of the level if expressed")
    if (x[-1] == 0).any():
        label = "0: at t = 1 a level below it becomes 0"
        panel.axhline(0, color="black", linewidth=0.8, linestyle=DASHED, label=label)


def draw_chain(panel, d):
    """Draw which cells have one gene on over time; d (steps + 1, cells)."""
    flips = np.abs(np.diff(d, axis=0)).argmax(0)
    order = np.lexsort((flips, d[-1], d[0]))
    edges = np.linspace(0, 1, len(d) + 1)
    colours = ListedColormap(["#EEEEEE", MEASURED])
    panel.pcolormesh(edges, np.arange(d.shape[1] + 1), d[:, order].T, cmap=colours, vmin=0, vmax=1)
    panel.set_xlabel("time t: 0 control, 1 perturbed")
    panel.set_title(f"{d[0].mean():.0%} of cells on, then {d[-1].mean():.0%}", fontsize=9)
