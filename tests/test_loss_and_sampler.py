"""Facts about the loss (Eq. 9, 14, 15), the if-expressed values that it is computed on, and the sampler (Eq. 16 to 18)."""
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

import departures
from departures import (KAPPA, ActiveValues, Settings, Share, activation_loss, bridge_sample, draw, endpoint_loss, joint_loss,
                        mixture_sample, sample)
from sample import active_values
from test_networks import N, model_for


# ---------------------------------------------------------------------------------------------------------------- loss

@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 999))
def test_masked_loss_ignores_unexpressed_genes(cells, genes, seed):
    """Fact 14, Eq. 9: its gradient there is exactly zero and elsewhere 2 (x̂ - x) / (genes on x cells); their values do not matter."""
    g = torch.Generator().manual_seed(seed)
    dT = (torch.rand(cells, genes, generator=g) < 0.5).float()
    xT = dT * (1 + torch.rand(cells, genes, generator=g))
    predicted = torch.randn(cells, genes, generator=g).requires_grad_()
    loss = endpoint_loss(xT, predicted, dT)
    loss.backward()
    assert not predicted.grad[dT == 0].any()
    on = dT.sum(1, keepdim=True).clamp_min(1).expand_as(dT)
    assert torch.allclose(predicted.grad[dT == 1], (2 * (predicted - xT) / on / cells)[dT == 1].detach(), atol=1e-6)
    elsewhere = torch.where(dT == 0, 99.0, predicted.detach())
    assert endpoint_loss(xT, elsewhere, dT).item() == pytest.approx(loss.item(), abs=1e-6)


def test_a_cells_loss_is_the_mean_over_its_own_expressed_genes():
    xT = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 0.0]])
    predicted = torch.tensor([[2.0, 9.0, 4.0], [5.0, 5.0, 5.0]])
    assert endpoint_loss(xT, predicted, (xT != 0).float()).item() == pytest.approx(((1 + 4) / 2 + 0) / 2)


def test_activation_loss_is_the_cross_entropy():
    p, d = torch.tensor([[0.2, 0.9]]), torch.tensor([[0.0, 1.0]])
    assert activation_loss(d, torch.logit(p)).item() == pytest.approx(-(np.log(0.8) + np.log(0.9)) / 2, rel=1e-5)


def some_pairs(B=64, seed=0):
    """Pairs whose last gene is never expressed at T, and values of 100, 200 … by population to tell the draws apart."""
    g = torch.Generator().manual_seed(seed)
    x0, xT = torch.rand(2, B, N, generator=g) * (torch.rand(2, B, N, generator=g) < 0.5) + 0.0
    xT[:, -1] = 0
    values = ActiveValues(np.arange(3 * N).reshape(3, N), np.ones((3, N), int), np.repeat([100.0, 200.0, 300.0], N).astype(np.float32))
    return x0, xT, values


def spied(monkeypatch, name):
    """Arguments of every call of departures.`name`, which still runs."""
    calls, real = [], getattr(departures, name)
    monkeypatch.setattr(departures, name, lambda *a, **k: (calls.append(a), real(*a, **k))[1])
    return calls


def losses(model, x0, xT, values, which=None, populations=None, conditions=None, seed=0):
    B = len(x0)
    return joint_loss(model, x0, xT, conditions or [model.condition([("g0", 1.0)], "a")],
                      torch.zeros(B, dtype=torch.long) if which is None else which,
                      torch.zeros(B, 2, dtype=torch.long) if populations is None else populations, values,
                      torch.Generator().manual_seed(seed))[:2]             # the prior is tested with the encoder


def test_the_prior_of_a_batch_is_the_mean_over_its_pairs(monkeypatch):
    model, (x0, xT, values) = model_for().train(), some_pairs(4)
    real = departures.PerturbationEncoder.forward
    monkeypatch.setattr(departures.PerturbationEncoder, "forward",
                        lambda *a, **k: real(*a, **k)._replace(prior=torch.tensor([[1.0], [5.0]])))
    conditions = [model.condition([("g0", 1.0)], "a"), ((), 0)]
    prior = joint_loss(model, x0, xT, conditions, torch.tensor([0, 0, 0, 1]), torch.zeros(4, 2, dtype=torch.long), values)[2]
    assert prior.item() == 2.0


def test_joint_loss_gives_unexpressed_genes_no_expression_gradient_but_an_activation_gradient():
    """Fact 14, through the networks: of the expression bridge's output layer, the row of a gene that no cell expresses at T."""
    model = model_for().train()
    level, activation = losses(model, *some_pairs())
    level.backward(retain_graph=True)
    assert not model.x_trunk.out[2].bias.grad[-1] and model.x_trunk.out[2].bias.grad[:-1].all()
    activation.backward()
    assert model.d_trunk.out[2].bias.grad.all()


def test_times_are_uniform_one_in_each_part_of_the_batch_and_the_same_for_both_bridges(monkeypatch):
    paths, mixtures = spied(monkeypatch, "bridge_sample"), spied(monkeypatch, "mixture_sample")
    times = []
    for seed in range(50):
        losses(model_for(), *some_pairs(), seed=seed)
        t, t_mixture = paths[-1][2].squeeze(1), mixtures[-1][2].squeeze(1)
        assert torch.equal(t, t_mixture) and torch.equal((t * 64).long(), torch.arange(64))
        times.append(t * 64 - torch.arange(64))
    u = torch.cat(times)
    assert abs(u.mean() - 0.5) < 5 * (1 / 12 / len(u)) ** 0.5 and abs(u.var() - 1 / 12) < 0.01


def test_bridges_run_from_the_filled_control_to_the_filled_perturbed_cell(monkeypatch):
    """x_0 draws from populations[:, 0], x_T from populations[:, 1]; d are the cells' own zeros; sigma and kappa are the settings'."""
    paths, mixtures = spied(monkeypatch, "bridge_sample"), spied(monkeypatch, "mixture_sample")
    x0, xT, values = some_pairs()
    losses(model_for(Settings(sigma=0.37, kappa="cosine")), x0, xT, values, populations=torch.tensor([[1, 2]]).expand(64, -1))
    start, end, _, sigma, _ = paths[-1]
    assert torch.equal(start, torch.where(x0 == 0, 200.0, x0)) and torch.equal(end, torch.where(xT == 0, 300.0, xT)) and sigma == 0.37
    d0, dT, _, kappa, _ = mixtures[-1]
    assert torch.equal(d0, (x0 != 0).float()) and torch.equal(dT, (xT != 0).float()) and kappa == "cosine"
    losses(model_for(Settings(if_expressed=False)), x0, xT, None)
    assert torch.equal(paths[-1][0], x0) and torch.equal(paths[-1][1], xT)


def test_loss_is_of_the_networks_answers_to_what_the_bridges_show(monkeypatch):
    """Handing back the true end costs nothing; a wrong one costs Eq. 9; logits of the true end cost nothing in Eq. 14."""
    x0, xT, values = some_pairs()
    model = model_for()
    for shift in (0.0, 0.5):
        monkeypatch.setattr(model, "predict_level", lambda t, x, d, *rest: xT + shift)
        monkeypatch.setattr(model, "predict_logit", lambda t, x, d, *rest: 100 * (2 * (xT != 0).float() - 1) * (1 - 2 * shift))
        level, activation = losses(model, x0, xT, values)
        has_any = (xT != 0).any(1).float().mean().item()
        assert level.item() == pytest.approx(shift ** 2 * has_any, abs=1e-6)
        assert activation.item() == pytest.approx(np.log(2) if shift else 0, abs=1e-6)


def test_each_pair_meets_its_own_condition():
    """Naming the distinct conditions in another order, with `which` to match, changes nothing; exchanging them does."""
    model = model_for(targets=("g0", "g1", "other"))
    a, b = model.condition([("g0", 1.0)], "a"), model.condition([("g1", 1.0)], "b")
    x0, xT, values = some_pairs()
    which = torch.arange(64) % 2
    one, other, exchanged = (sum(losses(model, x0, xT, values, w, None, c)).item() for w, c in
                             ((which, [a, b]), (1 - which, [b, a]), (which, [b, a])))
    assert one == pytest.approx(other, rel=1e-5) and abs(one - exchanged) > 1e-3 * one


def test_label_dropout_hides_the_cell_types_label_in_training_only():
    model, types = model_for(Settings(label_dropout=0.3)), torch.ones(20_000, dtype=torch.long)
    assert torch.equal(model.label(types), types)
    hidden = (model.train().label(types, torch.Generator().manual_seed(0)) == 2).float().mean().item()
    assert abs(hidden - 0.3) < 5 * (0.21 / 20_000) ** 0.5


def test_cell_types_added_later_have_no_label():
    model = model_for()
    model.add_cell_type("new", np.ones(N), np.ones(N), np.linspace(0, 1, N), 10)
    assert model.label(torch.tensor([0, 1, 2])).tolist() == [0, 1, 2] and model.x_trunk.label.num_embeddings == 3
    assert model.cell_types == ["a", "b", "new"] and torch.allclose(model.control_fraction[2], (torch.linspace(0, 10, N) + 0.5) / 11)


def test_paper_settings_switch_all_five_improvements_off():
    paper, ours = Settings().as_in_the_paper(), Settings()
    assert not any((paper.skip_gate, paper.if_expressed, paper.null_pairs, paper.exact_step, paper.label_dropout))
    assert all((ours.skip_gate, ours.if_expressed, ours.null_pairs, ours.exact_step, ours.label_dropout))
    assert (paper.pairing, paper.epsilon, paper.grn, paper.sigma, paper.steps) == ("entropic", "0.1max", "coexpression", 0.2, 50)


@given(st.integers(1, 5), st.integers(5, 20), st.sampled_from([torch.rand, torch.randn]))
def test_the_processes_numbers_are_the_whole_batchs_dealt_out(processes, cells, kind):
    whole = draw(kind, torch.empty(cells, 3), torch.Generator().manual_seed(0))
    parts = [draw(kind, torch.empty(len(range(r, cells, processes)), 3), Share(torch.Generator().manual_seed(0), slice(r, None, processes), cells))
             for r in range(processes)]
    assert all(torch.equal(part, whole[r::processes]) for r, part in enumerate(parts))


def test_the_losses_of_the_processes_shares_add_up_to_the_batchs():
    """Whatever is random, each pair's own t among it, is the same however the batch is shared."""
    model, cells, processes = model_for(), 12, 3
    model.train()
    x0, xT = ((torch.rand(cells, N) < 0.6) * (1 + torch.rand(cells, N)) for _ in range(2))
    conditions = [model.condition([(g, 1.0)], "a") for g in ("g0", "g1")]
    which = torch.arange(cells) % 2
    values = ActiveValues(*active_values(sparse.csr_matrix(x0.numpy()), [np.arange(cells)]))

    def loss(rows):
        return torch.stack(joint_loss(model, x0[rows], xT[rows], conditions, which[rows], torch.zeros(len(x0[rows]), 2, dtype=torch.long), values,
                                      Share(torch.Generator().manual_seed(0), rows, cells)))
    parts = sum(loss(slice(rank, None, processes)) for rank in range(processes)) / processes
    whole = torch.stack(joint_loss(model, x0, xT, conditions, which, torch.zeros(cells, 2, dtype=torch.long), values, torch.Generator().manual_seed(0)))
    assert torch.allclose(parts, whole, rtol=1e-5)


# --------------------------------------------------------------------------------------------------- if-expressed values

def test_silent_genes_are_filled_from_their_own_gene_and_population():
    X = sparse.csr_matrix(np.array([[1, 0, 0], [2, 0, 0], [0, 5, 0], [7, 6, 0]], np.float32))
    values = ActiveValues(*active_values(X, [np.array([0, 1]), np.array([2, 3])]))
    x = torch.zeros(4000, 3)
    x[0] = torch.tensor([9.0, 9.0, 9.0])
    filled = values.fill(x, torch.zeros(4000, dtype=torch.long), torch.Generator().manual_seed(0))
    assert torch.equal(filled[0], x[0])
    assert set(filled[1:, 0].tolist()) == {1.0, 2.0}                       # population 0's own
    assert set(filled[1:, 1].tolist()) == {5.0, 6.0}                       # silent there: borrowed from all
    assert set(filled[1:, 2].tolist()) == {0.0}                            # silent everywhere
    assert abs((filled[1:, 0] == 1).float().mean() - 0.5) < 5 * 0.5 / 4000 ** 0.5


def test_every_active_value_is_drawn_equally_often():
    X = sparse.csr_matrix(np.arange(1, 6, dtype=np.float32)[:, None])
    values = ActiveValues(*active_values(X, [np.arange(5)]))
    drawn = values.fill(torch.zeros(50_000, 1), torch.zeros(50_000, dtype=torch.long), torch.Generator().manual_seed(0))
    share = torch.bincount(drawn.long().squeeze(1), minlength=6)[1:] / 50_000
    assert ((share - 0.2).abs() < 5 * (0.16 / 50_000) ** 0.5).all()


# ------------------------------------------------------------------------------------------------------------- sampler

def oracle(model, monkeypatch, end, p_on):
    """Replace both predictors; returns what they were shown, [(t, x or d)] each."""
    seen = {"level": [], "logit": []}
    B = len(end)
    monkeypatch.setattr(model, "predict_level", lambda t, x, d, *rest: (seen["level"].append((t[0].item(), x)), end)[1])
    monkeypatch.setattr(model, "predict_logit", lambda t, x, d, *rest: (seen["logit"].append((t[0].item(), d)),
                                                                       torch.logit(torch.as_tensor(p_on)).expand(B, N))[1])
    return seen


def start_and_values(B, g):
    x0 = torch.rand(B, N, generator=g) * (torch.rand(B, N, generator=g) < 0.5)
    return x0, ActiveValues(np.arange(2 * N).reshape(2, N), np.ones((2, N), int), np.repeat([7.0, 8.0], N).astype(np.float32))


@pytest.mark.parametrize("exact", [True, False])
def test_sampler_with_oracles_ends_at_the_endpoint_up_to_eq_16s_noise(exact, monkeypatch):
    """Eq. 16 to 18: 10 steps at t = 0, 0.1 … 0.9 from the filled controls; x_T off by variance sigma^2 h or nothing; d_T ~ p_on; x_T * d_T."""
    model, g, B = model_for(Settings(exact_step=exact, sigma=0.3, steps=10)), torch.Generator().manual_seed(0), 20_000
    x0, values = start_and_values(B, g)
    end = torch.full((B, N), 5.0)
    seen = oracle(model, monkeypatch, end, 0.4)
    cells, level = sample(model, x0, model.condition([("g1", 1.0)], "b"), values, g)
    assert np.allclose([t for t, _ in seen["level"]], np.arange(10) / 10) and np.allclose([t for t, _ in seen["logit"]], np.arange(10) / 10)
    assert torch.equal(seen["level"][0][1], torch.where(x0 == 0, 8.0, x0)) and torch.equal(seen["logit"][0][1], (x0 != 0).float())
    if exact:
        assert torch.allclose(level, end, atol=1e-4)
    else:
        assert abs(level.var().item() / (0.09 / 10) - 1) < 5 * (2 / B / N) ** 0.5 and abs(level.mean() - 5) < 0.01
    on = (cells > 0).float()
    assert abs(on.mean() - 0.4) < 5 * (0.24 / B / N) ** 0.5 and torch.equal(cells, level * on)


@pytest.mark.parametrize("kappa", sorted(KAPPA))
def test_sampler_follows_the_schedule_of_its_settings(kappa, monkeypatch):
    """From all off to all on: at half time a share kappa(1/2) of the genes has switched, and the level's path is half way there."""
    model, g, B = model_for(Settings(kappa=kappa, sigma=0.2, steps=8)), torch.Generator().manual_seed(0), 5000
    seen = oracle(model, monkeypatch, torch.full((B, N), 5.0), 1 - 1e-7)
    cells, _ = sample(model, torch.zeros(B, N), model.condition([], "a"), start_and_values(1, g)[1], g)
    k = KAPPA[kappa](torch.tensor(0.5)).item()
    assert abs(seen["logit"][4][1].mean() - k) < 5 * (k * (1 - k) / B / N) ** 0.5 and (cells > 0).all()
    assert abs(seen["level"][4][1].mean() - 6.0) < 0.01 and abs(seen["level"][4][1].std() - 0.1) < 0.01       # 7 to 5, sigma / 2


def test_predicted_levels_are_never_negative_and_steps_can_be_asked_for(monkeypatch):
    model, g = model_for(), torch.Generator().manual_seed(0)
    x0, values = start_and_values(50, g)
    seen = oracle(model, monkeypatch, torch.full((50, N), -1.0), 0.999)
    cells, level = sample(model, x0, model.condition([], "a"), values, g, steps=3)
    assert not level.any() and not cells.any() and len(seen["level"]) == 3


def test_same_generator_same_cells_another_seed_others():
    model = model_for()
    x0, values = start_and_values(20, torch.Generator().manual_seed(1))
    a, b, c = (sample(model.train(), x0, model.condition([("g0", 1.0)], "a"), values, torch.Generator().manual_seed(s))[1] for s in (0, 0, 1))
    assert torch.equal(a, b) and not torch.equal(a, c) and not model.training


def test_perturbed_bridges_use_x_T_where_they_should():
    """The endpoints are not exchanged: at t = 0 both bridges show the control, at t = 1 the perturbed cell."""
    a, b = torch.zeros(3, N), torch.ones(3, N)
    for t, end in ((torch.zeros(3, 1), a), (torch.ones(3, 1), b)):
        assert torch.equal(bridge_sample(a, b, t, 0.2), end) and torch.equal(mixture_sample(a, b, t), end)


@pytest.mark.parametrize("paper", [False, True])
def test_a_trained_bridge_carries_one_population_to_another(paper):
    """One gene that rises and switches on, five that stay: sampled means and fractions come out right."""
    g = torch.Generator().manual_seed(0)

    def cells_of(n, perturbed):
        level = 1 + perturbed * torch.tensor([1.0] + [0.0] * (N - 1))
        on = torch.tensor([0.9 if perturbed else 0.5] + [0.5] * (N - 1))
        return (level + 0.2 * torch.randn(n, N, generator=g)) * (torch.rand(n, N, generator=g) < on)

    settings = Settings(width=64).as_in_the_paper() if paper else Settings(width=64)
    model = model_for(settings)
    torch.nn.init.zeros_(model.encoder.memory.weight)
    X = sparse.csr_matrix(torch.cat([cells_of(500, False), cells_of(500, True)]).numpy())
    values = ActiveValues(*active_values(X, [np.arange(500), np.arange(500, 1000)]))
    condition, which = model.condition([("g0", 1.0)], "a"), torch.zeros(256, dtype=torch.long)
    optimiser = torch.optim.Adam(model.train().parameters(), lr=0.005)
    cooling = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, 400)
    for _ in range(400):
        optimiser.zero_grad()
        sum(joint_loss(model, cells_of(256, False), cells_of(256, True), [condition], which,
                       torch.tensor([[0, 1]]).repeat(256, 1), values, g)).backward()
        optimiser.step()
        cooling.step()
    cells, level = sample(model, cells_of(2000, False), condition, values, g)
    assert (cells >= 0).all() and torch.equal(cells[cells > 0], level[cells > 0])
    expected = cells_of(2000, True)
    assert ((cells > 0).float().mean(0) - (expected > 0).float().mean(0)).abs().max() < 0.06
    assert (cells.mean(0) - expected.mean(0)).abs().max() < 0.15
    if not paper:                                                          # zeros left in the bridge pull it towards zero
        assert (cells.std(0) / expected.std(0) - 1).abs().max() < 0.1
