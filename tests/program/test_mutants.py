"""The lists of wrong edits fit the code as it stands. `python tests/mutants` makes the edits."""

import runpy
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def all_mutants(kind="MUTANTS"):
    """{test file: [(file, old text, new text, why it is wrong)]}, or those that are RIGHT."""
    return runpy.run_path(str(ROOT / "tests/mutants/__main__.py"))["all_mutants"](kind)


def test_the_old_text_of_every_wrong_edit_stands_once_in_its_file():
    """Else the edit could not be made."""
    lists = [*all_mutants().values(), *all_mutants("RIGHT").values()]
    edits = [edit for of_file in lists for edit in of_file]
    texts = {name: (ROOT / name).read_text() for name in {edit[0] for edit in edits}}
    lost = [(name, old) for name, old, _, _ in edits if texts[name].count(old) != 1]
    assert lost == []


def test_every_wrong_edit_changes_something_and_has_tests_that_exist():
    """Nothing is replaced by itself."""
    mutants = all_mutants()
    missing = [tests for tests in mutants if not (ROOT / "tests" / tests).exists()]
    idle = [old for of_file in mutants.values() for _, old, new, _ in of_file if old == new]
    assert missing == []
    assert idle == []
