"""Plots of accuracies and of attacked images; they need matplotlib."""

from .accuracies import plot_corruptions, plot_curves
from .images import plot_branches, plot_images

__all__ = ["plot_branches", "plot_corruptions", "plot_curves", "plot_images"]
