"""report.html: well-formed, readable, honest, and one file; what the console says of it."""

import re
import shlex
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

import evaluate
from departures import ImprovedSettings
from evaluate import summarise
from examples import screen_with
from report import page
from report.tables import TITLES, Table, make_tables
from report.verdict import NOTHING_SCORED, verdict, what_was_predicted
from toy_data import simulate_screen

ODD = "<b>&\"@x'y"  # a condition that is a trap for what writes HTML


# ---- The verdict ---------------------------------------------------------------------------------


def row_of(condition, model, control=1.0, floor=0.1, **rivals):
    """A row of a scoring: every method's E-distance, and some more of the model's scores."""
    scores = {
        name.replace("_", " "): {"E-distance": {"all": value}, "EMD": {"all": value}}
        for name, value in {"control": control, "model": model, "floor": floor, **rivals}.items()
    }
    perturbation, _, cell_type = condition.partition("@")
    return {
        "condition": condition,
        "perturbation": perturbation,
        "cell type": cell_type,
        "cells": 30,
        "top_genes": ["g1", "g2"],
        "scores": scores,
        "by_means": model + 0.05,
    }


def said(rows, what="12 genes"):
    """The three sentences on some rows."""
    sentences = verdict(what, rows, summarise(rows) if rows else None)
    assert len(sentences) == 3
    return sentences


def rows_of(*pairs, **more):
    """Rows in which the model and the one rival are so far from the measured cells."""
    return [row_of(f"c{i}@x", m, linear=r, **more) for i, (m, r) in enumerate(pairs)]


WON = (0.4, 0.7)
LOST = (0.7, 0.4)


def test_a_model_that_wins():
    """The gap that it closes, the rival's, in how many conditions, and where it does not."""
    gap, rival, worse = said(rows_of(*[WON] * 9, LOST, LAOT=0.95))
    model = np.mean([0.4] * 9 + [0.7])
    assert f"On 12 genes the model closes {(1 - model) / 0.9:.2f} of the gap between" in gap
    assert rival == "It is better than linear, the best rival (0.37), in 9 of 10 conditions " + (
        "(sign test over 10 perturbations, p = 0.02)."
    )
    assert worse == "It is worse than linear in 1 (c9@x) and worse than doing nothing in none."


def test_a_gap_of_more_than_1_is_explained():
    """The model is nearer than the floor, at 0.1; not where it is as near."""
    assert said([row_of("c@x", 0.05, linear=0.4)])[0].endswith(
        "a repeat of the experiment (above 1: nearer than a repeat of so few cells)."
    )
    assert said([row_of("c@x", 0.1, linear=0.4)])[0].endswith(
        "closes 1.00 of the gap between doing nothing and a repeat of the experiment."
    )


def test_a_model_that_loses():
    _, rival, worse = said(rows_of(WON, *[LOST] * 9))
    assert rival.startswith("It loses to linear, the best rival (0.63): it is better in 1 of 10")
    assert worse.startswith("It is worse than linear in 9 (c1@x, c2@x, c3@x and 6 more) and")


def test_a_model_that_is_worse_than_doing_nothing():
    gap, _, worse = said([row_of(f"c{i}@x", 1.9, linear=0.5) for i in range(8)])
    assert gap.startswith("On 12 genes the model is worse than doing nothing: it closes -1.00 of")
    assert worse.startswith("It is worse than linear in all 8 (")
    assert "and worse than doing nothing in all 8 (" in worse


def test_where_the_mean_and_the_count_disagree_both_are_said():
    """And that ten conditions, won four or six times, may be chance."""
    ahead = said(rows_of(*[(0.01, 0.7)] * 4, *[(0.71, 0.7)] * 6))[1]
    behind = said(rows_of(*[(0.7, 0.71)] * 6, *[(0.7, 0.01)] * 4))[1]
    assert ahead.startswith("On average it is better than linear, the best rival (0.33), but that")
    assert behind.startswith("On average it loses to linear, the best rival (0.63), though it is")
    assert ahead.endswith(
        "only in 4 of 10 conditions, which may be chance (sign test over 10 perturbations, "
        "p = 0.75)."
    )


def test_few_conditions_decide_nothing():
    """Five wins out of five have p = 0.06."""
    assert said(rows_of(*[WON] * 5))[1].endswith(
        "in 5 of 5 conditions; 5 perturbations cannot decide."
    )
    one = said(rows_of(WON))[1]
    assert one == "It is better than linear, the best rival (0.33); one condition says little."
    assert said(rows_of(*[LOST] * 3))[1].startswith(
        "It loses to linear, the best rival (0.67): it is better"
    )


def test_a_rival_that_is_worse_than_doing_nothing_is_said_to_be():
    """And no gap is written -0.00."""
    assert (
        "linear, the best rival, itself worse than doing nothing (-0.11), in 8 of 8"
        in (said(rows_of(*[(0.4, 1.1)] * 8))[1])
    )
    assert "linear, the best rival (0.00), in 8" in said(rows_of(*[(0.4, 1.0001)] * 8))[1]


def test_cell_types_and_doses_of_a_perturbation_count_once():
    """By the mean of their differences."""
    rows = [row_of(f"P{i}@{t}", 0.4, linear=0.7) for i in range(8) for t in "xy"]
    assert said(rows)[1].endswith(
        "in 16 of 16 conditions (sign test over 8 perturbations, p = 0.008)."
    )
    for row in rows[1::2]:
        row["scores"]["linear"]["E-distance"]["all"] = 0.2  # lost by less than the other is won by
    assert said(rows)[1].endswith("(sign test over 8 perturbations, p = 0.008).")
    assert said(rows[:6])[1].endswith("in 3 of 6 conditions; 3 perturbations cannot decide.")


def test_of_one_perturbation_cell_types_are_counted():
    """Its doses are not; nor is anything but conditions where the rows do not say."""
    rows = [row_of(f"P@{t}", 0.4, linear=0.7) for t in "abcdef"]
    assert "(sign test over 6 cell types, p = 0.03)" in said(rows)[1]
    for row in rows:
        row["cell type"] = "a"
    assert said(rows)[1].endswith("in 6 of 6 conditions; 1 perturbation cannot decide.")
    for row in rows:
        del row["perturbation"], row["cell type"]
    assert "(sign test over 6 conditions, p = 0.03)" in said(rows)[1]


def test_without_a_rival_the_model_is_compared_with_doing_nothing():
    """The floor and the positive control are no rivals."""
    _, rival, worse = said([row_of(f"c{i}@x", 0.5, interpolated_duplicate=0.2) for i in range(8)])
    assert rival.startswith("It is better than doing nothing (no rival applies), in 8 of 8")
    assert worse == "It is worse than doing nothing in none."


def test_without_a_gap_none_is_closed():
    """Controls nearer than the floor."""
    gap = said([row_of("a@x", 0.1, control=0.1, floor=0.2, linear=0.1)])[0]
    assert "there is no gap to close" in gap and "nan" not in gap


def test_where_nothing_is_scored_nothing_is_claimed():
    assert said([]) == NOTHING_SCORED


def screen_of(perturbations, held_out, kind="gene"):
    """A screen of two cells a condition, "A@x" or "A@y", beside controls of x and y."""
    keys = [tuple(name.split("@")) for name in perturbations]
    labels = [*keys, ("control", "x"), ("control", "y")] * 2
    perturbation, cell_type = zip(*labels, strict=True)
    X = np.random.default_rng(0).gamma(2, 1, (len(labels), 4))
    screen = screen_with(X, perturbation, cell_type, kind=kind)
    screen.held_out = {tuple(name.split("@")) for name in held_out}
    return screen


@pytest.mark.parametrize(
    ("conditions", "held_out", "kind", "words"),
    [
        ("A@x B@x A@y", "A@x A@y", "gene", "1 gene never perturbed in training (2 conditions)"),
        ("A:1@x B:1@x", "A:1@x", "drug", "1 drug never given in training (1 condition)"),
        ("A@x B@x A+B@x", "A+B@x", "gene", "1 condition combining genes perturbed in training"),
        ("A@x A@y B@y", "A@x", "gene", "1 condition in cell types never perturbed in training"),
        ("A@x A@y B@y", "A@y", "gene", "1 condition whose perturbation was trained on in other"),
        (
            "A:1@x A:1@y A:2@y",
            "A:1@y",
            "drug",
            "1 condition whose drug at that dose was trained on",
        ),
        ("A@x B@x A@y", "A@y B@x", "gene", "2 conditions held out of training"),
    ],
)
def test_what_is_new_about_the_conditions_is_said(conditions, held_out, kind, words):
    screen = screen_of(conditions.split(), held_out.split(), kind)
    assert what_was_predicted(screen, sorted(screen.held_out)).startswith(words)


# ---- The page ------------------------------------------------------------------------------------

# One black pixel, as a PNG.
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010800000000"
    "3a7e9b550000000a49444154789c63600000000200017e5dbb7b0000000049454e44ae426082"
)
FIGURES = ["gap_closed", "mean_change", "violin_1_a", "activation", "activation_map", "pca"]
ABOUT = {
    "run": "runs/x y",
    "seed": 3,
    "device": "cpu",
    "settings": {**vars(ImprovedSettings()), "sigma": 0.5, "shifts": False},
    "reading": {"path": "/secret/odd.h5ad", "test": [ODD], "layer": "counts"},
}


class Reader(HTMLParser):
    """What a browser would find in a page: elements in order, and text; every tag is closed.

    `page` is all that stands in the file.
    """

    VOID = {"meta", "img"}

    def __init__(self, path):
        super().__init__()
        self.open = []
        self.elements = []  # (tag, attributes, tags around it)
        self.text = ""
        self.page = path.read_text()
        self.feed(self.page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes), tuple(self.open)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data

    def all(self, tag):
        """The attributes of every element of a kind."""
        return [attributes for name, attributes, _ in self.elements if name == tag]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run's folder, its files small."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "figures").mkdir()
    for name in FIGURES:
        (folder / f"figures/{name}.png").write_bytes(PIXEL)
    (folder / "loss.png").write_bytes(PIXEL)
    columns = "epoch,endpoint_loss,activation_loss,plans,unconverged,seconds"
    (folder / "log.csv").write_text(f"{columns}\n1,0.5,0.4,7,0,2.5\n2,0.25,0.3,7,1,2.6\n")
    return folder


def genes_of(n, measured=True):
    """A table of genes of ODD: the first rises most surely, the last falls; half of p < 0.05.

    The controls never express the first, the predicted cells never the last.
    """
    score = np.linspace(9, -9, n)
    table = pd.DataFrame({"condition": ODD, "gene": [f"<g{i}>" for i in range(n)], "score": score})
    table = table.assign(control_mean=1.0, predicted_mean=2.0, log2_fold_change=score / 4)
    table["p_adjusted"] = np.where(np.abs(score) > 4.5, 0.01, 0.5)
    table.loc[0, ["control_mean", "log2_fold_change"]] = 0, 30.1
    table.loc[n - 1, ["predicted_mean", "log2_fold_change"]] = 0, -17.3
    if measured:
        table = table.assign(measured_mean=1.5, measured_log2_fold_change=0.25)
        table["measured_p_adjusted"] = 0.2
    return table


TRUST = pd.DataFrame(
    {
        "condition": [ODD, "C@x"],
        "targets": ["unseen", "seen here"],
        "unseen": [ODD, ""],
        "cell_type_seen": [True, True],
        "rests_on": ["the gene network", "memory of its targets"],
        "nearest": ["B@x", "B@y"],
        "size": [0.8, 0.5],
        "expected": [0.25, np.nan],
        "low": [0.125, np.nan],
        "high": [0.375, np.nan],
        "alike": ["C@x", ODD],
    }
)


def written(folder, run=True, rows=None, **more):
    """The page of a screen with an odd condition, as a `Reader`."""
    screen = screen_of([ODD, "B@x"], [ODD])
    screen.source = "/secret/odd.h5ad"
    screen.found = ["/secret/odd.h5ad: 8 cells x 4 genes", "warning: <i>odd</i>"]
    rows = [row_of(ODD, 0.4, linear=0.7), row_of("B@x", 0.6, linear=0.2)] if rows is None else rows
    summary = summarise(rows) if rows else None
    page.write_page(
        str(folder / "report.html"),
        f"<u>{ODD}</u>",
        screen,
        str(folder) if run else None,
        ABOUT if run else None,
        vars(ImprovedSettings()),
        "python evaluate.py 'runs/x y'",
        rows=rows,
        summary=summary,
        tables=make_tables(summary, rows) if rows else (),
        figures=str(folder / "figures"),
        **more,
    )
    return Reader(folder / "report.html")


@pytest.fixture(scope="module")
def shown(folder):
    return written(folder)


def test_the_page_is_one_file_without_a_script(shown):
    """Nothing is fetched; figures are in it."""
    names = {tag for tag, _, _ in shown.elements}
    assert not names & {"script", "link", "iframe", "object"}
    assert not re.search(r"https?:|url\(|@import|src=\"(?!data:image/png;base64,)", shown.page)
    assert len(shown.all("img")) == len(FIGURES) + 1


def test_the_page_has_language_title_and_width(shown):
    assert shown.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in shown.all(
        "meta"
    )
    assert shown.elements[5][0] == "title"


def test_headings_are_in_order(shown):
    """One of the first level; none skips a level; the contents lead to those of the second."""
    levels = [int(tag[1]) for tag, _, _ in shown.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    links = [link["href"].lstrip("#") for link in shown.all("a")]
    assert links == [heading["id"] for heading in shown.all("h2")]


def test_pictures_and_tables_can_be_read_aloud(shown):
    """Alternatives in words, captions, and headers that say of what they are."""
    assert all(len(image["alt"]) > 40 for image in shown.all("img"))
    assert len(shown.all("caption")) == len(shown.all("table")) > 5
    assert all(header["scope"] in ("row", "col") for header in shown.all("th"))


def test_what_is_wide_scrolls_in_its_own_box(shown):
    """By keyboard, too: a box has a name and can be reached."""
    wide = [(tag, around) for tag, _, around in shown.elements if tag in ("table", "img", "pre")]
    boxes = [a for a in shown.all("div") if a["class"] == "scroll"]
    assert len(boxes) == len(wide)
    assert all(around[-1] == "div" for _, around in wide)
    assert all(a["tabindex"] == "0" and a["role"] == "group" and a["aria-label"] for a in boxes)


def test_labels_of_the_file_are_shown_as_they_are(shown):
    """A condition that looks like HTML; in texts, attributes, tables and commands."""
    assert not {"b", "u", "i"} & {tag for tag, _, _ in shown.elements}
    for place in (f"<u>{ODD}</u>", "<i>odd</i>", shlex.quote(ODD)):
        assert place in shown.text
    assert any(ODD in image["alt"] for image in shown.all("img"))


def test_what_html_may_not_hold_is_replaced():
    """Control characters and halves of surrogate pairs; a line break may stay."""
    text = page.html("a\x00\x1b[31m\udcff\nb", page.tag("body"))
    assert "<title>a\ufffd\ufffd[31m\ufffd\nb</title>" in text and text.encode()


def test_the_page_names_no_folder_of_the_data(shown):
    assert "/secret" not in shown.page
    assert "odd.h5ad: 8 cells" in shown.text


def test_the_page_says_how_the_run_is_repeated(shown):
    """What is not the default, first; the whole command; seed, device and versions."""
    command = (
        f"python train.py --data odd.h5ad --out 'runs/x y' --test {shlex.quote(ODD)} "
        "--layer counts --sigma 0.5 --no-shifts\npython evaluate.py 'runs/x y'"
    )
    assert command in shown.text
    changed = shown.text.split("Settings that are not the defaults")[1].split("All ")[0]
    assert changed == "settingheredefaultsigma0.50.2shiftsoffon"
    assert "seed 3, device cpu" in shown.text and f"numpy{np.__version__}" in shown.text


def test_the_page_says_how_many_epochs_none_means(shown):
    assert "All 23 settings0 epochs: as many as make 1,000 steps" in shown.text


def test_the_page_says_how_training_went(shown):
    assert "2 epochs in 5 seconds." in shown.text
    assert "(Eq. 9) went from 0.500 to 0.250, that of" in shown.text
    assert "Sinkhorn left 1 of 14 transport plans more than 1 % off" in shown.text


def test_conditions_that_do_nothing_are_named(folder):
    """As the scoring marked them; else nothing is said."""
    rows = [{**row_of(ODD, 0.4), "nothing": True}, {**row_of("B@x", 0.6), "nothing": False}]
    said = "In 1 of 2 conditions the measured cells are as near to the controls as chance has it"
    text = written(folder, rows=rows).text
    assert said in text and f"({ODD})" in text and f"{ODD} (hardly differs" in text
    assert "as chance has it" not in written(folder, rows=[row_of(ODD, 0.4)]).text


def lines_of(page, caption):
    """{name: HTML} of the lines of the first table with such a caption."""
    table = re.search(f"<caption>{caption}.*?</table>", page, re.DOTALL)[0]
    return {re.search('row">(.*?)<', line)[1]: line for line in table.split("<tr>")[2:]}


def test_the_rivals_of_the_tables_are_explained_and_no_others(shown):
    """And the sets of genes."""
    assert "DE20, DE40: the 20 or 40 genes that change most" in shown.text
    assert "linear: ridge regression between" in shown.text
    assert "LAOT: " not in shown.text


def test_the_best_of_a_column_is_bold(shown):
    """Of distances the smallest, of gaps the largest; the floor is no method."""
    for caption, best in (("gap closed", "0.611"), ("E, EMD: mean ±", "0.450 ± 0.250")):
        lines = lines_of(shown.page, caption)
        assert f"<strong>{best}</strong>" in lines["linear"]
        assert "strong" not in lines["model"] + lines["floor"]


def test_the_gap_closed_is_coloured_by_quarters(shown):
    lines = lines_of(shown.page, "gap closed")
    assert '<td class="closed-3">0.556</td>' in lines["model"]
    assert '<td class="closed-4">1.000</td>' in lines["floor"]


def test_wins_are_coloured_where_they_are_beyond_chance(folder):
    """Seven wins out of eight have p = 0.07, eight have 0.008."""
    rows = rows_of(*[WON] * 7, LOST, LAOT=0.95)
    lines = lines_of(written(folder, rows=rows).page, "conditions in which")
    assert '<td class="closed-2">8/8, 0.008</td>' in lines["LAOT"]
    assert "<td>7/8, 0.07</td>" in lines["linear"]


def test_few_wins_are_coloured_as_losses_unless_the_rest_are_ties():
    """Two of ten have p = 0.1; 6 of 24 have 0.02, and 0.03 where the model never loses."""
    table = Table("conditions in which", ["", "E all"], [])
    looks = [page.shade(table, "E all", text) for text in ("2/10, 0.1", "6/24, 0.02", "6/24, 0.03")]
    assert looks == [None, "opened", None]


def test_a_metric_without_range_is_grey_and_has_no_winner():
    """Its range stands above it; its name in parentheses, for who does not see grey."""
    ranges = ["dynamic range", "0.8", "0.1"]
    lines = [["model", "0.9", "0.9"], ["floor", "1.0", "1.0"], ["paper, Adamson", "0.95", ""]]
    table = Table("gap closed", ["", "E all", "EMD all"], lines, ranges, frozenset({2}))
    text = ElementTree.tostring(page.score_table(table), "unicode", method="html")
    assert '<td class="no-range">0.1</td>' in text and '<td class="no-range">0.9</td>' in text
    assert '<th scope="col" class="no-range">(EMD all)</th>' in text
    assert text.count("<strong>") == 1


def test_every_table_of_scores_is_of_a_kind_that_has_its_colours():
    """Told by the first word of its title."""
    assert {title.split()[0] for title in TITLES.values()} == {"mean", "gap", "conditions"}


def test_the_strongest_genes_of_a_condition_are_shown(folder):
    """In the table's order; of those that are sure, the ones that go up are right."""
    text = written(folder, genes=genes_of(14)).text
    lines = text.split("the genes whose change stands out most")[1].split("Settings")[0]
    assert re.findall("<g(\\d+)>", lines) == [str(i) for i in (*range(5), *range(9, 14))]
    assert f"{ODD}: 8 of 10 with p < 0.05; the same way in the measured cells: 4 of these" in text
    assert "<g0>0.002.00on0.011.50on0.2<g1>" in lines
    assert lines.endswith("<g13>1.000.00off0.011.50+0.250.2")


def test_genes_that_were_not_measured_have_a_table_without(folder):
    text = written(folder, genes=genes_of(4, measured=False)).text
    assert f"{ODD}: 2 of 4 with p < 0.05" in text and "the same way" not in text


def test_how_far_to_trust_each_is_said(folder):
    """What was expected, beside the error that came out; what is not known is not made up."""
    text = written(folder, trust=TRUST).text
    assert (
        f"{ODD}0.800.250.120.380.45{ODD} never perturbed in trainingthe gene networkB@xC@x" in text
    )
    assert "C@x0.50targets seen in this cell typememory of its targetsB@y" in text
    assert "2 predictions can hardly be told apart" in text


def test_without_expected_errors_none_are_shown(folder):
    """As of a run with --paper."""
    table = TRUST[["condition", "targets", "unseen", "cell_type_seen", "nearest"]]
    text = written(folder, rows=[], trust=table).text
    assert "conditionwhat is newnearest in training" + ODD in text


def test_every_condition_has_its_line(shown):
    """Its cells, distances, and the gap that the model closes."""
    lines = shown.text.split("condition by condition")[1]
    assert lines.startswith("conditioncellscontrollinearmodelfloorgap closed")
    assert f"{ODD}301.0000.7000.4000.1000.67B@x301.0000.2000.6000.1000.44" in lines


def test_another_models_cells_have_a_page_without_training(folder):
    """The contents leave out what is not known."""
    shown = written(folder, run=False)
    names = [heading["id"] for heading in shown.all("h2")]
    assert names == ["what-was-read-and-held-out", "scores", "figures", "how-to-repeat-it"]
    assert "On 2 conditions the model closes 0.56 of the gap" in shown.text


def test_a_run_without_scores_has_a_page(folder):
    shown = written(folder, rows=[])
    assert NOTHING_SCORED[0] in shown.text
    assert "How training went" in shown.text and "gap closed" not in shown.text


def test_a_page_keeps_its_size(tmp_path):
    """Figures for which there is no room are named."""
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(PIXEL + bytes(1000))
    listed = [(str(tmp_path / name), f"Figure {name}.", "alt") for name in ("a.png", "b.png")]
    first, second = page.figures_of(listed, largest=1500)
    assert first.tag == "figure" and second.text == "Figure b.png. See b.png in the run's folder."


# ---- Colours -------------------------------------------------------------------------------------


def luminance(colour):
    """The relative luminance of #rrggbb (WCAG 2)."""
    channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_every_text_stands_out_from_every_background(mode):
    """A contrast of 4.5 at least, which WCAG 2 asks for."""
    blocks = re.findall(r":root \{(.*?)\}", page.STYLE.read_text(), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): (#\w{6});", blocks[mode == "dark"]))
    texts = ("text", "quiet", "link", "warning")
    backgrounds = [name for name in colours if name not in (*texts, "line")]
    assert len(backgrounds) == 7
    for text in texts:
        for name in backgrounds if text == "text" else ("page", "panel"):
            pair = luminance(colours[text]), luminance(colours[name])
            assert (max(pair) + 0.05) / (min(pair) + 0.05) >= 4.5, (text, name)


# ---- The console ---------------------------------------------------------------------------------


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """A screen, truth.h5ad, and another model's cells of two conditions, in the current folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("report.scores.draw_scores", lambda *arguments: None)
    monkeypatch.setattr(evaluate, "SPLITS", 1)
    screen = simulate_screen(20, 4, 200, seed=3)
    screen.write_h5ad("truth.h5ad")
    cells = screen[screen.obs["condition"].isin(["TF001+ctrl", "TF002+ctrl"]).to_numpy()].copy()
    cells.obs["perturbation"] = cells.obs["condition"].astype(str).str.removesuffix("+ctrl")
    cells.write_h5ad("theirs.h5ad")


def scored(monkeypatch, capsys, *options):
    """What `python evaluate.py --predicted theirs.h5ad --data truth.h5ad OPTIONS` prints."""
    words = ["evaluate.py", "--predicted", "theirs.h5ad", "--data", "truth.h5ad", *options]
    monkeypatch.setattr("sys.argv", words)
    evaluate.main()
    return capsys.readouterr().out


def test_the_console_says_the_verdict_and_where_the_report_is(theirs, monkeypatch, capsys):
    printed = scored(monkeypatch, capsys, "--report", "theirs.html")
    assert len(printed.splitlines()) <= 10
    assert "\nOn 4 conditions the model closes" in printed
    assert "\nreport: theirs.html\n" in printed


def test_any_models_cells_have_a_report(theirs, tmp_path, monkeypatch, capsys):
    """It says how it is made again, that cells were copied, and nothing of training."""
    scored(monkeypatch, capsys, "--report", "theirs.html")
    text = Reader(tmp_path / "theirs.html").text
    command = "evaluate.py --predicted theirs.h5ad --data truth.h5ad --report theirs.html"
    assert f"python {command}" in text
    assert "How training went" not in text and "Settings" not in text
    assert "80 predicted cells are measured cells" in text


def test_verbose_prints_the_tables_too(theirs, monkeypatch, capsys):
    printed = scored(monkeypatch, capsys, "--verbose")
    assert "mean ± standard deviation over 4 conditions" in printed
    assert "report: theirs_scores/report.html" in printed
