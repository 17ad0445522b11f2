"""kornia and torchvision v2 as the transform of ``ContrastivePairAugment``."""

import random

import numpy as np
import pytest
import torch

from advcontrast import ACLTrainer, ContrastivePairAugment, PGDAttack

kornia = pytest.importorskip("kornia.augmentation", reason="kornia is not installed")
v2 = pytest.importorskip("torchvision.transforms.v2", reason="torchvision is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

N = 12
SAME = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).expand(N, -1, -1, -1).contiguous()
TRANSFORMS = {
    "kornia sequence": lambda: kornia.AugmentationSequential(
        kornia.RandomResizedCrop((16, 16), scale=(0.2, 1.0)),
        kornia.RandomHorizontalFlip(),
        kornia.ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8),
        kornia.RandomGrayscale(p=0.2),
    ),
    "kornia keys": lambda: kornia.AugmentationSequential(kornia.RandomResizedCrop((16, 16)), data_keys=["input"]),
    "kornia crop": lambda: kornia.RandomResizedCrop((16, 16), scale=(0.2, 1.0)),
    "kornia jitter": lambda: kornia.ColorJitter(0.4, 0.4, 0.4, 0.1, p=1.0),
    "kornia affine": lambda: kornia.RandomAffine(20.0, p=1.0),
    "kornia blur": lambda: kornia.RandomGaussianBlur((3, 3), (0.1, 2.0), p=1.0),
    "kornia in a list": lambda: torch.nn.Sequential(kornia.RandomResizedCrop((16, 16)), kornia.RandomHorizontalFlip()),
    "v2 composition": lambda: v2.Compose(
        [
            v2.RandomResizedCrop(16, scale=(0.2, 1.0), antialias=True),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.ToDtype(torch.float32, scale=True),
        ]
    ),
    "v2 crop": lambda: v2.RandomResizedCrop(16, scale=(0.2, 1.0)),
    "v2 bicubic": lambda: v2.RandomResizedCrop(16, interpolation=v2.InterpolationMode.BICUBIC),
    "v2 jitter": lambda: v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
    "v2 blur": lambda: v2.GaussianBlur(3),
    "v2 augment": v2.TrivialAugmentWide,
    "v2 in a list": lambda: torch.nn.Sequential(v2.RandomResizedCrop(16), v2.RandomHorizontalFlip()),
}


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def augment(name):
    torch.manual_seed(0)
    return ContrastivePairAugment(transform=TRANSFORMS[name]())


def distinct(views):
    return len({tuple(view.flatten().tolist()) for view in views})


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_image_and_each_view_draws_its_own(name):
    x1, x2 = augment(name)(SAME, seeded())
    assert distinct(torch.cat([x1, x2])) > N


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_views_are_floats_in_the_unit_range(name, dtype):
    images = (SAME * 255).to(dtype) if dtype == torch.uint8 else SAME
    before = images.clone()
    for view in augment(name)(images, seeded()):
        assert view.dtype == torch.float32
        assert view.shape == SAME.shape
        assert view.min() >= 0
        assert view.max() <= 1
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_generator_decides_the_views_and_the_global_state_stays(name):
    pair = augment(name)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]
    first = pair(SAME, seeded(1))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.array_equal(np.random.get_state()[1], before[2])
    torch.rand(5)
    again, other = pair(SAME, seeded(1)), pair(SAME, seeded(2))
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert not any(torch.equal(one, two) for one, two in zip(first, other, strict=True))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_without_a_generator_the_global_seed_decides(name):
    pair, found = augment(name), []
    for _ in range(2):
        torch.manual_seed(3)
        found.append(pair(SAME)[0])
    assert torch.equal(*found)
    assert not torch.equal(pair(SAME)[0], found[0])


@pytest.mark.parametrize("name", ["kornia sequence", "v2 composition"])
def test_acl_trains_on_the_views(name):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, 8), torch.nn.BatchNorm1d(8))
    acl = ACLTrainer(model, attack=PGDAttack(steps=1), augment=augment(name), mode="A2A")
    acl((SAME * 255).to(torch.uint8), generator=seeded()).loss.backward()
    assert model[1].weight.grad.any()


def test_a_crop_of_kornia_is_what_kornia_itself_makes_of_the_batch():
    crop = kornia.RandomResizedCrop((16, 16))
    torch.manual_seed(4)
    x1, x2 = ContrastivePairAugment(transform=crop)(SAME)
    torch.manual_seed(4)
    assert torch.equal(x1, crop(SAME).clamp(0, 1))
    assert torch.equal(x2, crop(SAME).clamp(0, 1))


def test_a_crop_of_torchvision_is_what_it_makes_image_by_image():
    crop = v2.RandomResizedCrop(16)
    torch.manual_seed(4)
    x1, _ = ContrastivePairAugment(transform=crop)(SAME)
    torch.manual_seed(4)
    assert torch.equal(x1, torch.stack([crop(image) for image in SAME]).clamp(0, 1))
