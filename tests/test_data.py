"""Every form of h5ad that the loader promises to read, its arithmetic, and what it refuses."""
import os

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import data
import sample

GENES = ["KLF1", "BAK1", "STAT1", "ACTB", "GAPDH"]
rng = np.random.default_rng(0)


def write(tmp_path, obs, counts=True, var=None, n_genes=5, **more):
    """An h5ad with the given obs columns; X are counts, or log1p of something not integer."""
    obs = pd.DataFrame(obs)
    obs.index = [f"cell{i}" for i in range(len(obs))]
    X = rng.poisson(2.0, (len(obs), n_genes)).astype(np.float32)
    X[:, 0] += 1
    var = pd.DataFrame(index=GENES[:n_genes]) if var is None else var
    adata = anndata.AnnData(sparse.csr_matrix(X if counts else np.log1p(X * 1.37)), obs=obs, var=var, **more)
    adata.write_h5ad(tmp_path / "screen.h5ad")
    return str(tmp_path / "screen.h5ad")


def test_the_drug_split_never_holds_out_a_whole_drug(tmp_path):
    obs = {"condition": ["control", "Givinostat", "Givinostat", "Belinostat"] * 6, "dose": [1.0, 0.1, 0.001, 0.1] * 6,
           "cell_type": np.repeat(["A549", "K562", "MCF7"], 8), "SMILES": ["C"] * 24}
    screen = data.read_screen(write(tmp_path, obs))
    assert ("Givinostat:0.001", "MCF7") in screen.groups and ("control", "A549") in screen.groups
    data.split(screen, fraction=0.9, seed=1)                               # however many, no drug is held out altogether
    assert 0 < len(screen.held_out) < 9 and all(p != "control" for p, _ in screen.held_out)
    assert {p.split(":")[0] for p, _ in screen.training_groups()} == {"control", "Givinostat", "Belinostat"}


def test_plain_columns_of_the_real_subset():
    path = os.path.join(os.path.dirname(__file__), "../../shared/data/norman19_mcfaline23_subset.h5ad")
    if not os.path.exists(path):
        pytest.skip("the real subset is not here")
    screen = data.prepare(path, test=["TGFBR2+KLF1@k562", "MAPK1"])
    assert screen.X.shape == (5961, 500) and screen.kind == "gene" and len(screen.cell_types) == 4
    assert screen.held_out == {("KLF1+TGFBR2", "k562"), *(("MAPK1", t) for t in screen.cell_types)}


def test_counts_are_scaled_to_the_median_library_and_logged():
    X = np.array([[1, 1, 0], [4, 2, 2], [0, 0, 3]], np.float32)
    got, _ = data.log1p_csr(sparse.csr_matrix(X, dtype=np.float32), "file")
    assert np.allclose(got.toarray(), np.log1p(X / X.sum(1, keepdims=True) * 3))
    assert sparse.issparse(got) and got.dtype == np.float32


def test_gene_choice_keeps_targets_and_prefers_the_variable(tmp_path):
    """Dispersion by hand: variance over mean of expm1, standardised within mean bins."""
    X = rng.uniform(2, 4, 200) * (1 + (rng.random((300, 200)) - 0.5) * np.where(np.arange(200) < 20, 1.8, 0.4))
    dispersion = data.seurat_dispersion(sparse.csr_matrix(np.log1p(X)))
    assert set(np.argsort(-dispersion)[:10]) <= set(range(20))
    obs = {"condition": ["ctrl", "GAPDH+ctrl"] * 10}
    screen = data.prepare(write(tmp_path, obs, counts=False), genes=3, fraction=0)
    assert len(screen.genes) == 3 and "GAPDH" in screen.genes and screen.X.shape == (20, 3)


def test_dispersion_standardises_within_bins():
    """The mean over a bin of many genes is 0 and its standard deviation 1 (Scanpy's ddof)."""
    X = rng.gamma(2.0, rng.uniform(0.5, 2, 500), (400, 500))
    z = data.seurat_dispersion(sparse.csr_matrix(np.log1p(X)))
    bins = pd.cut(np.log1p(X.mean(0)), 20)
    for _, member in pd.Series(z).groupby(bins, observed=True):
        if len(member) > 1:
            assert member.mean() == pytest.approx(0, abs=1e-6) and member.std() == pytest.approx(1, rel=1e-6)


def screen_of_genes(tmp_path):
    labels = ["ctrl", "KLF1+ctrl", "BAK1+ctrl", "STAT1+ctrl", "KLF1+BAK1", "ACTB+ctrl"] * 6
    return data.read_screen(write(tmp_path, {"condition": labels}, counts=False))


def test_a_matrix_without_cells_is_called_that():
    with pytest.raises(data.InputError, match="f.h5ad: X holds no cells"):
        data.log1p_csr(sparse.csr_matrix((0, 3), dtype=np.float32), "f.h5ad")


def test_split_holds_a_gene_out_with_its_combinations(tmp_path):
    for seed in range(5):
        screen = screen_of_genes(tmp_path)
        data.split(screen, fraction=0.25, seed=seed)
        held = {p for p, _ in screen.held_out}
        single = {p for p in held if "+" not in p}
        assert len(single) == 1 and ("BAK1+KLF1" in held) == bool(single & {"BAK1", "KLF1"})
        assert not any(p == "control" for p, _ in screen.held_out)
    screen = screen_of_genes(tmp_path)
    data.split(screen, fraction=0.1)                                       # a tenth of four genes is none: a pair of genes seen alone
    assert {p for p, _ in screen.held_out} == {"BAK1+KLF1"}


def test_training_never_sees_a_held_out_cell(tmp_path):
    screen = screen_of_genes(tmp_path)
    data.split(screen, test=["KLF1"])
    trained = np.concatenate(list(screen.training_groups().values()))
    assert set(screen.perturbation[trained]) == set(screen.perturbation) - {"KLF1"}
    assert len(trained) == len(screen.cells) - 6


def test_split_column_of_the_file_overrides(tmp_path):
    obs = {"condition": ["ctrl", "KLF1+ctrl", "BAK1+ctrl"] * 4, "split": ["train", "test", "train"] * 4}
    screen = data.prepare(write(tmp_path, obs, counts=False))
    assert screen.held_out == {("KLF1", "cell")}


def test_active_values_and_statistics_are_the_groups_own(tmp_path):
    X = sparse.csr_matrix(np.array([[0, 2.0], [4, 0], [6, 0]]))
    mean, level, fraction, variance = sample.population_statistics(X)
    assert np.allclose(mean, [10 / 3, 2 / 3]) and np.allclose(level, [5, 2]) and np.allclose(fraction, [2 / 3, 1 / 3])
    assert np.allclose(variance, [1, 0])
    start, count, values = sample.active_values(X, [np.array([0]), np.array([1, 2])])
    assert values[start[1, 0]:start[1, 0] + count[1, 0]].tolist() == [4, 6]
    assert values[start[1, 1]:start[1, 1] + count[1, 1]].tolist() == [2]   # silent in group 1: borrowed


BAD = {
    "no perturbation column": ({"batch": ["a"] * 8}, {}, "no perturbation column.*batch"),
    "no control label": ({"condition": ["KLF1", "BAK1"] * 4}, {}, "no control label.*BAK1.*--control"),
    "named column is absent": ({"condition": ["ctrl", "KLF1"] * 4}, {"perturbation_column": "gene"}, "no column 'gene'.*condition"),
    "named control is absent": ({"condition": ["ctrl", "KLF1"] * 4}, {"control": "mock"}, "no control label.*mock"),
    "ambiguous columns": ({"condition": ["ctrl", "KLF1"] * 4, "perturbation": ["ctrl", "ctrl", "KLF1", "KLF1"] * 2}, {}, "disagree"),
    "cell type without controls": ({"condition": ["ctrl", "KLF1"] * 4, "cell_type": ["x", "y"] * 4}, {}, "no control cells.*y"),
    "controls only": ({"condition": ["ctrl"] * 8}, {}, "every cell is a control"),
    "no such layer": ({"condition": ["ctrl", "KLF1"] * 4}, {"layer": "raw"}, "no layer 'raw'"),
    "condition that does not exist": ({"condition": ["ctrl", "KLF1"] * 4}, {"test": ["BAK1"]}, "no cells of condition 'BAK1'"),
    "everything held out": ({"condition": ["ctrl", "KLF1"] * 4}, {"test": ["KLF1"]}, "nothing is left to train"),
    "split column without a test": ({"condition": ["ctrl", "KLF1"] * 4, "batch": ["x"] * 8}, {"split_column": "batch"}, "no whole"),
    "fewer genes than targets": ({"condition": ["ctrl", "KLF1", "BAK1", "ACTB"] * 2}, {"genes": 2}, "beside the 3 perturbed"),
    "no genes": ({"condition": ["ctrl", "KLF1"] * 4}, {"genes": 0}, "no genes left"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_labels_are_refused_in_a_sentence_that_names_the_remedy(tmp_path, case):
    obs, options, message = BAD[case]
    with pytest.raises(data.InputError, match=f"(?s){message}"):
        data.prepare(write(tmp_path, obs), **options)


@pytest.mark.parametrize("spoil, message", [
    (lambda a: a.X.data.__setitem__(0, np.nan), "NaN"), (lambda a: a.X.data.__setitem__(0, -1.0), "negative"),
    (lambda a: a.X.data.fill(0), "zero"), (lambda a: setattr(a, "var_names", ["KLF1", "KLF1", "a", "b", "c"]), "duplicate gene names")])
def test_bad_values_are_refused(tmp_path, spoil, message):
    path = write(tmp_path, {"condition": ["ctrl", "KLF1"] * 4})
    adata = anndata.read_h5ad(path)
    spoil(adata)
    adata.write_h5ad(path)
    with pytest.raises(data.InputError, match=message):
        data.prepare(path)


def test_files_that_are_no_h5ad_are_refused(tmp_path):
    (tmp_path / "text.h5ad").write_text("not hdf5")
    whole = open(write(tmp_path, {"condition": ["ctrl", "KLF1"] * 4}), "rb").read()
    (tmp_path / "half.h5ad").write_bytes(whole[:len(whole) // 2])
    for path, message in (("text.h5ad", "cannot be read"), ("half.h5ad", "cannot be read"), ("none.h5ad", "no such file"),
                          (".", "directory")):
        with pytest.raises(data.InputError, match=message):
            data.read_screen(str(tmp_path / path))


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    """A write that fails, or is interrupted, leaves what was there before and no temporary file."""
    path = tmp_path / "x.txt"
    data.save(path, b"first")
    for failure, told in ((OSError(28, "No space left on device"), data.InputError), (KeyboardInterrupt(), KeyboardInterrupt)):
        monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(failure))
        with pytest.raises(told):
            data.save(path, b"second")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.txt"] and path.read_text() == "first"
    with pytest.raises(data.InputError, match="cannot be written"):
        data.save(tmp_path / "no/x.txt", b"")
