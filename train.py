"""Train Departures on a perturbation screen, then sample and score every held-out condition.

    python train.py                                      simulates a screen first
    python train.py --data f.h5ad --test 'KLF1+TGFBR2@k562' --out runs/x
    python train.py --resume runs/x                      continues after the last complete epoch

A run is a folder: model.pt (the checkpoint), log.csv and loss.png (a row an epoch), predicted.h5ad, metrics.json, figures/.
In log.csv, endpoint_loss is Eq. 9 and activation_loss Eq. 14, each a mean over the epoch, and prior what is added to them; plans counts the
transport plans, unconverged those whose marginals Sinkhorn left more than 1 % off, marginal_error the worst of them; plan_information their
mean distance from uniform, 0 to 1; seconds is the epoch's time.
"""
import argparse
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields
from functools import partial

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

import data
import evaluate
import sample
import toy_data
from baselines import within_covariance
from departures import (ActiveValues, Departures, Settings, coexpression_network, joint_loss, pair, propagate,
                        structural_effects)
from figures import ablation_table, draw_ablation, draw_loss

ABLATIONS = {  # name: what is changed of the default; the paper's Fig. 6, our improvements one by one, pairing, and all of it undone
    "default": "", "without discrete": "--no-discrete --no-if-expressed", "random pairing": "--pairing random", "OT cosine": "--cost cosine",
    "OT Euclidean": "--cost euclidean", "without skip gate": "--no-skip-gate", "without if-expressed": "--no-if-expressed",
    "without null pairs": "--no-null-pairs", "without label dropout": "--label-dropout 0", "Euler-Maruyama": "--no-exact-step", "without prior": "--prior 0",
    "co-expression network": "--grn coexpression", "exact pairing": "--pairing exact", "plans of 16": "--pairing-batch 16",
    "plans of 64": "--pairing-batch 64", "coupled": "--coupled", "the paper's": "--paper"}
LOG = ("epoch", "endpoint_loss", "activation_loss", "prior", "plans", "unconverged", "marginal_error", "plan_information", "seconds")
STOPPED = []                                                                # signals that asked to stop, for loops to look at


# ------------------------------------------------------------------------------------------------ from screen to model

def build(screen, settings, device, also=()):
    """An untrained Departures that knows the screen's control populations and its gene network. also: measured genes that nobody perturbed
    but that somebody will ask for; they become nodes of the network."""
    for gene in also:
        if gene not in screen.genes:
            raise data.InputError(f"--also {gene}: not among the {len(screen.genes):,} genes kept from {screen.source}")
    edges = None if settings.grn in ("structural", "coexpression", "none") else sample.read_edges(settings.grn)
    if settings.drug_embedding and screen.kind == "gene":
        raise data.InputError(f"--drug-embedding {settings.drug_embedding}: {screen.source} is a screen of genes; leave it out")
    structure = sample.structures(screen, settings.drug_embedding) if screen.kind == "drug" else {}
    targets = {target for p, _ in screen.groups for target, _ in data.targets_of(p, screen.kind)} | set(also) | set(structure)
    torch.manual_seed(settings.seed)
    model = Departures(settings, screen.genes.tolist(), sorted(map(str, targets)), list(map(str, screen.cell_types)),
                       screen.kind, 1 + (edges is not None), len(next(iter(structure.values()), [0])))
    for drug, vector in structure.items():
        model.encoder.structure[model.targets.index(drug)] = torch.as_tensor(vector)
    groups = screen.training_groups()
    _, level, _, variance = sample.population_statistics(screen.X[np.concatenate(list(groups.values()))])
    for t in model.cell_types:
        sample.describe_cell_type(model, t, screen.X[screen.controls(t)], level)
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
        S, _ = within_covariance(screen, [screen.controls(t) for t in screen.cell_types])
        S = torch.as_tensor(S, dtype=torch.float32, device=device)
        effects[measured] = propagate(coexpression_network(S), model.target_gene[measured])
        return effects
    R = torch.as_tensor(S / sd[:, None] / sd, dtype=torch.float32, device=device)
    effects[measured] = structural_effects(
        R, cells, model.target_gene[measured], *knock_down_evidence(model, screen, measured, sd), seed=settings.seed,
        hubs=settings.grn_hubs, factors=settings.grn_factors, sparsity=settings.grn_sparsity, progress=partial(tqdm, desc="gene network", leave=False))
    return effects


def knock_down_evidence(model, screen, measured, sd):
    """What training perturbations did to the means: knock (Q, P), shift (Q, N), its error variance (Q, 1), in units of sd (N,).

    A row for each training condition whose targets are all measured; measured (P,) indexes the model's targets.
    """
    place = {model.targets[i]: n for n, i in enumerate(measured.tolist())}
    mean = {key: np.asarray(screen.X[rows].mean(0)).ravel() for key, rows in screen.training_groups().items()}
    knock, shift, noise = [], [], []
    for (p, t), rows in screen.training_groups().items():
        nodes = [place.get(target) for target, _ in data.targets_of(p, screen.kind)]
        if not nodes or None in nodes:
            continue
        fall = model.knock_down(measured[nodes], torch.full_like(measured[nodes], model.cell_types.index(t))).cpu().numpy()
        knock.append(np.bincount(nodes, fall, minlength=len(measured)))
        shift.append((mean[p, t] - mean[data.CONTROL, t]) / sd)
        # The 0.003 is the model's own error: effects are not linear, so no mean is known to better than 0.05 sd.
        noise.append(1 / len(rows) + 1 / len(screen.controls(t)) + 0.003)
    tables = ((knock, len(measured)), (shift, len(sd)), (noise, 1))
    return [torch.as_tensor(np.reshape(a, (-1, n)), dtype=torch.float32, device=model.gene_scale.device) for a, n in tables]


# ------------------------------------------------------------------------------------------------------------ training

def draw_pairs(screen, groups, settings, generator, device):
    """This epoch's pairs: (control row, perturbed row, group) each (n,), and the marginal error and the information of every plan (plans, 2).

    Per group: every perturbed cell once, as many controls of its type, a plan between them. Control groups are halved and one half paired
    with the other (null pairs, an improvement on the paper: they make "no perturbation" the origin of every effect).
    """
    sources, ends, which, plans = [], [], [], []
    for g, (p, t) in enumerate(groups):
        rows = screen.groups[p, t]
        rows = rows[torch.randperm(len(rows), generator=generator).numpy()]
        pool = screen.controls(t)
        if p == data.CONTROL:
            if not settings.null_pairs or len(rows) < 2:
                continue
            pool, rows = rows[:len(rows) // 2], rows[len(rows) // 2:]
        for batch in np.array_split(rows, math.ceil(len(rows) / settings.pairing_batch)):
            take = torch.randperm(max(len(pool), len(batch)), generator=generator).numpy()[:len(batch)] % len(pool)
            xT, x0 = (torch.from_numpy(screen.dense(r)).to(device) for r in (batch, pool[take]))
            partner, *about = pair(xT, x0, settings, generator_for(device, generator))
            sources.append(pool[take][partner.cpu().numpy()])
            ends.append(batch)
            which.append(np.full(len(batch), g))
            plans.append(about)
    return np.concatenate(sources), np.concatenate(ends), np.concatenate(which), np.array(plans)


def generator_for(device, generator):
    """A generator on the device, seeded from a CPU one (which is returned as it is on the CPU)."""
    if torch.device(device).type == "cpu":
        return generator
    return torch.Generator(device).manual_seed(int(torch.randint(2 ** 62, (), generator=generator)))


def train(model, screen, settings, out, state, device, save):
    """Train from state["epoch"] to the end; save(state) after every epoch. Each has its own seed, so a resumed run is the same run."""
    groups = list(screen.training_groups())
    values = ActiveValues(*sample.active_values(screen.X, [screen.groups[g] for g in groups]), device)
    conditions = [model.condition(data.targets_of(p, screen.kind), t) for p, t in groups]
    control_of = torch.tensor([groups.index((data.CONTROL, t)) for _, t in groups])
    n = sum(len(screen.groups[p, t]) * (0.5 if p == data.CONTROL else 1) for p, t in groups if settings.null_pairs or p != data.CONTROL)
    steps = math.ceil(n / settings.batch)
    state["epochs"] = epochs = settings.epochs or max(5, math.ceil(2500 / steps))
    optimiser = torch.optim.AdamW(model.parameters(), lr=settings.learning_rate, fused=True)
    if state["optimiser"]:
        optimiser.load_state_dict(state["optimiser"])
    if state["log"]:
        write_log(out, state["log"])                                       # killed after a checkpoint, before its log
    with tqdm(total=epochs * steps, initial=state["epoch"] * steps, desc="training", unit="step", mininterval=0.5) as progress:
        for epoch in range(state["epoch"], epochs):
            started = time.time()
            cpu = torch.Generator().manual_seed(1_000_003 * settings.seed + epoch)
            generator = generator_for(device, cpu)
            sources, ends, which, plans = draw_pairs(screen, groups, settings, cpu, device)
            losses = torch.zeros(3, device=device)
            model.train()
            order = torch.randperm(len(ends), generator=cpu).numpy()
            batches = np.array_split(order, math.ceil(len(order) / settings.batch))
            for i, b in enumerate(batches):
                for group in optimiser.param_groups:
                    group["lr"] = settings.learning_rate * 0.5 * (1 + math.cos(math.pi * (epoch + i / len(batches)) / epochs))
                x0, xT = (torch.from_numpy(screen.dense(rows[b])).to(device) for rows in (sources, ends))
                distinct, place = np.unique(which[b], return_inverse=True)
                populations = torch.stack([control_of[which[b]], torch.as_tensor(which[b])], 1).to(device)
                parts = joint_loss(model, x0, xT, [conditions[g] for g in distinct],
                                   torch.as_tensor(place, device=device), populations, values, generator)
                optimiser.zero_grad()
                sum(parts).backward()                                          # Eq. 15
                optimiser.step()
                losses += torch.stack(parts).detach() / len(batches)
                progress.update()
                if STOPPED:
                    raise KeyboardInterrupt
            if not torch.isfinite(losses).all():
                raise data.InputError(f"{out}: the loss is not finite in epoch {epoch + 1}; try a smaller --learning-rate or --sigma, or check --grn")
            state["epoch"], state["optimiser"] = epoch + 1, optimiser.state_dict()
            state["log"].append([epoch + 1, *losses.tolist(), len(plans), int((~(plans[:, 0] <= 0.01)).sum()), *plans.max(0)[:1].tolist(),
                                 float(plans[:, 1].mean()), time.time() - started])
            progress.set_postfix(endpoint=f"{losses[0]:.4f}", activation=f"{losses[1]:.4f}")
            save(state)
            write_log(out, state["log"])
    if (log := pd.DataFrame(state["log"], columns=LOG))["unconverged"].any():
        print(f"warning: Sinkhorn left {log['unconverged'].sum():,} of {log['plans'].sum():,} plans more than 1 % off their marginals "
              f"(worst {log['marginal_error'].max():.2g}); a larger --epsilon converges faster")


def stop(number, frame):
    """Signal handler. Python drops the exception of one that comes while a library's callback or destructor runs; STOPPED keeps it."""
    STOPPED.append(number)
    raise KeyboardInterrupt


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
    add("--ablate", nargs="?", type=int, const=3, metavar="SEEDS", help="train and score variants of the method over so many seeds (3), with the "
        "other options; a table and a figure")
    add("--paper", action="store_true", help="the paper's literal method: the five improvements and the prior off, its network, pairing and rate")
    add("--also", action="append", default=[], help="a measured gene that nobody perturbed, to be predicted later")
    for name, text in data.COLUMNS.items():
        add("--" + name.replace("_", "-"), help=text)
    for f in fields(Settings):
        more = {"action": argparse.BooleanOptionalAction} if f.type is bool else {"type": f.type}
        if "choices" in f.metadata:
            more["choices"] = f.metadata["choices"]
        add("--" + f.name.replace("_", "-"), default=argparse.SUPPRESS, help=f"{f.metadata['help']} (default {f.default})", **more)
    args = parser.parse_args()
    for name, value in vars(args).items():
        if value == "":
            raise data.InputError(f"--{name.replace('_', '-')} is empty; give a value or leave it out")
    return args


def new_run(args):
    """(folder, reading arguments, settings) of a run that does not exist yet; simulates the screen if no file is named."""
    settings = Settings().as_in_the_paper() if args.paper else Settings()
    for f in fields(Settings):
        setattr(settings, f.name, getattr(args, f.name, getattr(settings, f.name)))
    check(settings)
    name = os.path.splitext(os.path.basename(args.data))[0] if args.data else "simulated"
    names = (f"runs/{name}{suffix}" for suffix in itertools.chain([""], (f"-{i}" for i in itertools.count(2))))
    out = args.out or next(n for n in names if not os.path.exists(n))
    if os.path.exists(f"{out}/model.pt"):
        raise data.InputError(f"{out}: holds a run already; give another --out, or --resume {out}")
    if os.path.isfile(out):
        raise data.InputError(f"{out}: is a file; --out names a folder")
    sample.check_folder(out)
    path = os.path.abspath(args.data or f"{out}/screen.h5ad")              # so that the run can be used from any folder
    reading = {"path": path, "test": args.test, "genes": settings.genes, "fraction": settings.test_fraction,
               "seed": settings.seed, **{c: getattr(args, c) for c in data.COLUMNS}}
    if args.data:
        screen = data.prepare(**reading)                                   # before the folder is made: a bad file leaves nothing
    else:
        if os.path.exists(path):
            raise data.InputError(f"{path}: exists already; name it with --data, or give another --out")
        print(f"no --data: simulating a screen into {path}")
        os.makedirs(out, exist_ok=True)
        data.write_h5ad(toy_data.simulate_screen(seed=settings.seed), path)
        screen = data.prepare(**reading)
    return out, reading, settings, screen


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
        options = [*rest, *(["--data", mine.data] if mine.data else []), "--seed", str(seed), "--out", run, *changes.split()]
        if os.path.exists(f"{run}/model.pt"):
            options = ["--resume", run]
        options += ["--device", mine.device]
        if not os.path.exists(f"{run}/metrics.json"):
            done = subprocess.run([sys.executable, __file__, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            if done.returncode:
                raise data.InputError(f"train.py {' '.join(options)}: {(done.stderr.strip() or f'ended with {done.returncode}').splitlines()[-1]}")
        with open(f"{run}/metrics.json") as file:
            summary = json.load(file)["summary"]
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
        if f.type is float and not math.isfinite(getattr(settings, f.name)):
            raise data.InputError(f"--{f.name.replace('_', '-')} must be a finite number, not {getattr(settings, f.name)}")
    for name in ("steps", "batch", "width", "embedding", "pairing_batch", "sigma", "learning_rate", "grn_factors"):
        if not getattr(settings, name) > 0:
            raise data.InputError(f"--{name.replace('_', '-')} must be positive, not {getattr(settings, name)}")
    if settings.seed >= 2 ** 31:
        raise data.InputError(f"--seed must be below 2^31, it is {settings.seed}")
    for name in ("seed", "epochs", "grn_sparsity", "grn_hubs", "prior"):
        if not getattr(settings, name) >= 0:
            raise data.InputError(f"--{name.replace('_', '-')} must not be negative, it is {getattr(settings, name)}")
    for name in ("test_fraction", "label_dropout", "target_dropout", "type_dropout"):
        if not 0 <= getattr(settings, name) <= 1:
            raise data.InputError(f"--{name.replace('_', '-')} must lie between 0 and 1, not {getattr(settings, name)}")
    try:
        fine = settings.epsilon == "bridge" or float(settings.epsilon.removesuffix("max")) > 0
    except ValueError:
        fine = False
    if not fine:
        raise data.InputError(f"--epsilon must be a positive number or 'bridge', not {settings.epsilon!r}")
    if not settings.discrete and (settings.if_expressed or settings.coupled):
        raise data.InputError("--no-discrete needs --no-if-expressed, and no --coupled: one bridge alone has to carry the zeros")
    if settings.epsilon == "bridge" and settings.cost != "sqeuclidean":
        raise data.InputError("--epsilon bridge is defined for --cost sqeuclidean only")


def main():
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) != signal.SIG_IGN:                     # so a shell sets Ctrl-C for what runs in its background
            signal.signal(number, stop)
    args = parse()
    if args.ablate is not None:
        if args.ablate < 1 or args.resume:
            raise data.InputError("--ablate needs at least one seed, and no --resume: it goes on by itself with the same --out")
        return ablate()
    sample.check_device(args.device)
    if args.resume:
        given = [f"--{name.replace('_', '-')}" for name, value in vars(args).items()
                 if (value or name in Settings.__dataclass_fields__) and name not in ("resume", "device", "data")]
        if given:
            raise data.InputError(f"--resume {args.resume} goes on with the run's own settings; leave out {', '.join(given)}")
        checkpoint = sample.read_checkpoint(args.resume)
        out, reading, settings = args.resume, checkpoint["reading"], Settings(**checkpoint["settings"])
        reading["path"] = os.path.abspath(args.data) if args.data else reading["path"]         # the file may have moved
        screen = sample.same_genes(data.prepare(**reading), checkpoint)
        model = sample.model_of(checkpoint, args.device)
        state = {key: checkpoint[key] for key in ("epoch", "epochs", "optimiser", "log", "groups")}
        if state["epochs"] == state["epoch"]:
            print(f"{out}: all {state['epoch']} epochs are done; sampling and scoring again")
    else:
        out, reading, settings, screen = new_run(args)
        model = build(screen, settings, args.device, args.also)
        sample.check_predictable(model, screen, screen.held_out)           # before hours of training, not after
        os.makedirs(out, exist_ok=True)
        state = {"epoch": 0, "epochs": 1, "optimiser": None, "log": [], "groups": sample.groups_of(screen)}
    print(*data.describe(screen), sep="\n")
    parameters = sum(p.numel() for p in model.parameters())
    print(f"model: {parameters:,} parameters; run: {out}")
    save = partial(sample.write_checkpoint, out, model, settings, reading)
    try:
        save(state)
        train(model, screen, settings, out, state, args.device, save)
        sample.sample_run(out, args.device, screen=screen)
        if any(len(screen.groups[key]) >= evaluate.FEWEST for key in screen.held_out):
            evaluate.evaluate_run(out, screen=screen)
        else:
            print(f"nothing to score: no held-out condition has {evaluate.FEWEST} measured cells")
    except KeyboardInterrupt:
        print(f"stopped; continue from the last complete epoch with: python train.py --resume {out} --device {args.device}", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    data.run_script(main)
