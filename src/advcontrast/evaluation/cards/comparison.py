"""Comparison of two result cards, sample by sample, and tables of several cards."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NamedTuple

from ..._checks import check_iterable, check_type, complaint
from .card import ResultCard

_METRICS = ("TA", "RA", "AA")


class DiscordantPairs(NamedTuple):
    r"""The samples that only one of two runs classifies correctly.

    ``p_value`` is the p-value of the exact, two-sided McNemar test for :math:`n = b + c` such samples,

    .. math:: p = \min\Big( 1,\; 2 \sum_{k=0}^{\min(b, c)} \binom{n}{k} \frac{1}{2^n} \Big)

    with b correct in the first run only (``only_a``) and c in the second only (``only_b``).
    """

    only_a: int
    only_b: int
    p_value: float


class MetricComparison(NamedTuple):
    """Means of a metric as fractions in [0, 1], ``b - a``, and the discordant images of each pair of runs."""

    mean_a: float
    mean_b: float
    difference: float
    flips: tuple[DiscordantPairs, ...]


@dataclass(frozen=True)
class Comparison:
    """Comparison of the cards named ``a`` and ``b``, in the ``metrics`` that both have; ``print`` shows it as text."""

    a: str
    b: str
    metrics: dict[str, MetricComparison]

    def __str__(self) -> str:
        lines = [f"a: {self.a}", f"b: {self.b}"]
        width = max(map(len, self.metrics))
        for metric, found in self.metrics.items():
            means = f"{100 * found.mean_a:6.2f}% -> {100 * found.mean_b:6.2f}%  ({100 * found.difference:+.2f})"
            head = f"{metric:{width}}  {means}"
            for only_a, only_b, p_value in found.flips:
                lines.append(f"{head}  only a correct {only_a}, only b correct {only_b}, p = {p_value:.2g}")
                head = " " * len(head)
        return "\n".join(lines)


def compare_cards(a: ResultCard, b: ResultCard) -> Comparison:
    """Compare two models on the same images under the same attacks.

    The runs are paired in their order. Each pair has its own p-value: runs share their images, so their discordant
    images must not be added up and tested as if they were independent.

    Raises:
        ValueError: the cards do not have data, number of runs and attacks in common; the message lists what differs.
        TypeError: an argument is not a card.

    Example:
        >>> import torch
        >>> same = {"seeds": [0], "data": "four images", "fingerprint": "0" * 64, "dtype": "float32"}
        >>> one = ResultCard(name="DS", verdicts={"TA": [torch.tensor([True, False, False, False])]}, **same)
        >>> other = ResultCard(name="S2S", verdicts={"TA": [torch.tensor([True] * 4)]}, **same)
        >>> print(compare_cards(one, other))
        a: DS
        b: S2S
        TA   25.00% -> 100.00%  (+75.00)  only a correct 0, only b correct 3, p = 0.25

    References:
        McNemar, "Note on the sampling error of the difference between correlated proportions or percentages",
        Psychometrika 1947.
    """
    owner, remedy = "compare_cards", "Evaluate both in the same way"
    _check_cards(owner, (a, b))
    shared = [metric for metric in _ordered((a, b)) if metric in a.verdicts and metric in b.verdicts]
    if not shared:
        got = f"{', '.join(a.verdicts)} and {', '.join(b.verdicts)}"
        raise ValueError(complaint(owner, "cards with a common metric", got, remedy))
    facts: list[dict[str, Any]] = [
        {
            "data": f"{card.data} ({card.fingerprint[:16]})" if a.fingerprint != b.fingerprint else None,
            "images": card.images,
            "runs": len(card.seeds),
            **{metric: card.attacks.get(metric) for metric in shared},
        }
        for card in (a, b)
    ]
    differing = _unequal("", *facts)
    if differing:
        raise ValueError(complaint(owner, "cards of the same evaluation", "; ".join(differing), remedy))
    metrics = {}
    for metric in shared:
        pairs = []
        for one, other in zip(a.verdicts[metric], b.verdicts[metric], strict=True):
            only_a, only_b = int((one & ~other).sum()), int((other & ~one).sum())
            pairs.append(DiscordantPairs(only_a, only_b, mcnemar(only_a, only_b)))
        mean_a, mean_b = a.results[metric].mean, b.results[metric].mean
        metrics[metric] = MetricComparison(mean_a, mean_b, mean_b - mean_a, tuple(pairs))
    return Comparison(a.name, b.name, metrics)


def markdown_table(cards: Sequence[ResultCard]) -> str:
    """Return the results of cards as a table in Markdown, in percent, mean ± sample standard deviation over the runs.

    There is a row for each card, and a column for each metric of the cards: TA, RA and AA first, then the others by
    name. The header names the attack of a column if it is the same in all rows.

    Raises:
        ValueError: no card.
        TypeError: an entry is not a card.

    Example:
        >>> import torch
        >>> verdicts = {"TA": [torch.tensor([True, False]), torch.tensor([True, True])]}
        >>> same = {"seeds": [0, 1], "data": "two images", "fingerprint": "0" * 64, "dtype": "float32"}
        >>> print(markdown_table([ResultCard(name="DS", verdicts=verdicts, **same)]))
        | name | TA |
        | --- | ---: |
        | DS | 75.00 ± 35.36 |
    """
    _check_cards("markdown_table", cards)
    if not cards:
        raise ValueError(complaint("markdown_table", "at least one card", "none", "Pass a list of cards"))
    metrics = _ordered(cards)
    header = ["name", *(f"{metric}{_attack_of(metric, cards)}" for metric in metrics)]
    rows = [
        [card.name, *(card.results[metric].percent() if metric in card.verdicts else "" for metric in metrics)]
        for card in cards
    ]
    return "\n".join(map(_row, [header, ["---", *["---:"] * len(metrics)], *rows]))


def _check_cards(owner: str, cards: Sequence[Any]) -> None:
    check_iterable(owner, "cards", cards, remedy="Pass a list of cards")
    for card in cards:
        check_type(owner, "each of cards", card, ResultCard, remedy="Read a file with ResultCard.read")


def _ordered(cards: Sequence[ResultCard]) -> list[str]:
    """Return the metrics of the cards, the usual ones first."""
    found = {metric for card in cards for metric in card.verdicts}
    return [*(metric for metric in _METRICS if metric in found), *sorted(found - set(_METRICS))]


def _unequal(name: str, one: Any, other: Any) -> list[str]:
    """List what differs in two facts or settings, by its full name."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = dict.fromkeys([*one, *other])
        return [line for key in keys for line in _unequal(f"{name}.{key}", one.get(key), other.get(key))]
    return [] if one == other else [f"{name[1:]} {one!r} and {other!r}"]


def mcnemar(only_a: int, only_b: int) -> float:
    """Return the p-value of :class:`DiscordantPairs`."""
    n = only_a + only_b
    binomials = accumulate(range(min(only_a, only_b)), lambda term, k: term * (n - k) // (k + 1), initial=1)
    return min(1.0, float(2 * sum(binomials) / 2**n))


def _attack_of(metric: str, cards: Sequence[ResultCard]) -> str:
    """Return the attack in a few words, in brackets, where all cards with this metric have the same one."""
    attack, *others = [card.attacks.get(metric) for card in cards if metric in card.verdicts] or [None]
    if any(other != attack for other in others):
        return " (attacks differ)"
    if not attack:
        return ""
    if not isinstance(attack, dict):
        return f" ({attack})"
    shown = [str(attack[key]) for key in ("type", "version", "norm") if attack.get(key)]
    if isinstance(eps := attack.get("eps"), (int, float)):
        multiple = round(255 * eps)
        exact = multiple % 255 and abs(255 * eps - multiple) < 1e-6
        shown.append(f"eps {multiple}/255" if exact else f"eps {eps:g}")
    shown += [f"{attack[key]} {key}" for key in ("steps", "restarts") if attack.get(key)]
    return f" ({', '.join(shown) or 'described in the cards'})"


def _row(cells: Sequence[str]) -> str:
    escaped = (" ".join(cell.split()).replace("|", "\\|") for cell in cells)
    return f"| {' | '.join(escaped)} |"
