"""Folders of images, decoded."""

import os
import re
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from advcontrast.data import ImageStream, UnreadableImageError, folder, image_folder


def noise(height, width, seed=0):
    """Return a smooth random image ``[3, height, width]``."""
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return (255 * F.interpolate(coarse, (height, width), mode="bilinear")[0]).byte()


def save(path, pixels, mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = bytes(pixels.permute(1, 2, 0).flatten().tolist())
    Image.frombytes("RGB", (pixels.shape[2], pixels.shape[1]), content).convert(mode).save(path, **options)


@pytest.fixture
def root(tmp_path):
    """Two classes, a dog and two cats, of 8 x 8 pixels."""
    save(tmp_path / "root" / "dog" / "a.png", noise(8, 8, 1))
    save(tmp_path / "root" / "cat" / "b.png", noise(8, 8, 2))
    save(tmp_path / "root" / "cat" / "B.bmp", noise(8, 8, 3))
    return tmp_path / "root"


def test_images_of_the_right_size_are_kept_to_the_bit(root):
    assert torch.equal(image_folder(root, size=8).x, torch.stack([noise(8, 8, seed) for seed in (3, 2, 1)]))


def test_classes_and_files_come_by_name(root):
    images = image_folder(root, size=8)
    assert images.classes == ("cat", "dog")
    assert images.y.tolist() == [0, 0, 1]


def test_many_files_come_by_name_whenever_they_were_made(tmp_path):
    for i in (7, 2, 9, 0, 5, 3, 8, 1, 6, 4):
        save(tmp_path / "cat" / f"{i}.png", torch.full((3, 8, 8), i, dtype=torch.uint8))
    assert image_folder(tmp_path, size=8).x[:, 0, 0, 0].tolist() == list(range(10))


def test_root_can_be_a_string(root):
    assert len(image_folder(str(root), size=8)) == 3


def test_side_is_32_by_default(root):
    assert image_folder(root).x.shape == (3, 3, 32, 32)


def test_images_lie_in_memory_channel_by_channel(root):
    assert image_folder(root, size=8).x.is_contiguous()


def test_pixels_may_be_written_to(root):
    image_folder(root, size=8).x.zero_()


@pytest.mark.parametrize(("height", "width"), [(8, 13), (15, 8)])
def test_only_the_central_square_is_kept(tmp_path, height, width):
    pixels = noise(height, width)
    save(tmp_path / "cat" / "a.png", pixels)
    top, left = (height - 8) // 2, (width - 8) // 2
    assert torch.equal(image_folder(tmp_path, size=8).x[0], pixels[:, top : top + 8, left : left + 8])


@pytest.mark.parametrize("side", [5, 9, 20, 48])
def test_resizing_is_bicubic_and_antialiased(tmp_path, side):
    pixels = noise(side, side)
    save(tmp_path / "cat" / "a.png", pixels)
    expected = F.interpolate(pixels[None].double(), (12, 12), mode="bicubic", antialias=True).clamp(0, 255)
    # Pillow rounds once more, between rows and columns.
    torch.testing.assert_close(image_folder(tmp_path, size=12).x.double(), expected, rtol=0, atol=2)


def test_cropped_pixels_do_not_bleed_into_the_rest(tmp_path):
    pixels = torch.zeros(3, 20, 60, dtype=torch.uint8)
    pixels[:, :, 20:40] = 200
    save(tmp_path / "cat" / "a.png", pixels)
    assert image_folder(tmp_path, size=8).x.unique().tolist() == [200]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "1"])
def test_every_8_bit_mode_becomes_rgb(tmp_path, mode):
    pixels = torch.zeros(3, 8, 8, dtype=torch.uint8)
    pixels[:, :4] = 255
    save(tmp_path / "cat" / "a.png", pixels, mode)
    assert torch.equal(image_folder(tmp_path, size=8).x[0], pixels)


@pytest.mark.parametrize("suffix", ["jpg", "JPEG", "webp", "tif", "ppm"])
def test_many_kinds_of_files_are_read(tmp_path, suffix):
    pixels = torch.full((3, 8, 8), 128, dtype=torch.uint8)
    save(tmp_path / "cat" / f"a.{suffix}", pixels)
    torch.testing.assert_close(image_folder(tmp_path, size=8).x[0], pixels, rtol=0, atol=2)


def test_other_and_hidden_files_are_left_out(root):
    expected = image_folder(root, size=8).x
    (root / "cat" / "notes.txt").write_text("no image")
    (root / "cat" / ".hidden.png").write_text("no image")
    (root / "cat" / "folder.png").mkdir()
    (root / "list.png").write_text("no image")
    (root / ".trash").mkdir()
    assert torch.equal(image_folder(root, size=8).x, expected)


@pytest.mark.parametrize("suffix", ["jfif", "JFIF", "JPEG", "Png"])
def test_suffixes_count_in_upper_and_lower_case(root, suffix):
    save(root / "cat" / f"z.{suffix}", noise(8, 8), format="PNG")
    assert len(image_folder(root, size=8)) == 4


def test_folders_of_operating_systems_are_left_out(root):
    for name in ("__MACOSX/cat/._b.png", "cat/__MACOSX/._b.png", ".Trash/b.png", "cat/._b.png", "cat/Thumbs.db"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text("no image")
    images = image_folder(root, size=8)
    assert (len(images), images.classes) == (3, ("cat", "dog"))


def test_images_below_the_folder_of_a_class_are_read(root, tmp_path):
    for i, name in enumerate(("cat/2024/b.png", "cat/2024/05/a.png", "owl/only/below/a.png", "dog/images/a.JPEG")):
        save(root / name, noise(8, 8, i), format="PNG")
    (root / "dog" / "dog_boxes.txt").write_text("a.JPEG 0 0 8 8")
    for _ in range(2):  # of which the second finds the cache
        images = image_folder(root, size=8, cache=tmp_path / "cache")
        assert images.classes == ("cat", "dog", "owl")
        assert images.y.tolist() == [0] * 4 + [1] * 2 + [2]


@pytest.mark.parametrize("splits", [("train", "test"), ("Train", "val", "TEST"), ("training", "validation")])
def test_splits_are_not_taken_for_classes(root, splits):
    for split in splits:
        save(root / "pets" / split / "cat" / "a.png", noise(8, 8))
    got = ", ".join(map(repr, sorted(splits)))
    message = f"expected folders of classes in {str(root / 'pets')!r}, got those of splits: {got}. "
    with pytest.raises(ValueError, match=f"^image_folder: {re.escape(message)}"):
        image_folder(root / "pets")
    save(root / "pets" / "bus" / "a.png", noise(8, 8))
    assert len(image_folder(root / "pets").classes) == len(splits) + 1  # "train" is a vehicle too


def test_a_cache_distinguishes_folders_below_a_class(root, tmp_path):
    save(root / "cat" / "x" / "a.png", noise(8, 8, 1))
    image_folder(root, size=8, cache=tmp_path / "cache")
    (root / "cat" / "x").rename(root / "dog" / "x")
    assert image_folder(root, size=8, cache=tmp_path / "cache").y.tolist() == [0, 0, 1, 1]
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_cache_does_not_keep_what_a_disk_failed_to_read(root, tmp_path, monkeypatch):
    settings = {"size": 8, "unreadable": "skip", "max_unreadable_fraction": 1, "cache": tmp_path / "cache"}
    real = os.open

    def refuse(path, *args, **kwargs):
        if str(path).endswith("b.png"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        with pytest.warns(UserWarning, match="1 of 3 images"):
            image_folder(root, **settings)
    assert len(image_folder(root, **settings)) == 3


def refuse_large(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64)


def run_out_of_memory(monkeypatch):
    def convert(image, _):
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.convert", convert, raising=False)


@pytest.mark.parametrize("fail", [refuse_large, run_out_of_memory])
def test_a_cache_does_not_keep_what_may_be_readable_next_time(root, tmp_path, monkeypatch, fail):
    for name, side in (("cat/c.png", 9), ("cat/d.png", 9), ("dog/b.bmp", 8)):
        save(root / name, noise(side, side))
    settings = {"size": 8, "unreadable": "skip", "max_unreadable_fraction": 1, "cache": tmp_path / "cache"}
    with monkeypatch.context() as patch:
        fail(patch)
        with pytest.warns(UserWarning, match=r"of 6 images .* unreadable: .*'cat/c\.png', 'cat/d\.png'"):
            image_folder(root, **settings)
    assert len(image_folder(root, **settings)) == 6


def test_home_folders_are_found(root, monkeypatch):
    monkeypatch.setenv("HOME", str(root.parent))
    monkeypatch.setenv("USERPROFILE", str(root.parent))
    image_folder("~/root", size=8, cache="~/cache")
    assert (root.parent / "cache").is_dir()
    assert len(ImageStream("~/root")) == 3


def test_a_folder_may_begin_with_a_tilde(root, monkeypatch):
    monkeypatch.chdir(root.parent)
    root.rename("~nobody-of-this-name")
    assert len(image_folder("~nobody-of-this-name", cache="~cache-of-nobody")) == 3
    assert len(ImageStream("~nobody-of-this-name")) == 3


def test_names_may_be_of_any_alphabet(tmp_path):
    save(tmp_path / "große Katze" / "猫 1.png", noise(8, 8))
    assert image_folder(tmp_path, size=8, cache=tmp_path / ".キャッシュ").classes == ("große Katze",)


def test_many_images_show_a_progress_bar_on_a_terminal(root, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    image_folder(root, size=8)
    assert capsys.readouterr().err == ""
    image_folder(root, size=8, progress=True)
    assert "decode: 100%" in capsys.readouterr().err
    monkeypatch.setattr(folder, "_MANY", 2)
    image_folder(root, size=8)
    assert "decode: 100%" in capsys.readouterr().err
    image_folder(root, size=8, progress=False)
    assert capsys.readouterr().err == ""


def test_without_tqdm_there_is_no_progress_bar(root, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    assert len(image_folder(root, size=8, progress=True)) == 3
    assert capsys.readouterr().err == ""


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-30])


def empty(path):
    path.write_bytes(b"")


def text(path):
    path.write_text("this is no image")


@pytest.mark.parametrize("damage", [cut_off, empty, text])
def test_image_that_cannot_be_decoded_is_named(root, damage):
    path = root / "cat" / "b.png"
    damage(path)
    pattern = (
        rf"^image_folder: expected an image in {re.escape(repr(str(path)))}, got \w+: .*[^.]\. "
        r"Remove the file, or replace it with an 8-bit RGB image\.$"
    )
    with pytest.raises(RuntimeError, match=pattern):
        image_folder(root, size=8)


CAT, DOG = str(Path("cat") / "b.png"), str(Path("dog") / "a.png")


def gone(path):
    path.unlink()
    path.symlink_to(path.with_name("nowhere.png"))


@pytest.mark.parametrize("damage", [cut_off, empty, text, gone])
@pytest.mark.parametrize("cached", [False, True])
def test_broken_images_can_be_left_out(root, tmp_path, damage, cached):
    whole = image_folder(root, size=8)
    damage(root / "cat" / "b.png")
    message = f"image_folder: 1 of 3 images in {str(root)!r} unreadable: {CAT!r}. They are left out."
    cache = tmp_path / "cache" if cached else None
    for _ in range(2):  # of which the second finds the cache
        with pytest.warns(UserWarning, match=f"^{re.escape(message)}") as caught:
            images = image_folder(root, size=8, unreadable="skip", max_unreadable_fraction=1 / 3, cache=cache)
        assert [warning.filename for warning in caught] == [__file__]
        assert torch.equal(images.x, whole.x[[0, 2]])
        assert images.y.tolist() == [0, 1]
        assert images.classes == whole.classes


def test_a_cache_made_while_skipping_does_not_hide_broken_images(root, tmp_path):
    text(root / "cat" / "b.png")
    with pytest.warns(UserWarning, match="left out"):
        image_folder(root, size=8, unreadable="skip", max_unreadable_fraction=1, cache=tmp_path / "cache")
    with pytest.raises(UnreadableImageError, match=r"expected an image in '.*b\.png"):
        image_folder(root, size=8, max_unreadable_fraction=1, cache=tmp_path / "cache")


def test_whole_folders_are_the_same_with_and_without_skipping(root):
    assert torch.equal(image_folder(root, size=8, unreadable="skip").x, image_folder(root, size=8).x)


@pytest.mark.parametrize(
    ("broken", "tolerance", "expected"),
    [(CAT, 0.33, "at most 33.0% of the images left out"), (DOG, 1, "a readable image of each class")],
    ids=["too many", "all of a class"],
)
def test_too_many_images_or_a_whole_class_may_not_be_left_out(root, broken, tolerance, expected):
    text(root / broken)
    message = f"image_folder: expected {expected}, got 1 of 3 images in {str(root)!r} unreadable: {broken!r}. "
    with pytest.raises(UnreadableImageError, match=f"^{re.escape(message)}"):
        image_folder(root, size=8, unreadable="skip", max_unreadable_fraction=tolerance)


def test_a_share_of_exactly_the_tolerance_may_be_left_out(root):
    for i in range(97):
        save(root / "cat" / f"{i:02}.bmp", noise(1, 1))
        if i < 29:
            text(root / "cat" / f"{i:02}.bmp")
    with pytest.warns(UserWarning, match="29 of 100 images"):  # and 0.29 * 100 is 28.999999999999996
        assert len(image_folder(root, size=1, unreadable="skip", max_unreadable_fraction=0.29)) == 71


def test_ten_broken_images_are_named_and_the_others_counted(root):
    for i in range(12):
        text(root / "cat" / f"broken{i:02}.png")
    with pytest.warns(UserWarning, match=r"12 of 15 images .*broken09\.png' and 2 more\. They"):
        image_folder(root, size=8, unreadable="skip", max_unreadable_fraction=0.8)


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ({"unreadable": "ignore"}, ValueError, "expected unreadable to be"),
        ({"max_unreadable_fraction": 1.1}, ValueError, "expected max_unreadable_fraction to be"),
        ({"max_unreadable_fraction": "few"}, TypeError, "expected max_unreadable_fraction to be"),
    ],
)
def test_wrong_policies(root, setting, error, message):
    with pytest.raises(error, match=re.escape(f"image_folder: {message}")):
        image_folder(root, size=8, **setting)


def test_16_bit_image_is_refused_instead_of_clipped(root):
    Image.frombytes("I;16", (1, 1), b"\x40\x9c").save(root / "cat" / "deep.png")
    message = f"image_folder: expected 8 bits per channel in {str(root / 'cat' / 'deep.png')!r}, got 16 bits. "
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}"):
        image_folder(root, size=8)


def test_missing_folder(tmp_path):
    message = f"image_folder: expected a folder at {str(tmp_path / 'absent')!r}, got nothing there. "
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}"):
        image_folder(tmp_path / "absent")


def test_file_instead_of_a_folder(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(FileNotFoundError, match=r"file'"):
        image_folder(tmp_path / "file")


def test_folder_without_classes(tmp_path):
    save(tmp_path / "a.png", noise(8, 8))
    message = f"image_folder: expected a folder for each class in {str(tmp_path)!r}, got none. "
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}"):
        image_folder(tmp_path)


@pytest.mark.parametrize(
    ("files", "got"),
    [([], "no files"), (["a.txt", "b.npy", "c.npy", "README"], "4 files of other kinds (.npy, .txt, no suffix)")],
)
def test_class_without_images_is_named(root, files, got):
    (root / "owl").mkdir()
    for name in files:
        (root / "owl" / name).touch()
    message = f"image_folder: expected images in {str(root / 'owl')!r}, got {got}"
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}"):
        image_folder(root)


@pytest.mark.parametrize(("size", "error", "got"), [(0, ValueError, "0"), ((8, 8), TypeError, "tuple")])
def test_wrong_size(root, size, error, got):
    message = f"image_folder: expected size to be an int >= 1, got {got}"
    with pytest.raises(error, match=re.escape(message)):
        image_folder(root, size=size)


def test_folders_with_equal_names_sizes_and_times_do_not_share_a_cache(tmp_path):
    for split, level in (("train", 10), ("test", 200)):
        folder = tmp_path / split / "cat"
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8), (level, level, level)).save(folder / "0.bmp")
        os.utime(folder / "0.bmp", (0, 0))
    train, test = (image_folder(tmp_path / split, size=8, cache=tmp_path / "cache") for split in ("train", "test"))
    assert train.x.unique().tolist() == [10]
    assert test.x.unique().tolist() == [200]


def test_a_link_to_nowhere_is_named(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.png").symlink_to(tmp_path / "nowhere.png")
    for settings in ({}, {"cache": tmp_path / "cache"}):
        with pytest.raises(UnreadableImageError, match=r"^image_folder: expected an image in '.*0\.png'"):
            image_folder(tmp_path, **settings)
