"""FSDP2 splits weights over the processes; the steps are those of whole weights."""

import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torchvision.models import resnet50
from torchvision.models.vision_transformer import VisionTransformer

from advcontrast import ACLTrainer, NTXentLoss, PGDAttack, convert_to_dual_bn
from tests.engine.learners import seeded

pytestmark = pytest.mark.distributed
PARTS = ("EncoderBlock", "Bottleneck")
TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}  # float64; measured: none


def transformer():
    net = VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=8
    )
    nn.init.normal_(net.heads.head.weight)  # zeros at first
    return net


NETWORKS = {"vit": (transformer, nn.LayerNorm), "resnet50": (lambda: resnet50(num_classes=8), nn.BatchNorm2d)}


def trainer(name, mode):
    make, norms = NETWORKS[name]
    model = convert_to_dual_bn(seeded(make), norms=norms).double()
    return ACLTrainer(model, mode=mode, loss=NTXentLoss(gather=True), attack=PGDAttack(steps=2, random_start=False))


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def two_steps(name, mode, root):
    """Take two steps with split and with whole weights; compare losses, gradients and weights on the way."""
    torch.set_num_threads(1)
    split, plain = trainer(name, mode), trainer(name, mode)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    parts = [module for module in split.modules() if type(module).__name__ in PARTS]
    for module in [*parts, split.model, *([split] if root == "trainer" else [])]:
        fully_shard(module, mesh=mesh)
    before = {key: whole(p).detach().clone() for key, p in split.named_parameters()}
    optimizers = [torch.optim.SGD(learner.parameters(), lr=0.1) for learner in (split, plain)]
    generator = torch.Generator().manual_seed(1)
    for _ in range(2):
        x1, x2 = (
            torch.rand(8, 3, 16, 16, generator=generator, dtype=torch.float64).chunk(2)[dist.get_rank()]
            for _ in range(2)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ours, theirs = split(x1, x2), plain(x1, x2)
            ours.loss.backward()
            theirs.loss.backward()
        torch.testing.assert_close(ours.loss, theirs.loss, **TOLERANCE)
        for (key, p), (_, q) in zip(split.named_parameters(), plain.named_parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None), key
            if p.grad is not None:
                dist.all_reduce(q.grad)
                q.grad /= dist.get_world_size()
                torch.testing.assert_close(whole(p.grad), q.grad, **TOLERANCE)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    after = {key: whole(p).detach() for key, p in split.named_parameters()}
    for key, q in plain.named_parameters():
        torch.testing.assert_close(after[key], q.detach(), **TOLERANCE)
    split_ones = sum(isinstance(p, DTensor) for p in split.parameters())
    moved = {key for key in after if not torch.equal(after[key], before[key])}
    return split_ones, sorted(moved), [key for key, p in split.named_parameters() if not p.requires_grad]


@pytest.mark.parametrize("root", ["trainer", "model"])
@pytest.mark.parametrize("mode", ["DS", "S2S", "A2A", "A2S"])
@pytest.mark.sample(3)
def test_two_steps_of_a_vision_transformer_are_those_of_whole_weights(ranks, mode, root):
    for split, moved, frozen in ranks.run(two_steps, "vit", mode, root):
        assert split > 0
        assert frozen == []
        branches = {branch for branch in ("clean", "adv") if any(f".{branch}." in key for key in moved)}
        assert branches == {"S2S": {"clean"}, "A2A": {"adv"}}.get(mode, {"clean", "adv"})


@pytest.mark.nightly
@pytest.mark.slow
def test_two_steps_of_a_resnet50_are_those_of_whole_weights(ranks):
    for split, moved, _ in ranks.run(two_steps, "resnet50", "DS", "trainer"):
        assert split > 0
        assert {branch for branch in ("clean", "adv") if any(f".{branch}." in key for key in moved)} == {"clean", "adv"}
