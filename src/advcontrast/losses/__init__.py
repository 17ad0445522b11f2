"""Losses as modules: settings held, mathematics in :mod:`advcontrast.functional`."""

from .nt_xent import NTXentLoss as NTXentLoss

__all__ = ["NTXentLoss"]
