"""Public screens by name: where each of them is, and how it comes here.

    python -m screens --list
    python train.py --data adamson

A screen is downloaded once, into a cache folder, and read as any other file. A download gets its
final name there when it is complete and checked. The addresses, sizes and checksums were taken from
the loaders and records of the sources, and not tried: there was no internet here.
"""

import os
import zipfile
import zlib
from contextlib import contextmanager, suppress
from typing import NamedTuple

import h5py
from tqdm import tqdm

from screens.command_line import InputError, check_plain
from screens.labels import did_you_mean

CACHE = "DEPARTURES_DATA"  # the variable that sets the cache folder
SECONDS = 30  # that a server may take to answer
BLOCK = 2**20  # bytes at a time


class PublicScreen(NamedTuple):
    """A screen that anybody may download."""

    name: str
    what: str  # which perturbations, of which cells
    good_for: str
    cells: int | None
    genes: int
    megabytes: float | None  # of the download
    address: str
    checksum: str | None  # as pooch writes it: md5:…, or SHA-256
    licence: str
    source: str  # whose file it is
    citation: str


GEARS = "GEARS"
SCPERTURB = "scPerturb 1.4"
ADAMSON = "Adamson et al. 2016, doi:10.1016/j.cell.2016.11.048"
DIXIT = "Dixit et al. 2016, doi:10.1016/j.cell.2016.11.038"
NORMAN = "Norman et al. 2019, doi:10.1126/science.aax4438"
REPLOGLE = "Replogle et al. 2022, doi:10.1016/j.cell.2022.05.013"
SCIPLEX = "Srivatsan et al. 2020, doi:10.1126/science.aax6234"
KANG = "Kang et al. 2018, doi:10.1038/nbt.4042"

SCREENS = [
    PublicScreen(
        name="adamson",
        what="86 genes, CRISPRi, K562; log1p",
        good_for="unseen genes",
        cells=68_603,
        genes=5_060,
        megabytes=141,
        address="https://dataverse.harvard.edu/api/access/datafile/6154417",
        checksum="md5:0bde631bae60ee8c105991ff0e0d4a20",
        licence="CC0 1.0",
        source=GEARS,
        citation=ADAMSON,
    ),
    PublicScreen(
        name="norman",
        what="105 genes and 131 pairs, CRISPRa, K562 (its column says A549); log1p",
        good_for="pairs, unseen genes",
        cells=91_205,
        genes=5_045,
        megabytes=169,
        address="https://dataverse.harvard.edu/api/access/datafile/6154020",
        checksum="md5:cdc41d6050e619c37fd9dd44d440e2b4",
        licence="CC0 1.0",
        source=GEARS,
        citation=NORMAN,
    ),
    PublicScreen(
        name="dixit",
        what="transcription factors, knock-outs, K562; log1p",
        good_for="unseen genes",
        cells=None,
        genes=5_012,
        megabytes=None,
        address="https://dataverse.harvard.edu/api/access/datafile/6154416",
        checksum=None,
        licence="CC0 1.0",
        source=GEARS,
        citation=DIXIT,
    ),
    PublicScreen(
        name="replogle_k562",
        what="1,092 essential genes, CRISPRi, K562; log1p",
        good_for="unseen genes",
        cells=162_751,
        genes=5_000,
        megabytes=None,
        address="https://dataverse.harvard.edu/api/access/datafile/7458695",
        checksum="e769c89aa876061fdb3ac02a8de274f19a741a4f95decf14a52fd621d1eea319",
        licence="not found",
        source=GEARS,
        citation=REPLOGLE,
    ),
    PublicScreen(
        name="replogle_rpe1",
        what="1,543 essential genes, CRISPRi, RPE1; log1p",
        good_for="unseen genes",
        cells=162_733,
        genes=5_000,
        megabytes=None,
        address="https://dataverse.harvard.edu/api/access/datafile/7458694",
        checksum="0b97d50a9be1ecbd8837e8425456605e4ed6121b0c7738938f1318948cb78790",
        licence="not found",
        source=GEARS,
        citation=REPLOGLE,
    ),
    PublicScreen(
        name="sciplex3",
        what="187 drugs, four doses, three cell lines, SMILES; log1p",
        good_for="doses, unseen cell types, unseen drugs",
        cells=354_640,
        genes=2_000,
        megabytes=None,
        address="https://f003.backblazeb2.com/file/chemCPA-datasets/"
        "sciplex_complete_middle_subset.h5ad",
        checksum=None,
        licence="not found",
        source="chemCPA",
        citation=SCIPLEX,
    ),
    PublicScreen(
        name="kang",
        what="interferon beta, eight blood cell types of eight patients; counts",
        good_for="unseen cell types",
        cells=24_673,
        genes=15_706,
        megabytes=38.4,
        address="https://exampledata.scverse.org/pertpy/kang_2018.h5ad",
        checksum="e6a5adac64dcdeb36eaba27db49b63e0c64bb0ed4a64c6705971506b41c39830",
        licence="not found",
        source="pertpy",
        citation=KANG,
    ),
    PublicScreen(
        name="perturbench",
        what="18 genes and 15 pairs, CRISPRa, K562; 9 genes, CRISPRi, glioblastoma lines; log1p",
        good_for="pairs, unseen cell types, trying things out",
        cells=5_961,
        genes=500,
        megabytes=1.1,
        address="https://raw.githubusercontent.com/altoslabs/perturbench/"
        "4dd6a03c54ef348f6be6e46e21ea7f80eb2daaa2/src/perturbench/data/resources/devel.h5ad",
        checksum=None,
        licence="BSD 3-Clause",
        source="PerturBench",
        citation=f"{NORMAN}; McFaline-Figueroa et al. 2023",
    ),
    PublicScreen(
        name="norman_scperturb",
        what="105 genes and 131 pairs, CRISPRa, K562; all genes, counts",
        good_for="pairs, unseen genes",
        cells=111_445,
        genes=33_694,
        megabytes=699,
        address="https://zenodo.org/records/13350497/files/"
        "NormanWeissman2019_filtered.h5ad?download=1",
        checksum="md5:c870e6967d91c017d9da827bab183cd6",
        licence="CC BY 4.0",
        source=SCPERTURB,
        citation=NORMAN,
    ),
    PublicScreen(
        name="replogle_k562_scperturb",
        what="essential genes, CRISPRi, K562; all genes, counts",
        good_for="unseen genes",
        cells=310_385,
        genes=8_563,
        megabytes=1547,
        address="https://zenodo.org/records/13350497/files/"
        "ReplogleWeissman2022_K562_essential.h5ad?download=1",
        checksum="md5:d8cba17576d1a8afc0f7d71b79cad0f7",
        licence="CC BY 4.0",
        source=SCPERTURB,
        citation=REPLOGLE,
    ),
    PublicScreen(
        name="sciplex3_scperturb",
        what="188 drugs, four doses, three cell lines; all genes, counts",
        good_for="doses, unseen cell types",
        cells=799_317,
        genes=110_983,
        megabytes=2527,
        address="https://zenodo.org/records/13350497/files/"
        "SrivatsanTrapnell2020_sciplex3.h5ad?download=1",
        checksum="md5:c9e70629505d98c7ca1a837f62b14e89",
        licence="CC BY 4.0",
        source=SCPERTURB,
        citation=SCIPLEX,
    ),
]
PUBLIC = {screen.name: screen for screen in SCREENS}


# ---- Names ---------------------------------------------------------------------------------------


def public_name(data):
    """The name of the public screen that `data` means; None for a file, which comes first.

    InputError for what looks like a name and is neither.
    """
    if os.path.isfile(data):
        if data in PUBLIC:
            print(f"{data}: the file here, not the public screen of that name")
        return None
    if data in PUBLIC:
        return data
    if os.sep in data or "." in data or os.path.exists(data):
        return None  # a path; who reads it says what is wrong
    raise InputError(
        f"{data}: no such file, and no public screen of that name; python -m screens --list names "
        f"them{did_you_mean(data, PUBLIC)}"
    )


def data_path(data):
    """The path of a file, or of the public screen of that name, which is downloaded if need be."""
    name = public_name(data)
    return downloaded(name) if name else data


def cache_folder():
    """Where downloads are kept: DEPARTURES_DATA, or the user's cache. InputError without pooch."""
    folder = os.path.abspath(os.environ.get(CACHE) or require_pooch().os_cache("departures"))
    check_plain([folder], CACHE)
    return folder


def require_pooch():
    """The package pooch, imported here so that files are read without it."""
    try:
        import pooch
    except ImportError as error:
        raise InputError(
            "public screens are downloaded with pooch; pip install -r requirements.txt"
        ) from error
    return pooch


def list_public():
    """What `python -m screens --list` prints of the public screens, in lines."""
    folder = cache_folder()
    lines = []
    for screen in SCREENS:
        cells = f"{screen.cells:,} cells" if screen.cells else "? cells"
        size = f"{screen.megabytes:,} MB" if screen.megabytes else "size not known"
        here = ", downloaded" if os.path.exists(f"{folder}/{screen.name}.h5ad") else ""
        lines += [
            f"{screen.name}: {screen.what}",
            f"    good for {screen.good_for}",
            f"    {cells} x {screen.genes:,} genes, {size}{here}; licence {screen.licence}",
            f"    {screen.citation}; file of {screen.source}",
            f"    {screen.address}",
        ]
    return [
        *lines,
        f"They are downloaded into {folder} ({CACHE} sets another folder).",
        "Nobody has tried these addresses from here: there was no internet.",
    ]


# ---- Downloads -----------------------------------------------------------------------------------


def downloaded(name):
    """The path of a public screen in the cache folder, downloaded if it is not there and whole."""
    folder = cache_folder()
    path = f"{folder}/{name}.h5ad"
    if not is_h5ad(path):
        with one_at_a_time(folder):
            if not is_h5ad(path):  # another process may have downloaded it meanwhile
                if os.path.exists(path):
                    print(f"{path}: damaged; it is downloaded again")
                download(PUBLIC[name], path)
    return path


def is_download(path):
    """Whether a path is that of a public screen in the cache folder."""
    name, ending = os.path.splitext(os.path.basename(path))
    return name in PUBLIC and os.path.abspath(path) == f"{cache_folder()}/{name}{ending}"


@contextmanager
def one_at_a_time(folder):
    """Let one process at a time download into a folder, which is made if need be."""
    os.makedirs(folder, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(ImportError):  # Windows has no such locks
            import fcntl

            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"another process downloads into {folder}: waiting for it")
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def download(screen, path):
    """Download a public screen to a path, whole or not at all. InputError if that fails."""
    pooch = require_pooch()
    import requests  # comes with pooch

    pooch.get_logger().setLevel("ERROR")  # what there is to say is said here
    print(f"{screen.name}: downloading {screen.address} to {path}")
    archive = f"{path}.download"
    part = f"{path}.part"
    try:
        pooch.retrieve(
            screen.address,
            screen.checksum,
            os.path.basename(archive),
            os.path.dirname(archive),
            downloader=Fetch(part, resumes=screen.checksum is not None),
        )
        unpack(archive, path)
    except requests.RequestException as error:
        raise refusal(screen, reason_of(error, part)) from error
    except (ValueError, zipfile.BadZipFile, zlib.error) as error:  # the checksum, or no h5ad
        raise refusal(screen, f"not the file that it should be ({error})") from error
    finally:
        for left in (archive, f"{path}.unpacked", part):
            if os.path.exists(left) and (left != part or not os.path.getsize(part)):
                os.remove(left)


def refusal(screen, reason):
    """The InputError for a screen that could not be downloaded."""
    return InputError(
        f"{screen.name}: {screen.address}: {reason}; try again, or fetch it with a browser and "
        f"give the file's path in place of {screen.name}"
    )


def reason_of(error, part):
    """What a failure of requests says, in words. part: the file that what came is kept in."""
    if error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    if os.path.exists(part) and os.path.getsize(part):
        return f"it broke off after {os.path.getsize(part) / 1e6:,.1f} MB"
    return "no connection to the server"


class Fetch:
    """A downloader for pooch that continues a download that broke off.

    part: where the bytes are kept until all are there. resumes: whether to continue; without a
    checksum nothing would tell whether two pieces are of one file.
    """

    def __init__(self, part, resumes):
        self.part = part
        self.resumes = resumes

    def __call__(self, url, path, _):
        """Download an address to a path. Raises requests' errors, also for too short an answer."""
        import requests

        with open(self.part, "ab" if self.resumes else "wb") as file:
            headers = {"User-Agent": "departures", "Accept-Encoding": "identity"}
            if file.tell():
                headers["Range"] = f"bytes={file.tell()}-"
            with requests.get(url, headers=headers, stream=True, timeout=SECONDS) as answer:
                if answer.status_code not in (200, 206, 416):  # a page for browsers has 202
                    raise requests.HTTPError(response=answer)
                if answer.status_code == 200:  # from the start, whatever was asked for
                    file.seek(0)
                    file.truncate()
                if answer.status_code != 416:  # 416: there is nothing beyond what we have
                    receive(answer, file)
        os.replace(self.part, path)


def receive(answer, file):
    """Append the content of an answer to a file, with a progress bar; all of it, or an error."""
    import requests

    expected = answer.headers.get("Content-Length")
    total = file.tell() + int(expected) if expected else None
    with tqdm(total=total, initial=file.tell(), unit="B", unit_scale=True, leave=False) as bar:
        for block in answer.iter_content(BLOCK):
            file.write(block)
            bar.update(len(block))
    if total is not None and file.tell() != total:
        raise requests.ConnectionError("too short")


def unpack(archive, path):
    """Move an h5ad, or the one in a zip, to a path. ValueError if there is none, or several."""
    content = archive
    if zipfile.is_zipfile(archive):
        content = f"{path}.unpacked"
        with zipfile.ZipFile(archive) as file:
            found = [member for member in file.infolist() if member.filename.endswith(".h5ad")]
            if len(found) != 1:
                raise ValueError(f"a zip with {len(found)} files .h5ad in it")
            extract(file, found[0], content)
    if not is_h5ad(content):
        raise ValueError("no h5ad")
    os.replace(content, path)


def extract(archive, member, path):
    """Write a member of an open zip to a path, with a progress bar. BadZipFile if it is damaged."""
    with archive.open(member) as packed, open(path, "wb") as file:
        size = member.file_size
        with tqdm(total=size, unit="B", unit_scale=True, desc="unpacking", leave=False) as bar:
            while block := packed.read(BLOCK):
                file.write(block)
                bar.update(len(block))


def is_h5ad(path):
    """Whether a file is an HDF5, not cut short, that holds cells."""
    try:
        with h5py.File(path) as file:
            return "obs" in file
    except OSError:
        return False
