"""How fast everything is, each row beside what limits it, measured in the same run.

    python tests/bench.py                     training step, optimiser, sampler, pairing, gene
                                              network, loading
    python tests/bench.py --genes 2000 --batch 64 512 --device cuda
    python tests/bench.py --step              what each part of a training step takes
    python tests/bench.py --plan              minutes and memory of a run, for cells x genes
    python tests/bench.py --evaluation 350    the metrics on so many cells a side of 5,000 genes,
                                              and scoring 26 conditions of twice as many
    python tests/bench.py --disk 1000000      a file of so many cells, trained on from memory and
                                              mapped from disk

The limits are this machine's own matrix products and memory, AnnData, SciPy and POT, with nothing
around them. Every time is the shortest of a few, because other processes only add to it. Weights
are untrained and cells random: the speed depends on neither. Axes: B cells of a batch, N genes.
"""

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from functools import partial
from unittest import mock

import anndata
import numpy as np
import ot
import pandas as pd
import torch
from scipy import sparse, stats
from torch.autograd import DeviceType
from torch.profiler import profile

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)  # Python itself adds the folder of this file

import departures  # noqa: E402
import evaluate  # noqa: E402
import sample  # noqa: E402
import screens  # noqa: E402
import toy_data  # noqa: E402
import train  # noqa: E402
from examples import screen_with  # noqa: E402
from report.forecast import after_training, in_words  # noqa: E402

CONDITIONS = 41  # of the random screen, the controls among them
NETWORK_STEPS = 800  # of the gene network's fit


def seconds(work, device="cpu", repeats=5, clock=time.perf_counter):
    """The shortest time of work(), after one warm-up."""
    times = []
    for _ in range(repeats + 1):
        if device != "cpu":
            torch.cuda.synchronize()
        start = clock()
        work()
        if device != "cpu":
            torch.cuda.synchronize()
        times.append(clock() - start)
    return min(times[1:])


def row(what, value, limit="", note=""):
    """Print a row; two times in seconds are set beside each other."""
    reached = ""
    if limit:
        reached = f"{limit / value:.0%}"
        value = f"{value * 1e3:,.1f} ms"
        limit = f"{limit * 1e3:,.1f} ms"
    print(f"{what:44} {value:>12} {limit:>12} {reached:>8}  {note}", flush=True)


# ---- Training and sampling -----------------------------------------------------------------------


def random_screen(n_genes, n_cells=2000):
    """A screen of sparse random cells of one type: the controls and one group for each target."""
    rng = np.random.default_rng(0)
    X = sparse.random(n_cells, n_genes, 0.1, "csr", dtype=np.float32, rng=rng)
    names = np.array([screens.CONTROL, *[f"g{i}" for i in range(CONDITIONS - 1)]])
    perturbation = names[np.arange(n_cells) % CONDITIONS]
    return screen_with(X.toarray(), perturbation, ["a"] * n_cells)


class TrainingStep:
    """A call is one step of training on a random batch, by the functions of train.py.

    The gene network, which is fitted once before training, is left empty.
    """

    def __init__(self, screen, batch, device):
        settings = departures.ImprovedSettings(grn="none")
        host = torch.Generator().manual_seed(0)
        groups = list(screen.training_groups())
        self.batch = batch
        self.rng = np.random.default_rng(0)
        self.noise = train.SharedNoise(departures.Noise(0, device), batch)
        self.model = train.build(screen, settings, device).train()
        self.data = train.TrainingData(self.model, screen, groups, device)
        self.pairs = train.draw_pairs(screen, self.data.cells, groups, settings, host, device)
        self.optimiser = torch.optim.AdamW(self.model.parameters(), fused=True)

    def loss(self):
        """The loss of a random batch."""
        batch = self.rng.integers(len(self.pairs.end), size=self.batch)
        return self.data.losses(self.pairs, batch, batch, self.noise).sum()

    def __call__(self):
        train.descend(self.optimiser, self.loss())


def network_products(model, batch, device):
    """The matrix products of both networks alone, every layer in its own shape.

    FLOP of a step, seconds of the forward pass, and seconds of the backward pass: the gradients of
    the weights and, but for the first layers, of the inputs.
    """
    flop = 0
    forward = 0.0
    backward = 0.0
    for name, layer in model.named_modules():
        if isinstance(layer, torch.nn.Linear) and name.startswith(("x_network", "d_network")):
            weight = layer.weight.detach()
            x = torch.randn(batch, weight.shape[1], device=device)
            gradient = torch.randn(batch, weight.shape[0], device=device)
            forward += seconds(partial(torch.mm, x, weight.T), device, 20)
            backward += seconds(partial(torch.mm, gradient.T, x), device, 20)
            flop += 4 * batch * weight.numel()
            if not name.endswith("state"):
                backward += seconds(partial(torch.mm, gradient, weight), device, 20)
                flop += 2 * batch * weight.numel()
    return flop, forward, backward


def share_of_products(step, device):
    """Which share of five steps the profiler sees in matrix products."""
    with profile() as record:
        for _ in range(5):
            step()
    clock = "self_cpu_time_total" if device == "cpu" else "self_device_time_total"
    # Of operations, not of the kernels they start: else a GPU's time would count twice.
    events = [event for event in record.key_averages() if event.device_type == DeviceType.CPU]
    times = {event.key: getattr(event, clock) for event in events}
    return (times.get("aten::mm", 0) + times.get("aten::addmm", 0)) / sum(times.values())


def kept_for_backward(step):
    """How many bytes a loss keeps for its gradient, beside the model's own."""
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        step.loss()
    for tensor in [*step.model.parameters(), *step.model.buffers()]:
        kept.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(kept.values())


def training_rows(step, device, bandwidth):
    """Rows of a training step; returns its seconds."""
    flop, forward, backward = network_products(step.model, step.batch, device)
    limit = forward + backward
    took = seconds(step, device, 20)
    trained = sum(p.numel() for p in step.model.parameters() if p.grad is not None)
    n_genes = len(step.model.genes)
    rate = f"matrix products, {flop / limit / 1e9:,.0f} GFLOP/s"
    row(f"training step, {n_genes:,} genes, batch {step.batch}", took, limit, rate)
    row("   in matrix products, by the profiler", f"{share_of_products(step, device):.0%}")
    update = seconds(step.optimiser.step, device, 20)
    # Weight, gradient and two moments are read, all but the gradient written: 7 float32.
    moved = 7 * 4 * trained / bandwidth
    row("   of it the optimiser", update, moved, f"memory, {bandwidth / 1e9:.0f} GB/s")
    row("   kept for its backward pass", f"{kept_for_backward(step) / 1e6:.0f} MB")
    return took


def sampling_row(model, screen, device, n=512):
    """A row of the sampler on a batch of cells."""
    cells = screens.Cells(screen.X, device)
    values = sample.control_values(model, screen, device)
    predict = partial(sample.predict, model, screen, cells, "g0", "a", n, values, 0, device)
    took = seconds(predict, device, 2)
    limit = model.settings.steps * network_products(model, n, device)[1]
    note = f"matrix products; {n / took:.0f} cells/s of {n / limit:.0f}"
    row(f"sampling {n} cells, {model.settings.steps} steps", took, limit, note)


# ---- The parts of a training step ----------------------------------------------------------------


def parts_of_pairing():
    """{part: [(owner, name) of its functions]} of pairing."""
    return {
        "pairing: rows": [(screens.Cells, "__call__")],
        "pairing: cost": [(departures, "transport_cost"), (departures, "regularisation")],
        "pairing: Sinkhorn": [(departures, "coupling")],
        "pairing: draw": [(departures, "draw_partners")],
        "pairing: what is logged": [(train, "marginal_error"), (train, "plan_information")],
    }


def parts_of_loss(data):
    """{part: [(owner, name) of its functions]} of a loss; the first holds those after it, too."""
    model = data.model
    return {
        "distance from the mean path": [(type(model), "predict")],
        "network x_theta": [(model.x_network, "forward")],
        "network d_theta": [(model.d_network, "forward")],
        "skip gate: levels": [(type(model), "correction")],
        "skip gate: on or off": [(type(model), "evidence")],
        "expected ends": [(type(model), "expected_end")],
        "rows, of both ends": [(screens.Cells, "__call__"), (type(model), "activation")],
        "fill of silent genes": [(departures.ActiveValues, "fill")],
        "shifts of the conditions": [(type(model), "encode")],
        "bridge samples": [(departures, "bridge_sample"), (departures, "mixture_sample")],
        "losses": [(departures, "endpoint_loss"), (departures, "activation_loss")],
    }


def calls_of(work, parts):
    """The calls that work() makes of some functions: {part: [(function, arguments)]}."""
    calls = {part: [] for part in parts}

    def recorded(part, function):
        def call(*arguments):
            calls[part].append((function, arguments))
            return function(*arguments)

        return call

    with ExitStack() as stack:
        for part, functions in parts.items():
            for owner, name in functions:
                call = recorded(part, getattr(owner, name))
                stack.enter_context(mock.patch.object(owner, name, call))
        work()
    return calls


def alone(calls, weights, least):
    """Seconds of some calls, and of the gradients of what they return; least: as `seconds`."""
    leaves = []
    again = []
    for function, arguments in calls:
        arguments = list(arguments)
        for i, value in enumerate(arguments):
            if isinstance(value, torch.Tensor) and value.requires_grad:
                arguments[i] = value.detach().requires_grad_()
                leaves.append(arguments[i])
        again.append(partial(function, *arguments))

    def forward():
        answers = [function() for function in again]
        flat = [
            a for answer in answers for a in (answer if isinstance(answer, tuple) else [answer])
        ]
        return [a for a in flat if isinstance(a, torch.Tensor) and a.requires_grad]

    ones = [torch.ones_like(answer) for answer in forward()]

    def both():
        torch.autograd.grad(forward(), [*leaves, *weights], ones, allow_unused=True)

    took = least(forward)
    return took, least(both) - took if ones else 0.0


def step_parts(step, least):
    """{part: seconds forward and backward} of a training step and of its share of the pairing."""
    data = step.data
    groups = data.groups
    weights = list(data.model.parameters())

    def draw():
        host = torch.Generator().manual_seed(0)
        train.draw_pairs(data.screen, data.cells, groups, data.model.settings, host, "cpu")

    step()  # so that there are gradients for the optimiser
    of_loss = calls_of(step.loss, parts_of_loss(data))
    times = {part: alone(calls, weights, least) for part, calls in of_loss.items()}
    inside = list(times.values())[1:6]
    whole = times["distance from the mean path"]
    inner = [sum(of_kind) for of_kind in zip(*inside, strict=True)]
    times["distance from the mean path"] = tuple(a - b for a, b in zip(whole, inner, strict=True))
    times["optimiser"] = (least(step.optimiser.step), 0.0)
    left = least(step) - sum(map(sum, times.values()))
    times["all between them"] = (left, 0.0)
    steps = train.count_steps(data.screen, groups, data.model.settings)
    for part, calls in calls_of(draw, parts_of_pairing()).items():
        times[part] = (alone(calls, weights, partial(least, repeats=3))[0] / steps, 0.0)
    return times


def step_table(genes, batch):
    """Print a table of what each part of a training step takes, forward + backward, and its share.

    On simulated cells as those of the default run. A part is timed by itself, on what it is given
    in a step; of the pairing of an epoch, a step's share. Of one thread it is the time that it ran,
    whatever else runs here.
    """
    threads = torch.get_num_threads()
    clock = time.process_time if threads == 1 else time.perf_counter
    columns = []
    for n_genes in genes:
        with tempfile.TemporaryDirectory() as folder:
            toy_data.simulate_screen(n_genes, seed=0).write_h5ad(f"{folder}/simulated.h5ad")
            screen = screens.prepare(f"{folder}/simulated.h5ad")
        step = TrainingStep(screen, batch, "cpu")
        times = step_parts(step, partial(seconds, repeats=30, clock=clock))
        total = sum(map(sum, times.values()))
        column = {}
        for part, (forward, backward) in times.items():
            both = f"{forward * 1e3:.2f}" + f" + {backward * 1e3:.2f}" * (backward != 0)
            column[part] = f"{both}, {(forward + backward) / total:.0%}"
        columns.append({**column, "all": f"{total * 1e3:.2f}"})
    heads = " | ".join(f"{n:,} genes" for n in genes)
    print(f"| ms, threads: {threads} | {heads} |")
    print("| --- " * (1 + len(genes)) + "|")
    for part in columns[0]:
        print("| " + " | ".join([part, *(column[part] for column in columns)]) + " |")


# ---- Pairing, gene network, loading --------------------------------------------------------------


def pairing_row(cells, method, size, device, step):
    """A row of a transport plan, beside POT alone and beside training on its pairs.

    cells: simulated, more than twice as many as the plan's size; step: seconds of a pair's share of
    a training step.
    """
    xT, x0 = torch.from_numpy(cells[: 2 * size].toarray()).to(device).split(size)
    settings = departures.ImprovedSettings(pairing=method)
    noise = departures.Noise(0, device)
    C = departures.transport_cost(xT, x0)
    epsilon = departures.regularisation(C, settings.cost, settings.epsilon, settings.sigma)
    uniform = C.new_full((size,), 1 / size)

    def pair():
        plan = departures.pair(xT, x0, settings, noise)[1]
        train.marginal_error(plan)
        train.plan_information(plan)

    def pot_alone():
        if method == "exact":
            ot.emd(*[v.double().cpu().numpy() for v in (uniform, uniform, C)])
        else:
            ot.bregman.sinkhorn_log(uniform, uniform, C, epsilon, stopThr=1e-4 / size)

    took = seconds(pair, device, 20) * 1000 / size
    limit = seconds(pot_alone, device, 20) * 1000 / size
    note = f"POT alone; {took / (1000 * step):.1%} of training on them"
    row(f"pairing 1,000 cells, {method}, plans of {size}", took, limit, note)


def gene_network_row(n_genes, device, nodes=60):
    """A row of a step of the gene network's fit; returns the seconds of a fit."""
    S = torch.corrcoef(torch.randn(n_genes, 1000, device=device))
    knock = -torch.eye(nodes, device=device)
    shift = torch.zeros(nodes, n_genes, device=device)
    places = torch.arange(nodes, device=device)
    fit = partial(departures.fit_structural_equations, S, 1000, places, knock, shift, 0.1)
    long = seconds(partial(fit, steps=22), device, 2)
    took = (long - seconds(partial(fit, steps=2), device, 2)) / 20
    loadings = torch.randn(n_genes, nodes + 6, device=device)  # the nodes' and the factors'
    limit = seconds(partial(torch.mm, S, loadings), device)
    note = f"one product; the fit takes {NETWORK_STEPS} steps, {NETWORK_STEPS * took:.0f} s"
    row(f"gene network's step, {nodes} nodes", took, limit, note)
    return NETWORK_STEPS * took


def large_screen(path, n_cells, n_genes, drugs=20, density=0.05):
    """Write a screen of drugs at 4 doses in 3 cell types: counts, CSR, 6 % of them controls."""
    rng = np.random.default_rng(0)
    per_cell = int(n_genes * density)
    # 2,000 patterns of genes, some of which are expressed more often than others.
    liking = rng.gumbel(size=(2000, n_genes)) + rng.normal(0, 1.5, n_genes)
    patterns = np.sort(np.argsort(-liking)[:, :per_cell])
    columns = patterns[rng.integers(0, 2000, n_cells)].ravel().astype(np.int32)
    counts = rng.poisson(0.5, columns.size).astype(np.float32) + 1
    ends = np.arange(0, columns.size + 1, per_cell)
    drug = rng.integers(-max(1, drugs // 16), drugs, n_cells)
    obs = pd.DataFrame(
        {
            "condition": np.where(drug < 0, "control", np.char.add("drug", drug.astype(str))),
            "dose_val": rng.choice([0.001, 0.01, 0.1, 1.0], n_cells),
            "cell_type": rng.choice(["A549", "K562", "MCF7"], n_cells),
        },
        index=np.arange(n_cells).astype(str),
    ).astype({"condition": "category", "cell_type": "category"})
    X = sparse.csr_matrix((counts, columns, ends), (n_cells, n_genes))
    anndata.AnnData(X, obs).write_h5ad(path)


def loading_row(n_cells=20_000, n_genes=2000):
    """A row of reading a file, and all that is understood of it."""
    with tempfile.TemporaryDirectory() as folder:
        large_screen(f"{folder}/big.h5ad", n_cells, n_genes)
        took = seconds(partial(screens.read_screen, f"{folder}/big.h5ad"))
        limit = seconds(partial(anndata.read_h5ad, f"{folder}/big.h5ad"))
    row(f"loading {n_cells:,} cells x {n_genes:,} genes", took, limit, "AnnData alone")


def table(genes, batches, device):
    """All rows for some numbers of genes and sizes of batches."""
    here, there = torch.ones(2, 2**26, device=device)
    bandwidth = 2 * here.nbytes / seconds(partial(there.copy_, here), device)
    print(f"{device}, {torch.get_num_threads()} threads\n{'took':>57} {'limit':>12}  reached")
    for n_genes in genes:
        screen = random_screen(n_genes)
        per_pair = []
        for batch in batches:
            step = TrainingStep(screen, batch, device)
            per_pair.append(training_rows(step, device, bandwidth) / batch)
        sampling_row(step.model, screen, device)
        cells = toy_data.simulate_screen(n_genes, 2, 1100, seed=0).X
        pairing_row(cells, "entropic", 64, device, per_pair[0])
        pairing_row(cells, "exact", 512, device, per_pair[0])
        gene_network_row(n_genes, device)
    loading_row()


# ---- Planning ------------------------------------------------------------------------------------

CELLS = (5_000, 20_000, 100_000)
HELD_OUT = 0.3  # share of the cells, in conditions of CONDITION cells
CONDITION = 200


def plan(genes, batch, device):
    """Print a table of cells x genes: how long a run takes, and how much memory.

    In parentheses the gene network of 60 targets, training, and sampling and scoring: by the speed
    of a step, measured here, and by how many there are; the last as in the forecast of train.py.
    Reading the file, the expected shifts and figures are left out. Memory is counted by
    docs/performance.md, with a tenth of the values expressed.
    """
    print(f"{device}, {torch.get_num_threads()} threads")
    settings = departures.ImprovedSettings(batch=batch)
    lines = [["genes", *[f"{n:,} cells" for n in CELLS]], ["---"] * (1 + len(CELLS))]
    for n_genes in genes:
        screen = random_screen(n_genes)
        training = TrainingStep(screen, batch, device)
        step = seconds(training, device, 20)
        row(f"training step, {n_genes:,} genes, batch {batch}", f"{step * 1e3:.1f} ms")
        network = 6 * gene_network_row(n_genes, device)
        lines.append([f"{n_genes:,}"])
        for n_cells in CELLS:
            steps = math.ceil((1 - HELD_OUT) * n_cells / batch)
            trained = max(5, math.ceil(1000 / steps)) * steps * step
            conditions = round(HELD_OUT * n_cells / CONDITION)
            after = after_training(settings, conditions * [CONDITION], step)
            parts = [network, trained, after]
            memory = 0.5e9 + 1.6 * n_cells * n_genes + 20 * n_genes**2
            times = " + ".join(map(in_words, parts))
            lines[-1].append(f"{in_words(sum(parts))} ({times}), {memory / 1e9:.1f} GB")
    print(*("| " + " | ".join(line) + " |" for line in lines), sep="\n")


# ---- Scoring, files bigger than memory -----------------------------------------------------------


def metric_rows(n_cells, n_genes=5000):
    """Rows of the metrics; the Wasserstein distance beside SciPy's, one gene at a time."""
    rng = np.random.default_rng(0)
    level = rng.exponential(size=(2, n_cells, n_genes)).astype(np.float32)
    x, y = level * (rng.random(level.shape) < 0.2)
    gamma = evaluate.gamma_by_median(x)

    def loop(other):
        return np.mean(list(map(stats.wasserstein_distance, x.T, other.T)))

    for name, other in (("equal", y), ("unequal", y[:-7])):
        assert abs(evaluate.emd(x, other) - loop(other)) < 1e-5
        took = seconds(partial(evaluate.emd, x, other))
        times = seconds(partial(loop, other), repeats=1) / took
        note = f"SciPy's loop takes {times:.0f} times as long"
        row(f"EMD, {name} sizes", f"{took * 1e3:.1f} ms", note=note)
    row("E-distance", f"{seconds(partial(evaluate.e_distance, x, y)) * 1e3:.1f} ms")
    row("MMD2", f"{seconds(partial(evaluate.mmd2, x, y, gamma)) * 1e3:.1f} ms")
    row("Welch's t", f"{seconds(partial(evaluate.welch_t, x, y)) * 1e3:.1f} ms")


def scoring_row(n_cells, n_genes=5000, held_out=26, training=40):
    """A row of scoring as many held-out conditions as Adamson's by all methods."""
    names = [f"g{i}" for i in range(n_genes)]
    conditions = ["ctrl", *names[: held_out + training]]
    n = len(conditions) * n_cells
    X = sparse.random(n, n_genes, 0.1, "csr", dtype=np.float32, rng=np.random.default_rng(0))
    obs = pd.DataFrame({"condition": np.repeat(conditions, n_cells)}, map(str, range(n)))
    with tempfile.TemporaryDirectory() as folder:
        anndata.AnnData(X, obs, pd.DataFrame(index=names)).write_h5ad(f"{folder}/big.h5ad")
        screen = screens.prepare(f"{folder}/big.h5ad", test=names[:held_out])
    predicted = {key: screen.X[screen.groups[key]] for key in screen.held_out}
    start = time.perf_counter()
    evaluate.summarise(evaluate.score(screen, predicted))
    took = time.perf_counter() - start
    row(f"scoring {held_out} conditions of {n_cells} cells", f"{took:.0f} s")


def epoch_row(place, path, out, gibibytes):
    """A row of an epoch by a small network on random pairs, so that reading weighs more.

    gibibytes: what the file's values may take in memory.
    """
    where = ["--data", path, "--out", out]
    small = ["--epochs", "1", "--batch", "1024", "--width", "64"]
    by_chance = ["--test-fraction", "0.02", "--pairing", "random"]
    command = [sys.executable, f"{ROOT}/train.py", *where, *small, *by_chance]
    environment = {**os.environ, "DEPARTURES_MEMORY": str(gibibytes)}
    process = subprocess.Popen(command, env=environment)
    peak = {"RssAnon": 0, "VmHWM": 0}  # in KiB; without and with what is mapped from files
    while process.poll() is None:
        time.sleep(0.05)
        with open(f"/proc/{process.pid}/status") as file:  # without these lines once it has ended
            for name, value in (line.split(":", 1) for line in file):
                if name in peak:
                    peak[name] = max(peak[name], int(value.split()[0]))
    if process.returncode:
        raise SystemExit(f"train.py ended with {process.returncode}")
    took = pd.read_csv(f"{out}/log.csv")["seconds"].sum()
    own, both = (kibibytes / 2**20 for kibibytes in peak.values())
    note = f"memory {own:.2f} GiB, {both:.2f} with mapped files"
    row(f"an epoch from {place}", f"{took:.0f} s", note=note)


def disk_rows(n_cells, n_genes=2000):
    """Rows of training on a file from memory and from disk."""
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/big.h5ad"
        large_screen(path, n_cells, n_genes)
        size = os.path.getsize(path) / 2**30
        print(f"{n_cells:,} cells x {n_genes:,} genes, {size:.2f} GiB on disk", flush=True)
        epoch_row("memory", path, f"{folder}/memory", 64)
        epoch_row("disk", path, f"{folder}/disk", 0.1)


def main():
    """Read the command line, measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--genes", type=int, nargs="+")
    parser.add_argument("--batch", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--step", action="store_true")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--evaluation", type=int, metavar="CELLS")
    parser.add_argument("--disk", type=int, metavar="CELLS")
    args = parser.parse_args()
    genes = args.genes or ([300, 2000] if args.step else [1000, 2000, 5000])
    if args.step:
        step_table(genes, args.batch[0])
    elif args.plan:
        plan(genes, args.batch[0], args.device)
    elif args.evaluation:
        metric_rows(args.evaluation)
        scoring_row(2 * args.evaluation)
    elif args.disk:
        disk_rows(args.disk)
    else:
        table(genes, args.batch, args.device)


if __name__ == "__main__":
    main()
