"""An error names the loss that was called, whichever of its checks failed."""

import pytest

from advcontrast.losses import NTXentLoss, SemiSupervisedLoss, TRADESLoss


@pytest.mark.parametrize(
    ("owner", "settings"),
    [
        (NTXentLoss, {"temperature": 0}),
        (NTXentLoss, {"tile": 0}),
        (NTXentLoss, {"gather": None}),
        (SemiSupervisedLoss, {"alpha": 2}),
        (SemiSupervisedLoss, {"temperature": 0}),
        (SemiSupervisedLoss, {"beta": -1}),
        (TRADESLoss, {"beta": -1}),
    ],
)
def test_a_refused_setting_is_one_of_the_loss(owner, settings):
    with pytest.raises((TypeError, ValueError), match=f"^{owner.__name__}: expected "):
        owner(**settings)
