"""Training strategies, one file per paper: modules whose forward pass returns a loss."""

from .acl import ACLOutput, ACLTrainer
from .advcl import AdvCL
from .ainfonce import AdaptiveGamma, AInfoNCE
from .amoc import AMOC
from .blocks import Frozen, Momentum, Queue, Scheduled, Staircase
from .cfamc import CFAMC
from .daqsdp import DAQSDP, perturbed_weights
from .deacl import DeACL
from .dynacl import DynACL, Ramp
from .fare import FARE
from .learner import ContrastiveLearner, Part, StepOutput
from .profeat import ProFeAT
from .pseudo_labels import pseudo_labels
from .rcs import RobustCoreset
from .rocl import RoCL
from .semi_supervised import SemiSupervisedTrainer
from .simclip import SimCLIP
from .step import Step
from .supervised import AdversarialTrainer, StandardTrainer
from .taro import TARO
from .tecoa import TeCoA
from .terms import Distillation, Invariance
from .trades import TRADESTrainer

__all__ = [
    "AMOC",
    "CFAMC",
    "DAQSDP",
    "FARE",
    "TARO",
    "ACLOutput",
    "ACLTrainer",
    "AInfoNCE",
    "AdaptiveGamma",
    "AdvCL",
    "AdversarialTrainer",
    "ContrastiveLearner",
    "DeACL",
    "Distillation",
    "DynACL",
    "Frozen",
    "Invariance",
    "Momentum",
    "Part",
    "ProFeAT",
    "Queue",
    "Ramp",
    "RoCL",
    "RobustCoreset",
    "Scheduled",
    "SemiSupervisedTrainer",
    "SimCLIP",
    "Staircase",
    "StandardTrainer",
    "Step",
    "StepOutput",
    "TRADESTrainer",
    "TeCoA",
    "perturbed_weights",
    "pseudo_labels",
]
