"""Tables that a user gives beside the cells: structures of drugs, and a gene network."""

import sys

import anndata
import numpy as np
import pandas as pd
import pytest

import screens
from examples import screen_with

SMILES = {
    "aspirin": "CC(=O)Oc1ccccc1C(=O)O",
    "salicylic acid": "O=C(O)c1ccccc1O",
    "hexane": "CCCCCC",
}
NUMBERS = pd.DataFrame(
    np.arange(12.0).reshape(4, 3) ** 2,
    index=[*SMILES, "ibuprofen"],
    columns=["a", "b", "c"],
)


def drug_screen(folder, uns=None, smiles=False):
    """A screen of the three drugs at one dose."""
    obs = pd.DataFrame(
        {"condition": ["control", *SMILES] * 10, "dose_val": [1.0, 0.1, 0.1, 1.0] * 10},
        index=[f"c{i}" for i in range(40)],
    )
    if smiles:
        obs["SMILES"] = ["CS(C)=O", *SMILES.values()] * 10
    X = np.random.default_rng(0).gamma(2.0, 1.0, (40, 5)).astype(np.float32)
    anndata.AnnData(X, obs, uns=uns or {}).write_h5ad(folder / "d.h5ad")
    return screens.read_screen(str(folder / "d.h5ad"))


# ---- Structures as numbers -----------------------------------------------------------------------


def test_without_any_structure_drugs_are_known_by_name_only(tmp_path):
    assert screens.structures(drug_screen(tmp_path), "") == {}


VECTORS = {name: NUMBERS.loc[name].to_numpy() for name in SMILES}


@pytest.mark.parametrize("table", [NUMBERS.iloc[:3], VECTORS], ids=["table", "dict"])
def test_structures_come_from_the_files_uns(tmp_path, table):
    screen = drug_screen(tmp_path, {"drug_embedding": table})
    found = screens.structures(screen, "")
    assert set(found) == set(SMILES)
    assert "structures of 3 of 3 drugs, and of 0 others" in screen.found[-1]


def test_a_table_of_structures_goes_first_and_may_name_more_drugs(tmp_path):
    NUMBERS.to_csv(tmp_path / "drugs.csv")
    screen = drug_screen(tmp_path, {"drug_embedding": NUMBERS.iloc[:3]})
    found = screens.structures(screen, str(tmp_path / "drugs.csv"))
    assert set(found) == {*SMILES, "ibuprofen"}


def test_structures_are_centred_of_one_scale_and_never_all_zeros(tmp_path):
    """The last number, 1, tells a known structure from an unknown one."""
    NUMBERS.to_csv(tmp_path / "drugs.csv")
    found = screens.structures(drug_screen(tmp_path), str(tmp_path / "drugs.csv"))
    vectors = np.stack(list(found.values()))
    assert np.allclose(vectors[:, :3].mean(0), 0, atol=1e-6)
    assert np.allclose(vectors[:, :3].std(0), 3**-0.5, rtol=1e-5)
    assert (vectors[:, 3] == 1).all()


def test_bits_share_one_scale(tmp_path):
    bits = pd.DataFrame({"a": [1, 0, 0, 0], "b": [1, 1, 0, 0]}, index=NUMBERS.index)
    bits.to_csv(tmp_path / "drugs.csv")
    found = screens.structures(drug_screen(tmp_path), str(tmp_path / "drugs.csv"))
    vectors = np.stack(list(found.values()))[:, :2]
    assert np.allclose(np.ptp(vectors, 0), 1 / bits.to_numpy().std() / 2**0.5)


BAD_TABLES = {
    "no drug of the screen": ("name,x\nnobody,1\n", "one row of numbers"),
    "no number": ("name,x\naspirin,high\n", "one row of numbers"),
    "a drug twice": ("name,x\naspirin,1\naspirin,2\n", "one row of numbers"),
    "no column": ("name\naspirin\n", "one row of numbers"),
    "no row": ("name,x\n", "one row of numbers"),
    "nothing": ("", "not a readable CSV"),
}


@pytest.mark.parametrize("case", BAD_TABLES)
def test_a_useless_drug_table_is_refused(tmp_path, case):
    table, message = BAD_TABLES[case]
    (tmp_path / "bad.csv").write_text(table)
    with pytest.raises(screens.InputError, match=f"bad.csv.*{message}"):
        screens.structures(drug_screen(tmp_path), str(tmp_path / "bad.csv"))


@pytest.mark.parametrize("table", [5.0, "text", {"aspirin": [1.0, 2.0], "hexane": [1.0]}])
def test_structures_in_uns_that_are_no_table_are_refused(tmp_path, table):
    screen = drug_screen(tmp_path)
    screen.uns["drug_embedding"] = table
    with pytest.raises(screens.InputError, match="d.h5ad: a drug embedding needs one row"):
        screens.structures(screen, "")


def test_structures_of_genes_are_those_of_each_gene_of_a_pair(tmp_path):
    """Of one that nobody perturbed too, and not those of drugs in the file."""
    (tmp_path / "genes.csv").write_text("gene,x,y\nA,1,0\nC,0,4\nD,2,2\n")
    screen = screen_with(np.ones((3, 2)), ["control", "A+B", "B+C"], ["t"] * 3)
    screen.uns["drug_embedding"] = {"A": [1.0]}
    found = screens.structures(screen, str(tmp_path / "genes.csv"))
    assert set(found) == {"A", "C", "D"} and found["C"].shape == (3,)
    assert "structures of 2 of 3 genes, and of 1 others" in screen.found[-1]


# ---- Structures as SMILES ------------------------------------------------------------------------


def cosine(a, b):
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def test_smiles_of_the_file_become_morgan_fingerprints(tmp_path):
    """Of similar drugs, similar ones."""
    pytest.importorskip("rdkit")
    found = screens.structures(drug_screen(tmp_path, smiles=True), "")
    aspirin, salicylic_acid, hexane = [found[drug] for drug in SMILES]
    assert set(found) == set(SMILES)
    assert len(hexane) == 1025
    assert cosine(aspirin, salicylic_acid) > cosine(aspirin, hexane)


def test_smiles_that_rdkit_does_not_understand_are_told_and_left_out(tmp_path):
    pytest.importorskip("rdkit")
    table = pd.DataFrame({"SMILES": [*SMILES.values(), "not a molecule"]}, [*SMILES, "odd"])
    table.to_csv(tmp_path / "smiles.csv")
    screen = drug_screen(tmp_path)
    assert set(screens.structures(screen, str(tmp_path / "smiles.csv"))) == set(SMILES)
    assert any("does not understand the SMILES of odd" in line for line in screen.found)


def test_without_rdkit_smiles_of_the_file_are_left_alone_and_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rdkit", None)
    screen = drug_screen(tmp_path, smiles=True)
    assert screens.structures(screen, "") == {}
    assert any("pip install rdkit" in line for line in screen.found)


def test_without_rdkit_a_table_of_smiles_is_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "rdkit", None)
    pd.DataFrame({"SMILES": SMILES}).to_csv(tmp_path / "smiles.csv")
    with pytest.raises(screens.InputError, match="SMILES need RDKit: pip install rdkit"):
        screens.structures(drug_screen(tmp_path), str(tmp_path / "smiles.csv"))


# ---- A gene network ------------------------------------------------------------------------------


def edges_of(folder, text):
    (folder / "edges.csv").write_text(text)
    return screens.read_edges(str(folder / "edges.csv"))


def test_edges_have_the_weight_that_the_file_gives(tmp_path):
    edges = edges_of(tmp_path, "target,weight,source\nB,0.5,A\nC,-2,A\n")
    assert edges["source"].tolist() == ["A", "A"]
    assert edges["target"].tolist() == ["B", "C"]
    assert edges["weight"].tolist() == [0.5, -2]


def test_edges_without_a_weight_weigh_1(tmp_path):
    assert edges_of(tmp_path, "source,target\nA,B\n")["weight"].tolist() == [1.0]


BAD_EDGES = {
    "other columns": ("a,b\n1,2\n", "needs the columns source and target; it has a, b"),
    "no row": ("source,target\n", "at least one row"),
    "no target": ("source,target\nA,\n", "a source and a target in every row"),
    "weight in words": ("source,target,weight\nA,B,strong\n", "weight must be a finite number"),
    "infinite weight": ("source,target,weight\nA,B,inf\n", "weight must be a finite number"),
    "nothing": ("", "nor a readable CSV"),
}


@pytest.mark.parametrize("case", BAD_EDGES)
def test_a_useless_network_is_refused(tmp_path, case):
    text, message = BAD_EDGES[case]
    with pytest.raises(screens.InputError, match=message):
        edges_of(tmp_path, text)
