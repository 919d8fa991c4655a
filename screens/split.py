"""Which conditions are held out, and which conditions a name means."""

import re

import numpy as np

from screens.command_line import InputError, some
from screens.labels import CONTROL, did_you_mean, is_control, targets_of

# Values of a split column that hold a cell out.
HELD_OUT_WORDS = ("test", "ood")


# ---- Holding out ---------------------------------------------------------------------------------


def split(screen, test=(), fraction=0.3, seed=0, column=None):
    """Hold out conditions of a screen, in place; controls always train.

    test: names of conditions. If none is given, the conditions whose every cell is marked test or
    ood by the file's `column` (or `split`, if it has one). If there are none either, the paper's
    random split: see draw_genes and draw_drugs. InputError if nothing that was asked for can be
    held out, or nothing is left to train on.
    """
    conditions = [key for key in screen.groups if key[0] != CONTROL]
    marked = marked_by_column(screen, conditions, column)
    if marked is not None:
        screen.held_out = marked
    if test:
        screen.held_out = set().union(*[resolve(screen, name) for name in test])
    elif screen.held_out:
        screen.found.append(f"column '{column or 'split'}' says which conditions are held out")
    else:
        draw = draw_drugs if screen.kind == "drug" else draw_genes
        screen.held_out = draw(screen, conditions, fraction, np.random.default_rng(seed))
    if len(screen.held_out) == len(conditions):
        what = "every perturbation is held out; nothing is left to train on"
        if not conditions:
            what = "every cell is a control; name the perturbation with --perturbation-column"
        raise InputError(f"{screen.source}: {what}")


def marked_by_column(screen, conditions, column):
    """The conditions that a column of the file holds out, with every cell; None without a column.

    column: the user's, or None for the file's own `split`.
    """
    name = column or "split"
    if name not in screen.obs:
        if column:
            raise InputError(
                f"{screen.source}: no column '{column}'; "
                f"the columns are {some(screen.obs.columns, 30)}"
            )
        return None
    out = screen.obs[name].astype(str).str.lower().isin(HELD_OUT_WORDS).to_numpy()
    marked = {key for key in conditions if out[screen.groups[key]].all()}
    if column and not marked:
        raise InputError(
            f"{screen.source}: column '{column}' marks no whole condition test or ood; use --test"
        )
    return marked


def draw_genes(screen, conditions, fraction, rng):
    """The paper's random split of a screen of genes: {(perturbation, cell type)} to hold out.

    A fraction of the perturbed genes that are measured, with every combination that has one of
    them. Where that is no gene at all, a fraction of the combinations of genes seen alone.
    """
    genes_of = {}
    for perturbation, _ in conditions:
        genes_of[perturbation] = {gene for gene, _ in targets_of(perturbation, screen.kind)}
    measured = sorted(set().union(*genes_of.values()) & set(screen.genes))
    n_genes = round(fraction * len(measured))
    chosen = set(rng.permutation(measured)[:n_genes])
    held_out = {perturbation for perturbation in genes_of if genes_of[perturbation] & chosen}
    if not chosen and fraction > 0:
        pairs = sorted(
            perturbation
            for perturbation, genes in genes_of.items()
            if len(genes) > 1 and genes <= set(genes_of)
        )
        n_pairs = max(1, round(fraction * len(pairs)))
        held_out = set(rng.permutation(pairs)[:n_pairs])
    return {key for key in conditions if key[0] in held_out}


def draw_drugs(screen, conditions, fraction, rng):
    """The paper's random split of a screen of drugs: {(perturbation, cell type)} to hold out.

    Each (drug, dose, cell type) with probability `fraction`, but never all of a drug: one without
    any training cells would be unknown.
    """
    held_out = {key for key in conditions if rng.random() < fraction}
    of_drug = {}
    for key in conditions:
        of_drug.setdefault(drug_of(key[0]), []).append(key)
    for drug in sorted(of_drug):
        mine = of_drug[drug]
        if held_out.issuperset(mine):
            held_out.discard(mine[rng.integers(len(mine))])
    return held_out


# ---- Names of conditions -------------------------------------------------------------------------


def drug_of(perturbation):
    """The drug of a canonical drug:dose."""
    return targets_of(perturbation, "drug")[0][0]


def at_type(screen, name):
    """The (canonical perturbation, cell type or None) that a condition's name means.

    `A@type` is A in that cell type, `A` is A in every type. Both may have an @ of their own.
    """
    cell_type = None
    perturbation = name
    for known in sorted(screen.cell_types, key=len, reverse=True):
        if name.endswith(f"@{known}"):
            cell_type = known
            perturbation = name[: -len(f"@{known}")]
            break
    perturbation = perturbation.strip()
    if screen.kind == "gene":
        genes = {part.strip() for part in perturbation.split("+") if not is_control(part)}
        return "+".join(sorted(genes)) or CONTROL, cell_type
    for drug, dose in targets_of(perturbation, "drug"):  # one, or none for the control
        if drug != perturbation:
            perturbation = f"{drug}:{dose:g}"
    return perturbation, cell_type


def resolve(screen, name):
    """The groups {(perturbation, cell type)} that a condition's name means.

    A drug without a dose means each of its doses. InputError if there are none.
    """
    perturbation, cell_type = at_type(screen, name)
    found = set()
    for key in screen.groups:
        if key[0] == CONTROL or cell_type not in (None, key[1]):
            continue
        any_dose = screen.kind == "drug" and drug_of(key[0]) == perturbation
        if key[0] == perturbation or any_dose:
            found.add(key)
    if not found:
        names = {text for key in screen.groups for text in (key[0], "@".join(key))}
        raise InputError(
            f"{screen.source}: no cells of condition '{name}'; there are "
            f"{some('@'.join(key) for key in similar(screen, name))}{did_you_mean(name, names)}"
        )
    return found


def similar(screen, name):
    """The groups whose perturbation has a part of a name; all groups if there are none."""
    parts = set(re.split(r"[+:@]", name))
    near = [
        key
        for key in screen.groups
        if key[0] != CONTROL and not parts.isdisjoint(re.split(r"[+:]", key[0]))
    ]
    return near or list(screen.groups)
