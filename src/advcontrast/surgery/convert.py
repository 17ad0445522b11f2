"""Conversion of the norms of a network to dual norms."""

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .._checks import check_bool, check_callable, check_choice, check_copyable, complaint
from .._types import BRANCHES, SPLITS, Split
from ..norm.dual_batch_norm import dual_of
from ..norm.dual_norm import check_branches, dual_norms_in
from .modules import become, check_surgery, slots

_OWNER = "convert_to_dual_bn"


def convert_to_dual_bn(
    model: nn.Module,
    *,
    norms: type[nn.Module] | tuple[type[nn.Module], ...] = _BatchNorm,
    branches: Sequence[str] = BRANCHES,
    split: Split = "both",
    filter_fn: Callable[[nn.Module, str], bool] | None = None,
    inplace: bool = True,
) -> nn.Module:
    """Replace every batch norm of ``model`` by a dual one that starts as two copies of it, and return the network.

    Outputs are bit-identical to those of ``model`` in both branches, in train and in eval mode. The ``clean`` branch
    has the original parameters, so an optimizer built earlier keeps training them; add :func:`branch_parameters` of
    ``"adv"`` to it. The norm module itself becomes the dual norm, so that parents, lists and functions that hold it
    need no change. Dual norms are not converted again.

    Convert before wrapping in DDP or ``torch.compile``; :func:`~advcontrast.surgery.convert_sync_batchnorm` may come
    before or after. State dicts of the plain network load with ``strict=True`` into both branches. Reference: Zhang et
    al., 2024 (arXiv:2403.19150), for the effect of ``split``.

    Args:
        model: any network.
        norms: class or classes of the norms to convert, with their subclasses. By default all batch norms;
            ``(nn.LayerNorm, nn.GroupNorm)`` converts those.
        branches: names of the branches, at least two. The first one keeps the original parameters. Trainers of
            this library use ``"clean"`` and ``"adv"``; switch to others with :func:`bn_branch`.
        split: the part that each branch has separately: ``"both"``, affine parameters and running statistics, as in the
            paper; ``"affine"``, the parameters, with shared statistics; ``"stats"``, the statistics. A norm without
            that part is not converted.
        filter_fn: ``filter_fn(module, fully_qualified_name)`` returns whether to convert a norm; by default all.
        inplace: whether to change ``model`` itself or a deep copy of it.

    Raises:
        ValueError: ``branches`` are fewer than two, not distinct or not valid names of attributes, or ``split`` is
            unknown.
        TypeError: an argument has the wrong type; ``model`` is wrapped (DDP, DataParallel, FSDP, ``torch.compile``),
            scripted, or lazy and not yet initialised.
        RuntimeError: a norm, or with ``inplace=False`` the model, cannot be copied, as in :func:`export_branch`.

    Warns:
        UserWarning: there is nothing to convert, or only dual norms with other branches or split.

    Example:
        >>> model = convert_to_dual_bn(torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)))
        >>> [key for key in model.state_dict() if key.endswith("weight")]
        ['0.weight', '1.clean.weight', '1.adv.weight']
    """
    check_surgery(_OWNER, model)
    kinds = _check_norms(norms)
    check_choice(_OWNER, "split", split, SPLITS)
    check_bool(_OWNER, "inplace", inplace, remedy="False converts a deep copy")
    if filter_fn is not None:
        check_callable(_OWNER, "filter_fn", filter_fn, remedy="Pass a function of (module, fully_qualified_name)")
    check_branches(_OWNER, branches, [module for module in model.modules() if isinstance(module, kinds)])
    if not inplace:
        check_copyable(_OWNER, model)
        model = copy.deepcopy(model)

    found: dict[int, nn.Module] = {}
    inside: set[int] = set()  # the parts of norms that are converted as a whole
    for name, module in slots(model):
        wanted = isinstance(module, kinds) and id(module) not in inside and _divisible(module, split)
        if wanted and (filter_fn is None or filter_fn(module, name)):
            found[id(module)] = module
            inside.update(id(part) for part in module.modules() if part is not module)
    if not found:
        _warn_of_nothing(model, kinds, branches, split, filtered=filter_fn is not None)
    # Only the norms are copied, not modules that they refer to.
    parts = {id(part) for norm in found.values() for part in norm.modules() if part is not norm}
    kept: dict[int, Any] = {id(module): module for module in model.modules() if id(module) not in parts}
    memos = [dict(kept) for _ in branches[1:]]
    firsts, duals = [], []
    try:
        for norm in found.values():
            first = object.__new__(type(norm))
            become(first, norm, kept)
            firsts.append(first)
            duals.append(dual_of(first, branches, split, memos))
        # The norm object itself becomes the dual norm, so that parents, lists and functions refer to it.
        for norm, dual in zip(found.values(), duals, strict=True):
            become(norm, dual, kept)
    except Exception:
        for norm, first in zip(found.values(), firsts, strict=False):
            become(norm, first, kept)
        check_copyable(_OWNER, model)
        raise
    return model


def _check_norms(norms: Any) -> tuple[type[nn.Module], ...]:
    kinds = norms if isinstance(norms, tuple) and norms else (norms,)
    for kind in kinds:
        if not isinstance(kind, type) or not issubclass(kind, nn.Module) or kind is nn.Module:
            got = kind.__name__ if isinstance(kind, type) else repr(kind)
            remedy = "Pass them as in norms=(nn.LayerNorm, nn.GroupNorm)"
            raise TypeError(complaint(_OWNER, "norms to be classes of norms", got, remedy))
    return kinds


def _divisible(norm: nn.Module, split: Split) -> bool:
    parameters, statistics = any(True for _ in norm.parameters()), any(True for _ in norm.buffers())
    if split == "both":
        return parameters or statistics or isinstance(norm, _BatchNorm)
    return parameters if split == "affine" else statistics


def _warn_of_nothing(
    model: nn.Module, kinds: tuple[type[nn.Module], ...], branches: Sequence[str], split: Split, *, filtered: bool
) -> None:
    """Warn about a call without effect, unless the model is already converted."""
    dual = dual_norms_in(model)
    others = [module for module in dual if (module.branches, module.split) != (tuple(branches), split)]
    what = "batch norms" if kinds == (_BatchNorm,) else " or ".join(kind.__name__ for kind in kinds)
    what += " that filter_fn accepts" if filtered else ""
    if dual and not others:
        return
    if others:
        expected = f"{what} to give the branches {tuple(branches)} and split {split!r}"
        got = f"only dual ones with {others[0].branches} and {others[0].split!r}"
        remedy = "They are not changed; export a branch and convert that"
    else:
        expected, got = f"a model with {what}", f"none in {type(model).__name__}"
        remedy = "It is returned unchanged; single-norm training works without conversion"
        has = {type(module).__name__ for module in model.modules() if isinstance(module, (nn.LayerNorm, nn.GroupNorm))}
        if has and not filtered:
            remedy += f", and norms= converts other norms, of which it has {', '.join(sorted(has))}"
    warnings.warn(complaint(_OWNER, expected, got, remedy), UserWarning, stacklevel=3)
