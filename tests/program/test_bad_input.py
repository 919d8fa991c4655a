"""All that may be wrong with a file, a folder, a checkpoint or a command.

Every refusal is one line on stderr that names what is wrong and the remedy, exit code 2, and
nothing left behind. `pytest tests/program/test_bad_input.py --collect-only -q` lists the commands.
"""

import ast
import ctypes
import json
import math
import os
import pickle
import re
import resource
import shlex
import shutil
import sys
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import NamedTuple

import anndata
import h5py
import numpy as np
import pytest
import torch

import screens
import toy_data
import train
from departures import ImprovedSettings
from examples import ROOT, Script, without_scores
from report import options

TINY = "--epochs 1 --width 16 --embedding 4 --steps 3 --grn coexpression"


# ---- Limits of settings --------------------------------------------------------------------------


def beyond_limits():
    """(setting, a value that must be refused) of all settings with limits, and the limits."""
    cases = []
    for field in fields(ImprovedSettings):
        least = field.metadata.get("least")
        most = field.metadata.get("most")
        step = 1e-12 if field.type is float else 1
        if least is not None:
            cases.append((field.name, field.type(least - step)))
        if most is not None:
            cases.append((field.name, field.type(most + (0.01 if field.type is float else 1))))
        if field.type is float:
            cases += [(field.name, value) for value in (math.inf, -math.inf, math.nan)]
    return cases


@pytest.mark.parametrize("name, value", beyond_limits())
def test_a_setting_beyond_its_limits_is_refused_by_name(name, value):
    """As is a number that is not finite."""
    settings = ImprovedSettings()
    setattr(settings, name, value)
    with pytest.raises(screens.InputError, match=f"{train.flag(name)} must be a finite number"):
        train.check(settings)


def test_every_number_that_decides_a_run_has_a_limit():
    """An upper one, too."""
    numbers = {field.name for field in fields(ImprovedSettings) if field.type in (int, float)}
    limited = {field.name for field in fields(ImprovedSettings) if "most" in field.metadata}
    assert numbers <= limited


def test_the_limits_themselves_are_allowed():
    """A limit is the first value that works."""
    settings = ImprovedSettings()
    for field in fields(ImprovedSettings):
        for limit in ("least", "most"):
            if limit in field.metadata:
                setattr(settings, field.name, field.type(field.metadata[limit]))
                assert train.check(settings) is None


@pytest.mark.parametrize("text, works", [("0.1", 1), ("0.1max", 1), ("bridge", 1), ("max", 0)])
def test_what_is_an_epsilon(text, works):
    """A positive number, one with max behind it, or bridge."""
    assert options.is_epsilon(text) == works


# ---- In the process of a command -----------------------------------------------------------------


def as_anybody():
    """Give up root's right to read every file (its capabilities 1 and 2)."""
    libc = ctypes.CDLL(None)
    version = (ctypes.c_uint32 * 2)(0x20080522, 0)
    mine = (ctypes.c_uint32 * 6)()
    libc.capget(version, mine)
    mine[0] &= ~0b110  # effective
    mine[1] &= ~0b110  # permitted
    libc.capset(version, mine)


def on_a_full_disk():
    """Let no file grow beyond 20 kB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def on_a_full_disk_with_little_memory():
    """Let nothing be kept in memory, and no file grow."""
    on_a_full_disk()
    os.environ["DEPARTURES_MEMORY"] = "1e-9"


def with_a_memory_of_none():
    """Set the limit of memory to what is no number."""
    os.environ["DEPARTURES_MEMORY"] = "none"


def without_rdkit():
    """Let RDKit not be found."""
    sys.modules["rdkit"] = None


def out_of_memory():
    """Let Python find no memory when a screen is read."""

    def fail(*args, **options):
        raise MemoryError

    screens.prepare = fail


# ---- Bad files, and good ones --------------------------------------------------------------------


class Runs:
    """Unpickling it would leave a file behind."""

    def __reduce__(self):
        return os.system, ("touch was_run",)


def set_value(value):
    """A change of a file: its first value."""

    def change(adata):
        adata.X.data[0] = value

    return change


def relabel(new_label, **columns):
    """A change of a file: its conditions, by a function of the old one, and other columns.

    A column is a function of the obs.
    """

    def change(adata):
        conditions = adata.obs["condition"].astype(str)
        made = {name: make(adata.obs) for name, make in columns.items()}
        adata.obs = adata.obs.assign(condition=conditions.map(new_label), **made)

    return change


def same(label):
    return label


def as_drugs(label):
    return "control" if label == "ctrl" else "drug" + label[4]


def no_condition(adata):
    adata.obs = adata.obs[["cell_type"]]


def no_matrix(adata):
    adata.X = None


def twice_the_same_name(adata):
    adata.var_names = ["g1", *adata.var_names[1:-1], "g1"]


def other_names(adata):
    adata.var_names = [f"x{i}" for i in range(adata.n_vars)]
    del adata.var["gene_name"]


def only_genes(n):
    """A change of a file: its first n genes."""

    def change(adata):
        adata._inplace_subset_var(np.arange(adata.n_vars) < n)

    return change


def as_prediction_of(adata, condition):
    """Cells as another model's prediction of a condition."""
    adata.obs = adata.obs[[]].assign(condition=condition)


def is_control(obs):
    return obs["condition"].to_numpy() == "ctrl"


def renamed(names, first):
    """A change of a file: the first of its var_names or obs_names."""

    def change(adata):
        setattr(adata, names, [first, *getattr(adata, names)[1:]])

    return change


def turned_symbols(adata):
    adata.var["gene_name"] = adata.var_names + "\u200f"


BAD_FILES = {  # changes of a good file, and what `python -m screens` must say of it
    "coloured_gene": (renamed("var_names", "\x1b[31mg"), "'\\x1b[31mg' holds a control character"),
    "belling_cell": (renamed("obs_names", "c\x07"), "'c\\x07' holds a control character"),
    "turned_type": (
        relabel(same, cell_type=lambda obs: "\u202eepyt"),
        "column 'cell_type': '\\u202eepyt' holds a control character, or one that turns",
    ),
    "broken_label": (
        relabel(lambda x: x.replace("+ctrl", "\r\n+ctrl")),
        "column 'condition': 'TF001\\r\\n+ctrl' holds a control character",
    ),
    "coloured_symbol": (
        turned_symbols,
        "\\u200f' holds a control character",
    ),
    "coloured_column": (
        lambda adata: adata.obs.insert(0, "\x1b]0;x", 1),
        "'\\x1b]0;x' holds a control character",
    ),
    "nan": (set_value(np.nan), "NaN or infinite values; remove or repair"),
    "infinite": (set_value(np.inf), "NaN or infinite"),
    "negative": (set_value(-1.0), "negative values (scaled data?); give counts or log1p"),
    "linear": (set_value(25.5), "values above 20, neither counts nor log1p; log them"),
    "zeros": (lambda adata: adata.X.data.fill(0), "nothing but zeros; name the --layer"),
    "no_X": (no_matrix, "no X; the layers are counterfactual, counts; name one with --layer"),
    "twins": (
        twice_the_same_name,
        "duplicate gene names (g1); use adata.var_names_make_unique()",
    ),
    "one_gene": (only_genes(1), "and 1 genes; there is nothing to train on"),
    "no_column": (no_condition, "no perturbation column"),
    "ambiguous": (
        relabel(same, drug=lambda obs: ["control", "x"] * (len(obs) // 2)),
        "disagree on the controls; choose one with --perturbation-column",
    ),
    "no_control": (relabel(lambda x: x.replace("ctrl", "wt0")), "no control label"),
    "near_control": (
        relabel(lambda x: "CTRL_pool_7" if x == "ctrl" else x.split("+")[0]),
        "'CTRL_pool_7' looks like one: --control 'CTRL_pool_7'",
    ),
    "only_controls": (relabel(lambda x: "ctrl"), "every cell is a control"),
    "no_labels": (relabel(lambda x: ""), "all missing"),
    "no_types": (relabel(same, cell_type=lambda obs: ""), "no cells"),
    "type_without_controls": (
        relabel(same, cell_type=lambda obs: np.where(is_control(obs), "typeA", "typeZ")),
        "no control cells of cell type 'typeZ': remove its cells",
    ),
    "negative_dose": (
        relabel(as_drugs, dose_val=lambda obs: np.linspace(-3, 0, len(obs))),
        "negative doses; give doses, not their logarithms",
    ),
    "units": (
        relabel(as_drugs, dose_val=lambda obs: "10 nM"),
        "doses with units; give numbers in one unit",
    ),
    "all_held_out": (
        relabel(same, split=lambda obs: np.where(is_control(obs), "train", "ood")),
        "every perturbation is held out; nothing is left to train on",
    ),
}
OTHER_FILES = {  # changes of the good file
    "renamed": relabel(same, cell_type=lambda obs: "q" + obs["cell_type"].astype(str)),
    "few_genes": only_genes(2),
    "other_genes": other_names,
    "drugs": relabel(
        as_drugs,
        dose_val=lambda obs: np.resize([0.1, 1.0, 10.0], len(obs)),
        SMILES=lambda obs: "CCO",
    ),
    "one_condition": lambda adata: as_prediction_of(adata, "TF006@typeA"),
    "two_types": lambda adata: as_prediction_of(adata, "TF006"),
    "no_condition": lambda adata: as_prediction_of(adata, "ctrl"),
    "turned_condition": lambda adata: as_prediction_of(adata, "\u202eTF006@typeA"),
    "not_held_out": lambda adata: as_prediction_of(adata, "TF001@typeA"),
}
TEXT_FILES = {
    "text.h5ad": b"cell,gene\n",
    "empty.h5ad": b"",
    "edges.csv": b"a,b\n1,2\n",
    "headless.csv": b"source,target\n",
    "edges2.csv": b"source,target\nTF001,TF002\n",
    "gaps.csv": b"source,target\nTF001,\n",
    "weights.csv": b"source,target,weight\nTF001,TF002,strong\n",
    "nobody.csv": b"name,x\nnobody,1\n",
    "spare.csv": b"name,x\ndrug1,1\ndrug3,2\nspare,3\n",
    "smiles.csv": b"name,SMILES\ndrug1,CCO\n",
    "binary.csv": bytes(range(128, 256)),
    "turned.csv": "source,target\nTF001,\u202eTF\n".encode(),
    "turned_names.csv": "name,x\nTF\u200e1,1\n".encode(),
}


def spoiled(name, change, source="tiny.h5ad"):
    """Write a changed copy of a file."""
    adata = anndata.read_h5ad(source)
    change(adata)
    adata.write_h5ad(name)


def write_latin1(name):
    """Write a file whose labels are not UTF-8."""
    shutil.copy("tiny.h5ad", name)
    with h5py.File(name, "a") as file:
        del file["obs/condition/categories"]
        labels = np.array([b"ctrl", b"\xe9t\xe9", b"a", b"b", b"c", b"d"], dtype="S9")
        labels = labels.astype(h5py.string_dtype("utf-8"))
        file["obs/condition/categories"] = labels
        attributes = {"encoding-type": "string-array", "encoding-version": "0.2.0"}
        file["obs/condition/categories"].attrs.update(attributes)


def write_files():
    """Write a good screen and all that is bad of it."""
    toy_data.simulate_screen(40, 5, 400, seed=3).write_h5ad("tiny.h5ad")
    for name, (change, _) in BAD_FILES.items():
        spoiled(f"{name}.h5ad", change)
    for name, change in OTHER_FILES.items():
        spoiled(f"{name}.h5ad", change)
    for name, content in TEXT_FILES.items():
        Path(name).write_bytes(content)
    for name, shape in (("no_cells", (0, 3)), ("no_genes", (3, 0))):
        anndata.AnnData(np.ones(shape, np.float32)).write_h5ad(f"{name}.h5ad")
    whole = Path("tiny.h5ad").read_bytes()
    Path("truncated.h5ad").write_bytes(whole[: len(whole) // 2])
    Path("locked.h5ad").write_bytes(whole)
    os.chmod("locked.h5ad", 0)
    write_latin1("latin1.h5ad")
    with h5py.File("other.h5ad", "w") as file:
        file["matrix"] = np.ones((3, 3))


DEEP = "[" * 100_000 + "]" * 100_000  # JSON that no recursion can read


def write_runs():
    """Train good runs on the good files, and write all that is bad of them."""
    trained = [
        f"train.py --data tiny.h5ad --out run {TINY}",
        f"train.py --data tiny.h5ad --out run_paper --paper {TINY}",
        f"train.py --data drugs.h5ad --out run_drugs --drug-embedding spare.csv {TINY}",
    ]
    for command in trained:
        code, _, errors = Script(".", *shlex.split(command), first=without_scores).ended()
        assert code == 0, errors
    model = Path("run/model.pt").read_bytes()
    good = torch.load("run/model.pt", weights_only=True)
    moved = {**good["reading"], "path": os.path.abspath("gone.h5ad")}
    checkpoints = {
        "run_truncated": model[: len(model) // 2],
        "run_empty": b"",
        "run_pickle": pickle.dumps(Runs()),
        "run_old": {**good, "format": good["format"] - 1},
        "run_bare": {"format": good["format"], "settings": good["settings"]},
        "run_alien": {**good, "genes": good["genes"][:3]},
        "run_tensor": torch.ones(3),
        "run_moved": {**good, "reading": moved},
        "run_sigma": {**good, "settings": {**good["settings"], "sigma": -1.0}},
        "run_cost": {**good, "settings": {**good["settings"], "cost": "cityblock"}},
        "run_log": {**good, "log": [["low"]]},
        "run_coloured": {**good, "targets": ["\x1b[31m", *good["targets"][1:]]},
        "run_reading": {**good, "reading": {**good["reading"], "seed": -1}},
    }
    for folder, content in checkpoints.items():
        os.mkdir(folder)
        if isinstance(content, bytes):
            Path(f"{folder}/model.pt").write_bytes(content)
        else:
            torch.save(content, f"{folder}/model.pt")
    os.mkdir("run_none")
    os.mkdir("run_screen")
    Path("run_screen/screen.h5ad").touch()
    os.mkdir("run_foreign")
    anndata.AnnData(np.ones((2, 2), np.float32)).write_h5ad("run_foreign/predicted.h5ad")
    new = anndata.read_h5ad("run/predicted.h5ad")  # of a run whose file has changed
    new.obs["perturbation"] = "TF001"
    os.mkdir("run_changed")
    new.write_h5ad("run_changed/predicted.h5ad")
    new = anndata.read_h5ad("run/predicted.h5ad")
    new.uns["departures"]["settings"] = "{"
    os.mkdir("run_damaged")
    new.write_h5ad("run_damaged/predicted.h5ad")
    for part in ("settings", "reading"):
        new = anndata.read_h5ad("run/predicted.h5ad")
        new.uns["departures"][part] = DEEP
        os.mkdir(f"deep_{part}")
        new.write_h5ad(f"deep_{part}/predicted.h5ad")
    os.mkdir("deep_scores")
    Path("deep_scores/metrics.json").write_text(DEEP)
    os.mkdir("run_belling")
    new = anndata.read_h5ad("run/predicted.h5ad")
    new.uns["departures"]["run"] = "x\x07"
    new.write_h5ad("run_belling/predicted.h5ad")
    for folder, squared in (("rooted", False), ("squared", True)):
        os.mkdir(folder)
        scores = {"source": "tiny.h5ad", "conditions": [], "squared": squared}
        Path(f"{folder}/metrics.json").write_text(json.dumps(scores))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with all of them, as the current one."""
    before = os.getcwd()
    folder = tmp_path_factory.mktemp("bad")
    os.chdir(folder)
    write_files()
    write_runs()
    yield folder
    os.chdir(before)


# ---- Bad commands --------------------------------------------------------------------------------


class Bad(NamedTuple):
    """A bad command, and what its line must name and say."""

    command: str
    name: str
    message: str
    first: object = None


READING = [
    Bad(f"-m screens {name}.h5ad", f"{name}.h5ad", message)
    for name, (_, message) in BAD_FILES.items()
]
READING += [
    Bad("-m screens absent.h5ad", "absent.h5ad", "no such file; check the path"),
    Bad("-m screens run", "run", "is a directory; name the h5ad in it"),
    Bad("-m screens locked.h5ad", "locked.h5ad", "permission denied; make it", as_anybody),
    Bad("-m screens text.h5ad", "text.h5ad", "cannot be read as an h5ad"),
    Bad("-m screens empty.h5ad", "empty.h5ad", "cannot be read as an h5ad"),
    Bad("-m screens truncated.h5ad", "truncated.h5ad", "cannot be read as an h5ad"),
    Bad("-m screens other.h5ad", "other.h5ad", "cannot be read as an h5ad"),
    Bad("-m screens latin1.h5ad", "latin1.h5ad", "utf-8"),
    Bad("-m screens no_cells.h5ad", "no_cells.h5ad", "holds 0 cells"),
    Bad("-m screens no_genes.h5ad", "no_genes.h5ad", "and 0 genes"),
    Bad("-m screens tiny.h5ad --layer raw", "tiny.h5ad", "no layer 'raw'; the layers are counter"),
    Bad("-m screens tiny.h5ad --control mock", "tiny.h5ad", "no control label ('mock')"),
    Bad("-m screens tiny.h5ad --cell-type-column organ", "tiny.h5ad", "no column 'organ'; the"),
    Bad("-m screens tiny.h5ad --perturbation-column x", "tiny.h5ad", "no column 'x'; the"),
    Bad("-m screens tiny.h5ad --split-column fold", "tiny.h5ad", "no column 'fold'"),
    Bad(
        "-m screens tiny.h5ad --split-column dose_val",
        "tiny.h5ad",
        "marks no whole condition test or ood; use --test",
    ),
    Bad("-m screens tiny.h5ad --test NOBODY", "tiny.h5ad", "no cells of condition 'NOBODY'; there"),
    Bad("-m screens", "give an h5ad first", "or --list alone to see the public screens"),
    Bad("-m screens --list extra", "extra", "has no effect beside --list; leave it out"),
    Bad("-m screens --list --genes", "--genes", "has no effect beside --list; leave it out"),
    Bad("-m screens --genes STAT1 tiny.h5ad", "give an h5ad first", "or --list alone"),
    Bad("-m screens adamsn", "adamsn", "names them; did you mean adamson?"),
    Bad("train.py --data nobody", "nobody", "python -m screens --list names them"),
    Bad("-m screens tiny.h5ad", "MEMORY=none", "not a number of GiB", with_a_memory_of_none),
    Bad(
        "-m screens tiny.h5ad",
        "/tmp",
        "no room for what does not fit in memory",
        on_a_full_disk_with_little_memory,
    ),
    Bad("-m screens tiny.h5ad", "memory", "out of memory; try fewer --genes", out_of_memory),
    Bad(
        "train.py --data near_control.h5ad --control CTRL_pool_7 --layer none",
        "near_control.h5ad",
        "no layer 'none'",
    ),
]
SETTINGS = [
    Bad("train.py --data tiny.h5ad --epsilon small", "--epsilon", "must be a positive number"),
    Bad("train.py --data tiny.h5ad --epsilon 0", "--epsilon", "must be a positive number"),
    Bad("train.py --data tiny.h5ad --epsilon 0e1max", "--epsilon", "must be a positive number"),
    Bad("train.py --data tiny.h5ad --epsilon inf", "--epsilon", "must be a positive number"),
    Bad(
        "train.py --data tiny.h5ad --cost cosine --epsilon bridge",
        "--epsilon",
        "for --cost sqeuclidean only",
    ),
    Bad("train.py --data tiny.h5ad --no-discrete", "--no-discrete", "needs --no-if-expressed"),
    Bad(
        "train.py --data tiny.h5ad --no-shifts --no-skip-gate --no-if-expressed",
        "--grn structural",
        "needs --shifts; use --grn coexpression",
    ),
    Bad(
        "train.py --data tiny.h5ad --no-shifts --no-if-expressed --grn none",
        "--skip-gate",
        "needs --shifts",
    ),
    Bad("train.py --data tiny.h5ad --paper --if-expressed", "--if-expressed", "needs --shifts"),
    Bad("train.py --data tiny.h5ad --paper --anchor", "--anchor", "needs --shifts"),
    Bad(
        "train.py --data tiny.h5ad --paper --gene-embedding genes.csv",
        "--gene-embedding",
        "needs --shifts",
    ),
    Bad("train.py --data tiny.h5ad --batch 0", "--batch", "at least 1, at most 100000; it is 0"),
    Bad("train.py --data tiny.h5ad --sigma inf", "--sigma", "must be a finite number"),
    Bad("train.py --data tiny.h5ad --test-fraction 2", "--test-fraction", "least 0, at most 1; it"),
    Bad("train.py --data tiny.h5ad --genes 1", "--genes 1", "no genes left"),
    Bad("train.py --data tiny.h5ad --epochs many", "--epochs", "invalid int value: 'many'"),
    Bad("train.py --data tiny.h5ad --width 1000000000", "--width", "at most 16384; it is 10000"),
    Bad("train.py --data tiny.h5ad --steps 99999999999999999999", "--steps", "at most 100000"),
    Bad("train.py --data tiny.h5ad --sigma 1e300", "--sigma", "at most 100; it is 1e+300"),
    Bad("train.py --data tiny.h5ad --epsilon 1e300", "--epsilon", "at most 1000"),
    Bad("train.py --data tiny.h5ad --grn s3://b/edges.csv", "s3://b/edges.csv", "(no such file)"),
    Bad("train.py --data tiny.h5ad --pairing guess", "--pairing", "invalid choice: 'guess'"),
    Bad("train.py --data tiny.h5ad --kappa cosine", "--kappa", "unrecognized arguments"),
    Bad("train.py --data tiny.h5ad --learning-rate", "--learning", "expected one argument"),
    Bad("train.py --data tiny.h5ad --layer ''", "--layer", "is empty"),
    Bad("train.py --data tiny.h5ad --also=", "--also", "is empty; give a value or leave it out"),
    Bad("sample.py run --out ''", "--out", "is empty; give a value or leave it out"),
    Bad("evaluate.py run --report ''", "--report", "is empty; give a value or leave it out"),
    Bad("train.py --data tiny.h5ad --grn edges.csv", "edges.csv", "columns source and target"),
    Bad("train.py --data tiny.h5ad --grn headless.csv", "headless.csv", "at least one row"),
    Bad("train.py --data tiny.h5ad --grn gaps.csv", "gaps.csv", "a target in every row"),
    Bad("train.py --data tiny.h5ad --grn weights.csv", "weights.csv", "weight must be a finite"),
    Bad("train.py --data tiny.h5ad --grn turned.csv", "turned.csv", "'\\u202eTF' holds a contr"),
    Bad(
        "train.py --data tiny.h5ad --gene-embedding turned_names.csv", "turned_n", "'TF\\u200e1' h"
    ),
    Bad("train.py --data tiny.h5ad --grn absent.csv", "absent.csv", "nor a readable CSV"),
    Bad("train.py --data tiny.h5ad --grn binary.csv", "binary.csv", "nor a readable CSV"),
    Bad("train.py --data tiny.h5ad --drug-embedding x.csv", "x.csv", "is a screen of genes"),
    Bad("train.py --data drugs.h5ad --gene-embedding x.csv", "x.csv", "is a screen of drugs"),
    Bad("train.py --data drugs.h5ad --drug-embedding x.csv", "--drug-emb", "not a readable CSV"),
    Bad("train.py --data tiny.h5ad --gene-embedding x.csv", "--gene-emb", "not a readable CSV"),
    Bad("train.py --data tiny.h5ad --gene-embedding nobody.csv", "nobody.csv", "each gene by name"),
    Bad("train.py --data drugs.h5ad --drug-embedding nobody.csv", "nobody.csv", "one row of numb"),
    Bad(
        "train.py --data drugs.h5ad --drug-embedding smiles.csv",
        "smiles.csv",
        "SMILES need RDKit",
        without_rdkit,
    ),
    Bad("train.py --data drugs.h5ad --grn edges2.csv", "edges2.csv", "is a screen of drugs; leave"),
    Bad(
        "train.py --data drugs.h5ad --also ENSG00000000001",
        "--also",
        "of a --drug-embedding can be",
    ),
    Bad(
        "train.py --data tiny.h5ad --test TF006 --split-column x", "--split-column", "beside --test"
    ),
    Bad(
        "train.py --data tiny.h5ad --test TF006 --test-fraction 0.3",
        "--test-fraction",
        "has no effect beside --test; leave it out",
    ),
    Bad(
        "train.py --data tiny.h5ad --split-column x --test-fraction 0.3",
        "--test-fraction",
        "has no effect beside --split-column; leave it out",
    ),
    Bad("train.py --ablate --verbose", "--verbose", "has no effect beside --ablate; leave it out"),
    Bad("train.py --data tiny.h5ad --also NOBODY", "--also NOBODY", "not among the 40 genes"),
    Bad("train.py --data tiny.h5ad --device cuda:9", "--device cuda:9", "use --device cpu"),
    Bad("train.py --data tiny.h5ad --device hpu", "--device hpu", "use --device cpu"),
    Bad("train.py --data tiny.h5ad --device toaster", "--device toaster", "use --device cpu"),
    Bad("train.py --data tiny.h5ad --ablate 0", "--ablate", "must be from 1 to 100"),
    Bad("train.py --resume run --ablate", "--ablate", "no --resume"),
]
RUNS = [
    Bad("train.py --data tiny.h5ad --test NOBODY@typeA", "tiny.h5ad", "no cells of condition"),
    Bad("train.py --data tiny.h5ad --out run", "run", "holds a run already; give another --out"),
    Bad("train.py --data tiny.h5ad --out tiny.h5ad", "tiny.h5ad", "is a file; --out names a fold"),
    Bad(f"train.py --data tiny.h5ad --out {'x' * 4000}", "xxx", "File name too long); choose"),
    Bad(f"train.py --data tiny.h5ad --out new/{'x' * 300}", "new/xxx", "File name too long); ch"),
    Bad("train.py --data tiny.h5ad --out /proc/run", "/proc/run", "choose another place"),
    Bad("train.py --data tiny.h5ad --out new\udcff", "new\\udcff", "not UTF-8; give another"),
    Bad("train.py --data tiny.h5ad --out '\x1b[31mred'", "'\\x1b[31mred'", "holds a control char"),
    Bad("train.py --data tiny.h5ad --test 'TF\u202e'", "'TF\\u202e'", "holds a control character"),
    Bad("sample.py run --condition 'TF\n001'", "'TF\\n001'", "holds a control character"),
    Bad("train.py --data tiny.h5ad --out edges.csv/run", "edges.csv", "choose another place"),
    Bad("train.py --out run_screen", "run_screen/screen.h5ad", "exists already; name it with --d"),
    Bad("train.py --resume nowhere", "nowhere", "is not a run of train.py"),
    Bad("train.py --resume run_none", "run_none", "is not a run of train.py"),
    Bad("train.py --resume run --epochs 9", "--resume run", "leave out --epochs"),
    Bad("train.py --resume run --seed 0", "--resume run", "leave out --seed"),
    Bad("train.py --resume run --paper --out x", "--resume run", "leave out --out, --paper"),
    Bad("train.py --resume run --data renamed.h5ad", "renamed.h5ad", "the file has changed since"),
    Bad(
        "train.py --resume run_moved", "gone.h5ad", "train.py --resume run_moved --data FILE tells"
    ),
    Bad("sample.py run_moved", "gone.h5ad", "train.py --resume run_moved --data FILE tells"),
    Bad("train.py --resume run_old", "run_old/model.pt", f"version ({train.sample.FORMAT - 1}, th"),
    Bad("train.py --resume run_pickle", "run_pickle/model.pt", "not a checkpoint of plain"),
    Bad("train.py --resume run_cost", "--cost", "must be one of sqeuclidean, euclidean, cosine"),
    Bad("train.py --resume run_log", "run_log/model.pt", "not as train.py writes it"),
    Bad("train.py --resume run_reading", "run_reading/model.pt", "not say how its screen is read"),
    Bad("train.py --resume run_sigma", "--sigma", "at least 1e-09, at most 100; it is -1.0"),
]
SAMPLING = [
    Bad("sample.py nowhere", "nowhere", "is not a run of train.py"),
    Bad("sample.py run_old", "run_old/model.pt", "another version"),
    Bad("sample.py run_truncated", "run_truncated/model.pt", "truncated, or not a checkpoint"),
    Bad("sample.py run_empty", "run_empty/model.pt", "truncated, or not a checkpoint"),
    Bad("sample.py run_bare", "run_bare/model.pt", "parts are missing; train again"),
    Bad("sample.py run_alien", "run_alien/model.pt", "do not fit together; train again"),
    Bad("sample.py run_coloured", "run_coloured/model.pt", "not as train.py writes it"),
    Bad("sample.py run_tensor", "run_tensor/model.pt", "another version"),
    Bad("sample.py run --condition NOBODY", "NOBODY", "not perturbed in training"),
    Bad("sample.py run --condition TF001@HeLa", "'HeLa'", "there are typeA, typeB"),
    Bad("sample.py run --condition ctrl", "--condition ctrl", "nothing is to be predicted"),
    Bad("sample.py run_drugs --condition spare", "spare", "has doses; name one, such as spare:1"),
    Bad("sample.py run_drugs --condition drug9:1", "drug9", "nothing is known of its structure"),
    Bad("sample.py run --cells 0", "--cells", "must be from 1 to 1,000,000, not 0"),
    Bad("sample.py run --seed -2", "--seed", "must be from 0 to 2,147,483,647, not -2"),
    Bad("sample.py run --layer counts", "--layer", "has no effect without --data; leave it out"),
    Bad("sample.py run --training --condition TF006", "--training", "has no effect beside --cond"),
    Bad("sample.py run --data tiny.h5ad", "--data", "needs --condition"),
    Bad(
        "sample.py run --data few_genes.h5ad --condition TF001",
        "few_genes.h5ad",
        "lacks 38 of the run's 40 genes",
    ),
    Bad(
        "sample.py run_paper --data renamed.h5ad --condition TF001",
        "renamed.h5ad",
        "cell type 'qtypeA' was not trained",
    ),
    Bad("sample.py run --out edges.csv/x.h5ad", "edges.csv/x.h5ad", "choose another place"),
    Bad("sample.py run --out run_none", "run_none", "is a folder; choose another name"),
    Bad("sample.py run --out run/model.pt", "run/model.pt", "is an input; choose another name"),
    Bad("sample.py run --out tiny.h5ad", "tiny.h5ad", "is an input; choose another name"),
    Bad(
        "sample.py run --data renamed.h5ad --condition TF001 --out ./tiny.h5ad",
        "tiny.h5ad",
        "is an input; choose another name",
    ),
    Bad(
        "sample.py run --data renamed.h5ad --condition TF001 --out ./renamed.h5ad",
        "renamed.h5ad",
        "is an input; choose another name",
    ),
    Bad("sample.py run --out run/trust.csv", "run/trust.csv", "is no name in .h5ad"),
    Bad("sample.py run --device cuda:9", "--device cuda:9", "use --device cpu"),
    Bad("sample.py", "sample.py", "required: run"),
]
SCORING = [
    Bad("evaluate.py", "run", "or --predicted and --data"),
    Bad("evaluate.py run --data tiny.h5ad", "run", "or --predicted and --data"),
    Bad("evaluate.py --predicted tiny.h5ad", "run", "or --predicted and --data"),
    Bad("evaluate.py run --control ctrl", "--control", "has no effect on a run, which knows how"),
    Bad("evaluate.py run --device cpu", "--device", "has no effect without --rivals; leave it out"),
    Bad("evaluate.py run run --seed 0", "--seed", "has no effect on runs that are scored already"),
    Bad(
        "evaluate.py --predicted tiny.h5ad --data tiny.h5ad --training",
        "--training",
        "has no effect without a run; leave it out",
    ),
    Bad("evaluate.py run --squared", "--squared", "give --out"),
    Bad("evaluate.py run run --report x.html", "--report", "score each run by itself"),
    Bad("evaluate.py run --report run/model.pt", "run/model.pt", "is no name in .html"),
    Bad("evaluate.py run --write-truth run/model.pt", "run/model.pt", "is no name in .h5ad"),
    Bad("evaluate.py run --cheats --report x.html", "--cheats", "takes one run"),
    Bad("evaluate.py run --report run/predicted.h5ad", "run/predicted.h5ad", "is an input"),
    Bad("evaluate.py run --rivals nobody", "--rivals nobody", "there are all, scgen"),
    Bad("evaluate.py run --training --rivals scgen", "--rivals", "not --training"),
    Bad("evaluate.py run --cheats --training", "--cheats", "takes one run"),
    Bad("evaluate.py run --seed -1", "--seed", "must be from 0 to"),
    Bad(
        "evaluate.py run/model.pt", "run/model.pt", "is a file; give the folder of a run, or --pre"
    ),
    Bad("evaluate.py nowhere", "nowhere/predicted.h5ad", "no such file"),
    Bad("evaluate.py run_foreign", "run_foreign/predicted.h5ad", "not written by sample.py"),
    Bad("evaluate.py run_damaged", "run_damaged/predicted.h5ad", "not say which run made it"),
    Bad(
        "evaluate.py deep_settings --report x.html", "deep_settings/predicted.h5ad", "not say which"
    ),
    Bad("evaluate.py deep_reading", "deep_reading/predicted.h5ad", "does not say how its screen"),
    Bad("evaluate.py deep_scores deep_scores", "deep_scores/metrics.json", "score each run first"),
    Bad("evaluate.py run_belling", "run_belling/predicted.h5ad", "not say which run made it"),
    Bad("evaluate.py run_changed", "tiny.h5ad", "not held out: the file has changed since"),
    Bad("evaluate.py run nowhere", "run/metrics.json", "score each run first"),
    Bad("evaluate.py rooted squared", "rooted", "some were scored with --squared"),
    Bad("evaluate.py rooted rooted --out edges.csv", "edges.csv", "choose another place"),
    Bad(
        "evaluate.py --predicted tiny.h5ad --data absent.h5ad",
        "absent.h5ad",
        "no such file",
    ),
    Bad(
        "evaluate.py --predicted no_column.h5ad --data tiny.h5ad",
        "no_column.h5ad",
        "needs obs columns",
    ),
    Bad(
        "evaluate.py --predicted twins.h5ad --data tiny.h5ad",
        "twins.h5ad",
        "duplicate gene names",
    ),
    Bad(
        "evaluate.py --predicted other_genes.h5ad --data tiny.h5ad",
        "other_genes.h5ad",
        "are not those of tiny.h5ad",
    ),
    Bad(
        "evaluate.py --predicted two_types.h5ad --data tiny.h5ad",
        "two_types.h5ad",
        "'TF006' means several measured conditions (TF006@typeA, TF006@typeB)",
    ),
    Bad(
        "evaluate.py --predicted turned_condition.h5ad --data tiny.h5ad",
        "turned_condition.h5ad",
        "'\\u202eTF006@typeA' holds a control character",
    ),
    Bad(
        "evaluate.py --predicted no_condition.h5ad --data tiny.h5ad",
        "no_condition.h5ad",
        "holds no predicted cells of any condition",
    ),
    Bad(
        "evaluate.py --predicted one_condition.h5ad --data tiny.h5ad --write-truth tiny.h5ad",
        "tiny.h5ad",
        "is an input",
    ),
    Bad(
        "evaluate.py --predicted one_condition.h5ad --data tiny.h5ad --write-truth no/truth.h5ad",
        "no/truth.h5ad",
        "cannot be written",
    ),
]
SIMULATING = [
    Bad("toy_data.py screen run/model.pt", "run/model.pt", "is no name in .h5ad"),
    Bad("toy_data.py screen new.h5ad --cells -5", "a screen has", "100 cells or more"),
    Bad("toy_data.py screen new.h5ad --drugs 8 --perturbed 4", "--perturbed", "beside --drugs; le"),
    Bad("toy_data.py screen new.h5ad --drugs 6", "a screen has", "drugs by fours"),
    Bad("toy_data.py screen new.h5ad --types 1", "a screen has", "or 2 types"),
    Bad("toy_data.py screen new.h5ad --types 3 --drugs 4", "--drugs", "beside --types; le"),
    Bad("toy_data.py screen new.h5ad --types 3 --perturbed 4", "--perturbed", "beside --types; le"),
    Bad("toy_data.py screen no/where.h5ad --cells 100", "no/where.h5ad", "cannot be written"),
    Bad("toy_data.py screen", "toy_data.py", "required: out"),
    Bad("toy_data.py gaussian new.h5ad", "gaussian", "invalid choice"),
]
COMMANDS = [*READING, *SETTINGS, *RUNS, *SAMPLING, *SCORING, *SIMULATING]


def listing():
    """Every file of the current folder with its size, and when it was written."""
    found = []
    for path in Path(".").rglob("*"):
        if path.is_file():
            stat = path.stat()
            found.append((str(path), stat.st_size, stat.st_mtime_ns))
        else:
            found.append((str(path), None, None))
    return sorted(found)


@cache
def answer(bad):
    """(exit code, stderr) of a bad command."""
    code, _, errors = Script(".", *shlex.split(bad.command), first=bad.first).ended()
    return code, errors


@pytest.mark.parametrize("bad", COMMANDS, ids=lambda bad: bad.command)
def test_a_bad_command_is_one_line_and_exit_code_2_and_leaves_nothing(folder, bad):
    """The line names what is wrong and says what to do."""
    before = listing()
    code, errors = answer(bad)
    assert code == 2, errors
    assert re.fullmatch("(.*: )?error: .*\n", errors) and bad.name in errors, errors
    assert bad.message in errors and listing() == before


# ---- All of them ---------------------------------------------------------------------------------

SHOWN_ELSEWHERE = {  # refusals of the code that no command here can meet: where they are tested
    "train.py": [
        "--device .*: several processes",  # test_processes.py
        "--batch .* is too small for",  # test_processes.py
        ".*; continue from the last complete epoch",  # test_processes.py
        ".*: the loss is not finite",  # below
    ],
    "sample.py": [".*: holds cells of .*, which would be lost"],  # test_sampling.py
    "evaluate.py": [
        ".*: lacks .* of the .* genes",  # evaluate_run takes the shared genes
        ".*: no condition has .* measured",  # test_evaluation.py
    ],
    "screens/files.py": [
        ".*: cannot be written \\(",  # below, and above on toy_data.py
        ".*: missing, or damaged; train.py --resume",  # test_files.py
        ".*: its table .* is damaged",  # test_files.py
    ],
    "screens/public.py": [  # test_public.py
        ".*: .*: .*; try again, or fetch it with a browser",
        "public screens are downloaded with pooch",
    ],
}


def template(call):
    """A regular expression for the text of an InputError(...) in the code: .* where a value goes.

    None if the text is made elsewhere.
    """
    text = call.args[0]
    if isinstance(text, ast.Constant):
        parts = [text]
    elif isinstance(text, ast.JoinedStr):
        parts = text.values
    else:
        return None
    shapes = [re.escape(p.value) if isinstance(p, ast.Constant) else ".*" for p in parts]
    return "".join(shapes)


def refusals(name):
    """The templates of all refusals of a file."""
    tree = ast.parse((ROOT / name).read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    named = [call for call in calls if ast.unparse(call.func).endswith("InputError")]
    templates = [template(call) for call in named]
    return [one for one in templates if one is not None]


FILES = ["train.py", "sample.py", "evaluate.py", "toy_data.py"]
FILES += sorted(str(path.relative_to(ROOT)) for path in (ROOT / "screens").glob("*.py"))


@pytest.mark.parametrize("name", FILES)
def test_every_refusal_in_the_code_has_a_bad_command_that_meets_it(folder, name):
    """A refusal that is new in the code fails here until a command above shows it."""
    lines = [answer(bad)[1] for bad in COMMANDS]
    elsewhere = SHOWN_ELSEWHERE.get(name, [])
    never = []
    for text in refusals(name):
        met = any(re.fullmatch(f"error: {text}\n", line) for line in lines)
        known = any(re.match(one, text.replace("\\", "")) for one in elsewhere)
        if not met and not known:
            never.append(text)
    assert never == []


# ---- What cannot be foreseen ---------------------------------------------------------------------

WRITING = {  # what is written on a full disk, and the path that the line must name
    f"train.py --data tiny.h5ad --out full {TINY}": "full/model.pt",
    "train.py --resume run": "run/",
    "sample.py run": "run/predicted.h5ad",
    "sample.py run --training --out t.h5ad": "t.h5ad",
    "evaluate.py run --write-truth truth.h5ad": "truth.h5ad",
    "toy_data.py screen new.h5ad --cells 2000": "new.h5ad",
}


def contents():
    """{path: bytes} of every file of the current folder that can be read."""
    files = [path for path in Path(".").rglob("*") if path.is_file() and os.access(path, os.R_OK)]
    return {str(path): path.read_bytes() for path in files}


@cache
def on_full_disk(command):
    """(exit code, last line of stderr, contents before, contents after) of a command."""
    before = contents()
    code, _, errors = Script(".", *shlex.split(command), first=on_a_full_disk).ended()
    return code, errors.splitlines()[-1], before, contents()


@pytest.mark.parametrize("command", WRITING)
def test_a_full_disk_is_one_line(folder, command):
    """It names the file and says to free some space."""
    code, line, _, _ = on_full_disk(command)
    assert code == 2
    assert line.startswith(f"error: {WRITING[command]}")
    assert "free some space" in line


@pytest.mark.parametrize("command", WRITING)
def test_a_full_disk_loses_nothing(folder, command):
    """What was there stays as it was, and no half of a new file is left."""
    _, _, before, after = on_full_disk(command)
    assert after == before


def test_a_loss_that_is_not_finite_ends_the_run_in_one_line(folder):
    """The last complete epoch stays."""
    command = f"train.py --data tiny.h5ad --out wild {TINY} --epochs 9 --learning-rate 1000"
    code, _, errors = Script(".", *shlex.split(command)).ended()
    assert code == 2
    assert "error: wild: the loss is not finite in epoch" in errors.splitlines()[-1]
    assert torch.load("wild/model.pt", weights_only=True)["epoch"] < 9


def test_genes_that_are_held_out_without_a_network_are_refused_with_advice_that_helps(folder):
    """Neither --also nor another file would."""
    code, _, errors = Script(".", *shlex.split("train.py --data tiny.h5ad --grn none")).ended()
    line = errors.splitlines()[-1]
    assert code == 2
    assert "without a network (--grn none) or a --gene-embedding no gene can be held out" in line
    assert line.endswith("hold out combinations or cell types with --test, or leave out --grn none")
