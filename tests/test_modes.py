"""Modes and buffers of modules are restored exactly."""

import linecache
import sys
from contextlib import contextmanager, suppress

import pytest
import torch
from torch import nn
from torch.backends import cuda, cudnn

from advcontrast import _modes
from advcontrast._modes import buffers_kept, eval_mode, frozen, without_tf32
from advcontrast.attacks import under_attack


def network():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Dropout(), nn.Linear(4, 4)))
    model[1].eval().requires_grad_(False)
    return model


def modes(model):
    return [module.training for module in model.modules()]


def flags(model):
    return [parameter.requires_grad for parameter in model.parameters()]


def test_eval_mode_reaches_every_module():
    model = network()
    with eval_mode(model):
        assert not any(modes(model))


def test_eval_mode_does_not_wake_a_norm_that_was_frozen():
    model = network()
    before = modes(model)
    with eval_mode(model):
        pass
    assert modes(model) == before
    assert not model[1].training


def test_eval_mode_keeps_a_training_part_of_an_evaluating_model():
    model = network().eval()
    model[2].train()
    before = modes(model)
    with eval_mode(model):
        pass
    assert modes(model) == before


def test_eval_mode_ends_with_an_exception():
    model = network()
    before = modes(model)
    with pytest.raises(KeyError), eval_mode(model):
        raise KeyError
    assert modes(model) == before


def test_eval_modes_nest():
    model = network()
    before = modes(model)
    with eval_mode(model):
        with eval_mode(model):
            pass
        assert not any(modes(model))
    assert modes(model) == before


class Caching(nn.Linear):
    """Keeps for evaluation what it computed from its weight, as LeViT keeps its attention biases."""

    def __init__(self):
        super().__init__(2, 2, bias=False)
        self.kept = None
        self.told = []

    def train(self, mode=True):
        self.told.append(mode)
        if mode:
            self.kept = None
        return super().train(mode)

    def forward(self, x):
        weight = 2 * self.weight
        if not self.training:
            weight = self.kept = weight if self.kept is None else self.kept
        return x @ weight


def test_eval_mode_tells_a_module_with_a_train_method_of_its_own():
    model = nn.Sequential(Caching(), nn.Linear(2, 2))
    with eval_mode(model):
        assert model[0].told == [False]
    assert model[0].told == [False, True]


def test_caches_for_evaluation_are_cleared_after_eval_mode():
    model, x = nn.Sequential(Caching()), torch.eye(2)
    with torch.no_grad():
        for value in (1.0, 3.0):
            nn.init.constant_(model[0].weight, value)
            with eval_mode(model):
                assert torch.equal(model(x), torch.full((2, 2), 2 * value))


def test_a_train_method_does_not_wake_a_norm_that_was_frozen():
    model = Caching()
    model.norm = nn.BatchNorm1d(2).eval()
    with eval_mode(model):
        pass
    assert model.training
    assert not model.norm.training


def test_eval_mode_moves_no_statistics():
    model = network()
    model[1].train()
    with eval_mode(model):
        model(torch.randn(5, 4))
    assert torch.equal(model[1].running_mean, torch.zeros(4))


def test_frozen_reaches_every_parameter():
    model = network()
    with frozen(model):
        assert not any(flags(model))


def test_frozen_does_not_thaw_what_was_frozen_before():
    model = network()
    before = flags(model)
    with frozen(model):
        pass
    assert flags(model) == before == [True, True, False, False, True, True]


def test_frozen_ends_with_an_exception():
    model = network()
    before = flags(model)
    with pytest.raises(KeyError), frozen(model):
        raise KeyError
    assert flags(model) == before


def test_frozen_takes_a_shared_parameter():
    model = network()
    model[2][1].weight = model[0].weight
    before = flags(model)
    with frozen(model):
        assert not any(flags(model))
    assert flags(model) == before


def test_frozen_still_lets_gradients_reach_the_input():
    model = network()
    x = torch.randn(5, 4, requires_grad=True)
    with frozen(model):
        model(x).sum().backward()
    assert x.grad is not None
    assert all(parameter.grad is None for parameter in model.parameters())


def test_frozen_keeps_gradients_that_are_there():
    model = network()
    model(torch.randn(5, 4)).sum().backward()
    gradient = model[0].weight.grad.clone()
    with frozen(model):
        pass
    assert torch.equal(model[0].weight.grad, gradient)


class Moving(nn.Module):
    """Updates its buffers in eval mode too, in each of the ways that libraries use."""

    def __init__(self):
        super().__init__()
        self.register_buffer("in_place", torch.zeros(2))
        self.register_buffer("behind_autograd", torch.zeros(2))
        self.register_buffer("rebound", torch.zeros(2))
        self.register_buffer("through_the_dict", torch.zeros(2))
        self.register_buffer("resized", torch.zeros(0))
        self.register_buffer("emptied", torch.zeros(2))
        self.register_buffer("filled", None)
        self.register_buffer("temporary", torch.zeros(2), persistent=False)

    def forward(self, x):
        self.in_place.add_(1)
        self.behind_autograd.data.add_(1)
        self.rebound = self.rebound + 1
        self._buffers["through_the_dict"] = self.through_the_dict + 1
        self.resized.resize_(3).fill_(1)
        self.emptied = None
        self.filled = torch.ones(2)
        self.temporary.add_(1)
        self.register_buffer("new", torch.ones(2))
        return x + self.in_place


def buffers(model):
    return [(name, buffer, None if buffer is None else buffer.clone()) for name, buffer in model._buffers.items()]


def assert_unmoved(model, before):
    assert list(model._buffers) == [name for name, _, _ in before]
    for name, buffer, value in before:
        assert getattr(model, name) is buffer
        assert buffer is None or torch.equal(buffer, value)


@pytest.mark.parametrize("inference", [False, True], ids=["", "in inference mode"])
@pytest.mark.parametrize("made", [False, True], ids=["", "made in inference mode"])
def test_buffers_are_kept_however_they_are_moved(made, inference):
    with torch.inference_mode(made):
        model = Moving()
    before = buffers(model)
    with torch.inference_mode(inference or made), buffers_kept(nn.Sequential(nn.ReLU(), model)):
        model(torch.zeros(2))
    assert_unmoved(model, before)


def test_buffers_are_kept_after_an_error():
    model = Moving()
    before = buffers(model)
    with pytest.raises(AttributeError), buffers_kept(model):
        model(torch.zeros(2)).fails()
    assert_unmoved(model, before)


def test_a_buffer_of_two_modules_is_kept():
    first, second = Moving(), Moving()
    second.in_place = first.in_place
    before = first.in_place
    with buffers_kept(first, second):
        first(torch.zeros(2))
        second(torch.zeros(2))
    assert first.in_place is second.in_place is before
    assert torch.equal(before, torch.zeros(2))


@pytest.mark.parametrize(
    "buffer",
    [
        torch.zeros(2, 1).expand(2, 3),
        torch.zeros(2, device="meta"),
        torch.eye(2).to_sparse(),
        torch.zeros(2, dtype=torch.float8_e4m3fn),
        torch.zeros(2).long(),
        nn.UninitializedBuffer(),
    ],
    ids=["expanded", "meta", "sparse", "float8", "integers", "lazy"],
)
def test_every_kind_of_buffer_is_accepted(buffer):
    model = nn.Module()
    model.register_buffer("kept", buffer)
    with buffers_kept(model):
        pass
    assert model.kept is buffer


def test_caches_of_a_module_outside_its_state_are_kept():
    class Grid(nn.Module):
        made = False

        def forward(self, x):
            if not self.made:
                self.register_buffer("grid", torch.ones(2), persistent=False)
                self.made = True
            return x + self.grid

    model = Grid()
    with buffers_kept(model):
        model(torch.zeros(2))
    assert torch.equal(model(torch.zeros(2)), torch.ones(2))


def test_a_graph_that_holds_a_buffer_stays_valid():
    model, x = nn.Module(), torch.ones(2, requires_grad=True)
    model.register_buffer("scale", torch.full((2,), 3.0))
    y = (x * model.scale).sum()
    with buffers_kept(model):
        pass
    y.backward()
    assert torch.equal(x.grad, torch.full((2,), 3.0))


def test_the_statistics_of_ordinary_norms_are_not_copied(monkeypatch):
    copied, clone = [], torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda buffer: copied.append(buffer) or clone(buffer))
    model = nn.Sequential(nn.BatchNorm2d(2), nn.SyncBatchNorm(2), nn.InstanceNorm1d(2, track_running_stats=True))
    with buffers_kept(model):
        pass
    assert not copied


class Adapting(nn.BatchNorm1d):
    """Follows the images in eval mode too."""

    def forward(self, x):
        return nn.functional.batch_norm(x, self.running_mean, self.running_var, training=True)


def test_the_statistics_of_other_norms_are_kept():
    model = Adapting(2).eval()
    with buffers_kept(model):
        model(torch.randn(4, 2))
    assert torch.equal(model.running_mean, torch.zeros(2))


@contextmanager
def interrupted(step):
    """Raise KeyboardInterrupt at one step of what changes the modes, as Ctrl-C would."""
    left = [step]

    def trace(frame, event, argument):
        if frame.f_code.co_filename not in (_modes.__file__, sys.modules[under_attack.__module__].__file__):
            return None
        # Python looks for signals at calls and in loops, not at a bare ``try``.
        if event != "line" or linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip() == "try:":
            return trace
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield left
    finally:
        sys.settrace(before)


def test_an_interrupt_at_any_moment_leaves_nothing_changed():
    model, other = network(), Moving()
    everything = nn.Sequential(model, other)
    before, wanted, kept = modes(everything), flags(everything), buffers(other)
    step = 0
    while True:
        step += 1
        try:
            with interrupted(step) as left, under_attack(everything):
                other(torch.zeros(2))
        except KeyboardInterrupt:
            pass
        assert modes(everything) == before, step
        assert flags(everything) == wanted, step
        assert_unmoved(other, kept)
        if left[0] > 0:
            break
    assert step > 50


def precisions():
    return [part.fp32_precision for part in (cuda.matmul, cudnn.conv, cudnn.rnn)]


@pytest.mark.parametrize("matmul", ["highest", "high"])
def test_tf32_is_off_in_the_block_and_restored_after_an_error(matmul):
    at_first = cuda.matmul.fp32_precision
    torch.set_float32_matmul_precision(matmul)
    try:
        before = precisions()
        with suppress(OSError), without_tf32():
            assert precisions() == ["ieee"] * 3
            raise OSError("disk")
        assert precisions() == before
        assert torch.get_float32_matmul_precision() == matmul
    finally:
        torch.set_float32_matmul_precision("highest")
        cuda.matmul.fp32_precision = at_first
