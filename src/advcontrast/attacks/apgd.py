"""Projected gradient ascent that chooses its own steps, on any objective with a value for each sample."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from .._checks import check_choice, check_finite, check_int, complaint, readable, type_name
from .._types import NORMS, Objective
from ..functional.margin import dlr, targeted_dlr
from ..functional.projection import per_sample
from .balls import Ball, L1Ball, L2Ball, LinfBall, widest
from .classification import ClassificationObjective
from .pgd import ascent, check_call, check_search, explains_calls, value_of

APGDLoss: TypeAlias = Literal["ce", "dlr", "dlr-targeted"]
APGDNorm: TypeAlias = Literal["linf", "l2", "l1"]

_OWNER = "APGDAttack"
_BALLS: dict[str, Any] = {"linf": LinfBall, "l2": L2Ball, "l1": L1Ball}
_MOMENTUM = 0.75
_RISES = 0.75  # fraction of the steps between two checkpoints in which the objective must increase
# A run in the L1 norm searches larger balls first: factors of the radius, and their shares of the steps.
_L1_STAGES = ((3, 0.3), (2, 0.3), (1, 0.4))
_LEAST_CLASSES: dict[APGDLoss, int] = {"ce": 2, "dlr": 3, "dlr-targeted": 4}


@explains_calls
@dataclass(frozen=True, kw_only=True)
class APGDAttack:
    r"""Perturb images within a small ball so that an objective grows as much as possible, without a step size to tune.

    Auto-PGD steps by ``2 * eps`` at first, with momentum:

    .. math::

        z_{k+1} &= \Pi(x_k + \eta_k d_k) \\
        x_{k+1} &= \Pi(x_k + 0.75\,(z_{k+1} - x_k) \\
                & \qquad + 0.25\,(x_k - x_{k-1}))

    with :math:`d_k` and :math:`\Pi` as in ``PGDAttack``. Progress is checked after 22 % of the steps and then at
    shrinking intervals. The step of a sample is halved if, since the last check, its objective rose in fewer than 75 %
    of the steps, or its best value did not rise and the step was not halved at that check. Such a sample continues from
    its best point. The result is the best point of each sample over all restarts.

    Given a :class:`ClassificationObjective`, the attack targets accuracy: it maximises the ``loss``, a sample is done
    as soon as it is misclassified, and its first misclassified image is returned, which is the image itself if it is
    misclassified without attack. A sample that is done leaves the batch: on the CPU at once, on an accelerator at the
    next check of the progress, which synchronises with it. This does not affect the result, except for rounding in the
    model. Given any other function, such as the distance of features, the attack never drops a sample.

    Results of samples are independent unless the objective couples them: every run draws noise for the whole batch.
    Exactness of the ball, state, autocast and dtypes are as for ``PGDAttack``. The defaults are those of AutoAttack's
    ``apgd-ce``; ``loss="dlr-targeted"`` is its ``apgd-t``. In the L1 norm a step has no momentum and changes the
    coordinates with the largest gradients, fewer of them if the best point is sparser. A run first searches balls of
    three and two times the radius. References: Croce and Hein, ICML 2020, and for L1, ICML 2021.

    Args:
        eps: radius of the ball, at least 0, in the units of the images: 8/255 for images in [0, 1].
        steps: number of steps of a run, at least 0. A run costs one additional forward pass, and a classifier is
            evaluated once on the images themselves before all runs.
        norm: ``"linf"``, ``"l2"`` or ``"l1"``; a radius of 12 is usual for the last one on CIFAR-10.
        loss: loss to maximise on a classifier: ``"ce"``, the cross-entropy; ``"dlr"``, the difference of logits ratio
            (three classes or more); ``"dlr-targeted"``, its form for one wrong class after another (four or more).
        restarts: number of runs, for each target, at least 1.
        targets: for ``"dlr-targeted"``, number of wrong classes to try, at least 1, those most likely for the image
            itself first; all of them if there are fewer.
        bounds: smallest and largest pixel value; they may be infinite.

    Raises:
        ValueError: as for ``PGDAttack``, or an unknown loss.
        TypeError: an argument has the wrong type.

    Example:
        A linear objective is maximal at the corner of the cube that its weights point to.

        >>> attack = APGDAttack(eps=0.25, steps=1)
        >>> attack(lambda x: (x * torch.tensor([1.0, -1.0])).sum(1), torch.tensor([[0.5, 0.5]])).tolist()
        [[0.75, 0.25]]
    """

    eps: float = 8 / 255
    steps: int = 100
    norm: APGDNorm = "linf"
    loss: APGDLoss = "ce"
    restarts: int = 1
    targets: int = 9
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_search(_OWNER, self.eps, self.steps, self.norm, self.bounds, norms=(*NORMS, "l1"))
        check_choice(_OWNER, "loss", self.loss, get_args(APGDLoss))
        check_int(_OWNER, "restarts", self.restarts, low=1, remedy="1 makes one run")
        check_int(_OWNER, "targets", self.targets, low=1, remedy="AutoAttack tries 9 wrong classes")

    def __call__(self, objective: Objective, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return adversarial versions of the images ``x``.

        Args:
            objective: a :class:`ClassificationObjective`, or a function of images like ``x`` that returns a value for
                each sample, ``[N]``, which is called ``restarts * (steps + 1)`` times.
            x: images; they, the result and the errors are as for ``PGDAttack``.
            generator: source of the random starts, on the device of ``x``; by default the global one of that device.

        Raises:
            ValueError: the loss needs a classifier or more classes; or, on the CPU, values are not finite (on an
                accelerator the result of the sample is NaN instead).
            RuntimeError: a module of the classifier is in train mode.
        """
        check_call(_OWNER, objective, x, generator, self.bounds)
        if self.loss != "ce" and not isinstance(objective, ClassificationObjective):
            remedy = "Pass ClassificationObjective(model, y), or leave loss at 'ce', which maximises any function"
            expected = f"a ClassificationObjective for {self.loss!r}"
            raise ValueError(complaint(_OWNER, expected, type_name(objective), remedy))
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone()
            if x.numel() == 0:
                return x
            ball = _BALLS[self.norm](x, self.eps, self.bounds)
            image: Tensor = ball.project(ball.centre)
            best = Iterate(image, image.new_full((len(x),), -math.inf, dtype=widest(x)), image)
            run = self._run_l1 if self.norm == "l1" else self._run
            for loss in self._losses(objective, best):
                for _ in range(self.restarts):
                    start, left = ball.random_point(generator), torch.arange(len(x), device=x.device)
                    if not isinstance(loss, _ClassifierLoss):
                        run(loss, x, start, left, best)
                    elif len(left := left[best.gain < math.inf]):
                        run(loss[left], x[left], start[left], left, best)
            return image.masked_fill_(per_sample(best.gain.isnan(), x), math.nan)

    def _losses(self, objective: Objective, best: Iterate) -> list[Objective]:
        """Return the loss of each run, after recording the samples that are misclassified without attack."""
        if not isinstance(objective, ClassificationObjective):
            return [partial(value_of, _OWNER, objective, scalar=False)]
        with torch.no_grad():
            logits = objective.logits(best.point)
        classes, least = logits.shape[1], _LEAST_CLASSES[self.loss]
        if classes < least:
            expected = f"a model of at least {least} classes for {self.loss!r}"
            raise ValueError(complaint(_OWNER, expected, str(classes), "Choose another loss"))
        check_finite(_OWNER, "the logits of the images", logits, remedy="Check the model on the unperturbed images")
        best.gain.masked_fill_(logits.argmax(1) != objective.y, math.inf)
        if self.loss != "dlr-targeted":
            return [_ClassifierLoss(objective, self.loss)]
        others = logits.scatter(1, objective.y[:, None], -math.inf).argsort(stable=True, dim=1, descending=True)
        targets = others[:, : min(self.targets, classes - 1)].unbind(1)
        return [_ClassifierLoss(objective, self.loss, target) for target in targets]

    def _run(self, loss: Objective, x: Tensor, start: Tensor, left: Tensor, best: Iterate) -> None:
        """Run the steps from a start for the samples ``left``, and update the best images."""
        checkpoints = _checkpoints(self.steps)
        ball = _BALLS[self.norm](x, self.eps, self.bounds)
        run = _Run(_evaluate(loss, start), 2 * self.eps)
        for k in range(1, self.steps + 1):
            if isinstance(loss, _ClassifierLoss) and (readable(x) or k - 1 in checkpoints):
                keep = (run.best.gain < math.inf).nonzero()[:, 0]
                if len(keep) < len(left):
                    best.update(left, run.best)
                    left, x, loss = left[keep], x[keep], loss[keep]
                    if not len(left):
                        return
                    run.keep(keep)
                    ball = _BALLS[self.norm](x, self.eps, self.bounds)
            point = run.next_point(ball, _MOMENTUM if k > 1 else 1.0)
            run.move(_evaluate(loss, point, last=k == self.steps))
            if k in checkpoints:
                run.checkpoint()
        best.update(left, run.best)

    def _run_l1(self, loss: Objective, x: Tensor, start: Tensor, left: Tensor, best: Iterate) -> None:
        """Run the steps in the L1 norm, in balls that shrink to that of the attack."""
        point, taken = start, 0
        for factor, share in _L1_STAGES:
            steps = self.steps - taken if factor == 1 else int(share * self.steps)
            taken += steps
            ball = L1Ball(x, factor * self.eps, self.bounds)
            run = _SparseRun(_evaluate(loss, ball.project(point)), factor * self.eps)
            period = max(1, int(0.04 * steps))
            for k in range(1, steps + 1):
                last = factor == 1 and k == steps
                run.move(_evaluate(loss, ball.step(run.here.point, run.here.gradient, run.size, run.share), last=last))
                if k % period == 0:
                    run.adapt(x)
            point = run.best.point
        best.update(left, run.best)


def _checkpoints(steps: int) -> set[int]:
    """Return the steps after which step sizes are adapted: fixed percentages of all steps, rounded up."""
    return {-(-percent * steps // 100) for percent in (22, 41, 57, 70, 80, 87, 93, 99)}


class Iterate(NamedTuple):
    """A point, its value and its gradient, for each sample; where no gradient is needed, the point in its place."""

    point: Tensor
    gain: Tensor
    gradient: Tensor

    def where(self, mask: Tensor, other: Iterate) -> Iterate:
        """Return this iterate for the samples of a mask, and the other one for the rest."""
        return Iterate(*(torch.where(per_sample(mask, a), a, b) for a, b in zip(self, other, strict=True)))

    def update(self, which: Tensor, found: Iterate) -> None:
        """Replace, in place, the points of the samples ``which`` and their values where a run has found better ones."""
        better = _is_better(found.gain, self.gain[which])
        self.point[which] = torch.where(per_sample(better, found.point), found.point, self.point[which])
        self.gain[which] = torch.where(better, found.gain, self.gain[which])


def _is_better(gain: Tensor, best: Tensor) -> Tensor:
    """Return whether a gain is larger than the best so far; NaN counts as the largest, so that it is never lost."""
    return ~(gain <= best) & ~best.isnan()


def _evaluate(objective: Objective, point: Tensor, *, last: bool = False) -> Iterate:
    """Evaluate an objective and its gradient; the last point of a run needs no gradient."""
    if last:
        with torch.no_grad():
            return Iterate(point, objective(point).to(widest(point)), point)
    gain, gradient = ascent(_OWNER, objective, point)
    # A sample with a NaN gradient would not move, and would count as robust.
    lost = gradient.reshape(len(gradient), -1).isnan().any(1) & (gain < math.inf)
    return Iterate(point, gain.masked_fill(lost, math.nan).to(widest(point)), gradient)


class _Run:
    """The state of a run, sample by sample."""

    def __init__(self, start: Iterate, size: float) -> None:
        self.here = self.best = start
        self.previous = start.point
        self.size: Any = per_sample(start.point.new_full((len(start.gain),), size), start.point)
        self.halved = torch.zeros_like(start.gain, dtype=torch.bool)
        self._reset_counts()

    def _reset_counts(self) -> None:
        self.steps, self.rises, self.last_best = 0, torch.zeros_like(self.best.gain), self.best.gain

    def next_point(self, ball: Ball, share: float) -> Tensor:
        """Return the next point: ``share`` times an ascent step, plus momentum."""
        point = self.here.point
        uphill = ball.step(point, self.here.gradient, self.size) - point
        return ball.project(point + share * uphill + (1 - share) * (point - self.previous))

    def move(self, to: Iterate) -> None:
        """Take a step, and count it where the objective rises."""
        self.steps, self.rises = self.steps + 1, self.rises + (to.gain > self.here.gain)
        self.previous, self.here = self.here.point, to
        self.best = to.where(_is_better(to.gain, self.best.gain), self.best)

    def checkpoint(self) -> None:
        """Halve the step of samples that made too little progress, and continue from their best iterate."""
        stuck = ~self.halved & (self.best.gain == self.last_best)
        self.halved = (self.rises < _RISES * self.steps) | stuck
        self.size = torch.where(per_sample(self.halved, self.size), self.size / 2, self.size)
        self.here = self.best.where(self.halved, self.here)
        self._reset_counts()

    def keep(self, which: Tensor) -> None:
        self.here, self.best = (Iterate(*(part[which] for part in it)) for it in (self.here, self.best))
        self.previous, self.size, self.halved = self.previous[which], self.size[which], self.halved[which]
        self.rises, self.last_best = self.rises[which], self.last_best[which]


class _SparseRun(_Run):
    """The state of a run in the L1 norm, whose steps change few coordinates."""

    def __init__(self, start: Iterate, size: float) -> None:
        super().__init__(start, size)
        self.largest, self.size = size, start.gain.new_full((len(start.gain),), size)
        self.share = torch.full_like(start.gain, 0.2)
        self.changed = torch.full_like(start.gain, float(start.point[0].numel()))

    def adapt(self, x: Tensor) -> None:
        """Change fewer coordinates, from the best point, if that has become sparser; otherwise take shorter steps."""
        changed = (self.best.point != x).reshape(len(x), -1).sum(1).to(self.share)
        sparser = changed < 0.95 * self.changed
        self.share = changed / x[0].numel() / 1.5
        self.size = torch.where(sparser, self.largest, self.size / 1.5).clamp(self.largest / 10, self.largest)
        self.here, self.changed = self.best.where(sparser, self.here), changed


@dataclass(frozen=True, eq=False)
class _ClassifierLoss:
    """A loss of a classifier; inf for misclassified samples, so that they are never replaced."""

    objective: ClassificationObjective
    loss: APGDLoss
    target: Tensor | None = None

    def __call__(self, image: Tensor) -> Tensor:
        logits, y = self.objective.logits(image), self.objective.y
        if self.target is not None:
            loss = targeted_dlr(logits, y, self.target)
        else:
            loss = dlr(logits, y) if self.loss == "dlr" else F.cross_entropy(logits, y, reduction="none")
        check_finite(_OWNER, "the value of the objective", loss, remedy="Check the model on the unperturbed images")
        return loss.masked_fill(logits.argmax(1) != y, math.inf)

    def __getitem__(self, which: Tensor) -> _ClassifierLoss:
        return _ClassifierLoss(self.objective[which], self.loss, None if self.target is None else self.target[which])
