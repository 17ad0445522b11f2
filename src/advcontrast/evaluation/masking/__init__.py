"""Alarms that a robust accuracy is too high because the attack was misled."""

from .attack_alarms import Alarm as Alarm
from .attack_alarms import falling_loss as falling_loss
from .attack_alarms import incomplete_search as incomplete_search
from .attack_alarms import loss_beaten as loss_beaten
from .attack_alarms import unbounded_attack as unbounded_attack
from .attack_alarms import white_box_beaten as white_box_beaten
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
    "batch_dependence",
    "catastrophic_overfitting",
    "falling_loss",
    "gradient_masking",
    "incomplete_search",
    "loss_beaten",
    "probability_output",
    "randomised_output",
    "train_mode",
    "unbounded_attack",
    "white_box_beaten",
    "zero_gradients",
]
