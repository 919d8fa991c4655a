"""Run the snippets of docs/using.md for other tools, and hold the tools' numbers beside ours.

tests/interop.sh calls this in a folder with the run runs/simulated, where the tools are installed.
"""

import re
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
USING = ROOT / "docs" / "using.md"
SECTIONS = "Which genes change", "With other tools"


def snippets(sections=SECTIONS):
    """[(language, text)] of the code blocks in sections of docs/using.md; commands have none."""
    found = []
    for section in re.split(r"^## ", USING.read_text(), flags=re.MULTILINE):
        if section.startswith(sections):
            found += re.findall(r"^```(\w*)\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    return found


def run_snippets():
    """Run them all, one after the other; returns the names that those in Python leave behind."""
    names = {}
    for language, text in snippets():
        print("", text.strip(), "", sep="\n", flush=True)
        if language == "python":
            exec(text, names)
            continue
        for command in text.splitlines():
            command = re.sub(r"^python (\w+\.py)", rf"{sys.executable} {ROOT}/\1", command)
            done = subprocess.run(command, shell=True, capture_output=True, text=True)
            print(done.stdout[-300:] if done.returncode == 0 else done.stderr[-2000:])
            done.check_returncode()
    return names


def check(what, same, detail):
    """Print what was compared, and end if it is not the same."""
    print(f"{what}: {detail}")
    if not same:
        sys.exit(f"{what}: not the same as ours")


def compare_scanpy(names):
    """Scanpy's t-test in each cell type against our table: its order and its numbers."""
    sc, table = names["sc"], names["table"]
    adata = sc.read_h5ad("runs/simulated/predicted.h5ad")
    worst = dict.fromkeys(("log2_fold_change", "score", "p_adjusted"), 0.0)
    theirs = {"log2_fold_change": "logfoldchanges", "score": "scores", "p_adjusted": "pvals_adj"}
    conditions = table["condition"].unique()
    in_order = 0
    for condition in conditions:
        perturbation, _, cell_type = condition.rpartition("@")
        one_type = adata[adata.obs["cell_type"] == cell_type].copy()
        sc.tl.rank_genes_groups(
            one_type,
            "perturbation",
            groups=[perturbation],
            reference="control",
            method="t-test",
        )
        ranked = sc.get.rank_genes_groups_df(one_type, perturbation, gene_symbols="gene_name")
        own = table[table["condition"] == condition]
        in_order += ranked["gene_name"].tolist() == own["gene"].tolist()
        for column in worst:
            gap = np.abs(ranked[theirs[column]].to_numpy() - own[column].to_numpy()).max()
            worst[column] = max(worst[column], gap)
    gaps = ", ".join(f"{column} {gap:.1g}" for column, gap in worst.items())
    same = in_order == len(conditions) and max(worst.values()) < 1e-4
    detail = f"all genes in our order in {in_order} of {len(conditions)}; largest gaps {gaps}"
    check("Scanpy", same, detail)


def compare_cell_eval(names):
    """The metrics that cell-eval and evaluate.py both have, of the same whole conditions."""
    from evaluate import discrimination, pearson_delta

    cells_of = names["cells_of"]
    for cell_type in ("typeA", "typeB"):
        theirs = pd.read_csv(f"cell-eval/{cell_type}_results.csv", index_col=0)
        n = len(theirs)
        controls = cells_of("truth.h5ad", "control", cell_type).mean(0)
        x = {p: cells_of("runs/simulated/predicted.h5ad", p, cell_type) for p in theirs.index}
        y = {p: cells_of("truth.h5ad", p, cell_type) for p in theirs.index}
        delta, rank = [], []
        for name in theirs.index:
            delta.append(pearson_delta(x[name], y[name], controls))
            others = np.array([y[other].mean(0) for other in theirs.index if other != name])
            # Theirs is the share of all conditions that are nearer, ours that of the others.
            rank.append(1 - (1 - discrimination(x[name], y[name], others)) * (n - 1) / n)
        gaps = {
            "pearson_delta": np.abs(delta - theirs["pearson_delta"]).max(),
            "discrimination_score_l1": np.abs(rank - theirs["discrimination_score_l1"]).max(),
        }
        detail = ", ".join(f"{metric} {gap:.1g}" for metric, gap in gaps.items())
        same = max(gaps.values()) < 1e-4
        check(f"cell-eval, {n} conditions of {cell_type}", same, f"largest gaps {detail}")


def main():
    """Run the snippets and compare."""
    warnings.simplefilter("ignore")  # of the tools, to those who write them
    sys.path.insert(0, str(ROOT))
    names = run_snippets()
    compare_scanpy(names)
    compare_cell_eval(names)
    ours, theirs = names["ours"], names["theirs"]
    check("pertpy", np.isclose(ours, theirs, rtol=1e-4), f"E-distance {ours:.5f}, {theirs:.5f}")


if __name__ == "__main__":
    main()
