"""Plots of accuracies and of attacked images; they need matplotlib."""

from .accuracies import plot_corruptions as plot_corruptions
from .accuracies import plot_curves as plot_curves
from .images import plot_branches as plot_branches
from .images import plot_images as plot_images

__all__ = [
    "plot_branches",
    "plot_corruptions",
    "plot_curves",
    "plot_images",
]
