"""Files are read in blocks, mapped from disk where they do not fit, and written all or nothing."""

import os

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import screens
import screens.files
from examples import write_labelled

# ---- Larger than memory --------------------------------------------------------------------------


@given(
    cells=st.integers(1, 60),
    genes=st.integers(1, 9),
    block=st.integers(1, 20),
    on_disk=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_blocks_stacked_are_the_matrix_in_memory_and_on_disk(cells, genes, block, on_disk, seed):
    rng = np.random.default_rng(seed)
    X = sparse.random(cells, genes, 0.4, "csr", dtype=np.float32, rng=rng)
    X.data[::3] = 0  # zeros that a file may store
    parts = [X[start : start + block] for start in range(0, cells, block)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DEPARTURES_MEMORY", "1e-9" if on_disk else "inf")
        Y = screens.stacked(parts, X.nnz, genes)
    Y.check_format(full_check=True)  # raises where SciPy would crash
    assert np.array_equal(Y.toarray(), X.toarray())
    assert not (Y.data == 0).any()


def is_mapped(array):
    """Whether an array is a view of a file on disk."""
    while array is not None:
        if isinstance(array, np.memmap):
            return True
        array = array.base if isinstance(array, np.ndarray) else None
    return False


def write_screen(folder, form, counts):
    """A screen of 900 cells and 60 genes, of which some cells have no label; returns its path."""
    rng = np.random.default_rng(0)
    X = rng.poisson(rng.gamma(1.0, 2.0, 60), (900, 60)).astype(np.float32)
    if not counts:
        X = np.log1p(1.37 * X)
    X = X if form == "dense" else sparse.csr_matrix(X).asformat(form)
    labels = np.array(["ctrl", *[f"g{i}" for i in range(8)]])[np.arange(900) % 9]
    labels = pd.Series(labels, [f"c{i}" for i in range(900)])
    obs = pd.DataFrame({"condition": labels.where(np.arange(900) % 7 > 0)})
    var = pd.DataFrame(index=[f"g{i}" for i in range(60)])
    anndata.AnnData(X, obs, var).write_h5ad(folder / "s.h5ad")
    return str(folder / "s.h5ad")


FORMS = [(form, counts) for form in ("csr", "csc", "dense") for counts in (False, True)]


@pytest.mark.parametrize("form, counts", FORMS)
def test_a_file_that_does_not_fit_is_mapped(tmp_path, monkeypatch, form, counts):
    path = write_screen(tmp_path, form, counts)
    assert not is_mapped(screens.prepare(path, genes=40).X.data)
    monkeypatch.setenv("DEPARTURES_MEMORY", "1e-6")
    outside = screens.prepare(path, genes=40)
    assert is_mapped(outside.X.data) and is_mapped(outside.X.indices)
    assert os.listdir(tmp_path) == ["s.h5ad"]


@pytest.mark.parametrize("form, counts", FORMS)
def test_a_file_that_does_not_fit_gives_the_same_screen(tmp_path, monkeypatch, form, counts):
    path = write_screen(tmp_path, form, counts)
    inside = screens.prepare(path, genes=40)
    monkeypatch.setenv("DEPARTURES_MEMORY", "1e-6")
    outside = screens.prepare(path, genes=40)
    assert np.array_equal(outside.X.toarray(), inside.X.toarray())
    assert outside.genes.tolist() == inside.genes.tolist()
    assert outside.held_out == inside.held_out


def test_a_full_temporary_folder_is_a_line(monkeypatch):
    class Full:
        def write(self, what):
            raise OSError(28, "No space left on device")

    monkeypatch.setenv("DEPARTURES_MEMORY", "1e-9")
    monkeypatch.setattr(screens.files.tempfile, "TemporaryFile", Full)
    with pytest.raises(screens.InputError, match="No space left on device.*TMPDIR"):
        screens.stacked([np.eye(3)], 9, 3)


def test_column_numbers_can_be_made_wider():
    """What more than 2^31 values need."""
    narrow = np.random.default_rng(0).integers(0, 2**31 - 1, 1000, dtype=np.int32)
    wide = screens.files.widened(narrow)
    assert wide.dtype == np.int64
    assert np.array_equal(wide, narrow)


# ---- How much memory -----------------------------------------------------------------------------


def test_the_processes_of_a_machine_share_its_memory(monkeypatch):
    whole = screens.in_memory()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert screens.in_memory() == whole / 4


def test_a_container_has_a_quarter_of_its_limit(monkeypatch, tmp_path):
    (tmp_path / "limit").write_text(f"{4 * 2**20}\n")
    monkeypatch.setattr(screens.files, "CONTAINER", str(tmp_path / "limit"))
    assert screens.in_memory() == 2**20


def test_the_users_limit_goes_first(monkeypatch):
    monkeypatch.setenv("DEPARTURES_MEMORY", "2")
    assert screens.in_memory() == 2**31


def test_a_limit_that_is_no_number_is_refused(monkeypatch):
    monkeypatch.setenv("DEPARTURES_MEMORY", "none")
    with pytest.raises(screens.InputError, match="not a number of GiB"):
        screens.in_memory()


# ---- Files that are none -------------------------------------------------------------------------

UNREADABLE = {
    "text.h5ad": "cannot be read",
    "half.h5ad": "cannot be read",
    "none.h5ad": "no such file",
    ".": "directory",
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_files_that_are_no_h5ad_are_refused(tmp_path, name):
    path = write_labelled(tmp_path, {"condition": ["ctrl", "KLF1"] * 4})
    with open(path, "rb") as file:
        whole = file.read()
    (tmp_path / "text.h5ad").write_text("not hdf5")
    (tmp_path / "half.h5ad").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(screens.InputError, match=UNREADABLE[name]):
        screens.read_screen(str(tmp_path / name))


def test_a_corrupt_matrix_is_refused_block_by_block(tmp_path):
    X = sparse.random(50, 5, 0.5, "csr", dtype=np.float32)
    anndata.AnnData(X).write_h5ad(tmp_path / "s.h5ad")
    with h5py.File(tmp_path / "s.h5ad", "r+") as file:
        file["X/indices"][0] = 99
    with pytest.raises(screens.InputError, match="cannot be read as an h5ad"):
        screens.open_h5ad(str(tmp_path / "s.h5ad"))


# ---- Writing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "failure, told",
    [
        (OSError(28, "No space left on device"), screens.InputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_writing_is_all_or_nothing(tmp_path, monkeypatch, failure, told):
    """A write that fails, or is interrupted, leaves what was there and no temporary file."""

    def fail(file):
        raise failure

    path = tmp_path / "x.txt"
    screens.save(path, b"first")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(told):
        screens.save(path, b"second")
    assert [file.name for file in tmp_path.iterdir()] == ["x.txt"]
    assert path.read_text() == "first"


def test_writing_where_there_is_no_folder_is_refused(tmp_path):
    with pytest.raises(screens.InputError, match="cannot be written"):
        screens.save(tmp_path / "no/x.txt", b"")


def test_what_is_written_is_what_is_read(tmp_path):
    X = sparse.random(20, 5, 0.5, "csr", dtype=np.float32, rng=np.random.default_rng(0))
    path = str(tmp_path / "s.h5ad")
    screens.write_h5ad(anndata.AnnData(X), path)
    assert (screens.open_h5ad(path).X != X).nnz == 0


def test_an_output_that_is_a_folder_or_an_input_is_refused(tmp_path):
    path = str(tmp_path / "x.txt")
    with pytest.raises(screens.InputError, match="is a folder"):
        screens.check_folder(str(tmp_path))
    with pytest.raises(screens.InputError, match="is an input"):
        screens.check_folder(path, "other", f"{tmp_path}/./x.txt")


def test_an_output_that_is_no_file_or_has_another_ending_is_refused(tmp_path):
    """A device would become a file; a checkpoint, a report."""
    os.mkfifo(tmp_path / "pipe.html")
    with pytest.raises(screens.InputError, match="is no ordinary file"):
        screens.check_folder(str(tmp_path / "pipe.html"), ending=".html")
    with pytest.raises(screens.InputError, match="is no name in .html"):
        screens.check_folder(str(tmp_path / "model.pt"), ending=".html")


def test_nothing_is_written_after_a_signal_that_python_dropped(tmp_path, monkeypatch):
    """As in a destructor that runs while a figure is drawn."""
    monkeypatch.setattr("screens.command_line.STOPPED", [2])
    with pytest.raises(KeyboardInterrupt):
        screens.save(str(tmp_path / "x.txt"), b"x")
    assert os.listdir(tmp_path) == []


def test_a_table_of_an_h5ad_is_whole_or_refused(tmp_path):
    """The first form that it has all of; None without it."""
    path = str(tmp_path / "s.h5ad")
    table = pd.DataFrame({"name": ["a"], "x": ["1"], "more": [2]}, ["0"])
    uns = {"good": table, "bad": table.assign(x="one"), "text": "name"}
    anndata.AnnData(np.ones((1, 1), np.float32), uns=uns).write_h5ad(path)
    forms = ({"name": str, "x": float, "y": float}, {"name": str, "x": float})
    assert screens.read_table(path, "good", *forms).to_dict("records") == [{"name": "a", "x": 1}]
    assert screens.read_table(path, "none", *forms) is None
    for name in ("bad", "text"):
        with pytest.raises(screens.InputError, match=f"its table '{name}' is damaged; sample"):
            screens.read_table(path, name, *forms)


HEADER = b"epoch,endpoint_loss,activation_loss,plans,unconverged,seconds\n"


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"a,b\n1,2\n", HEADER])
def test_a_log_that_is_damaged_is_refused(tmp_path, content):
    """Empty, no text, other columns, no epoch."""
    (tmp_path / "log.csv").write_bytes(content)
    with pytest.raises(screens.InputError, match="missing, or damaged; train.py --resume"):
        screens.read_log(str(tmp_path))


def test_an_output_in_a_file_is_refused_and_one_in_a_new_folder_is_not(tmp_path):
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(screens.InputError, match="choose another place"):
        screens.check_folder(str(tmp_path / "x.txt/y/z.h5ad"))
    assert screens.check_folder(str(tmp_path / "y/z.h5ad")) is None


def test_a_folder_that_another_run_makes_at_the_same_time_is_left_to_it(tmp_path, monkeypatch):
    """It was missing when looked for, and holds a file when it is to be made."""
    folder = tmp_path / "runs"
    monkeypatch.setattr("screens.files.missing_folders", lambda path: [str(folder)])
    folder.mkdir()
    (folder / "theirs").write_text("")
    screens.check_folder(str(folder / "z.h5ad"))
    assert (folder / "theirs").exists()
