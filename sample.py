"""Predict cells: a trained run + control cells -> predicted.h5ad, predicted_genes.csv.

    python sample.py runs/x                                         every held-out condition
    python sample.py runs/x --condition 'GATA1+KLF1@k562' --cells 500 --out cells.h5ad
    python sample.py runs/x --data new.h5ad --condition STAT1       from other control cells

Each predicted cell starts at a real control cell of its type (obs["control_cell"]). Its random
numbers come from the seed and the condition, so the same run, seed and device give the same cells
whatever else is sampled.
"""

if __name__ == "__main__":
    import report.loading  # noqa: F401  (what follows takes a while)
    from report.options import sample_options
    from screens import in_one_line

    in_one_line(lambda: sample_options(__doc__))

import json
import math
import os
import zipfile
import zlib
from dataclasses import fields
from functools import partial

import anndata
import numpy as np
import pandas as pd
import torch
from scipy import sparse
from tqdm import tqdm

import screens
from departures import (
    ActiveValues,
    Conditions,
    ImprovedSettings,
    Noise,
    explain,
    model_class,
    sample,
)
from report import trust
from report.genes import all_tables, genes_path, in_words
from report.options import cell_columns, sample_options
from screens import CONTROL, InputError, did_you_mean

FORMAT = 12  # of the checkpoint; raise it when that changes
MOST_SAID = 8  # conditions whose genes are printed
NUMBER = float | int
PARTS = {  # of a checkpoint (train.py writes it), and the form of each (`screens.has_form`)
    "settings": {
        field.name: NUMBER if field.type is float else field.type
        for field in fields(ImprovedSettings)
    },
    "reading": dict,  # see screens.check_reading
    "genes": [str],
    "targets": [str],
    "cell_types": [str],
    "kind": str,
    "sizes": {str: int},
    "model": {str: torch.Tensor},
    "epoch": int,
    "epochs": int,
    "optimiser": dict | None,
    "log": [(int, *[NUMBER] * 7)],  # rows of train.LOG
    "groups": [(str, str, bool)],
    "library": list | None,  # [counts of a cell, genes] that the run's file was scaled to
    "left_out": list,  # rows as trust.LEFT_OUT (train.py, `leave_out`)
}


# ---- A run ---------------------------------------------------------------------------------------


def read_checkpoint(run):
    """The content of RUN/model.pt, a dictionary of tensors and plain values; with its own path.

    It is read with weights_only=True, so nothing in it can run code. Raises InputError for what is
    not a whole checkpoint of this version.
    """
    path = f"{run}/model.pt"
    if not os.path.exists(path):
        raise InputError(f"{path}: no such file; {run} is not a run of train.py")
    try:
        check_size(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # zipfile, pickle and torch have no common error for a bad file
        raise InputError(
            f"{path}: truncated, or not a checkpoint of plain tensors and values; train again"
        ) from error
    version = content.pop("format", None) if isinstance(content, dict) else None
    if not isinstance(version, int) or version != FORMAT:
        version = version if isinstance(version, int) else None
        raise InputError(
            f"{path}: a checkpoint of another version ({version}, this is {FORMAT}); train again"
        )
    if not content.keys() >= PARTS.keys():
        raise InputError(f"{path}: a damaged checkpoint, parts are missing; train again")
    wrong = [name for name in PARTS if not screens.has_form(content[name], PARTS[name])]
    if content["library"] is not None and not is_library(content["library"]):
        wrong.append("library")
    if not trust.is_left_out(content["left_out"]):
        wrong.append("left_out")
    if wrong or content["kind"] not in ("gene", "drug") or content["epoch"] < 0:
        raise InputError(f"{path}: a damaged checkpoint, not as train.py writes it; train again")
    screens.check_reading(content["reading"], path)
    return {**content, "format": FORMAT, "path": path}


def is_library(value):
    """Whether a value is [counts of a cell, how many genes they are of]."""
    return screens.has_form(value, (NUMBER, int)) and 0 < value[0] < math.inf


def check_size(path):
    """Raise ValueError for a checkpoint whose parts would be larger in memory than on disk.

    torch.save does not compress them.
    """
    with zipfile.ZipFile(path) as archive:
        claimed = sum(part.file_size for part in archive.infolist())
    if claimed > os.path.getsize(path):
        raise ValueError("its parts claim more than the file holds")


def restore_model(content, device):
    """The model that a checkpoint holds, on a device."""
    try:
        settings = ImprovedSettings(**content["settings"])
        screens.check_limits(settings)
        names = content["genes"], content["targets"], content["cell_types"]
        new = partial(model_class(settings), settings, *names, content["kind"], **content["sizes"])
        with torch.device("meta"):  # its shapes, which take no memory, whatever the sizes say
            check_tensors(new(), content)
        model = new()
        model.load_state_dict(content["model"])
    except InputError as error:
        raise InputError(f"{content['path']}: {error}; train again") from error
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise InputError(
            f"{content['path']}: a damaged checkpoint, its parts do not fit together; train again"
        ) from error
    return model.to(device)


def check_tensors(model, content):
    """Raise an error if a checkpoint's tensors are not those of its model and its optimiser."""
    tensors = content["model"]
    pairs = [(tensors[name], wanted) for name, wanted in model.state_dict().items()]
    weights = list(model.parameters())
    if content["optimiser"]:
        for number, moments in content["optimiser"]["state"].items():
            pairs += [(moments[name], weights[number]) for name in ("exp_avg", "exp_avg_sq")]
            pairs.append((moments["step"], torch.zeros(())))
    for given, wanted in pairs:
        same = given.shape == wanted.shape and given.dtype == wanted.dtype
        # An expanded tensor is larger than what the file holds of it.
        if not (same and given.is_contiguous() and given.isfinite().all()):
            raise ValueError("a tensor that is not the model's")
    ends = {
        "target_gene": len(model.genes),
        "encoder.target": len(model.targets),
        "encoder.cell_type": len(model.cell_types),
    }
    for name, end in ends.items():
        if name in tensors and not ((tensors[name] >= -1) & (tensors[name] < end)).all():
            raise ValueError("a number of what there is not")
    for name in ("encoder.variance", "encoder.squared_amplitudes"):
        if name in tensors and (tensors[name] < 0).any():
            raise ValueError("a variance below 0")


def run_screen(content, path, columns):
    """The run's own screen, or other control cells with the run's genes in the run's order."""
    if not path:
        screen = screens.prepare_again(content["reading"], os.path.dirname(content["path"]))
        return screens.same_screen(screen, content)
    how = {name: columns.get(name) or content["reading"].get(name) for name in cell_columns()}
    library, n_genes = content["library"] or (None, None)
    unlabelled = not (columns.get("perturbation_column") or columns.get("control"))
    screen = screens.read_screen(path, **how, library=library, unlabelled=unlabelled)
    screen.kind = content["kind"]  # controls alone do not tell
    print(*screen.found, *other_scale(screen, content["library"]), sep="\n")
    position = {gene: i for i, gene in enumerate(screen.genes)}
    missing = [gene for gene in content["genes"] if gene not in position]
    if missing:
        raise InputError(
            f"{path}: lacks {len(missing):,} of the run's {len(content['genes']):,} genes, "
            f"such as {missing[0]}; give cells in which they were measured, or train on the genes "
            "of both files, as docs/using.md says below 'Other control cells'"
        )
    return screens.take_genes(screen, [position[gene] for gene in content["genes"]])


def other_scale(screen, library):
    """A warning where other cells' scale cannot be made the run's, as a list; empty otherwise.

    library: [counts of a cell, genes] that the run's file was scaled to; None if it was log1p.
    """
    warning = f"warning: {screen.source} may be on another scale than the run's file: "
    if library is None and screen.library is not None:
        return [
            f"{warning}it is counts, that was log1p of a library that is not known; give log1p "
            "that was made in the same way"
        ]
    if library is None:
        return []
    counts, genes = library
    if screen.library is None:
        return [
            f"{warning}it is log1p already, that was counts, scaled to a library of {counts:,.0f}; "
            "give counts"
        ]
    if len(screen.genes) != genes:
        return [
            f"{warning}its libraries are counted over {len(screen.genes):,} genes, that file's "
            f"over {genes:,}; give all of these"
        ]
    return []


def describe_new_types(model, screen, replace):
    """Tell the model what the controls of the screen's cell types are like; replace: of all."""
    if not model.settings.shifts:
        unknown = sorted(set(screen.cell_types) - set(model.cell_types))
        if unknown:
            raise InputError(
                f"{screen.source}: cell type '{unknown[0]}' was not trained; without --shifts a "
                "model knows a cell type by its label only"
            )
        return
    controls = [screen.controls(cell_type) for cell_type in screen.cell_types]
    elsewhere = screens.population_statistics(screen.X, np.concatenate(controls))[1]
    for cell_type in screen.cell_types:
        if replace or cell_type not in model.cell_types:
            described = screens.control_statistics(screen, cell_type, elsewhere)
            if cell_type in model.cell_types:
                model.encoder.counted[model.cell_types.index(cell_type)] = 0
            model.describe_cell_type(str(cell_type), *described)


def control_values(model, screen, device):
    """If-expressed values of the controls, one population per cell type of the model, or None."""
    if not model.settings.if_expressed:
        return None
    known = [name for name in model.cell_types if (CONTROL, name) in screen.groups]
    start, count, values = screens.active_values(
        screen.X, [screen.controls(name) for name in known]
    )
    place = [known.index(name) if name in known else 0 for name in model.cell_types]
    return ActiveValues(start[place], count[place], values, device)


# ---- What is asked for ---------------------------------------------------------------------------


def check_predictable(model, screen, conditions):
    """Refuse, in one line, the first condition with a target of which the model knows nothing."""
    known = model.encoder.seen | model.encoder.reachable()
    known = {name for name, told in zip(model.targets, known.tolist(), strict=True) if told}
    for perturbation, cell_type in sorted(conditions):
        for target, _ in screens.targets_of(perturbation, model.kind):
            if target not in known:
                near = "" if target in model.targets else did_you_mean(target, model.targets)
                raise InputError(
                    f"{screen.source}: {perturbation}@{cell_type}: "
                    f"{why_unknown(model, target)}; {remedy(model)}{near}"
                )


def why_unknown(model, target):
    """Why a target cannot be predicted, in words."""
    if model.kind == "drug":
        reason = "nothing is known of its structure"
    elif model.settings.grn == "none":
        reason = "without a network (--grn none) or a --gene-embedding no gene can be held out"
    elif target in model.genes:
        reason = "it is measured, but no node of the network"
    else:
        reason = "it is not among the measured genes"
    return f"cannot predict '{target}': it was not perturbed in training, and {reason}"


def remedy(model):
    """What to do about a target of which nothing is known."""
    if model.kind == "drug":
        return "leave it out, or train with --drug-embedding"
    if model.settings.grn == "none":
        return "hold out combinations or cell types with --test, or leave out --grn none"
    return (
        "leave it out, or train with --also GENE if it is measured, or in your --grn or "
        "--gene-embedding"
    )


def asked(screen, model, name, groups):
    """The (perturbation, cell type) pairs that a condition's name means, measured or not.

    groups: [[perturbation, cell type, held out]] of the run's own screen. A drug's name alone means
    each dose that was measured.
    """
    perturbation, cell_type = screens.at_type(screen, name)
    if "@" in perturbation and drug_of(perturbation) not in model.targets:
        unknown = perturbation.rpartition("@")[2]
        raise InputError(
            f"{screen.source}: no control cells of type '{unknown}' to start '{name}' from; there "
            f"are {screens.some(screen.cell_types)}; others come from --data"
            f"{did_you_mean(unknown, screen.cell_types)}"
        )
    if perturbation == CONTROL:
        raise InputError(f"--condition {name}: nothing is to be predicted for the control")
    perturbations = [perturbation]
    if model.kind == "drug":
        seen = {p for p, *_ in groups if p != CONTROL}
        doses = sorted(p for p in seen if drug_of(p) == perturbation)
        has_doses = any(drug_of(p) != p for p in seen)
        if not doses and perturbation in model.targets and has_doses:
            raise InputError(
                f"--condition {name}: this screen has doses; name one, such as {perturbation}:1"
            )
        perturbations = doses or perturbations
    types = [t for t in screen.cell_types if cell_type in (None, t)]
    return [(p, t) for p in perturbations for t in types]


def drug_of(perturbation):
    """The drug of a canonical drug:dose."""
    return screens.targets_of(perturbation, "drug")[0][0]


# ---- Cells ---------------------------------------------------------------------------------------


def own_seed(seed, perturbation, cell_type):
    """A seed for one condition. Not hash(), which changes from process to process."""
    return zlib.crc32(f"{seed} {perturbation}@{cell_type}".encode())


def conditions_of(model, named):
    """[(perturbation, cell type)] as the tensors that the encoder takes, on the model's device."""
    arrays = screens.condition_arrays(named, model.targets, model.cell_types, model.kind)
    device = model.encoder.seen.device
    return Conditions(*(torch.as_tensor(array).to(device) for array in arrays))


def draw_controls(screen, cell_type, n, rng):
    """Rows of n control cells of a type: each control once before any is used again."""
    controls = screen.controls(cell_type)
    rounds = [rng.permutation(controls) for _ in range(math.ceil(n / len(controls)))]
    return np.concatenate(rounds)[:n]


def predict(model, screen, cells, perturbation, cell_type, n, values, seed, device, batch=512):
    """Predict n cells of a condition.

    cells: the screen's rows as tensors (`screens.Cells`); values: `control_values`. Returns the
    prediction and the levels if expressed, each (n, N) CSR, and the rows of the controls.
    """
    own = own_seed(seed, perturbation, cell_type)
    # Means over the cells are anchored, so there have to be enough of them.
    enough = max(n, 64) if model.settings.anchor else n
    rows = draw_controls(screen, cell_type, enough, np.random.default_rng(own))
    noise = Noise(own, device)
    conditions = conditions_of(model, [(perturbation, cell_type)])
    predicted, levels = [], []
    for part in np.array_split(rows, math.ceil(n / batch)):
        x0 = cells(part)
        d0 = model.activation(x0)
        if values is not None:
            x0 = values.fill(x0, conditions.cell_type.expand(len(part)), noise)
        x, level = sample(model, x0, d0, conditions, noise)
        predicted.append(x.cpu().numpy())
        levels.append(level.cpu().numpy())
    predicted = sparse.csr_matrix(np.concatenate(predicted)[:n])
    levels = sparse.csr_matrix(np.concatenate(levels)[:n])
    return predicted, levels, rows[:n]


def trace_paths(path, model, screen, perturbation, cell_type, values, seed, device, cells=60):
    """Draw how both bridges carry some control cells to a condition, for three genes.

    The one that rises most, the one that falls most, and of the others the one that most cells
    switch.
    """
    before = torch.from_numpy(screen.dense(screen.controls(cell_type)[:cells])).to(device)
    conditions = conditions_of(model, [(perturbation, cell_type)])
    noise = Noise(seed, device)
    x0 = before
    if values is not None:
        x0 = values.fill(before, conditions.cell_type.expand(len(before)), noise)
    trace = []
    end, level = sample(model, x0, model.activation(before), conditions, noise, trace)
    trace.append((level, (end > 0).to(end)))
    x = torch.stack([x for x, _ in trace]).cpu().numpy()  # (steps + 1, cells, N)
    d = torch.stack([d for _, d in trace]).cpu().numpy()
    change = (end - before).mean(0).cpu().numpy()
    switched = np.abs(d[-1].mean(0) - d[0].mean(0))
    genes = [change.argmax(), change.argmin()]
    switched[genes] = -1
    genes.append(switched.argmax())
    condition = f"{perturbation}@{cell_type}"
    from report.paths import draw_paths  # it takes a while to load

    draw_paths(path, x[..., genes], d[..., genes], screen.genes[genes], condition)


# ---- Files ---------------------------------------------------------------------------------------


def observations(perturbation, cell_type, control_cells, is_predicted):
    """The obs of the cells of one condition."""
    condition = [f"{perturbation}@{t}" for t in np.broadcast_to(cell_type, len(control_cells))]
    return pd.DataFrame(
        {
            "perturbation": perturbation,
            "cell_type": cell_type,
            "condition": condition,
            "control_cell": control_cells,
            "is_predicted": is_predicted,
        }
    )


def how_far_to_trust(model, content, wanted, cells):
    """The table of report/trust.py on some conditions, of which so many cells are predicted."""
    training = [
        (perturbation, cell_type)
        for perturbation, cell_type, held_out in content["groups"]
        if perturbation != CONTROL and not held_out
    ]
    wanted = [tuple(map(str, key)) for key in wanted]
    explained = None
    if model.settings.shifts and wanted:
        conditions = [conditions_of(model, keys) for keys in (wanted, training)]
        *arrays, parts = explain(model, *conditions)
        explained = [array.double().cpu().numpy() for array in arrays]
        explained.append({name: length.double().cpu().numpy() for name, length in parts.items()})
    return trust.trust_table(wanted, cells, training, model.kind, content["left_out"], explained)


def write_predicted(path, screen, parts, kind, about, with_controls, trusted):
    """Write predicted cells as an h5ad that Scanpy and cell-eval read; returns the table of genes.

    parts: [(perturbation, cell type, X, levels, control rows)]. X is log1p; the layer if_expressed
    holds the levels before the mask; uns["departures"] says which run made it (about), uns["trust"]
    how far to trust it (trusted), uns["predicted_genes"] what changes (report/genes.py). CSV files
    beside it repeat the last two.
    """
    nothing = sparse.csr_matrix((0, len(screen.genes)), dtype=np.float32)
    blocks = [nothing, *(part[2] for part in parts)]
    levels = [nothing, *(part[3] for part in parts)]
    tables = [observations(CONTROL, "", [], True)]
    tables += [observations(p, t, screen.cells[rows], True) for p, t, _, _, rows in parts]
    if with_controls:
        types = [part[1] for part in parts]
        wanted = (screen.perturbation == CONTROL) & np.isin(screen.cell_type, types)
        rows = np.flatnonzero(wanted)
        blocks.append(screen.X[rows])
        levels.append(screen.X[rows])
        tables.append(observations(CONTROL, screen.cell_type[rows], screen.cells[rows], False))
    obs = pd.concat(tables, ignore_index=True)
    if kind == "drug":
        doses = [dose_of(perturbation) for perturbation in obs["perturbation"]]
        obs["dose"] = np.array(doses, dtype=float)
    obs["is_predicted"] = obs["is_predicted"].astype(bool)
    for column in ("perturbation", "cell_type", "condition"):
        obs[column] = pd.Categorical(obs[column])
    obs["control_cell"] = obs["control_cell"].astype(str)
    made = np.where(obs["is_predicted"], "predicted", "control")
    obs.index = [f"{how}_{i}" for i, how in enumerate(made)]
    var = pd.DataFrame({"gene_name": screen.genes}, index=screen.var_names)
    adata = anndata.AnnData(sparse.vstack(blocks).tocsr().astype(np.float32), obs=obs, var=var)
    adata.layers["if_expressed"] = sparse.vstack(levels).tocsr().astype(np.float32)
    adata.uns["departures"] = about
    adata.uns["trust"] = trusted
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    table = all_tables(screen, parts)
    adata.uns["predicted_genes"] = table.astype({"condition": "category", "gene": "category"})
    screens.write_h5ad(adata, path)
    trust.write_trust(path, trusted)
    screens.save(genes_path(path), table.to_csv(index=False, float_format="%.6g").encode())
    return table


def dose_of(perturbation):
    """The dose of a canonical drug:dose; NaN for the control."""
    if perturbation == CONTROL:
        return math.nan
    return screens.targets_of(perturbation, "drug")[0][1]


def output_of(run, conditions, training):
    """Where the cells of a run go when nobody says where."""
    if conditions:
        return f"{run}/asked.h5ad"
    return f"{run}/training.h5ad" if training else f"{run}/predicted.h5ad"


def check_not_lost(path, wanted):
    """Refuse to write over a file that nobody named, where cells of other conditions would be lost.

    wanted: [(perturbation, cell type)] of the cells that are to be written there.
    """
    if not os.path.exists(path):
        return
    obs = screens.open_h5ad(path).obs
    lost = set(obs["condition"][obs["is_predicted"]]) - set(map("@".join, wanted))
    if lost:
        raise InputError(
            f"{path}: holds cells of {screens.some(sorted(lost), 3)}, which would be lost; name "
            f"another file with --out, or this one to replace it: --out {path}"
        )


def sample_run(
    run, device="cpu", conditions=(), cells=None, out=None, path=None, seed=None,
    with_controls=False, training=False, screen=None, columns=None,
):  # fmt: skip
    """Sample conditions of a run into an h5ad; returns its path.

    By default every held-out condition, as many cells as were measured (200 where none were).
    path: an h5ad of other control cells; screen: the run's own, where it has been read already.
    """
    content = read_checkpoint(run)
    named = bool(out)
    out = out or output_of(run, conditions, training)
    inputs = [f"{run}/model.pt", content["reading"]["path"], *([path] if path else [])]
    screens.check_folder(out, *inputs, ending=".h5ad")
    for written in (genes_path(out), trust.path_of(out)):
        screens.check_folder(written, *inputs)
    model = restore_model(content, device)
    seed = model.settings.seed if seed is None else seed
    if content["epoch"] < content["epochs"]:
        print(
            f"note: {run} is not finished: {content['epoch']} of {content['epochs']} epochs; "
            f"train.py --resume {run} goes on"
        )
    screen = screen or run_screen(content, path, columns or {})
    describe_new_types(model, screen, replace=bool(path))
    values = control_values(model, screen, device)
    wanted = [key for name in conditions for key in asked(screen, model, name, content["groups"])]
    wanted = list(dict.fromkeys(wanted))  # each once, though two names may mean it
    if not wanted:
        keys = sorted(key for key in screen.groups if key[0] != CONTROL)
        wanted = [key for key in keys if (key in screen.held_out) != training]
    check_predictable(model, screen, wanted)
    if conditions and not named:
        check_not_lost(out, wanted)
    dense = screens.Cells(screen.X, device)
    parts = []
    for perturbation, cell_type in tqdm(wanted, desc="sampling", unit="condition", leave=False):
        measured = screen.groups.get((perturbation, cell_type), range(200))
        n = cells or len(measured)
        made = predict(model, screen, dense, perturbation, cell_type, n, values, seed, device)
        parts.append((perturbation, cell_type, *made))
    about = {
        "run": str(run),
        "seed": seed,
        "settings": json.dumps(content["settings"]),
        "reading": json.dumps(content["reading"]),
        "controls": screen.source,
        "device": device,
    }
    n_cells = [part[2].shape[0] for part in parts]
    trusted = how_far_to_trust(model, content, wanted, n_cells)
    table = write_predicted(out, screen, parts, model.kind, about, with_controls, trusted)
    if not parts:
        print(
            f"no held-out conditions: {out} holds no cells; name some with "
            f"sample.py {run} --condition"
        )
        return out
    if out == f"{run}/predicted.h5ad":
        os.makedirs(f"{run}/figures", exist_ok=True)
        trace_paths(f"{run}/figures/paths.png", model, screen, *wanted[0], values, seed, device)
    plural = "s" * (len(parts) > 1)
    print(f"{sum(n_cells):,} predicted cells of {len(parts)} condition{plural}: {out}")
    print(f"which genes change in them: {genes_path(out)}")
    print(*trust.sentences(trusted, each=bool(conditions)), sep="\n")
    if conditions:
        print(*in_words(table)[:MOST_SAID], sep="\n")
    return out


# ---- Command line --------------------------------------------------------------------------------


def main():
    """Read the command line, sample."""
    args = sample_options(__doc__)
    screens.check_device(args.device)
    path = screens.data_path(args.data) if args.data else None
    columns = {name: getattr(args, name) for name in cell_columns()}
    sample_run(
        args.run, args.device, args.condition, args.cells, args.out, path, args.seed,
        args.with_controls, args.training, columns=columns,
    )  # fmt: skip


if __name__ == "__main__":
    screens.run_script(main)
