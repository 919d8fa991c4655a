"""Counts become log1p expression as Scanpy makes it, and the same genes are chosen.

scanpy_numbers.json was made once, with Scanpy 1.11.5 and the counts that it holds, one cell of them
empty, by:

    adata = AnnData(counts)
    sc.pp.normalize_total(adata)
    sc.pp.log1p(adata)
    sc.pp.highly_variable_genes(adata, flavor="seurat", n_top_genes=20)

from a dense array. For CSR the same Scanpy counts empty cells in the median library; we leave them
out in both, as it documents.
"""

import json
import pathlib

import numpy as np
import pytest
from scipy import sparse

import screens


def log1p(X, **options):
    X = sparse.csr_matrix(X, dtype=np.float32)
    return screens.log1p_csr(X, "f.h5ad", **options)


def test_counts_are_scaled_to_the_median_library_and_logged():
    X = np.array([[1, 1, 0], [4, 2, 2], [0, 0, 3]], np.float32)
    got, said, _ = log1p(X)
    assert np.allclose(got.toarray(), np.log1p(X / X.sum(1, keepdims=True) * 3))
    assert sparse.issparse(got) and got.dtype == np.float32
    assert said.startswith("X is counts: normalised to the median library (3)")


def test_cells_without_counts_are_left_out_of_the_median_and_stay_empty():
    got, said, _ = log1p([[1, 1], [0, 0], [3, 3]])
    assert np.allclose(got.toarray(), np.log1p([[2, 2], [0, 0], [2, 2]]))
    assert "median library (4)" in said


def test_counts_are_scaled_to_a_library_that_is_given():
    """And it is said to be the run's; without one it is the median, and returned."""
    X = np.array([[1, 1, 0], [4, 2, 2], [0, 0, 3]], np.float32)
    got, said, library = log1p(X, library=50.0)
    assert np.allclose(got.toarray(), np.log1p(X / X.sum(1, keepdims=True) * 50))
    assert "the run's library (50)" in said and library == 50
    assert log1p(X)[2] == 3


def test_what_is_not_integer_is_left_alone():
    X = np.array([[0.5, 1], [0, 2]], np.float32)
    got, said, _ = log1p(X)
    assert np.array_equal(got.toarray(), X)
    assert "not normalised again" in said


def test_integers_that_may_not_be_counts_are_left_alone():
    X = np.array([[1, 2], [0, 3]], np.float32)
    assert np.array_equal(log1p(X, counts=False)[0].toarray(), X)


def test_a_matrix_without_cells_is_called_that():
    with pytest.raises(screens.InputError, match="f.h5ad: X holds no cells"):
        log1p(np.zeros((0, 3)))


@pytest.fixture(scope="module")
def scanpy():
    text = (pathlib.Path(__file__).parent / "scanpy_numbers.json").read_text()
    return {key: np.array(value, dtype=float) for key, value in json.loads(text).items()}


def test_normalisation_equals_scanpys(scanpy):
    assert np.allclose(log1p(scanpy["counts"])[0].toarray(), scanpy["log1p"], atol=2e-6)


def ranking(dispersion):
    """The genes from the most to the least variable."""
    return np.argsort(-np.nan_to_num(dispersion, nan=-np.inf), kind="stable")


def test_gene_choice_equals_scanpys(scanpy):
    """The same normalised dispersions, and so the same twenty genes in the same order."""
    got = screens.seurat_dispersion(log1p(scanpy["counts"])[0])
    expected = scanpy["dispersions_norm"]
    assert np.allclose(got, expected, atol=1e-4, equal_nan=True)
    assert set(ranking(got)[:20]) == set(np.flatnonzero(scanpy["highly_variable"]))
    assert ranking(got)[:20].tolist() == ranking(expected)[:20].tolist()
