"""TRADES as a module."""

from torch import Tensor, nn

from .._checks import check_real
from ..functional.divergence import trades


class TRADESLoss(nn.Module):
    """The TRADES loss of ACL's adversarial fine-tuning: :func:`advcontrast.functional.trades` as a module.

    The weight ``beta`` and its errors are those of the function.

    Example:
        >>> loss = TRADESLoss(beta=6.0)
        >>> logits = torch.zeros(4, 10)
        >>> round(loss(logits, logits, torch.arange(4)).item(), 4) == round(math.log(10), 4)
        True
    """

    def __init__(self, beta: float = 6.0) -> None:
        check_real("TRADESLoss", "beta", beta, low=0, remedy="6 is usual, 0 leaves plain cross-entropy")
        super().__init__()
        self.beta = beta

    def forward(self, clean_logits: Tensor, adv_logits: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss over the batch, with the arguments and errors of the function."""
        return trades(clean_logits, adv_logits, labels, self.beta)

    def extra_repr(self) -> str:
        """Show the settings as they were passed."""
        return f"beta={self.beta}"
