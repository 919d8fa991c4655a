"""Predict cells: a trained run + control cells -> predicted.h5ad.

    python sample.py runs/x                                            every held-out condition
    python sample.py runs/x --condition 'GATA1+KLF1@k562' --cells 500 --out cells.h5ad
    python sample.py runs/x --data new.h5ad --condition STAT1          other controls, cell types never seen among them

Each predicted cell starts at a real control cell of its type (obs["control_cell"]). The seed and the condition decide its random
numbers, so the same run, seed and device give the same cells whatever else is sampled.
"""
import argparse
import io
import json
import math
import os
import pickle
import zipfile
import zlib
from dataclasses import asdict

import anndata
import numpy as np
import pandas as pd
import torch
from scipy import sparse
from tqdm import tqdm

import data
import files
from departures import ActiveValues, Departures, Settings, propagate, put, sample
from figures import draw_paths

FORMAT = 5                                                                  # of the checkpoint; raise it when that changes


# ---------------------------------------------------------------------------------------------------------- checkpoint

def write_checkpoint(run, model, settings, reading, state):
    """runs/x/model.pt: tensors and plain values only, complete or not there at all."""
    content = {"format": FORMAT, "settings": asdict(settings), "reading": reading, "genes": model.genes,
               "targets": model.targets, "cell_types": model.cell_types, "kind": model.kind,
               "channels": len(model.encoder.effects), "structure": model.encoder.structure.shape[1], "model": model.state_dict(), **state}
    memory = io.BytesIO()
    torch.save(content, memory)
    data.save(f"{run}/model.pt", memory.getbuffer())


def read_checkpoint(run):
    """The content of runs/x/model.pt. Nothing in it can run code: it is read with weights_only=True."""
    path = f"{run}/model.pt"
    if not os.path.exists(path):
        raise data.InputError(f"{path}: no such file; {run} is not a run of train.py")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, zipfile.BadZipFile, pickle.UnpicklingError, ValueError) as e:
        raise data.InputError(f"{path}: truncated, or not a checkpoint of plain tensors and values; train again") from e
    version = content.get("format") if isinstance(content, dict) else None
    if version != FORMAT:
        raise data.InputError(f"{path}: a checkpoint of another version ({version}, this is {FORMAT}); train again")
    if not {"settings", "reading", "genes", "targets", "kind", "model", "epoch", "epochs", "optimiser", "log", "groups"} <= set(content):
        raise data.InputError(f"{path}: a damaged checkpoint, parts are missing; train again")
    return {**content, "path": path}


def model_of(content, device):
    """The Departures that a checkpoint holds."""
    try:
        model = Departures(Settings(**content["settings"]), content["genes"], content["targets"], content["cell_types"],
                           content["kind"], content["channels"], content["structure"])
        model.load_state_dict(content["model"])
    except (KeyError, TypeError, RuntimeError) as e:
        raise data.InputError(f"{content['path']}: a damaged checkpoint, its parts do not fit together; train again") from e
    return model.to(device)


def check_folder(path, *inputs):
    """Refuse, before any work is done, a file or folder that cannot be made where it is wanted, or a file that is read from."""
    if os.path.isdir(path) or os.path.realpath(path) in [os.path.realpath(name) for name in inputs]:
        raise data.InputError(f"{path}: is {'a folder' if os.path.isdir(path) else 'an input'}; choose another name for what is written")
    parent = os.path.dirname(os.path.abspath(path))
    while not os.path.exists(parent):
        parent = os.path.dirname(parent)
    if not os.path.isdir(parent) or not os.access(parent, os.W_OK):
        raise data.InputError(f"{path}: cannot be written in {parent}; choose another place")


def check_device(device):
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as e:
        raise data.InputError(f"--device {device}: not available here ({str(e).splitlines()[0]}); use --device cpu") from e


# ------------------------------------------------------------------------------------ what the model is told of a screen

def population_statistics(X, rows=None):
    """(mean, mean where expressed, fraction of cells expressing, variance where expressed) of each gene, (4, N) float32, in sparse X (C, N) or
    some of its rows. A gene that no cell expresses has mean and variance 0."""
    cells, (n, total, squares) = 0, np.zeros((3, X.shape[1]))
    for part in data.blocks(X, rows):
        cells += part.shape[0]
        for table, weights in ((n, None), (total, part.data), (squares, part.data.astype(np.float64) ** 2)):
            table += np.bincount(part.indices, weights, X.shape[1])
    active_mean = total / np.maximum(n, 1)
    variance = np.maximum(squares / np.maximum(n, 1) - active_mean ** 2, 0)
    return np.stack([total / cells, active_mean, n / cells, variance]).astype(np.float32)


def active_values(X, groups):
    """Every gene's non-zero values in every group, for draws "if expressed": (start, count) each (P, N), values (nnz,).

    `values[start[p, i] : start[p, i] + count[p, i]]` are gene i's in group p (rows groups[p] of X). A gene silent in a
    group borrows its values in all the groups together, which `values` holds last; one silent everywhere has count 0. Where this would take
    more than `files.in_memory`, every second (third …) cell of each group has to do.
    """
    thin = max(1, math.ceil(24 * sum(map(len, groups)) * X.nnz / X.shape[0] / files.in_memory()))           # 24 bytes a value, for a moment
    groups = [rows[::thin] for rows in groups]
    tables = [X[rows].tocsc() for rows in [*groups, np.concatenate(groups)]]
    count = np.stack([np.diff(t.indptr) for t in tables]).astype(np.int64)
    offset = np.cumsum([0] + [t.nnz for t in tables[:-1]])
    start = np.stack([t.indptr[:-1] + o for t, o in zip(tables, offset)]).astype(np.int64)
    silent = count == 0
    start, count = np.where(silent, start[-1], start), np.where(silent, count[-1], count)
    return start[:-1], count[:-1], np.concatenate([t.data for t in tables])


class Cells:
    """Rows of a screen's sparse X (C, N) as dense float32 on a device. On a GPU that can hold it X stays there and batches are made there: only
    row numbers travel, and nobody waits for anybody."""

    def __init__(self, X, device):
        self.X, self.device, self.resident = X, torch.device(device), False
        if self.device.type == "cuda" and 8 * X.nnz < 0.5 * torch.cuda.mem_get_info(self.device)[0]:
            self.settle()

    def settle(self):
        self.resident, self.lengths = True, np.diff(self.X.indptr)
        self.start, self.count, self.columns, self.values = (
            torch.from_numpy(a).to(self.device) for a in (self.X.indptr[:-1], self.lengths, self.X.indices, self.X.data))

    def __call__(self, rows):
        if not self.resident:
            return put(self.device, self.X[rows].toarray())
        total, rows = int(self.lengths[rows].sum()), put(self.device, rows)                                   # known here: no waiting
        count = self.count[rows]
        cell = torch.repeat_interleave(count, output_size=total)
        at = torch.arange(total, device=self.device) + (self.start[rows] - count.cumsum(0) + count)[cell]
        return torch.zeros(len(rows), self.X.shape[1], device=self.device).index_put_((cell, self.columns[at].long()), self.values[at])


def describe_cell_type(model, cell_type, X, rows, elsewhere):
    """Tell the model what a type's controls are like, some rows of X (C, N); genes they never express take the level `elsewhere` (N,)."""
    mean, level, fraction, _ = population_statistics(X, rows)
    model.add_cell_type(cell_type, mean, np.where(fraction > 0, level, elsewhere), fraction, len(rows))


def read_edges(path):
    """A user's network: CSV with columns source, target and, if they have one, weight."""
    try:
        edges = pd.read_csv(path)
    except (OSError, ValueError) as e:
        raise data.InputError(f"--grn {path}: not structural, coexpression or none, nor a readable CSV ({e})") from e
    if not {"source", "target"} <= set(edges):
        raise data.InputError(f"{path}: an edge list needs the columns source and target; it has {', '.join(edges)}")
    if "weight" not in edges:
        edges["weight"] = 1.0
    if not len(edges) or edges[["source", "target"]].isna().any(axis=None):
        raise data.InputError(f"{path}: an edge list needs a source and a target in every row, and at least one row")
    if not pd.api.types.is_numeric_dtype(edges["weight"]) or not np.isfinite(edges["weight"]).all():
        raise data.InputError(f"{path}: the column weight must be a finite number in every row")
    return edges


def edge_effects(model, edges):
    """Effects (P, N) of silencing each target along a user's edges, which may pass through genes outside the panel."""
    names = sorted({*model.genes, *model.targets, *edges["source"].astype(str), *edges["target"].astype(str)})
    index = {name: i for i, name in enumerate(names)}
    W = torch.zeros(len(names), len(names))
    W[[index[g] for g in edges["target"].astype(str)], [index[g] for g in edges["source"].astype(str)]] = torch.tensor(
        edges["weight"].to_numpy(np.float32))
    reached = propagate(W, torch.tensor([index[p] for p in model.targets]))
    return reached[:, [index[g] for g in model.genes]].to(model.gene_scale.device)


# ------------------------------------------------------------------------------------------------------------ sampling

def predict(model, screen, cells, perturbation, cell_type, n, values, seed, device, batch=512):
    """n cells of a condition: (X, if-expressed levels) each (n, N) CSR, and the rows of the controls they started from."""
    condition = model.condition(data.targets_of(perturbation, model.kind), str(cell_type))
    own = zlib.crc32(f"{seed} {perturbation}@{cell_type}".encode())        # not hash(): that changes from process to process
    rng = np.random.default_rng(own)
    controls = screen.controls(cell_type)
    rounds = [rng.permutation(controls) for _ in range(-(-n // len(controls)))]    # every control once before any is used again
    rows = np.concatenate(rounds)[:n]
    generator = torch.Generator(device).manual_seed(own)
    parts = [sample(model, cells(part), condition, values, generator)
             for part in np.array_split(rows, -(-n // batch))]
    X, level = (sparse.csr_matrix(torch.cat(p).cpu().numpy()) for p in zip(*parts))
    return X, level, rows


def trace_paths(path, model, screen, perturbation, cell_type, values, seed, device, cells=60):
    """Draw how both bridges take some control cells to a condition, for three genes: the one that rises most, the one that falls most, and
    of the others the one that most cells switch."""
    x0, trace = torch.from_numpy(screen.dense(screen.controls(cell_type)[:cells])).to(device), []
    condition = model.condition(data.targets_of(perturbation, model.kind), str(cell_type))
    end, level = sample(model, x0, condition, values, torch.Generator(device).manual_seed(seed), trace=trace)
    x, d = (torch.stack(part).cpu().numpy() for part in zip(*trace, (level, end > 0)))         # (steps + 1, cells, N)
    change, switched = (end - x0).mean(0).cpu().numpy(), np.abs(d[-1].mean(0) - d[0].mean(0))
    genes = [change.argmax(), change.argmin()]
    switched[genes] = -1
    genes.append(switched.argmax())
    draw_paths(path, x[..., genes], d[..., genes], screen.genes[genes], f"{perturbation}@{cell_type}")


def sample_run(run, device="cpu", conditions=(), cells=None, out=None, path=None, seed=None, with_controls=False, training=False,
               screen=None, columns=None):
    """Sample conditions of a run into an h5ad; returns its path. By default every held-out one, as many cells as were measured."""
    content = read_checkpoint(run)
    out = out or f"{run}/{'asked' if conditions else 'training' if training else 'predicted'}.h5ad"
    check_folder(out, f"{run}/model.pt", content["reading"]["path"], *([path] if path else []))
    settings = Settings(**content["settings"])
    seed = settings.seed if seed is None else seed
    model = model_of(content, device)
    if content["epoch"] < content["epochs"]:
        print(f"note: {run} is not finished: {content['epoch']} of {content['epochs']} epochs; train.py --resume {run} goes on")
    screen = screen or _screen(content, path, columns or {})
    level = population_statistics(screen.X, np.concatenate([screen.controls(t) for t in screen.cell_types]))[1]
    for t in screen.cell_types:
        if path or t not in model.cell_types:
            describe_cell_type(model, str(t), screen.X, screen.controls(t), level)
    known = [t for t in model.cell_types if (data.CONTROL, t) in screen.groups]
    table = ActiveValues(*active_values(screen.X, [screen.controls(t) for t in known]), device)
    place = torch.tensor([known.index(t) if t in known else 0 for t in model.cell_types], device=device)
    table.start, table.count = table.start[place], table.count[place]      # one population per cell type of the model
    wanted = [c for name in conditions for c in asked(screen, model, name, content["groups"])] or sorted(
        k for k in screen.groups if k[0] != data.CONTROL and (k in screen.held_out) != training)
    check_predictable(model, screen, wanted)
    parts, dense = [], Cells(screen.X, device)
    for p, t in tqdm(wanted, desc="sampling", unit="condition", leave=False):
        n = cells or len(screen.groups.get((p, t), range(200)))
        parts.append((p, t, *predict(model, screen, dense, p, t, n, table, seed, device)))
    write_predicted(out, screen, parts, model.kind, {"run": str(run), "seed": seed, "settings": json.dumps(content["settings"]),
                                                       "reading": json.dumps(content["reading"]), "controls": screen.source},
                    with_controls)
    if parts and out == f"{run}/predicted.h5ad":
        os.makedirs(f"{run}/figures", exist_ok=True)
        trace_paths(f"{run}/figures/paths.png", model, screen, *wanted[0], table, seed, device)
    if parts:
        print(f"{sum(len(x[4]) for x in parts):,} predicted cells of {len(parts)} conditions: {out}")
    else:
        print(f"no held-out conditions: {out} holds no cells; name some with sample.py {run} --condition")
    return out


def check_predictable(model, screen, conditions):
    """Refuse, in one line, the first condition with a target of which the model can know nothing."""
    for p, t in sorted(conditions):
        try:
            model.condition(data.targets_of(p, model.kind), str(t))
        except ValueError as e:
            mend = "train with --also GENE if it is measured, or in your --grn EDGES.csv" if model.kind == "gene" else "train with --drug-embedding"
            raise data.InputError(f"{screen.source}: {p}@{t}: {e}; leave it out, or {mend}") from e


def asked(screen, model, name, groups):
    """The (perturbation, cell type) pairs that a condition's name means, measured or not; groups: those of the run's screen."""
    perturbation, cell_type = data.at_type(screen, name)
    if "@" in perturbation and data.targets_of(perturbation, "drug")[0][0] not in model.targets:
        raise data.InputError(f"{screen.source}: no control cells of type '{perturbation.rpartition('@')[2]}' to start '{name}' from; "
                              f"there are {data.some(screen.cell_types)}; others come from --data")
    seen = {p for p, *_ in groups if model.kind == "drug" and p != data.CONTROL}
    doses = {p for p in seen if data.targets_of(p, "drug")[0][0] == perturbation}              # a drug's name alone means each measured dose
    if not doses and perturbation in model.targets and any(data.targets_of(p, "drug")[0][0] != p for p in seen):
        raise data.InputError(f"--condition {name}: this screen has doses; name one, such as {perturbation}:1")
    if perturbation == data.CONTROL:
        raise data.InputError(f"--condition {name}: nothing is to be predicted for the control")
    return [(p, t) for p in sorted(doses or {perturbation}) for t in screen.cell_types if cell_type in (None, t)]


def _screen(content, path, columns):
    """The run's own screen, or other control cells with the run's genes in the run's order."""
    if not path:
        return same_genes(data.prepare(**content["reading"]), content)
    screen = data.read_screen(path, **{c: columns.get(c) or content["reading"].get(c) for c in data.COLUMNS if c != "split_column"})
    screen.kind = content["kind"]                                          # controls alone do not tell
    position = {g: i for i, g in enumerate(screen.genes)}
    missing = [g for g in content["genes"] if g not in position]
    if missing:
        raise data.InputError(f"{path}: lacks {len(missing):,} of the run's {len(content['genes']):,} genes, such as {missing[0]}")
    return data.take_genes(screen, [position[g] for g in content["genes"]])


def same_genes(screen, content):
    """The screen, if it still has the genes and the conditions, and the same of them held out, that the run was trained on."""
    if screen.genes.tolist() != content["genes"] or screen.kind != content["kind"] or groups_of(screen) != content["groups"]:
        raise data.InputError(f"{screen.source}: its genes or conditions are not those that the run was trained on: the file has changed "
                              "since; restore it, or train again")
    return screen


def groups_of(screen):
    """[[perturbation, cell type, whether held out]] of a screen, for the checkpoint."""
    return [[str(p), str(t), (p, t) in screen.held_out] for p, t in sorted(screen.groups)]


def write_predicted(path, screen, parts, kind, about, with_controls):
    """predicted.h5ad, as DESIGN section 5 describes it."""
    blocks, levels, tables = [sparse.csr_matrix((0, len(screen.genes)), dtype=np.float32)], [], []
    for p, t, X, level, rows in parts:
        blocks.append(X)
        levels.append(level)
        tables.append(pd.DataFrame({"perturbation": p, "cell_type": t, "condition": f"{p}@{t}",
                                    "control_cell": screen.cells[rows], "is_predicted": True}))
    if with_controls:
        rows = np.flatnonzero((screen.perturbation == data.CONTROL) & np.isin(screen.cell_type, [part[1] for part in parts]))
        blocks.append(screen.X[rows])
        levels.append(screen.X[rows])
        tables.append(pd.DataFrame({"perturbation": data.CONTROL, "cell_type": screen.cell_type[rows],
                                    "condition": [f"{data.CONTROL}@{t}" for t in screen.cell_type[rows]],
                                    "control_cell": screen.cells[rows], "is_predicted": False}))
    columns = ["perturbation", "cell_type", "condition", "control_cell", "is_predicted"]
    obs = pd.concat([pd.DataFrame(columns=columns), *tables], ignore_index=True)
    if kind == "drug":
        obs["dose"] = [dict(data.targets_of(p, kind)).popitem()[1] if p != data.CONTROL else np.nan for p in obs["perturbation"]]
        obs["dose"] = obs["dose"].astype(float)
    obs["is_predicted"] = obs["is_predicted"].astype(bool)
    for column in columns[:3]:
        obs[column] = pd.Categorical(obs[column])
    obs["control_cell"] = obs["control_cell"].astype(str)
    obs.index = [f"{'predicted' if made else 'control'}_{i}" for i, made in enumerate(obs["is_predicted"])]
    var = pd.DataFrame({"gene_name": screen.genes}, index=screen.var_names)
    adata = anndata.AnnData(sparse.vstack(blocks).tocsr().astype(np.float32), obs=obs, var=var)
    adata.layers["if_expressed"] = sparse.vstack([blocks[0], *levels]).tocsr().astype(np.float32)
    adata.uns["departures"] = about
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    data.write_h5ad(adata, path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, **data.ONE_LINE)
    add = parser.add_argument
    add("run", help="folder of a run of train.py")
    add("--condition", action="append", default=[], help="what to predict: A, A+B or drug:dose, with @celltype for one type only")
    add("--cells", type=int, help="cells per condition (default: as many as were measured, else 200)")
    add("--out", help="the h5ad to write (default RUN/predicted.h5ad; with --condition, RUN/asked.h5ad)")
    add("--data", help="an h5ad of other control cells to start from")
    add("--device", default="cpu", help="cpu, cuda, cuda:1 … (default cpu)")
    add("--seed", type=int, help="of the samples (default: the run's)")
    add("--with-controls", action="store_true", help="copy the real controls in, for Scanpy and cell-eval")
    add("--training", action="store_true", help="every training condition instead, into RUN/training.h5ad")
    for name, text in data.COLUMNS.items():
        if name != "split_column":
            add("--" + name.replace("_", "-"), help=f"of --data: {text}")
    args = parser.parse_args()
    if args.cells is not None and args.cells < 1:
        raise data.InputError(f"--cells must be positive, not {args.cells}")
    if args.data and not args.condition:
        raise data.InputError("--data needs --condition: name what to predict for those control cells")
    if args.seed is not None and args.seed < 0:
        raise data.InputError(f"--seed must not be negative, it is {args.seed}")
    check_device(args.device)
    sample_run(args.run, args.device, args.condition, args.cells, args.out, args.data, args.seed, args.with_controls,
               args.training, columns={name: getattr(args, name) for name in data.COLUMNS if name != "split_column"})


if __name__ == "__main__":
    data.run_script(main)
