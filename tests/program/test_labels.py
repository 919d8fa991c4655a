"""From the columns of a file to canonical perturbations, and what cannot be understood."""

import anndata
import numpy as np
import pytest

import screens
from examples import rewrite, write, write_labelled

CONTROLS = [
    "control",
    "ctrl",
    "ctrl+ctrl",
    "Non-targeting",
    "non_targeting",
    "NT",
    "NTC",
    "NegCtrl0_NegCtrl1",
    "negative control",
    "DMSO",
    "Vehicle",
]
NO_CONTROLS = ["KLF1", "NT5E", "CTRL1X", "stimulated", "(+)-JQ1", "KLF1+ctrl"]


def perturbations_of(screen):
    return {perturbation for perturbation, _ in screen.groups}


# ---- Labels of controls --------------------------------------------------------------------------


@pytest.mark.parametrize("label", CONTROLS)
def test_what_means_a_control_is_one(label):
    assert screens.is_control(label)


@pytest.mark.parametrize("label", NO_CONTROLS)
def test_what_only_looks_like_a_control_is_none(label):
    assert not screens.is_control(label)


def test_a_control_that_the_user_names_is_the_only_one(tmp_path):
    path = write_labelled(tmp_path, {"drug": ["DMSO", "untreated", "A"] * 4})
    assert perturbations_of(screens.read_screen(path)) == {"control", "A"}
    named = screens.read_screen(path, control="DMSO")
    assert perturbations_of(named) == {"control", "untreated", "A"}


def test_the_finest_column_of_perturbations_is_taken(tmp_path):
    columns = {
        "condition": ["control", "treated", "treated"] * 4,
        "drug": ["control", "A", "B"] * 4,
    }
    screen = screens.read_screen(write_labelled(tmp_path, columns))
    assert perturbations_of(screen) == {"control", "A", "B"}


# ---- Doses ---------------------------------------------------------------------------------------


def test_targets_of_a_drug_have_its_dose_and_those_of_genes_have_dose_1():
    assert screens.targets_of("Givinostat:0.1", "drug") == [("Givinostat", 0.1)]
    assert screens.targets_of("A+B", "gene") == [("A", 1.0), ("B", 1.0)]
    assert screens.targets_of("control", "gene") == screens.targets_of("control", "drug") == []


def test_a_colon_in_the_name_of_a_drug_is_no_dose():
    assert screens.targets_of("PI3K:mTOR", "drug") == [("PI3K:mTOR", 1.0)]
    assert screens.targets_of("PI3K:mTOR:1e-3", "drug") == [("PI3K:mTOR", 0.001)]


def test_a_cell_without_a_dose_is_left_out(tmp_path):
    columns = {"condition": ["control", "A", "A", "A"] * 6, "dose": [1.0, 10.0, 100.0, np.nan] * 6}
    screen = screens.read_screen(write_labelled(tmp_path, columns))
    assert perturbations_of(screen) == {"control", "A:10", "A:100"}
    assert len(screen.cells) == len(screen.obs) == screen.X.shape[0] == 18
    is_control = screen.perturbation == "control"
    assert set(screen.obs["condition"][is_control]) == {"control"}


def test_a_cell_that_is_left_out_takes_its_own_row_with_it(tmp_path):
    columns = {"condition": ["control", "KLF1", None] * 4}
    path = write_labelled(tmp_path, columns, counts=False)
    kept = np.flatnonzero(np.arange(12) % 3 < 2)
    expected = anndata.read_h5ad(path).X[kept].toarray()
    screen = screens.read_screen(path)
    assert np.array_equal(screen.X.toarray(), expected)
    assert screen.cells.tolist() == [f"c{i}" for i in kept]


def test_doses_with_units_are_refused(tmp_path):
    doses = ["0 nM", "10 nM", "100 nM", "10 nM"] * 6
    path = write_labelled(tmp_path, {"condition": ["control", "A", "A", "A"] * 6, "dose": doses})
    with pytest.raises(screens.InputError, match="doses with units"):
        screens.read_screen(path)


def test_logarithms_of_doses_are_refused(tmp_path):
    doses = [0.0, -3.0, -2.0] * 6
    path = write_labelled(tmp_path, {"condition": ["control", "A", "A"] * 6, "dose": doses})
    with pytest.raises(screens.InputError, match="negative doses; give doses, not their log"):
        screens.read_screen(path)


# ---- What cannot be understood -------------------------------------------------------------------

TWO = {"condition": ["ctrl", "KLF1"] * 4}

# {what is wrong: (obs columns, options of prepare, what the message says)}
BAD = {
    "no perturbation column": (
        {"batch": ["a"] * 8},
        {},
        "no perturbation column.*batch",
    ),
    "no control label": (
        {"condition": ["KLF1", "BAK1"] * 4},
        {},
        "no control label.*BAK1.*--control",
    ),
    "no control label, but one like it": (
        {"condition": ["CTRL_pool_x", "KLF1"] * 4},
        {},
        "'CTRL_pool_x' looks like one: --control 'CTRL_pool_x'",
    ),
    "no label at all": (
        {"condition": ["", "nan"] * 4},
        {},
        "the labels are all missing",
    ),
    "named column is absent": (
        TWO,
        {"perturbation_column": "gene"},
        "no column 'gene'.*condition",
    ),
    "named cell type column is absent": (
        TWO,
        {"cell_type_column": "tissue"},
        "no column 'tissue'.*condition",
    ),
    "named control is absent": (
        TWO,
        {"control": "mock"},
        "no control label.*mock",
    ),
    "ambiguous columns": (
        {**TWO, "perturbation": ["ctrl", "ctrl", "KLF1", "KLF1"] * 2},
        {},
        "disagree",
    ),
    "cell type without controls": (
        {**TWO, "cell_type": ["x", "y"] * 4},
        {},
        "no control cells.*y",
    ),
    "controls only": (
        {"condition": ["ctrl"] * 8},
        {},
        "every cell is a control",
    ),
    "no such layer": (
        TWO,
        {"layer": "raw"},
        "no layer 'raw'",
    ),
    "condition that does not exist": (
        TWO,
        {"test": ["BAK1"]},
        "no cells of condition 'BAK1'",
    ),
    "everything held out": (
        TWO,
        {"test": ["KLF1"]},
        "nothing is left to train",
    ),
    "split column that is absent": (
        TWO,
        {"split_column": "fold"},
        "no column 'fold'",
    ),
    "split column without a test": (
        {**TWO, "batch": ["x"] * 8},
        {"split_column": "batch"},
        "no whole",
    ),
    "fewer genes than targets": (
        {"condition": ["ctrl", "KLF1", "BAK1", "ACTB"] * 2},
        {"genes": 2},
        "beside the 3 perturbed",
    ),
    "no genes": (
        TWO,
        {"genes": 0},
        "no genes left",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_labels_are_refused_in_a_sentence_that_names_the_remedy(tmp_path, case):
    columns, options, message = BAD[case]
    with pytest.raises(screens.InputError, match=f"(?s){message}"):
        screens.prepare(write_labelled(tmp_path, columns), **options)


def give_nan(adata):
    adata.X.data[0] = np.nan


def give_negative(adata):
    adata.X.data[0] = -1.0


def give_zeros(adata):
    adata.X.data.fill(0)


def give_duplicate_genes(adata):
    adata.var_names = ["KLF1", "KLF1", *adata.var_names[2:]]


@pytest.mark.parametrize(
    "spoil, message",
    [
        (give_nan, "NaN"),
        (give_negative, "negative"),
        (give_zeros, "zero"),
        (give_duplicate_genes, "duplicate gene names"),
    ],
)
def test_bad_values_are_refused(tmp_path, spoil, message):
    path = rewrite(write_labelled(tmp_path, TWO), spoil)
    with pytest.raises(screens.InputError, match=message):
        screens.prepare(path)


def unlog_and_scale(adata):
    adata.X = adata.X.expm1() * 57.3


def test_what_is_neither_counts_nor_log1p_is_refused(tmp_path):
    path = rewrite(write("kang", tmp_path), unlog_and_scale)
    with pytest.raises(screens.InputError, match="neither counts nor log1p"):
        screens.read_screen(path)


def test_two_genes_of_one_symbol_keep_names_of_their_own(tmp_path):
    def share_a_symbol(adata):
        adata.var["gene_name"] = ["KLF1", "KLF1", *adata.var_names[2:]]

    path = rewrite(write_labelled(tmp_path, TWO), share_a_symbol)
    assert screens.read_screen(path).genes[:2].tolist() == ["KLF1", "BAK1"]
