"""From what a file holds to log1p expression."""

import numpy as np

from screens.command_line import InputError


def log1p_csr(X, path, counts=True, library=None):
    """log1p expression of a CSR matrix X (C, N) float32, in place, what was done, and the library.

    Integer X is counts, if it may be: they are scaled to a library (the median one, if none is
    given), then logged. Anything else is taken as log1p already, and the library is None. Raises
    InputError, naming the path, for what is neither.
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
        return X, "X is not integer: taken as log1p already, not normalised again", None
    which = "the run's library" if library else "the median library"
    library = normalise_counts(X, library)
    return X, f"X is counts: normalised to {which} ({library:,.0f}), then log1p", library


def refuse_unusable(X, low, high, path):
    """Raise InputError for a matrix whose values are no expression."""
    problem = None
    if not np.isfinite([low, high]).all():
        problem = "NaN or infinite values; remove or repair those cells"
    elif low < 0:
        problem = "negative values (scaled data?); give counts or log1p, or name a --layer"
    elif high > 1e9:  # -1 as an unsigned number, say
        problem = "values above a thousand million, no counts; repair them, or name a --layer"
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


def normalise_counts(X, library=None):
    """Scale every cell of CSR counts X to a library and take log1p, in place; returns the library.

    If none is given it is the median one. Cells without counts are left out of that.
    """
    total = np.asarray(X.sum(1)).ravel()
    if library is None:
        library = float(np.median(total[total > 0]))
    factor = (library / np.where(total > 0, total, 1)).astype(np.float32)
    lengths = np.diff(X.indptr)
    for rows in np.array_split(np.arange(len(total)), 1 + len(total) // 4096):
        part = X.data[X.indptr[rows[0]] : X.indptr[rows[-1] + 1]]
        np.log1p(part * np.repeat(factor[rows], lengths[rows]), out=part)
    return library
