"""Accuracy under common corruptions, one by one and on average."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TypeAlias

import torch
from torch import Tensor, nn

from ..._checks import check_int, check_iterable, check_type, complaint, type_name
from ...augment import CORRUPTIONS, Corruption
from ...data import CIFAR10_C, CIFAR10_C_MAIN
from ..inputs import checked_batches, prepared_for_evaluation
from .measure import Accuracy, accuracy

_SEVERITIES = (1, 2, 3, 4, 5)
_Batches: TypeAlias = Iterable[tuple[Tensor, Tensor]]


@dataclass(frozen=True, eq=False)
class CorruptionAccuracy:
    """Result of :func:`corruption_accuracy`.

    Attributes:
        verdicts: the :class:`Accuracy` under each corruption at each severity, by name and then by severity.

    Example:
        >>> half, none = Accuracy(torch.tensor([True, False])), Accuracy(torch.tensor([False, False]))
        >>> found = CorruptionAccuracy({"fog": {1: half, 5: none}, "snow": {1: half}})
        >>> found.by_corruption
        {'fog': 0.25, 'snow': 0.5}
        >>> found
        CorruptionAccuracy(2 corruptions, 37.50%)
    """

    verdicts: Mapping[str, Mapping[int, Accuracy]]

    @property
    def by_corruption(self) -> dict[str, float]:
        """The mean over the severities of each corruption, in [0, 1]."""
        return {name: fmean(found.accuracy for found in own.values()) for name, own in self.verdicts.items()}

    @property
    def mean(self) -> float:
        """The mean over all evaluated corruptions, in [0, 1]."""
        return fmean(self.by_corruption.values())

    @property
    def mean_all(self) -> float:
        """The mean over the 19 corruptions of CIFAR-10-C, as in the ACL paper; ``ValueError`` if one is missing."""
        return self._mean_over("mean_all", CIFAR10_C)

    @property
    def mean_main(self) -> float:
        """The mean over the usual 15 corruptions, as on most leaderboards; errors are those of ``mean_all``."""
        return self._mean_over("mean_main", CIFAR10_C_MAIN)

    def __repr__(self) -> str:
        return f"CorruptionAccuracy({len(self.verdicts)} corruptions, {self.mean:.2%})"

    def _mean_over(self, owner: str, names: Sequence[str]) -> float:
        missing = [name for name in names if set(self.verdicts.get(name, ())) != set(_SEVERITIES)]
        if missing:
            expected, got = f"{len(names)} corruptions at 5 severities each", f"all but {', '.join(missing)}"
            raise ValueError(complaint(f"CorruptionAccuracy.{owner}", expected, got, "Use mean, or evaluate them"))
        return fmean(self.by_corruption[name] for name in names)


def corruption_accuracy(model: nn.Module, conditions: Iterable[tuple[str, int, _Batches]]) -> CorruptionAccuracy:
    """Return which images a classifier classifies correctly under corruptions.

    Conditions are the files of CIFAR-10-C, ::

        files = cifar10_c("CIFAR-10-C")
        corruption_accuracy(model, ((name, severity, images.batches(500)) for name, severity, images in files))

    or computed corruptions, ``corruption_accuracy(model, corrupted(images.batches(500)))``. Reference: Hendrycks and
    Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019.

    Args:
        model: as for :func:`accuracy`, and restored as there.
        conditions: for each corruption and severity the name of the corruption, its severity, at least 1, and batches
            as for :func:`accuracy`. Each is iterated once, before the next is requested.

    Raises:
        ValueError: no condition, a condition that occurs twice, or images or labels out of range.
        TypeError: an argument has the wrong type.

    Example:
        Fog that turns one of two images upside down, for a model that takes the brighter of two pixels for the class.

        >>> images, y = torch.tensor([[0.9, 0.1], [0.4, 0.6]]), torch.tensor([0, 1])
        >>> conditions = [("fog", 1, [(images, y)]), ("fog", 2, [(torch.tensor([[0.5, 0.4], [0.5, 0.4]]), y)])]
        >>> corruption_accuracy(torch.nn.Flatten(), conditions).by_corruption
        {'fog': 0.75}
    """
    owner = "corruption_accuracy"
    verdicts: dict[str, dict[int, Accuracy]] = {}
    # Conditions may draw random numbers, which must not change the global state either.
    with prepared_for_evaluation(owner, model):
        remedy = "Pass what corrupted() yields, or triples (name, severity, batches)"
        check_iterable(owner, "conditions", conditions, remedy=remedy)
        for condition in conditions:
            if not isinstance(condition, (tuple, list)) or len(condition) != 3:
                got = f"{len(condition)} parts" if isinstance(condition, (tuple, list)) else type_name(condition)
                raise TypeError(complaint(owner, "conditions to be triples (name, severity, batches)", got, remedy))
            name, severity, batches = condition
            check_type(owner, "the name of a corruption", name, str, remedy=remedy)
            check_int(owner, f"the severity of {name!r}", severity, low=1, remedy="CIFAR-10-C counts from 1 to 5")
            if severity in verdicts.setdefault(name, {}):
                got = f"{name!r} at severity {severity} again"
                raise ValueError(complaint(owner, "each corruption once at each severity", got, "Rename one of them"))
            verdicts[name][severity] = accuracy(model, batches)
    if not verdicts:
        raise ValueError(complaint(owner, "at least one condition", "none", "An iterator can be used only once"))
    return CorruptionAccuracy(verdicts)


def corrupted(
    batches: _Batches,
    *,
    names: Sequence[str] = CORRUPTIONS,
    severities: Sequence[int] = _SEVERITIES,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[str, int, _Batches]]:
    """Yield clean images under each corruption, as conditions of :func:`~advcontrast.evaluation.corruption_accuracy`.

    A batch is corrupted when it is requested. The noise is drawn on the CPU from a generator that is seeded for each
    condition: for the same batches it is the same for every model and device.

    Args:
        batches: clean float images ``[N, C, H, W]`` in [0, 1] and labels ``[N]``; iterated once and kept in memory.
        names: which corruptions, some of :data:`advcontrast.augment.CORRUPTIONS`.
        severities: which severities, each from 1 to 5.
        seed: of the noise, at least 0.
        device: where to keep and corrupt the images.

    Raises:
        ValueError: no name or severity, or an unknown one; when iterated, no image.
        TypeError: an argument has the wrong type.

    Example:
        >>> clean = [(torch.tensor([[[[0.0, 0.5, 1.0]]]]), torch.tensor([2]))]
        >>> for name, severity, batches in corrupted(clean, names=("contrast",), severities=(2,)):
        ...     print(name, severity, [(x.flatten().tolist(), y.tolist()) for x, y in batches])
        contrast 2 [([0.25, 0.5, 0.75], [2])]
    """
    owner = "corrupted"
    for argument, given in (("names", names), ("severities", severities)):
        check_type(owner, argument, given, (tuple, list), remedy="The default is all of them")
        if not given:
            raise ValueError(complaint(owner, f"{argument} to hold at least one", "none", "The default is all of them"))
    check_int(owner, "seed", seed, low=0, remedy="Any number will do; note it with the result")
    corruptions = [Corruption(name, severity=severity) for name in names for severity in severities]
    target = torch.device(device)

    def conditions() -> Iterator[tuple[str, int, _Batches]]:
        clean = [(x, y) for x, _, y in checked_batches(owner, batches, target)]
        for corruption in corruptions:
            yield corruption.name, corruption.severity, _batches(clean, corruption, seed)

    return conditions()


def _batches(clean: _Batches, corruption: Corruption, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    for x, y in clean:
        yield corruption(x, generator=generator), y
