"""Norms that lists, functions and other objects refer to are converted and exported too, or refused."""

import collections
import copy
import dataclasses
import functools
import types
import weakref

import pytest
import torch
from torch import nn

from advcontrast import bn_branch, convert_to_dual_bn, export_branch
from advcontrast.norm import DualNorm
from advcontrast.optim import EMA
from advcontrast.surgery import interpolate_branches


@dataclasses.dataclass
class Box:
    norm: nn.Module


HOLDERS = {
    "list": (lambda norm: [norm], lambda held, x: held[0](x)),
    "nested list": (lambda norm: [[None, norm]], lambda held, x: held[0][1](x)),
    "dictionary of pairs": (lambda norm: {"a": ("norm", norm)}, lambda held, x: held["a"][1](x)),
    "set": (lambda norm: {norm}, lambda held, x: next(iter(held))(x)),
    "deque": (lambda norm: collections.deque([norm]), lambda held, x: held[0](x)),
    "partial": (functools.partial, lambda held, x: held(x)),
    "bound method": (lambda norm: norm.forward, lambda held, x: held(x)),
    "bound call": (lambda norm: norm.__call__, lambda held, x: held(x)),
    "data class": (Box, lambda held, x: held.norm(x)),
    "object": (lambda norm: types.SimpleNamespace(norm=norm), lambda held, x: held.norm(x)),
}


class Holding(nn.Module):
    """Runs its norm through another object that refers to it."""

    def __init__(self, holder, kind=nn.BatchNorm1d):
        super().__init__()
        self.linear, self.norm = nn.Linear(3, 4), kind(4)
        hold, self.run = HOLDERS[holder]
        self.held = hold(self.norm)

    def forward(self, x):
        return self.run(self.held, self.linear(x))


def images():
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def shifted(model):
    """Make the outputs of the adversarial branch recognisable."""
    model.norm.adv.bias.data.fill_(100.0)
    return model


@pytest.mark.parametrize("kind", [nn.BatchNorm1d, nn.LayerNorm])
@pytest.mark.parametrize("holder", HOLDERS)
def test_the_branch_is_used_for_every_kind_of_reference(holder, kind):
    model = shifted(convert_to_dual_bn(Holding(holder, kind), norms=kind))
    assert model(images()).mean() < 50
    with bn_branch(model, "adv"):
        assert model(images()).mean() > 50


@pytest.mark.parametrize("holder", HOLDERS)
def test_an_exported_branch_is_used_for_every_kind_of_reference(holder):
    model = shifted(convert_to_dual_bn(Holding(holder)))
    exported = export_branch(model, "adv")
    assert exported(images()).mean() > 50
    assert type(exported.norm) is nn.BatchNorm1d
    assert 20 < interpolate_branches(model, {"clean": 0.6, "adv": 0.4})(images()).mean() < 50
    assert type(model.norm) is not nn.BatchNorm1d


@pytest.mark.parametrize("holder", HOLDERS)
def test_a_copy_is_converted_for_every_kind_of_reference(holder):
    plain = Holding(holder)
    model = shifted(convert_to_dual_bn(plain, inplace=False))
    with bn_branch(model, "adv"):
        assert model(images()).mean() > 50
    assert plain(images()).mean() < 50


class Weak(tuple):
    """Runs the norm that a weak reference in it leads to."""

    def __new__(cls, reference):
        return super().__new__(cls, (reference,))

    def __call__(self, x):
        return self[0]()(x)


class WithAFunction(nn.Module):
    """Runs its norm through a function that holds it, or that holds the module itself."""

    def __init__(self, wrap):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.held = wrap(self, self.norm)

    def forward(self, x):
        return (self.held if callable(self.held) else self.held["f"][0])(x)


FUNCTIONS = {
    "closure": lambda module, norm: lambda x: 1 * norm(x),
    "closure of the module": lambda module, norm: lambda x: 1 * module.norm(x),
    "default": lambda module, norm: lambda x, norm=norm: norm(x),
    "keyword default": lambda module, norm: lambda x, *, norm=norm: norm(x),
    "in containers": lambda module, norm: {"f": [lambda x: 1 * [norm][0](x)]},
    "closure of a method": lambda module, norm: (lambda forward: lambda x: 1 * forward(x))(norm.forward),
    "in a partial": lambda module, norm: functools.partial(lambda x: 1 * norm(x)),
    "cached function": lambda module, norm: functools.cache(lambda x: 1 * norm(x)),
    "weak reference": lambda module, norm: {"f": [Weak(weakref.ref(norm))]},
}


@pytest.mark.parametrize("wrap", FUNCTIONS.values(), ids=FUNCTIONS)
def test_the_branch_is_used_where_a_function_holds_the_norm(wrap):
    model = shifted(convert_to_dual_bn(WithAFunction(wrap)))
    with bn_branch(model, "adv"):
        assert model(images()).mean() > 50


@pytest.mark.parametrize("wrap", FUNCTIONS.values(), ids=FUNCTIONS)
@pytest.mark.parametrize(
    ("owner", "surgery"),
    [
        ("export_branch", lambda model: export_branch(model, "adv")),
        ("interpolate_branches", lambda model: interpolate_branches(model, {"clean": 0.5, "adv": 0.5})),
        ("convert_to_dual_bn", lambda model: convert_to_dual_bn(model, inplace=False)),
        ("EMA", lambda model: EMA(model, 0.9)),
    ],
)
def test_a_function_that_holds_the_norm_is_refused_where_a_copy_is_made(owner, surgery, wrap):
    model = nn.Sequential(convert_to_dual_bn(WithAFunction(wrap)))
    message = rf"^{owner}: expected functions that do not hold modules of the model, got one in '0\.held' that does"
    with pytest.raises(RuntimeError, match=message):
        surgery(model)


def test_functions_that_hold_no_module_are_accepted():
    scale, other = 2.0, nn.BatchNorm1d(3)
    model = convert_to_dual_bn(WithAFunction(lambda module, norm: lambda x: scale * x if other else x))
    assert torch.equal(export_branch(model, "adv")(images()), 2 * images())


def test_a_recursive_function_is_accepted():
    def wrap(module, norm):
        def run(x, depth=2):
            return run(x, depth - 1) if depth else x

        return run

    model = convert_to_dual_bn(WithAFunction(wrap))
    assert torch.equal(export_branch(model, "adv")(images()), images())


def test_the_compiled_call_of_a_module_is_accepted():
    model = convert_to_dual_bn(nn.Sequential(nn.BatchNorm1d(3)))
    model.compile(backend="eager")
    assert torch.equal(export_branch(model, "adv")(images()), model(images()))


def test_hooks_that_hold_the_model_are_accepted():
    model, seen = convert_to_dual_bn(nn.Sequential(nn.BatchNorm1d(3))), []
    model[0].register_forward_hook(lambda *_: seen.append(model[0].branch))
    export_branch(model, "adv")(images())
    assert seen in ([], ["clean"])


def doubled(norm, x):
    return 2 * nn.BatchNorm1d.forward(norm, x)


@pytest.mark.parametrize("bind", [types.MethodType, functools.partial])
def test_a_method_bound_to_the_norm_follows_it_into_each_branch(bind):
    plain = nn.Sequential(nn.BatchNorm1d(3))
    plain[0].forward = bind(doubled, plain[0])
    model = convert_to_dual_bn(copy.deepcopy(plain))
    model[0].adv.bias.data.fill_(100.0)
    assert torch.equal(model(images()), plain(images()))
    with bn_branch(model, "adv"):
        assert torch.allclose(model(images()).mean(), torch.tensor(200.0))
    assert torch.allclose(export_branch(model, "adv")(images()).mean(), torch.tensor(200.0))


def test_a_hook_bound_to_the_norm_follows_it_into_each_branch():
    class Watched(nn.BatchNorm1d):
        def watch(self, *_):
            self.seen = True

    model = nn.Sequential(Watched(3))
    model[0].register_forward_hook(model[0].watch)
    convert_to_dual_bn(model)
    with bn_branch(model, "adv"):
        model(images())
    assert not hasattr(model[0].clean, "seen")
    assert model[0].adv.seen


def test_handles_of_hooks_still_remove_them():
    model, seen = nn.Sequential(nn.BatchNorm1d(3)), []
    handle = model[0].register_forward_hook(lambda *_: seen.append(1))
    convert_to_dual_bn(model)(images())
    handle.remove()
    model(images())
    assert seen == [1]


def test_references_to_the_norm_refer_to_the_dual_norm():
    norm = nn.BatchNorm1d(3)
    reference = weakref.ref(norm)
    model = convert_to_dual_bn(nn.Sequential(norm))
    assert reference() is model[0] is norm
    assert isinstance(norm, DualNorm)


def test_norms_that_refer_to_each_other_refer_to_dual_norms_in_every_branch():
    model = nn.Sequential(nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    for norm, other in (model, reversed(model)):
        norm.__dict__["other"] = other
    convert_to_dual_bn(model)
    for branch in ("clean", "adv"):
        assert getattr(model[0], branch).other is model[1]
        assert getattr(model[1], branch).other is model[0]
