"""Folded networks compute what they computed before, and are what they were afterwards."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from advcontrast import PGDAttack, bn_branch, convert_to_dual_bn
from advcontrast.attacks import under_attack
from advcontrast.attacks.context import folded

TOLERANCE = 1e-12  # float64


class Block(nn.Module):
    """A convolution and a norm; ``mode`` says how the output of the convolution is used."""

    def __init__(self, mode="once"):
        super().__init__()
        self.conv, self.norm, self.mode = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), mode

    def forward(self, x):
        y = self.conv(x)
        if self.mode == "changed in place":
            y = y.mul_(2)
        z = F.relu(self.norm(y), inplace=True)
        if self.mode == "used twice":
            return z + y
        if self.mode == "layer called twice":
            return z + self.conv(x)
        return self.norm(z) if self.mode == "norm called twice" else z + x


class Checkpointed(Block):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


def sequence(*layers):
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(75, 4, bias=False), nn.BatchNorm1d(4))


def hooked():
    block = Block()
    block.conv.register_forward_hook(lambda _, __, y: 2 * y)
    return block


def parametrized():
    block = Block()
    nn.utils.parametrizations.weight_norm(block.conv)
    return block


def of_the_batch():
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, track_running_stats=False))


def traced():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch advises against tracing
        layer = torch.jit.trace(nn.Conv2d(3, 3, 1), torch.rand(2, 3, 5, 5))
    return nn.Sequential(layer, nn.BatchNorm2d(3))


# The networks, and how many of their layers take a norm in, besides that of the head.
NETWORKS = {
    "block": (Block, 1),
    "checkpointed": (Checkpointed, 1),
    "without affine parameters": (lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3, affine=False)), 1),
    "dual norm": (lambda: convert_to_dual_bn(Block()), 1),
    "used twice": (lambda: Block("used twice"), 0),
    "changed in place": (lambda: Block("changed in place"), 0),
    "layer called twice": (lambda: Block("layer called twice"), 0),
    "norm called twice": (lambda: Block("norm called twice"), 0),
    "hooked": (hooked, 0),
    "parametrized": (parametrized, 0),
    "statistics of the batch": (of_the_batch, 0),
    "traced": (traced, 0),
    "relu between": (lambda: nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)), 0),
}


def network(make):
    torch.manual_seed(0)
    model = sequence(make()).double()
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and part.track_running_stats:
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
            if part.affine:
                nn.init.normal_(part.weight)
                nn.init.normal_(part.bias)
    return model


def changed(model):
    return sum("forward" in vars(part) for part in model.modules()) // 2


@pytest.mark.parametrize(("make", "count"), NETWORKS.values(), ids=NETWORKS.keys())
def test_second_call_has_the_value_and_gradient_of_the_first(make, count):
    model = network(make)
    x = torch.rand(6, 3, 5, 5, dtype=torch.float64).requires_grad_()
    before = model.state_dict()
    found = []
    with under_attack(model), folded(lambda x: model(x).square().sum(1), model) as objective:
        for _ in range(3):
            value = objective(x)
            found.append((value.detach(), *torch.autograd.grad(value.sum(), x)))
        assert changed(model) == 1 + count
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=TOLERANCE, atol=TOLERANCE)
    assert changed(model) == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_folds_the_branch_of_the_attack():
    model = network(lambda: convert_to_dual_bn(Block()))
    model[0].norm.adv.running_mean += 1
    x = torch.rand(6, 3, 5, 5, dtype=torch.float64)
    with under_attack(model), bn_branch(model, "adv"), folded(lambda x: model(x).sum(), model) as objective:
        expected = model(x).sum()
        values = [objective(x.clone().requires_grad_()).detach() for _ in range(2)]
    torch.testing.assert_close(values, [expected, expected], rtol=TOLERANCE, atol=TOLERANCE)


def test_norms_in_train_mode_stay():
    model = network(Block).train()
    with folded(lambda x: model(x).sum(), model) as objective:
        for _ in range(2):
            objective(torch.rand(6, 3, 5, 5, dtype=torch.float64).requires_grad_())
        assert changed(model) == 0


def test_network_is_restored_after_an_exception():
    model = network(Block)

    def attack():
        with under_attack(model), folded(lambda x: model(x).sum(), model) as objective:
            for _ in range(2):
                objective(torch.rand(6, 3, 5, 5, dtype=torch.float64).requires_grad_())
            raise KeyError

    with pytest.raises(KeyError):
        attack()
    assert changed(model) == 0


def test_compiled_networks_stay():
    model = network(Block)
    model.compile(backend="eager")

    def objective(x):
        return model(x).sum()

    with folded(objective, model) as same:
        assert same is objective


def test_weights_are_cast_once_under_autocast():
    model = network(Block).float()
    dtypes = []

    def combined(part):
        return "forward" in vars(part) and isinstance(part, (nn.Conv2d, nn.Linear))

    def objective(x):
        with torch.autocast("cpu", torch.bfloat16):
            value = model(x).float().sum()
        dtypes.extend(part.forward.keywords["weight"].dtype for part in model.modules() if combined(part))
        return value

    with under_attack(model), folded(objective, model) as faster:
        PGDAttack(steps=2)(faster, torch.rand(6, 3, 5, 5))
    assert dtypes == [torch.bfloat16] * 2
