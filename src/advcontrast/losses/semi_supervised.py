"""The semi-supervised loss of ACL as a module."""

from torch import Tensor, nn

from ..functional.semi_supervised import check_settings, semi_supervised


class SemiSupervisedLoss(nn.Module):
    """The loss of ACL's semi-supervised training: :func:`advcontrast.functional.semi_supervised` as a module.

    The settings and their errors are those of the function.

    Example:
        >>> loss = SemiSupervisedLoss(alpha=0.5, temperature=1.0, beta=6.0)
        >>> logits = torch.zeros(4, 10)
        >>> round(loss(logits, logits, torch.tensor([3, -1, -1, 7]), logits).item(), 4) == round(math.log(10), 4)
        True
    """

    def __init__(self, *, alpha: float = 0.5, temperature: float = 1.0, beta: float = 6.0) -> None:
        check_settings("SemiSupervisedLoss", alpha, temperature, beta)
        super().__init__()
        self.alpha, self.temperature, self.beta = alpha, temperature, beta

    def forward(self, clean_logits: Tensor, adv_logits: Tensor, labels: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the mean loss over the batch, with the arguments and errors of the function."""
        settings = {"alpha": self.alpha, "temperature": self.temperature, "beta": self.beta}
        return semi_supervised(clean_logits, adv_logits, labels, teacher_logits, **settings)

    def extra_repr(self) -> str:
        """Show the settings as they were passed."""
        return f"alpha={self.alpha}, temperature={self.temperature}, beta={self.beta}"
