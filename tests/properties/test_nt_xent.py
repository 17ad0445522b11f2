"""NT-Xent keeps every invariant on batches drawn at random."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advcontrast.functional import nt_xent
from tests.properties import nt_xent_invariants as invariants

CASES = st.builds(
    invariants.Case,
    pairs=st.integers(2, 6),
    features=st.integers(1, 8),
    temperature=st.sampled_from([0.1, 0.3, 0.5, 1.0, 5.0]),
    seed=st.integers(0, 2**20),
)


@pytest.mark.parametrize("invariant", invariants.FAST, ids=lambda invariant: invariant.__name__)
@given(case=CASES)
def test_value_and_gradient(invariant, case):
    invariant(nt_xent, case)


@pytest.mark.parametrize("invariant", invariants.SLOW, ids=lambda invariant: invariant.__name__)
@given(case=CASES)
@settings(max_examples=25)
def test_derivatives(invariant, case):
    invariant(nt_xent, case)
