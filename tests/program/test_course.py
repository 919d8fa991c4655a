"""The experiments in course/ write their numbers and figures; toy_data.py writes the screens.

Each experiment runs here in small: fewer cells, fewer points, and bridges that are not trained.
"""

import sys

import anndata
import matplotlib.image
import numpy as np
import pandas as pd
import pytest

import course.gaussian
import course.pairing
import course.trackability
import screens
import toy_data
from course.gaussian import run_experiment
from examples import Script

# ---- Gaussians -----------------------------------------------------------------------------------


def untrained(*arguments, **options):
    """In place of `fit_bridge`: every cell is mirrored, to the mean 1."""
    return lambda start: 1 - start


def is_drawn(path):
    """Whether a PNG is large and not of one colour."""
    image = matplotlib.image.imread(path)
    return min(image.shape[:2]) > 300 and image.std() > 0.01


@pytest.fixture(scope="module")
def gaussian(tmp_path_factory):
    """(table, folder) of the experiment with the Gaussians, on 512 pairs."""
    folder = tmp_path_factory.mktemp("gaussian")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(course.gaussian, "fit_bridge", untrained)
        table = course.gaussian.gaussian(str(folder), dimensions=(1, 2), batches=(64,), pairs=512)
    return table, folder


def of_one_dimension(table):
    """The share of the closed form's covariance in the pairs, {pairing: share}, for d = 1."""
    return table[table["dimensions"] == 1].set_index("pairing")["pairs"]


def test_gaussians_have_a_row_for_each_dimension_pairing_and_batch(gaussian):
    """Two dimensions, three pairings and one batch size here."""
    table, _ = gaussian
    assert len(table) == 6
    assert len(table.groupby(["dimensions", "pairing", "batch"])) == 6
    assert table.drop(columns="pairing").notna().all(axis=None)


def test_gaussians_show_what_each_pairing_has_of_the_closed_form(gaussian):
    """Entropic pairs have about all of it, exact ones more, random ones nothing."""
    pairs = of_one_dimension(gaussian[0])
    assert pairs["exact"] > 1.2
    assert pairs["entropic"] == pytest.approx(1, abs=0.3)
    assert abs(pairs["random"]) < 0.3


def test_gaussians_show_that_a_bridge_in_theory_is_nearer_than_random_pairs(gaussian):
    """In every dimension it has more than half of the covariance that the pairs lack."""
    table, _ = gaussian
    random = table[table["pairing"] == "random"]
    assert (random["bridge in theory"] > 0.5).all()
    assert (random["pairs"].abs() < 0.3).all()


def test_gaussians_show_what_the_trained_bridge_does(gaussian):
    """Here it mirrors all cells: Cov(start, end) is -1 where c* is (sqrt(5) - 1) / 2."""
    table, _ = gaussian
    one = table[table["dimensions"] == 1]
    assert np.allclose(one["bridge"], -2 / (5**0.5 - 1), rtol=0.05)
    assert (table["mean off"] < 0.05).all()
    assert (one["covariance off"] < 0.05).all()


def test_gaussians_are_drawn(gaussian):
    """As gaussian.png."""
    assert is_drawn(gaussian[1] / "gaussian.png")


# ---- Trackability --------------------------------------------------------------------------------


class InThisProcess:
    """A pool of processes that are none."""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    def imap(self, function, items, chunksize=1):
        return map(function, items)

    def Pool(self):
        return self


@pytest.fixture(scope="module")
def trackability(tmp_path_factory):
    """(table of the bridges, folder) of the experiment, on a corner of the grid."""
    folder = tmp_path_factory.mktemp("trackability")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(course.trackability, "DIMENSIONS", (10, 20))
        patch.setattr(course.trackability, "DEVIATIONS", (0, 1, 100))
        patch.setattr(course.trackability, "fit_bridge", untrained)
        patch.setattr(
            course.trackability.multiprocessing, "get_context", lambda method: InThisProcess()
        )
        for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
            patch.setenv(name, "1")  # as the experiment does, which does not put them back
        bridges = course.trackability.trackability(str(folder), trials=2)
    return bridges, folder


def test_trackability_writes_every_point_of_its_grid(trackability):
    """Two kinds of E, two dimensions, three deviations here; shares are between 0 and 1."""
    grid = pd.read_csv(trackability[1] / "grid.csv")
    assert len(grid.groupby(["kind", "dimensions", "deviation"])) == len(grid) == 12
    assert grid[["LAOT", "OT pairing"]].stack().between(0, 1).all()
    assert (grid.loc[grid["deviation"] == 0, "LAOT"] == 1).all()


def test_trackability_tries_the_bridge_on_both_sides_of_the_threshold(trackability):
    """Four deviations of each kind of E, some of them within the distance bound and some beyond."""
    bridges, _ = trackability
    within = bridges["farthest move"] < bridges["distance bound"]
    assert len(bridges) == 8
    assert within.any() and not within.all()
    assert (bridges.loc[within, "OT pairing"] == 1).all()


def test_trackability_is_drawn(trackability):
    """As trackability.png."""
    assert is_drawn(trackability[1] / "trackability.png")


# ---- Pairing, and the command line of the experiments --------------------------------------------


@pytest.fixture(scope="module")
def pairing(tmp_path_factory):
    """(what was printed, the table written) of `python -m course.pairing` on a tiny screen."""
    folder = tmp_path_factory.mktemp("pairing")
    simulate = toy_data.simulate_screen
    few = course.pairing.STRATEGIES[0], course.pairing.STRATEGIES[-1]
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            toy_data, "simulate_screen", lambda *size, seed: simulate(60, 2, 1400, seed=seed)
        )
        patch.setattr(course.pairing, "STRATEGIES", few)
        patch.setattr(sys, "argv", ["pairing", "--out", str(folder / "new" / "folder")])
        patch.setattr("builtins.print", lambda *words: printed.append(" ".join(words)))
        run_experiment(course.pairing.pairing, course.pairing.__doc__)
    return "\n".join(printed), pd.read_csv(folder / "new" / "folder" / "pairing.csv")


def of_full_depth(pairing, name):
    _, table = pairing
    return table[(table["pairing"] == name) & (table["counts a gene"] == 3)]


def test_an_experiment_prints_the_table_that_it_writes(pairing):
    """Rounded to three places, and then where all of it is."""
    printed, table = pairing
    first = printed.splitlines()[1].split()
    assert len(table) == 12  # two strategies, three batches, two depths
    assert first[:2] == ["3.000", "exact"]
    assert f"{table['recovered'][0]:.3f}" in first
    assert printed.splitlines()[-1].endswith("new/folder/")


def table_of_nothing(out):
    """An experiment, with its folder for a result."""
    return pd.DataFrame({"folder": [out]})


@pytest.mark.parametrize("options, folder", [([], "runs/table_of_nothing"), (["--out", "o"], "o")])
def test_an_experiment_writes_into_the_folder_that_out_names(
    tmp_path, monkeypatch, options, folder
):
    """Or into one in runs/ with its own name, as its table and its figures do."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["course", *options])
    run_experiment(table_of_nothing, "nothing")
    table = pd.read_csv(tmp_path / folder / "table_of_nothing.csv")
    assert table["folder"].tolist() == [folder]


def test_exact_pairing_finds_counterfactuals(pairing):
    """More than half of them; among other controls it finds near cells, but not the nearest."""
    exact = of_full_depth(pairing, "exact")
    assert (exact["recovered"] > 0.5).all()
    assert exact["rank, others"].between(0.02, 0.45).all()
    assert (exact["distance"] < 0.5).all()


def test_random_pairing_finds_them_by_chance(pairing):
    """Whatever the size of the batch."""
    random = of_full_depth(pairing, "random")
    assert np.allclose(random["chance"], 1 / random["batch"])
    assert (random["recovered"] < random["chance"] + 0.05).all()
    assert random["rank"].between(0.4, 0.6).all()


def test_fewer_counts_make_pairing_harder(pairing):
    """A tenth of them: less than 40 % as many counterfactuals are found, at every batch size."""
    _, table = pairing
    exact = table[table["pairing"] == "exact"]
    found = exact.pivot(index="batch", columns="counts a gene", values="recovered")
    assert (found[0.3] < 0.4 * found[3.0]).all()


# ---- toy_data.py ---------------------------------------------------------------------------------


def simulate(monkeypatch, *options):
    """`python toy_data.py screen OPTIONS`, in this process."""
    monkeypatch.setattr(sys, "argv", ["toy_data.py", "screen", *map(str, options)])
    toy_data.main()


@pytest.mark.parametrize("seed", [0, 5])
def test_a_screen_of_genes_is_written_as_asked(tmp_path, monkeypatch, capsys, seed):
    """The numbers of cells, genes and knock-downs, and the seed; it says what it wrote."""
    path = tmp_path / "s.h5ad"
    size = ["--cells", 200, "--genes", 30, "--perturbed", 3, "--seed", seed]
    simulate(monkeypatch, path, *size)
    expected = toy_data.simulate_screen(30, 3, 200, seed=seed)
    assert np.array_equal(anndata.read_h5ad(path).X.toarray(), expected.X.toarray())
    said = f"{path}: 200 cells x 30 genes; python -m screens {path} tells more\n"
    assert capsys.readouterr().out == said


def test_a_screen_of_drugs_is_written_as_asked(tmp_path, monkeypatch):
    """The number of drugs, in families of four, and the seed."""
    path = tmp_path / "d.h5ad"
    simulate(monkeypatch, path, "--drugs", 8, "--cells", 300, "--genes", 20, "--seed", 2)
    expected = toy_data.simulate_drug_screen(20, 8, 300, seed=2)
    found = anndata.read_h5ad(path)
    assert np.array_equal(found.X.toarray(), expected.X.toarray())
    assert found.uns["drug_embedding"].shape == (8, 64)


def test_a_screen_of_types_is_written_as_asked(tmp_path, monkeypatch):
    """Their number, and the seed."""
    path = tmp_path / "t.h5ad"
    simulate(monkeypatch, path, "--types", 4, "--cells", 300, "--genes", 20, "--seed", 2)
    expected = toy_data.simulate_stimulation(20, 4, 300, seed=2)
    assert np.array_equal(anndata.read_h5ad(path).X.toarray(), expected.X.toarray())


TOO_SMALL = ["--cells 99", "--genes 19", "--perturbed 151", "--perturbed 0", "--drugs 0"]


@pytest.mark.parametrize("size", [*TOO_SMALL, "--drugs 6", "--types 1", "--types 101", "--seed -1"])
def test_a_screen_that_cannot_be_is_refused(tmp_path, monkeypatch, size):
    """And nothing is written."""
    with pytest.raises(screens.InputError, match="a screen has 100 cells or more, 20 genes"):
        simulate(monkeypatch, tmp_path / "s.h5ad", *size.split())
    assert list(tmp_path.iterdir()) == []


USUAL = [
    ([], (300, 40, 8000, 0)),
    (["--drugs", "24"], (300, 24, 20000, 0)),
    (["--types", "7"], (300, 7, 2000, 0)),
]


@pytest.mark.parametrize("options, expected", USUAL)
def test_a_screen_has_the_usual_size_if_none_is_named(tmp_path, monkeypatch, options, expected):
    """8,000 cells of genes, 20,000 of drugs, 2,000 of types. (None is simulated here.)"""
    asked = []

    def simulated(genes, perturbed, cells, seed):
        asked.append((genes, perturbed, cells, seed))
        return anndata.AnnData(np.zeros((1, 1)))

    monkeypatch.setattr(toy_data, "simulate_screen", simulated)
    monkeypatch.setattr(toy_data, "simulate_drug_screen", simulated)
    monkeypatch.setattr(toy_data, "simulate_stimulation", simulated)
    simulate(monkeypatch, tmp_path / "x.h5ad", *options)
    assert asked == [expected]


# ---- In a process of its own --------------------------------------------------------------------


def test_an_experiment_that_cannot_write_says_so_in_one_line(tmp_path):
    """--out names a file: exit code 2, no traceback."""
    (tmp_path / "file").write_text("")
    code, printed, errors = Script(tmp_path, "-m", "course.gaussian", "--out", "file").ended()
    assert code == 2
    assert printed == ""
    assert errors.startswith("error: file: ") and len(errors.splitlines()) == 1
