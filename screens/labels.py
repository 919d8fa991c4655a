"""What a file's columns mean: the perturbation of every cell, its dose, and which are controls.

A *perturbation* is canonical text without a cell type: `control`, `KLF1`, `KLF1+TGFBR2`,
`Givinostat:0.1`. A *condition* is a perturbation in a cell type, `KLF1+TGFBR2@k562`.
"""

import difflib
import math
import re
from functools import cache

import numpy as np
import pandas as pd

from screens.command_line import InputError, check_plain, some

CONTROL = "control"
CONTROL_LABELS = re.compile(
    r"((neg(ative)?)?(control|ctrl)\d*|nontargeting\d*|ntc?|vehicle|dmso|"
    r"unperturbed|untreated|unstimulated|mock)+"
)
LIKE_CONTROLS = re.compile(
    "ctrl|control|dmso|vehicle|target|untreat|unstim|mock|scramb|wild", re.IGNORECASE
)
PERTURBATION_COLUMNS = (
    "condition",
    "perturbation",
    "drug",
    "treatment",
    "product_name",
    "gene",
    "target_gene",
    "label",
)
CELL_TYPE_COLUMNS = ("cell_type", "cell_line", "celltype", "cell_label")
DOSE_COLUMNS = ("dose_val", "dose_value", "dose")
MISSING = ["", "nan", "NaN", "None", "<NA>"]


# ---- Canonical names -----------------------------------------------------------------------------


def targets_of(perturbation, kind):
    """[(target, dose)] of a canonical perturbation; none for the control. Genes have dose 1."""
    if perturbation == CONTROL or kind == "gene":
        return [(gene, 1.0) for gene in perturbation.split("+") if gene != CONTROL]
    drug, colon, dose = perturbation.rpartition(":")
    if colon and re.fullmatch(r"\d*\.?\d+(e[+-]?\d{1,2})?", dose):
        return [(drug, float(dose))]
    return [(perturbation, 1.0)]


@cache  # for every condition is compared with every other
def positive_doses(perturbation, kind):
    """{target: dose} of a perturbation, where a dose of 0 is 1e-12."""
    return {target: max(dose, 1e-12) for target, dose in targets_of(perturbation, kind)}


def dose_ratios(perturbation, other, kind):
    """{target: its dose in a perturbation over that in another} of the targets in common."""
    wanted, theirs = positive_doses(perturbation, kind), positive_doses(other, kind)
    return {target: wanted[target] / theirs[target] for target in wanted if target in theirs}


def unlikeness(condition, other, kind):
    """How unlike two conditions (perturbation, cell type) are: a tuple, the smaller the more alike.

    What counts first is how many targets they have in common; then how many the other one has
    besides, how far the doses are apart, and whether the cell types differ.
    """
    ratios = dose_ratios(condition[0], other[0], kind)
    alone = len(positive_doses(other[0], kind)) - len(ratios) if ratios else 0
    far = round(sum(abs(math.log(ratio)) for ratio in ratios.values()), 6)
    return -len(ratios), alone, far, condition[1] != other[1]


def is_control(label):
    """Whether a label means control: `ctrl`, `Non-targeting`, GEARS' `ctrl+ctrl`, `DMSO` …"""
    plain = re.sub(r"[-_+ ]", "", str(label)).lower()
    return bool(CONTROL_LABELS.fullmatch(plain))


def did_you_mean(name, names):
    """`; did you mean KLF1?` after what is said of a name that is not among the names, or nothing.

    Those that are most like it, whatever their case: three at most.
    """
    spelled = {str(known).lower(): str(known) for known in names}
    near = difflib.get_close_matches(str(name).lower(), spelled)
    if not near:
        return ""
    return f"; did you mean {' or '.join(spelled[word] for word in near)}?"


# ---- Columns -------------------------------------------------------------------------------------


def text_of(obs, name, path):
    """A column's labels as text without outer spaces, None where there is none: (C,) objects.

    InputError for labels that are not plain text.
    """
    column = obs[name]
    text = column.astype(object).where(column.notna(), "").astype(str).str.strip()
    check_plain(text.unique(), f"{path}: column '{name}'")
    return text.where(~text.isin(MISSING), None).to_numpy(object)


def check_columns(obs, path, *columns):
    """Raise InputError if a column that was asked for (None: not asked for) is not there."""
    for column in columns:
        if column is not None and column not in obs:
            raise InputError(
                f"{path}: no column '{column}'; the columns are {some(obs.columns, 30)}"
            )


def find_cell_type_column(obs):
    """The first column that holds cell types, or None."""
    return next((name for name in CELL_TYPE_COLUMNS if name in obs), None)


def find_perturbation_column(obs, path, column, control):
    """The column of the perturbation, and which of its labels are controls.

    Candidates are columns that hold a control label. They must agree on which cells are controls,
    and the one with the most labels is taken. column, control: what the user says, or None.
    """
    names = [column] if column else [name for name in PERTURBATION_COLUMNS if name in obs]
    if not names:
        raise InputError(
            f"{path}: no perturbation column ({', '.join(PERTURBATION_COLUMNS)}); name yours with "
            f"--perturbation-column from: {some(obs.columns, 30)}"
        )
    labels = {name: text_of(obs, name, path) for name in names}
    found = {name: control_labels(text, control) for name, text in labels.items()}
    candidates = [name for name in names if found[name]]
    if not candidates:
        raise InputError(no_control(path, names, labels[names[0]], control))
    # The finest: `drug` rather than treated or control.
    first = max(candidates, key=lambda name: len(set(labels[name])))
    for other in candidates:
        of_first = np.isin(labels[first], found[first])
        of_other = np.isin(labels[other], found[other])
        if not np.array_equal(of_first, of_other):
            raise InputError(
                f"{path}: columns '{first}' and '{other}' disagree on the controls; choose one "
                "with --perturbation-column"
            )
    return first, found[first]


def control_labels(labels, control):
    """Which labels mean control: the one that the user named, or those that read like it."""
    present = set(labels) - {None}
    if control:
        return sorted(label for label in present if label == control)
    return sorted(label for label in present if is_control(label))


def no_control(path, names, labels, control):
    """What to say where no label means control."""
    seen = sorted(set(labels) - {None})
    near = [label for label in seen if "+" not in label and LIKE_CONTROLS.search(label)]
    wanted = repr(control) if control else "such as control, ctrl, non-targeting, DMSO"
    if near:
        remedy = f"'{near[0]}' looks like one: --control '{near[0]}'"
    else:
        remedy = f"the labels are {some(seen) or 'all missing'}; name it with --control"
    columns = ", ".join(map(repr, names))
    return f"{path}: no control label ({wanted}) in {columns}; {remedy}"


def find_doses(obs, label, controls, path):
    """The dose of every cell (C,) and its column, or None and None.

    A dose column counts only if it is numeric and not the same for all treated cells.
    """
    treated = ~np.isin(label, controls)
    for column in [name for name in DOSE_COLUMNS if name in obs]:
        text = obs[column].astype(str)
        dose = pd.to_numeric(text, errors="coerce").to_numpy(float)
        dosed = treated & np.isfinite(dose)
        if dosed.sum() > 0.5 * treated.sum() and len(np.unique(dose[dosed])) > 1:
            if (dose[dosed] < 0).any():
                raise InputError(
                    f"{path}: column '{column}' holds negative doses; give doses, not their "
                    "logarithms"
                )
            return dose, column
        if not dosed.any() and text.str.fullmatch(r"[\d.]+ *[a-zA-Zµ]+").any():
            raise InputError(
                f"{path}: column '{column}' holds doses with units; give numbers in one unit"
            )
    return None, None


def gene_symbols(var, path):
    """The names (N,) of the genes that perturbations use: the column `gene_name`, or the index.

    Where two genes share a name the later one keeps its index name, so that every name is unique.
    InputError if the index itself has duplicates.
    """
    if not var.index.is_unique:
        repeated = some(var.index[var.index.duplicated()].unique())
        raise InputError(
            f"{path}: duplicate gene names ({repeated}); use adata.var_names_make_unique()"
        )
    index = var.index.astype(str)
    if "gene_name" not in var:
        return index.to_numpy().astype(str)
    names = var["gene_name"].astype(str)
    check_plain(names, f"{path}: column 'gene_name'")
    unique = np.where(names.duplicated().to_numpy(), index, names.to_numpy())
    return unique.astype(str)


# ---- From labels to canonical perturbations ------------------------------------------------------


def gene_or_drug(obs, column, label, dose, symbols):
    """Say "gene" or "drug": by the file's own word, else by a dose or structure, else by labels."""
    symbols = set(symbols)
    genes = any(is_gene_label(text, symbols) for text in set(label))
    if re.search("crispr|gene", stated_type(obs)) or (genes and not says_drug(obs, column, dose)):
        return "gene"
    return "drug"


def stated_type(obs):
    """What a column `perturbation_type` says, in small letters; empty without one."""
    if "perturbation_type" not in obs:
        return ""
    return " ".join(obs["perturbation_type"].astype(str).unique()).lower()


def says_drug(obs, column, dose):
    """Whether a file says that its perturbations are drugs, by a word, a dose or a structure.

    Else what is no gene may be a cytokine, or any other treatment.
    """
    named = column in ("drug", "product_name") or "SMILES" in obs
    return named or dose is not None or bool(re.search("drug|chem|compound", stated_type(obs)))


def is_gene_label(label, symbols):
    """Whether a label is in GEARS' form (`X+ctrl`) or names a measured gene."""
    if re.search(r"\+ctrl|ctrl\+", label):
        return True
    return not symbols.isdisjoint(re.split(r"[+_]", label))


def canonical_perturbations(label, dose, kind, controls, symbols):
    """The canonical perturbation of each cell, (C,) text."""
    unique, place = np.unique(label.astype(str), return_inverse=True)
    symbols = set(symbols)
    labels = set(unique)
    names = []
    for text in unique:
        if text in controls:
            names.append(CONTROL)
        elif kind == "gene":
            names.append(gene_names(text, symbols, labels))
        else:
            names.append(text)
    names = np.array(names, dtype=object)[place]
    if kind == "drug" and dose is not None:
        dosed = (names != CONTROL) & np.isfinite(dose)
        pairs = zip(names[dosed], dose[dosed], strict=True)
        names[dosed] = [f"{drug}:{amount:g}" for drug, amount in pairs]
    return names.astype(str)


def gene_names(label, symbols, labels):
    """The canonical name of a label of genes.

    `X+ctrl` is X; `B+A` and scPerturb's `B_A` are A+B; a guide such as `KLF1_2` or `sgKLF1-1` is
    KLF1, if that is known: a measured gene, or another label.
    """
    parts = [part for part in label.split("+") if not is_control(part)]
    if parts == [label] and label not in symbols:
        known = symbols | (labels - {label})
        pieces = [piece for piece in label.split("_") if is_gene_piece(piece)]
        pieces = [piece if piece in known else without_guide(piece) for piece in pieces]
        if set(pieces) & known:  # of a pair one may be unmeasured and never alone
            parts = pieces
    return "+".join(sorted(set(parts))) or CONTROL


def is_gene_piece(piece):
    """Whether a piece of a label names a gene, rather than a control, a guide or a plasmid."""
    return not is_control(piece) and not re.fullmatch(r"(sg|g|guide)?\d+|p[A-Za-z]+\d+", piece)


def without_guide(piece):
    """A guide's name without what tells it from other guides of the gene."""
    return re.sub(r"^sg|-\d+$|(?<=[A-Z0-9])g\d+$", "", piece)
