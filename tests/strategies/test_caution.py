"""Warnings of training that runs and is not what it looks like."""

import re
import warnings

import pytest
import torch
from torch import nn

from advcontrast import ACLTrainer, PGDAttack, convert_to_dual_bn
from advcontrast.functional import nt_xent
from tests.strategies.networks import network, views

ATTACK = PGDAttack(steps=2)


def quiet(make):
    """Return what ``make`` returns, which must not warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return make()


def with_head(*heads, split="both"):
    return nn.Sequential(convert_to_dual_bn(network("single"), split=split), *heads)


class Bank(nn.Module):
    """NT-Xent that counts its calls in a buffer, in place or by a new one."""

    def __init__(self, in_place):
        super().__init__()
        self.in_place = in_place
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, z1, z2):
        self.calls = self.calls.add_(1) if self.in_place else self.calls + 1
        return nt_xent(z1, z2)


@pytest.mark.parametrize("mode", ["A2S", "DS"])
def test_norms_that_stayed_single_are_named(mode):
    text = (
        f"ACLTrainer: expected dual batch norms for mode {mode!r}, got single ones beside them: 1, 3. "
        "Call convert_to_dual_bn(model) once its head is attached, unless these are meant to be shared."
    )
    model = with_head(nn.BatchNorm1d(5), nn.Linear(5, 5), nn.BatchNorm1d(5))
    with pytest.warns(UserWarning, match=f"^{re.escape(text)}$"):
        ACLTrainer(model, attack=ATTACK, mode=mode)


def test_what_the_warning_advises_silences_it():
    model = convert_to_dual_bn(with_head(nn.BatchNorm1d(5)))
    quiet(lambda: ACLTrainer(model, attack=ATTACK))


@pytest.mark.parametrize(("count", "named"), [(3, "1, 2, 3"), (4, "1, 2, 3, ...")])
def test_many_single_norms_are_not_all_named(count, named):
    model = with_head(*(nn.BatchNorm1d(5) for _ in range(count)))
    with pytest.warns(UserWarning, match=re.escape(f"got single ones beside them: {named}. Call")):
        ACLTrainer(model, attack=ATTACK)


@pytest.mark.parametrize("mode", ["S2S", "A2A"])
def test_in_a_mode_of_one_branch_single_norms_see_one_kind_of_image(mode):
    quiet(lambda: ACLTrainer(with_head(nn.BatchNorm1d(5)), attack=ATTACK, mode=mode))


@pytest.mark.parametrize(
    ("head", "split"),
    [
        (nn.BatchNorm1d(5, affine=False), "affine"),
        (nn.BatchNorm1d(5, track_running_stats=False), "stats"),
        (nn.LayerNorm(5), "both"),
    ],
    ids=["shared statistics by design", "no statistics", "no batch norm"],
)
def test_norms_that_move_nothing_between_the_branches_are_no_reason(head, split):
    quiet(lambda: ACLTrainer(with_head(head, split=split), attack=ATTACK))


@pytest.mark.parametrize("mode", ["A2A", "A2S", "DS"])
@pytest.mark.parametrize("in_place", [True, False])
def test_a_loss_that_keeps_traces_of_the_attack_is_warned_about(in_place, mode):
    acl = ACLTrainer(network(), loss=Bank(in_place), attack=ATTACK, mode=mode)
    text = (
        "ACLTrainer: expected a loss that an attack leaves as it was, got Bank, whose buffers changed. "
        "Wrap it in adapters.losses.Remembering, so that only the batches that are trained on are remembered."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(text)}$"):
        acl(*views())


def test_a_buffer_that_takes_the_place_of_a_freed_one_is_seen():
    class Renewing(Bank):
        def forward(self, z1, z2):
            self.calls = None
            self.calls = torch.zeros(())  # where the freed one was, more often than not
            return nt_xent(z1, z2)

    acl = ACLTrainer(network(), loss=Renewing(in_place=False), attack=ATTACK, mode="A2A")
    with pytest.warns(UserWarning, match="whose buffers changed"):
        acl(*views())


@pytest.mark.parametrize("in_place", [True, False])
def test_what_a_loss_remembers_of_training_is_no_reason(in_place):
    acl = ACLTrainer(network(), loss=Bank(in_place), mode="S2S")
    quiet(lambda: acl(*views()))
    assert acl.loss.calls == 1


def test_buffers_made_under_inference_mode_are_looked_at_too():
    with torch.inference_mode():
        loss = Bank(in_place=False)
    acl = ACLTrainer(network(), loss=loss, attack=ATTACK, mode="A2A")
    with pytest.warns(UserWarning, match="whose buffers changed"):
        acl(*views())
