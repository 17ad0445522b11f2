"""Folders of images that are larger than memory, decoded when they are indexed."""

import os
import warnings
from itertools import chain
from numbers import Integral
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset

from .._checks import check_path, complaint, type_name
from .._digest import digest
from .decoding import UnreadableImageError, decode
from .folder import SUFFIXES, check_settings, list_images

_OWNER = "ImageStream"


class ImageStream(Dataset[Tensor]):
    """Images of a folder without labels, decoded one by one when they are indexed.

    The folder may be flat or nested. The images in ``root`` itself come first, then those of the folders below it, in
    the order of :func:`image_folder` and bit-identical to its images. Only the paths are held in memory, about fifty
    bytes per image. :func:`advcontrast.engine.fit` reads such a data set in worker processes, as a ``DataLoader`` does.

    Args:
        root: the folder.
        size: side of the images in pixels, at least 1.
        unreadable: as for :func:`image_folder`, but ``"skip"`` returns the next readable image in place of an
            unreadable one, the same in every epoch and process, and warns of each file once.
        max_unreadable_fraction: the largest share of the images that may be skipped without an error, in [0, 1].
        outside_links: as for :func:`image_folder`.
        tolerance: old name of ``max_unreadable_fraction``, kept for one release.

    Raises:
        UnreadableImageError: when indexed, if a file is unreadable and ``unreadable`` is ``"raise"``, or too many are.
        FileNotFoundError: the folder does not exist, or holds no image.
        OSError: a folder cannot be listed, and ``unreadable`` is ``"raise"``.
        ValueError: an argument out of range; a link that leads out of the folder, or in a circle.
        TypeError: an argument has the wrong type.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> root = Path(tempfile.mkdtemp())
        >>> _ = (root / "gray.ppm").write_bytes(b"P6 2 2 255 " + bytes([51] * 12))
        >>> images = ImageStream(root, size=1)
        >>> len(images), images[0].flatten().tolist()
        (1, [51, 51, 51])
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        size: int = 32,
        unreadable: Literal["raise", "skip"] = "raise",
        max_unreadable_fraction: float = 0.01,
        outside_links: bool = False,
        tolerance: float | None = None,
    ) -> None:
        root = check_path(_OWNER, "root", root, remedy="Pass the folder that holds the images")
        fraction = check_settings(_OWNER, size, unreadable, max_unreadable_fraction, outside_links, tolerance)
        self.root = root.absolute()
        self.size, self.unreadable, self.max_unreadable_fraction = int(size), unreadable, fraction
        self.outside_links = outside_links
        skip, remedy = unreadable == "skip", "Put images into it, or into folders in it"
        found, unusable = list_images(_OWNER, self.root, outside_links=outside_links, skip=skip, remedy=remedy)
        # A folder that cannot be listed counts as one image that cannot be decoded.
        names = [os.fsencode(name) for name in [*chain(*found.values()), *unusable]]
        if not names:
            expected = f"images ({', '.join(SUFFIXES)}) in {str(self.root)!r}"
            raise FileNotFoundError(complaint(_OWNER, expected, "none", remedy))
        # As one string: reference counts would make every worker process copy the memory of a list of strings.
        self._names = b"".join(names)
        self._ends = torch.tensor([len(name) for name in names]).cumsum(0)
        self._bad: set[int] = set()

    def __repr__(self) -> str:
        return (
            f"{_OWNER}({str(self.root)!r}, size={self.size}, unreadable={self.unreadable!r}, "
            f"max_unreadable_fraction={self.max_unreadable_fraction}, outside_links={self.outside_links})"
        )

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Tensor:
        """Return an image, uint8 ``[3, size, size]``, or raise an ``UnreadableImageError`` or ``IndexError``."""
        image, reason = self.read(index)
        if reason is not None:
            self.note(index, reason)
        return image

    def path(self, index: int) -> Path:
        """Return the path of an image."""
        expected = f"index to be an int from 0 to {len(self) - 1}"
        if isinstance(index, bool) or not isinstance(index, Integral):
            raise TypeError(complaint(_OWNER, expected, type_name(index), "Pass the index of one image"))
        if not 0 <= index < len(self):
            raise IndexError(complaint(_OWNER, expected, str(index), "There are no more"))
        start = int(self._ends[index - 1]) if index else 0
        return self.root / os.fsdecode(self._names[start : int(self._ends[index])])

    @property
    def skipped(self) -> list[Path]:
        """Files that this process has skipped, in the order of the folder."""
        return [self.path(index) for index in sorted(self._bad)]

    def fingerprint(self) -> str:
        """Return the SHA-256 of ``size``, ``unreadable`` and the paths below the root, as hexadecimal digits.

        It identifies a folder independently of its location. Files are not read, so changed pixels are not detected.
        """
        return digest(f"{self.size} {self.unreadable}", self._ends.numpy().astype("<i8").tobytes(), self._names)

    def read(self, index: int) -> tuple[Tensor, str | None]:
        """Return an image and, if it replaces an unreadable one, the reason. Workers call this: nothing is recorded."""
        reason: str | None = None
        for i in range(self._most() + 1):
            try:
                return decode(_OWNER, self.path((index + i) % len(self) if i else index), self.size), reason
            except UnreadableImageError as error:
                if self.unreadable == "raise":
                    raise
                reason = reason or str(error)
        raise self._too_many(f"{self._most() + 1} in a row, from {str(self.path(index))!r}")

    def note(self, index: int, reason: str) -> None:
        """Record a skipped image in the main process: warn once, or raise an ``UnreadableImageError`` for too many."""
        path = self.path(index)
        if index in self._bad:
            return
        self._bad.add(index)
        if len(self._bad) > self._most():
            raise self._too_many(f"{len(self._bad)}, the last one {str(path)!r}")
        warnings.warn(f"{reason} It is skipped ({len(self._bad)} so far).", UserWarning, stacklevel=3)

    def _most(self) -> int:
        return int(self.max_unreadable_fraction * len(self) + 1e-9)  # 0.29 * 100 is 28.999999999999996

    def _too_many(self, got: str) -> UnreadableImageError:
        expected = f"at most {self._most()} unreadable of {len(self)} images in {str(self.root)!r}"
        remedy = "Check the folder, or raise max_unreadable_fraction"
        return UnreadableImageError(complaint(_OWNER, expected, got, remedy))
