"""The README and the pages in docs/ say what is there."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from report.options import parser_of_settings

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
METHOD = ROOT / "docs" / "method.md"
EQUATIONS = 18  # numbered ones in the paper


def prose(page):
    """The text of a page without its code blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def commands(page):
    """The command lines of a page's code blocks and backticks, without shell's continuations."""
    text = page.read_text()
    blocks = re.findall(r"^```\w*\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    lines += re.findall(r"`([^`]+)`", prose(page).replace("\n", " "))
    parts = [part.strip(" $") for line in lines for part in re.split(r"&&|;", line)]
    return [part for part in parts if part.startswith(("python ", "torchrun "))]


def anchors(page):
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", prose(page), flags=re.MULTILINE)
    names = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {name.replace(" ", "-") for name in names}


def cells(line):
    """The cells of a line of a Markdown table."""
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def tables(page):
    """The tables of a page: (header, rows) each, cells as text."""
    found = []
    blocks = re.findall(r"(?:^\|.*\n)+", prose(page), flags=re.MULTILINE)
    for block in blocks:
        header, _, *rows = block.splitlines()
        found.append((cells(header), [cells(row) for row in rows]))
    return found


def column(page, name):
    """All cells in columns with this header, of all tables of a page."""
    entries = []
    for header, rows in tables(page):
        if name in header:
            place = header.index(name)
            entries += [row[place] for row in rows]
    return entries


def quoted(text):
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", text)


def defined(file):
    """The names of a file's functions and classes, and of the classes' methods."""
    names = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            methods = [part for part in node.body if isinstance(part, ast.FunctionDef)]
            names |= {f"{node.name}.{method.name}" for method in methods}
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page):
    """To a file of the repository and, after a #, to one of its headings."""
    targets = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    broken = []
    for target in targets:
        if re.match(r"https?:", target):
            continue
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    assert targets
    assert broken == []


def test_functions_in_the_methods_tables_exist():
    """What stands in backticks in the columns `departures.py` is defined there."""
    named = [name for entry in column(METHOD, "`departures.py`") for name in quoted(entry)]
    assert len(named) > EQUATIONS
    assert set(named) <= defined(ROOT / "departures.py")


def test_every_equation_of_the_paper_has_its_line_and_a_function():
    """Numbers 1 to 18, once each, in the first table of the method."""
    header, rows = tables(METHOD)[0]
    numbers = [int(row[header.index("eq.")]) for row in rows]
    functions = [quoted(row[header.index("`departures.py`")]) for row in rows]
    assert numbers == list(range(1, EQUATIONS + 1))
    assert all(functions)


def test_every_file_of_mathematical_tests_has_its_facts_and_exists():
    """The method's list of facts names the files of tests/maths, all of them and no other."""
    named = {name for entry in column(METHOD, "`tests/maths/`") for name in quoted(entry)}
    proofs = {name for entry in column(METHOD, "test") for name in quoted(entry)}
    there = {file.name for file in (ROOT / "tests" / "maths").glob("test_*.py")}
    assert named == there
    assert proofs <= there


def test_the_readme_is_one_page():
    """Under 150 lines and 10 kB."""
    text = (ROOT / "README.md").read_bytes()
    assert len(text.splitlines()) < 150
    assert len(text) < 10_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_name_scripts_that_exist(page):
    """`python FILE.py` and `python -m MODULE`; programs of others are not ours to check."""
    missing = []
    for command in commands(page):
        script = re.search(r"[\w/]+\.py\b", command)
        module = re.match(r"python -m ([\w.]+)", command)
        if module and module[1] != "pytest":
            path = ROOT / module[1].replace(".", "/")
            found = path.with_suffix(".py").exists() or (path / "__main__.py").exists()
        else:
            found = script is None or (ROOT / script[0]).exists()
        if not found:
            missing.append(command)
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_of_train_in_the_commands_exist(page):
    """An option that was removed is not left behind in a command."""
    known = re.findall(r"--[a-z-]+", parser_of_settings().format_help())
    trained = [command for command in commands(page) if " train.py" in command]
    words = [word for c in trained for word in shlex.split(c[c.index(" train.py") :])]
    assert {word for word in words if word.startswith("--")} <= set(known)


def test_the_additions_switches_exist():
    """The method's column of switches names options of train.py."""
    switches = [text for entry in column(METHOD, "switch") for text in quoted(entry)]
    known = re.findall(r"--[a-z-]+", parser_of_settings().format_help())
    assert switches
    assert {switch.split()[0] for switch in switches} <= set(known)
