"""Training strategies, one paper a file: modules whose forward pass returns a loss."""

from .acl import ACLOutput, ACLTrainer
from .semi_supervised import SemiSupervisedTrainer
from .supervised import AdversarialTrainer, StandardTrainer
from .trades import TRADESTrainer

__all__ = ["ACLOutput", "ACLTrainer", "AdversarialTrainer", "SemiSupervisedTrainer", "StandardTrainer", "TRADESTrainer"]
