"""Losses as modules; their formulas are in :mod:`advcontrast.functional`."""

from .nt_xent import NTXentLoss
from .semi_supervised import SemiSupervisedLoss
from .trades import TRADESLoss

__all__ = ["NTXentLoss", "SemiSupervisedLoss", "TRADESLoss"]
