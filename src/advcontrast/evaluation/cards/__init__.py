"""Result cards: settings, versions and verdicts of an evaluation in one JSON file, and their comparison."""

from .card import AlarmRecord as AlarmRecord
from .card import CurveRecord as CurveRecord
from .card import Result as Result
from .card import ResultCard as ResultCard
from .comparison import Comparison as Comparison
from .comparison import DiscordantPairs as DiscordantPairs
from .comparison import MetricComparison as MetricComparison
from .comparison import compare_cards as compare_cards
from .comparison import markdown_table as markdown_table
from .provenance import revision as revision
from .provenance import versions as versions

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
