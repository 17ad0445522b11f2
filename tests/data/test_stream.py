"""Folders of images that are decoded when they are asked for."""

import os
import pickle
import re
import warnings

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from advcontrast.data import image_folder
from advcontrast.data.decoding import UnreadableImageError
from advcontrast.data.stream import ImageStream
from tests.data.test_decoding import png
from tests.data.test_folder import cut_off, empty, noise, save, text


@pytest.fixture
def root(tmp_path):
    """Five images of 8 x 8 pixels: a flat one, and others in folders."""
    for name, seed in (("b/x/1.png", 1), ("a.png", 2), ("b/0.png", 3), ("b/z.bmp", 4), ("c/c.PNG", 5)):
        save(tmp_path / "root" / name, noise(8, 8, seed))
    return tmp_path / "root"


def everything(stream):
    return torch.stack([stream[i] for i in range(len(stream))])


def names(stream):
    return [str(stream.path(i).relative_to(stream.root)) for i in range(len(stream))]


def test_files_of_a_folder_come_before_those_of_its_folders(root):
    stream = ImageStream(root, size=8)
    assert names(stream) == ["a.png", "b/0.png", "b/z.bmp", "b/x/1.png", "c/c.PNG"]
    assert torch.equal(everything(stream), torch.stack([noise(8, 8, seed) for seed in (2, 3, 4, 1, 5)]))


def test_images_in_folders_come_in_the_order_of_torchvision(tmp_path):
    for i, name in enumerate(("b/2.png", "b-/1.png", "b/x/0.png", "b/x-/3.png", "b/x/y/0.JPG", "B/7.png", "b/10.png")):
        save(tmp_path / name, noise(8, 8, i))
    reference = ImageFolder(tmp_path)
    assert [str(tmp_path / name) for name in names(ImageStream(tmp_path))] == [path for path, _ in reference.samples]
    images = image_folder(tmp_path, size=8)
    assert images.y.tolist() == reference.targets
    assert images.classes == tuple(reference.classes)
    assert torch.equal(images.x, everything(ImageStream(tmp_path, size=8)))


@pytest.mark.parametrize("size", [8, 5, 12])
def test_pixels_are_those_of_image_folder(tmp_path, size):
    for i, (height, width) in enumerate([(8, 8), (20, 9), (7, 30)]):
        save(tmp_path / ("cat" if i else "ant") / f"{i}.png", noise(height, width, i))
    assert torch.equal(everything(ImageStream(tmp_path, size=size)), image_folder(tmp_path, size=size).x)


def test_an_image_is_uint8_channel_by_channel(root):
    image = ImageStream(str(root))[0]
    assert image.dtype == torch.uint8
    assert image.shape == (3, 32, 32)
    assert image.is_contiguous()


def test_hidden_and_other_files_are_left_out(root):
    expected = everything(ImageStream(root, size=8))
    (root / ".hidden.png").write_text("no image")
    (root / "notes.txt").write_text("no image")
    (root / "b" / "README").write_text("no image")
    save(root / ".trash" / "a.png", noise(8, 8))
    assert torch.equal(everything(ImageStream(root, size=8)), expected)


def test_names_may_be_of_any_alphabet_and_of_none(tmp_path):
    save(tmp_path / "große Katze" / "猫 1.png", noise(8, 8, 1))
    (tmp_path / "große Katze" / "猫 1.png").rename(tmp_path / os.fsdecode(b"\xff\n.png"))
    assert torch.equal(ImageStream(tmp_path, size=8)[0], noise(8, 8, 1))


def test_a_folder_may_be_called_like_an_image(tmp_path):
    save(tmp_path / "a.png" / "b.png", noise(8, 8, 1))
    assert len(ImageStream(tmp_path)) == 1


def test_folders_may_be_deep(tmp_path):
    deep = 1100  # deeper than Python calls functions in functions
    folders = [tmp_path.joinpath(*["d"] * depth) for depth in range(1, deep + 1)]
    image = folders[-1] / "a.png"
    try:
        for folder in folders:
            folder.mkdir()
        Image.new("RGB", (8, 8)).save(image)
        assert len(ImageStream(tmp_path)) == 1
    finally:  # with such functions pytest deletes what a run left, and would end in an error
        image.unlink(missing_ok=True)
        for folder in reversed(folders):
            folder.rmdir()


def test_only_names_are_held(root):
    stream = ImageStream(root, size=8)
    assert len(pickle.dumps(stream)) < 2000
    assert len(pickle.dumps(ImageStream(root, size=4096))) < 2000


def test_a_data_loader_reads_it(root):
    stream = ImageStream(root, size=8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batches = [*DataLoader(stream, batch_size=2, num_workers=1)]
    assert torch.equal(torch.cat(batches), everything(stream))


@pytest.mark.parametrize("index", [-1, 5, 6])
def test_there_is_nothing_beyond_the_last_image(root, index):
    message = f"ImageStream: expected index to be an int from 0 to 4, got {index}"
    with pytest.raises(IndexError, match=f"^{re.escape(message)}"):
        ImageStream(root)[index]


def test_repr_is_the_call(root):
    stream = ImageStream(root, size=8, unreadable="skip", max_unreadable_fraction=0.5)
    settings = "size=8, unreadable='skip', max_unreadable_fraction=0.5, outside_links=False"
    expected = f"ImageStream({str(root)!r}, {settings})"
    assert repr(stream) == expected
    assert repr(eval(repr(stream))) == expected


def test_fingerprint_tells_names_and_size_and_not_places(root, tmp_path):
    first = ImageStream(root, size=8).fingerprint()
    root.rename(tmp_path / "elsewhere")
    root = tmp_path / "elsewhere"
    assert ImageStream(root, size=8).fingerprint() == first
    assert ImageStream(root, size=9).fingerprint() != first
    (root / "a.png").rename(root / "A.png")
    assert ImageStream(root, size=8).fingerprint() != first


def test_fingerprint_tells_where_a_name_ends(tmp_path):
    for folder, names in (("one", ("a.png", "b.png")), ("two", ("a.pngb.png",))):
        for name in names:
            save(tmp_path / folder / name, noise(8, 8))
    assert ImageStream(tmp_path / "one").fingerprint() != ImageStream(tmp_path / "two").fingerprint()


# Files that cannot be used.


def gone(path):
    path.unlink()


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def folder(path):
    path.unlink()
    path.mkdir()


def deep(path):
    Image.frombytes("I;16", (1, 1), b"\x40\x9c").save(path)


def script(path):
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n")


DAMAGES = [cut_off, empty, text, gone, pipe, folder, deep, script]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_file_that_cannot_be_used_is_named(root, damage):
    stream = ImageStream(root, size=8)
    damage(root / "b" / "0.png")
    name = re.escape(repr(str(root / "b" / "0.png")))
    remedy = "Remove the file, or replace it with an 8-bit RGB image"
    if damage in (gone, folder):
        remedy = "Check its permissions and the disk, or remove a link that leads nowhere"
    pattern = rf"^ImageStream: expected (an image|8 bits per channel) in {name}, got .*[^.]\. {remedy}\.$"
    with pytest.raises(UnreadableImageError, match=pattern):
        stream[1]
    assert stream[0] is not None


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_skipped_file_is_replaced_by_the_next_readable_one(root, damage):
    stream = ImageStream(root, size=8, unreadable="skip", max_unreadable_fraction=0.4)
    damage(root / "b" / "0.png")
    with pytest.warns(UserWarning, match=rf"{re.escape(repr(str(root / 'b' / '0.png')))}.*It is skipped \(1 so far\)"):
        assert torch.equal(stream[1], stream[2])
    empty(root / "b" / "z.bmp")
    with pytest.warns(UserWarning, match=r"z\.bmp.*It is skipped \(2 so far\)"):
        assert torch.equal(stream[2], stream[3])
    assert torch.equal(stream[1], stream[3])


def test_the_last_file_is_replaced_by_the_first(root):
    stream = ImageStream(root, size=8, unreadable="skip", max_unreadable_fraction=0.2)
    empty(root / "c" / "c.PNG")
    with pytest.warns(UserWarning, match="skipped"):
        assert torch.equal(stream[4], stream[0])


def test_each_file_is_named_once_and_counted(root):
    stream = ImageStream(root, size=8, unreadable="skip", max_unreadable_fraction=0.4)
    empty(root / "b" / "0.png")
    empty(root / "a.png")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for i in (1, 0, 1, 0, 2):
            stream[i]
    assert [re.search(r"in '.*root/(.*?)'.*\((.*)\)", str(warning.message)).groups() for warning in caught] == [
        ("b/0.png", "1 so far"),
        ("a.png", "2 so far"),
    ]
    assert stream.skipped == [root / "a.png", root / "b" / "0.png"]


def test_the_replacement_of_a_file_does_not_depend_on_earlier_reads(root):
    empty(root / "b" / "0.png")
    first, second = (ImageStream(root, size=8, unreadable="skip", max_unreadable_fraction=0.5) for _ in range(2))
    with pytest.warns(UserWarning, match="skipped"):
        forwards = [first[i] for i in range(5)]
    with pytest.warns(UserWarning, match="skipped"):
        backwards = [second[i] for i in reversed(range(5))]
    assert torch.equal(torch.stack(forwards), torch.stack(backwards[::-1]))


def test_more_than_the_tolerance_is_refused(root):
    stream = ImageStream(root, size=8, unreadable="skip", max_unreadable_fraction=0.2)
    empty(root / "a.png")
    empty(root / "b" / "z.bmp")
    with pytest.warns(UserWarning, match="1 so far"):
        stream[0]
    message = (
        f"ImageStream: expected at most 1 unreadable of 5 images in {str(root)!r}, got 2, the last one "
        f"{str(root / 'b' / 'z.bmp')!r}. Check the folder, or raise max_unreadable_fraction."
    )
    with pytest.raises(UnreadableImageError, match=f"^{re.escape(message)}"):
        stream[2]


@pytest.mark.parametrize("tolerance", [0.2, 1.0])
def test_a_folder_full_of_garbage_is_refused(root, tolerance):
    for path in root.rglob("*.*"):
        text(path)
    stream = ImageStream(root, size=8, unreadable="skip", max_unreadable_fraction=tolerance)
    most = int(5 * tolerance)
    message = (
        f"ImageStream: expected at most {most} unreadable of 5 images in {str(root)!r}, got {most + 1} in a row, "
        f"from {str(root / 'a.png')!r}. Check the folder, or raise max_unreadable_fraction."
    )
    with pytest.raises(UnreadableImageError, match=f"^{re.escape(message)}"):
        stream[0]


def test_of_a_hundred_files_one_may_be_skipped_by_default(tmp_path):
    for i in range(100):
        save(tmp_path / f"{i:02d}.png", noise(2, 2, i))
    stream = ImageStream(tmp_path, size=2, unreadable="skip")
    empty(tmp_path / "07.png")
    with pytest.warns(UserWarning, match="skipped"):
        stream[7]
    empty(tmp_path / "09.png")
    with pytest.raises(UnreadableImageError, match="at most 1 unreadable of 100"):
        stream[9]


def test_a_tolerance_of_29_percent_is_29_of_100(tmp_path):
    for i in range(100):
        (tmp_path / f"{i:02d}.png").touch()
    with pytest.raises(UnreadableImageError, match="at most 29 unreadable of 100"):
        ImageStream(tmp_path, unreadable="skip", max_unreadable_fraction=0.29)[0]


def test_postscript_is_not_taken_for_an_image(root):
    """Pillow would start another program to draw it."""
    script(root / "b" / "0.png")
    with pytest.raises(UnreadableImageError, match="got UnidentifiedImageError: cannot identify image file"):
        ImageStream(root, size=8)[1]


def test_a_pipe_is_neither_waited_for_nor_read(root):
    path = root / "b" / "0.png"
    content = path.read_bytes()
    pipe(path)
    end = os.open(path, os.O_RDWR)
    try:
        os.write(end, content)
        with pytest.raises(UnreadableImageError, match=r"got OSError: not a regular file\. "):
            ImageStream(root, size=8)[1]
        assert os.read(end, len(content)) == content
    finally:
        os.close(end)


# Images that claim to be huge.


def claim(path, width, height):
    """Write a PNG of a few bytes whose header claims another size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(8, 2, 3, size=(width, height)))


@pytest.mark.parametrize(("width", "height"), [(50_000, 50_000), (2**31 - 1, 2**31 - 1), (10_000, 10_000)])
@pytest.mark.parametrize("strict", [True, False])
def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path, width, height, strict):
    claim(tmp_path / "cat" / "bomb.png", width, height)
    name = re.escape(repr(str(tmp_path / "cat" / "bomb.png")))
    pattern = rf"expected an image in {name}, got DecompressionBomb\w+: .*{width * height} pixels.*Remove the file"
    with warnings.catch_warnings():
        warnings.simplefilter("error" if strict else "ignore")
        with pytest.raises(UnreadableImageError, match=f"^ImageStream: {pattern}"):
            ImageStream(tmp_path)[0]
        with pytest.raises(UnreadableImageError, match=f"^image_folder: {pattern}"):
            image_folder(tmp_path)


# Links.


def read_all(root, **settings):
    return [torch.equal(x, noise(8, 8, 7)) for x in everything(ImageStream(root, size=8, **settings))]


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_link_out_of_the_folder_is_refused_unless_asked_for(tmp_path, what):
    save(tmp_path / "private" / "secret.png", noise(8, 8, 7))
    (tmp_path / "root" / "cat").mkdir(parents=True)
    link = tmp_path / "root" / "cat" / "a.png" if what == "file" else tmp_path / "root" / "dog"
    link.symlink_to(tmp_path / "private" / ("secret.png" if what == "file" else ""))
    if what == "folder":
        save(tmp_path / "root" / "cat" / "b.png", noise(8, 8, 7))
    target = tmp_path / "private" / ("secret.png" if what == "file" else "")
    message = (
        f"expected links to stay inside {str(tmp_path / 'root')!r}, got a link from {str(link)!r} to {str(target)!r}. "
    )
    with pytest.raises(ValueError, match=f"^{re.escape('ImageStream: ' + message)}"):
        ImageStream(tmp_path / "root")
    with pytest.raises(ValueError, match=f"^{re.escape('image_folder: ' + message)}"):
        image_folder(tmp_path / "root")
    assert all(read_all(tmp_path / "root", outside_links=True))
    assert len(image_folder(tmp_path / "root", outside_links=True)) == len(
        ImageStream(tmp_path / "root", outside_links=True)
    )


def test_a_link_to_a_neighbour_with_a_longer_name_is_out_of_the_folder(tmp_path):
    save(tmp_path / "root-private" / "secret.png", noise(8, 8, 7))
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.png").symlink_to("../root-private/secret.png")
    with pytest.raises(ValueError, match="expected links to stay inside"):
        ImageStream(tmp_path / "root")


def test_links_inside_of_the_folder_and_to_the_folder_are_followed(tmp_path):
    save(tmp_path / "root" / "cat" / "a.png", noise(8, 8, 7))
    (tmp_path / "root" / "cat" / "b.png").symlink_to("a.png")
    (tmp_path / "root" / "kitty").symlink_to("cat")
    (tmp_path / "alias").symlink_to("root")
    assert read_all(tmp_path / "alias") == [True] * 4
    assert len(image_folder(tmp_path / "alias", size=8)) == 4


def test_a_link_that_is_no_image_does_not_matter(tmp_path):
    save(tmp_path / "root" / "cat" / "a.png", noise(8, 8, 7))
    (tmp_path / "root" / "cat" / "README").symlink_to("/etc/hostname")
    assert read_all(tmp_path / "root") == [True]
    assert len(image_folder(tmp_path / "root", size=8)) == 1


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_links_in_a_circle_are_named(tmp_path, target):
    save(tmp_path / "b" / "c" / "a.png", noise(8, 8, 7))
    (tmp_path / "b" / "c" / "loop").symlink_to(target)
    message = (
        f"ImageStream: expected links in {str(tmp_path)!r} without a circle, "
        f"got a circle at {str(tmp_path / 'b' / 'c' / 'loop')!r}. Remove the link."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        ImageStream(tmp_path)


def test_a_link_to_nowhere_is_named_when_it_is_read(tmp_path):
    (tmp_path / "a.png").symlink_to("nowhere.png")
    with pytest.raises(UnreadableImageError, match=r"a\.png'"):
        ImageStream(tmp_path)[0]


# Arguments and folders that make no sense.


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"size": 0}, ValueError, "expected size to be"),
        ({"size": (8, 8)}, TypeError, "expected size to be"),
        ({"unreadable": "ignore"}, ValueError, "expected unreadable to be"),
        ({"max_unreadable_fraction": 1.5}, ValueError, "expected max_unreadable_fraction to be"),
        ({"max_unreadable_fraction": float("nan")}, ValueError, "expected max_unreadable_fraction to be"),
        ({"outside_links": 1}, TypeError, "expected outside_links to be"),
    ],
)
def test_wrong_argument(root, settings, error, message):
    with pytest.raises(error, match=f"^{re.escape('ImageStream: ' + message)}"):
        ImageStream(root, **settings)


def test_image_folder_takes_no_other_word_for_links(root):
    message = "image_folder: expected outside_links to be"
    with pytest.raises(TypeError, match=f"^{re.escape(message)}"):
        image_folder(root, outside_links="yes")


@pytest.mark.parametrize("what", ["nothing there", "a file"])
def test_no_folder(tmp_path, what):
    if what == "a file":
        (tmp_path / "data").touch()
    message = f"ImageStream: expected a folder at {str(tmp_path / 'data')!r}, got {what}"
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}"):
        ImageStream(tmp_path / "data")


def test_folder_without_images(tmp_path):
    (tmp_path / "a.txt").touch()
    (tmp_path / "b").mkdir()
    message = (
        "ImageStream: expected images (.bmp, .jfif, .jpeg, .jpg, .pgm, .png, .ppm, .tif, .tiff, .webp) in "
        f"{str(tmp_path)!r}, got none. Put images into it, or into folders in it."
    )
    with pytest.raises(FileNotFoundError, match=f"^{re.escape(message)}"):
        ImageStream(tmp_path)
