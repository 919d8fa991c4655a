"""Vector arithmetic: what a treatment adds on average is added to every control.

In gene space, in principal components, or in any other space of codes: scGen is this with a
network's codes, and was published beside the two that need none (Lotfollahi et al. 2019).
Axes: n cells, N genes, d numbers in a cell's code.
"""

from functools import cache, partial

import numpy as np
from scipy.sparse.linalg import LinearOperator, svds

from rivals.shifts import same_perturbation, shifted
from screens import CONTROL

CELLS_AT_ONCE = 4096


def vector_arithmetic(screen, seed=0, device="cpu"):
    """Predict x0 + the mean of the treated cells - the mean of the controls, in gene space.

    Nothing is random, and nothing needs a device.
    """
    return arithmetic(screen, lambda cells: cells, lambda codes: codes)


def pca_arithmetic(screen, seed=0, device="cpu", components=100):
    """The same in principal components, as many as scGen's code has numbers; on the CPU."""
    return arithmetic(screen, *principal_components(screen, components, seed))


def arithmetic(screen, encode, decode):
    """Predict decode(encode(x0) + delta), with nothing below 0.

    encode: from cells (n, N) to codes (n, d); decode: back. delta (d,): the mean code of treated
    cells less that of the controls of their type, averaged over the types, each of which counts
    once. (The published code averages the controls of all types, so that a type that was never
    treated pulls delta towards itself.)

    Applies where this very perturbation, dose included, was trained on in some cell type. No mask
    keeps zeros at 0, as published; for that there is `zeros_kept`.
    """

    @cache
    def mean_code(key):
        return encoded(screen, screen.groups[key], encode).mean(0)

    def predict(perturbation, cell_type, x0):
        treated = same_perturbation(screen, perturbation)
        if not treated:
            return None
        delta = np.mean([mean_code(key) - mean_code((CONTROL, key[1])) for key in treated], 0)
        return as_cells(decode(encode(x0) + delta))

    predict.parameters = 0
    predict.zeros_kept = partial(zeros_kept, encode, decode)
    return predict


def as_cells(decoded):
    """What was decoded (n, N), not below 0, in the precision of cells."""
    return np.maximum(decoded, 0).astype(np.float32)


def zeros_kept(encode, decode, x0, cells):
    """Controls x0 (n, N), each moved by its predicted cell less its own decoded code (`shifted`).

    So what a code cannot hold, a cell's zeros above all, is that of the control.
    """
    return shifted(x0, cells - as_cells(decode(encode(x0))))


def encoded(screen, rows, encode):
    """The codes (n, d) of a screen's cells, of which only some are dense at a time."""
    blocks = np.array_split(rows, 1 + len(rows) // CELLS_AT_ONCE)
    return np.concatenate([encode(screen.dense(block)) for block in blocks])


def principal_components(screen, components, seed=0, cells=20_000):
    """encode and decode by the principal components of at most `cells` training cells.

    What these components do not hold is the mean of those cells in every decoded cell.
    """
    rng = np.random.default_rng(seed)
    rows = np.concatenate(list(screen.training_groups().values()))
    X = screen.X[np.sort(rng.permutation(rows)[:cells])].astype(np.float64)
    centre = np.asarray(X.mean(0)).ravel()
    centred = LinearOperator(  # a sparse matrix less its mean would be dense
        X.shape,
        matvec=lambda v: X @ v - centre @ v,
        rmatvec=lambda u: X.T @ u - centre * u.sum(),
    )
    k = min(components, min(X.shape) - 1)
    axes = svds(centred, k, v0=rng.normal(size=min(X.shape)), return_singular_vectors="vh")[2]
    return lambda cells: (cells - centre) @ axes.T, lambda codes: codes @ axes + centre
