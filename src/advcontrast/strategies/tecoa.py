"""TeCoA: text-guided contrastive adversarial training (Mao et al., ICLR 2023)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._checks import check_classes, check_finite, check_real, check_shape, check_tensor, complaint
from ..functional.nt_xent import unit_rows
from .fare import CLIP_ATTACK
from .learner import ContrastiveLearner, Part
from .step import Step


class TeCoA(ContrastiveLearner):
    r"""Fine-tune an encoder so that attacked images match the text embedding of their class.

    With the encoder f, prototypes :math:`t_c` of the classes c, an image x with label y and the attacked image x',

    .. math::

        L &= \mathrm{CE}\big(s \cos(f(x'), t_c)_c,\, y\big) \\
        x' &= \arg\max_{x'} L

    averaged over the batch. The attack runs through f in eval mode. A dual network, such as
    ``convert_to_dual_bn(vit, norms=nn.LayerNorm)``, uses only its adversarial branch. The learner is called with
    images and labels.

    The settings of Schlarmann et al. for CLIP on ImageNet, whose code also trains TeCoA: PGD with 10 steps
    of 1/255 in 2/255 or 4/255, batches of 128, AdamW with rate 1e-5 and weight decay 1e-4, 20,000 steps with 1,400 of
    warm-up and a cosine. A step costs 23 forward passes per image. Reference: Mao et al., ICLR 2023.

    Args:
        model: f, from images ``[N, C, H, W]`` in [0, 1] to embeddings ``[N, D]``; it contains the normalisation.
        prototypes: embeddings ``[C, D]`` of the classes, for example of "a photo of a ..." by CLIP's text encoder. They
            are scaled to length one, and are not trained.
        scale: the factor s, positive: the inverse temperature, 100 in CLIP.
        attack: ``attack(objective, x)`` returns perturbed images, by default that of FARE with 4/255.
        augment: ``augment(images)`` returns one view; without it the learner is called with views.
        terms: as for :class:`~advcontrast.strategies.ContrastiveLearner`.

    Raises:
        ValueError: ``scale`` <= 0, or prototypes that are not finite ``[C, D]`` with C at least 2.
        TypeError: an argument has the wrong type.

    Example:
        An image between two prototypes has the loss log 2.

        >>> from advcontrast.strategies import TeCoA
        >>> learner = TeCoA(torch.nn.Flatten(), torch.eye(2), attack=lambda objective, x: x)
        >>> round(learner(torch.ones(1, 2, 1, 1), torch.tensor([0])).loss.item(), 4) == round(math.log(2), 4)
        True
    """

    views, normalised, labelled = 1, False, True
    branches = ("adv",)
    couples_samples = False
    prototypes: Tensor

    def __init__(
        self,
        model: nn.Module,
        prototypes: Tensor,
        *,
        scale: float = 100.0,
        attack: Callable[..., Tensor] | None = None,
        augment: Callable[..., Any] | None = None,
        terms: Iterable[nn.Module] = (),
    ) -> None:
        check_real("TeCoA", "scale", scale, low=0, above=True, remedy="CLIP has 100")
        check_tensor("TeCoA", "prototypes", prototypes, remedy="Pass the embeddings of the class names")
        fits = prototypes.dim() == 2 and len(prototypes) > 1 and prototypes.shape[1] > 0
        expected, remedy = "[C, D] with C >= 2 and D >= 1", "Pass a row for each class"
        check_shape("TeCoA", "prototypes", prototypes, expected, fits, remedy=remedy)
        check_finite("TeCoA", "prototypes", prototypes, remedy="Check the text encoder")
        super().__init__(model, attack=CLIP_ATTACK if attack is None else attack, augment=augment, terms=terms)
        self.register_buffer("prototypes", unit_rows(prototypes.detach()))
        self.scale = scale

    def parts(self, step: Step) -> Iterator[Part]:
        """Yield the cross-entropy of attacked images."""
        (x,) = step.views
        labels: Any = step.targets
        rows = x.new_empty(len(x), len(self.prototypes))  # of the shape of the logits
        check_classes("TeCoA", "labels", labels, rows, remedy="Pass the row of the prototype of each image")

        def errors(z: Tensor) -> Tensor:
            return F.cross_entropy(self._logits(z), labels, reduction="none")

        (x_adv,) = step.perturb(errors, "adv", x)
        (z_adv,) = step.z["adv"] = step.embed("adv", x_adv)
        yield Part("adv", errors(z_adv).mean())

    def _logits(self, z: Tensor) -> Tensor:
        """Return the similarity of each embedding and each prototype, after a check that they fit."""
        if z.dim() != 2 or z.shape[1] != self.prototypes.shape[1]:
            expected = f"model to return embeddings of the length {self.prototypes.shape[1]} of prototypes"
            raise ValueError(complaint("TeCoA", expected, f"shape {list(z.shape)}", "Take both from one CLIP"))
        with torch.autocast(z.device.type, enabled=False):  # half precision would round logits to halves
            z = unit_rows(z)
            return self.scale * z @ self.prototypes.to(z.dtype).T
