"""AMOC: adversarial momentum contrast (Xu et al., 2020)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_bool, check_temperature
from ..functional.nt_xent import unit_rows
from .blocks import Momentum, Queue
from .learner import ContrastiveLearner, Part
from .step import Step


class AMOC(ContrastiveLearner):
    r"""Contrast clean and attacked views with a momentum network and queues of clean and adversarial negatives.

    With the query :math:`q = f(x_1)`, the key :math:`k = \bar f(x_2)` of the momentum network, both through the clean
    branch, the query :math:`q'` of the attacked view through the adversarial branch, and two queues Q and Q',

    .. math::

        L &= \tfrac12 \mathrm{NCE}(q, k; Q) + \tfrac12 \mathrm{NCE}(q', k; Q') \\
        \mathrm{NCE}(q, k; Q) &= -\log \frac{e^{q \cdot k / t}}{e^{q \cdot k / t} + \sum_{n \in Q} e^{q \cdot n / t}}

    for embeddings of length one, averaged over the batch. The attack maximises :math:`\mathrm{NCE}(q', k; Q')` over the
    first view, through the adversarial branch in eval mode; k is fixed. Gradients reach the queries only. Afterwards k
    enters Q, and :math:`\bar f(x'_1)` through the adversarial branch of the momentum network enters Q'. This is the
    variant ACA+ of the paper.

    The paper's settings for CIFAR-10: crops of area 0.2 and more, colour jitter, gray, blur and flip; PGD with 5 steps
    of 2/255 in 8/255; batches of 256, SGD with rate 0.1, momentum 0.9 and weight decay 5e-4, 200 epochs with 10 epochs
    of warm-up and a cosine. In the released code keys enter the queues before the queues are read, so that each image
    is also its own negative, the momentum network moves after the optimizer steps, and the attack adds noise to the
    second view. A step costs 19 forward passes per image. Reference: Xu et al., 2020.

    Args:
        model: network from images ``[N, C, H, W]`` to embeddings ``[N, D]``, normally with dual norms.
        queue: length of each queue, at least the images of a batch in all processes.
        decay: decay of the momentum network, in [0, 1].
        temperature: the temperature t.
        released: whether keys enter the queues before the queues are read.
        attack: ``attack(objective, x)`` returns perturbed images, by default ``PGDAttack()``.
        augment: ``augment(images)`` returns two views; without it the learner is called with views.
        terms: as for :class:`~advcontrast.strategies.ContrastiveLearner`.

    Raises:
        ValueError: a number is out of range, a dual norm without the branches ``"clean"`` and ``"adv"``, or, in use, a
            queue shorter than a batch.
        TypeError: an argument has the wrong type.
        RuntimeError: ``model`` cannot be copied, as in :func:`advcontrast.export_branch`.

    Example:
        Key and negatives that are equal to the query cost log(1 + size).

        >>> from advcontrast.strategies import AMOC
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 1))
        >>> _ = torch.nn.init.ones_(model[1].weight)
        >>> learner = AMOC(model, queue=2, attack=lambda objective, x: x)
        >>> x = torch.rand(2, 3, 4, 4)
        >>> _ = learner(x, x)  # fills the queues
        >>> round(learner(x, x).loss.item(), 4) == round(math.log(3), 4)
        True
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        queue: int = 32768,
        decay: float = 0.999,
        temperature: float = 0.2,
        released: bool = False,
        attack: Callable[..., Tensor] | None = None,
        augment: Callable[..., Any] | None = None,
        terms: Iterable[nn.Module] = (),
    ) -> None:
        check_temperature("AMOC", temperature, remedy="The paper uses 0.2")
        check_bool("AMOC", "released", released, remedy="True lets keys enter the queues before these are read")
        super().__init__(model, attack=attack, augment=augment, terms=terms)
        self.momentum = Momentum(model, decay)
        self.queue, self.queue_adv = Queue(queue), Queue(queue)
        self.temperature, self.released = temperature, released

    def parts(self, step: Step) -> Iterator[Part]:
        """Yield the loss of the clean query, and that of the adversarial one."""
        x1, x2 = step.views
        (fixed,) = step.still("clean", x2, by=self.momentum)
        earlier = self.queue_adv.read(fixed)
        (x_adv,) = step.perturb(lambda q: self._info_nce(q, fixed, earlier), "adv", x1)
        (q,), (q_adv,) = step.z["clean"], step.z["adv"] = step.embed("clean", x1), step.embed("adv", x_adv)
        with torch.no_grad():
            (k,), (k_adv,) = (step.embed(branch, x, by=self.momentum) for branch, x in (("clean", x2), ("adv", x_adv)))
        yield Part("clean", self._info_nce(q, k, self._negatives(step, self.queue, k)))
        yield Part("adv", self._info_nce(q_adv, k, self._negatives(step, self.queue_adv, k_adv)))

    def _negatives(self, step: Step, queue: Queue, keys: Tensor) -> Tensor:
        queue.push(keys)
        earlier = queue.read(keys)
        return torch.cat([*step.gather(unit_rows(keys)), earlier])[: queue.size] if self.released else earlier

    def _info_nce(self, q: Tensor, k: Tensor, negatives: Tensor) -> Tensor:
        """Return the cross-entropy of the keys among the negatives, for the queries."""
        with torch.autocast(q.device.type, enabled=False):
            q, k = unit_rows(q), unit_rows(k)
            logits = torch.cat([(q * k).sum(1, keepdim=True), q @ negatives.T], 1) / self.temperature
            return -logits.log_softmax(1)[:, 0].mean()
