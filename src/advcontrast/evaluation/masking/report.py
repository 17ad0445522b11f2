"""All gradient-masking alarms on one model."""

import dataclasses
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..._checks import check_choice, check_finite, check_int, check_module, check_real, complaint
from ..._transfer import on_cpu, to_device
from ..._types import NORMS
from ...attacks import ClassificationObjective, PGDAttack
from ..accuracy.curves import check_fields, with_radius
from ..accuracy.measure import Accuracy
from ..inputs import checked_batches, checked_logits, generator_or_default, perturbed, prepared_for_evaluation
from ..uar.jpeg import JPEGAttack
from . import _attacks, attack_alarms
from .attack_alarms import Alarm
from .model_alarms import batch_dependence, probability_output, randomised_output, train_mode, zero_gradients

_OWNER = "gradient_masking"
_SOME = 64  # images for the alarms that need outputs only
PGD_20 = PGDAttack(eps=8 / 255, step_size=2 / 255, steps=20)


@dataclass(frozen=True, eq=False)
class MaskingReport:
    """Gradient-masking alarms of one model, printed as a table.

    Attributes:
        alarms: the alarms, in the order of their checks.
        images: number of images that were attacked, all classified correctly without attack.

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
        """``True`` if any alarm is raised."""
        return any(alarm.raised for alarm in self.alarms)

    def __getitem__(self, name: str) -> Alarm:
        """Return the alarm of a name."""
        return {alarm.name: alarm for alarm in self.alarms}[name]

    def __str__(self) -> str:
        count = sum(alarm.raised for alarm in self.alarms)
        title = f"{count} of {len(self.alarms)} alarms raised on {self.images} images"
        return "\n".join([title, *map(str, self.alarms)])

    def __repr__(self) -> str:
        names = [alarm.name for alarm in self.alarms if alarm.raised]
        return f"MaskingReport({len(names)} of {len(self.alarms)} raised{': ' * bool(names)}{', '.join(names)})"


def gradient_masking(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    attack: Callable[..., Tensor] = PGD_20,
    *,
    surrogate: nn.Module | None = None,
    images: int = 256,
    generator: torch.Generator | None = None,
) -> MaskingReport:
    r"""Check whether robust accuracy is overstated because the gradient or the loss misleads the attack.

    The checks are those of :mod:`advcontrast.evaluation.masking`. The model is attacked with one step, with the attack
    as given, with twice the steps, in a ball of half the radius and in one that holds every image; with two other
    losses; with the best of 50 draws of sign noise; with a gradient-free search of 100 queries; and with images that
    were made for a surrogate. With k the steps of the attack, an image costs about ``8 * k + 170`` forward and
    ``8 * k`` backward passes, and k of each more with a surrogate. If the output has no gradient, or one that is not
    finite, attacks get a gradient of zero. Model and random states are restored.

    The attack is called with a :class:`~advcontrast.attacks.ClassificationObjective`, whose value is the cross-entropy.
    Each of the other losses keeps its gradient where cross-entropy loses it:

    - ``"rescaled logits"`` maximises the cross-entropy of logits that are scaled for each image, such that smallest and
      largest differ by 30. It is invariant to shift and positive scale of the logits of an image. With two classes it
      has no gradient.
    - ``"margin loss"`` follows the direction :math:`g_r / \lVert g_r \rVert - g_y / \lVert g_y \rVert`, with
      :math:`g_y` and :math:`g_r` the gradients of the logits of the true class and of the strongest other one, in two
      forward and two backward passes per step. It is invariant to increasing functions of the logits, such as a leaky
      clip.

    The runs with both losses and on the surrogate use the given attack if it is a ``PGDAttack``, and otherwise PGD with
    as many steps of a quarter of the radius. The loss that is compared across steps and eps is the margin of the
    strongest wrong class, at most 0, since some attacks stop at the decision boundary.

    Args:
        model: a classifier of images in [0, 1], the normalisation inside, that returns ``[N, C]``.
        batches: as for :func:`robust_accuracy`. They are read until there are enough images.
        attack: a dataclass such as ``PGDAttack(...)`` with the fields ``eps``, ``steps`` and ``norm``, whose ``eps`` is
            a distance between images. By default PGD-20 in the ball of radius 8/255.
        surrogate: another classifier of the same images whose gradient can be trusted, best an undefended network of
            the same architecture, or the network inside a defence, for the alarm ``"transfer"``. Some defences raise no
            other alarm.
        images: how many images to read, at least 1; those that are classified correctly are attacked.
        generator: source of randomness, on the device of the model; by default one seeded with 0.

    Raises:
        ValueError: as for :func:`accuracy`; an attack without radius or steps; fewer than two images classified
            correctly.
        TypeError: an argument has the wrong type, or an attack whose ``eps`` is not a distance between images.

    Example:
        A linear classifier has an informative gradient, unless its images are rounded first.

        >>> images = torch.linspace(0, 1, 60).view(20, 3)
        >>> labels = torch.zeros(20, dtype=torch.int64)
        >>> linear = torch.nn.Linear(3, 2).eval()
        >>> weights = {"weight": torch.tensor([[0.5] * 3, [-0.5] * 3]), "bias": torch.tensor([-0.1, 0.1])}
        >>> _ = linear.load_state_dict(weights)
        >>> gradient_masking(linear, [(images, labels)]).raised
        False
        >>> _ = linear.register_forward_pre_hook(lambda linear, arguments: arguments[0].round())
        >>> gradient_masking(linear, [(images, labels)])["zero gradients"].figures["zero"]
        1.0

    References:
        Athalye et al., "Obfuscated Gradients Give a False Sense of Security", ICML 2018.
    """
    check_module(_OWNER, model)
    if surrogate is not None:
        check_module(f"{_OWNER}, surrogate", surrogate)
    check_int(_OWNER, "images", images, low=1, remedy="A few hundred are enough")
    check_fields(_OWNER, attack, "eps", "steps", "norm")
    given: Any = attack  # a dataclass with these fields
    if isinstance(attack, JPEGAttack):
        expected, got = "attack to search a ball of images", "JPEGAttack, whose eps counts quantisation steps"
        raise TypeError(complaint(_OWNER, expected, got, "Pass PGDAttack(...)"))
    check_choice(_OWNER, "norm of the attack", given.norm, NORMS)
    check_real(_OWNER, "eps of the attack", given.eps, low=0, above=True, remedy="Pass the ball of the evaluation")
    check_int(_OWNER, "steps of the attack", given.steps, low=1, remedy="Twenty are usual")
    found = [train_mode(model)]
    with ExitStack() as stack:
        device = stack.enter_context(prepared_for_evaluation(_OWNER, model))
        if surrogate is not None:
            stack.enter_context(prepared_for_evaluation(_OWNER, surrogate))
        source = generator_or_default(_OWNER, generator, device)
        seed = int(torch.randint(2**31, (), generator=source, device=device))
        some, correct = _read(model, batches, images, device)
        found += [check(model, some) for check in (randomised_output, batch_dependence, probability_output)]
        found.append(zero_gradients(model, correct))
        found += _compare_attacks(model, correct, given, surrogate, seed)
    return MaskingReport(tuple(found), sum(len(y) for _, y in correct))


def _read(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], images: int, device: torch.device
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Return a few images, and those of the first ``images`` that are classified correctly, with their labels."""
    read, right, left = [], [], images
    for every_x, every_y, readable_y in checked_batches(_OWNER, batches, device):
        x, y = every_x[:left], every_y[:left]
        logits = checked_logits(_OWNER, model, x, readable_y[:left])
        remedy = "Evaluate without half precision, or look for a division by zero in the model"
        check_finite(_OWNER, "the output of the model", logits, remedy=remedy)
        right.append(logits.argmax(1) == y)
        read.append((x, y))
        left -= len(x)
        if not left:
            break
    places = [each.nonzero()[:, 0] for each in on_cpu(right)]
    if (count := sum(map(len, places))) < 2:
        expected = "at least two images that are classified correctly"
        raise ValueError(complaint(_OWNER, expected, f"{count} of {images - left}", "Check the accuracy first"))
    chosen = [to_device(place, device) for place in places]
    correct = [(x[place], y[place]) for (x, y), place in zip(read, chosen, strict=True) if len(place)]
    return read[0][0][:_SOME], correct


def _compare_attacks(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]], attack: Any, surrogate: nn.Module | None, seed: int
) -> list[Alarm]:
    """Run the attack, its variants and weaker attacks, and return the alarms from their results."""
    eps, steps, norm = float(attack.eps), int(attack.steps), attack.norm
    largest = 1.0 if norm == "linf" else batches[0][0][0].numel() ** 0.5
    pgd = attack if isinstance(attack, PGDAttack) else PGDAttack(eps=eps, step_size=eps / 4, steps=steps, norm=norm)
    one_step = PGDAttack(eps=eps, step_size=eps, steps=1, norm=norm, random_start=False)
    noise, search = (
        partial(_attacks.sign_search, propose=propose, queries=queries, eps=eps, norm=norm)
        for propose, queries in ((_attacks.independent_signs, 50), (_attacks.window_signs, 100))
    )
    runs = {
        "one step": (one_step, _attacks.cross_entropy, model),
        "white box": (attack, _attacks.cross_entropy, model),
        "twice the steps": (dataclasses.replace(attack, steps=2 * steps), _attacks.cross_entropy, model),
        "half the radius": (with_radius(_OWNER, attack, eps / 2), _attacks.cross_entropy, model),
        "largest ball": (with_radius(_OWNER, attack, largest), _attacks.cross_entropy, model),
        "rescaled logits": (pgd, _attacks.rescaled_cross_entropy, model),
        "margin loss": (pgd, _attacks.normalised_margin, model),
        "random noise": (noise, _attacks.cross_entropy, model),
        "gradient-free search": (search, _attacks.cross_entropy, model),
    }
    if surrogate is not None:
        runs["transfer"] = (pgd, _attacks.cross_entropy, surrogate)
    found: dict[str, tuple[Tensor, ...]] = {}
    for name, (variant, loss, target) in runs.items():
        # Every attack draws the same numbers, so that those with a random start begin at the same point.
        source = torch.Generator(batches[0][0].device).manual_seed(seed)
        classifier = _attacks.with_finite_gradient(target)
        results = []
        for x, y in batches:
            logits = model(perturbed(_OWNER, variant, loss(ClassificationObjective(classifier, y)), x, source))
            results.append((_attacks.margin(logits, y).clamp(max=0), logits.argmax(1) == y))
        found[name] = tuple(torch.cat(part) for part in zip(*results, strict=True))
    found = on_cpu(found)
    margins = {name: margin for name, (margin, _) in found.items()}
    verdicts = {name: Accuracy(correct) for name, (_, correct) in found.items()}
    white = verdicts["white box"]
    by_steps: dict[float, Tensor] = {1: margins["one step"], steps: margins["white box"]}
    by_steps[2 * steps] = margins["twice the steps"]
    by_eps = {eps / 2: margins["half the radius"], eps: margins["white box"], largest: margins["largest ball"]}
    weaker = ("one step", "random noise", "gradient-free search", "transfer")
    return [
        attack_alarms.loss_decreases_with_strength(by_steps, parameter="steps"),
        attack_alarms.attack_not_converged(white, verdicts["twice the steps"]),
        attack_alarms.loss_decreases_with_strength(by_eps, parameter="eps"),
        attack_alarms.unbounded_attack(verdicts["largest ball"]),
        *(attack_alarms.loss_beaten(white, verdicts[name], by=name) for name in ("rescaled logits", "margin loss")),
        *(attack_alarms.weaker_attack_wins(white, verdicts[name], by=name) for name in weaker if name in verdicts),
    ]
