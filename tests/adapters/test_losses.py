"""Losses of other libraries as the contrastive term of ACL."""

import re

import pytest
import torch
from torch import nn

from advcontrast import ACLTrainer, NTXentLoss, PGDAttack, convert_to_dual_bn
from advcontrast.adapters.losses import PairsAsLabels, TrainOnlyMemoryBank

lightly = pytest.importorskip("lightly.loss", reason="lightly is not installed")
metric = pytest.importorskip("pytorch_metric_learning.losses", reason="pytorch-metric-learning is not installed")

# As lightly itself does in its DCLWLoss.
pytestmark = pytest.mark.filterwarnings("ignore:To copy construct from a tensor:UserWarning")

MODES = ("S2S", "A2A", "A2S", "DS")
ATTACK = PGDAttack(eps=0.1, step_size=0.05, steps=3)
VIEWS = torch.rand(2, 8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
AS_THEY_ARE = {
    "lightly NTXentLoss": lightly.NTXentLoss,
    "lightly DCLLoss": lightly.DCLLoss,
    "lightly DCLWLoss": lightly.DCLWLoss,
    "lightly VICRegLoss": lightly.VICRegLoss,
    "lightly BarlowTwinsLoss": lightly.BarlowTwinsLoss,
    "lightly NegativeCosineSimilarity": lightly.NegativeCosineSimilarity,
    "lightly DirectCLRLoss": lightly.DirectCLRLoss,
    "PML SelfSupervisedLoss": lambda: metric.SelfSupervisedLoss(metric.TripletMarginLoss()),
    "PML VICRegLoss": lambda: lambda z1, z2: metric.VICRegLoss()(z1, ref_emb=z2),
}
LABELLED = ("NTXentLoss", "SupConLoss", "TripletMarginLoss", "MultiSimilarityLoss", "ContrastiveLoss", "CircleLoss")
LABELLED += ("FastAPLoss", "NPairsLoss", "SmoothAPLoss", "LiftedStructureLoss", "AngularLoss", "NCALoss", "MarginLoss")
LOSSES = {
    **AS_THEY_ARE,
    **{f"PML {name}": lambda name=name: PairsAsLabels(getattr(metric, name)()) for name in LABELLED},
    "lightly TiCoLoss": lambda: TrainOnlyMemoryBank(lightly.TiCoLoss()),
    "bank": lambda: lightly.NTXentLoss(memory_bank_size=(16, 8)),
}


def network():
    torch.manual_seed(0)
    return convert_to_dual_bn(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8))
    )


def embeddings(seed=0):
    return torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.sample(48)
def test_it_trains_in_every_mode(name, mode):
    loss = LOSSES[name]()
    if mode == "DS" and name == "bank":
        loss = TrainOnlyMemoryBank(loss)
    acl = ACLTrainer(network(), loss=loss, attack=ATTACK, mode=mode)
    out = acl(*VIEWS)
    out.loss.backward()
    found = [parameter.grad for parameter in acl.model[0].parameters()]
    assert out.loss.isfinite()
    assert all(grad.isfinite().all() and grad.any() for grad in found)


@pytest.mark.parametrize("mode", ["A2A", "A2S"])
@pytest.mark.parametrize("name", LOSSES)
def test_it_guides_the_attack(name, mode):
    """The same loss at the same weights is larger for views that were attacked."""
    idle = ACLTrainer(network(), loss=LOSSES[name](), attack=lambda objective, x: x, mode=mode).eval()
    busy = ACLTrainer(network(), loss=LOSSES[name](), attack=ATTACK, mode=mode).eval()
    torch.manual_seed(1)
    calm = idle(*VIEWS).loss
    torch.manual_seed(1)
    assert busy(*VIEWS).loss > calm


@pytest.mark.parametrize(
    "theirs",
    [
        lambda t: lightly.NTXentLoss(temperature=t),
        lambda t: PairsAsLabels(metric.NTXentLoss(temperature=t)),
        lambda t: metric.SelfSupervisedLoss(metric.NTXentLoss(temperature=t)),
        lambda t: PairsAsLabels(metric.SupConLoss(temperature=t)),
    ],
    ids=["lightly", "PML", "PML SelfSupervised", "PML SupCon"],
)
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_is_the_same_everywhere(theirs, temperature):
    z = embeddings()
    ours, other = NTXentLoss(temperature)(*z), theirs(temperature)(*z)
    torch.testing.assert_close(ours, other, rtol=1e-6, atol=0)
    (first,), (second,) = (torch.autograd.grad(loss, z) for loss in (ours, other))
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-8)


def test_numbered_pairs_are_what_pml_makes_of_two_views():
    z = embeddings()
    assert torch.equal(
        PairsAsLabels(metric.TripletMarginLoss())(*z), metric.SelfSupervisedLoss(metric.TripletMarginLoss())(*z)
    )


def bank():
    return lightly.NTXentLoss(memory_bank_size=(64, 8))


def enqueued(branches, loss, mode):
    """Return how many embeddings each memory takes in one step of training."""
    banks = [branch.memory_bank for branch in branches]
    before = [bank.bank.clone() for bank in banks]
    ACLTrainer(network(), loss=loss, attack=ATTACK, mode=mode)(*VIEWS)
    return [int((bank.bank != old).any(1).sum()) for bank, old in zip(banks, before, strict=True)]


@pytest.mark.parametrize(("mode", "expected"), [("S2S", [8, 0]), ("A2A", [0, 8]), ("A2S", [0, 8]), ("DS", [8, 8])])
def test_each_stream_is_remembered_once_a_step(mode, expected):
    loss = TrainOnlyMemoryBank(bank())
    assert enqueued([loss.loss.clean, loss.loss.adv], loss, mode) == expected


@pytest.mark.parametrize("mode", ["S2S", "A2A", "A2S"])
def test_one_stream_needs_no_wrapper(mode):
    loss = bank()
    assert enqueued([loss], loss, mode) == [8]


def test_the_clean_stream_does_not_find_its_images_in_the_memory():
    """With weights that do not differ between the branches and without attack both streams have one loss."""
    torch.manual_seed(0)
    acl = ACLTrainer(network(), loss=TrainOnlyMemoryBank(bank()), attack=lambda objective, x: x)
    terms = acl(*VIEWS).terms
    assert torch.equal(terms["loss_clean"], terms["loss_adv"])


def test_a_running_covariance_is_that_of_the_training_passes():
    model = network()
    tico = TrainOnlyMemoryBank(lightly.TiCoLoss())
    acl = ACLTrainer(model, loss=tico, attack=ATTACK, mode="A2A")
    seen = []
    model.register_forward_hook(lambda module, x, z: seen.append(z.detach()) if module.training else None)
    acl(*VIEWS)
    z1 = nn.functional.normalize(seen[0][:8], dim=1)
    torch.testing.assert_close(tico.loss.adv.C, 0.1 * z1.T @ z1 / 8)


@pytest.mark.parametrize("mode", ["A2A", "A2S", "DS"])
def test_a_running_covariance_that_an_attack_changes_is_refused(mode):
    acl = ACLTrainer(network(), loss=lightly.TiCoLoss(), attack=ATTACK, mode=mode)
    with pytest.raises(RuntimeError, match=r"^ACLTrainer: expected loss to have a memory .* TiCoLoss with one, C\."):
        acl(*VIEWS)


def test_the_memory_of_plain_attributes_is_kept_too():
    class Plain(nn.Module):
        calls = 0

        def forward(self, z1, z2):
            self.calls += 1
            return NTXentLoss()(z1, z2)

    loss = TrainOnlyMemoryBank(Plain())
    ACLTrainer(network(), loss=loss, attack=ATTACK)(*VIEWS)
    assert (loss.loss.clean.calls, loss.loss.adv.calls) == (1, 1)


def test_layers_of_a_loss_with_a_memory_are_shared_by_the_streams():
    loss = nn.Linear(2, 2)
    loss.bank = lightly.NTXentLoss(memory_bank_size=(64, 8))
    assert [name for name, _ in TrainOnlyMemoryBank(loss).named_parameters()] == [
        "loss.clean.weight",
        "loss.clean.bias",
    ]


def test_a_forward_pass_that_copies_would_share_is_refused():
    loss = bank()
    loss.forward = lambda z1, z2: z1.sum()
    with pytest.raises(ValueError, match=r"^TrainOnlyMemoryBank: expected loss with the forward method of its class"):
        TrainOnlyMemoryBank(loss)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_a_loss_that_cannot_be_copied_is_refused_with_a_remedy():
    loss = nn.utils.weight_norm(nn.Linear(2, 2))
    loss(torch.ones(1, 2))
    with pytest.raises(RuntimeError, match=r"^TrainOnlyMemoryBank: .* Use torch.nn.utils.parametrizations in place"):
        TrainOnlyMemoryBank(loss)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PairsAsLabels(3), "PairsAsLabels: expected loss to be callable"),
        (
            lambda: TrainOnlyMemoryBank(lambda z1, z2: z1),
            "TrainOnlyMemoryBank: expected loss to be",
        ),
        (
            lambda: TrainOnlyMemoryBank(nn.ReLU(), 3),
            "TrainOnlyMemoryBank: expected model to be an nn.Module",
        ),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        make()


@pytest.mark.parametrize(
    ("z1", "z2", "error", "message"),
    [
        (None, torch.ones(2, 3), TypeError, "z1 to be a floating point tensor, got NoneType. "),
        (
            torch.ones(2, 3),
            torch.ones(3, 3),
            ValueError,
            "z1 and z2 to have the same shape [N, D], got [2, 3] and [3, 3]. ",
        ),
        (torch.ones(0, 3), torch.ones(0, 3), ValueError, "at least 1 pair, got 0. "),
    ],
)
def test_numbered_pairs_are_pairs(z1, z2, error, message):
    with pytest.raises(error, match=f"^{re.escape('PairsAsLabels: expected ' + message)}"):
        PairsAsLabels(lambda z, numbers: z.sum())(z1, z2)
