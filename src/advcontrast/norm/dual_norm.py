"""Norms with several branches, of which one is active."""

import copy
import keyword
from collections.abc import Container, Iterable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import Self

from .._checks import check_choice, check_module, check_type, complaint, type_name
from .._types import BRANCHES, SPLITS, Split
from .recomputation import COMPILED, History, Moment, copied_buffers, recomputation, refuse_unchecked_switch

_TORCH_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)
_SHARED = {"affine": "_buffers", "stats": "_parameters"}  # by all branches, for each split


class DualNorm(nn.Module):
    """Container of one norm per branch, of which ``forward`` uses the active one.

    The branches are ordinary norms, registered as submodules under their names, so that tools that look for norms find
    them: :func:`advcontrast.surgery.convert_sync_batchnorm`, weight-decay filters, quantisation. Other attributes are
    read from and set on the active branch: ``dual.weight`` is its weight, and ``dual.momentum = 0.01`` changes its
    momentum only. ``dual.training`` is set on all branches. Any norm is supported. Fused activations, dtype, device,
    frozen parameters, training flag and hooks are kept. The module itself becomes the first branch, so that optimizers
    keep its parameters; the other branches are deep copies.

    Args:
        norm: ``nn.LayerNorm``, ``nn.GroupNorm``, a batch norm, or a norm of your own. Batch norms have subclasses,
            :class:`~advcontrast.DualBatchNorm2d` and those of other dimensions.
        branches: names of the branches, at least two; the first one is active at the beginning.
        split: the part that each branch has separately: ``"both"``, affine parameters and running statistics;
            ``"affine"``, the parameters, with statistics that all branches update and use; ``"stats"``, the statistics,
            with shared parameters. Only batch norms have statistics.

    Raises:
        ValueError: ``branches`` are fewer than two, not distinct or not names of attributes, or ``split`` is unknown.
        TypeError: an argument has the wrong type.

    Example:
        >>> dual = DualNorm(torch.nn.LayerNorm(8))
        >>> [name for name, _ in dual.named_parameters()]
        ['clean.weight', 'clean.bias', 'adv.weight', 'adv.bias']
        >>> dual.branch = "adv"
        >>> dual.weight is dual.adv.weight
        True
    """

    # The names of the paper, for type checkers; other names are found in the same way.
    clean: nn.Module
    adv: nn.Module

    def __init__(self, norm: nn.Module, *, branches: Sequence[str] = BRANCHES, split: Split = "both") -> None:
        owner = type(self).__name__
        check_module(owner, norm)
        check_branches(owner, branches, [norm])
        check_choice(owner, "split", split, SPLITS)
        self._adopt(norm, branches, split, [{} for _ in branches[1:]])

    def _adopt(self, norm: nn.Module, branches: Sequence[str], split: Split, memos: Sequence[dict[int, Any]]) -> Self:
        """Initialise with ``norm`` and a copy for each further branch; ``memos`` are those of ``copy.deepcopy``."""
        nn.Module.__init__(self)
        first, *others = branches
        self._branch = first
        self._recorded = False  # whether checkpoint_context_fn has noted the branch
        self._history = History()
        self._split: Split = split
        self._own_forward = isinstance(norm, _BatchNorm) and type(norm).forward not in _TORCH_FORWARDS
        self.training = norm.training
        self._modules[first] = norm
        hooks = [hook for name, held in vars(norm).items() if name.endswith("_hooks") for hook in held.values()]
        # The objects of hooks may hold a whole model: all branches share them.
        owners = [getattr(function, "__self__", function) for function in (getattr(h, "hook", h) for h in hooks)]
        for name, memo in zip(others, memos, strict=True):
            memo.update((id(owner), owner) for owner in owners if owner is not norm)
            self._modules[name] = copy.deepcopy(norm, memo)
        self._tie()
        self.register_state_dict_post_hook(_separate)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_tie_again)  # type: ignore[no-untyped-call]
        return self

    @property
    def branches(self) -> tuple[str, ...]:
        """The names of the branches; the first one has the original norm."""
        return tuple(self._modules)

    @property
    def split(self) -> Split:
        """The part of the norm that each branch has separately."""
        return self._split

    @property
    def branch(self) -> str:
        """The branch that ``forward`` uses; like ``training`` not in the state dict.

        In a recomputation of activation checkpointing it is the branch of the original forward pass.
        """
        if torch.compiler.is_compiling():
            known = COMPILED.in_forward_or_context if self._recorded else COMPILED.in_forward
            return self._branch if known else ""
        moment = recomputation()
        if moment is None:
            return self._branch
        return self._history.recompute(type(self).__name__, moment, self._branch)

    @branch.setter
    def branch(self, branch: str) -> None:
        owner = type(self).__name__
        check_choice(owner, "branch", branch, self.branches)
        check_switch(owner)
        self._switch(branch)

    def _switch(self, branch: str, moment: Moment | None = None) -> None:
        if torch.compiler.is_compiling():
            self._branch = branch  # not through the property: the compiler of PyTorch 2.10 ignores its setter
            return
        self.__dict__["_branch"] = branch  # nn.Module.__setattr__ is slow
        if moment is None:
            self._history.switch(branch)

    @property
    def active(self) -> nn.Module:
        """The norm that ``forward`` uses."""
        return self._norm_of(self.branch)

    def _norm_of(self, branch: str) -> nn.Module:
        """Return the norm of ``branch``; raise if PyTorch's converter has dropped its own forward method."""
        norm = cast(nn.Module, self._modules[branch])
        if self._own_forward and type(norm).forward in _TORCH_FORWARDS:
            expected = f"the norm of {branch!r} to keep its own forward method"
            remedy = "torch.nn.SyncBatchNorm.convert_sync_batchnorm, which Lightning's sync_batchnorm=True calls, "
            remedy += "drops activations: build the network again and call advcontrast.surgery.convert_sync_batchnorm"
            raise RuntimeError(complaint(type(self).__name__, expected, f"a plain {type_name(norm)}", remedy))
        return norm

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Normalise with the active branch; the arguments are those of that norm, such as images ``[N, C, H, W]``.

        Raises:
            RuntimeError: activation checkpointing recomputes it and the branch of the forward pass is unknown, as in a
                separately compiled module; or ``torch.nn.SyncBatchNorm.convert_sync_batchnorm`` dropped its activation.
        """
        norm = self.active
        if not torch.compiler.is_compiling():
            if recomputation() is not None:
                with copied_buffers(norm.modules()):
                    return cast(Tensor, norm(*args, **kwargs))
            self._history.call(self._branch)
        return cast(Tensor, norm(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        norms = self.__dict__.get("_modules")
        if not norms or name in norms or name.startswith("__"):
            return super().__getattr__(name)
        norm = self.active
        # Private methods of the norm too, for a ``forward`` that was bound before the conversion.
        if name.startswith("_") and not hasattr(type(norm), name):
            return super().__getattr__(name)
        return getattr(norm, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if not name.startswith("_") and name in self._modules:
            self.add_module(name, value)
        elif self._owns(name) and not isinstance(value, nn.Module):  # which would become a branch
            super().__setattr__(name, value)
            if name == "training":
                for norm in self.children():
                    norm.training = value
        elif hasattr(self.active, name):
            setattr(self.active, name, value)
            self._tie(self.active)
        elif isinstance(value, nn.Module):
            self.add_module(name, value)
        else:
            super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        if self._owns(name):
            self._check_held(name, self.__dict__)  # a branch cannot be deleted
            super().__delattr__(name)
            return
        shared = self._split != "both" and name in vars(self.active)[_SHARED[self._split]]
        for norm in self.children() if shared else [self.active]:
            delattr(norm, name)

    def _owns(self, name: str) -> bool:
        """Return whether an attribute belongs to the dual norm itself and not to a branch."""
        return name.startswith("_") or name in self.__dict__ or name in self._modules or hasattr(type(self), name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Replace a parameter of the active branch; new names raise an error."""
        self._check_held(name, self.active._parameters)
        self.active.register_parameter(name, param)
        self._tie(self.active)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        """Replace a buffer of the active branch; new names raise an error."""
        self._check_held(name, self.active._buffers)
        self.active.register_buffer(name, tensor, persistent)
        self._tie(self.active)

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Replace the norm of the branch ``name``; new names raise an error."""
        self._check_held(name, self._modules)
        check_type(type(self).__name__, name, module, nn.Module, remedy="Export a branch to go back to a single norm")
        norms = [norm for norm in {**self._modules, name: module}.values() if norm is not None]
        if self._split != "both" and len({len([*norm.modules()]) for norm in norms}) > 1:
            expected, remedy = f"{name} to have the parts of the other branches", "Pass a norm of the same class"
            raise ValueError(complaint(type(self).__name__, expected, type_name(module), remedy))
        super().add_module(name, module)
        self._tie()

    def _check_held(self, name: str, held: Container[str]) -> None:
        if not isinstance(name, str) or name not in held:
            names = ", ".join(f"dual.{branch}" for branch in self.branches)
            remedy = f"Change the norms of the branches themselves: {names}"
            expected = "its branches to stay, and parameters, buffers and modules to be those of a branch"
            raise ValueError(complaint(type(self).__name__, expected, repr(name), remedy))

    def extra_repr(self) -> str:
        """Show the active branch."""
        return f"branch={self._branch!r}" + ("" if self._split == "both" else f", split={self._split!r}")

    def _tie(self, source: nn.Module | None = None) -> None:
        """Give all branches the shared tensors of ``source``, by default the first branch."""
        if self._split == "both":
            return
        shared = _SHARED[self._split]
        source = next(self.children()) if source is None else source
        for other in self.children():
            for module, twin in zip(source.modules(), other.modules(), strict=True):
                vars(twin)[shared].update(vars(module)[shared])

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Share tensors again after a move to another device or dtype."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._tie()
        return self

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Load the state of a plain norm into all branches."""
        own = [key for key in state_dict if key.startswith(prefix)]
        if not any(key.startswith(f"{prefix}{branch}.") for key in own for branch in self.branches):
            first, *others = self.branches
            for key in own:
                value, name = state_dict.pop(key), key.removeprefix(prefix)
                state_dict[f"{prefix}{first}.{name}"] = value
                for other in others:
                    # A copy: with ``assign=True`` the branches would otherwise share the tensor.
                    copied = value.detach().clone() if isinstance(value, Tensor) else value
                    state_dict[f"{prefix}{other}.{name}"] = copied
        super()._load_from_state_dict(state_dict, prefix, *args)


def check_branches(owner: str, branches: Any, norms: Iterable[nn.Module]) -> None:
    """Require valid names for branches of ``norms``."""
    remedy = 'Pass names such as ("clean", "adv")'
    if not isinstance(branches, (tuple, list)) or not all(isinstance(name, str) for name in branches):
        got = type_name(branches) if not isinstance(branches, (tuple, list)) else repr(branches)
        raise TypeError(complaint(owner, "branches to be a tuple of names", got, remedy))
    if len(branches) < 2 or len(set(branches)) < len(branches):
        raise ValueError(complaint(owner, "branches to be at least two different names", repr(branches), remedy))
    for name in branches:
        usable = name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("_")
        if not usable or hasattr(DualNorm, name) or any(hasattr(norm, name) for norm in norms):
            rule = "branches to be names of attributes that a norm does not have yet"
            raise ValueError(complaint(owner, rule, repr(name), remedy))


def _separate(dual: DualNorm, state_dict: dict[str, Any], prefix: str, _metadata: object) -> None:
    """Copy shared tensors, except with ``keep_vars=True``: safetensors refuses shared memory."""
    for branch in dual.branches[1:] if dual.split != "both" else ():
        norm = dual._norm_of(branch)
        for name, tensor in norm.named_buffers() if dual.split == "affine" else norm.named_parameters():
            key = f"{prefix}{branch}.{name}"
            if state_dict.get(key, tensor) is not tensor:
                state_dict[key] = state_dict[key].clone()


def _tie_again(dual: DualNorm, _keys: object) -> None:
    """Share tensors again after loading with ``assign=True``."""
    dual._tie()


def dual_norms_in(model: nn.Module) -> list[DualNorm]:
    """Return the dual norms of ``model``, which may have none."""
    return [module for module in model.modules() if isinstance(module, DualNorm)]


def dual_norms(owner: str, model: nn.Module) -> list[DualNorm]:
    """Return the dual norms of ``model``, also inside DDP or a compiled wrapper; raise if there is none."""
    check_module(owner, model)
    norms = dual_norms_in(model)
    if not norms:
        text = f"{owner}: expected a model with dual batch norms, found none in {type(model).__name__}. "
        raise ValueError(text + "Call convert_to_dual_bn(model) first.")
    return norms


def check_switch(owner: str) -> None:
    """Raise if a branch is set where compiled code would ignore it, or in a recomputation, where it would persist."""
    if torch.compiler.is_compiling():
        return
    refuse_unchecked_switch(owner)
    if recomputation() is not None:
        got = "a recomputation of a checkpointed function that sets it"
        remedy = "Use the context bn_branch(model, branch) there"
        raise RuntimeError(complaint(owner, "branch to be set outside of a backward pass", got, remedy))


def check_branch(owner: str, norms: Sequence[DualNorm], branch: Any) -> None:
    """Require a branch that every one of ``norms`` has."""
    shared = [name for name in norms[0].branches if all(name in norm.branches for norm in norms)]
    check_choice(owner, "branch", branch, shared)
