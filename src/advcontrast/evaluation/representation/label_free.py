"""Robustness of an encoder, measured without labels, for example during pre-training."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..._checks import check_finite, check_iterable, check_shape, check_tensor, complaint
from ..._transfer import to_device
from ..._types import Objective
from ...attacks import PGDAttack
from ...functional import representation
from ...functional.nt_xent import alignment
from ..inputs import check_attack, check_images, generator_or_default, model_output, perturbed, prepared_for_evaluation

_OWNER = "label_free_robustness"


@dataclass(frozen=True, kw_only=True)
class LabelFreeRobustness:
    """Measures of the features of images, without and under attack.

    ``dataclasses.asdict`` turns it into metrics to report. Read the measures together: an encoder that maps everything
    to one point has the best possible risks, accuracy and margin, but an effective rank of 1 and a uniformity of 0.

    Attributes:
        distance: mean Euclidean distance between the features of an image and those of the image driven away from
            itself, at least 0 and in the units of the features.
        breakaway_risk: probability that an image is driven closer to another image than to itself, in [0, 1].
        nearest_neighbour_accuracy: fraction of attacked images whose nearest clean features are their own, in [0, 1].
        overlap_risk: probability that two images that are driven towards each other change places, in [0, 1].
        margin: median of the margin left between two such images, 1 without attack, negative if they change places.
        alignment: mean squared distance between clean and attacked features on the unit sphere, in [0, 4].
        uniformity_clean: uniformity of the features of the images, in [-8, 0], smaller is more even.
        uniformity_adv: the same of the images driven away from themselves.
        effective_rank_clean: number of dimensions that the features of the images use, at least 1.
        effective_rank_adv: the same of the images driven away from themselves.
    """

    distance: float
    breakaway_risk: float
    nearest_neighbour_accuracy: float
    overlap_risk: float
    margin: float
    alignment: float
    uniformity_clean: float
    uniformity_adv: float
    effective_rank_clean: float
    effective_rank_adv: float


def label_free_robustness(
    encoder: nn.Module,
    batches: Iterable[Tensor | tuple[Tensor, object]],
    attack: Callable[..., Tensor] = PGDAttack(eps=8 / 255, step_size=2 / 255, steps=10),  # noqa: B008 (immutable)
    *,
    generator: torch.Generator | None = None,
) -> LabelFreeRobustness:
    r"""Measure the robustness of an encoder to attacks on its features, without labels.

    Each image is attacked twice. The first attack drives it away from itself and maximises

    .. math:: \lVert f(x + \delta) - f(x) \rVert^2

    which has no gradient at x, so the attack must start at random. The second drives it towards another image x' of its
    batch and maximises :math:`-\lVert f(x + \delta) - f(x') \rVert^2`. The images of a batch are paired at random, and
    in a batch of odd size one is left out. Breakaway risk, nearest-neighbour accuracy, uniformity and effective rank
    compare the images of all batches together. Reference: Petrov and Kwiatkowska, "Robustness of Unsupervised
    Representation Learning without Labels", ICLR 2023.

    With an attack of k steps an image costs 2 k + 3 forward and 2 k backward passes. Model and random state are
    restored as in :func:`~advcontrast.evaluation.accuracy`. The active branch of dual norms is used::

        with bn_branch(acl.model, "adv"):
            metrics = dataclasses.asdict(label_free_robustness(acl.model, [images]))

    Args:
        encoder: maps images in [0, 1], normalisation inside, to features ``[N, D]``, with or without projection head.
        batches: images ``[N, ...]``, floating point in [0, 1], or pairs of images and labels, which are ignored. They
            are iterated once, and moved to the device of the encoder. All features are kept in memory.
        attack: as for :func:`~advcontrast.evaluation.robust_accuracy`; its objective returns a value for each image.
        generator: source of all randomness, on the device of the encoder. By default one seeded with 0.

    Raises:
        ValueError: no batch has two images; a shape does not fit; features not finite; on the CPU, images out of range.
        TypeError: an argument has the wrong type, such as uint8 images.

    Example:
        Four pixels as features each move by 1/8, the image by 1/4. Two images 1 apart draw nearer by 1/4 each, so that
        3/4 - 1/4 is left.

        >>> images = torch.tensor([[0.25] * 4, [0.75] * 4])
        >>> attack = PGDAttack(eps=0.125, step_size=0.125, steps=4)
        >>> result = label_free_robustness(torch.nn.Flatten(), [images], attack)
        >>> result.distance, round(result.margin, 4), result.breakaway_risk
        (0.25, 0.5, 0.0)
    """
    check_attack(_OWNER, attack)
    everything, drawn = [], []
    with prepared_for_evaluation(_OWNER, encoder) as device:
        source = generator_or_default(_OWNER, generator, device)
        for x in image_batches(_OWNER, batches, device, least=2):
            clean = checked_features(_OWNER, encoder, x)
            away = perturbed(_OWNER, attack, _distance(encoder, clean, 1), x.clone(), source)
            everything.append((clean, checked_features(_OWNER, encoder, away)))
            if half := len(x) // 2:
                one = torch.randperm(len(x), generator=source, device=device)[: 2 * half]
                other = one.roll(half)
                nearer = perturbed(_OWNER, attack, _distance(encoder, clean[other], -1), x[one], source)
                adv = checked_features(_OWNER, encoder, nearer)
                drawn.append((clean[one], clean[other], adv, adv.roll(half, 0)))
        clean, adv = (torch.cat(part) for part in zip(*everything, strict=True))
        margins = representation.margin_ratio(*(torch.cat(part) for part in zip(*drawn, strict=True)))
        return LabelFreeRobustness(
            distance=torch.linalg.vector_norm(adv - clean, dim=1).mean().item(),
            breakaway_risk=representation.breakaway_risk(clean, adv).item(),
            nearest_neighbour_accuracy=representation.nearest_neighbour_accuracy(clean, adv).item(),
            overlap_risk=representation.overlap_risk(margins).item(),
            margin=margins.median().item(),
            alignment=alignment(clean, adv).item(),
            uniformity_clean=representation.uniformity(clean).item(),
            uniformity_adv=representation.uniformity(adv).item(),
            effective_rank_clean=representation.effective_rank(clean).item(),
            effective_rank_adv=representation.effective_rank(adv).item(),
        )


def image_batches(owner: str, batches: Iterable[Any], device: torch.device, *, least: int) -> Iterator[Tensor]:
    """Yield the images of batches, with labels or without, on the device; one batch must hold ``least`` of them."""
    check_iterable(owner, "batches", batches, remedy="Pass [images] for a single batch")
    sizes = [0]
    for batch in batches:
        if isinstance(batch, (tuple, list)) and len(batch) != 2:
            rule = "batches to yield images or pairs (images, anything)"
            raise TypeError(complaint(owner, rule, f"{len(batch)} parts", "Pass a list of images [N, ...]"))
        x = batch[0] if isinstance(batch, (tuple, list)) else batch
        check_images(owner, x)
        check_shape(owner, "images", x, "[N, ...]", x.dim() > 1, remedy="Add a dimension with images[None]")
        if len(x):
            sizes.append(len(x))
            yield to_device(x, device)
    if max(sizes) < least:
        rule = f"a batch of at least {least} image{'s' if least > 1 else ''}"
        remedy = "An iterator can be used only once; pass a list or a DataLoader"
        raise ValueError(complaint(owner, rule, f"{sum(sizes)} in {len(sizes) - 1} batches", remedy))


def checked_features(owner: str, encoder: nn.Module, x: Tensor) -> Tensor:
    """Return the features ``[N, D]`` of a batch, in float32 at least, once they have this shape."""
    z = model_output(owner, encoder, x)
    remedy = "Pass an encoder that returns a flat row of features for each image"
    check_tensor(owner, "the output of the model", z, remedy=remedy)
    fits = z.dim() == 2 and len(z) == len(x) and z.shape[1] > 0
    check_shape(owner, "the output of the model", z, f"[{len(x)}, D] with D >= 1", fits, remedy=remedy)
    check_finite(owner, "features", z, remedy="The network has diverged; evaluate an earlier checkpoint")
    return z.to(torch.promote_types(z.dtype, torch.float32))


def _distance(encoder: nn.Module, target: Tensor, sign: int) -> Objective:
    """Return the squared distance of each image's features to its target, whose gradient is finite also at zero."""
    return lambda x: sign * (checked_features(_OWNER, encoder, x) - target).square().sum(1)
