"""Everything that may be wrong with a file, a folder, a checkpoint or a command, run as `python SCRIPT …` would (in a forked process that
has the libraries already): one line on stderr that names it and the remedy, exit code 2, and nothing left behind.

    python tests/test_bad_input.py      prints every command with its line
"""
import ctypes
import multiprocessing
import os
import pathlib
import pickle
import resource
import runpy
import subprocess
import sys
import tempfile

import anndata
import h5py
import numpy as np
import pytest
import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import toy_data  # noqa: E402  (the path comes first)

TINY = ["--epochs", "1", "--width", "16", "--embedding", "4", "--steps", "3"]


class Runs:
    """Unpickling it would leave a file behind."""

    def __reduce__(self):
        return os.system, ("touch was_run",)


def spoiled(path, change, source="tiny.h5ad"):
    adata = anndata.read_h5ad(source)
    change(adata)
    adata.write_h5ad(path)
    return path


def relabel(adata, column, function, **columns):
    adata.obs = adata.obs.assign(**{column: adata.obs[column].astype(str).map(function), **columns})


def set_value(adata, value):
    adata.X.data[0] = value


def bad_files():
    """{file: (how to spoil the good one, what the line must say)}; each is read by `python data.py`."""
    return {
        "nan": (lambda a: set_value(a, np.nan), "NaN or infinite values; remove or repair"),
        "infinite": (lambda a: set_value(a, np.inf), "NaN or infinite"),
        "negative": (lambda a: set_value(a, -1.0), "negative values (scaled data?); give counts or log1p"),
        "zeros": (lambda a: a.X.data.fill(0), "nothing but zeros; name the --layer"),
        "no_X": (lambda a: setattr(a, "X", None), "no X; the layers are counterfactual, counts; name one with --layer"),
        "duplicate_genes": (lambda a: setattr(a, "var_names", ["g1", *a.var_names[1:-1], "g1"]), "duplicate gene names (g1); use adata.var_names_make_unique()"),
        "no_column": (lambda a: setattr(a, "obs", a.obs[["cell_type"]]), "no perturbation column"),
        "ambiguous": (lambda a: relabel(a, "condition", lambda x: x, drug=["control", "x"] * (a.n_obs // 2)), "disagree on the controls; choose one with --perturbation-column"),
        "no_control": (lambda a: relabel(a, "condition", lambda x: x.replace("ctrl", "wt0")), "no control label"),
        "near_control": (lambda a: relabel(a, "condition", lambda x: "CTRL_pool_7" if x == "ctrl" else x.split("+")[0]),
                         "'CTRL_pool_7' looks like one: --control 'CTRL_pool_7'"),
        "only_controls": (lambda a: relabel(a, "condition", lambda x: "ctrl"), "every cell is a control"),
        "no_labels": (lambda a: relabel(a, "condition", lambda x: ""), "all missing"),
        "type_without_controls": (lambda a: relabel(a, "condition", lambda x: x, cell_type=np.where(a.obs["condition"] == "ctrl", "typeA", "typeZ")),
                                  "no control cells of cell type 'typeZ': remove its cells"),
        "negative_dose": (lambda a: relabel(a, "condition", lambda x: "control" if x == "ctrl" else "drug1",
                                            dose_val=np.linspace(-3, 0, a.n_obs)), "negative doses; give doses, not their logarithms"),
        "all_held_out": (lambda a: relabel(a, "condition", lambda x: x, split=np.where(a.obs["condition"] == "ctrl", "train", "ood")),
                         "every perturbation is held out; nothing is left to train on"),
    }


def prepare_folder():
    """A good screen, a good run on it, and everything bad, in the current folder."""
    toy_data.simulate_screen(40, 5, 400, seed=3).write_h5ad("tiny.h5ad")
    subprocess.run([sys.executable, f"{ROOT}/train.py", "--data", "tiny.h5ad", "--out", "run", *TINY], check=True, capture_output=True)
    for name, (change, _) in bad_files().items():
        spoiled(f"{name}.h5ad", change)
    whole, model = (pathlib.Path(name).read_bytes() for name in ("tiny.h5ad", "run/model.pt"))
    for name, content in {"text.h5ad": b"cell,gene\n", "empty.h5ad": b"", "truncated.h5ad": whole[:len(whole) // 2], "edges.csv": b"a,b\n1,2\n",
                          "weights.csv": b"source,target,weight\nTF001,TF002,strong\n", "drugs.csv": b"name,x\nnobody,1\n", "binary.csv": os.urandom(99)}.items():
        pathlib.Path(name).write_bytes(content)
    with h5py.File("other.h5ad", "w") as f:
        f["matrix"] = np.ones((3, 3))
    for name, shape in (("no_cells", (0, 3)), ("no_genes", (3, 0))):
        anndata.AnnData(np.ones(shape, np.float32)).write_h5ad(f"{name}.h5ad")
    spoiled("latin1.h5ad", lambda a: None)
    with h5py.File("latin1.h5ad", "a") as f:
        del f["obs/condition/categories"]
        f["obs/condition/categories"] = np.array([b"ctrl", *[b"\\xe9t\\xe9%d" % i for i in range(5)]], dtype="S9").astype(h5py.string_dtype("utf-8"))
        f["obs/condition/categories"].attrs.update({"encoding-type": "string-array", "encoding-version": "0.2.0"})
        f["obs/condition/categories"][1] = b"\xe9t\xe9"
    pathlib.Path("locked.h5ad").write_bytes(whole)
    os.chmod("locked.h5ad", 0)
    for folder, content in {"run_truncated": model[:len(model) // 2], "run_empty": b"", "run_pickle": pickle.dumps(Runs())}.items():
        os.mkdir(folder)
        pathlib.Path(f"{folder}/model.pt").write_bytes(content)
    good = torch.load("run/model.pt", weights_only=True)
    for folder, content in {"run_old": {**good, "format": 1}, "run_bare": {"format": good["format"], "settings": good["settings"]},
                            "run_alien": {**good, "width": 1, "genes": good["genes"][:3]}, "run_tensor": torch.ones(3), "run_moved":
                            {**good, "reading": {**good["reading"], "path": os.path.abspath("gone.h5ad")}}}.items():
        os.mkdir(folder)
        torch.save(content, f"{folder}/model.pt")
    os.mkdir("run_none")
    os.mkdir("run_foreign")
    anndata.AnnData(np.ones((2, 2), np.float32)).write_h5ad("run_foreign/predicted.h5ad")
    spoiled("renamed.h5ad", lambda a: relabel(a, "cell_type", lambda x: "q" + x))
    spoiled("one_gene.h5ad", lambda a: a._inplace_subset_var(np.arange(a.n_vars) < 1))
    spoiled("few_genes.h5ad", lambda a: a._inplace_subset_var(np.arange(a.n_vars) < 2))
    spoiled("nameless.h5ad", lambda a: setattr(a, "obs", a.obs[["penetrant"]]))
    spoiled("other_genes.h5ad", lambda a: (setattr(a, "var_names", [f"x{i}" for i in range(a.n_vars)]), a.var.pop("gene_name")))


def commands():
    """(arguments, what the line must say) of every bad command in that folder."""
    for name, (_, message) in bad_files().items():
        yield ["data.py", f"{name}.h5ad"], f"{name}.h5ad", message
    data_train = ["train.py", "--data", "tiny.h5ad"]
    for arguments, name, message in [
        (["data.py", "absent.h5ad"], "absent.h5ad", "no such file; check the path"),
        (["data.py", "run"], "run", "is a directory; name the h5ad in it"),
        (["data.py", "locked.h5ad"], "locked.h5ad", "permission denied; make it readable"),
        (["data.py", "text.h5ad"], "text.h5ad", "cannot be read as an h5ad"),
        (["data.py", "empty.h5ad"], "empty.h5ad", "cannot be read as an h5ad"),
        (["data.py", "truncated.h5ad"], "truncated.h5ad", "cannot be read as an h5ad"),
        (["data.py", "other.h5ad"], "other.h5ad", "cannot be read as an h5ad"),
        (["data.py", "latin1.h5ad"], "latin1.h5ad", "utf-8"),
        (["data.py", "no_cells.h5ad"], "no_cells.h5ad", "holds 0 cells"),
        (["data.py", "no_genes.h5ad"], "no_genes.h5ad", "and 0 genes"),
        (["data.py", "tiny.h5ad", "--layer", "raw"], "tiny.h5ad", "no layer 'raw'; the layers are counterfactual"),
        (["data.py", "tiny.h5ad", "--control", "mock"], "tiny.h5ad", "no control label ('mock')"),
        (["data.py", "tiny.h5ad", "--cell-type-column", "tissue"], "tiny.h5ad", "no column 'tissue'; the columns are"),
        (["data.py", "tiny.h5ad", "--split-column", "fold"], "tiny.h5ad", "no column 'fold'"),
        (["data.py", "tiny.h5ad", "--split-column", "dose_val"], "tiny.h5ad", "marks no whole condition test or ood; use --test"),
        (["data.py", "tiny.h5ad", "--test", "NOBODY"], "tiny.h5ad", "no cells of condition 'NOBODY'; there are"),
        (["data.py"], "data.py", "required: file"),
        ([*data_train, "--test", "NOBODY@typeA"], "tiny.h5ad", "no cells of condition"),
        ([*data_train, "--out", "run"], "run", "holds a run already; give another --out, or --resume"),
        ([*data_train, "--out", "tiny.h5ad"], "tiny.h5ad", "is a file; --out names a folder"),
        ([*data_train, "--out", "edges.csv/run"], "edges.csv", "choose another place"),
        ([*data_train, "--device", "cuda:9"], "--device cuda:9", "use --device cpu"),
        ([*data_train, "--device", "toaster"], "--device toaster", "use --device cpu"),
        ([*data_train, "--epsilon", "small"], "--epsilon", "must be a positive number"),
        ([*data_train, "--epsilon", "0e1max"], "--epsilon", "must be a positive number"),
        ([*data_train, "--cost", "cosine", "--epsilon", "bridge"], "--epsilon", "for --cost sqeuclidean only"),
        ([*data_train, "--batch", "0"], "--batch", "at least 1; it is 0"),
        ([*data_train, "--sigma", "inf"], "--sigma", "must be a finite number"),
        ([*data_train, "--seed", "-1"], "--seed", "at least 0"),
        ([*data_train, "--prior", "-1"], "--prior", "at least 0"),
        ([*data_train, "--type-dropout", "2"], "--type-dropout", "at most 1; it is 2.0"),
        ([*data_train, "--test-fraction", "2"], "--test-fraction", "at least 0, at most 1"),
        ([*data_train, "--genes", "1"], "--genes 1", "no genes left"),
        ([*data_train, "--epochs", "many"], "--epochs", "invalid int value: 'many'"),
        ([*data_train, "--pairing", "guess"], "--pairing", "invalid choice: 'guess'"),
        ([*data_train, "--epoch", "3", "--learning"], "--learning", "expected one argument"),
        ([*data_train, "--grn", "edges.csv"], "edges.csv", "needs the columns source and target"),
        ([*data_train, "--grn", "weights.csv"], "weights.csv", "weight must be a finite number"),
        ([*data_train, "--grn", "absent.csv"], "absent.csv", "nor a readable CSV"),
        ([*data_train, "--grn", "binary.csv"], "binary.csv", "nor a readable CSV"),
        ([*data_train, "--drug-embedding", "drugs.csv"], "--drug-embedding drugs.csv", "is a screen of genes"),
        ([*data_train, "--layer", ""], "--layer", "is empty"),
        ([*data_train, "--seed", "99999999999"], "--seed", "at most 2147483647"),
        (["train.py", "--resume", "run", "--seed", "0"], "--resume run", "leave out --seed"),
        (["train.py", "--resume", "run", "--data", "renamed.h5ad"], "renamed.h5ad", "the file has changed since"),
        (["sample.py", "run", "--out", "run/model.pt"], "run/model.pt", "is an input; choose another name"),
        (["sample.py", "run", "--condition", "TF001@HeLa"], "'HeLa'", "there are typeA, typeB"),
        (["sample.py", "run", "--condition", "ctrl"], "--condition ctrl", "nothing is to be predicted"),
        (["evaluate.py", "--predicted", "run/predicted.h5ad", "--data", "tiny.h5ad", "--write-truth", "tiny.h5ad"], "tiny.h5ad", "is an input"),
        (["toy_data.py", "screen", "new.h5ad", "--cells", "-5"], "a screen has", "100 cells or more"),
        (["data.py", "one_gene.h5ad"], "one_gene.h5ad", "1 genes; there is nothing"),
        ([*data_train, "--also", "NOBODY"], "--also NOBODY", "not among the 40 genes"),
        (["train.py", "--data", "near_control.h5ad", "--control", "CTRL_pool_7", "--perturbation-column", "condition", "--layer", "none"],
         "near_control.h5ad", "no layer 'none'"),
        (["train.py", "--resume", "nowhere"], "nowhere", "is not a run of train.py"),
        (["train.py", "--resume", "run_none"], "run_none", "is not a run of train.py"),
        (["train.py", "--resume", "run", "--epochs", "9"], "--resume run", "leave out --epochs"),
        (["train.py", "--resume", "run_moved"], "gone.h5ad", "no such file"),
        (["train.py", "--resume", "run_old"], "run_old/model.pt", "another version (1, this is"),
        (["train.py", "--resume", "run_pickle"], "run_pickle/model.pt", "not a checkpoint of plain"),
        (["sample.py", "run_truncated"], "run_truncated/model.pt", "truncated, or not a checkpoint"),
        (["sample.py", "run_empty"], "run_empty/model.pt", "truncated, or not a checkpoint"),
        (["sample.py", "run_bare"], "run_bare/model.pt", "train again"),
        (["sample.py", "run_alien"], "run_alien/model.pt", "train again"),
        (["sample.py", "run_tensor"], "run_tensor/model.pt", "another version"),
        (["sample.py", "run", "--condition", "NOBODY"], "NOBODY", "not perturbed in training"),
        (["sample.py", "run", "--condition", "TF001@typeZ"], "TF001@typeZ", "no control cells of type 'typeZ'"),
        (["sample.py", "run", "--cells", "0"], "--cells", "must be positive"),
        (["sample.py", "run", "--seed", "-2"], "--seed", "must not be negative"),
        (["sample.py", "run", "--data", "tiny.h5ad"], "--data", "needs --condition"),
        (["sample.py", "run", "--data", "few_genes.h5ad", "--condition", "TF001"], "few_genes.h5ad", "lacks 38 of the run's 40 genes"),
        (["sample.py", "run", "--out", "edges.csv/x.h5ad"], "edges.csv/x.h5ad", "choose another place"),
        (["evaluate.py"], "run", "or --predicted and --data"),
        (["evaluate.py", "nowhere"], "nowhere/predicted.h5ad", "no such file"),
        (["evaluate.py", "run_foreign"], "run_foreign/predicted.h5ad", "not written by sample.py"),
        (["evaluate.py", "--predicted", "tiny.h5ad", "--data", "absent.h5ad"], "absent.h5ad", "no such file"),
        (["evaluate.py", "--predicted", "nameless.h5ad", "--data", "tiny.h5ad"], "nameless.h5ad", "needs obs columns"),
        (["evaluate.py", "--predicted", "other_genes.h5ad", "--data", "tiny.h5ad"], "other_genes.h5ad", "are not those of tiny.h5ad"),
        (["evaluate.py", "run", "--write-truth", "no/truth.h5ad"], "no/truth.h5ad", "cannot be written"),
        (["toy_data.py", "screen", "no/where.h5ad"], "no/where.h5ad", "cannot be written"),
        (["toy_data.py", "gaussian", "--out", "edges.csv"], "edges.csv", "check the path"),
        (["toy_data.py", "screen"], "toy_data.py screen", "required: out"),
    ]:
        yield arguments, name, message


def as_anybody():
    """In the child: root reads everything, so let it give up that right (capabilities 1 and 2: CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH)."""
    libc, version, mine = ctypes.CDLL(None), (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    libc.capget(version, mine)
    mine[0] &= ~0b110                                                      # effective, and permitted
    mine[1] &= ~0b110
    libc.capset(version, mine)


def on_a_full_disk():
    """In the child: no file may grow beyond 20 kB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def child(arguments, before, folder, errors):
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(errors, os.O_WRONLY), 2)
    torch.set_num_threads(1)
    before()
    sys.argv = [f"{ROOT}/{arguments[0]}", *arguments[1:]]
    runpy.run_path(sys.argv[0], run_name="__main__")


FORKS = multiprocessing.get_context("forkserver")                          # a hundred commands, and the libraries are loaded once
FORKS.set_forkserver_preload(["train", "test_bad_input"])


def run(arguments, before=as_anybody):
    """(exit code, stderr) of `python ARGUMENTS`."""
    with tempfile.NamedTemporaryFile("r") as errors:
        process = FORKS.Process(target=child, args=(arguments, before, os.getcwd(), errors.name))
        with pytest.MonkeyPatch.context() as patch:                        # for the server, which starts with the first of them
            patch.setenv("PYTHONPATH", f"{ROOT}:{ROOT}/tests")
            process.start()
        process.join(120)
        process.kill()                                                     # no longer there, or it hangs
        return process.exitcode, errors.read()


def listing():
    return sorted((path, os.path.getsize(path)) for path in map(str, pathlib.Path(".").rglob("*")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder, as the current one."""
    before, folder = os.getcwd(), tmp_path_factory.mktemp("bad")
    os.chdir(folder)
    prepare_folder()
    yield folder
    os.chdir(before)


def test_every_bad_command_is_one_line_and_exit_code_2_and_leaves_nothing(folder):
    cases, before = list(commands()), listing()
    results = [run(arguments) for arguments, _, _ in cases]                # one by one: multiprocessing's exit codes are not for threads
    wrong = [(arguments, code, line) for (arguments, name, message), (code, line) in zip(cases, results)
             if not (code == 2 and line.count("\n") == 1 and "error: " in line and name in line and message in line)]
    assert not wrong, "\n".join(map(str, wrong))
    assert listing() == before


@pytest.mark.parametrize("arguments, written", [
    (["train.py", "--data", "tiny.h5ad", "--out", "full", *TINY], "full/model.pt"), (["sample.py", "run"], "run/predicted.h5ad"),
    (["sample.py", "run", "--training", "--out", "t.h5ad"], "t.h5ad"), (["evaluate.py", "run", "--write-truth", "truth.h5ad"], "truth.h5ad"),
    (["toy_data.py", "screen", "new.h5ad"], "new.h5ad"), (["train.py", "--resume", "run"], "run/")])
def test_a_full_disk_loses_nothing(folder, arguments, written):
    """What was there stays as it was, and no half of a new file is left."""
    before = dict(listing())
    code, errors = run(arguments, on_a_full_disk)
    assert code == 2 and written in errors and "free some space" in errors and "Traceback" not in errors, errors
    after = dict(listing())
    assert not [path for path in after if path.endswith(".tmp")] and before.items() <= after.items()
    assert not {path for path in after if os.path.isfile(path)} - before.keys()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        prepare_folder()
        for arguments, _, _ in commands():
            print("$ python", *arguments, "\n   ", run(arguments)[1], end="")
