"""Losses, metrics and image operations as pure functions of tensors."""

from .. import _deprecated
from .coding_rate import coding_rate
from .distillation import distillation
from .divergence import kl_divergence, trades
from .frequency import high_frequency
from .margin import dlr, targeted_dlr
from .nt_xent import alignment, cosine, nt_xent
from .projection import linf_box
from .representation import (
    breakaway_risk,
    effective_rank,
    margin_ratio,
    nearest_neighbour_accuracy,
    overlap_risk,
    uniformity,
)
from .semi_supervised import semi_supervised

__all__ = [
    "alignment",
    "breakaway_risk",
    "coding_rate",
    "cosine",
    "distillation",
    "dlr",
    "effective_rank",
    "high_frequency",
    "kl_divergence",
    "linf_box",
    "margin_ratio",
    "nearest_neighbour_accuracy",
    "nt_xent",
    "overlap_risk",
    "semi_supervised",
    "targeted_dlr",
    "trades",
    "uniformity",
]

_deprecated.serve_old_names(__name__)
