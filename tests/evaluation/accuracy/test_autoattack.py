"""AutoAttack: verdicts that can be derived, agreement with pyautoattack, and restored state."""

import math
import random
import re
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from advcontrast import bn_branch, convert_to_dual_bn
from advcontrast.data import ImageSet
from advcontrast.evaluation.accuracy import accuracy
from advcontrast.evaluation.accuracy.autoattack import AutoAttackResult, _margin, autoattack

package = pytest.importorskip("pyautoattack")
APGDAttack, APGDAttack_targeted = package.autopgd_base.APGDAttack, package.autopgd_base.APGDAttack_targeted
FABAttack_PT, SquareAttack = package.fab_pt.FABAttack_PT, package.square.SquareAttack
ATTACKS = {"apgd-ce": APGDAttack, "apgd-t": APGDAttack_targeted, "fab-t": FABAttack_PT, "square": SquareAttack}
EPS = {"linf": 0.1, "l2": 0.6}


@pytest.fixture(autouse=True)
def _small_budgets(monkeypatch):
    """Let the attacks take a few steps instead of a hundred, and a few queries instead of five thousand."""
    original = package.AutoAttack._set_version

    def set_version(self, version):
        original(self, version)
        self.apgd.n_iter = self.apgd_targeted.n_iter = 5
        self.fab.n_iter, self.square.n_queries = 2, 15

    monkeypatch.setattr(package.AutoAttack, "_set_version", set_version)


def run(model, batches, **settings):
    return autoattack(model, batches, **{"eps": EPS.get(settings.get("norm"), 0.1), "progress": False, **settings})


def images(n=12, shape=(1, 6, 5), classes=10, seed=5):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, *shape, generator=generator), torch.randint(classes, (n,), generator=generator)


def batches(size=6, **settings):
    x, y = images(**settings)
    return list(zip(x.split(size), y.split(size), strict=True))


def trained(shape=(1, 6, 5), classes=10, steps=40):
    """A classifier that is right on a good part of the images, and not robust on all of those."""
    torch.manual_seed(2)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(math.prod(shape), 16), nn.BatchNorm1d(16), nn.ReLU())
    model.append(nn.Linear(16, classes))
    x, y = images(shape=shape, classes=classes)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model.eval()(x), y).backward()
        optimizer.step()
    model.zero_grad(set_to_none=True)
    return model


def pair(*rows):
    """Images of two pixels; the brighter one is the class."""
    return torch.tensor(rows).view(-1, 2, 1, 1)


def script(monkeypatch, **perturb):
    """Replace attacks by functions of images and labels, and note on which images each one is run."""
    seen = []
    for name, cls in ATTACKS.items():
        function = perturb.get(name.replace("-", "_"), lambda x, y: x)

        def instead(self, x, y, name=name, function=function):
            seen.append((name, x.clone()))
            return function(x, y)

        monkeypatch.setattr(cls, "perturb", instead)
    return seen


def test_linear_classifier_is_robust_up_to_its_margin():
    # An attack of radius r closes a gap of 2 r.
    x = pair(*[(0.5 + gap / 2, 0.5 - gap / 2) for gap in (0.1, 0.19, 0.21, 0.4, -0.1)])
    result = run(nn.Flatten(), [(x, torch.zeros(5, dtype=torch.int64))])
    assert result.broken_by.tolist() == [0, 0, -1, -1, -2]
    assert result.correct.tolist() == [False, False, True, True, False]
    assert result.clean.tolist() == [True, True, True, True, False]


def test_the_example():
    result = run(nn.Flatten(), [(pair((0.9, 0.1), (0.4, 0.6), (0.8, 0.2)), torch.tensor([0, 1, 0]))], eps=0.25)
    expected = "AutoAttackResult(2 of 3, 66.67%; 3 correct without attack; broken by apgd-ce 1, fab-t 0, square 0)"
    assert repr(result) == expected
    assert result.accuracy == 2 / 3
    assert result.branch is None


def test_the_branch_of_a_dual_network_is_told():
    batches = [(pair((0.9, 0.1), (0.4, 0.6), (0.8, 0.2)), torch.tensor([0, 1, 0]))]
    model = convert_to_dual_bn(nn.Sequential(nn.Flatten(), nn.BatchNorm1d(2)))
    with bn_branch(model, "adv"):
        assert run(model, batches, eps=0.1).branch == "adv"


def directly(model, x, y, norm, seed):
    """Return the verdicts of pyautoattack on one batch."""
    attack = package.AutoAttack(model.eval(), norm={"linf": "Linf", "l2": "L2"}[norm], eps=EPS[norm], seed=seed)
    adv, _ = attack.run_standard_evaluation(x, y, batch_size=len(x))
    return model(adv).argmax(1) == y


@pytest.mark.parametrize("seed", [0, 7])
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_verdicts_are_those_of_pyautoattack_on_the_same_batches_and_seed(norm, seed):
    model, data = trained(), batches()
    expected = torch.cat([directly(model, x, y, norm, seed) for x, y in data])
    result = run(model, data, norm=norm, seed=seed)
    assert torch.equal(result.correct, expected)
    assert 0 < int(expected.sum()) < int(result.clean.sum())


def test_clean_verdicts_are_those_of_accuracy():
    model = trained(steps=10)
    result = run(model, batches())
    assert torch.equal(result.clean, accuracy(model, batches()).correct)
    assert 0 < int(result.clean.sum()) < 12


def test_result_is_made_of_tensors_on_the_cpu():
    result = run(trained(), batches())
    assert isinstance(result, AutoAttackResult)
    assert (result.correct.dtype, result.clean.dtype, result.broken_by.dtype) == (torch.bool, torch.bool, torch.int8)
    assert result.correct.shape == result.clean.shape == result.broken_by.shape == (12,)
    assert torch.equal(result.correct, result.broken_by == -1)
    assert torch.equal(result.clean, result.broken_by != -2)


@pytest.mark.parametrize(
    ("version", "classes", "attacks"),
    [
        ("standard", 10, ("apgd-ce", "apgd-t", "fab-t", "square")),
        ("standard", 4, ("apgd-ce", "apgd-t", "fab-t", "square")),
        ("standard", 3, ("apgd-ce", "apgd-dlr", "fab-t", "square")),
        ("standard", 2, ("apgd-ce", "fab-t", "square")),
        ("plus", 10, ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t")),
        ("plus", 3, ("apgd-ce", "apgd-dlr", "fab", "square", "fab-t")),
        ("plus", 2, ("apgd-ce", "fab", "square", "fab-t")),
        ("rand", 10, ("apgd-ce", "apgd-dlr")),
        ("rand", 2, ("apgd-ce",)),
    ],
)
def test_attacks_that_are_run(version, classes, attacks):
    result = run(trained(classes=classes), batches(classes=classes), version=version, eps=0.01)
    assert result.attacks == attacks
    assert result.accuracy > 0.5


@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
def test_attacks_of_a_version_are_those_of_pyautoattack(version):
    theirs = package.AutoAttack(nn.Flatten(), version=version).attacks_to_run
    assert run(trained(), batches(), version=version).attacks == tuple(theirs)


def notes(monkeypatch, *classes):
    """Note the settings with which attacks run."""
    noted = []
    for cls in classes:
        original = cls.perturb

        def noting(self, x, y, original=original):
            noted.append({**vars(self)})
            return original(self, x, y)

        monkeypatch.setattr(cls, "perturb", noting)
    return noted


@pytest.mark.parametrize(("classes", "targets"), [(4, 3), (9, 8), (10, 9), (12, 9)])
def test_targeted_attacks_aim_at_every_wrong_class_and_nine_at_most(monkeypatch, classes, targets):
    noted = notes(monkeypatch, APGDAttack_targeted, FABAttack_PT)
    run(trained(classes=classes), [images(classes=classes)], eps=0.001)
    assert [settings["n_target_classes"] for settings in noted] == [targets, targets]


def test_three_classes_are_attacked_with_the_dlr_loss(monkeypatch):
    noted = notes(monkeypatch, APGDAttack)
    run(trained(classes=3), [images(classes=3)], eps=0.001)
    assert [settings["loss"] for settings in noted] == ["ce", "dlr"]


def test_fab_is_targeted_with_one_start_and_untargeted_with_five(monkeypatch):
    noted = notes(monkeypatch, FABAttack_PT)
    run(trained(), [images()], eps=0.001, version="plus")
    assert [(settings["targeted"], settings["n_restarts"]) for settings in noted] == [(False, 5), (True, 1)]


def test_attacks_have_the_device_the_seed_and_the_radius(monkeypatch):
    noted = notes(monkeypatch, *ATTACKS.values())
    run(trained(), [images()], eps=0.001, seed=9)
    assert len(noted) == 4
    assert {(settings["device"], settings["seed"], settings["eps"]) for settings in noted} == {
        (torch.device("cpu"), 9, 0.001)
    }


def test_each_attack_gets_the_images_that_all_earlier_ones_failed_on(monkeypatch):
    swap = {name: lambda x, y, i=i: torch.cat([x[:1].flip(1), x[1:]]) for i, name in enumerate(("apgd_ce", "fab_t"))}
    seen = script(monkeypatch, **swap)
    x = pair(*[(0.6 + i / 100, 0.4) for i in range(4)], (0.4, 0.6))
    result = run(nn.Flatten(), [(x, torch.zeros(5, dtype=torch.int64))], eps=0.3)
    assert result.broken_by.tolist() == [0, 1, -1, -1, -2]
    assert [name for name, _ in seen] == ["apgd-ce", "fab-t", "square"]
    assert [torch.equal(given, x[i:4]) for i, (_, given) in enumerate(seen)] == [True, True, True]


@pytest.mark.parametrize(
    ("norm", "eps", "adv", "counts"),
    [
        ("linf", 0.25, (0.36, 0.6), True),
        ("linf", 0.25, (0.35, 0.6 + 9e-7), True),
        ("linf", 0.25, (0.34, 0.6), False),
        ("linf", 0.25, (0.36, math.nan), False),
        ("linf", 1.0, (0.5, 1.01), False),
        ("linf", 1.0, (-0.01, 0.5), False),
        ("l2", 0.25, (0.43, 0.57), True),
        ("l2", 0.25, (0.42, 0.58), False),
        ("l2", 0.25, (math.nan, 0.4), False),
        ("l2", 4.0, (0.5, 1.01), False),
    ],
)
def test_only_images_in_the_ball_and_in_range_count(monkeypatch, norm, eps, adv, counts):
    # The attack misplaces one row of otherwise unchanged images.
    def place(x, y):
        x = x.clone()
        x[0, :, 0, 0] = torch.tensor(adv)
        return x

    script(monkeypatch, square=place)
    x = torch.zeros(2, 2, 5, 1)
    x[:, :, 0] = torch.tensor([0.6, 0.4]).view(2, 1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(10, 2, bias=False))
    model[1].weight.data.zero_()
    model[1].weight.data[0, 0] = model[1].weight.data[1, 5] = 1
    result = run(model, [(x, torch.zeros(2, dtype=torch.int64))], norm=norm, eps=eps)
    assert result.correct.tolist() == [not counts, True]


def test_a_batch_that_is_wrong_already_is_not_attacked(monkeypatch):
    seen = script(monkeypatch)
    result = run(nn.Flatten(), [(pair((0.9, 0.1)), torch.tensor([1])), (pair((0.9, 0.1)), torch.tensor([0]))])
    assert result.broken_by.tolist() == [-2, -1]
    assert [len(x) for _, x in seen] == [1, 1, 1]


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        ("linf", (1, 14, 14)),
        ("linf", (3, 8, 8)),
        ("linf", (3, 4, 9)),
        ("linf", (3, 9, 4)),
        ("linf", (2, 1, 1)),
        ("l2", (1, 14, 14)),
        ("l2", (3, 8, 8)),
        ("l2", (3, 12, 19)),
        ("l2", (3, 30, 4)),
        ("l2", (2, 1, 1)),
    ],
)
@pytest.mark.sample(4)
def test_shapes_and_batches_of_one(norm, shape):
    model, (x, _) = trained(shape), images(shape=shape)
    y = model(x).argmax(1)
    result = run(model, [(x[:1], y[:1]), (x[1:3], y[1:3])], norm=norm, eps=1e-5)
    assert result.broken_by.tolist() == [-1, -1, -1]


@pytest.mark.parametrize("size", range(1, 41))
def test_square_in_l2_gets_a_margin_where_it_would_fail(size):
    def fails(margin):
        x = torch.full((1, 1, size + margin, size + margin), 0.5)
        attack = SquareAttack(lambda x: x.flatten(1).clone(), norm="L2", eps=0.1, n_queries=1)
        try:
            attack.perturb(x, torch.zeros(1, dtype=torch.int64))
        except (RuntimeError, ZeroDivisionError):
            return True
        return False

    margin = _margin(size, size)
    assert not fails(margin)
    assert margin == 0 or fails(0)


def test_batches_may_differ_in_shape():
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    data = [(torch.rand(3, 4, 6, 6), torch.arange(3)), (torch.rand(2, 4, 9, 5), torch.arange(2))]
    assert len(run(model, data).correct) == 5


def test_memory_format_does_not_matter():
    model, (x, y) = trained((3, 6, 5)), images(shape=(3, 6, 5))
    expected = run(model, [(x, y)])
    result = run(model, [(x.to(memory_format=torch.channels_last), y)])
    assert torch.equal(result.broken_by, expected.broken_by)


def test_radius_zero_gives_the_clean_verdicts():
    result = run(trained(), batches(), eps=0)
    assert torch.equal(result.correct, result.clean)


def test_images_are_not_written_to():
    # The logits of Flatten are the images themselves, and Square writes into logits.
    x, y = pair((0.9, 0.1), (0.4, 0.6)), torch.tensor([0, 1])
    before = x.clone()
    run(nn.Flatten(), [(x, y)])
    assert torch.equal(x, before)


def states():
    return torch.get_rng_state().tolist(), random.getstate(), [str(part) for part in np.random.get_state()]


class Dice(nn.Module):
    """Draws from every global generator."""

    def forward(self, x):
        return x.flatten(1) + random.random() / 1e3 + float(np.random.rand()) / 1e3 + torch.rand(1) / 1e3


def test_global_random_states_are_untouched():
    before = states()
    run(Dice(), [(pair((0.9, 0.1)), torch.tensor([0]))])
    assert states() == before


def test_global_random_states_are_untouched_when_an_attack_raises(monkeypatch):
    def broken(x, y):
        torch.rand(1), random.random(), np.random.rand()
        raise ZeroDivisionError

    script(monkeypatch, square=broken)
    before = states()
    with pytest.raises(RuntimeError):
        run(Dice(), [(pair((0.9, 0.1)), torch.tensor([0]))])
    assert states() == before


def test_batches_draw_the_images_that_they_would_draw_without_the_attacks():
    drawn = []

    def noisy():
        for _ in range(3):
            drawn.append(torch.rand(1, 2, 1, 1))
            yield drawn[-1], torch.tensor([0])

    torch.manual_seed(4)
    list(noisy())
    torch.manual_seed(4)
    run(nn.Flatten(), noisy())
    assert torch.equal(torch.cat(drawn[:3]), torch.cat(drawn[3:]))


def test_verdicts_do_not_depend_on_what_ran_before():
    model, (first, second) = trained(), batches()
    together = run(model, [first, second])
    torch.rand(7)
    assert torch.equal(run(model, [second]).broken_by, together.broken_by[6:])


class Noisy(nn.Module):
    """Adds much noise, from the global generator, to the logits."""

    def forward(self, x):
        return x.flatten(1) + torch.rand(len(x), 2)


def test_a_model_that_draws_random_numbers_gets_the_same_verdicts_again():
    data = [(torch.full((40, 2, 1, 1), 0.5), torch.zeros(40, dtype=torch.int64))]
    first = run(Noisy(), data, eps=0.01)
    torch.rand(7)
    assert torch.equal(run(Noisy(), data, eps=0.01).broken_by, first.broken_by)
    assert 0 < int(first.clean.sum()) < 40


def test_seed_changes_what_the_attacks_draw(monkeypatch):
    drawn = []

    def draw(self, x, y):
        torch.manual_seed(self.seed)
        drawn.append(torch.rand(1).item())
        return x

    monkeypatch.setattr(APGDAttack, "perturb", draw)
    for seed in (0, 1):
        run(nn.Flatten(), [(pair((0.9, 0.1)), torch.tensor([0]))], seed=seed)
    assert drawn[0] != drawn[1]


def state_of(model):
    modes = [module.training for module in model.modules()]
    flags = [(parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    return modes, flags, {name: value.tolist() for name, value in model.state_dict().items()}


def partly_frozen():
    model = trained().train()
    model[3].eval()
    model[2].weight.requires_grad_(False)
    return model


def test_model_is_left_as_it_was():
    model = partly_frozen()
    before = state_of(model)
    run(model, batches())
    assert state_of(model) == before


def test_model_is_left_as_it_was_when_an_attack_raises(monkeypatch):
    def broken(x, y):
        raise ZeroDivisionError

    script(monkeypatch, fab_t=broken)
    model = partly_frozen()
    before = state_of(model)
    with pytest.raises(RuntimeError):
        run(model, batches())
    assert state_of(model) == before


def test_model_is_in_eval_mode_and_without_autocast():
    model = partly_frozen()
    seen = set()

    def look(*_):
        seen.add((any(module.training for module in model.modules()), torch.is_autocast_enabled("cpu")))

    model.register_forward_hook(look)
    with torch.autocast("cpu", torch.bfloat16):
        run(model, batches())
    assert seen == {(False, False)}


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(mode):
    model = trained()
    expected = run(model, batches())
    with mode():
        assert torch.equal(run(model, batches()).broken_by, expected.broken_by)


def test_images_that_require_a_gradient_get_none():
    model, (x, y) = trained(), images()
    run(model, [(x.requires_grad_(), y)])
    assert x.grad is None


def test_any_iterable_will_do():
    model = trained()
    assert torch.equal(run(model, iter(batches())).broken_by, run(model, batches()).broken_by)


def test_batches_of_an_image_set_will_do():
    x, y = images()
    data = ImageSet((255 * x).byte(), y, tuple("abcdefghij"))
    assert len(run(trained(), data.batches(5)).correct) == 12


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        return zip(*images(), strict=True)


def test_a_loader_of_unknown_length_will_do():
    loader = torch.utils.data.DataLoader(Stream(), batch_size=5)
    assert len(run(trained(), loader).correct) == 12


def test_progress_bar_counts_batches(capsys):
    pytest.importorskip("tqdm")
    run(trained(), batches(), progress=True)
    shown = capsys.readouterr().err
    assert "2/2" in shown
    assert "square on " in shown


def test_progress_bar_of_unknown_length(capsys):
    pytest.importorskip("tqdm")
    run(trained(), (batch for batch in batches()), progress=True)
    assert "2batch" in capsys.readouterr().err


def test_nothing_is_printed_without_progress(capsys):
    run(trained(), batches())
    assert capsys.readouterr() == ("", "")


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    message = "autoattack: expected pyautoattack"
    with pytest.raises(ImportError, match=re.escape(message)) as caught:
        run(nn.Flatten(), [])
    assert str(caught.value).endswith("Install it with pip install pyautoattack.")


def test_error_of_an_attack_names_the_attack_the_batch_and_the_reason(monkeypatch):
    def broken(x, y):
        raise IndexError("no such class")

    script(monkeypatch, fab_t=broken)
    data = [(pair((0.9, 0.1)), torch.tensor([1])), (pair((0.9, 0.1)), torch.tensor([0]))]
    message = "autoattack: expected fab-t to run on 1 images of batch 1, got IndexError: no such class"
    with pytest.raises(RuntimeError, match=re.escape(message)) as caught:
        run(nn.Flatten(), data)
    assert isinstance(caught.value.__cause__, IndexError)


def test_ctrl_c_in_an_attack_is_passed_on(monkeypatch):
    def interrupted(x, y):
        raise KeyboardInterrupt

    script(monkeypatch, fab_t=interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(nn.Flatten(), [(pair((0.9, 0.1)), torch.tensor([0]))])


class Edge(nn.Module):
    """Has no finite logits for images whose first pixel is at most a half."""

    def forward(self, x):
        return x.flatten(1) + torch.where(x[:, :1, 0, 0] > 0.5, 0.0, math.nan)


@pytest.mark.parametrize("start", [0.4, 0.55])
def test_logits_that_are_not_finite_are_refused(monkeypatch, start):
    script(monkeypatch, square=lambda x, y: x - 0.1)
    x = pair((start, 0.1), (0.9, 0.1))
    message = "autoattack: expected finite logits"
    with pytest.raises(ValueError, match=re.escape(message)):
        run(Edge(), [(x, torch.zeros(2, dtype=torch.int64))], eps=0.1)


X, Y = images(4)
DATA = [(X, Y)]


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"eps": 8},
            ValueError,
            "expected eps",
        ),
        ({"eps": -0.1}, ValueError, "expected eps"),
        ({"eps": math.nan, "norm": "l2"}, ValueError, "expected eps"),
        ({"eps": math.inf, "norm": "l2"}, ValueError, "expected eps"),
        ({"eps": "8/255"}, TypeError, "expected eps"),
        ({"norm": "Linf"}, ValueError, "expected norm"),
        ({"version": "fast"}, ValueError, "expected version"),
        ({"version": None}, TypeError, "expected version"),
        (
            {"seed": -1},
            ValueError,
            "expected seed",
        ),
        ({"seed": 0.5}, TypeError, "expected seed"),
        ({"seed": None}, TypeError, "expected seed"),
        ({"progress": 1}, TypeError, "expected progress"),
    ],
)
def test_wrong_settings(settings, error, message):
    with pytest.raises(error, match=re.escape(f"autoattack: {message}")):
        run(trained(), DATA, **settings)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ([], ValueError, "expected batches"),
        ((X, Y), TypeError, "expected batches"),
        ([((255 * X).byte(), Y)], TypeError, "expected images"),
        (
            [(X.double(), Y)],
            TypeError,
            "expected images",
        ),
        ([(X.half(), Y)], TypeError, "expected images"),
        (
            [(X.flatten(1), Y)],
            ValueError,
            "expected images",
        ),
        ([(X + 1, Y)], ValueError, "expected images"),
        ([(X * math.nan, Y)], ValueError, "expected images"),
        ([(X, Y + 10)], ValueError, "expected labels"),
        ([(X, Y[:3])], ValueError, "expected one label per image"),
    ],
)
def test_wrong_batches(data, error, message):
    with pytest.raises(error, match=re.escape(f"autoattack: {message}")):
        run(trained(), data)


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        (lambda x: x, TypeError, "expected model"),
        (
            trained().half(),
            TypeError,
            "expected the parameters of model",
        ),
        (
            trained().double(),
            TypeError,
            "expected the parameters of model",
        ),
        (nn.Identity(), ValueError, "expected the output of the model"),
        (nn.Sequential(trained(), nn.Softmax(1)), ValueError, "expected logits"),
    ],
)
def test_wrong_model(model, error, message):
    with pytest.raises(error, match=re.escape(f"autoattack: {message}")):
        run(model, DATA)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_are_moved_to_the_model_and_the_random_state_of_every_device_is_untouched():
    model = trained().cuda()
    before = [torch.cuda.get_rng_state(i).tolist() for i in range(torch.cuda.device_count())]
    result = run(model, batches())
    assert result.correct.device.type == result.broken_by.device.type == "cpu"
    assert [torch.cuda.get_rng_state(i).tolist() for i in range(torch.cuda.device_count())] == before
