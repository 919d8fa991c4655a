"""Figures of training: the losses of a run, and the variants of an ablation."""

import matplotlib.pyplot as plt
import numpy as np

from report.style import DASHED, MEASURED, PREDICTED, finish

MEASURES = ["E-distance, all", "E-distance, DE20", "EMD, all", "EMD, DE20"]


def draw_loss(path, epoch, endpoint, activation):
    """Draw both losses over the epochs, (n,) each."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
    left.plot(epoch, endpoint, color=MEASURED, marker="o" if len(epoch) < 3 else None)
    left.set(title="Expression bridge (Eq. 9)", ylabel="squared error on expressed genes")
    right.plot(epoch, activation, color=MEASURED, marker="o" if len(epoch) < 3 else None)
    right.set(title="Activation bridge (Eq. 14)", ylabel="cross-entropy (nats per gene)")
    for axis in (left, right):
        axis.set_xlabel("epoch")
        axis.yaxis.label.set_fontsize(9)
        axis.xaxis.get_major_locator().set_params(integer=True)
    finish(figure, path)


def draw_ablation(path, table):
    """Draw the gap closed by every variant, as the paper's Fig. 6.

    table: a row per variant and seed (`report.ablation`). Bars are means over seeds, dots the
    seeds; the dashed line is the default.
    """
    names = list(dict.fromkeys(table["name"]))[::-1]
    size = (12, 0.9 + 0.27 * len(names))
    figure, panels = plt.subplots(1, 4, figsize=size, sharey=True, layout="constrained")
    for panel, measure in zip(panels, MEASURES, strict=True):
        values = [table.loc[table["name"] == name, measure].to_numpy() for name in names]
        draw_variants(panel, names, values)
        default = table.loc[table["name"] == "default", measure].mean()
        panel.axvline(default, color="black", linewidth=0.8, linestyle=DASHED)
        panel.set_title(measure, loc="left", fontsize=10)
    figure.supxlabel(
        "gap closed between control cells (0) and another half of the measured cells (1); "
        "higher is better",
        fontsize=9,
    )
    finish(figure, path)


def draw_variants(panel, names, values):
    """Draw a bar per variant; one far below zero is cut and its mean written."""
    lows = [-0.3 if v.mean() < -0.3 else v.min() for v in values]
    low = min(-0.02, *lows)
    colours = [PREDICTED if name == "default" else "#56B4E9" for name in names]
    panel.barh(names, [max(v.mean(), low) for v in values], color=colours)
    for i, of_variant in enumerate(values):
        dots = np.maximum(of_variant, low)
        panel.plot(dots, [i] * len(dots), "o", color="black", markersize=2.5)
        if of_variant.mean() < low:
            panel.text(low, i, f"  {of_variant.mean():.1f}", va="center", fontsize=8)
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set_xlim(low * 1.1, None)
