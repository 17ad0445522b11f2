"""Shifts and mirror images of a batch."""

import pytest
import torch
from torch.nn import functional as F

from advcontrast.augment import CropFlip, SimCLRAugment


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(n=64, channels=3, size=8):
    return torch.rand(n, channels, size, size, generator=seeded(1))


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_every_result_is_a_cut_of_the_padded_image(flip):
    x = images()
    padded = F.pad(x, [2] * 4)
    for result, frame in zip(CropFlip(2, flip=flip)(x, seeded()), padded, strict=True):
        cuts = [frame[:, top : top + 8, left : left + 8] for top in range(5) for left in range(5)]
        cuts = [cut.flip(2) if flip else cut for cut in cuts]
        assert any(torch.equal(result, cut) for cut in cuts)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_that_are_not_square_are_cut_where_the_draws_say(channels):
    x = torch.rand(40, channels, 5, 9, generator=seeded(1))
    draws = torch.rand(40, 3, generator=seeded()).tolist()
    padded, results = F.pad(x, [2] * 4), CropFlip(2)(x, seeded())
    for frame, result, (down, right, mirrored) in zip(padded, results, draws, strict=True):
        top, left = int(5 * down), int(5 * right)
        cut = frame[:, top : top + 5, left : left + 9]
        assert torch.equal(result, cut.flip(2) if mirrored < 0.5 else cut)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_bytes_are_shifted_as_the_floats_that_they_stand_for(dtype):
    x = (256 * images()).byte()
    floats = x.to(dtype) / 255
    result = CropFlip()(floats, seeded())
    assert result.dtype == dtype
    assert torch.equal(CropFlip()(x, seeded()), result.float())


def test_a_shift_has_the_gradient_of_its_values():
    x = images(3, 1, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: CropFlip(1)(x, seeded()), x)


def test_all_shifts_are_equally_likely():
    x = torch.zeros(5000, 1, 5, 5)
    x[:, :, 2, 2] = 1
    where = CropFlip(1, flip=0.0)(x, seeded()).flatten(1).argmax(1)
    counts = where.bincount(minlength=25).view(5, 5)[1:4, 1:4].flatten()
    assert counts.sum() == 5000
    # Nine equal chances: chi-squared with 8 degrees of freedom stays below 26 in 99.9 % of all cases.
    expected = 5000 / 9
    assert ((counts - expected) ** 2 / expected).sum() < 26


def test_half_of_the_images_are_mirrored():
    x = torch.tensor([1.0, 0.0]).expand(4000, 1, 2, 2)
    mirrored = CropFlip(0)(x, seeded())[:, 0, 0, 1].sum().item()
    assert abs(mirrored - 2000) < 4 * 4000**0.5 / 2


def test_without_border_and_mirror_nothing_changes():
    assert torch.equal(CropFlip(0, flip=0.0)(images()), images())


def test_uint8_images_become_floats():
    x = torch.full((2, 3, 4, 4), 51, dtype=torch.uint8)
    result = CropFlip(0)(x)
    assert result.dtype == torch.float32
    assert torch.allclose(result, torch.tensor(0.2), rtol=0, atol=1e-7)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_layout_is_kept(layout):
    x = images(size=16)
    views = CropFlip()(x.contiguous(memory_format=layout), seeded())
    assert views.is_contiguous(memory_format=layout)
    assert torch.equal(views, CropFlip()(x, seeded()))


def test_a_generator_repeats_the_views_and_spares_the_global_one():
    before = torch.get_rng_state()
    first, second = CropFlip()(images(), seeded()), CropFlip()(images(), seeded())
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


def test_images_have_randomness_of_their_own():
    x = images(1).expand(64, -1, -1, -1)
    assert len(CropFlip(2)(x, seeded()).flatten(1).unique(dim=0)) > 20


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [((-1,), ValueError, "CropFlip: expected padding to be"), ((2.5,), TypeError, "CropFlip: expected padding to be")],
)
def test_a_wrong_border_is_refused(arguments, error, text):
    with pytest.raises(error, match=text):
        CropFlip(*arguments)


@pytest.mark.parametrize("flip", [-0.1, 1.1, float("nan")])
def test_a_wrong_probability_is_refused(flip):
    with pytest.raises(ValueError, match="CropFlip: expected flip to be a finite number >= 0 and <= 1, got"):
        CropFlip(flip=flip)


def test_repr_reads_as_the_call():
    assert repr(CropFlip(2, flip=0.0)) == "CropFlip(2, flip=0.0)"


@pytest.mark.parametrize("smallest", [0.08, 0.5])
def test_the_smallest_crop_of_the_simclr_recipe_can_be_chosen(smallest):
    parameters = SimCLRAugment(32, min_area=smallest).draw(4000, 100, 100, seeded())
    area = (parameters.height * parameters.width).double() / 100**2
    # Sides are rounded to whole pixels.
    assert smallest - 0.02 < area.min() < smallest + 0.03


@pytest.mark.parametrize("smallest", [0, -0.1, 1.1])
def test_a_wrong_smallest_crop_is_refused(smallest):
    with pytest.raises(ValueError, match="SimCLRAugment: expected min_area to be a finite number > 0 and <= 1"):
        SimCLRAugment(32, min_area=smallest)
