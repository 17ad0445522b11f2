"""Terms: parts that can be added to the loss of any strategy."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from .._checks import check_bool, check_temperature, complaint
from ..functional import cosine
from ..functional.nt_xent import unit_rows
from .blocks import check_teacher_output, frozen_teacher
from .learner import Part, Weight
from .step import Step


class Invariance(nn.Module):
    r"""Invariant regularisation of AIR: both views of an image have the same relation to the image itself.

    With the clean embeddings :math:`z_1, z_2` of the views, those of the untouched images :math:`z_0` through the clean
    branch, and :math:`p(a, b) = \mathrm{softmax}_i(\cos(a_i, b_i) / t)` over the images i of the batch,

    .. math::

        L_\mathrm{SIR} &= \mathrm{KL}\big(p(z_1, z_0) \,\|\, p(z_2, z_0)\big) \\
        L_\mathrm{AIR} &= \mathrm{KL}\big(q_1 \,\|\, q_2\big), \quad
            q_k \propto p(z^\mathrm{adv}_k, z_0)\, p(z^\mathrm{adv}_k, z_k)

    They are the parts ``"sir"`` and ``"air"``, for a strategy with parts ``"clean"`` and ``"adv"`` of two views that is
    called with images. The images pass through the network in its own mode, so running statistics see them too. Nothing
    is detached, and the attack does not include the parts. The paper's settings for CIFAR-10 are those of DynACL,
    without its momentum encoder. The released code uses :math:`\sum q_2 (\log q_2 - q_1)` instead of a divergence, with
    products that are not normalised; its total loss is not divided by two, so its weight of 0.5 is 0.25 here. Both
    parts cost 3 forward passes per image. Reference: Xu et al., NeurIPS 2023.

    Args:
        weight: weight of both parts, at least 0, or a function of the training step.
        temperature: the temperature t.
        released: whether to use the sums of the released code.

    Raises:
        ValueError: a number is out of range, or, in use, a strategy without these parts.
        TypeError: an argument has the wrong type.

    Example:
        >>> from advcontrast.strategies import Invariance
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 8), torch.nn.BatchNorm1d(8))
        >>> acl = ACLTrainer(convert_to_dual_bn(model), augment=lambda x: (x, x), terms=[Invariance()])
        >>> round(acl(torch.rand(4, 3, 4, 4)).terms["loss_sir"].item(), 4)  # equal views
        0.0
    """

    needs_images = True

    def __init__(self, weight: Weight = 0.25, *, temperature: float = 0.5, released: bool = False) -> None:
        check_temperature("Invariance", temperature, remedy="The paper uses 0.5")
        check_bool("Invariance", "released", released, remedy="True uses the sums of the released code")
        super().__init__()
        self.weight, self.temperature, self.released = weight, temperature, released

    def forward(self, step: Step) -> Iterator[Part]:
        """Yield the parts of a step."""
        if any(len(step.z.get(part, ())) != 2 for part in ("clean", "adv")):
            got = ", ".join(f"{len(z)} of {part!r}" for part, z in step.z.items()) or "none"
            expected = "a strategy with two views in its parts 'clean' and 'adv'"
            remedy = "Use it with ACL in mode 'DS', DynACL or a strategy of your own that stores both in step.z"
            raise ValueError(complaint("Invariance", expected, got, remedy))
        (z0,) = step.embed("clean", step.images)  # type: ignore[arg-type]
        p1, p2 = (self._relation(step, z, z0) for z in step.z["clean"])
        q1, q2 = (
            self._relation(step, adv, z0) + self._relation(step, adv, clean)
            for adv, clean in zip(step.z["adv"], step.z["clean"], strict=True)
        )
        if self.released:
            sir, air = ((b.exp() * (b - a.exp())).sum() for a, b in ((p1, p2), (q1, q2)))
        else:
            q1, q2 = q1.log_softmax(0), q2.log_softmax(0)
            sir, air = ((a.exp() * (a - b)).sum() for a, b in ((p1, p2), (q1, q2)))
        yield Part("sir", sir, self.weight)
        yield Part("air", air, self.weight)

    def extra_repr(self) -> str:
        """Show the settings."""
        return f"{self.weight}, temperature={self.temperature}, released={self.released}"

    def _relation(self, step: Step, a: Tensor, b: Tensor) -> Tensor:
        """Return the logarithms of the relation of the pairs of rows, over the images of all processes."""
        (similarity,) = step.gather((unit_rows(a) * unit_rows(b)).sum(1))
        return (similarity / self.temperature).log_softmax(0)


class Distillation(nn.Module):
    r"""Distillation from a frozen teacher: clean embeddings stay near those of the teacher.

    The part ``"teacher"`` is :math:`1 - \cos(z, T(x))`, averaged over images and views, for a strategy with a part
    ``"clean"``. The teacher returns embeddings of the same length as the model. Reference: Zhang et al., ECCV 2022,
    whose method is :class:`~advcontrast.strategies.DeACL`.

    Args:
        teacher: the network, in eval mode; it is frozen.
        weight: weight of the part, at least 0, or a function of the training step.

    Raises:
        ValueError: the teacher is in train mode, or, in use, its output has another size.
        TypeError: ``teacher`` is not an ``nn.Module``.
    """

    def __init__(self, teacher: nn.Module, weight: Weight = 1.0) -> None:
        super().__init__()
        self.teacher, self.weight = frozen_teacher("Distillation", teacher), weight

    def forward(self, step: Step) -> Iterator[Part]:
        """Yield the part of a step."""
        clean = step.z.get("clean")
        if clean is None:
            got, remedy = ", ".join(step.z) or "none", "Use it with a strategy that has a clean stream"
            raise ValueError(complaint("Distillation", "a strategy with the part 'clean'", got, remedy))
        distances = []
        for z, x in zip(clean, step.views, strict=False):
            target = self.teacher(x)
            check_teacher_output("Distillation", z, target)
            distances.append(1 - cosine(z, target))
        yield Part("teacher", torch.stack(distances).mean(), self.weight)

    def extra_repr(self) -> str:
        """Show the weight."""
        return f"weight={self.weight}"
