"""What is measured of a screen's cells, and their way into tensors."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import screens
from examples import screen_of, screen_with

# ---- Populations ---------------------------------------------------------------------------------

THREE_CELLS = sparse.csr_matrix(np.array([[0, 2.0], [4, 0], [6, 0]]))


def test_means_and_levels_are_over_all_and_over_expressing_cells():
    mean, level, fraction, _ = screens.population_statistics(THREE_CELLS)
    assert np.allclose(mean, [10 / 3, 2 / 3])
    assert np.allclose(level, [5, 2])
    assert np.allclose(fraction, [2 / 3, 1 / 3])


def test_the_variance_is_that_of_the_expressing_cells():
    variance = screens.population_statistics(THREE_CELLS)[3]
    assert np.allclose(variance, [1, 0])


def test_a_gene_that_no_cell_expresses_has_level_and_variance_0():
    statistics = screens.population_statistics(THREE_CELLS, np.array([1, 2]))
    assert statistics[:, 1].tolist() == [0, 0, 0, 0]
    assert statistics.dtype == np.float32


def test_statistics_of_more_than_one_block_are_those_of_all_cells():
    X = sparse.random(9000, 3, 0.5, "csr", rng=np.random.default_rng(0))
    mean, _, fraction, _ = screens.population_statistics(X, np.arange(1, 9000))
    assert np.allclose(mean, X[1:].toarray().mean(0), atol=1e-6)
    assert np.allclose(fraction, (X[1:].toarray() > 0).mean(0), atol=1e-6)


def test_genes_that_a_types_controls_never_express_take_the_level_of_elsewhere():
    X = [[2, 0], [4, 0], [0, 7], [9, 9]]
    screen = screen_with(X, ["control"] * 3 + ["g0"], ["t", "t", "u", "t"])
    elsewhere = np.array([1.0, 5.0])
    mean, level, fraction, variance, cells = screens.control_statistics(screen, "t", elsewhere)
    assert (mean.tolist(), fraction.tolist()) == ([3, 0], [1, 0])
    assert (level.tolist(), variance.tolist()) == ([3, 5], [1, 0])
    assert cells == 2


def counted(seed=0):
    """A screen of 5 groups, two of one cell, one held out, and of each training group its cells."""
    rng = np.random.default_rng(seed)
    sizes = {("control", "t"): 9, ("A", "t"): 6, ("B", "t"): 1, ("C", "t"): 5, ("control", "u"): 1}
    X = rng.gamma(2.0, 1.0, (22, 4)) * (rng.random((22, 4)) < 0.6)
    X[:, 3] = 0
    labels = np.repeat(list(sizes), list(sizes.values()), axis=0)
    order = rng.permutation(22)
    screen = screen_with(X[order], *labels[order].T)
    screen.held_out = {("C", "t")}
    mask = {key: (labels[order] == key).all(1) for key in sizes}
    return screen, [X[order][mask[key]] for key in screen.training_groups()]


def test_training_statistics_count_the_cells_that_express_a_gene_and_their_mean_level():
    """In every training group; a level that nothing shows is 0."""
    screen, groups = counted()
    cells, on, level, _ = screens.training_statistics(screen)
    assert cells.tolist() == [[len(X)] for X in groups] and len(groups) == 4
    assert np.allclose(on, [(X > 0).sum(0) for X in groups], atol=1e-5)
    shown = [[x[x > 0].mean() if x.any() else 0 for x in X.T] for X in groups]
    assert np.allclose(level, shown, atol=1e-5)


def test_the_variance_within_training_groups_is_pooled_over_their_degrees_of_freedom():
    """Of the cells that express a gene, around their own group's mean."""
    screen, groups = counted()
    *_, variance = screens.training_statistics(screen)
    for i in range(3):
        levels = [X[X[:, i] > 0, i] for X in groups]
        squares = sum(((level - level.mean()) ** 2).sum() for level in levels if len(level))
        degrees = sum(len(level) - 1 for level in levels if len(level))
        assert variance[i] == pytest.approx(squares / degrees, rel=1e-4)
    assert variance[3] == 0


# ---- Shifts and covariances ----------------------------------------------------------------------


def test_mean_shifts_are_those_of_the_training_conditions_from_their_own_controls():
    base = np.array([2.0, 4])
    means = {
        ("control", "t"): base,
        ("control", "u"): base + 1,
        ("A", "t"): base + [1, 0],
        ("A", "u"): base,
        ("B", "t"): base,
    }
    screen = screen_of(means)
    screen.held_out = {("B", "t")}
    shift = screens.mean_shifts(screen)
    assert set(shift) == {("A", "t"), ("A", "u")}
    assert np.allclose(shift["A", "t"], [1, 0])
    assert np.allclose(shift["A", "u"], [-1, -1])


def two_groups():
    """A screen of two groups, of one block and of more, and each group's rows around its mean."""
    rng = np.random.default_rng(0)
    X = rng.gamma(2.0, 1.0, (5010, 4)) + np.repeat([0, 3], [10, 5000])[:, None]
    screen = screen_with(X, ["control"] * 5010, ["t"] * 10 + ["u"] * 5000)
    centred = [X[:10] - X[:10].mean(0), X[10:] - X[10:].mean(0)]
    return screen, np.concatenate(centred)


def test_hurdle_shifts_are_of_the_log_odds_and_of_the_level_with_half_a_cell_on_either_side():
    """A gene that the controls never express has no level to move."""
    controls = [[1, 0, 3], [0, 0, 3], [0, 0, 3]]
    treated = [[2, 5, 0], [4, 0, 0]]
    labels = ["control"] * 3 + ["A"] * 2
    screen = screen_with(controls + treated, labels, ["x"] * 5)
    log_odds, level = screens.hurdle_shifts(screen)["A", "x"]
    before = np.log([1.5 / 2.5, 0.5 / 3.5, 3.5 / 0.5])
    after = np.log([2.5 / 0.5, 1.5 / 1.5, 0.5 / 2.5])
    assert np.allclose(log_odds, after - before)
    assert np.allclose(level, [3 - 1, 0, 0])


def test_hurdle_shifts_are_of_training_conditions_only():
    """Held-out ones are not looked at."""
    screen = screen_with(np.ones((4, 2)), ["control", "A", "B", "B"], ["x"] * 4)
    screen.held_out = {("B", "x")}
    assert set(screens.hurdle_shifts(screen)) == {("A", "x")}


def test_the_covariance_within_groups_is_around_each_groups_own_mean():
    screen, centred = two_groups()
    S, cells = screens.within_covariance(screen, [screen.controls("t"), screen.controls("u")])
    assert cells == 5010
    assert np.allclose(S, np.cov(centred.T, bias=True), atol=1e-4)


def test_some_columns_of_the_covariance_are_those_of_the_whole():
    screen, _ = two_groups()
    groups = list(screen.groups.values())
    S, _ = screens.within_covariance(screen, groups)
    part, _ = screens.within_covariance(screen, groups, [2, 0])
    assert np.allclose(part, S[:, [2, 0]])


@pytest.mark.parametrize("sign", [1, -1])
def test_the_direction_is_that_of_the_perturbed_genes_own_transcripts(sign):
    """What other genes and held-out conditions do does not count."""
    base = np.array([3.0, 3, 9])
    means = {
        ("control", "t"): base,
        ("A", "t"): base + np.array([2 * sign, -3 * sign, -5 * sign]),
        ("B", "t"): base + np.array([-2 * sign, -sign, -5 * sign]),
        ("C", "t"): base - np.array([0, 0, 8 * sign]),
        ("X", "t"): base - 2 * sign,
    }
    screen = screen_of(means, genes=["A", "B", "C"])
    screen.held_out = {("C", "t")}
    assert screens.directions(screen).tolist() == [sign]


def test_the_direction_counts_both_genes_of_a_pair():
    """Together they fall, though the first rises; where nothing moved it is down too."""
    base = np.array([4.0, 4])
    means = {("control", "t"): base, ("A+B", "t"): base + [1, -2]}
    assert screens.directions(screen_of(means, genes=["A", "B"])) == [-1]
    means["A+B", "t"] = base + [2, -1]
    assert screens.directions(screen_of(means, genes=["A", "B"])) == [1]
    del means["A+B", "t"]
    assert screens.directions(screen_of(means, genes=["A", "B"])) == [-1]


def stating(**kinds):
    """A screen of the types t, u and v, in all of which A rises, with `kinds` of perturbation."""
    means = {}
    for cell_type in "tuv":
        means["control", cell_type] = np.array([1.0, 1])
        means["A", cell_type] = np.array([2.0, 1])
    screen = screen_of(means, genes=["A", "B"])
    said = [kinds.get(t, "") for t in screen.cell_type]
    said = np.where(screen.perturbation == "control", "CRISPRi", said)
    screen.obs = pd.DataFrame({"perturbation_type": said})
    return screen


@pytest.mark.parametrize("fall", ["CRISPRi", "knock-out", "CRISPR-KO", "shRNA", "repression"])
@pytest.mark.parametrize("rise", ["CRISPRa", "activation", "ORF overexpression"])
def test_the_direction_is_what_the_file_states_of_a_types_perturbed_cells(rise, fall):
    """Where it states nothing, or a word for neither, own transcripts tell: here they rise."""
    screen = stating(t=rise, u=fall, v="CRISPR")
    assert screens.stated_directions(screen) == {"t": 1, "u": -1}
    assert screens.directions(screen).tolist() == [1, -1, 1]


@pytest.mark.parametrize("column", ["guide_id", "sgRNA", "Guide identity"])
def test_names_of_guides_state_the_direction(column):
    """Genes that are called like a word of it do not, nor does another column."""
    screen = stating()
    names = {"t": "A_CRISPRa_2", "u": "INHBA_CRISPRko", "v": "GAIN_KNOCK_CRISPRab"}
    guides = np.array([names[t] for t in screen.cell_type])
    guides = np.where(screen.perturbation == "control", "nt_CRISPRi", guides)
    screen.obs = pd.DataFrame({column: guides, "guide_umis": 3})
    assert screens.stated_directions(screen) == {"t": 1, "u": -1}
    screen.obs = screen.obs.rename(columns={column: "library"})
    assert screens.stated_directions(screen) == {}


def test_types_whose_direction_is_stated_do_not_tell_that_of_the_others():
    """A falls in v, of which nothing is stated, and rises in the others."""
    screen = stating(t="CRISPRa", u="CRISPRa")
    screen.X = screen.X.tolil()
    screen.X[screen.groups["A", "v"], 0] = 0
    screen.X = screen.X.tocsr()
    assert screens.directions(screen).tolist() == [1, 1, -1]


def test_a_type_of_both_kinds_is_as_one_of_which_nothing_is_stated():
    """Its own transcripts tell."""
    screen = stating(t="CRISPRi")
    rows = screen.groups["A", "t"]
    screen.obs.loc[rows[: len(rows) // 2], "perturbation_type"] = "CRISPRa"
    assert screens.stated_directions(screen) == {}
    assert screens.directions(screen).tolist() == [1, 1, 1]


KNOCKED = {
    "A": np.array([-2.0, 0, 1, 0]),
    "A+B": np.array([-2.0, -4, 0, 3]),
    "D": np.array([0.0, 0, 1, -6]),
}
SD = np.array([1.0, 2, 1, 3])


def knock_downs(signs=(-1.0, -1.0)):
    """Of names A, B and D: C is no name, B@t is held out, D@u is a type with other means."""
    t = np.array([2.0, 4, 1, 3])
    u = np.array([1.0, 4, 1, 6])
    means = {
        ("control", "t"): t,
        ("control", "u"): u,
        ("A", "t"): t + KNOCKED["A"],
        ("A+B", "t"): t + KNOCKED["A+B"],
        ("B", "t"): t,
        ("C", "t"): t,
        ("D", "u"): u + KNOCKED["D"],
    }
    screen = screen_of(means, genes=["A", "B", "C", "D"])
    screen.held_out = {("B", "t")}
    return screens.knock_downs(screen, ["A", "B", "D"], SD, signs)


def test_a_target_that_is_knocked_down_falls_by_its_own_mean_in_units_of_sd():
    """A+B counts for both of its targets."""
    fall, _, _ = knock_downs()
    assert np.allclose(fall, [[-2, 0, 0], [-2, -2, 0], [0, 0, -2]])


def test_a_target_that_is_activated_rises_by_as_much():
    """In its own cell type. The means that were measured stay what they are."""
    rise, moved, _ = knock_downs([1.0, -1.0])
    assert np.allclose(rise, [[2, 0, 0], [2, 2, 0], [0, 0, -2]])
    assert np.array_equal(moved, knock_downs()[1])


def test_what_a_knock_down_moved_is_in_units_of_sd():
    _, moved, _ = knock_downs()
    assert np.allclose(moved, np.stack(list(KNOCKED.values())) / SD, atol=1e-6)


def test_the_error_variance_counts_the_cells_of_both_groups():
    _, _, variance = knock_downs()
    assert np.allclose(variance, 1 / 40 + 1 / 40 + 0.003)
    assert variance.shape == (3, 1)


def test_without_training_conditions_there_are_no_knock_downs():
    screen = screen_of({("control", "t"): np.ones(2), ("g0", "t"): np.ones(2)})
    screen.held_out = {("g0", "t")}
    fall, moved, variance = screens.knock_downs(screen, ["g0"], np.ones(2), [-1.0])
    assert (fall.shape, moved.shape, variance.shape) == ((0, 1), (0, 2), (0, 1))


# ---- If-expressed values -------------------------------------------------------------------------


def test_active_values_are_each_groups_own():
    groups = [np.array([0]), np.array([1, 2])]
    start, count, values = screens.active_values(THREE_CELLS, groups)
    first = slice(start[1, 0], start[1, 0] + count[1, 0])
    assert values[first].tolist() == [4, 6]
    assert (start.shape, count.shape) == ((2, 2), (2, 2))


def test_a_gene_that_is_silent_in_a_group_borrows_the_values_of_all():
    groups = [np.array([0]), np.array([1, 2])]
    start, count, values = screens.active_values(THREE_CELLS, groups)
    borrowed = slice(start[1, 1], start[1, 1] + count[1, 1])
    assert values[borrowed].tolist() == [2]


def test_a_gene_that_is_silent_everywhere_has_no_values():
    X = sparse.csr_matrix(np.array([[1.0, 0], [2, 0]]))
    _, count, _ = screens.active_values(X, [np.array([0]), np.array([1])])
    assert count.tolist() == [[1, 0], [1, 0]]


def test_tables_of_values_that_would_not_fit_are_thinned_evenly(monkeypatch):
    X = sparse.csr_matrix(np.arange(1, 1001, dtype=np.float32)[:, None])
    groups = [np.arange(0, 1000, 2), np.arange(1, 1000, 2)]
    monkeypatch.setenv("DEPARTURES_MEMORY", str(24 * X.nnz / 4 / 2**30))
    start, count, values = screens.active_values(X, groups)
    assert count.ravel().tolist() == [125, 125]
    assert values[start[0, 0] : start[0, 0] + 125].tolist() == list(range(1, 1001, 8))


# ---- Tensors -------------------------------------------------------------------------------------


@given(
    cells=st.integers(1, 30),
    genes=st.integers(1, 9),
    taken=st.integers(0, 40),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_batches_made_where_the_matrix_resides_are_its_rows(cells, genes, taken, seed):
    """What a GPU does, here on the CPU; rows may be empty, and come more than once."""
    rng = np.random.default_rng(seed)
    X = sparse.random(cells, genes, 0.3, "csr", dtype=np.float32, rng=rng)
    rows = rng.integers(0, cells, taken)
    batches = screens.Cells(X, "cpu")
    expected = batches(rows).numpy()
    batches.settle()
    assert np.array_equal(expected, X[rows].toarray())
    assert np.array_equal(batches(rows).numpy(), expected)


def test_what_the_host_sends_to_a_gpu_is_not_waited_for(monkeypatch):
    """From page-locked memory and without blocking; to a CPU neither is needed."""
    sent = []

    def pin_memory(tensor):
        sent.append("locked")
        return tensor

    def to(tensor, device, non_blocking=False):
        sent.append((device.type, non_blocking))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(torch.Tensor, "to", to)
    assert screens.to_device(torch.device("cuda"), [1, 2]).tolist() == [1, 2]
    assert screens.to_device(torch.device("cpu"), [1.0]).tolist() == [1.0]
    assert sent == ["locked", ("cuda", True), ("cpu", False)]


def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(screens.InputError, match="--device toaster: .*use --device cpu"):
        screens.check_device("toaster")


def test_conditions_become_the_numbers_of_their_targets():
    conditions = [("A+C", "u"), ("control", "t"), ("B", "t")]
    arrays = screens.condition_arrays(conditions, ["A", "B", "C"], ["t", "u"], "gene")
    target, dose, cell_type = arrays
    assert target.tolist() == [[0, 2], [-1, -1], [1, -1]]
    assert dose.tolist() == [[1, 1], [1, 1], [1, 1]]
    assert cell_type.tolist() == [1, 0, 0]


def test_conditions_of_drugs_keep_their_doses():
    conditions = [("B:0.5", "t"), ("control", "t")]
    target, dose, _ = screens.condition_arrays(conditions, ["A", "B"], ["t"], "drug")
    assert target.tolist() == [[1], [-1]]
    assert dose.tolist() == [[0.5], [1]]
