"""Attacks: callables ``(objective, x) -> x_adv`` that know nothing of models, and what prepares a model for them."""

from .. import _deprecated
from .apgd import APGDAttack as APGDAttack
from .classification import Classification as Classification
from .context import under_attack as under_attack
from .pgd import PGDAttack as PGDAttack
from .progressive import ProgressiveAttack as ProgressiveAttack
from .stateful import FreeAttack as FreeAttack
from .stateful import WarmStart as WarmStart

__all__ = [
    "APGDAttack",
    "Classification",
    "FreeAttack",
    "PGDAttack",
    "ProgressiveAttack",
    "WarmStart",
    "under_attack",
]

__getattr__ = _deprecated.names_of(__name__)
