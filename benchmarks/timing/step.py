"""The pre-training step, compared with a reimplementation of the authors' step, and with a plain SimCLR loop.

The reference does what the published code does: it takes the gradients of the attack with ``backward``, those of the
weights included, clears them each time, and writes the loss as exponentials; contiguous images, in float32 and on a GPU
under the same autocast as ours too. Ours is ``ACLTrainer`` with the options of ``fit``: channels-last memory, and
optionally compilation and bfloat16. All candidates omit the optimizer.

Before they are timed, all candidates take one step from the same weights and views with the attack started at the
image, without TF32: losses agree to 1e-3 in float32, where rounding turns some signs, and to 3e-2 in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from advcontrast import ACLTrainer, PGDAttack, bn_branch, convert_to_dual_bn
from advcontrast._memory_format import choose_memory_format
from advcontrast._modes import without_tf32
from advcontrast._types import Mode
from advcontrast.models import acl_head, resnet18
from benchmarks.timing import nt_xent
from benchmarks.timing.sidebyside import Candidate, Settings, Table, agree

EPS, STEP, STEPS = 8 / 255, 2 / 255, 5


def network(width: int, device: torch.device) -> nn.Module:
    """Return an encoder with its head and dual norms, the same for every candidate."""
    torch.manual_seed(0)
    encoder = resnet18(num_classes=0, width=width)
    return convert_to_dual_bn(nn.Sequential(encoder, acl_head(encoder.num_features))).to(device)


def reference_loss(z: Tensor) -> Tensor:
    """Return NT-Xent of rows of which 2i and 2i + 1 are a pair, as the authors compute it."""
    return nt_xent.reference(z[::2], z[1::2])


def reference_step(model: nn.Module, x: Tensor, *, mode: Mode, random_start: bool) -> Tensor:
    """Add the gradients of a step to those of the model; return its loss."""
    model.train()
    if mode == "S2S":
        with bn_branch(model, "clean"):
            loss = reference_loss(model(x))
        loss.backward()
        return loss
    model.eval()
    delta = torch.rand_like(x) * 2 * EPS - EPS if random_start else torch.zeros_like(x)
    with bn_branch(model, "adv"):
        for _ in range(STEPS):
            delta.requires_grad_()
            reference_loss(model(x + delta)).backward()
            delta = (delta.detach() + STEP * delta.grad.sign()).clamp(-EPS, EPS)
            delta = (x + delta).clamp(0, 1) - x
            model.zero_grad()
        model.train()
        adversarial = reference_loss(model((x + delta).detach()))
    with bn_branch(model, "clean"):
        loss = (adversarial + reference_loss(model(x))) / 2
    loss.backward()
    return loss


def ours(
    width: int, x: Tensor, *, mode: Mode, channels_last: bool = False, compiled: bool = False, bf16: bool = False
) -> Callable[[bool], Tensor]:
    """Return a step of the trainer; its argument is whether to start the attack at random."""
    acl = ACLTrainer(network(width, x.device), mode=mode)
    layout = choose_memory_format(acl) if channels_last else torch.contiguous_format
    x1, x2 = (view.contiguous(memory_format=layout) for view in (x[::2], x[1::2]))
    if compiled:
        acl.model.compile()

    def step(random_start: bool) -> Tensor:
        acl.attack = PGDAttack(eps=EPS, step_size=STEP, steps=STEPS, random_start=random_start)
        acl.zero_grad()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            loss = acl(x1, x2).loss
        loss.backward()
        return loss

    return step


def tables(settings: Settings) -> Iterator[Table]:
    """Yield the steps of each mode."""
    gpu = settings.device.type != "cpu"
    width, pairs = (4, 8) if settings.quick else (64, 512) if gpu else (16, 512)
    about = (
        f"ResNet-18 of width {width}, batches of {pairs} images in two views of 32 x 32 pixels, PGD-{STEPS}. "
        "Agreement is the relative difference of the loss of one step."
    )
    half = ", bf16" if gpu else ""
    variants = {
        "ours, contiguous": {},
        "ours, channels last": {"channels_last": True},
        f"ours, channels last{half}, compiled": {"channels_last": True, "compiled": True, "bf16": gpu},
    }
    if gpu:
        variants["ours, channels last, bf16"] = {"channels_last": True, "bf16": True}
    modes: dict[Mode, tuple[str, str]] = {
        "DS": ("Dual-stream pre-training step", "reference"),
        "S2S": ("SimCLR step (mode S2S)", "plain SimCLR loop"),
    }
    for mode, (title, first) in modes.items():
        table = Table(title, about, "images")
        torch.manual_seed(1)
        x = torch.rand(2 * pairs, 3, 32, 32, device=settings.device)
        model = network(width, settings.device)

        def reference(
            random_start: bool, bf16: bool = False, model: nn.Module = model, mode: Mode = mode, x: Tensor = x
        ) -> Tensor:
            model.zero_grad()
            with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
                return reference_step(model, x, mode=mode, random_start=random_start)

        with without_tf32():
            expected = reference(False)
        candidates = [Candidate(first, lambda step=reference: step(True))]
        if gpu:
            candidates.append(Candidate(f"{first}, bf16", lambda step=reference: step(True, bf16=True)))
        for name, options in variants.items():
            step = ours(width, x, mode=mode, **options)
            tolerance = 3e-2 if options.get("bf16") else 1e-3
            try:
                with without_tf32():
                    agreement = agree(name, step(False), expected, tolerance)
            except TorchDynamoException as error:  # for example without Triton
                table.skipped.append(f"{name} not run: {str(error).splitlines()[0]}")
                continue
            candidates.append(Candidate(name, lambda step=step: step(True), agreement))
        table.race(candidates, settings, items=pairs)
        yield table
