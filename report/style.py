"""How figures look, and how they are written.

Colours are Okabe and Ito's, safe for colour-blind readers, or run from dark to light.
"""

import io

import matplotlib

import screens

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402  (the backend comes first)
from matplotlib.patheffects import withStroke  # noqa: E402

plt.rcParams["text.parse_math"] = False  # a $ in the name of a gene or a cell type is a $

MEASURED = "#0072B2"
PREDICTED = "#D55E00"
CONTROLS = "#9A9A9A"
CONDITIONS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"]
DASHED = (0, (2, 2))
WHITE_EDGE = withStroke(linewidth=2, foreground="white")  # of text that lies on lines or points


def finish(figure, path):
    """Take away the frames' upper and right sides and write a figure."""
    for panel in figure.axes:
        panel.spines[["top", "right"]].set_visible(False)
    write(figure, path)


def write(figure, path):
    """Write a figure as a PNG, all or nothing."""
    memory = io.BytesIO()
    figure.savefig(memory, dpi=150)
    plt.close(figure)
    screens.save(path, memory.getbuffer())
