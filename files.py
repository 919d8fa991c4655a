"""Files in and out: h5ad files are read in blocks of cells and kept in memory or, where they would not fit, on disk; what is written is
complete or not there at all; what cannot be done is one line.

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

IN_MEMORY = 2 ** 30 * float(os.environ.get("DEPARTURES_MEMORY", 0)) or 0.5 * os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")       # bytes
STOPPED = []                                                                # signals that asked to stop, for loops to look at
ONE_LINE = {"usage": argparse.SUPPRESS, "formatter_class": argparse.RawDescriptionHelpFormatter}     # of argparse's own errors


class InputError(Exception):
    """Something in the user's file or command: one line that names it and says what to do. Scripts exit with 2."""


def blocks(X, rows=None):                      # of a matrix (C, N), or of some of its rows: 4,096 cells at a time
    return (X[i:i + 4096] if rows is None else X[rows[i:i + 4096]] for i in range(0, max(1, X.shape[0] if rows is None else len(rows)), 4096))


def stacked(parts, most, width):
    """Blocks of rows as one CSR (rows, width) float32 without zeros, of `most` values at most. Larger than IN_MEMORY, it is mapped from a file
    without a name (in TMPDIR), whose pages come and go as the system sees fit. Room that is not used costs nothing, there or in memory."""
    mapped, ends, n = 8 * most > IN_MEMORY, [np.zeros(1, np.int64)], 0
    values, columns = (np.memmap(tempfile.TemporaryFile(), kind, "w+", shape=most) if mapped else np.empty(most, kind)
                       for kind in (np.float32, np.int32 if most < 2 ** 31 else np.int64))
    for part in parts:
        part = sparse.csr_matrix(part, dtype=np.float32)
        part.check_format(full_check=True)                                 # a corrupt one would crash SciPy
        part.sum_duplicates()
        part.eliminate_zeros()
        values[n:n + part.nnz], columns[n:n + part.nnz] = part.data, part.indices
        ends.append(part.indptr[1:] + np.int64(n))
        n += part.nnz
    return sparse.csr_matrix((values[:n], columns[:n], np.concatenate(ends).astype(columns.dtype)), (sum(map(len, ends)) - 1, width))


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
        what = f"{e.filename or 'output'}: {e.strerror}; check the path, its rights and the space" if isinstance(e, OSError) else str(e)
        print("error: " + (" ".join(what.split()) or "out of memory; try fewer --genes"), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped; start again", file=sys.stderr)
        sys.exit(130)
