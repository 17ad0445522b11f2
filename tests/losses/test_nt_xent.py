"""The loss as a module: its settings, and its negatives from other processes."""

import copy
import io
import math
import pickle
import re
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from advcontrast import NTXentLoss
from advcontrast.functional import nt_xent
from tests.functional.test_nt_xent import Largest
from tests.ranks import WORLD_SIZE

EXACT = 1e-10  # relative, float64, between one process and several
PAIRS = 6


def views(pairs=PAIRS, dtype=torch.float64):
    generator = torch.Generator().manual_seed(7)
    return torch.randn(2, pairs, 5, generator=generator, dtype=torch.float64).to(dtype)


def encoder():
    net = nn.Linear(5, 4, dtype=torch.float64)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(generator=generator)
    return net


def mine(x):
    return x.chunk(WORLD_SIZE, 1)[dist.get_rank()]


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.1}, {"tile": 3}, {"temperature": 2, "tile": 5}])
def test_module_is_the_function(settings):
    z1, z2 = views()
    assert torch.equal(NTXentLoss(**settings)(z1, z2), nt_xent(z1, z2, **settings))


def largest_tensor(pairs, **settings):
    with Largest() as largest:
        NTXentLoss(tile=2, **settings)(*views(pairs))
    return largest.elements


def test_module_bounds_the_memory_with_its_tile():
    assert largest_tensor(64) < (2 * 64) ** 2 / 8


@pytest.mark.parametrize("tile", [None, 4])
def test_gather_changes_nothing_without_a_process_group(tile):
    z1, z2 = views()
    assert torch.equal(NTXentLoss(tile=tile, gather=True)(z1, z2), NTXentLoss(tile=tile)(z1, z2))


def test_module_has_no_state():
    loss = NTXentLoss()
    loss(*views())
    assert loss.state_dict() == {}
    assert not list(loss.parameters())


def test_one_module_serves_batches_of_any_size():
    loss = NTXentLoss()
    for pairs in (6, 2, 9):
        assert torch.equal(loss(*views(pairs)), nt_xent(*views(pairs)))


def saved_and_loaded(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "remade",
    [copy.deepcopy, lambda loss: pickle.loads(pickle.dumps(loss)), saved_and_loaded, lambda loss: eval(repr(loss))],
    ids=["deepcopy", "pickle", "torch.save", "repr"],
)
def test_settings_survive(remade):
    loss = remade(NTXentLoss(temperature=0.2, tile=3, gather=True))
    assert (loss.temperature, loss.tile, loss.gather) == (0.2, 3, True)


def test_repr_shows_the_call():
    assert repr(NTXentLoss()) == "NTXentLoss(temperature=0.5, tile=None, gather=False)"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"temperature": 0}, ValueError, "temperature to be"),
        ({"temperature": math.nan}, ValueError, "temperature to be"),
        ({"temperature": "0.5"}, TypeError, "temperature to be"),
        ({"tile": 0}, ValueError, "tile to be"),
        ({"tile": 2.5}, TypeError, "tile to be"),
        ({"gather": 1}, TypeError, "gather to be"),
        ({"gather": None}, TypeError, "gather to be"),
    ],
)
def test_wrong_settings(settings, error, message):
    with pytest.raises(error, match=re.escape(f"NTXentLoss: expected {message}")):
        NTXentLoss(**settings)


def gathered_step(tile, pairs):
    x1, x2 = mine(views(pairs))
    net = DistributedDataParallel(encoder())
    z = net(torch.cat([x1, x2]))
    loss = NTXentLoss(0.2, tile=tile, gather=True)(*z.chunk(2))
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in net.parameters()]


@pytest.mark.distributed
@pytest.mark.parametrize("pairs", [WORLD_SIZE, PAIRS], ids=["one pair a rank", "three pairs a rank"])
@pytest.mark.parametrize("tile", [None, 1, 4])
def test_ranks_together_equal_one_process(ranks, tile, pairs):
    answers = ranks.run(gathered_step, tile, pairs)
    net = encoder()
    expected = nt_xent(*net(views(pairs).flatten(0, 1)).chunk(2), 0.2)
    expected.backward()
    mean = torch.stack([loss for loss, _ in answers]).mean()
    torch.testing.assert_close(mean, expected.detach(), rtol=EXACT, atol=0)
    for _, gradients in answers:
        for ours, parameter in zip(gradients, net.parameters(), strict=True):
            torch.testing.assert_close(ours, parameter.grad, rtol=0, atol=EXACT)


def gathered_halves(dtype):
    z1, z2 = mine(views(dtype=dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return NTXentLoss(0.05, gather=True)(z1, z2)


@pytest.mark.distributed
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_ranks_compute_in_float32_under_autocast(ranks, dtype):
    mean = torch.stack(ranks.run(gathered_halves, dtype)).mean()
    expected = nt_xent(*views(dtype=dtype).double(), 0.05).float()
    torch.testing.assert_close(mean, expected, rtol=0, atol=4e-5)


@pytest.mark.distributed
def test_ranks_bound_the_memory_with_their_tile(ranks):
    assert max(ranks.run(partial(largest_tensor, 32, gather=True))) < (2 * 64) * (2 * 32) / 4


def without_gather():
    z1, z2 = mine(views())
    return torch.equal(NTXentLoss()(z1, z2), nt_xent(z1, z2))


@pytest.mark.distributed
def test_ranks_are_on_their_own_without_gather(ranks):
    assert ranks.run(without_gather) == [True, True]


def without_graph():
    z1, z2 = mine(views())
    with torch.no_grad():
        return NTXentLoss(gather=True)(z1, z2)


@pytest.mark.distributed
def test_ranks_can_evaluate_without_a_graph(ranks):
    mean = torch.stack(ranks.run(without_graph)).mean()
    torch.testing.assert_close(mean, nt_xent(*views()), rtol=EXACT, atol=0)


def gather_spoiled(spoil):
    z1, z2 = mine(views())
    if dist.get_rank() == 1:
        z1, z2 = SPOILT[spoil](z1, z2)
    NTXentLoss(gather=True)(z1, z2)


SPOILT = {
    "fewer pairs": lambda z1, z2: (z1[:2], z2[:2]),
    "other width": lambda z1, z2: (z1[:, :3], z2[:, :3]),
    "other dtype": lambda z1, z2: (z1.float(), z2.float()),
    "nan": lambda z1, z2: (z1 * math.nan, z2),
    "integers": lambda z1, z2: (z1.long(), z2.long()),
    "views of two dtypes": lambda z1, z2: (z1, z2.float()),
    "no pairs": lambda z1, z2: (z1[:0], z2[:0]),
    "list": lambda z1, z2: (z1.tolist(), z2),
}
UNEVEN = "ValueError: NTXentLoss: expected the same number of pairs on every rank"
ELSEWHERE = "ValueError: NTXentLoss: expected usable embeddings on every rank"
SEEN_BY_BOTH = {
    "fewer pairs": "[2, 5] torch.float64 on rank 1",
    "other width": "[3, 3] torch.float64 on rank 1",
    "other dtype": "[3, 5] torch.float32 on rank 1",
}
SEEN_BY_ONE = {
    "nan": "ValueError: NTXentLoss: expected z1 to be",
    "integers": "TypeError: NTXentLoss: expected z1 to be",
    "views of two dtypes": "TypeError: NTXentLoss: expected z1 and z2 of one dtype",
    "no pairs": "ValueError: NTXentLoss: expected at least 1 pair",
    "list": "TypeError: NTXentLoss: expected z1 to be",
}


@pytest.mark.distributed
@pytest.mark.parametrize("spoil", SEEN_BY_BOTH)
def test_every_rank_reports_unequal_batches(ranks, spoil):
    for text in ranks.errors(gather_spoiled, spoil):
        assert text.startswith(UNEVEN)
        assert SEEN_BY_BOTH[spoil] in text


@pytest.mark.distributed
@pytest.mark.parametrize("spoil", SEEN_BY_ONE)
def test_every_rank_raises_when_one_has_bad_embeddings(ranks, spoil):
    healthy, spoilt = ranks.errors(gather_spoiled, spoil)
    assert healthy.startswith(ELSEWHERE)
    assert spoilt.startswith(SEEN_BY_ONE[spoil])


@pytest.mark.distributed
def test_ranks_go_on_after_an_error(ranks):
    ranks.errors(gather_spoiled, "nan")
    mean = torch.stack(ranks.run(without_graph)).mean()
    torch.testing.assert_close(mean, nt_xent(*views()), rtol=EXACT, atol=0)


def objects_exchanged():
    loss, counts = NTXentLoss(gather=True), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dist, "all_gather_object", Counted(dist.all_gather_object, counts))
        for pairs in (PAIRS, PAIRS, WORLD_SIZE, WORLD_SIZE):
            value = loss(*mine(views(pairs)))
            counts.append("loss")
    return counts, value


class Counted:
    def __init__(self, function, counts):
        self.function, self.counts = function, counts

    def __call__(self, *args):
        self.counts.append("object")
        self.function(*args)


@pytest.mark.distributed
def test_ranks_exchange_objects_only_where_shapes_change(ranks):
    answers = ranks.run(objects_exchanged)
    assert [counts for counts, _ in answers] == [["object", "loss", "loss", "object", "loss", "loss"]] * WORLD_SIZE
    mean = torch.stack([value for _, value in answers]).mean()
    torch.testing.assert_close(mean, nt_xent(*views(WORLD_SIZE)), rtol=EXACT, atol=0)


def spoilt_later(spoil):
    loss, (z1, z2) = NTXentLoss(gather=True), mine(views())
    loss(z1, z2)
    later = SPOILT[spoil](z1, z2) if dist.get_rank() == 1 else (z1, z2)
    try:
        loss(*later)
    except (TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}", loss(z1, z2)


@pytest.mark.distributed
@pytest.mark.parametrize("spoil", SPOILT)
def test_every_rank_raises_when_one_changes_later_and_goes_on(ranks, spoil):
    (healthy, _), (spoilt, _) = answers = ranks.run(spoilt_later, spoil)
    assert healthy.startswith(UNEVEN)
    assert "on rank 1" in healthy
    assert spoilt.startswith(SEEN_BY_ONE.get(spoil, UNEVEN))
    mean = torch.stack([value for _, value in answers]).mean()
    torch.testing.assert_close(mean, nt_xent(*views()), rtol=EXACT, atol=0)


def second_derivative():
    z1, z2 = mine(views()).clone().requires_grad_()
    (slope,) = torch.autograd.grad(NTXentLoss(gather=True)(z1, z2), z1, create_graph=True)
    slope.sum().backward()


@pytest.mark.distributed
def test_gather_refuses_second_derivatives(ranks):
    for text in ranks.errors(second_derivative):
        assert "differentiate twice a function that was marked with @once_differentiable" in text
