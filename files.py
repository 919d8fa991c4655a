"""Files in and out: h5ad files are read in blocks of cells and kept in memory or, where they would not fit, on disk (CSC, and files older than
AnnData 0.7, are read whole); what is written is complete or not there at all; what cannot be done is one line.

Axes: C cells, N genes.
"""
import argparse
import io
import os
import signal
import sys
import tempfile
import warnings

import anndata
import h5py
import numpy as np
from anndata.io import read_elem, sparse_dataset, write_elem
from scipy import sparse

CONTAINER = "/sys/fs/cgroup/memory.max"
STOPPED = []                                                                # signals that asked to stop, for loops to look at
ONE_LINE = {"usage": argparse.SUPPRESS, "formatter_class": argparse.RawDescriptionHelpFormatter}     # of argparse's own errors


class InputError(Exception):
    """Something in the user's file or command: one line that names it and says what to do. Scripts exit with 2."""


def blocks(X, rows=None):                      # of a matrix (C, N), or of some of its rows: 4,096 cells at a time
    return (X[i:i + 4096] if rows is None else X[rows[i:i + 4096]] for i in range(0, max(1, X.shape[0] if rows is None else len(rows)), 4096))


def in_memory():
    """How many bytes a screen's values may take in memory: DEPARTURES_MEMORY in GiB, else a quarter of what there is, shared by the processes
    on this machine. The values may be held twice for a while, and tables of them as often."""
    given = os.environ.get("DEPARTURES_MEMORY")
    try:
        if given:
            return max(1.0, 2 ** 30 * float(given))
    except ValueError as e:
        raise InputError(f"DEPARTURES_MEMORY={given}: not a number of GiB; change it, or leave it out") from e
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2 ** 34
    if os.path.exists(CONTAINER) and (limit := open(CONTAINER).read().strip()).isdigit():
        there = min(there, int(limit))
    return there / 4 / int(os.environ.get("LOCAL_WORLD_SIZE", 1))          # torchrun's


def stacked(parts, most, width):
    """Blocks of rows as one CSR (rows, width) float32 without zeros, of `most` values at most. If these may take more than `in_memory`, they go
    to files without a name (in TMPDIR) and are mapped: their pages come and go as the system sees fit."""
    mapped, ends, n = 8 * most > in_memory(), [np.zeros(1, np.int64)], 0
    values, columns = ((tempfile.TemporaryFile if mapped else io.BytesIO)() for _ in range(2))
    for part in parts:
        part = sparse.csr_matrix(part, dtype=np.float32)
        part.check_format(full_check=True)                                 # a corrupt one would crash SciPy
        part.sum_duplicates()
        part.eliminate_zeros()
        try:                                                               # not through a map: on a full disk that is a bus error
            values.write(part.data)
            columns.write(part.indices.astype(np.int32))
        except OSError as e:
            raise InputError(f"{tempfile.gettempdir()}: no room for what does not fit in memory ({e.strerror}); set TMPDIR to a larger place") from e
        ends.append(part.indptr[1:] + np.int64(n))
        n += part.nnz
    view = lambda file, kind: np.memmap(file, kind, "r+", shape=n) if mapped and n else np.frombuffer(file.getbuffer() if n else b"", kind)  # noqa: E731
    if n >= 2 ** 31:                                                       # SciPy wants the columns as wide as the row ends
        narrow, columns = view(columns, np.int32), tempfile.TemporaryFile()
        for i in range(0, n, 2 ** 24):
            columns.write(narrow[i:i + 2 ** 24].astype(np.int64))
    arrays = view(values, np.float32), view(columns, np.int64 if n >= 2 ** 31 else np.int32), np.concatenate(ends)
    return sparse.csr_matrix(arrays, (sum(map(len, ends)) - 1, width))


def open_h5ad(path, layer=None):
    """A file's obs, var, two entries of uns, and X (or a layer) as CSR, which AnnData's backed mode reads in blocks. The rest is never read."""
    if os.path.isdir(path) or not os.access(path, os.R_OK):
        raise InputError(f"{path}: " + ("is a directory; name the h5ad in it" if os.path.isdir(path) else
                                        "permission denied; make it readable" if os.path.exists(path) else "no such file; check the path"))
    try:
        with h5py.File(path) as f:
            if isinstance(f["obs"], h5py.Dataset) and not layer:                         # written before AnnData 0.7 (2020), which it converts
                adata = anndata.read_h5ad(path)
                adata.X = stacked([adata.X], adata.X.size, adata.n_vars)
                return adata
            X = f.get(f"layers/{layer}" if layer else "X")
            if X is None:
                raise InputError(f"{path}: no {f'layer {layer!r}' if layer else 'X'}; the layers are "
                                 f"{some(f.get('layers', ())) or 'none'}; name one with --layer")
            most, X = (X.size, X) if isinstance(X, h5py.Dataset) else (len(X["data"]), sparse_dataset(X))
            parts = [X.to_memory()] if getattr(X, "format", "") == "csc" else blocks(X)       # CSC has no rows to read one by one
            uns = {k: read_elem(f["uns"][k]) for k in ("departures", "drug_embedding") if k in f.get("uns", ())}
            return anndata.AnnData(stacked(parts, most, X.shape[1]), read_elem(f["obs"]), read_elem(f["var"]), uns)
    except (InputError, MemoryError):
        raise
    except Exception as e:                                                 # h5py and AnnData have no common error for a bad file
        raise InputError(f"{path}: cannot be read as an h5ad ({str(e) or type(e).__name__}); write it again with AnnData's write_h5ad") from e


def save(path, content):
    """Bytes to path, all or nothing: flushed under a temporary name, then renamed, so that nobody ever sees half a file."""
    temporary = f"{path}.tmp"
    try:
        with open(temporary, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
    except OSError as e:
        raise InputError(f"{path}: cannot be written ({e.strerror}); free some space or choose another place") from e
    finally:
        if os.path.exists(temporary):
            os.remove(temporary)


def write_h5ad(adata, path):
    memory = io.BytesIO()                                                  # a full disk makes h5py crash: it never meets one
    with h5py.File(memory, "w") as f:
        write_elem(f, "/", adata, dataset_kwargs={"compression": "gzip"})
    save(path, memory.getbuffer())


def some(names, n=8):
    names = list(map(str, names))
    return ", ".join(names[:n]) + (f" and {len(names) - n:,} more" if len(names) > n else "")


def stop(number, frame):
    """Signal handler. Python drops the exception of one that comes while a library's callback or destructor runs; STOPPED keeps it."""
    STOPPED.append(number)
    raise KeyboardInterrupt


def run_script(main):
    """Run a script's main(): wrong input is one line on stderr and exit code 2; Ctrl-C and SIGTERM one line and 130."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:                     # so a shell sets Ctrl-C for what runs in its background
            signal.signal(number, stop)
    warnings.simplefilter("ignore")                                        # libraries' asides to programmers; our own are printed
    try:
        main()
    except (InputError, OSError, MemoryError) as e:
        what = f"{e.filename or 'output'}: {e.strerror}; check the path, its rights and the space" if getattr(e, "strerror", "") else str(e)
        print("error: " + (" ".join(what.split()) or "out of memory; try fewer --genes"), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; start again", file=sys.stderr)
        sys.exit(130)
