"""Evaluation: how often a classifier is right, on clean images and under attack."""

from .accuracy import Accuracy as Accuracy
from .accuracy import accuracy as accuracy
from .accuracy import robust_accuracy as robust_accuracy

__all__ = ["Accuracy", "accuracy", "robust_accuracy"]
