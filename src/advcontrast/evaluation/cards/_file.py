"""The file of a result card: JSON that repeats itself on purpose, so that no part of it can change unseen."""

from __future__ import annotations

import base64
import hashlib
import json
import reprlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..._checks import complaint, type_name
from ._fields import AlarmRecord, CurveRecord

if TYPE_CHECKING:
    from .card import ResultCard

_OWNER = "ResultCard.read"
_FORMAT, _VERSION = "advcontrast result card", 1
_LARGEST = 1 << 24  # bytes; a thousand verdicts on the 50,000 images of ImageNet take half of it
_SAME_IN_BOTH = (
    *("name", "seeds", "dtype", "branch", "attacks", "settings", "versions", "revision"),
    *("corruptions", "label_free"),
)
_ENTRIES = (*_SAME_IN_BOTH, "format", "version", "data", "results", "curves", "alarms", "seal")
_DAMAGED = "The file was changed or damaged after it was written"
_BIT_VALUES = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8)


def to_text(card: ResultCard) -> str:
    """Return the card as JSON, in an order that depends on nothing."""
    document: dict[str, Any] = {name: getattr(card, name) for name in _SAME_IN_BOTH}
    document |= {
        "format": _FORMAT,
        "version": _VERSION,
        "data": {"name": card.data, "sha256": card.fingerprint, "images": card.images},
        "results": {
            metric: {**result._asdict(), "verdicts": [_packed(correct) for correct in card.verdicts[metric]]}
            for metric, result in card.results.items()
        },
        "curves": {name: curve._asdict() for name, curve in card.curves.items()},
        "alarms": [alarm._asdict() for alarm in card.alarms],
    }
    seal = hashlib.sha256(json.dumps(document, sort_keys=True, allow_nan=False).encode()).hexdigest()
    text = json.dumps({**document, "seal": seal}, sort_keys=True, indent=1) + "\n"
    if len(text) > _LARGEST:
        got, remedy = f"{len(text)} bytes", "Write several cards"
        raise ValueError(complaint("ResultCard", f"at most {_LARGEST} bytes of JSON", got, remedy))
    return text


def parse(path: Path) -> dict[str, Any]:
    """Read JSON that says everything once, in numbers that exist."""
    with path.open("rb") as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ValueError(complaint(_OWNER, f"at most {_LARGEST} bytes", "a larger file", "It is no result card"))
    try:
        document = json.loads(content.decode(), object_pairs_hook=_once, parse_constant=_nothing, parse_int=_int)
    except (ValueError, RecursionError) as error:
        raise ValueError(complaint(_OWNER, "JSON", str(error), _DAMAGED)) from error
    if not isinstance(document, dict) or document.get("format") != _FORMAT:
        raise ValueError(complaint(_OWNER, f"an {_FORMAT}", "something else", "Pass what ResultCard.write wrote"))
    version = document.get("version")
    if type(version) is not int or version != _VERSION:
        remedy = "Install the advcontrast that wrote it, or a newer one"
        raise ValueError(complaint(_OWNER, f"version to be {_VERSION}", reprlib.repr(version), remedy))
    return document


def fields_in(document: dict[str, Any]) -> dict[str, Any]:
    """Return what the card is made of; the card itself looks at the values."""
    document = _entries("the card", document, *_ENTRIES)
    data = _entries("data", document["data"], "name", "sha256", "images")
    if type(data["images"]) is not int:
        raise ValueError(complaint(_OWNER, "data.images to be an int", type_name(data["images"]), _DAMAGED))
    verdicts = {}
    for metric, result in _entries("results", document["results"]).items():
        where = f"results.{metric}"
        listed = _entries(where, result, "accuracies", "mean", "std", "verdicts")["verdicts"]
        entries = _numbered(f"{where}.verdicts", listed)
        verdicts[metric] = [_unpacked(place, packed, data["images"]) for place, packed in entries]
    curves = {
        name: CurveRecord(**_entries(f"curves.{name}", curve, *CurveRecord._fields))
        for name, curve in _entries("curves", document["curves"]).items()
    }
    alarms = [
        AlarmRecord(**_entries(place, alarm, *AlarmRecord._fields))
        for place, alarm in _numbered("alarms", document["alarms"])
    ]
    fields = {name: document[name] for name in _SAME_IN_BOTH}
    return {
        **fields,
        "data": data["name"],
        "fingerprint": data["sha256"],
        "verdicts": verdicts,
        "curves": curves,
        "alarms": alarms,
    }


def check_unchanged(document: dict[str, Any], card: ResultCard) -> None:
    """Require the document to be the one that the card would write."""
    expected = json.loads(to_text(card))
    seals = document.pop("seal"), expected.pop("seal")
    for place, found, right in (*_differences("", document, expected), *_differences(".seal", *seals)):
        expectation = f"{place[1:]} to be {reprlib.repr(right)}, as follows from the rest"
        raise ValueError(complaint(_OWNER, expectation, reprlib.repr(found), _DAMAGED))


def _differences(place: str, found: Any, right: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(found, dict) and isinstance(right, dict) and found.keys() == right.keys():
        for key in sorted(found):
            yield from _differences(f"{place}.{key}", found[key], right[key])
    elif isinstance(found, list) and isinstance(right, list) and len(found) == len(right):
        for index, pair in enumerate(zip(found, right, strict=True)):
            yield from _differences(f"{place}[{index}]", *pair)
    elif json.dumps(found) != json.dumps(right):  # tells 1 from 1.0 and True
        yield place, found, right


def _packed(correct: Tensor) -> dict[str, str]:
    """Write eight verdicts a byte, the first one into the highest bit, and zeros behind the last one."""
    rows = torch.nn.functional.pad(correct.to(torch.uint8), (0, -len(correct) % 8)).view(-1, 8)
    packed = bytes((rows * _BIT_VALUES).sum(1, dtype=torch.uint8).tolist())
    return {"bits": base64.b64encode(packed).decode(), "sha256": hashlib.sha256(packed).hexdigest()}


def _unpacked(place: str, packed: Any, images: int) -> Tensor:
    entries = _entries(place, packed, "bits", "sha256")
    try:
        bits = base64.b64decode(entries["bits"], validate=True)
    except (TypeError, ValueError) as error:
        raise ValueError(complaint(_OWNER, f"{place}.bits to be base64", str(error), _DAMAGED)) from error
    if len(bits) != (images + 7) // 8:
        expected = f"{place}.bits to hold a bit for each of {images} images"
        raise ValueError(complaint(_OWNER, expected, f"{len(bits)} bytes", _DAMAGED))
    if hashlib.sha256(bits).hexdigest() != entries["sha256"]:
        got = reprlib.repr(entries["sha256"])
        raise ValueError(complaint(_OWNER, f"{place}.sha256 to be that of the bits", got, _DAMAGED))
    rows = torch.tensor(list(bits), dtype=torch.uint8)[:, None] & _BIT_VALUES
    return rows.flatten()[:images].bool()


def _entries(place: str, value: Any, *names: str) -> dict[str, Any]:
    """Require an object, with exactly these entries where names are given."""
    if not isinstance(value, dict):
        raise ValueError(complaint(_OWNER, f"{place} to be an object", type_name(value), _DAMAGED))
    missing, unknown = [name for name in names if name not in value], sorted(value.keys() - set(names))
    if missing:
        raise ValueError(complaint(_OWNER, f"{place} to have {', '.join(missing)}", "none", _DAMAGED))
    if names and unknown:
        got = reprlib.repr(", ".join(unknown))
        raise ValueError(complaint(_OWNER, f"{place} to have no further entries", got, _DAMAGED))
    return value


def _numbered(place: str, value: Any) -> list[tuple[str, Any]]:
    if not isinstance(value, list):
        raise ValueError(complaint(_OWNER, f"{place} to be a list", type_name(value), _DAMAGED))
    return [(f"{place}[{index}]", entry) for index, entry in enumerate(value)]


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    document = dict(pairs)
    if len(document) < len(pairs):
        raise ValueError("a name that stands twice")
    return document


def _nothing(name: str) -> None:
    raise ValueError(f"{name}, which is no number")


def _int(digits: str) -> int:
    if len(digits) > 20:  # Python turns longer ones into neither a float nor, at some length, an int
        raise ValueError(f"an int of {len(digits)} digits")
    return int(digits)
