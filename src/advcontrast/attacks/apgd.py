"""Projected gradient ascent that chooses its own steps, on any objective with a value for each sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from .._checks import check_choice, check_finite, check_int, complaint, readable, type_name
from .._types import Norm, Objective
from ..functional.margin import dlr, targeted_dlr
from .ascent import Spot, ascent, beats, check_call, check_search, explains_calls, rows, value_of
from .balls import BALLS, Ball, widest
from .classification import Classification

APGDLoss: TypeAlias = Literal["ce", "dlr", "dlr-targeted"]
_Aim: TypeAlias = Callable[[Tensor], Tensor]

_OWNER = "APGDAttack"
_MOMENTUM = 0.75
_RISES = 0.75  # the fraction of the steps since a checkpoint that must have raised the objective
_CLASSES: dict[APGDLoss, int] = {"ce": 2, "dlr": 3, "dlr-targeted": 4}


@explains_calls
@dataclass(frozen=True, kw_only=True)
class APGDAttack:
    r"""Perturb images within a small ball so that an objective grows as much as possible, without a step size to tune.

    Auto-PGD steps by ``2 * eps`` at first, with momentum:

    .. math::

        z_{k+1} &= \Pi(x_k + \eta_k d_k) \\
        x_{k+1} &= \Pi(x_k + 0.75\,(z_{k+1} - x_k) \\
                & \qquad + 0.25\,(x_k - x_{k-1}))

    with :math:`d_k` and :math:`\Pi` as in ``PGDAttack``. At checkpoints, which begin at 22% of the steps and become
    denser, it halves the step of each sample whose objective rose in fewer than 75% of the steps since the last
    checkpoint, or whose best value has not risen since then with a step that was not halved there; such a sample goes
    on from its best point. Returned is the strongest point of each sample, of all points of all restarts.

    Given a :class:`Classification`, the attack is one on accuracy: it maximises the ``loss``, a sample is done as soon
    as it is misclassified, and its first misclassified image is returned, which is the image itself where that is
    misclassified without attack. A sample that is done costs nothing more: on the CPU it leaves the batch at once, on
    an accelerator at the next checkpoint, since each look at who is done makes the CPU wait. The result is the same,
    but for what the size of a batch changes in the rounding of the model. Given any other function, such as the
    distance of the features of an encoder, it never drops a sample.

    No sample's result depends on the others, as long as the objective couples none. Every run draws noise for the whole
    batch, so that not even the start depends on who is done. For the rest, the exact ball, the traces that are not
    left, autocast and dtypes, the attack is as ``PGDAttack``. The defaults are those of AutoAttack's ``apgd-ce``;
    ``loss="dlr-targeted"`` is its ``apgd-t``.

    Args:
        eps: radius of the ball, at least 0, in the units of the images: 8/255 for images in [0, 1].
        steps: number of steps of a run, at least 0; a run costs one forward pass more, and a forward pass on the images
            themselves comes before all runs on a classifier.
        norm: ``"linf"`` or ``"l2"``.
        loss: what to maximise on a classifier: ``"ce"``, the cross-entropy; ``"dlr"``, the difference of logits ratio,
            which needs three classes; ``"dlr-targeted"``, that of one wrong class after the other, which needs four.
        restarts: number of runs, for each target, at least 1.
        targets: for ``"dlr-targeted"``, how many of the wrong classes to try, at least 1, from the most likely one on
            the image itself downwards; all of them where there are fewer.
        bounds: smallest and largest pixel value; they may be infinite.

    Raises:
        ValueError: a number out of its range, an unknown norm or loss, bounds that are not in order, or an ``eps`` that
            exceeds the range of the bounds, as 8 instead of 8/255 does.
        TypeError: an argument of the wrong kind.

    Example:
        A linear objective is maximal at the corner of the cube that its weights point to.

        >>> attack = APGDAttack(eps=0.25, steps=1)
        >>> attack(lambda x: (x * torch.tensor([1.0, -1.0])).sum(1), torch.tensor([[0.5, 0.5]])).tolist()
        [[0.75, 0.25]]

    References:
        Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
        Attacks", ICML 2020.
    """

    eps: float = 8 / 255
    steps: int = 100
    norm: Norm = "linf"
    loss: APGDLoss = "ce"
    restarts: int = 1
    targets: int = 9
    bounds: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        check_search(_OWNER, self.eps, self.steps, self.norm, self.bounds)
        check_choice(_OWNER, "loss", self.loss, get_args(APGDLoss))
        check_int(_OWNER, "restarts", self.restarts, low=1, remedy="1 makes one run")
        check_int(_OWNER, "targets", self.targets, low=1, remedy="AutoAttack tries 9 wrong classes")

    def __call__(self, objective: Objective, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return adversarial versions of the images ``x``.

        Args:
            objective: a :class:`Classification` of the images, or a function of images like ``x`` that returns a value
                for each sample, ``[N]``, which is called ``restarts * (steps + 1)`` times.
            x: images ``[N, ...]``, float32 or float64, inside the bounds (a millionth beyond is let pass, and clamped).
            generator: source of the random starts, on the device of ``x``; by default the global one of that device.

        Returns:
            A detached tensor with the shape, dtype, device and memory format of ``x``.

        Raises:
            ValueError: ``x`` has no sample dimension; the objective returns another shape, or something that does not
                depend on its argument; the loss needs a classifier, or one with more classes. On the CPU also: ``x``
                leaves the bounds, or ``x``, the objective or its gradient is not finite (on an accelerator NaN spreads
                to the result instead).
            TypeError: an argument of the wrong kind, such as half precision or uint8 images.
            RuntimeError: a module of the classifier is in train mode.
        """
        check_call(_OWNER, objective, x, generator, self.bounds)
        if self.loss != "ce" and not isinstance(objective, Classification):
            remedy = "Pass Classification(model, y), or leave loss at 'ce', which maximises any function"
            raise ValueError(complaint(_OWNER, f"a Classification for {self.loss!r}", type_name(objective), remedy))
        with torch.inference_mode(False), torch.enable_grad():
            x = x.detach().clone()
            if x.numel() == 0:
                return x
            ball = BALLS[self.norm](x, self.eps, self.bounds)
            found = _Found(ball.project(ball.centre))
            for aim in self._aims(objective, found):
                for _ in range(self.restarts):
                    start = ball.random_point(generator)
                    left = found.open() if isinstance(aim, _Fooling) else torch.arange(len(x), device=x.device)
                    if len(left):
                        self._run(aim, x[left], start[left], left, found)
            return found.image.masked_fill_(rows(found.gain.isnan(), x), math.nan)

    def _aims(self, objective: Objective, found: _Found) -> list[_Aim]:
        """Return what to maximise, run after run, once the samples that are misclassified already are found."""
        if not isinstance(objective, Classification):
            return [partial(value_of, _OWNER, objective, scalar=False)]
        with torch.no_grad():
            logits = objective.logits(found.image)
        if logits.shape[1] < _CLASSES[self.loss]:
            expected = f"a model of at least {_CLASSES[self.loss]} classes for {self.loss!r}"
            raise ValueError(complaint(_OWNER, expected, f"{logits.shape[1]}", "Choose another loss"))
        check_finite(_OWNER, "the logits of the images", logits, remedy="Check the model on the unperturbed images")
        found.gain.masked_fill_(logits.argmax(1) != objective.y, math.inf)
        if self.loss != "dlr-targeted":
            return [_Fooling(objective, self.loss)]
        others = logits.scatter(1, objective.y[:, None], -math.inf).argsort(stable=True, dim=1, descending=True)
        targets = others[:, : min(self.targets, logits.shape[1] - 1)]
        return [_Fooling(objective, self.loss, target) for target in targets.unbind(1)]

    def _run(self, aim: _Aim, x: Tensor, start: Tensor, left: Tensor, found: _Found) -> None:
        """Climb from a start with the samples that are left, and add to what was found."""
        checkpoints = _checkpoints(self.steps)
        aim = aim[left] if isinstance(aim, _Fooling) else aim
        ball = BALLS[self.norm](x, self.eps, self.bounds)
        run = _Run(_look(aim, start), 2 * self.eps)
        for k in range(1, self.steps + 1):
            if isinstance(aim, _Fooling) and (readable(x) or k - 1 in checkpoints):
                keep = (run.best.gain < math.inf).nonzero()[:, 0]
                if len(keep) < len(left):
                    found.add(left, run.best)
                    left, x, aim = left[keep], x[keep], aim[keep]
                    if not len(left):
                        return
                    run.keep(keep)
                    ball = BALLS[self.norm](x, self.eps, self.bounds)
            point = run.next_point(ball, _MOMENTUM if k > 1 else 1.0)
            run.move(_look(aim, point, last=k == self.steps))
            if k in checkpoints:
                run.review()
        found.add(left, run.best)


def _checkpoints(steps: int) -> set[int]:
    """Return after which steps a run is reviewed: at 22%, 41%, 57%, ... of them, rounded up."""
    percent, gap, found = 22, 22, set()
    while percent < 100:
        found.add(-(-percent * steps // 100))
        gap = max(gap - 3, 6)
        percent += gap
    return found


def _look(aim: _Aim, point: Tensor, *, last: bool = False) -> Spot:
    """Evaluate a point; nobody leaves the last one, so any slope will do there."""
    if last:
        with torch.no_grad():
            return Spot(point, aim(point).to(widest(point)), point)
    gain, slope = ascent(_OWNER, aim, point)
    # A slope that is NaN leads nowhere, and a sample that stands still would pass for a robust one.
    lost = slope.reshape(len(slope), -1).isnan().any(1) & (gain < math.inf)
    return Spot(point, gain.masked_fill(lost, math.nan).to(widest(point)), slope)


class _Run:
    """The state of a run, sample by sample."""

    def __init__(self, start: Spot, size: float) -> None:
        self.here = self.best = start
        self.previous = start.point
        self.size: Any = rows(start.point.new_full((len(start.gain),), size), start.point)
        self.halved = torch.zeros_like(start.gain, dtype=torch.bool)
        self._mark()

    def _mark(self) -> None:
        """Begin to count anew."""
        self.steps, self.rises, self.marked = 0, torch.zeros_like(self.best.gain), self.best.gain

    def next_point(self, ball: Ball, share: float) -> Tensor:
        """Return where to go: a share of a step uphill, and for the rest on as before."""
        point = self.here.point
        uphill = ball.step(point, self.here.slope, self.size) - point
        return ball.project(point + share * uphill + (1 - share) * (point - self.previous))

    def move(self, to: Spot) -> None:
        """Go to another spot."""
        self.steps, self.rises = self.steps + 1, self.rises + (to.gain > self.here.gain)
        self.previous, self.here = self.here.point, to
        self.best = to.where(beats(to.gain, self.best.gain), self.best)

    def review(self) -> None:
        """Halve the step of samples that have made too little of it, and bring them back to their best spot."""
        stuck = ~self.halved & (self.best.gain == self.marked)
        self.halved = (self.rises < _RISES * self.steps) | stuck
        self.size = torch.where(rows(self.halved, self.size), self.size / 2, self.size)
        self.here = self.best.where(self.halved, self.here)
        self._mark()

    def keep(self, which: Tensor) -> None:
        """Go on with some of the samples."""
        self.here, self.best = self.here.keep(which), self.best.keep(which)
        self.previous, self.size, self.halved = self.previous[which], self.size[which], self.halved[which]
        self.rises, self.marked = self.rises[which], self.marked[which]


class _Found:
    """The strongest image of each sample so far, and its gain."""

    def __init__(self, image: Tensor) -> None:
        self.image = image
        self.gain = image.new_full((len(image),), -math.inf, dtype=widest(image))

    def open(self) -> Tensor:
        """Return the indices of the samples that are not fooled."""
        return (self.gain < math.inf).nonzero()[:, 0]

    def add(self, which: Tensor, best: Spot) -> None:
        """Take what a run has found for some of the samples, where it is stronger."""
        wins = beats(best.gain, self.gain[which])
        self.image[which] = torch.where(rows(wins, best.point), best.point, self.image[which])
        self.gain[which] = torch.where(wins, best.gain, self.gain[which])


@dataclass(frozen=True, eq=False)
class _Fooling:
    """What to maximise on a classifier: a loss, and infinity where the sample is fooled, which nothing surpasses."""

    objective: Classification
    loss: APGDLoss
    target: Tensor | None = None

    def __call__(self, image: Tensor) -> Tensor:
        logits, y = self.objective.logits(image), self.objective.y
        if self.target is not None:
            loss = targeted_dlr(logits, y, self.target)
        elif self.loss == "dlr":
            loss = dlr(logits, y)
        else:
            loss = F.cross_entropy(logits, y, reduction="none")
        check_finite(_OWNER, "the value of the objective", loss, remedy="Check the model on the unperturbed images")
        return loss.masked_fill(logits.argmax(1) != y, math.inf)

    def __getitem__(self, which: Tensor) -> _Fooling:
        return _Fooling(self.objective[which], self.loss, None if self.target is None else self.target[which])
