"""Dual batch norms keep their promises on networks of every shape."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.properties.dual_bn_cases import LAYOUTS, Case
from tests.properties.dual_bn_invariants import INVARIANTS, Implementation

CASES = st.builds(
    Case,
    seed=st.integers(0, 2**16),
    dim=st.sampled_from((1, 2, 3)),
    channels=st.integers(1, 4),
    layout=st.sampled_from(LAYOUTS),
    affine=st.booleans(),
    track=st.booleans(),
    momentum=st.sampled_from((0.3, None, 0.0, 1.0)),
    eps=st.sampled_from((1e-5, 1e-3, 1.0)),
    fused=st.booleans(),
    frozen=st.booleans(),
    dtype=st.sampled_from((torch.float32, torch.float64, torch.bfloat16)),
)


@pytest.mark.parametrize("invariant", INVARIANTS, ids=lambda invariant: invariant.__name__)
@given(case=CASES)
def test_dual_norms_keep_the_invariant(invariant, case):
    invariant(Implementation(), case)
