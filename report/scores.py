"""Figures of a scoring: predicted beside measured cells. Rows come strongest condition first."""

import glob
import os
import re

import matplotlib.pyplot as plt
import numpy as np

from report.style import (
    CONDITIONS,
    CONTROLS,
    DASHED,
    MEASURED,
    PREDICTED,
    WHITE_EDGE,
    finish,
)
from report.tables import SHORT


def draw_scores(folder, screen, rows, summary, predicted):
    """Draw all figures of a scoring into a folder.

    rows: one per condition; predicted: {(perturbation, cell type): cells (n, N) sparse}.
    """
    key_of = {"@".join(key): key for key in predicted}
    rows = [{**row, "key": key_of[row["condition"]]} for row in rows]
    for old in glob.glob(f"{glob.escape(folder)}/violin_*.png"):
        os.remove(old)  # of another scoring, perhaps of other conditions
    for i, row in enumerate(rows[:6]):
        name = re.sub(r"[^A-Za-z0-9_.+@-]", "_", row["condition"])[:100]
        draw_violins(f"{folder}/violin_{i + 1}_{name}.png", screen, row, predicted)
    draw_pca(f"{folder}/pca.png", screen, rows, predicted)
    draw_activation_map(f"{folder}/activation_map.png", screen, rows, predicted)
    draw_means(f"{folder}/mean_change.png", screen, rows, predicted)
    draw_means(f"{folder}/activation.png", screen, rows, predicted, fractions=True)
    draw_gap(f"{folder}/gap_closed.png", rows, summary)


# ---- Violins -------------------------------------------------------------------------------------


def draw_violins(path, screen, row, predicted, n=10):
    """Measured and predicted expression of a condition's top DE genes (the paper's Fig. 4)."""
    key = row["key"]
    columns = [int(np.flatnonzero(screen.genes == gene)[0]) for gene in row["top_genes"][:n]]
    measured = screen.X[screen.groups[key]][:, columns].toarray()
    control = screen.X[screen.controls(key[1])][:, columns].toarray()
    figure, axis = plt.subplots(figsize=(9, 3.6), layout="constrained")
    at = np.arange(len(columns))
    half_violins(axis, at, measured, "low", MEASURED)
    half_violins(axis, at, predicted[key][:, columns].toarray(), "high", PREDICTED)
    axis.hlines(control.mean(0), at - 0.4, at + 0.4, color="black", linewidth=1, linestyle=DASHED)
    handles = [
        plt.Rectangle((0, 0), 1, 1, facecolor=MEASURED),
        plt.Rectangle((0, 0), 1, 1, facecolor=PREDICTED),
        plt.Line2D([], [], color="black", linewidth=1, linestyle=DASHED),
    ]
    labels = ["measured", "predicted", "mean of controls"]
    figure.legend(handles, labels, frameon=False, ncols=3, loc="outside lower center")
    title = f"{row['condition']}: the {len(columns)} genes that change most; circles: means"
    axis.set_title(title, loc="left")
    names = [str(gene) for gene in screen.genes[columns]]
    axis.set_xticks(at, names, rotation=35 if len(columns) > 6 else 0, ha="right")
    axis.set(ylabel="expression (log1p)", ylim=(0, None))
    finish(figure, path)


def half_violins(axis, at, cells, side, colour):
    """Draw one half of the violins of some genes; cells (n, genes)."""
    values = [jittered(gene) for gene in cells.T]
    parts = axis.violinplot(values, at, widths=0.9, side=side, showextrema=False)
    for body in parts["bodies"]:
        body.set(facecolor=colour, alpha=0.85, edgecolor="white", linewidth=0.5)
    offset = -0.12 if side == "low" else 0.12
    axis.scatter(
        at + offset, cells.mean(0), s=18, color="white", edgecolor=colour, linewidth=1.2, zorder=3
    )


def jittered(values):
    """Values fit for a kernel density: a violin of constants has none."""
    if values.std() > 1e-6:
        return values
    return values + np.linspace(0, 1e-2, len(values))


# ---- Maps of cells -------------------------------------------------------------------------------


def principal_axes(cells):
    """Centre (N,), two axes (N, 2) and the share of variance along each, of cells (n, N)."""
    centre = cells.mean(0)
    axes = np.linalg.svd(cells - centre, full_matrices=False)[2][:2].T
    total = max((cells - centre).var(0).sum(), 1e-12)
    return centre, axes, ((cells - centre) @ axes).var(0) / total


def mark_mean(panel, at, colour):
    """Mark the mean of some points (n, 2) with a cross."""
    panel.scatter(
        *at.mean(0), s=110, marker="X", color=colour, edgecolor="black", linewidth=0.9, zorder=3
    )


def legend_beside(figure, panel, title):
    """Put a panel's legend on the figure's right side."""
    handles, labels = panel.get_legend_handles_labels()
    figure.legend(
        handles, labels, title=title, loc="outside right center", frameon=False, markerscale=1.8
    )


def draw_pca(path, screen, rows, predicted):
    """Measured (left) and predicted (right) cells, a line of panels for each cell type.

    In the two principal axes of the measured ones; at most six conditions of a type. A perturbation
    has one colour in all of them.
    """
    keys_of = {}
    for row in rows:
        keys_of.setdefault(row["key"][1], []).append(row["key"])
    figure, panels = plt.subplots(
        len(keys_of),
        2,
        figsize=(10.5, 0.4 + 3.6 * len(keys_of)),
        sharex="row",
        sharey="row",
        layout="constrained",
        squeeze=False,
    )
    colour_of = {}
    for line, (cell_type, keys) in zip(panels, keys_of.items(), strict=True):
        draw_pca_of_type(line, screen, cell_type, keys, predicted, colour_of)
    finish(figure, path)


def with_colours(keys, colour_of):
    """{condition: its colour} of as many conditions of a cell type as there are colours.

    colour_of: {perturbation: colour} in the cell types before, which come first; it is added to.
    """
    shown = {}
    for key in sorted(keys, key=lambda key: key[0] not in colour_of):
        free = [colour for colour in CONDITIONS if colour not in shown.values()]
        colour = colour_of.get(key[0], next(iter(free), None))
        if colour in free:
            shown[key] = colour_of[key[0]] = colour
    return shown


def draw_pca_of_type(panels, screen, cell_type, keys, predicted, colour_of):
    """Draw the cells of one type's conditions into two panels, measured and predicted."""
    shown = with_colours(keys, colour_of)
    measured = [screen.dense(screen.groups[key]) for key in shown]
    control = screen.dense(screen.controls(cell_type)[:500])
    centre, axes, share = principal_axes(np.concatenate([control, *measured]))
    made = [predicted[key].toarray() for key in shown]
    for panel, title, cells in zip(
        panels, ("measured", "predicted"), (measured, made), strict=True
    ):
        at = (control - centre) @ axes
        panel.scatter(*at.T, s=9, color=CONTROLS, alpha=0.35, linewidth=0, label="control")
        for ((perturbation, _), colour), x in zip(shown.items(), cells, strict=True):
            at = (x - centre) @ axes
            panel.scatter(*at.T, s=12, color=colour, alpha=0.6, linewidth=0, label=perturbation)
            mark_mean(panel, at, colour)
        panel.set_title(f"{cell_type}, {title}", loc="left")
        panel.set_xlabel(f"PC 1 ({share[0]:.0%} of variance)")
    panels[0].set_ylabel(f"PC 2 ({share[1]:.0%} of variance)")
    some = f"{len(shown)} of {len(keys)} conditions; " if len(keys) > len(shown) else ""
    panels[1].legend(
        title=f"{some}crosses: means",
        title_fontsize=9,
        fontsize=9,
        loc="center left",
        bbox_to_anchor=(1, 0.5),
        frameon=False,
        markerscale=1.8,
    )


def evenly(rows, most=400):
    """At most so many of the rows, spread over all of them."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(int)]


def draw_activation_map(path, screen, rows, predicted):
    """Which genes are on, measured and predicted cells in one embedding (the paper's Fig. 5).

    By PCA, and by UMAP below it if umap-learn is installed.
    """
    try:
        import umap
    except ImportError:
        umap = None
    keys = [row["key"] for row in rows[:2]]
    lines = 2 if umap else 1
    figure, panels = plt.subplots(
        lines,
        len(keys),
        figsize=(4.6 * len(keys) + 0.4, 3.9 * lines),
        layout="constrained",
        squeeze=False,
    )
    for key, column in zip(keys, panels.T, strict=True):
        shown = evenly(np.arange(predicted[key].shape[0]))
        cells = [
            screen.dense(evenly(screen.controls(key[1]))),
            screen.dense(evenly(screen.groups[key])),
            predicted[key][shown].toarray(),
        ]
        on = [(x > 0).astype(np.float32) for x in cells]
        centre, axes, share = principal_axes(np.concatenate(on[:2]))
        draw_kinds(column[0], [(d - centre) @ axes for d in on])
        names = [f"PC {i + 1} ({s:.0%} of variance)" for i, s in enumerate(share)]
        column[0].set(xlabel=names[0], ylabel=names[1])
        column[0].set_title(f"{'@'.join(key)}: genes on or off", loc="left")
        if umap:
            together = np.concatenate(on)
            neighbours = min(15, len(together) - 1)
            embedding = umap.UMAP(random_state=0, n_jobs=1, n_neighbors=neighbours)
            ends = np.cumsum([len(d) for d in on])[:-1]
            draw_kinds(column[1], np.split(embedding.fit_transform(together), ends))
            column[1].set(xlabel="UMAP 1", ylabel="UMAP 2")
    legend_beside(figure, panels[0, 0], "crosses: means")
    finish(figure, path)


def draw_kinds(panel, points):
    """Draw control, measured and predicted cells, (n, 2) each."""
    kinds = [
        (CONTROLS, "control", 0.3),
        (MEASURED, "measured", 0.55),
        (PREDICTED, "predicted", 0.55),
    ]
    for at, (colour, label, alpha) in zip(points, kinds, strict=True):
        panel.scatter(*at.T, s=10, color=colour, alpha=alpha, linewidth=0, label=label)
    for at, (colour, _, _) in zip(points, kinds, strict=True):
        mark_mean(panel, at, colour)


# ---- Means ---------------------------------------------------------------------------------------


def draw_means(path, screen, rows, predicted, fractions=False):
    """Predicted against measured, a point a gene.

    The change of the mean from the controls, or the fraction of cells that express the gene.
    """
    rows = rows[:6]
    n_columns = min(3, len(rows))
    n_lines = -(-len(rows) // n_columns)
    figure, panels = plt.subplots(
        n_lines,
        n_columns,
        figsize=(3.3 * n_columns + 0.3, 3.2 * n_lines + 0.3),
        layout="constrained",
        squeeze=False,
    )
    for panel, row in zip(panels.flat, rows, strict=False):
        draw_mean(panel, screen, row, predicted, fractions)
    for panel in list(panels.flat)[len(rows) :]:
        panel.set_visible(False)
    what = "fraction of cells expressing" if fractions else "change of mean (log1p)"
    figure.supxlabel(f"measured {what}", fontsize=10)
    figure.supylabel(f"predicted {what}", fontsize=10)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    finish(figure, path)


def draw_mean(panel, screen, row, predicted, fractions):
    """Draw the genes of one condition."""
    key = row["key"]
    measured = screen.dense(screen.groups[key])
    made = predicted[key].toarray()
    if fractions:
        x, y = (measured > 0).mean(0), (made > 0).mean(0)
    else:
        control = np.asarray(screen.X[screen.controls(key[1])].mean(0)).ravel()
        x, y = measured.mean(0) - control, made.mean(0) - control
    strongest = np.isin(screen.genes, row["top_genes"])
    limits = np.array([min(x.min(), y.min()), max(x.max(), y.max())])
    panel.plot(limits, limits, color="black", linewidth=0.8, linestyle=DASHED)
    others = ~strongest
    panel.scatter(x[others], y[others], s=9, color=CONTROLS, linewidth=0, label="genes")
    label = "the 20 that change most"
    panel.scatter(x[strongest], y[strongest], s=16, color=PREDICTED, linewidth=0, label=label)
    metric = "activation PCC" if fractions else "Pearson delta"
    score = row["scores"]["model"][metric]["all"]  # the number and the name that the tables have
    score = np.nan if score is None else score
    panel.set_title(f"{row['condition']}   {SHORT[metric]} = {score:.2f}", loc="left", fontsize=9)
    panel.locator_params(nbins=5)
    if not fractions:
        name_strongest(panel, screen.genes, x, y)


def name_strongest(panel, genes, x, y):
    """Write the names of the three genes that change most, with a line from each to its point.

    They stand above all points, where none is hidden, from left to right as their points do.
    """
    three = np.argsort(-np.abs(x))[:3]
    three = three[np.argsort(x[three])]
    panel.margins(y=0.05)
    low, high = panel.get_ylim()
    panel.set_ylim(low, high + 0.16 * (high - low))
    for i, place, side in zip(three, (0.01, 0.5, 0.99), ("left", "center", "right"), strict=False):
        panel.annotate(
            genes[i],
            (x[i], y[i]),
            xytext=(place, 0.99),
            textcoords="axes fraction",
            fontsize=7,
            ha=side,
            va="top",
            arrowprops={"arrowstyle": "-", "color": "#555555", "linewidth": 0.5, "shrinkB": 3},
        )


# ---- Gap closed ----------------------------------------------------------------------------------


def draw_gap(path, rows, summary):
    """Gap closed on E-distance, all genes: of each method, and in each condition.

    Methods that do not apply to all conditions stand below the others, pale, with the number of
    those that they apply to: their means are over other conditions. Of the 40 conditions that
    change most, best predicted on top, cut at -1.5 and 2. There the five best rivals alone are
    shown, each in a colour that it has on both sides.
    """
    energy = {name: scores["E-distance"]["all"] for name, scores in summary.items()}
    references = ("control", "interpolated duplicate", "floor")
    gap = {name: energy[name]["gap_closed"] for name in energy if name not in references}
    order = sorted(gap, key=lambda name: np.nan_to_num(gap[name], nan=-np.inf))
    best = [name for name in order[::-1] if name != "model"][:5]
    partial = {name for name in gap if energy[name]["conditions"] < len(rows)}
    order.sort(key=lambda name: name not in partial)
    colour = dict(zip(best, CONDITIONS, strict=False)) | {"model": PREDICTED}
    shown = rows[:40]
    figure, (left, right) = plt.subplots(
        1,
        2,
        figsize=(10, max(3.2, 0.6 + 0.19 * len(shown), 1.2 + 0.21 * len(order))),
        layout="constrained",
        width_ratios=(1, 1.6),
    )
    values = np.array([gap[name] for name in order])
    bars = values.clip(-1.5, 2)
    drawn = left.barh(order, bars, color=[colour.get(name, CONTROLS) for name in order])
    for name, bar in zip(order, drawn, strict=True):
        bar.set_alpha(0.35 if name in partial else 1)
    of = {name: f" ({energy[name]['conditions']} of {len(rows)})" for name in partial}
    left.set_yticks(range(len(order)), [name + of.get(name, "") for name in order])
    for i, value in enumerate(values):
        at = max(bars[i], 0) + 0.02
        left.text(at, i, f"{value:.2f}", va="center", fontsize=9, path_effects=[WHITE_EDGE])
    title = "all conditions; pale: only some" if partial else "all conditions"
    left.set_title(title + said_of_cut(values), loc="left")
    left.set_xlim(np.nanmin(bars, initial=0) - 0.05, np.nanmax(bars, initial=1) + 0.2)
    draw_gap_of_conditions(right, shown, ["model", *best], colour, len(rows))
    for panel in (left, right):
        panel.axvline(1, color="black", linewidth=0.8, linestyle=DASHED)
        panel.axvline(0, color="black", linewidth=0.8)
        label = "E-distance gap closed (dashed: another half of the measured cells)"
        panel.set_xlabel(label, fontsize=8)
    handles, labels = right.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=7, frameon=False, fontsize=8)
    finish(figure, path)


def draw_gap_of_conditions(panel, rows, methods, colour, conditions):
    """Draw the gap closed in each condition: bars for the model, markers for some rivals."""
    values = np.array([[gap_of(row["scores"], name) for name in methods] for row in rows])
    cut = said_of_cut(values)
    values = values.clip(-1.5, 2)
    model = methods.index("model")
    order = np.argsort(np.nan_to_num(values[:, model], nan=-9))
    place = range(len(rows))
    panel.barh(place, values[order, model], color=colour["model"], alpha=0.45, label="model")
    rivals = [name for name in methods if name != "model"]
    for name, marker in zip(rivals, "osD^v", strict=False):
        at = values[order, methods.index(name)]
        panel.plot(at, place, marker, color=colour[name], markersize=4.5, label=name)
    panel.set_yticks(place, [rows[i]["condition"] for i in order], fontsize=7)
    title = "each condition, best rivals"
    if conditions > len(rows):
        title = f"{len(rows)} of {conditions} conditions, best rivals"
    panel.set_title(title + cut, loc="left")
    least, most = np.nanmin(values, initial=0), np.nanmax(values, initial=1)
    panel.set_xlim(least - 0.05, max(1.1, most + 0.05))


def said_of_cut(values):
    """That some gaps lie beyond the figure's limits, for a title."""
    cut = np.nanmin(values, initial=0) < -1.5 or np.nanmax(values, initial=1) > 2
    return ", cut at -1.5 and 2" if cut else ""


def gap_of(scores, name):
    """The gap that a method closes in a condition; NaN where there is none."""
    if name not in scores:
        return np.nan
    energy = {method: s["E-distance"]["all"] for method, s in scores.items()}
    width = energy["control"] - energy["floor"]
    return (energy["control"] - energy[name]) / width if width > 0 else np.nan
