"""Trackability: cells x become W x in an unknown order. When can the order be found?

python -m course.trackability        a table and a figure, about a minute on 2 CPU cores
"""

import itertools
import multiprocessing
import os
from functools import partial

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from scipy import optimize
from scipy.spatial.distance import cdist
from tqdm import tqdm

import screens
from course.gaussian import fit_bridge, run_experiment
from departures import ImprovedSettings, Noise, pair
from evaluate import gamma_by_median, mmd2
from report.style import write
from rivals.laot import laot
from toy_data import near_identity, trackable_displacement

KINDS = ("uniform", "Gaussian")
DIMENSIONS = range(10, 101, 10)
DEVIATIONS = (0, 0.1, 0.2, 0.5, 1, 2, 5, *range(10, 201, 10))
BOUNDS = ("RIP bound with n", "RIP bound", "distance bound")
TRACKED = ("kind", "dimensions", "deviation", "LAOT", "OT pairing", "MMD2", *BOUNDS)


def moved_cells(n, d, kind, deviation, rng):
    """(x, start, order, W, E): cells (n, d), held-out cells (2 n, d), the order and the map.

    The cells become x[order] @ W.T with W = I + deviation E.
    """
    cells, E = near_identity(3 * n, d, kind, rng)
    order = rng.permutation(n)
    return cells[:n], cells[n:], order, np.eye(d) + deviation * E, E


def track(point, n=100, trials=50, iterations=10):
    """One point of the grid: the means over trials of what is found.

    The recovery by LAOT and by one exact plan, the MMD^2 of LAOT's map between held-out cells, and
    the deviation s = |W - I|_F at which the farthest-moving cell reaches each bound.
    """
    kind, d, deviation = point
    rng = np.random.default_rng([d, int(10 * deviation), kind == "uniform"])
    scores = []
    for _ in range(trials):
        x, held_out, order, W, E = moved_cells(n, d, kind, deviation, rng)
        start, end = np.split(held_out, 2)
        xT = x[order] @ W.T
        found, learned = laot(x, xT, iterations)
        plan = optimize.linear_sum_assignment(cdist(xT, x, "sqeuclidean"))[1]
        farthest = np.linalg.norm(x @ E.T, axis=1).max()
        bounds = np.array(trackable_displacement(x)) / farthest
        far = mmd2(start @ learned.T, end @ W.T, gamma_by_median(xT))
        scores.append([(found == order).mean(), (plan == order).mean(), far, *bounds])
    values = (*point, *np.mean(scores, 0))
    return dict(zip(TRACKED, values, strict=True))


def track_by_bridge(point, n=100, d=50, sigma=0.02):
    """The project's own pairing and bridge on the toy, LAOT's beside them.

    The share of pairs that are true, of starts that the trained bridge brings nearest to their own
    end, and MMD^2 on held-out cells.
    """
    kind, deviation = point
    x, held_out, order, W, E = moved_cells(n, d, kind, deviation, np.random.default_rng(d))
    start, end = np.split(held_out, 2)
    xT = x[order] @ W.T
    gamma = gamma_by_median(xT)
    found, learned = laot(x, xT)
    settings = ImprovedSettings(pairing="exact")
    partner = pair(torch.as_tensor(xT), torch.as_tensor(x), settings, Noise(0))[0].numpy()
    bridge = fit_bridge(x[partner], xT, sigma, steps=500, batch=n)
    nearest = np.linalg.norm(bridge(x)[:, None] - x @ W.T, axis=2).argmin(1)
    return {
        "kind": kind,
        "deviation": deviation,
        "farthest move": deviation * np.linalg.norm(x @ E.T, axis=1).max(),
        "distance bound": trackable_displacement(x)[2],
        "LAOT": (found == order).mean(),
        "OT pairing": (partner == order).mean(),
        "bridge": (nearest == np.arange(n)).mean(),
        "LAOT MMD2": mmd2(start @ learned.T, end @ W.T, gamma),
        "bridge MMD2": mmd2(bridge(start), end @ W.T, gamma),
    }


def trackability(out, trials=50):
    """The benchmark's grid (n = 100, 10 iterations), then the bridge on both sides of it."""
    # One thread for each of the processes below, one to a core.
    os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
    grid = list(itertools.product(KINDS, DIMENSIONS, DEVIATIONS))
    points = list(itertools.product(KINDS, (0.5, 10, 30, 100)))
    with multiprocessing.get_context("spawn").Pool() as pool:
        tracked = pool.imap(partial(track, trials=trials), grid, 4)
        table = pd.DataFrame(tqdm(tracked, "LAOT", len(grid), unit="point"))
        bridged = pool.imap(track_by_bridge, points)
        bridges = pd.DataFrame(tqdm(bridged, "bridges", len(points), unit="bridge"))
    screens.save(f"{out}/grid.csv", table.to_csv(index=False).encode())
    draw_trackability(f"{out}/trackability.png", table)
    return bridges


def draw_trackability(path, table):
    """Recovery over deviation and dimension, by LAOT and by one plan, with the bounds marked."""
    figure, panels = plt.subplots(
        2, 2, figsize=(10, 6.4), sharex=True, sharey=True, layout="constrained"
    )
    deviations = sorted(table["deviation"].unique())
    at = np.arange(len(deviations))
    for column, kind in enumerate(KINDS):
        mine = table[table["kind"] == kind]
        for panel, method in zip(panels[:, column], ("LAOT", "OT pairing"), strict=True):
            values = mine.pivot(index="dimensions", columns="deviation", values=method)
            image = panel.pcolormesh(
                at, sorted(table["dimensions"].unique()), values, cmap="cividis", vmin=0, vmax=1
            )
            draw_bounds(panel, mine, deviations, at)
            panel.set_title(f"{method}, {kind} E", fontsize=10)
            labels = [f"{s:g}" if s < 10 or s % 20 == 0 else "" for s in deviations]
            panel.set_xticks(at, labels, rotation=90, fontsize=7)
    for panel in panels[:, 0]:
        panel.set_ylabel("dimensions d")
    for panel in panels[1]:
        label = "deviation $\\|W - I\\|_F$ (finer steps below 10)"
        panel.set_xlabel(label, parse_math=True)
    figure.colorbar(
        image, ax=panels, label="share of cells whose true partner is found", shrink=0.8
    )
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    write(figure, path)


def draw_bounds(panel, table, deviations, at):
    """Draw at which deviation each bound is reached, per dimension."""
    for bound, line in zip(BOUNDS, (":", "--", "-"), strict=True):
        reached = table.groupby("dimensions")[bound].mean()
        reached = reached[reached > 0.01]  # where delta >= 1 a RIP bound says nothing
        place = np.interp(reached, deviations, at)
        panel.plot(
            place, reached.index, line, marker="o", color="black", mfc="white", markersize=4,
            label=bound,
        )  # fmt: skip


if __name__ == "__main__":
    screens.run_script(lambda: run_experiment(trackability, __doc__))
