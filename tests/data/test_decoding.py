"""Pixels of image files: depth, orientation and transparency, alike in both readers."""

import errno
import os
import re
import struct
import zlib

import pytest
import torch
from PIL import Image, features

from advcontrast.data import ImageStream, UnreadableImageError, image_folder


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(bits, kind, channels, size=(4, 4)):
    """Return a PNG of 4 x 4 pixels; its header claims another size."""
    rows = (b"\0" + bytes([1, 200] * (4 * channels * bits // 16))) * 4
    header = struct.pack(">IIBBBBB", *size, bits, kind, 0, 0, 0)
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def after_a_text(image, text):
    """Return a PNG whose header is not its first chunk."""
    return image[:8] + chunk(b"tEXt", text) + image[8:]


def tiff(bits, channels, *, order="<", kind=1, compression=None):
    """Return a TIFF of 4 x 4 pixels."""
    data, many = bytes(4 * 4 * channels * bits // 8), [bits] * channels
    tags = [(256, [4]), (257, [4]), (258, many), (259, [1]), (262, [2 if channels > 2 else 1]), (273, [400])]
    tags += [(277, [channels]), (278, [4]), (279, [len(data)]), (284, [1])]
    tags += [(338, [2])] if channels in (2, 4) else []
    tags += [(339, [kind] * channels)]
    start, extra, entries = 8 + 2 + 12 * len(tags) + 4, b"", b""
    for tag, values in tags:
        packed = struct.pack(f"{order}{len(values)}H", *values)
        if len(packed) > 4:
            where, extra = start + len(extra), extra + packed
            packed = struct.pack(f"{order}I", where)
        entries += struct.pack(f"{order}HHI", tag, 3, len(values)) + packed.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return (head + entries + bytes(4) + extra).ljust(400, b"\0") + data


DEEP = {
    "gray.png": png(16, 0, 1),
    "rgb.png": png(16, 2, 3),
    "gray-alpha.png": png(16, 4, 2),
    "rgba.png": png(16, 6, 4),
    "late-header.png": after_a_text(png(16, 2, 3), b"Comment\0\x08"),
    "gray.tif": tiff(16, 1),
    "rgb.tif": tiff(16, 3),
    "rgb-big-endian.tif": tiff(16, 3, order=">"),
    "rgba.tif": tiff(16, 4),
    "signed.tif": tiff(8, 1, kind=2),
    "float.tif": tiff(32, 1, kind=3),
    "gray.pgm": b"P5 4 4 65535\n" + bytes(32),
    "gray-12-bit.pgm": b"P5 4 4 4095\n" + bytes(32),
    "gray-text.pgm": b"P2 4 4 4095\n" + b"7 " * 16,
    "rgb.ppm": b"P6 # a comment\n 4 4 65535\n" + bytes(96),
    "rgb-12-bit.ppm": b"P6 4 4 4095\n" + bytes(96),
    "rgb-text.ppm": b"P3 4 4 4095\n" + b"7 " * 48,
    "float.ppm": b"Pf 4 4 -1.0\n" + bytes(64),
    "a PNG.jpg": png(16, 2, 3),
}


@pytest.mark.parametrize("name", DEEP)
def test_more_than_8_bits_a_channel_are_refused(tmp_path, name):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / name).write_bytes(DEEP[name])
    for owner, read in (("image_folder", image_folder), ("ImageStream", lambda root: ImageStream(root)[0])):
        path = str(tmp_path / "cat" / name)
        with pytest.raises(
            UnreadableImageError, match=f"^{owner}: expected 8 bits per channel in {re.escape(repr(path))}"
        ):
            read(tmp_path)


@pytest.mark.parametrize(("kind", "feature"), [("AVIF", "avif"), ("JPEG2000", "jpg_2000")])
def test_formats_that_are_not_read_are_refused_under_any_name(tmp_path, kind, feature):
    if not features.check(feature):
        pytest.skip(f"Pillow cannot write {kind}")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", format=kind)
    with pytest.raises(UnreadableImageError, match=r"^ImageStream: expected an image in .*a\.png'"):
        ImageStream(tmp_path)[0]


SHALLOW = {
    "1.png": png(1, 0, 1),
    "2.png": png(2, 0, 1),
    "4.png": png(4, 0, 1),
    "8.png": png(8, 2, 3),
    "late-header.png": after_a_text(png(8, 2, 3), b"Comment\0A text"),
    "8.tif": tiff(8, 3),
    "8-alpha.tif": tiff(8, 4),
    "8.ppm": b"P6 4 4 255\n" + bytes(48),
    "4.ppm": b"P6 4 4 15\n" + bytes(48),
    "text.ppm": b"P3 4 4 15\n" + b"7 " * 48,
    "bits.pgm": b"P4 4 4\n" + bytes(4),
}


@pytest.mark.parametrize("name", SHALLOW)
def test_up_to_8_bits_a_channel_are_read(tmp_path, name):
    (tmp_path / name).write_bytes(SHALLOW[name])
    assert ImageStream(tmp_path, size=4)[0].shape == (3, 4, 4)


def upright(mode="RGB"):
    """Return an image with four different corners."""
    image = Image.new(mode, (8, 8))
    for i, corner in enumerate(((0, 0), (4, 0), (0, 4), (4, 4))):
        image.paste((60 * i, 250 - 60 * i, 128), (*corner, corner[0] + 4, corner[1] + 4))
    return image


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("suffix", ["png", "tif", "webp", "jpg"])
def test_images_are_turned_upright_in_all_formats(tmp_path, suffix, orientation):
    """A file holds the rotated image, and the orientation that undoes the rotation."""
    (tmp_path / "cat").mkdir()
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"png": {}, "tif": {}, "webp": {"lossless": True}, "jpg": {"quality": 100, "subsampling": 0}}[suffix]
    upright().transpose(TURNS[orientation]).save(tmp_path / "cat" / f"a.{suffix}", exif=exif, **options)
    expected = torch.frombuffer(bytearray(upright().tobytes()), dtype=torch.uint8).view(8, 8, 3).permute(2, 0, 1)
    for image in (image_folder(tmp_path, size=8).x[0], ImageStream(tmp_path, size=8)[0]):
        torch.testing.assert_close(image, expected, rtol=0, atol=4 if suffix == "jpg" else 0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("exif", [b"no header", b"II*\0\x08\0\0\0\x09\0cut off"])
def test_damaged_exif_data_do_not_make_an_image_unreadable(tmp_path, exif):
    upright().save(tmp_path / "a.jpg", exif=b"Exif\0\0" + exif, quality=100)
    assert ImageStream(tmp_path, size=8)[0].shape == (3, 8, 8)


def see_through(mode):
    """Return an image of one colour, fully transparent."""
    if mode == "P":
        image = Image.new("P", (8, 8), 1)
        image.putpalette([0, 0, 0, 90, 90, 90])
        return image
    return Image.new(mode, (8, 8), (90, 90, 90, 0) if mode == "RGBA" else (90, 0))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
@pytest.mark.filterwarnings("error")
def test_transparent_pixels_have_the_colour_that_the_file_stores(tmp_path, mode):
    (tmp_path / "cat").mkdir()
    see_through(mode).save(tmp_path / "cat" / "a.png", **({"transparency": bytes(2)} if mode == "P" else {}))
    for found in (image_folder(tmp_path, size=8).x[0], ImageStream(tmp_path, size=8)[0]):
        assert found.unique().tolist() == [90]


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO, errno.ESTALE, errno.EMFILE])
@pytest.mark.parametrize("read", [image_folder, lambda root: ImageStream(root)[0]], ids=["folder", "stream"])
def test_a_file_that_the_system_cannot_read_is_not_to_be_removed(tmp_path, monkeypatch, number, read):
    (tmp_path / "a").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "a" / "x.png")
    real = os.open

    def fail(path, *others):
        if str(path).endswith("x.png"):
            raise OSError(number, os.strerror(number))
        return real(path, *others)

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(UnreadableImageError, match=rf"Errno {number}\].*\. Check its permissions and the disk"):
        read(tmp_path)
