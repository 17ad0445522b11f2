"""An error names the function that was called, whichever of its checks failed."""

import pytest
import torch

from advcontrast import functional as F
from advcontrast.evaluation.uar import jpeg_decode, jpeg_encode, warp

X, FLOW = torch.zeros(2, 3, 16, 16), torch.zeros(2, 2, 16, 16)
Z, LOGITS, Y = torch.rand(4, 8), torch.rand(4, 5), torch.tensor([0, 1, 2, 3])
BLOCKS = torch.zeros(2, 6, 8, 8)
HALF, INTEGERS, NAN = torch.float16, torch.zeros(4, 8, dtype=torch.int64), torch.full((4, 8), torch.nan)


def elsewhere(tensor):
    return tensor.to("meta")


CASES = [
    ("high_frequency", lambda: F.high_frequency(None)),
    ("high_frequency", lambda: F.high_frequency(Z[0])),
    ("high_frequency", lambda: F.high_frequency(Z, -1)),
    ("coding_rate", lambda: F.coding_rate(None)),
    ("coding_rate", lambda: F.coding_rate(Z[0])),
    ("coding_rate", lambda: F.coding_rate(Z, 0)),
    ("distillation", lambda: F.distillation(LOGITS, LOGITS, 0)),
    ("distillation", lambda: F.distillation(LOGITS, LOGITS, 1e-31)),
    ("semi_supervised", lambda: F.semi_supervised(LOGITS, LOGITS, Y, LOGITS, temperature=1e-31)),
    ("nt_xent", lambda: F.nt_xent(Z, Z, 1e-31)),
    ("distillation", lambda: F.distillation(None, LOGITS)),
    ("distillation", lambda: F.distillation(LOGITS, None)),
    ("distillation", lambda: F.distillation(LOGITS, LOGITS[:2])),
    ("distillation", lambda: F.distillation(LOGITS, elsewhere(LOGITS))),
    ("kl_divergence", lambda: F.kl_divergence(None, LOGITS)),
    ("kl_divergence", lambda: F.kl_divergence(LOGITS, None)),
    ("kl_divergence", lambda: F.kl_divergence(LOGITS, LOGITS[:2])),
    ("kl_divergence", lambda: F.kl_divergence(LOGITS, elsewhere(LOGITS))),
    ("trades", lambda: F.trades(LOGITS, LOGITS, Y, -1)),
    ("trades", lambda: F.trades(LOGITS, LOGITS, LOGITS)),
    ("trades", lambda: F.trades(LOGITS, LOGITS, Y[:2])),
    ("trades", lambda: F.trades(LOGITS, LOGITS, Y + 2)),
    ("trades", lambda: F.trades(LOGITS, LOGITS, elsewhere(Y))),
    ("warp", lambda: warp(None, FLOW)),
    ("warp", lambda: warp(X, None)),
    ("warp", lambda: warp(X, FLOW[:1])),
    ("warp", lambda: warp(X, FLOW.double())),
    ("warp", lambda: warp(X, elsewhere(FLOW))),
    ("jpeg_encode", lambda: jpeg_encode(X.to(HALF))),
    ("jpeg_encode", lambda: jpeg_encode(X[:, :1])),
    ("jpeg_decode", lambda: jpeg_decode(BLOCKS.to(HALF), size=(16, 16))),
    ("jpeg_decode", lambda: jpeg_decode(BLOCKS, size=16)),
    ("jpeg_decode", lambda: jpeg_decode(BLOCKS, size=(16, 16.0))),
    ("jpeg_decode", lambda: jpeg_decode(BLOCKS, size=(32, 16))),
    ("jpeg_decode", lambda: jpeg_decode(BLOCKS[:, :0], size=(0, 0))),
    ("dlr", lambda: F.dlr(None, Y)),
    ("dlr", lambda: F.dlr(LOGITS[:, :2], Y)),
    ("dlr", lambda: F.dlr(LOGITS, LOGITS)),
    ("dlr", lambda: F.dlr(LOGITS, Y[:2])),
    ("dlr", lambda: F.dlr(LOGITS, Y + 2)),
    ("dlr", lambda: F.dlr(LOGITS, elsewhere(Y))),
    ("targeted_dlr", lambda: F.targeted_dlr(LOGITS[:, :3], Y, Y + 1)),
    ("targeted_dlr", lambda: F.targeted_dlr(LOGITS, Y + 2, Y)),
    ("targeted_dlr", lambda: F.targeted_dlr(LOGITS, Y, Y + 2)),
    ("targeted_dlr", lambda: F.targeted_dlr(LOGITS, Y, Y)),
    ("nt_xent", lambda: F.nt_xent(Z, Z, 0)),
    ("nt_xent", lambda: F.nt_xent(Z, Z, tile=0)),
    ("nt_xent", lambda: F.nt_xent(None, Z)),
    ("nt_xent", lambda: F.nt_xent(Z, INTEGERS)),
    ("nt_xent", lambda: F.nt_xent(Z, Z[:2])),
    ("nt_xent", lambda: F.nt_xent(Z, Z.double())),
    ("nt_xent", lambda: F.nt_xent(Z, elsewhere(Z))),
    ("nt_xent", lambda: F.nt_xent(Z[:1], Z[:1])),
    ("nt_xent", lambda: F.nt_xent(Z[:, :0], Z[:, :0])),
    ("nt_xent", lambda: F.nt_xent(Z, NAN)),
    ("alignment", lambda: F.alignment(NAN, Z)),
    ("alignment", lambda: F.alignment(Z[:0], Z[:0])),
    ("linf_box", lambda: F.linf_box(INTEGERS, 0.1)),
    ("linf_box", lambda: F.linf_box(X, -1)),
    ("linf_box", lambda: F.linf_box(X, 0.1, (1.0, 0.0))),
    ("breakaway_risk", lambda: F.breakaway_risk(Z[:1], Z[:1])),
    ("breakaway_risk", lambda: F.breakaway_risk(None, Z)),
    ("breakaway_risk", lambda: F.breakaway_risk(Z, NAN)),
    ("breakaway_risk", lambda: F.breakaway_risk(Z, elsewhere(Z))),
    ("nearest_neighbour_accuracy", lambda: F.nearest_neighbour_accuracy(Z, Z, top=0)),
    ("nearest_neighbour_accuracy", lambda: F.nearest_neighbour_accuracy(Z, Z, top=4)),
    ("nearest_neighbour_accuracy", lambda: F.nearest_neighbour_accuracy(Z, Z[:1])),
    ("margin_ratio", lambda: F.margin_ratio(Z, Z, Z, Z[:1])),
    ("overlap_risk", lambda: F.overlap_risk(None)),
    ("overlap_risk", lambda: F.overlap_risk(Z)),
    ("overlap_risk", lambda: F.overlap_risk(NAN[0])),
    ("uniformity", lambda: F.uniformity(Z, t=0)),
    ("uniformity", lambda: F.uniformity(Z[:1])),
    ("effective_rank", lambda: F.effective_rank(Z[:1])),
    ("semi_supervised", lambda: F.semi_supervised(LOGITS, LOGITS, Y, LOGITS, alpha=2)),
    ("semi_supervised", lambda: F.semi_supervised(LOGITS, LOGITS, Y, LOGITS, temperature=0)),
    ("semi_supervised", lambda: F.semi_supervised(LOGITS, LOGITS, Y, LOGITS, beta=-1)),
    ("semi_supervised", lambda: F.semi_supervised(LOGITS, LOGITS, Y, None)),
    ("semi_supervised", lambda: F.semi_supervised(LOGITS, LOGITS, LOGITS, LOGITS)),
    ("semi_supervised", lambda: F.semi_supervised(LOGITS, LOGITS, Y[:2], LOGITS)),
    ("semi_supervised", lambda: F.semi_supervised(LOGITS, LOGITS, Y - 2, LOGITS)),
    ("semi_supervised", lambda: F.semi_supervised(LOGITS, LOGITS, elsewhere(Y), LOGITS)),
]


@pytest.mark.parametrize(("owner", "call"), CASES)
def test_an_error_begins_with_the_name_of_the_function(owner, call):
    with pytest.raises((TypeError, ValueError), match=f"^{owner}: expected "):
        call()


def test_a_refused_second_derivative_names_the_function():
    z = torch.rand(4, 8, requires_grad=True)
    loss = F.nt_xent(z, z.flip(0), tile=2)
    with pytest.raises(RuntimeError, match=r"^nt_xent: expected first derivatives only where tile is set"):
        torch.autograd.grad(loss, z, create_graph=True)
