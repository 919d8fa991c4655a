"""What can be predicted without having been measured: doses, cell types and drugs; targets behind a prior network; combinations."""
import contextlib
import io
import os

import anndata
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import data
import evaluate
import sample
import train
from baselines import matching_mean
from departures import Departures, Settings
from test_real_files import SYMBOLS, write
from toy_data import simulate_drug_screen, simulate_screen

QUICK = {"epochs": 12, "batch": 128, "width": 64}


def run_on(folder, adata, test, also=(), **settings):
    """Train on an AnnData with conditions held out; (E-distances {condition: {method: mean}}, the screen, the run's folder)."""
    out, settings = str(folder), Settings(**{**QUICK, **settings})
    adata.write_h5ad(f"{out}/s.h5ad")
    reading = {"path": f"{out}/s.h5ad", "test": test}
    screen = data.prepare(**reading)
    with contextlib.redirect_stderr(io.StringIO()):
        model = train.build(screen, settings, "cpu", also)
        sample.check_predictable(model, screen, screen.held_out)
        train.train(model, screen, settings, out, {"epoch": 0, "epochs": 1, "optimiser": None, "log": [], "groups": sample.groups_of(screen)}, "cpu",
                    lambda state: sample.write_checkpoint(out, model, settings, reading, state))
        sample.sample_run(out, screen=screen)
        rows = evaluate.score(screen, evaluate.read_predicted(f"{out}/predicted.h5ad", screen))
    return {r["condition"]: {m: s["E-distance"]["all"] for m, s in r["scores"].items()} for r in rows}, screen, out


# --------------------------------------------------------------------------------------------------------------- drugs

def test_the_simulated_splits_hold_out_what_they_say(tmp_path):
    """A dose in every type; a type at every dose; one whole drug of each family."""
    adata = simulate_drug_screen(40, 8, 4000, seed=0)
    adata.write_h5ad(tmp_path / "d.h5ad")
    path = str(tmp_path / "d.h5ad")
    dose, cell_type, drug = (data.prepare(path, split_column=f"split_{c}").held_out for c in ("dose", "cell_type", "drug"))
    assert {len({t for p, t in dose if p == one}) for one, _ in dose} == {3} and len({p.split(":")[0] for p, _ in dose}) == len({p for p, _ in dose})
    assert all(sum(p.startswith(one.split(":")[0]) for p, _ in cell_type) == 4 for one, _ in cell_type)
    assert sorted({p[0] for p, _ in drug}) == ["A", "B"] and len({p.split(":")[0] for p, _ in drug}) == 2 and len(drug) == 24


def encoder_of(doses=(), structure=3):
    settings = Settings(width=8, embedding=8)
    torch.manual_seed(0)
    model = Departures(settings, ["a", "b"], ["d1", "d2", "d3"], ["t", "u"], "drug", 1, structure)
    for t in ("t", "u"):
        model.add_cell_type(t, np.ones(2), np.ones(2), np.full(2, 0.5), 100)
    encoder = model.encoder
    encoder.seen[:2] = encoder.seen_pair[:2, 0] = True
    torch.nn.init.normal_(encoder.memory.weight)
    torch.nn.init.normal_(encoder.hill.weight)
    model.eval()
    return model


def shift(model, drug, dose, cell_type="t"):
    with torch.no_grad():
        return model.encoder([model.condition([(drug, dose)], cell_type)], model).level[0]


def test_the_gate_is_a_hill_curve_in_the_log_of_the_dose():
    """Nothing at dose 0, saturated at infinity, rising between; counted from the usual dose, so that units do not matter."""
    model = encoder_of()
    full = shift(model, "d1", 1e30)
    strength = [float(shift(model, "d1", dose) @ full / (full @ full)) for dose in (0, 1e-3, 1e-2, 1e-1, 1, 1e1, 1e3)]
    assert strength[0] < 0.03 and strength[-1] > 0.5 and strength == sorted(strength)
    before = shift(model, "d1", 0.3)
    model.encoder.usual_dose += 3                                          # the same doses in units a thousand times smaller
    assert torch.allclose(shift(model, "d1", 300.0), before, rtol=1e-4)


def test_a_structure_stands_in_for_a_drug_never_seen_and_only_for_that():
    model = encoder_of()
    with pytest.raises(ValueError, match="a drug without a known structure"):
        model.condition([("d3", 1.0)], "t")
    known = shift(model, "d1", 1.0)
    model.encoder.structure[:] = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 1, 0]])
    with torch.no_grad():
        assert torch.equal(shift(model, "d1", 1.0), known)                 # seen: its own memory
        z = model.encoder.from_structure(model.encoder.structure[2])
        slope, middle = model.encoder.hill(z)
        expected = model.encoder.memory(z * torch.sigmoid(slope.exp() * -middle))[:2]
    assert torch.allclose(shift(model, "d3", 1.0), expected, atol=1e-6)


def test_what_is_special_to_a_cell_type_is_left_out_in_another():
    """The part for (drug, type) counts where that pair was seen; in training it drops out apart from the drug's own part."""
    model = encoder_of()
    encoder = model.encoder
    assert not torch.equal(shift(model, "d1", 1.0, "t"), shift(model, "d1", 1.0, "u"))
    encoder.pair.weight.data.zero_()
    assert torch.equal(shift(model, "d1", 1.0, "t"), shift(model, "d1", 1.0, "u"))
    encoder.pair.weight.data.fill_(1.0)
    encoder.hill.weight.data.zero_()
    encoder.train()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        drawn = encoder([model.condition([("d1", 1.0)], "t")] * 400, model, generator).z * 2    # the gate is 1/2 at the usual dose
        own, unknown = encoder.target.weight[0], encoder.target.weight[-1]
    whole, alone, hidden = ((drawn - z).abs().amax(1) < 1e-5 for z in (own + 1, own, unknown))
    assert (whole | alone | hidden).all()
    for share, expected in ((whole, 0.7 * 0.5), (alone, 0.7 * 0.5), (hidden, 0.3)):          # the dropouts' defaults, 0.3 and 0.5
        assert abs(share.float().mean() - expected) < 5 * (expected * (1 - expected) / 400) ** 0.5


SMILES = {"aspirin": "CC(=O)Oc1ccccc1C(=O)O", "salicylic acid": "O=C(O)c1ccccc1O", "hexane": "CCCCCC"}


def drug_screen(folder, uns=None, smiles=False):
    obs = pd.DataFrame({"condition": ["control", *SMILES] * 10, "dose_val": [1.0, 0.1, 0.1, 1.0] * 10}, index=[f"c{i}" for i in range(40)])
    if smiles:
        obs["SMILES"] = ["CS(C)=O", *SMILES.values()] * 10
    X = np.random.default_rng(0).gamma(2.0, 1.0, (40, 5)).astype(np.float32)
    anndata.AnnData(X, obs, uns=uns or {}).write_h5ad(folder / "d.h5ad")
    return data.read_screen(str(folder / "d.h5ad"))


def test_structures_come_from_the_table_else_uns_else_smiles(tmp_path):
    """A --drug-embedding table goes first, and may name more drugs; then uns, a table or a dict of vectors."""
    table = pd.DataFrame(np.arange(12.0).reshape(4, 3) ** 2, index=[*SMILES, "ibuprofen"], columns=["a", "b", "c"])
    table.to_csv(tmp_path / "drugs.csv")
    for uns in ({}, {"drug_embedding": table.iloc[:3]}, {"drug_embedding": {k: v.to_numpy() for k, v in table.iloc[:3].T.items()}}):
        screen = drug_screen(tmp_path, uns)
        own, given = data.structures(screen, ""), data.structures(screen, str(tmp_path / "drugs.csv"))
        assert set(own) == (set(SMILES) if uns else set()) and set(given) == {*SMILES, "ibuprofen"}
        V = np.stack(list(given.values()))                                     # centred, of one scale; the last column tells known from unknown
    assert np.allclose(V[:, :3].mean(0), 0, atol=1e-6) and np.allclose(V[:, :3].std(0), 3 ** -0.5, rtol=1e-5) and (V[:, 3] == 1).all()


def test_smiles_become_morgan_fingerprints(tmp_path):
    """Of similar drugs, similar ones; a SMILES that RDKit does not understand is told and left out."""
    pytest.importorskip("rdkit")
    screen = drug_screen(tmp_path, smiles=True)
    found = data.structures(screen, "")
    assert set(found) == set(SMILES) and len(found["hexane"]) == 1025
    cosine = lambda a, b: float(found[a] @ found[b] / np.linalg.norm(found[a]) / np.linalg.norm(found[b]))  # noqa: E731
    assert cosine("aspirin", "salicylic acid") > cosine("aspirin", "hexane")
    pd.DataFrame({"SMILES": [*SMILES.values(), "not a molecule"]}, index=[*SMILES, "odd"]).to_csv(tmp_path / "smiles.csv")
    assert set(data.structures(screen, str(tmp_path / "smiles.csv"))) == set(SMILES)
    assert any("does not understand the SMILES of odd" in line for line in screen.found)


def test_without_rdkit_smiles_are_left_alone_and_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rdkit", None)
    screen = drug_screen(tmp_path, smiles=True)
    assert data.structures(screen, "") == {} and any("pip install rdkit" in line for line in screen.found)


@pytest.mark.parametrize("table, message", [("name,x\nnobody,1\n", "one row of numbers"), ("name,x\naspirin,high\n", "one row of numbers"),
                                            ("name,x\naspirin,1\naspirin,2\n", "one row of numbers"), ("name\naspirin\n", "one row of numbers"), ("name,x\n", "one row of numbers"), ("", "not a readable CSV")])
def test_a_useless_drug_table_is_refused(tmp_path, table, message):
    (tmp_path / "bad.csv").write_text(table)
    with pytest.raises(data.InputError, match=f"bad.csv.*{message}"):
        data.structures(drug_screen(tmp_path), str(tmp_path / "bad.csv"))


def test_the_matching_mean_is_the_nearest_training_condition():
    """The same target alone before a pair of it, then the nearest dose, then the same cell type."""
    labels = ["control"] * 8 + ["A"] * 4 + ["A+B"] * 4 + ["C"] * 4
    types = np.array((["t", "u"] * 4) + ["u"] * 4 + ["t"] * 4 + ["t"] * 4)
    X = np.repeat([1.0, 2.0, 5.0, 9.0], [8, 4, 4, 4])[:, None] * np.ones((20, 3))
    screen = data.Screen(sparse.csr_matrix(X, dtype=np.float32), np.array(["A", "B", "C"]), np.array(["A", "B", "C"]), np.arange(20).astype(str),
                         np.array(labels), types, "gene", pd.DataFrame(index=range(20)))
    predict, x0 = matching_mean(screen), np.ones((2, 3), np.float32)
    assert np.allclose(predict("A", "t", x0), 2)
    assert np.allclose(predict("A+C", "u", x0), 2) and np.allclose(predict("A+C", "t", x0), 9)
    assert predict("D", "t", x0) is None


@pytest.fixture(scope="module")
def drugs(tmp_path_factory):
    """A simulated drug screen of three families, with a dose (between others), a cell type and a drug unseen."""
    return run_on(tmp_path_factory.mktemp("drugs"), simulate_drug_screen(100, 12, 6000, seed=1), ["B-1:0.1", "B-2@typeB", "C-3"])


@pytest.mark.parametrize("unseen, conditions, bar", [("dose", "B-1:0.1@", 0.5), ("cell type", "B-2:", 0.6), ("drug", "C-3:", 0.7)])
def test_an_unseen_dose_cell_type_and_drug_are_nearer_than_controls_and_the_mean(drugs, unseen, conditions, bar):
    mine = [scores for condition, scores in drugs[0].items() if condition.startswith(conditions)]
    total = {method: sum(s[method] for s in mine) for method in ("control", "perturbed mean", "model")}
    assert len(mine) == {"dose": 3, "cell type": 4, "drug": 12}[unseen]
    assert total["model"] < bar * min(total["control"], total["perturbed mean"]), total


def test_the_prior_is_weighed_against_the_cells_of_an_average_training_condition(drugs):
    _, screen, out = drugs
    sizes = [len(rows) for key, rows in screen.groups.items() if key[0] != data.CONTROL and key not in screen.held_out]
    assert sample.model_of(sample.read_checkpoint(out), "cpu").encoder.cells.item() == pytest.approx(np.mean(sizes))


def test_a_drug_can_be_asked_for_at_any_dose_or_at_all_that_were_measured(drugs):
    _, screen, out = drugs
    model, groups = sample.model_of(sample.read_checkpoint(out), "cpu"), sample.groups_of(screen)
    assert sample.asked(screen, model, "B-2@typeB", groups) == [(f"B-2:{dose}", "typeB") for dose in ("0.001", "0.01", "0.1", "1")]
    assert sample.asked(screen, model, "B-2:0.30", groups) == [("B-2:0.3", t) for t in ("typeA", "typeB", "typeC")]


def test_a_file_that_changed_since_is_refused(drugs, tmp_path):
    """Not sampled with, scored on or resumed from, where other conditions would be held out; the checkpoint stays as it was."""
    _, _, out = drugs
    adata, before = anndata.read_h5ad(f"{out}/s.h5ad"), open(f"{out}/model.pt", "rb").read()
    adata[(adata.obs["condition"] != "B-3").to_numpy()].write_h5ad(tmp_path / "changed.h5ad")
    content = {**sample.read_checkpoint(out), "reading": {"path": str(tmp_path / "changed.h5ad"), "test": ["B-1:0.1"]}}
    with pytest.raises(data.InputError, match="the file has changed since"):
        sample.same_genes(data.prepare(**content["reading"]), content)
    with pytest.raises(data.InputError, match="is an input; choose another name"):
        sample.sample_run(out, out=f"{out}/s.h5ad")
    assert open(f"{out}/model.pt", "rb").read() == before


def test_the_truth_for_other_tools_holds_the_scored_cells_and_their_controls(drugs, tmp_path):
    _, screen, _ = drugs
    evaluate.write_truth(str(tmp_path / "truth.h5ad"), screen, {("B-1:0.1", "typeA"): None}, "predicted.h5ad")
    truth = anndata.read_h5ad(tmp_path / "truth.h5ad")
    rows = np.sort(np.concatenate([screen.groups["B-1:0.1", "typeA"], screen.controls("typeA")]))
    assert truth.obs_names.tolist() == screen.cells[rows].tolist() and (truth.X != screen.X[rows]).nnz == 0
    assert set(truth.obs["perturbation"]) == {"control", "B-1:0.1"} and set(truth.obs["cell_type"]) == {"typeA"}
    assert truth.var_names.tolist() == screen.var_names.tolist()


# --------------------------------------------------------------------------------------------------------------- genes

def test_a_prior_network_makes_an_unmeasured_unseen_target_predictable(tmp_path):
    """The target is not in the panel and nobody perturbed it; the edges that leave it are known. Without them it is refused."""
    adata = simulate_screen(100, 12, 4000, seed=1)
    symbols, W = adata.var["gene_name"].to_numpy(), adata.varp["grn"].tocoo()
    target = adata.varm["effect"].abs().sum(0).nlargest(2).index[1]
    edges = pd.DataFrame({"source": symbols[W.col], "target": symbols[W.row], "weight": W.data})
    edges.to_csv(tmp_path / "edges.csv", index=False)
    panel = adata[:, (symbols != target)].copy()
    del panel.varm["effect"]
    with pytest.raises(data.InputError, match=f"cannot predict '{target}'"):
        run_on(tmp_path, panel, [target])
    scores, screen, _ = run_on(tmp_path, panel, [target], grn=str(tmp_path / "edges.csv"))
    assert target not in screen.genes and len(scores) == 2
    total = {method: sum(s[method] for s in scores.values()) for method in ("control", "perturbed mean", "model")}
    assert total["model"] < 0.9 * min(total["control"], total["perturbed mean"]), total


def test_combinations_of_two_and_three_and_a_pair_with_an_unseen_gene(tmp_path):
    """From single genes and a pair: a triple held out, another that nobody measured, and a pair of a seen and an unseen gene."""
    adata = anndata.read_h5ad(write("triples", tmp_path))
    out = run_on(tmp_path, adata, ["AHR+BAK1+KLF1"], also=["STAT1"], epochs=1)[2]
    assert set(anndata.read_h5ad(f"{out}/predicted.h5ad").obs["condition"]) == {"AHR+BAK1+KLF1@A549"}
    for name, condition in (("KLF1+AHR", "AHR+KLF1@A549"), ("STAT1+KLF1@A549", "KLF1+STAT1@A549"), ("STAT1+AHR+KLF1", "AHR+KLF1+STAT1@A549")):
        cells = anndata.read_h5ad(sample.sample_run(out, conditions=[name], cells=7))
        assert cells.obs["condition"].tolist() == [condition] * 7 and list(cells.var["gene_name"]) == SYMBOLS
    with pytest.raises(data.InputError, match="cannot predict 'MALAT1'"):
        sample.sample_run(out, conditions=["KLF1+MALAT1"])
    model = sample.model_of(sample.read_checkpoint(out), "cpu").eval()
    z = lambda *genes: model.encoder([model.condition([(g, 1.0) for g in genes], "A549")], model).z[0]  # noqa: E731
    assert torch.allclose(z("AHR", "BAK1", "KLF1"), z("AHR") + z("BAK1") + z("KLF1"), atol=1e-5)        # memories add
    assert os.path.exists(f"{out}/asked.h5ad")
