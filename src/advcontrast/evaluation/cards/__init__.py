"""Result cards: settings, versions and verdicts of an evaluation in one JSON file, and their comparison."""

from .card import AlarmRecord, CurveRecord, Result, ResultCard
from .comparison import Comparison, DiscordantPairs, MetricComparison, compare_cards, markdown_table
from .provenance import revision, versions

__all__ = [
    "AlarmRecord",
    "Comparison",
    "CurveRecord",
    "DiscordantPairs",
    "MetricComparison",
    "Result",
    "ResultCard",
    "compare_cards",
    "markdown_table",
    "revision",
    "versions",
]
