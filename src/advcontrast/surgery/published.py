"""Load checkpoints published by the authors of papers."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn

from .. import _deprecated
from .._checks import check_choice, check_module, complaint, type_name
from .._types import BRANCHES
from ..models.normalize import Normalize
from ..norm import DualNorm
from .modules import check_values

Layout: TypeAlias = Literal["acl", "dynacl", "advcl", "deacl"]


class _Facts(NamedTuple):
    """Format of the published files of a method."""

    key: str  # of the state dict in the file
    encoder: str  # prefix that the names of the encoder may have
    others: tuple[str, ...]  # prefixes of all other names
    network: str  # the network that the encoder loads into
    padding: int = 1  # of a first convolution of 3x3


_ADVCL_HEADS = ("fc_002.", "fc_010.", "fc_050.", "fc_100.", "fc_500.", "head_ce.", "head_proj.", "head_pred.")
_DEACL_OTHERS = ("momentum_backbone.", "classifier.", "classifier_adv.", "momentum_classifier.")
_DUAL = "convert_to_dual_bn(resnet18(0))"
_TRIPLE = 'convert_to_dual_bn(resnet18(0, normalize=None), branches=("clean", "adv", "adv_ce"))'
_SINGLE = (
    "resnet18(0, normalize=((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))) "
    "with model.conv1.padding = (2, 2), not converted"
)
_LAYOUTS: dict[str, _Facts] = {
    "acl": _Facts("state_dict", "", ("fc.",), _DUAL),
    "dynacl": _Facts("state_dict", "encoder_k.", ("encoder_q.", "fc."), f"{_DUAL}, or resnet18(0) for DynACL++"),
    "advcl": _Facts("model", "", _ADVCL_HEADS, _TRIPLE),
    "deacl": _Facts("state_dict", "backbone.", _DEACL_OTHERS, _SINGLE, padding=2),
}
# Patterns of names, and the layouts that have them. The first pattern that matches a name of a file decides.
_SIGNS: dict[str, tuple[str, ...]] = {
    r"encoder_[kq]\.": ("dynacl",),
    r"(momentum_)?backbone\.": ("deacl",),
    r"fc_\d+\.|head_(ce|proj|pred)\.|.*\.bn_list\.2\.": ("advcl",),
    r".*\.bn_list\.": ("acl", "dynacl"),
    r"(.*\.)?(clean|adv)\.running_mean$": (),
    r"(.*\.)?running_mean$": ("dynacl", "deacl"),
}
_STATISTICS = ("normalize.mean", "normalize.std")
_OWNER = "load_published"


def load_published(
    model: nn.Module, state_dict: Mapping[str, Tensor], *, layout: Layout, ignore: str | tuple[str, ...] = ()
) -> None:
    """Load a published checkpoint into the network that it was saved from.

    Names are translated. Heads, and copies of the network for training, are left out unless ``model`` has a part of
    that name. Everything else must match: names and shapes, the number of branches, the normalisation, and the padding
    of the first convolution. The layouts, with their networks for images in [0, 1] and the branches of their norms:

    - ``"acl"``, ``"dynacl"``: ``convert_to_dual_bn(resnet18(0))``; ``normal`` is clean, ``pgd`` is adv. From a DynACL
      checkpoint of the whole training, the momentum encoder is loaded, as its authors evaluate it. A checkpoint of
      DynACL++, with single norms, loads into ``resnet18(0)``. ACL's head loads into a module ``fc`` of the model.
    - ``"advcl"``: ``convert_to_dual_bn(resnet18(0, normalize=None), branches=("clean", "adv", "adv_ce"))``; ``normal``,
      ``pgd``, and ``pgd_ce`` of the attack on pseudo-labels. Its authors evaluate ``adv``.
    - ``"deacl"``: ``resnet18(0, normalize=((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)))``, then
      ``model.conv1.padding = (2, 2)``. It has single norms and may be converted afterwards.

    Here ``resnet18`` is that of :mod:`advcontrast.models`; any network with torchvision's names works. The layouts are
    those of the authors' code. References: Luo et al., ICLR 2023 (DynACL); Fan et al., "When Does
    Contrastive Learning Preserve Adversarial Robustness from Pretraining to Finetuning?", NeurIPS 2021 (AdvCL); Zhang
    et al., "Decoupled Adversarial Contrastive Learning for Self-supervised Adversarial Robustness", ECCV 2022 (DeACL).

    Args:
        model: the network.
        state_dict: names and tensors: the entry ``"state_dict"`` of a published file, or ``"model"`` for AdvCL.
        layout: the method whose authors wrote the file.
        ignore: prefix or prefixes of translated names that are neither loaded nor compared, for example ``"fc."`` for
            a classifier of your own, or ``"normalize."``; the model keeps its own values for them.

    Raises:
        ValueError: the names are those of another layout; something does not match, and is listed; or a tensor is on
            the meta device. The model is not changed.
        TypeError: an argument has the wrong type.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False))
        >>> published = {"backbone.0.weight": torch.ones(1, 2), "classifier.weight": torch.zeros(10, 1)}
        >>> load_published(model, published, layout="deacl")
        >>> model[0].weight.tolist()
        [[1.0, 1.0]]
    """
    check_module(_OWNER, model)
    check_choice(_OWNER, "layout", layout, get_args(Layout))
    facts, own = _LAYOUTS[layout], model.state_dict()
    prefixes = _check(state_dict, ignore, facts.key)
    remedy = f"The network for {layout!r} is {facts.network}"
    _check_layout(layout, state_dict)
    branches = _check_branches(model, state_dict, remedy)
    _check_stem(model, facts.padding)
    named = [(_translate(name, facts.encoder, branches), value) for name, value in state_dict.items()]
    common = [name for name, _ in named if name in own]
    left_out = tuple(prefix for prefix in facts.others if not any(name.startswith(prefix) for name in common))
    named = [(name, value) for name, value in named if not name.startswith(left_out)]
    compared = [name for name in _STATISTICS if name not in own and not name.startswith(prefixes)]
    others = list(_other_statistics(model, {name: dict(named).get(name) for name in compared}))
    _fill(model, [(name, value) for name, value in named if name not in compared], prefixes, others, remedy)


def load_acl_checkpoint(
    model: nn.Module, state_dict: Mapping[str, Tensor], *, ignore: str | tuple[str, ...] = ()
) -> None:
    """Deprecated form of :func:`load_published` with ``layout="acl"``."""
    _deprecated.warn("load_acl_checkpoint", 'load_published(model, state_dict, layout="acl")', stacklevel=2)
    load_published(model, state_dict, layout="acl", ignore=ignore)


def _check(state_dict: object, ignore: object, key: str) -> tuple[str, ...]:
    tensors = isinstance(state_dict, Mapping) and all(isinstance(value, Tensor) for value in state_dict.values())
    if not isinstance(state_dict, Mapping) or not tensors or not all(isinstance(name, str) for name in state_dict):
        # A file of another layout may hold the state dict under the key of that layout.
        keys = [facts.key for facts in _LAYOUTS.values() if isinstance(state_dict, Mapping) and facts.key in state_dict]
        remedy = f'Pass what torch.load(path, weights_only=True) holds under "{keys[0] if keys else key}"'
        raise TypeError(complaint(_OWNER, "a state dict of tensors", type_name(state_dict), remedy))
    check_values(_OWNER, "state_dict", state_dict, remedy='Load the file with map_location="cpu"')
    prefixes = (ignore,) if isinstance(ignore, str) else ignore
    if not isinstance(prefixes, tuple) or not all(isinstance(prefix, str) and prefix for prefix in prefixes):
        raise TypeError(complaint(_OWNER, "ignore to be prefixes, a str or a tuple", repr(ignore), 'Pass ignore="fc."'))
    return prefixes


def _check_layout(layout: str, state_dict: Mapping[str, Tensor]) -> None:
    names = [name.removeprefix("module.") for name in state_dict]
    sign, layouts = next(
        ((name, layouts) for pattern, layouts in _SIGNS.items() for name in names if re.match(pattern, name)),
        ("", (layout,)),
    )
    if layout not in layouts:
        kind, remedy = "a network of this library", "Call model.load_state_dict(state_dict)"
        if layouts:
            kind = " or ".join(map(repr, layouts))
            remedy = "Pass " + "; or ".join(f"layout={name!r} with {_LAYOUTS[name].network}" for name in layouts)
        raise ValueError(complaint(_OWNER, f"a state dict in the layout {layout!r}", f"{sign!r} as in {kind}", remedy))


def _check_branches(model: nn.Module, state_dict: Mapping[str, Tensor], remedy: str) -> tuple[str, ...]:
    """Require as many branches as the file has, and return their names."""
    numbers = {int(found[1]) for name in state_dict if (found := re.search(r"\.bn_list\.(\d+)\.", f".{name}"))}
    branches = next((module.branches for module in model.modules() if isinstance(module, DualNorm)), ())
    published = max(numbers, default=-1) + 1
    if published != len(branches):
        expected = f"norms with {published} branches, as in the file" if published else "plain norms, as in the file"
        raise ValueError(complaint(_OWNER, expected, f"{branches or 'plain ones'}", remedy))
    if set(BRANCHES) <= set(branches) and branches[: len(BRANCHES)] != BRANCHES:
        remedy = "Call convert_to_dual_bn(model, branches=...) with the names in this order"
        raise ValueError(complaint(_OWNER, f"branches that begin with {BRANCHES}", f"{branches}", remedy))
    return branches


def _check_stem(model: nn.Module, padding: int) -> None:
    """Require the authors' stem for small images, which names and shapes do not determine."""
    first, pool = getattr(model, "conv1", None), getattr(model, "maxpool", None)
    if not isinstance(first, nn.Conv2d) or first.kernel_size != (3, 3):
        return
    if first.stride != (1, 1) or first.padding != (padding, padding):
        expected = f"conv1 with stride 1 and a padding of {padding}"
        remedy = f"Set model.conv1.padding = ({padding}, {padding}) and model.conv1.stride = (1, 1)"
        raise ValueError(complaint(_OWNER, expected, f"{first.stride} and {first.padding}", remedy))
    if isinstance(pool, nn.MaxPool2d):
        remedy = "Set model.maxpool = torch.nn.Identity(), as cifar_stem(model) does"
        raise ValueError(complaint(_OWNER, "no pooling after conv1", type_name(pool), remedy))


def _other_statistics(model: nn.Module, published: Mapping[str, Tensor | None]) -> Iterator[str]:
    """Yield the differences between the normalisation of a network and that of the file."""
    layers = [layer.values for layer in model.modules() if type(layer) is Normalize]
    for index, name in enumerate(_STATISTICS):
        if name in published:
            value, theirs = published[name], _digits(published[name])
            dtype = None if value is None else value.dtype  # a file may be in half precision
            rounded = [_digits(torch.tensor(values[index], dtype=dtype)) for values in layers]
            for own in rounded or ["none"]:
                if theirs != own:
                    yield f"{name} {theirs} for {own}"


def _digits(numbers: Tensor | None) -> str:
    return "none" if numbers is None else str([round(number, 6) for number in numbers.flatten().tolist()])


def _fill(
    model: nn.Module, named: list[tuple[str, Tensor]], ignored: tuple[str, ...], other_values: list[str], remedy: str
) -> None:
    """Load all tensors by their names in the model, or none."""
    own = model.state_dict()
    check_values(_OWNER, "model", own, remedy='Give it memory with model.to_empty(device="cpu")')
    theirs = {name: value for name, value in named if not name.startswith(ignored)}
    wanted = {name for name in own if not name.startswith(ignored)}
    names = [name for name, _ in named]
    pairs = {name: (theirs[name].shape, own[name].shape) for name in wanted & theirs.keys()}
    problems = {
        "missing": sorted(wanted - theirs.keys()),
        "unexpected": sorted(theirs.keys() - own.keys()),
        "twice": sorted(name for name in theirs if names.count(name) > 1),
        "of another shape": sorted(f"{name} {list(a)} for {list(b)}" for name, (a, b) in pairs.items() if a != b),
        "of another value": other_values,
    }
    found = "; ".join(f"{len(which)} {kind}: {', '.join(which)}" for kind, which in problems.items() if which)
    if found:
        advice = f'{remedy}; leave parts out with ignore, such as "fc."'
        raise ValueError(complaint(_OWNER, "names and shapes to match the model's", found, advice))
    own |= {name: torch.empty_like(own[name]).copy_(value) for name, value in theirs.items()}  # may fail: not halfway
    model.load_state_dict(own)


def _translate(name: str, encoder: str, branches: Sequence[str]) -> str:
    name = f".{name.removeprefix('module.').removeprefix(encoder).removeprefix('module.')}"
    for number, branch in enumerate(branches):
        name = name.replace(f".bn_list.{number}.", f".{branch}.")
    return name.replace(".downsample.conv.", ".downsample.0.").replace(".downsample.bn.", ".downsample.1.")[1:]
