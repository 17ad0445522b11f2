"""DAQ-SDP: distillation of a robust encoder with weak and strong augmentations (NeurIPS 2024)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from .. import distributed
from .._checks import check_callable, check_module, check_real, check_shape, check_tensor
from .._modes import buffers_kept
from ..functional import cosine
from .blocks import away_from, frozen_teacher
from .learner import ContrastiveLearner, Part, Weight
from .step import Step


class DAQSDP(ContrastiveLearner):
    r"""Distil a standard self-supervised teacher into a robust student, with branches for weak and for strong views.

    The loss is the mean of that of :class:`~advcontrast.strategies.DeACL` over two streams, one for a weak and one for
    a strong view x of each image,

    .. math::

        L &= \frac12 \sum_{x} -\cos\big(S(x), T(x)\big) - w \cos\big(S(x'), S(x)\big) \\
        x' &= \arg\max_{x'} -\cos\big(S(x'), T(x)\big)

    averaged over the batch. The student has four branches, ``"clean"`` and ``"adv"`` for the weak views and
    ``"strong_clean"`` and ``"strong_adv"`` for the strong ones. Each attack runs through the adversarial branch of its
    stream in eval mode. In training each of the four batches has its own forward pass; gradients flow
    through both arguments of the second term. ``"adv"`` is the branch to export. The student usually starts as a
    copy of the teacher, ``convert_to_dual_bn(copy.deepcopy(teacher), branches=DAQSDP.branches)``.

    With ``gamma`` > 0 the four batches of a step in train mode pass through weights that are perturbed as by
    :func:`~advcontrast.strategies.perturbed_weights`, for the loss of the weak stream over all processes. Attacks run
    through the original weights, which receive the gradients of the perturbed ones.

    The paper's settings for CIFAR-10: pad-and-crop and flip for weak views, TrivialAugment before them for strong ones;
    PGD with 5 steps of 2/255 in 8/255; batches of 256, SGD with rate 0.5, momentum 0.9 and weight decay 5e-4, 100
    epochs with 10 epochs of warm-up and a cosine; ``gamma`` = 0.002 from epoch 60 on, ``lambda step: 0.002 * (step >=
    0.6 * steps)``; ResNet-34 and larger, as smaller networks gain little. The released code has a first convolution
    with padding 2. A step costs 34 forward passes per image, with perturbed weights 40. Reference: DAQ-SDP, NeurIPS
    2024.

    Args:
        model: the student, from images ``[N, C, H, W]`` to embeddings ``[N, D]``.
        teacher: a network with outputs of the same size, in eval mode; it is frozen.
        robust: the weight w, at least 0, or a function of the training step.
        gamma: size of the perturbation of the weights, at least 0, or a function of the training step.
        attack: ``attack(objective, x)`` returns perturbed images, by default ``PGDAttack()``.
        augment: ``augment(images)`` returns a weak and a strong view, such as ``MultiView(CropFlip(), strong)``;
            without it the learner is called with these.
        terms: as for :class:`~advcontrast.strategies.ContrastiveLearner`.

    Raises:
        ValueError: as for :class:`~advcontrast.strategies.DeACL`, or a dual norm that lacks one of the branches.
        TypeError: an argument has the wrong type.

    Example:
        A student that equals the teacher, without an attack, is at the minimum -1 - w.

        >>> from advcontrast.strategies import DAQSDP
        >>> learner = DAQSDP(torch.nn.Flatten(), torch.nn.Flatten().eval(), attack=lambda objective, x: x)
        >>> weak, strong = torch.rand(2, 4, 3, 4, 4)
        >>> round(learner(weak, strong).loss.item(), 4)
        -3.0
    """

    normalised = False
    branches = ("clean", "adv", "strong_clean", "strong_adv")
    couples_samples = False

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        *,
        robust: Weight = 2.0,
        gamma: Weight = 0.0,
        attack: Callable[..., Tensor] | None = None,
        augment: Callable[..., Any] | None = None,
        terms: Iterable[nn.Module] = (),
    ) -> None:
        super().__init__(model, attack=attack, augment=augment, terms=terms)
        self.robust = self.weight("robust", robust, remedy="The paper uses 2")
        self.gamma = self.weight("gamma", gamma, remedy="The paper uses 0.002")
        self.teacher = frozen_teacher("DAQSDP", teacher, model)

    def parts(self, step: Step) -> Iterator[Part]:
        """Yield, for each stream, the distance from the teacher and that of the attacked view from the clean one."""
        network: nn.Module = self.model
        for x, clean, adv in zip(step.views, ("clean", "strong_clean"), ("adv", "strong_adv"), strict=True):
            target = self.teacher(x)
            (x_adv,) = step.perturb(away_from("DAQSDP", target), adv, x)
            if clean == "clean" and self.training and (gamma := self.now(self.gamma)):
                with torch.enable_grad(), buffers_kept(network, statistics=True):
                    (z,), (z_adv,) = step.embed(clean, x), step.embed(adv, x_adv)
                    loss = -cosine(z, target) - self.now(self.robust) * cosine(z_adv, z)
                    network = _Perturbed(network, loss, gamma)
            (z,), (z_adv,) = step.embed(clean, x, by=network), step.embed(adv, x_adv, by=network)
            step.z[clean], step.z[adv] = (z,), (z_adv,)
            yield Part(clean, -cosine(z, target), 0.5)
            yield Part(adv, -cosine(z_adv, z), self.now(self.robust) / 2)

    def _branch_to_ship(self) -> str:
        return "adv"


class _Perturbed(nn.Module):
    """A network with perturbed weights, whose gradients reach its own weights."""

    def __init__(self, network: nn.Module, loss: Tensor, gamma: float) -> None:
        super().__init__()
        self.network = network
        weights = _perturbed(network)
        moves = _moves([*weights.values()], loss, gamma)
        self.weights = {name: weight + move for (name, weight), move in zip(weights.items(), moves, strict=True)}

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = functional_call(self.network, self.weights, (x,))
        return z


@contextmanager
def perturbed_weights(model: nn.Module, loss: Callable[[], Tensor], *, gamma: float = 0.002) -> Iterator[None]:
    r"""Perturb the weights of a network so that a loss grows, and restore them on exit.

    Adversarial weight perturbation adds to each parameter with two or more dimensions, with the gradient g of the loss,

    .. math:: \theta \leftarrow \theta + \gamma \lVert \theta \rVert \frac{g}{\lVert g \rVert}

    A training step has its forward and backward pass inside the block, and its optimizer step after it, so that the
    gradients of the perturbed weights change the original ones. Buffers and the gradients of the parameters do not
    change. Several processes average g. Use it in your own loop; ``DAQSDP(gamma=)`` does the same within
    :func:`~advcontrast.engine.fit`. Reference: Wu et al., NeurIPS 2020.

    Args:
        model: the network.
        loss: a function without arguments to a scalar, which runs the network. One that calls a learner in train mode
            counts as a step of its schedules, momentum networks and queues.
        gamma: :math:`\gamma` above, at least 0: 0.002 in DAQ-SDP.

    Raises:
        ValueError: gamma < 0, or a loss that is not a scalar.
        TypeError: an argument has the wrong type.

    Example:
        The gradient is (1, 0), so the weights (3, 4) with norm 5 move by (0.5, 0).

        >>> from advcontrast.strategies import perturbed_weights
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
        >>> x = torch.tensor([[1.0, 0.0]])
        >>> with perturbed_weights(model, lambda: model(x).sum(), gamma=0.1):
        ...     model(x).sum().backward()
        ...     model.weight.tolist()
        [[3.5, 4.0]]
        >>> model.weight.tolist(), model.weight.grad.tolist()
        ([[3.0, 4.0]], [[1.0, 0.0]])
    """
    owner = "perturbed_weights"
    check_module(owner, model)
    check_callable(owner, "loss", loss, remedy="Pass a function without arguments")
    check_real(owner, "gamma", gamma, low=0, remedy="DAQ-SDP uses 0.002")
    weights = [*_perturbed(model).values()]
    with torch.enable_grad(), buffers_kept(model, statistics=True):
        value, remedy = loss(), "Return the mean over the batch"
        check_tensor(owner, "the result of loss", value, remedy=remedy)
        check_shape(owner, "the result of loss", value, "[]", value.dim() == 0, remedy=remedy)
        moves = _moves(weights, value, gamma)
    originals = [weight.detach().clone() for weight in weights]
    try:
        with torch.no_grad():
            for weight, move in zip(weights, moves, strict=True):
                weight.add_(move)
        yield
    finally:
        with torch.no_grad():
            for weight, original in zip(weights, originals, strict=True):
                weight.copy_(original)


def _perturbed(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a network that are perturbed."""
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad and weight.dim() > 1}


def _moves(weights: Sequence[Tensor], loss: Tensor, gamma: float) -> list[Tensor]:
    """Return the perturbation of each weight."""
    moves = []
    slopes = torch.autograd.grad(loss, weights, materialize_grads=True) if weights else ()
    for weight, slope in zip(weights, slopes, strict=True):
        gradient = distributed.all_gather(slope).mean(0)
        length = gradient.norm()
        moves.append(gradient * (gamma * weight.detach().norm() / length.masked_fill(length == 0, 1)))
    return moves
