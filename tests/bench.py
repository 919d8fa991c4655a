"""How fast everything is, beside a limit: this machine's own matrix products and memory, AnnData's, SciPy's and POT's own time.

    python tests/bench.py                      training step, optimiser, sampler, pairing, gene network and loading: one table
    python tests/bench.py --genes 2000 --batch 64 512 --device cuda
    python tests/bench.py --evaluation 350     the metrics on so many cells a side of 5,000 genes, against a loop of SciPy over the genes; and scoring
                                               26 conditions of twice as many
    python tests/bench.py --disk 1000000       a file of so many cells trained on from memory and from disk, by a small network on random pairs, so that reading weighs
                                               more: speed and memory of both

Untrained weights and random sparse cells: the speed does not depend on either.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time

import anndata
import numpy as np
import ot
import pandas as pd
import torch
from scipy import optimize, sparse, stats
from torch.profiler import profile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import data  # noqa: E402  (the path comes first)
import evaluate  # noqa: E402
from departures import (ActiveValues, Departures, Settings, fit_structural_equations, joint_loss, pair, put,  # noqa: E402
                        regularisation, sample, transport_cost)
from sample import Cells, active_values  # noqa: E402
from toy_data import simulate_screen  # noqa: E402


def seconds(f, device="cpu", repeats=5):
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


# ------------------------------------------------------------------------------------------------- files of many cells

def large_screen(path, cells, genes, drugs=20, density=0.05):
    """Write a screen of drugs at 4 doses in 3 cell types: counts, CSR."""
    rng, per_cell = np.random.default_rng(0), int(genes * density)
    liking = rng.gumbel(size=(2000, genes)) + rng.normal(0, 1.5, genes)    # 2,000 patterns of genes, some expressed more often than others
    indices = np.sort(np.argsort(-liking)[:, :per_cell])[rng.integers(0, 2000, cells)].ravel().astype(np.int32)
    X = sparse.csr_matrix((rng.poisson(0.5, indices.size).astype(np.float32) + 1, indices, np.arange(0, indices.size + 1, per_cell)), (cells, genes))
    drug = rng.integers(-max(1, drugs // 16), drugs, cells)                # 6 % controls
    obs = pd.DataFrame({"condition": np.where(drug < 0, "control", np.char.add("drug", drug.astype(str))), "dose_val":
                        rng.choice([0.001, 0.01, 0.1, 1.0], cells), "cell_type": rng.choice(["A549", "K562", "MCF7"], cells)})
    obs.index = obs.index.astype(str)
    anndata.AnnData(X, obs.astype({"condition": "category", "cell_type": "category"})).write_h5ad(path)
    print(f"{cells:,} cells x {genes:,} genes, {os.path.getsize(path) / 2 ** 30:.2f} GiB on disk", flush=True)


def train_on(path, out, *options, **environment):
    """Run train.py on a file: (seconds of its epochs, peak of all memory, peak of what is not mapped from files), the last two in GiB."""
    process = subprocess.Popen([sys.executable, f"{ROOT}/train.py", "--data", path, "--test-fraction", "0.02", "--out", out, *options],
                               env={**os.environ, **environment})
    peak = {"RssAnon": 0, "VmHWM": 0}
    while process.poll() is None:
        time.sleep(0.05)
        try:
            now = dict(line.split(":", 1) for line in open(f"/proc/{process.pid}/status").read().splitlines())
            peak = {name: max(most, int(now[name].split()[0])) for name, most in peak.items()}
        except (OSError, KeyError):                                        # it has just ended
            pass
    assert process.returncode == 0
    return pd.read_csv(f"{out}/log.csv")["seconds"].sum(), peak["VmHWM"] / 2 ** 20, peak["RssAnon"] / 2 ** 20


def disk(cells, genes):
    with tempfile.TemporaryDirectory() as folder:
        large_screen(f"{folder}/big.h5ad", cells, genes)
        took = {}
        for place, limit in (("memory", 64), ("disk", 0.1)):
            took[place], both, own = train_on(f"{folder}/big.h5ad", f"{folder}/{place}", "--epochs", "1", "--batch", "1024", "--width", "64",
                                               "--pairing", "random", DEPARTURES_MEMORY=str(limit))
            print(f"from {place:6}  an epoch in {took[place]:6.0f} s    peak memory {own:.2f} GiB, {both:.2f} with mapped files", flush=True)
        print(f"from disk at {took['memory'] / took['disk']:.0%} of the speed")


# ------------------------------------------------------------------------------------------------------------- scoring

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


# ------------------------------------------------------------------------------------------------------------ the table

def row(what, value, limit="", share=""):
    print(f"{what:40} {value:>22}    {limit:50} {share:>5}", flush=True)


def random_screen(N, device):
    """(cells, a model of N genes, 40 targets and one cell type, its if-expressed values, its conditions)."""
    X = sparse.random(2000, N, 0.1, "csr", dtype=np.float32, rng=np.random.default_rng(0))
    groups = np.array_split(np.arange(2000), 41)                           # group 0 holds the controls
    model = Departures(Settings(), [f"g{i}" for i in range(N)], [f"g{i}" for i in range(40)], ["a"])
    model.add_cell_type("a", np.full(N, 0.1), np.full(N, 0.5), np.full(N, 0.1), 50)
    model.encoder.seen[:] = model.encoder.seen_pair[:] = True
    values = ActiveValues(*active_values(X, groups), device)
    return X, model.to(device), values, [model.condition([(f"g{i}", 1.0)], "a") for i in range(40)]


def products(model, B, device):
    """Of the trunks' matrix products on a batch: FLOP of a step, seconds of the forward pass, and of the step (backward: the gradients of the
    weights, and but for the first layer of the inputs) when nothing else is done, every layer in its own shape."""
    flop = forward = backward = 0.0
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and "trunk" in name:
            w, first = layer.weight.detach(), name.endswith("state")
            x, g = torch.randn(B, w.shape[1], device=device), torch.randn(B, w.shape[0], device=device)
            forward += seconds(lambda: x @ w.T, device, 20)
            backward += seconds(lambda: g.T @ x if first else (g @ w, g.T @ x), device, 20)
            flop += (4 if first else 6) * B * w.numel()
    return flop, forward, forward + backward


def networks(N, B, device, bandwidth):
    """Rows of the training step, the optimiser and the sampler; returns the seconds of a step."""
    X, model, values, conditions = random_screen(N, device)
    optimiser, rng, cells = torch.optim.AdamW(model.parameters(), fused=True), np.random.default_rng(0), Cells(X, device)

    def loss():
        rows, which = rng.integers(0, 2000, (2, B)), rng.integers(0, 40, B)
        distinct, place = np.unique(which, return_inverse=True)
        place, populations = (put(cells.device, a) for a in (place, np.stack([0 * which, which + 1], 1)))
        return sum(joint_loss(model, cells(rows[0]), cells(rows[1]), [conditions[c] for c in distinct], place, populations, values))

    def step():
        model.train()
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()

    def draw():
        sample(model, cells(np.arange(512)), conditions[0], values)

    flop, _, whole = products(model, B, device)
    took, update = seconds(step, device, 20), seconds(optimiser.step, device, 20)
    bytes_moved = 7 * 4 * sum(p.numel() for p in model.parameters() if p.grad is not None)     # reads weight, gradient, 2 moments; writes three
    name = f"{N:,} genes, batch {B}"
    row(f"training step, {name}", f"{took * 1e3:.1f} ms", f"matrix products {whole * 1e3:.1f} ms ({flop / whole / 1e9:,.0f} GFLOP/s)", f"{whole / took:.0%}")
    with profile() as record:
        step()
    times = {event.key: event.self_cpu_time_total + event.self_device_time_total for event in record.key_averages()}
    row("   in matrix products, by the profiler", f"{sum(times.get(f'aten::{name}', 0) for name in ('mm', 'addmm')) / sum(times.values()):.0%}")
    row("   of it the optimiser", f"{update * 1e3:.1f} ms", f"memory {bytes_moved / bandwidth * 1e3:.1f} ms ({bandwidth / 1e9:.0f} GB/s)", f"{bytes_moved / bandwidth / update:.0%}")
    own, kept = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}, {}
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.update({x.untyped_storage().data_ptr(): x.untyped_storage().nbytes()}), x)[1], lambda x: x):
        model.train()
        loss()
    row("   kept for its backward pass", f"{sum(size for place, size in kept.items() if place not in own) / 1e6:.0f} MB")
    if B == 64:
        (_, forward, _), took_512 = products(model, 512, device), seconds(draw, device, 1)
        row(f"sampling, {N:,} genes, 50 steps", f"{512 / took_512:.0f} cells/s", f"matrix products {512 / forward / 50:.0f} cells/s", f"{forward * 50 / took_512:.0%}")
    return took


def pairing(cells, size, device, step):
    """Rows of the pairing of simulated cells: its time beside that of POT alone, and as a share of the steps on the same cells."""
    xT, x0 = torch.from_numpy(cells[:2 * size].toarray()).to(device).unflatten(0, (2, size))
    C = transport_cost(xT, x0)
    uniform = C.new_full((size,), 1 / size)
    for method, alone in (("entropic", lambda: ot.bregman.sinkhorn_log(uniform, uniform, C, regularisation(C, "sqeuclidean", "0.05", 0.2), stopThr=1e-4 / size)),
                          ("exact", lambda: ot.emd(uniform.cpu().double().numpy(), uniform.cpu().double().numpy(), C.cpu().double().numpy()))):
        took, pots = (seconds(f, device) * 1000 / size for f in (lambda: pair(xT, x0, Settings(pairing=method)), alone))
        row(f"pairing 1,000 cells, {method}, plans of {size}", f"{took * 1e3:.0f} ms", f"POT alone {pots * 1e3:.0f} ms", f"{pots / took:.0%}")
        row("   as a share of training on them", f"{took / (step * 1000):.1%}")


def gene_network(N, device, targets=60):
    """Rows of the structural network's fit: ten of its steps, and what all of them (800 in each of 4 folds) would take."""
    x = torch.randn(1000, N, device=device)
    S, nodes, shift = x.T @ x / 1000, torch.arange(targets, device=device), torch.zeros(targets, N, device=device)
    S = S / S.diagonal().sqrt()[:, None] / S.diagonal().sqrt()
    fit = lambda steps: fit_structural_equations(S, 1000, nodes, -torch.eye(targets, device=device), shift, shift[:, :1] + 0.1, steps=steps)       # noqa: E731
    took = (seconds(lambda: fit(12), device, 1) - seconds(lambda: fit(2), device, 1)) / 10
    L = torch.randn(N, targets + 6, device=device)
    limit = seconds(lambda: S @ L, device)
    row(f"gene network, {N:,} genes, {targets} targets", f"{took * 3200:.0f} s", f"one product with the correlations {limit * 3200:.0f} s", f"{limit / took:.0%}")


def loading(N, cells=20_000):
    with tempfile.TemporaryDirectory() as folder:
        large_screen(f"{folder}/big.h5ad", cells, N)
        ours, theirs = (seconds(lambda: read(f"{folder}/big.h5ad"), repeats=3) for read in (data.read_screen, anndata.read_h5ad))
    row(f"loading {cells:,} cells", f"{ours:.2f} s", f"AnnData alone {theirs:.2f} s", f"{theirs / ours:.0%}")


def fit(points):
    """Fit a step's seconds, {(N, B): seconds}, to what it does: FLOP of the trunks, elements of cells, of conditions, and parameters."""
    H, conditions = Settings().width, lambda B: 40 * (1 - (39 / 40) ** B)  # distinct ones among B draws from 40  # noqa: E731
    terms = np.array([(24 * B * N * H, B * N, conditions(B) * N, (5 * H + 130) * N) for N, B in points])
    took = np.array(list(points.values()))
    weights = optimize.nnls(terms / took[:, None], np.ones(len(took)))[0]
    wrong = np.abs(terms @ weights / took - 1).max()
    print("a step takes about 24 B N H / {:.0f} GFLOP/s + {:.1f} ns x B N + {:.1f} ns x C N + {:.2f} ns x parameters, N genes, B pairs, C distinct conditions, "
          "H = {} hidden units: within {:.0%} of the above".format(1e-9 / max(weights[0], 1e-15), *(1e9 * weights[1:]), H, wrong))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=int, nargs="+", default=[1000, 2000, 5000])
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--device", default="cpu")
    for name in ("evaluation", "disk"):
        parser.add_argument(f"--{name}", type=int, metavar="CELLS")
    args = parser.parse_args()
    if args.evaluation:
        evaluation(args.evaluation)
        return scoring(2 * args.evaluation)
    if args.disk:
        return disk(args.disk, 2000)
    here, there = torch.ones(2, 2 ** 26, device=args.device)
    bandwidth = 2 * 4 * 2 ** 26 / seconds(lambda: there.copy_(here), args.device)
    print(f"{args.device}, {torch.get_num_threads()} threads")
    row("", "", "limit", "reached")
    points = {}
    for N in args.genes:
        points.update({(N, B): networks(N, B, args.device, bandwidth) for B in args.batch})
        screen = simulate_screen(N, 2, 1100, seed=0)
        for size in (64, 512):
            pairing(screen.X, size, args.device, points[N, args.batch[0]] / args.batch[0])
        gene_network(N, args.device)
    loading(2000)
    fit(points)


if __name__ == "__main__":
    main()
