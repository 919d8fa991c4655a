"""Train and score variants of the method over several seeds: `python train.py --ablate`.

Each run is a process of its own, so that any one can be repeated alone. What is done is not done
again.
"""

import argparse
import itertools
import os
import subprocess
import sys

import pandas as pd
from tqdm import tqdm

import screens
from report.tables import ablation_table
from report.training import draw_ablation

TRAIN = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "train.py")

# Name: the options that it adds to the default.
ABLATIONS = {
    "default": "",
    # the paper's Fig. 6
    "without discrete": "--no-discrete --no-if-expressed",
    "random pairing": "--pairing random",
    "OT cosine": "--cost cosine",
    "OT Euclidean": "--cost euclidean",
    # the additions, one at a time
    "without shifts": "--no-shifts --no-skip-gate --no-if-expressed --no-anchor --grn coexpression",
    "without skip gate": "--no-skip-gate",
    "without if-expressed": "--no-if-expressed",
    "without anchor": "--no-anchor",
    "without decay": "--no-decay",
    "co-expression network": "--grn coexpression",
    # the pairing's settings
    "exact pairing": "--pairing exact",
    "plans of 16": "--plan-cells 16",
    "plans of 512": "--plan-cells 512",
    # none of the additions
    "the paper's": "--paper",
}
DISTANCES = [
    (m, genes) for m in ("E-distance", "EMD") for genes in ("all", "DE20", "DE40", "switched")
]


def ablate(arguments):
    """Train and score every row of ABLATIONS with the command's other options.

    arguments: those of train.py, --ablate [SEEDS] among them. Writes a table (ablation.csv, .md)
    and a figure into --out.
    """
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--out", default="")
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--data", default="")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--ablate", nargs="?", type=int, const=3)
    mine, others = parser.parse_known_args(arguments)
    name = os.path.splitext(os.path.basename(mine.data or "simulated"))[0]
    out = mine.out or f"runs/ablation-{name}"
    remember_options(out, " ".join([*others, mine.data]))
    seeds = range(mine.seed, mine.seed + mine.ablate)
    rows = []
    variants = list(itertools.product(seeds, ABLATIONS.items()))
    for seed, (variant, changes) in tqdm(variants, desc="ablation", unit="run"):
        run = f"{out}/{variant.replace(' ', '-')}-{seed}"
        if not os.path.exists(f"{run}/metrics.json"):
            train_variant(run, seed, changes, mine, others)
        rows.append(read_row(run, variant, seed))
    numbers = {column: float for column in rows[0] if column not in ("name", "seed")}
    table = pd.DataFrame(rows).astype(numbers)
    screens.save(f"{out}/ablation.csv", table.to_csv(index=False).encode())
    screens.save(f"{out}/ablation.md", ablation_table(table).encode())
    draw_ablation(f"{out}/ablation.png", table)
    print(ablation_table(table))
    print(f"table and figure: {out}/ablation.csv, .md, .png")


def remember_options(out, given):
    """Write down the options of an ablation; refuse a folder that holds one with others."""
    path = f"{out}/options.txt"
    if os.path.exists(path):
        with open(path) as file:
            if file.read() != given:
                raise screens.InputError(
                    f"{out}: an ablation with other options; give another --out"
                )
    os.makedirs(out, exist_ok=True)
    screens.save(path, given.encode())


def train_variant(run, seed, changes, mine, others):
    """Train and score one variant in a process of its own, or resume it."""
    if os.path.exists(f"{run}/model.pt"):
        options = ["--resume", run]
    else:
        data = ["--data", mine.data] if mine.data else []
        options = [*others, *data, "--seed", str(seed), "--out", run, *changes.split()]
    options += ["--device", mine.device]
    command = [sys.executable, TRAIN, *options]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with {done.returncode}"]
        raise screens.InputError(f"train.py {' '.join(options)}: {lines[-1]}")


def read_row(run, variant, seed):
    """What a variant scored: gap closed by distances, activation, and its plans' information."""
    try:
        with open(f"{run}/metrics.json") as file:
            scores = screens.from_json(file.read())["summary"]["model"]
        row = {
            "name": variant,
            "seed": seed,
            "plan information": pd.read_csv(f"{run}/log.csv")["plan_information"].mean(),
            "activation PCC, all": scores["activation PCC"]["all"]["mean"],
        }
        for metric, genes in DISTANCES:
            row[f"{metric}, {genes}"] = scores[metric].get(genes, {}).get("gap_closed")
        return row
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise screens.InputError(
            f"{run}: its metrics.json or log.csv is damaged; delete the folder and start again"
        ) from error
