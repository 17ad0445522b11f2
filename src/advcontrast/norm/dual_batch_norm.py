"""Two ordinary batch norms behind one switch."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import Self

from .._checks import check_bool, check_choice, check_int, check_real, complaint, type_name
from .._types import BRANCHES, Branch


class DualBatchNorm(nn.Module):
    """What the dual norms of every dimension share; build one of its subclasses.

    The branches are ordinary batch norms that this module *owns*, so whatever knows batch norms still finds them:
    ``nn.SyncBatchNorm.convert_sync_batchnorm``, weight-decay filters, quantisation. Convolutions and linear layers
    around it are shared by both branches; only affine parameters and running statistics are double.

    Attributes:
        clean: the batch norm for clean images.
        adv: the batch norm for adversarial images.
    """

    _kind: ClassVar[type[_BatchNorm]] = _BatchNorm
    clean: nn.Module
    adv: nn.Module

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        owner = type(self).__name__
        check_int(owner, "num_features", num_features, low=1, remedy="Pass the number of channels")
        check_real(owner, "eps", eps, low=0, above=True, remedy="Pass a small positive number such as 1e-5")
        if momentum is not None:
            check_real(owner, "momentum", momentum, low=0, high=1, remedy="None asks for a cumulative average")
        check_bool(owner, "affine", affine, remedy="It says whether each branch has a scale and a shift")
        check_bool(owner, "track_running_stats", track_running_stats, remedy="It says whether statistics are kept")
        super().__init__()
        self._branch: Branch = "clean"
        self.clean = self._kind(num_features, eps, momentum, affine, track_running_stats, device=device, dtype=dtype)
        self.adv = copy.deepcopy(self.clean)

    @classmethod
    def from_batchnorm(cls, bn: nn.Module, memo: dict[int, Any] | None = None) -> Self:
        """Wrap an existing batch norm: the object itself becomes ``clean``, a deep copy of it becomes ``adv``.

        Whatever the batch norm is, it stays: a subclass with a fused activation, a SyncBatchNorm, its dtype, device,
        frozen parameters, training flag and hooks. An optimizer that holds its parameters keeps them.

        Args:
            bn: a batch norm of this class's dimension, or one that knows no dimension, such as SyncBatchNorm.
            memo: the memo of :func:`copy.deepcopy`. Pass the same one for several norms to keep tied parameters tied.

        Returns:
            The dual norm, on branch ``"clean"``.

        Raises:
            TypeError: ``bn`` is no batch norm, or one of another dimension.

        Example:
            >>> bn = torch.nn.BatchNorm2d(8)
            >>> dual = DualBatchNorm2d.from_batchnorm(bn)
            >>> dual.clean is bn, dual.branch
            (True, 'clean')
        """
        has_dimension = isinstance(bn, tuple(_DIMENSIONS))
        if not isinstance(bn, _BatchNorm) or (has_dimension and not isinstance(bn, cls._kind)):
            raise TypeError(
                complaint(
                    f"{cls.__name__}.from_batchnorm",
                    f"a {cls._kind.__name__}",
                    type_name(bn),
                    "convert_to_dual_bn(model) finds the norms of a model and wraps each in its own kind",
                )
            )
        memo = {} if memo is None else memo
        memo.update((id(owner), owner) for owner in _hook_owners(bn) if owner is not bn)
        dual = cls.__new__(cls)
        nn.Module.__init__(dual)
        dual._branch = "clean"
        dual.clean = bn
        dual.adv = copy.deepcopy(bn, memo)
        dual.training = bn.training
        return dual

    @property
    def branch(self) -> Branch:
        """The branch that ``forward`` uses, ``"clean"`` or ``"adv"``; like ``training`` not in the state dict."""
        return self._branch

    @branch.setter
    def branch(self, branch: Branch) -> None:
        check_choice(type(self).__name__, "branch", branch, BRANCHES)
        self._branch = branch

    @property
    def active(self) -> nn.Module:
        """The batch norm that ``forward`` uses."""
        return self.clean if self._branch == "clean" else self.adv

    def forward(self, x: Tensor) -> Tensor:
        """Normalise ``x`` with the active branch.

        Args:
            x: whatever the active batch norm takes, for example ``[N, C, H, W]`` in two dimensions.

        Returns:
            A tensor of the same shape.
        """
        return cast(Tensor, self.active(x))

    def extra_repr(self) -> str:
        """Name the branch, beside the two norms that ``repr`` shows anyway."""
        return f"branch={self._branch!r}"

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Let the state of a plain batch norm fill both branches."""
        own = [key for key in state_dict if key.startswith(prefix)]
        if not any(key.startswith(f"{prefix}{branch}.") for key in own for branch in BRANCHES):
            for key in own:
                value = state_dict.pop(key)
                name = key.removeprefix(prefix)
                state_dict[f"{prefix}clean.{name}"] = value
                # A copy: with ``assign=True`` the branches would otherwise become one tensor.
                state_dict[f"{prefix}adv.{name}"] = value.detach().clone() if isinstance(value, Tensor) else value
        super()._load_from_state_dict(state_dict, prefix, *args)


class DualBatchNorm1d(DualBatchNorm):
    """Batch normalisation over ``[N, C]`` or ``[N, C, L]`` with a branch for clean and one for adversarial inputs.

    See :class:`DualBatchNorm2d`; projection heads hold this one.

    Args:
        num_features: channels C, at least 1.
        eps: added to the variance, positive.
        momentum: weight of the newest batch in the running statistics, in [0, 1]; ``None`` averages over all batches.
        affine: whether each branch has a scale and a shift to learn.
        track_running_stats: whether each branch keeps running statistics for eval mode.
        device: where the tensors live.
        dtype: dtype of the parameters.

    Raises:
        ValueError: a number out of its range.
        TypeError: an argument of the wrong kind.
    """

    _kind = nn.BatchNorm1d


class DualBatchNorm2d(DualBatchNorm):
    """Batch normalisation over ``[N, C, H, W]`` with a branch for clean and one for adversarial images.

    Each branch is a complete ``nn.BatchNorm2d`` with its own affine parameters and running statistics. ``forward`` uses
    the one that :attr:`~advcontrast.norm.DualBatchNorm.branch` names; :func:`advcontrast.bn_branch` sets it for a whole
    model. Adversarial images have other statistics than clean ones, and one set for both fits neither (Xie et al.,
    "Adversarial Examples Improve Image Recognition", CVPR 2020; Jiang et al., "Robust Pre-Training by Adversarial
    Contrastive Learning", NeurIPS 2020).

    Args:
        num_features: channels C, at least 1.
        eps: added to the variance, positive.
        momentum: weight of the newest batch in the running statistics, in [0, 1]; ``None`` averages over all batches.
        affine: whether each branch has a scale and a shift to learn.
        track_running_stats: whether each branch keeps running statistics for eval mode.
        device: where the tensors live.
        dtype: dtype of the parameters.

    Raises:
        ValueError: a number out of its range.
        TypeError: an argument of the wrong kind.

    Example:
        >>> norm = DualBatchNorm2d(3)
        >>> norm.branch = "adv"
        >>> _ = norm(torch.ones(4, 3, 2, 2))
        >>> norm.clean.running_mean.tolist(), [round(mean, 2) for mean in norm.adv.running_mean.tolist()]
        ([0.0, 0.0, 0.0], [0.1, 0.1, 0.1])
    """

    _kind = nn.BatchNorm2d


class DualBatchNorm3d(DualBatchNorm):
    """Batch normalisation over ``[N, C, D, H, W]`` with a branch for clean and one for adversarial inputs.

    See :class:`DualBatchNorm2d`.

    Args:
        num_features: channels C, at least 1.
        eps: added to the variance, positive.
        momentum: weight of the newest batch in the running statistics, in [0, 1]; ``None`` averages over all batches.
        affine: whether each branch has a scale and a shift to learn.
        track_running_stats: whether each branch keeps running statistics for eval mode.
        device: where the tensors live.
        dtype: dtype of the parameters.

    Raises:
        ValueError: a number out of its range.
        TypeError: an argument of the wrong kind.
    """

    _kind = nn.BatchNorm3d


_DIMENSIONS: dict[type[_BatchNorm], type[DualBatchNorm]] = {
    nn.BatchNorm1d: DualBatchNorm1d,
    nn.BatchNorm2d: DualBatchNorm2d,
    nn.BatchNorm3d: DualBatchNorm3d,
}


def _hook_owners(bn: nn.Module) -> Iterator[object]:
    """Yield what the hooks of ``bn`` report to, often an object that holds a whole model: both branches share it."""
    for name, hooks in vars(bn).items():
        if name.endswith("_hooks"):
            for hook in hooks.values():
                function = getattr(hook, "hook", hook)
                yield getattr(function, "__self__", function)


def dual_class(bn: nn.Module) -> type[DualBatchNorm]:
    """Return the dual norm for ``bn``; one that takes any dimension, such as SyncBatchNorm, counts as 2d."""
    return next((dual for kind, dual in _DIMENSIONS.items() if isinstance(bn, kind)), DualBatchNorm2d)
