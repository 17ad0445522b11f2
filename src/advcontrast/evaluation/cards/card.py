"""Result cards: an evaluation and its provenance in a JSON file that is verified when it is read."""

from __future__ import annotations

import base64
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import partial
from numbers import Integral, Real
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from ..._atomic_io import replace, writing
from ..._checks import check_int, check_path, check_real, check_shape, check_tensor, check_type, complaint, type_name
from ..._digest import digest
from ...data import ImageSet
from ..accuracy.measure import Accuracy
from .provenance import revision, versions

_OWNER, _READER = "ResultCard", "ResultCard.read"
_FORMAT, _VERSION = "advcontrast result card", 1
_DEEPEST = 16
_DAMAGED = "The file was changed or damaged after it was written"
_COMMIT = "[0-9a-f]{40,64}(-dirty)?", "a git commit or None"
_BIT_VALUES = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8)
_Value = TypeVar("_Value")


class CurveRecord(NamedTuple):
    """Accuracies along a parameter of an attack, "eps", "steps" or "restarts"."""

    parameter: str
    values: tuple[float, ...]
    accuracies: tuple[float, ...]


class AlarmRecord(NamedTuple):
    """Result of a check for masked gradients, with its reason and the figures behind it."""

    name: str
    raised: bool
    reason: str
    figures: Mapping[str, float | None]


class Result(NamedTuple):
    """Values of a metric for each seed, their mean and sample standard deviation, as fractions in [0, 1]."""

    accuracies: tuple[float, ...]
    mean: float
    std: float | None

    def percent(self) -> str:
        """Return mean and standard deviation in percent, or only the mean if there is one value."""
        return f"{100 * self.mean:.2f}" + ("" if self.std is None else f" ± {100 * self.std:.2f}")


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ResultCard:
    """Evaluation of one model, trained or attacked with one or several seeds, on one data set.

    All accuracies are computed from the verdicts on the samples. The metrics TA, RA and AA are the accuracy on clean
    images, under PGD and under AutoAttack; other metrics may have any name. RA and AA count only images that TA counts,
    and AA at most as many as RA. Equal runs on one machine write equal files. :meth:`from_verdicts` creates a card.

    Attributes:
        name: name of the model.
        verdicts: for each metric and seed whether each sample was classified correctly, bool ``[N]``.
        seeds: identifiers of the runs, one for each verdict of a metric.
        data: name of the data set.
        fingerprint: its SHA-256, as ``ImageSet.fingerprint()`` returns it.
        dtype: the number format that the network computed in.
        branch: active branch of the dual norms, or ``"a and b"`` if there are several; ``None`` without dual norms.
        attacks: for each metric the attack and all its settings, required for RA and AA.
        settings: other settings, such as the protocol of fine-tuning.
        versions: software and hardware, as :func:`~advcontrast.evaluation.cards.versions` returns them.
        revision: git commit of the code, with the suffix "-dirty" if the code was changed since.
        curves: accuracies along a parameter of an attack.
        corruptions: accuracy for each corruption, in [0, 1].
        label_free: measures that need no labels.
        alarms: results of the checks for masked gradients.

    Raises:
        ValueError: fields contradict each other, such as a robust image that is wrong without an attack.
        TypeError: a field has the wrong type.
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
        checked = {
            "name": _text("name", self.name),
            "verdicts": _named("verdicts", self.verdicts, lambda name, runs: _each(name, runs, _verdicts)),
            "seeds": _each("seeds", self.seeds, _seed),
            "data": _text("data", self.data),
            "fingerprint": _text("fingerprint", self.fingerprint, "[0-9a-f]{64}", "a SHA-256"),
            "dtype": _text("dtype", self.dtype),
            "branch": None if self.branch is None else _branch(self.branch),
            "revision": None if self.revision is None else _text("revision", self.revision, *_COMMIT),
            "attacks": _named("attacks", self.attacks, _plain),
            "settings": _named("settings", self.settings, _plain),
            "versions": _named("versions", self.versions, _text),
            "curves": _named("curves", self.curves, _curve),
            "corruptions": _named("corruptions", self.corruptions, _fraction),
            "label_free": _named("label_free", self.label_free, _number),
            "alarms": _each("alarms", self.alarms, _alarm),
        }
        for name, value in checked.items():
            object.__setattr__(self, name, value)
        _check_verdicts(self.verdicts, self.seeds, self.attacks)

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
            name: name of the model.
            verdicts: for each metric the result for each seed, as :func:`accuracy` returns it.
            seeds: one for each result of a metric.
            data: the images, whose number, shape, classes and fingerprint are recorded; or the name of the data set.
            fingerprint: if ``data`` is a name, the SHA-256 of the images, ``images.fingerprint()``.
            dtype: the number format that the network computed in.
            device: the device that the evaluation ran on.
            **fields: other fields of the card. Pass attacks, curves and alarms as the objects that the library returns.
                The default revision is that of the current folder, and the default branch that of the results.

        Raises:
            ValueError: branches, or numbers of images, that differ; a fingerprint besides images; or as for the class.
            TypeError: an argument has the wrong type.

        Example:
            >>> clean = Accuracy(torch.tensor([True, True, True, False]))
            >>> other = Accuracy(torch.tensor([True, True, False, False]))
            >>> settings = {"seeds": [0, 1], "data": "four images", "fingerprint": "0" * 64}
            >>> ResultCard.from_verdicts("DS", {"TA": [clean, other]}, **settings)
            ResultCard('DS' on 4 images: TA 62.50 ± 17.68%)
        """
        correct = _named("verdicts", verdicts, lambda name, runs: _each(name, runs, partial(_part, part="correct")))
        named = [getattr(one, "branch", None) for runs in verdicts.values() for one in runs]
        branches = {_branch(one) for one in (fields.pop("branch", None), *named) if one is not None}
        if len(branches) > 1:
            got = ", ".join(sorted(map(repr, branches)))
            raise ValueError(complaint(_OWNER, "results of one branch", got, "Make a card for each branch"))
        own = {"branch": next(iter(branches), None), "dtype": str(dtype).removeprefix("torch."), "data": data}
        if isinstance(data, ImageSet):
            if fingerprint is not None:
                raise ValueError(complaint(_OWNER, "no fingerprint with an ImageSet", repr(fingerprint), "Omit it"))
            own["data"] = f"{len(data)} images {list(data.x.shape[1:])} of {len(data.classes)} classes"
            fingerprint = data.fingerprint()
        found: dict[str, Any] = {"versions": versions(device), "revision": revision(), **fields, **own}
        card = cls(name=name, verdicts=correct, seeds=seeds, fingerprint=fingerprint, **found)  # type: ignore[arg-type]
        if isinstance(data, ImageSet) and card.images != len(data):
            expected = f"verdicts on the {len(data)} images of data"
            raise ValueError(complaint(_OWNER, expected, f"{card.images}", "Pass the images that were evaluated"))
        return card

    @property
    def images(self) -> int:
        """The number of samples."""
        return len(next(iter(self.verdicts.values()))[0])

    @property
    def results(self) -> dict[str, Result]:
        """The value of each metric for each seed, with mean and sample standard deviation."""
        found, n, runs = {}, self.images, len(self.seeds)
        for metric, verdicts in self.verdicts.items():
            # In integers up to the last step, so that every machine finds the same digits.
            counts = [int(correct.sum()) for correct in verdicts]
            spread = runs * sum(count**2 for count in counts) - sum(counts) ** 2
            std = math.sqrt(spread / (runs * (runs - 1) * n**2)) if runs > 1 else None
            found[metric] = Result(tuple(count / n for count in counts), sum(counts) / (runs * n), std)
        return found

    def to_json(self) -> str:
        """Return the text of the file; equal cards give equal texts."""
        document = {
            **vars(self),
            "format": _FORMAT,
            "version": _VERSION,
            "data": {"name": self.data, "sha256": self.fingerprint, "images": self.images},
            "results": {
                metric: {**result._asdict(), "verdicts": [_packed(correct) for correct in self.verdicts[metric]]}
                for metric, result in self.results.items()
            },
            "curves": {name: curve._asdict() for name, curve in self.curves.items()},
            "alarms": [alarm._asdict() for alarm in self.alarms],
        }
        del document["verdicts"], document["fingerprint"]
        document["seal"] = digest(json.dumps(document, sort_keys=True, allow_nan=False))
        return json.dumps(document, sort_keys=True, indent=1) + "\n"

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the card atomically: the file ``path`` is replaced, or an ``OSError`` is raised and it is unchanged."""
        where = check_path(_OWNER, "path", path, remedy="Pass the file to write")
        with writing(_OWNER, where):
            replace(where, self.to_json().encode())

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> ResultCard:
        """Read a file of :meth:`write`, and verify that it is unchanged and that its numbers follow from its verdicts.

        Raises:
            OSError: the file cannot be read.
            ValueError: the file is not an unchanged card.
        """
        where = check_path(_OWNER, "path", path, remedy="Pass the file to read")
        if not where.is_file():
            raise FileNotFoundError(complaint(_OWNER, f"a card in {str(path)!r}", "no file", "Pass a file of write()"))
        try:
            document, found = _parse(where.read_bytes())
            card = cls(**found)
            # All derived entries, digests included, are computed again: one comparison finds every change.
            expected = json.loads(card.to_json())
            differing = sorted(key for key in {*document, *expected} if document.get(key) != expected.get(key))
            if differing:
                rule = f"{', '.join(differing)} to follow from the rest of the card"
                raise ValueError(complaint(_READER, rule, "something else", _DAMAGED))
        except (RecursionError, TypeError, ValueError) as error:
            raise ValueError(f"{os.fspath(path)}: {error}") from error
        return card

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ResultCard) and self.to_json() == other.to_json()

    def __hash__(self) -> int:
        return hash(self.to_json())

    def __repr__(self) -> str:
        found = ", ".join(f"{metric} {result.percent()}%" for metric, result in self.results.items())
        return f"{_OWNER}({self.name!r} on {self.images} images: {found})"


# A check takes the name of a field and its value, and returns the value as the card stores it.


def _each(name: str, value: Any, check: Callable[[str, Any], _Value]) -> tuple[_Value, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(complaint(_OWNER, f"{name} to be a list", type_name(value), "Pass a list or a tuple"))
    return tuple(check(f"{name}[{index}]", entry) for index, entry in enumerate(value))


def _named(name: str, value: Any, check: Callable[[str, Any], _Value]) -> dict[str, _Value]:
    check_type(_OWNER, name, value, Mapping, remedy="Pass a dict")
    keys = sorted(_text(f"each name in {name}", key) for key in value)
    return {key: check(f"{name}[{key!r}]", value[key]) for key in keys}


def _text(name: str, value: Any, pattern: str = r"(?s)\s*\S.*", kind: str = "a string that is not empty") -> str:
    check_type(_OWNER, name, value, str, remedy="Pass a string")
    if re.fullmatch(pattern, value) is None:
        raise ValueError(complaint(_OWNER, f"{name} to be {kind}", repr(value), "Pass what the library returned"))
    return str(value)


_branch = partial(_text, "branch", pattern=r"[^\W\d]\w*( and [^\W\d]\w*)*", kind="the name of a branch")


def _seed(name: str, value: Any) -> int:
    check_int(_OWNER, name, value, low=0, remedy="Pass the seeds of the runs")
    return int(value)


def _number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    remedy = "Leave out values that could not be computed, and pass accuracies as fractions, not in percent"
    check_real(_OWNER, name, value, low=low, high=high, remedy=remedy)
    return float(value)


_fraction = partial(_number, low=0, high=1)


def _plain(name: str, value: Any, depth: int = 0) -> Any:
    """Return a value as JSON can hold it; a dataclass, such as an attack, becomes a dict of its type and fields."""
    if depth > _DEEPEST:
        raise ValueError(complaint(_OWNER, f"{name} to nest at most {_DEEPEST} deep", "more", "Leave the rest out"))
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Real):
        number = _number(name, value)
        return int(value) if isinstance(value, Integral) else number
    if is_dataclass(value) and not isinstance(value, type):
        entries = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
        return _plain(name, {"type": type(value).__name__, **entries}, depth)
    if isinstance(value, Mapping):
        return _named(name, value, lambda key, entry: _plain(key, entry, depth + 1))
    if isinstance(value, (list, tuple)):
        return [_plain(f"{name}[{index}]", entry, depth + 1) for index, entry in enumerate(value)]
    remedy = "Pass numbers, strings, lists and dicts of them, or a dataclass"
    raise TypeError(complaint(_OWNER, f"{name} to be plain data", type_name(value), remedy))


def _verdicts(name: str, value: Tensor) -> Tensor:
    remedy = "Pass the .correct of an Accuracy"
    check_tensor(_OWNER, name, value, (torch.bool,), remedy=remedy)
    check_shape(_OWNER, name, value, "[N] with N >= 1", value.dim() == 1 and len(value) > 0, remedy=remedy)
    return value.detach().cpu().clone()


def _curve(name: str, value: Any) -> CurveRecord:
    parameter, values, accuracies = (_part(name, value, part) for part in CurveRecord._fields)
    parameter = _text(f"{name}.parameter", parameter, "eps|steps|restarts", "'eps', 'steps' or 'restarts'")
    values = _each(f"{name}.values", values, _number)
    accuracies = _each(f"{name}.accuracies", accuracies, _fraction)
    if not values or len(values) != len(accuracies):
        got = f"{len(accuracies)} accuracies for {len(values)} values"
        raise ValueError(complaint(_OWNER, f"{name} to have an accuracy for each value", got, "Leave out empty curves"))
    return CurveRecord(parameter, values, accuracies)


def _alarm(name: str, value: Any) -> AlarmRecord:
    title, raised, reason, figures = (_part(name, value, part) for part in AlarmRecord._fields)
    check_type(_OWNER, f"{name}.raised", raised, bool, remedy="True means that something is wrong")
    reason = _text(f"{name}.reason", reason, "(?s).*")
    return AlarmRecord(_text(f"{name}.name", title), raised, reason, _named(f"{name}.figures", figures, _figure))


def _figure(name: str, value: Any) -> float | None:
    # A figure of a raised alarm may be NaN, which must not prevent writing the card.
    return None if value is None or (isinstance(value, float) and not math.isfinite(value)) else _number(name, value)


def _part(name: str, value: Any, part: str) -> Any:
    """Return an attribute of an object, or an entry of a mapping."""
    if not (part in value if isinstance(value, Mapping) else hasattr(value, part)):
        got = f"{type_name(value)} without it"
        raise TypeError(complaint(_OWNER, f"{name} to have {part!r}", got, "Pass the whole result"))
    return value[part] if isinstance(value, Mapping) else getattr(value, part)


def _check_verdicts(verdicts: Mapping[str, Sequence[Tensor]], seeds: Sequence[int], attacks: Mapping[str, Any]) -> None:
    """Require one image set, an attack for RA and AA, both only on images of TA, and AA at most RA."""
    if not verdicts:
        raise ValueError(complaint(_OWNER, "verdicts of at least one metric", "none", "Evaluate first"))
    if not seeds or len(set(seeds)) != len(seeds):
        raise ValueError(complaint(_OWNER, "seeds that differ", f"{list(seeds)}", "Pass one seed for each run"))
    shapes = {metric: [len(one) for one in runs] for metric, runs in verdicts.items()}
    images = max(max(shape, default=0) for shape in shapes.values())
    for metric, shape in shapes.items():
        if shape != [images] * len(seeds):
            expected = f"verdicts[{metric!r}] on {images} images for each of {len(seeds)} seeds"
            raise ValueError(complaint(_OWNER, expected, f"{shape} images", "Evaluate all metrics on the same images"))
        if metric in ("RA", "AA") and not attacks.get(metric):
            remedy = f"Pass attacks={{{metric!r}: ...}}"
            raise ValueError(complaint(_OWNER, f"attacks to describe {metric}", "nothing", remedy))
    for metric, other in (("RA", "TA"), ("AA", "TA"), ("AA", "RA")):
        for run, (robust, most) in enumerate(zip(verdicts.get(metric, ()), verdicts.get(other, ()), strict=False)):
            # PGD may find what AutoAttack misses, so that only their counts are compared.
            extra = int((robust & ~most).sum() if other == "TA" else robust.sum() - most.sum())
            if extra > 0:
                rule = "only images that are correct without the attack" if other == "TA" else "at most as many as RA"
                expected = f"verdicts[{metric!r}][{run}] to count {rule}"
                raise ValueError(complaint(_OWNER, expected, f"{extra} more", "Combine both verdicts with &"))


def _packed(correct: Tensor) -> dict[str, str]:
    """Pack eight verdicts per byte, the first one in the highest bit, padded with zeros after the last one."""
    rows = torch.nn.functional.pad(correct.to(torch.uint8), (0, -len(correct) % 8)).view(-1, 8)
    packed = bytes((rows * _BIT_VALUES).sum(1, dtype=torch.uint8).tolist())
    return {"bits": base64.b64encode(packed).decode(), "sha256": digest(packed)}


def _unpacked(bits: str, images: int) -> Tensor:
    rows = torch.tensor(list(base64.b64decode(bits, validate=True)), dtype=torch.uint8)[:, None] & _BIT_VALUES
    return rows.flatten()[:images].bool()


def _parse(content: bytes) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the document, and the arguments of the card, whose values its constructor checks."""
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(complaint(_READER, "JSON", str(error), _DAMAGED)) from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ValueError(complaint(_READER, f"an {_FORMAT}", "something else", "Pass what ResultCard.write wrote"))
    if document.get("version") != _VERSION:
        got, remedy = repr(document.get("version")), "Install the advcontrast that wrote it, or a newer one"
        raise ValueError(complaint(_READER, f"version to be {_VERSION}", got, remedy))
    try:
        data = document["data"]
        verdicts = {
            metric: [_unpacked(run["bits"], data["images"]) for run in result["verdicts"]]
            for metric, result in document["results"].items()
        }
        own = {"data": data["name"], "fingerprint": data["sha256"], "verdicts": verdicts}
        return document, own | {each.name: document[each.name] for each in fields(ResultCard) if each.name not in own}
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        got = f"{type(error).__name__}: {error}"
        raise ValueError(complaint(_READER, "the entries of a card", got, _DAMAGED)) from error
