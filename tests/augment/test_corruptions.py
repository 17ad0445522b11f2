"""Corruptions are what their formulas say."""

import colorsys
import io
import math
import re

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from advcontrast.augment import CORRUPTIONS, Corruption

RANDOM = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise", "fog")
NOISES = RANDOM[:4]
BLURS = ("gaussian_blur", "defocus_blur", "zoom_blur")
FIXED = (*BLURS, "contrast", "brightness", "saturate", "pixelate", "jpeg_compression")
SEVERITIES = (1, 2, 3, 4, 5)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def corrupt(name, x, severity, seed=0):
    return Corruption(name, severity=severity)(x, generator=generator(seed))


def photos(n=3, height=32, width=32, dtype=torch.float64):
    """Return images that are smooth and colourful, as photographs are, with some black and some gray pixels."""
    coarse = torch.rand(n, 3, 5, 5, dtype=dtype, generator=generator(1))
    x = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=True).clamp(0, 1)
    x[:, :, 0, :4] = 0
    x[:, :, 1, :4] = 0.5
    return x


def by_severity(*values):
    return list(enumerate(values, 1))


def flat(value, pixels=100_000):
    return torch.full((1, 3, 1, pixels), value, dtype=torch.float64)


def pixelwise(x, change):
    """Return ``change(r, g, b)`` of every pixel."""
    values = [[change(*pixel) for pixel in image.permute(1, 2, 0).reshape(-1, 3).tolist()] for image in x]
    return torch.tensor(values, dtype=x.dtype).mT.reshape(x.shape)


def pil(x):
    return [Image.fromarray((255 * image).round().byte().permute(1, 2, 0).numpy()) for image in x]


def unit(pictures):
    return torch.stack([torch.tensor(np.array(picture)).permute(2, 0, 1) for picture in pictures]).double() / 255


def test_names_of_the_corruptions():
    assert (*RANDOM, *FIXED) == CORRUPTIONS


def test_repr_reads_as_the_call():
    assert repr(Corruption("fog", severity=2)) == "Corruption(name='fog', severity=2)"


def test_severity_is_3_by_default():
    assert Corruption("fog") == Corruption("fog", severity=3)


@pytest.mark.parametrize("name", CORRUPTIONS)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_shape_dtype_and_range_are_kept(name, severity):
    for dtype in (torch.float32, torch.float64):
        x = photos(2, 24, 20, dtype)
        y = corrupt(name, x.to(memory_format=torch.channels_last), severity)
        assert (y.shape, y.dtype) == (x.shape, dtype)
        assert 0 <= y.min() <= y.max() <= 1


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_images_themselves_are_left_alone(name):
    x = photos()
    before = x.clone()
    corrupt(name, x, 5)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_8_bit_images_are_those_divided_by_255(name):
    x = (255 * photos()).byte()
    assert torch.equal(corrupt(name, x, 3), corrupt(name, x.float() / 255, 3))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_of_one_pixel_are_no_exception(name):
    y = corrupt(name, torch.full((2, 3, 1, 1), 0.4), 5)
    assert y.shape == (2, 3, 1, 1)
    assert y.isfinite().all()


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_no_images_give_none(name):
    assert corrupt(name, torch.zeros(0, 3, 8, 8, dtype=torch.uint8), 3).shape == (0, 3, 8, 8)


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "saturate"])
def test_gray_images_stay_gray(name):
    x = photos()[:, :1]
    y = corrupt(name, x, 3)
    assert y.shape == x.shape
    if name not in NOISES:
        # JPEG stores brightness and colours apart; gray survives to a rounding.
        expected = corrupt(name, x.expand(-1, 3, -1, -1), 3)
        assert torch.allclose(y.expand_as(expected), expected, rtol=0, atol=1 / 255 + 1e-12)


@pytest.mark.parametrize("name", RANDOM)
def test_noise_is_the_generators_and_leaves_the_global_one_alone(name):
    x, state = photos(), torch.get_rng_state()
    first, again, other = (corrupt(name, x, 3, seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", RANDOM)
def test_without_a_generator_the_global_one_is_used(name):
    torch.manual_seed(5)
    assert torch.equal(Corruption(name)(photos()), corrupt(name, photos(), 3, seed=5))


@pytest.mark.parametrize("name", FIXED)
def test_the_others_draw_nothing(name):
    state, source = torch.get_rng_state(), generator()
    before = source.get_state()
    Corruption(name)(photos(), generator=source)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(source.get_state(), before)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_images_do_not_influence_each_other(name):
    x = photos(2)
    before = corrupt(name, x, 3)[0]
    # The cloud of an image depends on how many there are, not on what they show.
    x[1] = 0.5
    assert torch.allclose(corrupt(name, x, 3)[0], before, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name != "saturate"])
def test_distance_grows_with_severity(name):
    # On smooth images pixelate mostly shifts, and 27 pixels fall better into 32 than 28 do.
    x = torch.rand(8, 3, 32, 32, generator=generator(2))
    distances = [(corrupt(name, x, severity) - x).square().mean().item() for severity in SEVERITIES]
    assert distances == sorted(set(distances))
    assert distances[0] > 0


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_rounding_beyond_the_range_is_moved_back_into_it(name):
    x = photos(dtype=torch.float32)
    assert torch.equal(corrupt(name, torch.where(x == 0, -1e-7, x), 1), corrupt(name, x, 1))


# Sample deviations of 300,000 draws scatter by about 1/775 of themselves; ten times that is let pass.


@pytest.mark.parametrize(("severity", "deviation"), by_severity(0.04, 0.06, 0.08, 0.09, 0.10))
def test_gaussian_noise_has_the_deviation_of_its_severity(severity, deviation):
    noise = corrupt("gaussian_noise", flat(0.5), severity) - 0.5
    assert noise.std().item() == pytest.approx(deviation, rel=0.013)
    assert noise.mean().abs().item() < 5 * deviation / math.sqrt(300_000)


@pytest.mark.parametrize(("severity", "deviation"), by_severity(0.06, 0.1, 0.12, 0.16, 0.2))
@pytest.mark.parametrize("value", [0.0, 0.25, 0.5])
def test_speckle_noise_is_proportional_to_the_image(severity, deviation, value):
    noise = corrupt("speckle_noise", flat(value), severity) - value
    assert noise.std().item() == pytest.approx(deviation * value, rel=0.013)
    assert noise.mean().abs().item() <= 5 * deviation * value / math.sqrt(300_000)


@pytest.mark.parametrize(("severity", "photons"), by_severity(500, 250, 100, 75, 50))
@pytest.mark.parametrize("value", [0.0, 0.1, 0.5])
def test_shot_noise_counts_photons(severity, photons, value):
    counts = photons * corrupt("shot_noise", flat(value), severity)
    assert torch.allclose(counts, counts.round(), rtol=0, atol=1e-9)
    assert counts.var().item() == pytest.approx(photons * value, rel=0.03)
    assert counts.mean().item() == pytest.approx(photons * value, abs=5 * math.sqrt(photons * value / 300_000))


@pytest.mark.parametrize(("severity", "fraction"), by_severity(0.01, 0.02, 0.03, 0.05, 0.07))
def test_impulse_noise_makes_as_many_values_black_as_white(severity, fraction):
    y = corrupt("impulse_noise", flat(0.3), severity)
    scatter = 5 * math.sqrt(fraction / 2 / 300_000)
    for value in (0, 1):
        assert (y == value).double().mean().item() == pytest.approx(fraction / 2, abs=scatter)
    assert ((y == 0) | (y == 1) | (y == 0.3)).all()


@pytest.mark.parametrize("name", NOISES)
def test_noise_of_channels_is_independent(name):
    noise = corrupt(name, flat(0.5), 1)[0, :, 0] - 0.5
    assert (torch.corrcoef(noise) - torch.eye(3)).abs().max() < 5 / math.sqrt(100_000)


@pytest.mark.parametrize("name", NOISES)
def test_noise_of_pixels_is_independent(name):
    noise = corrupt(name, flat(0.5), 1)[0, 0, 0] - 0.5
    assert torch.corrcoef(torch.stack([noise[1:], noise[:-1]]))[0, 1].abs() < 5 / math.sqrt(100_000)


def landscape(n, side, decay, source):
    """Return landscapes made point by point on a torus: each new point is the mean of four neighbours and a draw."""
    land, stride, roughness = torch.zeros(n, side, side, dtype=torch.float64), side, 100.0
    while stride > 1:
        half, places = stride // 2, range(0, side, stride)
        across, diagonal = ((0, -half), (0, half), (-half, 0), (half, 0)), ((-half, -half), (-half, half))
        diagonal = (*diagonal, (half, -half), (half, half))
        for down, right, neighbours in ((half, half, diagonal), (0, half, across), (half, 0, across)):
            draws = 2 * torch.rand(n, len(places), len(places), dtype=torch.float64, generator=source) - 1
            for i, row in enumerate(places):
                for j, column in enumerate(places):
                    around = [
                        land[:, (row + down + a) % side, (column + right + b) % side].clone() for a, b in neighbours
                    ]
                    land[:, row + down, column + right] = sum(around) / 4 + roughness**2 * draws[:, i, j]
        stride, roughness = half, roughness / decay
    low, high = (getattr(land, extreme)((1, 2), keepdim=True) for extreme in ("amin", "amax"))
    return (land - low) / (high - low)


@pytest.mark.parametrize(
    ("severity", "thickness", "decay"), [(1, 0.2, 3), (2, 0.5, 3), (3, 0.75, 2.5), (4, 1, 2), (5, 1.5, 1.75)]
)
def test_fog_is_a_fractal_cloud(severity, thickness, decay):
    x = photos(2, 16, 16)
    cloud = landscape(2, 16, decay, generator())[:, None]
    for image, foggy, own in zip(x, corrupt("fog", x, severity), cloud, strict=True):
        expected = (image + thickness * own) * image.max() / (image.max() + thickness)
        torch.testing.assert_close(foggy, expected, rtol=0, atol=1e-12)


def test_fog_of_other_sizes_is_cut_from_the_next_power_of_two():
    x = photos(2, 5, 12)
    cloud = landscape(2, 16, 2.5, generator())[:, None, :5, :12]
    brightest = x.amax((1, 2, 3), keepdim=True)
    expected = (x + 0.75 * cloud) * brightest / (brightest + 0.75)
    torch.testing.assert_close(corrupt("fog", x, 3), expected, rtol=0, atol=1e-12)


def test_fog_over_black_is_black():
    assert torch.equal(corrupt("fog", torch.zeros(1, 3, 8, 8), 5), torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(("severity", "deviation"), by_severity(0.4, 0.6, 0.7, 0.8, 1.0))
def test_gaussian_blur_is_a_weighted_mean_of_neighbours(severity, deviation):
    x = photos(1)
    y = corrupt("gaussian_blur", x, severity)
    radius = int(4 * deviation + 0.5)
    for row, column in ((0, 0), (0, 17), (13, 20), (31, 2)):
        total, weights = torch.zeros(3, dtype=torch.float64), 0.0
        for i in range(-radius, radius + 1):
            for j in range(-radius, radius + 1):
                weight = math.exp(-(i * i + j * j) / (2 * deviation**2))
                total += weight * x[0, :, min(max(row + i, 0), 31), min(max(column + j, 0), 31)]
                weights += weight
        torch.testing.assert_close(y[0, :, row, column], total / weights, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("severity", "disk"), by_severity((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)))
def test_defocus_blur_spreads_a_point_over_a_softened_disk(severity, disk):
    radius, deviation = disk
    point = torch.zeros(1, 3, 11, 11, dtype=torch.float64)
    point[:, :, 5, 5] = 1
    side = [math.exp(-(i * i) / (2 * deviation**2)) for i in (-1, 0, 1)]
    weight = {(i, j): side[i + 1] * side[j + 1] / sum(side) ** 2 for i in (-1, 0, 1) for j in (-1, 0, 1)}
    inside = [(i, j) for i in range(-2, 3) for j in range(-2, 3) if math.hypot(i, j) <= radius]
    expected = torch.zeros(11, 11, dtype=torch.float64)
    for i, j in inside:
        for (a, b), share in weight.items():
            expected[5 + i + a, 5 + j + b] += share / len(inside)
    y = corrupt("defocus_blur", point, severity)
    torch.testing.assert_close(y, expected.expand_as(y), rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(2, 2), (3, 5), (9, 4)])
def test_defocus_blur_sees_the_image_mirrored_beyond_the_border(size):
    x = torch.rand(1, 3, *size, dtype=torch.float64, generator=generator())
    # Images repeat after twice their sides less the two pixels that are their own mirror images.
    top, left = (4 * (2 * side - 2) for side in size)
    tall = torch.cat([x, x[:, :, 1:-1].flip(2)], 2).repeat(1, 1, 9, 1)
    tiles = torch.cat([tall, tall[:, :, :, 1:-1].flip(3)], 3).repeat(1, 1, 1, 9)
    expected = corrupt("defocus_blur", tiles, 5)[:, :, top : top + size[0], left : left + size[1]]
    torch.testing.assert_close(corrupt("defocus_blur", x, 5), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", BLURS)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_blur_leaves_what_has_no_edges(name, severity):
    x = torch.full((1, 3, 9, 12), 0.3, dtype=torch.float64)
    torch.testing.assert_close(corrupt(name, x, severity), x, rtol=0, atol=1e-12)


def zoomed(image, zoom):
    """Return the middle of a square image ``[H, W, C]``, enlarged with linear interpolation, cut to its size."""
    ndimage = pytest.importorskip("scipy.ndimage")
    side = len(image)
    crop = math.ceil(side / zoom)
    start = (side - crop) // 2
    large = ndimage.zoom(image[start : start + crop, start : start + crop], (zoom, zoom, 1), order=1)
    start = (len(large) - side) // 2
    return large[start : start + side, start : start + side]


@pytest.mark.parametrize(("severity", "end"), by_severity(1.06, 1.11, 1.16, 1.21, 1.26))
@pytest.mark.parametrize("side", [10, 32, 45])
def test_zoom_blur_is_the_mean_of_what_scipy_enlarges(severity, end, side):
    x = photos(1, side, side)
    image, zooms = x[0].permute(1, 2, 0).numpy(), np.arange(1, end, 0.01)
    expected = (image + sum(zoomed(image, zoom) for zoom in zooms)) / (len(zooms) + 1)
    y = corrupt("zoom_blur", x, severity)
    torch.testing.assert_close(y[0].permute(1, 2, 0), torch.tensor(expected), rtol=0, atol=1e-9)


def test_zoom_blur_treats_rows_and_columns_alike():
    x = photos(1, 16, 29)
    torch.testing.assert_close(corrupt("zoom_blur", x.mT, 4), corrupt("zoom_blur", x, 4).mT, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("severity", "factor"), by_severity(0.75, 0.5, 0.4, 0.3, 0.15))
def test_contrast_scales_the_distance_from_the_mean_of_the_channel(severity, factor):
    x = photos()
    y = corrupt("contrast", x, severity)
    mean = torch.tensor([[[[channel.mean()]] for channel in image] for image in x])
    torch.testing.assert_close(y, factor * x + (1 - factor) * mean, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("severity", "shift"), by_severity(0.05, 0.1, 0.15, 0.2, 0.3))
def test_brightness_shifts_the_value_of_hsv(severity, shift):
    def change(r, g, b):
        h, s, v = colorsys.rgb_to_hsv(r, g, b)
        return colorsys.hsv_to_rgb(h, s, min(v + shift, 1))

    x = photos()
    torch.testing.assert_close(corrupt("brightness", x, severity), pixelwise(x, change), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("severity", "shift"), by_severity(0.05, 0.1, 0.15, 0.2, 0.3))
def test_brightness_shifts_gray_by_as_much(severity, shift):
    for value in (0.0, 0.25, 0.6):
        expected = flat(value + shift, 2)
        torch.testing.assert_close(corrupt("brightness", flat(value, 2), severity), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("severity", "line"), by_severity((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)))
def test_saturate_changes_the_saturation_of_hsv(severity, line):
    def change(r, g, b):
        h, s, v = colorsys.rgb_to_hsv(r, g, b)
        return colorsys.hsv_to_rgb(h, min(line[0] * s + line[1], 1), v)

    x = photos()
    torch.testing.assert_close(corrupt("saturate", x, severity), pixelwise(x, change), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("severity", "fraction"), by_severity(0.95, 0.9, 0.85, 0.75, 0.65))
@pytest.mark.parametrize("size", [(32, 32), (16, 32)])
def test_pixelate_is_a_box_filter_down_and_up(severity, fraction, size):
    x = photos(3, *size)
    small = int(fraction * size[1]), int(fraction * size[0])
    pictures = [picture.resize(small, Image.Resampling.BOX) for picture in pil(x)]
    expected = unit(picture.resize(size[::-1], Image.Resampling.BOX) for picture in pictures)
    # Pillow rounds to 8 bits after the input, the rows and the columns.
    torch.testing.assert_close(corrupt("pixelate", x, severity), expected, rtol=0, atol=2 / 255)


def test_pixelate_leaves_blocks():
    y = corrupt("pixelate", photos(1), 5)
    assert len(y[0, 0].unique(dim=0)) == len(y[0, 0].mT.unique(dim=0)) == 20


@pytest.mark.parametrize(("severity", "quality"), by_severity(80, 65, 58, 50, 40))
def test_jpeg_compression_has_the_quality_of_its_severity(severity, quality):
    x = photos(3, 32, 24)
    decoded = []
    for picture in pil(x):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        decoded.append(Image.open(file))
    torch.testing.assert_close(corrupt("jpeg_compression", x, severity), unit(decoded), rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "rain"}, ValueError, "expected name to be one of 'gaussian_noise', "),
        ({"name": "Fog"}, ValueError, "got 'Fog'. Did you mean 'fog'."),
        ({"name": 3}, TypeError, "got int. Pass name as a string."),
        ({"severity": 0}, ValueError, "expected severity to be"),
        ({"severity": -1}, ValueError, "expected severity to be"),
        ({"severity": 6}, ValueError, "expected severity to be"),
        ({"severity": 2.5}, TypeError, "expected severity to be"),
        ({"severity": None}, TypeError, "expected severity to be"),
        ({"severity": True}, TypeError, "expected severity to be"),
    ],
)
def test_wrong_settings(arguments, error, message):
    with pytest.raises(error, match=f"^Corruption: .*{re.escape(message)}"):
        Corruption(**{"name": "fog", **arguments})


X = torch.full((2, 3, 4, 4), 0.5)


@pytest.mark.parametrize(
    ("x", "source", "error", "message"),
    [
        (X[0], None, ValueError, "expected x of shape"),
        (X[:, :2], None, ValueError, "expected x of shape"),
        (X[:, :, :0], None, ValueError, "expected x of shape"),
        (255 * X, None, ValueError, "expected x within"),
        (X * math.nan, None, ValueError, "expected x to be"),
        (X.half(), None, TypeError, "got torch.float16. "),
        (X.tolist(), None, TypeError, "got list. "),
        (X, 0, TypeError, "expected generator to be"),
    ],
)
@pytest.mark.parametrize("name", ["fog", "contrast"])
def test_wrong_images(name, x, source, error, message):
    with pytest.raises(error, match=f"^Corruption: .*{re.escape(message)}"):
        Corruption(name)(x, generator=source)


def test_gray_images_have_no_saturation():
    message = "Corruption: expected RGB images for 'saturate'"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        Corruption("saturate")(X[:, :1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_an_accelerator_gives_the_same_images(name):
    x = photos()
    y = corrupt(name, x.cuda(), 3)
    assert y.is_cuda
    torch.testing.assert_close(y.cpu(), corrupt(name, x, 3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("side", range(1, 66))
def test_pixelate_covers_every_pixel_of_every_size(side):
    x = torch.ones(1, 1, side, side)
    for severity in range(1, 6):
        assert torch.allclose(Corruption("pixelate", severity=severity)(x), x)
