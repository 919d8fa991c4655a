"""Small screens for the tests: built in memory, or written in the forms that users really have.

`write(name, folder)` writes one of FORMS as an h5ad with the real file's columns, labels, matrix
and `uns` keys. All cells are random. `Oracle` is a model of known answers. `Script` runs a script
in a process of its own.
"""

import importlib
import multiprocessing
import os
import runpy
import signal
import sys
import tempfile
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import torch
from scipy import sparse

import screens
from departures import Departures

SYMBOLS = [
    "KLF1",
    "BAK1",
    "STAT1",
    "TGFBR2",
    "ACTB",
    "GAPDH",
    "MALAT1",
    "HLA-A",
    "AHR",
    "FOXA3",
]


# ---- In memory -----------------------------------------------------------------------------------


def screen_with(X, perturbation, cell_type, genes=None, kind="gene"):
    """A Screen of cells X (C, N) with their labels, each (C,)."""
    X = sparse.csr_matrix(np.asarray(X, np.float32))
    if genes is None:
        genes = [f"g{i}" for i in range(X.shape[1])]
    return screens.Screen(
        X=X,
        genes=np.array(genes),
        var_names=np.array(genes),
        cells=np.array([f"c{i}" for i in range(X.shape[0])]),
        perturbation=np.array(perturbation),
        cell_type=np.array(cell_type),
        kind=kind,
        obs=pd.DataFrame(index=range(X.shape[0])),
    )


def screen_of(means, cells=40, noise=0.0, genes=None, seed=0):
    """A Screen whose every group, {(perturbation, cell type): mean (N,)}, lies around its mean.

    Each has as many `cells`; noise is their standard deviation. Nothing is below 0.
    """
    rng = np.random.default_rng(seed)
    blocks = []
    perturbation = []
    cell_type = []
    for key, mean in means.items():
        blocks.append(np.maximum(mean + noise * rng.normal(size=(cells, len(mean))), 0))
        perturbation += [key[0]] * cells
        cell_type += [key[1]] * cells
    return screen_with(np.concatenate(blocks), perturbation, cell_type, genes)


# ---- Files with a few columns --------------------------------------------------------------------


def write_labelled(folder, columns, symbols=SYMBOLS, counts=True, name="labelled"):
    """Write an h5ad of random cells with the given obs columns; returns its path.

    The values are counts, every cell with one or more, or their log1p.
    """
    obs = pd.DataFrame(columns)
    obs.index = [f"c{i}" for i in range(len(obs))]
    X = np.random.default_rng(0).poisson(3.0, (len(obs), len(symbols))).astype(np.float32)
    X[:, 0] += 1
    if not counts:
        X = np.log1p(1.37 * X)
    adata = anndata.AnnData(sparse.csr_matrix(X), obs, pd.DataFrame(index=symbols))
    path = str(folder / f"{name}.h5ad")
    adata.write_h5ad(path)
    return path


def rewrite(path, change):
    """Change the AnnData in a file by a function, and write it back."""
    adata = anndata.read_h5ad(path)
    change(adata)
    adata.write_h5ad(path)
    return path


# ---- The forms of real files ---------------------------------------------------------------------


def cells_of(labels, columns, column, logged, seed=0, symbols=SYMBOLS, ensembl=False):
    """An AnnData of 12 cells for each label, Poisson counts or their log1p.

    column: the name of the labels' column; columns: {name: values per label} of the others.
    ensembl: the index are Ensembl ids, and the symbols are in var["gene_name"].
    """
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame({column: labels, **columns})
    obs = obs.loc[obs.index.repeat(12)].reset_index(drop=True)
    counts = rng.poisson(3.0, (len(obs), len(symbols))).astype(np.float32)
    counts = sparse.csr_matrix(counts)
    X = counts
    if logged:
        X = screens.log1p_csr(counts.copy(), "")[0]
    var = pd.DataFrame(index=symbols)
    if ensembl:
        identifiers = [f"ENSG{i:011d}" for i in range(len(symbols))]
        var = pd.DataFrame({"gene_name": symbols}, identifiers)
    obs.index = [f"AAACCTGAGG{i:05d}-1" for i in range(len(obs))]
    text = [name for name in obs if obs[name].dtype == object]
    return anndata.AnnData(X, obs.astype({name: "category" for name in text}), var)


def counts_of(adata, seed=0):
    """The counts from which `cells_of` made its cells."""
    rng = np.random.default_rng(seed)
    return sparse.csr_matrix(rng.poisson(3.0, adata.shape).astype(np.float32))


def gears(path, conditions, cell_type, layers):
    """GEARS' perturb_processed.h5ad: Adamson is 68,603 x 5,060, Norman 91,205 x 5,045."""
    dose = ["1" if condition == "ctrl" else "1+1" for condition in conditions]
    names = [
        f"{cell_type}_{condition}_{its_dose}"
        for condition, its_dose in zip(conditions, dose, strict=True)
    ]
    columns = {
        "cell_type": cell_type,
        "dose_val": dose,
        "control": [int(condition == "ctrl") for condition in conditions],
        "condition_name": names,
    }
    adata = cells_of(conditions, columns, "condition", logged=True, ensembl=True)
    adata.obs.index.name = "cell_barcode"
    if layers:
        adata.layers["counts"] = counts_of(adata)
    perturbed = [name for name in names if "_ctrl_" not in name]
    top = np.array(adata.var_names[:4], dtype=object)
    for key in ("rank_genes_groups_cov_all", "top_non_dropout_de_20", "top_non_zero_de_20"):
        adata.uns[key] = {name: top for name in perturbed}
    for key in ("non_dropout_gene_idx", "non_zeros_gene_idx"):
        adata.uns[key] = {name: np.arange(4) for name in perturbed}
    adata.write_h5ad(path)


def adamson(path):
    """Adamson, as GEARS distributes it."""
    conditions = ["ctrl", "KLF1+ctrl", "BAK1+ctrl", "AHR+ctrl", "AMIGO3+ctrl"]
    gears(path, conditions, "K562(?)", layers=False)


def norman(path):
    """Norman, as GEARS distributes it: pairs, each in both orders, and singles in both as well."""
    conditions = [
        "ctrl",
        "KLF1+ctrl",
        "ctrl+BAK1",
        "AHR+KLF1",
        "KLF1+AHR",
        "AHR+ctrl",
        "FOXA3+ctrl",
        "RHOXF2BB+ctrl",
    ]
    gears(path, conditions, "A549", layers=True)


def triples(path):
    """Norman's form with a triple, as users of GEARS ask for."""
    conditions = [
        "ctrl",
        "KLF1+ctrl",
        "BAK1+ctrl",
        "AHR+ctrl",
        "KLF1+BAK1",
        "AHR+BAK1+KLF1",
    ]
    gears(path, conditions, "A549", layers=False)


def scperturb(path, labels, columns):
    """scPerturb: raw counts, symbols as index, the same columns of quality in every file."""
    adata = cells_of(labels, columns, "perturbation", logged=False)
    adata.obs = adata.obs.assign(
        tissue_type="cell_line",
        cancer=True,
        disease="leukemia",
        organism="human",
        ngenes=10,
        ncounts=np.asarray(adata.X.sum(1)).ravel(),
        percent_mito=0.0,
        percent_ribo=12.5,
    )
    identifiers = [f"ENSG{i:011d}" for i in range(adata.n_vars)]
    adata.var = adata.var.assign(ensembl_id=identifiers, ncounts=1.0, ncells=1)
    adata.write_h5ad(path)


def scperturb_genetic(path):
    """scPerturb's genetic screens: guides, pairs with `_`, labels that are missing."""
    labels = [
        "control",
        "KLF1",
        "KLF1_BAK1",
        "STAT1_2",
        "sgBAK1-1",
        np.nan,
        "STAT1_pDS12",
        "BAK1g2",
    ]
    columns = {
        "guide_id": [f"{label}__{label}" for label in labels],
        "read_count": 9,
        "UMI_count": 5,
        "coverage": 2.5,
        "gemgroup": 1,
        "good_coverage": True,
        "number_of_cells": 1,
        "cell_line": "K562",
        "perturbation_type": "CRISPR",
        "celltype": "lymphoblasts",
        "nperts": [0, 1, 2, 1, 1, 0, 1, 1],
    }
    scperturb(path, labels, columns)


def scperturb_drug(path):
    """scPerturb's drug screens: a name with `+`, doses in nM, two cell lines of one `celltype`."""
    labels = ["control", "(+)-JQ1", "(+)-JQ1", "Nutlin-3", "Nutlin-3"]
    product_names = ["Vehicle", "(+)-JQ1", "(+)-JQ1", "Nutlin-3", "Nutlin-3"]
    columns = {
        "cell_line": np.repeat(["A549", "K562"], 5),
        "dose_value": [0.0, 10.0, 1000.0, 10.0, 100.0] * 2,
        "dose_unit": "nM",
        "perturbation_type": "drug",
        "celltype": "alveolar basal epithelial cells",
        "product_name": product_names * 2,
        "replicate": "rep1",
        "time": 24.0,
        "target": "x",
        "pathway": "y",
        "nperts": [0, 1, 1, 1, 1] * 2,
    }
    scperturb(path, labels * 2, columns)


def sciplex_chemcpa(path):
    """sci-Plex3 as chemCPA distributes it.

    Three cell lines, controls with dose 1.0, SMILES, its own splits, DE genes in uns.
    """
    givinostat = "CCN(CC)Cc1ccc2cc(ccc2c1)COC(=O)Nc1ccc(cc1)C(=O)NO"
    drugs = pd.DataFrame(
        [
            ("control", 1.0, "CS(C)=O"),
            ("Givinostat", 0.1, givinostat),
            ("Givinostat", 1.0, givinostat),
            ("Belinostat", 0.1, "O=C(/C=C/c1cccc(c1)S(=O)(=O)Nc1ccccc1)NO"),
            ("Quisinostat", 0.1, "Cn1cc(CNCC2CCN(CC2)c2ncc(cn2)C(=O)NO)c2ccccc12"),
        ],
        columns=["name", "dose", "SMILES"],
    )
    types = np.repeat(["A549", "K562", "MCF7"], len(drugs))
    rows = pd.concat([drugs] * 3, ignore_index=True)
    is_control = rows["name"] == "control"
    drug_in_type = [f"{t}_{name}" for t, name in zip(types, rows["name"], strict=True)]
    keys = [f"{name}_{dose}" for name, dose in zip(drug_in_type, rows["dose"], strict=True)]
    columns = {
        "cell_type": types,
        "dose": rows["dose"] * 10000 * ~is_control,
        "dose_character": "100",
        "dose_pattern": "1",
        "g1s_score": 0.1,
        "g2m_score": 0.1,
        "pathway": "Epigenetics",
        "pathway_level_1": "x",
        "pathway_level_2": "x",
        "product_dose": "x",
        "product_name": rows["name"].replace("control", "Vehicle"),
        "proliferation_index": 1.0,
        "replicate": "rep1",
        "size_factor": 1.0,
        "target": "HDAC",
        "vehicle": is_control,
        "dose_val": rows["dose"],
        "cov_drug_dose_name": keys,
        "cov_drug": drug_in_type,
        "control": is_control.astype(int),
        "split": "train",
        "SMILES": rows["SMILES"],
        "split_ood_multi_task": "train",
        "split_ho_pathway": np.where(rows["name"] == "Quisinostat", "ood", "train"),
    }
    adata = cells_of(rows["name"], columns, "condition", logged=True)
    adata.layers["counts"] = counts_of(adata)
    for key in ("lincs_DEGs", "all_DEGs"):
        adata.uns[key] = {name: np.array(SYMBOLS[:4], dtype=object) for name in keys}
    adata.write_h5ad(path)


def sciplex_cellot(path):
    """CellOT's sci-Plex3 (4i has intensities for genes): a dense matrix, `drug`, `transport`."""
    columns = {
        "cell_type": "A549",
        "dose": [0.0, 10000.0, 10000.0],
        "transport": ["source", "target", "target"],
    }
    adata = cells_of(["control", "trametinib", "givinostat"], columns, "drug", logged=True)
    adata.X = adata.X.toarray()
    adata.write_h5ad(path)


KANG = ["CD4T", "CD14+Mono", "B", "CD8T", "NK", "FCGR3A+Mono", "Dendritic"]


def kang(path):
    """scGen's Kang PBMC, IFN-beta: seven cell types, two of them with + in the name."""
    columns = {
        "cell_type": np.repeat(KANG, 2),
        "n_counts": 2000.0,
        "n_genes": 600,
        "mt_frac": 0.0,
    }
    adata = cells_of(["control", "stimulated"] * 7, columns, "condition", logged=True)
    adata.write_h5ad(path)


def kang_2018(path):
    """The same as AnnData 0.6 wrote it.

    Records for obs and var, their categories in uns, and another mark of sparseness.
    """
    kang(f"{path}.new")
    adata = anndata.read_h5ad(f"{path}.new")
    os.remove(f"{path}.new")
    condition = adata.obs["condition"].cat
    cell_type = adata.obs["cell_type"].cat
    names = [name.encode() for name in adata.obs_names]
    columns = (names, condition.codes, cell_type.codes, adata.obs["n_counts"])
    kinds = [("index", "S30"), ("condition", "i1"), ("cell_type", "i1"), ("n_counts", "f8")]
    symbols = [(symbol.encode(),) for symbol in SYMBOLS]
    with h5py.File(path, "w") as file:
        X = file.create_group("X")
        X.attrs.update(h5sparse_format="csr", h5sparse_shape=adata.shape)
        for part in ("data", "indices", "indptr"):
            X[part] = getattr(adata.X, part)
        file["obs"] = np.array(list(zip(*columns, strict=True)), dtype=kinds)
        file["var"] = np.array(symbols, dtype=[("index", "S20")])
        file["uns/condition_categories"] = condition.categories.to_numpy(object)
        file["uns/cell_type_categories"] = cell_type.categories.to_numpy(object)


KANG_BY_PERTPY = ["CD4 T cells", "CD14+ Monocytes", "B cells", "NK cells", "Megakaryocytes"]


def kang_pertpy(path):
    """The same as pertpy distributes it: counts, `label`, and a patient's number in `replicate`."""
    columns = {
        "nCount_RNA": 2000.0,
        "nFeature_RNA": 600,
        "tsne1": 0.5,
        "tsne2": -0.5,
        "cluster": 5,
        "cell_type": np.repeat(KANG_BY_PERTPY, 2),
        "replicate": "patient_1016",
        "nCount_SCT": 1700.0,
        "nFeature_SCT": 600,
        "integrated_snn_res.0.4": "1",
        "seurat_clusters": "1",
    }
    adata = cells_of(["ctrl", "stim"] * 5, columns, "label", logged=False)
    adata.var["name"] = adata.var_names
    adata.write_h5ad(path)


FORMS = {
    "adamson": adamson,
    "norman": norman,
    "triples": triples,
    "scperturb_genetic": scperturb_genetic,
    "scperturb_drug": scperturb_drug,
    "sciplex_chemcpa": sciplex_chemcpa,
    "sciplex_cellot": sciplex_cellot,
    "kang": kang,
    "kang_2018": kang_2018,
    "kang_pertpy": kang_pertpy,
}


def write(name, folder):
    """Write one of FORMS into a folder (a pathlib.Path); returns its path as text."""
    path = str(folder / f"{name}.h5ad")
    FORMS[name](path)
    return path


# ---- Models --------------------------------------------------------------------------------------


class Oracle(Departures):
    """The model of Part I with known answers in place of both networks'. It notes what they see.

    endpoint and log_odds: numbers, or tensors that fit (B, N). asked: [(t, x, d, condition)].
    """

    def __init__(self, settings, n_genes, endpoint, log_odds):
        genes = [f"g{i}" for i in range(n_genes)]
        super().__init__(settings, genes, ["g0", "g1"], ["a", "b"])
        self.answers = endpoint, log_odds
        self.asked = []

    def predict(self, t, x, d, condition):
        """What is known of both ends."""
        self.asked.append((t, x, d, condition))
        return tuple(torch.as_tensor(answer).expand_as(x) for answer in self.answers)


# ---- Scripts, in processes of their own ----------------------------------------------------------

ROOT = Path(__file__).resolve().parents[1]
FORKS = multiprocessing.get_context("forkserver")  # a hundred processes, and torch is loaded once
DRAWING = ["report.scores", "report.paths", "report.training"]
LATE = ["evaluate", "toy_data", "ot", "torch._dynamo", *DRAWING]  # loaded when they are needed
FORKS.set_forkserver_preload(["train", "pytest", *LATE])


class Script:
    """`python ARGUMENTS` in a folder, started at once, with what it printed and how it ended.

    first: a function of a test file that the process calls before, to change something there.
    environment: variables for the process.
    """

    def __init__(self, folder, *arguments, first=None, **environment):
        self.files = [tempfile.NamedTemporaryFile("r") for _ in range(2)]  # noqa: SIM115
        names = [file.name for file in self.files]
        first = first and (first.__code__.co_filename, first.__name__)  # a file, for it to import
        task = (str(folder), list(map(str, arguments)), first, environment, names)
        multiprocessing.current_process()._config.pop("daemon", None)  # as workers of mutants are
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = f"{ROOT}:{ROOT}/tests"  # for the server of the forks
        self.process = FORKS.Process(target=run_as_script, args=task)
        self.process.start()
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before

    def ended(self, seconds=120):
        """Wait for its end: (exit code, what it printed, what it printed on stderr)."""
        self.process.join(seconds)
        self.process.kill()  # gone, or it hangs
        self.process.join()
        return self.process.exitcode, *[file.read() for file in self.files]


def run_as_script(folder, arguments, first, environment, names):
    """Of `Script`, in its process."""
    os.chdir(folder)
    os.environ.update(environment)
    for number, name in enumerate(names, start=1):
        os.dup2(os.open(name, os.O_WRONLY), number)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where tests run unattended
    torch.set_num_threads(1)
    if first is not None:
        file, name = first
        runpy.run_path(file)[name]()
    if arguments[0] == "-m":
        sys.argv = arguments[1:]
        runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = [str(ROOT / arguments[0]), *arguments[1:]]
        runpy.run_path(sys.argv[0], run_name="__main__")


def without_figures():
    """In the process of a Script: draw nothing, which takes longer than all else."""
    figures = {"training": "draw_loss", "scores": "draw_scores", "paths": "draw_paths"}
    for module, name in figures.items():
        setattr(importlib.import_module(f"report.{module}"), name, nothing)


def without_scores():
    """In the process of a Script: train and sample only."""
    without_figures()
    importlib.import_module("evaluate").evaluate_run = nothing


def nothing(*arguments, **options):
    """Do nothing, in the place of something else."""
