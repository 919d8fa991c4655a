"""Damaged checkpoints, files and command lines, many of each from fixed seeds, in one process.

Whatever is asked of the scripts, the answer is a result or one line and exit code 2.
"""

import contextlib
import io
import math
import os
import shlex
import shutil
import sys
import warnings
import zipfile
from signal import SIGINT, SIGTERM, getsignal, signal

import anndata
import h5py
import numpy as np
import pytest
import torch
from scipy import sparse

import evaluate
import sample
import screens
import toy_data
import train
from examples import nothing

TINY = "--epochs 1 --width 8 --embedding 4 --steps 2 --grn coexpression"
SCRIPTS = {"train.py": train.main, "sample.py": sample.main, "evaluate.py": evaluate.main}


def answer(*arguments):
    """(exit code, stderr) of a script, run in this process as its command line would run it."""
    before = sys.argv, os.getcwd(), {number: getsignal(number) for number in (SIGINT, SIGTERM)}
    sys.argv = list(map(str, arguments))
    code = 0
    errors = io.StringIO()
    try:
        with (
            contextlib.redirect_stderr(errors),
            contextlib.redirect_stdout(io.TextIOWrapper(io.BytesIO())),
            warnings.catch_warnings(),
        ):
            screens.run_script(SCRIPTS[arguments[0]])
    except SystemExit as ended:
        code = ended.code
    finally:
        sys.argv = before[0]
        for number, handler in before[2].items():
            signal(number, handler)
    return code, errors.getvalue()


def is_one_line(errors):
    """Whether it is one line that says what is wrong; progress bars may stand before it."""
    line = errors.rpartition("\r")[2]
    return "error: " in line and line.endswith("\n") and line.count("\n") == 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small screen, tiny.h5ad, and a run on it, in the current folder; nothing is drawn."""
    before = os.getcwd()
    folder = tmp_path_factory.mktemp("fuzz")
    os.chdir(folder)
    toy_data.simulate_screen(20, 4, 200, seed=3).write_h5ad("tiny.h5ad")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("report.training.draw_loss", nothing)
        patch.setattr("report.paths.draw_paths", nothing)
        patch.setattr(evaluate, "evaluate_run", nothing)
        command = f"train.py --data tiny.h5ad --out run {TINY}"
        assert answer(*shlex.split(command))[0] == 0
        yield folder
    os.chdir(before)


# ---- Checkpoints ---------------------------------------------------------------------------------


class Deleted:
    """Stands for what is to be taken out."""


def changed(content, path, value):
    """A copy of nested dictionaries and lists with the value at a path replaced, or taken out."""
    copy = dict(content) if isinstance(content, dict) else list(content)
    if len(path) > 1:
        copy[path[0]] = changed(content[path[0]], path[1:], value)
    elif value is Deleted:
        del copy[path[0]]
    else:
        copy[path[0]] = value
    return copy


WEIGHT = "x_network.out.2.weight"
PARTS = ["format", *sample.PARTS]
WRONG = [  # (where in a checkpoint, what stands there instead)
    *[((part,), Deleted) for part in PARTS],
    *[((part,), torch.ones(3)) for part in PARTS],
    *[((part,), [["a", 1], None]) for part in PARTS],
    (("format",), True),
    (("format",), sample.FORMAT - 1),
    (("kind",), "cell"),
    (("epoch",), -1),
    (("log", 0), [1, 2.0]),
    (("log", 0, 1), "low"),
    (("groups", 0), ["TF001", "typeA"]),
    (("genes", 0), 5),
    (("genes",), ["g1"] * 10**5),
    (("targets",), []),
    (("cell_types",), ["typeA"]),
    (("settings", "width"), 10**9),
    (("settings", "width"), 10**30),
    (("settings", "steps"), 0),
    (("settings", "sigma"), math.nan),
    (("settings", "sigma"), torch.ones(1)),
    (("settings", "cost"), "cityblock"),
    (("settings", "kappa"), "cosine"),
    (("sizes", "structure"), 10**12),
    (("sizes", "conditions"), -3),
    (("sizes", "other"), 3),
    (("reading", "path"), Deleted),
    (("reading", "path"), "gone.h5ad"),
    (("reading", "seed"), -1),
    (("reading", "fraction"), math.nan),
    (("reading", "test"), "TF001"),
    (("reading", "other"), "x"),
    (("library",), [3]),
    (("left_out",), [["TF001@typeA", "unseen", True, 0.1, 0.1]]),
    (("left_out",), [["TF001@typeA", "unseen", True, 0.1, 0.1, math.nan]]),
    (("left_out",), [["TF001@typeA", "unseen", True, 1e308, 0.1, 0.1]] * 6),
    (("left_out",), [["TF001@typeA", "known", True, 0.1, 0.1, 0.1]] * 6),
    (("library",), [math.nan, 3]),
    (("model", WEIGHT), Deleted),
    (("model", WEIGHT), torch.zeros(3)),
    (("model", WEIGHT), torch.zeros(1).expand(20, 8)),
    (("model", WEIGHT), torch.full((20, 8), math.nan)),
    (("model", WEIGHT), torch.zeros(20, 8, dtype=torch.float64)),
    (("model", "more"), torch.zeros(3)),
    (("model", "encoder.variance"), torch.full((6, 40), -1.0).double()),
    (("model", "encoder.squared_amplitudes"), torch.full((6, 40), -1.0).double()),
    (("model", "target_gene"), torch.full((4,), 99)),
    (("optimiser", "state"), Deleted),
    (("optimiser", "state", 0), {"step": torch.tensor(1.0)}),
    (("optimiser", "state", 0, "exp_avg"), torch.zeros(2)),
    (("optimiser", "state", 999), {}),
]


@pytest.mark.parametrize("command", ["sample.py {}", "train.py --resume {}"])
def test_a_checkpoint_that_is_not_what_it_says_is_one_line(folder, command):
    """Whichever part is missing, of another type, or does not fit the others."""
    good = torch.load("run/model.pt", weights_only=True)
    wrong = {}
    os.makedirs("damaged", exist_ok=True)
    for path, value in WRONG:
        torch.save(changed(good, path, value), "damaged/model.pt")
        code, errors = answer(*shlex.split(command.format("damaged")))
        if code != 2 or not is_one_line(errors):
            wrong[f"{path} {value!r:.40}"] = code, errors[-300:]
    assert wrong == {}


def rewritten(parts, change, compression=zipfile.ZIP_STORED):
    """The bytes of a zip file of some parts, {name: bytes}, one of them changed by a function."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, change(name, content))
    return memory.getvalue()


def other_bytes(rng, content):
    """The bytes with 1 to 8 of them replaced by random ones."""
    content = bytearray(content)
    for place in rng.integers(len(content), size=rng.integers(1, 9)):
        content[place] = rng.integers(256)
    return bytes(content)


def damaged_bytes(whole):
    """60 damaged copies of a checkpoint's bytes."""
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    rng = np.random.default_rng(0)
    for _ in range(25):  # opcodes, and what they stand between
        yield rewritten(parts, lambda name, c: other_bytes(rng, c) if "data.pkl" in name else c)
    for _ in range(15):
        yield other_bytes(rng, whole)
    for share in np.linspace(0, 0.99, 10):
        yield whole[: int(share * len(whole))]
    for word in (b"big", b"middle", b"", bytes(10**6)):
        yield rewritten(parts, lambda name, c, word=word: word if "byteorder" in name else c)
    for tensor in range(4):
        yield rewritten(parts, lambda name, c, end=f"data/{tensor}": c[:-4] if end in name else c)
    old = io.BytesIO()
    torch.save(torch.load(io.BytesIO(whole)), old, _use_new_zipfile_serialization=False)
    yield old.getvalue()
    zeros = bytes(10**8)
    yield rewritten(parts, lambda name, c: zeros if "data/0" in name else c, zipfile.ZIP_DEFLATED)


def test_sixty_checkpoints_of_damaged_bytes_are_a_result_or_one_line(folder):
    """Bytes that are others, that are missing, or that claim to be more than they are."""
    with open("run/model.pt", "rb") as file:
        whole = file.read()
    wrong = {}
    count = 0
    os.makedirs("bytes", exist_ok=True)
    for count, damaged in enumerate(damaged_bytes(whole), start=1):
        with open("bytes/model.pt", "wb") as file:
            file.write(damaged)
        code, errors = answer("sample.py", "bytes", "--condition", "TF001", "--cells", 2)
        if code not in (0, 2) or (code == 2 and not is_one_line(errors)):
            wrong[count] = code, errors[-300:]
    assert wrong == {}
    assert count == 60


def test_a_checkpoint_larger_in_memory_than_on_disk_is_refused_before_it_is_read(
    folder, monkeypatch
):
    """torch.load is not called."""
    with open("run/model.pt", "rb") as file:
        *_, bomb = damaged_bytes(file.read())
    os.makedirs("bomb", exist_ok=True)
    with open("bomb/model.pt", "wb") as file:
        file.write(bomb)
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(screens.InputError, match="not a checkpoint") as refused:
        sample.read_checkpoint("bomb")
    assert "claim more than the file holds" in str(refused.value.__cause__)


# ---- Files ---------------------------------------------------------------------------------------


def another(file, name, content, **attributes):
    """Put an array in the place of one of a file, with its attributes and some others."""
    kept = dict(file[name].attrs)
    del file[name]
    file.create_dataset(name, **({"data": content} if isinstance(content, np.ndarray) else content))
    file[name].attrs.update({**kept, **attributes})


def claims(shape, kind="f4"):
    """An array that claims to be of a shape, and of which nothing was ever written."""
    return {"shape": shape, "dtype": kind, "chunks": tuple(min(n, 1000) for n in shape)}


def structural_changes(form):
    """{what: a change of an open file} whose matrix is "csr", "csc" or "dense"."""
    values = "X" if form == "dense" else "X/data"
    changes = {}
    for kind in ("f2", "f8", ">f4", ">f8", "i1", "u2", ">i4", "u8", "c8", "S4", "V4", "?"):
        changes[f"{kind} values"] = lambda f, k=kind: another(f, values, as_kind(f[values][()], k))
    for top in (-1, 2**31, 1e12, np.nan, np.inf):
        changes[f"a value of {top}"] = lambda f, top=top: replaced(f, values, top)
    changes["values at the top of u8"] = lambda f: another(
        f, values, np.full(f[values].shape, 2**64 - 1, "u8")
    )
    changes["text"] = lambda f: another(f, values, as_text(f[values][()]))
    changes["X claims 1e9 x 60"] = lambda f: claim_shape(f, form, (10**9, 60))
    changes["X claims 300 x 1e7"] = lambda f: claim_shape(f, form, (300, 10**7))
    changes["all claim 1e9"] = lambda f: (claim_shape(f, form, (10**9, 20)), claim_index(f, "obs"))
    if form != "dense":
        for part in ("indices", "indptr"):
            for kind in ("f4", "f8", "u8", ">i8", "i2", "c8", "S4", "?"):
                changes[f"{kind} {part}"] = lambda f, p=part, k=kind: another(
                    f, f"X/{p}", as_kind(f[f"X/{p}"][()], k)
                )
            changes[f"{part} too short"] = lambda f, p=part: another(f, f"X/{p}", f[f"X/{p}"][:-1])
            changes[f"{part} too long"] = lambda f, p=part: another(
                f, f"X/{p}", np.append(f[f"X/{p}"][()], 0)
            )
            changes[f"{part} of two dimensions"] = lambda f, p=part: another(
                f, f"X/{p}", f[f"X/{p}"][()][None]
            )
            changes[f"no {part}"] = lambda f, p=part: f.__delitem__(f"X/{p}")
            for place in (0, 1, -1):
                for value in (-1, 3, 10**6, 2**31 - 1):
                    changes[f"{part}[{place}] = {value}"] = lambda f, p=part, i=place, v=value: (
                        replaced(f, f"X/{p}", v, i)
                    )
        changes["no shape"] = lambda f: f["X"].attrs.__delitem__("shape")
        changes["shape of three"] = lambda f: f["X"].attrs.__setitem__("shape", [200, 20, 1])
        changes["other encoding"] = lambda f: f["X"].attrs.__setitem__("encoding-type", "csx")
    for table in ("obs", "var"):
        changes[f"a column twice in {table}"] = lambda f, t=table: f[t].attrs.__setitem__(
            "column-order", [*f[t].attrs["column-order"], f[t].attrs["column-order"][0]]
        )
        changes[f"a column of {table} that is not there"] = lambda f, t=table: f[
            t
        ].attrs.__setitem__("column-order", ["gone"])
        changes[f"no index of {table}"] = lambda f, t=table: f[t].attrs.__delitem__("_index")
        changes[f"{table} of one row less"] = lambda f, t=table: another(
            f, f"{t}/_index", f[f"{t}/_index"][:-1]
        )
        changes[f"no {table}"] = lambda f, t=table: f.__delitem__(t)
        changes[f"an empty {table}"] = lambda f, t=table: (f.__delitem__(t), f.create_group(t))
    changes["codes beyond the categories"] = lambda f: replaced(f, "obs/condition/codes", 99)
    changes["codes below"] = lambda f: replaced(f, "obs/condition/codes", -7)
    changes["codes of floats"] = lambda f: another(f, "obs/condition/codes", np.full(200, 0.5))
    changes["no categories"] = lambda f: f.__delitem__("obs/condition/categories")
    changes["categories twice"] = lambda f: another(
        f, "obs/condition/categories", np.full(6, "ctrl", object)
    )
    changes["no X"] = lambda f: f.__delitem__("X")
    return changes


def as_kind(values, kind):
    """Values as numbers, or bytes, of a kind."""
    if kind[-2:] in ("S4", "V4"):
        return np.zeros(values.shape, kind)
    return values.astype(kind)


def as_text(values):
    """Values as text."""
    return np.array([str(value) for value in values.ravel()], object).reshape(values.shape)


def replaced(file, name, value, place=0):
    """Replace a number of an array, which is made wide enough for it."""
    content = file[name][()]
    wide = content.astype("f8" if isinstance(value, float) else "i8")
    wide[(place,) * content.ndim] = value
    another(file, name, wide)


def claim_shape(file, form, shape):
    """Let X say that it is of a shape, with parts of the right lengths, which hold nothing."""
    if form == "dense":
        another(file, "X", claims(shape))
        return
    another(file, "X/indptr", claims((shape[form == "csc"] + 1,), "i8"))
    file["X"].attrs["shape"] = shape


def claim_index(file, table):
    """Let a table say that it has a thousand million rows."""
    another(file, f"{table}/_index", claims((10**9,), h5py.string_dtype()))


def write_form(form, name):
    """The small screen with its matrix in a form."""
    adata = anndata.read_h5ad("tiny.h5ad")
    X = sparse.csr_matrix(adata.layers["counts"].astype(np.float32))
    del adata.layers
    adata.X = X.toarray() if form == "dense" else X.asformat(form)
    adata.write_h5ad(name)


REFUSED = ("c8", "S4", "V4", "text", "claim", "too short", "too long", "no ", "twice in", "top of")
REFUSED += ("f4 indices", "f8 indices", "f4 indptr", "f8 indptr", "indptr[0] = 3")
READ = [f"{kind} values" for kind in ("f2", "f8", ">f4", ">f8", ">i4", "u2", "u8")]
READ += [">i8 indices", ">i8 indptr", "u8 indices", "u8 indptr"]


@pytest.mark.parametrize("form", ["csr", "csc", "dense"])
def test_structural_changes_of_a_file_are_a_screen_or_one_line(folder, form):
    """More than 200 in all: types, shapes and parts of the matrix, its tables and their columns."""
    write_form(form, "whole.h5ad")
    expected = screens.read_screen("whole.h5ad").X.toarray()
    wrong = {}
    for name, change in structural_changes(form).items():
        shutil.copy("whole.h5ad", "changed.h5ad")
        with h5py.File("changed.h5ad", "r+") as file:
            change(file)
        read = None
        try:
            read = screens.read_screen("changed.h5ad").X.toarray()
        except screens.InputError as error:
            if not str(error).startswith("changed.h5ad: "):
                wrong[name] = f"no name: {error}"
        except Exception as error:
            wrong[name] = repr(error)[:200]
        if name in READ and (read is None or not np.array_equal(read, expected)):
            wrong.setdefault(name, "not read as what it is")
        if any(word in name for word in REFUSED) and name not in READ and read is not None:
            wrong[name] = "not refused"
    assert wrong == {}


def test_there_are_more_than_200_structural_changes():
    """Of the three forms together."""
    assert sum(len(structural_changes(form)) for form in ("csr", "csc", "dense")) > 200


# ---- Command lines -------------------------------------------------------------------------------

NUMBERS = ["-1", "0", "1e9", "1e300", "nan", "inf", "1" * 30, "9" * 5000, "three", ""]
OPTIONS = [
    *[f"--{name}" for name in ("width", "embedding", "steps", "epochs", "batch", "plan-cells")],
    *[f"--{name}" for name in ("sigma", "learning-rate", "test-fraction", "genes", "seed")],
    *["--epsilon", "--ablate"],
]
NAMES = ["\udcff", "\ud800", "x" * 4000, "/proc/1/x", "tiny.h5ad/x", "s3://b/x", "no/where", "é\n"]
NAMED = ["--grn", "--gene-embedding", "--test", "--also", "--layer", "--control", "--device"]


def command_lines():
    """100 command lines, of each a script's own and what is wrong with it, or odd."""
    rng = np.random.default_rng(0)
    train_it = ["train.py", "--data", "tiny.h5ad", "--out", "odd", *shlex.split(TINY)]
    for _ in range(45):
        yield [*train_it, rng.choice(OPTIONS), rng.choice(NUMBERS)]
    for _ in range(25):
        yield [*train_it, rng.choice(NAMED), rng.choice(NAMES)]
    for name in NAMES:
        yield ["train.py", "--data", "tiny.h5ad", *shlex.split(TINY), "--grn", "no", "--out", name]
        yield ["train.py", "--resume", name]
    for _ in range(14):
        option = rng.choice(["--cells", "--seed", "--condition", "--out", "--data", "--device"])
        values = NUMBERS if option in ("--cells", "--seed") else NAMES
        yield ["sample.py", "run", "--condition", "TF001", option, rng.choice(values)]


def test_a_hundred_command_lines_are_a_result_or_one_line(folder):
    """Numbers beyond all limits, names that cannot be."""
    wrong = {}
    count = 0
    for count, arguments in enumerate(command_lines(), start=1):
        code, errors = answer(*arguments)
        if code not in (0, 2) or (code == 2 and not is_one_line(errors)):
            wrong[count] = arguments[-2:], code, errors[-300:]
        shutil.rmtree("odd", ignore_errors=True)
    assert wrong == {}
    assert count == 100
