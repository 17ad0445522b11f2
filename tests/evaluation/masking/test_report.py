"""Gradient-masking alarms: which models they flag, which they clear, and where their thresholds lie."""

import copy
import dataclasses
import functools
import importlib
import math
import re

import pytest
import torch
from torch import nn

from advcontrast import PGDAttack
from advcontrast.attacks import ClassificationObjective, under_attack
from advcontrast.attacks.apgd import APGDAttack
from advcontrast.evaluation import Accuracy
from advcontrast.evaluation.masking.attack_alarms import (
    Alarm,
    attack_not_converged,
    loss_beaten,
    loss_decreases_with_strength,
    unbounded_attack,
    weaker_attack_wins,
)
from advcontrast.evaluation.masking.model_alarms import (
    batch_dependence,
    probability_output,
    randomised_output,
    train_mode,
    zero_gradients,
)
from advcontrast.evaluation.masking.report import (
    MaskingReport,
    gradient_masking,
    independent_signs,
    margin,
    normalised_margin,
    rescaled_cross_entropy,
    sign_search,
    window_signs,
)
from advcontrast.evaluation.uar import JPEGAttack
from tests.evaluation.networks import (
    EPS,
    PGD,
    After,
    BatchStatistics,
    Before,
    OnGrid,
    Smooth,
    Tempered,
    built,
    convolutions,
    fashion,
    linear,
    noisy,
    quantised,
    shattered,
    templates,
)

FLAT = nn.Flatten().eval()
ADVERSARIAL = PGDAttack(eps=EPS, step_size=EPS / 2, steps=2)
HONEST = {
    "undefended": lambda: built(convolutions),
    "adversarially trained": lambda: built(convolutions, attack=ADVERSARIAL),
    "linear": lambda: built(linear),
    "batch norm": lambda: built(convolutions, nn.BatchNorm2d),
}
MASKED = {
    "quantised input": lambda of: Before(quantised, of("undefended")),
    "large logits": lambda of: After(lambda logits: 1e4 * logits, of("undefended")),
    "randomised input": lambda of: Before(noisy, of("undefended")),
    "softmax output": lambda of: After(lambda logits: logits.softmax(1), of("undefended")),
    "detached input": lambda of: Before(torch.Tensor.detach, of("undefended")),
    "gradient not finite": lambda of: Before(lambda x: x.sqrt() ** 2, of("undefended")),
    "shattered gradient": lambda of: Before(shattered, of("undefended")),
    "gradient on the grid only": lambda of: Before(OnGrid.apply, of("undefended")),
    "gradient of smooth images only": lambda of: Before(Smooth.apply, of("batch norm")),
    "batch statistics": lambda of: built(convolutions, functools.partial(nn.BatchNorm2d, track_running_stats=False)),
    "train mode": lambda of: copy.deepcopy(of("batch norm")).train(),
}
EXPECTED = {
    "quantised input": {"zero gradients", "unbounded attack", "random noise", "gradient-free search", "transfer"},
    "large logits": {"zero gradients", "unbounded attack", "random noise", "gradient-free search", "transfer"},
    "randomised input": {"randomised output"},
    "softmax output": {"probability output"},
    "detached input": {"zero gradients", "unbounded attack", "random noise", "gradient-free search", "transfer"},
    "gradient not finite": {"zero gradients"},
    "shattered gradient": {"gradient-free search"},
    "gradient on the grid only": {"loss against steps", "one step", "random noise", "transfer"},
    "gradient of smooth images only": {"loss against eps"},
    "batch statistics": {"batch dependence"},
    "train mode": {"train mode"},
}
# Changes of the logits that change no decision but mislead an attack on the cross-entropy, with the alarms they raise.
HIDING = {
    "division by 1000": (lambda z: z / 1000, {"rescaled logits", "margin loss"}),
    "tiny logits": (lambda z: 1e-30 * z, {"rescaled logits", "margin loss"}),
    "denormal logits": (lambda z: 1e-40 * z, {"margin loss"}),
    "four times": (lambda z: 4 * z, {"rescaled logits", "margin loss"}),
    "leaky clip": (lambda z: z.clamp(max=3) + 1e-3 * z, {"margin loss"}),
    "signed root": (lambda z: z.sign() * (z.abs() + 1e-6).sqrt(), {"rescaled logits", "margin loss"}),
    "hyperbolic tangent": (lambda z: 5 * (z / 5).tanh(), {"rescaled logits", "margin loss"}),
    "sigmoid": (lambda z: z.sigmoid() - 0.3, {"margin loss"}),
    "cube": (lambda z: z**3, {"rescaled logits", "margin loss"}),
    "length one": (lambda z: z / z.norm(dim=1, keepdim=True), {"rescaled logits", "margin loss"}),
    "log-softmax times 1000": (lambda z: 1e3 * z.log_softmax(1), {"rescaled logits", "margin loss"}),
    "softmax of large logits": (lambda z: 10 * (20 * z).softmax(1) - 3, {"zero gradients", "unbounded attack"}),
}
HARMLESS = {"none": lambda z: z, "shift": lambda z: z + 100, "softmax": lambda z: 10 * z.softmax(1) - 3}
TEMPLATES = PGDAttack(eps=0.08, step_size=0.02, steps=10)
SHORT = dataclasses.replace(PGD, steps=3, step_size=EPS / 10)  # stops long before the surface of the ball


class Counting(nn.Module):
    """A network that counts its passes."""

    def __init__(self, network):
        super().__init__()
        self.network, self.forwards, self.backwards = network, 0, 0
        self.eval()

    def forward(self, x):
        self.forwards += 1
        logits = self.network(x)
        if logits.requires_grad:
            logits.register_hook(self.count)
        return logits

    def count(self, _):
        self.backwards += 1


def batches(n=144, size=144):
    x, y = fashion("test", n)
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.fixture(scope="session")
def model():
    """Networks by name, each trained once."""

    @functools.cache
    def of(name):
        return HONEST[name]() if name in HONEST else MASKED[name](of)

    return of


@pytest.fixture(scope="session")
def report(model):
    """Reports by name of the network, each made once, whatever random numbers a network itself draws."""

    @functools.cache
    def of(name):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return gradient_masking(model(name), batches(), PGD, surrogate=model("batch norm"))

    return of


def raised(report):
    return {alarm.name for alarm in report.alarms if alarm.raised}


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.sample(2)
def test_honest_models_are_cleared(report, name):
    assert raised(report(name)) == set()
    assert not report(name).raised


@pytest.mark.parametrize("name", MASKED)
@pytest.mark.sample(6)
def test_masked_models_are_flagged(report, name):
    assert raised(report(name)) >= EXPECTED[name]
    assert report(name).raised


@pytest.fixture(scope="session")
def flat():
    """A classifier whose accuracy under attack is known, its images and labels."""
    return templates()


@pytest.mark.parametrize("name", HIDING)
def test_logits_that_mislead_cross_entropy_are_flagged(flat, name):
    network, x, y = flat
    function, expected = HIDING[name]
    found = gradient_masking(After(function, network), [(x, y)], TEMPLATES)
    assert found["margin loss"].figures["white box"] > 0.65
    assert raised(found) >= expected


def test_temperature_that_depends_on_the_image_is_flagged(flat):
    network, x, y = flat
    assert raised(gradient_masking(Tempered(network), [(x, y)], TEMPLATES)) >= {"rescaled logits", "margin loss"}


@pytest.mark.parametrize("name", HARMLESS)
def test_logits_that_do_not_mislead_cross_entropy_are_cleared(flat, name):
    network, x, y = flat
    found = gradient_masking(After(HARMLESS[name], network), [(x, y)], TEMPLATES)
    assert found["margin loss"].figures["white box"] < 0.55
    assert raised(found) == set()


def slope(network, x, y):
    """Return the gradient of the margin loss with respect to the images."""
    point = x.clone().requires_grad_()
    return torch.autograd.grad(normalised_margin(ClassificationObjective(network, y))(point).sum(), point)[0]


def test_margin_direction_is_invariant_to_increasing_functions_of_the_logits(flat):
    network, x, y = flat
    for name in ("division by 1000", "tiny logits", "denormal logits", "leaky clip", "signed root", "cube"):
        assert torch.allclose(slope(After(HIDING[name][0], network), x, y), slope(network, x, y), atol=1e-3), name


def test_rescaled_logits_are_invariant_to_scale_and_shift_of_an_image(flat):
    network, x, y = flat
    generator = torch.Generator().manual_seed(0)
    size, shift = (torch.rand(200, 1, generator=generator) + offset for offset in (0.1, -0.5))
    changes = (lambda z: z, lambda z: size * z + shift)
    plain, moved = (rescaled_cross_entropy(ClassificationObjective(After(change, network), y))(x) for change in changes)
    assert torch.allclose(plain, moved, atol=1e-4)


def test_networks_that_change_their_input_are_attacked_alike(flat):
    network, x, y = flat
    found = [gradient_masking(same, [(x, y)], TEMPLATES) for same in (network, Before(lambda x: x.mul_(1), network))]
    assert [alarm.figures for alarm in found[0].alarms[1:]] == [alarm.figures for alarm in found[1].alarms[1:]]


def test_margin_of_a_compiled_network_has_the_same_slope(flat):
    network, x, y = flat
    leaky = After(HIDING["leaky clip"][0], network)
    compiled = torch.compile(leaky, backend="aot_eager")
    with under_attack(leaky):
        for n in (20, 40):  # only from the second size on, a compiled backward pass frees what it used
            assert torch.equal(slope(compiled, x[:n], y[:n]), slope(leaky, x[:n], y[:n]))


def test_best_of_restarts_is_judged_by_the_margin_itself(flat):
    network, x, y = flat
    attack = dataclasses.replace(TEMPLATES, restarts=2)
    found = gradient_masking(After(HIDING["leaky clip"][0], network), [(x, y)], attack)
    assert "margin loss" in raised(found)


def test_two_classes_are_enough():
    x, y = torch.rand(40, 6, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    x[:, 0] = (1 + y) / 3
    weight = torch.tensor([[-3.0, 0, 0, 0, 0, 0], [3.0, 0, 0, 0, 0, 0]])
    network = nn.Linear(6, 2).eval()
    network.load_state_dict({"weight": weight, "bias": torch.tensor([1.5, -1.5])})
    assert raised(gradient_masking(network, [(x, y)], TEMPLATES)) == set()


def test_transfer_from_a_surrogate_continues_beyond_its_decision_boundary(flat):
    network, x, y = flat
    attack = APGDAttack(eps=0.08, steps=10)
    found = gradient_masking(Before(torch.Tensor.detach, network), [(x, y)], attack, surrogate=network)
    other = copy.deepcopy(network)
    with torch.no_grad():
        other[1].weight.add_(0.3 * torch.randn(10, 64, generator=torch.Generator().manual_seed(0)))
    near = gradient_masking(network, [(x, y)], attack, surrogate=other)["transfer"].figures
    assert "transfer" in raised(found)
    assert near["accuracy"] - near["white box"] < 0.1


def test_cost_is_the_one_of_the_documentation(flat):
    network, x, y = flat
    counter = Counting(network)
    gradient_masking(counter, [(x, y)], TEMPLATES)
    assert (counter.forwards, counter.backwards) == (8 * 10 + 167, 8 * 10 + 2)


@pytest.mark.parametrize("name", ["randomised input", "softmax output", "shattered gradient", "train mode"])
def test_models_with_one_fault_raise_one_alarm(report, name):
    assert raised(report(name)) == EXPECTED[name]


def test_every_alarm_has_a_model_that_raises_it(report):
    names = {alarm.name for alarm in report("linear").alarms}
    hidden = {name for _, expected in HIDING.values() for name in expected}
    assert names == set().union(*EXPECTED.values()) | hidden | {"incomplete search"}


def test_short_attack_is_told_apart_from_a_masked_model(model):
    found = gradient_masking(model("undefended"), batches(), SHORT)
    assert "incomplete search" in raised(found)
    assert not found["zero gradients"].raised


@pytest.mark.parametrize("name", HONEST)
@pytest.mark.parametrize(
    "attack",
    [
        APGDAttack(eps=EPS, steps=10, loss="dlr"),
        PGDAttack(eps=1.0, step_size=0.25, steps=10, norm="l2"),
    ],
    ids=["apgd", "l2"],
)
@pytest.mark.sample(3)
def test_honest_models_are_cleared_by_other_attacks(model, attack, name):
    assert raised(gradient_masking(model(name), batches(64), attack)) == set()


@pytest.mark.parametrize("name", ["quantised input", "large logits"])
def test_masked_models_are_flagged_in_the_l2_ball(model, name):
    attack = PGDAttack(eps=1.5, step_size=0.4, steps=10, norm="l2")
    assert raised(gradient_masking(model(name), batches(), attack)) >= {"zero gradients", "gradient-free search"}


def test_without_surrogate_there_is_no_transfer(model):
    found = gradient_masking(model("linear"), batches(64), SHORT)
    assert [alarm.name for alarm in found.alarms] == [
        "train mode", "randomised output", "batch dependence", "probability output", "zero gradients",
        "loss against steps", "incomplete search", "loss against eps", "unbounded attack", "rescaled logits",
        "margin loss", "one step", "random noise", "gradient-free search",
    ]  # fmt: skip


def test_figures_are_those_of_the_attack_on_the_images_classified_correctly(model):
    network, data, right = model("linear"), batches(size=64), []
    generator = torch.Generator().manual_seed(0)
    generator.manual_seed(int(torch.randint(2**31, (), generator=generator)))
    for x, y in data:
        kept = network(x).argmax(1) == y
        adv = PGD(ClassificationObjective(network, y[kept]), x[kept], generator=generator)
        right.append(network(adv).argmax(1) == y[kept])
    right = torch.cat(right)
    found = gradient_masking(network, data, PGD)
    assert found.images == len(right)
    assert found["random noise"].figures["white box"] == Accuracy(right).accuracy
    assert found["incomplete search"].figures["once"] == Accuracy(right).accuracy


def test_batches_are_read_until_there_are_enough_images(model):
    def data():
        yield from batches(64, 24)[:2]
        raise AssertionError

    assert gradient_masking(model("linear"), data(), SHORT, images=30).images <= 30


def test_same_seed_is_used_by_default(model):
    def figures(generator):
        found = gradient_masking(model("linear"), batches(64), SHORT, generator=generator)
        return [alarm.figures for alarm in found.alarms]

    assert figures(None) == figures(torch.Generator().manual_seed(0))
    assert figures(None) != figures(torch.Generator().manual_seed(1))


def everything(network):
    values = {name: value.clone() for name, value in network.state_dict().items()}
    flags = [(module.training, *(p.requires_grad for p in module.parameters())) for module in network.modules()]
    return values, flags, [parameter.grad for parameter in network.parameters()]


def unchanged(network, before):
    values, flags, gradients = everything(network)
    same = all(torch.equal(values[name], value) for name, value in before[0].items())
    return same and flags == before[1] and all(a is b for a, b in zip(gradients, before[2], strict=True))


def test_models_and_random_state_are_left_as_they_were(model):
    networks = [copy.deepcopy(model(name)) for name in ("batch norm", "undefended")]
    masked = Before(noisy, networks[0])
    for network in networks:
        network.train()[0].weight.requires_grad_(False)
        network[1].eval()
    before, random_state = [everything(network) for network in networks], torch.get_rng_state()
    gradient_masking(masked, batches(64), SHORT, surrogate=networks[1])
    assert all(map(unchanged, networks, before))
    assert torch.equal(torch.get_rng_state(), random_state)


def test_running_statistics_that_the_model_moves_in_eval_mode_are_given_back():
    network = convolutions(BatchStatistics).eval()
    before = everything(network)
    assert batch_dependence(network, fashion("test", 8)[0]).raised
    assert unchanged(network, before)


def test_model_is_left_as_it_was_when_the_data_raise(model):
    network = copy.deepcopy(model("batch norm")).train()
    before = everything(network)

    def data():
        raise ZeroDivisionError
        yield

    with pytest.raises(ZeroDivisionError):
        gradient_masking(network, data())
    assert unchanged(network, before)


def test_works_under_no_grad(model):
    with torch.no_grad():
        found = gradient_masking(model("linear"), batches(64), SHORT)
    assert found["zero gradients"].figures == {"zero": 0.0, "not finite": 0.0, "no graph": 0.0}


def test_report_is_a_table():
    alarms = (Alarm("one step", True, "breaks 9", {"only": 9}), Alarm("train mode", False, "0 of 3", {"modules": 0}))
    table = (
        "1 of 2 alarms raised on 7 images\nRAISED  one step              breaks 9\nclear   train mode            0 of 3"
    )
    assert str(MaskingReport(alarms, 7)) == table
    assert repr(MaskingReport(alarms, 7)) == "MaskingReport(1 of 2 raised: one step)"
    assert repr(MaskingReport(alarms[1:], 7)) == "MaskingReport(0 of 1 raised)"


def test_the_remedy_is_printed_below_a_raised_alarm():
    what = "breaks 9", {"only": 9}, "Report the worst."
    assert str(Alarm("one step", True, *what)) == f"RAISED  one step              breaks 9\n{' ' * 30}Report the worst."
    assert str(Alarm("one step", False, *what)) == "clear   one step              breaks 9"


def test_every_alarm_has_advice(model):
    found = gradient_masking(model("linear"), batches(64), SHORT, surrogate=model("linear"))
    assert len(found.alarms) == 15
    assert [alarm.name for alarm in found.alarms if not alarm.advice.endswith(".")] == []


# Alarms from the model alone.


def test_train_mode_counts_modules():
    network = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval()
    assert not train_mode(network).raised
    network[1].train()
    assert train_mode(network).raised
    assert train_mode(network).figures == {"modules": 1}


def test_dropout_that_stays_awake_is_randomised_but_not_batch_dependent():
    network = Before(lambda x: nn.functional.dropout(x, 0.5), FLAT)
    x = torch.rand(8, 6)
    assert randomised_output(network, x).raised
    assert not batch_dependence(network, x).raised


def test_noise_below_rounding_is_not_randomised():
    network = Before(lambda x: x + 1e-6 * torch.randn_like(x), FLAT)
    assert not randomised_output(network, torch.rand(8, 6)).raised


@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_noise_is_measured_against_the_spread_of_the_outputs(scale):
    def scaled(size):
        return After(lambda logits: scale * logits, Before(lambda x: x + size * torch.randn_like(x), FLAT))

    x = torch.rand(8, 6)
    assert not randomised_output(scaled(1e-6), x).raised
    assert randomised_output(scaled(1e-2), x).raised


def test_batch_dependence_needs_one_image_only():
    x = torch.rand(1, 6)
    assert batch_dependence(nn.BatchNorm1d(6, track_running_stats=False), x).raised
    assert not batch_dependence(nn.BatchNorm1d(6), x).raised


def test_outputs_that_happen_to_be_a_distribution_are_not_probabilities():
    assert not probability_output(FLAT, torch.tensor([[0.25, 0.75], [0.5, 0.5]])).raised


@pytest.mark.parametrize(("zeros", "verdict"), [(2, False), (3, True)])
def test_zero_gradients_above_a_twentieth_are_flagged(zeros, verdict):
    gate = (torch.arange(40) >= zeros).float()[:, None]
    x, y = torch.rand(40, 3), torch.zeros(40, dtype=torch.int64)
    alarm = zero_gradients(Before(lambda x: x * gate, FLAT), [(x, y)])
    assert alarm.figures["zero"] == zeros / 40
    assert alarm.raised is verdict


def test_gradients_that_are_not_finite_are_counted():
    x, y = torch.tensor([[0.0, 0.5], [0.5, 0.5], [0.5, 0.7], [0.2, 0.0]]), torch.zeros(4, dtype=torch.int64)
    alarm = zero_gradients(Before(torch.sqrt, FLAT), [(x, y)])
    assert alarm.figures == {"zero": 0.0, "not finite": 0.5, "no graph": 0.0}
    assert alarm.raised


def test_model_that_leaves_the_graph_is_named():
    alarm = zero_gradients(Before(torch.Tensor.detach, nn.Linear(2, 2)), [(torch.rand(4, 2), torch.ones(4).long())])
    assert alarm.reason == "no gradient reaches the images: the output is detached from them"
    assert alarm.raised


def test_parameters_get_no_gradient():
    network = nn.Linear(2, 2)
    zero_gradients(network, [(torch.rand(4, 2), torch.ones(4).long())])
    assert network.weight.grad is None
    assert network.weight.requires_grad


# Alarms from attacks.


def verdicts(right, n=100):
    return Accuracy(torch.arange(n) < right)


@pytest.mark.parametrize(("left", "verdict"), [(5, False), (6, True)])
def test_a_twentieth_may_survive_an_unbounded_attack(left, verdict):
    assert unbounded_attack(verdicts(left)).raised is verdict


@pytest.mark.parametrize(("more", "verdict"), [(9, False), (10, True)])
def test_weaker_attack_must_win_by_three_standard_errors(more, verdict):
    # Of k images that one attack alone breaks, chance gives each side half, give or take sqrt(k) in the difference.
    assert weaker_attack_wins(verdicts(50), verdicts(50 - more), by="noise").raised is verdict


def test_weaker_attack_that_breaks_other_images_is_not_stronger():
    white, other = torch.arange(100) < 40, torch.arange(100) >= 58
    alarm = weaker_attack_wins(Accuracy(white), Accuracy(other), by="noise")
    assert (alarm.figures["only"], alarm.figures["only white box"]) == (40, 42)
    assert not alarm.raised


@pytest.mark.parametrize(("more", "verdict"), [(11, False), (12, True)])
def test_other_loss_must_win_by_a_twentieth_and_two_standard_errors(more, verdict):
    # Of 100 images a twentieth is 5: 11 - 5 < 2 sqrt(11) = 6.6, but 12 - 5 > 2 sqrt(12) = 6.9.
    assert loss_beaten(verdicts(50), verdicts(50 - more), by="margin loss").raised is verdict


def test_stronger_white_box_is_not_an_alarm():
    assert not weaker_attack_wins(verdicts(10), verdicts(90), by="noise").raised


@pytest.mark.parametrize(("more", "verdict"), [(17, False), (18, True)])
def test_doubling_the_steps_may_cost_a_point(more, verdict):
    # Of 500 images a point is 5: 17 - 5 < 3 sqrt(17) = 12.4, but 18 - 5 > 3 sqrt(18) = 12.7.
    assert attack_not_converged(verdicts(300, 500), verdicts(300 - more, 500)).raised is verdict


def test_more_steps_that_break_other_images_are_complete():
    once, twice = torch.arange(100) < 40, torch.arange(100) >= 58
    assert not attack_not_converged(Accuracy(once), Accuracy(twice)).raised


def test_loss_that_falls_by_chance_is_not_an_alarm():
    noise = torch.randn(100, generator=torch.Generator().manual_seed(0))
    noise = (noise - noise.mean()) / noise.std()  # the standard error of the mean is 1/10
    weak = torch.full((100,), 1.0)
    assert not loss_decreases_with_strength({1: weak, 2: weak - 0.3 + noise}, parameter="steps").raised
    assert loss_decreases_with_strength({1: weak, 2: weak - 0.32 + noise}, parameter="steps").raised


def test_loss_that_falls_by_a_hundredth_is_not_an_alarm():
    weak = torch.full((100,), 2.0, dtype=torch.float64)
    assert not loss_decreases_with_strength({1: weak, 2: weak - 0.0199}, parameter="steps").raised
    assert loss_decreases_with_strength({1: weak, 2: weak - 0.0201}, parameter="steps").raised


def test_losses_are_compared_in_the_order_of_the_values():
    low, high = torch.zeros(4), torch.ones(4)
    assert not loss_decreases_with_strength({40: high, 20: low}, parameter="steps").raised
    assert loss_decreases_with_strength({20: high, 5: low, 40: low}, parameter="steps").raised


# The attacks without a gradient.


SEARCHES = {
    "independent": functools.partial(sign_search, propose=independent_signs, queries=50, norm="linf"),
    "windows": functools.partial(sign_search, propose=window_signs, queries=100, norm="linf"),
}
searches = pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)


@searches
@pytest.mark.parametrize("shape", [(5, 3, 6, 6), (5, 40)], ids=str)
def test_black_boxes_stay_in_the_ball_and_the_bounds(search, shape):
    attack = functools.partial(search, eps=0.2)
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    objective = ClassificationObjective(FLAT, torch.arange(5))
    adv = attack(objective, x, generator=torch.Generator().manual_seed(0))
    assert (adv.double() - x.double()).abs().max() <= 0.2
    assert adv.min() >= 0
    assert adv.max() <= 1
    assert adv.dtype == x.dtype
    assert (margin(objective.logits(adv), objective.y) > margin(objective.logits(x), objective.y)).all()


def test_black_box_in_the_l2_ball_uses_its_radius():
    x = torch.full((3, 2, 4, 4), 0.5)
    attack = functools.partial(SEARCHES["windows"], eps=0.7, norm="l2", queries=5)
    adv = attack(ClassificationObjective(FLAT, torch.arange(3)), x, generator=torch.Generator().manual_seed(0))
    assert torch.allclose((adv - x).flatten(1).norm(dim=1), torch.full((3,), 0.7), atol=1e-5)


def test_sign_noise_returns_the_best_of_its_draws():
    x, y = torch.full((2, 3), 0.5), torch.tensor([0, 1])
    # Of 8 corners, 50 draws find the best: the true pixel down, another one up.
    generator = torch.Generator().manual_seed(0)
    adv = SEARCHES["independent"](ClassificationObjective(FLAT, y), x, eps=0.25, generator=generator)
    assert margin(adv, y).tolist() == [0.5, 0.5]


@pytest.mark.parametrize(("query", "pixels"), [(0, 100), (1, 49), (50, 9), (99, 2)])
def test_windows_shrink_from_half_the_image_to_a_fiftieth(query, pixels):
    proposal = window_signs(torch.zeros(20, 1, 10, 10), query / 100, None)
    assert (proposal.flatten(1).abs().sum(1) == pixels).all()


def test_window_search_gets_better_with_queries():
    x, y = torch.full((20, 1, 8, 8), 0.5), torch.zeros(20, dtype=torch.int64)
    weights = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    objective = ClassificationObjective(lambda x: x.flatten(1) @ weights, y)
    gains = []
    for queries in (1, 20, 200):
        attack = functools.partial(SEARCHES["windows"], eps=0.1, queries=queries)
        adv = attack(objective, x, generator=torch.Generator().manual_seed(0))
        gains.append(margin(objective.logits(adv), y).mean())
    best = (0.1 * (weights[:, 1] - weights[:, 0]).abs()).sum() + margin(objective.logits(x), y)[0]
    assert gains[0] < gains[1] < gains[2] <= best
    assert gains[2] > 0.6 * best


@searches
def test_black_boxes_draw_from_the_generator_only(search):
    attack = functools.partial(search, eps=0.2)
    x, objective = torch.rand(5, 3, 6, 6), ClassificationObjective(FLAT, torch.arange(5))
    before = torch.get_rng_state()
    first, second = (attack(objective, x, generator=torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


# Bad inputs.

X, Y = torch.linspace(0, 1, 48).view(4, 12), torch.full((4,), 11)


WHERE = "gradient_masking: expected"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"attack": "pgd"}, TypeError, "attack"),
        (
            {"attack": dataclasses.replace(PGD, eps=0)},
            ValueError,
            "eps of the attack",
        ),
        (
            {"attack": dataclasses.replace(PGD, steps=0)},
            ValueError,
            "steps of the attack",
        ),
        (
            {"attack": JPEGAttack()},
            TypeError,
            "attack to search a ball of images",
        ),
        ({"images": 0}, ValueError, "images"),
        ({"images": 1.5}, TypeError, "images"),
        ({"generator": 0}, TypeError, "generator"),
        ({"model": "vgg"}, TypeError, "model"),
        (
            {"model": nn.Identity(), "batches": [(X.view(4, 3, 2, 2), Y)]},
            ValueError,
            "the output of the model",
        ),
        (
            {"model": Before(torch.log, FLAT)},
            ValueError,
            "the output of the model",
        ),
        ({"batches": []}, ValueError, "batches"),
        ({"batches": [(X + 1, Y)]}, ValueError, "images"),
        ({"batches": [(X, Y + 1)]}, ValueError, "labels"),
        (
            {"batches": [(X, 0 * Y)]},
            ValueError,
            "at least two images that are classified correctly",
        ),
    ],
)
def test_wrong_call(settings, error, message):
    arguments = {"model": FLAT, "batches": [(X, Y)], **settings}
    with pytest.raises(error, match=re.escape(f"{WHERE} {message}")):
        gradient_masking(**arguments)


def test_wrong_surrogate():
    message = "gradient_masking, surrogate: expected model"
    with pytest.raises(TypeError, match=re.escape(message)):
        gradient_masking(FLAT, [(X, Y)], surrogate="vgg")


@pytest.mark.parametrize("look", [randomised_output, batch_dependence, probability_output])
@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ([1, 2], TypeError, "expected images"),
        (X[:0], ValueError, "expected images"),
        (X[0], ValueError, "expected images"),
        (2 * X, ValueError, "expected images"),
        (X * math.nan, ValueError, "expected images"),
    ],
)  # fmt: skip
def test_wrong_images(look, images, error, message):
    with pytest.raises(error, match=re.escape(f"{look.__name__}: {message}")):
        look(FLAT, images)


@pytest.mark.parametrize("look", [randomised_output, batch_dependence, probability_output])
def test_non_finite_output(look):
    message = "expected the output of the model"
    with pytest.raises(ValueError, match=re.escape(f"{look.__name__}: {message}")):
        look(Before(torch.log, FLAT), torch.zeros(2, 3))


def test_train_mode_of_something_else():
    with pytest.raises(TypeError, match=re.escape("train_mode: expected model")):
        train_mode("vgg")


SHAPE = "two or more losses of one shape [N] with N >= 2"


@pytest.mark.parametrize(
    ("losses", "error", "message"),
    [
        ([1, 2], TypeError, "losses"),
        ({1: 0.5, 2: 0.6}, TypeError, "each of losses"),
        ({}, ValueError, SHAPE),
        ({1: torch.zeros(4)}, ValueError, SHAPE),
        ({1: torch.zeros(4), 2: torch.zeros(5)}, ValueError, SHAPE),
        ({1: torch.zeros(1), 2: torch.zeros(1)}, ValueError, SHAPE),
        ({1: torch.zeros(()), 2: torch.zeros(())}, ValueError, SHAPE),
    ],
)
def test_wrong_losses(losses, error, message):
    with pytest.raises(error, match=re.escape(f"loss_decreases_with_strength: expected {message}")):
        loss_decreases_with_strength(losses, parameter="steps")


@pytest.mark.parametrize(
    ("compare", "owner"),
    [
        (lambda first, second: weaker_attack_wins(first, second, by="noise"), "weaker_attack_wins"),
        (attack_not_converged, "attack_not_converged"),
    ],
    ids=["beaten", "incomplete"],
)
def test_wrong_verdicts(compare, owner):
    message = f"{owner}: expected verdicts on the same images"
    with pytest.raises(ValueError, match=re.escape(message)):
        compare(verdicts(1, 4), verdicts(1, 5))
    message = f"{owner}: expected the verdicts"
    with pytest.raises(TypeError, match=re.escape(message)):
        compare(verdicts(1, 4), 0.5)


def test_wrong_verdict_of_the_unbounded_attack():
    with pytest.raises(TypeError, match=re.escape("unbounded_attack: expected unbounded")):
        unbounded_attack(0.0)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("falling_loss", loss_decreases_with_strength),
        ("incomplete_search", attack_not_converged),
        ("white_box_beaten", weaker_attack_wins),
    ],
)
@pytest.mark.parametrize("package", ["evaluation", "evaluation.masking", "evaluation.alarms"])
def test_old_names_lead_to_the_renamed_alarms(package, old, new):
    with pytest.warns(DeprecationWarning, match="has moved"):
        assert getattr(importlib.import_module(f"advcontrast.{package}"), old) is new
