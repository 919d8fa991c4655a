"""h5ad files in and out.

They are read in blocks of cells and kept in memory or, where they would not fit, on disk. (CSC
files, and files older than AnnData 0.7, are read whole.) What is written is complete or not there
at all. Axes: C cells, N genes.
"""

import contextlib
import io
import os
import tempfile

import anndata
import h5py
import numpy as np
import pandas as pd
from anndata.io import read_elem, write_elem
from scipy import sparse

from screens.command_line import InputError, check_plain, check_stopped, some
from screens.public import is_download

CONTAINER = "/sys/fs/cgroup/memory.max"
BLOCK = 4096  # cells at a time
DENSEST = 10_000  # bytes that a byte of a compressed file may stand for


def blocks(X, rows=None):
    """A matrix (C, N), or some of its rows, in blocks of 4,096 cells."""
    n = X.shape[0] if rows is None else len(rows)
    for start in range(0, max(1, n), BLOCK):
        if rows is None:
            yield X[start : start + BLOCK]
        else:
            yield X[rows[start : start + BLOCK]]


def in_memory():
    """How many bytes a screen's values may take in memory.

    DEPARTURES_MEMORY in GiB, else a quarter of what there is, shared by the processes on this
    machine. The values may be held twice for a while, and tables of them as often.
    """
    given = os.environ.get("DEPARTURES_MEMORY")
    if given:
        try:
            return max(1.0, 2**30 * float(given))
        except ValueError as error:
            raise InputError(
                f"DEPARTURES_MEMORY={given}: not a number of GiB; change it, or leave it out"
            ) from error
    there = 2**34
    if hasattr(os, "sysconf"):
        there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if os.path.exists(CONTAINER):
        with open(CONTAINER) as file:
            limit = file.read().strip()
        if limit.isdigit():
            there = min(there, int(limit))
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # torchrun's
    return there / 4 / processes


def stacked(parts, most, width):
    """Stack blocks of rows to one CSR (rows, width) float32 without stored zeros.

    most: how many values there are at most. If these may take more than `in_memory`, they go to
    files without a name (in TMPDIR) and are mapped: the system brings their pages in and out of
    memory. InputError if these files find no room; ValueError for a corrupt block.
    """
    mapped = 8 * most > in_memory()
    new_file = tempfile.TemporaryFile if mapped else io.BytesIO
    values = new_file()
    columns = new_file()
    ends = [np.zeros(1, np.int64)]
    n = 0
    for part in parts:
        if sparse.issparse(part):
            part.check_format(full_check=True)  # a corrupt one would crash SciPy
        part = sparse.csr_matrix(part, dtype=np.float32)
        part.sum_duplicates()
        part.eliminate_zeros()
        try:  # not through a map: on a full disk that is a bus error
            values.write(part.data)
            columns.write(part.indices.astype(np.int32))
        except OSError as error:
            raise InputError(
                f"{tempfile.gettempdir()}: no room for what does not fit in memory "
                f"({error.strerror}); set TMPDIR to a larger place"
            ) from error
        ends.append(part.indptr[1:] + np.int64(n))
        n += part.nnz
    data = array_of(values, np.float32, n, mapped)
    indices = array_of(columns, np.int32, n, mapped)
    if n >= 2**31:  # SciPy wants the columns as wide as the row ends
        indices = widened(indices)
    indptr = np.concatenate(ends)
    return sparse.csr_matrix((data, indices, indptr), (len(indptr) - 1, width))


def array_of(file, dtype, n, mapped):
    """The n numbers that were written to a file: mapped from disk, or a view of memory."""
    if n == 0:
        return np.zeros(0, dtype)
    if mapped:
        return np.memmap(file, dtype, "r+", shape=n)
    return np.frombuffer(file.getbuffer(), dtype)


def widened(columns):
    """int32 numbers as int64, mapped from a file on disk."""
    wide = tempfile.TemporaryFile()  # noqa: SIM115  (the map keeps it)
    for start in range(0, len(columns), 2**24):
        wide.write(columns[start : start + 2**24].astype(np.int64))
    return np.memmap(wide, np.int64, "r+", shape=len(columns))


def open_h5ad(path, layer=None):
    """Read an h5ad: obs, var, two entries of uns, and X (or a layer) as CSR float32.

    The rest of the file is never read. InputError for what is no readable h5ad.
    """
    check_readable(path)
    try:
        with h5py.File(path) as file:
            adata = read_open_file(file, path, layer)
        for table in adata.obs, adata.var:
            check_plain([*table.index, *table.columns], path)
        return adata
    except (InputError, MemoryError):
        raise
    except Exception as error:  # h5py and AnnData have no common error for a bad file
        reason = str(error) or type(error).__name__
        remedy = "write it again with AnnData's write_h5ad"
        if is_download(path):
            remedy = "delete it, and it is downloaded again"
        raise InputError(f"{path}: cannot be read as an h5ad ({reason}); {remedy}") from error


def check_readable(path):
    """Raise InputError if a path is not a file that can be read."""
    if os.path.isdir(path):
        raise InputError(f"{path}: is a directory; name the h5ad in it")
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file; check the path")
    if not os.access(path, os.R_OK):
        raise InputError(f"{path}: permission denied; make it readable")


def read_open_file(file, path, layer):
    """The AnnData of an open h5ad, as `open_h5ad` says. ValueError for what makes no sense."""
    check_claims(file)
    if isinstance(file["obs"], h5py.Dataset) and not layer:
        adata = anndata.read_h5ad(path)  # from before AnnData 0.7 (2020), which it converts
        adata.X = stacked([adata.X], adata.X.size, adata.n_vars)
        return adata
    X = file.get(f"layers/{layer}" if layer else "X")
    if X is None:
        wanted = f"layer {layer!r}" if layer else "X"
        layers = some(file.get("layers", ())) or "none"
        raise InputError(f"{path}: no {wanted}; the layers are {layers}; name one with --layer")
    shape = length_of(file["obs"]), length_of(file["var"])
    most, parts = parts_of(X, shape)
    uns = {
        key: read_elem(file["uns"][key])
        for key in ("departures", "drug_embedding")
        if key in file.get("uns", ())
    }
    obs, var = read_elem(file["obs"]), read_elem(file["var"])
    if not (obs.columns.is_unique and var.columns.is_unique):
        raise ValueError("two columns of obs or var have one name")
    return anndata.AnnData(stacked(parts, most, shape[1]), obs, var, uns)


def check_claims(file):
    """Raise ValueError if an array of a file claims far more values than the file holds."""

    def check(name, item):
        if isinstance(item, h5py.Dataset):
            claimed = (item.size or 0) * item.dtype.itemsize
            if claimed > 2**20 + DENSEST * item.id.get_storage_size():
                raise ValueError(f"{name} claims {item.shape}, of which the file holds nothing")

    file.visititems(check)


def length_of(table):
    """How many rows obs or var has: the length of its index."""
    index = table[table.attrs["_index"]]
    if isinstance(index, h5py.Group):  # categories, or text that may be missing
        index = index["codes" if "codes" in index else "values"]
    return len(index)


def parts_of(X, shape):
    """The most values that a stored matrix of a shape has, and its blocks of rows, to be iterated.

    ValueError for another shape, for values that are no real numbers, and for a sparse matrix whose
    parts do not belong together.
    """
    sparse_form = isinstance(X, h5py.Group)
    stored_shape = tuple(X.attrs["shape"]) if sparse_form else X.shape
    if stored_shape != shape:
        raise ValueError(f"X is {stored_shape}, obs and var say {shape}")
    values = X["data"] if sparse_form else X
    if values.dtype.kind not in "fiub":
        raise ValueError(f"X holds {values.dtype}, not numbers")
    if not sparse_form:
        return X.size, (block.astype(np.float32) for block in blocks(X))
    ends = X["indptr"][:]
    by_rows = X.attrs["encoding-type"] == "csr_matrix"
    lines = len(ends) == shape[0 if by_rows else 1] + 1
    whole = lines and ends[0] == 0 and ends[-1] == len(values) == len(X["indices"])
    integer = X["indices"].dtype.kind in "iu" and ends.dtype.kind in "iu"
    if not (whole and integer):
        raise ValueError("X's data, indices and indptr do not belong together")
    if by_rows:
        return len(values), rows_of(X, ends, shape)
    # A matrix in columns has no rows to read one by one.
    arrays = values[:].astype(np.float32), X["indices"][:], ends
    return len(values), [sparse.csc_matrix(arrays, shape)]


def rows_of(X, ends, shape):
    """The blocks of rows of a stored CSR matrix with these row ends."""
    for start in range(0, max(1, shape[0]), BLOCK):
        own = ends[start : start + BLOCK + 1].astype(np.int64)
        values = slice(own[0], own[-1])
        arrays = X["data"][values].astype(np.float32), X["indices"][values].astype(np.int64)
        yield sparse.csr_matrix((*arrays, own - own[0]), (len(own) - 1, shape[1]))


def read_csv(path, **options):
    """The table in a CSV on this machine; pandas alone would follow an address, s3:// or http://.

    OSError or ValueError for what is none, InputError for texts that are not plain.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError("no such file")
    table = pd.read_csv(path, **options)
    check_texts(table, path)
    return table


def check_texts(table, path):
    """`check_plain` the names and the texts of a table that is from a path."""
    texts = pd.unique(table.select_dtypes(exclude="number").to_numpy(object).ravel())
    check_plain([*table.index, *table.columns, *texts], path)


def read_log(run):
    """The table of a run's epochs, RUN/log.csv. InputError for what is none."""
    path = f"{run}/log.csv"
    columns = ("endpoint_loss", "activation_loss", "plans", "unconverged", "seconds")
    try:
        log = read_csv(path).astype(dict.fromkeys(columns, float))
        if log.empty:
            raise ValueError("no epochs")
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{path}: missing, or damaged; train.py --resume {run} writes it again"
        ) from error
    return log


def read_table(path, name, *forms):
    """A table in the uns of an h5ad: the columns of the first of some forms that it has all of.

    A form is {column: type}. None without the table, InputError for a damaged one.
    """
    try:
        with h5py.File(path) as file:
            if name not in file.get("uns", ()):
                return None
            table = read_elem(file["uns"][name])
        form = next(form for form in forms if form.keys() <= set(table))
        check_texts(table[list(form)], path)
        return table[list(form)].astype(form)
    except MemoryError:
        raise
    except Exception as error:  # h5py and AnnData have no common error for a bad file
        raise InputError(f"{path}: its table {name!r} is damaged; sample again") from error


def save(path, content):
    """Write bytes to a path, all or nothing.

    They are flushed under a temporary name, which is then renamed: there is never half a file, and
    what was there stays until the new one is complete. InputError if they cannot be written.
    """
    check_stopped()
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); free some space or choose another place"
        ) from error
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def write_h5ad(adata, path):
    """Write an AnnData to a path, compressed, all or nothing."""
    memory = io.BytesIO()  # not to the disk at once: h5py crashes when it is full
    with h5py.File(memory, "w") as file:
        write_elem(file, "/", adata, dataset_kwargs={"compression": "gzip"})
    save(path, memory.getbuffer())


def check_folder(path, *inputs, ending=""):
    """Refuse, before any work is done, to write where it is not possible or not wanted.

    InputError if the path is a folder or a device, is one of the inputs that are read from, has
    another ending (so that a mistaken name replaces nothing else), or cannot be made.
    """
    problem = None
    if os.path.isdir(path):
        problem = "a folder"
    elif os.path.realpath(path) in [os.path.realpath(name) for name in inputs]:
        problem = "an input"
    elif os.path.exists(path) and not os.path.isfile(path):
        problem = "no ordinary file"
    elif not path.lower().endswith(ending):
        problem = f"no name in {ending}"
    if problem:
        raise InputError(f"{path}: is {problem}; choose another name for what is written")
    made = []
    try:
        for folder in missing_folders(path):
            os.makedirs(folder, exist_ok=True)  # another run may be making it just now
            made.append(folder)
        temporary = f"{path}.tmp"  # as `save` will
        open(temporary, "wb").close()
        os.remove(temporary)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror}); choose another place"
        ) from error
    finally:
        for folder in reversed(made):
            with contextlib.suppress(OSError):  # another run has put something there
                os.rmdir(folder)


def missing_folders(path):
    """The folders that a path needs and that are not there, the outermost first."""
    missing = []
    folder = os.path.dirname(os.path.abspath(path))
    while not os.path.exists(folder):
        missing.insert(0, folder)
        folder = os.path.dirname(folder)
    return missing
