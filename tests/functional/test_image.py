"""Batched image operations equal torchvision's, image by image."""

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from advcontrast.functional.image import adjust, crop_and_resize, luma, rotate_hue

# Largest measured difference in brackets.
CROP = {torch.float32: 2e-6, torch.float64: 1e-14}  # (8.3e-7, 1.6e-15)
HUE = 3e-6  # (1.8e-6, in both dtypes: torchvision rounds a constant)
NEUTRAL_HUE = 1e-6  # (6.6e-7)
# Differences to PIL in 1/255; PIL rounds to whole numbers after each step.
PIL_CROP = 2.0  # (1.2)
PIL_ADJUST = 2.0  # (1.2)
PIL_LUMA = 1.0  # (0.53)

DTYPES = [torch.float32, torch.float64]
SHAPES = [
    (3, 32, 32, (32, 32)),
    (1, 28, 28, (32, 32)),
    (3, 40, 24, (17, 33)),
    (3, 96, 96, (32, 32)),
    (3, 5, 7, (32, 32)),
]


def noise(*shape, seed=0, dtype=torch.float32):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def bytes_between(low, high, *shape):
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def rectangles(n, height, width, seed=0):
    uniform = noise(4, n, seed=seed)
    rows, columns = 1 + (uniform[0] * height).long(), 1 + (uniform[1] * width).long()
    top, left = (uniform[2] * (height - rows + 1)).long(), (uniform[3] * (width - columns + 1)).long()
    return top, left, rows, columns


def everything(n, height, width):
    return torch.zeros(n).long(), torch.zeros(n).long(), torch.full((n,), height), torch.full((n,), width)


def never(n):
    return torch.zeros(n, dtype=torch.bool)


def one_by_one(operation, x, factors):
    return torch.stack([operation(image, float(factor)) for image, factor in zip(x, factors, strict=True)])


def through_pil(operation, x, factors):
    images = [TF.to_pil_image(image) for image in x]
    changed = [operation(image, float(factor)) for image, factor in zip(images, factors, strict=True)]
    return torch.stack([TF.pil_to_tensor(image) for image in changed]).float()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("channels", "height", "width", "size"), SHAPES)
def test_crop_equals_torchvision(channels, height, width, size, dtype):
    x = noise(50, channels, height, width, dtype=dtype)
    boxes = rectangles(50, height, width)
    ours = crop_and_resize(x, *boxes, size, never(50))
    for image, view, *box in zip(x, ours, *boxes, strict=True):
        theirs = TF.resized_crop(image, *map(int, box), list(size), InterpolationMode.BICUBIC, antialias=True)
        torch.testing.assert_close(view, theirs, rtol=0, atol=CROP[dtype])


@pytest.mark.parametrize("size", [(32, 32), (9, 50), (1, 4), (7, 1), (1, 1)])
def test_crop_equals_pil_on_floats(size):
    x = noise(50, 1, 20, 30)
    boxes = rectangles(50, 20, 30)
    ours = crop_and_resize(x, *boxes, size, never(50))
    for image, view, *box in zip(x, ours, *boxes, strict=True):
        picture = TF.to_pil_image(image, mode="F")
        theirs = TF.resized_crop(picture, *map(int, box), list(size), InterpolationMode.BICUBIC)
        torch.testing.assert_close(view, TF.pil_to_tensor(theirs), rtol=0, atol=CROP[torch.float32])


def test_crop_equals_pil_on_bytes_where_neither_leaves_the_range():
    x = bytes_between(64, 192, 50, 3, 32, 32)
    boxes = rectangles(50, 32, 32)
    ours = 255 * crop_and_resize(x / 255, *boxes, (32, 32), never(50))
    for image, view, *box in zip(x, ours, *boxes, strict=True):
        cropped = TF.resized_crop(TF.to_pil_image(image), *map(int, box), [32, 32], InterpolationMode.BICUBIC)
        torch.testing.assert_close(view, TF.pil_to_tensor(cropped).float(), rtol=0, atol=PIL_CROP)


@pytest.mark.parametrize("dtype", DTYPES)
def test_crop_of_everything_at_the_same_size_is_the_identity(dtype):
    x = noise(4, 3, 9, 6, dtype=dtype)
    assert torch.equal(crop_and_resize(x, *everything(4, 9, 6), (9, 6), never(4)), x)


def test_flip_mirrors_the_chosen_images_left_to_right():
    x = noise(6, 3, 8, 8)
    boxes = rectangles(6, 8, 8)
    flip = torch.tensor([True, False, False, True, True, False])
    plain = crop_and_resize(x, *boxes, (8, 8), never(6))
    ours = crop_and_resize(x, *boxes, (8, 8), flip)
    torch.testing.assert_close(ours, torch.where(flip.view(-1, 1, 1, 1), plain.flip(3), plain), rtol=0, atol=1e-6)


def test_crop_ignores_what_lies_outside_the_rectangle():
    x = noise(1, 3, 12, 12)
    box = [torch.tensor([value]) for value in (3, 2, 5, 6)]
    changed = torch.ones_like(x)
    changed[..., 3:8, 2:8] = x[..., 3:8, 2:8]
    before, after = (crop_and_resize(image, *box, (9, 9), never(1)) for image in (x, changed))
    assert torch.equal(before, after)


def test_crop_of_a_constant_image_is_constant():
    x = torch.full((20, 3, 11, 13), 0.3, dtype=torch.float64)
    ours = crop_and_resize(x, *rectangles(20, 11, 13), (7, 19), never(20))
    torch.testing.assert_close(ours, torch.full_like(ours, 0.3), rtol=0, atol=1e-14)


def test_crop_of_a_checkerboard_overshoots_by_at_most_9_32nds():
    board = ((torch.arange(32)[:, None] + torch.arange(32)) % 2).expand(50, 1, 32, 32).float()
    ours = crop_and_resize(board, *rectangles(50, 32, 32), (32, 32), never(50))
    # Halfway between two pixels the weights in one dimension are (-1, 9, 9, -1) / 16: ((20 / 16)^2 - 1) / 2 = 9 / 32.
    assert -9 / 32 - 1e-6 < ours.min() < -0.1
    assert 1.1 < ours.max() < 1 + 9 / 32 + 1e-6


def test_crop_has_the_gradient_of_its_values():
    x = noise(2, 1, 4, 5, dtype=torch.float64).requires_grad_()
    boxes = rectangles(2, 4, 5)
    flip = torch.tensor([True, False])
    assert torch.autograd.gradcheck(lambda x: crop_and_resize(x, *boxes, (3, 6), flip), x)


def weights(operations, factors):
    """Return the weights of brightness (0), contrast (1) or saturation (2) for each image."""
    rest = 1 - factors
    return factors, rest * (operations == 1), rest * (operations == 2)


@pytest.mark.parametrize(
    ("operation", "theirs"), [(0, TF.adjust_brightness), (1, TF.adjust_contrast), (2, TF.adjust_saturation)]
)
def test_adjust_equals_pil(operation, theirs):
    x, factors = bytes_between(0, 256, 50, 3, 16, 16), 0.6 + 0.8 * noise(50)
    ours = 255 * adjust(x / 255, *weights(torch.full((50,), operation), factors))
    torch.testing.assert_close(ours, through_pil(theirs, x, factors), rtol=0, atol=PIL_ADJUST)


def test_adjust_stays_in_the_unit_range():
    x = noise(4, 3, 5, 5)
    ours = adjust(x, *weights(torch.full((4,), 2), torch.full((4,), 3.0)))
    assert (ours.min(), ours.max()) == (0, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 3])
def test_adjust_applies_to_each_image_the_operation_that_it_names(channels, dtype):
    x, factors = noise(60, channels, 8, 8, dtype=dtype), 2 * noise(60, seed=1, dtype=dtype)
    operations = torch.arange(60) % 3
    ours = adjust(x, *weights(operations, factors))
    theirs = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation)
    for image, view, operation, factor in zip(x, ours, operations, factors, strict=True):
        torch.testing.assert_close(view, theirs[operation](image, float(factor)), rtol=0, atol=1e-6)


def test_adjust_by_one_changes_nothing():
    x = noise(6, 3, 5, 5)
    assert torch.equal(adjust(x, *weights(torch.arange(6) % 3, torch.ones(6))), x)


def test_adjust_has_the_gradient_of_its_values():
    x = (0.3 + 0.4 * noise(3, 3, 3, 3, dtype=torch.float64)).requires_grad_()
    factors = torch.tensor([0.8, 1.2, 0.7], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: adjust(x, *weights(torch.arange(3), factors)), x)


def test_luma_is_torchvisions_grayscale():
    x = noise(8, 3, 9, 9)
    torch.testing.assert_close(luma(x), TF.rgb_to_grayscale(x), rtol=0, atol=1e-6)


def test_luma_equals_pil():
    x = bytes_between(0, 256, 50, 3, 16, 16)
    theirs = torch.stack([TF.pil_to_tensor(TF.to_grayscale(TF.to_pil_image(image))) for image in x])
    torch.testing.assert_close(255 * luma(x / 255), theirs.float(), rtol=0, atol=PIL_LUMA)


def test_luma_of_gray_images_is_the_image():
    x = noise(4, 1, 5, 5)
    assert torch.equal(luma(x), x)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rotate_hue_equals_torchvision(dtype):
    x, shifts = noise(50, 3, 16, 16, dtype=dtype), noise(50, seed=1, dtype=dtype) - 0.5
    torch.testing.assert_close(rotate_hue(x, shifts), one_by_one(TF.adjust_hue, x, shifts), rtol=0, atol=HUE)


def test_rotate_hue_equals_torchvision_where_channels_are_equal():
    x, shifts = bytes_between(0, 4, 50, 3, 16, 16) / 3, noise(50, seed=1) - 0.5
    assert (x[:, 0] == x[:, 1]).any()
    torch.testing.assert_close(rotate_hue(x, shifts), one_by_one(TF.adjust_hue, x, shifts), rtol=0, atol=HUE)


def test_rotate_hue_by_zero_is_almost_the_identity():
    x = noise(50, 3, 16, 16)
    torch.testing.assert_close(rotate_hue(x, torch.zeros(50)), x, rtol=0, atol=NEUTRAL_HUE)


def test_rotate_hue_by_a_third_turns_red_into_green():
    red, green = torch.zeros(2, 1, 3, 1, 1, dtype=torch.float64)
    red[:, 0], green[:, 1] = 1, 1
    third = torch.tensor([1 / 3], dtype=torch.float64)
    torch.testing.assert_close(rotate_hue(red, third), green, rtol=0, atol=1e-12)


def test_rotate_hue_by_half_a_turn_is_the_same_both_ways():
    x = noise(8, 3, 9, 9)
    half = torch.full((8,), 0.5)
    torch.testing.assert_close(rotate_hue(x, half), rotate_hue(x, -half), rtol=0, atol=HUE)


def test_rotate_hue_keeps_the_largest_channel_of_every_pixel():
    x, shifts = noise(8, 3, 9, 9), noise(8, seed=1) - 0.5
    assert torch.equal(rotate_hue(x, shifts).amax(1), x.amax(1))


def test_rotate_hue_keeps_the_smallest_channel_of_every_pixel():
    x, shifts = noise(8, 3, 9, 9), noise(8, seed=1) - 0.5
    torch.testing.assert_close(rotate_hue(x, shifts).amin(1), x.amin(1), rtol=0, atol=NEUTRAL_HUE)


def test_rotate_hue_leaves_colourless_pixels_alone():
    x = noise(8, 1, 9, 9).expand(-1, 3, -1, -1)
    assert torch.equal(rotate_hue(x, noise(8, seed=1) - 0.5), x)


def test_rotate_hue_has_the_gradient_of_its_values():
    x = noise(2, 3, 3, 3, dtype=torch.float64).requires_grad_()
    shifts = torch.tensor([0.07, -0.1], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: rotate_hue(x, shifts), x)
