"""What a condition becomes: the embedding of Part I, and the shifts and memory of the additions."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sample
from departures import ConditionEncoder, Conditions, ImprovedSettings, Noise, model_class
from screens import InputError

GENES = 6
A, B = 0, 1  # cell types


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


# ==== Additions ===================================================================================
#
# g0 and g1 are measured genes; g0 was perturbed in cell type A only, g1 in both, `other` in none.


def model_of(kind="gene", networks=1, **changed):
    """A model with a random memory, two cell types and genes with statistics of their own."""
    torch.manual_seed(0)
    own = ImprovedSettings(width=8, embedding=8, **changed)
    genes = [f"g{i}" for i in range(GENES)]
    names = genes, ["g0", "g1", "other"], ["a", "b"]
    model = model_class(own)(own, *names, kind, structure=3, networks=networks)
    rng = np.random.default_rng(0)
    for cell_type in ("a", "b"):
        level = rng.uniform(0.5, 2, GENES)
        fraction = rng.uniform(0.1, 0.9, GENES)
        model.describe_cell_type(cell_type, level * fraction, level, fraction, 100)
    model.level_scale[:] = torch.linspace(0.5, 2, GENES)
    model.gene_scale[:] = torch.linspace(1, 0.5, GENES)
    encoder = model.encoder
    encoder.seen[:2] = True
    encoder.seen_in_type[0, A] = True
    encoder.seen_in_type[1] = True
    for weight in (encoder.memory.weight, encoder.hill.weight, encoder.hill.bias):
        torch.nn.init.normal_(weight)
    return model.requires_grad_(False).eval()


def with_effects(**changed):
    """The same, with random effects of its gene networks and larger gains."""
    model = model_of(**changed)
    model.encoder.effects.normal_()
    for layer in model.encoder.gain:
        layer.weight.normal_()
    return model


class Shift:
    """What a model's encoder says of a condition."""

    def __init__(self, model, asked, noise=None):
        self.level, self.log_odds, self.told, _ = model.encoder(asked, model, noise)
        self.both = torch.cat([self.level, self.log_odds], 1)


# ---- Shifts --------------------------------------------------------------------------------------


def test_no_perturbation_shifts_nothing():
    """Whatever is remembered, and whatever the gene network says."""
    found = Shift(with_effects(), condition())
    assert not found.both.any()
    assert not found.told.any()


def test_remembered_shifts_of_several_targets_add():
    """And so does what the networks are told."""
    model = model_of()
    both, first, second = (Shift(model, condition(*targets)) for targets in ((0, 1), (0,), (1,)))
    assert torch.allclose(both.both, first.both + second.both, atol=1e-5)
    assert torch.allclose(both.told, first.told + second.told, atol=1e-6)
    assert min(first.both.abs().max(), second.both.abs().max()) > 0.1


def test_effects_of_several_targets_along_the_gene_network_add():
    """In any order, and without the empty places of a batch."""
    model = with_effects(networks=2)

    def effect(*targets):
        return model.encoder.effect_of_networks(condition(*targets), model)

    assert torch.allclose(effect(0, 2), effect(0) + effect(2))
    assert torch.equal(effect(2, 0), effect(0, 2))
    assert torch.equal(effect(1, -1), effect(1))


def with_effects_only(networks):
    """A model that remembers nothing and hides, in training, whatever it may."""
    model = with_effects(networks=networks)
    model.encoder.memory.weight.zero_()
    model.encoder.dropout = 1.0
    return model


def test_in_training_the_fitted_network_is_hidden_beside_a_users_one_and_in_sampling_never():
    """With probability `target_dropout`, here 1: as if it said nothing."""
    both = with_effects_only(2)
    users = with_effects_only(2)
    users.encoder.effects[0] = 0
    found = [Shift(model.train(), condition(1), Noise(0)).both for model in (both, users)]
    assert torch.equal(*found)
    found = [Shift(model.eval(), condition(1)).both for model in (both, users)]
    assert not torch.equal(*found)


def test_the_fitted_network_alone_is_never_hidden():
    """There is nothing else to learn to trust."""
    model = with_effects_only(1)
    in_training = Shift(model.train(), condition(1), Noise(0)).both
    assert torch.equal(in_training, Shift(model.eval(), condition(1)).both)


# ---- What the gene networks say ------------------------------------------------------------------


def test_a_knock_down_takes_a_target_from_its_mean_to_0_in_standard_deviations():
    """Of its cell type; one that is not measured falls by 1."""
    model = model_of()
    model.control_mean[A, 0] = 0.5
    model.control_mean[:, 1] = torch.tensor([0.5, 1.0])
    model.gene_scale[:2] = torch.tensor([1.0, 0.25])
    found = model.knock_down(torch.tensor([0, 1, 1, 2]), torch.tensor([A, A, B, A]))
    assert found.tolist() == [-0.5, -2.0, -4.0, -1.0]


@pytest.mark.parametrize("cell_type", [A, B])
def test_a_network_says_its_effect_of_one_unit_times_the_fall(cell_type):
    """Each of two networks by itself."""
    model = with_effects(networks=2)
    found = model.encoder.effect_of_networks(condition(1, cell_type=cell_type), model)
    fall = -model.control_mean[cell_type, 1] / model.gene_scale[1]
    assert torch.allclose(found[:, 0], model.encoder.effects[:, 1] * fall)


def shift_gene_by_gene(model, effect, cell_type):
    """Shifts of level and log odds (2, N) by effects (G, N), one gene after the other, in NumPy."""
    into, out = model.encoder.gain
    statistics = [model.control_mean[cell_type], model.control_fraction[cell_type]]
    shifts = []
    for i in range(GENES):
        known = [float(part[i]) for part in (*statistics, model.level_scale, *effect)]
        hidden = into.weight.numpy() @ known + into.bias.numpy()
        hidden = hidden / (1 + np.exp(-hidden))
        gain = out.weight.numpy() @ hidden + out.bias.numpy()
        of_level, of_log_odds = np.split(gain, 2)
        own = effect[:, i].numpy()
        shifts.append((of_level @ own, of_log_odds @ own))
    return np.array(shifts).T


@pytest.mark.parametrize("networks", [1, 2])
@pytest.mark.parametrize("cell_type", [A, B])
def test_each_gene_trusts_the_networks_by_its_own_statistics(networks, cell_type):
    """One small map for all genes makes the gains of mean, fraction, scale and the effects."""
    model = with_effects(networks=networks)
    asked = condition(2, cell_type=cell_type)  # of which nothing is remembered
    found = Shift(model, asked)
    effect = model.encoder.effect_of_networks(asked, model)[:, 0]
    expected = shift_gene_by_gene(model, effect, cell_type)
    assert np.allclose(found.level[0], expected[0], atol=1e-5)
    assert np.allclose(found.log_odds[0], expected[1], atol=1e-5)


def test_a_network_moves_the_genes_that_it_reaches_and_no_others():
    """Of an unseen target, of which nothing is remembered."""
    model = model_of()
    model.encoder.effects[0, 2, 4] = 1.0
    found = Shift(model, condition(2))
    assert (found.level[0] != 0).tolist() == [False] * 4 + [True, False]
    assert (found.log_odds[0] != 0).tolist() == [False] * 4 + [True, False]


def test_what_the_networks_say_and_what_is_remembered_add():
    """Of a seen target."""
    model = with_effects()
    effects = model.encoder.effects.clone()
    whole = Shift(model, condition(0)).both
    model.encoder.effects.zero_()
    remembered = Shift(model, condition(0)).both
    model.encoder.effects.copy_(effects)
    model.encoder.memory.weight.zero_()
    assert torch.allclose(whole, remembered + Shift(model, condition(0)).both, atol=1e-5)


# ---- What is remembered --------------------------------------------------------------------------


@pytest.mark.parametrize("cell_type", [A, B])
def test_what_is_remembered_belongs_to_a_target(cell_type):
    """A linear map of its vector: the first half is the level, the second the log odds.

    In every cell type, those among them where it was not seen.
    """
    model = model_of()
    found = Shift(model, condition(0, cell_type=cell_type))
    remembered = model.encoder.memory.weight @ model.encoder.target.weight[0]
    level, log_odds = remembered.split(GENES)
    assert torch.allclose(found.level[0], level, atol=1e-6)
    assert torch.allclose(found.log_odds[0], log_odds, atol=1e-6)


def test_of_an_unseen_gene_nothing_is_remembered():
    """Neither for its shifts, nor for the networks."""
    found = Shift(model_of(), condition(2))
    assert not found.both.any()
    assert not found.told.any()


def test_the_networks_hear_of_a_gene_only_in_the_types_where_it_was_seen():
    """Elsewhere they hear of no perturbation."""
    model = model_of()
    in_a, in_b = (Shift(model, condition(0, cell_type=k)).told[0] for k in (A, B))
    assert torch.equal(in_a, model.encoder.target.weight[0])
    assert not in_b.any()


def test_of_several_genes_the_networks_hear_of_those_that_were_seen_in_the_type():
    """g1 was seen in cell type B, and g0 was not."""
    model = model_of()
    found = Shift(model, condition(0, 1, cell_type=B))
    assert torch.equal(found.told[0], model.encoder.target.weight[1])


def test_in_a_cell_type_that_was_never_trained_the_networks_hear_of_no_gene():
    """Also where the last type of training saw it."""
    model = model_of()
    model.describe_cell_type("c", *[np.full(GENES, 0.5)] * 3, 100)
    found = Shift(model, condition(1, cell_type=2))
    assert not found.told.any()
    assert found.both.any()


@pytest.mark.parametrize(
    "kind, changed", [("drug", {}), ("gene", {"null_pairs": False}), ("gene", {"prior": 0.0})]
)
def test_the_networks_hear_of_it_everywhere_where_the_rule_does_not_hold(kind, changed):
    """For drugs, and where null pairs did not teach them z = 0 or no prior holds the memory."""
    model = model_of(kind, **changed)
    in_a, in_b = (Shift(model, condition(0, cell_type=k)).told[0] for k in (A, B))
    assert in_a.any()
    assert torch.equal(in_a, in_b)


def test_in_training_the_networks_hear_of_what_is_remembered_everywhere():
    """There a condition is of a type where it was seen, whatever the table says."""
    model = model_of(target_dropout=0.0).train()
    found = Shift(model, condition(0, cell_type=B), Noise(0))
    assert torch.equal(found.told[0], model.encoder.target.weight[0])


# ---- What drops out in training ------------------------------------------------------------------


def repeated(asked, n):
    """A batch of one condition n times."""
    return Conditions(*(part.expand(n, *part.shape[1:]) for part in asked))


def equal_rows(z, one):
    """Which rows of z (n, k) are equal to one (k,)."""
    return (z - one).abs().amax(1) < 1e-5


def test_what_drops_out_in_training_is_there_in_sampling():
    """With a chance of 1 to hide it, nothing of a target is remembered in training."""
    model = model_of(target_dropout=1.0)
    target = model.encoder.target.weight
    assert torch.equal(Shift(model, condition(0)).told[0], target[0])
    assert torch.equal(Shift(model.train(), condition(0), Noise(0)).told[0], target[-1])


def test_a_target_is_hidden_with_the_chance_that_was_set():
    """In its place stands the memory of an unknown target; within 5 standard errors of 0.3."""
    model = model_of(target_dropout=0.3).train()
    told = Shift(model, repeated(condition(0), 1000), Noise(0)).told
    target = model.encoder.target.weight
    hidden = equal_rows(told, target[-1])
    assert (hidden | equal_rows(told, target[0])).all()
    assert abs(hidden.float().mean() - 0.3) < 5 * (0.3 * 0.7 / 1000) ** 0.5


def test_all_targets_of_a_condition_are_hidden_together():
    """Else a pair could be told from its half that shows."""
    model = model_of(target_dropout=0.5).train()
    told = Shift(model, repeated(condition(0, 1), 100), Noise(0)).told
    target = model.encoder.target.weight
    hidden = equal_rows(told, 2 * target[-1])
    shown = equal_rows(told, target[0] + target[1])
    assert (hidden | shown).all()
    assert hidden.any() and shown.any()


def test_no_perturbation_has_nothing_to_hide():
    """In training as well it is z = 0."""
    model = model_of(target_dropout=1.0).train()
    found = Shift(model, condition(), Noise(0))
    assert not found.told.any()
    assert not found.both.any()


def test_what_is_hidden_is_drawn_from_the_runs_own_random_numbers():
    """The same seed hides the same conditions, and another seed others."""
    model = model_of(target_dropout=0.5).train()
    asked = repeated(condition(0), 50)
    first, again, other = (Shift(model, asked, Noise(seed)).told for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# ---- Drugs: dose ---------------------------------------------------------------------------------


def strength_of(model, dose):
    """How much of what is remembered of drug 0 acts at a dose."""
    z = model.encoder.target.weight[0]
    told = Shift(model, condition(0, doses=[dose])).told[0]
    return float(told @ z / (z @ z))


def drugs_with(slope, half_way, usual_dose=1.0):
    """A model of drugs whose Hill curves all have this slope and half-way dose."""
    model = model_of("drug")
    model.encoder.hill.weight.zero_()
    middle = np.log10(half_way / usual_dose)
    model.encoder.hill.bias.copy_(torch.tensor([np.log(slope), middle]))
    model.encoder.usual_dose.fill_(np.log10(usual_dose))
    return model


@settings(deadline=None, max_examples=50)
@given(st.floats(0.2, 5), st.floats(-3, 3), st.floats(-6, 6), st.floats(-3, 3))
def test_a_dose_acts_through_a_hill_curve(slope, half_way, dose, usual_dose):
    """dose^h / (dose^h + half^h), in the logarithm of the dose to base 10; h is slope / ln 10."""
    model = drugs_with(slope, 10**half_way, 10**usual_dose)
    expected = 1 / (1 + (10**half_way / 10**dose) ** (slope / np.log(10)))
    assert strength_of(model, 10**dose) == pytest.approx(expected, abs=1e-4)


def test_a_drug_does_nothing_at_dose_0_and_all_it_can_at_a_very_large_one():
    """Its strength rises with the dose in between."""
    model = drugs_with(slope=3.0, half_way=0.1)
    strength = [strength_of(model, dose) for dose in (0, 1e-3, 1e-2, 1e-1, 1, 10, 1e9)]
    assert strength == sorted(set(strength))
    assert strength[0] == pytest.approx(0, abs=1e-6)
    assert strength[-1] == pytest.approx(1, abs=1e-6)


def test_the_unit_of_the_dose_does_not_matter():
    """It is counted from the usual dose: here once in mM, once in uM."""
    model = model_of("drug")
    before = Shift(model, condition(0, doses=[0.3])).both
    model.encoder.usual_dose += 3
    after = Shift(model, condition(0, doses=[300.0])).both
    assert torch.allclose(before, after, rtol=1e-4, atol=1e-5)


def test_each_drug_has_a_curve_of_its_own():
    """A linear map of what is remembered of it."""
    model = model_of("drug")
    z = model.encoder.target.weight[:2]
    slope, middle = (z @ model.encoder.hill.weight.T + model.encoder.hill.bias).T
    expected = z * torch.sigmoid(slope.exp() * (np.log10(20) - middle))[:, None]
    found = [Shift(model, condition(drug, doses=[20.0])).told[0] for drug in (0, 1)]
    assert torch.allclose(torch.stack(found), expected, atol=1e-6)
    assert (slope[0] - slope[1]).abs() > 0.1


def test_a_gene_has_no_dose():
    """Whatever number stands in its place."""
    model = model_of()
    shifts = [Shift(model, condition(0, doses=[dose])).both for dose in (1e-3, 1.0)]
    assert torch.equal(*shifts)


# ---- Drugs: structure ----------------------------------------------------------------------------


def with_structures(**changed):
    """A model of drugs of which the first two were seen, whose three structures are known."""
    model = model_of("drug", **changed)
    model.encoder.structure.copy_(torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0, 1]]))
    return model


def from_structure(encoder, drug):
    """What is known of a drug by its structure, at the usual dose: (k,)."""
    z = encoder.from_structure.weight @ encoder.structure[drug] + encoder.from_structure.bias
    slope, middle = encoder.hill.weight @ z + encoder.hill.bias
    return z * torch.sigmoid(-slope.exp() * middle)


def test_a_structure_stands_in_for_a_drug_that_was_never_seen():
    """As what is remembered of it, with a Hill curve of its own."""
    model = with_structures()
    expected = from_structure(model.encoder, 2)
    found = Shift(model, condition(2))
    assert torch.allclose(found.told[0], expected, atol=1e-6)
    assert torch.allclose(found.both[0], model.encoder.memory.weight @ expected, atol=1e-6)


def test_a_drug_that_was_seen_is_known_by_its_own_memory():
    """Its structure changes nothing."""
    with_its_structure = Shift(with_structures(), condition(0))
    assert torch.equal(with_its_structure.both, Shift(model_of("drug"), condition(0)).both)


def test_in_training_a_hidden_drug_is_known_by_its_structure():
    """So that the map from structures is learnt; without one it is an unknown drug."""
    model = with_structures(target_dropout=1.0).train()
    hidden = Shift(model, condition(0), Noise(0)).told[0]
    assert torch.allclose(hidden, from_structure(model.encoder, 0), atol=1e-6)
    model.encoder.structure[0] = 0
    model.encoder.hill.weight.zero_()
    model.encoder.hill.bias.copy_(torch.tensor([0.0, -100.0]))  # the whole of it at any dose
    unknown = Shift(model, condition(0), Noise(0)).told[0]
    assert torch.allclose(unknown, model.encoder.target.weight[-1])


# ---- What nothing is known of --------------------------------------------------------------------


def test_a_target_is_reachable_through_any_network_or_a_structure():
    """One number other than 0 is enough."""
    encoder = model_of(networks=2).encoder
    assert not encoder.reachable().any()
    encoder.effects[0, 0, 3] = 1.0
    encoder.effects[1, 1, 0] = -1.0
    assert encoder.reachable().tolist() == [True, True, False]
    encoder.structure[2, 1] = 1.0
    assert encoder.reachable().all()


@pytest.mark.parametrize("kind", ["gene", "drug"])
def test_of_a_target_of_which_nothing_is_known_nothing_is_predicted(kind):
    """Its shift is 0, and so it is refused."""
    model = model_of(kind)
    assert not Shift(model, condition(2)).both.any()
    screen = SimpleNamespace(source="f.h5ad")
    with pytest.raises(InputError, match="cannot predict 'other'"):
        sample.check_predictable(model, screen, [("other", "a")])


def test_a_target_that_a_network_reaches_is_not_refused():
    """The prediction is what the network says."""
    model = model_of()
    model.encoder.effects[0, 2, 4] = 1.0
    sample.check_predictable(model, SimpleNamespace(source="f.h5ad"), [("other", "a")])
    assert Shift(model, condition(2)).both.any()


# ---- Cells and cell types ------------------------------------------------------------------------


def test_each_cell_is_handed_its_own_condition():
    """Conditions are encoded once, and cells say which is theirs."""
    model = with_effects()
    asked = Conditions(torch.tensor([[0], [1]]), torch.ones(2, 1), torch.tensor([A, B]))
    which = torch.tensor([1, 0, 1, 1])
    found = model.encode(asked, which)
    level, log_odds, z, penalty = model.encoder(asked, model)
    expected = [asked.cell_type, z, level, log_odds, penalty]
    for part, of_condition in zip(found, expected, strict=True):
        assert torch.equal(part, of_condition[which])


def test_a_cell_type_that_was_never_trained_has_the_mean_of_the_labels():
    """And the others keep their own."""
    model = model_of()
    model.describe_cell_type("c", *[np.full(GENES, 0.5)] * 3, 100)
    labels = model.labels(torch.tensor([2, A, B]))
    assert torch.allclose(labels[0], labels[1:].mean(0))
    assert torch.equal(labels[1:], model.label.weight)


def test_a_new_cell_type_is_known_by_its_own_controls():
    """The tables have a row more, and those of the other types stay."""
    model = model_of()
    before = model.control_mean.clone()
    mean = np.linspace(0.1, 0.6, GENES)
    model.describe_cell_type("c", mean, mean + 1, mean, 100)
    assert torch.equal(model.control_mean[:2], before)
    assert np.allclose(model.control_mean[2], mean)
    assert np.allclose(model.control_level[2], mean + 1)


def test_a_cell_type_can_be_described_again():
    """By other controls: its row is replaced."""
    model = model_of()
    model.describe_cell_type("a", *[np.full(GENES, 0.25)] * 3, 100)
    assert model.cell_types == ["a", "b"]
    assert np.allclose(model.control_mean[A], 0.25)
