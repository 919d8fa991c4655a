"""Train Departures on a perturbation screen, then sample and score every held-out condition.

    python train.py                                      simulates a screen first
    python train.py --data f.h5ad --test 'KLF1+TGFBR2@k562' --out runs/x
    python train.py --resume runs/x                      continues after the last complete epoch
    torchrun --nproc-per-node 2 train.py …               the same run, to rounding, shared by two processes

A run is a folder: model.pt (the checkpoint), log.csv and loss.png (a row an epoch), predicted.h5ad, metrics.json, figures/.
In log.csv, endpoint_loss is Eq. 9 and activation_loss Eq. 14, each a mean over the epoch, and prior what is added to them; plans counts the
transport plans, unconverged those whose marginals Sinkhorn left more than 1 % off, marginal_error the worst of them; plan_information their
mean distance from uniform, 0 to 1; seconds is the epoch's time.
"""
import argparse
import atexit
import itertools
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import fields
from datetime import timedelta
from functools import partial

import numpy as np
import pandas as pd
import torch
import torch.distributed as dist
from tqdm import tqdm

import data
import evaluate
import files
import sample
import toy_data
from baselines import knock_downs, within_covariance
from departures import ActiveValues, Departures, Settings, Share, coexpression_network, joint_loss, pair, propagate, put, structural_effects
from figures import ablation_table, draw_ablation, draw_loss

ABLATIONS = {  # name: what is changed of the default; the paper's Fig. 6, our improvements one by one, pairing, and all of it undone
    "default": "", "without discrete": "--no-discrete --no-if-expressed", "random pairing": "--pairing random", "OT cosine": "--cost cosine",
    "OT Euclidean": "--cost euclidean", "without skip gate": "--no-skip-gate", "without if-expressed": "--no-if-expressed",
    "without null pairs": "--no-null-pairs", "without label dropout": "--label-dropout 0", "Euler-Maruyama": "--no-exact-step",
    "without prior": "--prior 0", "co-expression network": "--grn coexpression", "exact pairing": "--pairing exact",
    "plans of 16": "--pairing-batch 16", "plans of 512": "--pairing-batch 512", "coupled": "--coupled", "the paper's": "--paper"}
LOG = ("epoch", "endpoint_loss", "activation_loss", "prior", "plans", "unconverged", "marginal_error", "plan_information", "seconds")
RANK, PROCESSES = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE")) if dist.is_torchelastic_launched() else (0, 1)    # torchrun's


# ------------------------------------------------------------------------------------------------ from screen to model

def build(screen, settings, device, also=()):
    """An untrained Departures that knows the screen's control populations and its gene network. also: genes, measured or in the user's edges, that
    nobody perturbed but that somebody will ask for; they become nodes of the network."""
    edges = None if settings.grn in ("structural", "coexpression", "none") else sample.read_edges(settings.grn)
    for gene in also:
        if gene not in screen.genes and (edges is None or gene not in set(edges["source"])):
            raise data.InputError(f"--also {gene}: not among the {len(screen.genes):,} genes kept from {screen.source}, nor a source in a --grn network")
    if settings.drug_embedding and screen.kind == "gene":
        raise data.InputError(f"--drug-embedding {settings.drug_embedding}: {screen.source} is a screen of genes; leave it out")
    structure = data.structures(screen, settings.drug_embedding) if screen.kind == "drug" else {}
    targets = {target for p, _ in screen.groups for target, _ in data.targets_of(p, screen.kind)} | set(also) | set(structure)
    torch.manual_seed(settings.seed)
    model = Departures(settings, screen.genes.tolist(), sorted(map(str, targets)), list(map(str, screen.cell_types)),
                       screen.kind, 1 + (edges is not None), len(next(iter(structure.values()), [0])))
    for drug, vector in structure.items():
        model.encoder.structure[model.targets.index(drug)] = torch.as_tensor(vector)
    groups = screen.training_groups()
    _, level, _, variance = sample.population_statistics(screen.X, np.concatenate(list(groups.values())))
    for t in model.cell_types:
        sample.describe_cell_type(model, t, screen.X, screen.controls(t), level)
    scale = torch.as_tensor(np.sqrt(variance).clip(0.05))
    model.level_scale.copy_(scale)
    model.log_scale.data.copy_(scale.log().expand(2, -1))
    for p, t in groups:
        for target, _ in data.targets_of(p, screen.kind):
            i = model.targets.index(target)
            model.encoder.seen[i] = model.encoder.seen_pair[i, model.cell_types.index(t)] = True
    model.to(device)
    model.encoder.cells.fill_(float(np.mean([len(rows) for (p, _), rows in groups.items() if p != data.CONTROL] or [math.inf])))
    doses = [dose for p, _ in groups for _, dose in data.targets_of(p, screen.kind)]
    model.encoder.usual_dose.fill_(float(np.median(np.log10(np.maximum(doses, 1e-12)))))
    if screen.kind == "gene" and settings.grn != "none":
        model.encoder.effects[0] = network_effects(model, screen, settings)
    if edges is not None:
        model.encoder.effects[1] = sample.edge_effects(model, edges)
    return model


def network_effects(model, screen, settings):
    """What the cells say each target does to every gene, (P, N): section 5 of departures.py. Zero for targets not measured."""
    groups, device = screen.training_groups(), model.gene_scale.device
    effects = torch.zeros_like(model.encoder.effects[0])
    measured = torch.nonzero(model.target_gene >= 0).squeeze(1)
    S, cells = within_covariance(screen, groups.values())
    sd = np.sqrt(np.diag(S)).clip(1e-3)
    model.gene_scale.copy_(torch.as_tensor(sd))
    if not len(measured):
        return effects
    if settings.grn == "coexpression":
        S = torch.as_tensor(within_covariance(screen, map(screen.controls, screen.cell_types))[0], dtype=torch.float32, device=device)
        effects[measured] = propagate(coexpression_network(S), model.target_gene[measured])
        return effects
    R, *evidence = (torch.as_tensor(a, dtype=torch.float32, device=device) for a in (
        S / sd[:, None] / sd, *knock_downs(screen, [model.targets[i] for i in measured.tolist()], sd)))
    effects[measured] = structural_effects(
        R, cells, model.target_gene[measured], *evidence, seed=settings.seed, hubs=settings.grn_hubs, factors=settings.grn_factors,
        sparsity=settings.grn_sparsity, progress=partial(tqdm, desc="gene network", leave=False))
    return effects


# ------------------------------------------------------------------------------------------------------------ training

def draw_pairs(screen, cells, groups, settings, generator, device):
    """This epoch's pairs: (control row, perturbed row, group) each (n,), and the marginal error and the information of every plan (plans, 2).

    Per group: every perturbed cell once, as many controls of its type, a plan between them. Control groups are halved and one half paired
    with the other (null pairs, an improvement on the paper: they make "no perturbation" the origin of every effect). Processes share the plans.
    """
    sources, ends, which = [], [], []
    for g, (p, t) in enumerate(groups):
        rows = screen.groups[p, t]
        rows = rows[torch.randperm(len(rows), generator=generator).numpy()]
        pool = screen.controls(t)
        if p == data.CONTROL:
            if not settings.null_pairs or len(rows) < 2:
                continue
            pool, rows = rows[:len(rows) // 2], rows[len(rows) // 2:]
        for batch in np.array_split(rows, math.ceil(len(rows) / settings.pairing_batch)):
            sources.append(pool[torch.randperm(max(len(pool), len(batch)), generator=generator).numpy()[:len(batch)] % len(pool)])
            ends.append(batch)
            which.append(np.full(len(batch), g))
    seeds, mine = torch.randint(2 ** 62, (len(ends),), generator=generator).tolist(), []
    for i in range(RANK, len(ends), PROCESSES):
        partner, *about = pair(cells(ends[i]), cells(sources[i]), settings, torch.Generator(device).manual_seed(seeds[i]))
        mine.append((sources[i][partner.cpu().numpy()], about))
    parts = [mine] * PROCESSES
    exchange(dist.all_gather_object, parts, mine)
    sources, plans = zip(*filter(None, itertools.chain(*itertools.zip_longest(*parts))))
    return np.concatenate(sources), np.concatenate(ends), np.concatenate(which), np.array(plans)


def train(model, screen, settings, out, state, device, save):
    """Train from state["epoch"] to the end; save(state) after every epoch. Each has its own seed, so a resumed run is the same run."""
    groups = list(screen.training_groups())
    values = ActiveValues(*sample.active_values(screen.X, [screen.groups[g] for g in groups]), device)
    conditions, cells = [model.condition(data.targets_of(p, screen.kind), t) for p, t in groups], sample.Cells(screen.X, device)
    control_of = np.array([groups.index((data.CONTROL, t)) for _, t in groups])
    n = sum(len(screen.groups[p, t]) * (0.5 if p == data.CONTROL else 1) for p, t in groups if settings.null_pairs or p != data.CONTROL)
    steps = math.ceil(n / settings.batch)
    state["epochs"] = epochs = settings.epochs or max(5, math.ceil(2500 / steps))
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, fused=True)
    if state["optimiser"]:
        optimiser.load_state_dict(state["optimiser"])
    if state["log"] and RANK == 0:
        write_log(out, state["log"])                                       # killed after a checkpoint, before its log
    with tqdm(total=epochs * steps, initial=state["epoch"] * steps, desc="training", unit="step", mininterval=0.5, disable=RANK > 0) as progress:
        for epoch in range(state["epoch"], epochs):
            started = time.time()
            cpu = torch.Generator().manual_seed(1_000_003 * settings.seed + epoch)
            generator = cpu if device == "cpu" else torch.Generator(device).manual_seed(cpu.initial_seed())
            sources, ends, which, plans = draw_pairs(screen, cells, groups, settings, cpu, device)
            losses = torch.zeros(3, device=device)
            model.train()
            batches = np.array_split(torch.randperm(len(ends), generator=cpu).numpy(), math.ceil(len(ends) / settings.batch))
            for i, b in enumerate(batches):
                optimiser.param_groups[0]["lr"] = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (epoch + i / len(batches)) / epochs))
                share, distinct = Share(generator, slice(RANK, None, PROCESSES), len(b)), np.unique(which[b])
                b = b[share.rows]
                place, populations = (put(cells.device, a) for a in (np.searchsorted(distinct, which[b]), np.stack([control_of[which[b]], which[b]], 1)))
                parts = joint_loss(model, cells(sources[b]), cells(ends[b]), [conditions[g] for g in distinct], place, populations, values, share)
                losses += step(optimiser, torch.stack(parts) * (len(b) / share.total)) / len(batches)
                progress.update()
                if files.STOPPED:
                    raise KeyboardInterrupt
            exchange(dist.all_reduce, losses)
            if not torch.isfinite(losses).all():
                raise data.InputError(f"{out}: the loss is not finite in epoch {epoch + 1}; try a smaller --learning-rate or --sigma, or check --grn")
            state["epoch"], state["optimiser"] = epoch + 1, optimiser.state_dict()
            state["log"].append([epoch + 1, *losses.tolist(), len(plans), int((~(plans[:, 0] <= 0.01)).sum()), *plans.max(0)[:1].tolist(),
                                 float(plans[:, 1].mean()), time.time() - started])
            progress.set_postfix(endpoint=f"{losses[0]:.4f}", activation=f"{losses[1]:.4f}")
            if RANK == 0:
                save(state)
                write_log(out, state["log"])
    if (log := pd.DataFrame(state["log"], columns=LOG))["unconverged"].any():
        print(f"warning: Sinkhorn left {log['unconverged'].sum():,} of {log['plans'].sum():,} plans more than 1 % off their marginals "
              f"(worst {log['marginal_error'].max():.2g}); a larger --epsilon converges faster")


def step(optimiser, losses):
    """One step of the optimiser on the sum of this process's share of the losses (3,), Eq. 15; returns them."""
    optimiser.zero_grad()
    losses.sum().backward()
    if PROCESSES > 1:
        gradients = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
        whole = torch.nn.utils.parameters_to_vector(gradients)                            # one message, not one a tensor
        exchange(dist.all_reduce, whole)
        torch.nn.utils.vector_to_parameters(whole, gradients)
    optimiser.step()
    return losses.detach()


def write_log(out, log):
    data.save(f"{out}/log.csv", pd.DataFrame(log, columns=LOG).to_csv(index=False).encode())
    draw_loss(f"{out}/loss.png", *np.array(log)[:, :3].T)


# -------------------------------------------------------------------------------------------------------- command line

def parse():
    parser = argparse.ArgumentParser(description=__doc__, **data.ONE_LINE)
    add = parser.add_argument
    add("--data", help="h5ad of the screen; without it one is simulated")
    add("--test", action="append", default=[], help="condition to hold out: A, A+B, drug:dose, with @celltype for one type only")
    add("--out", help="folder of the run (default: runs/NAME)")
    add("--resume", metavar="RUN", help="continue an interrupted run")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 … (default cpu)")
    add("--ablate", nargs="?", type=int, const=3, metavar="SEEDS", help="train and score variants of the method over so many seeds (3)")
    add("--paper", action="store_true", help="the paper's literal method: the five improvements and the prior off, its network, pairing and rate")
    add("--also", action="append", default=[], help="a gene, measured or in the --grn network, that nobody perturbed, to be predicted later")
    for name, text in data.COLUMNS.items():
        add("--" + name.replace("_", "-"), help=text)
    for f in fields(Settings):
        more = {"action": argparse.BooleanOptionalAction} if f.type is bool else {"type": f.type, "choices": f.metadata.get("choices")}
        add("--" + f.name.replace("_", "-"), default=argparse.SUPPRESS, help=f"{f.metadata['help']} (default {f.default})", **more)
    args = parser.parse_args()
    for name, value in vars(args).items():
        if value == "":
            raise data.InputError(f"--{name.replace('_', '-')} is empty; give a value or leave it out")
    return args


def new_run(args, device):
    """(folder, how its file is read, settings, screen, untrained model, state) of a new run; simulates the screen if no file is named."""
    settings = Settings().as_in_the_paper() if args.paper else Settings()
    for f in fields(Settings):
        setattr(settings, f.name, getattr(args, f.name, getattr(settings, f.name)))
    check(settings)
    name = os.path.splitext(os.path.basename(args.data))[0] if args.data else "simulated"
    names = (f"runs/{name}{suffix}" for suffix in itertools.chain([""], (f"-{i}" for i in itertools.count(2))))
    out = args.out or next(n for n in names if not os.path.exists(n))
    if os.path.isfile(out) or os.path.exists(f"{out}/model.pt"):
        raise data.InputError(f"{out}: " + ("is a file; --out names a folder" if os.path.isfile(out) else f"holds a run already; give another --out, or --resume {out}"))
    sample.check_folder(f"{out}/model.pt")
    path = os.path.abspath(args.data or f"{out}/screen.h5ad")              # so that the run can be used from any folder
    reading = {"path": path, "test": args.test, "genes": settings.genes, "fraction": settings.test_fraction,
               "seed": settings.seed, **{c: getattr(args, c) for c in data.COLUMNS}}
    if not args.data:
        if os.path.exists(path):
            raise data.InputError(f"{path}: exists already; name it with --data, or give another --out")
        print(f"no --data: simulating a screen into {path}")
        os.makedirs(out, exist_ok=True)
        data.write_h5ad(toy_data.simulate_screen(seed=settings.seed), path)
    screen = data.prepare(**reading)                                       # before the folder is made: a bad file leaves nothing
    model = build(screen, settings, device, args.also)
    sample.check_predictable(model, screen, screen.held_out)               # before hours of training, not after
    os.makedirs(out, exist_ok=True)
    state = {"epoch": 0, "epochs": 1, "optimiser": None, "log": [], "groups": sample.groups_of(screen)}
    sample.write_checkpoint(out, model, settings, reading, state)
    return out, reading, settings, screen, model, state


def join(device):
    """Join torchrun's other processes, where there are; returns this one's device. Only the first writes and says what it does."""
    if PROCESSES > 1 and device.startswith("cuda:"):
        raise data.InputError(f"--device {device}: several processes take a GPU each; use --device cuda")
    device = f"cuda:{os.environ['LOCAL_RANK']}" if PROCESSES > 1 and device == "cuda" else device
    sample.check_device(device)
    if PROCESSES > 1:
        if device != "cpu":
            torch.cuda.set_device(device)
        dist.init_process_group("gloo" if device == "cpu" else "nccl", timeout=timedelta(days=7))           # the others wait for the first to read
        atexit.register(dist.destroy_process_group)                        # else gloo's threads abort an early end
        sys.stdout = open(os.devnull, "w") if RANK else sys.stdout
    return device


def exchange(collective, *arguments):
    """One of torch.distributed's collectives, where there are other processes; ConnectionError where one of them is gone."""
    try:
        return collective(*arguments) if PROCESSES > 1 else None
    except RuntimeError as e:
        raise ConnectionError(f"lost another process of this run ({str(e).splitlines()[0]})") from e


def resume(out, args, device):
    """What `new_run` returns, of a run that exists: from its checkpoint."""
    given = [f"--{name.replace('_', '-')}" for name, value in vars(args).items()
             if (value or name in Settings.__dataclass_fields__) and name not in ("resume", "device", "data")]
    if given and args.resume:
        raise data.InputError(f"--resume {out} goes on with the run's own settings; leave out {', '.join(given)}")
    checkpoint = sample.read_checkpoint(out)
    reading, settings = checkpoint["reading"], Settings(**checkpoint["settings"])
    check(settings)
    reading["path"] = os.path.abspath(args.data) if args.data else reading["path"]             # the file may have moved
    screen = sample.same_genes(data.prepare(**reading), checkpoint)
    state = {key: checkpoint[key] for key in ("epoch", "epochs", "optimiser", "log", "groups")}
    if args.resume and state["epochs"] == state["epoch"]:
        print(f"{out}: all {state['epoch']} epochs are done; sampling and scoring again")
    return out, reading, settings, screen, sample.model_of(checkpoint, device), state


def ablate():
    """Train and score every row of ABLATIONS with the command's other options over several seeds: a table and a figure. A process each, so
    that any one can be repeated alone; what is done already is not done again."""
    mine = argparse.ArgumentParser(add_help=False)
    for name, default in (("--out", ""), ("--seed", 0), ("--data", ""), ("--device", "cpu")):
        mine.add_argument(name, default=default, type=type(default))
    mine.add_argument("--ablate", nargs="?", type=int, const=3)
    mine, rest = mine.parse_known_args()
    out, rows = mine.out or f"runs/ablation-{os.path.splitext(os.path.basename(mine.data or 'simulated'))[0]}", []
    given = " ".join([*rest, mine.data])
    if os.path.exists(f"{out}/options.txt") and open(f"{out}/options.txt").read() != given:
        raise data.InputError(f"{out}: an ablation with other options; give another --out")
    os.makedirs(out, exist_ok=True)
    data.save(f"{out}/options.txt", given.encode())
    todo = list(itertools.product(range(mine.seed, mine.seed + mine.ablate), ABLATIONS.items()))
    for seed, (name, changes) in tqdm(todo, desc="ablation", unit="run"):
        run = f"{out}/{name.replace(' ', '-')}-{seed}"
        if not os.path.exists(f"{run}/metrics.json"):
            options = ["--resume", run] if os.path.exists(f"{run}/model.pt") else [
                *rest, *(["--data", mine.data] if mine.data else []), "--seed", str(seed), "--out", run, *changes.split()]
            options += ["--device", mine.device]
            done = subprocess.run([sys.executable, __file__, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                raise data.InputError(f"train.py {' '.join(options)}: {(done.stderr.strip() or f'ended with {done.returncode}').splitlines()[-1]}")
        summary = json.load(open(f"{run}/metrics.json"))["summary"]
        rows.append({"name": name, "seed": seed, "plan information": pd.read_csv(f"{run}/log.csv")["plan_information"].mean(),
                     "activation PCC, all": summary["model"]["activation PCC"]["all"]["mean"],
                     **{f"{m}, {g}": summary["model"][m].get(g, {}).get("gap_closed") for m in ("E-distance", "EMD") for g in evaluate.SETS}})
    table = pd.DataFrame(rows).astype({c: float for c in rows[0] if c not in ("name", "seed")})
    data.save(f"{out}/ablation.csv", table.to_csv(index=False).encode())
    data.save(f"{out}/ablation.md", ablation_table(table).encode())
    draw_ablation(f"{out}/ablation.png", table)
    print(ablation_table(table), f"\ntable and figure: {out}/ablation.csv, .md, .png", sep="")


def check(settings):
    """Refuse settings that cannot work, in one line."""
    for f in fields(Settings):
        value, least, most = getattr(settings, f.name), f.metadata.get("least"), f.metadata.get("most")
        if f.type is float and not math.isfinite(value) or least is not None and value < least or most is not None and value > most:
            limits = "".join(f", at {word} {limit}" for word, limit in (("least", least), ("most", most)) if limit is not None)
            raise data.InputError(f"--{f.name.replace('_', '-')} must be a finite number{limits}; it is {value}")
    if PROCESSES > 1 and settings.batch < 2 * PROCESSES:                   # an epoch's batches may be half as large
        raise data.InputError(f"--batch {settings.batch} is too small for {PROCESSES} processes; start fewer, or give a larger one")
    try:
        fine = settings.epsilon == "bridge" or 0 < float(settings.epsilon.removesuffix("max")) < math.inf
    except ValueError:
        fine = False
    if not fine:
        raise data.InputError(f"--epsilon must be a positive number or 'bridge', not {settings.epsilon!r}")
    if not settings.discrete and (settings.if_expressed or settings.coupled):
        raise data.InputError("--no-discrete needs --no-if-expressed, and no --coupled: one bridge alone has to carry the zeros")
    if settings.epsilon == "bridge" and settings.cost != "sqeuclidean":
        raise data.InputError("--epsilon bridge is defined for --cost sqeuclidean only")


def main():
    args = parse()
    if args.ablate is not None:
        if args.ablate < 1 or args.resume or PROCESSES > 1:
            raise data.InputError("--ablate needs at least one seed, one process, and no --resume: it goes on by itself with the same --out")
        return ablate()
    device, begun, name = join(args.device), None, [None]
    try:
        if RANK == 0:
            begun = resume(args.resume, args, device) if args.resume else new_run(args, device)
            name = [begun[0]]
    finally:
        exchange(dist.broadcast_object_list, name)                         # the others wait for the first, and resume what it began
    if not name[0]:
        raise SystemExit(2)
    again = (f"torchrun --nproc-per-node {PROCESSES}" if PROCESSES > 1 else "python") + f" train.py --resume {name[0]} --device {args.device}"
    try:
        out, reading, settings, screen, model, state = begun or resume(name[0], args, device)
        print(*data.describe(screen), f"model: {sum(p.numel() for p in model.parameters()):,} parameters; run: {out}", sep="\n")
        train(model, screen, settings, out, state, device, partial(sample.write_checkpoint, out, model, settings, reading))
        if RANK:
            return
        sample.sample_run(out, device, screen=screen)
        if any(len(screen.groups[key]) >= evaluate.FEWEST for key in screen.held_out):
            evaluate.evaluate_run(out, screen=screen)
        else:
            print(f"nothing to score: no held-out condition has {evaluate.FEWEST} measured cells")
    except KeyboardInterrupt:
        print(f"stopped; continue from the last complete epoch with: {again}", file=sys.stderr)
        raise SystemExit(130) from None
    except ConnectionError as e:
        raise data.InputError(f"{e}; continue from the last complete epoch with: {again}") from e


if __name__ == "__main__":
    data.run_script(main)
