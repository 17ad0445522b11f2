"""Attacks: callables ``(objective, x) -> x_adv`` that know nothing of models, and what prepares a model for them."""

from .classification import Classification as Classification
from .pgd import PGDAttack as PGDAttack
from .target import under_attack as under_attack

__all__ = ["Classification", "PGDAttack", "under_attack"]
