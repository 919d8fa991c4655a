"""Toys with known answers: a simulated Perturb-seq screen, Gaussian bridges, trackability, and what pairing recovers.

    python toy_data.py screen screen.h5ad        an h5ad in the GEARS form, its truth beside the counts; --drugs 24: as sci-Plex3
    python toy_data.py gaussian                  learned bridges against the closed-form Schroedinger bridge
    python toy_data.py trackability              when can the true pairing be found at all?
    python toy_data.py pairing                   how much of the simulated screen's true pairing each strategy finds

The last three write a table (CSV), the first two of them also a figure, into runs/NAME.
"""
import argparse
import itertools
import multiprocessing
import os
from functools import partial

import anndata
import numpy as np
import pandas as pd
import torch
from scipy import integrate, linalg, optimize, sparse, stats
from scipy.spatial.distance import cdist
from tqdm import tqdm

import data
from baselines import laot, trackable_displacement
from departures import Departures, Settings, joint_loss, pair, sample
from evaluate import gamma_by_median, mmd2
from figures import draw_gaussian, draw_trackability


# ------------------------------------------------------------------------------------------------ a simulated screen
# A structural equation model on log rates, followed by sequencing:
#
#     z = W z + eta                gene-specific noise eta travels along the regulatory network W
#     log rate = base + cell type + state + z
#     counts   ~ NegativeBinomial(library size x rate / sum of rates)
#
# A knock-down lowers eta of its target, and so travels the same roads as the noise: that is what lets control co-expression
# say something about a gene that nobody has perturbed. A cell keeps its eta, state and library size in its *control
# counterfactual* (`layers["counterfactual"]`, the same cell without the knock-down, sequenced afresh): the pairing that real
# data never shows. Axes: C cells, G genes, R regulators (the first R genes; the perturbed ones are drawn from them).

def regulatory_network(n_genes, n_regulators, rng):
    """A random acyclic GRN: W[j, i] is the effect of regulator i on gene j (log rate per log rate), (G, G).

    Regulators act only on later genes, so I - W is invertible. As in real networks: a few hubs, many with a handful of targets.
    """
    W = np.zeros((n_genes, n_genes))
    popularity = rng.permutation(1.0 / np.arange(1, n_regulators + 1) ** 0.5)
    for j in range(1, n_genes):
        upstream = min(j, n_regulators)
        n_parents = min(upstream, 1 + rng.poisson(1.5))
        parents = rng.choice(upstream, n_parents, replace=False, p=popularity[:upstream] / popularity[:upstream].sum())
        W[j, parents] = rng.choice([-1, 1], n_parents, p=[0.35, 0.65]) * rng.uniform(0.25, 0.75, n_parents)
    return W


def negative_binomial(mean, dispersion, rng):
    """Counts of the given mean (C, G) and variance mean + dispersion * mean^2: a Poisson with a gamma rate."""
    return rng.poisson(mean * rng.gamma(1 / dispersion, dispersion, mean.shape)).astype(np.float32)


def unperturbed_cells(W, n_regulators, n_cells, n_types, rng):
    """Log rates (C, G) of cells that nobody perturbed, and their types (C,); noise travels along W as perturbations will."""
    n_genes, base = len(W), rng.normal(0, 1.0, len(W))
    base[:n_regulators] = rng.normal(1.0, 0.7, n_regulators)                       # regulators must be seen to matter
    noise_scale = rng.lognormal(np.log(0.5), 0.3, n_genes)
    marker = rng.random(n_genes) < 0.3
    type_shift = np.concatenate([np.zeros((1, n_genes)), np.where(marker, rng.normal(0, 0.8, (n_types - 1, n_genes)), 0)])
    loading = rng.normal(0, 0.25, (2, n_genes)) * (rng.random((2, n_genes)) < 0.3)
    cell_type = rng.integers(0, n_types, n_cells)
    cycle = rng.uniform(0, 2 * np.pi, n_cells)                                     # a cyclic state of two programmes
    state = np.stack([np.cos(cycle), np.sin(cycle)], 1) * np.sqrt(2)
    eta = rng.normal(0, noise_scale, (n_cells, n_genes))
    return base + type_shift[cell_type] + state @ loading + eta @ np.linalg.inv(np.eye(n_genes) - W).T, cell_type


def sequence(log_rate, shift, obs, symbols, W, effect, perturbed, rng):
    """The AnnData of cells (C, G) at log_rate + shift, sequenced, and of their counterfactuals at log_rate, of the same library sizes."""
    library = rng.lognormal(np.log(3.0 * len(symbols)), 0.35, (len(obs), 1))
    dispersion = rng.uniform(0.05, 0.2, len(symbols))
    counts, counterfactual = (sparse.csr_matrix(negative_binomial(library * rate / rate.sum(1, keepdims=True), dispersion, rng))
                              for rate in map(np.exp, (log_rate + shift, log_rate)))
    obs.index = [f"cell{i:05d}" for i in range(len(obs))]
    var = pd.DataFrame({"gene_name": symbols}, index=[f"ENSG{i + 1:011d}" for i in range(len(symbols))])
    adata = anndata.AnnData(data.log1p_csr(counts.astype(np.float32), "simulated")[0], obs.astype({c: "category" for c in obs if obs[c].dtype == object}), var)
    adata.layers.update(counts=counts, counterfactual=counterfactual)
    adata.varp["grn"], adata.varm["effect"] = sparse.csr_matrix(W), pd.DataFrame(effect, adata.var_names, perturbed)
    return adata


def simulate_screen(n_genes=300, n_perturbed=40, n_cells=8000, control_fraction=0.2, seed=0):
    """Simulate a CRISPRi screen of two cell types; returns an AnnData in the form that GEARS distributes.

    X is log1p of library-size-normalised `layers["counts"]`. The truth is beside them: `varp["grn"]` (row: target, column: regulator),
    `varm["effect"]` (change of log rate in a penetrant cell), `layers["counterfactual"]` (the same cell, not perturbed), `obs["penetrant"]`.
    """
    rng, n_regulators = np.random.default_rng(seed), max(n_perturbed, n_genes // 5)
    W = regulatory_network(n_genes, n_regulators, rng)
    spread, targets = np.linalg.inv(np.eye(n_genes) - W), np.sort(rng.choice(n_regulators, n_perturbed, replace=False))     # z = spread @ eta
    knock_down, penetrance = np.log(1 - rng.uniform(0.75, 0.95, n_perturbed)), rng.uniform(0.65, 0.95, n_perturbed)   # the rest escape
    log_rate, cell_type = unperturbed_cells(W, n_regulators, n_cells, 2, rng)
    which = np.arange(n_cells) - int(control_fraction * n_cells)
    which = np.where(which < 0, -1, which % n_perturbed)                           # -1 is a control
    penetrant, effect = (which >= 0) & (rng.random(n_cells) < penetrance[which]), spread[:, targets] * knock_down     # (G, n_perturbed)
    shift = np.where(penetrant[:, None], effect.T[which], 0)
    symbols = np.array([f"TF{i + 1:03d}" if (W[:, i] != 0).any() or i in targets else f"GENE{i + 1:03d}" for i in range(n_genes)])
    obs = pd.DataFrame({"condition": np.where(which < 0, "ctrl", np.char.add(symbols[targets][which], "+ctrl")), "penetrant": penetrant,
                        "cell_type": np.array(["typeA", "typeB"])[cell_type], "dose_val": np.where(which < 0, "1", "1+1"),
                        "control": (which < 0).astype(int)})
    obs["condition_name"] = obs["cell_type"] + "_" + obs["condition"] + "_" + obs["dose_val"]
    return sequence(log_rate, shift, obs, symbols, W, effect, symbols[targets], rng)


def simulate_drug_screen(n_genes=300, n_drugs=24, n_cells=20000, control_fraction=0.15, doses=(0.001, 0.01, 0.1, 1.0), seed=0):
    """Simulate a drug screen of three cell types in the form of sci-Plex3: `condition`, `cell_type`, `dose_val`.

    Drugs come in families of four that share three target regulators and most of 64 structure bits (`uns["drug_embedding"]`); strengths
    differ as the bits do, and by chance. The response is a Hill curve of the dose times the cell type's sensitivity to the family.
    `obs["split_dose"]`, `["split_cell_type"]` and `["split_drug"]` each hold out (`test`) another way of being unseen. The truth is
    `varm["effect"]` (change of log rate at full response).
    """
    rng, family, n_regulators, n_controls = np.random.default_rng(seed), np.arange(n_drugs) // 4, n_genes // 5, int(control_fraction * n_cells)
    W = regulatory_network(n_genes, n_regulators, rng)
    log_rate, cell_type = unperturbed_cells(W, n_regulators, n_cells, 3, rng)
    core, own = rng.random((family[-1] + 1, 64)) < 0.3, rng.random((n_drugs, 64)) < 0.08       # own: bits not shared with the family
    action = np.zeros((len(core), n_genes))
    for row in action:
        row[rng.choice(n_regulators, 3, replace=False)] = rng.choice([-1, 1], 3) * rng.uniform(1.0, 2.5, 3)
    strength = np.exp(own @ rng.normal(0, 0.15, 64) + rng.normal(0, 0.1, n_drugs))
    effect = action[family] * strength[:, None] @ np.linalg.inv(np.eye(n_genes) - W).T                  # (n_drugs, G)
    half_way = 10 ** (rng.uniform(-2.5, -0.5, len(core))[family] + rng.normal(0, 0.2, n_drugs))         # EC50
    slope, sensitivity = rng.uniform(0.8, 2.0, n_drugs), rng.uniform(0.4, 1.2, (len(core), 3))
    which = np.concatenate([np.full(n_controls, -1), np.arange(n_cells - n_controls) % n_drugs])         # -1 is a control
    level = rng.integers(0, len(doses), n_cells)
    dose = np.where(which < 0, 1.0, np.asarray(doses)[level])                      # of controls 1, as in chemCPA's file
    response = sensitivity[family[which], cell_type] / (1 + (half_way[which] / dose) ** slope[which])
    shift = np.where(which[:, None] < 0, 0, response[:, None] * effect[which])
    drugs = np.array([f"{chr(65 + i // 4)}-{i % 4 + 1}" for i in range(n_drugs)])
    half = rng.random(n_drugs) < 0.5                                               # of the drugs have an unseen dose, or type
    unseen = {"split_dose": half[which] & (level == rng.integers(0, len(doses), n_drugs)[which]),
              "split_cell_type": half[which] & (cell_type == rng.integers(0, 3, n_drugs)[which]),
              "split_drug": which % 4 == rng.integers(0, 4, len(core))[family[which]]}                   # one of each family
    obs = pd.DataFrame({"condition": np.where(which < 0, "control", drugs[which]), "dose_val": dose, "control": (which < 0).astype(int),
                        "cell_type": np.array(["typeA", "typeB", "typeC"])[cell_type],
                        **{name: np.where((which >= 0) & test, "test", "train") for name, test in unseen.items()}})
    adata = sequence(log_rate, shift, obs, [f"GENE{i + 1:03d}" for i in range(n_genes)], W, effect.T, drugs, rng)
    adata.uns["drug_embedding"] = pd.DataFrame((core[family] ^ own).astype(np.float32), drugs, [f"bit{i}" for i in range(64)])
    return adata


# ------------------------------------------------------------------------------------------------ Gaussian bridges

def schrodinger_covariance(S0, S1, sigma):
    """Cov(x_0, x_T) (d, d) of the Schroedinger bridge for sigma B over [0, 1] between Gaussians of covariance S0 and S1.

    C = (S D S^-1 - sigma^2 I) / 2 with S = S0^(1/2), D = (4 S S1 S + sigma^4 I)^(1/2): Bunne et al. 2023, Mallasto et al. 2022.
    In one dimension c = (sqrt(4 s0^2 s1^2 + sigma^4) - sigma^2) / 2.
    """
    S, identity = linalg.sqrtm(S0).real, np.eye(len(S0))
    D = linalg.sqrtm(4 * S @ S1 @ S + sigma ** 4 * identity).real
    return (S @ D @ np.linalg.inv(S) - sigma ** 2 * identity) / 2


def learned_covariance(C, S0, S1, sigma):
    """Cov(x_0, x_T) (d, d) that a perfectly trained bridge gives back when its training pairs have Cov(x_0, x_T) = C.

    It only ever sees x_t, so it learns the Markov process with the same x_t: the drift of Eq. 8 averaged given x_t, here A(t) x_t. The
    covariance with the start follows dK/dt = K A', K(0) = S0. The Schroedinger bridge is the C that comes back unchanged, and
    any other comes back nearer in relative entropy (one iteration of iterative Markovian fitting, Shi et al. 2023).
    """
    d, noise = len(S0), sigma ** 2 * np.eye(len(S0))

    def slope(t, K):
        variance = (1 - t) ** 2 * S0 + t ** 2 * S1 + t * (1 - t) * (C + C.T + noise)
        pull = C.T + t * S1 - (1 - t) * S0 - t * (C + C.T + noise)         # (Cov(x_T, x_t) - variance) / (1 - t)
        return (K.reshape(d, d) @ np.linalg.solve(variance, pull.T)).ravel()
    return integrate.solve_ivp(slope, (0, 1), S0.ravel(), rtol=1e-8, atol=1e-10).y[:, -1].reshape(d, d)


def minibatch_covariance(n):
    """Covariance of exactly paired batches of n from each of two standard normals: mean_k E[x_(k)]^2, as the best pairing sorts.
    It is 1 for n = infinity but 1/pi for n = 2: small batches bias the plan."""
    z, k = np.linspace(-9, 9, 6001)[:, None], np.arange(1, n + 1)
    density = stats.norm.pdf(z) * stats.beta.pdf(stats.norm.cdf(z), k, n - k + 1)            # of the k-th smallest
    return (integrate.trapezoid(z * density, z, axis=0) ** 2).mean()


def fit_bridge(x0, xT, sigma, steps=1000, batch=256, seed=0):
    """Train the project's own bridge on pairs x0, xT (n, d) of real vectors; returns a sampler, x0 (m, d) -> x_T (m, d).

    Levels are lifted by 10, far from zero: every gene is on, and only the Brownian bridge has anything to learn. Sampled by Eq. 16,
    whose variance is off by less here than the exact step's (see `exact_bridge_step`).
    """
    torch.manual_seed(seed)
    generator, d = torch.Generator().manual_seed(seed), x0.shape[1]
    x0, xT = (torch.as_tensor(x + 10, dtype=torch.float32) for x in (x0, xT))
    settings = Settings(sigma=sigma, if_expressed=False, exact_step=False, label_dropout=0.0, target_dropout=0.0, width=64)
    model = Departures(settings, [f"gene{i}" for i in range(d)], ["shift"], ["cell"])
    model.add_cell_type("cell", x0.mean(0), x0.mean(0), np.ones(d), 1000)
    model.level_scale.copy_(x0.std(0))
    model.log_scale.data.copy_(x0.std(0).log().expand(2, -1))
    model.encoder.seen[:] = model.encoder.seen_pair[:] = True
    condition = model.condition([("shift", 1.0)], "cell")
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    cooling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, steps)
    model.train()
    for _ in range(steps):
        b = torch.randint(len(x0), (batch,), generator=generator)
        optimiser.zero_grad()
        sum(joint_loss(model, x0[b], xT[b], [condition], torch.zeros_like(b), None, None, generator)).backward()
        optimiser.step()
        cooling.step()
    return lambda start: sample(model, torch.as_tensor(start + 10, dtype=torch.float32), condition, None, generator)[1].numpy() - 10


def paired(x0, xT, n, settings, generator):
    """x0 reordered so that row i is the partner of xT[i], from plans over batches of n cells."""
    x0, xT = (torch.as_tensor(x, dtype=torch.float32) for x in (x0, xT))
    return torch.cat([a[pair(b, a, settings, generator)[0]] for a, b in zip(x0.split(n), xT.split(n))]).numpy()


def gaussian(out, seed=0, dimensions=(1, 2, 20), batches=(8, 32, 128, 512), pairs=8192, sigma=1.0):
    """Bridges trained on minibatch pairs of two Gaussians, sampled, beside the closed-form Schroedinger bridge."""
    rows, rng = [], np.random.default_rng(seed)
    for d in dimensions:
        rotations = [stats.ortho_group.rvs(d, random_state=rng) if d > 1 else np.eye(1) for _ in range(2)]
        S0, S1 = [(Q * (rng.uniform(0.5, 1.5, d) if d > 1 else 1.0)) @ Q.T for Q in rotations]
        target = schrodinger_covariance(S0, S1, sigma)
        along = lambda C: (C * target).sum() / (target ** 2).sum()         # 1 at the closed form  # noqa: E731
        off = lambda A, B: np.linalg.norm(A - B) / np.linalg.norm(B)  # noqa: E731
        for how, n in tqdm([(how, n) for how in ("exact", "entropic", "random") for n in batches], f"{d} dimensions"):
            x0, xT = (rng.multivariate_normal(np.full(d, m), S, pairs) for m, S in ((0, S0), (1, S1)))
            partner = paired(x0, xT, n, Settings(sigma=sigma, pairing=how, epsilon="bridge"), torch.Generator().manual_seed(seed))
            C = np.cov(partner.T, xT.T)[:d, d:]
            start = rng.multivariate_normal(np.zeros(d), S0, 20_000)
            end = fit_bridge(partner, xT, sigma, seed=seed)(start)
            joint = np.cov(start.T, end.T)
            rows.append({"dimensions": d, "pairing": how, "batch": n, "pairs": along(C), "bridge": along(joint[:d, d:]),
                         "bridge in theory": along(learned_covariance(C, S0, S1, sigma)), "pairs off": off(C, target),
                         "bridge off": off(joint[:d, d:], target), "mean off": np.abs(end.mean(0) - 1).max(),
                         "covariance off": off(joint[d:, d:], S1)})
    table = pd.DataFrame(rows)
    one = schrodinger_covariance(np.eye(1), np.eye(1), sigma).item()
    draw_gaussian(f"{out}/gaussian.png", table, {n: minibatch_covariance(n) / one for n in 2 ** np.arange(3, 10)})
    return table


# ------------------------------------------------------------------------------------------------ trackability
# Cells x (n, d) become W x in an unknown order. Can the order be found? (Jafari et al. 2026; their matrices are the transposes.)

def near_identity(n, d, kind, rng):
    """Cells (n, d) with N(0, 1/d) entries and a direction E (d, d) of Frobenius norm 1 for W = I + s E, uniform (nearly rank one: it
    moves all cells along one line) or Gaussian (the harder toy)."""
    E = rng.random((d, d)) if kind == "uniform" else rng.normal(size=(d, d))
    return rng.normal(0, d ** -0.5, (n, d)), E / np.linalg.norm(E)


DIMENSIONS, DEVIATIONS = range(10, 101, 10), (0, 0.1, 0.2, 0.5, 1, 2, 5, *range(10, 201, 10))
BOUNDS = ("RIP bound with n", "RIP bound", "distance bound")
TRACKED = ("kind", "dimensions", "deviation", "LAOT", "OT pairing", "MMD2", *BOUNDS)


def track(point, n=100, trials=50, iterations=10):
    """One point of the grid: means of the recovery by LAOT and by one exact plan, of the MMD^2 of LAOT's map between
    held-out cells, and of the deviation s = |W - I|_F at which the farthest-moving cell reaches each bound."""
    kind, d, deviation = point
    rng = np.random.default_rng([d, int(10 * deviation), kind == "uniform"])
    scores = []
    for _ in range(trials):
        cells, E = near_identity(3 * n, d, kind, rng)
        x, start, end, order, W = *np.split(cells, 3), rng.permutation(n), np.eye(d) + deviation * E
        xT = x[order] @ W.T
        found, learned = laot(x, xT, iterations)
        plan = optimize.linear_sum_assignment(cdist(xT, x, "sqeuclidean"))[1]       # LAOT's first step, where W = I
        bounds = np.array(trackable_displacement(x)) / np.linalg.norm(x @ E.T, axis=1).max()
        scores.append([(found == order).mean(), (plan == order).mean(),
                       mmd2(start @ learned.T, end @ W.T, gamma_by_median(xT)), *bounds])
    return dict(zip(TRACKED, (*point, *np.mean(scores, 0))))


def track_by_bridge(point, n=100, d=50, sigma=0.02):
    """The project's own pairing and bridge on the toy: the share of pairs that are true, of starts that the trained bridge brings
    nearest to their own end, and MMD^2 on held-out cells; LAOT's beside them."""
    (kind, deviation), rng = point, np.random.default_rng(d)
    cells, E = near_identity(3 * n, d, kind, rng)
    x, start, end, order, W = *np.split(cells, 3), rng.permutation(n), np.eye(d) + deviation * E
    xT = x[order] @ W.T
    gamma, (found, learned) = gamma_by_median(xT), laot(x, xT)
    partner = pair(*(torch.as_tensor(a) for a in (xT, x)), Settings(pairing="exact"), torch.Generator().manual_seed(0))[0].numpy()
    bridge = fit_bridge(x[partner], xT, sigma, steps=500, batch=n)
    nearest = np.linalg.norm(bridge(x)[:, None] - x @ W.T, axis=2).argmin(1)
    return {"kind": kind, "deviation": deviation, "farthest move": deviation * np.linalg.norm(x @ E.T, axis=1).max(),
            "distance bound": trackable_displacement(x)[2], "LAOT": (found == order).mean(),
            "OT pairing": (partner == order).mean(), "bridge": (nearest == np.arange(n)).mean(),
            "LAOT MMD2": mmd2(start @ learned.T, end @ W.T, gamma),
            "bridge MMD2": mmd2(bridge(start), end @ W.T, gamma)}


def trackability(out, trials=50):
    """The benchmark's grid (n = 100, 10 iterations), then the project's bridge on both sides of the threshold."""
    os.environ.update(OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")       # of the processes below, one to a core
    grid = list(itertools.product(("uniform", "Gaussian"), DIMENSIONS, DEVIATIONS))
    points = list(itertools.product(("uniform", "Gaussian"), (0.5, 10, 30, 100)))
    with multiprocessing.get_context("spawn").Pool() as pool:
        table = pd.DataFrame(tqdm(pool.imap(partial(track, trials=trials), grid, 4), "LAOT", len(grid), unit="point"))
        bridges = pd.DataFrame(tqdm(pool.imap(track_by_bridge, points), "bridges", len(points), unit="bridge"))
    table.to_csv(f"{out}/grid.csv", index=False)
    draw_trackability(f"{out}/trackability.png", table, BOUNDS)
    return bridges


# ------------------------------------------------------------------------------------------------ pairing on the screen

STRATEGIES = (("exact", "all genes", {}), ("exact, Euclidean", "all genes", {"cost": "euclidean"}),
              ("exact, cosine", "all genes", {"cost": "cosine"}), ("exact", "20 PCs", {}), ("exact", "50 highest genes", {}),
              ("entropic, 0.05 mean", "all genes", {"pairing": "entropic", "epsilon": "0.05"}),
              ("entropic, 0.1 max", "all genes", {"pairing": "entropic", "epsilon": "0.1max"}),
              ("random", "all genes", {"pairing": "random"}))


def pairing(out, seed=0):
    """How much of the true pairing (each perturbed cell and its own counterfactual) each strategy finds in noisy counts.

    `counts a gene`: as simulated, and a tenth. The pool is the counterfactuals of the batch's own cells: `recovered`, the share that get
    theirs; `rank`, the share of the pool nearer to it than the one they get (chance 0.5; `rank, others`: in a pool of real controls).
    """
    screen, rng, rows = simulate_screen(300, 4, 6000, seed=seed), np.random.default_rng(seed), []
    counts, twin = (screen.layers[k].toarray().astype(int) for k in ("counts", "counterfactual"))
    log_normalise = lambda x: data.log1p_csr(sparse.csr_matrix(x, dtype=np.float32), "simulated")[0].toarray()  # noqa: E731
    full_twin, full = map(log_normalise, (twin, counts))
    label = screen.obs["condition"].astype(str) + "@" + screen.obs["cell_type"].astype(str)
    groups = {name: np.flatnonzero(label == name) for name in sorted(set(label))}
    for depth in (1.0, 0.1):
        seen, seen_twin = (log_normalise(rng.binomial(c, depth)) for c in (counts, twin))
        spaces = gene_spaces(seen[(screen.obs["condition"] == "ctrl").to_numpy()])
        for (name, space, choice), n in tqdm(list(itertools.product(STRATEGIES, (32, 128, 512))), f"depth {depth:g}"):
            scores, generator = [], torch.Generator().manual_seed(seed)
            for group in [g for g in groups if not g.startswith("ctrl")]:
                controls = groups["ctrl@" + group.rpartition("@")[2]]
                for cells in np.array_split(groups[group][:512], 512 // n):
                    others = rng.permutation(controls)[:len(cells)]
                    for pool, truth in ((seen_twin[cells], full_twin[cells]), (seen[others], full[others])):
                        looks = (torch.from_numpy(x) @ spaces[space] for x in (seen[cells], pool))
                        scores.append(against_truth(full_twin[cells], truth, pair(*looks, Settings(**{"pairing": "exact", **choice}), generator)[0].numpy()))
            twins, real = np.mean(scores[::2], 0), np.mean(scores[1::2], 0)
            rows.append({"counts a gene": 3 * depth, "pairing": name, "space": space, "batch": n, "recovered": twins[0],
                         "chance": 1 / n, "rank": twins[1], "distance": twins[2], "rank, others": real[1]})
    return pd.DataFrame(rows)


def gene_spaces(controls):
    """{name: matrix (G, k)}: where pairing may look. Axes come from the control cells."""
    axes = np.linalg.svd(controls - controls.mean(0), full_matrices=False)[2]
    highest, every = np.argsort(-controls.mean(0))[:50], np.eye(controls.shape[1], dtype=np.float32)
    return {"all genes": torch.from_numpy(every), "20 PCs": torch.from_numpy(axes[:20].T),
            "50 highest genes": torch.from_numpy(every[:, highest])}


def against_truth(twin, pool, drawn):
    """Share drawn at distance 0, mean share of the pool nearer than the drawn one, its mean distance over the pool's."""
    D = cdist(twin, pool)
    own = D[np.arange(len(D)), drawn]
    nearer = (D < own[:, None]).sum(1) / max(len(D) - 1, 1)
    return (own == 0).mean(), nearer.mean(), own.mean() / D.mean()


# ------------------------------------------------------------------------------------------------ command line

def main():
    parser = argparse.ArgumentParser(description=__doc__, **data.ONE_LINE)
    commands = parser.add_subparsers(dest="command", required=True, prog="toy_data.py")
    add = commands.add_parser("screen", help="write a simulated screen", usage=argparse.SUPPRESS).add_argument
    add("out", help="where to write the h5ad")
    add("--drugs", type=int, help="a drug screen of so many drugs, instead of knock-downs")
    for option, default in {"--cells": None, "--genes": 300, "--perturbed": 40, "--seed": 0}.items():
        add(option, type=int, default=default)
    for demonstration in (gaussian, trackability, pairing):
        name = demonstration.__name__
        command = commands.add_parser(name, help=demonstration.__doc__.split("\n")[0], usage=argparse.SUPPRESS)
        command.add_argument("--out", default=f"runs/{name}", help=f"folder for its numbers and figure (default runs/{name})")
        command.set_defaults(demonstration=demonstration)
    args = parser.parse_args()
    if args.command == "screen":
        wrong = args.drugs < 4 or args.drugs % 4 if args.drugs is not None else not 0 < args.perturbed <= args.genes // 2
        if wrong or args.genes < 20 or args.seed < 0 or (args.cells if args.cells is not None else 100) < 100:
            raise data.InputError("a screen has 100 cells or more, 20 genes, knock-downs of at most half of them or drugs by fours, a seed from 0")
        adata = (simulate_drug_screen(args.genes, args.drugs, args.cells or 20000, seed=args.seed) if args.drugs else
                 simulate_screen(args.genes, args.perturbed, args.cells or 8000, seed=args.seed))
        data.write_h5ad(adata, args.out)
        print(f"{args.out}: {adata.n_obs:,} cells x {adata.n_vars:,} genes; python data.py {args.out} tells more")
    else:
        os.makedirs(args.out, exist_ok=True)
        table = args.demonstration(args.out)
        table.to_csv(f"{args.out}/{args.command}.csv", index=False)
        print(table.to_string(index=False, float_format="{:.3f}".format), f"\nall numbers and figures: {args.out}/")


if __name__ == "__main__":
    data.run_script(main)
