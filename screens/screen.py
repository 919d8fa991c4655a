"""The `Screen` that the scripts pass around, and how it is made from a file."""

import os
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from scipy import sparse

from screens.command_line import InputError, some
from screens.files import blocks, open_h5ad, stacked
from screens.genes import choose_genes
from screens.labels import (
    CONTROL,
    PERTURBATION_COLUMNS,
    canonical_perturbations,
    check_columns,
    find_cell_type_column,
    find_doses,
    find_perturbation_column,
    gene_or_drug,
    gene_symbols,
    says_drug,
    targets_of,
    text_of,
)
from screens.limits import has_form
from screens.normalise import log1p_csr
from screens.public import downloaded
from screens.split import split
from screens.statistics import stated_directions

COLUMNS = {  # options of `prepare`
    "perturbation_column": "column of the perturbation, where detection guesses wrong",
    "cell_type_column": "column of the cell type",
    "control": "label of the control cells",
    "layer": "layer to read in place of X",
    "split_column": "column whose values test or ood hold cells out",
}
READING = {  # arguments of `prepare`, as a run keeps them, and the form of each
    "path": str,
    "name": str | None,
    "test": [str],
    "genes": int,
    "fraction": float | int,
    "seed": int,
    **dict.fromkeys(COLUMNS, str | None),
}


@dataclass
class Screen:
    """The cells of a perturbation screen, sparse.

    They are in memory or, where they would not fit, mapped from disk (files.py). Axes: C cells,
    N genes. A *group* is the cells of a condition, (perturbation, cell type), as row numbers.
    """

    X: sparse.csr_matrix  # (C, N) log1p expression
    genes: np.ndarray  # (N,) symbols, the names that perturbations use
    var_names: np.ndarray  # (N,) the file's own gene index
    cells: np.ndarray  # (C,) the file's own cell names
    perturbation: np.ndarray  # (C,) canonical
    cell_type: np.ndarray  # (C,)
    kind: str  # "gene" or "drug"
    obs: pd.DataFrame  # (C, …) the file's own columns
    uns: dict = field(default_factory=dict)  # what open_h5ad read of the file's uns
    held_out: set = field(default_factory=set)  # {(perturbation, cell type)}
    found: list = field(default_factory=list)  # what was understood of the file, in lines
    source: str = ""  # path of the file
    library: list | None = None  # [counts of a cell, of so many genes] it was scaled to, or None

    def __post_init__(self):
        self.cell_types = sorted(set(self.cell_type))
        labels = pd.DataFrame({"perturbation": self.perturbation, "cell_type": self.cell_type})
        indices = labels.groupby(["perturbation", "cell_type"], sort=True).indices
        # {(perturbation, cell type): row numbers}
        self.groups = {key: np.sort(rows) for key, rows in indices.items()}

    def controls(self, cell_type):
        """The row numbers of a cell type's control cells."""
        return self.groups[CONTROL, cell_type]

    def training_groups(self):
        """The groups that are not held out, the controls among them."""
        return {key: rows for key, rows in self.groups.items() if key not in self.held_out}

    def dense(self, rows):
        """Some cells as a dense array (len(rows), N) float32; for tensors see tensors.Cells."""
        return self.X[rows].toarray()

    def fingerprint(self):
        """[[perturbation, cell type, whether held out]] of all groups, for a checkpoint."""
        return [
            [str(perturbation), str(cell_type), (perturbation, cell_type) in self.held_out]
            for perturbation, cell_type in sorted(self.groups)
        ]


# ---- From a file to a screen ---------------------------------------------------------------------


def prepare(
    path, test=(), genes=5000, fraction=0.3, seed=0, split_column=None, name=None, **columns
):
    """Read a file, hold conditions out and choose genes: what every script starts from.

    test, fraction, seed, split_column: see `split`; genes: see `choose_genes`; name: of the public
    screen that is read where there is no such file (any more); columns: see `read_screen`.
    """
    if name and not os.path.exists(path):
        path = downloaded(name)
    screen = read_screen(path, **columns)
    split(screen, test, fraction, seed, split_column)
    return choose_genes(screen, genes)


def prepare_again(reading, run):
    """The screen of a run, read as the run says. InputError, with a remedy, where it has gone."""
    if not (reading.get("name") or os.path.exists(reading["path"])):
        raise InputError(
            f"{reading['path']}: no such file; if it has moved, train.py --resume {run} --data "
            "FILE tells the run where it is"
        )
    return prepare(**reading)


def read_screen(
    path, perturbation_column=None, cell_type_column=None, control=None, layer=None, library=None,
    unlabelled=False,
):  # fmt: skip
    """Read an h5ad of any form that docs/using.md names as a Screen of all its genes.

    library: what a cell's counts are scaled to; their median, if none is given. unlabelled: a file
    without any column of the perturbation is all controls. Raises InputError for what cannot be
    understood.
    """
    adata = open_h5ad(path, layer)
    found = [f"{path}: {adata.n_obs:,} cells x {adata.n_vars:,} genes"]
    if adata.n_obs < 1 or adata.n_vars < 2:
        raise InputError(
            f"{path}: holds {adata.n_obs} cells and {adata.n_vars} genes; there is nothing to "
            "train on"
        )
    X = adata.X
    obs = adata.obs
    if unlabelled and not {perturbation_column, *PERTURBATION_COLUMNS} & set(obs):
        found.append("no column of the perturbation: every cell is taken as a control")
        perturbation_column, control = "perturbation", CONTROL
        obs = obs.assign(perturbation=CONTROL)
    check_columns(obs, path, perturbation_column, cell_type_column)
    column, controls = find_perturbation_column(obs, path, perturbation_column, control)
    type_column = cell_type_column or find_cell_type_column(obs)
    label = text_of(obs, column, path)
    cell_type = np.full(len(obs), "cell", dtype=object)
    if type_column:
        cell_type = text_of(obs, type_column, path)
    dose, dose_column = find_doses(obs, label, controls, path)

    keep = complete_cells(label, cell_type, dose, controls)
    if not keep.all():
        columns = [name for name in (column, type_column, dose_column) if name]
        found.append(f"left out {(~keep).sum():,} cells without a value in {some(columns)}")
        X = stacked(blocks(X, np.flatnonzero(keep)), X.nnz, adata.n_vars)
        obs = obs[keep]
        label = label[keep]
        cell_type = cell_type[keep]
        dose = None if dose is None else dose[keep]

    symbols = gene_symbols(adata.var, path)
    X, how, library = log1p_csr(X, path, library=library)
    kind = gene_or_drug(obs, column, label, dose, symbols)
    perturbation = canonical_perturbations(label, dose, kind, controls, symbols)
    screen = Screen(
        X=X,
        genes=symbols,
        var_names=adata.var_names.to_numpy(str),
        cells=obs.index.to_numpy(str),
        perturbation=perturbation,
        cell_type=cell_type.astype(str),
        kind=kind,
        obs=obs,
        uns=dict(adata.uns),
        found=found,
        source=str(path),
        library=None if library is None else [library, adata.n_vars],
    )
    check_controls(screen, column, type_column)
    found.append(how)
    is_drug = says_drug(obs, column, dose)
    found.append(say_perturbations(screen, column, controls, dose_column, is_drug))
    found.append(say_cell_types(screen, type_column))
    return screen


def complete_cells(label, cell_type, dose, controls):
    """Which cells (C,) have a perturbation, a cell type and, unless they are controls, a dose."""
    complete = pd.notna(label) & pd.notna(cell_type)
    if dose is not None:
        complete = complete & (np.isfinite(dose) | np.isin(label, controls))
    return complete


def check_controls(screen, column, type_column):
    """Raise InputError for a cell type without control cells."""
    for name in screen.cell_types:
        if (CONTROL, name) not in screen.groups:
            raise InputError(
                f"{screen.source}: no control cells of cell type '{name}': remove its cells, or "
                f"check '{column}' and '{type_column}'"
            )


def check_reading(reading, path):
    """Raise InputError, naming a run's file, if a reading it keeps is no arguments of `prepare`."""
    readable = has_form(reading, READING) and "path" in reading
    if not (readable and 0 <= reading.get("fraction", 0) <= 1 and reading.get("seed", 0) >= 0):
        raise InputError(f"{path}: damaged, it does not say how its screen is read; train again")


# ---- What was understood, in words ---------------------------------------------------------------


def say_perturbations(screen, column, controls, dose_column, is_drug):
    """A line on the perturbations that were found. is_drug: whether the file calls them drugs."""
    count = len(set(screen.perturbation)) - 1
    kind = "genetic perturbation"
    if screen.kind == "drug":
        kind = "drug perturbation" if is_drug else "treatment"
    dosed = screen.kind == "drug" and dose_column
    if dosed:
        given = [one for name in set(screen.perturbation) for one in targets_of(name, "drug")]
        doses = Counter(drug for drug, _ in given)
        count = len(doses)
        kind = kind.split()[0]  # a drug, a treatment
    if count != 1:
        kind += "s"
    if dosed:
        ends = sorted({min(doses.values(), default=0), max(doses.values(), default=0)})
        kind += f" at {' to '.join(map(str, ends))} dose{'s' * (ends[-1] != 1)}"
    line = f"{count:,} {kind} from '{column}' (control: {some(controls)})"
    if dosed:
        line += f", dose from '{dose_column}'"
    if "drug_embedding" in screen.uns:
        line += ", structures from uns"
    return line


def say_cell_types(screen, column):
    """A line on the cell types that were found."""
    types = [f"{name} ({len(screen.controls(name)):,} controls)" for name in screen.cell_types]
    source = repr(column) if column else "no column"
    return f"cell types from {source}: {', '.join(types)}"


def describe(screen):
    """What was understood of a screen, in lines for a person; warnings last."""
    size = {"@".join(key): len(rows) for key, rows in screen.groups.items() if key[0] != CONTROL}
    held = sorted("@".join(key) for key in screen.held_out)
    line = (
        f"{len(size):,} conditions of {min(size.values()):,} to {max(size.values()):,} cells: "
        f"{len(size) - len(held):,} to train on, {len(held):,} held out"
    )
    if held:
        line += f" ({some(held, 4)})"
    lines = [line]
    stated = stated_directions(screen)
    for sign, word in (1.0, "rise"), (-1.0, "fall"):
        types = [cell_type for cell_type in stated if stated[cell_type] == sign]
        if types:
            lines.append(f"the file says that perturbed genes {word} in {some(types)}")
    targets = {name for key in screen.groups for name, _ in targets_of(key[0], screen.kind)}
    unmeasured = sorted(targets - set(screen.genes))
    if unmeasured and screen.kind == "gene":
        lines.append(
            f"warning: {len(unmeasured):,} of {len(targets):,} perturbed genes are not measured "
            f"({some(unmeasured, 4)})"
        )
    small = [condition for condition, cells in size.items() if cells < 10]
    if small:
        lines.append(
            f"warning: {len(small):,} conditions have fewer than 10 cells ({some(small, 4)}); "
            "below 4 none is scored"
        )
    return screen.found + lines


def same_screen(screen, content):
    """The screen, if it still has the genes and conditions that a run was trained on.

    content: of the run's checkpoint, `genes`, `kind` and `groups`.
    """
    genes = screen.genes.tolist() == content["genes"]
    kind = screen.kind == content["kind"]
    if genes and kind and screen.fingerprint() == content["groups"]:
        return screen
    raise InputError(
        f"{screen.source}: its genes or conditions are not those that the run was trained on: the "
        "file has changed since; restore it, or train again"
    )
