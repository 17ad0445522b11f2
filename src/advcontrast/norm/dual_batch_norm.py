"""Batch norms with several branches."""

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from typing_extensions import Self

from .._checks import check_bool, check_choice, check_device, check_int, check_real, complaint, type_name
from .._types import BRANCHES, SPLITS, Split
from .dual_norm import DualNorm, check_branches


class DualBatchNorm(DualNorm):
    """Base class of the dual batch norms: affine parameters and running statistics for each branch.

    Attributes:
        clean: the batch norm for clean images.
        adv: the batch norm for adversarial images.
    """

    _kind: ClassVar[type[_BatchNorm]] = _BatchNorm

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
        check_bool(owner, "affine", affine, remedy="True gives each branch a scale and a shift")
        check_bool(owner, "track_running_stats", track_running_stats, remedy="True keeps running statistics")
        if device is not None:
            check_device(owner, device)
        if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            remedy = "Pass torch.float32, or None for the default"
            raise TypeError(complaint(owner, "dtype to be a floating-point torch.dtype", repr(dtype), remedy))
        super().__init__(self._kind(num_features, eps, momentum, affine, track_running_stats, device, dtype))

    @classmethod
    def from_batchnorm(cls, bn: nn.Module, *, branches: Sequence[str] = BRANCHES, split: Split = "both") -> Self:
        """Wrap an existing batch norm: it becomes the first branch, which is active; the others are deep copies.

        ``bn`` is for inputs of this class's dimension, or of any dimension, such as SyncBatchNorm. Other arguments and
        ``ValueError`` are those of :class:`~advcontrast.norm.DualNorm`.

        Raises:
            TypeError: ``bn`` is not a batch norm, or has another dimension.

        Example:
            >>> bn = torch.nn.BatchNorm2d(8)
            >>> dual = DualBatchNorm2d.from_batchnorm(bn)
            >>> dual.clean is bn, dual.branch
            (True, 'clean')
        """
        has_dimension, owner = isinstance(bn, tuple(_DIMENSIONS)), f"{cls.__name__}.from_batchnorm"
        if not isinstance(bn, _BatchNorm) or (has_dimension and not isinstance(bn, cls._kind)):
            remedy = "convert_to_dual_bn(model) finds the norms of a model and wraps each in its own kind"
            raise TypeError(complaint(owner, f"a {cls._kind.__name__}", type_name(bn), remedy))
        check_branches(owner, branches, [bn])
        check_choice(owner, "split", split, SPLITS)
        return cls.__new__(cls)._adopt(bn, branches, split, [{} for _ in branches[1:]])


class DualBatchNorm1d(DualBatchNorm):
    """:class:`DualBatchNorm2d` for inputs ``[N, C]`` or ``[N, C, L]``, with the same arguments and errors."""

    _kind = nn.BatchNorm1d


class DualBatchNorm2d(DualBatchNorm):
    """Batch normalisation over ``[N, C, H, W]`` with a branch for clean and one for adversarial images.

    Each branch is a complete ``nn.BatchNorm2d`` with its own affine parameters and running statistics. ``forward`` uses
    the one that :attr:`~advcontrast.norm.DualNorm.branch` names; :func:`advcontrast.bn_branch` sets it for a whole
    model. The statistics of adversarial images differ from those of clean images, and shared statistics fit neither
    (Xie et al., "Adversarial Examples Improve Image Recognition", CVPR 2020; Jiang et al., "Robust Pre-Training by
    Adversarial Contrastive Learning", NeurIPS 2020).

    Args:
        num_features: channels C, at least 1.
        eps: added to the variance, positive.
        momentum: weight of the newest batch in the running statistics, in [0, 1]; ``None`` averages over all batches.
        affine: whether each branch has a learnable scale and shift.
        track_running_stats: whether each branch has running statistics for eval mode.
        device: device of the tensors.
        dtype: dtype of the parameters.

    Raises:
        ValueError: a number is out of range.
        TypeError: an argument has the wrong type.

    Example:
        >>> norm = DualBatchNorm2d(3)
        >>> norm.branch = "adv"
        >>> _ = norm(torch.ones(4, 3, 2, 2))
        >>> norm.clean.running_mean.tolist(), [round(mean, 2) for mean in norm.adv.running_mean.tolist()]
        ([0.0, 0.0, 0.0], [0.1, 0.1, 0.1])
    """

    _kind = nn.BatchNorm2d


class DualBatchNorm3d(DualBatchNorm):
    """:class:`DualBatchNorm2d` for inputs ``[N, C, D, H, W]``, with the same arguments and errors."""

    _kind = nn.BatchNorm3d


_DIMENSIONS = {dual._kind: dual for dual in (DualBatchNorm1d, DualBatchNorm2d, DualBatchNorm3d)}


def dual_of(norm: nn.Module, branches: Sequence[str], split: Split, memos: Sequence[dict[int, Any]]) -> DualNorm:
    """Return the dual norm of ``norm``, 2d for a batch norm of any dimension; ``memos`` are those of the copies."""
    kind: type[DualNorm] = DualBatchNorm2d if isinstance(norm, _BatchNorm) else DualNorm
    kind = next((dual for plain, dual in _DIMENSIONS.items() if isinstance(norm, plain)), kind)
    return kind.__new__(kind)._adopt(norm, branches, split, memos)
