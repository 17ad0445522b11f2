"""Training strategies, one paper a file: modules whose forward pass returns a loss."""

from .acl import ACLOutput as ACLOutput
from .acl import ACLTrainer as ACLTrainer
from .semi_supervised import SemiSupervisedTrainer as SemiSupervisedTrainer
from .supervised import AdversarialTrainer as AdversarialTrainer
from .supervised import StandardTrainer as StandardTrainer
from .trades import TRADESTrainer as TRADESTrainer

__all__ = [
    "ACLOutput",
    "ACLTrainer",
    "AdversarialTrainer",
    "SemiSupervisedTrainer",
    "StandardTrainer",
    "TRADESTrainer",
]
