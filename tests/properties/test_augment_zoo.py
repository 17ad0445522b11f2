"""Every seeded defect of the augmentation is caught by an invariant that the real one fulfils."""

import math

import pytest
import torch
from torch.nn import functional as F

from advcontrast.augment import ContrastivePairAugment, SimCLRAugment
from advcontrast.augment import pair as pair_module
from advcontrast.augment import simclr as module
from advcontrast.functional import image
from advcontrast.functional.image import adjust, crop_and_resize
from tests.properties.augment_invariants import DRAWS, PAIR, RECIPE, Case

pytestmark = pytest.mark.nightly  # it tests the property tests

CASES = [
    Case(n, channels, height, width, size, strength, dtype, seed)
    for seed, (n, channels, height, width, size, strength, dtype) in enumerate(
        [
            (5, 3, 12, 12, (12, 12), 1.0, torch.float32),
            (6, 3, 9, 14, (7, 16), 1.0, torch.float64),
            (4, 3, 20, 10, (8, 8), 1.0, torch.uint8),
            (4, 1, 8, 8, (11, 11), 1.0, torch.float32),
            (5, 3, 12, 12, (12, 12), 0.5, torch.float32),
            (8, 3, 24, 24, (6, 6), 1.0, torch.float32),
        ]
        * 4
    )
]


def simclr(**overrides):
    """Return the real recipe with some methods replaced."""
    return type("Defect", (SimCLRAugment,), overrides)


def redraw(change):
    def draw(self, n, height, width, generator=None):
        return change(SimCLRAugment.draw(self, n, height, width, generator))

    return simclr(draw=draw)


def reapply(change):
    def _apply(self, x, parameters):
        return SimCLRAugment._apply(self, x, change(parameters))

    return simclr(_apply=_apply)


def finish(change):
    def _apply(self, x, parameters):
        return change(SimCLRAugment._apply(self, x, parameters))

    return simclr(_apply=_apply)


def patched(where=image, **names):
    """Return the real recipe with some functions of a module exchanged while it runs."""

    def during(method):
        def run(self, *args, **kwargs):
            with pytest.MonkeyPatch.context() as patch:
                for name, value in names.items():
                    patch.setattr(where, name, value)
                return method(self, *args, **kwargs)

        return run

    return simclr(
        __call__=during(SimCLRAugment.__call__), draw=during(SimCLRAugment.draw), apply=during(SimCLRAugment.apply)
    )


def first_for_all(p, *names):
    return p._replace(**{name: getattr(p, name)[:1].expand_as(getattr(p, name)) for name in names})


def resampled(x, top, left, height, width, size, flip, **options):
    boxes = zip(x, top, left, height, width, strict=True)
    views = [F.interpolate(i[None, :, t : t + h, s : s + w], size, **options) for i, t, s, h, w in boxes]
    views = torch.cat([x.new_empty(0, x.shape[1], *size), *views])
    return torch.where(flip.view(-1, 1, 1, 1), views.flip(3), views)


def other_interpolation(**options):
    return patched(crop_and_resize=lambda *args: resampled(*args, **options))


def shifted_crop(x, top, left, height, width, size, flip):
    return crop_and_resize(x, (top + 1).minimum(x.shape[2] - height), left, height, width, size, flip)


def upside_down(x, *box, size=None, flip=None):
    views = crop_and_resize(x, *box[:-1], torch.zeros_like(box[-1]))
    return torch.where(box[-1].view(-1, 1, 1, 1), views.flip(2), views)


def contrast_of_the_batch(x, own, mean, gray):
    own, mean, gray = (weight.view(-1, 1, 1, 1) for weight in (own, mean, gray))
    brightness = image.luma(x)
    return (own * x + mean * brightness.mean() + gray * brightness).clamp(0, 1)


def unclamped(x, own, mean, gray):
    return 8 * adjust(x / 8, own, mean, gray)


def crops(choose, smallest=0.1, spread=torch.exp):
    """Return a law of crop sizes: ``choose`` picks from ten attempts and their fits."""

    def sizes(uniform, height, width, _):
        area = height * width * (smallest + (1 - smallest) * uniform[:, :10])
        aspect = spread(math.log(3 / 4) + 2 * math.log(4 / 3) * uniform[:, 10:])
        rows, columns = (area / aspect).sqrt().round().long(), (area * aspect).sqrt().round().long()
        return choose(rows, columns, height, width)

    return patched(module, _crop_sizes=sizes)


def first_fit(rows, columns, height, width):
    fits = (rows > 0) & (rows <= height) & (columns > 0) & (columns <= width)
    first = fits.int().argmax(1, keepdim=True)
    return (rows * fits).gather(1, first)[:, 0], (columns * fits).gather(1, first)[:, 0]


def clamped(rows, columns, height, width):
    return rows[:, 0].clamp(1, height), columns[:, 0].clamp(1, width)


def linear(log_ratio):
    return 3 / 4 + (4 / 3 - 3 / 4) * (log_ratio - math.log(3 / 4)) / (2 * math.log(4 / 3))


def last_place_never(p):
    return p._replace(
        top=torch.where(p.top == 32 - p.height, (p.top - 1).clamp_min(0), p.top),
        left=torch.where(p.left == 32 - p.width, (p.left - 1).clamp_min(0), p.left),
    )


def global_draw(self, n, height, width, generator=None):
    return SimCLRAugment.draw(self, n, height, width, None)


def reseeding_draw(self, n, height, width, generator=None):
    torch.manual_seed(0 if generator is None else generator.initial_seed())
    return SimCLRAugment.draw(self, n, height, width, None)


def in_place(self, x, generator=None):
    views = SimCLRAugment.__call__(self, x, generator)
    if x.is_contiguous():
        x.mul_(0)
    return views


def gray_at_strength_zero(self, n, height, width, generator=None):
    p = SimCLRAugment.draw(self, n, height, width, generator)
    return p._replace(gray=torch.ones_like(p.gray)) if self.strength == 0 and n else p


def divided_by_256(self, x, generator=None):
    return SimCLRAugment.__call__(self, x.float() / 256 if x.dtype == torch.uint8 else x, generator)


def backward_draw(self, n, height, width, generator=None):
    p = SimCLRAugment.draw(self, n, height, width, generator)
    return p._replace(hue=p.hue.flip(0))


RECIPE_DEFECTS = {
    "one crop for the batch": redraw(lambda p: first_for_all(p, "top", "left", "height", "width")),
    "one flip for the batch": redraw(lambda p: first_for_all(p, "flip")),
    "one jitter order for the batch": redraw(lambda p: first_for_all(p, "order")),
    "one brightness for the batch": redraw(lambda p: first_for_all(p, "brightness")),
    "operations in fixed order": reapply(lambda p: p._replace(order=torch.arange(4).expand_as(p.order))),
    "operations in reversed order": reapply(lambda p: p._replace(order=p.order.flip(1))),
    "jitter for everybody": reapply(lambda p: p._replace(jitter=torch.ones_like(p.jitter))),
    "no gray": reapply(lambda p: p._replace(gray=torch.zeros_like(p.gray))),
    "gray at strength zero": simclr(draw=gray_at_strength_zero),
    "hue the other way": reapply(lambda p: p._replace(hue=-p.hue)),
    "hue in radians": reapply(lambda p: p._replace(hue=p.hue * 2 * math.pi)),
    "wider brightness": redraw(lambda p: p._replace(brightness=2 * p.brightness - 1)),
    "bilinear": other_interpolation(mode="bilinear", antialias=True),
    "no antialiasing": other_interpolation(mode="bicubic"),
    "corners aligned": other_interpolation(mode="bicubic", align_corners=True),
    "crop one row off": patched(crop_and_resize=shifted_crop),
    "flip upside down": patched(crop_and_resize=upside_down),
    "kernel with a = -3/4": patched(
        image,
        _bicubic=lambda x: torch.where(
            x < 1,
            (1.25 * x - 2.25) * x * x + 1,
            torch.where(x < 2, ((-0.75 * x + 3.75) * x - 6) * x + 3, 0),
        ),
    ),
    "colours leave the range": patched(adjust=unclamped),
    "luma is the mean": patched(luma=lambda x: x.mean(1, keepdim=True)),
    "contrast of the whole batch": patched(adjust=contrast_of_the_batch),
    "scale from 0.2": crops(first_fit, smallest=0.2),
    "aspect ratio linear": crops(first_fit, spread=linear),
    "crop clamped instead of redrawn": crops(clamped),
    "last place never": redraw(last_place_never),
    "flip decided by the brightness": redraw(lambda p: p._replace(flip=p.brightness > p.brightness.median())),
    "draws depend on the later images": simclr(draw=backward_draw),
    "generator ignored": simclr(draw=global_draw),
    "global state reseeded": simclr(draw=reseeding_draw),
    "input overwritten": simclr(__call__=in_place),
    "bytes divided by 256": simclr(__call__=divided_by_256),
    "always float32": finish(lambda x: x.float()),
    "always contiguous": finish(lambda x: x.contiguous()),
    "noise at apply": finish(lambda x: (x + 1e-3 * torch.rand_like(x)).clamp(0, 1)),
}


class SameViewTwice(ContrastivePairAugment):
    def __call__(self, x, generator=None):
        view, _ = super().__call__(x, generator)
        return view, view


class GeneratorCopied(ContrastivePairAugment):
    def __call__(self, x, generator=None):
        return super().__call__(x, torch.Generator().manual_seed(generator.initial_seed()))


class GeneratorDropped(ContrastivePairAugment):
    def __call__(self, x, generator=None):
        return super().__call__(x)


class GlobalStateReseeded(ContrastivePairAugment):
    def __call__(self, x, generator=None):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        return super().__call__(x)


class BatchTransformed(ContrastivePairAugment):
    def __call__(self, x, generator=None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(pair_module, "_from_torchvision", lambda transform: False)
            return super().__call__(x, generator)


class StateOfTheFirstViewRestored(ContrastivePairAugment):
    def __call__(self, x, generator=None):
        state = generator.get_state()
        first, _ = super().__call__(x, generator)
        generator.set_state(state)
        second, _ = super().__call__(x, generator)
        return first, second


PAIR_DEFECTS = {
    defect.__name__: defect
    for defect in (
        SameViewTwice,
        GeneratorCopied,
        GeneratorDropped,
        GlobalStateReseeded,
        BatchTransformed,
        StateOfTheFirstViewRestored,
    )
}


def caught(implementation, invariants, cases):
    for case in cases:
        for invariant in invariants:
            try:
                invariant(implementation, case)
            except AssertionError:
                return True
    return False


@pytest.mark.parametrize("defect", RECIPE_DEFECTS.values(), ids=RECIPE_DEFECTS.keys())
def test_a_defect_of_the_recipe_is_caught(defect):
    assert caught(defect, RECIPE, CASES) or caught(defect, DRAWS, CASES[:1])


@pytest.mark.parametrize("defect", PAIR_DEFECTS.values(), ids=PAIR_DEFECTS.keys())
def test_a_defect_of_the_pair_is_caught(defect):
    assert caught(defect, PAIR, CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"case {case.seed}")
def test_the_real_recipe_passes(case):
    for invariant in RECIPE:
        invariant(SimCLRAugment, case)


@pytest.mark.parametrize("invariant", DRAWS, ids=lambda invariant: invariant.__name__)
def test_the_real_draws_pass(invariant):
    invariant(SimCLRAugment, CASES[0])


@pytest.mark.parametrize("invariant", PAIR, ids=lambda invariant: invariant.__name__)
def test_the_real_pair_passes(invariant):
    for case in CASES:
        invariant(ContrastivePairAugment, case)
