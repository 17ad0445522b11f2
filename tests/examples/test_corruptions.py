"""Corruptions are what their formulas say, and the files of CIFAR-10-C are read whole or not at all."""

import colorsys
import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from advcontrast.data import ImageSet
from advcontrast.evaluation import accuracy

CIFAR = str(Path(__file__).parents[2] / "examples" / "cifar")
NOISES = ("gaussian_noise", "shot_noise", "impulse_noise", "speckle_noise")
OTHERS = ("gaussian_blur", "contrast", "brightness", "saturate", "pixelate", "jpeg_compression")
ALL = (*NOISES, *OTHERS)
SEVERITIES = (1, 2, 3, 4, 5)


@pytest.fixture
def corruptions(monkeypatch):
    monkeypatch.syspath_prepend(CIFAR)
    import corruptions

    return corruptions


@pytest.fixture
def corrupt(corruptions):
    return lambda name, x, severity: corruptions.CORRUPTIONS[name](x, severity, generator())


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def photos(n=3, height=32, width=32, dtype=torch.float64):
    """Return images that are smooth and colourful, as photographs are, with some black and some gray pixels."""
    coarse = torch.rand(n, 3, 5, 5, dtype=dtype, generator=generator(1))
    x = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=True).clamp(0, 1)
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


def test_corruptions_are_found_by_name(corruptions):
    assert tuple(corruptions.CORRUPTIONS) == ALL
    assert set(ALL) <= set(corruptions.CIFAR10_C)
    assert len(set(corruptions.CIFAR10_C)) == 19


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_shape_dtype_and_range_are_kept(corrupt, name, severity):
    for dtype in (torch.float32, torch.float64):
        x = photos(2, 24, 20, dtype)
        y = corrupt(name, x.to(memory_format=torch.channels_last), severity)
        assert (y.shape, y.dtype) == (x.shape, dtype)
        assert 0 <= y.min() <= y.max() <= 1


@pytest.mark.parametrize("name", ALL)
def test_the_images_themselves_are_left_alone(corrupt, name):
    x = photos()
    before = x.clone()
    corrupt(name, x, 5)
    assert torch.equal(x, before)


@pytest.mark.parametrize("name", NOISES)
def test_noise_is_the_generators_and_leaves_the_global_one_alone(corruptions, name):
    x, state = photos(), torch.get_rng_state()
    first, again, other = (corruptions.CORRUPTIONS[name](x, 3, generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("name", OTHERS)
def test_the_others_draw_nothing(corruptions, name):
    state, source = torch.get_rng_state(), generator()
    before = source.get_state()
    corruptions.CORRUPTIONS[name](photos(), 3, source)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(source.get_state(), before)


@pytest.mark.parametrize("name", ALL)
def test_images_do_not_influence_each_other(corrupt, name):
    x = photos(1).expand(2, -1, -1, -1).clone()
    alone = corrupt(name, x[:1], 3)
    x[1] = 0.5
    assert torch.allclose(corrupt(name, x, 3)[:1], alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in ALL if name != "saturate"])
def test_distance_grows_with_severity(corrupt, name):
    # On smooth images pixelate mostly shifts, and 27 pixels fall better into 32 than 28 do.
    x = torch.rand(8, 3, 32, 32)
    distances = [(corrupt(name, x, severity) - x).square().mean().item() for severity in SEVERITIES]
    assert distances == sorted(set(distances))
    assert distances[0] > 0


@pytest.mark.parametrize("severity", [0, 6, -1, 2.5, None])
def test_other_severities_are_refused(corruptions, severity):
    message = f"corruption: expected severity from 1 to 5, got {severity!r}. 5 is the strongest."
    for corruption in corruptions.CORRUPTIONS.values():
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            corruption(photos(), severity, generator())


# Sample deviations of 300,000 draws scatter by about 1/775 of themselves; ten times that is let pass.


@pytest.mark.parametrize(("severity", "deviation"), by_severity(0.04, 0.06, 0.08, 0.09, 0.10))
def test_gaussian_noise_has_its_deviation_everywhere(corrupt, severity, deviation):
    noise = corrupt("gaussian_noise", flat(0.5), severity) - 0.5
    assert noise.std().item() == pytest.approx(deviation, rel=0.013)
    assert abs(noise.mean().item()) < 5 * deviation / math.sqrt(300_000)


@pytest.mark.parametrize(("severity", "deviation"), by_severity(0.06, 0.1, 0.12, 0.16, 0.2))
def test_speckle_noise_is_proportional_to_the_image(corrupt, severity, deviation):
    for value in (0.2, 0.4):
        noise = corrupt("speckle_noise", flat(value), severity) - value
        assert noise.std().item() == pytest.approx(deviation * value, rel=0.013)
        assert abs(noise.mean().item()) < 5 * deviation * value / math.sqrt(300_000)


@pytest.mark.parametrize(("severity", "photons"), by_severity(500, 250, 100, 75, 50))
def test_shot_noise_counts_photons(corrupt, severity, photons):
    value = 0.3
    counts = photons * corrupt("shot_noise", flat(value), severity)
    assert torch.allclose(counts, counts.round(), rtol=0, atol=1e-9)
    assert counts.var().item() == pytest.approx(photons * value, rel=0.03)
    assert counts.mean().item() == pytest.approx(photons * value, abs=5 * math.sqrt(photons * value / 300_000))


@pytest.mark.parametrize(("severity", "fraction"), by_severity(0.01, 0.02, 0.03, 0.05, 0.07))
def test_impulse_noise_makes_as_many_values_black_as_white(corrupt, severity, fraction):
    y = corrupt("impulse_noise", flat(0.3), severity)
    scatter = 5 * math.sqrt(fraction / 2 / 300_000)
    for value in (0, 1):
        assert (y == value).double().mean().item() == pytest.approx(fraction / 2, abs=scatter)
    assert ((y == 0) | (y == 1) | (y == 0.3)).all()


@pytest.mark.parametrize("name", NOISES)
def test_noise_of_channels_is_independent(corrupt, name):
    noise = corrupt(name, flat(0.5), 1)[0, :, 0] - 0.5
    assert (torch.corrcoef(noise) - torch.eye(3)).abs().max() < 5 / math.sqrt(100_000)


@pytest.mark.parametrize("name", NOISES)
def test_noise_of_pixels_is_independent(corrupt, name):
    noise = corrupt(name, flat(0.5), 1)[0, 0, 0] - 0.5
    assert torch.corrcoef(torch.stack([noise[1:], noise[:-1]]))[0, 1].abs() < 5 / math.sqrt(100_000)


@pytest.mark.parametrize(("severity", "deviation"), by_severity(0.4, 0.6, 0.7, 0.8, 1.0))
def test_gaussian_blur_is_a_weighted_mean_of_neighbours(corrupt, severity, deviation):
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


@pytest.mark.parametrize(("severity", "factor"), by_severity(0.75, 0.5, 0.4, 0.3, 0.15))
def test_contrast_scales_the_distance_from_the_mean_of_the_channel(corrupt, severity, factor):
    x = photos()
    y = corrupt("contrast", x, severity)
    mean = torch.tensor([[[[channel.mean()]] for channel in image] for image in x])
    torch.testing.assert_close(y, factor * x + (1 - factor) * mean, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("severity", "shift"), by_severity(0.05, 0.1, 0.15, 0.2, 0.3))
def test_brightness_shifts_the_value_of_hsv(corrupt, severity, shift):
    def change(r, g, b):
        h, s, v = colorsys.rgb_to_hsv(r, g, b)
        return colorsys.hsv_to_rgb(h, s, min(v + shift, 1))

    x = photos()
    torch.testing.assert_close(corrupt("brightness", x, severity), pixelwise(x, change), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("severity", "shift"), by_severity(0.05, 0.1, 0.15, 0.2, 0.3))
def test_brightness_shifts_gray_by_as_much(corrupt, severity, shift):
    for value in (0.0, 0.25, 0.6):
        expected = flat(value + shift, 2)
        torch.testing.assert_close(corrupt("brightness", flat(value, 2), severity), expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize(("severity", "line"), by_severity((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)))
def test_saturate_changes_the_saturation_of_hsv(corrupt, severity, line):
    def change(r, g, b):
        h, s, v = colorsys.rgb_to_hsv(r, g, b)
        return colorsys.hsv_to_rgb(h, min(line[0] * s + line[1], 1), v)

    x = photos()
    torch.testing.assert_close(corrupt("saturate", x, severity), pixelwise(x, change), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("severity", "fraction"), by_severity(0.95, 0.9, 0.85, 0.75, 0.65))
@pytest.mark.parametrize("size", [(32, 32), (16, 32)])
def test_pixelate_is_a_box_filter_down_and_up(corrupt, severity, fraction, size):
    x = photos(3, *size)
    small = int(fraction * size[1]), int(fraction * size[0])
    pictures = [picture.resize(small, Image.Resampling.BOX) for picture in pil(x)]
    expected = unit(picture.resize(size[::-1], Image.Resampling.BOX) for picture in pictures)
    # Pillow rounds to 8 bits after the input, the rows and the columns.
    torch.testing.assert_close(corrupt("pixelate", x, severity), expected, rtol=0, atol=2 / 255)


def test_pixelate_leaves_blocks(corrupt):
    y = corrupt("pixelate", photos(1), 5)
    assert len(y[0, 0].unique(dim=0)) == len(y[0, 0].mT.unique(dim=0)) == 20


@pytest.mark.parametrize(("severity", "quality"), by_severity(80, 65, 58, 50, 40))
def test_jpeg_compression_has_the_quality_of_its_severity(corrupt, severity, quality):
    x = photos()
    decoded = []
    for picture in pil(x):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        decoded.append(Image.open(file))
    torch.testing.assert_close(corrupt("jpeg_compression", x, severity), unit(decoded), rtol=0, atol=1e-15)


def brightest(classes=3):
    """Return a classifier whose logits are the mean colours."""

    class Colours(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    return Colours()


def coloured(n=60):
    x = (255 * photos(n, 8, 8)).round().byte()
    y = x.float().mean((2, 3)).argmax(1)
    y[::4] = (y[::4] + 1) % 3
    return ImageSet(x, y, ("red", "green", "blue"))


def test_mean_accuracy_averages_over_the_severities(corruptions):
    images = coloured()
    found = corruptions.mean_accuracy(brightest(), images, severities=(2, 5), seed=7, batch_size=25)
    assert tuple(found) == ALL
    for name, corruption in corruptions.CORRUPTIONS.items():
        each = []
        for severity in (2, 5):
            source = generator(7)
            batches = [(corruption(x, severity, source), y) for x, y in images.batches(25)]
            each.append(accuracy(brightest(), batches).accuracy)
        assert found[name] == pytest.approx(sum(each) / 2, abs=1e-12)
    assert found["contrast"] == 0.75


def test_mean_accuracy_is_the_same_every_time_and_leaves_the_global_generator_alone(corruptions):
    images, state = coloured(), torch.get_rng_state()
    first = corruptions.mean_accuracy(brightest(), images)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(123)
    assert corruptions.mean_accuracy(brightest(), images) == first


def test_mean_accuracy_of_no_severity_is_refused(corruptions):
    message = "mean_accuracy: expected at least one severity, got none. Pass some of 1 to 5."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        corruptions.mean_accuracy(brightest(), coloured(), severities=())


@pytest.fixture
def archive(corruptions, tmp_path, monkeypatch):
    """Return the folder of an archive like CIFAR-10-C, with ten images a corruption."""
    monkeypatch.setattr(corruptions, "LENGTH", 10)
    random = np.random.default_rng(0)
    for name in corruptions.CIFAR10_C:
        np.save(tmp_path / f"{name}.npy", random.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8))
    np.save(tmp_path / "labels.npy", np.arange(10, dtype=np.uint8))
    return tmp_path


def test_length_is_that_of_the_published_files(corruptions):
    assert corruptions.LENGTH == 50_000


def test_archive_is_read_file_by_file(corruptions, archive):
    names = []
    for name, x, y in corruptions.cifar10_c(archive):
        names.append(name)
        expected = np.load(archive / f"{name}.npy")
        assert (x.shape, x.dtype) == ((10, 3, 32, 32), torch.uint8)
        assert x.is_contiguous()
        assert np.array_equal(x.permute(0, 2, 3, 1).numpy(), expected)
        assert torch.equal(y, torch.arange(10))
    assert tuple(names) == corruptions.CIFAR10_C


def test_images_of_the_archive_can_be_written_to(corruptions, archive):
    before = (archive / "gaussian_noise.npy").read_bytes()
    _, x, _ = next(corruptions.cifar10_c(str(archive)))
    x.zero_()
    assert (archive / "gaussian_noise.npy").read_bytes() == before


def test_labels_of_any_integer_type_are_read(corruptions, archive):
    np.save(archive / "labels.npy", np.arange(10)[::-1])
    _, _, y = next(corruptions.cifar10_c(archive))
    assert y.tolist() == list(range(10))[::-1]
    assert y.dtype == torch.int64


def test_missing_files_are_named_at_once(corruptions, archive):
    (archive / "fog.npy").unlink()
    (archive / "labels.npy").unlink()
    expected, remedy = f"20 files in {str(archive)!r}", "Unpack CIFAR-10-C.tar there"
    message = f"cifar10_c: expected {expected}, got all but fog.npy, labels.npy. {remedy}."
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}$"):
        corruptions.cifar10_c(archive)


@pytest.mark.parametrize(
    ("content", "got"),
    [
        (np.zeros((9, 32, 32, 3), np.uint8), "uint8 [9, 32, 32, 3]"),
        (np.zeros((10, 3, 32, 32), np.uint8), "uint8 [10, 3, 32, 32]"),
        (np.zeros((10, 32, 32, 3), np.float32), "float32 [10, 32, 32, 3]"),
        (np.zeros((10, 32, 32, 3), np.int8), "int8 [10, 32, 32, 3]"),
    ],
)
def test_file_with_something_else_is_named_at_once(corruptions, archive, content, got):
    np.save(archive / "saturate.npy", content)
    message = f"cifar10_c: expected uint8 [10, 32, 32, 3] in saturate.npy, got {got}. Download CIFAR-10-C anew."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        corruptions.cifar10_c(archive)


@pytest.mark.parametrize("damage", ["truncated", "header", "foreign", "empty", "pickled", "zip"])
def test_damaged_file_is_named_at_once(corruptions, archive, damage):
    path = archive / "snow.npy"
    good = path.read_bytes()
    if damage == "pickled":
        np.save(path, np.array([{"a": 1}], dtype=object))
    elif damage == "zip":
        with path.open("wb") as file:
            np.savez(file, np.zeros(3))
    else:
        pieces = {"truncated": good[:-1], "header": good[:40], "foreign": b"<html>" * 99, "empty": b""}
        path.write_bytes(pieces[damage])
    pattern = r"^cifar10_c: expected uint8 \[10, 32, 32, 3\] in snow.npy, got .+[^.]\. Download CIFAR-10-C anew\.$"
    with pytest.raises(ValueError, match=pattern):
        corruptions.cifar10_c(archive)


@pytest.mark.parametrize(("labels", "got"), [(np.arange(10) + 1, "1 to 10"), (np.arange(10) - 1, "-1 to 8")])
def test_labels_out_of_range_are_refused(corruptions, archive, labels, got):
    np.save(archive / "labels.npy", labels)
    message = f"cifar10_c: expected labels from 0 to 9, got {got}. Download CIFAR-10-C anew."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        corruptions.cifar10_c(archive)


def test_labels_that_are_no_integers_are_refused(corruptions, archive):
    np.save(archive / "labels.npy", np.zeros(10))
    message = "cifar10_c: expected integer [10] in labels.npy, got float64 [10]. Download CIFAR-10-C anew."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        corruptions.cifar10_c(archive)
