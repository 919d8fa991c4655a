"""What a condition becomes: the embedding of Part I, and the expected shifts of the additions."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, stats

import departures
import sample
from departures import (
    FLAT,
    ConditionEncoder,
    Conditions,
    ImprovedSettings,
    Populations,
    believed,
    choose_amplitudes,
    fit_gains,
    krige,
    log_evidence,
    mixed_covariance,
    model_class,
    slope_that_held,
    working_response,
)
from screens import InputError

GENES = 6
A, B, C = 0, 1, 2  # cell types


def condition(*targets, cell_type=A, doses=None):
    """One condition: the numbers of its targets, and their doses, 1 if not told."""
    targets = targets or (-1,)
    doses = doses or [1.0] * len(targets)
    return Conditions(torch.tensor([targets]), torch.tensor([doses]), torch.tensor([cell_type]))


# ==== Part I ======================================================================================
#
# Of four targets the gene network knows what 0 and 1 reach; 2 has a structure; of 3 nothing is
# known but its name.


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    encoder = ConditionEncoder(n_genes=GENES, n_targets=4, n_structure=3, length=5)
    encoder.response[:2] = torch.randn(2, GENES)
    encoder.structure[2] = torch.randn(3)
    return encoder.requires_grad_(False)


def at_dose_1(encoder, z):
    """z times the factor of dose 1, whose logarithm is 0."""
    return z * torch.sigmoid(encoder.by_dose.bias)


def test_no_perturbation_is_embedded_as_0(encoder):
    """The factor of the dose has nothing to multiply."""
    assert encoder(condition()).tolist() == [[0.0] * 5]


def test_the_embeddings_of_several_targets_add(encoder):
    """In any order, and whatever else stands in the same batch."""
    both = encoder(condition(0, 3))
    assert torch.allclose(both, encoder(condition(0)) + encoder(condition(3)))
    assert torch.allclose(both, encoder(condition(3, 0)))
    batch = Conditions(torch.tensor([[1, -1], [0, 3]]), torch.ones(2, 2), torch.tensor([A, A]))
    assert torch.allclose(encoder(batch), torch.cat([encoder(condition(1)), both]))


def test_a_target_that_the_network_knows_is_known_by_what_it_reaches(encoder):
    """A learned embedding per reached gene, weighted with the response and summed."""
    embedding = encoder.from_network.weight.T  # one row a gene
    weighted = sum(encoder.response[0, i] * embedding[i] for i in range(GENES))
    assert torch.allclose(encoder(condition(0))[0], at_dose_1(encoder, weighted))


def test_of_such_a_target_the_name_does_not_count(encoder):
    """So an unseen one that reaches the same is no different."""
    encoder.response[1] = encoder.response[0]
    encoder.seen[0] = True
    assert torch.equal(encoder(condition(0)), encoder(condition(1)))


def test_a_drug_has_its_structure_in_place_of_a_response(encoder):
    """And not its name."""
    expected = encoder.from_structure.weight @ encoder.structure[2]
    assert torch.allclose(encoder(condition(2))[0], at_dose_1(encoder, expected))


def test_a_target_of_which_neither_is_known_has_the_embedding_of_its_name(encoder):
    """It is not reachable, and the others are."""
    expected = at_dose_1(encoder, encoder.from_name.weight[3])
    assert torch.allclose(encoder(condition(3))[0], expected)
    assert encoder.reachable().tolist() == [True, True, True, False]


@pytest.mark.parametrize("dose", [0.01, 1.0, 30.0])
def test_the_dose_is_a_factor_between_0_and_1_by_its_logarithm(encoder, dose):
    """A logistic function, one for each number of the embedding."""
    slope = encoder.by_dose.weight[:, 0]
    odds = torch.exp(slope * np.log10(dose) + encoder.by_dose.bias)
    whole = encoder.from_structure.weight @ encoder.structure[2]
    found = encoder(condition(2, doses=[dose]))[0]
    assert torch.allclose(found, whole * odds / (1 + odds))


def test_dose_0_can_be_trained_on(encoder):
    """Though it has no logarithm: the embedding and its gradient are finite."""
    z = encoder.requires_grad_(True)(condition(2, doses=[0.0]))
    z.sum().backward()
    assert torch.isfinite(z).all()
    assert torch.isfinite(encoder.by_dose.weight.grad).all()


# ==== Additions: the mixed model ==================================================================


def covariance_by_hand(same_type, kernels, squared):
    """Covariance of the true shifts of one gene, summed kernel by kernel in NumPy."""
    return FLAT**2 * same_type + sum(a * k for a, k in zip(squared, kernels, strict=True))


def random_problem(seed, n=3, Q=8, new=4):
    """A mixed model of n genes with Q + `new` conditions in two types, and two random kernels."""
    rng = np.random.default_rng(seed)
    kernels = [a @ a.T for a in rng.normal(size=(2, Q + new, 3))]
    cell_type = rng.permutation(np.arange(Q + new) % 2)
    same_type = (cell_type[:, None] == cell_type).astype(float)
    Y, V = rng.normal(size=(n, Q)), rng.uniform(0.1, 2, (n, Q))
    return Y, V, same_type, np.array(kernels), rng.uniform(0, 2, (n, 2))


def tensors(*arrays):
    """Arrays as float64 tensors."""
    return [torch.as_tensor(np.asarray(a, np.float64)) for a in arrays]


# ---- Working response ----------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.02, 0.5, 0.9])
def test_the_working_response_is_unbiased_and_has_the_variance_that_it_claims(p):
    """Near the true log odds: exact moments over all counts of a binomial distribution."""
    cells, truth = 30, np.log(p / (1 - p))
    on = np.arange(cells + 1)
    chance = stats.binom.pmf(on, cells, p)
    found, claimed = (a.numpy() for a in working_response(*tensors(on, cells, truth)))
    assert chance @ found == pytest.approx(truth)
    assert chance @ (found - truth) ** 2 == pytest.approx(float(claimed))


def test_the_working_response_is_linear_in_the_counts():
    """Also from the rarest to the most frequent: no logarithm of a count."""
    on = torch.tensor([0.0, 10.0, 20.0, 40.0]).double()
    found, variance = working_response(on, *tensors(40, -1.0))
    assert torch.allclose(found[1:] - found[0], (found[1] - found[0]) * torch.tensor([1, 2, 4]))
    assert variance.dim() == 0 and torch.isfinite(found).all()


def test_one_working_response_is_one_step_of_iteratively_reweighted_least_squares():
    """Its weighted mean over groups is Newton's step on the binomial log likelihood."""
    on, cells = tensors([3, 9, 1], [10, 12, 20])
    start = torch.tensor(-0.4).double().requires_grad_()

    def log_likelihood(x):
        return (on * F.logsigmoid(x) + (cells - on) * F.logsigmoid(-x)).sum()

    slope = torch.autograd.functional.jacobian(log_likelihood, start)
    newton = start - slope / torch.autograd.functional.hessian(log_likelihood, start)
    found, variance = working_response(on, cells, start.detach())
    assert torch.allclose((found / variance).sum() / (1 / variance).sum(), newton.detach())


# ---- Evidence and kriging ------------------------------------------------------------------------


def test_the_evidence_is_the_density_of_a_multivariate_normal():
    """SciPy's, but for the constant."""
    Y, V, same_type, kernels, squared = random_problem(0, new=0)
    covariance = mixed_covariance(*tensors(V, same_type, kernels, squared))
    for row in range(len(Y)):
        by_hand = covariance_by_hand(same_type, kernels, squared[row]) + np.diag(V[row])
        expected = stats.multivariate_normal(cov=by_hand).logpdf(Y[row])
        found = float(log_evidence(covariance, torch.as_tensor(Y))[row])
        assert found == pytest.approx(expected + 4 * np.log(2 * np.pi))


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000))
def test_kriging_is_the_conditional_mean_of_a_joint_normal(seed):
    """That of new conditions, by the blocks of the joint precision matrix: -P_nn^-1 P_no y."""
    Y, V, same_type, kernels, squared = random_problem(seed)
    Q = Y.shape[1]
    old = np.arange(Q)
    inside = tensors(same_type[:Q, :Q], kernels[:, :Q, :Q])
    weights = krige(*tensors(Y, V), *inside, *tensors(squared)).numpy()
    for row in range(len(Y)):
        truth = covariance_by_hand(same_type, kernels, squared[row])
        noise = np.full(len(truth), 0.3)  # of the new ones, which changes no mean
        noise[old] = V[row]
        P = np.linalg.inv(truth + np.diag(noise))
        expected = -np.linalg.solve(P[Q:, Q:], P[Q:, :Q] @ Y[row])
        assert np.allclose(truth[Q:, :Q] @ weights[row], expected, rtol=1e-4, atol=1e-5)


def test_kriging_gene_by_gene_is_kriging_all_at_once(monkeypatch):
    """However few matrices fit into memory, each gene has its own variances and amplitudes."""
    Y, V, same_type, kernels, squared = tensors(*random_problem(1, n=5, new=0))
    whole = krige(Y, V, same_type, kernels, squared)
    monkeypatch.setattr(departures, "rows_at_once", lambda Q: 2)
    assert torch.allclose(krige(Y, V, same_type, kernels, squared), whole)


def test_with_one_type_kriging_is_the_best_linear_unbiased_prediction():
    """Textbook BLUP of a balanced one-way layout: mean, and shrunken deviations from it."""
    y = np.array([2.0, 1.0, -0.5, 3.0])
    amplitude, error = 0.6, 0.9
    same_type, kernel = np.ones((4, 4)), np.eye(4)
    problem = tensors([y], np.full((1, 4), error), same_type, [kernel], [[amplitude]])
    found = krige(*problem).numpy()[0] @ (FLAT**2 * same_type + amplitude * kernel)
    mean = y.mean() * FLAT**2 / (FLAT**2 + (amplitude + error) / 4)
    expected = mean + amplitude / (amplitude + error) * (y - mean)
    assert np.allclose(found, expected)


# ---- Amplitudes ----------------------------------------------------------------------------------


def genes_that_stand_or_move(n, moving, Q=20, amplitude=1.0, error=0.1, seed=0):
    """Conditions without any resemblance in one type, in which the first genes move."""
    rng = np.random.default_rng(seed)
    Y = error**0.5 * rng.normal(size=(n, Q))
    Y[:moving] += amplitude * rng.normal(size=(moving, Q))
    return tensors(Y, np.full((n, Q), error), np.ones((Q, Q)), [np.eye(Q)])


def test_still_genes_and_moving_genes_are_told_apart():
    """Each gene gets its own amplitude: about 0 or about the true one."""
    problem = genes_that_stand_or_move(200, 40)
    found = choose_amplitudes(*problem, torch.tensor([[0.0], [0.5], [1.0], [2.0]]).double())[:, 0]
    assert found[40:].mean() < 0.01
    assert 0.7 < found[:40].mean() < 1.4


def test_the_same_evidence_counts_less_where_most_genes_stand_still():
    """Empirical Bayes: by Bayes' theorem with the share that maximises the total evidence."""
    Y, V, same_type, kernels = genes_that_stand_or_move(60, 12, Q=3, amplitude=0.7, error=0.2)
    grid = torch.tensor([[0.0], [0.7]]).double()
    found = choose_amplitudes(Y, V, same_type, kernels, grid)[:, 0] / 0.7**2
    still, move = (
        stats.multivariate_normal(cov=FLAT**2 + (0.2 + a) * np.eye(3)).pdf(Y) for a in (0, 0.49)
    )

    def total(share):
        return -np.log(share * move + (1 - share) * still).sum()

    share = optimize.minimize_scalar(total, bounds=(0, 1), method="bounded").x
    assert 0.02 < share < 0.5
    expected = share * move / (share * move + (1 - share) * still)
    assert np.allclose(found, expected, atol=0.02)


def test_where_there_are_many_conditions_evenly_spread_ones_have_to_do():
    """The answer is that of every second one alone."""
    Y, V, same_type, kernels = genes_that_stand_or_move(5, 2, Q=7)
    grid = torch.tensor([[0.0], [1.0]]).double()
    found = choose_amplitudes(Y, V, same_type, kernels, grid, most=4)
    half = Y[:, ::2], V[:, ::2], same_type[::2, ::2], kernels[:, ::2, ::2]
    assert torch.allclose(found, choose_amplitudes(*half, grid))


# ---- How far to believe the networks -------------------------------------------------------------


def test_the_gains_are_the_truth_though_one_target_does_something_else():
    """Least squares, which does not forgive, is far off."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(100, 2))
    y = X @ [2.0, -1.0]
    y[:5] += 50 * X[:5, 0]
    assert np.abs(np.linalg.lstsq(X, y)[0] - [2, -1]).max() > 0.5
    found = fit_gains(*tensors(X, y, np.full(100, 10.0)))
    assert np.allclose(found, [2, -1], atol=0.02)


def test_the_gains_have_the_largest_likelihood_under_cauchy_errors():
    """Of scale weight^-1/2: SciPy finds no better ones."""
    rng = np.random.default_rng(1)
    X, weight = rng.normal(size=(60, 2)), rng.uniform(0.2, 3, 60)
    y = X @ [1.0, 0.5] + rng.standard_cauchy(60) / np.sqrt(weight)

    def minus_log_likelihood(b):
        return -stats.cauchy.logpdf(y, X @ b, weight**-0.5).sum()

    expected = optimize.minimize(minus_log_likelihood, [1.0, 0.5], tol=1e-10).x
    assert np.allclose(fit_gains(*tensors(X, y, weight), rounds=200), expected, atol=1e-4)


def test_gains_of_a_network_that_says_nothing_are_finite():
    """Its column is empty: a ridge, far too small to be seen elsewhere, holds it at 0."""
    X = np.array([[1.0, 0], [2.0, 0], [3.0, 0]])
    found = fit_gains(*tensors(X, 2 * X[:, 0], np.ones(3)))
    assert np.allclose(found, [2, 0], atol=1e-4)


def test_predictions_that_always_hold_are_believed():
    """Wholly, and by half where every target moves half as far; not more than wholly."""
    square = torch.linspace(1, 2, 30).double()
    found = [float(believed(slope * square, square)) for slope in (1.0, 0.5, 3.0)]
    assert found == pytest.approx([1, 0.5, 1])


def test_predictions_that_contradict_the_targets_are_not_believed():
    """Neither those that hold as often as not, nor those that are wrong throughout."""
    square = torch.ones(10).double()
    mixed = torch.tensor([1.0, -1.0] * 5).double()
    assert believed(mixed + 0.01, square) == 0
    assert believed(-square, square) == 0


@pytest.mark.parametrize("targets", [0, 1, 2])
def test_fewer_than_three_targets_prove_nothing(targets):
    """Nor do many of which nothing was predicted."""
    assert believed(torch.ones(targets), torch.ones(targets)) == 0
    assert believed(torch.zeros(9), torch.zeros(9)) == 0
    assert believed(torch.ones(3), torch.ones(3)) == 1


def test_chance_is_measured_by_the_jackknife_and_taken_off_as_james_and_stein_do():
    """SciPy's slopes through the origin with one target left out, one after the other."""
    rng = np.random.default_rng(2)
    r = rng.uniform(1, 2, 8)
    y = 0.7 * r + 1.0 * rng.normal(size=8)
    slope = optimize.curve_fit(lambda r, b: b * r, r, y)[0][0]
    without = [
        optimize.curve_fit(lambda r, b: b * r, np.delete(r, i), np.delete(y, i))[0][0]
        for i in range(8)
    ]
    variance = 7 * np.var(without)
    found = float(believed(*tensors(r * y, r * r)))
    assert 0.02 < variance / slope**2 < 0.9
    assert found == pytest.approx(slope * (1 - variance / slope**2), rel=1e-5)


# ==== Additions: the encoder ======================================================================

MANY = 1e7  # cells: what is counted is as good as exact


def model_of(kind="gene", targets=("g0", "g1", "x"), types=("a", "b"), **sizes):
    """A model with random cell types and genes of their own scales, not fitted yet."""
    torch.manual_seed(0)
    own = ImprovedSettings(width=8, embedding=8)
    genes = [f"g{i}" for i in range(GENES)]
    model = model_class(own)(own, genes, list(targets), list(types), kind, **sizes)
    model.level_scale[:] = torch.linspace(0.5, 2, GENES)
    model.gene_scale[:] = torch.linspace(1, 0.5, GENES)
    for seed, cell_type in enumerate(types):
        describe(model, cell_type, seed)
    return model.eval()


def describe(model, cell_type, seed, cells=MANY):
    """Give a cell type random controls."""
    rng = np.random.default_rng(seed)
    level, fraction = rng.uniform(0.5, 2, GENES), rng.uniform(0.2, 0.8, GENES)
    model.describe_cell_type(cell_type, level * fraction, level, fraction, level, cells)


def conditions_of(rows, at_once=1):
    """Conditions of (targets, cell type) or (targets, cell type, doses) each."""
    target = [[*row[0], *[-1] * at_once][:at_once] for row in rows]
    dose = [[*(row[2] if len(row) > 2 else ()), *[1.0] * at_once][:at_once] for row in rows]
    return Conditions(*map(torch.tensor, (target, dose, [row[1] for row in rows])))


def fitted(rows, shifts, cells=MANY, effects=None, structure=None, **changed):
    """A model that counted `shifts` (Q, 2, N) in the conditions `rows`, in so many cells each."""
    at_once = max(len(row[0]) for row in rows)
    sizes = {"conditions": len(rows), "at_once": at_once}
    if structure is not None:
        sizes["structure"] = structure.shape[1]
    model = model_of(**changed, **sizes)
    if structure is not None:
        model.encoder.structure.copy_(torch.as_tensor(structure))
    if effects is not None:
        model.encoder.effects.copy_(torch.as_tensor(effects))
    model.encoder.fit(counts_of(model, rows, shifts, cells), model)
    return model


def counts_of(model, rows, shifts, cells):
    """What would be counted where the conditions shift their controls exactly so."""
    conditions = conditions_of(rows, max(len(row[0]) for row in rows))
    shifts = torch.as_tensor(np.asarray(shifts), dtype=torch.float64)
    cells = torch.as_tensor(cells).double().expand(len(rows))[:, None]
    start = model.control_log_odds[conditions.cell_type], model.control_level / model.level_scale
    on = cells * torch.sigmoid(start[0] + shifts[:, 0])
    return Populations(conditions, cells, on, start[1][conditions.cell_type] + shifts[:, 1])


def expected(model, *rows):
    """What the encoder expects of conditions, (C, 2, N) in NumPy."""
    at_once = model.encoder.target.shape[1]
    return model.encoder(conditions_of(rows, at_once), model).detach().double().numpy()


def random_shifts(n, seed=0, size=0.5):
    """Shifts of n conditions, (n, 2, N)."""
    return size * np.random.default_rng(seed).normal(size=(n, 2, GENES))


NOBODY = np.zeros((1, 2, GENES))  # what no perturbation shifts

# ---- What is measured ----------------------------------------------------------------------------


def test_what_was_measured_in_many_cells_is_expected():
    """Of a condition of the training set there is nothing to guess."""
    shifts = np.concatenate([NOBODY, random_shifts(2)])
    rows = [((), A), ((0,), A), ((1,), A)]
    assert np.allclose(expected(fitted(rows, shifts), *rows), shifts, atol=0.02)


def test_no_perturbation_shifts_nothing_though_its_controls_were_few():
    """In a type whose controls nobody fitted there is nothing to correct."""
    rows = [((), A), ((0,), A)]
    model = fitted(rows, np.concatenate([NOBODY, random_shifts(1)]), cells=20)
    describe(model, "c", 7)
    assert not expected(model, ((), C)).any()
    assert expected(model, ((), A)).any()  # the treated cells know of its controls' chance


def test_other_controls_than_those_of_the_fit_have_another_chance():
    """The correction of the old controls is left out, and nothing else."""
    rows = [((), A), ((0,), A), ((), B), ((0,), B)]
    model = fitted(rows, random_shifts(4), cells=20)
    before = expected(model, *rows)
    model.encoder.counted[A] = 0
    same = np.array([[q[1] == A for q in rows] for _ in rows]) * FLAT**2
    correction = (same @ model.encoder.weights.numpy()).reshape(4, 2, GENES)
    correction[2:] = 0
    assert np.allclose(before - expected(model, *rows), correction, atol=1e-5)


def test_a_knock_down_undoes_what_activation_does():
    """Of two types, one knocks down and one activates: what is carried over turns its sign."""
    rows = [((), A), ((), B), *[((p,), A) for p in range(6)], *[((p,), B) for p in range(5)]]
    same = random_shifts(6)
    carried = {}
    for sign in (1.0, -1.0):
        shifts = np.concatenate([NOBODY, NOBODY, same, sign * same[:5]])
        model = model_of(conditions=len(rows), targets="uvwxyz")
        model.direction[B] = sign * model.direction[A]
        model.encoder.fit(counts_of(model, rows, shifts, 1000.0), model)
        carried[sign] = expected(model, ((5,), B))[0]
    assert np.corrcoef(carried[1.0].ravel(), same[5].ravel())[0, 1] > 0.9
    assert np.allclose(carried[-1.0], -carried[1.0], atol=0.1)


def test_an_own_transcript_rises_where_it_is_activated():
    """As far as others fell where they were knocked down."""
    rows = [((), A), ((0,), A), ((1,), A), ((), B)]
    shifts = np.zeros((4, 2, GENES))
    shifts[1, :, 0] = shifts[2, :, 1] = -1
    model = model_of(conditions=4)
    model.direction[B] = 1.0
    model.encoder.fit(counts_of(model, rows, shifts, MANY), model)
    model.target_gene[2] = 2
    own = model.encoder.prior_mean(conditions_of([((2,), A), ((2,), B)]), model)[:, :, 2]
    assert np.allclose(own, [[-1, -1], [1, 1]], atol=0.02)


ROWS = {
    "gene": [((), A), ((0,), A), ((1,), A), ((0, 1), A), ((), B), ((2,), B), ((0, 3), B),
             ((3, 4), B), ((5,), A), ((0,), C), ((), C)],
    "drug": [((), A), ((0,), A, (0.1,)), ((1,), A, (1.0,)), ((0,), B, (10.0,)), ((), B),
             ((0, 1), B, (1.0, 0.1)), ((2,), B, (1.0,)), ((3,), A, (5.0,)), ((4, 0), C, (1.0, 3.0)),
             ((), C), ((0,), A, (3.0,))],
}  # fmt: skip


def many_conditions(kind, structure=True):
    """A model of three types fitted to few cells of ROWS, and what it was told."""
    rows = ROWS[kind]
    vectors = np.random.default_rng(5).normal(size=(7, 4)).astype(np.float32)
    model = fitted(
        rows, random_shifts(len(rows)), cells=np.linspace(20, 200, len(rows)), kind=kind,
        types="abc", targets=[f"x{i}" for i in range(7)], structure=vectors if structure else None,
    )  # fmt: skip
    return model, rows


def kernels_by_hand(model, one, other):
    """The six resemblances of two conditions, (targets, type, doses) each, target by target."""
    doses = np.log10(model.encoder.dose[model.encoder.target >= 0].numpy())
    least, largest = float(doses.min()), float(doses.max())
    middle = np.linspace(least - 0.5, largest, 6)

    def curves(dose):
        return 1 / (1 + np.exp(-2.3 * (np.log10(dose) - middle)))

    profile = model.control_log_odds.numpy().astype(float)
    profile = profile - profile.mean(1, keepdims=True)
    far = ((profile[:, None] - profile) ** 2).sum(2)
    like = np.exp(-0.5 * far / far[~np.eye(len(far), dtype=bool)].mean())[one[1], other[1]]
    same_type = one[1] == other[1]
    same, shared, structure = 0.0, 0.0, 0.0
    for i, p in enumerate(one[0]):
        for j, q in enumerate(other[0]):
            strength = 1.0
            if model.kind == "drug":
                strength = curves(one[2][i]) @ curves(other[2][j])
                strength /= curves(10**largest) @ curves(10**largest)
            u, v = (model.encoder.structure[k, :-1].numpy().astype(float) for k in (p, q))
            same += strength * (p == q)
            shared += strength / (len(one[0]) * len(other[0]))
            length = np.linalg.norm(u) * np.linalg.norm(v)
            structure += strength * (u @ v / length if length else 0)
    return same_type, [same, like * same, same_type * same, (1 + same_type) * shared,
                       structure, same_type * structure]  # fmt: skip


@pytest.mark.parametrize("kind", ["gene", "drug"])
def test_conditions_resemble_each_other_target_by_target(kind):
    """Pairs among them, at all doses: every kernel by a plain double loop."""
    model, rows = many_conditions(kind)
    same_type, kernels = model.encoder.relations(conditions_of(rows, 2), model)
    for i, one in enumerate(rows):
        for j, other in enumerate(rows):
            same, by_hand = kernels_by_hand(model, one, other)
            assert same_type[i, j] == same
            assert np.allclose(kernels[:, i, j], by_hand, atol=1e-5)


@pytest.mark.parametrize("kind", ["gene", "drug"])
def test_levels_are_expected_by_the_conditional_mean_of_a_normal(kind):
    """Prior mean 0, the kernels' covariance, an error variance of 1 / cells that express a gene."""
    model, rows = many_conditions(kind)
    counted = counts_of(model, rows, random_shifts(len(rows)), np.linspace(20, 200, len(rows)))
    y = random_shifts(len(rows))[:, 1]
    found = expected(model, *rows)[:, 1]
    same_type, kernels = (a.numpy() for a in model.encoder.relations(counted.conditions, model))
    for i in range(GENES):
        squared = model.encoder.squared_amplitudes[:, GENES + i].numpy()
        truth = covariance_by_hand(same_type, kernels, squared)
        noise = np.diag(1 / counted.on[:, i].numpy())
        assert np.allclose(found[:, i], truth @ np.linalg.inv(truth + noise) @ y[:, i], atol=1e-4)


@pytest.mark.parametrize("kind", ["gene", "drug"])
def test_log_odds_are_expected_by_the_mode_of_a_logistic_mixed_model(kind):
    """The most likely shifts given the counts, which SciPy climbs to from 0 (Laplace)."""
    model, rows = many_conditions(kind)
    counted = counts_of(model, rows, random_shifts(len(rows)), np.linspace(20, 200, len(rows)))
    found = expected(model, *rows)[:, 0]
    same_type, kernels = (a.numpy() for a in model.encoder.relations(counted.conditions, model))
    for i in range(GENES):
        squared = model.encoder.squared_amplitudes[:, i].numpy()
        root = np.linalg.cholesky(
            covariance_by_hand(same_type, kernels, squared) + 1e-9 * np.eye(len(rows))
        )
        start = model.control_log_odds[:, i].numpy()[counted.conditions.cell_type]
        on, cells = counted.on[:, i].numpy(), counted.cells[:, 0].numpy()

        def unlikely(z, root=root, start=start, on=on, cells=cells):
            eta = start + root @ z
            return (cells * np.logaddexp(0, eta) - on * eta).sum() + 0.5 * z @ z

        mode = root @ optimize.minimize(unlikely, np.zeros(len(rows))).x
        assert np.allclose(found[:, i], mode, atol=0.02)


def test_a_level_that_nobody_saw_counts_for_nothing():
    """A gene that no cell of a condition expresses is expected from the other type alone."""
    rows = [((), A), ((2,), A), ((2,), B), ((), B)]
    shifts = np.zeros((4, 2, GENES))
    shifts[1:3] = random_shifts(2)
    found = []
    for level in (-3.0, 5.0):
        model = model_of(conditions=4)
        counted = counts_of(model, rows, shifts, MANY)
        counted.on[1, 4] = 0
        counted.level[1, 4] = level
        model.encoder.fit(counted, model)
        found.append(expected(model, rows[1])[0, 1, 4])
    assert found[0] == found[1]
    same, _, in_type = model.encoder.squared_amplitudes[:3, GENES + 4].tolist()
    assert in_type > 0.05
    assert found[0] == pytest.approx(same / (same + in_type) * shifts[2, 1, 4], rel=1e-3)


# ---- What was not measured -----------------------------------------------------------------------


def test_a_pair_is_expected_from_its_halves():
    """It does what the two do together, in either order."""
    rows = [((), A), ((0,), A), ((1,), A), ((2, 1), A)]
    shifts = np.concatenate([NOBODY, random_shifts(3)])
    model = fitted(rows, shifts, targets=["x", "y", "z"])
    both, turned = expected(model, ((0, 1), A), ((1, 0), A))
    assert np.allclose(both, shifts[1] + shifts[2], atol=0.03)
    assert np.allclose(both, turned, atol=1e-5)


def type_c(shifts):
    """What is expected in type c, whose controls alone are known, and the model."""
    rows = [((), A), ((2,), A), ((), B), ((2,), B)]
    model = fitted(rows, np.stack([0 * shifts[0], shifts[0], 0 * shifts[1], shifts[1]]))
    describe(model, "c", 7)
    return expected(model, ((2,), C))[0], model


def test_an_unseen_type_gets_the_mean_over_types_less_the_depth_that_is_not_believed():
    """Each gene by how much of it differs between types; less of the weighted mean over genes."""
    shifts = random_shifts(2)
    found, model = type_c(shifts)
    same, _, in_type = model.encoder.squared_amplitudes.unflatten(1, (2, -1))[:3].numpy()
    whole = same / (same + in_type / 2) * shifts.mean(0)
    p = 1 / (1 + np.exp(-model.control_log_odds[2].numpy()))
    depth = [np.average(whole[0], weights=p * (1 - p)), np.average(whole[1], weights=p)]
    doubted = (1 - model.encoder.depth_belief.numpy()) * depth
    assert np.abs(doubted).min() > 0.02
    assert np.allclose(found, whole - doubted[:, None], atol=0.02)


@pytest.mark.parametrize(
    ("other", "least", "most"), [(0.4, 0.35, 0.4), (0.1, 0, 0.1), (-0.4, 0, 0)]
)
def test_depth_is_kept_where_a_type_was_seen_treated(other, least, most):
    """All genes move alike there. In an unseen type they do as far as they did in another, too."""
    alike = np.full((2, 2, GENES), 0.4)
    alike[1] = other
    found, model = type_c(alike)
    assert np.allclose(expected(model, ((2,), A))[0], 0.4, atol=0.02)
    assert (found.mean(1) > least - 0.02).all() and (found.mean(1) < most + 0.02).all()


def in_a_fourth_type(*means):
    """What is expected in a type never treated, where three treated types moved by these means."""
    rng = np.random.default_rng(0)
    rows, shifts = [], []
    for cell_type, mean in enumerate(means):
        rows += [((), cell_type), ((2,), cell_type)]
        shifts += [np.zeros((2, GENES)), mean + 0.1 * rng.normal(size=(2, GENES))]
    model = fitted(rows, np.array(shifts), types=("a", "b", "c"))
    describe(model, "d", 7)
    return expected(model, ((2,), 3))[0], model


def test_depth_that_is_alike_in_three_types_is_expected_in_a_fourth():
    """A treatment that moves all genes in every type it was tried in."""
    found, model = in_a_fourth_type(0.4, 0.5, 0.45)
    assert (model.encoder.depth_belief > 0.9).all()
    assert np.abs(found.mean(1) - 0.45).max() < 0.08


def test_depth_that_differs_in_sign_between_types_is_not_expected():
    """It is that of the samples."""
    found, model = in_a_fourth_type(0.4, -0.5, 0.2)
    assert model.encoder.depth_belief.tolist() == [0, 0]
    assert np.abs(found.mean(1)).max() < 0.08


def three_types(**changed):
    """Conditions in three types, two of them perturbed in no other, and what moved in them."""
    rows = [((), t) for t in range(3)] + [((p,), t) for p in (0, 1) for t in range(3 - p)]
    rows += [((2,), 1), ((2,), 0, (0.1,))]  # in no other type, or only at another dose
    names = {"types": ("a", "b", "c"), "targets": ("x", "y", "z")}
    model = model_of(**names, conditions=10, **changed)
    model.encoder.fit(counts_of(model, rows, np.zeros((10, 2, GENES)), MANY), model)
    rng = np.random.default_rng(1)
    return model, torch.as_tensor(0.3 + 0.2 * rng.normal(size=(10, 2, GENES)))


ELSEWHERE = {3: [4, 5], 4: [3, 5], 5: [3, 4], 6: [7], 7: [6]}  # rows of `three_types`
OF_TYPES = [[3, 6], [4, 7], [5]]


def believed_by_hand(said, measured, weight):
    """The belief in what is said of the rows of ELSEWHERE, type by type; {row: (N,)} each."""
    sums = [[], []]
    for rows in OF_TYPES:
        sums[0].append(sum((weight[q] * said[q] * measured[q]).sum() for q in rows))
        sums[1].append(sum((weight[q] * said[q] ** 2).sum() for q in rows))
    return float(believed(*map(torch.stack, sums)))


def test_the_depth_is_believed_as_far_as_types_foretold_each_other():
    """Slope and jackknife of the sums over each type's conditions; one alone says nothing."""
    model, moved = three_types()
    model.encoder.fit_new_types(moved, model)
    p = torch.sigmoid(model.control_log_odds.double())
    for kind, weights in enumerate((p * (1 - p), p)):
        said, mean = {}, {}
        for q, others in ELSEWHERE.items():  # as this type's cells weigh the genes
            weight = weights[model.encoder.cell_type[q]]
            weight = weight / weight.sum()
            said[q] = weight @ moved[others, kind].mean(0)
            mean[q] = weight @ moved[q, kind]
        wanted = believed_by_hand(said, mean, np.ones(10))
        assert 0.1 < wanted < 0.99
        assert float(model.encoder.depth_belief[kind]) == pytest.approx(wanted)


def centred_by_hand(values, weight):
    """(N,) less its weighted mean."""
    return values - (weight * values).sum() / weight.sum()


@pytest.mark.parametrize("direction", [-1.0, 1.0])
def test_the_slope_on_the_start_is_the_other_types_and_believed_as_far_as_it_held(direction):
    """Least squares on how much higher genes start; in a type of another direction signs turn."""
    model, moved = three_types()
    model.direction[2] = direction
    sign = {q: direction if q == 5 else -1.0 for q in range(3, 8)}
    start = model.start().double()
    cell_type = model.encoder.cell_type
    p = torch.sigmoid(model.control_log_odds.double())
    for q in ELSEWHERE:  # let genes that start higher move up less
        moved[q] = sign[q] * (0.5 + 0.02 * moved[q]) - 0.3 * start[cell_type[q]]
    model.encoder.fit_new_types(moved, model)
    for kind, weights in enumerate((p * (1 - p), p)):
        x, y, weight = {}, {}, {}
        for q, others in ELSEWHERE.items():
            weight[q] = w = weights[cell_type[q]]
            elsewhere = start[cell_type[others], kind].mean(0)
            x[q] = centred_by_hand((start[cell_type[q], kind] - elsewhere).clamp(-2, 2), w)
            said = sign[q] * sum(sign[r] * moved[r, kind] for r in others) / len(others)
            y[q] = centred_by_hand(moved[q, kind] - said, w)

        def slope(rows, x=x, y=y, weight=weight):
            return sum((weight[q] * x[q] * y[q]).sum() for q in rows) / sum(
                (weight[q] * x[q] ** 2).sum() for q in rows
            )

        said = {}
        for rows in OF_TYPES:
            rest = slope([q for q in ELSEWHERE if q not in rows])
            said |= {q: rest * x[q] for q in rows}
        wanted = believed_by_hand(said, y, weight) * slope(ELSEWHERE)
        assert float(model.encoder.start_slope[kind]) == pytest.approx(float(wanted), rel=1e-4)
        assert wanted < -0.05


def test_a_gene_that_starts_higher_in_a_new_type_moves_up_by_less():
    """By the slope, beyond what all genes have in common; at most as if 2 higher."""
    rows = [((), A), ((2,), A), ((), B), ((2,), B), ((1,), B)]
    model = fitted(rows, np.zeros((5, 2, GENES)))
    describe(model, "c", 7)
    model.control_log_odds[2] = model.control_log_odds[0]
    model.control_log_odds[2, 3] += 5
    before = expected(model, ((2,), C), ((1,), C), ((2,), A))
    model.encoder.start_slope.copy_(torch.tensor([-0.5, 0.0]))
    change = expected(model, ((2,), C), ((1,), C), ((2,), A)) - before
    assert np.allclose(change[:, 1], 0, atol=1e-6) and np.allclose(change[2], 0, atol=1e-6)
    odds = model.control_log_odds.double().numpy()
    p = 1 / (1 + np.exp(-odds[2]))
    # The types that had this perturbation, and the genes that it perturbs: target 1 is gene 1.
    for row, others, own in (0, odds[:2].mean(0), []), (1, odds[1], [1]):
        higher = (odds[2] - others).clip(-2, 2)
        higher = higher - np.average(higher, weights=p * (1 - p))
        higher[own] = 0
        assert np.allclose(change[row, 0], -0.5 * higher, atol=1e-5)


def in_new_type_c(slope):
    """A model of two treated types and a pair of targets, and a third type, c."""
    rows = [((), A), ((2,), A), ((0, 1), A), ((), B), ((2,), B), ((0, 1), B)]
    model = fitted(rows, np.zeros((6, 2, GENES)))
    describe(model, "c", 7)
    model.encoder.start_slope.fill_(slope)
    return model


def test_no_perturbation_moves_nothing_in_a_new_type_either():
    """However it starts."""
    assert np.allclose(expected(in_new_type_c(-0.5), ((), C))[0], 0, atol=1e-5)


def test_own_transcripts_do_not_follow_the_start_twice():
    """Their prior mean does it: genes 0 and 1 are targets 0 and 1."""
    before, after = (expected(in_new_type_c(slope), ((0, 1), C))[0] for slope in (0.0, -0.5))
    moved = np.abs(after - before)
    assert (moved[:, :2] == 0).all() and (moved[:, 2:] > 0.001).all()


@pytest.mark.parametrize("at_once", [1, 3])
def test_a_condition_is_the_same_whatever_room_there_is_for_targets(at_once):
    """Asked alone or beside others of more targets."""
    model = in_new_type_c(-0.5)
    rows = [((2,), C)]
    others = conditions_of(rows, at_once)
    found = model.encoder(others, model).detach().double().numpy()
    assert np.allclose(found, expected(model, *rows), atol=1e-6)


def test_another_fit_forgets_what_was_believed_of_new_types():
    """Where no type foretells another."""
    rows = [((), A), ((2,), A)]
    model = fitted(rows, np.zeros((2, 2, GENES)))
    model.encoder.start_slope.fill_(1.0)
    model.encoder.depth_belief.fill_(1.0)
    model.encoder.fit(counts_of(model, rows, np.zeros((2, 2, GENES)), MANY), model)
    assert not model.encoder.start_slope.any() and not model.encoder.depth_belief.any()


def test_a_new_perturbation_in_a_new_type_starts_from_all_treated_types():
    """Where nobody has seen it, they have to do."""
    rows = [((), A), ((2,), A), ((), B), ((2,), B), ((1,), B)]
    model = fitted(rows, np.zeros((5, 2, GENES)))
    describe(model, "c", 7)
    before = expected(model, ((0,), C))
    model.encoder.start_slope.copy_(torch.tensor([-0.5, 0.0]))
    change = (expected(model, ((0,), C)) - before)[0, 0]
    odds = model.control_log_odds.double().numpy()
    higher = (odds[2] - (odds[0] + 2 * odds[1]) / 3).clip(-2, 2)  # two of three conditions in B
    assert np.ptp((change + 0.5 * higher)[1:]) < 1e-5  # gene 0 is the target itself


def test_a_type_of_which_only_controls_were_fitted_is_unseen():
    """So its expected shift has no depth either."""
    rows = [((), A), ((0,), A), ((), B)]
    model = fitted(rows, np.concatenate([NOBODY, random_shifts(1) + 0.4, NOBODY]))
    p = 1 / (1 + np.exp(-model.control_log_odds[B].numpy()))
    found = expected(model, ((0,), B))[0]
    assert np.average(found[0], weights=p * (1 - p)) == pytest.approx(0, abs=1e-5)
    assert np.average(found[1], weights=p) == pytest.approx(0, abs=1e-5)


def test_an_unseen_target_does_what_the_others_have_in_common():
    """Of five targets that move gene 5 and nothing else it is expected to move gene 5."""
    shifts = np.zeros((6, 2, GENES))
    shifts[1:, :, 5] = 1.0
    rows = [((), A), *[((p,), A) for p in range(5)]]
    found = expected(fitted(rows, shifts, targets=[f"x{i}" for i in range(6)]), ((5,), A))[0]
    assert (found[:, 5] > 0.9).all()
    assert np.abs(found[:, :5]).max() < 0.02


# ---- Doses and structures ------------------------------------------------------------------------


def test_a_dose_between_two_shifts_every_gene_by_something_between():
    """And a dose of 0 does nothing."""
    rows = [((), A), ((2,), A, (0.1,)), ((2,), A, (10.0,))]
    one = random_shifts(1)
    model = fitted(rows, np.concatenate([NOBODY, 0.2 * one, one]), kind="drug")
    low, between, high, nothing = expected(model, *[((2,), A, (d,)) for d in (0.1, 1, 10, 0)])
    low, between, high = (a / one[0] for a in (low, between, high))
    assert (low < between).all() and (between < high).all()
    assert np.allclose(nothing, 0, atol=0.02)


def test_a_gene_has_no_dose():
    """Whatever number stands in its place."""
    model = fitted([((), A), ((0,), A)], np.concatenate([NOBODY, random_shifts(1)]))
    assert np.array_equal(*expected(model, ((0,), A, (0.01,)), ((0,), A, (1.0,))))


def test_the_unit_of_the_dose_does_not_matter():
    """Here once in mM, once in uM."""
    shifts = np.concatenate([NOBODY, random_shifts(2)])
    found = []
    for unit in (1, 1000):
        rows = [((), A), ((2,), A, (0.1 * unit,)), ((2,), A, (10.0 * unit,))]
        found.append(expected(fitted(rows, shifts, kind="drug"), ((2,), A, (0.7 * unit,))))
    assert np.allclose(*found, atol=1e-3)


def test_an_unseen_drug_borrows_from_its_sibling():
    """Of the same structure as drug 0, of opposite length and last number; drug 1 is unlike it."""
    structure = np.array([[2, 0, 1], [0, 2, 1], [1, 0, -9], [0, 0, 1]], np.float32)
    shifts = np.concatenate([NOBODY, random_shifts(2, size=1.0)])
    rows = [((), A), ((0,), A), ((1,), A)]
    names = ["p", "q", "like p", "like none"]
    model = fitted(rows, shifts, kind="drug", targets=names, structure=structure)
    like_p, like_none = expected(model, ((2,), A), ((3,), A))
    like_p, like_none = like_p.ravel(), like_none.ravel()
    share_p, share_q = np.linalg.lstsq(shifts[1:].reshape(2, -1).T, like_p - like_none)[0]
    assert 0.4 < share_p < 1
    assert abs(share_q) < share_p / 3
    assert np.linalg.norm(like_none) < 0.5 * np.linalg.norm(like_p)


# ---- What the networks say -----------------------------------------------------------------------


def test_a_knock_down_takes_a_target_from_its_mean_to_0_in_standard_deviations():
    """Of its cell type; one that is not measured falls by 1. In types that are activated, up."""
    model = model_of()
    model.control_mean[A, 0] = 0.5
    model.control_mean[:, 1] = torch.tensor([0.5, 1.0])
    model.gene_scale[:2] = torch.tensor([1.0, 0.25])
    asked = torch.tensor([0, 1, 1, 2]), torch.tensor([A, A, B, A])
    assert model.knock_down(*asked).tolist() == [-0.5, -2.0, -4.0, -1.0]
    model.direction[B] = 1.0
    assert model.knock_down(*asked).tolist() == [-0.5, -2.0, 4.0, -1.0]


def test_a_network_says_its_effects_times_the_fall_times_a_gain_of_the_genes_own_statistics():
    """By a plain loop over both networks, targets and genes; nothing of the own transcripts."""
    model = model_of(networks=2, at_once=2)
    encoder = model.encoder
    for part in (encoder.effects, encoder.gain):
        part.normal_()
    said = encoder.networks_say(conditions_of([((1, 2), B), ((1,), B), ((), A)], 2), model)
    by_hand = np.zeros((2, GENES))
    fraction = torch.sigmoid(model.control_log_odds[B])
    for i in set(range(GENES)) - {1}:
        known = torch.stack(
            [torch.ones(()), model.control_mean[B, i], fraction[i], model.level_scale[i]]
        )
        for g in range(2):
            for p in (1, 2):
                fall = model.knock_down(torch.tensor(p), B)
                by_hand[:, i] += (
                    encoder.gain[:, g] @ known * encoder.effects[g, p, i] * fall
                ).numpy()
    assert np.allclose(said[0], by_hand, atol=1e-4)
    assert not said[1, :, 1].any() and said[1, :, 0].all()
    assert not said[2].any()


def knock_downs(effects, true, told=None, **changed):
    """A model of measured targets g0..g4, of which g0..g3 do `true` x their effects, each."""
    names = [f"g{i}" for i in range(5)]
    rows = [((), A), *[((p,), A) for p in range(4)]]
    untrained = model_of(targets=names, types="a")
    told = effects if told is None else told
    shifts = np.zeros((5, 2, GENES))
    for p in range(4):
        fall = float(untrained.knock_down(torch.tensor(p), A))
        shifts[1 + p] = true[p] * fall * effects[p]
        shifts[1 + p, :, p] = [-2.0 - p, -1.0]
    return fitted(rows, shifts, effects=told, targets=names, types="a", **changed), shifts


def network(seed=0):
    """Random effects of five targets on the genes."""
    return np.random.default_rng(seed).normal(size=(5, GENES)).astype(np.float32) * 0.5


def test_a_network_that_was_right_on_training_targets_is_believed_of_another():
    """Its gain is found, and what it says of the unseen target is expected of every other gene."""
    effects = network()
    model, _ = knock_downs(effects, [0.5] * 4)
    fall = float(model.knock_down(torch.tensor(4), A))
    others = np.arange(GENES) != 4
    assert model.encoder.belief.tolist() == pytest.approx([1, 1], abs=0.03)
    found = model.encoder.networks_say(conditions_of([((4,), A)]), model)[0].numpy()
    assert np.allclose(found[:, others], 0.5 * fall * effects[4][others], atol=0.03)


def test_each_network_has_its_own_gains():
    """Here the truth is half of the first and twice the second, where both speak of all genes."""
    both = np.stack([network(0), network(1)])
    model, _ = knock_downs(0.5 * both[0] + 2 * both[1], [1.0] * 4, told=both, networks=2)
    fall = float(model.knock_down(torch.tensor(4), A))
    found = model.encoder.networks_say(conditions_of([((4,), A)]), model)[0, :, [0, 1, 2, 3, 5]]
    truth = fall * (0.5 * both[0] + 2 * both[1])[4, [0, 1, 2, 3, 5]]
    assert np.allclose(found, truth, atol=0.1)


def test_a_network_that_contradicts_itself_is_not_believed():
    """Half of the targets do the opposite of what it says: nothing is expected of it."""
    model, _ = knock_downs(network(), [1.0, -1.0, 1.0, -1.0])
    assert model.encoder.belief.max() < 0.3
    prior = model.encoder.prior_mean(conditions_of([((4,), A)]), model)[0]
    said = model.encoder.networks_say(conditions_of([((4,), A)]), model)[0]
    assert prior[:, :4].norm() < 0.3 * said[:, :4].norm() + 1e-6


def test_an_own_transcript_moves_as_those_of_the_training_targets_did():
    """On average; what networks and own shifts of the others say does not count there."""
    for size in (1.0, 30.0):
        model, shifts = knock_downs(network() * size, [0.1 / size] * 4)
        own = np.mean([shifts[1 + p, :, p] for p in range(4)], 0)
        assert np.allclose(model.encoder.own, -own, atol=0.02)  # along a knock-down
        assert np.allclose(expected(model, ((4,), A))[0, :, 4], own, atol=0.1)
        prior = model.encoder.prior_mean(conditions_of([((4,), A)]), model)
        assert np.allclose(prior[0, :, 4], own, atol=0.02)


def test_a_slope_that_holds_for_every_target_is_found():
    """24 targets of two types each, that move by a linear function of their height."""
    rng = np.random.default_rng(0)
    height = torch.as_tensor(rng.normal(size=(48, 2)))
    target = torch.arange(48) // 2
    moved = height @ torch.tensor([-0.5, 0.2]).double() - 1
    moved = moved + 0.01 * torch.as_tensor(rng.normal(size=48))
    slope = slope_that_held(height, moved, target)
    assert np.allclose(slope, [-0.5, 0.2], atol=0.03)


def test_a_slope_that_holds_for_no_other_target_is_not_believed():
    """Targets move by chance, alike in both types; few conditions would fit well."""
    slopes = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        height = torch.as_tensor(np.repeat(rng.normal(size=(20, 2)), 2, 0))
        moved = torch.as_tensor(np.repeat(rng.normal(size=20), 2))
        slopes.append(slope_that_held(height, moved, torch.arange(40) // 2).norm())
    assert np.mean(np.array(slopes) < 0.05) >= 0.75


def test_of_fewer_than_twenty_targets_no_slope_is_believed():
    """However well it holds."""
    height = torch.as_tensor(np.random.default_rng(0).normal(size=(20, 2)))
    moved = height @ torch.tensor([-0.5, 0.2]).double()
    assert slope_that_held(height, moved, torch.arange(20)).norm() > 0.4
    assert slope_that_held(height[1:], moved[1:], torch.arange(19)).norm() == 0


def test_an_own_transcript_moves_no_farther_than_one_in_training_did():
    """However high it stands in the controls."""
    model, _ = knock_downs(network(), [0.1] * 4)
    encoder = model.encoder
    encoder.own_slope[:] = 100.0
    prior = encoder.prior_mean(conditions_of([((4,), A)]), model)[0, :, 4]
    assert torch.isclose(-prior[:, None], encoder.own_range).any(1).all()
    assert np.allclose(encoder.own_range, [[2, 5], [1, 1]], atol=0.02)


def test_an_own_transcript_that_is_gone_says_nothing_of_its_level():
    """Its level is the mean over the targets that some cell still expresses."""
    rows = [((), A), ((0,), A), ((1,), A)]
    model = model_of(conditions=3)
    shifts = np.zeros((3, 2, GENES))
    shifts[2, 1, 1] = -0.5
    populations = counts_of(model, rows, shifts, MANY)
    populations.on[1, 0] = 0
    populations.level[1, 0] = 0
    model.encoder.fit(populations, model)
    assert float(model.encoder.own[1]) == pytest.approx(0.5, abs=1e-6)
    assert float(model.encoder.own[0]) > 1


def test_a_filled_row_is_no_fifth_target():
    """Four targets and a pair of them: a variance of so few is not known."""
    rows = [((), A), *[((p,), A) for p in range(4)], ((0, 1), A)]
    names = tuple(f"g{p}" for p in range(4))
    model = model_of(targets=names, conditions=len(rows), at_once=2)
    model.encoder.fit(counts_of(model, rows, np.zeros((len(rows), 2, GENES)), MANY), model)
    assert model.encoder.amplitudes().tolist() == [[same, 0, 0, 0, 0, 0] for same in (1, 4)]


def test_an_unseen_gene_does_no_more_than_the_training_target_that_did_most():
    """However much the network says of it: root mean square over genes, both kinds of shift."""
    effects = network()
    effects[4] *= 100
    model, _ = knock_downs(effects, [1.0] * 4)
    encoder = model.encoder

    def sizes(shift):
        return shift.square().mean(2).sum(1).sqrt()

    trained = sizes(encoder.networks_say(encoder.training_conditions(), model))
    prior = encoder.prior_mean(conditions_of([((4,), A)]), model)
    prior[:, :, 4] = 0
    assert sizes(encoder.networks_say(conditions_of([((4,), A)]), model)) > 10 * trained.max()
    assert float(sizes(prior)) == pytest.approx(float(trained.max()), rel=0.05)


def test_a_small_effect_of_an_unseen_gene_stays_small():
    """It is not stretched to that of the training target that did most."""
    effects = network()
    effects[4] *= 0.01
    model, _ = knock_downs(effects, [1.0] * 4)
    prior = model.encoder.prior_mean(conditions_of([((4,), A)]), model)[0].numpy()
    fall = float(model.knock_down(torch.tensor(4), A))
    others = np.arange(GENES) != 4
    assert np.allclose(prior[:, others], fall * effects[4][others], rtol=0.1, atol=1e-3)


def test_a_target_is_reachable_through_any_network_or_a_structure():
    """One number other than 0 is enough."""
    encoder = model_of(networks=2).encoder
    assert not encoder.reachable().any()
    encoder.effects[0, 0, 3] = 1.0
    encoder.effects[1, 1, 0] = -1.0
    assert encoder.reachable().tolist() == [True, True, False]
    encoder.structure[2, 0] = 1.0
    assert encoder.reachable().all()


def test_a_target_of_which_nothing_is_known_is_refused_and_one_that_a_network_reaches_is_not():
    """In sampling, by name."""
    model = model_of()
    asked = model, SimpleNamespace(source="f.h5ad"), [("x", "a")]
    with pytest.raises(InputError, match="cannot predict 'x'"):
        sample.check_predictable(*asked)
    model.encoder.effects[0, 2, 4] = 1.0
    sample.check_predictable(*asked)


# ---- Cells and cell types ------------------------------------------------------------------------


def test_in_training_every_condition_finds_its_own_fitted_shift():
    """Whatever their order, though targets, types and doses are shared between them."""
    model, rows = many_conditions("drug")
    order = [3, 10, 8, 5, 1, 9, 4, 2, 7, 6, 0, 10]
    model.train()
    found = expected(model, *[rows[i] for i in order])
    assert np.allclose(found, expected(model.eval(), *[rows[i] for i in order]), atol=1e-5)
    assert len(np.unique(found.round(4), axis=0)) == len(rows)


def test_each_cell_is_handed_its_own_condition_in_the_units_of_its_genes():
    """Conditions are encoded once, and cells say which is theirs."""
    rows = [((), A), ((0,), A), ((1,), B), ((), B)]
    model = fitted(rows, random_shifts(4))
    which = torch.tensor([1, 0, 1, 1])
    found = model.encode(conditions_of(rows[1:3]), which)
    log_odds, level = expected(model, *rows[1:3])[which.numpy()].transpose(1, 0, 2)
    assert found.cell_type.tolist() == [B, A, B, B]
    assert np.allclose(found.log_odds, log_odds, atol=1e-6)
    assert np.allclose(found.level, level * model.level_scale.numpy(), atol=1e-6)


def test_a_new_cell_type_is_known_by_its_own_controls():
    """The tables have a row more, and those of the other types stay."""
    model = model_of()
    before = model.control_mean.clone()
    mean = np.linspace(0.1, 0.6, GENES)
    model.describe_cell_type("c", mean, mean + 1, mean, mean, 1e6)
    assert torch.equal(model.control_mean[:2], before)
    assert np.allclose([model.control_mean[2], model.control_level[2] - 1], mean, atol=1e-6)
    assert np.allclose(torch.sigmoid(model.control_log_odds[2]), mean, atol=1e-5)


def test_a_model_that_was_told_nothing_of_its_cell_types_refuses():
    """It would say NaN, for it cannot know how like they are. Told of one, it answers for that."""
    own = ImprovedSettings(width=8, steps=2)
    model = model_class(own)(own, [f"g{i}" for i in range(GENES)], ["g0"], ["a", "b"])
    x0 = torch.ones(3, GENES)
    with pytest.raises(ValueError, match="nothing is known of cell type 'a'; .*describe_cell_type"):
        departures.sample(model, x0, x0, condition(0), departures.Noise(0))
    describe(model, "a", 0)
    assert departures.sample(model, x0, x0, condition(0), departures.Noise(0))[0].isfinite().all()


def test_a_cell_type_can_be_described_again():
    """By other controls: its row is replaced."""
    model = model_of()
    model.describe_cell_type("a", *[np.full(GENES, 0.25)] * 4, 100)
    assert model.cell_types == ["a", "b"]
    assert np.allclose(model.control_mean[A], 0.25)


def test_of_few_controls_fractions_and_spreads_are_drawn_to_those_of_the_screen():
    """By one cell and by ten: Bayes' estimates, in this type's own proportion of spreads."""
    model = model_of()
    model.usual_fraction[:] = 0.3
    on = np.array([0, 1, 2, 4, 6, 8])
    variance = np.linspace(0.5, 3, GENES)
    level = np.ones(GENES)
    model.describe_cell_type("c", level, level, on / 8, variance, 8)
    usual = model.level_scale.numpy() ** 2
    proportion = np.average(variance, weights=on) / np.average(usual, weights=on)
    spread = np.average([variance, proportion * usual], 0, np.stack([on, np.full(GENES, 10)]))
    assert np.allclose(torch.sigmoid(model.control_log_odds[2]), (on + 0.3) / 9, atol=1e-5)
    assert np.allclose(model.control_scale[2], np.sqrt(spread), rtol=1e-5)
