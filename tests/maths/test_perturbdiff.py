"""PerturbDiff: the network, the loss and the sampler do what their texts say, and what they claim.

The claim: where every set of cells has a hidden shift of its own, a diffusion over sets recovers
the distribution of the sets' means, and one over single cells does not.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import rivals.perturbdiff
from evaluate import e_distance
from examples import screen_of
from rivals.perturbdiff import perturbdiff, zeros_kept
from rivals.set_diffusion import (
    KEPT,
    STEPS,
    Block,
    Denoiser,
    ddim,
    draw_sets,
    energy_distance,
    set_loss,
)
from rivals.training import minimise
from screens import CONTROL


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=generator(seed))


def shaken(model):
    """A network whose every weight is drawn anew, so that no gate is closed."""
    with torch.no_grad():
        for i, weights in enumerate(model.parameters()):
            weights.copy_(0.2 * normal(*weights.shape, seed=i))
    return model


# ---- The sampler ---------------------------------------------------------------------------------


def exact(mean, covariance):
    """The exact x0-predictor of Gaussian data: the mean given x_t, which has covariance
    kept * covariance + (1 - kept) I."""

    def denoise(x, earlier, t):
        kept = KEPT[t].double()
        noisy = kept * covariance + (1 - kept) * torch.eye(len(mean)).double()
        gain = kept.sqrt() * torch.linalg.solve(noisy, covariance)
        return mean + (x - kept.sqrt() * mean) @ gain

    return denoise


MEAN = torch.tensor([3.0, -1.0, 0.5]).double()
COVARIANCE = torch.tensor([[1.0, 0.6, 0.0], [0.6, 0.8, 0.2], [0.0, 0.2, 0.3]]).double()


@pytest.mark.parametrize(("steps", "tolerance"), [(50, 0.1), (1000, 0.005)])
def test_from_the_exact_predictor_of_gaussian_data_ddim_returns_its_law(steps, tolerance):
    """It maps noise by x -> b + x A; so b is to be the mean, and A'A the covariance.

    The mean up to sqrt(kept) of the last step, 0.6 %: noise starts at 0, noised data does not.
    """
    x = torch.cat([torch.zeros(1, 3), torch.eye(3)]).double()
    b, *rows = ddim(exact(MEAN, COVARIANCE), x, steps)
    A = torch.stack(rows) - b
    assert torch.allclose(b, MEAN, atol=0.02)
    assert torch.allclose(A.T @ A, COVARIANCE, atol=tolerance)


def test_ddim_asks_in_equal_steps_from_all_noise_to_almost_none_and_hands_on_the_last_answer():
    asked = []

    def denoise(x, earlier, t):
        asked.append((t, earlier))
        return torch.full_like(x, float(len(asked)))

    x = ddim(denoise, normal(2, 5, 3), steps=10)
    assert [t for t, _ in asked] == [999, 888, 777, 666, 555, 444, 333, 222, 111, 0]
    assert [float(earlier.max()) for _, earlier in asked] == list(range(10))
    assert (x == 10).all()


def test_the_noise_grows_as_a_linear_beta_says():
    beta = np.linspace(1e-4, 0.02, 1000)
    expected = [np.prod(1 - beta[: t + 1]) for t in (0, 499, 999)]
    assert KEPT[[0, 499, 999]].tolist() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("guidance", "expected"), [(0, 3), (1, 5), (1.5, 6), (-2, 0)])
def test_guidance_goes_beyond_the_prediction_with_the_condition_and_not_below_0(guidance, expected):
    """Of a network that says 5 with it and 3 without."""

    def model(x, earlier, controls, t, condition):
        return torch.full_like(x, 3) + 2 * condition[:, :1, None]

    x = draw_sets(model, torch.zeros(2, 4, 3), torch.ones(2, 1), generator(), guidance)
    assert torch.allclose(x, torch.full((2, 4, 3), float(expected)))


# ---- The network ---------------------------------------------------------------------------------


def test_a_block_is_the_identity_before_it_is_trained():
    """Whatever the condition (adaLN-zero); and only then."""
    tokens, condition = normal(2, 7, 16), 3 * normal(2, 16, seed=1)
    block = Block(16)
    assert torch.equal(block(tokens, condition), tokens)
    assert not torch.allclose(shaken(block)(tokens, condition), tokens)


def test_half_of_a_blocks_gates_belong_to_the_attention_and_half_to_the_mlp():
    """With the attention's alone a token hears of the others; with the MLP's alone it does not."""
    heard = {}
    for name, place in (("attention", 2), ("mlp", 5)):
        block = Block(16)
        with torch.no_grad():
            block.modulation.bias[16 * place : 16 * (place + 1)] = 1
        tokens = normal(1, 4, 16)
        other = tokens.clone()
        other[:, 1:] = normal(1, 3, 16, seed=9)
        condition = torch.zeros(1, 16)
        gap = block(tokens, condition)[:, 0] - block(other, condition)[:, 0]
        heard[name] = float(gap.detach().abs().max())
    assert heard["attention"] > 0.01 and heard["mlp"] < 1e-6


SET = {
    "x": normal(2, 6, 5, seed=1) + 2,
    "earlier": normal(2, 6, 5, seed=2) + 2,
    "controls": normal(2, 4, 5, seed=3) + 2,
    "t": torch.tensor([300, 600]),
    "condition": torch.tensor([[1.0, 1, 0], [0, 1, 1]]),
}


@pytest.fixture(scope="module")
def model():
    return shaken(Denoiser(5, 3, width=16))


def test_cells_in_another_order_come_out_in_that_order(model):
    order = torch.randperm(6, generator=generator())
    turned = {**SET, "x": SET["x"][:, order], "earlier": SET["earlier"][:, order]}
    assert torch.allclose(model(**turned), model(**SET)[:, order], atol=1e-5)
    assert not torch.allclose(model(**turned), model(**SET), atol=1e-2)


def test_the_order_of_the_controls_says_nothing(model):
    turned = {**SET, "controls": SET["controls"].flip(1)}
    assert torch.allclose(model(**turned), model(**SET), atol=1e-5)


@pytest.mark.parametrize("name", SET)
def test_everything_that_the_network_is_told_matters_and_to_its_own_set_alone(model, name):
    """Another noisy cell changes the others of its set; no set hears of another."""
    other = SET[name].clone()
    other[0] = other[0].flip(-1) if other.ndim > 1 else 900
    if other.ndim > 2:
        other[0, 1:] = SET[name][0, 1:]  # one cell alone
    change = (model(**{**SET, name: other}) - model(**SET)).abs()
    assert change[0, -1].max() > 1e-4
    assert change[1].max() < 1e-6


def test_with_almost_no_noise_almost_nothing_is_changed(model):
    """The prediction is sqrt(kept) x + sqrt(1 - kept) times the network's, and not below 0."""
    t = torch.zeros(2, dtype=torch.long)
    change = model(**{**SET, "t": t}) - SET["x"].clamp(min=0)
    assert change.abs().max() < 0.1
    assert model(**SET).min() == 0 and (model(**SET) - SET["x"]).abs().max() > 0.5


# ---- The loss ------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 12), st.integers(1, 8), st.floats(0.5, 3), st.integers(0, 99))
def test_the_energy_distance_is_the_square_of_the_one_that_scores(cells, genes, far, seed):
    """Where it is above 0, at which the score is cut."""
    x = normal(3, cells, genes, seed=seed)
    y = normal(3, cells, genes, seed=seed + 100) + far
    found = energy_distance(x, y)
    pairs = zip(x.double().numpy(), y.double().numpy(), strict=True)
    expected = [e_distance(a, b, squared=True) for a, b in pairs]
    assert torch.clamp(found, min=0).tolist() == pytest.approx(expected, abs=2e-4)


def test_of_sets_of_one_cell_the_energy_distance_is_twice_their_distance():
    x, y = normal(4, 1, 3), normal(4, 1, 3, seed=1)
    assert torch.allclose(energy_distance(x, y), 2 * (x - y).norm(dim=-1)[:, 0])


class Noting:
    """A model that answers with a constant and notes what it is asked."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []

    def __call__(self, x, earlier, controls, t, condition):
        self.asked.append((x, earlier, controls, t, condition))
        return 0 * x + self.answer


def test_the_loss_is_the_squared_error_and_the_energy_distance_of_what_was_predicted():
    x, answer = normal(3, 6, 4), normal(3, 6, 4, seed=1)
    loss = set_loss(Noting(answer), x, x, torch.ones(3, 2), generator())
    half = set_loss(Noting(answer), x, x, torch.ones(3, 2), generator(), energy=0.5)
    error, distance = ((answer - x) ** 2).mean(), energy_distance(answer, x).mean() / 2
    assert float(loss) == pytest.approx(float(error + distance))
    assert float(half) == pytest.approx(float(error + distance / 2))


def test_a_set_is_noised_as_its_time_says_and_each_of_its_cells_by_itself():
    """Around sqrt(kept) x with variance 1 - kept; all times are as likely."""
    model = Noting(torch.zeros(1))
    x = torch.full((4000, 4, 2), 2.0)
    set_loss(model, x, x, torch.ones(4000, 1), generator())
    noisy, _, _, t, _ = model.asked[-1]
    kept = KEPT[t][:, None, None]
    noise = (noisy - kept.sqrt() * x) / (1 - kept).sqrt()
    covariance = torch.cov(noise.flatten(1).T)
    assert torch.allclose(covariance, torch.eye(8), atol=0.1) and noise.mean().abs() < 0.03
    assert t.min() < 5 and t.max() > STEPS - 6 and abs(float(t.float().mean()) - 499.5) < 15


def test_in_half_of_the_calls_the_network_sees_what_it_predicted_itself():
    """Of the same noisy set; in the others zeros. No gradient flows through the first call."""
    weight = torch.ones(1, requires_grad=True)
    x, own = normal(3, 4, 2), generator(1)
    seen = []
    for _ in range(200):
        model = Noting(3 * weight)
        set_loss(model, x, x, torch.ones(3, 1), own).backward()
        first, last = model.asked[0], model.asked[-1]
        assert len(model.asked) == 1 or torch.equal(first[0], last[0])
        assert not last[1].requires_grad and (first[1] == 0).all()
        seen.append(float(last[1].max()))
    assert set(seen) == {0, 3} and 70 < seen.count(3) < 130


@pytest.mark.parametrize("drop", [0, 0.3, 1])
def test_a_share_of_the_sets_is_not_told_its_condition(drop):
    model = Noting(torch.zeros(1))
    x = torch.zeros(3000, 2, 1)
    set_loss(model, x, x, torch.ones(3000, 4), generator(), drop)
    conditions = [asked[-1] for asked in model.asked]
    told = conditions[-1].mean(1)
    assert set(told.tolist()) <= {0, 1} and float(told.mean()) == pytest.approx(1 - drop, abs=0.03)
    assert all(torch.equal(one, conditions[-1]) for one in conditions)


# ---- On a screen ---------------------------------------------------------------------------------

LOW = np.array([1.0, 1.0, 2.0, 1.5])
MEANS = {
    (CONTROL, "x"): LOW,
    (CONTROL, "y"): LOW,
    (CONTROL, "z"): LOW,
    ("A", "x"): LOW + [2, 0, 0, 0],
    ("B", "x"): LOW + [0, 2, 0, 0],
    ("B", "y"): LOW + [0, 2, 0, 0],
    ("C", "y"): LOW,
    ("D", "y"): LOW + 9,
}


@pytest.fixture
def screen(monkeypatch):
    """Four perturbations in two cell types, D@y held out, and a type without perturbed cells.

    Sets are of 16 cells, which is faster.
    """
    monkeypatch.setattr(rivals.perturbdiff, "SET", 16)
    screen = screen_of(MEANS, cells=40, noise=0.3)
    screen.held_out = {("D", "y")}
    return screen


def test_it_applies_where_each_target_and_the_type_were_trained_on_together_or_not(screen):
    predict = perturbdiff(screen, steps=1, sets=1)
    x0 = screen.dense(screen.controls("x"))[:3]
    asked = ["A@x", "A@y", "A+B@y", "A+C@x", "D@y", "A+D@x", "A@z", "E@x"]
    applies = [predict(*name.split("@"), x0) is not None for name in asked]
    assert applies == [True] * 4 + [False] * 4


def test_it_is_trained_once_and_only_where_it_applies(screen, monkeypatch):
    taken = []
    monkeypatch.setattr(rivals.perturbdiff, "minimise", lambda *arguments: taken.append(arguments))
    predict = perturbdiff(screen)
    x0 = screen.dense(screen.controls("x"))[:3]
    predict("E", "x", x0)
    assert not taken
    predict("A", "x", x0), predict("B", "x", x0)
    assert len(taken) == 1


def test_a_drug_has_to_be_trained_on_at_that_dose(screen):
    doses = {CONTROL: CONTROL, "A": "d:1", "B": "d:2", "C": "e:1", "D": "d:3"}
    screen.groups = {(doses[p], t): rows for (p, t), rows in screen.groups.items()}
    screen.held_out = {("d:3", "y")}
    screen.kind = "drug"
    predict = perturbdiff(screen, steps=1, sets=1)
    x0 = screen.dense(screen.controls("x"))[:3]
    asked = [("d:1", "y"), ("d:2", "x"), ("d:3", "y"), ("e:2", "y")]
    assert [predict(*key, x0) is not None for key in asked] == [True, True, False, False]


@pytest.mark.parametrize("cells", [1, 16, 20])
def test_there_is_a_cell_for_every_control_and_none_is_below_0(screen, cells):
    """However many sets that makes."""
    x0 = screen.dense(screen.controls("x"))[:cells]
    made = perturbdiff(screen, steps=1, sets=1)("A", "x", x0)
    assert made.shape == (cells, 4) and made.dtype == np.float32
    assert made.min() >= 0 and np.isfinite(made).all()


def test_a_conditions_cells_depend_on_the_seed_and_on_nothing_else_that_is_predicted(screen):
    """Nor on random numbers that others drew before."""
    x0 = screen.dense(screen.controls("x"))
    first = perturbdiff(screen, steps=2, sets=2)
    torch.rand(7)
    second = perturbdiff(screen, steps=2, sets=2)
    second("B", "x", x0)
    other = perturbdiff(screen, seed=1, steps=2, sets=2)
    assert np.array_equal(first("A", "x", x0), second("A", "x", x0))
    assert not np.array_equal(first("A", "x", x0), other("A", "x", x0))


def sparse_cells(seed, n=12):
    """Cells (n, 5), of which half express a gene; the last gene is silent, the first in all."""
    rng = np.random.default_rng(seed)
    cells = rng.gamma(3, 1, (n, 5)) * (rng.random((n, 5)) < [1, 0.5, 0.5, 0.5, 0])
    return cells.astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_with_zeros_kept_a_prediction_of_the_controls_is_the_controls(seed):
    """In any order, and with values below each gene's lowest in place of the zeros."""
    x0 = sparse_cells(seed)
    rng = np.random.default_rng(seed)
    lowest = np.where(x0 > 0, x0, np.inf).min(0)
    smeared = np.where(x0 > 0, x0, rng.uniform(0, np.minimum(lowest, 1), x0.shape))
    assert np.allclose(zeros_kept(x0, rng.permutation(smeared)), x0, atol=1e-5)


def test_with_zeros_kept_the_expressed_controls_move_by_the_change_of_the_mean():
    """By hand: of three values the two highest count, as two controls are on."""
    x0 = np.array([[0.0], [1.0], [2.0]])
    cells = np.array([[0.5], [5.0], [1.0]])
    assert np.allclose(zeros_kept(x0, cells), [[0], [2], [3]])
    assert np.allclose(zeros_kept(x0, np.full((3, 1), 0.03)), [[0], [0.02], [1.02]])


def test_a_screens_cells_can_be_had_with_zeros_kept(screen):
    predict = perturbdiff(screen, steps=1, sets=1)
    x0 = screen.dense(screen.controls("x"))[:20]
    x0[:10, 1] = 0
    kept = predict.zeros_kept(x0, predict("A", "x", x0))
    assert kept.dtype == np.float32 and kept.min() >= 0 and not kept[:10, 1].any()


def test_no_held_out_cell_is_looked_at(screen):
    x0 = screen.dense(screen.controls("x"))
    before = perturbdiff(screen, steps=3, sets=4)("A", "x", x0)
    changed = screen.X.tolil()
    changed[screen.groups["D", "y"]] = 50
    screen.X = changed.tocsr()
    assert np.array_equal(perturbdiff(screen, steps=3, sets=4)("A", "x", x0), before)


def test_what_a_perturbation_does_is_learned_and_summed_up_in_a_combination(screen):
    """A raises the first gene, B the second; the sum of the parts raises both."""
    predict = perturbdiff(screen, steps=250, sets=8)
    x0 = screen.dense(screen.controls("x"))
    change = {p: predict(p, "x", x0).mean(0) - LOW for p in ("A", "B", "A+B")}
    assert np.abs(change["A"] - [2, 0, 0, 0]).max() < 0.5
    assert np.abs(change["B"] - [0, 2, 0, 0]).max() < 0.5
    assert min(change["A+B"][:2]) > 0.8


# ---- The claim -----------------------------------------------------------------------------------


def hidden(sets, cells, own):
    """Sets (sets, cells, 1) around 0.3 or 2.3, as likely; their cells have a deviation of 0.25."""
    shift = 2.0 * torch.randint(2, (sets, 1, 1), generator=own)
    return 0.3 + shift + 0.25 * torch.randn((sets, cells, 1), generator=own)


def drawn_sets(cells):
    """256 sets of 16 cells (256, 16), from a model that was trained on sets of so many cells."""
    own = generator()
    torch.manual_seed(0)
    model = Denoiser(1, 1, width=32)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.995))
    sets = 256 // cells

    def loss(step):
        average.update_parameters(model)
        x = hidden(sets, cells, own)
        controls = 1.3 + 0.25 * torch.randn(x.shape, generator=own)
        return set_loss(model, x, controls, torch.ones(sets, 1), own, energy=0.1)

    minimise(model.parameters(), loss, 800, 3e-3, "toy")
    controls = 1.3 + 0.25 * torch.randn((256 * 16 // cells, cells, 1), generator=own)
    return draw_sets(average, controls, torch.ones(len(controls), 1), own).reshape(256, 16).numpy()


def test_a_diffusion_over_sets_recovers_the_distribution_of_their_means_one_over_cells_cannot():
    """Both recover that of the cells, but only the first keeps cells of one kind together.

    far: Wasserstein distance of the sets' means; 1 where every set has the mean of all.
    """
    measured = hidden(4000, 16, generator(9))[..., 0].numpy()
    made = {cells: drawn_sets(cells) for cells in (16, 1)}
    far = {n: wasserstein_distance(x.mean(1), measured.mean(1)) for n, x in made.items()}
    mixed = {n: np.mean((x > 1.3).any(1) & (x < 1.3).any(1)) for n, x in made.items()}
    of_cells = [wasserstein_distance(x.ravel(), measured.ravel()) for x in made.values()]
    assert max(of_cells) < 0.4
    assert far[16] < 0.3 and mixed[16] < 0.2
    assert far[1] > 0.6 and mixed[1] > 0.9
