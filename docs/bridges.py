"""Draw the method: both bridges carry control cells to perturbed cells, for three genes.

    python docs/bridges.py        writes docs/bridges.png

The cells are simulated and both ends are known, so nothing is trained here: the cells are paired
and the bridges are run by the functions of departures.py, Part I.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import matplotlib.pyplot as plt  # noqa: E402  (what follows needs the repository's folder)
from matplotlib.collections import LineCollection  # noqa: E402
from matplotlib.colors import ListedColormap  # noqa: E402

from departures import Noise, Settings, ctmc_step, euler_maruyama_step, pair  # noqa: E402
from report.style import finish  # noqa: E402
from screens import ONE_LINE, run_script  # noqa: E402

CELLS = 40
DRAWN = 14  # of them, the cells whose paths are drawn
GENES = ["a gene that rises", "a gene that falls", "a gene that switches on"]
COLOURS = ["#0072B2", "#D55E00", "#009E73"]  # Okabe and Ito's
OFF = "#CFCFCF"

# Of each gene: the mean level where it is on, and the share of cells in which it is on.
CONTROL_LEVEL, CONTROL_ON = [1.2, 2.7, 1.9], [0.85, 0.95, 0.2]
PERTURBED_LEVEL, PERTURBED_ON = [2.7, 1.3, 2.0], [0.95, 0.75, 0.85]


def simulate(level, on, noise):
    """Simulate cells: the level of every gene (cells, 3), and which genes are on (cells, 3)."""
    empty = torch.empty(CELLS, len(level))
    state = noise.normal(empty[:, :1])  # what the genes of a cell have in common
    levels = torch.tensor(level) + 0.2 * state + 0.2 * noise.normal(empty)
    is_on = (noise.uniform(empty) < torch.tensor(on)).float()
    return levels, is_on


def run_bridges(x0, xT, d0, dT, settings, noise):
    """Run both bridges to known ends: levels and on/off at every time (steps + 1, cells, 3)."""
    x, d = x0, d0
    levels, on = [x0], [d0]
    h = 1 / settings.steps
    for i in range(settings.steps):
        t = i * h
        x = euler_maruyama_step(x, xT, t, h, settings.sigma, noise)
        d = ctmc_step(d, dT, t, h, noise)
        levels.append(x)
        on.append(d)
    return torch.stack(levels).numpy(), torch.stack(on).numpy()


def one_to_follow(on):
    """A cell in which the third gene switches on half-way, the others stay on."""
    stays = (on[:, :, :2] == 1).all(axis=(0, 2))
    half_way = on[:, :, 2].mean(axis=0)  # share of the time that the third gene is on
    off_then_on = (on[0, :, 2] == 0) & (on[-1, :, 2] == 1)
    return np.where(stays & off_then_on, np.abs(half_way - 0.5), 1).argmin()


def draw_levels(panel, levels, on, colour, followed):
    """Draw the Brownian bridges of one gene (steps + 1, cells): grey while the gene is off."""
    time = np.linspace(0, 1, len(levels))
    for cell in [*range(DRAWN), followed]:
        points = np.column_stack([time, levels[:, cell]])
        segments = np.stack([points[:-1], points[1:]], axis=1)
        colours = np.where(on[:-1, cell] == 1, colour, OFF)
        if cell == followed:
            panel.plot(*points.T, color="black", linewidth=3)
        width = 1.4 if cell == followed else 0.7
        lines = LineCollection(segments, colors=colours, linewidths=width, zorder=3)
        panel.add_collection(lines)


def draw_chain(panel, on, colour, followed):
    """Draw which cells have one gene on at which time (steps + 1, cells)."""
    flips = np.abs(np.diff(on, axis=0)).argmax(axis=0)
    order = np.lexsort((flips, -on[-1], -on[0]))
    edges = np.linspace(0, 1, len(on) + 1)
    colours = ListedColormap([OFF, colour])
    panel.pcolormesh(edges, np.arange(CELLS + 1), on[:, order].T, cmap=colours, vmin=0, vmax=1)
    panel.hlines(np.arange(1, CELLS), 0, 1, color="white", linewidth=0.5)
    row = np.flatnonzero(order == followed)[0]
    frame = plt.Rectangle((0, row), 1, 1, fill=False, color="black", linewidth=1.2, zorder=4)
    panel.add_patch(frame)
    panel.set_yticks([])


def draw_product(panel, levels, on, colour, followed):
    """Draw the expression, level times on/off, of one gene at both ends."""
    scatter = np.random.default_rng(0)
    means = []
    for end, place, inwards, side in ((0, 0.08, 0.19, "left"), (-1, 0.92, 0.81, "right")):
        is_on = on[end] == 1
        expression = levels[end] * on[end]
        means.append(expression.mean())
        across = place + scatter.uniform(-0.07, 0.07, CELLS)
        fill = np.where(is_on, colour, OFF)
        panel.scatter(across, expression, s=6, color=fill)
        one = (across[followed], expression[followed])
        panel.scatter(*one, s=24, color=fill[followed], edgecolors="black")
        panel.text(inwards, 0, f"{1 - is_on.mean():.0%} off", ha=side, va="center", fontsize=7)
    arrow = {"arrowstyle": "->", "color": "black", "linewidth": 1}
    panel.annotate("", (0.78, means[1]), (0.22, means[0]), arrowprops=arrow)
    panel.text(0.5, np.mean(means) + 0.4, "mean", ha="center", fontsize=7)


def draw_key(figure):
    """Say what colour, grey and black mean."""
    on = plt.Line2D([], [], color=COLOURS[0], linewidth=4)
    off = plt.Line2D([], [], color=OFF, linewidth=4)
    followed = plt.Line2D([], [], color="black", linewidth=2)
    labels = ["colour: the gene is on", "grey: it is off", "black: the same cell in all panels"]
    figure.legend([on, off, followed], labels, loc="outside lower center", ncols=3, frameon=False)


def main():
    """Draw it."""
    argparse.ArgumentParser(description=__doc__, **ONE_LINE).parse_args()
    noise = Noise(5)
    settings = Settings()
    x0, d0 = simulate(CONTROL_LEVEL, CONTROL_ON, noise)
    xT, dT = simulate(PERTURBED_LEVEL, PERTURBED_ON, noise)
    partners, _ = pair(xT * dT, x0 * d0, settings, noise)
    levels, on = run_bridges(x0[partners], xT, d0[partners], dT, settings, noise)
    followed = one_to_follow(on)

    plt.rcParams.update({"font.size": 8, "axes.titlesize": 9, "axes.labelsize": 8})
    figure, panels = plt.subplots(
        3, 3, figsize=(6.2, 5.3), sharex=True, layout="constrained", height_ratios=(1.2, 1, 1.1)
    )
    for i, (gene, colour) in enumerate(zip(GENES, COLOURS, strict=True)):
        draw_levels(panels[0, i], levels[:, :, i], on[:, :, i], colour, followed)
        draw_chain(panels[1, i], on[:, :, i], colour, followed)
        draw_product(panels[2, i], levels[:, :, i], on[:, :, i], colour, followed)
        panels[0, i].set_title(gene, color=colour, fontweight="bold")
        panels[2, i].set_xlim(0, 1)
        panels[2, i].set_xticks([0, 0.5, 1], ["control\nt = 0", "time t", "perturbed\nt = 1"])
        for panel in panels[[0, 2], i]:
            panel.set_ylim(-0.3, 3.5)
            panel.set_yticks([0, 1, 2, 3])
    panels[0, 0].set_ylabel("1  Brownian bridge:\nthe level")
    panels[1, 0].set_ylabel("2  Markov chain:\non or off, a row a cell")
    panels[2, 0].set_ylabel("3  level × on/off:\nthe expression")
    draw_key(figure)
    finish(figure, str(ROOT / "docs/bridges.png"))


if __name__ == "__main__":
    run_script(main)
