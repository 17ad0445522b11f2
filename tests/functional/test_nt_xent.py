"""NT-Xent and alignment, against definitions written without tensors."""

import math
import re
from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from advcontrast.functional import alignment, nt_xent
from advcontrast.functional.nt_xent import contrast, scaled_views
from tests.properties.nt_xent_invariants import T32, T64, Case, gradients, oracle

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
HALF = [torch.float16, torch.bfloat16]


class Largest(TorchDispatchMode):
    """Note the number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


def views(pairs=8, features=16, dtype=torch.float64, noise=2.0):
    z1 = torch.randn(pairs, features, dtype=torch.float64)
    return z1.to(dtype), (z1 + noise * torch.randn(pairs, features, dtype=torch.float64)).to(dtype)


@pytest.mark.parametrize("temperature", [0.01, 0.07, 0.5, 1, 30.0])
@pytest.mark.parametrize("pairs", [2, 3, 17])
def test_value_is_the_definition_in_float64(pairs, temperature):
    z1, z2 = views(pairs)
    expected = oracle(z1, z2, temperature)
    assert abs(nt_xent(z1, z2, temperature).item() - expected) <= T64 * max(1, abs(expected))


@pytest.mark.parametrize("tile", [None, 5])
@pytest.mark.parametrize("temperature", [0.01, 0.5])
@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_inputs_give_a_float32_value(dtype, temperature, tile):
    z1, z2 = views(dtype=dtype)
    value = nt_xent(z1, z2, temperature, tile=tile)
    assert value.dtype == torch.float32
    assert abs(value.item() - oracle(z1, z2, temperature)) <= T32 / temperature


@pytest.mark.parametrize("tile", [None, 5])
@pytest.mark.parametrize("autocast", HALF)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_autocast_leaves_the_value_alone(dtype, autocast, tile):
    z1, z2 = views(dtype=dtype)
    expected = nt_xent(z1, z2, 0.01, tile=tile)
    with torch.autocast("cpu", dtype=autocast):
        assert torch.equal(nt_xent(z1, z2, 0.01, tile=tile), expected)


@pytest.mark.parametrize("tile", [None, 5])
@pytest.mark.parametrize(("dtype", "autocast"), [HALF, HALF[::-1]])
def test_half_precision_of_another_kind_than_autocast_is_fine(dtype, autocast, tile):
    z1, z2 = views(dtype=dtype)
    with torch.autocast("cpu", dtype=autocast):
        value = nt_xent(z1, z2, tile=tile)
    assert torch.equal(value, nt_xent(z1, z2, tile=tile))


def cross_entropy(z1, z2, temperature):
    """Evaluate the loss by PyTorch's own log-softmax, in float64."""
    rows = F.normalize(torch.cat([z1, z2]).double())
    logits = (rows @ rows.T / temperature).fill_diagonal_(-math.inf)
    return F.cross_entropy(logits, torch.arange(len(rows)).roll(len(z1)))


@pytest.mark.parametrize("tile", [None, 1, 5, 40])
@pytest.mark.parametrize("temperature", [0.002, 0.0249, 0.025, 0.0251, 0.1, 3.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_is_that_of_cross_entropy_in_float64(dtype, temperature, tile):
    tolerance = (T64 if dtype == torch.float64 else T32) * max(1, 1 / temperature)
    z1, z2 = views(12, dtype=dtype)
    expected = gradients(cross_entropy, z1, z2, temperature)
    torch.testing.assert_close(gradients(nt_xent, z1, z2, temperature, tile=tile), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("tile", [None, 1, 5, 40])
@pytest.mark.parametrize("temperature", [1e-4, 0.005, 0.01, 0.0249, 0.0251])
def test_opposite_rows_at_low_temperature_stay_in_the_range_of_float32(temperature, tile):
    row = views(1, dtype=torch.float32)[0]
    z1 = torch.cat([row] * 8 + [-row])
    z2 = torch.cat([-row] * 8 + [-row])
    value, slopes = nt_xent(z1, z2, temperature, tile=tile), gradients(nt_xent, z1, z2, temperature, tile=tile)
    expected = cross_entropy(z1, z2, temperature).item()
    assert abs(value.item() - expected) <= T32 / temperature
    assert all(slope.isfinite().all() for slope in slopes)


@pytest.mark.parametrize("tile", [None, 2])
def test_rows_apart_from_all_others_at_low_temperature_keep_their_gradient(tile):
    z1, z2 = views(6, dtype=torch.float32)
    z1[0] = -views(1, dtype=torch.float32)[0]
    expected = gradients(cross_entropy, z1, z2, 0.004)
    torch.testing.assert_close(gradients(nt_xent, z1, z2, 0.004, tile=tile), expected, rtol=0, atol=T32 / 0.004)


@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_second_derivative_equals_finite_differences(temperature):
    z1, z2 = (z.requires_grad_() for z in views(3, 4, noise=0.5))
    assert torch.autograd.gradgradcheck(lambda a, b: temperature * nt_xent(a, b, temperature), (z1, z2), atol=1e-4)


def test_torch_func_differentiates_in_reverse_mode():
    z1, z2 = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    loss = partial(nt_xent, z2=z2)
    gradient = torch.func.grad(loss)(z1)
    leaf = z1.clone().requires_grad_()
    loss(leaf).backward()
    torch.testing.assert_close(gradient, leaf.grad)
    second = torch.func.jacrev(torch.func.jacrev(loss))(z1)
    torch.testing.assert_close(second, torch.autograd.functional.hessian(loss, z1))


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradient_has_the_dtype_of_the_embeddings(dtype):
    assert [slope.dtype for slope in gradients(nt_xent, *views(dtype=dtype), 0.5)] == [dtype, dtype]


@pytest.mark.parametrize("tile", [None, 3])
@pytest.mark.parametrize("dtype", DTYPES)
def test_zero_rows_get_exactly_no_gradient(dtype, tile):
    z1, z2 = views(dtype=dtype)
    z1[2] = 0
    z2[5] = 0
    for1, for2 = gradients(nt_xent, z1, z2, 0.1, tile=tile)
    assert torch.isfinite(for1).all()
    assert torch.isfinite(for2).all()
    assert torch.equal(for1.any(1), torch.arange(8) != 2)
    assert torch.equal(for2.any(1), torch.arange(8) != 5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_zero_costs_log_of_the_others(dtype):
    zero = torch.zeros(4, 3, dtype=dtype)
    assert abs(nt_xent(zero, zero, 0.1).item() - math.log(7)) < 1e-6


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e30])
def test_length_of_rows_does_not_matter_at_the_edge_of_float32(scale):
    z1, z2 = (z.sign() for z in views(dtype=torch.float32))
    assert nt_xent(z1 * scale, z2 * scale).item() == pytest.approx(nt_xent(z1, z2).item(), abs=1e-6)


@pytest.mark.parametrize("scale", [1e-300, 1e-170, 1e160, 1e300])
def test_length_of_rows_does_not_matter_where_squares_leave_float64(scale):
    z1, z2 = torch.randn(2, 4, 8, dtype=torch.float64).unbind()
    z1.requires_grad_()
    expected = nt_xent(z1, z2)
    (slope,) = torch.autograd.grad(expected, z1)
    found = nt_xent(z1 * scale, z2 * scale)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(torch.autograd.grad(found, z1)[0], slope, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_tile_gives_the_dense_value_and_gradient(dtype):
    z1, z2 = views(6, dtype=dtype)
    tolerance = T64 if dtype == torch.float64 else T32
    value, slopes = nt_xent(z1, z2, 0.5), gradients(nt_xent, z1, z2, 0.5)
    for tile in range(1, 14):
        torch.testing.assert_close(nt_xent(z1, z2, 0.5, tile=tile), value, rtol=tolerance, atol=0)
        tiled = gradients(nt_xent, z1, z2, 0.5, tile=tile)
        torch.testing.assert_close(tiled, slopes, rtol=0, atol=tolerance)


def test_tile_passes_the_incoming_gradient_on():
    z1, z2 = views()
    weighted = gradients(lambda *args, **tile: -3 * nt_xent(*args, **tile), z1, z2, 0.5, tile=3)
    torch.testing.assert_close(weighted, tuple(-3 * s for s in gradients(nt_xent, z1, z2, 0.5)), rtol=0, atol=T64)


def test_tile_needs_no_graph():
    z1, z2 = views()
    expected = nt_xent(z1, z2)
    with torch.inference_mode():
        torch.testing.assert_close(nt_xent(z1, z2, tile=4), expected, rtol=T64, atol=0)


@pytest.mark.parametrize("tile", [None, 1, 3])
@pytest.mark.parametrize("temperature", [0.02, 0.5])
def test_anchors_in_three_parts_have_the_mean_value_and_gradient_of_all(temperature, tile):
    def parted(z1, z2, temperature):
        rows = scaled_views(z1, z2, temperature)
        halves = rows.view(2, 3, -1, rows.shape[1])
        parts = [halves[:, i].flatten(0, 1) for i in range(3)]
        settings = {"temperature": temperature, "tile": tile}
        return sum(contrast(part, rows, first=2 * i, **settings) for i, part in enumerate(parts)) / 3

    z1, z2 = views(6)
    torch.testing.assert_close(parted(z1, z2, temperature), nt_xent(z1, z2, temperature), rtol=T64, atol=0)
    expected = gradients(nt_xent, z1, z2, temperature)
    torch.testing.assert_close(gradients(parted, z1, z2, temperature), expected, rtol=0, atol=T64 / temperature)


def largest_tensor(tile):
    z1, z2 = (z.requires_grad_() for z in views(512, dtype=torch.float32))
    with Largest() as largest:
        nt_xent(z1, z2, tile=tile).backward()
    return largest.elements


@pytest.mark.parametrize("tile", [16, 64])
def test_tile_bounds_the_memory(tile):
    assert largest_tensor(tile) <= tile * 2 * 512


def test_without_tile_the_memory_is_quadratic():
    assert largest_tensor(None) == 4 * 512**2


def test_no_graph_without_gradients():
    z1, z2 = (z.requires_grad_() for z in views())
    with torch.no_grad():
        assert not nt_xent(z1, z2).requires_grad
        assert not nt_xent(z1, z2, tile=3).requires_grad
    assert not nt_xent(z1.detach(), z2.detach(), tile=3).requires_grad


@pytest.mark.parametrize("tile", [None, 4])
def test_strides_do_not_matter(tile):
    z1, z2 = views()
    expected = nt_xent(z1, z2, tile=tile)
    strided = nt_xent(z1.T.contiguous().T, z2.repeat_interleave(2, 1)[:, ::2], tile=tile)
    torch.testing.assert_close(strided, expected, rtol=T64, atol=0)


def test_one_feature_is_enough():
    z1, z2 = views(4, 1)
    assert nt_xent(z1, z2, 0.3).item() == pytest.approx(oracle(z1, z2, 0.3), rel=T64)


def test_compiles_into_one_graph_with_the_same_bits():
    torch.compiler.reset()
    z1, z2 = views(dtype=torch.float32)
    compiled = torch.compile(nt_xent, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(z1, z2, 0.1), nt_xent(z1, z2, 0.1))
    for ours, eager in zip(gradients(compiled, z1, z2, 0.1), gradients(nt_xent, z1, z2, 0.1), strict=True):
        assert torch.equal(ours, eager)


@pytest.mark.parametrize("temperature", [0.01, 0.1])
@pytest.mark.sample(1)
def test_tiles_compile_into_one_graph_with_the_same_bits(temperature):
    torch.compiler.reset()
    z1, z2 = views(dtype=torch.float32)
    compiled = torch.compile(nt_xent, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(z1, z2, temperature, tile=5), nt_xent(z1, z2, temperature, tile=5))
    slopes = gradients(nt_xent, z1, z2, temperature, tile=5)
    for ours, eager in zip(gradients(compiled, z1, z2, temperature, tile=5), slopes, strict=True):
        assert torch.equal(ours, eager)


def test_smaller_last_batch_recompiles_once():
    torch.compiler.reset()
    counted = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(nt_xent, backend=counted, fullgraph=True)
    for pairs in (8, 7, 6, 5, 4):
        compiled(*views(pairs, dtype=torch.float32))
    assert counted.frame_count <= 2


GOOD = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
HOLES = GOOD.index_put(
    (torch.tensor([0, 1, 3]), torch.tensor([7, 0, 4])), torch.tensor([math.nan, math.inf, -math.inf])
)


@pytest.mark.parametrize(
    ("z1", "z2", "error", "message"),
    [
        (GOOD, GOOD[:3], ValueError, "z1 and z2 to have"),
        (GOOD, GOOD[:, :7], ValueError, "z1 and z2 to have"),
        (GOOD[0], GOOD[0], ValueError, "z1 and z2 to have"),
        (GOOD[None], GOOD[None], ValueError, "z1 and z2 to have"),
        (GOOD[:, :0], GOOD[:, :0], ValueError, "at least 1 feature"),
        (GOOD.long(), GOOD, TypeError, "z1 to be"),
        (GOOD, GOOD > 0, TypeError, "z2 to be"),
        (GOOD.cfloat(), GOOD, TypeError, "z1 to be"),
        (GOOD, GOOD.numpy(), TypeError, "z2 to be"),
        (GOOD.tolist(), GOOD, TypeError, "z1 to be"),
        (None, GOOD, TypeError, "z1 to be"),
        (GOOD, GOOD.double(), TypeError, "z1 and z2 of one dtype"),
        (GOOD, GOOD.to("meta"), ValueError, "z1 and z2 on one device"),
        (GOOD, HOLES, ValueError, "z2 to be"),
        (GOOD * math.nan, GOOD, ValueError, "z1 to be"),
    ],
)
@pytest.mark.parametrize("function", [nt_xent, alignment], ids=lambda function: function.__name__)
def test_wrong_embeddings(function, z1, z2, error, message):
    with pytest.raises(error, match=re.escape(f"{function.__name__}: expected {message}")):
        function(z1, z2)


@pytest.mark.parametrize("pairs", [0, 1])
def test_pairs_need_negatives(pairs):
    with pytest.raises(ValueError, match=f"^nt_xent: expected at least 2 pairs, got {pairs}"):
        nt_xent(GOOD[:pairs], GOOD[:pairs])


@pytest.mark.parametrize(
    ("temperature", "error", "got"),
    [
        (0, ValueError, "0"),
        (-1, ValueError, "-1"),
        (math.nan, ValueError, "nan"),
        (math.inf, ValueError, "inf"),
        ("0.5", TypeError, "str"),
        (True, TypeError, "bool"),
        (None, TypeError, "NoneType"),
        (torch.tensor(0.5), TypeError, "torch.float32"),
        (1j, TypeError, "complex"),
    ],
)
def test_wrong_temperature(temperature, error, got):
    message = f"nt_xent: expected temperature to be a finite number > 0, got {got}"
    with pytest.raises(error, match=re.escape(message)):
        nt_xent(GOOD, GOOD, temperature)


@pytest.mark.parametrize(
    ("tile", "error", "got"),
    [(0, ValueError, "0"), (-1, ValueError, "-1"), (2.5, TypeError, "float"), (True, TypeError, "bool")],
)
def test_wrong_tile(tile, error, got):
    message = f"nt_xent: expected tile to be an int >= 1, got {got}"
    with pytest.raises(error, match=re.escape(message)):
        nt_xent(GOOD, GOOD, tile=tile)


def test_numpy_numbers_are_numbers():
    assert torch.equal(nt_xent(GOOD, GOOD, np.float64(0.5), tile=np.int64(3)), nt_xent(GOOD, GOOD, 0.5, tile=3))


@pytest.mark.parametrize("seed", range(5))
def test_alignment_is_the_squared_distance_of_the_directions(seed):
    z1, z2 = Case(5, 3, 0.5, seed).views()
    expected = 0.0
    for a, b in zip(z1.tolist(), z2.tolist(), strict=True):
        expected += sum((p / math.hypot(*a) - q / math.hypot(*b)) ** 2 for p, q in zip(a, b, strict=True)) / 5
    assert alignment(z1, z2).item() == pytest.approx(expected, rel=T64)


def test_alignment_runs_from_0_to_4():
    assert alignment(GOOD, 3 * GOOD).item() == pytest.approx(0, abs=1e-12)
    assert alignment(GOOD, -GOOD).item() == pytest.approx(4, rel=1e-6)


def test_alignment_of_one_pair_is_defined():
    assert alignment(GOOD[:1].double(), GOOD[1:2].double()).item() > 0


def test_alignment_of_no_pair_is_not():
    with pytest.raises(ValueError, match=re.escape("alignment: expected at least 1 pair")):
        alignment(GOOD[:0], GOOD[:0])


def test_alignment_of_zero_rows_has_no_gradient():
    z1, z2 = views(3)
    z1[0] = 0
    slopes = gradients(lambda a, b, _: alignment(a, b), z1, z2, None)
    assert torch.equal(slopes[0].any(1), torch.tensor([False, True, True]))
    assert all(slope.isfinite().all() for slope in slopes)


def test_alignment_gradient_equals_finite_differences():
    z1, z2 = (z.requires_grad_() for z in views(3, 4))
    assert torch.autograd.gradcheck(alignment, (z1, z2))


def test_tile_refuses_second_derivatives():
    z1, z2 = (z.requires_grad_() for z in views())
    loss = nt_xent(z1, z2, tile=4)
    with pytest.raises(RuntimeError, match="nt_xent: expected first derivatives only where tile is set"):
        torch.autograd.grad(loss, z1, create_graph=True)


def test_who_wants_second_derivatives_is_told_to_leave_tile_out():
    z1, z2 = (z.requires_grad_() for z in views())
    message = "got create_graph. Pass tile=None to differentiate twice."
    with pytest.raises(RuntimeError, match=re.escape(message)):
        torch.autograd.grad(nt_xent(z1, z2, tile=4), z1, create_graph=True)


@pytest.mark.parametrize("tile", [None, 3])
@pytest.mark.parametrize("temperature", [1e-30, 1e-20])
def test_the_lowest_temperatures_keep_float32_finite(temperature, tile):
    z = torch.randn(2, 64, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = nt_xent(*z, temperature, tile=tile)
    (gradient,) = torch.autograd.grad(loss, z)
    torch.testing.assert_close(loss.double(), nt_xent(*z.detach().double(), temperature), rtol=1e-5, atol=0)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("temperature", [1e-31, 1e-38, 5e-324])
def test_a_temperature_that_leaves_float32_is_refused(temperature):
    with pytest.raises(ValueError, match=r"^nt_xent: expected temperature >= 1e-30"):
        nt_xent(torch.ones(2, 3), torch.ones(2, 3), temperature)
