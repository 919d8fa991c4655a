"""How fast a training step and the sampler are, and how much of that is matrix products at this machine's own rate.

    python tests/bench.py --genes 2000 --batch 64
    python tests/bench.py --evaluation 350     the metrics on so many cells a side of 5,000 genes, against a loop of SciPy over the genes; and scoring
                                               26 conditions of twice as many
    python tests/bench.py --memory 290000      peak memory of reading, training (an epoch), sampling and scoring a file of so many cells

Untrained weights and random sparse cells: the speed does not depend on either.
"""
import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time

import anndata
import numpy as np
import pandas as pd
import torch
from scipy import sparse, stats

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import data  # noqa: E402  (the path comes first)
import evaluate  # noqa: E402
from departures import ActiveValues, Departures, Settings, joint_loss, pair, sample  # noqa: E402  (the path comes first)
from sample import active_values  # noqa: E402


def seconds(f, device, repeats):
    """Median time of f() after one warm-up."""
    times = []
    for _ in range(repeats + 1):
        if device != "cpu":
            torch.cuda.synchronize()
        start = time.perf_counter()
        f()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return float(np.median(times[1:]))


ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def memory(cells, genes, density=0.05):
    """Peak resident memory of train.py on a file as large as sci-Plex3: 188 drugs, 4 doses, 3 cell types, counts, CSR."""
    rng, per_cell = np.random.default_rng(0), int(genes * density)
    liking = rng.gumbel(size=(2000, genes)) + rng.normal(0, 1.5, genes)    # 2,000 patterns of genes, some expressed more often than others
    indices = np.sort(np.argsort(-liking)[:, :per_cell])[rng.integers(0, 2000, cells)].ravel().astype(np.int32)
    X = sparse.csr_matrix((rng.poisson(0.5, indices.size).astype(np.float32) + 1, indices, np.arange(0, indices.size + 1, per_cell)), (cells, genes))
    drug = rng.integers(-12, 188, cells)                                   # 6 % controls
    obs = pd.DataFrame({"condition": np.where(drug < 0, "control", np.char.add("drug", drug.astype(str))), "dose_val":
                        rng.choice([0.001, 0.01, 0.1, 1.0], cells), "cell_type": rng.choice(["A549", "K562", "MCF7"], cells)})
    obs.index = obs.index.astype(str)
    with tempfile.TemporaryDirectory() as folder:
        anndata.AnnData(X, obs.astype({"condition": "category", "cell_type": "category"})).write_h5ad(f"{folder}/big.h5ad")
        size = os.path.getsize(f"{folder}/big.h5ad")
        subprocess.run([sys.executable, f"{ROOT}/train.py", "--data", "big.h5ad", "--epochs", "1", "--batch", "256", "--test-fraction", "0.02"],
                       cwd=folder, check=True)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2 ** 20
    print(f"{cells:,} cells x {genes:,} genes, {size / 2 ** 30:.2f} GiB on disk: peak memory of train.py {peak:.2f} GiB")


def evaluation(cells, genes=5000):
    """Time of each metric; the Wasserstein distance also by SciPy, one gene at a time, to the same result."""
    rng = np.random.default_rng(0)
    x, y = (rng.exponential(size=(n, genes)).astype(np.float32) * (rng.random((n, genes)) < 0.2) for n in (cells, cells))
    for name, other in (("equal", y), ("unequal", y[:-7])):
        expected = []
        loop = seconds(lambda: expected.append(np.mean([stats.wasserstein_distance(a, b) for a, b in zip(x.T, other.T)])), "cpu", 1)
        ours = seconds(lambda: evaluate.emd(x, other), "cpu", 5)
        assert abs(evaluate.emd(x, other) - expected[0]) < 1e-5
        print(f"EMD, {name} sizes    {ours * 1e3:8.1f} ms    SciPy's loop takes {loop / ours:.0f} times as long")
    gamma = evaluate.gamma_by_median(x)
    for name, f in (("E-distance", lambda: evaluate.e_distance(x, y)), ("MMD2", lambda: evaluate.mmd2(x, y, gamma)),
                    ("Welch's t", lambda: evaluate.welch_t(x, y))):
        print(f"{name:18} {seconds(f, 'cpu', 5) * 1e3:8.1f} ms")


def scoring(cells, genes=5000, held_out=26, training=40):
    """Time of scoring as many held-out conditions as Adamson's, of so many cells each, beside every baseline."""
    rng, names = np.random.default_rng(0), [f"g{i}" for i in range(held_out + training)]
    n = (1 + len(names)) * cells
    adata = anndata.AnnData(sparse.random(n, genes, 0.1, "csr", dtype=np.float32, rng=rng), pd.DataFrame(
        {"condition": np.repeat(["ctrl", *names], cells)}, map(str, range(n))), pd.DataFrame(index=[f"g{i}" for i in range(genes)]))
    with tempfile.TemporaryDirectory() as folder:
        adata.write_h5ad(f"{folder}/big.h5ad")
        screen = data.prepare(f"{folder}/big.h5ad", test=names[:held_out])
    predicted = {key: screen.X[rows] for key, rows in screen.groups.items() if key in screen.held_out}
    start = time.perf_counter()
    evaluate.summarise(evaluate.score(screen, predicted))
    print(f"scoring {held_out} conditions of {cells} cells x {genes:,} genes, {len(evaluate.BASELINES) + 2} methods: {time.perf_counter() - start:.0f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--evaluation", type=int, metavar="CELLS")
    parser.add_argument("--memory", type=int, metavar="CELLS")
    args = parser.parse_args()
    if args.evaluation:
        evaluation(args.evaluation)
        return scoring(2 * args.evaluation)
    if args.memory:
        return memory(args.memory, args.genes)
    N, B, device, settings = args.genes, args.batch, args.device, Settings()
    rng = np.random.default_rng(0)
    X = sparse.random(2000, N, 0.1, "csr", dtype=np.float32, rng=rng)
    groups = np.array_split(np.arange(2000), 41)                           # group 0 holds the controls
    model = Departures(settings, [f"g{i}" for i in range(N)], [f"g{i}" for i in range(40)], ["a"])
    model.add_cell_type("a", np.full(N, 0.1), np.full(N, 0.5), np.full(N, 0.1), 50)
    model.encoder.seen[:] = model.encoder.seen_pair[:] = True
    model.to(device)
    values = ActiveValues(*active_values(X, groups), device)
    optimiser = torch.optim.AdamW(model.parameters(), fused=True)
    conditions = [model.condition([(f"g{i}", 1.0)], "a") for i in range(40)]

    def step():
        model.train()
        rows, which = rng.integers(0, 2000, (2, B)), torch.as_tensor(rng.integers(0, 40, B), device=device)
        x0, xT = (torch.from_numpy(X[r].toarray()).to(device) for r in rows)
        optimiser.zero_grad()
        sum(joint_loss(model, x0, xT, conditions, which, torch.stack([0 * which, which + 1], 1), values)).backward()
        optimiser.step()

    def draw():
        sample(model, torch.from_numpy(X[:512].toarray()).to(device), conditions[0], values)

    weights = [p for name, p in model.named_parameters() if p.dim() == 2 and "trunk" in name and "label" not in name]
    left, right = torch.randn(B, 2048, device=device), torch.randn(2048, 2048, device=device)
    rate = 2 * left.numel() * 2048 / seconds(lambda: left @ right, device, 20)
    products = 2 * sum(p.numel() for p in weights)                         # FLOP of the trunks, per cell and forward pass
    t_step, t_draw = seconds(step, device, 20), seconds(draw, device, 1)
    a, b = torch.rand(2, 500, N, device=device)
    print(f"{N} genes, batch {B}, {device}, {torch.get_num_threads()} threads; matrix products run at {rate / 1e9:.0f} GFLOP/s here")
    print(f"training step   {t_step * 1e3:8.1f} ms         {3 * products * B / rate / t_step:5.0%} of it the trunks' matrix products")
    print(f"sampling        {512 / t_draw:8.0f} cells/s    {settings.steps} steps; "
          f"{products * settings.steps * 512 / rate / t_draw:5.0%} matrix products")
    for method in ("exact", "entropic"):
        chosen = Settings(pairing=method)
        print(f"pairing         {seconds(lambda: pair(a, b, chosen), device, 3) * 2e3:8.0f} ms per 1,000 cells, {method}")


if __name__ == "__main__":
    main()
