"""Load what the authors of papers published."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor, nn

from .._checks import check_choice, check_module, complaint, type_name
from .._types import BRANCHES
from ..models.normalize import Normalize
from ..norm import DualNorm
from ..norm.dual_norm import dual_norms
from .modules import check_values

Layout: TypeAlias = Literal["acl", "dynacl", "advcl", "deacl"]


class _Facts(NamedTuple):
    """Where the encoder is in a file of its authors, and what it takes to run it as they did."""

    key: str  # what holds the state dict in the file
    encoder: str  # what may stand in front of the encoder's names
    others: tuple[str, ...]  # what the names of everything else begin with
    network: str  # what it loads into
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
# Patterns of names, and the layouts that have them; the first pattern that is found in a file decides.
_SIGNS: dict[str, tuple[str, ...]] = {
    r"encoder_[kq]\.": ("dynacl",),
    r"(momentum_)?backbone\.": ("deacl",),
    r"fc_\d+\.|head_(ce|proj|pred)\.|.*\.bn_list\.2\.": ("advcl",),
    r".*\.bn_list\.": ("acl", "dynacl"),
    r"(.*\.)?(clean|adv)\.running_mean$": (),
    r"(.*\.)?running_mean$": ("dynacl", "deacl"),
}
_STATISTICS = ("normalize.mean", "normalize.std")


def load_published(
    model: nn.Module, state_dict: Mapping[str, Tensor], *, layout: Layout, ignore: str | tuple[str, ...] = ()
) -> None:
    """Load the encoder of a published checkpoint into the network that it was saved from.

    Names are translated, heads and copies for training are left out, and everything else must match: names and shapes,
    the number of branches, the normalisation, and the padding of the first convolution, which no name tells. The
    networks, for images in [0, 1], and the branches that their norms become:

    - ``"acl"``, ``"dynacl"``: ``convert_to_dual_bn(resnet18(0))``; ``normal`` is clean, ``pgd`` is adv. Of a DynACL
      checkpoint of the whole training the momentum encoder is taken, which its authors evaluate. What DynACL++
      leaves with single norms goes into ``resnet18(0)``.
    - ``"advcl"``: ``convert_to_dual_bn(resnet18(0, normalize=None), branches=("clean", "adv", "adv_ce"))``; ``normal``,
      ``pgd``, and ``pgd_ce`` of the attack on pseudo-labels. Its authors evaluate ``adv``.
    - ``"deacl"``: ``resnet18(0, normalize=((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)))``, then
      ``model.conv1.padding = (2, 2)``. It has single norms; convert it afterwards, where you like.

    Here ``resnet18`` is that of :mod:`advcontrast.models`; any network with the names of torchvision's will do. The
    layouts are those that the authors' code writes. :func:`~advcontrast.load_acl_checkpoint` reads ACL's head too.

    Args:
        model: the network.
        state_dict: names and tensors; of a published file, what it holds under ``"state_dict"``, or ``"model"`` for
            AdvCL. Files of DeACL hold settings of Lightning beside it.
        layout: the method whose authors wrote the file.
        ignore: prefix or prefixes of translated names that are not to be loaded or compared, for example ``"fc."`` for
            a classifier of your own, or ``"normalize."``; the model then keeps its own values for them.

    Raises:
        ValueError: the names are those of another layout, which the message gives; something does not match, and the
            names are listed; or a tensor is on the meta device. The model is left as it was.
        TypeError: an argument of the wrong kind.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False))
        >>> published = {"backbone.0.weight": torch.ones(1, 2), "classifier.weight": torch.zeros(10, 1)}
        >>> load_published(model, published, layout="deacl")
        >>> model[0].weight.tolist()
        [[1.0, 1.0]]

    References:
        Luo et al., "Rethinking the Effect of Data Augmentation in Adversarial Contrastive Learning", ICLR 2023
        (DynACL). Fan et al., "When Does Contrastive Learning Preserve Adversarial Robustness from Pretraining to
        Finetuning?", NeurIPS 2021 (AdvCL). Zhang et al., "Decoupled Adversarial Contrastive Learning for
        Self-supervised Adversarial Robustness", ECCV 2022 (DeACL).
    """
    owner = "load_published"
    check_module(owner, model)
    check_choice(owner, "layout", layout, get_args(Layout))
    facts = _LAYOUTS[layout]
    prefixes = _check(owner, state_dict, ignore, facts.key)
    remedy = f"The network for {layout!r} is {facts.network}"
    _check_layout(owner, layout, state_dict)
    branches = _check_branches(owner, model, state_dict, remedy)
    _check_stem(owner, model, facts.padding)
    bare = [(name.removeprefix("module.").removeprefix(facts.encoder), value) for name, value in state_dict.items()]
    named = [(_translate(name, branches), value) for name, value in bare if not name.startswith(facts.others)]
    compared = [name for name in _STATISTICS if name not in model.state_dict() and not name.startswith(prefixes)]
    others = list(_other_statistics(model, {name: dict(named).get(name) for name in compared}))
    _fill(
        owner, model, [(name, value) for name, value in named if name not in compared], prefixes, others, remedy=remedy
    )


def load_acl_checkpoint(
    model: nn.Module, state_dict: Mapping[str, Tensor], *, ignore: str | tuple[str, ...] = ()
) -> None:
    """Load a state dict in the layout of the published ACL checkpoints into a converted ResNet.

    The layout differs from that of a converted torchvision ResNet in three ways, which are translated: the branches are
    called ``bn_list.0`` (clean) and ``bn_list.1`` (adversarial), the shortcut ``downsample.conv`` and
    ``downsample.bn``, and parallel training left the prefix ``module.``. Nothing is skipped in silence.

    Args:
        model: a network whose norms are dual, for example ``convert_to_dual_bn(resnet18())`` with a CIFAR stem.
        state_dict: names and tensors; of a published file, what its key ``"state_dict"`` holds.
        ignore: prefix or prefixes of the names that are not wanted, for example ``"fc."`` to leave out the projection
            head, and ``"normalize."`` for the constants that the authors' network keeps in its state; the model then
            keeps its own values for them.

    Raises:
        ValueError: the model holds no dual norm, or names or shapes do not match; every one of them is listed, and
            the model is left as it was.
        TypeError: ``model`` is no module, or ``state_dict`` holds something other than tensors.

    Example:
        >>> model = convert_to_dual_bn(torch.nn.Sequential(torch.nn.BatchNorm2d(8, affine=False)))
        >>> published = {f"module.0.bn_list.{branch}.running_mean": torch.ones(8) * branch for branch in (0, 1)}
        >>> published |= {f"module.0.bn_list.{branch}.running_var": torch.ones(8) for branch in (0, 1)}
        >>> published |= {f"module.0.bn_list.{branch}.num_batches_tracked": torch.tensor(7) for branch in (0, 1)}
        >>> load_acl_checkpoint(model, published)
        >>> model[0].adv.running_mean.mean().item()
        1.0
    """
    owner = "load_acl_checkpoint"
    dual_norms(owner, model)
    prefixes = _check(owner, state_dict, ignore, "state_dict")
    _fill(owner, model, [(_translate(name, BRANCHES), value) for name, value in state_dict.items()], prefixes)


def _check(owner: str, state_dict: object, ignore: object, key: str) -> tuple[str, ...]:
    """Require tensors by name, and prefixes; return the prefixes."""
    tensors = isinstance(state_dict, Mapping) and all(isinstance(value, Tensor) for value in state_dict.values())
    if not isinstance(state_dict, Mapping) or not tensors or not all(isinstance(name, str) for name in state_dict):
        # A file of another layout may hold it under the key of that one.
        keys = [facts.key for facts in _LAYOUTS.values() if isinstance(state_dict, Mapping) and facts.key in state_dict]
        remedy = f'Pass what torch.load(path, weights_only=True) holds under "{keys[0] if keys else key}"'
        raise TypeError(complaint(owner, "a state dict of tensors", type_name(state_dict), remedy))
    check_values(owner, "state_dict", state_dict, remedy='Load the file with map_location="cpu"')
    prefixes = (ignore,) if isinstance(ignore, str) else ignore
    if not isinstance(prefixes, tuple) or not all(isinstance(prefix, str) and prefix for prefix in prefixes):
        raise TypeError(complaint(owner, "ignore to be prefixes, a str or a tuple", repr(ignore), 'Pass ignore="fc."'))
    return prefixes


def _check_layout(owner: str, layout: str, state_dict: Mapping[str, Tensor]) -> None:
    """Require names that are not those of another layout."""
    names = [name.removeprefix("module.") for name in state_dict]
    sign, layouts = next(
        ((name, layouts) for pattern, layouts in _SIGNS.items() for name in names if re.match(pattern, name)),
        ("", (layout,)),
    )
    if layout not in layouts:
        got, remedy = f"{sign!r} as in a network of this library", "Call model.load_state_dict(state_dict)"
        if layouts:
            got = f"{sign!r} as in {' or '.join(map(repr, layouts))}"
            remedy = "Pass " + "; or ".join(f"layout={name!r} with {_LAYOUTS[name].network}" for name in layouts)
        raise ValueError(complaint(owner, f"a state dict in the layout {layout!r}", got, remedy))


def _check_branches(owner: str, model: nn.Module, state_dict: Mapping[str, Tensor], remedy: str) -> tuple[str, ...]:
    """Require as many branches as the file has, and return their names."""
    numbers = {int(found[1]) for name in state_dict if (found := re.search(r"\.bn_list\.(\d+)\.", f".{name}"))}
    branches = next((module.branches for module in model.modules() if isinstance(module, DualNorm)), ())
    published = max(numbers, default=-1) + 1
    if published != len(branches):
        expected = f"norms with {published} branches, as in the file" if published else "plain norms, as in the file"
        raise ValueError(complaint(owner, expected, f"{branches or 'plain ones'}", remedy))
    if set(BRANCHES) <= set(branches) and branches[: len(BRANCHES)] != BRANCHES:
        remedy = "Call convert_to_dual_bn(model, branches=...) with the names in this order"
        raise ValueError(complaint(owner, f"branches that begin with {BRANCHES}", f"{branches}", remedy))
    return branches


def _check_stem(owner: str, model: nn.Module, padding: int) -> None:
    """Require the stem of the authors' network for small images; no name and no shape would tell another one."""
    first, pool = getattr(model, "conv1", None), getattr(model, "maxpool", None)
    if not isinstance(first, nn.Conv2d) or first.kernel_size != (3, 3):
        return
    if first.stride != (1, 1) or first.padding != (padding, padding):
        expected = f"conv1 with stride 1 and a padding of {padding}"
        remedy = f"Set model.conv1.padding = ({padding}, {padding}) and model.conv1.stride = (1, 1)"
        raise ValueError(complaint(owner, expected, f"{first.stride} and {first.padding}", remedy))
    if isinstance(pool, nn.MaxPool2d):
        remedy = "Set model.maxpool = torch.nn.Identity(), as cifar_stem(model) does"
        raise ValueError(complaint(owner, "no pooling after conv1", type_name(pool), remedy))


def _other_statistics(model: nn.Module, published: Mapping[str, Tensor | None]) -> Iterator[str]:
    """Yield where the normalisation of a network is another one than that of the file."""
    layers = [layer.values for layer in model.modules() if type(layer) is Normalize]
    for index, name in enumerate(_STATISTICS):
        if name in published:
            value = published[name]
            theirs = _digits(None if value is None else value.flatten().tolist())
            dtype = None if value is None else value.dtype  # a file may be in half precision
            rounded = [_digits(torch.tensor(values[index], dtype=dtype).tolist()) for values in layers]
            for own in rounded or [_digits(None)]:
                if theirs != own:
                    yield f"{name} {theirs} for {own}"


def _digits(numbers: Sequence[float] | None) -> str:
    """Return numbers as far as single precision knows them."""
    return "none" if numbers is None else str([round(number, 6) for number in numbers])


def _fill(
    owner: str,
    model: nn.Module,
    named: Sequence[tuple[str, Tensor]],
    ignored: tuple[str, ...],
    other_values: Sequence[str] = (),
    *,
    remedy: str = "Build the network that was saved",
) -> None:
    """Load tensors by their names in the model, all or none."""
    own = model.state_dict()
    check_values(owner, "model", own, remedy='Give it memory with model.to_empty(device="cpu")')
    theirs = {name: value for name, value in named if not name.startswith(ignored)}
    wanted = {name for name in own if not name.startswith(ignored)}
    names = [name for name, _ in named]
    problems = {
        "missing": sorted(wanted - theirs.keys()),
        "unexpected": sorted(theirs.keys() - own.keys()),
        "twice": sorted(name for name in theirs if names.count(name) > 1),
        "of another shape": sorted(
            f"{name} {list(theirs[name].shape)} for {list(own[name].shape)}"
            for name in wanted & theirs.keys()
            if theirs[name].shape != own[name].shape
        ),
        "of another value": list(other_values),
    }
    found = "; ".join(f"{len(which)} {kind}: {', '.join(which)}" for kind, which in problems.items() if which)
    if found:
        advice = f'{remedy}; leave parts out with ignore, such as "fc."'
        raise ValueError(complaint(owner, "names and shapes to match the model's", found, advice))
    own |= {name: torch.empty_like(own[name]).copy_(value) for name, value in theirs.items()}  # may fail: not halfway
    model.load_state_dict(own)


def _translate(name: str, branches: Sequence[str]) -> str:
    name = f".{name.removeprefix('module.')}"
    for number, branch in enumerate(branches):
        name = name.replace(f".bn_list.{number}.", f".{branch}.")
    return name.replace(".downsample.conv.", ".downsample.0.").replace(".downsample.bn.", ".downsample.1.")[1:]
