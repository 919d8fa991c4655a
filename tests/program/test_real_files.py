"""Every form of h5ad that the documentation promises to read is understood without a flag.

To see what is said of each of them: python tests/program/test_real_files.py
"""

import os
import pathlib
import subprocess
import sys
import tempfile

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import screens  # noqa: E402  (the path comes first)
from examples import FORMS, KANG, SYMBOLS, cells_of, rewrite, write, write_labelled  # noqa: E402

IFN_IN_ALL = {("stimulated", cell_type) for cell_type in KANG}

# {form: (kind, conditions that must be there, how many there are in all)}
UNDERSTOOD = {
    "adamson": ("gene", {("KLF1", "K562(?)"), ("AMIGO3", "K562(?)")}, 4),
    "norman": ("gene", {("KLF1", "A549"), ("BAK1", "A549"), ("AHR+KLF1", "A549")}, 6),
    "triples": ("gene", {("BAK1+KLF1", "A549"), ("AHR+BAK1+KLF1", "A549")}, 5),
    "scperturb_genetic": (
        "gene",
        {("KLF1", "K562"), ("BAK1+KLF1", "K562"), ("STAT1", "K562"), ("BAK1", "K562")},
        4,
    ),
    "scperturb_drug": ("drug", {("(+)-JQ1:10", "A549"), ("Nutlin-3:100", "K562")}, 8),
    "sciplex_chemcpa": ("drug", {("Givinostat:0.1", "MCF7"), ("Givinostat:1", "K562")}, 12),
    "sciplex_cellot": ("drug", {("trametinib", "A549")}, 2),
    "kang": ("drug", IFN_IN_ALL, 7),
    "kang_2018": ("drug", IFN_IN_ALL, 7),
    "kang_pertpy": ("drug", {("stim", "CD14+ Monocytes"), ("stim", "NK cells")}, 5),
}
COUNTS = ("scperturb_genetic", "scperturb_drug", "kang_pertpy")


def dense(X):
    """A matrix of a file as an array."""
    return X if isinstance(X, np.ndarray) else X.toarray()


# ---- Every form ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMS)
def test_the_kind_and_the_conditions_of_every_form_are_found(name, tmp_path):
    kind, expected, count = UNDERSTOOD[name]
    screen = screens.read_screen(write(name, tmp_path))
    conditions = {key for key in screen.groups if key[0] != "control"}
    assert screen.kind == kind
    assert expected <= conditions
    assert len(conditions) == count


@pytest.mark.parametrize("name", FORMS)
def test_the_genes_and_the_controls_of_every_form_are_found(name, tmp_path):
    screen = screens.read_screen(write(name, tmp_path))
    assert list(screen.genes) == SYMBOLS
    assert all(len(screen.controls(cell_type)) >= 12 for cell_type in screen.cell_types)


@pytest.mark.parametrize("name", FORMS)
def test_log1p_is_left_alone_and_counts_are_logged_once(name, tmp_path):
    path = write(name, tmp_path)
    screen = screens.read_screen(path)
    stored = dense(anndata.read_h5ad(path).X)
    read = screen.X.toarray()
    if name in COUNTS:
        assert np.array_equal(stored, np.round(stored))
        assert not np.array_equal(read, np.round(read))
    else:
        assert np.allclose(read, stored)


def test_the_doses_of_each_form_are_those_of_its_dose_column(tmp_path):
    doses = {}
    for name in ("scperturb_drug", "sciplex_chemcpa", "sciplex_cellot"):
        screen = screens.read_screen(write(name, tmp_path))
        targets = [screens.targets_of(perturbation, "drug") for perturbation, _ in screen.groups]
        doses[name] = {dose for one in targets for _, dose in one}
    assert doses == {
        "scperturb_drug": {10.0, 100.0, 1000.0},
        "sciplex_chemcpa": {0.1, 1.0},
        "sciplex_cellot": {1.0},
    }


def test_plain_columns_of_the_real_subset_are_understood():
    path = ROOT.parent / "shared/data/norman19_mcfaline23_subset.h5ad"
    if not path.exists():
        pytest.skip("the real subset is not here")
    screen = screens.prepare(str(path), test=["TGFBR2+KLF1@k562", "MAPK1"])
    mapk1 = {("MAPK1", cell_type) for cell_type in screen.cell_types}
    assert screen.X.shape == (5961, 500)
    assert (screen.kind, len(screen.cell_types)) == ("gene", 4)
    assert screen.held_out == {("KLF1+TGFBR2", "k562"), *mapk1}


# ---- Every way to store a matrix -----------------------------------------------------------------


def as_integers(adata):
    adata.X = adata.X.astype(np.int64)


def as_dense(adata):
    adata.X = adata.X.toarray()


def as_dense_integers(adata):
    adata.X = adata.X.toarray().astype(np.int64)


def by_columns(adata):
    adata.X = adata.X.tocsc()


def in_a_layer(adata):
    adata.layers["raw"] = adata.X.copy()
    adata.X = adata.X * 0


@pytest.mark.parametrize(
    "change", [as_integers, as_dense, as_dense_integers, by_columns, in_a_layer]
)
def test_the_same_counts_stored_in_another_way_are_the_same_screen(change, tmp_path):
    path = write("scperturb_genetic", tmp_path)
    expected = screens.read_screen(path)
    rewrite(path, change)
    got = screens.read_screen(path, layer="raw" if change is in_a_layer else None)
    assert (got.X != expected.X).nnz == 0
    assert got.groups.keys() == expected.groups.keys()


def test_a_dense_matrix_of_more_than_one_block_is_read_to_its_end(tmp_path):
    X = np.random.default_rng(0).poisson(1.0, (5000, 3)).astype(np.float32)
    obs = pd.DataFrame({"condition": ["ctrl", "a"] * 2500}, [f"c{i}" for i in range(5000)])
    anndata.AnnData(X, obs).write_h5ad(tmp_path / "dense.h5ad")
    assert np.array_equal(screens.open_h5ad(str(tmp_path / "dense.h5ad")).X.toarray(), X)


def column_too_large(X):
    X["indices"][0] = 10**6


def column_negative(X):
    X["indices"][0] = -5


def row_ends_beyond_the_values(X):
    X["indptr"][5] = 10**7


@pytest.mark.parametrize("spoil", [column_too_large, column_negative, row_ends_beyond_the_values])
def test_a_corrupt_sparse_matrix_is_refused_before_scipy_crashes(tmp_path, spoil):
    path = write("kang", tmp_path)
    with h5py.File(path, "a") as file:
        spoil(file["X"])
    with pytest.raises(screens.InputError, match="cannot be read"):
        screens.open_h5ad(path)


# ---- Names and splits of real files --------------------------------------------------------------


def test_a_files_own_split_column_can_be_named(tmp_path):
    """chemCPA's whole-pathway split. Its `split` marks nothing: the paper's split is drawn."""
    path = write("sciplex_chemcpa", tmp_path)
    held_out = screens.prepare(path, split_column="split_ho_pathway").held_out
    assert held_out == {("Quisinostat:0.1", cell_type) for cell_type in ("A549", "K562", "MCF7")}
    assert screens.prepare(path).held_out not in (held_out, set())


def test_a_drugs_name_alone_means_all_its_doses(tmp_path):
    screen = screens.read_screen(write("sciplex_chemcpa", tmp_path))
    in_k562 = {("Givinostat:0.1", "K562"), ("Givinostat:1", "K562")}
    assert screens.resolve(screen, "Givinostat@K562") == in_k562
    assert len(screens.resolve(screen, "Givinostat")) == 6
    assert len(screens.resolve(screen, "Givinostat:1")) == 3


def test_a_drug_with_a_plus_in_its_name_can_be_named(tmp_path):
    screen = screens.read_screen(write("scperturb_drug", tmp_path))
    assert screens.resolve(screen, "(+)-JQ1:10@A549") == {("(+)-JQ1:10", "A549")}


def test_a_cell_type_with_a_plus_can_be_named(tmp_path):
    screen = screens.read_screen(write("kang", tmp_path))
    expected = {("stimulated", "CD14+Mono")}
    assert screens.resolve(screen, "stimulated@CD14+Mono") == expected


def test_a_triple_can_be_named_in_any_order(tmp_path):
    screen = screens.read_screen(write("triples", tmp_path))
    expected = {("AHR+BAK1+KLF1", "A549")}
    assert screens.resolve(screen, "KLF1+AHR+BAK1@A549") == expected
    assert screens.resolve(screen, "BAK1+KLF1+AHR") == expected


def test_names_are_canonical_wherever_they_come_from(tmp_path):
    norman = screens.read_screen(write("norman", tmp_path))
    sciplex = screens.read_screen(write("sciplex_chemcpa", tmp_path))
    assert screens.at_type(norman, "KLF1+ctrl@A549") == ("KLF1", "A549")
    assert screens.at_type(norman, "KLF1 + KLF1") == ("KLF1", None)
    assert screens.at_type(sciplex, "Givinostat:0.10@K562") == ("Givinostat:0.1", "K562")


def test_gears_control_first_means_the_gene_alone(tmp_path):
    norman = screens.read_screen(write("norman", tmp_path))
    assert screens.resolve(norman, "ctrl+KLF1") == {("KLF1", "A549")}


# ---- Awkward labels ------------------------------------------------------------------------------


def awkward(folder):
    """A file with all that labels may be, and still be understood; returns its path.

    An unused category, one cell in a condition, a condition in one cell type only, a type without
    perturbed cells, spaces within and around a label.
    """
    conditions = ["ctrl", "ctrl", "My gene+ctrl", "KLF1+ctrl", "ctrl"]
    types = {"cell_type": ["a", "b", "a", "b", "type c"]}
    adata = cells_of(conditions, types, "condition", True, symbols=["My gene", *SYMBOLS[1:]])
    one_of_my_gene = np.r_[0:24, 24:25, 36:60]
    adata = adata[one_of_my_gene].copy()
    labels = adata.obs["condition"].astype(str).replace("KLF1+ctrl", " KLF1+ctrl ")
    adata.obs["condition"] = labels.astype("category").cat.add_categories(["nobody"])
    adata.write_h5ad(folder / "awkward.h5ad")
    return str(folder / "awkward.h5ad")


def test_awkward_labels_are_no_obstacle(tmp_path):
    screen = screens.prepare(awkward(tmp_path), test=["My gene"])
    sizes = {key: len(rows) for key, rows in screen.groups.items() if key[0] != "control"}
    assert sizes == {("My gene", "a"): 1, ("KLF1", "b"): 12}
    assert screen.cell_types == ["a", "b", "type c"]
    assert screen.held_out == {("My gene", "a")}


def test_small_conditions_are_warned_of(tmp_path):
    screen = screens.prepare(awkward(tmp_path), test=["My gene"])
    warnings = [line for line in screens.describe(screen) if line.startswith("warning: 1 cond")]
    assert len(warnings) == 1
    assert "fewer than 10 cells (My gene@a)" in warnings[0]


def test_a_pair_with_a_gene_that_is_neither_measured_nor_seen_alone_is_a_pair(tmp_path):
    """AMIGO3 is such a gene. Arg1 is no guide of Ar: it is a label of its own."""
    labels = ["control", "KLF1", "KLF1_AMIGO3", "BAK1", "Arg1", "STAT1"] * 4
    path = write_labelled(tmp_path, {"perturbation": labels}, [*SYMBOLS[:-1], "Ar"])
    names = {perturbation for perturbation, _ in screens.read_screen(path).groups}
    assert names == {"control", "KLF1", "AMIGO3+KLF1", "BAK1", "Arg1", "STAT1"}


# ---- What is said of a file ----------------------------------------------------------------------


def said_of(path, *options):
    """What `python -m screens` prints of a file."""
    command = [sys.executable, "-m", "screens", path, *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    return result.stdout


FACTS = [
    "180 cells x 10 genes",
    "log1p already",
    "3 drugs at 1 to 2 doses from 'condition'",
    "dose from 'dose_val'",
    "A549 (12 controls), K562 (12 controls), MCF7 (12 controls)",
    "12 conditions of 12 to 12 cells: 10 to train on, 2 held out",
    "Givinostat:0.1@MCF7",
]


def test_the_summary_of_a_file_says_what_a_person_wants_to_know(tmp_path):
    """Cells, genes, counts or log1p, conditions and their sizes, controls by type, the split."""
    printed = said_of(write("sciplex_chemcpa", tmp_path), "--test", "Givinostat@MCF7")
    missing = [fact for fact in FACTS if fact not in printed]
    assert not missing, printed


def test_the_summary_warns_of_perturbed_genes_that_are_not_measured(tmp_path):
    screen = screens.prepare(write("adamson", tmp_path))
    expected = "warning: 1 of 4 perturbed genes are not measured (AMIGO3)"
    assert expected in screens.describe(screen)


def test_a_file_that_is_not_understood_is_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, "-m", "screens", "absent.h5ad"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 2
    assert result.stderr == "error: absent.h5ad: no such file; check the path\n"
    assert result.stdout == ""


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for form in FORMS:
            print(said_of(write(form, pathlib.Path(folder))))
