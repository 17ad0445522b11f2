"""The context function of a checkpoint re-enters the branches of the forward pass."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from advcontrast import bn_branch, branch_parameters, checkpoint_context_fn, convert_to_dual_bn


class Network(nn.Module):
    """A stem and a body that is checkpointed or not, with a context function of its own."""

    def __init__(self, checkpointed=True, told=True):
        super().__init__()
        torch.manual_seed(3)
        self.stem = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh())
        self.body = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 2))
        self.checkpointed = checkpointed
        self.settings = {"context_fn": checkpoint_context_fn(self)} if told else {}

    def forward(self, x):
        x = self.stem(x)
        return checkpoint(self.body, x, use_reentrant=False, **self.settings) if self.checkpointed else self.body(x)


def converted(*args):
    """Return a network in eval mode whose branches differ, so that the wrong one shows."""
    model = convert_to_dual_bn(Network(*args)).eval()
    with torch.no_grad():
        for parameter in branch_parameters(model, "adv"):
            parameter.mul_(3).add_(1)
    return model


def gradients(model, branches=("adv",)):
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    losses = []
    for branch in branches:
        with bn_branch(model, branch):
            losses.append(model(x).square().sum())
    torch.stack(losses).sum().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def same(actual, expected):
    return actual.keys() == expected.keys() and all(torch.equal(actual[name], expected[name]) for name in expected)


def test_without_the_context_function_the_gradient_is_the_unchecked_one_too():
    assert same(gradients(converted(True, False)), gradients(converted(False)))


def test_with_the_context_function_the_gradient_is_the_unchecked_one():
    assert same(gradients(converted()), gradients(converted(False)))


def test_in_training_mode_the_gradient_is_the_unchecked_one_too():
    assert same(gradients(converted().train()), gradients(converted(False).train()))


def test_one_context_function_serves_both_branches_of_one_backward():
    both = ("clean", "adv", "clean")
    assert same(gradients(converted(), both), gradients(converted(False), both))


def test_recomputation_leaves_the_branch_as_the_caller_has_it():
    model = converted()
    x = torch.randn(5, 4)
    with bn_branch(model, "adv"):
        loss = model(x).sum()
    loss.backward()
    assert {model.stem[1].branch, model.body[1].branch} == {"clean"}


def test_backward_inside_the_other_branch_recomputes_on_the_branch_of_the_forward():
    model, reference = converted(), converted(False)
    x = torch.randn(5, 4)
    for network in (model, reference):
        with bn_branch(network, "adv"):
            loss = network(x).square().sum()
        with bn_branch(network, "clean"):
            loss.backward()
    for actual, expected in zip(model.parameters(), reference.parameters(), strict=True):
        assert (actual.grad is None) == (expected.grad is None)
        assert actual.grad is None or torch.equal(actual.grad, expected.grad)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_recomputes_on_its_own_branch(copied):
    model = converted()
    twin = copied(model)
    assert twin.settings["context_fn"].args == (twin,)
    assert same(gradients(twin), gradients(converted(False)))


def test_norms_may_have_different_branches():
    model, reference = converted(), converted(False)
    for network in (model, reference):
        network.body[1].branch = "adv"
    x = torch.randn(5, 4)
    losses = [network(x).square().sum() for network in (model, reference)]
    model.body[1].branch = "clean"
    for loss in losses:
        loss.backward()
    assert torch.equal(model.body[0].weight.grad, reference.body[0].weight.grad)


def test_the_context_function_of_the_checkpointed_part_is_enough():
    model = converted()
    model.settings["context_fn"] = checkpoint_context_fn(model.body)
    assert same(gradients(model), gradients(converted(False)))


def test_a_network_without_dual_norms_has_nothing_to_reenter():
    def run(model):
        model(torch.ones(5, 4) * torch.arange(5.0)[:, None]).square().sum().backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    assert same(run(Network()), run(Network(False)))


def test_a_graph_that_is_kept_can_be_recomputed_twice():
    model = convert_to_dual_bn(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    x = torch.randn(6, 4, requires_grad=True)
    with bn_branch(model, "adv"):
        loss = checkpoint(model, x, use_reentrant=False, context_fn=checkpoint_context_fn(model)).exp().sum()
    torch.autograd.grad(loss, x, retain_graph=True)
    loss.backward()
    assert model[1].clean.weight.grad is None
    assert model[1].adv.weight.grad is not None


def buffers(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("convert", [convert_to_dual_bn, lambda model: model])
def test_statistics_count_a_recomputed_batch_once(momentum, convert):
    found = []
    for checkpointed in (True, False):
        model = convert(Network(checkpointed))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.momentum = momentum
        for _ in range(2):
            model(torch.randn(5, 4, generator=torch.Generator().manual_seed(1))).square().sum().backward()
        found.append(buffers(model))
        assert {module.momentum for module in model.modules() if isinstance(module, nn.BatchNorm1d)} == {momentum}
    assert same(*found)


def test_statistics_move_twice_without_the_context_function():
    model = Network(True, False)
    model(torch.randn(5, 4)).sum().backward()
    assert model.body[1].num_batches_tracked == 2


@pytest.mark.parametrize("split", ["affine", "stats"])
def test_a_split_outlives_a_recomputation(split):
    model = convert_to_dual_bn(Network(), split=split)
    model(torch.randn(5, 4)).sum().backward()
    norm = model.body[1]
    assert (norm.clean.num_batches_tracked is norm.adv.num_batches_tracked) == (split == "affine")
    assert norm.clean.num_batches_tracked == 1


def test_norms_without_statistics_are_recomputed_too():
    model = convert_to_dual_bn(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, track_running_stats=False)))
    with bn_branch(model, "adv"):
        y = checkpoint(model, torch.randn(6, 4), use_reentrant=False, context_fn=checkpoint_context_fn(model))
    y.exp().sum().backward()
    assert model[1].adv.weight.grad is not None


def test_a_part_that_was_compiled_by_itself_is_recomputed_on_the_branch_of_the_forward_pass():
    model, reference = converted(), converted(False)
    compiled = torch.compile(model.body, backend="eager", fullgraph=True)
    x = torch.randn(5, 4)
    for branch in ("clean", "adv"):
        with bn_branch(model, branch), bn_branch(reference, branch):
            y = checkpoint(compiled, model.stem(x), use_reentrant=False, context_fn=checkpoint_context_fn(model))
            expected = reference(x)
        y.square().sum().backward()
        expected.square().sum().backward()
    gradients = [{name: p.grad for name, p in net.named_parameters()} for net in (model, reference)]
    assert same(*gradients)
