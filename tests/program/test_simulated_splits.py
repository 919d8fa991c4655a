"""The splits that a simulated drug screen brings with it hold out what their names say."""

import pytest

import screens
import toy_data


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("drugs") / "d.h5ad")
    toy_data.simulate_drug_screen(40, 8, 4000, seed=0).write_h5ad(path)
    return path


def held_out(path, what):
    """The drugs of the held-out conditions, each with (dose, cell type): {drug: {...}}."""
    found = {}
    for perturbation, cell_type in screens.prepare(path, split_column=f"split_{what}").held_out:
        drug, dose = perturbation.split(":")
        found.setdefault(drug, set()).add((dose, cell_type))
    return found


def test_the_split_by_dose_holds_out_one_dose_in_every_cell_type(path):
    for conditions in held_out(path, "dose").values():
        assert len({dose for dose, _ in conditions}) == 1
        assert len({cell_type for _, cell_type in conditions}) == 3


def test_the_split_by_cell_type_holds_out_one_type_at_every_dose(path):
    for conditions in held_out(path, "cell_type").values():
        assert len({dose for dose, _ in conditions}) == 4
        assert len({cell_type for _, cell_type in conditions}) == 1


def test_the_split_by_drug_holds_out_one_whole_drug_of_each_family(path):
    drugs = held_out(path, "drug")
    assert sorted(drug[0] for drug in drugs) == ["A", "B"]
    assert all(len(conditions) == 12 for conditions in drugs.values())
