"""Attacks, which are callables ``(objective, x) -> x_adv``, and the context in which a model is attacked."""

from .. import _deprecated
from .apgd import APGDAttack
from .classification import ClassificationObjective
from .context import under_attack
from .pgd import PGDAttack
from .stateful import FreeAttack, ProgressiveAttack, WarmStart

__all__ = [
    "APGDAttack",
    "ClassificationObjective",
    "FreeAttack",
    "PGDAttack",
    "ProgressiveAttack",
    "WarmStart",
    "under_attack",
]

_deprecated.serve_old_names(__name__)
