"""The cells of trained rivals, kept in a run's folder, so that nothing is trained twice."""

import hashlib
import json
import os
import time

import anndata
import numpy as np
import pandas as pd
from scipy import sparse
from tqdm import tqdm

import rivals
import screens

LAYER = "zeros_kept"  # of an h5ad: a rival's improved cells


def kept_cells(path, name, screen, starts, seed=0, device="cpu"):
    """{row of a table (`rivals.forms_of`): {condition: cells (n, N) CSR}} of a trained rival.

    And its {"seconds", "parameters"}. Read from the h5ad that keeps them, if it was made of the
    same screen and seed; else the rival is trained, and the h5ad written. name: in
    `rivals.TRAINED`; starts: {(perturbation, cell type): rows of the controls to start from}.
    Conditions to which the rival does not apply are left out.
    """
    mark = fingerprint(screen, seed)
    if os.path.exists(path):
        why = "of another screen, split, genes or seed"
        try:
            adata = screens.open_h5ad(path)
            about = adata.uns["departures"]
            if about["fingerprint"] == mark and adata.n_vars == len(screen.genes):
                both = cells_of(adata), cells_of(screens.open_h5ad(path, LAYER))
                return dict(zip(rivals.forms_of(name), both, strict=True)), costs_of(about)
        except (screens.InputError, AttributeError, IndexError, KeyError, TypeError, ValueError):
            why = "not as it was written"
        print(f"{path}: {why}; {name} is trained again")
    screens.check_folder(path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    begun = time.monotonic()
    predict = rivals.TRAINED[name](screen, seed=seed, device=device)
    forms = {form: {} for form in rivals.forms_of(name)}
    published, improved = forms.values()
    for key, rows in tqdm(starts.items(), name, leave=False, unit="condition"):
        x0 = screen.dense(rows)
        made = predict(*key, x0)
        if made is not None:
            published[key] = sparse.csr_matrix(made)
            improved[key] = sparse.csr_matrix(predict.zeros_kept(x0, made))
    about = {
        "rival": name,
        "seconds": time.monotonic() - begun,
        "parameters": predict.parameters,
        "seed": seed,
        "device": str(device),
        "fingerprint": mark,
    }
    write_cells(path, screen, published, improved, starts, about)
    return forms, costs_of(about)


def fingerprint(screen, seed):
    """A hash of all that a rival's cells depend on: screen, split, genes and seed."""
    hashed = hashlib.sha256()
    X = screen.X
    for part in (X.data, X.indices, X.indptr):
        for start in range(0, len(part), 2**24):  # of a mapped screen, a little at a time
            hashed.update(np.ascontiguousarray(part[start : start + 2**24]))
    for names in (screen.genes, screen.perturbation, screen.cell_type):
        hashed.update("\n".join(map(str, names)).encode())
    hashed.update(json.dumps([screen.fingerprint(), seed]).encode())
    return hashed.hexdigest()


def costs_of(about):
    """The part of an h5ad's uns that says what a rival costs."""
    return {"seconds": float(about["seconds"]), "parameters": int(about["parameters"])}


def cells_of(adata):
    """{(perturbation, cell type): cells (n, N) CSR} of an h5ad."""
    groups = adata.obs.groupby(["perturbation", "cell_type"], observed=True).indices
    return {key: adata.X[np.sort(rows)] for key, rows in groups.items()}


def write_cells(path, screen, cells, improved, starts, about):
    """Write a rival's cells as an h5ad with the columns of predicted.h5ad.

    improved: the cells of its improved form, which become a layer.
    """
    tables = [pd.DataFrame({"perturbation": [], "cell_type": [], "control_cell": []}, dtype=str)]
    for perturbation, cell_type in cells:
        names = screen.cells[starts[perturbation, cell_type]]
        columns = {"perturbation": perturbation, "cell_type": cell_type, "control_cell": names}
        tables.append(pd.DataFrame(columns))
    obs = pd.concat(tables, ignore_index=True).astype(str)
    obs["condition"] = obs["perturbation"] + "@" + obs["cell_type"]
    for column in ("perturbation", "cell_type", "condition"):
        obs[column] = pd.Categorical(obs[column])
    obs.index = [f"{about['rival']}_{i}" for i in range(len(obs))]
    var = pd.DataFrame({"gene_name": screen.genes}, screen.var_names)
    nothing = sparse.csr_matrix((0, len(screen.genes)), dtype=np.float32)
    X, layer = [sparse.vstack([nothing, *part.values()]).tocsr() for part in (cells, improved)]
    adata = anndata.AnnData(X, obs, var, {"departures": about}, layers={LAYER: layer})
    screens.write_h5ad(adata, path)
