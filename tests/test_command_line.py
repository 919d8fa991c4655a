"""The scripts as a user runs them: one tiny screen from simulation to scores, then everything that may go wrong."""
import json
import os
import subprocess
import sys

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

import data
import toy_data

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TINY = ["--epochs", "2", "--width", "32", "--embedding", "8", "--steps", "5"]


def run(script, *args, cwd):
    environment = {**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "2"}
    return subprocess.run([sys.executable, f"{ROOT}/{script}", *map(str, args)], cwd=cwd, capture_output=True, text=True,
                          env=environment, timeout=300)


def done(*args, cwd):
    result = run(*args, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A screen of 600 cells and a run of two epochs on it."""
    folder = tmp_path_factory.mktemp("cli")
    toy_data.simulate_screen(40, 5, 600, seed=3).write_h5ad(folder / "tiny.h5ad")
    (folder / "train.txt").write_text(done("train.py", "--data", "tiny.h5ad", "--out", "run", *TINY, cwd=folder))
    return folder


def test_train_leaves_a_complete_run_and_prints_the_table(folder):
    assert {"model.pt", "log.csv", "loss.png", "predicted.h5ad", "metrics.json", "metrics.csv", "metrics.md", "figures"} <= set(os.listdir(folder / "run"))
    figures = ["activation.png", "activation_map.png", "gap_closed.png", "mean_change.png", "paths.png", "pca.png"]
    drawn = sorted(os.listdir(folder / "run/figures"))
    assert [name for name in drawn if not name.startswith("violin_")] == figures
    assert len(drawn) - len(figures) == len(json.load(open(folder / "run/metrics.json"))["conditions"])       # a violin each
    assert min(os.path.getsize(folder / "run/figures" / name) for name in drawn) > 10_000
    printed = (folder / "train.txt").read_text()
    for row in ("control", "perturbed mean", "linear knock-out", "model", "floor", "gap closed", "run/figures"):
        assert row in printed
    assert len((folder / "run/log.csv").read_text().splitlines()) == 3


def test_checkpoint_loads_as_plain_values(folder):
    content = torch.load(folder / "run/model.pt", weights_only=True)
    assert content["settings"]["steps"] == 5 and content["epoch"] == 2


def test_predicted_cells_are_what_the_design_says(folder):
    adata = anndata.read_h5ad(folder / "run/predicted.h5ad")
    truth = data.prepare(str(folder / "tiny.h5ad"))
    assert (adata.X.data > 0).all() and adata.X.dtype == np.float32 and adata.is_view is False
    assert list(adata.var_names) == list(truth.var_names) and adata.obs["is_predicted"].all()
    assert set(adata.obs["condition"]) == {f"{p}@{t}" for p, t in truth.held_out}
    assert set(adata.obs["control_cell"]) <= set(truth.cells[truth.perturbation == "control"])
    on = adata.X.toarray() > 0
    assert np.allclose(adata.X.toarray()[on], adata.layers["if_expressed"].toarray()[on])
    assert json.loads(adata.uns["departures"]["settings"])["steps"] == 5


def test_same_seed_same_cells_whatever_else_is_sampled(folder):
    whole = anndata.read_h5ad(folder / "run/predicted.h5ad")
    name = whole.obs["condition"].iloc[-1]
    n = int((whole.obs["condition"] == name).sum())
    for seed, same in ((0, True), (1, False)):
        done("sample.py", "run", "--condition", name, "--cells", n, "--seed", seed, "--out", "again.h5ad", cwd=folder)
        again = anndata.read_h5ad(folder / "again.h5ad")
        equal = np.array_equal(again.X.toarray(), whole[(whole.obs["condition"] == name).to_numpy()].X.toarray())
        assert equal == same and len(again) == n


def test_same_seed_same_weights_and_resume_continues_the_same_run(folder):
    """A run stopped after its first epoch and resumed has the weights of the run that was not stopped, bit for bit."""
    whole = torch.load(folder / "run/model.pt", weights_only=True)
    script = ("import sys, sample, train; write = sample.write_checkpoint\n"
              "def stop(run, model, settings, reading, state):\n"
              "    write(run, model, settings, reading, state)\n"
              "    if state['epoch'] == 1: raise KeyboardInterrupt\n"
              "sample.write_checkpoint = stop; sys.argv = ['train.py'] + sys.argv[1:]; train.main()")
    (folder / "interrupted.py").write_text(script)
    result = subprocess.run([sys.executable, "interrupted.py", "--data", "tiny.h5ad", "--out", "cut", *TINY], cwd=folder,
                            capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ROOT, "OMP_NUM_THREADS": "2"})
    assert result.returncode == 130 and result.stderr.strip().splitlines()[-1] == (
        "stopped; continue from the last complete epoch with: python train.py --resume cut --device cpu")
    assert torch.load(folder / "cut/model.pt", weights_only=True)["epoch"] == 1
    done("train.py", "--resume", "cut", cwd=folder)
    resumed = torch.load(folder / "cut/model.pt", weights_only=True)
    assert all(torch.equal(a, b) for a, b in zip(whole["model"].values(), resumed["model"].values()))
    assert np.array_equal(*(anndata.read_h5ad(folder / r / "predicted.h5ad").X.toarray() for r in ("run", "cut")))


def test_scoring_any_models_cells(folder):
    """The held-out cells themselves, given as a prediction, close the gap; controls relabelled do not."""
    truth = anndata.read_h5ad(folder / "tiny.h5ad")
    truth.obs["perturbation"] = truth.obs["condition"].astype(str)
    one = truth.obs["condition"].cat.categories[1]
    for name, cells in (("twin", truth.obs["condition"] == one), ("relabelled", truth.obs["condition"] == "ctrl")):
        theirs = truth[cells.to_numpy()].copy()
        theirs.obs = theirs.obs[["cell_type"]].assign(perturbation=one.replace("+ctrl", ""))
        theirs.write_h5ad(folder / f"{name}.h5ad")
        done("evaluate.py", "--predicted", f"{name}.h5ad", "--data", "tiny.h5ad", cwd=folder)
    gap = {name: json.load(open(folder / f"{name}_scores/metrics.json"))["summary"]["model"]["EMD"]["DE20"]["gap_closed"]
           for name in ("twin", "relabelled")}
    assert gap["twin"] > 0.8 and gap["relabelled"] < 0.4


def test_metrics_agree_in_every_form(folder):
    """metrics.csv holds the conditions, metrics.json their summary, metrics.md what was printed; several runs are pooled."""
    scores = pd.read_csv(folder / "run/metrics.csv")
    summary = json.load(open(folder / "run/metrics.json"))["summary"]
    for (method, metric, genes), mine in scores.groupby(["method", "metric", "genes"]):
        if mine["score"].notna().any():
            assert summary[method][metric][genes]["mean"] == pytest.approx(mine["score"].mean(), abs=1e-9)
    assert set(scores["metric"]) == {"E-distance", "EMD", "MMD2", "activation PCC", "Pearson delta", "Pearson delta from mean", "DE overlap", "discrimination"}
    energy = summary["model"]["E-distance"]["all"]
    for text in ((folder / "run/metrics.md").read_text(), (folder / "train.txt").read_text()):
        assert f"{energy['mean']:.3f} ± {energy['sd']:.3f}" in text
    pooled = done("evaluate.py", "run", "run", "--out", "pooled", cwd=folder)
    assert f"over {energy['conditions']} conditions" in pooled and f"{energy['mean']:.3f} ± {energy['sd']:.3f}" in pooled       # one screen: averaged first
    assert (folder / "pooled/metrics.md").read_text().count("|") > 100
    refused = run("evaluate.py", "run", "nowhere", cwd=folder)
    assert refused.returncode == 2 and refused.stderr.startswith("error: nowhere/metrics.json: not readable; score each run first")


def test_squared_energy_distances_say_so_and_do_not_mix_with_their_roots(folder):
    text = done("evaluate.py", "run", "--squared", "--out", "squared", cwd=folder)
    assert "E: unbiased energy distance" in text and "E: unbiased" in (folder / "squared/metrics.md").read_text()
    root, squared = (pd.read_csv(folder / f"{name}/metrics.csv", index_col=["condition", "method", "metric", "genes"])["score"].sort_index() for name in ("run", "squared"))
    energy = root.index.get_level_values("metric") == "E-distance"
    assert np.allclose(root[~energy], squared[~energy], equal_nan=True)
    assert (squared[energy] >= root[energy] ** 2 - 1e-9).all() and (squared[energy] < 1.5 * root[energy] ** 2 + 0.05).all()        # Jensen, over 5 splits
    refused = run("evaluate.py", "run", "squared", cwd=folder)
    assert refused.returncode == 2 and "some were scored with --squared" in refused.stderr
    refused = run("evaluate.py", "run", "--squared", cwd=folder)
    assert refused.returncode == 2 and "give --out" in refused.stderr


def test_training_conditions_can_be_sampled_and_scored(folder):
    done("sample.py", "run", "--training", "--with-controls", cwd=folder)
    adata = anndata.read_h5ad(folder / "run/training.h5ad")
    controls = adata[~adata.obs["is_predicted"].to_numpy()]
    assert len(controls) == 120 and set(controls.obs["perturbation"]) == {"control"}
    assert "model" in done("evaluate.py", "run", "--training", cwd=folder)


def test_new_controls_of_an_unseen_cell_type(folder):
    adata = anndata.read_h5ad(folder / "tiny.h5ad")
    adata = adata[((adata.obs["cell_type"] == "typeA") & (adata.obs["condition"] == "ctrl")).to_numpy()].copy()
    adata.obs["cell_type"] = "typeC"
    adata.write_h5ad(folder / "new.h5ad")
    gene = torch.load(folder / "run/model.pt", weights_only=True)["targets"][0]
    done("sample.py", "run", "--data", "new.h5ad", "--condition", gene, "--cells", 7, "--out", "c.h5ad", cwd=folder)
    assert list(anndata.read_h5ad(folder / "c.h5ad").obs["condition"].unique()) == [f"{gene}@typeC"]


def test_paper_switches_all_five_off_and_one_on_again(folder):
    done("train.py", "--data", "tiny.h5ad", "--out", "paper", "--paper", "--null-pairs", *TINY[2:], "--epochs", 1,
         "--kappa", "cosine", "--cost", "euclidean", cwd=folder)
    settings = torch.load(folder / "paper/model.pt", weights_only=True)["settings"]
    assert settings["null_pairs"] is True and settings["grn"] == "coexpression" and settings["label_dropout"] == 0
    assert not (settings["skip_gate"] or settings["if_expressed"] or settings["exact_step"])


def test_a_users_network_reaches_genes_outside_the_panel(folder):
    """An unmeasured, unseen target is refused without edges and predicted with them; --also adds a measured one, or one of the edges."""
    adata = anndata.read_h5ad(folder / "tiny.h5ad")
    targets = [c for c in adata.obs["condition"].cat.categories if c != "ctrl"]
    unmeasured = targets[0].split("+")[0]
    adata[:, (adata.var["gene_name"] != unmeasured).to_numpy()].write_h5ad(folder / "without.h5ad")
    genes = adata.var["gene_name"].tolist()
    spare = next(g for g in genes if g not in {t.split("+")[0] for t in targets})
    (folder / "edges.csv").write_text(f"source,target,weight\n{unmeasured},NOT_MEASURED,1\nNOT_MEASURED,{spare},0.5\nUPSTREAM,{spare},1\n")
    common = ["--data", "without.h5ad", "--test", unmeasured, *TINY]
    refused = run("train.py", *common, "--out", "refused", cwd=folder)
    assert refused.returncode == 2 and f"cannot predict '{unmeasured}'" in refused.stderr
    (folder / "edges").mkdir()                                             # a folder that holds no run may be named
    done("train.py", *common, "--out", "edges", "--grn", "edges.csv", "--also", spare, "--also", "UPSTREAM", cwd=folder)
    done("sample.py", "edges", "--condition", spare, "--condition", "UPSTREAM", "--cells", 5, "--out", "spare.h5ad", cwd=folder)
    assert len(anndata.read_h5ad(folder / "spare.h5ad")) == 20


def test_toy_data_writes_a_screen_and_refuses_where_it_cannot(tmp_path):
    """`python toy_data.py screen OUT` makes a file that trains; a folder that is not there is one line and exit code 2."""
    assert "200 cells x 30 genes" in done("toy_data.py", "screen", "s.h5ad", "--cells", 200, "--genes", 30, "--perturbed", 3, cwd=tmp_path)
    assert data.read_screen(str(tmp_path / "s.h5ad")).X.shape == (200, 30)
    result = run("toy_data.py", "screen", "no/s.h5ad", cwd=tmp_path)
    assert result.returncode == 2 and len(result.stderr.strip().splitlines()) == 1 and "no/s.h5ad" in result.stderr
    (tmp_path / "file").write_text("")
    result = run("toy_data.py", "gaussian", "--out", "file", cwd=tmp_path)
    assert result.returncode == 2 and len(result.stderr.strip().splitlines()) == 1


def test_toy_data_demonstration_prints_and_saves_its_table(tmp_path, monkeypatch, capsys):
    """`python toy_data.py pairing` on a tiny screen: exact pairing beats chance, random pairing does not, and the CSV is what it prints."""
    real = toy_data.simulate_screen
    monkeypatch.setattr(toy_data, "simulate_screen", lambda genes, perturbed, cells, seed: real(60, 2, 1400, seed=seed))
    monkeypatch.setattr(toy_data, "STRATEGIES", toy_data.STRATEGIES[:1] + toy_data.STRATEGIES[-1:])
    monkeypatch.setattr(sys, "argv", ["toy_data.py", "pairing", "--out", str(tmp_path / "out")])
    toy_data.main()
    table = pd.read_csv(tmp_path / "out" / "pairing.csv")
    assert len(table) == 12 and "recovered" in capsys.readouterr().out
    exact, random = (table[(table["pairing"] == name) & (table["counts a gene"] == 3)] for name in ("exact", "random"))
    assert (exact["recovered"] > 0.5).all() and (exact["rank, others"] < 0.45).all() and (exact["distance"] < 0.5).all()
    assert (random["recovered"] < 0.2).all() and (random["rank"] > 0.3).all() and (random["distance"] > 0.8).all()
