"""Files larger than memory: read in blocks, mapped from disk, to the same numbers."""
import os

import anndata
import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import data
import files
import sample
from toy_data import simulate_screen


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 20), st.booleans(), st.integers(0, 99))
@settings(deadline=None)
def test_blocks_stacked_are_the_matrix_in_memory_and_on_disk(cells, genes, block, on_disk, seed):
    X = sparse.random(cells, genes, 0.4, "csr", dtype=np.float32, rng=np.random.default_rng(seed))
    X.data[::3] = 0                                                        # zeros that a file may store
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPARTURES_MEMORY", "1e-9" if on_disk else "inf")
        Y = files.stacked((X[i:i + block] for i in range(0, cells, block)), X.nnz, genes) if X.nnz else X
    assert np.array_equal(Y.toarray(), X.toarray()) and not (Y.data == 0).any() or not X.nnz


def mapped(array):
    while array is not None:
        if isinstance(array, np.memmap):
            return True
        array = array.base if isinstance(array, np.ndarray) else None
    return False


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
@pytest.mark.parametrize("counts", [False, True])
def test_a_file_that_does_not_fit_is_mapped_and_gives_the_same_screen(tmp_path, monkeypatch, form, counts):
    adata = simulate_screen(60, 8, 900, seed=0)
    adata.X = adata.layers["counts"] if counts else adata.X
    adata.X = adata.X.toarray() if form == "dense" else adata.X.asformat(form)
    adata.obs["condition"] = adata.obs["condition"].astype(str).where(np.arange(900) % 7 > 0)  # some cells without a label are left out
    adata.write_h5ad(tmp_path / "s.h5ad")
    inside = data.prepare(str(tmp_path / "s.h5ad"), genes=40)
    monkeypatch.setenv("DEPARTURES_MEMORY", "1e-6")
    outside = data.prepare(str(tmp_path / "s.h5ad"), genes=40)
    assert mapped(outside.X.data) and mapped(outside.X.indices) and not mapped(inside.X.data)
    assert np.array_equal(outside.X.toarray(), inside.X.toarray()) and outside.genes.tolist() == inside.genes.tolist()
    assert outside.held_out == inside.held_out and sorted(os.listdir(tmp_path)) == ["s.h5ad"]


def test_tables_of_values_that_would_not_fit_are_thinned_evenly(monkeypatch):
    X = sparse.csr_matrix(np.arange(1, 1001, dtype=np.float32)[:, None])
    groups = [np.arange(0, 1000, 2), np.arange(1, 1000, 2)]
    monkeypatch.setenv("DEPARTURES_MEMORY", str(24 * X.nnz / 4 / 2 ** 30))
    start, count, values = sample.active_values(X, groups)
    assert count.ravel().tolist() == [125, 125]
    assert values[start[0, 0]:start[0, 0] + 125].tolist() == list(range(1, 1001, 8))


@given(st.integers(1, 30), st.integers(1, 9), st.integers(0, 40), st.integers(0, 99))
@settings(deadline=None)
def test_batches_made_where_the_matrix_resides_are_its_rows(cells, genes, taken, seed):
    """What a GPU does, here on the CPU; rows may be empty, and come more than once."""
    r = np.random.default_rng(seed)
    X = sparse.random(cells, genes, 0.3, "csr", dtype=np.float32, rng=r)
    rows, there = r.integers(0, cells, taken), sample.Cells(X, "cpu")
    expected = there(rows).numpy()
    there.settle()
    assert np.array_equal(there(rows).numpy(), expected) and np.array_equal(expected, X[rows].toarray())


def test_a_full_temporary_folder_is_a_line(monkeypatch):
    class Full:
        def write(self, what):
            raise OSError(28, "No space left on device")
    monkeypatch.setenv("DEPARTURES_MEMORY", "1e-9")
    monkeypatch.setattr(files.tempfile, "TemporaryFile", Full)
    with pytest.raises(data.InputError, match="No space left on device.*TMPDIR"):
        files.stacked([np.eye(3)], 9, 3)


@pytest.mark.parametrize("given, there", [("2", 2 ** 31), ("none", None)])
def test_the_limit_is_the_users_or_a_share_of_the_machines(monkeypatch, tmp_path, given, there):
    whole = files.in_memory()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    (tmp_path / "limit").write_text(f"{4 * 2 ** 20}\n")
    assert files.in_memory() == whole / 4
    monkeypatch.setattr(files, "CONTAINER", str(tmp_path / "limit"))
    assert files.in_memory() == 2 ** 20 / 4
    monkeypatch.setenv("DEPARTURES_MEMORY", given)
    if there:
        assert files.in_memory() == there
    else:
        with pytest.raises(data.InputError, match="not a number of GiB"):
            files.in_memory()


def test_a_corrupt_matrix_is_refused_block_by_block(tmp_path):
    anndata.AnnData(sparse.random(50, 5, 0.5, "csr", dtype=np.float32)).write_h5ad(tmp_path / "s.h5ad")
    with h5py.File(tmp_path / "s.h5ad", "r+") as f:
        f["X/indices"][0] = 99
    with pytest.raises(data.InputError, match="cannot be read as an h5ad"):
        data.open_h5ad(str(tmp_path / "s.h5ad"))
