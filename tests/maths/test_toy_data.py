"""The simulated screens are what they say they are, so that their truth can be trusted.

Axes: C cells, G genes. W (G, G) is the network, rows targets and columns regulators.
"""

import numpy as np
import pytest

import screens
from toy_data import (
    gene_symbols,
    negative_binomial,
    regulatory_network,
    sequenced,
    simulate_drug_screen,
    simulate_screen,
    simulate_stimulation,
    total_effects,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


# ---- The parts of the model ----------------------------------------------------------------------


def test_counts_are_negative_binomial(rng):
    """Mean and variance m and m + dispersion m^2, per gene, of 200,000 draws."""
    mean = np.full((200_000, 2), 5.0)
    x = negative_binomial(mean, np.array([0.3, 0.1]), rng)
    assert x.mean(0) == pytest.approx(5, rel=0.01)
    assert x.var(0) == pytest.approx([5 + 0.3 * 25, 5 + 0.1 * 25], rel=0.05)


def test_counts_share_out_the_library_by_rate(rng):
    """A gene's mean count is its part of the cell's rates, times the library size."""
    log_rate = np.log(np.tile([1.0, 3.0, 6.0], (20_000, 1)))
    counts = sequenced(log_rate, np.full((20_000, 1), 50.0), np.full(3, 0.1), rng)
    assert np.allclose(counts.mean(0), [5, 15, 30], rtol=0.03)


def test_the_network_has_no_cycle(rng):
    """A gene is regulated by earlier ones only, and every gene but the first is regulated."""
    W = regulatory_network(50, 10, rng)
    assert not np.triu(W).any()
    assert (W[1:] != 0).any(1).all()


def test_only_regulators_regulate_and_a_few_of_them_are_hubs(rng):
    """Of 40, the first genes, the busiest has more than three times as many targets as most."""
    W = regulatory_network(400, 40, rng)
    targets = (W != 0).sum(0)
    assert not targets[40:].any()
    assert targets.max() > 3 * np.median(targets[:40])


def test_edges_are_neither_weak_nor_strong(rng):
    """Their weights lie between 0.25 and 0.75, and 35 % are negative, within 5 standard errors."""
    W = regulatory_network(400, 40, rng)
    edges = W[W != 0]
    negative = (edges < 0).mean()
    assert ((np.abs(edges) >= 0.25) & (np.abs(edges) <= 0.75)).all()
    assert abs(negative - 0.35) < 5 * np.sqrt(0.35 * 0.65 / len(edges))


def test_an_effect_travels_every_road_of_the_network_once():
    """From gene 0 to gene 2 by two roads: 0.5 * 0.5 and 0.3, by hand."""
    W = np.array([[0, 0, 0], [0.5, 0, 0], [0.3, 0.5, 0]])
    assert np.allclose(total_effects(W)[:, 0], [1, 0.5, 0.55])


def test_genes_that_regulate_or_are_perturbed_are_called_tf():
    """The others GENE, numbered from 1."""
    W = np.zeros((4, 4))
    W[3, 0] = 0.5
    assert gene_symbols(W, [2]).tolist() == ["TF001", "GENE002", "TF003", "GENE004"]


# ---- A screen of genes ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def screen():
    return simulate_screen(n_genes=60, n_perturbed=6, n_cells=3000, seed=1)


def counts_of(screen):
    """Counts, and those of the counterfactuals: (C, G) each."""
    return screen.layers["counts"].toarray(), screen.layers["counterfactual"].toarray()


def cells_of(screen, gene, penetrant):
    """Which cells carry a knock-down, and whether it worked in them: (C,)."""
    carry = (screen.obs["condition"] == f"{gene}+ctrl").to_numpy()
    return carry & (screen.obs["penetrant"] == penetrant).to_numpy()


def test_the_expression_is_what_the_loader_makes_of_the_counts(screen):
    """X is log1p of the counts, normalised to the median library size."""
    X, how, _ = screens.log1p_csr(screen.layers["counts"].astype(np.float32), "counts")
    assert "counts" in how
    assert np.allclose(X.toarray(), screen.X.toarray(), atol=1e-5)


def test_the_conditions_are_named_as_gears_names_them(screen):
    """ctrl, and X+ctrl for each of the six genes; var holds Ensembl's names and the symbols."""
    perturbed = {f"{gene}+ctrl" for gene in screen.varm["effect"].columns}
    assert set(screen.obs["condition"]) == {"ctrl", *perturbed}
    assert screen.var_names[0] == "ENSG00000000001"
    assert {name.removesuffix("+ctrl") for name in perturbed} <= set(screen.var["gene_name"])


def test_the_other_columns_are_gears_too(screen):
    """control, dose_val and condition_name agree with the condition."""
    obs = screen.obs.astype(str)
    control = obs["condition"] == "ctrl"
    assert np.array_equal(obs["control"] == "1", control)
    assert np.array_equal(obs["dose_val"], np.where(control, "1", "1+1"))
    parts = obs["cell_type"] + "_" + obs["condition"] + "_" + obs["dose_val"]
    assert np.array_equal(obs["condition_name"], parts)


def test_the_screen_holds_the_controls_and_types_that_it_should(screen):
    """A fifth are controls, the perturbed genes have equal numbers, and there are two types."""
    sizes = screen.obs["condition"].value_counts()
    assert sizes["ctrl"] == 600
    assert set(sizes.drop("ctrl")) == {400}
    assert set(screen.obs["cell_type"]) == {"typeA", "typeB"}


@pytest.mark.parametrize("penetrant, least, most", [(True, 0.05, 0.4), (False, 0.85, 1.15)])
def test_knock_downs_lower_their_target_in_penetrant_cells_only(screen, penetrant, least, most):
    """To between a twentieth and 40 % of what the counterfactuals have; the rest escape."""
    counts, twin = counts_of(screen)
    symbols = list(screen.var["gene_name"])
    knocked = 0
    free = 0
    for gene in screen.varm["effect"].columns:
        cells = cells_of(screen, gene, penetrant)
        knocked += counts[cells, symbols.index(gene)].sum()
        free += twin[cells, symbols.index(gene)].sum()
    assert least < knocked / free < most


def test_controls_are_their_own_counterfactuals(screen):
    """Sequenced twice with the same rates: the genes' means agree, and no control is penetrant."""
    control = (screen.obs["condition"] == "ctrl").to_numpy()
    counts, twin = (x[control] for x in counts_of(screen))
    error = np.sqrt((counts.var(0) + twin.var(0)) / control.sum())
    assert (np.abs(counts.mean(0) - twin.mean(0)) <= 5 * error).all()
    assert not screen.obs["penetrant"][control].any()


def test_a_knock_down_works_in_65_to_95_percent_of_its_cells(screen):
    """Of 400 for each gene, within 5 standard errors."""
    for gene in screen.varm["effect"].columns:
        worked = cells_of(screen, gene, True).sum() / 400
        error = np.sqrt(worked * (1 - worked) / 400)
        assert 0.65 - 5 * error < worked < 0.95 + 5 * error


def test_measured_effects_follow_the_true_ones(screen):
    """Log fold changes over the counterfactuals' means, of genes with counts, match varm."""
    counts, twin = counts_of(screen)
    true = []
    seen = []
    for gene, effect in screen.varm["effect"].items():
        cells = cells_of(screen, gene, True)
        before, after = twin[cells].mean(0), counts[cells].mean(0)
        strong = before > 1
        seen.append(np.log(after[strong] + 0.1) - np.log(before[strong] + 0.1))
        true.append(effect.to_numpy()[strong])
    assert np.corrcoef(np.concatenate(seen), np.concatenate(true))[0, 1] > 0.8


def test_effects_are_those_of_the_network(screen):
    """(I - W) effect is the knock-down, by 75 to 95 %, at the target and nothing elsewhere."""
    W = screen.varp["grn"].toarray()
    symbols = list(screen.var["gene_name"])
    for gene, effect in screen.varm["effect"].items():
        source = effect.to_numpy() - W @ effect.to_numpy()
        target = symbols.index(gene)
        assert np.log(0.05) <= source[target] <= np.log(0.25)
        assert np.abs(np.delete(source, target)).max() < 1e-9


def test_noise_travels_the_same_network(screen):
    """Across strong edges the correlation of counterfactuals has the edge's sign and size."""
    W = screen.varp["grn"].toarray()
    one_type = (screen.obs["cell_type"] == "typeA").to_numpy()
    correlation = np.corrcoef(np.log1p(counts_of(screen)[1])[one_type].T)
    strong = np.abs(W) > 0.6
    assert strong.sum() > 5
    assert np.corrcoef(correlation[strong], W[strong])[0, 1] > 0.7


def test_a_cell_resembles_its_own_counterfactual_more_than_another(screen):
    """State, cell type, noise and depth are shared: the truth that pairing is scored against."""
    counts, twin = (np.log1p(x[-300:]) for x in counts_of(screen))
    own = np.linalg.norm(counts - twin, axis=1)
    other = np.linalg.norm(counts - np.roll(twin, 1, axis=0), axis=1)
    assert (own < other).mean() > 0.9


def test_the_same_seed_gives_the_same_screen():
    """And another seed another one."""
    first, again, other = (simulate_screen(30, 3, 200, seed=seed).X.toarray() for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


# ---- A screen of drugs ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drugs():
    """Twelve drugs, so three families; many cells at each dose."""
    return simulate_drug_screen(n_genes=60, n_drugs=12, n_cells=12_000, seed=0)


def change(screen, drug, dose):
    """Mean log fold change (G,) of a drug at a dose, over the counterfactuals."""
    cells = ((screen.obs["condition"] == drug) & (screen.obs["dose_val"] == dose)).to_numpy()
    counts, twin = (x[cells].mean(0) for x in counts_of(screen))
    return np.log(counts + 0.1) - np.log(twin + 0.1)


def test_the_columns_of_a_drug_screen_are_sci_plexs(drugs):
    """Controls of dose 1, three cell types, four doses of each drug."""
    control = (drugs.obs["condition"] == "control").to_numpy()
    assert set(drugs.obs["dose_val"][control]) == {1.0}
    assert set(drugs.obs["cell_type"]) == {"typeA", "typeB", "typeC"}
    doses = drugs.obs[~control].groupby("condition", observed=True)["dose_val"].nunique()
    assert (doses == 4).all() and len(doses) == 12


def test_more_of_a_drug_does_more(drugs):
    """The response is a Hill curve: along the true effect it rises with the dose, in every drug."""
    for drug, effect in drugs.varm["effect"].items():
        along = [change(drugs, drug, dose) @ effect / (effect @ effect) for dose in (0.001, 1.0)]
        assert along[1] > along[0] + 0.1


def test_the_largest_dose_has_the_effect_in_varm(drugs):
    """At full response of the most sensitive type; over all genes and drugs they go together."""
    seen = [change(drugs, drug, 1.0) for drug in drugs.varm["effect"]]
    true = drugs.varm["effect"].to_numpy().T
    assert np.corrcoef(np.ravel(seen), np.ravel(true))[0, 1] > 0.8


def test_untreated_cells_have_no_shift(drugs):
    """The counts of controls have their counterfactuals' means, within 5 standard errors."""
    control = (drugs.obs["condition"] == "control").to_numpy()
    counts, twin = (x[control] for x in counts_of(drugs))
    error = np.sqrt((counts.var(0) + twin.var(0)) / control.sum())
    assert (np.abs(counts.mean(0) - twin.mean(0)) <= 5 * error).all()


def test_a_drug_pushes_three_regulators_and_the_network_does_the_rest(drugs):
    """(I - W) effect is not 0 at three of the first twelve genes, and 0 elsewhere."""
    W = drugs.varp["grn"].toarray()
    effect = drugs.varm["effect"].to_numpy()
    pushed = np.abs(effect - W @ effect) > 1e-9
    assert (pushed.sum(0) == 3).all()
    assert not pushed[12:].any()


def similarities(table):
    """Cosines between the rows of a table, of drugs of one family and of different ones."""
    family = np.array([name[0] for name in table.index])
    rows = table.to_numpy() / np.linalg.norm(table.to_numpy(), axis=1, keepdims=True)
    cosine = rows @ rows.T
    same = (family[:, None] == family) & ~np.eye(len(family), dtype=bool)
    return cosine[same], cosine[family[:, None] != family]


def test_drugs_of_a_family_do_the_same_and_differ_in_strength(drugs):
    """They share their targets: their effects are multiples of each other."""
    same, different = similarities(drugs.varm["effect"].T)
    assert np.allclose(same, 1)
    assert different.max() < 0.9
    lengths = np.linalg.norm(drugs.varm["effect"].to_numpy()[:, :4], axis=0)
    assert lengths.max() > 1.1 * lengths.min()


def test_drugs_of_a_family_share_most_of_their_structure(drugs):
    """Of the 64 bits in uns, which are what is known of an unseen drug."""
    bits = drugs.uns["drug_embedding"]
    same, different = similarities(bits)
    assert bits.shape == (12, 64) and set(np.unique(bits)) == {0, 1}
    assert same.mean() > 0.6
    assert different.mean() < 0.5


# ---- One treatment of several cell types ---------------------------------------------------------


@pytest.fixture(scope="module")
def stimulation():
    return simulate_stimulation(n_genes=60, n_types=5, n_cells=8000, seed=0)


def responses(stimulation):
    """The log fold changes of treated cells over their counterfactuals, by type: (types, G)."""
    treated = (stimulation.obs["condition"] == "stimulated").to_numpy()
    counts, twin = counts_of(stimulation)
    found = []
    for cell_type in stimulation.varm["effect"]:
        cells = treated & (stimulation.obs["cell_type"] == cell_type).to_numpy()
        found.append(np.log(counts[cells].mean(0) + 0.01) - np.log(twin[cells].mean(0) + 0.01))
    return np.array(found)


def test_a_treatment_moves_each_type_by_its_effect_and_dilutes_what_does_not_respond(stimulation):
    """All by the same, for a cell's counts are as many as before."""
    effect = stimulation.varm["effect"].to_numpy().T
    for found, true in zip(responses(stimulation), effect, strict=True):
        still = true == 0
        diluted = np.median(found[still])
        assert diluted < -0.05
        assert np.corrcoef(found, true)[0, 1] > 0.95
        strong = true > 1
        assert np.allclose(found[strong] - diluted, true[strong], atol=0.5)


def test_a_gene_responds_in_all_types_or_in_none():
    """One in ten, up; alike in a lineage, by another factor in another one."""
    effect = simulate_stimulation(n_genes=1000, n_types=5, n_cells=100, seed=0).varm["effect"]
    responds = (effect != 0).to_numpy()
    assert (responds.all(1) == responds.any(1)).all()
    assert abs(responds[:, 0].sum() - 100) < 5 * np.sqrt(90)
    assert (effect[responds[:, 0]].mean() > 1).all()
    assert list(effect) == ["A1", "B1", "C1", "A2", "B2"]
    alike = np.corrcoef(effect[responds[:, 0]].T)
    same = np.array([alike[0, 3], alike[1, 4]])
    others = np.array([alike[0, 1], alike[0, 2], alike[1, 2], alike[3, 1], alike[4, 0]])
    assert same.min() > 0.9 and others.max() < 0.8


def test_half_of_the_cells_are_treated_and_the_others_have_no_shift(stimulation):
    """In every type; the controls' means are their counterfactuals', within 5 standard errors."""
    control = (stimulation.obs["condition"] == "control").to_numpy()
    share = stimulation.obs.assign(control=control).groupby("cell_type", observed=True)["control"]
    assert (np.abs(share.mean() - 0.5) < 5 * 0.5 / np.sqrt(share.size())).all()
    counts, twin = (x[control] for x in counts_of(stimulation))
    error = np.sqrt((counts.var(0) + twin.var(0)) / control.sum())
    assert (np.abs(counts.mean(0) - twin.mean(0)) <= 5 * error).all()
