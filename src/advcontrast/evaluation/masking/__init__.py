"""Alarms that a robust accuracy is too high because the attack was misled."""

from ... import _deprecated
from .attack_alarms import Alarm as Alarm
from .attack_alarms import attack_not_converged as attack_not_converged
from .attack_alarms import loss_beaten as loss_beaten
from .attack_alarms import loss_decreases_with_strength as loss_decreases_with_strength
from .attack_alarms import unbounded_attack as unbounded_attack
from .attack_alarms import weaker_attack_wins as weaker_attack_wins
from .model_alarms import batch_dependence as batch_dependence
from .model_alarms import probability_output as probability_output
from .model_alarms import randomised_output as randomised_output
from .model_alarms import train_mode as train_mode
from .model_alarms import zero_gradients as zero_gradients
from .overfitting import Overfitting as Overfitting
from .overfitting import catastrophic_overfitting as catastrophic_overfitting
from .report import MaskingReport as MaskingReport
from .report import gradient_masking as gradient_masking

__all__ = [
    "Alarm",
    "MaskingReport",
    "Overfitting",
    "attack_not_converged",
    "batch_dependence",
    "catastrophic_overfitting",
    "gradient_masking",
    "loss_beaten",
    "loss_decreases_with_strength",
    "probability_output",
    "randomised_output",
    "train_mode",
    "unbounded_attack",
    "weaker_attack_wins",
    "zero_gradients",
]

__getattr__ = _deprecated.names_of(__name__)
