"""A user's gene network."""

import numpy as np
import pandas as pd

from screens.command_line import InputError
from screens.files import read_csv


def read_edges(path):
    """Read a network from a CSV with the columns source, target and, if it has one, weight.

    Returns a table with these columns; without a weight, every edge has weight 1. InputError for a
    file that is none.
    """
    try:
        edges = read_csv(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"--grn {path}: not structural, coexpression or none, nor a readable CSV ({error})"
        ) from error
    if not {"source", "target"} <= set(edges):
        raise InputError(
            f"{path}: an edge list needs the columns source and target; it has {', '.join(edges)}"
        )
    if "weight" not in edges:
        edges["weight"] = 1.0
    if not len(edges) or edges[["source", "target"]].isna().any(axis=None):
        raise InputError(
            f"{path}: an edge list needs a source and a target in every row, and at least one row"
        )
    numeric = pd.api.types.is_numeric_dtype(edges["weight"])
    if not numeric or not np.isfinite(edges["weight"]).all():
        raise InputError(f"{path}: the column weight must be a finite number in every row")
    return edges
