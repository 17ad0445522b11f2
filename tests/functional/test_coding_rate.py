"""The coding rate of embeddings."""

import math

import pytest
import torch

from advcontrast.functional import coding_rate
from tests.strategies.methods import known

CLOSE = {"rel": 0, "abs": 1e-9}
F64 = {"dtype": torch.float64}


def test_parallel_embeddings():
    assert coding_rate(torch.ones(4, 4, **F64)).item() == pytest.approx(math.log(21) / 2, **CLOSE)


def test_orthogonal_embeddings():
    assert coding_rate(3 * torch.eye(4, **F64)).item() == pytest.approx(2 * math.log(6), **CLOSE)


def test_known_embeddings():
    assert coding_rate(known(0).flatten(1)).item() == pytest.approx(2.1947278001, **CLOSE)


@pytest.mark.parametrize("n", [2, 7])
def test_it_is_the_determinant_for_few_and_many_embeddings(n):
    z = torch.randn(n, 5, generator=torch.Generator().manual_seed(0), **F64)
    unit = z / z.norm(dim=1, keepdim=True)
    expected = torch.logdet(torch.eye(5, **F64) + 5 / (n * 0.3) * unit.T @ unit) / 2
    torch.testing.assert_close(coding_rate(z, 0.3), expected)


def test_half_precision_is_computed_in_float32():
    with torch.autocast("cpu", torch.bfloat16):
        assert coding_rate(torch.eye(4)).dtype == torch.float32
