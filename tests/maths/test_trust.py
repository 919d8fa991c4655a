"""How far to trust a prediction: conditions left out in closed form, and the errors to expect."""

import numpy as np
import pandas as pd
import pytest
import torch

import screens
import train
from departures import (
    FLAT,
    ImprovedSettings,
    expect_without,
    krige,
    krige_without,
    mixed_covariance,
    parts,
    uncertainty,
)
from evaluate import e_distance
from report import trust
from sample import conditions_of
from toy_data import simulate_screen

Q, ROWS = 9, 4


# ---- The mixed model without some of its conditions ----------------------------------------------


def random_kernels(rng):
    """Three covariances (Q, Q) of effects, and which conditions are of one type."""
    factors = rng.standard_normal((3, Q, Q))
    cell_type = np.arange(Q) % 2
    same_type = (cell_type[:, None] == cell_type).astype(float)
    return torch.as_tensor(same_type), torch.as_tensor(factors @ factors.transpose(0, 2, 1) / Q)


@pytest.fixture(scope="module")
def problem():
    """Y, V, same_type, kernels and squared amplitudes of a small mixed model."""
    rng = np.random.default_rng(0)
    Y = torch.as_tensor(rng.standard_normal((ROWS, Q)))
    V = torch.as_tensor(rng.uniform(0.1, 2.0, (ROWS, Q)))
    squared = torch.as_tensor(rng.uniform(0.0, 1.0, (ROWS, 3)))
    return Y, V, *random_kernels(rng), squared


@pytest.mark.parametrize("out", [[2], [0, 3, 5], [1, 8]])
def test_leaving_out_is_a_refit_without_these_conditions(problem, out):
    """`krige` on the others, and what its weights say of the conditions that are left out."""
    Y, V, same_type, kernels, squared = problem
    rest = [q for q in range(Q) if q not in out]
    of_rest = kernels[:, rest][:, :, rest]
    weights = krige(Y[:, rest], V[:, rest], same_type[rest][:, rest], of_rest, squared)
    across = FLAT**2 * same_type[out][:, rest]
    covariance = across + torch.einsum("nj,jqr->nqr", squared, kernels[:, out][:, :, rest])
    refit = torch.einsum("nqr,nr->nq", covariance, weights)
    (mean, _), *_ = krige_without(*problem, [torch.tensor(out)])
    torch.testing.assert_close(mean, refit, rtol=0, atol=1e-8)


@pytest.mark.parametrize("out", [[2], [0, 3, 5]])
def test_its_variance_is_that_of_a_gaussian_given_the_others(problem, out):
    """C_II - C_IR (C_RR)^-1 C_RI, by the covariance of what is predicted, without its errors."""
    _, V, same_type, kernels, squared = problem
    rest = [q for q in range(Q) if q not in out]
    C = mixed_covariance(torch.zeros_like(V), same_type, kernels, squared)
    noisy = C + torch.diag_embed(V)
    known = torch.linalg.solve(noisy[:, rest][:, :, rest], C[:, rest][:, :, out])
    expected = C[:, out][:, :, out] - C[:, out][:, :, rest] @ known
    (_, variance), *_ = krige_without(*problem, [torch.tensor(out)])
    torch.testing.assert_close(variance, expected.diagonal(dim1=1, dim2=2), rtol=0, atol=1e-8)


# ---- On a screen ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    """A small screen of two cell types with a target held out, and a model fitted to it."""
    path = tmp_path_factory.mktemp("trust") / "screen.h5ad"
    simulate_screen(30, 6, 900, seed=1).write_h5ad(path)
    screen = screens.prepare(str(path), fraction=0.2)
    settings = ImprovedSettings(width=16, embedding=4, grn="coexpression")
    return screen, train.build(screen, settings, "cpu").eval()


@torch.no_grad()
def test_a_condition_left_out_is_expected_as_by_an_encoder_that_never_fitted_it(simulated):
    """Its own row without weight: refitted with an error so large that it says nothing."""
    screen, model = simulated
    encoder = model.encoder
    q = [key[0] == "control" for key in screen.training_groups()].index(False)
    [(shift, variance)] = expect_without(model, [torch.tensor([q])])
    before = encoder.weights.clone(), encoder.variance.clone()
    asked = encoder.training_conditions().take(torch.tensor([q]))
    same_type, kernels = encoder.relations(encoder.training_conditions(), model)
    y = FLAT**2 * same_type @ encoder.weights + encoder.variance * encoder.weights
    y += (encoder.squared_amplitudes[:, None] * (kernels @ encoder.weights)).sum(0)
    encoder.variance[q] = 1e9
    weights = krige(y.T, encoder.variance.T, same_type, kernels, encoder.squared_amplitudes.T)
    encoder.weights.copy_(weights.T)
    torch.testing.assert_close(encoder.expect(asked, model), shift, rtol=0, atol=1e-5)
    torch.testing.assert_close(uncertainty(model, asked), variance, rtol=1e-5, atol=1e-6)
    for buffer, values in zip((encoder.weights, encoder.variance), before, strict=True):
        buffer.copy_(values)


@torch.no_grad()
def test_other_controls_are_known_and_what_is_common_to_their_cells_is_not_told_by_the_fit(
    simulated,
):
    """With controls of their own, the variance is that of the effects alone, given the others'."""
    screen, model = simulated
    asked = conditions_of(model, sorted(screen.held_out))
    before = uncertainty(model, asked)
    model.encoder.counted.zero_()
    after = uncertainty(model, asked)
    model.encoder.counted.fill_(1)
    _, of_itself = model.encoder.relations(asked, model, asked)
    squared = model.encoder.squared_amplitudes
    most = torch.einsum("jn,jc->cn", squared, of_itself.diagonal(dim1=1, dim2=2))
    assert (after <= most.unflatten(1, (2, -1)) + 1e-9).all() and (after > 0).any()
    assert not torch.allclose(before, after)


@torch.no_grad()
def test_the_parts_of_an_expected_shift_add_up_to_it(simulated):
    """Of training conditions and of held-out ones; a target never seen rests on no memory."""
    screen, model = simulated
    keys = sorted(key for key in screen.groups if key[0] != "control")
    conditions = conditions_of(model, keys)
    made_of = parts(model, conditions)
    whole = model.encoder.expect(conditions, model)
    torch.testing.assert_close(sum(made_of.values()), whole, rtol=0, atol=1e-6)
    unseen = torch.tensor([key in screen.held_out for key in keys])
    assert not made_of["memory"][unseen].any() and made_of["memory"][~unseen].any()
    assert not made_of["likeness"][unseen].any()


def test_the_parts_add_up_in_a_cell_type_that_nobody_perturbed_too(simulated):
    """Where its start moves genes, and some of the depth is doubted."""
    _, model = simulated
    model.describe_cell_type("new", *new_controls(model))
    conditions = conditions_of(model, [("TF002", "new"), ("TF001", "new")])
    try:
        model.encoder.start_slope.fill_(-0.5)
        model.encoder.depth_belief.fill_(0.3)
        made_of = parts(model, conditions)
        whole = model.encoder.expect(conditions, model)
    finally:
        model.encoder.start_slope.zero_()
        model.encoder.depth_belief.zero_()
    torch.testing.assert_close(sum(made_of.values()), whole, rtol=0, atol=1e-6)
    assert made_of["likeness"].any(2).all()


def new_controls(model):
    """What `describe_cell_type` takes, of random controls."""
    rng = np.random.default_rng(0)
    level, fraction = rng.uniform(0.5, 2, (2, len(model.genes)))
    fraction = fraction / 2.5
    return level * fraction, level, fraction, level, 100


def test_conditions_that_do_nothing_have_errors_far_below_what_chance_does(tmp_path):
    """Labels of perturbed cells are shuffled: means of so many cells differ by chance alone."""
    adata = simulate_screen(30, 6, 900, seed=1)
    label = adata.obs["condition"].astype(str).to_numpy()
    for cell_type in adata.obs["cell_type"].unique():
        rows = np.flatnonzero(adata.obs["cell_type"] == cell_type)
        label[rows] = np.random.default_rng(0).permutation(label[rows])
    adata.obs["condition"] = label
    adata.write_h5ad(tmp_path / "shuffled.h5ad")
    screen = screens.prepare(str(tmp_path / "shuffled.h5ad"), fraction=0.2)
    settings = ImprovedSettings(width=16, embedding=4, grn="coexpression")
    known = trust.left_out_table(train.leave_out(train.build(screen, settings, "cpu"), screen))
    chance = []
    for condition in known["condition"]:
        X = screen.dense(screen.groups[tuple(condition.split("@"))])
        chance.append(trust.as_e_distance(X.var(0).sum() / len(X), X.var(0).sum()))
    assert known["error"].mean() < 0.6 * np.mean(chance)


# ---- Distances -----------------------------------------------------------------------------------


def test_the_e_distance_of_shifted_cells_is_that_of_their_means():
    """In 2,000 genes of unequal variance, for a weak and a strong shift, within a twentieth."""
    rng = np.random.default_rng(0)
    sd = rng.uniform(0.2, 2.0, 2000)
    for size in (10.0, 60.0):
        shift = rng.standard_normal(2000)
        shift *= size / np.linalg.norm(shift)
        x, y = (rng.standard_normal((400, 2000)) * sd for _ in range(2))
        expected = trust.as_e_distance(size**2, (sd**2).sum())
        assert e_distance(x + shift, y) == pytest.approx(expected, rel=0.05)


def test_chance_between_means_of_one_population_is_half_a_unit_wide():
    """The standard deviation of their squared distance, by 2,000 draws, within 5 sigma."""
    rng = np.random.default_rng(0)
    variances, n, m = rng.uniform(0.1, 2.0, 300), 50, 80
    sd = np.sqrt(variances * (1 / n + 1 / m))
    squared = ((rng.standard_normal((2000, 300)) * sd) ** 2).sum(1)
    width = trust.in_units_of_chance(squared.std(), variances, n, m)
    assert width == pytest.approx(0.5, rel=5 / np.sqrt(2 * 2000))


def test_the_distance_by_means_takes_off_the_chance_of_the_measured_mean():
    """And no other: on average its square is that of the true means (400 draws, within 5 %)."""
    rng = np.random.default_rng(0)
    controls = rng.standard_normal((5000, 50))
    x = np.tile(np.full(50, 0.2), (30, 1))  # predicted cells whose mean has no chance
    found = [
        trust.distance_by_means(x, rng.standard_normal((40, 50)), controls) for _ in range(400)
    ]
    assert np.mean(np.square(found)) == pytest.approx(trust.as_e_distance(2.0, 50.0) ** 2, rel=0.05)


# ---- Expected errors -----------------------------------------------------------------------------


def left_out_rows(rng, share, n=60):
    """Left-out conditions whose error is a known share of their change, by what was asked."""
    rows = []
    for (targets, seen, cell_type), of_size in share.items():
        for i in range(n):
            size = rng.uniform(0.2, 1.0)
            error = of_size * size * rng.lognormal(0, 0.3)
            rows.append([f"{i}@{cell_type}", targets, seen, size, 0.5, error])
    return rows


def test_expected_errors_find_the_share_that_is_wrong_of_each_kind():
    """Three kinds of question and two cell types with known shares; within a tenth of the mean."""
    share = {}
    for targets, of_targets in zip(trust.SEEN, (0.2, 0.4, 0.8), strict=True):
        for cell_type, factor in ("a", 1.0), ("b", 1.5):
            share[targets, True, cell_type] = of_targets * factor
    known = left_out_rows(np.random.default_rng(0), share)
    asked = pd.DataFrame(list(share), columns=["targets", "cell_type_seen", "cell_type"])
    asked["size"], asked["sd"] = 0.6, 0.5
    expected, low, high, alike = trust.expected_errors(asked, known).T
    mean = np.exp(0.3**2 / 2)  # of the lognormal
    assert expected == pytest.approx(np.array(list(share.values())) * 0.6 * mean, rel=0.1)
    assert ((low < expected) & (expected < high) & (alike == 120)).all()


def test_the_range_holds_four_in_five_of_new_conditions():
    """Of 2,000 from the same law, within 5 points; and where another kind is much wider."""
    share = {("unseen", True, "a"): 0.5}
    known = left_out_rows(np.random.default_rng(0), share, 400)
    known += [[f"{i}@a", "seen here", True, 0.5, 0.5, 10.0**-i] for i in range(4)]
    new = trust.left_out_table(left_out_rows(np.random.default_rng(1), share, 2000))
    _, low, high, _ = trust.expected_errors(new, known).T
    inside = (low < new["error"]) & (new["error"] < high)
    assert inside.mean() == pytest.approx(0.8, abs=0.05)


def test_the_error_follows_the_models_doubt_where_the_left_out_conditions_show_it():
    """Errors that are the standard deviation, whatever the change; with a third of it, half."""
    rng = np.random.default_rng(0)
    known = []
    for i in range(300):
        sd = rng.uniform(0.1, 1.0)
        known.append([f"{i}@a", "unseen", True, rng.uniform(0.1, 1.0), sd, sd])
    asked = trust.left_out_table([["x@a", "unseen", True, 0.5, sd, 0.0] for sd in (0.3, 0.9)])
    small, large = trust.expected_errors(asked, known)[:, 0]
    assert large / small > 2


def test_the_expected_error_rises_with_novelty_where_the_truth_is_known():
    """Shifts drawn from the mixed model, one effect a target: leaving out its twin costs more."""
    rng = np.random.default_rng(0)
    genes, targets = 300, 6
    target = torch.arange(2 * targets) % targets  # each in two cell types
    cell_type = torch.arange(2 * targets) // targets
    same_type = (cell_type[:, None] == cell_type).double()
    kernels = torch.stack([(target[:, None] == target).double(), torch.ones_like(same_type)])
    truth = rng.standard_normal((genes, targets))[:, target] + rng.standard_normal((genes, 1))
    truth = torch.as_tensor(truth)
    Y = truth + 0.3 * torch.as_tensor(rng.standard_normal(truth.shape))
    V = torch.full_like(Y, 0.09)
    squared = torch.ones(genes, 2).double()
    alone = [torch.tensor([q]) for q in range(2 * targets)]
    twins = [torch.tensor([q, q + targets]) for q in range(targets)]
    known = []
    for out, status in [*((o, "seen elsewhere") for o in alone), *((o, "unseen") for o in twins)]:
        (mean, variance), *_ = krige_without(Y, V, same_type, kernels, squared, [out])
        for i, q in enumerate(out.tolist()):
            numbers = (
                mean[:, i].norm(),
                variance[:, i].sum().sqrt(),
                (mean[:, i] - truth[:, q]).norm(),
            )
            known.append([f"{q}@a", status, True, *map(float, numbers)])
    table = trust.left_out_table(known)
    table["expected"] = trust.expected_errors(table, known)[:, 0]
    means = table.groupby("targets")[["error", "expected", "sd"]].mean()
    assert (means.loc["unseen"] > 1.5 * means.loc["seen elsewhere"]).all()
    assert means["expected"].to_numpy() == pytest.approx(means["error"].to_numpy(), rel=0.3)
