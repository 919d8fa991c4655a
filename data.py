"""h5ad <-> arrays: labels, normalisation, gene choice, split, and the `Screen` that the scripts pass around.

    python data.py screen.h5ad            says what is understood of a file: what training would see

Axes: C cells, N genes. A *perturbation* is canonical text without a cell type: `control`, `KLF1`, `KLF1+TGFBR2`,
`Givinostat:0.1`; a *condition* is a perturbation in a cell type, `KLF1+TGFBR2@k562`. A *group* is a condition's cells.
"""
import argparse
import re
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from scipy import sparse

from files import ONE_LINE, InputError, blocks, open_h5ad, run_script, save, some, stacked, write_h5ad  # noqa: F401  (for the scripts)

CONTROL = "control"
CONTROL_LABELS = re.compile(r"((neg(ative)?)?(control|ctrl)\d*|nontargeting\d*|ntc?|vehicle|dmso|unperturbed|untreated|unstimulated|mock)+")
PERTURBATION_COLUMNS = ("condition", "perturbation", "drug", "treatment", "product_name", "gene", "target_gene")
CELL_TYPE_COLUMNS = ("cell_type", "cell_line", "celltype", "cell_label")
COLUMNS = {"perturbation_column": "column of the perturbation, where detection guesses wrong",   # options of prepare
           "cell_type_column": "column of the cell type", "control": "label of the control cells",
           "layer": "layer to read in place of X", "split_column": "column whose values test or ood hold cells out"}


@dataclass
class Screen:
    """Cells of a perturbation screen, sparse; in memory or, where they would not fit, mapped from disk (files.py)."""
    X: sparse.csr_matrix                       # (C, N) log1p expression
    genes: np.ndarray                          # (N,) symbols, the names that perturbations use
    var_names: np.ndarray                      # (N,) the file's own gene index
    cells: np.ndarray                          # (C,) the file's own cell names
    perturbation: np.ndarray                   # (C,) canonical
    cell_type: np.ndarray                      # (C,)
    kind: str                                  # "gene" or "drug"
    obs: pd.DataFrame                          # (C, …) the file's own columns
    uns: dict = field(default_factory=dict)    # of the file's uns, what open_h5ad read
    held_out: set = field(default_factory=set)  # {(perturbation, cell type)}
    found: list = field(default_factory=list)  # what was understood, one line each
    source: str = ""

    def __post_init__(self):
        self.cell_types = sorted(set(self.cell_type))
        by_label = pd.DataFrame({"p": self.perturbation, "t": self.cell_type}).groupby(["p", "t"], sort=True)
        self.groups = {key: np.sort(rows) for key, rows in by_label.indices.items()}      # (perturbation, type) -> rows

    def controls(self, cell_type):
        return self.groups[CONTROL, cell_type]

    def training_groups(self):                 # the controls among them
        return {key: rows for key, rows in self.groups.items() if key not in self.held_out}

    def dense(self, rows):                     # (len(rows), N) float32; for networks see sample.Cells
        return self.X[rows].toarray()


def targets_of(perturbation, kind):
    """[(target, dose)] of a canonical perturbation; none for the control. Genes have dose 1."""
    if perturbation == CONTROL or kind == "gene":
        return [(gene, 1.0) for gene in perturbation.split("+") if gene != CONTROL]
    drug, colon, dose = perturbation.rpartition(":")
    return [(drug, float(dose))] if re.fullmatch(r"\d*\.?\d+(e[+-]?\d{1,2})?", dose) and colon else [(perturbation, 1.0)]


def is_control(label):                         # `ctrl`, `Non-targeting`, GEARS' `ctrl+ctrl`, `NegCtrl0_NegCtrl1`, `DMSO` …
    return bool(CONTROL_LABELS.fullmatch(re.sub(r"[-_+ ]", "", str(label)).lower()))


# ---------------------------------------------------------------------------------------------- reading

def read_screen(path, perturbation_column=None, cell_type_column=None, control=None, layer=None):
    """An h5ad of any form that the README names as a Screen of all its genes. InputError for what cannot be understood."""
    adata = open_h5ad(path, layer)
    X, obs, found = adata.X, adata.obs, [f"{path}: {adata.n_obs:,} cells x {adata.n_vars:,} genes"]
    if adata.n_obs < 1 or adata.n_vars < 2:
        raise InputError(f"{path}: holds {adata.n_obs} cells and {adata.n_vars} genes; there is nothing to train on")
    for column in {perturbation_column, cell_type_column} - {None, *obs}:
        raise InputError(f"{path}: no column '{column}'; the columns are {some(obs.columns, 30)}")
    column, controls = _perturbation_column(obs, path, perturbation_column, control)
    type_column = cell_type_column or next((c for c in CELL_TYPE_COLUMNS if c in obs), None)
    label, cell_type = _text(obs[column]), _text(obs[type_column]) if type_column else np.full(len(obs), "cell", dtype=object)
    dose, dose_column = _doses(obs, label, controls, path)
    keep = pd.notna(label) & pd.notna(cell_type) & (np.isfinite(dose) | np.isin(label, controls) if dose_column else True)
    if not keep.all():
        found.append(f"left out {(~keep).sum():,} cells without a value in {some(filter(None, (column, type_column, dose_column)))}")
        X = stacked(blocks(X, np.flatnonzero(keep)), X.nnz, adata.n_vars)
        obs, label, cell_type, dose = obs[keep], label[keep], cell_type[keep], dose[keep] if dose_column else None
    symbols, (X, how) = _symbols(adata.var, path), log1p_csr(X, path)
    kind = _kind(obs, column, label, dose, symbols)
    perturbation = _canonical(label, dose, kind, controls, symbols)
    screen = Screen(X, symbols, adata.var_names.to_numpy(str), obs.index.to_numpy(str), perturbation, cell_type.astype(str),
                    kind, obs, dict(adata.uns), found=found, source=str(path))
    for t in screen.cell_types:
        if (CONTROL, t) not in screen.groups:
            raise InputError(f"{path}: no control cells of cell type '{t}': remove its cells, or check '{column}' and '{type_column}'")
    found += [how, f"{len(set(perturbation)) - 1:,} {'drug' if kind == 'drug' else 'genetic'} perturbations from '{column}' (control: "
              f"{some(controls)})" + f", dose from '{dose_column}'" * (kind == "drug" and dose is not None) + ", structures from uns" * ("drug_embedding" in adata.uns),
              f"cell types from {repr(type_column) if type_column else 'no column'}: "
              + ", ".join(f"{t} ({len(screen.controls(t)):,} controls)" for t in screen.cell_types)]
    return screen


def _text(column):
    """A column's labels as text without outer spaces, None where there is none: (C,) objects."""
    text = column.astype(object).where(column.notna(), "").astype(str).str.strip()
    return text.where(~text.isin(["", "nan", "NaN", "None", "<NA>"]), None).to_numpy(object)


def _perturbation_column(obs, path, column, control):
    """(column, its control labels). Candidates are columns that hold one; they must agree on which cells are controls."""
    names = [column] if column else [c for c in PERTURBATION_COLUMNS if c in obs]
    if not names:
        raise InputError(f"{path}: no perturbation column ({', '.join(PERTURBATION_COLUMNS)}); name yours with --perturbation-column from: "
                         f"{some(obs.columns, 30)}")
    labels = {name: _text(obs[name]) for name in names}
    found = {n: sorted(x for x in set(text) - {None} if (x == control if control else is_control(x))) for n, text in labels.items()}
    candidates = [name for name in names if found[name]]
    if not candidates:
        seen = sorted(set(labels[names[0]]) - {None})
        near = [x for x in seen if "+" not in x and re.search("ctrl|control|dmso|vehicle|target|untreat|unstim|mock|scramb|wild", x, re.I)]
        raise InputError(f"{path}: no control label ({repr(control) if control else 'such as control, ctrl, non-targeting, DMSO'}) in "
                         f"{', '.join(map(repr, names))}; " + (f"'{near[0]}' looks like one: --control '{near[0]}'" if near else
                         f"the labels are {some(seen) or 'all missing'}; name it with --control"))
    first = max(candidates, key=lambda name: len(set(labels[name])))       # the finest: `drug` rather than treated or control
    for other in candidates:
        if not np.array_equal(np.isin(labels[first], found[first]), np.isin(labels[other], found[other])):
            raise InputError(f"{path}: columns '{first}' and '{other}' disagree on the controls; choose one with --perturbation-column")
    return first, found[first]


def _symbols(var, path):
    """Gene symbols; where two genes share one, the later keeps its index name, so that every name is unique."""
    if not var.index.is_unique:
        raise InputError(f"{path}: duplicate gene names ({some(var.index[var.index.duplicated()].unique())}); use adata.var_names_make_unique()")
    names = var["gene_name"].astype(str) if "gene_name" in var else pd.Series(var.index.astype(str))
    return np.where(names.duplicated().to_numpy(), var.index.astype(str), names.to_numpy()).astype(str)


def log1p_csr(X, path, counts=True):
    """(log1p expression, what was done), in place in CSR X float32. Integer X is counts, if it may be: to the median library, then log1p."""
    low, high = (X.data.min(), X.data.max()) if X.nnz else (0, 0)
    wrong = ("NaN or infinite values; remove or repair those cells" if not np.isfinite([low, high]).all() else
             "negative values (scaled data?); give counts or log1p, or name a --layer" if low < 0 else
             "no cells" if not X.shape[0] else "nothing but zeros; name the --layer that holds the expression" if X.nnz == 0 else None)
    counts = counts and all((part == np.round(part)).all() for part in np.array_split(X.data, 1 + X.nnz // 2 ** 24))
    if wrong or not counts and high > 20:                                  # log1p of a million is 13.8
        raise InputError(f"{path}: X holds {wrong or 'values above 20, neither counts nor log1p; log them, or name a --layer'}")
    if counts:
        total = np.asarray(X.sum(1)).ravel()
        scale = np.median(total[total > 0])
        factor, lengths = (scale / np.where(total > 0, total, 1)).astype(np.float32), np.diff(X.indptr)
        for rows in np.array_split(np.arange(len(total)), 1 + len(total) // 4096):
            part = X.data[X.indptr[rows[0]]:X.indptr[rows[-1] + 1]]
            np.log1p(part * np.repeat(factor[rows], lengths[rows]), out=part)
        return X, f"X is counts: normalised to the median library ({scale:,.0f}), then log1p"
    return X, "X is not integer: taken as log1p already, not normalised again"


def _doses(obs, label, controls, path):
    """(dose per cell or None, column). A dose column counts only if it is numeric and not the same for all treated cells."""
    for column in (c for c in ("dose_val", "dose_value", "dose") if c in obs):
        dose, treated = pd.to_numeric(obs[column].astype(str), errors="coerce").to_numpy(float), ~np.isin(label, controls)
        dosed = treated & np.isfinite(dose)
        if dosed.sum() > 0.5 * treated.sum() and len(np.unique(dose[dosed])) > 1:
            if (dose[dosed] < 0).any():
                raise InputError(f"{path}: column '{column}' holds negative doses; give doses, not their logarithms")
            return dose, column
        if not dosed.any() and obs[column].astype(str).str.fullmatch(r"[\d.]+ *[a-zA-Zµ]+").any():
            raise InputError(f"{path}: column '{column}' holds doses with units; give numbers in one unit")
    return None, None


def _kind(obs, column, label, dose, symbols):
    """"gene" or "drug": by the file's own word, else a dose or a structure, else whether the labels are genes."""
    stated = " ".join(obs["perturbation_type"].astype(str).unique()).lower() if "perturbation_type" in obs else ""
    drugs = re.search("drug|chem|compound", stated) or dose is not None or "SMILES" in obs or column == "drug"
    genes = any(re.search(r"\+ctrl|ctrl\+", x) or set(re.split(r"[+_]", x)) & set(symbols) for x in set(label))
    return "gene" if re.search("crispr|gene", stated) or genes and not drugs else "drug"


def _canonical(label, dose, kind, controls, symbols):                      # of each cell: (C,) text
    unique, place = np.unique(label.astype(str), return_inverse=True)
    known = set(symbols), set(unique)
    names = np.array([CONTROL if x in controls else _gene_names(x, *known) if kind == "gene" else x
                      for x in unique], dtype=object)[place]
    if kind == "drug" and dose is not None:
        dosed = (names != CONTROL) & np.isfinite(dose)
        names[dosed] = [f"{drug}:{d:g}" for drug, d in zip(names[dosed], dose[dosed])]
    return names.astype(str)


def _gene_names(label, symbols, labels):
    """`X+ctrl` -> X; `B+A` and scPerturb's `B_A` -> A+B; a guide such as `KLF1_2` or `sgKLF1-1` -> KLF1, if that is known."""
    parts = [p for p in label.split("+") if not is_control(p)]
    if parts == [label] and label not in symbols:
        pieces = [p for p in label.split("_") if not is_control(p) and not re.fullmatch(r"(sg|g|guide)?\d+|p[A-Za-z]+\d+", p)]
        known = symbols | (labels - {label})
        pieces = [p if p in known else re.sub(r"^sg|-\d+$|(?<=[A-Z0-9])g\d+$", "", p) for p in pieces]
        parts = pieces if set(pieces) & known else parts                   # of a pair one may be unmeasured and never alone
    return "+".join(sorted(set(parts))) or CONTROL


# ---------------------------------------------------------------------------------------------- tables beside the cells

def structures(screen, path):
    """{drug: vector (D,)}, centred, on one scale: from a --drug-embedding table, else the file's own uns["drug_embedding"], else its SMILES.

    Whoever is in the table can be predicted later. Raises InputError for a table that cannot be used.
    """
    table = screen.uns.get("drug_embedding", {})
    if path:
        try:
            table = pd.read_csv(path, index_col=0)
        except (OSError, ValueError) as e:
            raise InputError(f"--drug-embedding {path}: not a readable CSV ({e})") from e
    elif isinstance(table, dict) and not table and "SMILES" in screen.obs:
        drug_of = {p: dict(targets_of(p, "drug")) for p in set(screen.perturbation)}
        table = pd.DataFrame([(drug, s) for p, s in set(zip(screen.perturbation, screen.obs["SMILES"].astype(str))) for drug in drug_of[p]],
                             columns=["drug", "SMILES"]).drop_duplicates("drug").set_index("drug")
    try:
        table = table if isinstance(table, pd.DataFrame) else pd.DataFrame(table).T            # a dict of vectors
    except (ValueError, TypeError):
        table = pd.DataFrame(index=["?"])                                  # a number, a text, vectors of several lengths
    table.index = table.index.astype(str)
    drugs = {t for p, _ in screen.groups for t, _ in targets_of(p, "drug")}
    unique = table.index.is_unique
    if "SMILES" in table:
        table = fingerprints(table["SMILES"], screen.found, path)
    V = table.apply(pd.to_numeric, errors="coerce").to_numpy(np.float32)
    if (len(V) or path) and not (V.size and drugs & set(table.index) and unique and np.isfinite(V).all()):
        raise InputError(f"{path or screen.source}: a drug embedding needs one row of numbers, or one SMILES, for each drug by name "
                              f"({some(sorted(drugs), 3)})")
    known = len(drugs & set(table.index))
    if len(V):
        screen.found.append(f"structures of {known:,} of {len(drugs):,} drugs, and of {len(V) - known:,} others that can be asked for")
    if not len(V):
        return {}
    spread = V.std() if np.isin(V, (0, 1)).all() else V.std(0)             # bits alike, so that rare ones do not shout
    V = (V - V.mean(0)) / np.where(spread > 0, spread, 1) / np.sqrt(V.shape[1])
    return dict(zip(table.index, np.column_stack([V, np.ones(len(V), np.float32)])))           # no row is all zeros: that is "unknown"


def fingerprints(smiles, found, path=""):
    """Morgan fingerprints (radius 2, 1,024 bits) of named SMILES, a row for each that RDKit understands. Without RDKit none, or an
    InputError if a table of SMILES was given."""
    try:
        from rdkit import Chem, RDLogger
        from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator
    except ImportError as e:
        if path:
            raise InputError(f"--drug-embedding {path}: SMILES need RDKit: pip install rdkit") from e
        found.append("warning: SMILES are not read without RDKit (pip install rdkit): drugs are known by name only")
        return pd.DataFrame()
    RDLogger.DisableLog("rdApp.*")
    molecules = {drug: Chem.MolFromSmiles(str(s)) for drug, s in smiles.items()}
    wrong = [drug for drug, molecule in molecules.items() if molecule is None]
    if wrong:
        found.append(f"warning: RDKit does not understand the SMILES of {some(wrong)}: known by name only")
    morgan = GetMorganGenerator(radius=2, fpSize=1024)
    return pd.DataFrame({drug: morgan.GetFingerprintAsNumPy(m) for drug, m in molecules.items() if m is not None}).T


# ---------------------------------------------------------------------------------------------- split and gene choice

def split(screen, test=(), fraction=0.3, seed=0, column=None):
    """Hold out conditions, in place: `test` if given, else those whose every cell the file's `column` (or `split`, if it has one) marks
    test or ood, else the paper's random split. Controls always train. Genes: `fraction` of the perturbed genes that are measured, with
    their combinations; where that is none, combinations of genes seen alone. Drugs: each (drug, dose, cell type) with probability
    `fraction`, but never all of a drug."""
    if column and column not in screen.obs:
        raise InputError(f"{screen.source}: no column '{column}'; the columns are {some(screen.obs.columns, 30)}")
    conditions, rng = [key for key in screen.groups if key[0] != CONTROL], np.random.default_rng(seed)
    if (column or "split") in screen.obs:
        out = screen.obs[column or "split"].astype(str).str.lower().isin(["test", "ood"]).to_numpy()
        screen.held_out = {key for key in conditions if out[screen.groups[key]].all()}
        if column and not screen.held_out:
            raise InputError(f"{screen.source}: column '{column}' marks no whole condition test or ood; use --test")
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
        if not chosen and fraction > 0:
            pairs = sorted(p for p in genes_of if len(genes_of[p]) > 1 and genes_of[p] <= set(genes_of))
            held = set(rng.permutation(pairs)[:max(1, round(fraction * len(pairs)))])
        screen.held_out = {key for key in conditions if key[0] in held}
    if len(screen.held_out) == len(conditions):
        raise InputError(f"{screen.source}: " + ("every perturbation is held out; nothing is left to train on" if conditions else
                                                 "every cell is a control; name the perturbation with --perturbation-column"))


def at_type(screen, name):
    """(canonical perturbation, cell type or None) that a condition's name means: 'A@type', or 'A' for every type; both may hold an @."""
    cell_type = next((t for t in sorted(screen.cell_types, key=len, reverse=True) if name.endswith(f"@{t}")), None)
    perturbation = (name[:-1 - len(cell_type)] if cell_type else name).strip()
    if screen.kind == "gene":
        return "+".join(sorted({g.strip() for g in perturbation.split("+") if not is_control(g)})) or CONTROL, cell_type
    (drug, dose), = targets_of(perturbation, "drug") or [(CONTROL, 1.0)]
    return perturbation if drug == perturbation else f"{drug}:{dose:g}", cell_type


def resolve(screen, name):
    """The groups {(perturbation, cell type)} that a condition's name means; a drug without a dose means each of its doses."""
    perturbation, cell_type = at_type(screen, name)
    found = {(p, t) for p, t in screen.groups if cell_type in (None, t) and p != CONTROL
             and (p == perturbation or screen.kind == "drug" and targets_of(p, "drug")[0][0] == perturbation)}
    if not found:
        near = [key for key in screen.groups if key[0] != CONTROL and set(re.split(r"[+:@]", name)) & set(re.split(r"[+:]", key[0]))]
        raise InputError(f"{screen.source}: no cells of condition '{name}'; there are {some(map('@'.join, near or screen.groups))}")
    return found


def seurat_dispersion(X, rows=None):
    """Normalised dispersion of every gene (N,), Scanpy's `highly_variable_genes(flavor="seurat")` on log1p data X (C, N) or some of its rows:
    log(variance / mean) of expm1(X), standardised within 20 bins of log1p(mean); Satija et al. 2015, Scanpy's conventions."""
    n = X.shape[0] if rows is None else len(rows)
    sums = sum(np.stack([np.asarray(E.power(k).sum(0)).ravel() for k in (1, 2)]) for E in (part.astype(np.float64).expm1() for part in blocks(X, rows)))
    mean, square = sums / n
    variance = (square - mean ** 2) * n / max(n - 1, 1)
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
    targets = {g for p in set(screen.perturbation) for g, _ in targets_of(p, screen.kind)} & set(screen.genes)
    if n < max(2, len(targets)):
        raise InputError(f"--genes {n}: no genes left beside the {len(targets)} perturbed ones that {screen.source} measures; give more")
    dispersion = seurat_dispersion(screen.X, np.sort(np.concatenate(list(screen.training_groups().values()))))
    rank = np.where(np.isin(screen.genes, list(targets)), np.inf, np.nan_to_num(dispersion, nan=-np.inf))
    screen.found.append(f"kept {n:,} genes: the perturbed ones, then the most variable")
    return take_genes(screen, np.sort(np.argsort(-rank, kind="stable")[:n]))


def take_genes(screen, columns):               # in the order of columns
    X = stacked((part[:, columns] for part in blocks(screen.X)), screen.X.nnz, len(columns))
    return replace(screen, X=X, genes=screen.genes[columns], var_names=screen.var_names[columns])


def prepare(path, test=(), genes=5000, fraction=0.3, seed=0, split_column=None, **columns):     # what every script starts from
    screen = read_screen(path, **columns)
    split(screen, test, fraction, seed, split_column)
    return choose_genes(screen, genes)


def describe(screen):                          # what was understood, in lines for a person; warnings last
    size = {"@".join(key): len(rows) for key, rows in screen.groups.items() if key[0] != CONTROL}
    held, targets = sorted(map("@".join, screen.held_out)), {t for p, _ in screen.groups for t, _ in targets_of(p, screen.kind)}
    unmeasured, small = sorted(targets - set(screen.genes)) * (screen.kind == "gene"), [c for c, n in size.items() if n < 10]
    lines = [f"{len(size):,} conditions of {min(size.values()):,} to {max(size.values()):,} cells: {len(size) - len(held):,} to train on, "
             f"{len(held):,} held out" + f" ({some(held, 4)})" * bool(held)]
    if unmeasured:
        lines.append(f"warning: {len(unmeasured):,} of {len(targets):,} perturbed genes are not measured ({some(unmeasured, 4)})")
    if small:
        lines.append(f"warning: {len(small):,} conditions have fewer than 10 cells ({some(small, 4)}); below 4 none is scored")
    return screen.found + lines


def main():
    parser = argparse.ArgumentParser(description=__doc__, **ONE_LINE)
    parser.add_argument("file", help="an h5ad")
    parser.add_argument("--test", action="append", default=[], help="condition to hold out, as for train.py")
    for name, text in COLUMNS.items():
        parser.add_argument("--" + name.replace("_", "-"), help=text)
    args = vars(parser.parse_args())
    print(*describe(prepare(args.pop("file"), **args)), sep="\n")


if __name__ == "__main__":
    run_script(main)
