"""Losses, metrics and image operations as pure functions of tensors."""

from .. import _deprecated
from .distillation import distillation as distillation
from .divergence import kl_divergence as kl_divergence
from .divergence import trades as trades
from .margin import dlr as dlr
from .margin import targeted_dlr as targeted_dlr
from .nt_xent import alignment as alignment
from .nt_xent import nt_xent as nt_xent
from .projection import linf_box as linf_box
from .representation import breakaway_risk as breakaway_risk
from .representation import effective_rank as effective_rank
from .representation import margin_ratio as margin_ratio
from .representation import nearest_neighbour_accuracy as nearest_neighbour_accuracy
from .representation import overlap_risk as overlap_risk
from .representation import uniformity as uniformity
from .semi_supervised import semi_supervised as semi_supervised

__all__ = [
    "alignment",
    "breakaway_risk",
    "distillation",
    "dlr",
    "effective_rank",
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

__getattr__ = _deprecated.names_of(__name__)
