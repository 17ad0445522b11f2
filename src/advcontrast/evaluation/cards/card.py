"""The result card: an evaluation, with all that is needed to judge it, in one file that checks itself."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..._atomic_io import replace, writing
from ..._checks import check_path, complaint
from ...data import ImageSet
from ..accuracy.measure import Accuracy
from . import _fields as rules
from ._fields import OWNER, AlarmRecord, CurveRecord
from ._file import check_unchanged, fields_in, parse, to_text
from .provenance import revision, versions

_RULES = {
    "name": rules.text,
    "verdicts": rules.named(rules.each(rules.verdicts)),
    "seeds": rules.each(rules.seed),
    "data": rules.text,
    "fingerprint": rules.matching("[0-9a-f]{64}", "a SHA-256", "Pass images.fingerprint()"),
    "dtype": rules.text,
    "branch": rules.optional(rules.branch),
    "attacks": rules.named(rules.plain),
    "settings": rules.named(rules.plain),
    "versions": rules.named(rules.text),
    "revision": rules.optional(
        rules.matching("[0-9a-f]{40,64}(-dirty)?", "a git commit or None", "Pass revision(folder)")
    ),
    "curves": rules.named(rules.curve),
    "corruptions": rules.named(rules.fraction),
    "label_free": rules.named(rules.number),
    "alarms": rules.each(rules.alarm),
}


class Result(NamedTuple):
    """A metric: its value for each seed, their mean and their sample standard deviation, fractions in [0, 1]."""

    accuracies: tuple[float, ...]
    mean: float
    std: float | None

    def percent(self) -> str:
        """Return mean and standard deviation in percent, or only the mean if there is one value."""
        return f"{100 * self.mean:.2f}" + ("" if self.std is None else f" ± {100 * self.std:.2f}")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ResultCard:
    """An evaluation of one model, trained or attacked with one or several seeds, on one data set.

    Numbers are not stored but follow from the verdicts on the samples, so they cannot disagree. The metrics TA, RA and
    AA are accuracy on clean images, under PGD and under AutoAttack; other names are free. An image that is wrong
    without an attack is not robust, so RA and AA count only images of TA, and AA, the stronger attack, at most as many
    as RA. Cards of equal runs on one machine are equal files, byte for byte: nothing in them depends on the time.

    :meth:`from_verdicts` makes a card of what evaluations return.

    Attributes:
        name: what was evaluated.
        verdicts: for each metric and seed whether each sample was right, bool ``[N]``.
        seeds: identifiers of the runs, one for each verdict of a metric.
        data: name of the data set.
        fingerprint: its SHA-256, as ``ImageSet.fingerprint()`` returns it.
        dtype: the number format that the network computed in.
        branch: the batch-norm branch that was evaluated, several joined by " and " where the norms of a network differ,
            ``None`` for a network without dual norms.
        attacks: for each metric the attack and all its settings, required for RA and AA.
        settings: other settings, such as the protocol of fine-tuning.
        versions: software and hardware, as :func:`~advcontrast.evaluation.cards.versions` returns them.
        revision: git commit of the code, with "-dirty" behind it where the code was changed since.
        curves: accuracies along a parameter of an attack.
        corruptions: accuracy for each corruption, in [0, 1].
        label_free: measures that need no labels.
        alarms: what the checks for masked gradients said.

    Raises:
        ValueError: fields contradict each other, such as a robust image that is wrong without an attack.
        TypeError: a field of the wrong kind.
    """

    name: str
    verdicts: Mapping[str, Sequence[Tensor]]
    seeds: Sequence[int]
    data: str
    fingerprint: str
    dtype: str
    branch: str | None = None
    attacks: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    revision: str | None = None
    curves: Mapping[str, CurveRecord] = field(default_factory=dict)
    corruptions: Mapping[str, float] = field(default_factory=dict)
    label_free: Mapping[str, float] = field(default_factory=dict)
    alarms: Sequence[AlarmRecord] = ()

    def __post_init__(self) -> None:
        for name, rule in _RULES.items():
            object.__setattr__(self, name, rule(name, getattr(self, name)))
        rules.check_runs(self.verdicts, self.seeds)
        rules.check_order(self.verdicts, self.attacks)

    @classmethod
    def from_verdicts(
        cls,
        name: str,
        verdicts: Mapping[str, Sequence[Accuracy]],
        *,
        seeds: Sequence[int],
        data: str | ImageSet,
        fingerprint: str | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        **fields: Any,
    ) -> ResultCard:
        """Return a card of the results of evaluations, with the current versions and revision.

        Args:
            name: what was evaluated.
            verdicts: for each metric the result for each seed, as :func:`accuracy` returns it.
            seeds: one for each result of a metric.
            data: the images that were evaluated, whose number, shape, classes and fingerprint are recorded; or the name
                of the data set.
            fingerprint: where ``data`` is a name, the SHA-256 of the images, ``images.fingerprint()``.
            dtype: the number format that the network computed in.
            device: the device that the evaluation ran on.
            **fields: the other fields of the card. Attacks may be passed as they are, their settings are noted; curves
                and alarms as their functions return them. The revision is by default that of the current folder, and
                the branch is that of the results.

        Returns:
            The card.

        Raises:
            ValueError: results of different branches, or on another number of images than ``data`` has; a fingerprint
                passed with images; and as for the class.
            TypeError: an argument of the wrong kind.

        Example:
            >>> from advcontrast import PGDAttack
            >>> clean = Accuracy(torch.tensor([True, True, True, False]))
            >>> robust = Accuracy(torch.tensor([True, False, False, False]))
            >>> card = ResultCard.from_verdicts(
            ...     "DS",
            ...     {"TA": [clean], "RA": [robust]},
            ...     seeds=[0],
            ...     data="four images",
            ...     fingerprint="0" * 64,
            ...     attacks={"RA": PGDAttack(steps=20)},
            ... )
            >>> card
            ResultCard('DS' on 4 images: RA 25.00%, TA 75.00%)
            >>> card.results["TA"].mean
            0.75
        """
        correct = rules.named(rules.each(rules.correct))("verdicts", verdicts)
        named = [getattr(one, "branch", None) for runs in verdicts.values() for one in runs]
        branches = {rules.branch("branch", one) for one in (fields.pop("branch", None), *named) if one is not None}
        if len(branches) > 1:
            got = ", ".join(sorted(map(repr, branches)))
            raise ValueError(complaint(OWNER, "results of one branch", got, "Make a card for each branch"))
        if isinstance(data, ImageSet):
            _check_images(data, fingerprint, correct)
            fingerprint = data.fingerprint()
            data = f"{len(data)} images {list(data.x.shape[1:])} of {len(data.classes)} classes"
        given = {"name": name, "seeds": seeds, "data": data, "fingerprint": fingerprint}
        found = {"verdicts": correct, "branch": next(iter(branches), None)}
        here = {"versions": versions(device), "revision": revision(), "dtype": str(dtype).removeprefix("torch.")}
        return cls(**{**given, **found, **here, **fields})

    @property
    def images(self) -> int:
        """The number of samples."""
        return len(next(iter(self.verdicts.values()))[0])

    @property
    def results(self) -> dict[str, Result]:
        """The value of each metric for each seed, with mean and sample standard deviation."""
        return {metric: _result(correct) for metric, correct in self.verdicts.items()}

    def to_json(self) -> str:
        """Return the text of the file."""
        return to_text(self)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the card to a file, which is afterwards the whole of it or what it was before.

        Args:
            path: the file; it is replaced if it exists.

        Raises:
            OSError: the disk refused.
            ValueError: the card is too large to be read back.
        """
        where = check_path("ResultCard", "path", path, remedy="Pass the file to write")
        content = self.to_json().encode()
        with writing("ResultCard", where):
            replace(where, content)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> ResultCard:
        """Read a card, and verify that it is the one that was written and that its numbers follow from its verdicts.

        Args:
            path: a file that :meth:`write` made.

        Returns:
            The card.

        Raises:
            OSError: the file cannot be read.
            ValueError: it holds anything else than an unchanged card.
        """
        where = check_path("ResultCard", "path", path, remedy="Pass the file to read")
        if not where.is_file():
            remedy = "Pass a file that write() made"
            raise FileNotFoundError(complaint("ResultCard", f"a card in {str(path)!r}", "no file", remedy))
        try:
            document = parse(where)
            card = cls(**fields_in(document))
            check_unchanged(document, card)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error
        return card

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResultCard) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __repr__(self) -> str:
        found = ", ".join(f"{metric} {result.percent()}%" for metric, result in self.results.items())
        return f"{OWNER}({self.name!r} on {self.images} images: {found})"


def _check_images(images: ImageSet, fingerprint: str | None, correct: Mapping[str, Sequence[Tensor]]) -> None:
    if fingerprint is not None:
        raise ValueError(complaint(OWNER, "no fingerprint with an ImageSet", repr(fingerprint), "Leave it out"))
    for metric, runs in correct.items():
        for one in runs:
            if len(one) != len(images):
                expected = f"verdicts[{metric!r}] on the {len(images)} images of data"
                raise ValueError(complaint(OWNER, expected, f"{len(one)}", "Pass the images that were evaluated"))


def _result(correct: Sequence[Tensor]) -> Result:
    """Compute in integers up to the last step, so that every machine finds the same digits."""
    counts, n, runs = [int(one.sum()) for one in correct], len(correct[0]), len(correct)
    std = None
    if runs > 1:
        spread = runs * sum(count**2 for count in counts) - sum(counts) ** 2
        std = math.sqrt(spread / (runs * (runs - 1) * n**2))
    return Result(tuple(count / n for count in counts), sum(counts) / (runs * n), std)
