"""From what a file holds to log1p expression."""

import numpy as np

from screens.command_line import InputError


def log1p_csr(X, path, counts=True):
    """log1p expression of a CSR matrix X (C, N) float32, in place, and a line on what was done.

    Integer X is counts, if it may be: they are scaled to the median library, then logged. Anything
    else is taken as log1p already. Raises InputError, naming the path, for what is neither.
    """
    low = X.data.min() if X.nnz else 0
    high = X.data.max() if X.nnz else 0
    refuse_unusable(X, low, high, path)
    counts = counts and is_integer(X.data)
    if not counts and high > 20:  # log1p of a million is 13.8
        raise InputError(
            f"{path}: X holds values above 20, neither counts nor log1p; log them, or name a "
            "--layer"
        )
    if not counts:
        return X, "X is not integer: taken as log1p already, not normalised again"
    median = normalise_counts(X)
    return X, f"X is counts: normalised to the median library ({median:,.0f}), then log1p"


def refuse_unusable(X, low, high, path):
    """Raise InputError for a matrix whose values are no expression."""
    problem = None
    if not np.isfinite([low, high]).all():
        problem = "NaN or infinite values; remove or repair those cells"
    elif low < 0:
        problem = "negative values (scaled data?); give counts or log1p, or name a --layer"
    elif not X.shape[0]:
        problem = "no cells"
    elif X.nnz == 0:
        problem = "nothing but zeros; name the --layer that holds the expression"
    if problem:
        raise InputError(f"{path}: X holds {problem}")


def is_integer(values):
    """Whether all values are whole numbers, looked at in parts."""
    parts = np.array_split(values, 1 + len(values) // 2**24)
    return all((part == np.round(part)).all() for part in parts)


def normalise_counts(X):
    """Scale every cell of CSR counts X to the median library and take log1p, in place.

    Returns the median library. Cells without counts are left out of it.
    """
    total = np.asarray(X.sum(1)).ravel()
    median = np.median(total[total > 0])
    factor = (median / np.where(total > 0, total, 1)).astype(np.float32)
    lengths = np.diff(X.indptr)
    for rows in np.array_split(np.arange(len(total)), 1 + len(total) // 4096):
        part = X.data[X.indptr[rows[0]] : X.indptr[rows[-1] + 1]]
        np.log1p(part * np.repeat(factor[rows], lengths[rows]), out=part)
    return median
