"""The mathematics, as pure functions: tensors in, tensors out, no modules and no state."""

from .distillation import distillation as distillation
from .divergence import kl_divergence as kl_divergence
from .divergence import trades as trades
from .nt_xent import alignment as alignment
from .nt_xent import nt_xent as nt_xent
from .projection import linf_box as linf_box
from .projection import project_l2 as project_l2
from .semi_supervised import semi_supervised as semi_supervised

__all__ = [
    "alignment",
    "distillation",
    "kl_divergence",
    "linf_box",
    "nt_xent",
    "project_l2",
    "semi_supervised",
    "trades",
]
