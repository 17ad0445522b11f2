"""Attacks: callables ``(objective, x) -> x_adv``, and the context in which a model is attacked."""

from .. import _deprecated
from .apgd import APGDAttack as APGDAttack
from .classification import ClassificationObjective as ClassificationObjective
from .context import under_attack as under_attack
from .pgd import PGDAttack as PGDAttack
from .stateful import FreeAttack as FreeAttack
from .stateful import ProgressiveAttack as ProgressiveAttack
from .stateful import WarmStart as WarmStart

__all__ = [
    "APGDAttack",
    "ClassificationObjective",
    "FreeAttack",
    "PGDAttack",
    "ProgressiveAttack",
    "WarmStart",
    "under_attack",
]

__getattr__ = _deprecated.names_of(__name__)
