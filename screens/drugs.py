"""What is known of drugs beside their names: tables of numbers, or their chemical structure.

Axes: D numbers for each drug.
"""

import numpy as np
import pandas as pd

from screens.command_line import InputError, check_plain, some
from screens.files import read_csv
from screens.labels import targets_of


def structures(screen, path):
    """{target: vector (D + 1,)}, centred and of one scale; empty if nothing is known.

    From the --drug-embedding or --gene-embedding table at `path` ("" for none), else the file's own
    uns["drug_embedding"], else its column SMILES. Every drug or gene in the table can be predicted
    later.
    The last number is 1, so that no vector is all zeros: that means "unknown". InputError for a
    table that cannot be used.
    """
    table = structure_table(screen, path)
    drugs = {drug for key in screen.groups for drug, _ in targets_of(key[0], screen.kind)}
    unique = table.index.is_unique
    if "SMILES" in table:
        table = fingerprints(table["SMILES"], screen.found, path)
    vectors = table.apply(pd.to_numeric, errors="coerce").to_numpy(np.float32)
    known = drugs & set(table.index)
    usable = vectors.size and known and unique and np.isfinite(vectors).all()
    if (len(vectors) or path) and not usable:
        raise InputError(
            f"{path or screen.source}: a {screen.kind} embedding needs one row of numbers, or one "
            f"SMILES, for each {screen.kind} by name ({some(sorted(drugs), 3)})"
        )
    if not len(vectors):
        return {}
    screen.found.append(
        f"structures of {len(known):,} of {len(drugs):,} {screen.kind}s, "
        f"and of {len(vectors) - len(known):,} others that can be asked for"
    )
    ones = np.ones(len(vectors), np.float32)
    vectors = np.column_stack([standardised(vectors), ones])
    return dict(zip(table.index, vectors, strict=True))


def structure_table(screen, path):
    """The table of structures, a row for each drug: numbers, or a column SMILES."""
    table = screen.uns.get("drug_embedding", {})
    if path:
        try:
            table = read_csv(path, index_col=0)
        except (OSError, ValueError) as error:
            raise InputError(
                f"--{screen.kind}-embedding {path}: not a readable CSV ({error})"
            ) from error
    elif isinstance(table, dict) and not table and "SMILES" in screen.obs:
        table = smiles_table(screen)
    if not isinstance(table, pd.DataFrame):  # a dict of vectors
        try:
            table = pd.DataFrame(table).T
        except (ValueError, TypeError):  # a number, a text, vectors of several lengths
            table = pd.DataFrame(index=["?"])
    table.index = table.index.astype(str)
    check_plain(table.index, path or screen.source)
    return table


def smiles_table(screen):
    """The SMILES of each drug in the file's own column: a table with a column SMILES."""
    rows = []
    pairs = zip(screen.perturbation, screen.obs["SMILES"].astype(str), strict=True)
    for perturbation, smiles in sorted(set(pairs)):
        for drug, _ in targets_of(perturbation, "drug"):
            rows.append((drug, smiles))
    table = pd.DataFrame(rows, columns=["drug", "SMILES"])
    return table.drop_duplicates("drug").set_index("drug")


def standardised(vectors):
    """Vectors (drugs, D) centred and divided by their spread and by the root of D.

    Fingerprints share one spread, so that rare bits do not outweigh the others.
    """
    bits = np.isin(vectors, (0, 1)).all()
    spread = vectors.std() if bits else vectors.std(0)
    centred = vectors - vectors.mean(0)
    return centred / np.where(spread > 0, spread, 1) / np.sqrt(vectors.shape[1])


def fingerprints(smiles, found, path=""):
    """Morgan fingerprints (radius 2, 1,024 bits) of the drugs whose SMILES RDKit understands.

    smiles: a Series by drug. Returns a table with a row for each; what was left out is told in
    `found`. Without RDKit the table is empty, or an InputError is raised if the user gave SMILES at
    `path`.
    """
    try:
        from rdkit import Chem, RDLogger
        from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator
    except ImportError as error:
        if path:
            raise InputError(f"{path}: SMILES need RDKit: pip install rdkit") from error
        found.append(
            "warning: SMILES are not read without RDKit (pip install rdkit): "
            "drugs are known by name only"
        )
        return pd.DataFrame()
    RDLogger.DisableLog("rdApp.*")
    molecules = {drug: Chem.MolFromSmiles(str(text)) for drug, text in smiles.items()}
    wrong = [drug for drug, molecule in molecules.items() if molecule is None]
    if wrong:
        found.append(
            f"warning: RDKit does not understand the SMILES of {some(wrong)}: known by name only"
        )
    morgan = GetMorganGenerator(radius=2, fpSize=1024)
    return pd.DataFrame(
        {
            drug: morgan.GetFingerprintAsNumPy(molecule)
            for drug, molecule in molecules.items()
            if molecule is not None
        }
    ).T
