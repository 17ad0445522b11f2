"""Mixed precision, memory format, compilation."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from advcontrast.engine import Checkpoint
from tests.engine.learners import (
    Noisy,
    Separable,
    acl,
    images,
    seeded,
    sgd,
    train,
    weights,
)


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
@pytest.mark.parametrize("mode", ["S2S", "A2S", "DS"])
def test_mixed_precision_trains_float32_weights(amp, mode):
    kinds = set()
    learner = acl(mode)
    learner.model[0].register_forward_hook(lambda module, args, out: kinds.add(out.dtype))
    before = weights(learner)
    history = train(learner, images(), amp=amp)
    assert kinds == {{"bf16": torch.bfloat16, "fp16": torch.float16}[amp]}
    assert {parameter.dtype for parameter in learner.parameters()} == {torch.float32}
    idle = ".adv." if mode == "S2S" else "nothing"
    still = {n for n, p in learner.named_parameters() if torch.equal(p, before[n]) and idle not in n}
    assert still <= {"model.0.bias"}  # the norm after it takes it away
    assert all(math.isfinite(value) for row in history for value in row.values())


def test_mixed_precision_is_off_by_default():
    kinds = set()
    learner = Noisy()
    learner.model[0].register_forward_hook(lambda module, args, out: kinds.add(out.dtype))
    train(learner)
    assert kinds == {torch.float32}


def test_fp16_gradient_that_overflows_skips_the_step_and_lowers_the_scale(tmp_path):
    learner = Noisy()
    before = weights(learner)
    learner.model[5].weight.register_hook(lambda gradient: gradient * math.inf)
    train(learner, amp="fp16", folder=tmp_path)
    assert all(torch.equal(p, before[name]) for name, p in learner.named_parameters())
    _, state = Checkpoint(tmp_path / "checkpoints").load()
    assert state["scaler"]["scale"] == 2.0 ** (16 - 6)


def test_bf16_has_no_scaler(tmp_path):
    train(Noisy(), amp="bf16", folder=tmp_path)
    assert Checkpoint(tmp_path / "checkpoints").load()[1]["scaler"] == {}


def test_weights_and_batches_are_channels_last_and_an_earlier_optimizer_still_trains_them():
    batches = []

    class Watched(Separable):
        def forward(self, images, labels):
            batches.append(images.is_contiguous(memory_format=torch.channels_last))
            return super().forward(images, labels)

    learner = Watched()
    parameters = [*learner.parameters()]
    before = weights(learner)
    train(learner, optimizer=sgd(learner))
    assert learner.model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not learner.model[0].weight.is_contiguous()
    assert batches == [True] * 6
    assert all(old is new for old, new in zip(parameters, learner.parameters(), strict=True))
    assert not any(torch.equal(value, before[name]) for name, value in learner.named_parameters())


def test_compile_compiles_the_model_in_place(monkeypatch, tmp_path):
    compiled = []
    monkeypatch.setattr(nn.Module, "compile", lambda module, *args, **settings: compiled.append(module))
    learner, done = Separable(), Separable()
    train(learner, compile=True, folder=tmp_path)
    assert [id(module) for module in compiled] == [id(learner.model)]
    train(done, compile=True, folder=tmp_path)
    assert len(compiled) == 1


def test_nothing_is_compiled_by_default(monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", lambda *args, **settings: pytest.fail("compiled"))
    train(Separable())


@pytest.mark.parametrize("accumulate", [1, 2])
def test_learner_with_3d_convolutions_trains_as_it_is(accumulate):
    class Volumes(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Sequential(nn.Conv3d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 2 * 6 * 6, 5))

        def forward(self, volumes, labels):
            kinds.append((list(volumes.shape[1:]), volumes.dtype, volumes.is_contiguous()))
            return F.cross_entropy(self.model(volumes / 255), labels % 5), {}

    kinds = []
    learner = seeded(Volumes)
    before = weights(learner)
    volumes = torch.stack([images(22, seed=seed) for seed in range(4)], 2)
    history = train(learner, (volumes, torch.arange(22)), accumulate=accumulate)
    assert kinds == [([3, 4, 8, 8], torch.uint8, True)] * 6 * accumulate
    assert [row["step"] for row in history] == [3, 6]
    assert not any(torch.equal(value, before[name]) for name, value in weights(learner).items())
    assert all(parameter.is_contiguous() for parameter in learner.parameters())


@pytest.fixture
def graphs(monkeypatch):
    """Compile with a backend that only counts; yield the shapes of what it was given."""
    torch.compiler.reset()
    seen = []

    def backend(graph, inputs):
        seen.append([list(entry.shape) for entry in inputs if isinstance(entry, torch.Tensor) and entry.dim() == 4][-1])
        return graph

    compile_ = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda module: compile_(module, backend=backend))
    yield seen
    torch.compiler.reset()


@pytest.mark.parametrize(("mode", "count"), [("S2S", 1), ("A2A", 2), ("A2S", 4), ("DS", 3)])
def test_whole_run_compiles_each_graph_once(graphs, mode, count):
    learner = acl(mode)

    def evaluate(epoch):
        with torch.no_grad():
            return {"size": learner.model(torch.rand(5, 3, 8, 8)).numel()}

    history = train(learner, images(), epochs=3, compile=True, evaluate=evaluate)
    assert len(history) == 3
    assert len(graphs) == count


def test_compiled_run_is_the_eager_run(graphs):
    eager, compiled = acl("DS"), acl("DS")
    for learner, settings in ((eager, {}), (compiled, {"compile": True})):
        torch.manual_seed(0)
        train(learner, images(), **settings)
    assert graphs
    assert all(torch.equal(a, b) for a, b in zip(eager.parameters(), compiled.parameters(), strict=True))


def test_network_that_its_user_compiled_stays_compiled(graphs):
    learner = acl("S2S")
    learner.model.compile()
    train(learner, images(), epochs=1)
    assert len(graphs) == 1
