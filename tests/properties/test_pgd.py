"""PGD keeps every invariant on attacks drawn at random."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from advcontrast import PGDAttack
from tests.properties import pgd_invariants as invariants

CASES = st.builds(
    invariants.Case,
    norm=st.sampled_from(["linf", "l2"]),
    eps=st.sampled_from([1 / 255, 8 / 255, 16 / 255, 0.031, 0.3]),
    ratio=st.sampled_from([0.3, 0.7, 1.6]),
    steps=st.integers(1, 4),
    samples=st.integers(2, 3),
    grid=st.booleans(),
    bounds=st.sampled_from([(0.0, 1.0), (-1.0, 1.0)]),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    seed=st.integers(0, 2**20),
)


@pytest.mark.parametrize("invariant", invariants.INVARIANTS, ids=lambda invariant: invariant.__name__)
@given(case=CASES)
def test_attack(invariant, case):
    invariant(PGDAttack, case)
