"""Memory that NT-Xent keeps for the backward pass, the products of rows that it computes, and its operations."""

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from advcontrast.functional import nt_xent
from advcontrast.functional.nt_xent import contrast, scaled_views

PAIRS, FEATURES = 64, 16
ROWS = 2 * PAIRS
PRODUCT = ROWS * ROWS * FEATURES  # multiplications of all rows with all rows


class Multiplications(TorchDispatchMode):
    """Count the multiplications of every matrix product, also of those in place."""

    number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            left, right = args[-2:]
            self.number += left.shape[0] * left.shape[1] * right.shape[1]
        return function(*args, **(kwargs or {}))


class Operations(TorchDispatchMode):
    """Count the operations that make tensors other than views; on an accelerator each launches a kernel."""

    number = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.number += isinstance(result, torch.Tensor) and not function.is_view
        return result


def views():
    return torch.randn(2, PAIRS, FEATURES, requires_grad=True).unbind()


def kept(**settings):
    """Return the number of elements of each different memory that waits for the backward pass."""
    memories = {}

    def note(tensor):
        memories[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // tensor.element_size()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        value = nt_xent(*views(), **settings)
    value.detach()
    return list(memories.values())


def multiplications(*, backward=True, **settings):
    with Multiplications() as counted:
        value = nt_xent(*views(), **settings)
        if backward:
            value.backward()
    return counted.number


@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_one_matrix_waits_for_the_backward_pass(temperature):
    assert [size for size in kept(temperature=temperature) if size >= ROWS * ROWS] == [ROWS * ROWS]


@pytest.mark.parametrize("temperature", [0.01, 0.5])
@pytest.mark.parametrize("tile", [8, 64])
def test_only_rows_wait_where_tile_is_set(tile, temperature):
    assert max(kept(temperature=temperature, tile=tile)) <= ROWS * FEATURES


@pytest.mark.parametrize("temperature", [0.01, 0.5])
def test_three_products_without_tile(temperature):
    assert multiplications(temperature=temperature) == 3 * PRODUCT


@pytest.mark.parametrize("tile", [1, 8, 24, 500])
def test_two_products_where_tile_is_set(tile):
    assert multiplications(tile=tile) == 2 * PRODUCT


def test_three_products_where_tile_is_set_and_the_exponentials_need_a_shift():
    assert multiplications(tile=8, temperature=0.01) == 3 * PRODUCT


@pytest.mark.parametrize("tile", [None, 8])
def test_one_product_where_no_gradient_is_wanted(tile):
    with torch.no_grad():
        assert multiplications(tile=tile, backward=False) == PRODUCT


@pytest.mark.parametrize(
    ("dtype", "forward", "backward"), [(torch.float16, 14, 18), (torch.bfloat16, 15, 18), (torch.float32, 14, 17)]
)
def test_few_operations(dtype, forward, backward):
    z1, z2 = (z.to(dtype) for z in views())
    with Operations() as counted:
        value = contrast(scaled_views(z1, z2, 0.5), temperature=0.5, tile=None)  # without the checks of a CPU
    assert counted.number == forward
    with Operations() as counted:
        torch.autograd.grad(value, (z1, z2))
    assert counted.number == backward
