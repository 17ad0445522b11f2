"""CIFAR-10-C: the test images of CIFAR-10 under 19 common corruptions, in the published files."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from .._checks import check_bool, check_choice, check_path, check_type, check_within, complaint
from .images import ImageSet

_OWNER = "cifar10_c"
_IMAGES = 10_000  # of each severity; a file holds the severities one after the other
_SEVERITIES = 5
_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_MD5 = {
    "gaussian_noise": "ecaf8b9a2399ffeda7680934c33405fd",
    "shot_noise": "3a7239bb118894f013d9bf1984be7f11",
    "impulse_noise": "2090e01c83519ec51427e65116af6b1a",
    "defocus_blur": "7d1322666342a0702b1957e92f6254bc",
    "glass_blur": "7361fb4019269e02dbf6925f083e8629",
    "motion_blur": "fffa5f852ff7ad299cfe8a7643f090f4",
    "zoom_blur": "6ea8e63f1c5cdee1517533840641641b",
    "snow": "bb238de8555123da9c282dea23bd6e55",
    "frost": "31f6ab3bce1d9934abfb0cc13656f141",
    "fog": "7b397314b5670f825465fbcd1f6e9ccd",
    "brightness": "0a81ef75e0b523c3383219c330a85d48",
    "contrast": "3c8262171c51307f916c30a3308235a8",
    "elastic_transform": "9421657c6cd452429cf6ce96cc412b5f",
    "pixelate": "0f14f7e2db14288304e1de10df16832f",
    "jpeg_compression": "2b9cc4c864e0193bb64db8d7728f8187",
    "speckle_noise": "ef00b87611792b00df09c0b0237a1e30",
    "gaussian_blur": "c33370155bc9b055fb4a89113d3c559d",
    "spatter": "8a5a3903a7f8f65b59501a6093b4311e",
    "saturate": "1cfae0964219c5102abbb883e538cc56",
    "labels": "c439b113295ed5254878798ffe28fd54",
}

#: Names of the 19 corruptions of CIFAR-10-C.
CIFAR10_C: tuple[str, ...] = tuple(name for name in _MD5 if name != "labels")
#: Names of the 15 corruptions that are usually reported; the other four were meant for validation.
CIFAR10_C_MAIN: tuple[str, ...] = CIFAR10_C[:15]


def cifar10_c(
    folder: str | Path, *, names: Sequence[str] = CIFAR10_C, verify: bool = True
) -> Iterator[tuple[str, int, ImageSet]]:
    """Iterate over CIFAR-10-C: names of corruptions, severities from 1 to 5 of each, and the 10,000 images of each.

    All files are checked before the first is read. The images of one severity, 31 MB, are in memory at a time. The
    files are those of ``CIFAR-10-C.tar`` at https://zenodo.org/records/2535967, 2,918,471,680 bytes with the MD5
    56bf5dcef84df0e2308c6dcbcbbd8499 and the SHA-256 c72763e101c723b7c507b96205f7e938912a5d587376173b825850cf3cb876a7.
    The checksums are from the package torch-uncertainty, not compared with a download. Reference: Hendrycks and
    Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations", ICLR 2019.

    Args:
        folder: folder of the unpacked archive, with ``labels.npy`` and a file for each corruption.
        names: some of :data:`CIFAR10_C`. The files of the others may be missing.
        verify: whether files must have their published MD5 (a second for 300 MB); otherwise only their layout counts.

    Raises:
        FileNotFoundError: files are missing.
        ValueError: a name is unknown, or a file is damaged or holds something else.
        TypeError: an argument has the wrong type.
    """
    check_type(_OWNER, "names", names, (tuple, list), remedy="CIFAR10_C_MAIN holds the usual 15")
    if not names:
        raise ValueError(complaint(_OWNER, "names to hold a name", "none", "CIFAR10_C_MAIN holds the usual 15"))
    for name in names:
        check_choice(_OWNER, "each of names", name, CIFAR10_C)
    check_bool(_OWNER, "verify", verify, remedy="False reads files without comparing their checksums")
    folder = check_path(_OWNER, "folder", folder, remedy="Pass the folder that holds the files")
    paths = {name: folder / f"{name}.npy" for name in (*names, "labels")}
    missing = [path.name for path in paths.values() if not path.is_file()]
    if missing:
        expected, remedy = f"{len(paths)} files in {str(folder)!r}", "Unpack CIFAR-10-C.tar there"
        raise FileNotFoundError(complaint(_OWNER, expected, f"all but {', '.join(missing)}", remedy))
    labels = torch.from_numpy(_mapped(paths["labels"], "integer", (_SEVERITIES * _IMAGES,)).astype("int64"))
    check_within(_OWNER, "labels", labels, (0, len(_CLASSES) - 1), remedy="Download CIFAR-10-C again")
    files = {name: _mapped(paths[name], "uint8", (_SEVERITIES * _IMAGES, 32, 32, 3)) for name in names}
    if verify:
        from torchvision.datasets.utils import check_integrity

        for name, path in paths.items():
            if not check_integrity(path, _MD5[name]):
                expected, got = f"the published MD5 {_MD5[name]} of {path.name}", "another one"
                remedy = "Download CIFAR-10-C again, or pass verify=False to read files of your own"
                raise ValueError(complaint(_OWNER, expected, got, remedy))

    def images(file: Any, part: slice) -> ImageSet:
        return ImageSet(torch.from_numpy(file[part].transpose(0, 3, 1, 2).copy()), labels[part], _CLASSES)

    parts = [(i + 1, slice(i * _IMAGES, (i + 1) * _IMAGES)) for i in range(_SEVERITIES)]
    return ((name, severity, images(file, part)) for name, file in files.items() for severity, part in parts)


def _mapped(path: Path, kind: str, shape: tuple[int, ...]) -> Any:
    """Return the array of ``kind`` and ``shape`` in a file, without reading it yet."""
    import numpy as np

    expected, remedy = f"{kind} {list(shape)} in {path.name}", "Download CIFAR-10-C again"
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    # NumPy may raise any error for other files.
    except Exception as error:
        raise ValueError(complaint(_OWNER, expected, f"an error: {error}".rstrip("."), remedy)) from error
    if not np.issubdtype(array.dtype, getattr(np, kind)) or array.shape != shape:
        raise ValueError(complaint(_OWNER, expected, f"{array.dtype} {list(array.shape)}", remedy))
    return array
