"""Pairs of views, by the default recipe or by any transform."""

from functools import partial

import pytest
import torch
from torch import nn
from torchvision import transforms as v1
from torchvision.transforms import v2

from advcontrast.augment import ContrastivePairAugment, SimCLRAugment


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(*shape, dtype=torch.float32):
    return torch.rand(*shape, generator=seeded(1), dtype=dtype)


class AddNoise(nn.Module):
    def forward(self, x):
        return (x + 0.1 * torch.rand_like(x)).clamp(0, 1)


def random_transforms():
    crop = {"size": 8, "scale": (0.2, 0.8), "antialias": True}
    return {
        "torchvision v2": v2.RandomResizedCrop(**crop),
        "composed torchvision v2": v2.Compose([v2.RandomResizedCrop(**crop), v2.RandomHorizontalFlip()]),
        "torchvision v1": v1.RandomResizedCrop(**crop),
        "composed torchvision v1": v1.Compose([v1.RandomResizedCrop(**crop), v1.RandomGrayscale(0.2)]),
        "torchvision in a module": nn.Sequential(AddNoise(), v2.RandomResizedCrop(**crop)),
        "module": AddNoise(),
        "function": lambda x: x * torch.rand(len(x), 1, 1, 1),
        "SimCLRAugment": SimCLRAugment(8),
    }


any_transform = pytest.mark.parametrize("transform", random_transforms().values(), ids=random_transforms().keys())


def test_the_default_is_simclrs_recipe_twice():
    x, generator = images(8, 3, 32, 32), seeded()
    expected = [SimCLRAugment(32)(x, generator) for _ in range(2)]
    assert all(map(torch.equal, ContrastivePairAugment()(x, seeded()), expected))


def test_the_smallest_area_is_that_of_the_recipe():
    x, generator = images(8, 3, 32, 32), seeded()
    expected = [SimCLRAugment(min_area=0.9)(x, generator) for _ in range(2)]
    assert all(map(torch.equal, ContrastivePairAugment(min_area=0.9)(x, seeded()), expected))


def test_strength_and_size_are_those_of_the_recipe():
    x, generator = images(8, 3, 20, 20), seeded()
    expected = [SimCLRAugment((16, 24), strength=0.3)(x, generator) for _ in range(2)]
    assert all(map(torch.equal, ContrastivePairAugment((16, 24), strength=0.3)(x, seeded()), expected))


def test_bytes_give_the_views_of_the_floats_that_they_stand_for():
    x = (256 * images(8, 3, 16, 16)).byte()
    assert all(map(torch.equal, ContrastivePairAugment(16)(x, seeded()), ContrastivePairAugment(16)(x / 255, seeded())))


def test_writing_into_a_view_leaves_the_other_alone():
    x1, x2 = ContrastivePairAugment(8)(images(4, 3, 8, 8))
    before = x2.clone()
    x1.zero_()
    assert torch.equal(x2, before)


def test_both_views_are_blocks_of_memory():
    assert all(view.is_contiguous() for view in ContrastivePairAugment(8)(images(5, 3, 9, 9)))


def test_both_views_of_channels_last_images_are_channels_last():
    x = images(5, 3, 9, 9).contiguous(memory_format=torch.channels_last)
    assert all(view.is_contiguous(memory_format=torch.channels_last) for view in ContrastivePairAugment(8)(x))


@any_transform
def test_the_two_views_of_every_image_differ(transform):
    x1, x2 = ContrastivePairAugment(transform=transform)(images(16, 3, 32, 32))
    assert (x1 != x2).flatten(1).any(1).all()


@any_transform
def test_images_of_a_batch_are_transformed_differently(transform):
    x1, _ = ContrastivePairAugment(transform=transform)(images(1, 3, 32, 32).expand(16, -1, -1, -1))
    assert len(x1.flatten(1).unique(dim=0)) == 16


@any_transform
def test_a_generator_makes_a_transform_deterministic(transform):
    augment, x = ContrastivePairAugment(transform=transform), images(8, 3, 8, 8)
    torch.manual_seed(1)
    first = augment(x, seeded(3))
    torch.manual_seed(2)
    assert all(map(torch.equal, augment(x, seeded(3)), first))


@any_transform
def test_a_generator_moves_on_between_calls(transform):
    augment, x, generator = ContrastivePairAugment(transform=transform), images(8, 3, 8, 8), seeded()
    assert not torch.equal(augment(x, generator)[0], augment(x, generator)[0])


@any_transform
def test_with_a_generator_the_global_state_is_restored(transform):
    before = torch.get_rng_state()
    ContrastivePairAugment(transform=transform)(images(4, 3, 8, 8), seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_global_state_is_restored_when_a_transform_raises():
    def broken(x):
        torch.rand(3)
        raise RuntimeError("broken")

    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="broken"):
        ContrastivePairAugment(transform=broken)(images(2, 3, 8, 8), seeded())
    assert torch.equal(torch.get_rng_state(), before)


@any_transform
def test_without_a_generator_the_global_state_decides(transform):
    augment, x = ContrastivePairAugment(transform=transform), images(8, 3, 8, 8)
    torch.manual_seed(4)
    first = augment(x)
    torch.manual_seed(4)
    assert all(map(torch.equal, augment(x), first))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float64])
def test_a_transform_gets_the_batch_as_floats_in_the_unit_range(dtype):
    seen = []
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).to(dtype) / (1 if dtype == torch.uint8 else 255)
    ContrastivePairAugment(transform=lambda x: seen.append(x) or x)(x.to(dtype))
    expected = torch.arange(256, dtype=torch.float64 if dtype == torch.float64 else torch.float32).view_as(x) / 255
    assert all(torch.equal(batch, expected) for batch in seen)
    assert len(seen) == 2


def test_a_torchvision_transform_is_called_image_by_image():
    seen = []
    transform = v1.Compose([lambda image: seen.append(image.shape) or image])
    ContrastivePairAugment(transform=transform)(images(3, 1, 4, 5))
    assert seen == 6 * [(1, 4, 5)]


def test_views_of_a_transform_may_have_another_size():
    x1, x2 = ContrastivePairAugment(transform=lambda x: x[..., :4, :6])(images(3, 1, 8, 8))
    assert x1.shape == x2.shape == (3, 1, 4, 6)


@pytest.mark.parametrize("n", [0, 1])
def test_small_batches_have_two_views(n):
    x1, x2 = ContrastivePairAugment(8)(torch.ones(n, 3, 9, 9, dtype=torch.uint8))
    assert x1.shape == x2.shape == (n, 3, 8, 8)


@pytest.mark.parametrize(
    ("augment", "expected"),
    [
        (ContrastivePairAugment(), "ContrastivePairAugment(32, strength=1.0, min_area=0.1, transform=None)"),
        (ContrastivePairAugment((8, 9), min_area=0.5), "ContrastivePairAugment((8, 9), strength=1.0, min_area=0.5, tr"),
        (ContrastivePairAugment(transform=abs), "ContrastivePairAugment(32, strength=1.0, min_area=0.1, transform=<b"),
    ],
)
def test_repr_reads_as_the_call(augment, expected):
    assert repr(augment).startswith(expected)


STRENGTH = r"strength to be a finite number >= 0 and <= 1"


@pytest.mark.parametrize(
    ("error", "settings", "match"),
    [
        (ValueError, {"size": 0}, "size to be"),
        (ValueError, {"size": -3}, "size to be"),
        (ValueError, {"size": (8, 0)}, "size to be"),
        (ValueError, {"size": (32,)}, "size to be"),
        (TypeError, {"size": 8.0}, "size to be"),
        (TypeError, {"size": True}, "size to be"),
        (TypeError, {"size": [8, 8]}, "size to be"),
        (ValueError, {"strength": -0.1}, "strength to be"),
        (ValueError, {"strength": 1.1}, "strength to be"),
        (ValueError, {"strength": float("nan")}, "strength to be"),
        (ValueError, {"min_area": 0.0}, "min_area to be"),
        (ValueError, {"transform": abs, "min_area": 0.08}, "no min_area with a transform"),
        (TypeError, {"strength": "1"}, "strength to be"),
        (TypeError, {"transform": 3}, "transform to be"),
        (ValueError, {"transform": abs, "strength": 0.5}, "no strength with a transform"),
    ],
)
def test_wrong_settings_are_refused(error, settings, match):
    with pytest.raises(error, match=f"^ContrastivePairAugment: expected {match}"):
        ContrastivePairAugment(**settings)


SHAPE = r"x of shape \[N, C, H, W\] with C = 1 or 3"
CONVERT = r"Convert with torchvision\.transforms\.functional\.pil_to_tensor, and stack to a batch\."
DTYPE = r"x to be a torch\.uint8 or torch\.float32 or torch\.float64 tensor"
BATCH = r"Pass a batch of gray or RGB images\."


@pytest.mark.parametrize("transform", [None, lambda x: x], ids=["recipe", "transform"])
@pytest.mark.parametrize(
    ("error", "x", "match"),
    [
        (ValueError, torch.ones(3, 8, 8), rf"{SHAPE}, got \[3, 8, 8\]\. {BATCH}"),
        (ValueError, torch.ones(2, 1, 3, 8, 8), rf"{SHAPE}, got \[2, 1, 3, 8, 8\]\. {BATCH}"),
        (ValueError, torch.ones(1, 2, 8, 8), rf"{SHAPE}, got \[1, 2, 8, 8\]\. {BATCH}"),
        (ValueError, torch.ones(1, 3, 0, 8), rf"{SHAPE}, got \[1, 3, 0, 8\]\. {BATCH}"),
        (TypeError, torch.ones(1, 3, 8, 8).int(), rf"{DTYPE}, got torch\.int32\. {CONVERT}"),
        (TypeError, torch.ones(1, 3, 8, 8).half(), rf"{DTYPE}, got torch\.float16\. {CONVERT}"),
        (TypeError, torch.ones(1, 3, 8, 8).numpy(), rf"{DTYPE}, got ndarray\. {CONVERT}"),
        (ValueError, 255 * torch.ones(1, 3, 8, 8), r"x within"),
        (ValueError, torch.ones(1, 1, 2, 2) * float("nan"), r"x to be"),
    ],
)
def test_wrong_images_are_refused(error, x, match, transform):
    with pytest.raises(error, match=f": expected {match}"):
        ContrastivePairAugment(8, transform=transform)(x)


@pytest.mark.parametrize("transform", [None, lambda x: x], ids=["recipe", "transform"])
def test_a_seed_is_no_generator(transform):
    match = r": expected generator to be"
    with pytest.raises(TypeError, match=match):
        ContrastivePairAugment(8, transform=transform)(images(2, 3, 8, 8), 3)


@pytest.mark.parametrize(
    ("error", "transform", "match"),
    [
        (ValueError, lambda x: 2 * x - 1, r"x within"),
        (ValueError, lambda x: x[0], r"x of shape"),
        (TypeError, lambda x: None, r"x to be"),
    ],
)
def test_a_transform_that_returns_no_images_is_named(error, transform, match):
    with pytest.raises(error, match=f"^ContrastivePairAugment: transform: expected {match}"):
        ContrastivePairAugment(transform=transform)(images(2, 3, 8, 8))


def test_overshoots_of_bicubic_interpolation_are_clamped():
    stripes = (torch.arange(32) // 4 % 2).float().expand(4, 3, 32, 32)
    transform = v2.RandomResizedCrop(32, scale=(0.2, 0.5), interpolation=v2.InterpolationMode.BICUBIC)
    assert v2.functional.resize(stripes, [48, 48], v2.InterpolationMode.BICUBIC).min() < -0.01
    for view in ContrastivePairAugment(transform=transform)(stripes, seeded()):
        assert view.min() == 0
        assert view.max() == 1


def test_a_transform_must_return_a_view_of_each_image():
    with pytest.raises(ValueError, match=r"^ContrastivePairAugment: expected 4 views from transform"):
        ContrastivePairAugment(transform=lambda x: x[1:])(images(4, 3, 8, 8))


@pytest.mark.parametrize("transform", [None, v2.RandomHorizontalFlip(), lambda x: x], ids=["recipe", "v2", "function"])
def test_an_empty_batch_gives_empty_views(transform):
    x1, x2 = ContrastivePairAugment(8, transform=transform)(images(0, 3, 8, 8))
    assert x1.shape == x2.shape == (0, 3, 8, 8)


class Cropped(v2.RandomResizedCrop):
    """A subclass of the user's."""


CROP = v2.RandomResizedCrop(8)


@pytest.mark.parametrize("transform", [Cropped(8), partial(CROP), CROP.forward], ids=["subclass", "partial", "method"])
def test_torchvision_transforms_are_recognised_in_disguise(transform):
    same = images(1, 3, 8, 8).expand(6, -1, -1, -1)
    view, _ = ContrastivePairAugment(transform=transform)(same, seeded())
    assert len({tuple(image.flatten().tolist()) for image in view}) == 6


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_transform_that_works_in_place_reaches_neither_the_images_nor_the_other_view(dtype):
    x = images(4, 3, 8, 8) if dtype == torch.float32 else torch.full((4, 3, 8, 8), 200, dtype=torch.uint8)
    before, seen = x.clone(), []

    def erase(x):
        seen.append(x.clone())
        return x.zero_()

    ContrastivePairAugment(transform=erase)(x)
    assert torch.equal(x, before)
    assert torch.equal(*seen)
