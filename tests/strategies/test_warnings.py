"""Warnings of training that runs and is not what it looks like."""

import re
import warnings
from collections import deque

import pytest
import torch
from torch import nn

from advcontrast import ACLTrainer, PGDAttack, convert_to_dual_bn
from advcontrast.adapters.losses import TrainOnlyMemoryBank
from advcontrast.functional import nt_xent
from advcontrast.strategies import TRADESTrainer
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
    """NT-Xent that writes embeddings to a memory, in place or to a new one, and perhaps in train mode alone."""

    def __init__(self, in_place=True, always=True, rows=64):
        super().__init__()
        self.in_place, self.always = in_place, always
        self.register_buffer("memory", torch.zeros(rows, 5))
        self.register_buffer("calls", torch.zeros(()))
        self.found = []

    def forward(self, z1, z2):
        self.found.append(self.memory.clone())
        if self.training or self.always:
            if not self.in_place:
                self.memory = self.memory.clone()
            self.memory[: len(z1)] += z1.detach()
        self.calls += 1
        return nt_xent(z1, z2)


class Predicting(nn.Module):
    """The loss of SimSiam, which notes how its predictor is set up in each call."""

    def __init__(self, norm=nn.BatchNorm1d):
        super().__init__()
        self.predictor = nn.Sequential(nn.Linear(5, 5), norm(5), nn.ReLU(), nn.Linear(5, 5))
        self.found = []

    def forward(self, z1, z2):
        norm = self.predictor[1]
        modes = {part.training for part in self.modules()}
        wanted = {parameter.requires_grad for parameter in self.parameters()}
        self.found.append((modes, wanted, getattr(norm, "branch", None)))
        pairs = ((z1, z2), (z2, z1))
        return -sum(nn.functional.cosine_similarity(self.predictor(a), b.detach()).mean() for a, b in pairs) / 2


@pytest.mark.parametrize("mode", ["A2S", "DS"])
def test_norms_that_stayed_single_are_named(mode):
    text = (
        f"ACLTrainer: expected dual batch norms for mode {mode!r}, got single ones beside them: 1, 3. "
        "Call convert_to_dual_bn(model) once its head is attached, unless these are meant to be shared."
    )
    model = with_head(nn.BatchNorm1d(5), nn.Linear(5, 5), nn.BatchNorm1d(5))
    with pytest.warns(UserWarning, match=f"^{re.escape(text)}$"):
        ACLTrainer(model, attack=ATTACK, mode=mode)


def test_the_advice_of_the_warning_silences_it():
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


def test_single_norms_of_a_loss_are_named_too():
    text = (
        "ACLTrainer: expected dual batch norms for mode 'DS', got single ones beside them: loss.predictor.1. "
        "Call convert_to_dual_bn(loss) too, unless these are meant to be shared."
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(text)}$"):
        ACLTrainer(network(), loss=Predicting(), attack=ATTACK)


def test_the_advice_of_that_warning_silences_it():
    quiet(lambda: ACLTrainer(network(), loss=convert_to_dual_bn(Predicting()), attack=ATTACK))


@pytest.mark.parametrize(
    ("mode", "under_attack", "trained"), [("A2A", 2, ["adv"]), ("A2S", 2, ["adv"]), ("DS", 2, ["adv", "clean"])]
)
def test_a_loss_with_layers_is_attacked_as_the_model_is(mode, under_attack, trained):
    loss = convert_to_dual_bn(Predicting())
    acl = ACLTrainer(network(), loss=loss, attack=ATTACK, mode=mode)
    quiet(lambda: acl(*views())).loss.backward()
    attacked = [({False}, {False}, "adv")] * under_attack
    assert loss.found == attacked + [({True}, {True}, branch) for branch in trained]
    assert loss.predictor[1].adv.num_batches_tracked == 2  # both views, in training alone
    assert loss.predictor[1].branch == "clean"


def test_a_compiled_loss_is_one_with_layers():
    loss = torch.compile(Predicting(), backend="eager")
    with pytest.warns(UserWarning, match=r"single ones beside them: loss\.(_orig_mod\.)?predictor\.1\."):
        ACLTrainer(network(), loss=loss, attack=ATTACK)


def test_a_loss_with_branches_of_other_names_is_refused():
    loss = convert_to_dual_bn(Predicting(), branches=("a", "b"))
    with pytest.raises(ValueError, match=r"^ACLTrainer: expected dual norms to have the branches 'clean' and 'adv'"):
        ACLTrainer(network(), loss=loss)


@pytest.mark.parametrize("mode", ["S2S", "A2A", "A2S", "DS"])
def test_parameters_of_a_loss_without_gradients_are_those_that_ddp_ignores(mode):
    acl = ACLTrainer(network(), loss=convert_to_dual_bn(Predicting()), attack=ATTACK, mode=mode)
    acl(*views()).loss.backward()
    without = [name for name, parameter in acl.named_parameters() if parameter.grad is None]
    assert acl._ddp_params_and_buffers_to_ignore == without
    assert any(name.startswith("loss.") for name in without) == (mode != "DS")


@pytest.mark.parametrize("mode", ["A2A", "A2S"])
@pytest.mark.parametrize("in_place", [True, False])
def test_an_attack_finds_the_memory_of_training_and_leaves_it(in_place, mode):
    loss = Bank(in_place)
    acl = ACLTrainer(network(), loss=loss, attack=ATTACK, mode=mode)
    quiet(lambda: [acl(*views()) for _ in range(2)])
    first, second = loss.found[:3], loss.found[3:]  # two steps of the attack, one of training
    for found in (first, second):
        assert all(torch.equal(memory, found[-1]) for memory in found)
    assert not torch.equal(first[-1], second[-1])
    assert loss.calls == 2


@pytest.mark.parametrize("always", [True, False], ids=["in eval mode too", "in train mode alone"])
@pytest.mark.parametrize("in_place", [True, False])
def test_one_memory_for_two_streams_is_refused(in_place, always):
    acl = ACLTrainer(network(), loss=Bank(in_place, always), attack=ATTACK)
    text = (
        "ACLTrainer: expected loss to have a memory for each stream, which no attack changes, got Bank with one, "
        "memory. Wrap it in adapters.losses.TrainOnlyMemoryBank, so that no image becomes its own negative."
    )
    with pytest.raises(RuntimeError, match=f"^{re.escape(text)}$"):
        acl(*views())


def test_a_memory_that_takes_the_place_of_a_freed_one_is_seen():
    class Renewing(Bank):
        def forward(self, z1, z2):
            self.memory = None
            self.memory = torch.zeros(64, 5)  # where the freed one was, more often than not
            return nt_xent(z1, z2)

    acl = ACLTrainer(network(), loss=Renewing(), attack=ATTACK)
    with pytest.raises(RuntimeError, match="got Renewing with one, memory"):
        acl(*views())


def test_a_memory_made_under_inference_mode_is_looked_at_too():
    with torch.inference_mode():
        loss = Bank(in_place=False)
    loss.calls = torch.zeros(())
    acl = ACLTrainer(network(), loss=loss, attack=ATTACK)
    with pytest.raises(RuntimeError, match="got Bank with one, memory"):
        acl(*views())


class Attribute(nn.Module):
    """NT-Xent with a memory in a plain attribute: a tensor that is changed or replaced, or several in a deque."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.memory = deque([torch.zeros(8, 5)], maxlen=1) if kind == "deque" else torch.zeros(8, 5)

    def forward(self, z1, z2):
        if self.kind == "deque":
            self.memory.append(z1.detach())
        elif self.kind == "in place":
            self.memory[: len(z1)] = z1.detach()
        else:
            self.memory = torch.cat([z1.detach(), self.memory])[:8]
        return nt_xent(z1, z2)


@pytest.mark.parametrize("mode", ["A2A", "A2S", "DS"])
@pytest.mark.parametrize("kind", ["in place", "replaced", "deque"])
def test_a_memory_in_an_attribute_is_refused_under_attack(kind, mode):
    acl = ACLTrainer(network(), loss=Attribute(kind), attack=ATTACK, mode=mode)
    with pytest.raises(RuntimeError, match="got Attribute with one, memory"):
        acl(*views())


@pytest.mark.parametrize("kind", ["in place", "replaced", "deque"])
def test_a_memory_in_an_attribute_is_refused_for_two_streams(kind):
    acl = ACLTrainer(network(), loss=Attribute(kind), attack=lambda objective, x: x)
    with pytest.raises(RuntimeError, match="got Attribute with one, memory"):
        acl(*views())


def test_a_memory_in_an_attribute_is_kept_by_the_wrapper():
    loss = TrainOnlyMemoryBank(Attribute("replaced"))
    quiet(lambda: ACLTrainer(network(), loss=loss, attack=ATTACK)(*views()))
    assert not torch.equal(loss.loss.clean.memory, loss.loss.adv.memory)


def test_a_weight_that_weight_norm_sets_is_no_memory():
    class Normed(nn.Module):
        def __init__(self):
            super().__init__()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                self.head = nn.utils.weight_norm(nn.Linear(5, 5))

        def forward(self, z1, z2):
            return nt_xent(self.head(z1), self.head(z2))

    quiet(lambda: ACLTrainer(network(), loss=Normed(), attack=ATTACK)(*views()))


def test_counters_are_no_memory():
    class Counting(Bank):
        def forward(self, z1, z2):
            self.calls += 1
            return nt_xent(z1, z2)

    loss = Counting()
    quiet(lambda: ACLTrainer(network(), loss=loss, attack=ATTACK)(*views()))
    assert loss.calls == 2


def test_each_stream_has_its_memory_where_the_loss_remembers():
    bank = Bank()
    loss = TrainOnlyMemoryBank(bank)
    quiet(lambda: ACLTrainer(network(), loss=loss, attack=ATTACK)(*views()))
    assert not any(memory.any() for memory in bank.found + loss.loss.adv.found)
    assert bank.memory.any()
    assert loss.loss.adv.memory.any()


def test_a_validation_is_not_remembered():
    loss = Bank()
    ACLTrainer(network(), loss=loss, mode="S2S").eval()(*views())
    assert not loss.memory.any()
    assert loss.calls == 0


@pytest.mark.parametrize("batch", [list, tuple])
def test_a_batch_with_labels_is_named(batch):
    acl = ACLTrainer(network(), augment=lambda x: (x, x))
    with pytest.raises(TypeError, match=rf"^ACLTrainer: expected x1 .*, got {batch.__name__}\. Pass batch\[0\]"):
        acl(batch([views()[0], torch.zeros(4)]))


class InPlace(nn.Module):
    """Normalises its input in place."""

    def __init__(self, model, *, in_place=True):
        super().__init__()
        self.model, self.in_place = model, in_place

    def forward(self, x):
        return self.model(x.mul_(0.5) if self.in_place else x * 0.5)


@pytest.mark.parametrize("mode", ["S2S", "A2A", "A2S", "DS"])
def test_a_model_may_normalise_in_place(mode):
    found, expected = (
        ACLTrainer(InPlace(network(), in_place=in_place), attack=PGDAttack(steps=2, random_start=False), mode=mode)(
            *(x.clone() for x in views())
        ).loss
        for in_place in (True, False)
    )
    assert torch.equal(found, expected)


def test_trades_takes_a_model_that_normalises_in_place():
    x, labels = views()[0], torch.tensor([0, 1, 2, 3])
    found, expected = (
        TRADESTrainer(InPlace(network("single"), in_place=in_place), attack=PGDAttack(steps=2, random_start=False))(
            x.clone(), labels
        ).loss
        for in_place in (True, False)
    )
    assert torch.equal(found, expected)
