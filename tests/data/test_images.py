"""A set of images in memory."""

import dataclasses
import hashlib
import re
import struct

import pytest
import torch

from advcontrast.data import ImageSet

CLASSES = ("cat", "dog", "owl")


def image_set(n=7, **fields):
    x = torch.randint(0, 256, (n, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return ImageSet(**{"x": x, "y": torch.arange(n) % 3, "classes": CLASSES, **fields})


def test_length_is_the_number_of_images():
    assert len(image_set(7)) == 7


def test_repr_shows_shapes_and_classes():
    expected = "ImageSet(x=uint8 [7, 3, 4, 5], y=int64 [7], classes=('cat', 'dog', 'owl'))"
    assert repr(image_set()) == expected


def test_fields_cannot_be_replaced():
    with pytest.raises(dataclasses.FrozenInstanceError):
        image_set().x = torch.zeros(1)


def test_tensors_are_not_copied():
    images = image_set()
    assert ImageSet(images.x, images.y, CLASSES).x is images.x


def test_moving_to_the_same_device_shares_the_tensors():
    images = image_set()
    assert images.to("cpu").x is images.x
    assert images.to(torch.device("cpu")).y is images.y


def test_moving_moves_images_and_labels():
    moved = image_set().to("meta")
    assert (moved.x.device.type, moved.y.device.type, moved.classes) == ("meta", "meta", CLASSES)


def test_subset_keeps_the_order_of_the_indices():
    images, indices = image_set(), torch.tensor([5, 0, 0, 3])
    subset = images.subset(indices)
    assert torch.equal(subset.x, images.x[[5, 0, 0, 3]])
    assert torch.equal(subset.y, torch.tensor([2, 0, 0, 0]))
    assert subset.classes == CLASSES


def test_subset_is_a_copy():
    images = image_set()
    before = images.x.clone()
    images.subset(torch.arange(7)).x.zero_()
    assert torch.equal(images.x, before)


def test_batches_hold_every_image_once_and_in_order():
    images = image_set(7)
    batches = list(images.batches(3))
    assert [len(x) for x, _ in batches] == [3, 3, 1]
    assert torch.equal(torch.cat([x for x, _ in batches]), images.x.to(torch.float32) / 255)
    assert torch.equal(torch.cat([y for _, y in batches]), images.y)


def test_batch_is_float_from_zero_to_one():
    extremes = image_set(x=torch.tensor([0, 255], dtype=torch.uint8).repeat(7, 3, 4, 1))
    x, y = next(extremes.batches(7))
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert x.unique().tolist() == [0.0, 1.0]


def test_batches_can_be_larger_than_the_set():
    assert [len(x) for x, _ in image_set(7).batches(100)] == [7]


def test_batches_are_made_one_by_one():
    batches = image_set(7).batches(2)
    assert iter(batches) is batches


def test_equal_sets_have_equal_fingerprints():
    assert image_set().fingerprint() == image_set().fingerprint()


def test_fingerprint_is_a_sha256():
    assert re.fullmatch("[0-9a-f]{64}", image_set().fingerprint())


def test_fingerprint_is_that_of_the_bytes_of_shape_names_images_and_labels():
    images = ImageSet(torch.arange(6, dtype=torch.uint8).view(2, 3, 1, 1), torch.tensor([1, 0]), ("cat", "dog"))
    content = b"((2, 3, 1, 1), ('cat', 'dog'))" + bytes(range(6)) + struct.pack("2q", 1, 0)
    assert images.fingerprint() == hashlib.sha256(content).hexdigest()


def test_fingerprint_ignores_the_memory_format():
    images = image_set()
    channels_last = dataclasses.replace(images, x=images.x.contiguous(memory_format=torch.channels_last))
    assert channels_last.fingerprint() == images.fingerprint()


@pytest.mark.parametrize(
    "change",
    [
        lambda images: {"x": images.x ^ (torch.arange(images.x.numel()) == 419).view_as(images.x)},
        lambda images: {"x": images.x.transpose(2, 3).reshape(7, 3, 5, 4)},
        lambda images: {"x": images.x.view(7, 3, 5, 4)},
        lambda images: {"y": images.y.flip(0)},
        lambda images: {"classes": ("cat", "dog", "ow")},
        lambda images: {"classes": (*CLASSES, "")},
    ],
    ids=["a bit of the last pixel", "transposed", "shape alone", "labels", "a name", "a class more"],
)
def test_fingerprint_tells_sets_apart(change):
    images = image_set()
    assert dataclasses.replace(images, **change(images)).fingerprint() != images.fingerprint()


X, Y = torch.zeros(7, 3, 4, 5, dtype=torch.uint8), torch.zeros(7, dtype=torch.int64)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"x": X.float()}, TypeError, "expected x to be"),
        ({"x": [0]}, TypeError, "expected x to be"),
        ({"y": Y.int()}, TypeError, "expected y to be"),
        ({"x": X[0]}, ValueError, "expected x of shape"),
        ({"x": X[:0], "y": Y[:0]}, ValueError, "expected x of shape"),
        ({"x": X[..., :0]}, ValueError, "expected x of shape"),
        ({"y": Y[:5]}, ValueError, "expected y of shape"),
        ({"y": Y[:, None]}, ValueError, "expected y of shape"),
        ({"y": Y.to("meta")}, ValueError, "expected x and y on one device"),
        ({"classes": ["cat"]}, TypeError, "expected classes to be"),
        ({"classes": "cat"}, TypeError, "expected classes to be"),
        ({"classes": ("cat", 3)}, TypeError, "expected classes to be"),
        ({"y": torch.tensor([0, 1, 2, 3, -1, 2, 9])}, ValueError, "expected labels within"),
    ],
)
def test_wrong_fields(fields, error, message):
    with pytest.raises(error, match="^ImageSet: .*" + re.escape(message)):
        ImageSet(**{"x": X, "y": Y, "classes": CLASSES, **fields})


@pytest.mark.parametrize(
    ("indices", "error", "message"),
    [
        ([0, 1], TypeError, "expected indices to be"),
        (torch.ones(7, dtype=torch.bool), TypeError, "expected indices to be"),
        (torch.tensor(3), ValueError, "expected indices of shape"),
        (torch.arange(0), ValueError, "expected indices of shape"),
        (torch.tensor([0, 7, -1]), ValueError, "expected indices within"),
    ],
)
def test_wrong_indices(indices, error, message):
    with pytest.raises(error, match=re.escape(f"ImageSet.subset: {message}")):
        image_set().subset(indices)


@pytest.mark.parametrize(("size", "error", "got"), [(0, ValueError, "0"), (2.0, TypeError, "float")])
def test_wrong_batch_size_is_refused_at_once(size, error, got):
    message = f"ImageSet.batches: expected size to be an int >= 1, got {got}"
    with pytest.raises(error, match=re.escape(message)):
        image_set().batches(size)
