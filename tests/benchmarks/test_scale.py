"""Messages between the processes of a step, counted and derived."""

import pytest
import torch
from torch import nn

from advcontrast import convert_to_dual_bn
from benchmarks.evidence import scale

pytestmark = pytest.mark.distributed
IMAGES, WIDTH, STEPS = 4, 6, 3  # of a process, of an embedding, of the attack
FLOAT = 4  # bytes


def network():
    return convert_to_dual_bn(nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, WIDTH)))


def counts_on_a_rank(mode):
    torch.set_num_threads(1)
    acl = scale.trainer(mode, steps=STEPS, width=0, model=network())
    trained = [p for name, p in acl.named_parameters() if name not in acl._ddp_params_and_buffers_to_ignore]
    return scale.counted(acl, IMAGES, side=8), sum(p.numel() for p in trained)


@pytest.mark.parametrize(("mode", "losses"), [("S2S", 1), ("A2A", STEPS + 1), ("A2S", STEPS + 1), ("DS", STEPS + 2)])
def test_step_sends_the_embeddings_once_for_each_loss_and_the_gradients_once(ranks, mode, losses):
    embeddings = 2 * IMAGES * WIDTH * FLOAT
    for counts, weights in ranks.run(counts_on_a_rank, mode):
        derived = scale.expected(2, IMAGES, WIDTH, losses, weights)
        assert counts["allgather"] == derived["allgather"] == (losses, losses * embeddings)
        assert "allgather_base" not in counts  # objects, since PyTorch 2.15
        # Back come the gradients of the embeddings of both processes, and then, in one bucket, those of the weights.
        assert counts["allreduce"] == derived["allreduce"] == (losses + 1, losses * 2 * embeddings + weights * FLOAT)


def test_share_of_computation_is_that_of_a_ring():
    counts = {"allreduce": (1, 10**9 // 8), "allgather": (1, 10**9 // 8)}
    # One second for each gigabit: 2 * 3 / 4 of it and 3 of it at 1 Gbit/s, and 3 hops of 50 microseconds for each call.
    expected = 0.5 / (0.5 + 1.5 + 3 + 2 * 3 * 50e-6)
    assert scale.efficiency(counts, 4, 1) == pytest.approx(expected, rel=1e-6)
