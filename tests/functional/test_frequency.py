"""High frequencies of images."""

import pytest
import torch

from advcontrast.functional import high_frequency

F64 = {"dtype": torch.float64}


def test_a_constant_image_has_none():
    assert high_frequency(torch.ones(2, 3, 32, 32, **F64)).abs().max().item() < 1e-12


def test_a_checkerboard_has_no_others_beside_its_mean():
    board = 1 - 2 * ((torch.arange(32)[:, None] + torch.arange(32)) % 2).to(**F64)
    torch.testing.assert_close(high_frequency(board), board)


def test_an_impulse_loses_193_of_1024_frequencies():
    x = torch.zeros(1, 1, 32, 32, **F64)
    x[..., 0, 0] = 1
    high = high_frequency(x)[0, 0]
    assert high[0, 0].item() == pytest.approx(1 - 193 / 1024, abs=1e-12)
    assert high[0, 1].item() == pytest.approx(-0.1377577491, abs=1e-9)
    torch.testing.assert_close(high, high.T)


@pytest.mark.parametrize("shape", [(32, 32), (7, 12), (12, 7)])
@pytest.mark.parametrize("radius", [0, 2.5, 5])
def test_it_equals_the_whole_transform(shape, radius):
    x = torch.rand(2, *shape, generator=torch.Generator().manual_seed(0), **F64)
    rows, columns = (torch.fft.fftfreq(size, 1 / size) for size in shape)
    kept = (rows[:, None] ** 2 + columns**2).sqrt() >= radius
    expected = torch.fft.ifft2(torch.fft.fft2(x) * kept)
    torch.testing.assert_close(high_frequency(x, radius), expected.real)
    assert expected.imag.abs().max() < 1e-12


def test_half_precision_is_computed_in_float32():
    assert high_frequency(torch.rand(4, 4).bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("shape", [(3,), (0, 3, 4, 4), (1, 3, 4, 0)])
def test_images_have_pixels(shape):
    with pytest.raises(ValueError, match="high_frequency: expected x"):
        high_frequency(torch.zeros(shape))


def test_a_huge_radius_leaves_nothing():
    assert high_frequency(torch.rand(4, 4), 1e308).abs().max().item() == 0
