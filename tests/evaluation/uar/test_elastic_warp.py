"""Warping and smoothing against shifts, PyTorch's sampling and slow sums."""

import math
import re

import pytest
import torch
from torch.nn import functional as F

from advcontrast.evaluation.uar.elastic import smooth, warp


def images(n=2, c=3, h=6, w=9, dtype=torch.float64):
    return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(1), dtype=dtype)


def flows(scale, n=2, h=6, w=9):
    return scale * torch.randn(n, 2, h, w, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def uniform(right, down, x):
    return torch.tensor([right, down], dtype=x.dtype).view(1, 2, 1, 1).expand(len(x), 2, *x.shape[2:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_flow_changes_nothing(dtype):
    x = images(dtype=dtype)
    assert torch.equal(warp(x, uniform(0, 0, x)), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("right", "down"), [(2, 0), (-3, 0), (0, 1), (0, -2), (2, -1), (9, 0), (0, -70)])
def test_whole_pixels_are_copied_exactly(right, down, dtype):
    x = images(dtype=dtype)
    padded = F.pad(x, (100,) * 4)
    expected = padded[..., 100 + down : 106 + down, 100 + right : 109 + right]
    assert torch.equal(warp(x, uniform(right, down, x)), expected)


@pytest.mark.parametrize("scale", [0.3, 2.0, 10.0])
def test_equals_sampling_on_a_grid(scale):
    x, flow = images(), flows(scale)
    row, column = torch.meshgrid(torch.arange(6.0), torch.arange(9.0), indexing="ij")
    grid = torch.stack([2 * (column + flow[:, 0]) / 8 - 1, 2 * (row + flow[:, 1]) / 5 - 1], 3)
    expected = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=True)
    torch.testing.assert_close(warp(x, flow), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [0.3, 5.0])
def test_result_stays_between_black_and_the_brightest_pixel(scale):
    ours = warp(torch.ones(2, 1, 6, 9), flows(scale).float())
    assert ours.min() >= 0
    assert ours.max() <= 1


def test_gradient_of_the_flow_is_the_slope():
    x, flow = images(), flows(2.0).requires_grad_()
    assert torch.autograd.gradcheck(lambda flow: warp(x, flow), flow, fast_mode=True)


def test_flow_that_is_no_number_spreads_to_its_pixel_alone():
    x = images()
    flow = uniform(0.0, 0.0, x).clone()
    flow[0, 1, 2, 3] = math.nan
    ours = warp(x, flow)
    assert ours[0, :, 2, 3].isnan().all()
    assert int(ours.isnan().sum()) == 3


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_smoothing_is_the_sum_over_the_reflected_field(kernel_size):
    flow, edge = flows(1.0), kernel_size // 2
    steps = torch.arange(kernel_size, dtype=flow.dtype) - edge
    weights = torch.exp(-(steps[:, None] ** 2 + steps**2) / (2 * 0.7**2))
    weights = weights / weights.sum()
    padded = F.pad(flow, (edge,) * 4, mode="reflect")
    expected = sum(
        weights[i, j] * padded[..., i : i + 6, j : j + 9] for i in range(kernel_size) for j in range(kernel_size)
    )
    torch.testing.assert_close(smooth(flow, kernel_size=kernel_size, std=0.7), expected, rtol=0, atol=1e-12)


def test_smoothing_ignores_autocast():
    flow = flows(1.0).float()
    expected = smooth(flow, kernel_size=5, std=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(smooth(flow, kernel_size=5, std=1.0), expected)


X = torch.zeros(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("x", "flow", "error", "message"),
    [
        (X, torch.zeros(2, 2, 5, 4), ValueError, "warp: expected flow of shape"),
        (X, torch.zeros(2, 3, 4, 5), ValueError, "warp: expected flow of shape"),
        (X, torch.zeros(1, 2, 4, 5), ValueError, "warp: expected flow of shape"),
        (X[0], torch.zeros(3, 2, 5), ValueError, "warp: expected x of shape"),
        (X.byte(), torch.zeros(2, 2, 4, 5), TypeError, "warp: expected x to be"),
        (
            X,
            torch.zeros(2, 2, 4, 5, device="meta"),
            ValueError,
            "warp: expected x and flow",
        ),
        (X, [[0.0]], TypeError, "warp: expected flow to be"),
    ],
)
def test_wrong_arguments(x, flow, error, message):
    with pytest.raises(error, match=re.escape(message)):
        warp(x, flow)


def test_warping_stays_on_the_device_of_the_images():
    x, flow = torch.empty(2, 3, 8, 8, device="meta"), torch.empty(2, 2, 8, 8, device="meta")
    assert warp(x, flow).device == x.device


def test_the_default_device_does_not_matter_to_smoothing():
    flow = flows(1)
    expected = smooth(flow, kernel_size=3, std=1.0)
    with torch.device("meta"):
        assert torch.equal(smooth(flow, kernel_size=3, std=1.0), expected)
