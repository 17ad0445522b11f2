"""Clean and robust accuracy: the verdicts, and the state that must be restored."""

import functools
import math
import re

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advcontrast import PGDAttack, bn_branch, convert_to_dual_bn
from advcontrast.attacks import APGDAttack, FreeAttack, ProgressiveAttack, WarmStart
from advcontrast.evaluation import Accuracy, accuracy, label_free_robustness, robust_accuracy, robust_curve

ATTACK = PGDAttack(eps=0.1, step_size=0.05, steps=3)


def classifier():
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, 4)
    )
    model[2].running_mean.normal_()
    return model


def images(n=40, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, 2, 2, generator=generator), torch.randint(4, (n,), generator=generator)


def batches(size=16, n=40):
    x, y = images(n)
    return list(zip(x.split(size), y.split(size), strict=True))


def right(model, x, y):
    with torch.no_grad():
        return model.eval()(x).argmax(1) == y


def trained():
    """A classifier that is right on a good part of the images, and not robust on all of those."""
    model = classifier().eval()
    x, y = images()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def both(model, data, **settings):
    """Run both functions, for what they have in common."""
    return accuracy(model, data), robust_accuracy(model, data, ATTACK, **settings)


def test_correct_holds_the_verdict_of_every_sample_in_order():
    model = classifier()
    assert torch.equal(accuracy(model, batches(7)).correct, right(model, *images()))


def test_accuracy_is_the_mean_of_the_verdicts():
    result = accuracy(classifier(), batches(7))
    assert result.accuracy == result.correct.double().mean().item()
    assert type(result.accuracy) is float


def test_verdicts_are_bools_on_the_cpu():
    for result in both(classifier(), batches()):
        assert result.correct.dtype == torch.bool
        assert result.correct.device.type == "cpu"
        assert result.correct.shape == (40,)


def test_batch_size_does_not_change_the_clean_verdicts():
    model = classifier()
    assert torch.equal(accuracy(model, batches(1)).correct, accuracy(model, batches(40)).correct)


def test_linear_classifier_is_robust_up_to_its_margin():
    # Class 0 wins while x0 > x1; an attack of radius r closes a gap of 2 r.
    x = torch.tensor([[0.5 + gap / 2, 0.5 - gap / 2] for gap in (0.1, 0.19, 0.21, 0.4, -0.1)])
    attack = PGDAttack(eps=0.1, step_size=0.1, steps=2)
    result = robust_accuracy(nn.Flatten(), [(x, torch.zeros(5, dtype=torch.int64))], attack)
    assert result.correct.tolist() == [False, False, True, True, False]


def test_robust_samples_are_correct_ones():
    model = trained()
    clean, robust = both(model, batches())
    assert 0 < int(robust.correct.sum()) < int(clean.correct.sum())
    assert not bool((robust.correct & ~clean.correct).any())


def test_attack_that_helps_the_model_does_not_make_a_sample_robust():
    x, y = images()
    result = robust_accuracy(trained(), batches(), PGDAttack(eps=0.5, step_size=0.1, steps=20, minimize=True))
    assert torch.equal(result.correct, accuracy(trained(), [(x, y)]).correct & result.correct)


def test_radius_zero_gives_the_clean_verdicts_exactly():
    model = trained()
    robust = robust_accuracy(model, batches(), PGDAttack(eps=0, step_size=0.05, steps=3))
    assert torch.equal(robust.correct, accuracy(model, batches()).correct)


def test_unbounded_attack_leaves_nothing():
    attack = PGDAttack(eps=1, step_size=0.2, steps=20, random_start=False)
    x = torch.tensor([[0.9, 0.1], [0.4, 0.6]])
    assert robust_accuracy(nn.Flatten(), [(x, torch.tensor([0, 1]))], attack).accuracy == 0


def test_attack_sees_the_cross_entropy_of_each_sample():
    model = classifier()
    seen = []

    def spy(objective, x, *, generator):
        seen.append(objective(x))
        return 1 - x

    robust_accuracy(model, batches(40), spy)
    x, y = images()
    assert torch.equal(seen[0], nn.functional.cross_entropy(model.eval()(x), y, reduction="none"))


def test_attack_that_works_in_place_is_still_evaluated():
    def blank(objective, x, *, generator):
        return x.zero_()

    x = torch.tensor([[0.1, 0.9]])
    assert robust_accuracy(nn.Flatten(), [(x, torch.tensor([1]))], blank).accuracy == 0
    assert torch.equal(x, torch.tensor([[0.1, 0.9]]))


def test_same_seed_is_used_by_default():
    model = trained()
    zero = torch.Generator().manual_seed(0)
    expected = robust_accuracy(model, batches(), ATTACK, generator=zero).correct
    assert torch.equal(robust_accuracy(model, batches(), ATTACK).correct, expected)
    assert torch.equal(robust_accuracy(model, batches(), ATTACK).correct, expected)


def test_attack_draws_from_the_generator_that_was_passed():
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    robust_accuracy(classifier(), batches(), ATTACK, generator=generator)
    assert not torch.equal(generator.get_state(), before)


def test_one_generator_serves_all_batches():
    drawn = []

    def draw(objective, x, *, generator):
        drawn.append(torch.rand(1, generator=generator).item())
        return 1 - x

    robust_accuracy(classifier(), batches(), draw)
    assert len(set(drawn)) == 3


class Dice(nn.Module):
    """Draws from the global generator in eval mode too."""

    def forward(self, x):
        return x.flatten(1) + torch.rand(1)


@pytest.mark.parametrize("evaluate", [accuracy, lambda m, b: robust_accuracy(m, b, ATTACK)], ids=["clean", "robust"])
@pytest.mark.parametrize("model", [classifier(), Dice()], ids=["classifier", "dice"])
def test_global_random_state_is_untouched(evaluate, model):
    loader = DataLoader(TensorDataset(*images()), batch_size=16, shuffle=True)
    before = torch.get_rng_state()
    evaluate(model, loader)
    assert torch.equal(torch.get_rng_state(), before)


def state_of(model):
    modes = [module.training for module in model.modules()]
    flags = [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    return modes, flags, {name: value.clone() for name, value in model.state_dict().items()}


def assert_unchanged(model, before):
    modes, flags, values = state_of(model)
    assert (modes, flags) == before[:2]
    assert all(torch.equal(values[name], value) for name, value in before[2].items())


def partly_frozen():
    model = classifier().train()
    model[2].eval()
    model[1].weight.requires_grad_(False)
    return model


def test_model_is_left_as_it_was():
    model = partly_frozen()
    before = state_of(model)
    both(model, batches())
    assert_unchanged(model, before)


def test_model_is_left_as_it_was_when_the_attack_raises():
    model = partly_frozen()
    before = state_of(model)

    def broken(objective, x, *, generator):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        robust_accuracy(model, batches(), broken)
    assert_unchanged(model, before)


def test_model_and_random_state_are_left_as_they_were_when_the_data_raise():
    model = partly_frozen()
    before, random_state = state_of(model), torch.get_rng_state()

    def data():
        yield batches()[0]
        torch.rand(1)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        accuracy(model, data())
    assert_unchanged(model, before)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_every_module_is_in_eval_mode_for_the_call():
    model = partly_frozen()
    modes = []
    model[0].register_forward_hook(lambda *_: modes.extend(module.training for module in model.modules()))
    both(model, batches())
    assert modes
    assert not any(modes)


def test_accuracy_builds_no_graph():
    model = classifier()
    graphs = []
    model.register_forward_hook(lambda _, __, out: graphs.append(out.requires_grad))
    x, y = images()
    accuracy(model, [(x.requires_grad_(), y)])
    assert graphs == [False]


def test_parameters_are_frozen_for_the_attack():
    model = classifier()
    seen = []

    def spy(objective, x, *, generator):
        seen.extend(parameter.requires_grad for parameter in model.parameters())
        return 1 - x

    robust_accuracy(model, batches(), spy)
    assert not any(seen)


def test_works_under_no_grad():
    model = trained()
    expected = robust_accuracy(model, batches(), ATTACK).correct
    with torch.no_grad():
        assert torch.equal(robust_accuracy(model, batches(), ATTACK).correct, expected)


def test_any_iterable_will_do():
    model = classifier()
    assert torch.equal(accuracy(model, iter(batches())).correct, accuracy(model, batches()).correct)


def test_repr_shows_the_counts():
    assert repr(Accuracy(torch.tensor([True, False, True, True]))) == "Accuracy(3 of 4, 75.00%)"


def test_repr_shows_the_branch():
    assert repr(Accuracy(torch.tensor([True, False]), branch="adv")) == "Accuracy(1 of 2, 50.00%, branch 'adv')"


def test_the_branch_of_a_dual_network_is_told():
    plain = classifier()
    assert [found.branch for found in both(plain, batches())] == [None, None]
    model = convert_to_dual_bn(nn.Sequential(plain, nn.BatchNorm1d(4)))
    assert [found.branch for found in both(model, batches())] == ["clean", "clean"]
    with bn_branch(model, "adv"):
        assert [found.branch for found in both(model, batches())] == ["adv", "adv"]
        with bn_branch(model[1], "clean"):
            assert accuracy(model, batches()).branch == "adv and clean"


X, Y = torch.linspace(0, 1, 48).view(4, 3, 2, 2), torch.arange(4)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        (
            [],
            ValueError,
            "expected batches",
        ),
        ([(X[:0], Y[:0])], ValueError, "expected batches"),
        ([X], TypeError, "expected batches"),
        ([(X, Y, Y)], TypeError, "expected batches"),
        (
            [((255 * X).byte(), Y)],
            TypeError,
            "expected images",
        ),
        ([(X + 1, Y)], ValueError, "expected images"),
        ([(X * math.nan, Y)], ValueError, "expected images"),
        ([(X, Y.int())], TypeError, "expected labels"),
        ([(X, Y.tolist())], TypeError, "expected labels"),
        ([(X[0], 1)], TypeError, "expected labels"),
        ([(X, Y[:3])], ValueError, "expected one label per image"),
        ([(X[0, 0, 0, 0], Y[0])], ValueError, "expected one label per image"),
        (
            [(X, Y + 4)],
            ValueError,
            "expected labels",
        ),
        ([(X, Y - 1)], ValueError, "expected labels"),
    ],
)
@pytest.mark.parametrize("evaluate", [accuracy, lambda m, b: robust_accuracy(m, b, ATTACK)], ids=["clean", "robust"])
def test_wrong_batches(evaluate, data, error, message):
    with pytest.raises(error, match=re.escape(f"accuracy: {message}")):
        evaluate(classifier(), data)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (
            lambda x: x,
            TypeError,
            "accuracy: expected model",
        ),
        (
            nn.Identity(),
            ValueError,
            "accuracy: expected the output of the model",
        ),
        (
            nn.Flatten(0),
            ValueError,
            "accuracy: expected the output of the model",
        ),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(12, 1)),
            ValueError,
            "accuracy: expected the output of the model",
        ),
    ],
)
def test_wrong_model(model, error, message):
    with pytest.raises(error, match=re.escape(message)):
        accuracy(model, [(X, Y)])


PROBABILITIES = "expected logits"


@pytest.mark.parametrize("evaluate", [accuracy, lambda m, b: robust_accuracy(m, b, ATTACK)], ids=["clean", "robust"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_probabilities_are_refused(evaluate, dtype):
    model = nn.Sequential(classifier(), nn.Softmax(1))
    model.register_forward_hook(lambda _, __, out: out.to(dtype))
    with pytest.raises(ValueError, match=PROBABILITIES):
        evaluate(model, batches())


def test_probabilities_are_refused_before_the_attack():
    def unwanted(objective, x, *, generator):
        raise AssertionError

    with pytest.raises(ValueError, match=PROBABILITIES):
        robust_accuracy(nn.Sequential(classifier(), nn.Softmax(1)), batches(), unwanted)


@pytest.mark.parametrize("logits", [[1.0, 0.0], [0.0, 0.0], [-0.5, 1.5], [0.7, 0.7]])
def test_logits_that_look_a_little_like_probabilities_are_not_refused(logits):
    x = torch.tensor([logits]).clamp(0, 1)
    model = nn.Flatten()
    model.register_forward_hook(lambda _, given, out: torch.tensor([logits]) if given[0].any() else out - 1)
    accuracy(model, [(x, torch.tensor([0]))])


def test_non_finite_logits_are_counted_and_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 4))
    model.register_forward_hook(lambda _, __, out: out.masked_fill(torch.tensor([[0], [1], [1], [0]]).bool(), math.nan))
    message = "accuracy: expected finite logits"
    with pytest.raises(ValueError, match=re.escape(message)):
        accuracy(model, [(X, Y)])


@pytest.mark.parametrize(
    ("attack", "error", "message"),
    [
        (
            "pgd",
            TypeError,
            "robust_accuracy: expected attack",
        ),
        (
            lambda objective, x, generator: x[:2],
            ValueError,
            "robust_accuracy: expected attack",
        ),
        (
            lambda objective, x, generator: None,
            ValueError,
            "robust_accuracy: expected attack",
        ),
    ],
)
def test_wrong_attack(attack, error, message):
    with pytest.raises(error, match=re.escape(message)):
        robust_accuracy(classifier(), [(X, Y)], attack)


def test_wrong_generator():
    message = "robust_accuracy: expected generator"
    with pytest.raises(TypeError, match=re.escape(message)):
        robust_accuracy(classifier(), [(X, Y)], ATTACK, generator=0)


@pytest.mark.parametrize("steps", [1, 5, 20])
def test_verdicts_are_those_of_torchattacks_from_the_same_start(steps):
    torchattacks = pytest.importorskip("torchattacks")
    eps, size, model = 0.1, 0.03, trained()
    x, y = images()
    theirs = torchattacks.PGD(model, eps=eps, alpha=size, steps=steps, random_start=False)(x, y)
    result = robust_accuracy(model, batches(16), PGDAttack(eps=eps, step_size=size, steps=steps, random_start=False))
    assert torch.equal(result.correct, right(model, x, y) & right(model, theirs, y))
    assert 0 < result.accuracy < accuracy(model, batches()).accuracy


def test_verdicts_are_those_of_torchattacks_from_a_common_random_start():
    torchattacks = pytest.importorskip("torchattacks")
    eps, size, model = 0.1, 0.03, trained()
    x, y = images()
    torch.manual_seed(7)
    theirs = torchattacks.PGD(model, eps=eps, alpha=size, steps=10, random_start=True)(x, y)
    torch.manual_seed(7)
    start = (x + torch.empty_like(x).uniform_(-eps, eps)).clamp(0, 1)

    def ours(objective, images, *, generator):
        """Our steps around the images, from their start: one step at a time, projected onto the ball of the images."""
        point = start
        for _ in range(10):
            moved = PGDAttack(eps=size, step_size=size, steps=1, random_start=False)(objective, point)
            point = moved.clamp(images - eps, images + eps).clamp(0, 1)
        return point

    result = robust_accuracy(model, [(x, y)], ours)
    assert torch.equal(result.correct, right(model, x, y) & right(model, theirs, y))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_are_moved_to_the_model_and_the_random_state_of_the_device_is_untouched():
    model = classifier().cuda()
    before = torch.cuda.get_rng_state()
    clean, robust = both(model, batches())
    assert clean.correct.device.type == robust.correct.device.type == "cpu"
    assert torch.equal(torch.cuda.get_rng_state(), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_in_another_precision_than_the_images_is_named(dtype):
    x, y = images()
    expected = "expected a model for images of torch.float32"
    for name, call in (("accuracy", accuracy), ("robust_accuracy", lambda *a: robust_accuracy(*a, ATTACK))):
        with pytest.raises(TypeError, match=f"^{name}: {expected}"):
            call(classifier().to(dtype), [(x, y)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_images_in_the_precision_of_the_model_are_evaluated(dtype):
    x, y = images()
    model = trained().to(dtype)
    assert torch.equal(accuracy(model, [(x.to(dtype), y)]).correct, right(model, x.to(dtype), y))


def test_errors_of_the_model_are_its_own():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        accuracy(classifier(), [(torch.rand(2, 5), torch.zeros(2, dtype=torch.int64))])


class InPlace(nn.Module):
    """Normalises its input in place."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(x.sub_(0.5).mul_(2))


def test_a_model_may_normalise_in_place():
    class Normalising(InPlace):
        def forward(self, x):
            return self.model((x - 0.5) * 2)

    model, (x, y) = trained(), images()
    before = x.clone()
    for call in (accuracy, lambda *a: robust_accuracy(*a, ATTACK)):
        assert torch.equal(call(InPlace(model), [(x, y)]).correct, call(Normalising(model), [(before, y)]).correct)
        assert torch.equal(x, before)


IDLE = {
    "no steps": PGDAttack(steps=0),
    "no steps, wrapped": WarmStart(PGDAttack(steps=0)),
    "no steps yet": ProgressiveAttack([(1, PGDAttack(steps=0)), (None, ATTACK)]),
    "no steps, partial": functools.partial(APGDAttack(steps=0)),
    "steps of the training": FreeAttack(),
}


@pytest.mark.parametrize("name", IDLE)
def test_an_attack_without_steps_is_refused(name):
    for owner, call in (
        ("robust_accuracy", lambda attack: robust_accuracy(classifier(), batches(), attack)),
        ("label_free_robustness", lambda attack: label_free_robustness(classifier(), batches(), attack)),
    ):
        with pytest.raises(ValueError, match=f"^{owner}: expected attack to take steps"):
            call(IDLE[name])


def test_an_attack_that_holds_itself_is_called():
    def attack(objective, x, *, generator):
        return ATTACK(objective, x, generator=generator)

    attack.attack = attack
    held, expected = (robust_accuracy(classifier(), batches(), each) for each in (attack, ATTACK))
    assert torch.equal(held.correct, expected.correct)


def test_a_curve_of_an_attack_without_steps_is_refused_unless_it_is_one_of_steps():
    with pytest.raises(ValueError, match=r"^robust_curve: expected attack"):
        robust_curve(classifier(), batches(), PGDAttack(steps=0), eps=[0.0, 0.1])
    assert len(robust_curve(classifier(), batches(), ATTACK, steps=[0, 1]).accuracies) == 2


def test_radius_zero_needs_no_steps():
    model = trained()
    clean = accuracy(model, batches()).correct
    for attack in (PGDAttack(eps=0.0), PGDAttack(eps=0.0, steps=0)):
        assert torch.equal(robust_accuracy(model, batches(), attack).correct, clean)


def test_an_attack_that_changes_no_image_is_warned_about():
    model = trained()
    expected = f"got the same {int(accuracy(model, batches()).correct.sum())} images that are classified correctly"
    with pytest.warns(UserWarning, match=f"^robust_accuracy: expected attack to change images, {expected}") as caught:
        robust_accuracy(model, batches(), lambda objective, x, generator: x)
    assert caught[0].filename == __file__


def test_images_that_are_misclassified_need_no_change():
    model, (x, y) = trained(), images()
    wrong = ~right(model, x, y)
    result = robust_accuracy(model, [(x[wrong], y[wrong])], lambda objective, x, generator: x)
    assert result.accuracy == 0


def test_an_evaluation_computes_without_tf32():
    seen = []
    model = nn.Flatten()
    model.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.conv.fp32_precision))
    accuracy(model, [(torch.rand(4, 3), torch.arange(4) % 3)])
    assert set(seen) == {"ieee"}
