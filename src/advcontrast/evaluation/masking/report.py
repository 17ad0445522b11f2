"""All gradient-masking alarms on one model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..._checks import check_choice, check_finite, check_int, check_module, check_real, complaint
from ..._types import NORMS, Objective
from ...attacks import ClassificationObjective, PGDAttack
from ...functional.projection import per_sample
from ..accuracy.curves import check_fields, with_radius
from ..accuracy.measure import Accuracy
from ..inputs import checked_batches, checked_logits, generator_or_default, perturbed, prepared_for_evaluation
from ..uar.jpeg import JPEGAttack
from ._black_box import SignNoise, WindowSearch, margin
from .attack_alarms import Alarm, falling_loss, incomplete_search, loss_beaten, unbounded_attack, white_box_beaten
from .model_alarms import batch_dependence, probability_output, randomised_output, train_mode, zero_gradients

_OWNER = "gradient_masking"
_SOME = 64  # images for the alarms that look at outputs only
_RANGE = 30.0  # of logits, from the smallest to the largest; usual for classifiers trained to convergence
PGD_20 = PGDAttack(eps=8 / 255, step_size=2 / 255, steps=20)

Chunks = list[tuple[Tensor, Tensor]]
_Loss: TypeAlias = Callable[[ClassificationObjective], Objective]


@dataclass(frozen=True, eq=False)
class MaskingReport:
    """The alarms for one model; printed, a table.

    Attributes:
        alarms: the verdicts, in the order in which they were looked for.
        images: the number of images they rest on, all classified correctly without attack.

    Example:
        >>> report = MaskingReport((Alarm("train mode", False, "0 of 3 modules are in train mode", {}),), 200)
        >>> report.raised
        False
        >>> print(report)
        0 of 1 alarms raised on 200 images
        clear   train mode            0 of 3 modules are in train mode
    """

    alarms: tuple[Alarm, ...]
    images: int

    @property
    def raised(self) -> bool:
        """Whether any alarm is raised."""
        return any(alarm.raised for alarm in self.alarms)

    def __getitem__(self, name: str) -> Alarm:
        """Return the alarm of a name."""
        return {alarm.name: alarm for alarm in self.alarms}[name]

    def __str__(self) -> str:
        loud = sum(alarm.raised for alarm in self.alarms)
        title = f"{loud} of {len(self.alarms)} alarms raised on {self.images} images"
        return "\n".join([title, *map(str, self.alarms)])

    def __repr__(self) -> str:
        loud = [alarm.name for alarm in self.alarms if alarm.raised]
        return f"MaskingReport({len(loud)} of {len(self.alarms)} raised{': ' * bool(loud)}{', '.join(loud)})"


def gradient_masking(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    attack: Callable[..., Tensor] = PGD_20,
    *,
    surrogate: nn.Module | None = None,
    images: int = 256,
    generator: torch.Generator | None = None,
) -> MaskingReport:
    r"""Look for known signs that robust accuracy is overstated, because gradient or loss mislead the attack.

    Each sign has a check of its own in :mod:`advcontrast.evaluation.masking`. The model is
    attacked with one step, with the attack as given, with twice the steps, in a ball of half the radius and in one
    that holds every image; with two other losses; with the best of 50 draws of sign noise; with a gradient-free search
    of 100 queries; and with images that were made for a surrogate. With k the steps of the attack, an image costs about
    ``8 * k + 170`` forward and ``8 * k`` backward passes, and k of each more with a surrogate: eight runs of the attack
    and 150 queries. Only images that are classified correctly are attacked; a few hundred are
    enough. If the output has no gradient, or one that is not finite, attacks see a gradient of zero. Like
    :func:`accuracy`, the call restores the model and all random states.

    The attack is called with a :class:`~advcontrast.attacks.ClassificationObjective`, whose value is the cross-entropy;
    an ``APGDAttack`` maximises the loss it was given. Each of the other losses keeps its gradient where cross-entropy
    loses it:

    - ``"rescaled logits"`` maximises the cross-entropy of logits that are scaled for each image, such that smallest and
      largest differ by 30. It stays the same when the logits of an image are shifted, or multiplied by a positive
      number, also by one that depends on the image. Between two classes it has no gradient.
    - ``"margin loss"`` climbs in the direction :math:`g_r / \lVert g_r \rVert - g_y / \lVert g_y \rVert`, with
      :math:`g_y` and :math:`g_r` the gradients of the logits of the true class and of the strongest other one. It stays
      the same when each logit passes through an increasing function, such as a clip that leaks. Each step costs two
      forward and two backward passes.

    Both runs, and the one on the surrogate, are those of the given attack where it is a ``PGDAttack``, and otherwise
    PGD with as many steps of a quarter of the radius.

    Where loss against steps or eps is compared, the loss is the margin by which another class wins, and 0 once one
    does: attacks differ in what else they maximise, and some stop there.

    Args:
        model: a classifier of images in [0, 1], the normalisation inside, that returns ``[N, C]``.
        batches: as for :func:`robust_accuracy`. They are read only until there are enough images.
        attack: a dataclass such as ``PGDAttack(...)`` with the fields ``eps``, ``steps`` and ``norm``, whose ball is
            one of images. By default PGD-20 in the ball of radius 8/255.
        surrogate: another classifier of the same images whose gradient can be trusted, best an undefended network of
            the same architecture, or the network inside a defence. Some defences raise no other alarm.
            Without one, the alarm ``"transfer"`` is missing from the report.
        images: how many images to read, at least 1.
        generator: source of randomness, on the device of the model; by default one seeded with 0.

    Returns:
        The alarms, by name as ``report["random noise"]``, and whether any is raised as ``raised``.

    Raises:
        ValueError: as for :func:`accuracy`; an attack that may not move; fewer than two images classified correctly.
        TypeError: an argument of the wrong kind, or an attack whose ``eps`` is not a distance between images.

    Example:
        A linear classifier hides nothing, unless its images are rounded first.

        >>> images = torch.linspace(0, 1, 60).view(20, 3)
        >>> labels = torch.zeros(20, dtype=torch.int64)
        >>> linear = torch.nn.Linear(3, 2).eval()
        >>> weights = {"weight": torch.tensor([[0.5] * 3, [-0.5] * 3]), "bias": torch.tensor([-0.1, 0.1])}
        >>> _ = linear.load_state_dict(weights)
        >>> gradient_masking(linear, [(images, labels)]).raised
        False
        >>> class Rounded(torch.nn.Linear):
        ...     def forward(self, x):
        ...         return super().forward(x.round())
        >>> rounded = Rounded(3, 2).eval()
        >>> _ = rounded.load_state_dict(weights)
        >>> gradient_masking(rounded, [(images, labels)])["zero gradients"].figures["zero"]
        1.0

    References:
        Athalye et al., "Obfuscated Gradients Give a False Sense of Security", ICML 2018.

        Carlini et al., "On Evaluating Adversarial Robustness", 2019.
    """
    check_module(_OWNER, model)
    if surrogate is not None:
        check_module(f"{_OWNER}, surrogate", surrogate)
    check_int(_OWNER, "images", images, low=1, remedy="A few hundred are enough")
    check_fields(_OWNER, attack, "eps", "steps", "norm")
    given: Any = attack
    if isinstance(attack, JPEGAttack):
        expected, remedy = "attack to search a ball of images", "Pass PGDAttack(...)"
        raise TypeError(complaint(_OWNER, expected, "JPEGAttack, whose eps counts quantisation steps", remedy))
    check_choice(_OWNER, "norm of the attack", given.norm, NORMS)
    check_real(_OWNER, "eps of the attack", given.eps, low=0, above=True, remedy="Pass the ball of the evaluation")
    check_int(_OWNER, "steps of the attack", given.steps, low=1, remedy="Twenty are usual")
    found = [train_mode(model)]
    with prepared_for_evaluation(_OWNER, model) as device:
        source = generator_or_default(_OWNER, generator, device)
        seed = int(torch.randint(2**31, (), generator=source, device=device))
        read = _read(batches, images, device)
        chunks, some = _right_only(model, read), read[0][0][:_SOME]
        found += [look(model, some) for look in (randomised_output, batch_dependence, probability_output)]
        found.append(zero_gradients(model, chunks))
        found += _under_attack(model, chunks, given, surrogate, seed)
    return MaskingReport(tuple(found), sum(len(y) for _, y in chunks))


def _read(
    batches: Iterable[tuple[Tensor, Tensor]], images: int, device: torch.device
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Return the batches that hold the first ``images`` images, the last of them cut."""
    read: list[tuple[Tensor, Tensor, Tensor]] = []
    for x, y, readable_y in checked_batches(_OWNER, batches, device):
        read.append((x[:images], y[:images], readable_y[:images]))
        images -= len(read[-1][0])
        if not images:
            break
    return read


def _right_only(model: nn.Module, read: list[tuple[Tensor, Tensor, Tensor]]) -> Chunks:
    """Return the images that are classified correctly, and their labels."""
    chunks: Chunks = []
    for x, y, readable_y in read:
        logits = checked_logits(_OWNER, model, x, readable_y)
        remedy = "Evaluate without half precision, or look for a division by zero in the model"
        check_finite(_OWNER, "the output of the model", logits, remedy=remedy)
        right = logits.argmax(1) == y
        chunks.append((x[right], y[right]))
    count, every = sum(len(y) for _, y in chunks), sum(len(y) for _, y, _ in read)
    if count < 2:
        expected = "at least two images that are classified correctly"
        remedy = "Alarms compare attacks on such images; look at the accuracy first"
        raise ValueError(complaint(_OWNER, expected, f"{count} of {every}", remedy))
    return [(x, y) for x, y in chunks if len(y)]


def _cross_entropy(objective: ClassificationObjective) -> Objective:
    return objective


def _rescaled(objective: ClassificationObjective) -> Objective:
    """Return the cross-entropy of logits that are scaled to the range ``_RANGE`` for each image."""

    def value(x: Tensor) -> Tensor:
        logits = objective.logits(x)
        spread = logits.amax(1, keepdim=True) - logits.amin(1, keepdim=True)
        scaled = _RANGE * logits / spread.masked_fill(spread == 0, 1)
        return F.cross_entropy(scaled, objective.y, reduction="none")

    return value


def _margin(objective: ClassificationObjective) -> Objective:
    """Return the margin as an objective whose gradient no increasing function of the logits changes.

    The gradients of the logit of the true class and of the strongest other one are scaled to length one. Their
    difference never has a negative inner product with the gradient of the margin.
    """

    def value(x: Tensor) -> Tensor:
        logits, y = objective.logits(x), objective.y
        ahead = margin(logits, y)
        if not x.requires_grad:
            return ahead
        rivals = logits.scatter(1, y[:, None], -torch.inf).argmax(1)
        # A second forward pass, as compiled networks free what the first backward pass used.
        uphill = _direction(logits, rivals, x) - _direction(objective.logits(x), y, x)
        climb = (uphill * x).flatten(1).sum(1)
        return ahead.detach() + (climb - climb.detach())

    return value


def _direction(logits: Tensor, classes: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of one logit of each image, scaled to length one, and zero where it is zero."""
    # Scale the backward pass to a spread of one, so that logits of any size give a gradient.
    spread = logits.detach().amax(1) - logits.detach().amin(1)
    scale = (1 / spread).clamp(max=torch.finfo(spread.dtype).max ** 0.5)
    with torch.autocast(x.device.type, enabled=False):
        (slope,) = torch.autograd.grad(logits.gather(1, classes[:, None])[:, 0], x, scale)
    # Two divisions, as the square of a tiny gradient is zero.
    slope = slope / per_sample(slope.flatten(1).abs().amax(1).clamp(min=torch.finfo(slope.dtype).tiny), slope)
    return slope / per_sample(slope.flatten(1).norm(dim=1).clamp(min=1), slope)


def _under_attack(model: nn.Module, chunks: Chunks, attack: Any, surrogate: nn.Module | None, seed: int) -> list[Alarm]:
    """Attack in all the ways there are and compare."""
    eps, steps, norm = float(attack.eps), int(attack.steps), attack.norm
    everything = 1.0 if norm == "linf" else chunks[0][0][0].numel() ** 0.5
    pgd = attack if isinstance(attack, PGDAttack) else PGDAttack(eps=eps, step_size=eps / 4, steps=steps, norm=norm)

    def outcome(
        attack: Callable[..., Tensor], target: nn.Module = model, loss: _Loss = _cross_entropy
    ) -> tuple[Tensor, Accuracy]:
        return _outcome(model, _Visible(target), chunks, attack, loss, seed)

    one = outcome(PGDAttack(eps=eps, step_size=eps, steps=1, norm=norm, random_start=False))
    white = outcome(attack)
    twice = outcome(dataclasses.replace(attack, steps=2 * steps))
    half, unbounded = (outcome(with_radius(_OWNER, attack, radius)) for radius in (eps / 2, everything))
    losses = {"rescaled logits": outcome(pgd, loss=_rescaled), "margin loss": outcome(pgd, loss=_margin)}
    weaker = {
        "one step": one,
        "random noise": outcome(SignNoise(eps=eps, norm=norm)),
        "gradient-free search": outcome(WindowSearch(eps=eps, norm=norm)),
    }
    if surrogate is not None:
        with prepared_for_evaluation(_OWNER, surrogate):
            weaker["transfer"] = outcome(pgd, surrogate)
    return [
        falling_loss({1: one[0], steps: white[0], 2 * steps: twice[0]}, parameter="steps"),
        incomplete_search(white[1], twice[1]),
        falling_loss({eps / 2: half[0], eps: white[0], everything: unbounded[0]}, parameter="eps"),
        unbounded_attack(unbounded[1]),
        *(loss_beaten(white[1], other[1], by=name) for name, other in losses.items()),
        *(white_box_beaten(white[1], other[1], by=name) for name, other in weaker.items()),
    ]


def _outcome(
    model: nn.Module,
    target: Callable[[Tensor], Tensor],
    chunks: Chunks,
    attack: Callable[..., Tensor],
    loss: _Loss,
    seed: int,
) -> tuple[Tensor, Accuracy]:
    """Return the margin and the verdict of a model on what an attack on ``target`` makes of each image.

    Every attack draws the same numbers, so that those that start at random start at the same point.
    """
    source = torch.Generator(chunks[0][0].device).manual_seed(seed)
    margins, verdicts = [], []
    for x, y in chunks:
        logits = model(perturbed(_OWNER, attack, loss(ClassificationObjective(target, y)), x, source))
        margins.append(margin(logits, y).clamp(max=0))
        verdicts.append(logits.argmax(1) == y)
    return torch.cat(margins), Accuracy(torch.cat(verdicts).cpu())


@dataclass(frozen=True, eq=False)
class _Visible:
    """A model as attacks may see it, with a finite gradient everywhere: zero where it has none."""

    model: nn.Module

    def __call__(self, x: Tensor) -> Tensor:
        x = _FiniteGradient.apply(x)
        logits: Tensor = self.model(x)
        return logits + (0 * x.flatten(1).sum(1, keepdim=True)).to(logits.dtype)


class _FiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient.nan_to_num(0.0, 0.0, 0.0)
