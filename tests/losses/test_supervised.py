"""The losses of fine-tuning as modules."""

import pickle
import re

import pytest
import torch

from advcontrast.functional import semi_supervised, trades
from advcontrast.losses import SemiSupervisedLoss, TRADESLoss

LABELS = torch.tensor([0, 4, 2, 1])
PARTLY = torch.tensor([0, -1, 2, -1])


@pytest.mark.parametrize("settings", [{}, {"beta": 2.5}, {"beta": 0}])
def test_trades_module_is_the_function(settings):
    clean, adv = torch.randn(2, 4, 5)
    assert torch.equal(TRADESLoss(**settings)(clean, adv, LABELS), trades(clean, adv, LABELS, **settings))


@pytest.mark.parametrize("settings", [{}, {"alpha": 0.2}, {"temperature": 3.0}, {"beta": 1.0}])
def test_semi_supervised_module_is_the_function(settings):
    clean, adv, teacher = torch.randn(3, 4, 5)
    ours = SemiSupervisedLoss(**settings)(clean, adv, PARTLY, teacher)
    assert torch.equal(ours, semi_supervised(clean, adv, PARTLY, teacher, **settings))


@pytest.mark.parametrize(
    ("loss", "text"),
    [
        (TRADESLoss(6.0), "TRADESLoss(beta=6.0)"),
        (
            SemiSupervisedLoss(alpha=0.2, temperature=2.0, beta=1.0),
            "SemiSupervisedLoss(alpha=0.2, temperature=2.0, beta=1.0)",
        ),
    ],
)
def test_repr_reads_as_the_call(loss, text):
    assert repr(loss) == text


@pytest.mark.parametrize("loss", [TRADESLoss(2.0), SemiSupervisedLoss(alpha=0.2)])
def test_module_has_no_state_and_survives_pickling(loss):
    assert loss.state_dict() == {}
    assert repr(pickle.loads(pickle.dumps(loss))) == repr(loss)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TRADESLoss(-1), "TRADESLoss: expected beta to be"),
        (lambda: SemiSupervisedLoss(alpha=2), "SemiSupervisedLoss: expected alpha to be"),
        (lambda: SemiSupervisedLoss(temperature=0), "SemiSupervisedLoss: expected temperature to be"),
        (lambda: SemiSupervisedLoss(beta=-6), "SemiSupervisedLoss: expected beta to be"),
    ],
)
def test_wrong_settings_are_refused_at_once(make, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make()
