"""SimCLR's recipe applied: the whole chain against torchvision, and what it keeps of its input."""

from contextlib import nullcontext

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from advcontrast.augment import SimCLRAugment, ViewParameters
from advcontrast.augment import simclr as module

# Largest measured difference in brackets.
CHAIN = 4e-6  # (2.1e-6, from the hue)
SUBSET = 1e-6  # (3.0e-7: torch multiplies batches of matrices in another order when there are fewer)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def images(*shape, dtype=torch.float32):
    return torch.rand(*shape, generator=seeded(1), dtype=dtype)


def checkerboards(n, channels=3, side=32):
    board = (torch.arange(side)[:, None] + torch.arange(side)) % 2
    return board.expand(n, channels, side, side).float()


def chosen(parameters, which):
    return ViewParameters(*(field[which] for field in parameters))


def neutral(n, height, width):
    zero, one, no = torch.zeros(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64), torch.zeros(n).bool()
    box = (torch.zeros(n).long(), torch.zeros(n).long(), torch.full((n,), height), torch.full((n,), width))
    order = torch.arange(4).expand(n, 4)
    return ViewParameters(*box, no, no, order, one, one, one, zero, no)


def by_torchvision(image, p, size):
    box = [int(edge) for edge in (p.top, p.left, p.height, p.width)]
    view = TF.resized_crop(image, *box, list(size), InterpolationMode.BICUBIC, antialias=True).clamp(0, 1)
    view = TF.hflip(view) if p.flip else view
    operations = [
        (TF.adjust_brightness, p.brightness),
        (TF.adjust_contrast, p.contrast),
        (TF.adjust_saturation, p.saturation),
        (TF.adjust_hue, p.hue),
    ]
    for index in p.order.tolist() if p.jitter else []:
        operation, amount = operations[index]
        view = operation(view, float(amount))
    return TF.rgb_to_grayscale(view, len(view)) if p.gray else view


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.uint8])
@pytest.mark.parametrize(
    ("channels", "height", "width", "size"),
    [(3, 32, 32, (32, 32)), (1, 28, 28, (32, 32)), (3, 40, 24, (17, 33)), (3, 96, 96, (32, 32))],
)
@pytest.mark.sample(6)
def test_the_whole_chain_equals_torchvision(channels, height, width, size, dtype):
    x = images(200, channels, height, width, dtype=torch.float64)
    x = (256 * x).to(dtype) if dtype == torch.uint8 else x.to(dtype)
    augment = SimCLRAugment(size)
    parameters = augment.draw(200, height, width, seeded())
    ours = augment.apply(x, parameters)
    floats = x / 255 if dtype == torch.uint8 else x
    for index, view in enumerate(ours):
        theirs = by_torchvision(floats[index], chosen(parameters, index), size)
        torch.testing.assert_close(view, theirs, rtol=0, atol=CHAIN)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_call_draws_and_applies(dtype):
    augment, x = SimCLRAugment(16), images(8, 3, 20, 18, dtype=dtype)
    assert torch.equal(augment(x, seeded()), augment.apply(x, augment.draw(8, 20, 18, seeded())))


def test_without_a_generator_the_global_state_decides():
    augment, x = SimCLRAugment(16), images(8, 3, 16, 16)
    torch.manual_seed(5)
    first = augment(x)
    torch.manual_seed(5)
    assert torch.equal(augment(x), first)


def test_with_a_generator_the_global_state_stays():
    before = torch.get_rng_state()
    SimCLRAugment(16)(images(8, 3, 16, 16), seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_parameters_can_be_replayed():
    augment, x = SimCLRAugment(16), images(8, 3, 16, 16)
    parameters = augment.draw(8, 16, 16, seeded())
    assert torch.equal(augment.apply(x, parameters), augment.apply(x, parameters))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("which", [[3], [63, 0], list(range(17)), []])
def test_a_subset_of_images_and_parameters_gives_the_same_views(which, channels):
    augment, x = SimCLRAugment(32), images(64, channels, 32, 32)
    parameters = augment.draw(64, 32, 32, seeded())
    some, all_ = augment.apply(x[which], chosen(parameters, which)), augment.apply(x, parameters)
    torch.testing.assert_close(some, all_[which], rtol=0, atol=SUBSET)


def test_an_image_does_not_depend_on_the_others():
    augment, x = SimCLRAugment(32), images(16, 3, 32, 32)
    others = torch.zeros_like(x)
    others[5] = x[5]
    assert torch.equal(augment(x, seeded())[5], augment(others, seeded())[5])


def test_images_of_a_batch_are_augmented_differently():
    views = SimCLRAugment(32)(images(1, 3, 32, 32).expand(64, -1, -1, -1), seeded())
    assert len(views.flatten(1).unique(dim=0)) == 64


@pytest.mark.parametrize("channels", [1, 3])
def test_views_of_checkerboards_stay_in_the_unit_range(channels):
    views = SimCLRAugment(32)(checkerboards(500, channels), seeded())
    assert views.min() >= 0
    assert views.max() <= 1


def test_the_crop_is_clamped_before_the_colours_change():
    augment, x = SimCLRAugment(32), checkerboards(1)
    darker = neutral(1, 20, 20)._replace(jitter=torch.tensor([True]), brightness=torch.tensor([0.5]).double())
    assert augment.apply(x, darker).max() == 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neutral_parameters_are_the_identity(dtype):
    x = images(4, 3, 9, 7, dtype=dtype)
    assert torch.equal(SimCLRAugment((9, 7)).apply(x, neutral(4, 9, 7)), x)


def test_unjittered_images_ignore_the_colour_parameters():
    x = images(4, 3, 8, 8)
    wild = neutral(4, 8, 8)._replace(**dict.fromkeys(("brightness", "contrast", "saturation", "hue"), torch.rand(4)))
    assert torch.equal(SimCLRAugment(8).apply(x, wild), x)


def test_gray_views_have_three_equal_channels():
    x = images(4, 3, 8, 8)
    views = SimCLRAugment(8).apply(x, neutral(4, 8, 8)._replace(gray=torch.ones(4).bool()))
    assert torch.equal(views, views[:, :1].expand(-1, 3, -1, -1))


def test_flipping_twice_is_the_identity():
    augment, x = SimCLRAugment(8), images(4, 3, 8, 8)
    flip = neutral(4, 8, 8)._replace(flip=torch.ones(4).bool())
    assert torch.equal(augment.apply(augment.apply(x, flip), flip), x)


def test_strength_zero_leaves_only_the_mirror_image():
    augment, x = SimCLRAugment(16, strength=0), images(64, 3, 16, 16)
    flip = augment.draw(64, 16, 16, seeded()).flip.view(-1, 1, 1, 1)
    assert flip.any()
    assert torch.equal(augment(x, seeded()), torch.where(flip, x.flip(3), x))


def test_uint8_is_divided_by_255_exactly():
    x = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    assert torch.equal(SimCLRAugment(16).apply(x, neutral(1, 16, 16)), torch.arange(256).view(1, 1, 16, 16) / 255)


@pytest.mark.parametrize(
    ("given", "got"), [(torch.uint8, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)]
)
def test_views_have_the_dtype_of_float_images_and_float32_for_uint8(given, got):
    assert SimCLRAugment(8)(torch.ones(2, 3, 8, 8, dtype=given)).dtype == got


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8])
def test_channels_last_is_kept(dtype):
    x = torch.ones(4, 3, 8, 8, dtype=dtype).to(memory_format=torch.channels_last)
    assert SimCLRAugment(6)(x).is_contiguous(memory_format=torch.channels_last)


def test_channels_last_images_give_the_same_views():
    augment, x = SimCLRAugment(32), images(16, 3, 32, 32)
    views = augment(x.contiguous(memory_format=torch.channels_last), seeded())
    torch.testing.assert_close(views, augment(x, seeded()), rtol=0, atol=1e-6)


def test_contiguous_images_give_contiguous_views():
    assert SimCLRAugment(6)(images(4, 3, 8, 8)).is_contiguous()


def test_images_that_are_no_block_of_memory_give_the_same_views():
    augment, x = SimCLRAugment(8), images(8, 3, 8, 8)
    assert torch.equal(augment(x[::2], seeded()), augment(x[::2].clone(), seeded()))


@pytest.mark.parametrize("n", [0, 1])
def test_small_batches_are_augmented(n):
    assert SimCLRAugment((5, 6))(images(n, 3, 8, 8)).shape == (n, 3, 5, 6)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (40, 3)])
def test_images_of_any_shape_are_augmented(height, width):
    assert SimCLRAugment(8)(images(32, 3, height, width), seeded()).shape == (32, 3, 8, 8)


def test_the_input_is_not_changed():
    x = images(8, 3, 8, 8)
    before = x.clone()
    SimCLRAugment(8)(x, seeded())
    assert torch.equal(x, before)


def test_views_share_no_memory_with_the_images():
    x = images(2, 3, 8, 8)
    view = SimCLRAugment(8).apply(x, neutral(2, 8, 8))
    view.zero_()
    assert x.count_nonzero() == x.numel()


def test_autocast_does_not_reduce_the_precision():
    augment, x = SimCLRAugment(16), images(8, 3, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        views = augment(x, seeded())
    assert torch.equal(views, augment(x, seeded()))


def test_apply_has_the_gradient_of_its_values():
    augment = SimCLRAugment(4)
    x = (0.3 + 0.4 * images(3, 3, 5, 5, dtype=torch.float64)).requires_grad_()
    parameters = augment.draw(3, 5, 5, seeded(3))
    assert torch.autograd.gradcheck(lambda x: augment.apply(x, parameters), x)


@pytest.mark.parametrize("cache", [1, 2**30], ids=["one image a batch", "one batch"])
def test_views_do_not_depend_on_how_images_are_batched(cache, monkeypatch):
    augment, x = SimCLRAugment(32), images(100, 3, 32, 32)
    expected = augment(x, seeded())
    monkeypatch.setattr(module, "_CACHE", cache)
    torch.testing.assert_close(augment(x, seeded()), expected, rtol=0, atol=SUBSET)


@pytest.mark.parametrize("channels", [1, 3])
def test_batches_of_every_kind_have_the_gradient_of_their_values(channels):
    augment = SimCLRAugment(4)
    x = (0.3 + 0.4 * images(60, channels, 5, 5, dtype=torch.float64)).requires_grad_()
    parameters = augment.draw(60, 5, 5, seeded())
    assert torch.autograd.gradcheck(lambda x: augment.apply(x, parameters), x, fast_mode=True)


class Kernels(TorchDispatchMode):
    """Count the operations on tensors that have no values, where reading one raises."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.count += isinstance(result, torch.Tensor) and result.is_meta
        return result


def kernels(augment, n):
    x = torch.zeros(n, 3, 32, 32, dtype=torch.uint8, device="meta")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # there is none for these tensors
        with Kernels() as counter:
            assert augment(x, seeded()).is_meta
    return counter.count


def test_nothing_is_read_from_the_device_and_more_images_take_no_more_kernels():
    assert kernels(SimCLRAugment(32), 512) == kernels(SimCLRAugment(32), 2048)


def test_repr_reads_as_the_call():
    assert repr(SimCLRAugment((24, 32), strength=0.5)) == "SimCLRAugment((24, 32), strength=0.5, min_area=0.1)"


def test_parameters_for_other_images_are_refused():
    augment = SimCLRAugment(8)
    match = r"SimCLRAugment: expected parameters for 4 images"
    with pytest.raises(ValueError, match=match):
        augment.apply(images(4, 3, 8, 8), augment.draw(3, 8, 8))


@pytest.mark.parametrize(
    ("error", "arguments", "match"),
    [
        (ValueError, (-1, 8, 8), r"n to be"),
        (ValueError, (2, 0, 8), r"height to be"),
        (TypeError, (2, 8, 8.5), r"width to be"),
        (TypeError, (2, 8, 8, 3), r"generator to be"),
    ],
)
def test_draw_refuses_what_it_cannot_count(error, arguments, match):
    with pytest.raises(error, match=f"^SimCLRAugment: expected {match}"):
        SimCLRAugment(8).draw(*arguments)


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_the_default_dtype_does_not_matter(default):
    x = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = SimCLRAugment(8)(x, torch.Generator().manual_seed(1))
    torch.set_default_dtype(default)
    try:
        assert torch.equal(SimCLRAugment(8)(x, torch.Generator().manual_seed(1)), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_parameters_of_larger_images_are_refused():
    augment = SimCLRAugment(8)
    parameters = augment.draw(64, 64, 64, torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"^SimCLRAugment: expected parameters for images of 16 x 16 pixels"):
        augment.apply(torch.rand(64, 3, 16, 16), parameters)


def test_parameters_must_be_parameters():
    with pytest.raises(TypeError, match=r"^SimCLRAugment: expected parameters to be"):
        SimCLRAugment(8).apply(torch.rand(4, 3, 16, 16), None)
