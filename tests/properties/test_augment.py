"""The recipe and the pairs, on random batches."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advcontrast.augment import ContrastivePairAugment, SimCLRAugment
from tests.properties.augment_invariants import DRAWS, PAIR, RECIPE, Case

SIDES = st.integers(1, 12)
CASES = st.builds(
    Case,
    n=st.integers(0, 5),
    channels=st.sampled_from([1, 3]),
    height=SIDES,
    width=SIDES,
    size=st.tuples(SIDES, SIDES),
    strength=st.sampled_from([0.0, 0.3, 1.0]),
    dtype=st.sampled_from([torch.uint8, torch.float32, torch.float64]),
    seed=st.integers(0, 2**32),
)


@pytest.mark.parametrize("invariant", RECIPE, ids=lambda invariant: invariant.__name__)
@given(case=CASES)
def test_the_recipe(invariant, case):
    invariant(SimCLRAugment, case)


@pytest.mark.parametrize("invariant", PAIR, ids=lambda invariant: invariant.__name__)
@settings(max_examples=25)
@given(case=CASES)
def test_pairs(invariant, case):
    invariant(ContrastivePairAugment, case)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("invariant", DRAWS, ids=lambda invariant: invariant.__name__)
def test_draws(invariant, seed):
    invariant(SimCLRAugment, Case(1, 3, 32, 32, (32, 32), 1.0, torch.float32, seed))
