"""Attacks: callables ``(objective, x) -> x_adv`` that know nothing of models."""

from .pgd import PGDAttack as PGDAttack

__all__ = ["PGDAttack"]
