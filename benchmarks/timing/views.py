"""Two SimCLR views of a batch of CIFAR's size, and the augmentation of supervised training, beside other libraries.

The recipe is that of the ACL code: a bicubic crop of 10 to 100 % of the area, a mirror image, colour jitter (0.4, 0.4,
0.4, 0.1) for four images of five, gray for one of five. Every candidate draws separate parameters for each image,
starts from bytes as in a data set, and ends with batches of floats in [0, 1].

The candidates draw different numbers, so their views cannot be compared one by one. Ours are compared with
torchvision's operations for the same parameters, and the mean and standard deviation of each candidate's views with
those of the first. A deviation above the tolerance of a table raises an error.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import transforms as v1
from torchvision.transforms import functional as TF
from torchvision.transforms import v2

from advcontrast.augment import ContrastivePairAugment, CropFlip, SimCLRAugment, ViewParameters
from benchmarks.timing.sidebyside import Candidate, Settings, Table, agree

BICUBIC = v2.InterpolationMode.BICUBIC
CROP = {"size": 32, "scale": (0.1, 1.0)}
JITTER = (0.4, 0.4, 0.4, 0.1)
SAME_PARAMETERS = 4e-6
SAME_LAW = 0.3  # over the square root of the number of views: about four standard errors of a mean over images
Views = Callable[[], tuple[Tensor, ...]]


def tables(settings: Settings) -> list[Table]:
    """Race the candidates for pairs of views, and those for shifted and mirrored images."""
    n = 16 if settings.quick else 512
    return [pairs(images(n).to(settings.device), settings), shifts(images(n).to(settings.device), settings)]


def images(n: int) -> Tensor:
    """Return uint8 images that are smooth and colourful, as photographs are."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 6, 6, generator=generator)
    x = F.interpolate(coarse, (32, 32), mode="bicubic") + 0.05 * torch.randn(n, 3, 32, 32, generator=generator)
    return (255 * x.clamp(0, 1)).round().byte()


def pairs(x: Tensor, settings: Settings) -> Table:
    """Return the table of pairs of SimCLR views."""
    tolerance = SAME_LAW / (2 * len(x)) ** 0.5
    about = (
        f"{len(x)} uint8 images, 3 x 32 x 32. Ours equals torchvision's operations for the same parameters within "
        f"{SAME_PARAMETERS:g}; agreement is how far mean and standard deviation of all views are from those of the "
        f"first candidate, allowed up to {tolerance:.3f}. kornia draws one order of the jitter per batch, ours and "
        "torchvision one per image; lightly resizes bilinearly."
    )
    table = Table("Two SimCLR views", about, "images")
    generator = torch.Generator().manual_seed(0)
    augment = ContrastivePairAugment(32)
    candidates: dict[str, Views] = {}
    if settings.device.type == "cpu":
        pictures = [TF.to_pil_image(image) for image in x]
        pil = _torchvision_v1()
        candidates["torchvision v1, PIL, image by image"] = lambda: _image_by_image(pil, pictures, 2)
        if table.peer("lightly", "lightly") is not None:
            simclr = _lightly()
            candidates["lightly, PIL, image by image"] = lambda: tuple(
                torch.stack(views) for views in zip(*(simclr(picture) for picture in pictures), strict=True)
            )
    by_v2 = _torchvision_v2()
    candidates["torchvision v2, tensors, image by image"] = lambda: _image_by_image(by_v2, x, 2)
    if table.peer("kornia.augmentation", "kornia") is not None:
        batched = _kornia_simclr()
        candidates["kornia, batched"] = lambda: _kornia_views(batched, x, 2)
    candidates["ours"] = lambda: augment(x, generator)
    _check_parameters(x)
    table.race(_checked(candidates, tolerance), settings, items=len(x))
    return table


def shifts(x: Tensor, settings: Settings) -> Table:
    """Return the table of images padded, cut and mirrored."""
    tolerance = SAME_LAW / len(x) ** 0.5
    about = (
        f"{len(x)} uint8 images, 3 x 32 x 32: a border of 4 black pixels, a random crop, a horizontal flip. Ours is "
        "bit-identical to padding, slicing and mirroring image by image; agreement is how far mean and standard "
        f"deviation are from those of the first candidate, allowed up to {tolerance:.3f}."
    )
    table = Table("Shift and mirror image", about, "images")
    generator = torch.Generator().manual_seed(0)
    augment = CropFlip()
    to_float = v2.ToDtype(torch.float32, scale=True)
    by_v2 = v2.Compose([v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), to_float])
    candidates: dict[str, Views] = {
        "torchvision v2, tensors, image by image": lambda: _image_by_image(by_v2, x, 1),
    }
    if table.peer("kornia.augmentation", "kornia") is not None:
        batched = _kornia_shift()
        candidates["kornia, batched"] = lambda: _kornia_views(batched, x, 1)
    candidates["ours"] = lambda: (augment(x, generator),)
    _check_shifts(x)
    table.race(_checked(candidates, tolerance), settings, items=len(x))
    return table


def _torchvision_v1() -> v1.Compose:
    crop = v1.RandomResizedCrop(**CROP, interpolation=BICUBIC)
    jitter = v1.RandomApply([v1.ColorJitter(*JITTER)], p=0.8)
    return v1.Compose([crop, v1.RandomHorizontalFlip(), jitter, v1.RandomGrayscale(0.2), v1.ToTensor()])


def _torchvision_v2() -> v2.Compose:
    crop = v2.RandomResizedCrop(**CROP, interpolation=BICUBIC, antialias=True)
    jitter = v2.RandomApply([v2.ColorJitter(*JITTER)], p=0.8)
    to_float = v2.ToDtype(torch.float32, scale=True)
    return v2.Compose([crop, v2.RandomHorizontalFlip(), jitter, v2.RandomGrayscale(0.2), to_float])


def _lightly() -> Callable[..., Any]:
    from lightly.transforms import SimCLRTransform

    return SimCLRTransform(input_size=32, cj_strength=0.5, min_scale=0.1, gaussian_blur=0.0, normalize=None)


def _kornia_simclr() -> nn.Module:
    from kornia import augmentation as kornia

    crop = kornia.RandomResizedCrop((32, 32), scale=CROP["scale"], resample="bicubic", same_on_batch=False)
    jitter = kornia.ColorJitter(*JITTER, p=0.8, same_on_batch=False)
    return nn.Sequential(crop, kornia.RandomHorizontalFlip(), jitter, kornia.RandomGrayscale(p=0.2))


def _kornia_shift() -> nn.Module:
    from kornia import augmentation as kornia

    return nn.Sequential(kornia.RandomCrop((32, 32), padding=4), kornia.RandomHorizontalFlip())


def _image_by_image(transform: Callable[..., Any], batch: Iterable[Any], copies: int) -> tuple[Tensor, ...]:
    return tuple(torch.stack([transform(image) for image in batch]) for _ in range(copies))


def _kornia_views(transform: nn.Module, x: Tensor, copies: int) -> tuple[Tensor, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        floats = x.float() / 255
        return tuple(transform(floats).clamp(0, 1) for _ in range(copies))


def _check_parameters(x: Tensor) -> None:
    """Compare our views with those of torchvision's operations, one by one, for the same parameters."""
    augment = SimCLRAugment(32)
    parameters = augment.draw(len(x), 32, 32, torch.Generator().manual_seed(1))
    rows = [ViewParameters(*row) for row in zip(*parameters, strict=True)]
    theirs = [_by_torchvision(image.float() / 255, p) for image, p in zip(x, rows, strict=True)]
    agree("ours, parameters as drawn", augment.apply(x, parameters), torch.stack(theirs), SAME_PARAMETERS)


def _by_torchvision(image: Tensor, p: ViewParameters) -> Tensor:
    box = [int(edge) for edge in (p.top, p.left, p.height, p.width)]
    view = TF.resized_crop(image, *box, [32, 32], BICUBIC, antialias=True).clamp(0, 1)
    view = TF.hflip(view) if p.flip else view
    operations = (TF.adjust_brightness, TF.adjust_contrast, TF.adjust_saturation, TF.adjust_hue)
    amounts = (p.brightness, p.contrast, p.saturation, p.hue)
    for index in p.order.tolist() if p.jitter else []:
        view = operations[index](view, float(amounts[index]))
    return TF.rgb_to_grayscale(view, 3) if p.gray else view


def _check_shifts(x: Tensor) -> None:
    """Compare our shifts with slices, image by image, for the same draws."""
    uniform = torch.rand(len(x), 3, generator=torch.Generator().manual_seed(1)).tolist()
    cuts = []
    for image, (down, right, mirrored) in zip(F.pad(x.float() / 255, [4] * 4), uniform, strict=True):
        top, left = int(9 * down), int(9 * right)
        cut = image[:, top : top + 32, left : left + 32]
        cuts.append(cut.flip(2) if mirrored < 0.5 else cut)
    agree("ours, shifts as drawn", CropFlip()(x, torch.Generator().manual_seed(1)), torch.stack(cuts), 0.0)


def _checked(candidates: dict[str, Views], tolerance: float) -> list[Candidate]:
    """Compare mean and deviation of each candidate's views with those of the first."""
    moments = {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for name, run in candidates.items():
            views = torch.cat(run())
            moments[name] = torch.stack([views.mean(), views.std()]).cpu()
    first = next(iter(moments.values()))
    checked = []
    for name, run in candidates.items():
        mean, deviation = (moments[name] - first).tolist()
        if not max(abs(mean), abs(deviation)) <= tolerance:
            raise SystemExit(f"{name}: mean and deviation of the views are off by {mean:+.4f} and {deviation:+.4f}.")
        checked.append(Candidate(name, run, f"{mean:+.4f}, {deviation:+.4f}"))
    return checked
