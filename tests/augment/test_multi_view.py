"""Views of several augmentations."""

import pytest
import torch

from advcontrast import ContrastivePairAugment
from advcontrast.augment import CropFlip, MultiView, Replay


def test_views_come_in_the_order_of_their_augmentations():
    augment = MultiView(lambda x: x, lambda x: (x + 1, x + 2), lambda x: x + 3)
    assert [view.item() for view in augment(torch.zeros(1))] == [0, 1, 2, 3]


def test_a_generator_makes_all_views():
    x, augment = torch.rand(4, 3, 8, 8), MultiView(CropFlip(), ContrastivePairAugment(8))
    ours, again = (augment(x, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    assert all(map(torch.equal, ours, again))


def test_the_state_of_an_augmentation_is_saved():
    augment, other = (MultiView(Replay(lambda x: x, times=2)) for _ in range(2))
    augment(torch.zeros(1))
    other.load_state_dict(augment.state_dict())
    assert other(torch.ones(1))[0].item() == 0


@pytest.mark.parametrize(("augments", "error"), [((), ValueError), ((None,), TypeError)])
def test_wrong_augmentations(augments, error):
    with pytest.raises(error, match=r"^MultiView: expected"):
        MultiView(*augments)
