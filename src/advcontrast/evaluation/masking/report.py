"""All gradient-masking alarms on one model, and the attacks and losses that they compare."""

import dataclasses
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..._checks import check_choice, check_int, check_module, check_real, complaint
from ..._transfer import on_cpu, to_device
from ..._types import NORMS, Norm, Objective
from ...attacks import ClassificationObjective, PGDAttack
from ...attacks.balls import BALLS
from ...functional.projection import per_sample
from ..accuracy.curves import check_fields, with_radius
from ..accuracy.measure import Accuracy
from ..inputs import checked_batches, generator_or_default, perturbed, prepared_for_evaluation
from ..uar.jpeg import JPEGAttack
from . import attack_alarms, model_alarms
from .attack_alarms import Alarm

_OWNER = "gradient_masking"
_SOME = 64  # images for the alarms that need outputs only
_RANGE = 30.0  # of logits, from the smallest to the largest; usual for classifiers trained to convergence
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
    were made for a surrogate. With PGD of k steps an image costs ``8 * k + 167`` forward and ``8 * k + 2`` backward
    passes, and k more of each with a surrogate. If the output has no gradient, or one that is not finite, attacks get
    a gradient of zero. Model and random states are restored.

    The attack is called with a :class:`~advcontrast.attacks.ClassificationObjective`, whose value is the cross-entropy.
    Each of the other losses keeps its gradient where cross-entropy loses it:

    - ``"rescaled logits"`` maximises the cross-entropy of the logits of an image, scaled to a range of 30. It is
      invariant to their shift and positive scale. With two classes it has no gradient.
    - ``"margin loss"`` follows the direction :math:`g_r / \lVert g_r \rVert - g_y / \lVert g_y \rVert`, with
      :math:`g_y` and :math:`g_r` the gradients of the logits of the true class and of the strongest other one, in two
      forward and two backward passes per step. It is invariant to increasing functions of the logits, such as a leaky
      clip.

    The runs with both losses and on the surrogate use the given attack if it is a ``PGDAttack``, and otherwise PGD with
    as many steps of a quarter of the radius. The loss that is compared across steps and eps is the margin of the
    strongest wrong class, at most 0, since some attacks stop at the decision boundary. Reference: Athalye et al.,
    "Obfuscated Gradients Give a False Sense of Security", ICML 2018.

    Args:
        model: a classifier of images in [0, 1], the normalisation inside, that returns ``[N, C]``.
        batches: as for :func:`robust_accuracy`. They are read until there are enough images.
        attack: a dataclass such as ``PGDAttack(...)`` with the fields ``eps``, ``steps`` and ``norm``, whose ``eps`` is
            a distance between images. By default PGD-20 in the ball of radius 8/255.
        surrogate: another classifier of the same images whose gradient can be trusted, best an undefended network of
            the same architecture, or that inside a defence, for ``"transfer"``, the only alarm of some defences.
        images: how many images to read, at least 1; those that are classified correctly are attacked.
        generator: source of randomness, on the device of the model; by default one seeded with 0.

    Raises:
        ValueError: as for :func:`accuracy`; an attack without radius or steps; fewer than two correct images.
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
    """
    check_module(_OWNER, model)
    check_int(_OWNER, "images", images, low=1, remedy="A few hundred are enough")
    check_fields(_OWNER, attack, "eps", "steps", "norm")
    given: Any = attack  # a dataclass with these fields
    if isinstance(attack, JPEGAttack):
        expected, got = "attack to search a ball of images", "JPEGAttack, whose eps counts quantisation steps"
        raise TypeError(complaint(_OWNER, expected, got, "Pass PGDAttack(...)"))
    check_choice(_OWNER, "norm of the attack", given.norm, NORMS)
    check_real(_OWNER, "eps of the attack", given.eps, low=0, above=True, remedy="Pass the ball of the evaluation")
    check_int(_OWNER, "steps of the attack", given.steps, low=1, remedy="Twenty are usual")
    alarms = [model_alarms.train_mode(model)]
    prepared = nullcontext() if surrogate is None else prepared_for_evaluation(f"{_OWNER}, surrogate", surrogate)
    with prepared_for_evaluation(_OWNER, model) as device, prepared:
        source = generator_or_default(_OWNER, generator, device)
        seed = int(torch.randint(2**31, (), generator=source, device=device))
        some, correct = _read(model, batches, images, device)
        for check in (model_alarms.randomised_output, model_alarms.batch_dependence, model_alarms.probability_output):
            alarms.append(check(model, some))
        alarms.append(model_alarms.zero_gradients(model, correct))
        alarms += _compare_attacks(model, correct, given, surrogate, seed)
    return MaskingReport(tuple(alarms), sum(len(y) for _, y in correct))


def _read(
    model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], images: int, device: torch.device
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Return a few images, and those of the first ``images`` that are classified correctly, with their labels."""
    read, right, left = [], [], images
    for every_x, every_y, readable_y in checked_batches(_OWNER, batches, device):
        x, y = every_x[:left], every_y[:left]
        right.append(model_alarms.finite_logits(_OWNER, model, x, readable_y[:left]).argmax(1) == y)
        read.append((x, y))
        left -= len(x)
        if not left:
            break
    places = [to_device(each.nonzero()[:, 0], device) for each in on_cpu(right)]
    if (count := sum(map(len, places))) < 2:
        expected = "at least two images that are classified correctly"
        raise ValueError(complaint(_OWNER, expected, f"{count} of {images - left}", "Check the accuracy first"))
    return read[0][0][:_SOME], [(x[at], y[at]) for (x, y), at in zip(read, places, strict=True) if len(at)]


def _compare_attacks(
    model: nn.Module, batches: list[tuple[Tensor, Tensor]], attack: Any, surrogate: nn.Module | None, seed: int
) -> list[Alarm]:
    """Run the attack, its variants and weaker attacks, and return the alarms from their results."""
    eps, steps, norm = float(attack.eps), int(attack.steps), attack.norm
    largest = 1.0 if norm == "linf" else batches[0][0][0].numel() ** 0.5
    pgd = attack if isinstance(attack, PGDAttack) else PGDAttack(eps=eps, step_size=eps / 4, steps=steps, norm=norm)
    search = partial(sign_search, eps=eps, norm=norm)

    def pgd_on(other: Callable[[ClassificationObjective], Objective]) -> Callable[..., Tensor]:
        return lambda objective, x, generator: pgd(other(objective), x, generator=generator)

    runs = {
        "one step": PGDAttack(eps=eps, step_size=eps, steps=1, norm=norm, random_start=False),
        "white box": attack,
        "twice the steps": dataclasses.replace(attack, steps=2 * steps),
        "half the radius": with_radius(_OWNER, attack, eps / 2),
        "largest ball": with_radius(_OWNER, attack, largest),
        "rescaled logits": pgd_on(rescaled_cross_entropy),
        "margin loss": pgd_on(normalised_margin),
        "random noise": partial(search, propose=independent_signs, queries=50),
        "gradient-free search": partial(search, propose=window_signs, queries=100),
    }
    if surrogate is not None:
        other = with_finite_gradient(surrogate)
        runs["transfer"] = pgd_on(lambda objective: ClassificationObjective(other, objective.y))
    found = {}
    classifier = with_finite_gradient(model)
    for name, variant in runs.items():
        # Every attack draws the same numbers, so that those with a random start begin at the same point.
        source = torch.Generator(batches[0][0].device).manual_seed(seed)
        results = []
        for x, y in batches:
            logits = model(perturbed(_OWNER, variant, ClassificationObjective(classifier, y), x, source))
            results.append((margin(logits, y).clamp(max=0), logits.argmax(1) == y))
        found[name] = tuple(torch.cat(part) for part in zip(*results, strict=True))
    found = on_cpu(found)
    losses = {name: loss for name, (loss, _) in found.items()}
    verdicts = {name: Accuracy(correct) for name, (_, correct) in found.items()}
    white = verdicts["white box"]
    by_steps = {1.0: losses["one step"], steps: losses["white box"], 2 * steps: losses["twice the steps"]}
    by_eps = {eps / 2: losses["half the radius"], eps: losses["white box"], largest: losses["largest ball"]}
    weaker = ("one step", "random noise", "gradient-free search", "transfer")
    return [
        attack_alarms.loss_decreases_with_strength(by_steps, parameter="steps"),
        attack_alarms.attack_not_converged(white, verdicts["twice the steps"]),
        attack_alarms.loss_decreases_with_strength(by_eps, parameter="eps"),
        attack_alarms.unbounded_attack(verdicts["largest ball"]),
        *(attack_alarms.loss_beaten(white, verdicts[name], by=name) for name in ("rescaled logits", "margin loss")),
        *(attack_alarms.weaker_attack_wins(white, verdicts[name], by=name) for name in weaker if name in verdicts),
    ]


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """Return the largest logit of another class minus that of the true one, ``[N]``."""
    own = logits.gather(1, y[:, None])
    return (logits.scatter(1, y[:, None], -torch.inf).amax(1) - own[:, 0]).float()


def sign_search(
    objective: ClassificationObjective,
    x: Tensor,
    *,
    propose: Callable[[Tensor, float, torch.Generator | None], Tensor],
    queries: int,
    eps: float,
    norm: Norm,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Search for the strongest perturbation without gradients; ``propose`` gets the best signs and the progress."""
    ball = BALLS[norm](x, eps, (0.0, 1.0))
    signs, best = torch.zeros_like(x), torch.full_like(objective.y, -torch.inf, dtype=torch.float32)
    for query in range(queries):
        proposal = propose(signs, query / queries, generator)
        gain = margin(objective.logits(ball.step(ball.centre, proposal, eps).to(x.dtype)), objective.y)
        better = gain > best
        best = torch.where(better, gain, best)
        signs = torch.where(per_sample(better, x), proposal, signs)
    return ball.step(ball.centre, signs, eps).to(x.dtype)


def independent_signs(best: Tensor, done: float, generator: torch.Generator | None) -> Tensor:  # noqa: ARG001
    """Return independent random signs."""
    return _random_signs(best, best.shape, generator)


def window_signs(best: Tensor, done: float, generator: torch.Generator | None) -> Tensor:
    """Return the best signs with one random sign per channel in a shrinking window; stripes at the start.

    The Square Attack of Andriushchenko et al., ECCV 2020, untuned: networks react to patches far more than to noise.
    """
    grid = best if best.dim() == 4 else best.flatten(1)[:, None, None]
    n, channels, height, width = grid.shape
    if done == 0:
        return _random_signs(grid, (n, channels, 1, width), generator).expand_as(grid).reshape(best.shape)
    share = 0.5 * 0.04**done
    window_height = max(round(height * share**0.5), 1)
    window_width = min(max(round(share * height * width / window_height), 1), width)
    rows = _interval(grid, height, window_height, generator)[:, None, :, None]
    columns = _interval(grid, width, window_width, generator)[:, None, None, :]
    return torch.where(rows & columns, _random_signs(grid, (n, channels, 1, 1), generator), grid).reshape(best.shape)


def _random_signs(like: Tensor, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
    return 2 * torch.randint(2, shape, generator=generator, device=like.device).to(like.dtype) - 1


def _interval(like: Tensor, size: int, length: int, generator: torch.Generator | None) -> Tensor:
    """Return for each sample a random interval of ``length`` among ``size`` positions, bool ``[N, size]``."""
    start = torch.randint(size - length + 1, (len(like), 1), generator=generator, device=like.device)
    position = torch.arange(size, device=like.device)
    return (position >= start) & (position < start + length)


def rescaled_cross_entropy(objective: ClassificationObjective) -> Objective:
    """Return the cross-entropy of logits that are scaled to the range ``_RANGE`` for each image."""

    def value(x: Tensor) -> Tensor:
        logits = objective.logits(x)
        spread = logits.amax(1, keepdim=True) - logits.amin(1, keepdim=True)
        scaled = _RANGE * logits / spread.masked_fill(spread == 0, 1)
        return F.cross_entropy(scaled, objective.y, reduction="none")

    return value


def normalised_margin(objective: ClassificationObjective) -> Objective:
    """Return the margin as an objective, whose gradient is the difference of its two logits' unit gradients."""

    def value(x: Tensor) -> Tensor:
        logits, y = objective.logits(x), objective.y
        difference = margin(logits, y)
        if not x.requires_grad:
            return difference
        rivals = logits.scatter(1, y[:, None], -torch.inf).argmax(1)
        # A second forward pass, as compiled networks free what the first backward pass used.
        gradient = _unit_gradient(logits, rivals, x) - _unit_gradient(objective.logits(x), y, x)
        linear = (gradient * x).flatten(1).sum(1)
        return difference.detach() + (linear - linear.detach())

    return value


def _unit_gradient(logits: Tensor, classes: Tensor, x: Tensor) -> Tensor:
    """Return the gradient of one logit of each image, scaled to length one; zero stays zero."""
    # Scale the backward pass to a spread of one, so that logits of any size give a gradient.
    spread = logits.detach().amax(1) - logits.detach().amin(1)
    scale = (1 / spread).clamp(max=torch.finfo(spread.dtype).max ** 0.5)
    with torch.autocast(x.device.type, enabled=False):
        (slope,) = torch.autograd.grad(logits.gather(1, classes[:, None])[:, 0], x, scale)
    # Two divisions, as the square of a tiny gradient is zero.
    slope = slope / per_sample(slope.flatten(1).abs().amax(1).clamp(min=torch.finfo(slope.dtype).tiny), slope)
    return slope / per_sample(slope.flatten(1).norm(dim=1).clamp(min=1), slope)


def with_finite_gradient(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a model whose gradient is zero where it has none or one that is not finite."""

    def logits(x: Tensor) -> Tensor:
        x = x.clone()
        if x.requires_grad:
            x.register_hook(lambda gradient: gradient.nan_to_num(0.0, 0.0, 0.0))  # type: ignore[no-untyped-call]
        output: Tensor = model(x)
        return output + (0 * x.flatten(1).sum(1, keepdim=True)).to(output.dtype)

    return logits
