"""Attacks that go on where the last batch left off."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._checks import check_real, complaint, type_name
from .._types import Norm, Objective
from .ascent import check_call, check_search, explains_calls
from .balls import BALLS
from .pgd import PGDAttack


class _Carried(nn.Module):
    """Perturbations by their place in the batch, as part of the state dict.

    They are no buffer, since DDP would overwrite those of each process by those of the first.
    """

    def __init__(self) -> None:
        super().__init__()
        self._perturbations: Tensor | None = None

    def recall(self, x: Tensor) -> Tensor | None:
        """Return a perturbation for each image, or ``None`` where there are too few or of another kind."""
        kept = self._perturbations
        if kept is None or len(kept) < len(x) or kept.shape[1:] != x.shape[1:] or kept.dtype != x.dtype:
            return None
        return kept[: len(x)].to(x.device)

    def keep(self, perturbations: Tensor) -> None:
        """Take these in the place of those of the last batch; a shorter batch leaves the rest of them alone."""
        kept, n = self._perturbations, len(perturbations)
        fits = kept is not None and kept.shape[1:] == perturbations.shape[1:] and kept.dtype == perturbations.dtype
        if kept is not None and fits and len(kept) > n:
            perturbations = torch.cat([perturbations, kept[n:].to(perturbations.device)])
        self._perturbations = perturbations.detach()

    def get_extra_state(self) -> dict[str, Tensor | None]:
        """Return the perturbations for the state dict."""
        return {"perturbations": self._perturbations}

    def set_extra_state(self, state: dict[str, Tensor | None]) -> None:
        """Take the perturbations of a state dict."""
        self._perturbations = state["perturbations"]


@explains_calls
class WarmStart(_Carried):
    """An attack that starts from the perturbations it found for the last batch, so that fewer steps do.

    Image i of a batch starts with what image i of the batch before ended with, moved into its own ball. The first batch
    starts as the attack does alone, and so does one that is larger than the one before. The perturbations belong to
    other images: what carries over is what hurts this network in general.

    The perturbations are kept in the state dict, so that a resumed training goes on with them. Under DDP every process
    keeps its own; after a resume all start with those of the first.

    Args:
        attack: the attack, normally with one or two steps.

    Raises:
        TypeError: ``attack`` is no :class:`~advcontrast.PGDAttack`.

    Example:
        Two steps of half the radius reach the corner in two calls of one step.

        >>> from advcontrast.attacks import WarmStart
        >>> attack = WarmStart(PGDAttack(eps=0.25, step_size=0.125, steps=1, random_start=False))
        >>> x = torch.tensor([[0.5]])
        >>> [round(attack(lambda x: x.sum(1), x).item(), 4) for _ in range(3)]
        [0.625, 0.75, 0.75]

    References:
        Wong et al., "Fast is better than free: Revisiting adversarial training", ICLR 2020, "previous" initialisation.
    """

    def __init__(self, attack: PGDAttack) -> None:
        if not isinstance(attack, PGDAttack):
            remedy = "Pass PGDAttack(steps=1, ...)"
            raise TypeError(complaint("WarmStart", "attack to be a PGDAttack", type_name(attack), remedy))
        super().__init__()
        self.attack = attack

    def forward(self, objective: Objective, x: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Return adversarial versions of ``x``; arguments and errors are those of :class:`~advcontrast.PGDAttack`."""
        carried = self.recall(x) if isinstance(x, Tensor) and x.dim() else None
        start = None if carried is None else x.detach() + carried
        adv = self.attack(objective, x, generator=generator, start=start)
        self.keep(adv - x.detach())
        return adv

    def extra_repr(self) -> str:
        """Show the attack."""
        return repr(self.attack)


@explains_calls
class FreeAttack(_Carried):
    r"""An attack whose gradients are those of the training step itself.

    A call perturbs the images by what it has kept and takes no gradient. When the caller differentiates the loss of the
    perturbed images for its weights, the gradient of the images comes along, and the perturbations take one step:

    .. math:: \delta \leftarrow \Pi\big(\delta + \mathrm{step\_size} \cdot d\big)

    with the direction d and the projection of :class:`~advcontrast.PGDAttack`. They stay for the image at the same
    place of the next batch. The authors train on each batch several times in a row, so that its perturbations can grow:
    :class:`advcontrast.augment.Replay` does that for contrastive learning.

    The step is taken by ``loss.backward()``; ``torch.autograd.grad`` for the weights alone does not come by. Gradients
    are those of the network as it trains, in train mode. A call that nobody differentiates takes no step. State dict
    and DDP are as for :class:`WarmStart`. An attack for training: against a fixed network it finds little.

    Args:
        eps: radius of the ball, at least 0, in the units of the images: 8/255 for images in [0, 1].
        step_size: length of a step, positive, in the same units; the authors' is the radius.
        norm: ``"linf"`` or ``"l2"``.
        bounds: smallest and largest pixel value.

    Raises:
        ValueError: a number out of its range, or bounds that are not in order.
        TypeError: an argument of the wrong kind.

    Example:
        >>> from advcontrast.attacks import FreeAttack
        >>> attack, x = FreeAttack(eps=0.25, step_size=0.25), torch.tensor([[0.5]])
        >>> attack(torch.sum, x).sum().backward()
        >>> attack(torch.sum, x).item() >= 0.5
        True

    References:
        Shafahi et al., "Adversarial Training for Free!", NeurIPS 2019.
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

    def forward(
        self,
        objective: Objective,
        x: Tensor,
        *,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return perturbed images that take a step when a loss of theirs is differentiated.

        Args:
            objective: not called, as the loss of the training step takes its place.
            x: images ``[N, ...]``, float32 or float64, inside the bounds.
            generator: source of the first perturbations, drawn from the ball; by default the global one of the device.

        Returns:
            A leaf that requires a gradient, like ``x``.

        Raises:
            ValueError: ``x`` has no sample dimension or, on the CPU, leaves the bounds or is not finite.
            TypeError: an argument of the wrong kind.
        """
        check_call("FreeAttack", objective, x, generator, self.bounds)
        with torch.inference_mode(False):
            x = x.detach().clone()
            ball, carried = BALLS[self.norm](x, self.eps, self.bounds), self.recall(x)
            point = ball.random_point(generator) if carried is None else ball.project(x + carried)
            lengths = ball.lengths(self.step_size)
            image = point.clone().requires_grad_()
        self.keep(point - x)

        def climb(gradient: Tensor) -> None:
            with torch.no_grad():
                # A gradient scaler lets some steps overflow: their gradient is no direction.
                self.keep(ball.step(point, gradient.nan_to_num(0.0, 0.0, 0.0), lengths) - x)

        image.register_hook(climb)  # type: ignore[no-untyped-call]
        return image

    def extra_repr(self) -> str:
        """Show the settings as they were passed."""
        return f"eps={self.eps}, step_size={self.step_size}, norm={self.norm!r}, bounds={self.bounds}"
