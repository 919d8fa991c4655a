"""How much of a simulated screen's true pairing does each strategy find in noisy counts?

python -m course.pairing        a table, about two minutes on 2 CPU cores
"""

import itertools

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from scipy.spatial.distance import cdist
from tqdm import tqdm

import screens
import toy_data
from course.gaussian import run_experiment
from departures import ImprovedSettings, Noise, pair

STRATEGIES = (  # name, space, settings
    ("exact", "all genes", {}),
    ("exact, Euclidean", "all genes", {"cost": "euclidean"}),
    ("exact, cosine", "all genes", {"cost": "cosine"}),
    ("exact", "20 PCs", {}),
    ("exact", "50 highest genes", {}),
    ("entropic, 0.05 mean", "all genes", {"pairing": "entropic", "epsilon": "0.05"}),
    ("entropic, 0.1 max", "all genes", {"pairing": "entropic", "epsilon": "0.1max"}),
    ("random", "all genes", {"pairing": "random"}),
)


def log_normalise(counts):
    """Log1p expression (C, G), dense, of counts."""
    X = sparse.csr_matrix(counts, dtype=np.float32)
    return screens.log1p_csr(X, "simulated")[0].toarray()


def pairing(out, seed=0):
    """Find each perturbed cell's own counterfactual among others, by every strategy.

    `counts a gene`: as simulated, and a tenth. The pool is the counterfactuals of the batch's own
    cells: `recovered`, the share that get theirs; `rank`, the share of the pool nearer to it than
    the one they get (chance 0.5; `rank, others`: in a pool of real controls).
    """
    screen = toy_data.simulate_screen(300, 4, 6000, seed=seed)
    rng = np.random.default_rng(seed)
    counts = screen.layers["counts"].toarray().astype(int)
    twin = screen.layers["counterfactual"].toarray().astype(int)
    full_twin, full = log_normalise(twin), log_normalise(counts)
    label = screen.obs["condition"].astype(str) + "@" + screen.obs["cell_type"].astype(str)
    groups = {name: np.flatnonzero(label == name) for name in sorted(set(label))}
    perturbed = [name for name in groups if not name.startswith("ctrl")]
    is_control = (screen.obs["condition"] == "ctrl").to_numpy()
    rows = []
    for depth in (1.0, 0.1):
        seen = log_normalise(rng.binomial(counts, depth))
        seen_twin = log_normalise(rng.binomial(twin, depth))
        spaces = gene_spaces(seen[is_control])
        choices = list(itertools.product(STRATEGIES, (32, 128, 512)))
        for (name, space, choice), n in tqdm(choices, f"depth {depth:g}"):
            settings = ImprovedSettings(**{"pairing": "exact", **choice})
            noise = Noise(seed)
            of_twins, of_others = [], []
            for group in perturbed:
                controls = groups["ctrl@" + group.rpartition("@")[2]]
                for cells in np.array_split(groups[group][:512], 512 // n):
                    others = rng.permutation(controls)[: len(cells)]
                    looks = torch.from_numpy(seen[cells]) @ spaces[space]
                    pool = torch.from_numpy(seen_twin[cells]) @ spaces[space]
                    drawn = pair(looks, pool, settings, noise)[0].numpy()
                    of_twins.append(against_truth(full_twin[cells], full_twin[cells], drawn))
                    pool = torch.from_numpy(seen[others]) @ spaces[space]
                    drawn = pair(looks, pool, settings, noise)[0].numpy()
                    of_others.append(against_truth(full_twin[cells], full[others], drawn))
            recovered, rank, distance = np.mean(of_twins, 0)
            row = {
                "counts a gene": 3 * depth,
                "pairing": name,
                "space": space,
                "batch": n,
                "recovered": recovered,
                "chance": 1 / n,
                "rank": rank,
                "distance": distance,
                "rank, others": np.mean(of_others, 0)[1],
            }
            rows.append(row)
    return pd.DataFrame(rows)


def gene_spaces(controls):
    """{name: matrix (G, k)}: where pairing may look. Axes come from the control cells (C, G)."""
    axes = np.linalg.svd(controls - controls.mean(0), full_matrices=False)[2]
    highest = np.argsort(-controls.mean(0))[:50]
    every = np.eye(controls.shape[1], dtype=np.float32)
    return {
        "all genes": torch.from_numpy(every),
        "20 PCs": torch.from_numpy(axes[:20].T),
        "50 highest genes": torch.from_numpy(every[:, highest]),
    }


def against_truth(twin, pool, drawn):
    """How good the drawn cells of a pool are for cells whose twins are known.

    The share drawn at distance 0, the mean share of the pool nearer than the drawn one, and its
    mean distance over the pool's.
    """
    distance = cdist(twin, pool)
    own = distance[np.arange(len(twin)), drawn]
    nearer = (distance < own[:, None]).sum(1) / max(len(pool) - 1, 1)
    return (own == 0).mean(), nearer.mean(), own.mean() / distance.mean()


if __name__ == "__main__":
    screens.run_script(lambda: run_experiment(pairing, __doc__))
