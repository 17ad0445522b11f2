"""TRADES (Zhang et al., ICML 2019)."""

from collections.abc import Callable

from torch import Tensor, nn

from ..functional import kl_divergence
from ..losses import TRADESLoss
from .acl import ACLOutput
from .supervised import AdversarialTrainer, batch_accuracy


class TRADESTrainer(AdversarialTrainer):
    """TRADES: cross-entropy on clean images plus the divergence between clean and adversarial predictions.

    The attack maximises the divergence from the prediction for the clean image, both in eval mode. It starts at random
    in the ball; the authors of TRADES start it 0.001 N(0, 1) from the image, where the divergence has almost no
    gradient. The loss is :class:`~advcontrast.losses.TRADESLoss`; clean images pass through the model before the
    attacked ones. Reference: Zhang et al., ICML 2019.

    Args:
        model: as for :class:`AdversarialTrainer`, like ``attack``, ``augment``, ``frozen`` and the errors.
        beta: weight of the divergence, at least 0; the authors' 6.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
        >>> out = TRADESTrainer(model, attack=PGDAttack(steps=1))(torch.rand(4, 3, 2, 2), torch.tensor([0, 1, 0, 0]))
        >>> sorted(out.terms)
        ['train_ra', 'train_ta']
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        attack: Callable[..., Tensor] | None = None,
        augment: Callable[[Tensor], Tensor] | None = None,
        beta: float = 6.0,
        frozen: bool = False,
    ) -> None:
        loss = TRADESLoss(beta)
        super().__init__(model, attack=attack, augment=augment, frozen=frozen)
        self.loss = loss

    def forward(self, images: Tensor, labels: Tensor) -> ACLOutput:
        """Return the loss of a batch; arguments and errors are those of :meth:`StandardTrainer.forward`."""
        x = self._augmented(images, labels)
        target = self.eval_logits(x)
        self._check_labels(target, labels)
        x_adv = self.attacked(x, lambda logits: kl_divergence(target, logits))
        clean, adv = self._logits(x), self._logits(x_adv)
        terms = {"train_ta": batch_accuracy(clean, labels), "train_ra": batch_accuracy(adv, labels)}
        return ACLOutput(self.loss(clean, adv, labels), terms)
