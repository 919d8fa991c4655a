"""h5ad <-> arrays: labels, normalisation, gene choice, split, and the `Screen` that the scripts pass around.

Axes: C cells, N genes. A *perturbation* is canonical text without a cell type: `control`, `KLF1`, `KLF1+TGFBR2`,
`Givinostat:0.1`; a *condition* is a perturbation in a cell type, `KLF1+TGFBR2@k562`. A *group* is a condition's cells.
"""
import os
import re
import sys
from dataclasses import dataclass, field, replace

import anndata
import numpy as np
import pandas as pd
from scipy import sparse

CONTROL = "control"
CONTROL_LABELS = {"control", "ctrl", "nontargeting", "nt", "negctrl", "vehicle", "dmso", "unperturbed", "untreated",
                  "unstimulated", "mock", "ctrl+ctrl"}
PERTURBATION_COLUMNS = ("condition", "perturbation", "drug", "treatment", "product_name", "gene", "target_gene")
CELL_TYPE_COLUMNS = ("cell_type", "celltype", "cell_line", "cell_label")
DOSE_COLUMNS = ("dose_val", "dose_value", "dose")
COLUMNS = {"perturbation_column": "column of the perturbation, where detection guesses wrong",   # read_screen's options
           "cell_type_column": "column of the cell type", "control": "label of the control cells",
           "layer": "layer to read in place of X", "split_column": "column whose values test or ood hold cells out"}


class InputError(Exception):
    """Something in the user's file or command: one line that names it and says what to do. Scripts exit with 2."""


@dataclass
class Screen:
    """Cells of a perturbation screen, in memory and sparse."""
    X: sparse.csr_matrix                       # (C, N) log1p expression
    genes: np.ndarray                          # (N,) symbols, the names that perturbations use
    var_names: np.ndarray                      # (N,) the file's own gene index
    cells: np.ndarray                          # (C,) the file's own cell names
    perturbation: np.ndarray                   # (C,) canonical
    cell_type: np.ndarray                      # (C,)
    label: np.ndarray                          # (C,) the file's own perturbation label
    kind: str                                  # "gene" or "drug"
    held_out: set = field(default_factory=set)  # {(perturbation, cell type)}
    found: list = field(default_factory=list)  # what was understood, one line each
    source: str = ""

    def __post_init__(self):
        self.cell_types = sorted(set(self.cell_type))
        by_label = pd.DataFrame({"p": self.perturbation, "t": self.cell_type}).groupby(["p", "t"], sort=True)
        self.groups = {key: np.sort(rows) for key, rows in by_label.indices.items()}      # (perturbation, type) -> rows

    def controls(self, cell_type):
        return self.groups[CONTROL, cell_type]

    def training_groups(self):
        """Every group that training may see, the controls among them."""
        return {key: rows for key, rows in self.groups.items() if key not in self.held_out}

    def dense(self, rows):
        """(len(rows), N) float32: the only way cells leave the sparse matrix."""
        return self.X[rows].toarray()


def targets_of(perturbation, kind):
    """[(target, dose)] of a canonical perturbation; none for the control. Genes have dose 1."""
    if perturbation == CONTROL:
        return []
    if kind == "gene":
        return [(gene, 1.0) for gene in perturbation.split("+")]
    drug, colon, dose = perturbation.rpartition(":")
    return [(drug, float(dose))] if re.fullmatch(r"[\d.]+(e[+-]?\d+)?", dose) and colon else [(perturbation, 1.0)]


def is_control(label):
    return re.sub(r"[-_ ]", "", str(label)).lower() in CONTROL_LABELS


# ---------------------------------------------------------------------------------------------- reading

def read_screen(path, perturbation_column=None, cell_type_column=None, control=None, layer=None, split_column=None):
    """An h5ad of any form that the README names as a Screen of all its genes, with only the file's own split, if it has one.

    Raises InputError for what cannot be understood. `split` and `choose_genes` come after.
    """
    adata = open_h5ad(path)
    found = [f"{path}: {adata.n_obs:,} cells x {adata.n_vars:,} genes"]
    if 0 in adata.shape:
        raise InputError(f"{path}: holds {adata.n_obs} cells and {adata.n_vars} genes")
    column, control = _perturbation_column(adata.obs, path, perturbation_column, control)
    cell_type, type_column = _cell_types(adata.obs, path, cell_type_column)
    keep = (adata.obs[column].notna() & pd.notna(cell_type)).to_numpy()
    if not keep.all():
        found.append(f"left out {(~keep).sum():,} cells without a label in '{column}' or '{type_column}'")
        adata, cell_type = adata[keep], cell_type[keep]
    label = adata.obs[column].astype(str).to_numpy()
    symbols = _symbols(adata.var, path)
    if layer and layer not in adata.layers:
        raise InputError(f"{path}: no layer '{layer}'; the layers are {_some(adata.layers) or 'none'}")
    X, how = log1p_csr(adata.layers[layer] if layer else adata.X, path)
    dose, dose_column = _doses(adata.obs, label, control)
    kind = _kind(adata.obs, column, label, dose, symbols)
    perturbation = _canonical(label, dose, kind, control, symbols)
    screen = Screen(X, symbols, adata.var_names.to_numpy(str), adata.obs_names.to_numpy(str), perturbation,
                    np.asarray(cell_type, str), label, kind, found=found, source=str(path))
    screen.held_out = _split_column(screen, adata.obs, split_column)
    without = [t for t in screen.cell_types if (CONTROL, t) not in screen.groups]
    if without:
        raise InputError(f"{path}: no control cells of cell type {_some(without)}: remove those cells, or check the "
                         f"columns '{column}' and '{type_column}'")
    found += [how, f"{len(set(perturbation)) - 1:,} {'drug' if kind == 'drug' else 'genetic'} perturbations from '{column}' "
              f"(control is '{control}')" + (f", dose from '{dose_column}'" if kind == "drug" and dose is not None else ""),
              f"cell types from '{type_column}': " + ", ".join(
                  f"{t} ({len(screen.controls(t)):,} controls)" for t in screen.cell_types)]
    return screen


def open_h5ad(path):
    """The AnnData of a file; InputError if it cannot be read."""
    if not os.path.isfile(path):
        raise InputError(f"{path}: {'is a directory, not an h5ad file' if os.path.isdir(path) else 'no such file'}")
    try:
        return anndata.read_h5ad(path)
    except PermissionError as e:
        raise InputError(f"{path}: permission denied") from e
    except Exception as e:                                                 # h5py and AnnData have no common error for a bad file
        reason = (str(e).strip() or type(e).__name__).split("\n")[0]
        raise InputError(f"{path}: cannot be read as an h5ad ({reason}); write it with AnnData's write_h5ad") from e


def _some(names, n=8):
    names = [str(x) for x in names]
    return ", ".join(names[:n]) + (f" and {len(names) - n} more" if len(names) > n else "")


def _check_column(obs, path, column):
    if column is not None and column not in obs:
        raise InputError(f"{path}: no column '{column}'; the columns are {_some(obs.columns, 30)}")


def _perturbation_column(obs, path, column, control):
    """(column, control label). Candidates are columns that hold a control label; they must agree on the controls."""
    _check_column(obs, path, column)
    names = [column] if column else [c for c in PERTURBATION_COLUMNS if c in obs]
    if not names:
        raise InputError(f"{path}: no perturbation column (looked for {', '.join(PERTURBATION_COLUMNS)}); the columns "
                         f"are {_some(obs.columns, 30)}; name one with --perturbation-column")
    found = {name: [x for x in obs[name].dropna().astype(str).unique() if (x == control if control else is_control(x))]
             for name in names}
    candidates = [(name, labels[0], (obs[name].astype(str) == labels[0]).to_numpy()) for name, labels in found.items() if labels]
    if not candidates:
        wanted = f"'{control}'" if control else "such as control, ctrl, non-targeting, DMSO"
        raise InputError(f"{path}: no control label ({wanted}) in {', '.join(map(repr, names))}, whose labels are "
                         f"{_some(sorted(obs[names[0]].dropna().astype(str).unique()))}; name it with --control")
    (first, label, is_first), *others = candidates
    for other, _, is_other in others:
        if not np.array_equal(is_first, is_other):
            raise InputError(f"{path}: columns '{first}' and '{other}' disagree on which cells are controls; choose one with "
                             "--perturbation-column")
    return first, label


def _cell_types(obs, path, column):
    """(cell type per cell, column name); one type when the file names none."""
    _check_column(obs, path, column)
    column = column or next((c for c in CELL_TYPE_COLUMNS if c in obs), None)
    if column is None:
        return np.full(len(obs), "cell", dtype=object), "no column: one type"
    return obs[column].astype(object).where(obs[column].notna(), None).to_numpy(), column


def _split_column(screen, obs, column):
    """The groups that a column of the file (`split` unless named) marks test or ood, every cell of them."""
    _check_column(obs, screen.source, column)
    column = column or "split"
    if column not in obs:
        return set()
    out = obs[column].astype(str).str.lower().isin(["test", "ood"]).to_numpy()
    held_out = {key for key, rows in screen.groups.items() if key[0] != CONTROL and out[rows].all()}
    if not held_out and column != "split":
        raise InputError(f"{screen.source}: column '{column}' marks no whole condition test or ood; use --test")
    return held_out


def _symbols(var, path):
    """Gene symbols; where two genes share one, the later keeps its index name, so that every name is unique."""
    if not var.index.is_unique:
        raise InputError(f"{path}: duplicate gene names ({_some(var.index[var.index.duplicated()].unique())}); make them "
                         "unique with adata.var_names_make_unique()")
    names = var["gene_name"].astype(str) if "gene_name" in var else pd.Series(var.index.astype(str))
    return np.where(names.duplicated().to_numpy(), var.index.astype(str), names.to_numpy()).astype(str)


def log1p_csr(X, path, counts=True):
    """(log1p expression as float32 CSR, what was done). Integer X is counts, if it may be: to the median library, then log1p."""
    X = sparse.csr_matrix(X, dtype=np.float32)
    X.sum_duplicates()
    X.eliminate_zeros()
    if not np.isfinite(X.data).all():
        raise InputError(f"{path}: X holds NaN or infinite values; remove or repair those cells")
    if (X.data < 0).any():
        raise InputError(f"{path}: X holds negative values (scaled data?); give counts or log1p, or name a --layer")
    if X.nnz == 0:
        raise InputError(f"{path}: every value of X is zero")
    if counts and (X.data == np.round(X.data)).all():
        total = np.asarray(X.sum(1)).ravel()
        scale = np.median(total[total > 0])
        X.data = np.log1p(X.data * np.repeat(scale / np.where(total > 0, total, 1), np.diff(X.indptr)).astype(np.float32))
        return X, f"X is counts: normalised to the median library ({scale:,.0f}), then log1p"
    return X, "X is not integer: taken as log1p already, not normalised again"


def _doses(obs, label, control):
    """(dose per cell or None, column). A dose column counts only if it is numeric and not the same for all treated cells."""
    for column in (c for c in DOSE_COLUMNS if c in obs):
        dose = pd.to_numeric(obs[column].astype(str), errors="coerce").to_numpy(float)
        treated = (label != control) & ~np.isnan(dose)
        if treated.sum() > 0.5 * (label != control).sum() and len(np.unique(dose[treated])) > 1:
            return dose, column
    return None, None


def _kind(obs, column, label, dose, symbols):
    """"gene" or "drug": by the file's own word, else a dose or a structure, else whether the labels are genes."""
    stated = obs["perturbation_type"].astype(str).str.lower() if "perturbation_type" in obs else pd.Series(dtype=str)
    if stated.str.contains("crispr|gene").any():
        return "gene"
    if stated.str.contains("drug|chem|compound").any() or dose is not None or "SMILES" in obs or column == "drug":
        return "drug"
    parts = {part for x in set(label) for part in re.split(r"[+_]", x)}
    return "gene" if any("+ctrl" in x or "ctrl+" in x for x in set(label)) or parts & set(symbols) else "drug"


def _canonical(label, dose, kind, control, symbols):
    """The canonical perturbation of each cell."""
    unique = np.unique(label)
    if kind == "gene":
        known = set(symbols), set(unique)
        names = {x: CONTROL if x == control or is_control(x) else _gene_names(x, *known) for x in unique}
        return np.array([names[x] for x in label])
    out = np.where([x == control or is_control(x) for x in label], CONTROL, label).astype(object)
    if dose is not None:
        dosed = (out != CONTROL) & ~np.isnan(dose)
        out[dosed] = [f"{drug}:{d:g}" for drug, d in zip(out[dosed], dose[dosed])]
    return out.astype(str)


def _gene_names(label, symbols, labels):
    """`X+ctrl` -> X; `B+A` and scPerturb's `B_A` -> A+B; a guide such as `KLF1_2` or `sgKLF1-1` -> KLF1, if that is known."""
    parts = [p for p in label.split("+") if not is_control(p)]
    if parts == [label] and label not in symbols:
        pieces = [p for p in label.split("_") if not is_control(p) and not re.fullmatch(r"(sg|g|guide)?\d+|p[A-Za-z]+\d+", p)]
        known = symbols | (labels - {label})
        pieces = [p if p in known else re.sub(r"^sg|-\d+$|g\d+$", "", p) for p in pieces]
        if pieces and all(p in known for p in pieces):
            parts = pieces
    return "+".join(sorted(set(parts))) or CONTROL


# ---------------------------------------------------------------------------------------------- split and gene choice

def split(screen, test=(), fraction=0.3, seed=0):
    """Hold out conditions, in place: `test` if given ('A' everywhere, 'A@type' there), else what the file's split column says
    (already in `held_out`), else the paper's random split.

    Genes: `fraction` of the perturbed genes that are measured, with every combination they are in; where none is measured,
    combinations of genes that are also seen alone. Drugs: each (drug, dose, cell type) with probability `fraction`, but never all
    of a drug. Controls always train. Raises InputError for a condition that does not exist.
    """
    conditions = [key for key in screen.groups if key[0] != CONTROL]
    rng = np.random.default_rng(seed)
    if not conditions:
        raise InputError(f"{screen.source}: every cell is a control; name the perturbation with --perturbation-column")
    if test:
        screen.held_out = set().union(*(resolve(screen, name) for name in test))
    elif not screen.held_out and screen.kind == "drug":
        screen.held_out = {key for key in conditions if rng.random() < fraction}
        drugs = pd.Series({key: targets_of(key[0], "drug")[0][0] for key in conditions})
        for mine in drugs.groupby(drugs).groups.values():                  # a drug without any training cells is unknown
            if set(mine) <= screen.held_out:
                screen.held_out.discard(mine[rng.integers(len(mine))])
    elif not screen.held_out:
        genes_of = {p: {gene for gene, _ in targets_of(p, screen.kind)} for p, _ in conditions}
        measured = sorted(set().union(*genes_of.values()) & set(screen.genes))
        chosen = set(rng.permutation(measured)[:round(fraction * len(measured))])
        held = {p for p in genes_of if genes_of[p] & chosen}
        if not held:
            pairs = sorted(p for p in genes_of if len(genes_of[p]) > 1 and genes_of[p] <= set(genes_of))
            held = set(rng.permutation(pairs)[:max(1, round(fraction * len(pairs)))])
        screen.held_out = {key for key in conditions if key[0] in held}
    if len(screen.held_out) == len(conditions):
        raise InputError(f"{screen.source}: every perturbation is held out; nothing is left to train on")
    screen.found.append(f"{len(conditions):,} conditions: {len(conditions) - len(screen.held_out):,} to train on, "
                        f"{len(screen.held_out):,} held out")


def resolve(screen, name):
    """The groups {(perturbation, cell type)} that a condition's name means: 'A@type', or 'A' in every cell type."""
    perturbation, at, cell_type = name.rpartition("@")
    if not at or cell_type not in screen.cell_types:
        perturbation, cell_type = name, None
    if screen.kind == "gene":
        perturbation = "+".join(sorted(perturbation.split("+")))
    found = {k for k in screen.groups if k[0] == perturbation and cell_type in (None, k[1]) and k[0] != CONTROL}
    if not found:
        near = [f"{p}@{t}" for p, t in screen.groups if set(re.split(r"[+:@]", name)) & set(re.split(r"[+:]", p))]
        raise InputError(f"{screen.source}: no cells of condition '{name}'" +
                         (f"; there are {_some(near)}" if near else f"; cell types are {_some(screen.cell_types)}"))
    return found


def seurat_dispersion(X):
    """Normalised dispersion of every gene (N,), Scanpy's `highly_variable_genes(flavor="seurat")` on log1p data X (C, N).

    log(variance / mean) of expm1(X), standardised within 20 bins of log1p(mean); Satija et al. 2015, Scanpy's conventions.
    """
    E, n = X.astype(np.float64).expm1(), X.shape[0]
    mean = np.asarray(E.mean(0)).ravel()
    variance = (np.asarray(E.multiply(E).mean(0)).ravel() - mean ** 2) * n / max(n - 1, 1)
    mean[mean == 0] = 1e-12
    dispersion = np.log(np.where(variance > 0, variance / mean, np.nan))
    grouped = pd.Series(dispersion).groupby(pd.Series(pd.cut(np.log1p(mean), bins=20)), observed=False)
    centre, spread = grouped.transform("mean"), grouped.transform("std")
    alone = spread.isna()                                                # a bin of one gene: its dispersion counts as 1
    spread[alone], centre[alone] = centre[alone], 0
    return ((dispersion - centre) / spread).to_numpy()


def choose_genes(screen, n):
    """A Screen of at most n genes: the perturbed ones that are measured, then the most variable of the training cells."""
    if n >= len(screen.genes):
        return screen
    targets = {g for p in set(screen.perturbation) for g, _ in targets_of(p, screen.kind)}
    measured = len(targets & set(screen.genes))
    if n < measured:
        raise InputError(f"--genes {n}: fewer than the {measured} perturbed genes that {screen.source} measures")
    rows = np.sort(np.concatenate(list(screen.training_groups().values())))
    dispersion = seurat_dispersion(screen.X[rows])
    rank = np.where(np.isin(screen.genes, list(targets)), np.inf, np.nan_to_num(dispersion, nan=-np.inf))
    columns = np.sort(np.argsort(-rank, kind="stable")[:n])
    screen.found.append(f"kept {len(columns):,} genes: the perturbed ones, then the most variable")
    return take_genes(screen, columns)


def take_genes(screen, columns):
    """The same cells with the genes at `columns`, in that order."""
    return replace(screen, X=screen.X[:, columns].tocsr(), genes=screen.genes[columns], var_names=screen.var_names[columns])


def prepare(path, test=(), genes=5000, fraction=0.3, seed=0, **columns):
    """Read, split and choose genes: the Screen that train, sample and evaluate share for the same arguments."""
    if genes < 2:
        raise InputError(f"--genes {genes}: no genes left; give at least 2")
    screen = read_screen(path, **columns)
    split(screen, test, fraction, seed)
    return choose_genes(screen, genes)


# ---------------------------------------------------------------------------------------------- what the model is told

def active_values(X, groups):
    """Every gene's non-zero values in every group, for draws "if expressed": (start, count) each (P, N), values (nnz,).

    `values[start[p, i] : start[p, i] + count[p, i]]` are gene i's in group p (rows groups[p] of X). A gene silent in a
    group borrows its values in all the groups together; one silent everywhere has count 0.
    """
    tables = [X[rows].tocsc() for rows in [*groups, np.concatenate(groups)]]
    count = np.stack([np.diff(t.indptr) for t in tables]).astype(np.int64)
    offset = np.cumsum([0] + [t.nnz for t in tables[:-1]])
    start = np.stack([t.indptr[:-1] + o for t, o in zip(tables, offset)]).astype(np.int64)
    silent = count == 0
    start, count = np.where(silent, start[-1], start), np.where(silent, count[-1], count)
    return start[:-1], count[:-1], np.concatenate([t.data for t in tables])


def make_folder(path):
    """The folder, made if need be."""
    try:
        os.makedirs(path, exist_ok=True)
    except OSError as e:
        raise InputError(f"{path}: cannot be made a folder ({e.strerror})") from e


def write_h5ad(adata, path):
    """Write under a temporary name, then rename: a reader never sees half a file."""
    temporary = f"{path}.tmp"
    try:
        adata.write_h5ad(temporary, compression="gzip")
        os.replace(temporary, path)
    except OSError as e:
        if os.path.exists(temporary):
            os.remove(temporary)
        raise InputError(f"{path}: cannot be written ({e.strerror or e})") from e


def run_script(main):
    """Run a script's main(): an InputError becomes one line on stderr and exit code 2."""
    try:
        main()
    except InputError as e:
        print("error: " + " ".join(str(e).split()), file=sys.stderr)
        sys.exit(2)
