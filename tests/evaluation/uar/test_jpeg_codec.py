"""Coding and decoding against the formulas of the standard, and against Pillow's JPEG files."""

import io
import math
import re

import pytest
import torch
from torch.nn import functional as F

from advcontrast.evaluation.uar.jpeg import jpeg_decode, jpeg_encode


def images(n=2, height=32, width=48, dtype=torch.float64):
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(1), dtype=dtype)


def in_squares(x):
    """Images whose pixels are equal in squares of 2 x 2."""
    return x[..., ::2, ::2].repeat_interleave(2, 2).repeat_interleave(2, 3)


def channels(x):
    """The luma and the chroma of JFIF, the latter averaged over 2 x 2 pixels, by the recommendation's own numbers."""
    matrix = torch.tensor(
        [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]], dtype=x.dtype
    )
    y, cb, cr = torch.einsum("ij,njhw->inhw", matrix, 255 * x)
    coarse = [sum(c[:, i::2, j::2] for i in (0, 1) for j in (0, 1)) / 4 for c in (cb, cr)]
    return y - 128, *coarse


def slow_dct(block):
    """The double sum of the standard, annex A.3.3."""
    result = torch.zeros(8, 8, dtype=torch.float64)
    for u in range(8):
        for v in range(8):
            scale = (1 if u else math.sqrt(0.5)) * (1 if v else math.sqrt(0.5)) / 4
            result[u, v] = scale * sum(
                block[i, j] * math.cos((2 * i + 1) * u * math.pi / 16) * math.cos((2 * j + 1) * v * math.pi / 16)
                for i in range(8)
                for j in range(8)
            )
    return result


def tables():
    """The tables of the standard as Pillow writes them at quality 50, rows vertical frequencies."""
    pillow = pytest.importorskip("PIL.Image")
    file = io.BytesIO()
    pillow.new("RGB", (16, 16)).save(file, "JPEG", quality=50)
    found = pillow.open(file).quantization
    return [torch.tensor(found[key], dtype=torch.float64).view(8, 8) for key in (0, 1)]


# Number of the block, channel, row and column of its corner, for images of 32 x 48 pixels.
@pytest.mark.parametrize(
    ("block", "channel", "row", "column"), [(0, 0, 0, 0), (8, 0, 8, 16), (23, 0, 24, 40), (28, 1, 8, 8), (35, 2, 8, 16)]
)
def test_coefficients_are_the_cosine_sums_divided_by_the_tables(block, channel, row, column):
    x = images()
    expected = slow_dct(channels(x)[channel][0, row : row + 8, column : column + 8]) / tables()[channel > 0]
    torch.testing.assert_close(jpeg_encode(x)[0, block], expected, rtol=0, atol=2e-4)


def test_number_of_blocks_is_that_of_four_two_zero():
    assert jpeg_encode(images()).shape == (2, 24 + 6 + 6, 8, 8)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
def test_decoding_undoes_coding_where_chroma_is_smooth(dtype, tolerance):
    x = in_squares(images(dtype=dtype))
    torch.testing.assert_close(jpeg_decode(jpeg_encode(x), size=(32, 48)), x, rtol=0, atol=tolerance)


def test_coding_undoes_decoding():
    coefficients = torch.randn(2, 36, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(jpeg_encode(jpeg_decode(coefficients, size=(32, 48))), coefficients, rtol=0, atol=1e-12)


def test_only_the_chroma_is_averaged():
    x = images()
    again = jpeg_decode(jpeg_encode(x), size=(32, 48))
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=x.dtype).view(3, 1, 1)
    torch.testing.assert_close((luma * again).sum(1), (luma * x).sum(1), rtol=0, atol=1e-12)
    torch.testing.assert_close(F.avg_pool2d(again, 2), F.avg_pool2d(x, 2), rtol=0, atol=1e-12)
    chroma = again - (luma * again).sum(1, keepdim=True)
    torch.testing.assert_close(in_squares(chroma), chroma, rtol=0, atol=1e-12)
    assert (again - x).abs().max() > 0.1


def test_transform_keeps_lengths():
    coefficients = torch.zeros(1, 6, 8, 8, dtype=torch.float64)
    coefficients[0, :4] = torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    pixels = 255 * jpeg_decode(coefficients, size=(16, 16))[:, 0] - 128
    torch.testing.assert_close(pixels.norm(), (coefficients * tables()[0]).norm(), rtol=1e-12, atol=0)


def test_gray_image_comes_out_as_from_a_file():
    pillow = pytest.importorskip("PIL.Image")
    from torchvision.transforms.v2 import functional as tv

    x = F.interpolate(images(1, 5, 6), size=(32, 48), mode="bilinear")[:, :1].expand(-1, 3, -1, -1)
    x = (255 * x).round() / 255
    file = io.BytesIO()
    tv.to_pil_image((255 * x[0]).byte()).save(file, "JPEG", quality=50, subsampling="4:2:0")
    expected = tv.pil_to_tensor(pillow.open(file))
    ours = jpeg_decode(jpeg_encode(x).round(), size=(32, 48))[0] * 255
    assert (ours - expected).abs().max() <= 1
    assert (ours - 255 * x[0]).abs().max() > 3


def test_gradient_is_the_slope():
    c = torch.randn(1, 6, 8, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64, requires_grad=True)
    x = images(1, 16, 16).requires_grad_()
    assert torch.autograd.gradcheck(lambda c: jpeg_decode(c, size=(16, 16)), c, fast_mode=True)
    assert torch.autograd.gradcheck(jpeg_encode, x, fast_mode=True)


def test_autocast_around_changes_nothing():
    x = images(dtype=torch.float32)
    expected = jpeg_decode(jpeg_encode(x), size=(32, 48))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(jpeg_decode(jpeg_encode(x), size=(32, 48)), expected)


def test_no_images_are_no_blocks():
    assert jpeg_decode(jpeg_encode(torch.zeros(0, 3, 16, 32)), size=(16, 32)).shape == (0, 3, 16, 32)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.zeros(2, 3, 16, 24), ValueError, "jpeg_encode: expected x of shape"),
        (torch.zeros(2, 3, 8, 16), ValueError, "jpeg_encode: expected x of shape"),
        (torch.zeros(2, 1, 16, 16), ValueError, "jpeg_encode: expected x of shape"),
        (torch.zeros(3, 16, 16), ValueError, "jpeg_encode: expected x of shape"),
        (torch.zeros(1, 3, 16, 16).byte(), TypeError, "expected x to be"),
        (torch.zeros(1, 3, 16, 16).half(), TypeError, "expected x to be"),
        ([0.5], TypeError, "expected x to be"),
    ],
)
def test_wrong_images(x, error, message):
    with pytest.raises(error, match=re.escape(message)):
        jpeg_encode(x)


@pytest.mark.parametrize(
    ("coefficients", "size", "error", "message"),
    [
        (torch.zeros(2, 6, 8, 8), (16, 32), ValueError, "jpeg_decode: expected coefficients of shape"),
        (torch.zeros(2, 3, 8, 8), (16, 8), ValueError, "jpeg_decode: expected coefficients of shape"),
        (torch.zeros(2, 6, 64), (16, 16), ValueError, "jpeg_decode: expected coefficients of shape"),
        (torch.zeros(2, 6, 8, 8).int(), (16, 16), TypeError, "expected coefficients to be"),
        (torch.zeros(2, 6, 8, 8), (16.0, 16), TypeError, "jpeg_decode: expected each of size"),
        (torch.zeros(2, 6, 8, 8), (-16, -16), ValueError, "jpeg_decode: expected each of size"),
    ],
)
def test_wrong_coefficients(coefficients, size, error, message):
    with pytest.raises(error, match=re.escape(message)):
        jpeg_decode(coefficients, size=size)
