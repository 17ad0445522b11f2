"""A classifier and what it says of some images."""

import pytest

from advcontrast.attacks import under_attack
from tests.adapters.networks import classifier, images


@pytest.fixture
def model():
    return classifier()


@pytest.fixture
def labels(model):
    with under_attack(model):
        return model(images()).argmax(1)
