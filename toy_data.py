"""Data with known answers: simulated screens of genes and drugs, Gaussians, trackability toys.

    python toy_data.py screen screen.h5ad                a screen in the form of GEARS
    python toy_data.py screen drugs.h5ad --drugs 24      a screen of drugs, as sci-Plex3
    python toy_data.py screen types.h5ad --types 7       one treatment of seven types, as Kang's

The truth stands beside the counts. What can be done with the toys is in course/.
"""

if __name__ == "__main__":
    import report.loading  # noqa: F401  (what follows takes a while)

import argparse

import anndata
import numpy as np
import pandas as pd
import scipy
from scipy import sparse

import screens

# ---- A simulated screen --------------------------------------------------------------------------
#
# A structural equation model on log rates, followed by sequencing:
#
#     z = W z + eta                gene-specific noise eta travels along the regulatory network W
#     log rate = base + cell type + state + z
#     counts   ~ NegativeBinomial(library size x rate / sum of rates)
#
# A knock-down lowers eta of its target, and so travels the same roads as the noise: that is what
# lets co-expression in controls say something of a gene that nobody has perturbed. A cell keeps its
# eta, state and library size in its *control counterfactual* (`layers["counterfactual"]`, the same
# cell without the knock-down, sequenced afresh): the pairing that real data never shows.
#
# Axes: C cells, G genes, R regulators (the first R genes; the perturbed ones are drawn from them).


def regulatory_network(n_genes, n_regulators, rng):
    """A random acyclic network W (G, G): W[j, i] is the effect of regulator i on gene j.

    In log rate per log rate. Regulators act only on later genes, so I - W is invertible. As in real
    networks there are a few hubs, and many regulators with a handful of targets.
    """
    W = np.zeros((n_genes, n_genes))
    popularity = rng.permutation(1.0 / np.arange(1, n_regulators + 1) ** 0.5)
    for j in range(1, n_genes):
        upstream = min(j, n_regulators)
        n_parents = min(upstream, 1 + rng.poisson(1.5))
        weights = popularity[:upstream] / popularity[:upstream].sum()
        parents = rng.choice(upstream, n_parents, replace=False, p=weights)
        signs = rng.choice([-1, 1], n_parents, p=[0.35, 0.65])
        W[j, parents] = signs * rng.uniform(0.25, 0.75, n_parents)
    return W


def total_effects(W):
    """(I - W)^-1 (G, G): what a unit of each gene's own noise does to every gene in the end."""
    return np.linalg.inv(np.eye(len(W)) - W)


def negative_binomial(mean, dispersion, rng):
    """Counts of the given mean (C, G) and variance mean + dispersion * mean^2.

    A Poisson with a gamma rate.
    """
    rate = mean * rng.gamma(1 / dispersion, dispersion, mean.shape)
    return rng.poisson(rate).astype(np.float32)


def unperturbed_cells(W, n_regulators, n_cells, n_types, rng):
    """Log rates (C, G) of cells that nobody perturbed, and the numbers (C,) of their types."""
    n_genes = len(W)
    base = rng.normal(0, 1.0, n_genes)
    base[:n_regulators] = rng.normal(1.0, 0.7, n_regulators)  # regulators must be seen to matter
    noise_scale = rng.lognormal(np.log(0.5), 0.3, n_genes)
    marker = rng.random(n_genes) < 0.3
    shift = np.where(marker, rng.normal(0, 0.8, (n_types - 1, n_genes)), 0)
    type_shift = np.concatenate([np.zeros((1, n_genes)), shift])
    loading = rng.normal(0, 0.25, (2, n_genes)) * (rng.random((2, n_genes)) < 0.3)
    cell_type = rng.integers(0, n_types, n_cells)
    cycle = rng.uniform(0, 2 * np.pi, n_cells)  # a cyclic state of two programmes
    state = np.stack([np.cos(cycle), np.sin(cycle)], 1) * np.sqrt(2)
    eta = rng.normal(0, noise_scale, (n_cells, n_genes))
    log_rate = base + type_shift[cell_type] + state @ loading + eta @ total_effects(W).T
    return log_rate, cell_type


def sequence(log_rate, shift, obs, symbols, W, effect, perturbed, rng):
    """Sequence cells at log_rate + shift (C, G), and their counterfactuals at log_rate.

    Both with the same library sizes. Returns an AnnData; effect (G, P) is the truth of the
    perturbed.
    """
    library = rng.lognormal(np.log(3.0 * len(symbols)), 0.35, (len(obs), 1))
    dispersion = rng.uniform(0.05, 0.2, len(symbols))
    counts = sequenced(log_rate + shift, library, dispersion, rng)
    counterfactual = sequenced(log_rate, library, dispersion, rng)
    obs.index = [f"cell{i:05d}" for i in range(len(obs))]
    text = [column for column in obs if obs[column].dtype == object]
    obs = obs.astype({column: "category" for column in text})
    index = [f"ENSG{i + 1:011d}" for i in range(len(symbols))]
    var = pd.DataFrame({"gene_name": symbols}, index=index)
    X = screens.log1p_csr(counts.astype(np.float32), "simulated")[0]
    adata = anndata.AnnData(X, obs, var)
    adata.layers["counts"] = counts
    adata.layers["counterfactual"] = counterfactual
    adata.varp["grn"] = sparse.csr_matrix(W)
    adata.varm["effect"] = pd.DataFrame(effect, adata.var_names, perturbed)
    return adata


def sequenced(log_rate, library, dispersion, rng):
    """Counts (C, G) CSR of cells at their log rates, with their library sizes (C, 1)."""
    rate = np.exp(log_rate)
    mean = library * rate / rate.sum(1, keepdims=True)
    return sparse.csr_matrix(negative_binomial(mean, dispersion, rng))


def simulate_screen(n_genes=300, n_perturbed=40, n_cells=8000, control_fraction=0.2, seed=0):
    """Simulate a CRISPRi screen of two cell types; returns an AnnData as GEARS distributes them.

    X is log1p of library-size-normalised `layers["counts"]`. The truth is beside them:
    `varp["grn"]` (row: target, column: regulator), `varm["effect"]` (change of log rate in a
    penetrant cell), `layers["counterfactual"]` (the same cell, not perturbed), `obs["penetrant"]`.
    """
    rng = np.random.default_rng(seed)
    n_regulators = max(n_perturbed, n_genes // 5)
    W = regulatory_network(n_genes, n_regulators, rng)
    targets = np.sort(rng.choice(n_regulators, n_perturbed, replace=False))
    knock_down = np.log(1 - rng.uniform(0.75, 0.95, n_perturbed))
    penetrance = rng.uniform(0.65, 0.95, n_perturbed)  # the rest of the cells escape
    log_rate, cell_type = unperturbed_cells(W, n_regulators, n_cells, 2, rng)
    which = np.arange(n_cells) - int(control_fraction * n_cells)
    which = np.where(which < 0, -1, which % n_perturbed)  # -1 is a control
    penetrant = (which >= 0) & (rng.random(n_cells) < penetrance[which])
    effect = total_effects(W)[:, targets] * knock_down  # (G, n_perturbed)
    shift = np.where(penetrant[:, None], effect.T[which], 0)
    symbols = gene_symbols(W, targets)
    names = np.char.add(symbols[targets][which], "+ctrl")
    control = which < 0
    obs = pd.DataFrame(
        {
            "condition": np.where(control, "ctrl", names),
            "penetrant": penetrant,
            "cell_type": np.array(["typeA", "typeB"])[cell_type],
            "dose_val": np.where(control, "1", "1+1"),
            "control": control.astype(int),
        }
    )
    obs["condition_name"] = obs["cell_type"] + "_" + obs["condition"] + "_" + obs["dose_val"]
    return sequence(log_rate, shift, obs, symbols, W, effect, symbols[targets], rng)


def gene_symbols(W, targets):
    """Names of the genes (G,): TF for regulators and targets, GENE for the others."""
    symbols = []
    for i in range(len(W)):
        kind = "TF" if (W[:, i] != 0).any() or i in targets else "GENE"
        symbols.append(f"{kind}{i + 1:03d}")
    return np.array(symbols)


def simulate_drug_screen(
    n_genes=300, n_drugs=24, n_cells=20000, control_fraction=0.15, doses=(0.001, 0.01, 0.1, 1.0),
    seed=0,
):  # fmt: skip
    """Simulate a drug screen of three cell types with the columns of sci-Plex3.

    Drugs come in families of four that share three target regulators and most of 64 structure bits
    (`uns["drug_embedding"]`); strengths differ as the bits do, and by chance. The response is a
    Hill curve of the dose times the cell type's sensitivity to the family. `obs["split_dose"]`,
    `["split_cell_type"]` and `["split_drug"]` each hold out (`test`) another way of being unseen.
    The truth is `varm["effect"]` (change of log rate at full response).
    """
    rng = np.random.default_rng(seed)
    family = np.arange(n_drugs) // 4
    n_families = family[-1] + 1
    n_regulators = n_genes // 5
    n_controls = int(control_fraction * n_cells)
    W = regulatory_network(n_genes, n_regulators, rng)
    log_rate, cell_type = unperturbed_cells(W, n_regulators, n_cells, 3, rng)
    core = rng.random((n_families, 64)) < 0.3
    own = rng.random((n_drugs, 64)) < 0.08  # bits that are not shared with the family
    action = np.zeros((n_families, n_genes))
    for row in action:
        pushes = rng.choice([-1, 1], 3) * rng.uniform(1.0, 2.5, 3)
        row[rng.choice(n_regulators, 3, replace=False)] = pushes
    strength = np.exp(own @ rng.normal(0, 0.15, 64) + rng.normal(0, 0.1, n_drugs))
    effect = action[family] * strength[:, None] @ total_effects(W).T  # (n_drugs, G)
    middle = rng.uniform(-2.5, -0.5, n_families)[family] + rng.normal(0, 0.2, n_drugs)
    half_way = 10**middle  # EC50
    slope = rng.uniform(0.8, 2.0, n_drugs)
    sensitivity = rng.uniform(0.4, 1.2, (n_families, 3))
    treated = np.arange(n_cells - n_controls) % n_drugs
    which = np.concatenate([np.full(n_controls, -1), treated])  # -1 is a control
    control = which < 0
    level = rng.integers(0, len(doses), n_cells)
    dose = np.where(control, 1.0, np.asarray(doses)[level])  # of controls 1, as in chemCPA's file
    response = sensitivity[family[which], cell_type]
    response = response / (1 + (half_way[which] / dose) ** slope[which])
    shift = np.where(control[:, None], 0, response[:, None] * effect[which])
    drugs = np.array([f"{chr(65 + i // 4)}-{i % 4 + 1}" for i in range(n_drugs)])
    unseen = draw_unseen(which, level, cell_type, family, len(doses), rng)
    obs = pd.DataFrame(
        {
            "condition": np.where(control, "control", drugs[which]),
            "dose_val": dose,
            "control": control.astype(int),
            "cell_type": np.array(["typeA", "typeB", "typeC"])[cell_type],
        }
    )
    for name, test in unseen.items():
        obs[name] = np.where(~control & test, "test", "train")
    symbols = [f"GENE{i + 1:03d}" for i in range(n_genes)]
    adata = sequence(log_rate, shift, obs, symbols, W, effect.T, drugs, rng)
    bits = (core[family] ^ own).astype(np.float32)
    adata.uns["drug_embedding"] = pd.DataFrame(bits, drugs, [f"bit{i}" for i in range(64)])
    return adata


def simulate_stimulation(n_genes=300, n_types=7, n_cells=2000, seed=0):
    """Simulate one strong treatment of several cell types, as interferon of blood cells.

    Types are of three lineages, named A1, B1, C1, A2 …, which share markers. One gene in ten
    responds, all of them up, and all others lose their share of the counts. How much it responds
    depends on the lineage, by a factor for each gene, and a little on the type. Half of the cells
    are treated. The truth is `varm["effect"]` (change of log rate in each type).
    """
    rng = np.random.default_rng(seed)
    n_regulators = n_genes // 5
    W = regulatory_network(n_genes, n_regulators, rng)
    log_rate, cell_type = unperturbed_cells(W, n_regulators, n_cells, n_types, rng)
    lineage = np.arange(n_types) % 3
    marker = rng.normal(0, 1.0, (3, n_genes)) * (rng.random((3, n_genes)) < 0.3)
    log_rate = log_rate + marker[lineage[cell_type]]
    response = rng.gamma(2.0, 0.8, n_genes) * (rng.random(n_genes) < 0.1)
    of_lineage = response * np.exp(rng.normal(0, 0.7, (3, n_genes)))
    effect = of_lineage[lineage] * rng.uniform(0.8, 1.2, (n_types, 1))
    effect = effect + rng.normal(0, 0.2, effect.shape) * (response > 0)
    treated = rng.random(n_cells) < 0.5
    shift = np.where(treated[:, None], effect[cell_type], 0)
    types = np.array([f"{'ABC'[i % 3]}{i // 3 + 1}" for i in range(n_types)])
    condition = np.where(treated, "stimulated", "control")
    obs = pd.DataFrame({"condition": condition, "cell_type": types[cell_type]})
    symbols = [f"GENE{i + 1:03d}" for i in range(n_genes)]
    return sequence(log_rate, shift, obs, symbols, W, effect.T, types, rng)


def draw_unseen(which, level, cell_type, family, n_doses, rng):
    """{split column: (C,)}: cells of an unseen dose, an unseen cell type, and an unseen drug.

    Half of the drugs lack a dose, or a type; one drug of each family is unseen altogether.
    """
    n_drugs = len(family)
    half = rng.random(n_drugs) < 0.5
    dose = rng.integers(0, n_doses, n_drugs)
    lacking_type = rng.integers(0, 3, n_drugs)
    member = rng.integers(0, 4, family[-1] + 1)
    return {
        "split_dose": half[which] & (level == dose[which]),
        "split_cell_type": half[which] & (cell_type == lacking_type[which]),
        "split_drug": which % 4 == member[family[which]],
    }


# ---- Gaussians: known answers --------------------------------------------------------------------


def schrodinger_covariance(S0, S1, sigma):
    """Cov(x_0, x_T) (d, d) of the Schroedinger bridge for sigma B over [0, 1] between Gaussians.

    Of covariance S0 and S1: C = (S D S^-1 - sigma^2 I) / 2 with S = S0^(1/2) and
    D = (4 S S1 S + sigma^4 I)^(1/2) (Bunne et al. 2023, Mallasto et al. 2022). In one dimension
    c = (sqrt(4 s0^2 s1^2 + sigma^4) - sigma^2) / 2.
    """
    S = scipy.linalg.sqrtm(S0).real
    identity = np.eye(len(S0))
    D = scipy.linalg.sqrtm(4 * S @ S1 @ S + sigma**4 * identity).real
    return (S @ D @ np.linalg.inv(S) - sigma**2 * identity) / 2


def learned_covariance(C, S0, S1, sigma):
    """Cov(x_0, x_T) (d, d) that a perfectly trained bridge gives back for pairs of covariance C.

    It only ever sees x_t, so it learns the Markov process with the same x_t: the drift of Eq. 8
    averaged given x_t, here A(t) x_t. The covariance with the start follows dK/dt = K A',
    K(0) = S0. The Schroedinger bridge is the C that comes back unchanged, and any other comes back
    nearer in relative entropy (one iteration of iterative Markovian fitting, Shi et al. 2023).
    """
    d = len(S0)
    noise = sigma**2 * np.eye(d)

    def slope(t, K):
        variance = (1 - t) ** 2 * S0 + t**2 * S1 + t * (1 - t) * (C + C.T + noise)
        pull = C.T + t * S1 - (1 - t) * S0 - t * (C + C.T + noise)  # drift's covariance with x_t
        return (K.reshape(d, d) @ np.linalg.solve(variance, pull.T)).ravel()

    path = scipy.integrate.solve_ivp(slope, (0, 1), S0.ravel(), rtol=1e-8, atol=1e-10)
    return path.y[:, -1].reshape(d, d)


def minibatch_covariance(n):
    """Covariance of exactly paired batches of n from each of two standard normals.

    mean_k E[x_(k)]^2, for the best pairing sorts. It is 1 for n = infinity but 1/pi for n = 2:
    small batches bias the plan.
    """
    normal, beta = scipy.stats.norm, scipy.stats.beta
    z = np.linspace(-9, 9, 6001)[:, None]
    k = np.arange(1, n + 1)
    density = normal.pdf(z) * beta.pdf(normal.cdf(z), k, n - k + 1)  # k-th smallest
    return (scipy.integrate.trapezoid(z * density, z, axis=0) ** 2).mean()


# ---- Trackability: known answers -----------------------------------------------------------------
#
# Cells x (n, d) become W x in an unknown order. Can the order be found? (Jafari et al. 2026; their
# matrices are the transposes.)


def near_identity(n, d, kind, rng):
    """Cells (n, d) with N(0, 1/d) entries, and a direction E (d, d) of norm 1 for W = I + s E.

    kind: "uniform" (nearly rank one: it moves all cells along one line) or "Gaussian" (the harder
    toy).
    """
    E = rng.random((d, d)) if kind == "uniform" else rng.normal(size=(d, d))
    return rng.normal(0, d**-0.5, (n, d)), E / np.linalg.norm(E)


def rip_constant(x):
    """The exact (2, delta)-RIP constant of cells x (n, d).

    The smallest delta with |sum v_i x_i|^2 within (1 +- delta) |v|^2 for all v with two entries:
    from the eigenvalues of the 2 x 2 Gram matrix of every pair of cells.
    """
    G = x @ x.T
    i, j = np.triu_indices(len(x), 1)
    middle = (G[i, i] + G[j, j]) / 2
    half = np.hypot((G[i, i] - G[j, j]) / 2, G[i, j])
    return max((middle + half).max() - 1, 1 - (middle - half).min())


def trackable_displacement(x):
    """How far cells x (n, d) may move for the true pairing to stay recoverable.

    Three sufficient bounds on the displacement, rising:

    sqrt((1 - delta) / 2n)   Jafari et al. 2026: their Delta times L (trackable is t < Delta; their
                             text has ">" for both regimes)
    sqrt((1 - delta) / 2)    does not shrink with n: a cell that moved less than half the smallest
                             distance between two cells is nearer to its own start than to any
                             other, and that distance is at least sqrt(2 (1 - delta))
    half that distance       says something even where delta exceeds 1, in few dimensions
    """
    room = max(0.0, 1 - rip_constant(x))
    nearest = scipy.spatial.distance.pdist(x).min()
    return np.sqrt(room / (2 * len(x))), np.sqrt(room / 2), nearest / 2


# ---- Command line --------------------------------------------------------------------------------


def main():
    """Read the command line, write a simulated screen."""
    parser = argparse.ArgumentParser(description=__doc__, **screens.ONE_LINE)
    parser.add_argument("what", choices=["screen"], help="what to simulate")
    parser.add_argument("out", help="the h5ad to write")
    parser.add_argument("--drugs", type=int, help="a screen of so many drugs, by fours")
    parser.add_argument("--types", type=int, help="a screen of one treatment of so many cell types")
    parser.add_argument("--cells", type=int, help="cells (8,000; drugs: 20,000; types: 2,000)")
    parser.add_argument("--genes", type=int, default=300, help="genes (300)")
    parser.add_argument("--perturbed", type=int, help="knocked-down genes (40)")
    parser.add_argument("--seed", type=int, default=0, help="of everything random (0)")
    args = parser.parse_args()
    dosed, treated = args.drugs is not None, args.types is not None
    knocked_down = args.perturbed is not None
    screens.check_effects(
        ("--perturbed", dosed and knocked_down, "beside --drugs"),
        ("--perturbed", treated and knocked_down, "beside --types"),
        ("--drugs", treated and dosed, "beside --types"),
    )
    if args.perturbed is None:
        args.perturbed = 40
    if treated:
        wrong = not 2 <= args.types <= 100
    elif not dosed:
        wrong = not 0 < args.perturbed <= args.genes // 2
    else:
        wrong = args.drugs < 4 or args.drugs % 4
    few_cells = args.cells is not None and args.cells < 100
    many = (args.cells or 0) > 10_000_000 or args.genes > 100_000 or (args.drugs or 0) > 1000
    if wrong or few_cells or many or args.genes < 20 or not 0 <= args.seed < 2**31:
        raise screens.InputError(
            "a screen has 100 cells or more, 20 genes, knock-downs of at most half of them or "
            "drugs by fours or 2 types, a seed from 0; at most 10,000,000 cells, 100,000 genes, "
            "1,000 drugs, 100 types"
        )
    screens.check_folder(args.out, ending=".h5ad")
    if treated:
        adata = simulate_stimulation(args.genes, args.types, args.cells or 2000, seed=args.seed)
    elif dosed:
        adata = simulate_drug_screen(args.genes, args.drugs, args.cells or 20000, seed=args.seed)
    else:
        adata = simulate_screen(args.genes, args.perturbed, args.cells or 8000, seed=args.seed)
    screens.write_h5ad(adata, args.out)
    print(
        f"{args.out}: {adata.n_obs:,} cells x {adata.n_vars:,} genes; "
        f"python -m screens {args.out} tells more"
    )


if __name__ == "__main__":
    screens.run_script(main)
