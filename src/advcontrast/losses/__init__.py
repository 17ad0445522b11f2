"""Losses as modules: settings held, mathematics in :mod:`advcontrast.functional`."""

from .nt_xent import NTXentLoss as NTXentLoss
from .semi_supervised import SemiSupervisedLoss as SemiSupervisedLoss
from .trades import TRADESLoss as TRADESLoss

__all__ = ["NTXentLoss", "SemiSupervisedLoss", "TRADESLoss"]
