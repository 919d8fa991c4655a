"""Train Departures on a perturbation screen, then sample and score every held-out condition.

    python train.py                                      simulates a screen first
    python train.py --data f.h5ad --test 'KLF1+TGFBR2@k562' --out runs/x
    python train.py --data f.h5ad --paper                the paper's method, no addition
    python train.py --resume runs/x                      continues after the last complete epoch
    torchrun --nproc-per-node 2 train.py …               the same run, shared by two processes

A run is a folder: model.pt (the checkpoint), log.csv and loss.png (a row an epoch), predicted.h5ad,
trust.csv, metrics.json, figures/, and report.html, which says all of it on a page. In log.csv,
endpoint_loss is Eq. 9 and activation_loss Eq. 14, each a mean over the epoch; plans counts the
transport plans, unconverged those whose marginals Sinkhorn left more than 1 % off, marginal_error
the worst of them; plan_information is their mean distance from uniform, 0 to 1; seconds is the
epoch's time.
"""

if __name__ == "__main__":
    import report.loading  # noqa: F401  (what follows takes a while)
    from report.options import train_options
    from screens import in_one_line

    in_one_line(lambda: train_options(__doc__))

import atexit
import io
import itertools
import math
import os
import sys
import time
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from tqdm import tqdm

import sample
import screens
from departures import (
    ActiveValues,
    ImprovedSettings,
    Noise,
    Populations,
    Settings,
    coexpression_network,
    expect_without,
    model_class,
    moments,
    pair,
    propagate,
    some_conditions,
    structural_effects,
)
from report import trust
from report.forecast import Forecast, after_training
from report.genes import read_genes
from report.options import check_settings, note_effects, settings_of, train_options
from screens import CONTROL, InputError, flag

LOG = (
    "epoch", "endpoint_loss", "activation_loss", "plans", "unconverged",
    "marginal_error", "plan_information", "seconds",
)  # fmt: skip

# Of the processes that torchrun started; one, without it.
RANK = int(os.environ["RANK"]) if dist.is_torchelastic_launched() else 0
PROCESSES = int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1


# ---- From a screen to an untrained model ---------------------------------------------------------


def build(screen, settings, device, also=()):
    """An untrained Departures that knows the screen's gene network and its controls.

    also: genes that nobody perturbed, measured or in the user's network, to be asked for later.
    """
    edges = None
    if settings.grn not in ("structural", "coexpression", "none"):
        edges = screens.read_edges(settings.grn)
    if edges is not None and screen.kind == "drug":
        raise InputError(
            f"--grn {settings.grn}: {screen.source} is a screen of drugs; leave it out"
        )
    if settings.drug_embedding and screen.kind == "gene":
        raise InputError(
            f"--drug-embedding {settings.drug_embedding}: {screen.source} is a screen of genes; "
            "leave it out"
        )
    if settings.gene_embedding and screen.kind == "drug":
        raise InputError(
            f"--gene-embedding {settings.gene_embedding}: {screen.source} is a screen of drugs; "
            "leave it out"
        )
    structure = {}
    if screen.kind == "drug" or settings.gene_embedding:
        structure = screens.structures(screen, settings.drug_embedding or settings.gene_embedding)
    check_also(also, screen, edges, structure)
    targets = {target for target, _ in targets_in(screen, screen.groups)}
    targets |= set(also) | set(structure)
    names = screen.genes.tolist(), sorted(map(str, targets)), list(map(str, screen.cell_types))
    sizes = {"structure": len(next(iter(structure.values()), [0]))}
    if settings.shifts:
        groups = list(screen.training_groups())
        arrays = screens.condition_arrays(groups, names[1], names[2], screen.kind)
        sizes["networks"] = 1 if edges is None else 2
        sizes["conditions"], sizes["at_once"] = arrays[0].shape
    torch.manual_seed(settings.seed)
    model = model_class(settings)(settings, *names, screen.kind, **sizes)
    for drug, vector in structure.items():
        model.encoder.structure[model.targets.index(drug)] = torch.as_tensor(vector)
    for target, _ in targets_in(screen, screen.training_groups()):
        model.encoder.seen[model.targets.index(target)] = True
    if settings.shifts:
        counted = screens.training_statistics(screen)
        describe_screen(model, screen, counted[-1])
    model.to(device)
    if screen.kind == "gene":
        add_networks(model, screen, edges)
    if settings.shifts:
        fit_shifts(model, screen, *counted[:-1])
    return model


def targets_in(screen, groups):
    """(target, dose) of every condition among the groups, one after the other."""
    return [
        target
        for perturbation, _ in groups
        for target in screens.targets_of(perturbation, screen.kind)
    ]


def check_also(also, screen, edges, structure):
    """Refuse a gene of --also that neither the screen nor the user's files know."""
    if also and screen.kind == "drug":
        raise InputError(
            f"--also {also[0]}: {screen.source} is a screen of drugs; every drug of a "
            "--drug-embedding can be asked for without it"
        )
    known = {*screen.genes, *structure, *([] if edges is None else edges["source"])}
    for gene in also:
        if gene not in known:
            raise InputError(
                f"--also {gene}: not among the {len(screen.genes):,} genes kept from "
                f"{screen.source}, nor a source in a --grn network, nor in a --gene-embedding"
                f"{screens.did_you_mean(gene, known)}"
            )


def describe_screen(model, screen, variance):
    """Tell a model with --shifts what the training cells and the controls are like.

    variance (N,): of the genes' levels within a condition.
    """
    rows = np.concatenate(list(screen.training_groups().values()))
    _, level, fraction, _ = screens.population_statistics(screen.X, rows)
    model.usual_fraction.copy_(torch.as_tensor((fraction * len(rows) + 0.5) / (len(rows) + 1)))
    model.level_scale.copy_(torch.as_tensor(np.sqrt(variance).clip(0.05)))
    if screen.kind == "gene":
        model.direction.copy_(torch.as_tensor(screens.directions(screen)))
    for cell_type in model.cell_types:
        described = screens.control_statistics(screen, cell_type, level)
        model.describe_cell_type(cell_type, *described)


def fit_shifts(model, screen, cells, on, level):
    """Fit the shifts to be expected to what was counted (`screens.training_statistics`)."""
    if not model.settings.discrete:  # every cell counts as expressing every gene
        on, level = np.broadcast_to(cells, on.shape).copy(), on * level / cells
    conditions = sample.conditions_of(model, list(screen.training_groups()))
    cells, on, level = (torch.as_tensor(a).to(model.level_scale) for a in (cells, on, level))
    populations = Populations(conditions, cells, on, level / model.level_scale)
    progress = partial(tqdm, desc="expected shifts", leave=False)
    model.encoder.fit(populations, model, progress)


def leave_out(model, screen):
    """How far off training conditions would have been, had they been held out: trust.LEFT_OUT rows.

    In closed form, from the means of their cells.
    """
    if not model.settings.shifts:
        return []
    encoder = model.encoder
    names = [tuple(map(str, key)) for key in screen.training_groups()]
    keys = {i: names[i] for i in some_conditions(encoder).tolist()}
    groups = trust.groups_to_leave_out(keys, screen.kind)
    counted = screens.training_statistics(screen)[:-1]
    cells, on, level = (torch.as_tensor(array).to(encoder.weights) for array in counted)
    start = model.start()[encoder.cell_type].double()
    before, variance, _ = moments(model, *start.unbind(1))
    measured, noise, _ = moments(model, torch.logit(on / cells), level / model.level_scale)
    numbers = [torch.tensor(group, device=cells.device) for group in groups]
    rows = []
    for group, out, said in zip(groups, numbers, expect_without(model, numbers), strict=True):
        shift, unsure = said
        expected, _, slopes = moments(model, *(start[out] + shift).unbind(1))
        change = (expected - before[out]).square().sum(1)
        unsure = (slopes**2 * unsure).sum((1, 2))
        # The mean of few cells is off by chance, too.
        error = (expected - measured[out]).square().sum(1) - noise[out].sum(1) / cells[out, 0]
        squared = torch.stack([change, unsure, error]).cpu().numpy()
        distances = trust.as_e_distance(squared, variance[out].sum(1).cpu().numpy())
        others = [key for i, key in keys.items() if i not in group and key[0] != CONTROL]
        for i, of_condition in zip(group, distances.T.tolist(), strict=True):
            status, _ = trust.target_status(keys[i], others, screen.kind)
            seen = any(keys[i][1] == cell_type for _, cell_type in others)
            rows.append(["@".join(keys[i]), status, seen, *of_condition])
    return rows


def add_networks(model, screen, edges):
    """Put what the gene networks say of every target into the model's encoder."""
    settings = model.settings
    if not settings.shifts:  # Part I has one network
        if edges is not None:
            model.encoder.response.copy_(edge_effects(model, edges))
        elif settings.grn != "none":
            model.encoder.response.copy_(coexpression_effects(model, screen))
        return
    within, cells = screens.within_covariance(screen, screen.training_groups().values())
    sd = np.sqrt(np.diag(within)).clip(1e-3)
    model.gene_scale.copy_(torch.as_tensor(sd))
    if settings.grn == "coexpression":
        model.encoder.effects[0] = coexpression_effects(model, screen)
    elif settings.grn != "none":
        model.encoder.effects[0] = fitted_effects(model, screen, within, cells, sd)
    if edges is not None:
        model.encoder.effects[1] = edge_effects(model, edges)


def measured_targets(model):
    """Numbers of the targets that are measured genes, and the numbers of those genes."""
    position = {gene: i for i, gene in enumerate(model.genes)}
    measured = [p for p, target in enumerate(model.targets) if target in position]
    genes = [position[model.targets[p]] for p in measured]
    device = model.encoder.seen.device
    return torch.tensor(measured, dtype=torch.long), torch.tensor(genes, device=device)


def coexpression_effects(model, screen):
    """Responses (P, N) along the co-expression of the controls; 0 for targets not measured."""
    effects = torch.zeros(len(model.targets), len(model.genes), device=model.encoder.seen.device)
    measured, genes = measured_targets(model)
    if len(measured):
        controls = [screen.controls(cell_type) for cell_type in screen.cell_types]
        S = torch.as_tensor(screens.within_covariance(screen, controls)[0]).to(effects)
        effects[measured] = propagate(coexpression_network(S), genes)
    return effects


def fitted_effects(model, screen, within, cells, sd):
    """Effects (P, N) by the structural equations; 0 for targets not measured.

    within (N, N): covariance within groups, of so many cells; sd (N,): its standard deviations.
    Those of a training target are from a fit that never saw it perturbed (one of five), so that
    training targets show how far to believe those of unseen ones.
    """
    effects = torch.zeros(len(model.targets), len(model.genes), device=model.encoder.seen.device)
    measured, genes = measured_targets(model)
    if not len(measured):
        return effects
    correlation = torch.as_tensor(within / sd[:, None] / sd).to(effects)
    names = [model.targets[p] for p in measured.tolist()]
    evidence = screens.knock_downs(screen, names, sd, model.direction.tolist())
    evidence = [torch.as_tensor(a).to(effects) for a in evidence]
    seen = torch.nonzero(model.encoder.seen[measured].cpu()).squeeze(1)
    order = torch.randperm(len(seen), generator=Noise(model.settings.seed).generator)
    nobody = seen[:0]
    folds = [seen[order[i::5]] for i in range(5)]
    folds = [nobody, *[fold for fold in folds if len(fold)]]
    for fold in tqdm(folds, desc="gene network", leave=False):
        rows = ~(evidence[0][:, fold] != 0).any(1)
        fitted = structural_effects(
            correlation, cells, genes, *[a[rows] for a in evidence], seed=model.settings.seed
        )
        chosen = fold if len(fold) else slice(None)
        effects[measured[chosen]] = fitted[chosen]
    return effects


def edge_effects(model, edges):
    """Responses (P, N) along a user's edges, which may pass through genes outside the panel."""
    sources = edges["source"].astype(str).tolist()
    targets = edges["target"].astype(str).tolist()
    names = sorted({*model.genes, *model.targets, *sources, *targets})
    index = {name: i for i, name in enumerate(names)}
    W = torch.zeros(len(names), len(names))
    rows = [index[name] for name in targets]
    columns = [index[name] for name in sources]
    W[rows, columns] = torch.tensor(edges["weight"].to_numpy(np.float32))
    reached = propagate(W, torch.tensor([index[name] for name in model.targets]))
    return reached[:, [index[gene] for gene in model.genes]]


# ---- Pairs ---------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """One batch of cells to be paired: row numbers of the screen, and its group's number."""

    starts: np.ndarray
    ends: np.ndarray
    group: int


class Pairs(NamedTuple):
    """An epoch's pairs, (n,) row numbers each, and what is to be said of every plan."""

    start: np.ndarray
    end: np.ndarray
    group: np.ndarray
    marginal_error: np.ndarray  # (plans,)
    information: np.ndarray  # (plans,)


def deal_plans(screen, groups, settings, generator):
    """Deal the cells of every group to plans: each perturbed cell once, as many controls."""
    plans = []
    for number, (perturbation, cell_type) in enumerate(groups):
        if perturbation == CONTROL:
            continue
        rows = screen.groups[perturbation, cell_type]
        ends = rows[torch.randperm(len(rows), generator=generator).numpy()]
        pool = screen.controls(cell_type)
        for batch in np.array_split(ends, math.ceil(len(ends) / settings.plan_cells)):
            order = torch.randperm(max(len(pool), len(batch)), generator=generator).numpy()
            plans.append(Plan(pool[order[: len(batch)] % len(pool)], batch, number))
    return plans


def draw_pairs(screen, cells, groups, settings, generator, device):
    """Draw this epoch's pairs from transport plans. Processes share the plans among them."""
    plans = deal_plans(screen, groups, settings, generator)
    seeds = torch.randint(2**62, (len(plans),), generator=generator).tolist()
    mine = []
    for i in range(RANK, len(plans), PROCESSES):
        noise = Noise(seeds[i], device)
        xT, x0 = cells(plans[i].ends), cells(plans[i].starts)
        partners, plan = pair(xT, x0, settings, noise)
        start = plans[i].starts[partners.cpu().numpy()]
        mine.append((start, marginal_error(plan), plan_information(plan)))
    solved = gather(mine)
    group = [np.full(len(plan.ends), plan.group) for plan in plans]
    return Pairs(
        np.concatenate([start for start, _, _ in solved]),
        np.concatenate([plan.ends for plan in plans]),
        np.concatenate(group),
        np.array([error for _, error, _ in solved]),
        np.array([information for _, _, information in solved]),
    )


def marginal_error(plan):
    """How far the marginals of a plan (n, m) are from uniform, relative, at worst."""
    n, m = plan.shape
    of_rows = (plan.sum(1) * n - 1).abs().max()
    of_columns = (plan.sum(0) * m - 1).abs().max()
    return max(of_rows.item(), of_columns.item())


def plan_information(plan):
    """How much a plan (n, m) says of who belongs to whom: 0 nothing, 1 a one-to-one pairing.

    The mutual information of its two sides over the largest there can be, log min(n, m).
    """
    most = math.log(min(plan.shape))
    if most == 0:
        return 1.0
    return (torch.special.xlogy(plan, plan * plan.numel()).sum() / most).item()


# ---- Training ------------------------------------------------------------------------------------


def count_steps(screen, groups, settings):
    """How many batches an epoch has."""
    pairs = sum(len(screen.groups[group]) for group in groups if group[0] != CONTROL)
    return math.ceil(pairs / settings.batch)


def train(model, screen, settings, out, state, device, save, before=0.0):
    """Train from state["epoch"] to the end; save(state) after every epoch.

    Every epoch has its own seed, so a run that was resumed is the same run. before: seconds that
    were spent on fits, for the forecast.
    """
    groups = list(screen.training_groups())
    data = TrainingData(model, screen, groups, device)
    steps = count_steps(screen, groups, settings)
    state["epochs"] = epochs = settings.epochs or max(5, math.ceil(1000 / steps))
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, fused=True)
    if state["optimiser"]:
        moments = state["optimiser"]["state"]  # the rest of it is in the settings
        optimiser.load_state_dict({**optimiser.state_dict(), "state": moments})
    if state["log"] and RANK == 0:
        write_log(out, state["log"])  # it may have been killed after a checkpoint, before its log
    held_out = [len(screen.groups[key]) for key in screen.held_out]
    progress = Forecast(
        before, epochs - state["epoch"], steps, partial(after_training, settings, held_out),
        total=epochs * steps, initial=state["epoch"] * steps, desc="training", unit="step",
        mininterval=0.5, disable=RANK > 0,
    )  # fmt: skip
    with progress:
        for epoch in range(state["epoch"], epochs):
            started = time.time()
            losses, pairs = train_epoch(data, optimiser, epoch, epochs, progress)
            if not torch.isfinite(losses).all():
                raise InputError(
                    f"{out}: the loss is not finite in epoch {epoch + 1}; try a smaller "
                    "--learning-rate or --sigma, or check --grn"
                )
            state["epoch"] = epoch + 1
            state["optimiser"] = optimiser.state_dict()
            state["log"].append(log_row(epoch, losses, pairs, time.time() - started))
            progress.set_postfix(endpoint=f"{losses[0]:.4f}", activation=f"{losses[1]:.4f}")
            if RANK == 0:
                save(state)
                write_log(out, state["log"])
    warn_of_sinkhorn(state["log"])


class TrainingData:
    """What every batch is made of: the model, the cells, the conditions, if-expressed values."""

    def __init__(self, model, screen, groups, device):
        self.model = model
        self.screen = screen
        self.groups = groups
        self.device = device
        self.cells = screens.Cells(screen.X, device)
        self.conditions = sample.conditions_of(model, groups)
        self.control_of = np.array([groups.index((CONTROL, t)) for _, t in groups])
        self.values = None
        if model.settings.if_expressed:
            rows = [screen.groups[group] for group in groups]
            self.values = ActiveValues(*screens.active_values(screen.X, rows), device)

    def losses(self, pairs, batch, mine, noise):
        """The losses (2,) of this process's share of a batch of pairs.

        batch: row numbers of the whole batch in `pairs`, mine: those of this process. A process
        encodes the whole batch's conditions, so that its random numbers are those of the others.
        """
        distinct = np.unique(pairs.group[batch])
        group = pairs.group[mine]
        which = screens.to_device(self.cells.device, np.searchsorted(distinct, group))
        conditions = self.conditions.take(screens.to_device(self.cells.device, distinct))
        x0 = self.cells(pairs.start[mine])
        xT = self.cells(pairs.end[mine])
        d0 = self.model.activation(x0)
        dT = self.model.activation(xT)
        if self.values is not None:
            sources = screens.to_device(self.cells.device, self.control_of[group])
            ends = screens.to_device(self.cells.device, group)
            x0 = self.values.fill(x0, sources, noise)
            xT = self.values.fill(xT, ends, noise)
        return torch.stack(self.model.loss(x0, xT, d0, dT, conditions, which, noise))


def train_epoch(data, optimiser, epoch, epochs, progress):
    """One pass of `epochs` over the training cells: the mean losses (2,), and the pairs drawn."""
    settings = data.model.settings
    seed = 1_000_003 * settings.seed + epoch
    host = Noise(seed)  # pairs and batches are drawn on the host
    noise = host if data.device == "cpu" else Noise(seed, data.device)
    pairs = draw_pairs(data.screen, data.cells, data.groups, settings, host.generator, data.device)
    order = torch.randperm(len(pairs.end), generator=host.generator).numpy()
    batches = np.array_split(order, math.ceil(len(order) / settings.batch))
    progress.update(0)  # from here on it sees steps
    losses = torch.zeros(2, device=data.device)
    data.model.train()
    for i, batch in enumerate(batches):
        if settings.decay:
            done = (epoch + i / len(batches)) / epochs
            optimiser.param_groups[0]["lr"] = settings.learning_rate * (1 - done)
        mine = batch[RANK::PROCESSES]
        own = SharedNoise(noise, len(batch))
        of_batch = data.losses(pairs, batch, mine, own) * (len(mine) / len(batch))
        descend(optimiser, of_batch.sum())
        losses += of_batch.detach() / len(batches)
        progress.update()
        if screens.STOPPED:
            raise KeyboardInterrupt
    exchange(dist.all_reduce, losses)
    return losses, pairs


def descend(optimiser, loss):
    """One step of the optimiser down this process's share of the loss, Eq. 15."""
    optimiser.zero_grad()
    loss.backward()
    if PROCESSES > 1:
        weights = [p for group in optimiser.param_groups for p in group["params"]]
        gradients = [p.grad for p in weights if p.grad is not None]
        whole = torch.nn.utils.parameters_to_vector(gradients)  # one message, not one a tensor
        exchange(dist.all_reduce, whole)
        torch.nn.utils.vector_to_parameters(whole, gradients)
    optimiser.step()


# ---- What a run writes ---------------------------------------------------------------------------


def log_row(epoch, losses, pairs, seconds):
    """A row of log.csv."""
    plans = len(pairs.marginal_error)
    unconverged = int((~(pairs.marginal_error <= 0.01)).sum())  # NaN has not converged either
    worst = float(pairs.marginal_error.max())
    information = float(pairs.information.mean())
    return [epoch + 1, *losses.tolist(), plans, unconverged, worst, information, seconds]


def write_log(out, log):
    """Write log.csv and loss.png."""
    screens.save(f"{out}/log.csv", pd.DataFrame(log, columns=LOG).to_csv(index=False).encode())
    epoch, endpoint, activation = np.array(log)[:, :3].T
    from report.training import draw_loss  # it takes a while to load

    draw_loss(f"{out}/loss.png", epoch, endpoint, activation)


def warn_of_sinkhorn(log):
    """Say how many plans Sinkhorn left off their marginals, if any."""
    log = pd.DataFrame(log, columns=LOG)
    if log["unconverged"].any():
        print(
            f"warning: Sinkhorn left {log['unconverged'].sum():,} of {log['plans'].sum():,} plans "
            f"more than 1 % off their marginals (worst {log['marginal_error'].max():.2g}); a "
            "larger --epsilon converges faster"
        )


def write_checkpoint(run, model, settings, reading, state):
    """Write RUN/model.pt: tensors and plain values only, complete or not there at all."""
    content = {
        "format": sample.FORMAT,
        "settings": asdict(settings),
        "reading": reading,
        "genes": model.genes,
        "targets": model.targets,
        "cell_types": model.cell_types,
        "kind": model.kind,
        "sizes": model.sizes,
        "model": model.state_dict(),
        **state,
    }
    memory = io.BytesIO()
    torch.save(content, memory)
    screens.save(f"{run}/model.pt", memory.getbuffer())


# ---- Several processes (torchrun) ----------------------------------------------------------------


class SharedNoise:
    """A process's share of the random numbers of a whole batch.

    Every process draws those of all `total` cells, from the same seed, and keeps its own rows: they
    are the same numbers however many processes there are.
    """

    def __init__(self, noise, total):
        self.noise = noise
        self.generator = noise.generator
        self.total = total

    def normal(self, like):
        """Standard normal numbers for this process's cells, in the shape of `like` (B, ...)."""
        return self.noise.normal(self.whole(like))[RANK::PROCESSES]

    def uniform(self, like):
        """Uniform numbers for this process's cells, in the shape of `like` (B, ...)."""
        return self.noise.uniform(self.whole(like))[RANK::PROCESSES]

    def whole(self, like):
        """An empty tensor for the cells of all processes."""
        return like.new_empty(self.total, *like.shape[1:])


def exchange(collective, *arguments):
    """Call a collective of torch.distributed, where there are other processes.

    Raises ConnectionError where one of them is gone.
    """
    if PROCESSES == 1:
        return
    try:
        collective(*arguments)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise ConnectionError(f"lost another process of this run ({reason})") from error


def gather(mine):
    """Put together lists that were dealt to the processes one item at a time, in their order."""
    parts = [mine] * PROCESSES
    exchange(dist.all_gather_object, parts, mine)
    missing = object()
    rounds = itertools.zip_longest(*parts, fillvalue=missing)
    return [item for items in rounds for item in items if item is not missing]


def join(device):
    """Join torchrun's other processes, where there are; returns this one's device.

    Only the first process writes files and says what it does.
    """
    if PROCESSES > 1 and device.startswith("cuda:"):
        raise InputError(f"--device {device}: several processes take a GPU each; use --device cuda")
    if PROCESSES > 1 and device == "cuda":
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    screens.check_device(device)
    if PROCESSES > 1:
        if device != "cpu":
            torch.cuda.set_device(device)
        backend = "gloo" if device == "cpu" else "nccl"
        # A long limit, for the others wait while the first reads the file.
        dist.init_process_group(backend, timeout=timedelta(days=7))
        atexit.register(dist.destroy_process_group)  # else gloo's threads abort an early end
        if RANK:
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    return device


# ---- Command line --------------------------------------------------------------------------------


def check(settings):
    """Refuse settings that cannot work, in one line."""
    check_settings(settings)
    if PROCESSES > 1 and settings.batch < 2 * PROCESSES:  # an epoch's batches may be half as large
        raise InputError(
            f"--batch {settings.batch} is too small for {PROCESSES} processes; start fewer, or "
            "give a larger one"
        )


class Run(NamedTuple):
    """A run that is about to be trained."""

    out: str  # its folder
    reading: dict  # how its file is read: arguments of screens.prepare
    settings: Settings
    screen: screens.Screen
    model: torch.nn.Module
    state: dict  # epoch, epochs, optimiser, log, groups, library, left_out
    fits: float = 0.0  # seconds


def free_folder(args):
    """The folder of a new run: what --out says, else runs/NAME or the first free runs/NAME-2 …"""
    if args.out:
        return args.out
    name = os.path.splitext(os.path.basename(args.data))[0] if args.data else "simulated"
    if not os.path.exists(f"runs/{name}"):
        return f"runs/{name}"
    others = (f"runs/{name}-{i}" for i in itertools.count(2))
    return next(folder for folder in others if not os.path.exists(folder))


def new_run(args, device):
    """Begin a run; simulates the screen if no file is named. A bad file leaves nothing behind."""
    settings = settings_of(args, ImprovedSettings())
    check(settings)
    note_effects(settings, args)
    out = free_folder(args)
    if os.path.isfile(out):
        raise InputError(f"{out}: is a file; --out names a folder")
    if os.path.exists(f"{out}/model.pt"):
        raise InputError(f"{out}: holds a run already; give another --out, or --resume {out}")
    screens.check_folder(f"{out}/model.pt")
    name = screens.public_name(args.data) if args.data else None
    path = screens.downloaded(name) if name else args.data or f"{out}/screen.h5ad"
    path = os.path.abspath(path)  # the run is used from any folder
    reading = {
        "path": path,
        "name": name,
        "test": args.test,
        "genes": settings.genes,
        "fraction": settings.test_fraction,
        "seed": settings.seed,
        **{name: getattr(args, name) for name in screens.COLUMNS},
    }
    if not args.data:
        simulate(path, settings.seed)
    screen = screens.prepare(**reading)
    started = time.time()
    model = build(screen, settings, device, args.also)
    fits = time.time() - started
    sample.check_predictable(model, screen, screen.held_out)  # before hours of training, not after
    os.makedirs(out, exist_ok=True)
    state = {
        "epoch": 0,
        "epochs": 1,
        "optimiser": None,
        "log": [],
        "groups": screen.fingerprint(),
        "library": screen.library,
        "left_out": leave_out(model, screen),
    }
    write_checkpoint(out, model, settings, reading, state)
    return Run(out, reading, settings, screen, model, state, fits)


def simulate(path, seed):
    """Write a simulated screen where the run will look for it."""
    if os.path.exists(path):
        raise InputError(f"{path}: exists already; name it with --data, or give another --out")
    import toy_data  # SciPy, which takes a while to load

    print(f"no --data: simulating a screen into {path}")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    screens.write_h5ad(toy_data.simulate_screen(seed=seed), path)


def resume(out, args, device):
    """Take up a run from its checkpoint."""
    own = ("resume", "device", "data", "verbose")
    given = [
        flag(name)
        for name, value in vars(args).items()
        if name not in own and (value or name in ImprovedSettings.__dataclass_fields__)
    ]
    if given and args.resume:
        raise InputError(
            f"--resume {out} goes on with the run's own settings; leave out {', '.join(given)}"
        )
    checkpoint = sample.read_checkpoint(out)
    reading = checkpoint["reading"]
    if args.data:
        reading["path"] = os.path.abspath(screens.data_path(args.data))  # it may have moved
    model = sample.restore_model(checkpoint, device)
    check(model.settings)
    screen = screens.same_screen(screens.prepare_again(reading, out), checkpoint)
    parts = ("epoch", "epochs", "optimiser", "log", "groups", "library", "left_out")
    state = {part: checkpoint[part] for part in parts}
    if args.data and RANK == 0:
        write_checkpoint(out, model, model.settings, reading, state)  # it knows where, from now on
    if args.resume and state["epochs"] == state["epoch"]:
        print(f"{out}: all {state['epoch']} epochs are done; sampling and scoring again")
    return Run(out, reading, model.settings, screen, model, state)


def train_sample_and_score(run, device, verbose=False):
    """From an untrained or half-trained run to its report; verbose: print the tables too."""
    import evaluate  # SciPy's statistics, which take a while to load

    parameters = sum(p.numel() for p in run.model.parameters())
    print(*screens.describe(run.screen), sep="\n")
    print(f"model: {parameters:,} parameters; run: {run.out}")
    save = partial(write_checkpoint, run.out, run.model, run.settings, run.reading)
    train(run.model, run.screen, run.settings, run.out, run.state, device, save, run.fits)
    if RANK:
        return
    predicted = sample.sample_run(run.out, device, screen=run.screen)
    if any(len(run.screen.groups[key]) >= evaluate.FEWEST for key in run.screen.held_out):
        evaluate.evaluate_run(run.out, screen=run.screen, verbose=verbose)
    else:
        about = evaluate.origin_of(predicted)
        again = f"python sample.py {run.out}"
        page = f"{run.out}/report.html"
        tables = {"genes": read_genes(predicted), "trust": trust.read_trust(predicted)}
        evaluate.write_report(page, run.screen, predicted, run.out, about, again, **tables)


def begin(args, device):
    """Begin or resume a run, in every process: the first begins it, the others resume that."""
    run = None
    out = [None]
    try:
        if RANK == 0:
            run = resume(args.resume, args, device) if args.resume else new_run(args, device)
            out = [run.out]
    finally:
        exchange(dist.broadcast_object_list, out)  # also of a run that could not begin
    if not out[0]:
        raise SystemExit(2)
    return out[0], run


def main():
    """Read the command line, train, sample, score."""
    args = train_options(__doc__)
    if args.ablate is not None:
        if args.resume or PROCESSES > 1:
            raise InputError(
                "--ablate needs one process, and no --resume: it goes on by itself with the same "
                "--out"
            )
        from report.ablation import ablate  # it starts this script again, once per variant

        ablate(sys.argv[1:])
        return
    device = join(args.device)
    out, run = begin(args, device)
    command = f"torchrun --nproc-per-node {PROCESSES}" if PROCESSES > 1 else "python"
    again = f"{command} train.py --resume {out} --device {args.device}"
    try:
        train_sample_and_score(run or resume(out, args, device), device, args.verbose)
    except KeyboardInterrupt:
        print(f"stopped; continue from the last complete epoch with: {again}", file=sys.stderr)
        raise SystemExit(130) from None
    except ConnectionError as error:
        raise InputError(f"{error}; continue from the last complete epoch with: {again}") from error


if __name__ == "__main__":
    screens.run_script(main)
