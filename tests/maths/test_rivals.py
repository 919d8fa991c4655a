"""Each rival against an independent computation of what it says it is, and what it looks at."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from examples import screen_of, screen_with
from rivals import (
    RIVALS,
    additive,
    control,
    laot_map,
    linear,
    linear_knockout,
    matching_mean,
    perturbed_mean,
)
from rivals.shifts import FORMS, shifted, shifts_and_mover, switched
from screens import CONTROL


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def least_squares(design, outcome, penalty=0.0):
    """The minimiser of |design B - outcome|^2 + penalty |B|^2: a penalty is more rows of data."""
    k = design.shape[1]
    rows = np.concatenate([design, np.sqrt(penalty) * np.eye(k)])
    return np.linalg.lstsq(rows, np.concatenate([outcome, np.zeros((k, outcome.shape[1]))]))[0]


# ---- Cells from a shift --------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 20), st.integers(1, 6), st.booleans(), st.integers(0, 999))
def test_controls_are_shifted_where_they_express_a_gene(n, n_genes, own, seed):
    """All cells alike, or each by its own shift; zeros stay, and nothing falls below 0."""
    rng = np.random.default_rng(seed)
    x0 = rng.uniform(0, 3, (n, n_genes)) * (rng.random((n, n_genes)) < 0.7)
    shift = rng.normal(0, 2, (n, n_genes) if own else n_genes)
    found = shifted(x0, shift)
    for i in range(n):
        for j in range(n_genes):
            by = shift[i, j] if own else shift[j]
            expected = max(x0[i, j] + by, 0) if x0[i, j] > 0 else 0
            assert found[i, j] == pytest.approx(expected, abs=1e-6)


def test_a_genes_mean_moves_by_the_shift_times_the_fraction_that_expresses_it():
    """As long as no cell is stopped at 0."""
    x0 = np.array([[2.0], [2.0], [2.0], [0.0]])
    assert shifted(x0, np.array([0.4])).mean() - x0.mean() == pytest.approx(0.75 * 0.4)


def hurdle_cells(rng, n, fraction, level):
    """Cells (n, N) that express each gene with a probability (N,), at about a level (N,)."""
    on = rng.random((n, len(fraction))) < fraction
    return np.where(on, level + rng.uniform(0, 1, on.shape), 0).astype(np.float32)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 30), st.integers(0, 999))
def test_no_hurdle_shift_changes_no_cell(n, seed):
    """Whether all, some or none of the cells express a gene."""
    rng = np.random.default_rng(seed)
    x0 = hurdle_cells(rng, n, np.array([0, 0.3, 0.9, 1]), np.full(4, 2.0))
    assert np.array_equal(switched(x0, np.zeros((2, 4)), rng), x0)


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 40), st.floats(-4, 4), st.integers(0, 999))
def test_a_hurdle_shift_switches_as_few_cells_as_the_log_odds_ask_for(n, log_odds, seed):
    """All of them on, or all of them off; their number is right to one cell."""
    rng = np.random.default_rng(seed)
    x0 = hurdle_cells(rng, n, np.full(1, 0.5), np.full(1, 2.0))
    x0[0] = 2  # someone expresses it, so that there is a level to draw
    before = (x0 > 0).sum()
    odds = (before + 0.5) / (n - before + 0.5) * np.exp(log_odds)
    expected = np.clip((n + 1) * odds / (1 + odds) - 0.5, 0, n)
    after = switched(x0, np.array([[log_odds], [0.0]]), rng) > 0
    assert abs(after.sum() - expected) < 1
    assert np.abs(after.astype(int) - (x0 > 0)).sum() == abs(after.sum() - before)


def test_a_hurdle_shift_moves_the_levels_of_cells_that_stay_on_and_draws_those_of_others(rng):
    """From the controls that express the gene; nothing goes below 0."""
    x0 = np.array([[1.0], [2.0], [4.0], [0.0], [0.0], [0.0]])
    moved = switched(x0, np.array([[30.0], [-1.5]]), rng)[:, 0]
    assert np.allclose(moved[:3], [0, 0.5, 2.5])
    assert set(moved[3:]) <= {0, 0.5, 2.5}


def test_the_hurdle_mean_repeats_the_fractions_and_levels_of_the_only_perturbation(rng):
    """Those of the cells that it learnt from, whoever is asked for."""
    control_on, treated_on = np.array([[0.1, 0.5, 0.9], [0.6, 0.5, 0.4]])
    controls = hurdle_cells(rng, 400, control_on, np.array([1, 2, 3]))
    treated = hurdle_cells(rng, 300, treated_on, np.array([2, 2, 2]))
    labels = [CONTROL] * 400 + ["A"] * 300
    screen = screen_with(np.concatenate([controls, treated]), labels, ["x"] * 700)
    predicted = RIVALS["hurdle mean"](screen)("Z", "x", controls)
    assert np.allclose((predicted > 0).mean(0), (treated > 0).mean(0), atol=0.005)
    levels = [cells.sum(0) / (cells > 0).sum(0) for cells in (predicted, treated)]
    assert np.allclose(*levels, atol=0.1)


def test_hurdle_cells_are_the_same_whenever_they_are_asked_for(singles):
    """A condition's random numbers are its own."""
    x0 = hurdle_cells(np.random.default_rng(0), 20, np.full(5, 0.5), np.full(5, 2.0))
    predict = RIVALS["hurdle additive"](singles.screen)
    first = predict("A+B", "x", x0)
    predict("A+C", "x", x0)
    assert np.array_equal(first, predict("A+B", "x", x0))


def test_an_unknown_form_is_refused(singles):
    """Not taken for another one."""
    with pytest.raises(ValueError, match="hurdles"):
        shifts_and_mover(singles.screen, "hurdles")
    assert FORMS == ("plain", "hurdle")


# ---- Control, perturbed mean, additive -----------------------------------------------------------
#
# Controls at level 10, where no shift below stops at 0. Groups have different sizes: every
# condition counts once, however many cells it has.


def screen_of_sizes(means, kind="gene"):
    """A screen of groups {(perturbation, cell type): (mean (N,), number of cells)}."""
    rng = np.random.default_rng(0)
    blocks = []
    perturbation = []
    cell_type = []
    for key, (mean, cells) in means.items():
        noise = rng.normal(0, 0.3, (cells, len(mean)))
        blocks.append(10 + mean + noise - noise.mean(0))
        perturbation += [key[0]] * cells
        cell_type += [key[1]] * cells
    return screen_with(np.concatenate(blocks), perturbation, cell_type, kind=kind)


def moved_by(predict, perturbation, cell_type, n_genes=5):
    """How far a rival moves the mean of control cells at level 20: (N,), or None."""
    moved = predict(perturbation, cell_type, np.full((3, n_genes), 20.0))
    return None if moved is None else moved.mean(0) - 20


def test_control_predicts_the_controls_themselves(rng):
    """Every cell of them."""
    x0 = rng.random((4, 5))
    screen = screen_of({(CONTROL, "x"): np.ones(5), ("A", "x"): np.ones(5)})
    assert np.array_equal(control(screen)("A", "x", x0), x0)


class Singles:
    """Three perturbations alone in two cell types; two pairs, of wild cells, are held out."""

    def __init__(self):
        rng = np.random.default_rng(1)
        self.own = {"x": rng.uniform(0, 1, 5), "y": rng.uniform(2, 3, 5)}  # means of the controls
        sizes = {"A": 40, "B": 10, "C": 20}
        shifts = {}
        for cell_type in "xy":
            for name in "ABC":
                shifts[name, cell_type] = rng.normal(0, 1, 5)
        del shifts["C", "y"]
        self.shifts = shifts
        means = {}
        for cell_type, mean in self.own.items():
            means[CONTROL, cell_type] = (mean, 30)
        for (name, cell_type), shift in shifts.items():
            means[name, cell_type] = (self.own[cell_type] + shift, sizes[name])
        means["A+B", "x"] = (self.own["x"] + 9, 15)
        means["C+D", "x"] = (self.own["x"] + 9, 15)
        self.screen = screen_of_sizes(means)
        self.screen.held_out = {("A+B", "x"), ("C+D", "x")}


@pytest.fixture(scope="module")
def singles():
    return Singles()


@pytest.mark.parametrize("cell_type, names", [("x", "ABC"), ("y", "AB")])
def test_the_perturbed_mean_is_the_constant_nearest_to_the_shifts_of_a_type(
    singles, cell_type, names
):
    """By least squares over its training perturbations, each of which counts once."""
    outcome = np.stack([singles.shifts[name, cell_type] for name in names])
    expected = least_squares(np.ones((len(names), 1)), outcome)[0]
    found = moved_by(perturbed_mean(singles.screen), "Z", cell_type)
    assert np.allclose(found, expected, atol=1e-4)


def test_the_perturbed_mean_of_a_type_without_perturbations_is_that_of_all_types(rng):
    """Over all conditions."""
    A, B = rng.normal(size=(2, 5))
    zero = np.zeros(5)
    means = {(CONTROL, "x"): zero, (CONTROL, "y"): zero, ("A", "x"): A, ("B", "x"): B}
    screen = screen_of_sizes({key: (mean, 8) for key, mean in means.items()})
    assert np.allclose(moved_by(perturbed_mean(screen), "A", "y"), (A + B) / 2, atol=1e-4)


@pytest.mark.parametrize("pair", ["A+B", "A+C", "A+B+C"])
def test_additive_is_the_sum_of_the_coefficients_of_a_linear_model(singles, pair):
    """One coefficient for the controls and one for each target, by least squares on the means."""
    rows = [(CONTROL, singles.own["x"])]
    rows += [(name, singles.own["x"] + singles.shifts[name, "x"]) for name in "ABC"]
    design = np.array([[1, *[float(name == target) for target in "ABC"]] for name, _ in rows])
    coefficients = least_squares(design, np.stack([mean for _, mean in rows]))
    expected = sum(coefficients[1 + "ABC".index(target)] for target in pair.split("+"))
    assert np.allclose(moved_by(additive(singles.screen), pair, "x"), expected, atol=1e-4)


def test_additive_takes_what_a_target_does_in_other_types_where_it_was_not_seen(singles):
    """C was seen in x alone, A in both."""
    expected = singles.shifts["A", "y"] + singles.shifts["C", "x"]
    assert np.allclose(moved_by(additive(singles.screen), "A+C", "y"), expected, atol=1e-4)


@pytest.mark.parametrize("perturbation", ["A", "C+D", "E+F", CONTROL])
def test_additive_says_nothing_of_one_target_or_of_one_that_was_not_seen_alone(
    singles, perturbation
):
    """D was seen with C only, E and F never."""
    assert moved_by(additive(singles.screen), perturbation, "x") is None


def test_a_pair_tells_additive_nothing_of_its_targets():
    """Neither of one that was also seen alone, nor of one that was not."""
    predict = additive(numbered({("A", "x"): 1, ("B", "x"): 2, ("A+C", "x"): 9}))
    assert np.allclose(moved_by(predict, "A+B", "x"), 3, atol=1e-4)
    assert moved_by(predict, "A+C", "x") is None


# ---- Matching mean -------------------------------------------------------------------------------


def matching(screen, perturbation, cell_type):
    """How far the matching mean moves every gene, or None."""
    moved = moved_by(matching_mean(screen), perturbation, cell_type)
    return None if moved is None else moved.mean().round(3)


def numbered(conditions, kind="gene"):
    """A screen in which conditions {(perturbation, type): shift} move all genes by one number."""
    means = {key: (np.full(5, float(shift)), 6) for key, shift in conditions.items()}
    for cell_type in {cell_type for _, cell_type in conditions}:
        means[CONTROL, cell_type] = (np.zeros(5), 6)
    return screen_of_sizes(means, kind)


def test_the_same_targets_are_nearer_than_a_part_of_them():
    """The condition with the most targets in common is the nearest, in whatever type."""
    screen = numbered({("A", "x"): 1, ("A+B", "y"): 2, ("B", "x"): 5})
    assert matching(screen, "A+B", "x") == 2
    assert matching(screen, "A+B+C", "x") == 2


def test_a_target_alone_is_nearer_than_with_others():
    """In whatever type."""
    screen = numbered({("A", "y"): 1, ("A+B", "x"): 2, ("C", "x"): 3})
    assert matching(screen, "A", "x") == 1
    assert matching(screen, "A+C", "y") == 1


def test_of_what_is_equally_near_the_same_cell_type_counts():
    """And if there is none, all of it."""
    screen = numbered({("A", "x"): 1, ("A", "y"): 3, ("C", "z"): 9})
    assert matching(screen, "A", "y") == 3
    assert matching(screen, "A", "z") == 2


def test_the_matching_mean_is_the_constant_nearest_to_the_shifts_of_the_nearest():
    """By least squares, where several conditions are equally near."""
    screen = numbered({("A", "x"): 1, ("B", "x"): 5, ("C", "x"): 9})
    expected = least_squares(np.ones((2, 1)), np.array([[1.0], [5.0]])).item()
    assert matching(screen, "A+B", "x") == pytest.approx(expected)


def test_the_nearest_dose_comes_before_the_cell_type():
    """By its logarithm: 3 is nearer to 10 than to 0.5."""
    screen = numbered({("D:0.5", "x"): 1, ("D:10", "y"): 2, ("E:3", "x"): 5}, kind="drug")
    assert matching(screen, "D:3", "x") == 2
    assert matching(screen, "D:1", "y") == 1
    assert matching(screen, "D:0", "y") == 1


def test_the_matching_mean_says_nothing_where_no_target_was_seen():
    """Of another gene, or another drug."""
    assert matching(numbered({("A", "x"): 1}), "B", "x") is None
    assert matching(numbered({("D:1", "x"): 1}, kind="drug"), "E:1", "x") is None


# ---- Linear --------------------------------------------------------------------------------------


class TwelveKnockDowns:
    """30 genes, of which 12 were knocked down, the last of them and a pair held out."""

    def __init__(self):
        rng = np.random.default_rng(0)
        names = [CONTROL, *[f"g{i}" for i in range(12)], "g2+g11"]
        self.means = {(name, "x"): rng.uniform(1, 3, 30) for name in names}
        self.screen = screen_of(self.means, cells=5)
        self.screen.held_out = {("g11", "x"), ("g2+g11", "x")}

    def expected(self, components=10, penalty=0.1):
        """G K and the constant b of the model, by two ridge regressions, one on each side.

        First the shifts on the genes' embedding, then its coefficients on the perturbations' own.
        """
        M = np.stack([self.means[f"g{i}", "x"] for i in range(11)], 1)
        Y = M - self.means[CONTROL, "x"][:, None]
        M = M - M.mean(0)
        _, vectors = np.linalg.eigh(M.T @ M)
        G = M @ vectors[:, ::-1][:, :components]  # principal scores of the genes
        b = Y.mean(1)
        K = least_squares(G[:11], least_squares(G, Y - b[:, None], penalty).T, penalty).T
        return G, K, b


@pytest.fixture(scope="module")
def knock_downs():
    return TwelveKnockDowns()


@pytest.mark.parametrize("perturbation, numbers", [("g11", [11]), ("g0", [0]), ("g2+g11", [2, 11])])
def test_linear_is_two_ridge_regressions_one_on_each_side(knock_downs, perturbation, numbers):
    """Of several targets the embeddings are added."""
    G, K, b = knock_downs.expected()
    expected = G @ K @ G[numbers].sum(0) + b
    found = moved_by(linear(knock_downs.screen), perturbation, "x", 30)
    assert np.allclose(found, expected, atol=1e-4)


def test_linear_says_nothing_of_a_target_that_is_not_measured(knock_downs):
    """Nor of a pair with such a one."""
    predict = linear(knock_downs.screen)
    assert moved_by(predict, "elsewhere", "x", 30) is None
    assert moved_by(predict, "g0+elsewhere", "x", 30) is None


# ---- Linear knock-out ----------------------------------------------------------------------------


class Regulators:
    """8 genes in two cell types of different means, three of them perturbed, one held out.

    Gene 5 varies with gene 0.
    """

    def __init__(self):
        rng = np.random.default_rng(0)
        X = rng.gamma(8.0, 0.25, (400, 8))
        X[:, 5] += 0.8 * X[:, 0]
        X[200:] += rng.uniform(0, 2, 8)
        perturbation = np.tile([CONTROL, CONTROL, CONTROL, "g0", "g4", "g6", "g0+g4", "other"], 50)
        cell_type = np.repeat(["x", "y"], 200)
        self.screen = screen_with(X, perturbation, cell_type)
        self.screen.held_out = {("g6", "x")}
        self.controls = {t: X[(perturbation == CONTROL) & (cell_type == t)] for t in "xy"}


@pytest.fixture(scope="module")
def regulators():
    return Regulators()


@pytest.mark.parametrize("cell_type", ["x", "y"])
@pytest.mark.parametrize("perturbation", ["g0", "g6", "g0+g4"])
def test_linear_knockout_is_ridge_regression_on_the_cells(regulators, cell_type, perturbation):
    """Of all genes on those that can be perturbed; then each target falls from its mean to 0.

    Around each cell type's mean, with a penalty of 0.1 a cell.
    """
    x = regulators.controls
    centred = np.concatenate([cells - cells.mean(0) for cells in x.values()])
    P = [0, 4, 6]
    fitted = least_squares(centred[:, P], centred, 0.1 * len(centred)).T
    falls = [-x[cell_type][:, g].mean() * float(f"g{g}" in perturbation.split("+")) for g in P]
    found = moved_by(linear_knockout(regulators.screen), perturbation, cell_type, 8)
    assert np.allclose(found, fitted @ falls, atol=1e-3)
    assert np.abs(found).max() > 0.5


def test_linear_knockout_says_nothing_of_what_is_not_a_perturbable_gene(regulators):
    """Of one that nobody perturbed, or that is not measured, nor of a pair with such a one."""
    predict = linear_knockout(regulators.screen)
    assert moved_by(predict, "g3", "x", 8) is None
    assert moved_by(predict, "other", "x", 8) is None
    assert moved_by(predict, "g0+other", "x", 8) is None


# ---- LAOT ----------------------------------------------------------------------------------------


class Moved:
    """60 cells of 12 genes, and the same cells moved by a linear map and shuffled."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        scale = np.linspace(1, 0.1, 12)
        self.x0 = 5 + scale * rng.normal(size=(60, 12))
        map_ = np.eye(12) + 0.25 * rng.normal(size=(12, 12))
        self.xT = rng.permutation((self.x0 - 5) @ map_.T + 5.3)
        self.new = 5 + scale * rng.normal(size=(20, 12))
        X = np.concatenate([self.x0, self.xT])
        self.screen = screen_with(X, np.repeat([CONTROL, "A"], 60), ["x"] * 120)


@pytest.fixture(scope="module")
def moved():
    return Moved()


def test_laot_alternates_assignments_and_least_squares(moved):
    """By SciPy's distances and NumPy's least squares, in the controls' principal components.

    Beside these components all cells move as their mean does.
    """
    centre = moved.x0.mean(0)
    axes = np.linalg.eigh(np.cov(moved.x0.T))[1][:, ::-1][:, :4]

    def scores(X):
        return np.column_stack([(X - centre) @ axes, np.ones(len(X))])

    W = np.eye(5)
    orders = []
    for _ in range(10):
        distances = cdist(scores(moved.xT), scores(moved.x0) @ W.T)
        orders.append(linear_sum_assignment(distances**2)[1])
        W = least_squares(scores(moved.x0)[orders[-1]], scores(moved.xT)).T
    assert (orders[0] != orders[-1]).any()
    within = (scores(moved.new) @ (W - np.eye(5)).T)[:, :4] @ axes.T
    shift = moved.xT.mean(0) - centre
    beside = shift - axes @ (axes.T @ shift)
    found = laot_map(moved.screen, components=4)("A", "x", moved.new) - moved.new
    assert np.allclose(found, within + beside, atol=1e-3)


def test_laot_finds_a_planted_linear_map_without_the_pairs(rng):
    """Cells move by a small linear map and are shuffled: new controls move by the same map."""
    axes = np.linalg.qr(rng.normal(size=(20, 3)))[0].T
    map_ = np.eye(20) + 0.04 * rng.normal(size=(20, 20))
    controls = rng.normal(size=(300, 3)) @ axes
    new = rng.normal(size=(50, 3)) @ axes
    X = np.concatenate([controls, rng.permutation(controls @ map_.T)]) + 20
    screen = screen_with(X, np.repeat([CONTROL, "A"], 300), ["x"] * 600)
    found = (laot_map(screen, components=3)("A", "x", new + 20) - (new + 20)) @ axes.T
    true = new @ (map_ - np.eye(20)).T @ axes.T
    assert np.corrcoef(found.ravel(), true.ravel())[0, 1] > 0.95
    assert np.abs(found).max() > 0.05


def test_where_all_cells_move_alike_laot_moves_new_cells_alike(rng):
    """Here with half as many controls as perturbed cells, each of which is used twice."""
    controls = 5 + rng.normal(size=(30, 4))
    shift = np.array([0.1, -0.1, 0, 0.2])
    X = np.concatenate([controls, controls + shift, controls + shift])
    screen = screen_with(X, [CONTROL] * 30 + ["A"] * 60, ["x"] * 90)
    new = 5 + rng.normal(size=(4, 4))
    assert np.allclose(laot_map(screen)("A", "x", new) - new, shift, atol=1e-4)


def test_laot_fits_no_more_cells_than_it_is_told(rng):
    """All 200 have an exact map; 20 a side, drawn at random, are not the same cells."""
    controls = 5 + rng.normal(size=(200, 4))
    screen = screen_with(
        np.concatenate([controls, controls + 1]), np.repeat([CONTROL, "A"], 200), ["x"] * 400
    )
    found = [laot_map(screen, cells=cells)("A", "x", controls) for cells in (20, 1000)]
    assert np.allclose(found[1] - controls, 1, atol=1e-4)
    assert not np.allclose(found[0] - controls, 1, atol=1e-2)


def laots_shift(screen, perturbation, cell_type):
    """How far LAOT moves the mean of the controls of a type."""
    x0 = screen.dense(screen.controls(cell_type)).astype(float)
    return laot_map(screen)(perturbation, cell_type, x0).mean() - x0.mean()


def test_laot_learns_from_the_nearest_conditions():
    """Of an unseen target, from all of that cell type."""
    screen = numbered({("A", "x"): 1, ("B", "x"): -2, ("C", "y"): 3})
    assert laots_shift(screen, "A", "x") == pytest.approx(1, abs=0.1)
    assert laots_shift(screen, "A+B", "x") == pytest.approx(-0.5, abs=0.1)
    assert laots_shift(screen, "Z", "y") == pytest.approx(3, abs=0.1)


def test_laot_starts_from_the_controls_of_the_same_type():
    """Here those of type y are higher by 3, and A raises their genes by 1."""
    means = {(CONTROL, "x"): 0.0, (CONTROL, "y"): 3.0, ("A", "y"): 4.0}
    screen = screen_of_sizes({key: (np.full(5, mean), 6) for key, mean in means.items()})
    assert laots_shift(screen, "A", "y") == pytest.approx(1, abs=0.1)


# ---- What they look at, and when they say nothing ------------------------------------------------


HELD_OUT = {"gene": ["g4", "g0+g4"], "drug": ["D:3", "F:1"]}  # all of them in cell type x
TRAINED = {"gene": ["g0", "g1", "g2", "g0+g2"], "drug": ["D:1", "D:10", "E:1", "E:10"]}  # there too
ELSEWHERE = {"gene": "g4", "drug": "F:1"}  # seen in cell type y


def partly_held_out(change, kind):
    """A screen of which two conditions are held out, whose cells are changed by a function."""
    rng = np.random.default_rng(1)
    keys = [(CONTROL, "x"), (CONTROL, "y"), (ELSEWHERE[kind], "y")]
    keys += [(name, "x") for name in TRAINED[kind]]
    blocks = [rng.gamma(4.0, 0.5, (30, 6)) + rng.uniform(0, 1, 6) for _ in keys]
    for name in HELD_OUT[kind]:
        keys.append((name, "x"))
        blocks.append(change(rng.gamma(4.0, 0.5, (30, 6))))
    labels = [np.repeat(part, 30) for part in zip(*keys, strict=True)]
    screen = screen_with(np.concatenate(blocks), *labels, kind=kind)
    screen.held_out = {(name, "x") for name in HELD_OUT[kind]}
    return screen


def unchanged(cells):
    return cells


def all_higher(cells):
    return cells + 5


def all_silent(cells):
    return 0 * cells


def predictions(name, screen):
    """The cells that a rival predicts for those of HELD_OUT of which it says something."""
    x0 = screen.dense(screen.controls("x")).astype(float)
    said = [RIVALS[name](screen)(held_out, "x", x0) for held_out in HELD_OUT[screen.kind]]
    return [cells for cells in said if cells is not None]


OF_DRUGS = ["control", "perturbed mean", "matching mean", "LAOT"]
APPLIES = [(name, "gene") for name in RIVALS] + [(name, "drug") for name in OF_DRUGS]
FROM_CONTROLS = ["control", "linear knock-out"]  # these look at no perturbed cell at all


@pytest.mark.parametrize("change", [all_higher, all_silent])
@pytest.mark.parametrize("name, kind", APPLIES)
def test_no_rival_looks_at_held_out_cells(name, kind, change):
    """Whatever these are, its predictions are the same to the bit."""
    before = predictions(name, partly_held_out(unchanged, kind))
    after = predictions(name, partly_held_out(change, kind))
    assert len(before) >= 1
    assert np.array_equal(before, after)


@pytest.mark.parametrize("name, kind", [pair for pair in APPLIES if pair[0] not in FROM_CONTROLS])
def test_rivals_look_at_the_same_cells_where_they_are_not_held_out(name, kind):
    """Else the test above could not fail."""
    said = []
    for change in (unchanged, all_higher):
        screen = partly_held_out(change, kind)
        screen.held_out = set()
        said.append(predictions(name, screen))
    assert not np.allclose(*said, atol=0.01)


def applying(screen, perturbation):
    """The names of the rivals that say something."""
    x0 = np.full((4, 5), 2.0)
    return {
        name for name, rival in RIVALS.items() if rival(screen)(perturbation, "x", x0) is not None
    }


def test_of_a_target_that_was_never_seen_only_means_and_laot_say_something():
    """What holds for any perturbation; the others leave it blank."""
    screen = screen_of({(CONTROL, "x"): np.full(5, 2.0), ("A", "x"): np.full(5, 2.3)})
    assert applying(screen, "Z") == {"control", "perturbed mean", "hurdle mean", "LAOT"}


def test_without_training_conditions_only_those_who_ask_the_controls_say_something():
    """All perturbations are held out, of a gene that is measured."""
    screen = screen_of({(CONTROL, "x"): np.full(5, 2.0), ("g1", "x"): np.full(5, 2.3)})
    screen.held_out = {("g1", "x")}
    assert applying(screen, "g1") == {"control", "linear knock-out"}


def test_drugs_are_no_genes():
    """A drug with a gene's name tells nothing of that gene."""
    shifts = {("g0:1", "x"): 1, ("g1:1", "x"): 2, ("g2:1", "x"): 3}
    blank = {"linear", "linear knock-out", "additive", "hurdle additive"}
    assert applying(numbered(shifts, kind="drug"), "g0:1") == set(RIVALS) - blank
