"""Public screens by name: their table, and downloads from a server on this machine that misbehaves.

Nothing here asks for anything from anywhere else.
"""

import hashlib
import io
import os
import re
import sys
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import pytest

import evaluate
import sample
import screens
import screens.__main__
import toy_data
import train
from examples import rewrite, write, write_labelled
from report.options import parser_of_settings
from screens import public

ROOT = Path(__file__).resolve().parents[2]
TINY = "--epochs 1 --width 16 --embedding 4 --steps 3 --grn coexpression"


# ---- A server, and a name that means it ----------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Answers for the server's file as its `mood` says, and notes the ranges that are asked for."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        """/file, after a redirect from anywhere else."""
        server = self.server
        if self.path != "/file":
            self.send_response(302)
            self.send_header("Location", "/file")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        server.ranges.append(self.headers["Range"])
        start = 0
        if server.mood != "knows no ranges" and self.headers["Range"]:
            start = int(re.fullmatch(r"bytes=(\d+)-", self.headers["Range"])[1])
        status = {"not there": 404, "a browser, please": 202}.get(
            server.mood, 206 if start else 200
        )
        body = server.file[start:]
        if start and not body:
            status = 416
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.mood == "breaks off":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        else:
            self.wfile.write(body)

    def log_message(self, *arguments):
        """Say nothing."""


@pytest.fixture(scope="module")
def running():
    """A server in a thread."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def h5ad(tmp_path_factory):
    """The bytes of a file as GEARS has it."""
    return Path(write("adamson", tmp_path_factory.mktemp("files"))).read_bytes()


@pytest.fixture
def server(running, h5ad, tmp_path, monkeypatch):
    """The server, well disposed; `adamson` is its file, and the cache folder is empty."""
    running.mood = "fine"
    running.ranges = []
    running.file = h5ad
    running.cache = tmp_path / "cache"
    monkeypatch.setenv("DEPARTURES_DATA", str(running.cache))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(public, "BLOCK", 4096)
    means(monkeypatch, running, hashlib.sha256(h5ad).hexdigest())
    return running


def means(monkeypatch, server, checksum, path="file"):
    """Let the name `adamson` mean the server's file."""
    address = f"http://127.0.0.1:{server.server_address[1]}/{path}"
    screen = public.PUBLIC["adamson"]._replace(address=address, checksum=checksum)
    monkeypatch.setitem(public.PUBLIC, "adamson", screen)


def broken(server):
    """Download from a server that breaks off; returns the refusal, as text."""
    server.mood = "breaks off"
    with pytest.raises(screens.InputError) as refused:
        screens.data_path("adamson")
    server.mood = "fine"
    return str(refused.value)


def kept(server):
    """The files in the cache folder."""
    return sorted(path.name for path in server.cache.iterdir())


# ---- What comes ----------------------------------------------------------------------------------


def test_a_zip_with_an_h5ad_in_it_is_unpacked_and_read_without_a_flag(server, h5ad, monkeypatch):
    """As GEARS packs its screens. Nothing but the h5ad is kept."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("adamson/go.csv", "a,b")
        archive.writestr("adamson/perturb_processed.h5ad", h5ad)
    server.file = memory.getvalue()
    means(monkeypatch, server, "md5:" + hashlib.md5(server.file).hexdigest())
    screen = screens.read_screen(screens.data_path("adamson"))
    assert ("KLF1", "K562(?)") in screen.groups
    assert kept(server) == ["adamson.h5ad"]


def test_what_is_there_is_not_asked_for_again(server):
    first = screens.data_path("adamson")
    assert screens.data_path("adamson") == first == str(server.cache / "adamson.h5ad")
    assert len(server.ranges) == 1


def test_a_damaged_file_is_downloaded_again_and_says_so(server, h5ad, capsys):
    """One that was cut short, say; what only reading finds is to be deleted."""
    path = Path(screens.data_path("adamson"))
    path.write_bytes(h5ad[: len(h5ad) // 2])
    assert Path(screens.data_path("adamson")).read_bytes() == h5ad
    assert f"{path}: damaged; it is downloaded again" in capsys.readouterr().out
    with h5py.File(path, "r+") as file:
        del file["var"]
    with pytest.raises(screens.InputError, match=r"adamson.h5ad: .*; delete it, and it is downl"):
        screens.read_screen(screens.data_path("adamson"))


def test_a_redirect_is_followed(server, h5ad, monkeypatch):
    means(monkeypatch, server, "md5:" + hashlib.md5(h5ad).hexdigest(), path="moved")
    assert Path(screens.data_path("adamson")).read_bytes() == h5ad


# ---- What breaks off -----------------------------------------------------------------------------


def test_a_download_that_broke_off_goes_on_where_it_did(server, h5ad):
    """Half a file never has the final name."""
    half = len(h5ad) // 2 // public.BLOCK * public.BLOCK  # whole blocks
    assert "it broke off after" in broken(server)
    assert kept(server) == ["adamson.h5ad.part"]
    whole = Path(screens.data_path("adamson")).read_bytes()
    assert (server.ranges, whole) == ([None, f"bytes={half}-"], h5ad)


def test_without_a_checksum_it_starts_again(server, h5ad, monkeypatch):
    """Nothing would tell whether the two halves are of one file."""
    means(monkeypatch, server, None)
    broken(server)
    assert Path(screens.data_path("adamson")).read_bytes() == h5ad
    assert server.ranges == [None, None]


def test_a_server_that_knows_no_ranges_sends_the_whole_again(server, h5ad):
    broken(server)
    server.mood = "knows no ranges"
    assert Path(screens.data_path("adamson")).read_bytes() == h5ad


def test_ctrl_c_leaves_nothing_that_is_taken_for_the_file(server, h5ad, monkeypatch):
    class Bar(public.tqdm):
        def update(self, n=1):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(public, "tqdm", Bar)
        with pytest.raises(KeyboardInterrupt):
            screens.data_path("adamson")
    assert kept(server) == ["adamson.h5ad.part"]
    assert Path(screens.data_path("adamson")).read_bytes() == h5ad


def test_a_download_that_was_killed_after_its_last_byte_is_whole(server, h5ad):
    """There is nothing more to ask for."""
    server.cache.mkdir()
    (server.cache / "adamson.h5ad.part").write_bytes(h5ad)
    assert Path(screens.data_path("adamson")).read_bytes() == h5ad


def test_two_at_once_download_once(server):
    """The second waits for the first."""
    paths = []
    both = [
        threading.Thread(target=lambda: paths.append(screens.data_path("adamson"))) for _ in "ab"
    ]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert len(paths) == 2 and len(set(paths)) == 1
    assert len(server.ranges) == 1


# ---- What is refused -----------------------------------------------------------------------------


def refused(server):
    """What is said, in one line, of a download that fails. Nothing of it is kept."""
    with pytest.raises(screens.InputError) as error:
        screens.data_path("adamson")
    assert kept(server) == []
    line = str(error.value)
    assert line.startswith("adamson: http://127.0.0.1:") and "\n" not in line
    return line


def test_a_wrong_checksum_is_refused_and_the_file_is_gone(server, h5ad, monkeypatch):
    server.file = h5ad[:-1] + b"x"
    assert "does not match the known hash" in refused(server)


def test_pieces_of_two_files_are_refused_and_the_next_try_starts_again(server, h5ad):
    server.file = bytes(reversed(h5ad))
    broken(server)
    server.file = h5ad
    assert "does not match the known hash" in refused(server)
    assert Path(screens.data_path("adamson")).read_bytes() == h5ad


@pytest.mark.parametrize(
    "mood, said",
    [
        ("not there", "the server answers 404 Not Found"),
        ("a browser, please", "the server answers 202 Accepted"),
    ],
)
def test_a_server_without_the_file_is_one_line(server, mood, said):
    """Some hosts answer a program with a page, under 202."""
    server.mood = mood
    line = refused(server)
    assert said in line
    assert line.endswith("fetch it with a browser and give the file's path in place of adamson")


def test_no_network_is_one_line(server, monkeypatch):
    """Nobody listens at port 1."""
    screen = public.PUBLIC["adamson"]._replace(address="http://127.0.0.1:1/file")
    monkeypatch.setitem(public.PUBLIC, "adamson", screen)
    assert "no connection to the server" in refused(server)


def packed(**files):
    """The bytes of a zip of some files."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name, content in files.items():
            archive.writestr(f"{name}.h5ad", content)
    return memory.getvalue()


NO_FILE = {
    "a page": lambda h5ad: b"<html>sign in</html>",
    "half": lambda h5ad: h5ad[: len(h5ad) // 2],
    "a zip of two": lambda h5ad: packed(one=h5ad, two=h5ad),
    "a damaged zip": lambda h5ad: packed(one=h5ad).replace(h5ad[2000:2100], bytes(100)),
}


@pytest.mark.parametrize("kind", NO_FILE)
def test_what_is_no_whole_h5ad_is_refused_without_a_checksum_too(server, h5ad, monkeypatch, kind):
    server.file = NO_FILE[kind](h5ad)
    assert server.file != h5ad
    means(monkeypatch, server, None)
    assert "not the file that it should be" in refused(server)


# ---- Names ---------------------------------------------------------------------------------------


def test_a_file_in_the_current_folder_wins_and_a_folder_does_not(server, tmp_path, monkeypatch):
    """It is said which of the two was taken."""
    monkeypatch.chdir(tmp_path)
    Path("adamson").write_bytes(b"mine")
    assert screens.public_name("adamson") is None
    os.remove("adamson")
    os.mkdir("adamson")
    assert screens.public_name("adamson") == "adamson"


@pytest.mark.parametrize(
    "name, hint", [("adamsn", "; did you mean adamson?"), ("qqq", "names them")]
)
def test_an_unknown_name_is_refused_with_a_near_one(name, hint):
    with pytest.raises(screens.InputError) as error:
        screens.data_path(name)
    assert str(error.value).startswith(f"{name}: no such file, and no public screen")
    assert str(error.value).endswith(hint)


def test_pooch_is_asked_for_only_where_something_is_downloaded(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pooch", None)
    monkeypatch.setenv("DEPARTURES_DATA", str(tmp_path))
    assert screens.data_path(str(tmp_path / "mine.h5ad")) == str(tmp_path / "mine.h5ad")
    with pytest.raises(screens.InputError, match="pip install -r requirements.txt"):
        screens.data_path("adamson")


def test_a_run_finds_its_public_screen_again_by_name_and_path(server, tmp_path, monkeypatch):
    """It has both in its checkpoint, and reads the name where the cached file is gone."""
    toy_data.simulate_screen(40, 5, 400, seed=3).write_h5ad(tmp_path / "adamson.h5ad")
    server.file = (tmp_path / "adamson.h5ad").read_bytes()
    means(monkeypatch, server, None)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", f"train.py --data adamson {TINY}".split())
    train.new_run(train.train_options(), "cpu")
    cached = server.cache / "adamson.h5ad"
    reading = sample.read_checkpoint("runs/adamson")["reading"]
    assert (reading["name"], reading["path"]) == ("adamson", str(cached))
    cached.unlink()
    assert screens.prepare(**reading).source == str(cached)


@pytest.mark.parametrize(
    "script, command, worker",
    [
        (sample, "sample.py run --data adamson --condition KLF1", "sample_run"),
        (evaluate, "evaluate.py --predicted p.h5ad --data adamson", "evaluate_run"),
    ],
)
def test_other_scripts_take_a_name_too(server, monkeypatch, script, command, worker):
    """What they read is the file that was downloaded."""
    given = []

    def keep(*values, **named):
        given.extend([*values, *named.values()])

    monkeypatch.setattr(script, worker, keep)
    monkeypatch.setattr(sys, "argv", command.split())
    script.main()
    assert str(server.cache / "adamson.h5ad") in given
    assert "adamson" not in given


# ---- The table -----------------------------------------------------------------------------------


def test_the_table_holds_addresses_checksums_and_licences_in_their_form():
    for screen in public.SCREENS:
        assert re.fullmatch(r"https://[\w.]+/\S+", screen.address)
        assert re.fullmatch(r"md5:[0-9a-f]{32}|[0-9a-f]{64}", screen.checksum or "0" * 64)
        assert screen.licence and screen.good_for and "20" in screen.citation


def test_the_list_names_every_screen_its_address_and_the_cache_folder(server):
    """Without asking any server."""
    said = "\n".join(screens.list_public())
    facts = [fact for screen in public.SCREENS for fact in (f"{screen.name}: ", screen.address)]
    assert [fact for fact in [*facts, str(server.cache)] if fact not in said] == []
    assert "    ? cells x 5,012 genes, size not known" in said
    assert server.ranges == []


def test_the_commands_help_names_the_variable_of_the_cache_folder():
    assert "DEPARTURES_DATA" in parser_of_settings().format_help()
    assert "DEPARTURES_DATA" in screens.__main__.parser_of_file().format_help()


def test_the_documentation_names_the_same_screens():
    """In its table, with how many genes they measure."""
    page = (ROOT / "docs" / "using.md").read_text()
    page = page.partition("## Public screens")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)
    assert rows == [screen.name for screen in public.SCREENS]
    assert all(f"× {screen.genes:,} |" in page for screen in public.SCREENS)


# ---- What their files hold -----------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::anndata.OldFormatWarning")
@pytest.mark.parametrize("form", ["adamson", "sciplex_chemcpa"])
def test_categories_as_anndata_wrote_them_until_2022_are_read(form, tmp_path):
    """Codes beside a group of categories: the files of GEARS and of chemCPA."""
    path = write(form, tmp_path)
    new = screens.read_screen(path)
    with h5py.File(path, "r+") as file:
        for table in (file["obs"], file["var"]):
            categories = table.create_group("__categories")
            for name in [name for name in table if "codes" in table[name]]:
                codes = table[name]["codes"][:]
                categories[name] = table[name]["categories"][:]
                del table[name]
                table[name] = codes
                table[name].attrs["categories"] = categories[name].ref
            table.attrs["encoding-version"] = "0.1.0"
    old = screens.read_screen(path)
    assert old.found == new.found
    assert list(old.groups) == list(new.groups)


@pytest.mark.parametrize(
    "columns, said",
    [
        ({"label": ["ctrl", "stim"] * 6}, "1 treatment from 'label' (control: ctrl)"),
        ({"drug": ["ctrl", "A", "B"] * 4}, "2 drug perturbations from 'drug'"),
        (
            {"condition": ["ctrl", "A"] * 6, "perturbation_type": "compound"},
            "1 drug perturbation from",
        ),
    ],
)
def test_what_no_file_calls_a_drug_is_a_treatment(tmp_path, columns, said):
    """Kang's interferon, in pertpy's file: stim."""
    screen = screens.read_screen(write_labelled(tmp_path, columns))
    assert any(line.startswith(said) for line in screen.found), screen.found


# ---- Genes of a file -----------------------------------------------------------------------------


def test_genes_of_a_file_are_listed_by_what_is_known_of_them(tmp_path):
    """Perturbed and measured, perturbed only; how many are kept; the most variable first."""
    screen = screens.prepare(write("adamson", tmp_path), test=["KLF1"], genes=100)
    lines = screens.describe_genes(screen, n=4)
    assert lines[:2] == [
        "3 perturbed genes are measured: AHR, BAK1, KLF1",
        "1 are not: AMIGO3",
    ]
    assert lines[2] == "10 genes are measured, of which --genes 4 keeps 4"


def test_a_file_is_named_and_its_genes_are_asked_for_in_one_command(tmp_path, monkeypatch, capsys):
    """As public screens are listed in one."""
    path = write("adamson", tmp_path)
    for arguments in ([path, "--genes", "ACTB"], ["--list"]):
        monkeypatch.setattr(sys, "argv", ["screens", *arguments])
        screens.__main__.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("ACTB: not perturbed, measured, kept")
    assert lines[1].startswith("adamson: 86 genes")


def test_a_gene_that_is_asked_for_is_answered_for(tmp_path):
    def still(adata):
        adata.X = adata.X.toarray()
        adata.X[:, list(adata.var["gene_name"]).index("ACTB")] = 1.5

    screen = screens.prepare(rewrite(write("adamson", tmp_path), still), test=["KLF1"], genes=100)
    asked = ["ACTB", "AMIGO3", "STAT2", "AHR", "BAK1", "KLF1"]
    lines = screens.describe_genes(screen, asked, n=3)
    assert lines[0] == "ACTB: not perturbed, measured, not kept (10 of 10)"
    assert lines[1:3] == [
        "AMIGO3: perturbed, not measured",
        "STAT2: not perturbed, not measured; did you mean STAT1?",
    ]
    assert all(": perturbed, measured, kept (" in line for line in lines[3:])
