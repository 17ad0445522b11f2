"""No value of many leaves the ball."""

import pytest
import torch

from advcontrast import PGDAttack
from advcontrast.attacks import FreeAttack


@pytest.mark.parametrize("attack", [PGDAttack, FreeAttack], ids=lambda attack: attack.__name__)
@pytest.mark.parametrize("eps", [1 / 255, 8 / 255, 0.031, 0.3])
def test_millions_of_values_lie_in_the_cube(attack, eps):
    generator = torch.Generator().manual_seed(int(255 * eps))
    x = torch.rand(250, 1, 50, 100, generator=generator)
    weights = torch.randn(x.shape[1:], generator=generator)
    adv = attack(eps=eps, step_size=0.7 * eps)(lambda x: (x * weights).sum((1, 2, 3)), x, generator=generator)
    # The difference of two such float32 numbers has a float64 of its own.
    moved = (adv.double() - x.double()).abs()
    assert moved.max() <= eps
    assert moved.max() > 0.99 * eps
