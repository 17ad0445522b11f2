"""RCS: robustness-aware coreset selection (Xu et al., NeurIPS 2023)."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import distributed
from .._checks import (
    check_bool,
    check_callable,
    check_int,
    check_real,
    check_state,
    check_tensor,
    check_type,
    complaint,
    type_name,
)
from .._modes import eval_mode
from ..attacks import PGDAttack, under_attack
from ..functional.image import as_floats, check_images
from .learner import ContrastiveLearner
from .step import Step

_RATE = 0.01
_EVERY_NTH = 100


class RobustCoreset(nn.Module):
    r"""Selection of the images that make representations most robust when trained on, for ``fit(select_data=)``.

    Every hundredth image is set aside. On these images U, the representational divergence with clean embeddings z and
    embeddings z' of attacked images is

    .. math::

        R &= \frac{1}{N D} \sum_{i,d} q'_{id} \log \frac{q'_{id}}{q_{id}} \\
        q_{id} &= \frac{z_{id} - \min_d z_{id}}{\max_d z_{id} - \min_d z_{id}} + 10^{-8}

    where the attack maximises R. The other images are divided at random into batches b with losses :math:`L_b` of the
    learner. With the gradients for the weights :math:`\theta` of a head, the batch with the largest
    :math:`\nabla L_b \cdot \nabla R(\theta)` is selected, which lowers R most, then
    :math:`\theta \leftarrow \theta - 0.01\, \nabla L_b`, and so on until the coreset is full; then :math:`\theta` is
    restored. All of this runs in eval mode, through the clean branch and the one that is exported; the learner does not
    change.

    The paper selects a fraction of 0.05 to 0.2 every 20 epochs after 100 epochs on all images. The released code takes
    each step of :math:`\theta` twice, and uses gradients of the column means of the weights of the whole projection
    head, and losses without a schedule. A selection costs the gradient of one step for each image, and an attack of 3
    steps on U for each selected batch. Several processes share each batch, average their gradients and select the same
    images. Reference: Xu et al., NeurIPS 2023.

    The selection becomes a part of the learner, ``learner.coreset``, so that the state dict has the selected images,
    and a resumed run continues with them.

    Args:
        learner: a strategy that is called with images.
        images: images that ``fit`` trains on, ``[N, C, H, W]``, uint8 or floats in [0, 1].
        fraction: fraction of the images to select, in (0, 1].
        every: number of epochs between selections, at least 1.
        warmup: number of epochs on all images before the first one, at least 0; the paper's 100.
        batch_size: size of a batch over all processes, at least 1, or 2 if the learner compares images with each other;
            limited to the size of the coreset.
        head: module of ``learner.model`` whose weights count, by default its last linear layer.
        attack: attack on the divergence, by default ``PGDAttack(steps=3, step_size=10 / 255 / 3)``.
        released: whether to take each step of the head twice.

    Raises:
        ValueError: a number is out of range, a learner that needs targets or several views, or a model without linear
            layers where ``head`` is ``None``.
        TypeError: an argument has the wrong type.

    Example:
        A third of 10 images: image 0 is set aside, and one batch of 3 is selected.

        >>> from advcontrast.strategies import RobustCoreset
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 8))
        >>> acl = ACLTrainer(model, mode="S2S", augment=lambda x: (x, x.flip(3)))
        >>> select = RobustCoreset(acl, torch.rand(10, 3, 4, 4), fraction=1 / 3, every=5, warmup=1)
        >>> select(1, acl) is None, len(select(2, acl))
        (True, 3)
    """

    def __init__(
        self,
        learner: ContrastiveLearner,
        images: Tensor,
        *,
        fraction: float,
        every: int,
        warmup: int = 0,
        batch_size: int = 512,
        head: nn.Module | None = None,
        attack: Callable[..., Tensor] | None = None,
        released: bool = False,
    ) -> None:
        owner = "RobustCoreset"
        check_type(owner, "learner", learner, ContrastiveLearner, remedy="Pass a strategy such as ACLTrainer(model)")
        if learner.labelled or (learner.augment is None and learner.views != 1):
            got = "one with targets" if learner.labelled else "one without augment"
            raise ValueError(complaint(owner, "a learner that is called with images", got, "Build it with augment="))
        check_images(owner, images)
        check_real(owner, "fraction", fraction, low=0, high=1, above=True, remedy="The paper uses 0.2")
        check_int(owner, "every", every, low=1, remedy="The paper uses 20")
        check_int(owner, "warmup", warmup, low=0, remedy="The paper uses 100")
        check_int(owner, "batch_size", batch_size, low=1 + learner.couples_samples, remedy="The paper uses 512")
        check_bool(owner, "released", released, remedy="True takes each step twice")
        least, others = max(2, distributed.world_size()), len(images) - len(images[::_EVERY_NTH])
        if int(fraction * others) < least:
            expected, remedy = f"a coreset of at least {least} images", "Take a larger fraction, or more images"
            raise ValueError(complaint(owner, expected, f"{fraction} of {others}", remedy))
        linear = [module for module in learner.model.modules() if isinstance(module, nn.Linear)]
        if head is None and not linear:
            remedy = "Pass the module whose weights count as head="
            raise ValueError(complaint(owner, "a model with linear layers", "none", remedy))
        heads = [module for module in learner.model.modules() if [*module.parameters()]]
        if head is not None and all(head is not module for module in heads):
            expected, remedy = "head to be a module of learner.model with weights", "Pass the module itself"
            raise ValueError(complaint(owner, expected, type_name(head), remedy))
        if attack is not None:
            check_callable(owner, "attack", attack, remedy="Pass PGDAttack(steps=3)")
        super().__init__()
        self.fraction, self.every, self.warmup = fraction, every, warmup
        self.batch_size, self.released = batch_size, released
        self.attack = PGDAttack(steps=3, step_size=10 / 255 / 3) if attack is None else attack
        self._images = images
        self._weights = [*(linear[-1] if head is None else head).parameters()]
        self._selected: Tensor | None = None
        learner.coreset = self

    def forward(self, epoch: int, learner: ContrastiveLearner) -> Tensor | None:
        """Return the indices of the images of an epoch, int64 in ascending order, or ``None`` for all.

        Args:
            epoch: number of the epoch, from 1.
            learner: the learner of the constructor, with the weights at the end of the last epoch.

        Raises:
            ValueError: epoch < 1, or a learner other than that of the constructor.
            TypeError: epoch is not an int.
        """
        check_int("RobustCoreset", "epoch", epoch, low=1, remedy="Epochs count from 1")
        coreset: nn.Module | None = getattr(learner, "coreset", None)
        if coreset is not self:
            expected, remedy = "learner to be that of the constructor", "Build a RobustCoreset for each learner"
            raise ValueError(complaint("RobustCoreset", expected, f"another {type_name(learner)}", remedy))
        if epoch <= self.warmup:
            return None
        if self._selected is None or (epoch - 1 - self.warmup) % self.every == 0:
            before = copy.deepcopy(learner.state_dict())
            try:
                with eval_mode(learner), torch.enable_grad():
                    selected = self._select(learner, torch.Generator().manual_seed(epoch))
            finally:
                learner.load_state_dict(before)
            self._selected = selected
        return self._selected

    def _select(self, learner: ContrastiveLearner, source: torch.Generator) -> Tensor:
        others = torch.arange(len(self._images))
        others = others[others % _EVERY_NTH != 0]
        budget = int(self.fraction * len(others))
        rank, processes = distributed.rank(), distributed.world_size()
        size = min(self.batch_size, budget) // processes * processes
        order = others[torch.randperm(len(others), generator=source)]
        batches = order[: len(order) // size * size].view(-1, size)
        shares = batches.chunk(processes, 1)[rank]
        slopes = torch.stack([self._slope(learner(self._on_device(share)).loss) for share in shares])
        reference = as_floats(self._on_device(torch.arange(0, len(self._images), _EVERY_NTH)))
        rate = _RATE * (2 if self.released else 1)
        chosen: list[int] = []
        for _ in range(budget // size):
            gains = slopes @ self._slope(self._divergence(learner, reference))
            gains[chosen] = -torch.inf
            chosen.append(int(gains.argmax()))
            step = torch.split(rate * slopes[chosen[-1]], [weight.numel() for weight in self._weights])
            with torch.no_grad():
                for weight, part in zip(self._weights, step, strict=True):
                    weight.sub_(part.view_as(weight))
        return batches[chosen].flatten().sort().values

    def _divergence(self, learner: ContrastiveLearner, x: Tensor) -> Tensor:
        """Return the representational divergence of images."""
        adv = learner._branch_to_ship()
        clean = "clean" if "clean" in learner.branches else adv
        step = Step(learner, (x,), source={})
        (z,) = step.embed(clean, x)
        fixed = z.detach()
        with under_attack(learner.model):
            x_adv = self.attack(lambda x: representational_divergence(fixed, *step.embed(adv, x)), x)
        return representational_divergence(z, *step.embed(adv, x_adv))

    def _slope(self, loss: Tensor) -> Tensor:
        gradients = torch.autograd.grad(loss, self._weights)
        return distributed.all_gather(torch.cat([gradient.flatten() for gradient in gradients])).mean(0)

    def _on_device(self, indices: Tensor) -> Tensor:
        return self._images[indices.to(self._images.device)].to(self._weights[0].device)

    def get_extra_state(self) -> dict[str, Tensor | None]:
        """Return the selected images for the state dict."""
        return {"selected": self._selected}

    def set_extra_state(self, state: dict[str, Tensor | None]) -> None:
        """Load the selected images from a state dict."""
        check_state("RobustCoreset", state, "selected")
        if state["selected"] is not None:
            remedy = "Pass what get_extra_state returned"
            check_tensor("RobustCoreset", "selected of the state", state["selected"], (torch.int64,), remedy=remedy)
        self._selected = state["selected"]

    def extra_repr(self) -> str:
        """Show the settings."""
        names = "fraction", "every", "warmup", "batch_size", "attack", "released"
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)


def representational_divergence(z: Tensor, z_adv: Tensor) -> Tensor:
    """Return the mean over all entries of q' log(q' / q), for rows that are scaled to [0, 1]."""
    with torch.autocast(z.device.type, enabled=False):
        q, q_adv = (_scaled(each if each.dtype == torch.float64 else each.float()) + 1e-8 for each in (z, z_adv))
        return (q_adv * (q_adv.log() - q.log())).mean()


def _scaled(z: Tensor) -> Tensor:
    low, high = z.amin(1, keepdim=True), z.amax(1, keepdim=True)
    return (z - low) / (high - low).clamp(min=torch.finfo(z.dtype).tiny)
