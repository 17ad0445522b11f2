"""Splits that deserve the name: of one data set, and apart."""

from __future__ import annotations

from collections.abc import Sequence

from ..._checks import complaint, type_name
from ..._digest import digest
from ...data import ImageSet

_DUPLICATES = 0.01  # data sets are not clean: CIFAR-10 has some test images among its training images


def check_splits(owner: str, train: ImageSet, validation: ImageSet | None, test: ImageSet) -> None:
    """Require splits of the same classes and shapes that share no images, but for a few duplicates.

    Images are the same if all their pixels are. Labels do not matter.
    """
    if validation is not None and not isinstance(validation, ImageSet):
        raise TypeError(_no_split(owner, "validation to be an ImageSet or None", validation))
    given = (
        {"train": train, "test": test}
        if validation is None
        else {"train": train, "validation": validation, "test": test}
    )
    for name, split in given.items():
        if not isinstance(split, ImageSet):
            raise TypeError(_no_split(owner, f"{name} to be an ImageSet", split))
    _check_equal(owner, "classes", {name: list(split.classes) for name, split in given.items()})
    _check_equal(owner, "shape [C, H, W]", {name: list(split.x.shape[1:]) for name, split in given.items()})
    digests = {name: [digest(image) for image in split.x.cpu()] for name, split in given.items()}
    for name, other in (("validation", "test"), ("train", "test"), ("validation", "train")):
        if name in digests:
            _check_apart(owner, name, digests[name], other, digests[other])


def _no_split(owner: str, expected: str, value: object) -> str:
    return complaint(owner, expected, type_name(value), "Pass what advcontrast.data reads")


def _check_equal(owner: str, what: str, values: dict[str, list[object]]) -> None:
    first = values["train"]
    for name, value in values.items():
        if value != first:
            got = f"{first} in train and {value} in {name}"
            raise ValueError(complaint(owner, f"splits with the same {what}", got, "Pass splits of one data set"))


def _check_apart(owner: str, name: str, part: Sequence[str], other_name: str, other: Sequence[str]) -> None:
    mine, theirs = set(part), set(other)
    shared, of_other = sum(image in theirs for image in part), sum(image in mine for image in other)
    # Counted on both sides: few of many test images may still be all there is for validation.
    if shared > _DUPLICATES * len(part) or of_other > _DUPLICATES * len(other):
        expected = f"{name} images that are not in {other_name}"
        got = f"{shared} of {len(part)} that are, {of_other} of the {len(other)} of {other_name}"
        remedy = "Split the training images, for example with train_validation_split"
        raise ValueError(complaint(owner, expected, got, remedy))
