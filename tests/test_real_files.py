"""Every file that the README promises to read, small, with the real one's columns, labels, matrix and `uns` keys; and Scanpy's numbers.

    python tests/test_real_files.py      prints what `python data.py` says of each
"""
import json
import os
import subprocess
import sys
import tempfile

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import data  # noqa: E402  (the path comes first)

SYMBOLS = ["KLF1", "BAK1", "STAT1", "TGFBR2", "ACTB", "GAPDH", "MALAT1", "HLA-A", "AHR", "FOXA3"]


def cells(labels, columns, logged, seed=0, symbols=SYMBOLS, ensembl=False):
    """An AnnData of 12 cells for each label (and cell type), Poisson counts or their log1p; columns: {name: values per label}."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"label": labels, **columns}).loc[lambda t: t.index.repeat(12)].reset_index(drop=True)
    counts = sparse.csr_matrix(rng.poisson(3.0, (len(table), len(symbols))).astype(np.float32))
    X = data.log1p_csr(counts.copy(), "")[0] if logged else counts
    var = pd.DataFrame({"gene_name": symbols}, [f"ENSG{i:011d}" for i in range(len(symbols))]) if ensembl else pd.DataFrame(index=symbols)
    table.index = [f"AAACCTGAGG{i:05d}-1" for i in range(len(table))]
    adata = anndata.AnnData(X, table.astype({c: "category" for c in table if table[c].dtype == object}), var)
    adata.layers["counts"] = counts
    return adata


def gears(path, conditions, cell_type, layers):
    """GEARS' perturb_processed.h5ad: 68,603 x 5,060 (Adamson), 91,205 x 5,045 (Norman)."""
    dose = ["1" if c == "ctrl" else "1+1" for c in conditions]
    names = [f"{cell_type}_{c}_{d}" for c, d in zip(conditions, dose)]
    adata = cells(conditions, {"cell_type": cell_type, "dose_val": dose, "control": [int(c == "ctrl") for c in conditions],
                               "condition_name": names}, logged=True, ensembl=True)
    adata.obs = adata.obs.rename(columns={"label": "condition"})
    adata.obs.index.name = "cell_barcode"
    if not layers:
        del adata.layers["counts"]
    genes = np.array(adata.var_names[:4], dtype=object)
    for key in ("rank_genes_groups_cov_all", "top_non_dropout_de_20", "top_non_zero_de_20"):
        adata.uns[key] = {name: genes for name in names if "_ctrl_" not in name}
    for key in ("non_dropout_gene_idx", "non_zeros_gene_idx"):
        adata.uns[key] = {name: np.arange(4) for name in names if "_ctrl_" not in name}
    adata.write_h5ad(path)


def adamson(path):
    gears(path, ["ctrl", "KLF1+ctrl", "BAK1+ctrl", "AHR+ctrl", "AMIGO3+ctrl"], "K562(?)", layers=False)


def norman(path):
    gears(path, ["ctrl", "KLF1+ctrl", "ctrl+BAK1", "AHR+KLF1", "KLF1+AHR", "AHR+ctrl", "FOXA3+ctrl", "RHOXF2BB+ctrl"], "A549", layers=True)


def triples(path):
    """Norman's form with a triple, as users of GEARS ask for."""
    gears(path, ["ctrl", "KLF1+ctrl", "BAK1+ctrl", "AHR+ctrl", "KLF1+BAK1", "AHR+BAK1+KLF1"], "A549", layers=False)


def scperturb(path, labels, columns):
    """scPerturb: raw counts, symbols as index, NaN labels, the same columns of quality in every file."""
    adata = cells(labels, columns, logged=False)
    adata.obs = adata.obs.rename(columns={"label": "perturbation"}).assign(
        tissue_type="cell_line", cancer=True, disease="leukemia", organism="human", ngenes=10, ncounts=np.asarray(adata.X.sum(1)).ravel(),
        percent_mito=0.0, percent_ribo=12.5)
    adata.var = adata.var.assign(ensembl_id=[f"ENSG{i:011d}" for i in range(adata.n_vars)], ncounts=1.0, ncells=1)
    del adata.layers["counts"]
    adata.write_h5ad(path)


def scperturb_genetic(path):
    labels = ["control", "KLF1", "KLF1_BAK1", "STAT1_2", "sgBAK1-1", np.nan, "STAT1_pDS12", "BAK1g2"]
    scperturb(path, labels, {"guide_id": [f"{x}__{x}" for x in labels], "read_count": 9, "UMI_count": 5, "coverage": 2.5, "gemgroup": 1,
                             "good_coverage": True, "number_of_cells": 1, "cell_line": "K562", "perturbation_type": "CRISPR",
                             "celltype": "lymphoblasts", "nperts": [0, 1, 2, 1, 1, 0, 1, 1]})


def scperturb_drug(path):
    labels = ["control", "(+)-JQ1", "(+)-JQ1", "Nutlin-3", "Nutlin-3"]
    scperturb(path, labels * 2, {"cell_line": np.repeat(["A549", "K562"], 5), "dose_value": [0.0, 10.0, 1000.0, 10.0, 100.0] * 2,
                                 "dose_unit": "nM", "perturbation_type": "drug", "celltype": "alveolar basal epithelial cells",
                                 "product_name": ["Vehicle", "(+)-JQ1", "(+)-JQ1", "Nutlin-3", "Nutlin-3"] * 2, "replicate": "rep1",
                                 "time": 24.0, "target": "x", "pathway": "y", "nperts": [0, 1, 1, 1, 1] * 2})


def sciplex_chemcpa(path):
    """sci-Plex3 as chemCPA distributes it: three lines, controls with dose 1.0, SMILES, its own splits, DE genes in uns."""
    drugs = [("control", 1.0, "CS(C)=O"), ("Givinostat", 0.1, "CCN(CC)Cc1ccc2cc(ccc2c1)COC(=O)Nc1ccc(cc1)C(=O)NO"),
             ("Givinostat", 1.0, "CCN(CC)Cc1ccc2cc(ccc2c1)COC(=O)Nc1ccc(cc1)C(=O)NO"), ("Belinostat", 0.1, "O=C(/C=C/c1cccc(c1)S(=O)(=O)Nc1ccccc1)NO"),
             ("Quisinostat", 0.1, "Cn1cc(CNCC2CCN(CC2)c2ncc(cn2)C(=O)NO)c2ccccc12")]
    rows = [(t, *drug) for t in ("A549", "K562", "MCF7") for drug in drugs]
    types, names, dose, smiles = zip(*rows)
    keys = [f"{t}_{n}_{d}" for t, n, d, _ in rows]
    adata = cells(names, {"cell_type": types, "dose": [d * 10000 * (n != "control") for n, d in zip(names, dose)], "dose_character": "100",
                          "dose_pattern": "1", "g1s_score": 0.1, "g2m_score": 0.1, "pathway": "Epigenetics", "pathway_level_1": "x",
                          "pathway_level_2": "x", "product_dose": "x", "product_name": [n.replace("control", "Vehicle") for n in names],
                          "proliferation_index": 1.0, "replicate": "rep1", "size_factor": 1.0, "target": "HDAC",
                          "vehicle": [n == "control" for n in names], "dose_val": dose, "cov_drug_dose_name": keys,
                          "cov_drug": [f"{t}_{n}" for t, n in zip(types, names)], "control": [int(n == "control") for n in names],
                          "split": "train", "SMILES": smiles, "split_ood_multi_task": "train",
                          "split_ho_pathway": ["ood" if n == "Quisinostat" else "train" for n in names]}, logged=True)
    adata.obs = adata.obs.rename(columns={"label": "condition"})
    adata.uns.update({key: {k: np.array(SYMBOLS[:4], dtype=object) for k in keys} for key in ("lincs_DEGs", "all_DEGs")})
    adata.write_h5ad(path)


def sciplex_cellot(path):
    """CellOT's sci-Plex3 (and, with intensities for genes, 4i): a dense matrix, `drug` and `transport`."""
    drugs = ["control", "trametinib", "givinostat"]
    adata = cells(drugs, {"cell_type": "A549", "dose": [0.0, 10000.0, 10000.0], "transport": ["source", "target", "target"]}, logged=True)
    adata.obs = adata.obs.rename(columns={"label": "drug"})
    adata.X = adata.X.toarray()
    del adata.layers["counts"]
    adata.write_h5ad(path)


KANG = ["CD4T", "CD14+Mono", "B", "CD8T", "NK", "FCGR3A+Mono", "Dendritic"]


def kang(path):
    """scGen's Kang PBMC, IFN-beta: seven cell types, two of them with + in the name."""
    adata = cells(["control", "stimulated"] * 7, {"cell_type": np.repeat(KANG, 2), "n_counts": 2000.0, "n_genes": 600, "mt_frac": 0.0}, logged=True)
    adata.obs = adata.obs.rename(columns={"label": "condition"})
    del adata.layers["counts"]
    adata.write_h5ad(path)


def kang_2018(path):
    """The same as AnnData 0.6 wrote it: records for obs and var, their categories in uns, and another mark of sparseness."""
    kang(f"{path}.new")
    adata = anndata.read_h5ad(f"{path}.new")
    os.remove(f"{path}.new")
    with h5py.File(path, "w") as f:
        group = f.create_group("X")
        group.attrs.update(h5sparse_format="csr", h5sparse_shape=adata.shape)
        for part in ("data", "indices", "indptr"):
            group[part] = getattr(adata.X, part)
        codes = zip(adata.obs_names, adata.obs["condition"].cat.codes, adata.obs["cell_type"].cat.codes, adata.obs["n_counts"])
        f["obs"] = np.array([(name.encode(), *rest) for name, *rest in codes],
                            dtype=[("index", "S30"), ("condition", "i1"), ("cell_type", "i1"), ("n_counts", "f8")])
        f["var"] = np.array([(s.encode(),) for s in SYMBOLS], dtype=[("index", "S20")])
        for c in ("condition", "cell_type"):
            f[f"uns/{c}_categories"] = adata.obs[c].cat.categories.to_numpy(object)


FORMS = {  # file: (what wrote it, kind, conditions that must be there, how many in all)
    "adamson": (adamson, "gene", {("KLF1", "K562(?)"), ("AMIGO3", "K562(?)")}, 4),
    "norman": (norman, "gene", {("KLF1", "A549"), ("BAK1", "A549"), ("AHR+KLF1", "A549")}, 6),
    "triples": (triples, "gene", {("BAK1+KLF1", "A549"), ("AHR+BAK1+KLF1", "A549")}, 5),
    "scperturb_genetic": (scperturb_genetic, "gene", {("KLF1", "K562"), ("BAK1+KLF1", "K562"), ("STAT1", "K562"), ("BAK1", "K562")}, 4),
    "scperturb_drug": (scperturb_drug, "drug", {("(+)-JQ1:10", "A549"), ("Nutlin-3:100", "K562")}, 8),
    "sciplex_chemcpa": (sciplex_chemcpa, "drug", {("Givinostat:0.1", "MCF7"), ("Givinostat:1", "K562")}, 12),
    "sciplex_cellot": (sciplex_cellot, "drug", {("trametinib", "A549")}, 2),
    "kang": (kang, "drug", {("stimulated", t) for t in KANG}, 7),
    "kang_2018": (kang_2018, "drug", {("stimulated", t) for t in KANG}, 7)}


def write(name, folder):
    path = str(folder / f"{name}.h5ad")
    FORMS[name][0](path)
    return path


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_understood_without_a_flag(name, tmp_path):
    """The conditions, the kind, the genes' symbols, the controls; log1p is left alone and counts are logged once."""
    writer, kind, conditions, n = FORMS[name]
    path = write(name, tmp_path)
    screen = data.read_screen(path)
    groups = {k for k in screen.groups if k[0] != "control"}
    assert screen.kind == kind and conditions <= groups and len(groups) == n
    assert list(screen.genes) == SYMBOLS and all(len(screen.controls(t)) >= 12 for t in screen.cell_types)
    X = anndata.read_h5ad(path).X
    X = X[:screen.X.shape[0]]
    if name.startswith("scperturb"):
        assert (X.data == np.round(X.data)).all() and not (screen.X.data == np.round(screen.X.data)).all()
    else:
        assert np.allclose(screen.X.toarray(), X if isinstance(X, np.ndarray) else X.toarray())


def test_the_doses_of_each_form(tmp_path):
    doses = {name: {d for p, _ in data.read_screen(write(name, tmp_path)).groups for _, d in data.targets_of(p, "drug")}
             for name in ("scperturb_drug", "sciplex_chemcpa", "sciplex_cellot")}
    assert doses == {"scperturb_drug": {10.0, 100.0, 1000.0}, "sciplex_chemcpa": {0.1, 1.0}, "sciplex_cellot": {1.0}}


def test_a_files_own_split_column_can_be_named(tmp_path):
    """chemCPA's whole-pathway split; its `split` column marks nothing here and so the paper's split is drawn."""
    path = write("sciplex_chemcpa", tmp_path)
    held_out = data.prepare(path, split_column="split_ho_pathway").held_out
    assert held_out == {("Quisinostat:0.1", t) for t in ("A549", "K562", "MCF7")}
    assert data.prepare(path).held_out not in (held_out, set())


def test_a_drugs_name_alone_means_all_its_doses(tmp_path):
    screen = data.read_screen(write("sciplex_chemcpa", tmp_path))
    assert data.resolve(screen, "Givinostat@K562") == {("Givinostat:0.1", "K562"), ("Givinostat:1", "K562")}
    assert len(data.resolve(screen, "Givinostat")) == 6 and len(data.resolve(screen, "Givinostat:1")) == 3
    assert data.resolve(data.read_screen(write("scperturb_drug", tmp_path)), "(+)-JQ1:10@A549") == {("(+)-JQ1:10", "A549")}


def test_a_cell_type_with_a_plus_and_a_triple_can_be_named(tmp_path):
    assert data.resolve(data.read_screen(write("kang", tmp_path)), "stimulated@CD14+Mono") == {("stimulated", "CD14+Mono")}
    triple = data.read_screen(write("triples", tmp_path))
    assert data.resolve(triple, "KLF1+AHR+BAK1@A549") == data.resolve(triple, "BAK1+KLF1+AHR") == {("AHR+BAK1+KLF1", "A549")}


@pytest.mark.parametrize("form", ["int64", "dense", "dense int64", "csc", "layer"])
def test_the_matrix_may_be_stored_in_any_way(form, tmp_path):
    """The same counts as int64, dense, by columns or in a layer are the same screen."""
    path = write("scperturb_genetic", tmp_path)
    expected, adata = data.read_screen(path), anndata.read_h5ad(path)
    if "int64" in form:
        adata.X = adata.X.astype(np.int64)
    if "dense" in form:
        adata.X = adata.X.toarray()
    if form == "csc":
        adata.X = adata.X.tocsc()
    if form == "layer":
        adata.layers["raw"], adata.X = adata.X.copy(), adata.X * 0
    adata.write_h5ad(tmp_path / "other.h5ad")
    got = data.read_screen(str(tmp_path / "other.h5ad"), layer="raw" if form == "layer" else None)
    assert (got.X != expected.X).nnz == 0 and got.groups.keys() == expected.groups.keys()


def test_a_dense_matrix_is_read_to_its_end(tmp_path):
    """In blocks of rows, of which there are more than one here."""
    X = np.random.default_rng(0).poisson(1.0, (5000, 3)).astype(np.float32)
    anndata.AnnData(X, pd.DataFrame({"condition": ["ctrl", "a"] * 2500}, [f"c{i}" for i in range(5000)])).write_h5ad(tmp_path / "dense.h5ad")
    assert np.array_equal(data.open_h5ad(str(tmp_path / "dense.h5ad")).X.toarray(), X)


def labelled(folder, columns, symbols=SYMBOLS):
    """A screen of one count table with the given obs columns."""
    obs = pd.DataFrame(columns)
    X = np.random.default_rng(0).poisson(3.0, (len(obs), len(symbols))).astype(np.float32)
    obs.index = [f"c{i}" for i in range(len(obs))]
    anndata.AnnData(X, obs, pd.DataFrame(index=symbols)).write_h5ad(folder / "l.h5ad")
    return str(folder / "l.h5ad")


def names(screen):
    return {p for p, _ in screen.groups}


def test_a_cell_without_a_dose_is_left_out_and_doses_with_units_are_refused(tmp_path):
    drugs = ["control", "A", "A", "A"] * 6
    screen = data.read_screen(labelled(tmp_path, {"condition": drugs, "dose": [1.0, 10.0, 100.0, np.nan] * 6}))
    assert names(screen) == {"control", "A:10", "A:100"} and len(screen.cells) == 18
    assert (screen.X.sum(1) > 0).all() and len(screen.obs) == 18 and set(screen.obs["condition"][screen.perturbation == "control"]) == {"control"}
    with pytest.raises(data.InputError, match="doses with units"):
        data.read_screen(labelled(tmp_path, {"condition": drugs, "dose": ["0 nM", "10 nM", "100 nM", "10 nM"] * 6}))


def test_a_condition_is_held_out_by_the_file_if_all_its_cells_are(tmp_path):
    path = labelled(tmp_path, {"condition": ["ctrl", "KLF1", "BAK1"] * 4, "split": ["train", "test", "train"] * 3 + ["train", "test", "test"]})
    assert data.prepare(path).held_out == {("KLF1", "cell")}


@pytest.mark.parametrize("label, expected", [
    *((x, True) for x in ("control", "ctrl", "ctrl+ctrl", "Non-targeting", "non_targeting", "NT", "NTC", "NegCtrl0_NegCtrl1", "negative control", "DMSO", "Vehicle")),
    *((x, False) for x in ("KLF1", "NT5E", "CTRL1X", "stimulated", "(+)-JQ1", "KLF1+ctrl"))])
def test_control_labels(label, expected):
    assert data.is_control(label) == expected


def test_the_finest_column_is_taken_and_a_named_control_is_the_only_one(tmp_path):
    screen = data.read_screen(labelled(tmp_path, {"condition": ["control", "treated", "treated"] * 4, "drug": ["control", "A", "B"] * 4}))
    assert names(screen) == {"control", "A", "B"}
    path = labelled(tmp_path, {"drug": ["DMSO", "untreated", "A"] * 4})
    assert names(data.read_screen(path)) == {"control", "A"} and names(data.read_screen(path, control="DMSO")) == {"control", "untreated", "A"}


def test_a_pair_with_an_unmeasured_gene_is_a_pair_and_is_held_out_with_its_partner(tmp_path):
    """AMIGO3 is neither measured nor seen alone; no split may train on its pair with a gene that is held out."""
    path = labelled(tmp_path, {"perturbation": ["control", "KLF1", "KLF1_AMIGO3", "BAK1", "Arg1", "STAT1"] * 4}, [*SYMBOLS[:-1], "Ar"])
    assert names(data.read_screen(path)) == {"control", "KLF1", "AMIGO3+KLF1", "BAK1", "Arg1", "STAT1"}
    for seed in range(20):
        held = {p for p, _ in data.prepare(path, seed=seed).held_out}
        assert ("KLF1" in held) <= ("AMIGO3+KLF1" in held)
    assert not data.prepare(path, fraction=0).held_out


def test_names_are_canonical_wherever_they_come_from(tmp_path):
    gears, sciplex = (data.read_screen(write(name, tmp_path)) for name in ("norman", "sciplex_chemcpa"))
    assert data.at_type(gears, "KLF1+ctrl@A549") == ("KLF1", "A549") and data.at_type(gears, "KLF1 + KLF1") == ("KLF1", None)
    assert data.resolve(gears, "ctrl+KLF1") == {("KLF1", "A549")}
    assert data.at_type(sciplex, "Givinostat:0.10@K562") == ("Givinostat:0.1", "K562")


@pytest.mark.parametrize("spoil", [lambda X: X["indices"].__setitem__(0, 10 ** 6), lambda X: X["indices"].__setitem__(0, -5),
                                   lambda X: X["indptr"].__setitem__(5, 10 ** 7)])
def test_a_corrupt_sparse_matrix_is_refused_before_scipy_crashes(tmp_path, spoil):
    path = write("kang", tmp_path)
    with h5py.File(path, "a") as f:
        spoil(f["X"])
    with pytest.raises(data.InputError, match="cannot be read"):
        data.open_h5ad(path)


def test_what_is_neither_counts_nor_log1p_is_refused(tmp_path):
    path = write("kang", tmp_path)
    adata = anndata.read_h5ad(path)
    adata.X = adata.X.expm1() * 57.3
    adata.write_h5ad(path)
    with pytest.raises(data.InputError, match="neither counts nor log1p"):
        data.read_screen(path)


def test_awkward_labels_are_no_obstacle(tmp_path):
    """Unused categories, one cell in a condition, a condition in one cell type only, a type without perturbed cells, spaces."""
    adata = cells(["ctrl", "ctrl", "My gene+ctrl", "KLF1+ctrl", "ctrl"], {"cell_type": ["a", "b", "a", "b", "type c"]}, True,
                  symbols=["My gene", *SYMBOLS[1:]])
    adata.obs = adata.obs.rename(columns={"label": "condition"})
    adata = adata[np.r_[0:24, 24:25, 36:60]].copy()                        # one cell of My gene
    adata.obs["condition"] = adata.obs["condition"].astype(str).replace("KLF1+ctrl", " KLF1+ctrl ").astype("category").cat.add_categories(["nobody"])
    adata.write_h5ad(tmp_path / "awkward.h5ad")
    screen = data.prepare(str(tmp_path / "awkward.h5ad"), test=["My gene"])
    assert {k: len(v) for k, v in screen.groups.items() if k[0] != "control"} == {("My gene", "a"): 1, ("KLF1", "b"): 12}
    assert screen.cell_types == ["a", "b", "type c"] and screen.held_out == {("My gene", "a")}
    assert any("fewer than 10 cells (My gene@a)" in line for line in data.describe(screen))


def summary(path, *options):
    result = subprocess.run([sys.executable, f"{ROOT}/data.py", path, *options], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_summary_says_what_a_person_wants_to_know(tmp_path):
    """Cells, genes, counts or log1p, conditions and their sizes, controls by cell type, the split, warnings."""
    printed = summary(write("sciplex_chemcpa", tmp_path), "--test", "Givinostat@MCF7")
    for fact in ("180 cells x 10 genes", "log1p already", "4 drug perturbations from 'condition'", "dose from 'dose_val'",
                 "A549 (12 controls), K562 (12 controls), MCF7 (12 controls)", "12 conditions of 12 to 12 cells: 10 to train on, 2 held out",
                 "Givinostat:0.1@MCF7"):
        assert fact in printed, (fact, printed)
    printed = summary(write("adamson", tmp_path))
    assert "warning: 1 of 4 perturbed genes are not measured (AMIGO3)" in printed


# ------------------------------------------------------------------------------------------------------ Scanpy's numbers
# tests/scanpy_numbers.json was made once, with Scanpy 1.11.5 and the counts that it holds, one cell of them empty, by:
#
#     adata = AnnData(counts); sc.pp.normalize_total(adata); sc.pp.log1p(adata)
#     sc.pp.highly_variable_genes(adata, flavor="seurat", n_top_genes=20)     # adata.var["dispersions_norm"], ["highly_variable"]
#
# from a dense array. For CSR the same Scanpy counts empty cells in the median library; we leave them out in both, as it documents.

@pytest.fixture(scope="module")
def scanpy():
    with open(os.path.join(os.path.dirname(__file__), "scanpy_numbers.json")) as f:
        return {key: np.array(value, dtype=float) for key, value in json.load(f).items()}


def test_normalisation_equals_scanpys(scanpy):
    got = data.log1p_csr(sparse.csr_matrix(scanpy["counts"], dtype=np.float32), "counts")[0].toarray()
    assert np.allclose(got, scanpy["log1p"], atol=2e-6)


def test_gene_choice_equals_scanpys(scanpy):
    """The same normalised dispersions, and so the same twenty genes in the same order."""
    X = data.log1p_csr(sparse.csr_matrix(scanpy["counts"], dtype=np.float32), "counts")[0]
    got = data.seurat_dispersion(X)
    assert np.allclose(got, scanpy["dispersions_norm"], atol=1e-4, equal_nan=True)
    top = np.argsort(-np.nan_to_num(got, nan=-np.inf), kind="stable")[:20]
    assert set(top) == set(np.flatnonzero(scanpy["highly_variable"]))
    assert top.tolist() == np.argsort(-np.nan_to_num(scanpy["dispersions_norm"], nan=-np.inf), kind="stable")[:20].tolist()


if __name__ == "__main__":
    import pathlib
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name in FORMS:
            print(summary(write(name, pathlib.Path("."))))
