"""Networks that checkpoint activations themselves are recomputed on the branch of the forward pass."""

import copy
import pickle
import re
import threading

import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from advcontrast import ACLTrainer, PGDAttack, bn_branch, checkpoint_context_fn, convert_to_dual_bn, set_bn_branch
from advcontrast.norm import DualNorm

# Raised by reentrant checkpoints without gradients, nested ones among them.
pytestmark = pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad=True")

HOW = {
    "plain": lambda function, x: function(x),
    "reentrant": lambda function, x: checkpoint(function, x, use_reentrant=True),
    "non-reentrant": lambda function, x: checkpoint(function, x, use_reentrant=False),
    "selective": lambda function, x: checkpoint(function, x, use_reentrant=False, context_fn=saved_products),
}


def saved_products():
    return create_selective_checkpoint_contexts([torch.ops.aten.addmm.default])


class Network(nn.Module):
    """Three blocks with a norm at the end, at the beginning and in the middle; ``outer`` surrounds them all."""

    def __init__(self, outer="plain", inner="plain"):
        super().__init__()
        self.outer, self.inner = outer, inner
        self.stem = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
        last = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.BatchNorm1d(4))
        first = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4), nn.Tanh())
        middle = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 4))
        self.blocks = nn.ModuleList([last, first, middle])

    def body(self, x):
        for block in self.blocks:
            x = HOW[self.inner](block, x)
        return x

    def forward(self, x):
        return HOW[self.outer](self.body, self.stem(x))


def differing(model):
    """Give the branches of a converted ``model`` different parameters."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".adv." in name:
                parameter.add_(torch.rand(parameter.shape, generator=generator))
    return model


def network(*how):
    torch.manual_seed(0)
    return differing(convert_to_dual_bn(Network(*how)))


def images(seed=0):
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))


def results(model):
    """Return the gradients and buffers of ``model``."""
    gradients = {f"{name}.grad": parameter.grad for name, parameter in model.named_parameters()}
    return {**gradients, **dict(model.named_buffers())}


def same(model, reference):
    found, expected = results(model), results(reference)
    return found.keys() == expected.keys() and all(
        found[name] is value or (found[name] is not None and value is not None and torch.equal(found[name], value))
        for name, value in expected.items()
    )


def loss(model, branch, seed=0):
    with bn_branch(model, branch):
        return model(images(seed)).exp().sum()


def after_the_context(model):
    loss(model, "adv").backward()


def both_in_one_backward_pass(model):
    (loss(model, "clean") + 2 * loss(model, "adv", 1) + loss(model, "clean", 2)).backward()


def inside_of_the_other_branch(model):
    adversarial = loss(model, "adv")
    with bn_branch(model, "clean"):
        adversarial.backward()


def in_another_order(model):
    adversarial, clean = loss(model, "adv"), model(images(1)).square().sum()
    adversarial.backward()
    clean.backward()


def on_nested_contexts(model):
    with bn_branch(model, "adv"):
        first = model(images())
        inner = loss(model, "clean", 1)
        second = model(images(2))
    (first.square() + second.exp()).sum().backward()
    inner.backward()


def accumulated_over_steps(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for step in range(3):
        for seed in range(2):
            losses = loss(model, "clean", seed), loss(model, "adv", seed + step)
            for each in losses:
                each.backward()
        optimizer.step()


def switched_for_good(model):
    set_bn_branch(model, "adv")
    y = model(images()).exp().sum()
    set_bn_branch(model, "clean")
    y.backward()
    model.blocks[1][0].branch = "adv"
    y = model(images(1)).exp().sum()
    model.blocks[1][0].branch = "clean"
    y.backward()


def evaluated_in_between(model):
    adversarial = loss(model, "adv")
    with torch.no_grad():
        for _ in range(130):
            loss(model, "clean")
    adversarial.backward()


SCENARIOS = [
    after_the_context,
    both_in_one_backward_pass,
    inside_of_the_other_branch,
    in_another_order,
    on_nested_contexts,
    accumulated_over_steps,
    switched_for_good,
    evaluated_in_between,
]
CHECKPOINTED = [
    ("plain", "reentrant"),
    ("plain", "non-reentrant"),
    ("plain", "selective"),
    ("reentrant", "plain"),
    ("non-reentrant", "plain"),
    ("non-reentrant", "non-reentrant"),
    ("non-reentrant", "reentrant"),
]


@pytest.mark.parametrize("how", CHECKPOINTED, ids=" around ".join)
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_gradients_and_statistics_are_those_without_checkpointing(scenario, how):
    model, reference = network(*how), network()
    scenario(model)
    scenario(reference)
    assert same(model, reference)


def gradient_of_images(model):
    x = images().requires_grad_()
    with bn_branch(model, "adv"):
        y = model(x).exp().sum()
    return torch.autograd.grad(y, x)[0]


def kept_graph(model):
    x = images().requires_grad_()
    with bn_branch(model, "adv"):
        y = model(x).exp().sum()
    model(images(1))
    return torch.autograd.grad(y, x, retain_graph=True)[0] + torch.autograd.grad(y, x)[0]


def second_derivative(model):
    x = images().requires_grad_()
    with bn_branch(model, "adv"):
        y = model(x).exp().sum()
    (slope,) = torch.autograd.grad(y, x, create_graph=True)
    slope.square().sum().backward()
    return x.grad


@pytest.mark.parametrize("gradient", [gradient_of_images, kept_graph, second_derivative])
@pytest.mark.parametrize("outer", ["plain", "non-reentrant"])
def test_gradients_with_respect_to_images_are_those_without_checkpointing(gradient, outer):
    model, reference = network(outer, "non-reentrant"), network()
    assert torch.equal(gradient(model), gradient(reference))
    assert same(model, reference)


def densenet():
    from torchvision.models.densenet import DenseNet

    return DenseNet(growth_rate=4, block_config=(2, 2), num_init_features=4, bn_size=1, num_classes=8)


def memory_efficient(model):
    for module in model.modules():
        if hasattr(module, "memory_efficient"):
            module.memory_efficient = True


def timm_resnet():
    timm = pytest.importorskip("timm")
    return timm.create_model("resnet10t", num_classes=8, stem_width=4, channels=(4, 8, 8, 8))


@pytest.mark.parametrize("mode", ["A2A", "A2S", "DS"])
@pytest.mark.parametrize(
    ("build", "switch_on"),
    [(densenet, memory_efficient), (timm_resnet, lambda model: model.set_grad_checkpointing())],
    ids=["torchvision", "timm"],
)
def test_a_step_of_a_network_that_checkpoints_is_the_plain_one(build, switch_on, mode):
    torch.manual_seed(0)
    reference = differing(convert_to_dual_bn(build()))
    model = copy.deepcopy(reference)
    switch_on(model)
    x1, x2 = torch.rand(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for net in (model, reference):
        acl = ACLTrainer(net, attack=PGDAttack(steps=1), mode=mode)
        acl(x1, x2, generator=torch.Generator().manual_seed(2)).loss.backward()
    assert same(model, reference)


class Counting(nn.LayerNorm):
    """A norm with a buffer of its own that moves in each forward pass."""

    def __init__(self):
        super().__init__(4)
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += 1
        return super().forward(x)


def test_buffers_of_other_norms_count_a_recomputed_batch_once():
    model = DualNorm(Counting())
    checkpoint(model, images().requires_grad_(), use_reentrant=False).sum().backward()
    assert model.clean.seen == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_knows_only_its_own_forward_passes(copied):
    model, reference = network("plain", "reentrant"), network()
    for net in (model, reference):
        loss(net, "adv")
        loss(net, "clean")
    twin = copied(model)
    for net in (twin, reference):
        set_bn_branch(net, "adv")
        net(images()).exp().sum().backward()
    assert same(twin, reference)


def test_a_backward_pass_that_raised_leaves_nothing_behind():
    model, reference = network("plain", "non-reentrant"), network()

    def fail(_):
        raise KeyError

    for net in (model, reference):
        y = loss(net, "adv")
        handle = net.stem[0].weight.register_hook(fail)
        with pytest.raises(KeyError):
            y.backward()
        handle.remove()
        net.zero_grad()
        both_in_one_backward_pass(net)
    assert same(model, reference)


UNKNOWN = (
    r"^DualBatchNorm1d: expected to know the branch of the forward pass that is recomputed, got several that are "
    r"possible\. Pass context_fn=checkpoint_context_fn\(model\)"
)


def test_nested_reentrant_checkpoints_are_refused_where_branches_differ():
    model = network("reentrant", "reentrant")
    y = loss(model, "adv")
    with pytest.raises(RuntimeError, match=UNKNOWN):
        y.backward()


def test_nested_reentrant_checkpoints_work_inside_of_the_branch():
    model, reference = network("reentrant", "reentrant"), network()
    for net in (model, reference):
        with bn_branch(net, "adv"):
            net(images()).exp().sum().backward()
    assert same(model, reference)


def in_a_thread(function):
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def test_forward_passes_of_another_thread_are_refused_after_a_switch():
    model, found = network("plain", "non-reentrant"), []
    loss(model, "adv")
    with bn_branch(model, "adv"):
        in_a_thread(lambda: found.append(model(images()).sum()))
    with pytest.raises(RuntimeError, match=UNKNOWN):
        found[0].backward()


def test_a_later_thread_is_not_taken_for_an_earlier_one():
    model, errors = network("plain", "non-reentrant"), []

    def clean():
        try:
            model(images()).sum().backward()
        except RuntimeError as error:
            errors.append(str(error))

    in_a_thread(lambda: loss(model, "adv").backward())
    in_a_thread(lambda: None)
    in_a_thread(clean)  # often under the same number as the first thread
    assert len(errors) == 1
    assert re.match(UNKNOWN, errors[0])


def test_forward_passes_of_another_thread_work_without_a_switch():
    model, reference, found = network("plain", "non-reentrant"), network(), []
    for net in (model, reference):
        net(images())
        in_a_thread(lambda net=net: found.append(net(images(1)).exp().sum()))
        found.pop().backward()
    assert same(model, reference)


def test_a_forward_pass_of_too_many_switches_ago_is_refused():
    model = network("plain", "non-reentrant")
    y = loss(model, "adv")
    for seed in range(150):
        loss(model, "adv", seed)
        loss(model, "clean", seed)
    with pytest.raises(RuntimeError, match=UNKNOWN):
        y.backward()


def switching(model):
    """Return a function that switches by itself."""

    def function(x):
        with bn_branch(model, "clean"):
            y = model(x)
        with bn_branch(model, "adv"):
            return y + model(2 * x)

    return function


@pytest.mark.parametrize("how", ["reentrant", "non-reentrant"])
def test_a_checkpointed_function_may_switch_by_itself(how):
    model, reference = network(), network()
    HOW[how](switching(model), images().requires_grad_()).exp().sum().backward()
    switching(reference)(images()).exp().sum().backward()
    assert same(model, reference)


def before_the_switch(model, x):
    y = model(x)
    with bn_branch(model, "adv"):
        return y + model(2 * x)


def behind_the_switch(model, x):
    with bn_branch(model, "adv"):
        y = model(2 * x)
    return model(x + y)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (before_the_switch, r"^bn_branch: expected a checkpointed function that does not switch, got one that uses"),
        (behind_the_switch, UNKNOWN),
    ],
)
def test_a_checkpointed_function_that_switches_in_the_middle_is_refused(function, message):
    model = network()
    y = checkpoint(lambda x: function(model, x), images().requires_grad_(), use_reentrant=False).sum()
    with pytest.raises(RuntimeError, match=message):
        y.backward()
    assert {module.branch for module in model.modules() if isinstance(module, DualNorm)} == {"clean"}


@pytest.mark.parametrize(
    ("owner", "switch"),
    [
        ("set_bn_branch", lambda model: set_bn_branch(model, "adv")),
        ("DualBatchNorm1d", lambda model: setattr(model.stem[1], "branch", "adv")),
    ],
)
def test_a_checkpointed_function_that_switches_for_good_is_refused(owner, switch):
    model = network()

    def function(x):
        switch(model)
        return model(x)

    y = checkpoint(function, images().requires_grad_(), use_reentrant=False).sum()
    with pytest.raises(RuntimeError, match=f"^{owner}: expected branch to be set outside of a backward pass"):
        y.backward()


def test_values_of_a_norm_are_recomputed_from_its_branch():
    (norm,) = differing(convert_to_dual_bn(nn.Sequential(nn.BatchNorm1d(4))))
    x = images().requires_grad_()
    with bn_branch(norm, "adv"):
        norm(x)
        y = checkpoint(lambda x: (x * norm.weight).exp() * len(norm.branch), x, use_reentrant=False)
    y.sum().backward()
    weight = norm.adv.weight.detach()
    assert torch.allclose(x.grad, 3 * weight * (x.detach() * weight).exp())


def test_a_switch_by_compiled_code_is_noticed():
    model = network("plain", "reentrant")
    loss(model, "adv")
    switch = torch.compile(lambda x: (set_bn_branch(model, "adv"), x + 1)[1], backend="eager", fullgraph=True)
    switch(images())
    y = model(images()).sum()
    set_bn_branch(model, "clean")
    with pytest.raises(RuntimeError, match=UNKNOWN):
        y.backward()


COMPILED = r"Dual\w+: expected to know the branch of the forward pass that is recomputed, got "  # 2.10 names the norm


@pytest.fixture
def _fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def by_itself(block, counter):
    block.compile(backend=counter, fullgraph=True)
    return block


def as_a_wrapper(block, counter):
    return torch.compile(block, backend=counter, fullgraph=True)


def as_a_function(block, counter):
    return torch.compile(lambda x: block(x) + 0, backend=counter, fullgraph=True)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(
    ("compiled", "how"),
    [(by_itself, "reentrant"), (by_itself, "non-reentrant"), (as_a_wrapper, "selective"), (as_a_function, "reentrant")],
)
@pytest.mark.sample(2)
def test_a_block_that_was_compiled_on_its_own_is_refused_in_each_recomputation(compiled, how):
    counter, model = CompileCounter(), network()
    block = compiled(model.blocks[2], counter)
    for branch in ("clean", "adv", "clean", "adv"):
        with bn_branch(model, branch):
            block(images().requires_grad_()).sum().backward()  # compiled outside of any checkpoint
            y = HOW[how](block, images().requires_grad_()).sum()
        with pytest.raises(RuntimeError, match=COMPILED):
            y.backward()
    assert counter.frame_count == (4 if how == "reentrant" else 2)  # a reentrant checkpoint runs without gradients


@pytest.mark.usefixtures("_fresh_compiler")
def test_a_context_function_recomputes_a_block_that_was_compiled_on_its_own_in_the_same_graphs():
    counter, model, reference = CompileCounter(), network(), network()
    block = as_a_function(model.blocks[2], counter)
    for branch in ("clean", "adv", "clean", "adv"):
        with bn_branch(model, branch), bn_branch(reference, branch):
            context_fn = checkpoint_context_fn(model)
            y = checkpoint(block, model.stem(images()), use_reentrant=False, context_fn=context_fn)
            expected = reference.blocks[2](reference.stem(images()))
        y.exp().sum().backward()
        expected.exp().sum().backward()
    assert same(model, reference)
    assert counter.frame_count == 2


@pytest.mark.usefixtures("_fresh_compiler")
def test_a_context_function_of_a_part_of_a_compiled_block_is_refused():
    model = network()
    whole = torch.compile(lambda x: model.blocks[2](model.blocks[1](x)), backend="eager", fullgraph=True)
    with bn_branch(model, "adv"):
        y = checkpoint(whole, images(), use_reentrant=False, context_fn=checkpoint_context_fn(model.blocks[2]))
    with pytest.raises(RuntimeError, match=COMPILED):
        y.sum().backward()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("outer", ["reentrant", "non-reentrant"])
def test_a_context_function_inside_of_another_checkpoint_recomputes_a_compiled_block(outer):
    model, reference = network(), network()
    block = torch.compile(model.blocks[2], backend="aot_eager", fullgraph=True)

    def part(x):
        x = checkpoint(block, x, use_reentrant=False, context_fn=checkpoint_context_fn(model.blocks[2]))
        return model.blocks[0](x)

    for branch in ("clean", "adv"):
        with bn_branch(model, branch), bn_branch(reference, branch):
            y = HOW[outer](part, model.stem(images()))
            expected = reference.blocks[0](reference.blocks[2](reference.stem(images())))
        y.exp().sum().backward()
        expected.exp().sum().backward()
    assert same(model, reference)


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@torch._dynamo.config.patch(recompile_limit=1)
def test_a_block_that_ran_compiled_and_would_be_recomputed_without_the_compiler_is_refused(backend):
    model = network()
    block = torch.compile(model.blocks[2], backend=backend)
    with bn_branch(model, "adv"):
        y = checkpoint(block, images(), use_reentrant=False)
    with pytest.raises(RuntimeError, match=COMPILED):
        y.sum().backward()


@pytest.mark.usefixtures("_fresh_compiler")
@pytest.mark.parametrize(
    ("owner", "switch"),
    [
        ("bn_branch", lambda model: bn_branch(model, "adv").__enter__()),
        ("set_bn_branch", lambda model: set_bn_branch(model, "adv")),
        ("DualBatchNorm1d", lambda model: setattr(model.stem[1], "branch", "adv")),
    ],
)
def test_switches_that_compiled_code_would_overlook_are_refused(owner, switch):
    model = network()
    expected = (
        f"^{owner}: expected compiled code to check which branch is in use, got the stance skip_guard_eval_unsafe"
    )
    with torch.compiler.set_stance(skip_guard_eval_unsafe=True), pytest.raises(RuntimeError, match=expected):
        switch(model)
    assert {module.branch for module in model.modules() if isinstance(module, DualNorm)} == {"clean"}


@pytest.mark.usefixtures("_fresh_compiler")
def test_a_checkpoint_inside_of_a_compiled_function_is_recomputed_on_the_branch_of_the_forward_pass():
    model, reference = (differing(convert_to_dual_bn(nn.Sequential(nn.BatchNorm1d(4)))) for _ in range(2))
    compiled = torch.compile(lambda x: HOW["non-reentrant"](model, x), backend="aot_eager", fullgraph=True)
    for branch in ("clean", "adv"):
        for net, forward in ((model, compiled), (reference, reference)):
            with bn_branch(net, branch):
                y = forward(images())
            y.exp().sum().backward()
    pairs = zip(model.parameters(), reference.parameters(), strict=True)
    assert all(torch.allclose(found.grad, expected.grad, rtol=1e-4, atol=1e-5) for found, expected in pairs)


@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_forward_passes_before_the_first_eager_one_are_not_taken_for_its_branch():
    model, reference = network(), network()
    block = torch.compile(model.blocks[2], backend="eager", fullgraph=True)
    for net, function in ((model, block), (reference, reference.blocks[2])):
        with bn_branch(net, "clean"):
            y = checkpoint(function, images().requires_grad_(), use_reentrant=False).exp().sum()
        loss(net, "adv")
        with torch.compiler.set_stance("force_eager"):  # as after too many compilations
            y.backward()
    assert same(model, reference)


@pytest.mark.usefixtures("_fresh_compiler")
def test_compiled_autograd_needs_the_context_function():
    def compiled_backward(model, **settings):
        x = images().requires_grad_()
        with bn_branch(model, "adv"):
            y = checkpoint(model, x, use_reentrant=False, **settings) if settings else HOW["non-reentrant"](model, x)
        with torch._dynamo.compiled_autograd._enable(torch.compile(backend="eager")):
            y.exp().sum().backward()
        return x.grad

    (model,) = block = differing(convert_to_dual_bn(nn.Sequential(nn.BatchNorm1d(4))))
    with pytest.raises(RuntimeError, match=UNKNOWN):
        compiled_backward(block)
    found = compiled_backward(block, context_fn=checkpoint_context_fn(block))
    x = images().requires_grad_()
    model.adv(x).exp().sum().backward()
    assert torch.allclose(found, x.grad)
