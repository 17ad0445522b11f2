"""Compilers make one graph a branch and never break one."""

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from advcontrast import bn_branch, convert_to_dual_bn, set_bn_branch


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def network():
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
    model = convert_to_dual_bn(nn.Sequential(*layers))
    with torch.no_grad():
        model[1].adv.weight.mul_(2)
    return model


def test_two_branches_are_two_graphs():
    counter, model = CompileCounter(), network()
    compiled = torch.compile(model, backend=counter, fullgraph=True)
    x = torch.rand(2, 3, 8, 8)
    for branch in ("clean", "adv", "clean", "adv"):
        with bn_branch(model, branch):
            compiled(x)
    assert counter.frame_count == 2


@pytest.mark.parametrize(("switch", "tracked"), [(bn_branch, [2, 2]), (set_bn_branch, [0, 2])])
def test_a_compiled_step_that_switches_the_branch_is_one_graph(switch, tracked):
    counter, model = CompileCounter(), network()

    def step(x):
        if switch is set_bn_branch:
            set_bn_branch(model, "adv")
            return model(x)
        with bn_branch(model, "adv"):
            adversarial = model(x)
        with bn_branch(model, "clean"):
            return adversarial + model(x)

    compiled = torch.compile(step, backend=counter, fullgraph=True)
    for _ in range(2):
        set_bn_branch(model, "clean")
        compiled(torch.rand(2, 3, 8, 8))
    assert counter.frame_count == 1
    assert [getattr(model[1], branch).num_batches_tracked.item() for branch in ("clean", "adv")] == tracked


@pytest.mark.parametrize("wrap", ["model", "step"])
def test_compiled_outputs_gradients_and_statistics_are_the_eager_ones(wrap):
    results = []
    for compiled in (False, True):
        model = network()
        forward = torch.compile(model, backend="aot_eager", fullgraph=True) if compiled and wrap == "model" else model

        def step(x, forward=forward, model=model):
            with bn_branch(model, "clean"):
                clean = forward(x)
            with bn_branch(model, "adv"):
                return clean.square().sum() + forward(x).exp().sum()

        step = torch.compile(step, backend="aot_eager", fullgraph=True) if compiled and wrap == "step" else step
        loss = step(torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)))
        loss.backward()
        results.append([loss, *model.state_dict().values(), *(p.grad for p in model.parameters())])
    assert all(map(torch.equal, *results))
