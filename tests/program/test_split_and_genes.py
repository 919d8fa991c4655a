"""Which conditions are held out, and which genes are kept."""

import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import screens
from examples import SYMBOLS, screen_with, write_labelled


def perturbations(keys):
    return {perturbation for perturbation, _ in keys}


def screen_of_genes(folder):
    """Four genes perturbed alone and a pair of two of them."""
    labels = ["ctrl", "KLF1+ctrl", "BAK1+ctrl", "STAT1+ctrl", "KLF1+BAK1", "ACTB+ctrl"] * 6
    return screens.read_screen(write_labelled(folder, {"condition": labels}, counts=False))


# ---- The paper's split ---------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_gene_is_held_out_with_its_combinations(tmp_path, seed):
    screen = screen_of_genes(tmp_path)
    screens.split(screen, fraction=0.25, seed=seed)
    held_out = perturbations(screen.held_out)
    alone = {name for name in held_out if "+" not in name}
    assert len(alone) == 1
    assert ("BAK1+KLF1" in held_out) == bool(alone & {"BAK1", "KLF1"})
    assert "control" not in held_out


def test_where_the_fraction_is_no_gene_a_pair_of_genes_seen_alone_is_held_out(tmp_path):
    screen = screen_of_genes(tmp_path)
    screens.split(screen, fraction=0.1)  # of four genes: none
    assert perturbations(screen.held_out) == {"BAK1+KLF1"}


def test_a_fraction_of_0_holds_out_nothing(tmp_path):
    screen = screen_of_genes(tmp_path)
    screens.split(screen, fraction=0)
    assert not screen.held_out


@pytest.mark.parametrize("seed", range(20))
def test_no_split_trains_on_a_pair_with_a_gene_that_is_held_out(tmp_path, seed):
    """AMIGO3 is neither measured nor seen alone, and yet its pair goes where KLF1 goes."""
    labels = ["control", "KLF1", "KLF1_AMIGO3", "BAK1", "Arg1", "STAT1"] * 4
    path = write_labelled(tmp_path, {"perturbation": labels}, [*SYMBOLS[:-1], "Ar"])
    held_out = perturbations(screens.prepare(path, seed=seed).held_out)
    assert "AMIGO3+KLF1" in held_out or "KLF1" not in held_out


def drug_screen(folder):
    """Three conditions of two drugs in three cell types."""
    columns = {
        "condition": ["control", "Givinostat", "Givinostat", "Belinostat"] * 6,
        "dose": [1.0, 0.1, 0.001, 0.1] * 6,
        "cell_type": np.repeat(["A549", "K562", "MCF7"], 8),
        "SMILES": ["C"] * 24,
    }
    return screens.read_screen(write_labelled(folder, columns))


def test_drugs_doses_and_cell_types_make_the_conditions(tmp_path):
    screen = drug_screen(tmp_path)
    assert ("Givinostat:0.001", "MCF7") in screen.groups
    assert ("control", "A549") in screen.groups


@pytest.mark.parametrize("seed", range(5))
def test_the_split_never_holds_out_a_whole_drug(tmp_path, seed):
    screen = drug_screen(tmp_path)
    screens.split(screen, fraction=0.9, seed=seed)
    trained = {name.split(":")[0] for name in perturbations(screen.training_groups())}
    assert 0 < len(screen.held_out) < 9
    assert "control" not in perturbations(screen.held_out)
    assert trained == {"control", "Givinostat", "Belinostat"}


# ---- A split that is asked for -------------------------------------------------------------------


def test_training_never_sees_a_held_out_cell(tmp_path):
    screen = screen_of_genes(tmp_path)
    screens.split(screen, test=["KLF1"])
    trained = np.concatenate(list(screen.training_groups().values()))
    assert set(screen.perturbation[trained]) == set(screen.perturbation) - {"KLF1"}
    assert len(trained) == len(screen.cells) - 6


def test_the_split_column_of_the_file_overrides_the_random_split(tmp_path):
    columns = {
        "condition": ["ctrl", "KLF1+ctrl", "BAK1+ctrl"] * 4,
        "split": ["train", "test", "train"] * 4,
    }
    screen = screens.prepare(write_labelled(tmp_path, columns, counts=False))
    assert screen.held_out == {("KLF1", "cell")}
    assert "column 'split' says which conditions are held out" in screen.found


def test_a_condition_is_held_out_by_the_file_only_if_all_its_cells_are(tmp_path):
    columns = {
        "condition": ["ctrl", "KLF1", "BAK1"] * 4,
        "split": ["train", "test", "train"] * 3 + ["train", "test", "test"],
    }
    screen = screens.prepare(write_labelled(tmp_path, columns))
    assert screen.held_out == {("KLF1", "cell")}


def test_conditions_that_are_named_override_the_split_column(tmp_path):
    columns = {
        "condition": ["ctrl", "KLF1", "BAK1"] * 4,
        "split": ["train", "test", "train"] * 4,
    }
    screen = screens.prepare(write_labelled(tmp_path, columns), test=["BAK1"])
    assert screen.held_out == {("BAK1", "cell")}


# ---- The screen that a run was trained on --------------------------------------------------------


def checkpoint_of(screen):
    return {
        "genes": screen.genes.tolist(),
        "kind": screen.kind,
        "groups": screen.fingerprint(),
    }


def test_the_fingerprint_says_which_conditions_are_held_out(tmp_path):
    columns = {"condition": ["ctrl", "KLF1", "BAK1"] * 4}
    screen = screens.prepare(write_labelled(tmp_path, columns), test=["KLF1"])
    assert screen.fingerprint() == [
        ["BAK1", "cell", False],
        ["KLF1", "cell", True],
        ["control", "cell", False],
    ]


def test_the_screen_of_a_run_is_the_same_screen(tmp_path):
    screen = screens.prepare(write_labelled(tmp_path, {"condition": ["ctrl", "KLF1", "A"] * 4}))
    assert screens.same_screen(screen, checkpoint_of(screen)) is screen


OTHER = {
    "genes": ["KLF1"],
    "kind": "drug",
    "groups": [["KLF1", "cell", False], ["control", "cell", False]],
}


@pytest.mark.parametrize("part", OTHER)
def test_a_screen_that_changed_since_is_refused(tmp_path, part):
    screen = screens.prepare(write_labelled(tmp_path, {"condition": ["ctrl", "KLF1", "A"] * 4}))
    content = {**checkpoint_of(screen), part: OTHER[part]}
    with pytest.raises(screens.InputError, match="the file has changed since"):
        screens.same_screen(screen, content)


def test_a_screen_with_another_split_is_refused(tmp_path):
    path = write_labelled(tmp_path, {"condition": ["ctrl", "KLF1", "BAK1"] * 4})
    content = checkpoint_of(screens.prepare(path, test=["KLF1"]))
    with pytest.raises(screens.InputError, match="the file has changed since"):
        screens.same_screen(screens.prepare(path, test=["BAK1"]), content)


# ---- Gene choice ---------------------------------------------------------------------------------


def swinging(cells, variable):
    """Counts (cells, N) that swing around the mean of their gene, much in variable genes (N,)."""
    rng = np.random.default_rng(0)
    mean = rng.uniform(2, 4, len(variable))
    swing = np.where(variable, 1.8, 0.4)
    return mean * (1 + swing * (rng.random((cells, len(variable))) - 0.5))


def test_the_variable_genes_have_the_largest_dispersion():
    variable = np.arange(400) < 20
    X = swinging(300, variable)
    dispersion = screens.seurat_dispersion(sparse.csr_matrix(np.log1p(X)))
    assert set(np.argsort(-dispersion)[:10]) <= set(range(20))


def test_dispersion_is_standardised_within_bins_of_the_mean():
    """Over a bin of many genes its mean is 0 and its standard deviation 1 (Scanpy's ddof)."""
    rng = np.random.default_rng(0)
    X = rng.gamma(2.0, rng.uniform(0.5, 2, 500), (400, 500))
    dispersion = screens.seurat_dispersion(sparse.csr_matrix(np.log1p(X)))
    bins = pd.cut(np.log1p(X.mean(0)), 20)
    grouped = pd.Series(dispersion).groupby(bins, observed=True)
    many = grouped.count() > 1
    assert many.any()
    assert grouped.mean()[many].to_numpy() == pytest.approx(0, abs=1e-6)
    assert grouped.std()[many].to_numpy() == pytest.approx(1, rel=1e-6)


def test_dispersion_of_some_rows_is_that_of_these_rows():
    rng = np.random.default_rng(0)
    X = sparse.csr_matrix(np.log1p(rng.gamma(2.0, 1.0, (90, 40))))
    rows = rng.permutation(90)[:50]
    assert np.allclose(screens.seurat_dispersion(X, rows), screens.seurat_dispersion(X[rows]))


def test_gene_choice_keeps_the_perturbed_genes(tmp_path):
    columns = {"condition": ["ctrl", "GAPDH+ctrl"] * 10}
    path = write_labelled(tmp_path, columns, counts=False)
    screen = screens.prepare(path, genes=3, fraction=0)
    assert "GAPDH" in screen.genes
    assert screen.X.shape == (20, 3)


def test_gene_choice_does_not_look_at_held_out_cells():
    """A gene that varies only where a condition is held out is not kept."""
    number = np.arange(400)
    training = swinging(200, (number >= 5) & (number < 10))
    held_out = swinging(200, (number >= 10) & (number < 30))
    perturbation = np.repeat(["control", "g0", "g1"], [100, 100, 200])
    X = np.log1p(np.concatenate([training, held_out]))
    screen = screen_with(X, perturbation, ["t"] * 400)
    screen.held_out = {("g1", "t")}
    chosen = set(screens.choose_genes(screen, 7).genes)
    assert chosen == {"g0", "g1", "g5", "g6", "g7", "g8", "g9"}


def test_genes_are_taken_in_the_order_that_is_asked_for():
    screen = screen_with(np.arange(12.0).reshape(3, 4) + 1, ["control"] * 3, ["t"] * 3)
    taken = screens.take_genes(screen, [2, 0])
    assert taken.X.toarray().tolist() == [[3, 1], [7, 5], [11, 9]]
    assert taken.genes.tolist() == ["g2", "g0"]
