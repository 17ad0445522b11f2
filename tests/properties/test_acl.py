"""A step of training, in every mode, on random batches and networks."""

from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advcontrast import ACLTrainer
from advcontrast._types import Mode
from tests.properties.acl_invariants import INVARIANTS, Case

CASES = st.builds(
    Case,
    mode=st.sampled_from(get_args(Mode)),
    n=st.integers(2, 5),
    alpha=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    eps=st.sampled_from([0.0, 8 / 255, 0.5]),
    norm=st.sampled_from(["dual", "single"]),
    seed=st.integers(0, 2**32),
)


@pytest.mark.parametrize("invariant", INVARIANTS, ids=lambda invariant: invariant.__name__)
@settings(max_examples=50)
@given(case=CASES)
def test_a_step(invariant, case):
    invariant(ACLTrainer, case)
