"""Attacks for training with a state: perturbations of the last batch, or a count of calls."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from .._checks import check_int, check_real, check_state, check_type, complaint
from .._types import Norm, Objective
from .balls import BALLS
from .pgd import PGDAttack, check_call, check_search, explains_calls


class _PerturbationState(nn.Module):
    """Perturbations by position in the batch, as extra state: DDP would broadcast a buffer of the first process."""

    def __init__(self) -> None:
        super().__init__()
        self._perturbations: Tensor | None = None

    def recall(self, x: Tensor) -> Tensor | None:
        """Return a perturbation for each image, or ``None`` if there are too few or of another shape or dtype."""
        kept = self._kept_like(x)
        return None if kept is None or len(kept) < len(x) else kept[: len(x)]

    def keep(self, perturbations: Tensor) -> None:
        """Replace the perturbations of the last batch; those beyond a shorter batch stay."""
        kept = self._kept_like(perturbations)
        if kept is not None and len(kept) > len(perturbations):
            perturbations = torch.cat([perturbations, kept[len(perturbations) :]])
        self._perturbations = perturbations.detach()

    def _kept_like(self, x: Tensor) -> Tensor | None:
        kept = self._perturbations
        fits = kept is not None and kept.shape[1:] == x.shape[1:] and kept.dtype == x.dtype
        return kept.to(x.device) if kept is not None and fits else None

    def get_extra_state(self) -> dict[str, Tensor | None]:
        return {"perturbations": self._perturbations}

    def set_extra_state(self, state: dict[str, Tensor | None]) -> None:
        self._perturbations = state["perturbations"]


@explains_calls
class WarmStart(_PerturbationState):
    """An attack that starts from the perturbations of the last batch, so that fewer steps are enough.

    Image i of a batch starts from the perturbation of image i of the batch before, projected onto its own ball: the
    part that transfers between images is reused. The first batch, and any larger than the one before, has the usual
    start of the attack. The state dict has the perturbations, for resumed runs. Under DDP each process keeps its own;
    after a resume, all start with those of the first. Reference: Wong et al., ICLR 2020, "previous" initialisation.

    Args:
        attack: the :class:`~advcontrast.PGDAttack`, normally with one or two steps; another is a ``TypeError``.

    Example:
        Two steps of half the radius reach the corner in two calls of one step.

        >>> attack = WarmStart(PGDAttack(eps=0.25, step_size=0.125, steps=1, random_start=False))
        >>> x = torch.tensor([[0.5]])
        >>> [round(attack(lambda x: x.sum(1), x).item(), 4) for _ in range(3)]
        [0.625, 0.75, 0.75]
    """

    def __init__(self, attack: PGDAttack) -> None:
        check_type("WarmStart", "attack", attack, PGDAttack, remedy="Pass PGDAttack(steps=1, ...)")
        super().__init__()
        self.attack = attack

    def forward(self, objective: Objective, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return adversarial versions of ``x``; arguments and errors are those of :class:`~advcontrast.PGDAttack`."""
        perturbation = self.recall(x) if isinstance(x, Tensor) and x.dim() else None
        start = None if perturbation is None else x.detach() + perturbation
        adv = self.attack(objective, x, generator=generator, start=start)
        self.keep(adv - x.detach())
        return adv

    def extra_repr(self) -> str:
        """Show the attack."""
        return repr(self.attack)


@explains_calls
class FreeAttack(_PerturbationState):
    r"""An attack that uses the gradients of the training step itself.

    A call adds the stored perturbations to the images and computes no gradient. When the caller differentiates the loss
    of the perturbed images, their gradient is computed too, and the perturbations take one step:

    .. math:: \delta \leftarrow \Pi\big(\delta + \mathrm{step\_size} \cdot d\big)

    with the direction d, the projection, the settings and the errors of :class:`~advcontrast.PGDAttack`. They are kept
    for the image at the same position of the next batch. The authors train on each batch several times in a row, so
    that its perturbations can grow; :class:`advcontrast.augment.Replay` does this for contrastive learning.

    The step is taken by ``loss.backward()``, not by ``torch.autograd.grad`` for the weights alone. Gradients are those
    of the network in train mode. State dict and DDP are as for :class:`WarmStart`. Use it for training only: it is weak
    against a fixed network. Reference: Shafahi et al., NeurIPS 2019.

    Args:
        eps: radius of the ball, at least 0.
        step_size: length of a step, positive; the authors' is the radius.
        norm: ``"linf"`` or ``"l2"``.
        bounds: smallest and largest pixel value.

    Example:
        >>> attack, x = FreeAttack(eps=0.25, step_size=0.25), torch.tensor([[0.5]])
        >>> attack(torch.sum, x).sum().backward()
        >>> attack(torch.sum, x).item() >= 0.5
        True
    """

    def __init__(
        self,
        *,
        eps: float = 8 / 255,
        step_size: float = 8 / 255,
        norm: Norm = "linf",
        bounds: tuple[float, float] = (0.0, 1.0),
    ) -> None:
        check_search("FreeAttack", eps, 0, norm, bounds)
        check_real("FreeAttack", "step_size", step_size, low=0, above=True, remedy="The radius itself is usual")
        super().__init__()
        self.eps, self.step_size, self.norm, self.bounds = eps, step_size, norm, bounds

    def forward(self, objective: Objective, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return perturbed images, a leaf like ``x``; the perturbations take a step when their loss is differentiated.

        Args:
            objective: not called, as the loss of the training step is used instead.
            x: images as for :class:`~advcontrast.PGDAttack`, with the same errors.
            generator: source of the first perturbations, drawn from the ball; by default the global one of the device.
        """
        check_call("FreeAttack", objective, x, generator, self.bounds)
        with torch.inference_mode(False):
            x = x.detach().clone()
            ball, perturbation = BALLS[self.norm](x, self.eps, self.bounds), self.recall(x)
            point = ball.random_point(generator) if perturbation is None else ball.project(x + perturbation)
            lengths, image = ball.lengths(self.step_size), point.clone().requires_grad_()
        self.keep(point - x)

        def step(gradient: Tensor) -> None:
            with torch.no_grad():
                # With a gradient scaler the gradients of some steps overflow.
                self.keep(ball.step(point, gradient.nan_to_num(0.0, 0.0, 0.0), lengths) - x)

        image.register_hook(step)  # type: ignore[no-untyped-call]
        return image

    def extra_repr(self) -> str:
        """Show the settings as they were passed."""
        return f"eps={self.eps}, step_size={self.step_size}, norm={self.norm!r}, bounds={self.bounds}"


@explains_calls
class ProgressiveAttack(nn.Module):
    """Run each of several attacks for a number of calls, and the last one from then on.

    One step is enough against a network early in training; more steps pay off later. Every call is counted; the count
    is in the state dict, so that a resumed run continues with the right attack.

    Args:
        stages: pairs (calls, attack): number of calls, at least 1, for which to run an attack; ``None`` for the last.

    Raises:
        ValueError: there are no stages, or a number of calls is missing or out of range.
        TypeError: an argument has the wrong type.

    Example:
        >>> few, more = (PGDAttack(eps=1, step_size=0.25, steps=steps, random_start=False) for steps in (1, 2))
        >>> attack, x = ProgressiveAttack([(2, few), (None, more)]), torch.zeros(1, 1)
        >>> [round(attack(lambda x: x.sum(1), x).item(), 4) for _ in range(4)]
        [0.25, 0.25, 0.5, 0.5]
    """

    def __init__(self, stages: Sequence[tuple[int | None, Callable[..., Tensor]]]) -> None:
        remedy = "Pass pairs such as [(1000, PGDAttack(steps=1)), (None, PGDAttack(steps=5))]"
        owner = "ProgressiveAttack"
        check_type(owner, "stages", stages, (list, tuple), remedy=remedy)
        if not stages:
            raise ValueError(complaint(owner, "at least one stage", "none", remedy))
        for stage in stages:
            if not isinstance(stage, tuple) or len(stage) != 2 or not callable(stage[1]):
                raise TypeError(complaint(owner, "each stage to be a pair (calls, attack)", repr(stage), remedy))
        for calls, _ in stages[:-1]:
            check_int(owner, "calls of every stage but the last", calls, low=1, remedy=remedy)
        if stages[-1][0] is not None:
            raise ValueError(complaint(owner, "None calls of the last stage", repr(stages[-1][0]), remedy))
        super().__init__()
        self.stages: tuple[tuple[int | None, Callable[..., Tensor]], ...] = tuple(stages)
        self._parts = nn.ModuleList(attack for _, attack in stages if isinstance(attack, nn.Module))
        self._ends = list(accumulate(calls for calls, _ in stages if calls is not None))
        self._calls = 0

    @property
    def current(self) -> Callable[..., Tensor]:
        """The attack of the next call."""
        _, attack = self.stages[bisect_right(self._ends, self._calls)]
        return attack

    def forward(self, objective: Objective, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Run the current attack on the images ``x``; arguments, result and errors are its own."""
        adv = self.current(objective, x, **({} if generator is None else {"generator": generator}))
        self._calls += 1
        return adv

    def get_extra_state(self) -> dict[str, int]:
        """Return the number of calls for the state dict."""
        return {"calls": self._calls}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Load the number of calls from a state dict."""
        check_state("ProgressiveAttack", state, "calls")
        remedy = "Pass what get_extra_state returned"
        check_int("ProgressiveAttack", "calls of the state", state["calls"], low=0, remedy=remedy)
        self._calls = state["calls"]

    def extra_repr(self) -> str:
        """Show the stages as they were passed."""
        return repr(list(self.stages))
