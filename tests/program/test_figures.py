"""What figures say is what the tables say, and can be read."""

import copy

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.text import Text
from scipy import sparse

from examples import screen_of
from report import paths, scores

GENES = [f"gene {i}" for i in range(30)]


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn, which are not written."""
    figures = []
    for module in (scores, paths):
        monkeypatch.setattr(module, "finish", lambda figure, path: figures.append(figure))
    yield figures
    plt.close("all")


def scored(cell_types=("a", "b"), conditions=2):
    """A screen, rows and predicted cells of so many conditions in each cell type."""
    rng = np.random.default_rng(0)
    keys = [(f"P{i}", t) for t in cell_types for i in range(conditions)]
    base = rng.uniform(0.5, 2, len(GENES))
    means = {("control", t): base for t in cell_types}
    means |= {key: base + rng.normal(0, 0.4, len(GENES)) for key in keys}
    screen = screen_of(means, noise=0.3, genes=GENES)
    predicted = {key: sparse.csr_matrix(screen.dense(screen.groups[key])) for key in keys}
    one = {
        "model": {"E-distance": {"all": 0.2}, "Pearson delta": {"all": 0.123}},
        "linear": {"E-distance": {"all": 0.5}, "Pearson delta": {"all": 0.1}},
        "control": {"E-distance": {"all": 1.0}, "Pearson delta": {"all": 0.0}},
        "floor": {"E-distance": {"all": 0.1}, "Pearson delta": {"all": 0.9}},
    }
    for scores_of in one.values():
        scores_of["activation PCC"] = {"all": 0.456}
    rows = [
        {
            "condition": "@".join(key),
            "key": key,
            "scores": copy.deepcopy(one),
            "top_genes": GENES[:20],
        }
        for key in keys
    ]
    return screen, rows, predicted


# ---- The gap closed ------------------------------------------------------------------------------


def gap(mean, conditions):
    """An entry of a summary."""
    return {"E-distance": {"all": {"gap_closed": mean, "conditions": conditions}}}


def bars_of(figure):
    """{label: (place, opacity)} of the left panel's bars."""
    left = figure.axes[0]
    labels = [label.get_text() for label in left.get_yticklabels()]
    bars = [(bar.get_y(), bar.get_alpha()) for bar in left.patches]
    return dict(zip(labels, bars, strict=True))


def test_a_mean_over_fewer_conditions_stands_below_the_others_and_says_so(drawn):
    """However large it is."""
    _, rows, _ = scored()
    summary = {"control": gap(0.0, 4), "floor": gap(1.0, 4)}
    summary |= {"model": gap(0.8, 4), "linear": gap(0.5, 4), "additive": gap(0.9, 1)}
    scores.draw_gap("", rows, summary)
    bars = bars_of(drawn[0])
    assert sorted(bars, key=bars.get) == ["additive (1 of 4)", "linear", "model"]
    assert bars["additive (1 of 4)"][1] < 0.5
    assert drawn[0].axes[0].get_title("left") == "all conditions; pale: only some"


def test_a_rival_that_applies_to_one_condition_is_shown_in_it(drawn):
    """For a pair, adding its genes is the one to beat."""
    _, rows, _ = scored()
    rows[0]["scores"]["additive"] = rows[0]["scores"]["floor"]
    summary = {"control": gap(0.0, 4), "floor": gap(1.0, 4)}
    summary |= {"model": gap(0.8, 4), "additive": gap(0.9, 1)}
    summary |= {f"rival {i}": gap(i / 10, 4) for i in range(5)}
    scores.draw_gap("", rows, summary)
    assert "additive" in drawn[0].axes[1].get_legend_handles_labels()[1]


def test_what_is_no_rival_is_not_shown_as_one(drawn):
    """The interpolated duplicate knows half of the answer."""
    _, rows, _ = scored()
    for row in rows:
        row["scores"]["interpolated duplicate"] = row["scores"]["floor"]
    summary = {"control": gap(0.0, 4), "floor": gap(1.0, 4), "interpolated duplicate": gap(0.9, 4)}
    summary |= {"model": gap(0.8, 4), "linear": gap(0.5, 4)}
    scores.draw_gap("", rows, summary)
    assert drawn[0].axes[1].get_legend_handles_labels()[1] == ["linear", "model"]


# ---- Means ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fractions, said", [(False, "r of Δ = 0.12"), (True, "PCC on = 0.46")])
def test_a_correlation_in_a_figure_is_the_tables_by_name_and_number(drawn, fractions, said):
    screen, rows, predicted = scored()
    scores.draw_means("", screen, rows, predicted, fractions)
    assert [panel.get_title("left").split("   ")[1] for panel in drawn[0].axes[:4]] == [said] * 4


def test_names_of_genes_hide_no_point(drawn):
    """Nor each other; each has a line to its point."""
    screen, rows, predicted = scored()
    scores.draw_means("", screen, rows, predicted)
    drawn[0].canvas.draw()
    for panel in drawn[0].axes[:4]:
        boxes = [Text.get_window_extent(text) for text in panel.texts]  # without its line
        points = [panel.transData.transform(group.get_offsets()) for group in panel.collections]
        assert not any(box.contains(*point) for box in boxes for group in points for point in group)
        assert not any(a.overlaps(b) for a in boxes for b in boxes if a is not b)


# ---- Cells ---------------------------------------------------------------------------------------


def test_every_held_out_cell_type_is_shown_in_the_pca(drawn):
    """Measured and predicted; of seven conditions six, and it says so."""
    screen, rows, predicted = scored(("a", "b", "c"), 7)
    scores.draw_pca("", screen, rows, predicted)
    titles = [panel.get_title("left") for panel in drawn[0].axes]
    assert titles == [f"{t}, {side}" for t in "abc" for side in ("measured", "predicted")]
    legend = drawn[0].axes[1].get_legend()
    assert legend.get_title().get_text() == "6 of 7 conditions; crosses: means"


def test_a_perturbation_has_one_colour_in_all_cell_types_of_the_pca(drawn):
    """Though not the same ones are strongest in each; in a panel every colour is of one."""
    screen, rows, predicted = scored(("a", "b", "c"), 9)
    scores.draw_pca("", screen, [*rows[:9], *rows[12:18], *rows[:-10:-1]], predicted)
    colours = {}
    for panel in drawn[0].axes:
        groups = [group for group in panel.collections if group.get_label().startswith("P")]
        of_panel = {group.get_label(): group.get_facecolor()[0, :3].tolist() for group in groups}
        assert len(set(map(tuple, of_panel.values()))) == len(of_panel) > 3
        for name, colour in of_panel.items():
            assert colours.setdefault(name, colour) == colour


# ---- Paths ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [True, False])
def test_levels_that_are_cut_at_zero_are_explained_where_there_are_any(drawn, cut):
    x = np.random.default_rng(0).uniform(0.1, 1, (5, 8, 3))
    x[-1, 0, 1] = 0 if cut else 0.1
    paths.draw_paths("", x, (x > 0.5).astype(float), GENES[:3], "A@b")
    labels = [text.get_text() for text in drawn[0].legends[0].get_texts()]
    assert ("0: at t = 1 a level below it becomes 0" in labels) == cut
    assert len(labels) == 3 + cut
