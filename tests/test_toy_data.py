"""The simulated screen is what it says it is, so that its truth can be trusted."""
import numpy as np
import pytest

import data
from toy_data import negative_binomial, regulatory_network, simulate_screen


@pytest.fixture(scope="module")
def screen():
    return simulate_screen(n_genes=60, n_perturbed=6, n_cells=3000, seed=1)


def test_counts_are_negative_binomial():
    """Variance mean + dispersion mean^2, within 5 % over 400,000 draws."""
    x = negative_binomial(np.full((400_000, 1), 5.0), np.array([0.3]), np.random.default_rng(0))
    assert x.mean() == pytest.approx(5, rel=0.01) and x.var() == pytest.approx(5 + 0.3 * 25, rel=0.05)


def test_network_is_acyclic_and_only_regulators_regulate():
    W = regulatory_network(50, 10, np.random.default_rng(0))
    assert not np.triu(W).any() and not W[:, 10:].any() and (W[1:] != 0).any(1).all()


def test_normalised_counts_are_what_the_loader_makes_of_counts(screen):
    X, how = data.log1p_csr(screen.layers["counts"].astype(np.float32), "counts")
    assert "counts" in how and np.allclose(X.toarray(), screen.X.toarray(), atol=1e-5)


def test_the_files_form_is_gears(screen):
    assert set(screen.obs["condition"].unique()) == {"ctrl", *(c for c in screen.obs["condition"] if c.endswith("+ctrl"))}
    assert len(screen.obs["condition"].unique()) == 7 and set(screen.obs["cell_type"]) == {"typeA", "typeB"}
    assert screen.var_names[0].startswith("ENSG") and (screen.obs.loc[screen.obs["control"] == 1, "condition"] == "ctrl").all()


def test_knock_downs_lower_their_target_in_penetrant_cells_only(screen):
    symbols = list(screen.var["gene_name"])
    counts, twin = (screen.layers[k].toarray() for k in ("counts", "counterfactual"))
    for penetrant, low, high in ((True, 0.05, 0.4), (False, 0.85, 1.15)):
        total = np.zeros(2)
        for gene in screen.varm["effect"].columns:
            cells = ((screen.obs["condition"] == f"{gene}+ctrl") & (screen.obs["penetrant"] == penetrant)).to_numpy()
            total += [x[cells, symbols.index(gene)].sum() for x in (counts, twin)]
        assert low < total[0] / total[1] < high


def test_measured_effects_follow_the_true_ones(screen):
    """Log fold change of mean counts, perturbed against counterfactual, correlates with varm['effect']."""
    counts, twin = (screen.layers[k].toarray() for k in ("counts", "counterfactual"))
    truth, seen = [], []
    for gene in screen.varm["effect"].columns:
        cells = ((screen.obs["condition"] == f"{gene}+ctrl") & screen.obs["penetrant"]).to_numpy()
        strong = twin[cells].mean(0) > 1
        seen.append(np.log(counts[cells].mean(0)[strong] + 0.1) - np.log(twin[cells].mean(0)[strong] + 0.1))
        truth.append(screen.varm["effect"][gene].to_numpy()[strong])
    assert np.corrcoef(np.concatenate(seen), np.concatenate(truth))[0, 1] > 0.8


def test_effects_are_the_networks_own(screen):
    """(I - W) effect is the knock-down at the target and nothing elsewhere: it travels every road of the network, once."""
    W, symbols = screen.varp["grn"].toarray(), list(screen.var["gene_name"])
    for gene, effect in screen.varm["effect"].items():
        source = (np.eye(60) - W) @ effect.to_numpy()
        at = symbols.index(gene)
        assert np.log(0.05) <= source[at] <= np.log(0.25) and np.abs(np.delete(source, at)).max() < 1e-9


def test_control_noise_travels_the_same_network():
    """Genes without edges between their ancestors do not co-vary; parent and child do, with the edge's sign."""
    adata = simulate_screen(60, 6, 4000, seed=1)
    W, counts = adata.varp["grn"].toarray(), np.log1p(adata.layers["counterfactual"].toarray())
    R = np.corrcoef(counts[adata.obs["cell_type"] == "typeA"].T)
    edges = W[np.abs(W) > 0.6]
    assert len(edges) > 5 and np.corrcoef(R[np.abs(W) > 0.6], edges)[0, 1] > 0.7


def test_a_cell_resembles_its_own_counterfactual_more_than_another(screen):
    """The truth that pairing is scored against: state, cell type, noise and depth are shared."""
    X = np.log1p(screen.layers["counts"].toarray()[-300:])
    T = np.log1p(screen.layers["counterfactual"].toarray()[-300:])
    own = np.linalg.norm(X - T, axis=1)
    other = np.linalg.norm(X - np.roll(T, 1, 0), axis=1)
    assert (own < other).mean() > 0.9


def test_same_seed_same_screen():
    a, b, c = (simulate_screen(30, 3, 200, seed=s).X.toarray() for s in (0, 0, 1))
    assert np.array_equal(a, b) and not np.array_equal(a, c)
