"""Running protocols: what comes out, what stays as it was, and what is refused."""

import copy
import re
from collections import Counter
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from advcontrast import PGDAttack, convert_to_dual_bn, export_branch
from advcontrast.augment import CropFlip
from advcontrast.data import ImageSet
from advcontrast.engine import CheckpointMismatchError
from advcontrast.evaluation import accuracy, robust_accuracy
from advcontrast.evaluation.protocols import run as probing
from advcontrast.evaluation.protocols.presets import protocol
from advcontrast.evaluation.protocols.run import run_protocol, unchanged
from advcontrast.optim import MultiStep
from advcontrast.strategies.semi_supervised import SemiSupervisedTrainer
from advcontrast.strategies.supervised import AdversarialTrainer, StandardTrainer
from advcontrast.strategies.trades import TRADESTrainer

CLASSES = ("red", "green", "blue")


def shortened(preset, kind, **changes):
    """Return a protocol at a cost that a test can bear."""
    base = protocol(preset, kind)
    steps = None if base.attack_steps is None else 1
    short = {"epochs": 2, "milestones": (1,), "batch_size": 20, "attack_steps": steps, "eps": 0.05}
    if base.teacher is not None:
        short["teacher"] = replace(base.teacher, epochs=1, milestones=(), batch_size=8)
    if base.probe is not None:
        short["probe"] = replace(base.probe, epochs=1, batch_size=20)
    return replace(base, **{**short, **changes})


SLF, ALF = shortened("robustssl", "SLF"), shortened("robustssl", "ALF")
AFF, SEMI = shortened("acl2020", "AFF"), shortened("acl2020", "semi", labels=0.5)
TRADES_ALF, LP_AFT = shortened("acl2020", "ALF"), shortened("dynacl2023", "LP-AFT")


def images(n, seed):
    """Noise that is a little brighter in the channel of its class."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 3
    x = torch.randint(0, 200, (n, 3, 8, 8), generator=generator)
    x[torch.arange(n), y] += 30
    return ImageSet(x.to(torch.uint8), y, CLASSES)


TRAIN, VALIDATION, TEST = images(60, 0), images(21, 1), images(24, 2)
SPLITS = (TRAIN, VALIDATION, TEST)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    )


def dual():
    """A dual encoder whose branches differ."""
    encoder = convert_to_dual_bn(network())
    nn.init.uniform_(encoder[1].adv.weight, 0.5, 1.5)
    return encoder


def copied(module):
    return copy.deepcopy(module.state_dict())


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def together(one, other):
    return ImageSet(torch.cat([one.x, other.x]), torch.cat([one.y, other.y]), CLASSES)


@pytest.fixture
def fits(monkeypatch):
    """Record what the training loop is called with, and what the encoder was then."""
    calls, real = [], probing.fit

    def spy(learner, data, **settings):
        calls.append({"learner": learner, "data": data, "before": copied(learner.model), **settings})
        return real(learner, data, **settings)

    monkeypatch.setattr(probing, "fit", spy)
    return calls


@pytest.mark.parametrize(
    "each", [SLF, ALF, TRADES_ALF, AFF, SEMI, LP_AFT], ids=lambda each: f"{each.preset}-{each.kind}"
)
def test_the_verdicts_are_those_of_the_model_on_the_test_images(each):
    result = run_protocol(network(), each, *SPLITS)
    attack = PGDAttack(eps=0.05, step_size=0.0125, steps=20)
    assert torch.equal(result.ta.correct, accuracy(result.model, TEST.batches(500)).correct)
    assert torch.equal(result.ra.correct, robust_accuracy(result.model, TEST.batches(500), attack).correct)
    assert not any(module.training for module in result.model.modules())
    assert result.protocol is each
    assert len(result.history) == 2


def test_linear_evaluation_is_gradient_descent_on_the_features():
    encoder = network().eval()
    each = replace(SLF, epochs=5, milestones=(3,), batch_size=60, augment="none", nesterov=True, lr=0.5)
    result = run_protocol(encoder, each, TRAIN, None, TEST)
    with torch.no_grad():
        x = encoder(TRAIN.x.float() / 255).double()
    x = torch.cat([x, torch.ones(60, 1, dtype=torch.float64)], 1)
    w, velocity = (torch.zeros(3, 25, dtype=torch.float64) for _ in range(2))
    for epoch in range(5):
        rate = 0.5 if epoch < 3 else 0.05
        gradient = ((x @ w.T).softmax(1) - nn.functional.one_hot(TRAIN.y, 3)).T @ x / 60 + each.weight_decay * w
        velocity = 0.9 * velocity + gradient
        w = w - rate * (gradient + 0.9 * velocity)
    head = result.model.head
    torch.testing.assert_close(torch.cat([head.weight, head.bias[:, None]], 1).double(), w, atol=1e-5, rtol=1e-5)


def test_a_learner_of_ones_own_trains_the_classifier(fits):
    def learner(model):
        return StandardTrainer(model, frozen=True, augment=CropFlip(1))

    result = run_protocol(network(), AFF, *SPLITS, learner=learner)
    assert type(fits[0]["learner"]) is StandardTrainer
    assert equal(result.model.encoder.state_dict(), network().state_dict())


def test_a_teacher_keeps_its_own_learner(fits):
    semi = partial(SemiSupervisedTrainer, attack=SEMI.attack, augment=CropFlip(1))
    run_protocol(network(), SEMI, *SPLITS, learner=semi)
    assert [type(call["learner"]) for call in fits] == [StandardTrainer, SemiSupervisedTrainer]


def test_fine_tuning_starts_with_the_head_of_the_probe(fits):
    run_protocol(network(), LP_AFT, TRAIN, None, TEST)
    assert [type(call["learner"]) for call in fits] == [StandardTrainer, TRADESTrainer]
    probed, before = fits[0]["learner"].model.state_dict(), fits[1]["before"]
    assert before["head.weight"].any()
    assert equal({name: probed[name] for name in before}, before)
    assert all(p.requires_grad for p in fits[1]["learner"].model.parameters())


def test_epochs_without_a_validation_are_not_selected():
    each = replace(AFF, epochs=5, milestones=())
    result = run_protocol(network(), each, *SPLITS, evaluate_every=3)
    assert [row["epoch"] for row in result.history if "val_ra" in row] == [1, 3, 5]
    assert result.epoch in (1, 3, 5)


def test_options_of_the_loop_are_passed_on(fits, tmp_path):
    run_protocol(network(), SEMI, *SPLITS, folder=tmp_path, save_every=1, amp="bf16")
    assert [(call["save_every"], call["amp"]) for call in fits] == [(1, "bf16")] * 2


def test_unknown_options_and_intervals_are_refused():
    with pytest.raises(TypeError, match="epoch_s"):
        run_protocol(network(), SLF, *SPLITS, epoch_s=3)
    with pytest.raises(ValueError, match="run_protocol: expected evaluate_every"):
        run_protocol(network(), SLF, *SPLITS, evaluate_every=0)


def test_linear_evaluation_learns():
    each = replace(SLF, epochs=30, milestones=(20,), lr=1.0)
    result = run_protocol(network(), each, TRAIN, None, TEST)
    assert result.ta.accuracy > 0.6 > result.ra.accuracy


@pytest.mark.parametrize("each", [SLF, ALF, TRADES_ALF], ids=lambda each: f"{each.preset}-{each.kind}")
def test_frozen_means_frozen(each):
    encoder = network()
    result = run_protocol(encoder, each, *SPLITS)
    assert equal(result.model.encoder.state_dict(), encoder.state_dict())
    assert result.model.head.weight.any()


@pytest.mark.parametrize("each", [AFF, SEMI], ids=lambda each: each.kind)
def test_fine_tuning_trains_everything_also_what_was_frozen_before(each):
    encoder = network().eval().requires_grad_(False)
    result = run_protocol(encoder, each, *SPLITS)
    before, after = encoder.state_dict(), result.model.encoder.state_dict()
    assert not any(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("make", [network, dual], ids=["single", "dual"])
@pytest.mark.parametrize("each", [SLF, AFF, SEMI], ids=lambda each: each.kind)
def test_the_encoder_of_the_caller_is_not_touched(each, make):
    encoder = make()
    encoder[1].eval()
    encoder[0].weight.requires_grad_(False)
    before, modes = copied(encoder), [module.training for module in encoder.modules()]
    run_protocol(encoder, each, *SPLITS)
    assert equal(encoder.state_dict(), before)
    assert [module.training for module in encoder.modules()] == modes
    first, *others = (parameter.requires_grad for parameter in encoder.parameters())
    assert not first
    assert all(others)
    assert all(parameter.grad is None for parameter in encoder.parameters())


def test_the_global_random_state_is_not_touched():
    before = torch.get_rng_state()
    run_protocol(network(), AFF, *SPLITS)
    encoder = network()
    torch.set_rng_state(before)
    run_protocol(encoder, SEMI, *SPLITS)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_global_random_state_does_not_matter_and_the_seed_does():
    weights = []
    for state, seed in ((1, 0), (2, 0), (1, 3)):
        encoder = network()
        torch.manual_seed(state)
        weights.append(run_protocol(encoder, AFF, *SPLITS, seed=seed).model.state_dict())
    assert equal(weights[0], weights[1])
    assert not equal(weights[0], weights[2])


@pytest.mark.parametrize("branch", ["clean", "adv"])
def test_a_dual_encoder_is_used_through_the_branch_of_the_protocol(branch):
    encoder = dual()
    result = run_protocol(encoder, replace(SLF, branch=branch), *SPLITS)
    assert equal(result.model.encoder.state_dict(), export_branch(encoder, branch).state_dict())


@pytest.mark.parametrize(
    ("each", "kind", "trained"),
    [
        (SLF, StandardTrainer, 2),
        (ALF, AdversarialTrainer, 2),
        (TRADES_ALF, TRADESTrainer, 2),
        (AFF, TRADESTrainer, 5),
        (shortened("acl2020", "AFF", loss="adversarial-ce", beta=None), AdversarialTrainer, 5),
        (shortened("acl2020", "SFF"), StandardTrainer, 5),
        (SEMI, SemiSupervisedTrainer, 5),
    ],
)
def test_the_loop_gets_the_numbers_of_the_protocol(each, kind, trained, fits):
    run_protocol(network(), each, *SPLITS, seed=4)
    call = fits[-1]
    (group,) = call["optimizer"].param_groups
    assert type(call["learner"]) is kind
    assert call["learner"].frozen == each.frozen
    assert repr(call["learner"].augment) == repr(CropFlip(1))
    assert getattr(call["learner"], "attack", None) == each.attack
    assert (call["epochs"], call["batch_size"], call["seed"]) == (2, 20, 4)
    assert call["schedule"] == MultiStep((3,))
    assert call["select"] == (None if each.select == "last" else each.select)
    assert group["lr"] == each.lr
    assert (group["momentum"], group["nesterov"]) == (each.momentum, each.nesterov)
    assert group["weight_decay"] == each.weight_decay
    assert len(group["params"]) == trained
    assert not call["before"]["head.weight"].any()
    assert not call["before"]["head.bias"].any()


def test_losses_get_their_settings(fits):
    run_protocol(network(), replace(AFF, beta=2.5), *SPLITS)
    run_protocol(network(), replace(SEMI, beta=1.5, alpha=0.25, temperature=2.0), *SPLITS)
    trades, _, semi = (call["learner"] for call in fits)
    assert trades.loss.beta == 2.5
    assert (semi.loss.beta, semi.loss.alpha, semi.loss.temperature) == (1.5, 0.25, 2.0)


def test_nesterov_momentum_and_no_augmentation_are_passed_on(fits):
    run_protocol(network(), shortened("dynacl2023", "SLF", augment="none"), TRAIN, None, TEST)
    assert fits[0]["optimizer"].param_groups[0]["nesterov"] is True
    assert repr(fits[0]["learner"].augment) == repr(CropFlip(0, flip=0.0))


def test_few_labels_are_equally_many_of_each_class(fits):
    run_protocol(network(), replace(AFF, labels=0.2), *SPLITS)
    x, y = fits[0]["data"]
    assert y.bincount().tolist() == [4, 4, 4]
    assert len(x) == 12


def test_semi_supervised_training_has_labels_pseudo_labels_and_batches_of_both(fits):
    encoder = dual()
    run_protocol(encoder, SEMI, *SPLITS)
    first, second = fits
    x, y, logits = second["data"]
    labelled = y >= 0
    assert y[labelled].bincount().tolist() == [10, 10, 10]
    assert torch.equal(y[labelled], TRAIN.y[labelled])
    assert torch.equal(first["data"][0], TRAIN.x[labelled])
    assert torch.equal(second["groups"], (~labelled).long())
    assert torch.equal(x, TRAIN.x)
    with torch.no_grad():
        assert torch.equal(logits, first["learner"].model.eval()(x.float() / 255))


def test_the_teacher_starts_from_its_own_branch(fits):
    encoder = dual()
    run_protocol(encoder, SEMI, *SPLITS)
    for call, branch in zip(fits, ("clean", "adv"), strict=True):
        before = {name: w for name, w in call["before"].items() if name.startswith("encoder.")}
        wanted = export_branch(encoder, branch).state_dict()
        assert equal(before, {f"encoder.{name}": w for name, w in wanted.items()})


@pytest.mark.parametrize("select", ["val_ta", "val_ra"])
def test_the_best_epoch_on_the_validation_images_is_tested(select):
    each = replace(AFF, select=select, epochs=6, milestones=(), lr=0.5)
    result = run_protocol(network(), each, *SPLITS)
    values = [row[select] for row in result.history]
    assert result.epoch == 1 + values.index(max(values)) < 6
    found = accuracy(result.model, VALIDATION.batches(500))
    if select == "val_ra":
        found = robust_accuracy(result.model, VALIDATION.batches(500), each.test_attack)
    assert found.accuracy == max(values)
    assert ("val_ra" in result.history[0]) == (select == "val_ra")


def test_the_last_epoch_is_tested_where_nothing_is_selected():
    with_validation, without = (run_protocol(network(), SLF, TRAIN, each, TEST) for each in (VALIDATION, None))
    assert with_validation.epoch == without.epoch == 2
    assert equal(with_validation.model.state_dict(), without.model.state_dict())
    assert "val_ta" in with_validation.history[0]
    assert "val_ta" not in without.history[0]


@pytest.mark.parametrize("each", [SLF, AFF, SEMI], ids=lambda each: each.kind)
def test_the_test_images_are_looked_at_once_at_the_end(each, monkeypatch):
    seen, real = [], ImageSet.batches

    def spy(self, size):
        seen.append(len(self))
        return real(self, size)

    monkeypatch.setattr(ImageSet, "batches", spy)
    run_protocol(network(), each, *SPLITS)
    assert seen[-2:] == [24, 24]  # as they are, and attacked
    assert Counter(seen)[24] == 2


class Counting(nn.Module):
    """A buffer that counts calls, in eval mode too."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()), persistent=False)

    def forward(self, x):
        self.calls += 1
        return x


class Drifting(nn.Module):
    """A memory that is neither parameter nor buffer."""

    shift = 0.0

    def forward(self, x):
        self.shift += 1e-3
        return x + self.shift


class Sleepless(nn.BatchNorm2d):
    """A norm that does not go to eval mode."""

    def train(self, mode=True):
        return super().train(True)


class Learning(nn.Module):
    """A parameter that is changed by hand."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        with torch.no_grad():
            self.scale *= 1.001
        return x * self.scale.detach()


@pytest.mark.parametrize(
    ("module", "difference"),
    [
        (Drifting(), "1 changed: features."),
        (Sleepless(3), "4 changed: buffer 0.running_mean, buffer 0.running_var, buffer 0.num_batches_tracked, fea"),
        (Learning(), "2 changed: parameter 0.scale, features."),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("each", [SLF, ALF], ids=lambda each: each.kind)
def test_an_encoder_that_is_not_frozen_is_caught(each, module, difference):
    message = f"unchanged: expected a frozen encoder to be unchanged, got {difference}"
    with pytest.raises(RuntimeError, match=re.escape(message)):
        run_protocol(nn.Sequential(module, *network()), each, *SPLITS)


def test_an_encoder_that_is_not_frozen_is_caught_before_the_test_images_are_seen(monkeypatch):
    monkeypatch.setattr(probing, "robust_accuracy", None)
    with pytest.raises(RuntimeError, match="Look for a module that changes in eval mode, or that leaves eval mode"):
        run_protocol(nn.Sequential(Drifting(), *network()), SLF, *SPLITS)


@pytest.mark.parametrize("each", [SLF, ALF], ids=lambda each: each.kind)
def test_buffers_of_a_frozen_encoder_do_not_move(each):
    run_protocol(nn.Sequential(Counting(), *network()), each, *SPLITS)


def test_an_encoder_that_draws_in_eval_mode_is_not_accused():
    class Noisy(nn.Module):
        def forward(self, x):
            return x + torch.randn_like(x)

    run_protocol(nn.Sequential(Noisy(), *network()), SLF, *SPLITS)


def test_the_memory_format_that_the_loop_prefers_is_no_change_of_an_encoder():
    # On most machines the features of this one differ between memory formats, in the last bits.
    convolutions = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)]
    run_protocol(nn.Sequential(*convolutions, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), SLF, *SPLITS)


def test_unchanged_leaves_mode_gradients_and_random_state_alone():
    encoder = network()
    before = torch.get_rng_state()
    with unchanged(encoder, TRAIN.x[:4].float()):
        pass
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in encoder.modules())
    assert all(parameter.requires_grad for parameter in encoder.parameters())


def test_unchanged_sees_the_last_bit():
    encoder = network()
    weight = encoder[0].weight.data
    next_weight = torch.nextafter(weight, torch.tensor(1.0))
    message = re.escape("got 2 changed: parameter 0.weight, features. ")
    with pytest.raises(RuntimeError, match=message), unchanged(encoder, TRAIN.x[:4].float()):
        weight[0, 0] = next_weight[0, 0]


def test_unchanged_tells_zero_from_minus_zero_and_accepts_nan():
    encoder = nn.BatchNorm2d(3)
    encoder.bias.data.zero_()
    encoder.running_mean[0] = torch.nan
    x = torch.rand(2, 3, 4, 4)
    with unchanged(encoder, x):
        pass
    with pytest.raises(RuntimeError, match=re.escape("parameter bias")), unchanged(encoder, x):
        encoder.bias.data.neg_()


def test_unchanged_sees_that_a_buffer_is_new():
    encoder, x = network(), TRAIN.x[:4].float()
    with pytest.raises(RuntimeError, match=re.escape("1 changed: buffer extra. ")), unchanged(encoder, x):
        encoder.register_buffer("extra", torch.zeros(1))


def test_unchanged_lets_other_errors_pass():
    encoder = network()

    def fail():
        encoder[0].weight.data.zero_()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), unchanged(encoder, TRAIN.x[:4].float()):
        fail()


@pytest.mark.parametrize(
    ("encoder", "x", "message"),
    [
        (len, TRAIN.x, "unchanged: expected model"),
        (
            nn.Flatten(),
            TRAIN.x,
            "unchanged: expected images",
        ),
    ],
)
def test_unchanged_wants_an_encoder_and_images(encoder, x, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        unchanged(encoder, x).__enter__()


@pytest.mark.parametrize("each", [SLF, AFF], ids=lambda each: each.kind)
def test_selecting_on_the_test_split_raises(each):
    message = (
        "run_protocol: expected validation images that are not in test, got 24 of 24 that are, 24 of the 24 of test. "
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        run_protocol(network(), each, TRAIN, TEST, TEST)


def test_selecting_on_a_few_of_many_test_images_raises():
    test = images(300, 5)
    message = "expected validation images that are not in test"
    with pytest.raises(ValueError, match=re.escape(message)):
        run_protocol(network(), AFF, TRAIN, test.subset(torch.tensor([7, 90])), test)


def test_the_order_of_the_images_and_their_labels_do_not_hide_them():
    backwards = TEST.subset(torch.arange(23, -1, -1))
    renamed = ImageSet(backwards.x, (backwards.y + 1) % 3, CLASSES)
    with pytest.raises(ValueError, match="got 24 of 24 that are, 24 of the 24 of test"):
        run_protocol(network(), AFF, TRAIN, renamed, TEST)


def test_memory_format_does_not_hide_images():
    last = ImageSet(TEST.x.contiguous(memory_format=torch.channels_last), TEST.y, CLASSES)
    with pytest.raises(ValueError, match="got 24 of 24 that are, 24 of the 24 of test"):
        run_protocol(network(), AFF, TRAIN, last, TEST)


def test_some_test_images_among_those_for_validation_raise():
    mixed = together(VALIDATION, TEST.subset(torch.arange(3)))
    with pytest.raises(ValueError, match="got 3 of 24 that are, 3 of the 24 of test"):
        run_protocol(network(), AFF, TRAIN, mixed, TEST)


def test_training_on_test_images_raises():
    message = "expected train images that are not in test"
    with pytest.raises(ValueError, match=re.escape(message)):
        run_protocol(network(), SLF, together(TRAIN, TEST), None, TEST)


def test_training_on_all_of_few_test_images_raises():
    message = "expected train images that are not in test"
    with pytest.raises(ValueError, match=re.escape(message)):
        run_protocol(network(), SLF, together(images(3000, 8), TEST), None, TEST)


def test_selecting_on_training_images_raises():
    message = "expected validation images that are not in train"
    with pytest.raises(ValueError, match=re.escape(message)):
        run_protocol(network(), AFF, TRAIN, TRAIN, TEST)


def test_the_duplicates_of_a_data_set_are_let_pass():
    train, test = images(300, 6), images(300, 7)
    known = together(train, test.subset(torch.arange(3)))
    run_protocol(network(), replace(SLF, epochs=1, milestones=()), known, None, test)
    known = together(train, test.subset(torch.arange(4)))
    with pytest.raises(ValueError, match="got 4 of 304 that are, 4 of the 300 of test"):
        run_protocol(network(), SLF, known, None, test)


def same_result(one, other):
    return equal(one.model.state_dict(), other.model.state_dict()) and torch.equal(one.ra.correct, other.ra.correct)


@pytest.mark.parametrize("each", [SLF, AFF, SEMI], ids=lambda each: each.kind)
@pytest.mark.parametrize("after", [1, 2])
@pytest.mark.sample(3)
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(each, after, tmp_path, monkeypatch):
    each = replace(each, epochs=3, milestones=(1,))
    whole = run_protocol(network(), each, *SPLITS)
    calls, real = [], probing.accuracy

    def breaking(*args):
        calls.append(args)
        if len(calls) == after + 1:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(probing, "accuracy", breaking)
        with pytest.raises(KeyboardInterrupt):
            run_protocol(network(), each, *SPLITS, folder=tmp_path)
    resumed = run_protocol(network(), each, *SPLITS, folder=tmp_path)
    assert same_result(resumed, whole)
    assert [row["epoch"] for row in resumed.history] == [1, 2, 3]
    assert same_result(run_protocol(network(), each, *SPLITS, folder=tmp_path), whole)


@pytest.mark.parametrize("each", [SLF, AFF, SEMI], ids=lambda each: each.kind)
def test_a_folder_is_not_continued_with_another_encoder(each, tmp_path):
    run_protocol(network(), each, *SPLITS, folder=tmp_path)
    other = network()
    nn.init.normal_(other[0].weight)
    with pytest.raises(CheckpointMismatchError, match="began_with"):
        run_protocol(other, each, *SPLITS, folder=tmp_path)


def test_a_folder_is_not_continued_with_other_validation_images_or_numbers(tmp_path):
    run_protocol(network(), AFF, *SPLITS, folder=tmp_path)
    with pytest.raises(CheckpointMismatchError, match="began_with"):
        run_protocol(network(), AFF, TRAIN, images(21, 9), TEST, folder=tmp_path)
    with pytest.raises(CheckpointMismatchError, match="eps"):
        run_protocol(network(), replace(AFF, eps=0.1), *SPLITS, folder=tmp_path)


def test_repr_names_the_protocol_and_the_numbers():
    result = run_protocol(network(), AFF, *SPLITS)
    numbers = f"TA {result.ta.accuracy:.2%}, RA {result.ra.accuracy:.2%}, epoch {result.epoch}"
    assert repr(result) == f"ProtocolResult(acl2020 AFF: {numbers})"


OTHER_CLASSES = ImageSet(TEST.x, TEST.y, ("cat", "dog", "eel"))
LARGER = ImageSet(torch.zeros(4, 3, 9, 9, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64), CLASSES)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            (len, AFF, *SPLITS),
            TypeError,
            "run_protocol: expected model",
        ),
        (
            (network(), "AFF", *SPLITS),
            TypeError,
            "run_protocol: expected protocol",
        ),
        (
            (network(), AFF, TRAIN.x, VALIDATION, TEST),
            TypeError,
            "run_protocol: expected train",
        ),
        (
            (network(), AFF, TRAIN, VALIDATION, None),
            TypeError,
            "run_protocol: expected test",
        ),
        (
            (network(), AFF, TRAIN, 0.1, TEST),
            TypeError,
            "run_protocol: expected validation",
        ),
        (
            (network(), AFF, TRAIN, None, TEST),
            ValueError,
            "run_protocol: expected validation images to select val_ra on, got None",
        ),
        (
            (network(), replace(SEMI, select="last"), TRAIN, None, TEST),
            ValueError,
            "run_protocol: expected validation images to select val_ta on, got None",
        ),
        (
            (network(), AFF, TRAIN, VALIDATION, OTHER_CLASSES),
            ValueError,
            "run_protocol: expected splits with the same classes",
        ),
        (
            (network(), AFF, TRAIN, LARGER, TEST),
            ValueError,
            "run_protocol: expected splits with the same shape",
        ),
        (
            (network()[:3], AFF, *SPLITS),
            ValueError,
            "run_protocol: expected the output of the encoder",
        ),
        (
            (nn.Flatten(0), AFF, *SPLITS),
            ValueError,
            "run_protocol: expected the output of the encoder",
        ),
        (
            (network(), replace(AFF, labels=0.01), *SPLITS),
            ValueError,
            "labelled_subset: expected 1 to 20 images of each class",
        ),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=re.escape(message)):
        run_protocol(*arguments)


class Pair(nn.Module):
    """An encoder that returns features and something else."""

    def forward(self, x):
        return x.flatten(1), x


def test_an_encoder_that_returns_a_pair():
    message = "run_protocol: expected the output of the encoder"
    with pytest.raises(TypeError, match=re.escape(message)):
        run_protocol(Pair(), SLF, *SPLITS)


@pytest.mark.parametrize(("seed", "error"), [(-1, ValueError), (0.5, TypeError), (True, TypeError)])
def test_wrong_seeds(seed, error):
    with pytest.raises(error, match=re.escape("run_protocol: expected seed")):
        run_protocol(network(), AFF, *SPLITS, seed=seed)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("each", [SLF, AFF, SEMI], ids=lambda each: each.kind)
def test_a_protocol_runs_where_the_encoder_is_and_leaves_the_device_alone(each):
    encoder = network().cuda()
    before = torch.cuda.get_rng_state()
    result = run_protocol(encoder, each, *SPLITS)
    assert next(result.model.parameters()).is_cuda
    assert torch.equal(torch.cuda.get_rng_state(), before)
    if each.frozen:
        assert equal(result.model.encoder.state_dict(), encoder.state_dict())
