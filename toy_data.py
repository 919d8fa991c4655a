"""A simulated Perturb-seq screen with a known answer, written as an h5ad in the GEARS form.

    python toy_data.py screen.h5ad --seed 0

The simulator is a structural equation model on log rates, followed by sequencing:

    z = W z + eta                gene-specific noise eta travels along the regulatory network W
    log rate = base + cell type + state + z
    counts   ~ NegativeBinomial(library size x rate / sum of rates)

A knock-down lowers eta of its target, and so travels the same roads as the noise: that is what lets
control co-expression say something about a gene that nobody has perturbed. A cell keeps its eta, state
and library size in its *control counterfactual* (`layers["counterfactual"]`, the same cell without the
knock-down, sequenced afresh): the pairing that real data never shows.

Axes: C cells, G genes, R regulators (the first R genes; the perturbed ones are drawn from them).
"""
import argparse

import anndata
import numpy as np
import pandas as pd
from scipy import sparse


def regulatory_network(n_genes, n_regulators, rng):
    """A random acyclic GRN: W[j, i] is the effect of regulator i on gene j (log rate per log rate), (G, G).

    Regulators have an order and act only on later genes, so I - W is invertible. Out-degrees are skewed, as in
    real networks: a few hubs, many regulators with a handful of targets.
    """
    W = np.zeros((n_genes, n_genes))
    popularity = rng.permutation(1.0 / np.arange(1, n_regulators + 1) ** 0.5)
    for j in range(1, n_genes):
        upstream = min(j, n_regulators)
        n_parents = min(upstream, 1 + rng.poisson(1.5))
        p = popularity[:upstream] / popularity[:upstream].sum()
        parents = rng.choice(upstream, n_parents, replace=False, p=p)
        W[j, parents] = rng.choice([-1, 1], n_parents, p=[0.35, 0.65]) * rng.uniform(0.25, 0.75, n_parents)
    return W


def negative_binomial(mean, dispersion, rng):
    """Counts of the given mean (C, G) and variance mean + dispersion * mean^2: a Poisson with a gamma rate."""
    return rng.poisson(mean * rng.gamma(1 / dispersion, dispersion, mean.shape)).astype(np.float32)


def log_normalise(counts):
    """Library-size normalisation to the median cell, then log1p, as Scanpy's normalize_total and log1p. (C, G)"""
    total = counts.sum(1, keepdims=True)
    return np.log1p(counts / np.maximum(total, 1) * np.median(total))


def simulate_screen(n_genes=300, n_perturbed=40, n_cells=8000, control_fraction=0.2, seed=0):
    """Simulate a CRISPRi screen of two cell types; returns an AnnData in the form that GEARS distributes.

    X is log1p of library-size-normalised counts; `layers["counts"]` are the counts. The truth is kept beside them:
    `varp["grn"]` (row: target, column: regulator), `varm["effect"]` (change of log rate in a penetrant cell, one
    column per perturbed gene), `layers["counterfactual"]` (counts of the same cell, not perturbed), `obs["penetrant"]`.
    """
    rng = np.random.default_rng(seed)
    n_regulators = max(n_perturbed, n_genes // 5)
    W = regulatory_network(n_genes, n_regulators, rng)
    spread = np.linalg.inv(np.eye(n_genes) - W)                                    # z = spread @ eta
    targets = np.sort(rng.choice(n_regulators, n_perturbed, replace=False))
    knock_down = np.log(1 - rng.uniform(0.75, 0.95, n_perturbed))                  # 75 to 95 % of the transcript
    penetrance = rng.uniform(0.65, 0.95, n_perturbed)                              # the rest of the cells escape

    base = rng.normal(0, 1.0, n_genes)
    base[:n_regulators] = rng.normal(1.0, 0.7, n_regulators)                       # regulators must be seen to matter
    noise_scale = rng.lognormal(np.log(0.5), 0.3, n_genes)
    marker = rng.random(n_genes) < 0.3
    type_shift = np.stack([np.zeros(n_genes), np.where(marker, rng.normal(0, 0.8, n_genes), 0)])
    loading = rng.normal(0, 0.25, (2, n_genes)) * (rng.random((2, n_genes)) < 0.3)

    which = np.full(n_cells, -1)                                                   # -1 is a control
    n_controls = int(control_fraction * n_cells)
    which[n_controls:] = np.arange(n_cells - n_controls) % n_perturbed
    cell_type = rng.integers(0, 2, n_cells)
    cycle = rng.uniform(0, 2 * np.pi, n_cells)                                     # a cyclic state of two programmes
    state = np.stack([np.cos(cycle), np.sin(cycle)], 1) * np.sqrt(2)
    eta = rng.normal(0, noise_scale, (n_cells, n_genes))
    log_rate = base + type_shift[cell_type] + state @ loading + eta @ spread.T

    penetrant = (which >= 0) & (rng.random(n_cells) < penetrance[which])
    effect = spread[:, targets] * knock_down                                       # (G, n_perturbed)
    shift = np.where(penetrant[:, None], effect.T[which], 0)
    library = rng.lognormal(np.log(3.0 * n_genes), 0.35, n_cells)
    dispersion = rng.uniform(0.05, 0.2, n_genes)

    def sequence(log_rate):
        rate = np.exp(log_rate)
        return negative_binomial(library[:, None] * rate / rate.sum(1, keepdims=True), dispersion, rng)

    counts, counterfactual = sequence(log_rate + shift), sequence(log_rate)
    return _gears_form(counts, counterfactual, which, targets, cell_type, penetrant, W, effect)


def _gears_form(counts, counterfactual, which, targets, cell_type, penetrant, W, effect):
    """Names, columns and truth around the simulated counts."""
    n_cells, n_genes = counts.shape
    symbols = np.array([f"TF{i + 1:03d}" if (W[:, i] != 0).any() or i in targets else f"GENE{i + 1:03d}"
                        for i in range(n_genes)])
    condition = np.where(which < 0, "ctrl", np.char.add(symbols[targets][which], "+ctrl"))
    dose = np.where(which < 0, "1", "1+1")
    types = np.array(["typeA", "typeB"])[cell_type]
    obs = pd.DataFrame({"condition": pd.Categorical(condition), "cell_type": pd.Categorical(types),
                        "dose_val": pd.Categorical(dose), "control": (which < 0).astype(int),
                        "condition_name": [f"{t}_{c}_{d}" for t, c, d in zip(types, condition, dose)],
                        "penetrant": penetrant},
                       index=[f"cell{i:05d}" for i in range(n_cells)])
    var = pd.DataFrame({"gene_name": symbols}, index=[f"ENSG{i + 1:011d}" for i in range(n_genes)])
    adata = anndata.AnnData(sparse.csr_matrix(log_normalise(counts), dtype=np.float32), obs=obs, var=var)
    adata.layers["counts"] = sparse.csr_matrix(counts)
    adata.layers["counterfactual"] = sparse.csr_matrix(counterfactual)
    adata.varp["grn"] = sparse.csr_matrix(W)
    adata.varm["effect"] = pd.DataFrame(effect, index=var.index, columns=symbols[targets])
    return adata


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("out", help="where to write the h5ad")
    parser.add_argument("--cells", type=int, default=8000)
    parser.add_argument("--genes", type=int, default=300)
    parser.add_argument("--perturbed", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    adata = simulate_screen(args.genes, args.perturbed, args.cells, seed=args.seed)
    adata.write_h5ad(args.out, compression="gzip")
    print(f"{args.out}: {adata.n_obs} cells x {adata.n_vars} genes, {args.perturbed} knock-downs, 2 cell types")


if __name__ == "__main__":
    main()
