"""Facts about the gene network, the condition encoder and the two endpoint predictors."""
import numpy as np
import pytest
import torch
from scipy import stats
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from departures import (ActiveValues, Departures, Encoded, Settings, coexpression_network, fit_structural_equations, joint_loss, propagate, put,
                        structural_effects)

N = 6


def model_for(settings=None, targets=("g0", "g1", "other"), kind="gene"):
    torch.manual_seed(0)
    model = Departures(settings or Settings(), [f"g{i}" for i in range(N)], list(targets), ["a", "b"], kind)
    for t, level in (("a", 1.0), ("b", 2.0)):
        model.add_cell_type(t, np.full(N, 0.5 * level), np.full(N, level), np.full(N, 0.5), 100)
    model.encoder.seen[:2] = True
    model.encoder.seen_pair[:2, 0] = True
    torch.nn.init.normal_(model.encoder.memory.weight)
    return model.eval()


def test_untrained_predictors_are_the_one_gene_answers():
    """With silent trunks, x_theta is the Gaussian regression along the mean path and d_theta Bayes' posterior from the shifted prior."""
    model, g = model_for(), torch.Generator().manual_seed(0)
    model.control_fraction[:] = torch.rand(2, N, generator=g)
    t, x, d = torch.full((4, 1), 0.4), torch.rand(4, N, generator=g), (torch.rand(4, N, generator=g) < 0.5).float()
    k = torch.ones(4, dtype=torch.long)
    condition = Encoded(*(p.expand(4, -1) for p in model.encoder([model.condition([("g0", 1.0)], "b")], model)))
    start, end = model.control_level[1], model.control_level[1] + condition.level
    mean = 0.6 * start + 0.4 * end
    assert torch.allclose(model.predict_level(t, mean, d, k, k, condition), end, atol=1e-5)
    assert torch.allclose(model.predict_level(t, x, d, k, k, condition) - end, model.gate(t) * (x - mean), atol=1e-5)
    learnt = torch.randn(4, N, generator=g)                                # whatever that is, it counts for the time left, and at T for nothing
    model.x_trunk.forward = lambda *_: learnt
    expected = end + model.gate(t) * (x - mean) + 0.6 * model.level_scale * learnt
    assert torch.allclose(model.predict_level(t, x, d, k, k, condition), expected, atol=1e-5)
    assert torch.allclose(model.predict_level(torch.ones(4, 1), x, d, k, k, condition), x, atol=1e-5)
    expected = torch.logit(model.control_fraction[1]) + condition.logit + model.evidence(t, d, k)
    assert condition.logit.abs().max() > 0.1 and torch.allclose(model.predict_logit(t, x, d, k, k, condition), expected, atol=1e-5)
    plain = model_for(Settings(skip_gate=False))
    assert torch.allclose(plain.predict_level(t, x, d, k, k, condition), plain.control_level[1] + condition.level, atol=1e-5)
    assert torch.allclose(plain.predict_logit(t, x, d, k, k, condition), torch.logit(plain.control_fraction[1]) + condition.logit, atol=1e-5)


def test_knock_down_takes_a_target_from_its_mean_to_zero_in_standard_deviations():
    model = model_for()
    model.gene_scale[1] = 0.25
    got = model.knock_down(torch.tensor([0, 1, 1, 2]), torch.tensor([0, 0, 1, 0]))         # targets g0, g1, g1, one not measured
    assert torch.allclose(got, torch.tensor([-0.5, -2.0, -4.0, -1.0]))


def test_no_perturbation_shifts_nothing_and_effects_of_several_targets_add():
    model = model_for()
    null, one, two, both = (model.encoder([model.condition([(g, 1.0) for g in genes], "a")], model)
                            for genes in ((), ("g0",), ("g1",), ("g0", "g1")))
    assert not null.level.any() and not null.logit.any()
    assert one.level.abs().max() > 0.1
    assert torch.allclose(both.level, one.level + two.level, atol=1e-5)


def test_memory_is_of_the_target_and_of_the_target_in_its_cell_type():
    model = model_for()
    in_a, in_b = (model.encoder([model.condition([("g0", 1.0)], t)], model) for t in ("a", "b"))
    target, pair = model.encoder.target.weight[:1], model.encoder.pair.weight[:1]
    assert torch.allclose(in_b.level, model.encoder.memory(target)[:, :N]) and torch.allclose(in_a.z, target + pair)
    assert torch.allclose(in_a.level, model.encoder.memory(target + pair)[:, :N], atol=1e-5)


def test_target_dropout_hides_the_memory_in_training_only():
    model = model_for(Settings(target_dropout=1.0))
    condition = [model.condition([("g0", 1.0)], "a")]
    assert not torch.allclose(model.train().encoder(condition, model).z, model.eval().encoder(condition, model).z)
    assert torch.allclose(model.train().encoder(condition, model).z, model.encoder.target.weight[-1:])


def test_the_prior_weighs_every_shift_that_the_memory_makes():
    """Minus log of a Cauchy density, against SciPy's: per cell, Eq. 14's share of the logit and Eq. 9's of the level."""
    model = model_for(Settings(target_dropout=0.0, type_dropout=0.0, prior=0.2))
    model.encoder.cells.fill_(50.0)
    model.level_scale[:] = torch.linspace(0.5, 2.0, N)
    model.control_fraction[:] = torch.rand(2, N, generator=torch.Generator().manual_seed(0))
    conditions = [model.condition([("g0", 1.0)], "b"), model.condition([("g0", 1.0)], "a"), ((), 1)]
    level, logit, _, prior = model.encoder(conditions, model)              # in b, in a (which has a part of its own), under no perturbation
    unlikely = [stats.cauchy.logpdf(0) - stats.cauchy.logpdf(part.detach().numpy() / 0.2) for part in (level / model.level_scale, logit)]
    variances = 2 * model.level_scale.numpy() ** 2 / model.control_fraction.mean().item()
    assert prior.flatten().tolist() == pytest.approx((variances * unlikely[0] + unlikely[1]).mean(1) / 50, rel=1e-4)
    assert prior[2] == 0 < prior[0] and not torch.equal(level[0], level[1])
    alone = model_for(Settings(discrete=False, if_expressed=False, target_dropout=0.0, prior=0.2))                        # Eq. 9 counts all genes then
    alone.encoder.cells.fill_(50.0)
    level, _, _, prior = alone.encoder(conditions[:1], alone)
    assert prior.item() == pytest.approx(2 / 50 * torch.log1p((level / 0.2) ** 2).mean().item(), rel=1e-4)
    without, drug, unmeasured = model_for(Settings(prior=0.0)), model_for(kind="drug"), model_for()
    for counted in (without, drug):
        counted.encoder.cells.fill_(50.0)
    assert not any(silent.encoder(conditions, silent).prior.any() for silent in (without, drug, unmeasured))


def test_trunks_hear_of_a_gene_only_in_types_where_it_was_seen_but_always_of_a_drug():
    model = model_for()
    z = [model.encoder([model.condition([("g0", 1.0)], t)], model).z for t in ("a", "b")]
    assert z[0].any() and not z[1].any()
    pair = model.encoder([model.condition([("g0", 1.0), ("g1", 1.0)], "a")], model).z
    assert torch.allclose(pair, z[0] + model.encoder([model.condition([("g1", 1.0)], "a")], model).z)
    learning = model_for(Settings(type_dropout=1.0, target_dropout=0.0)).train()           # in training the trunks must learn what they can
    assert torch.allclose(learning.encoder([learning.condition([("g0", 1.0)], "a")], learning).z, learning.encoder.target.weight[:1])
    untaught = model_for(Settings(null_pairs=False))
    assert untaught.encoder([untaught.condition([("g0", 1.0)], "b")], untaught).z.any()
    drug = model_for(kind="drug")
    assert drug.encoder([drug.condition([("g0", 1.0)], "b")], drug).z.any()


def test_unseen_target_gets_the_shrunken_mean_of_those_seen():
    """Opposite memories shrink to nothing; equal ones are believed."""
    model = model_for()
    with torch.no_grad():
        model.encoder.pair.weight.zero_()
        model.encoder.target.weight[0], model.encoder.target.weight[1] = 1.0, -1.0
    assert not model.encoder.expected().any()
    with torch.no_grad():
        model.encoder.target.weight[:2] = 1.0
    assert torch.allclose(model.encoder.expected(), torch.ones(64))
    with torch.no_grad():                                                  # 4 and 2, each gene shift as large as the memory itself
        model.encoder.target.weight[0], model.encoder.target.weight[1] = 4.0, 2.0
        model.encoder.memory.weight.zero_()[:, 0] = 1.0
    chance = (1 + 1) / (2 * 1)                                             # the error of a mean of two: sum of squares / n (n - 1)
    assert torch.allclose(model.encoder.expected(), torch.tensor(3 * (1 - chance / 9)))


def test_what_nothing_is_known_of_is_refused():
    model = model_for()
    for target in ("other", "nobody", "g5"):
        with pytest.raises(ValueError, match=f"cannot predict '{target}'"):
            model.condition([(target, 1.0)], "a")
    model.encoder.effects[0, 2, 3] = 1.0                                   # the network knows it now
    assert model.condition([("other", 1.0)], "a") == (((2, 1.0),), 0)


def test_gene_network_reaches_targets_without_memory():
    model = model_for(targets=("g0", "g1", "g2"))
    model.encoder.effects[0, 2, 4] = 1.0
    with torch.no_grad():
        model.encoder.target.weight.zero_()
        model.encoder.pair.weight.zero_()
    shift = model.encoder([model.condition([("g2", 1.0)], "a")], model).level[0]
    assert shift[4].abs() > 0.05 and not shift[[0, 1, 2, 3, 5]].any()


def test_dose_acts_through_a_hill_curve():
    """The memory of a drug grows with dose from nothing to all of it, half at the midpoint; genes have no dose."""
    model = model_for(targets=("drug", "other"), kind="drug")
    z = [model.encoder([model.condition([("drug", dose)], "b")], model).z.norm().item() for dose in (1e-6, 1.0, 1e6)]
    assert z[0] < 0.01 * z[2] and z[1] == pytest.approx(z[2] / 2, rel=0.01)


def simulated_equations(P=6, N=40, seed=0):
    """A linear structural equation model: total effects (P, N), correlation matrix, standard deviations."""
    g = np.random.default_rng(seed)
    W = np.zeros((N, N))
    for j in range(1, N):
        parents = g.choice(min(j, P), min(2, min(j, P)), replace=False)
        W[j, parents] = g.choice([-1, 1], len(parents)) * g.uniform(0.5, 1.0, len(parents))
    total = np.linalg.inv(np.eye(N) - W)
    S = total @ total.T + 0.5 * np.eye(N)
    sd = np.sqrt(np.diag(S))
    return total[:, :P].T / sd * sd[:P, None], S / sd[:, None] / sd, sd


def test_structural_equations_recover_effects_of_targets_that_were_never_perturbed():
    """Against ridge regression, which cannot tell a cause from a consequence."""
    truth, R, _ = simulated_equations()
    nodes, P = torch.arange(6), 6
    knock = -torch.eye(P)[:4]
    R_ = torch.tensor(R, dtype=torch.float32)
    shift = torch.tensor(-truth[:4], dtype=torch.float32)
    effects = fit_structural_equations(R_, 5000, nodes, knock, shift, torch.full_like(shift, 0.003), factors=1, sparsity=20.0)
    ridge = torch.linalg.solve(R_[:6, :6] + 0.1 * torch.eye(6), R_[:6])
    error = lambda x: np.linalg.norm(x.numpy()[4:, 6:] - truth[4:, 6:]) / np.linalg.norm(truth[4:, 6:])  # noqa: E731
    assert error(effects) < 0.5 * error(ridge) and error(effects) < 0.35
    assert np.linalg.norm(effects.numpy()[:4] - truth[:4]) < 0.2 * np.linalg.norm(truth[:4])


def test_cross_fitted_rows_do_not_see_their_own_knock_down():
    """Turning a training target's measured shift upside down must not turn its own row."""
    truth, R, _ = simulated_equations()
    R_, knock = torch.tensor(R, dtype=torch.float32), -torch.eye(6)[:4]
    rows = []                                                              # two targets to a fold
    for sign in (1, -1):
        shift = torch.tensor(-truth[:4], dtype=torch.float32)
        shift[0] *= sign
        rows.append(structural_effects(R_, 5000, torch.arange(6), knock, shift, torch.full_like(shift, 0.003), folds=2,
                                       factors=1, steps=100)[0])
    assert torch.allclose(*rows) and rows[0].abs().max() > 0.1


def test_messages_of_a_silenced_gene_follow_the_edges():
    """0 -> 1 -> 2, and 3 alone; a silenced gene does not answer to its own regulators."""
    W = torch.zeros(4, 4)
    W[1, 0], W[2, 1] = 0.5, -2.0
    effect = propagate(W, torch.tensor([0, 1]))
    assert torch.equal(effect, torch.tensor([[1.0, 1.0, -1.0, 0.0], [0.0, 1.0, -1.0, 0.0]]))


def test_coexpression_edges_are_correlations_above_the_threshold():
    S = torch.tensor([[4.0, 1.0, 0.2], [1.0, 1.0, -0.5], [0.2, -0.5, 1.0]])
    assert torch.allclose(coexpression_network(S), torch.tensor([[0, 0.5, 0], [0.5, 0, -0.5], [0, -0.5, 0]]))


def test_if_expressed_levels_of_silent_genes_are_hidden_from_the_network():
    """x_theta's answer for other genes does not move when a silent gene's level does."""
    model = model_for()
    torch.nn.init.normal_(model.x_trunk.out[2].weight)
    null = Encoded(*(p.expand(1, -1) for p in model.encoder([((), 0)], model)))
    d = torch.tensor([[1.0, 0, 1, 1, 1, 1]])
    predict = lambda x: model.predict_level(torch.tensor([[0.5]]), x, d, torch.tensor([0]), torch.tensor([0]), null)[0]  # noqa: E731
    x = torch.ones(1, N)
    moved = x.clone()
    moved[0, 1] = 3.0
    assert torch.equal(predict(x)[[0, 2, 3, 4, 5]], predict(moved)[[0, 2, 3, 4, 5]])
    moved = x.clone()
    moved[0, 0] = 3.0
    assert not torch.equal(predict(x)[[2, 3, 4, 5]], predict(moved)[[2, 3, 4, 5]])


def test_bfloat16_rounds_the_trunks_and_nothing_else():
    """The same weights: answers equal while the trunks are silent, then within bfloat16's rounding of float32's, but not the same."""
    silent, loud = [], []
    for bfloat16 in (False, True):
        model, g = model_for(Settings(bfloat16=bfloat16)), torch.Generator().manual_seed(0)
        x, k = torch.rand(8, N, generator=g), torch.zeros(8, dtype=torch.long)
        condition = Encoded(*(p.expand(8, -1) for p in model.encoder([model.condition([("g0", 1.0)], "a")], model)))
        answer = lambda: torch.cat([predict(torch.full((8, 1), 0.3), x, (x > 0.5).float(), k, k, condition)            # noqa: E731
                                    for predict in (model.predict_level, model.predict_logit)])
        silent.append(answer())
        for trunk in (model.x_trunk, model.d_trunk):
            torch.nn.init.normal_(trunk.out[2].weight, generator=g)
        loud.append(answer())
    assert torch.equal(*silent) and loud[1].dtype == torch.float32
    assert all(1e-5 < (a - b).abs().max() < 0.05 * a.abs().max() for a, b in zip(*(part.split(8) for part in loud)))


@pytest.mark.parametrize("options, kind", [({}, "gene"), ({"coupled": True, "bfloat16": True}, "gene"), ({"skip_gate": False}, "drug")])
def test_a_training_step_never_reads_a_number_from_the_device(options, kind):
    """With tensors that have shapes and no values, anything that reads one (item, bool, a mask's size) raises: a GPU would be waited for."""
    model = model_for(Settings(**options), kind=kind)
    conditions = [model.condition([("g0", 1.0)], "a"), model.condition([("g0", 2.0), ("g1", 1.0)], "a"), ((), 1)]
    values = ActiveValues(np.zeros((2, N), int), np.ones((2, N), int), np.ones(1, np.float32))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x0, xT, which = (mode.from_tensor(a) for a in (torch.rand(6, N), torch.rand(6, N), torch.arange(6) % 2))
        losses = joint_loss(model.train(), x0, xT, conditions, which, torch.stack([which, which], 1), values)
        sum(losses).backward()
        with pytest.raises(DataDependentOutputException):
            losses[0].item()


def test_what_the_host_sends_to_a_gpu_is_not_waited_for(monkeypatch):
    """From page-locked memory and without blocking; to a CPU neither is needed."""
    sent = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: sent.append("locked") or tensor)
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device, non_blocking=False: sent.append((device.type, non_blocking)) or tensor)
    assert put(torch.device("cuda"), [1, 2]).tolist() == [1, 2] and sent == ["locked", ("cuda", True)]
    sent.clear()
    assert put(torch.device("cpu"), [1.0]).tolist() == [1.0] and sent == [("cpu", False)]
