"""Pre-training from uint8 images to updated weights: throughput, shares of the parts, distance from the limit, growth.

A step picks a batch, makes two views, attacks them, trains on both streams and updates the weights with LARS, as
``fit`` does. The parts are timed in separate runs, with a wait for the device after each; a part inside another one
counts only once. Operations are those of the convolutions and matrix products, counted; the limit
is the rate of a large matrix product in float32, and in bfloat16 if the step uses it, measured in the same rounds.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from advcontrast import ACLTrainer, ContrastivePairAugment, NTXentLoss, PGDAttack
from advcontrast._memory_format import choose_memory_format
from advcontrast._types import Mode
from advcontrast.engine import forward_equivalents
from advcontrast.optim import LARS
from benchmarks.common import in_group
from benchmarks.timing.sidebyside import Settings, Table, wait
from benchmarks.timing.step import network


class Clock:
    """Seconds by part; a part inside another one is not counted twice."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self._inner = [0.0]

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to a part."""
        wait(self.device)
        started = time.perf_counter()
        self._inner.append(0.0)
        yield
        wait(self.device)
        taken = time.perf_counter() - started
        self.seconds[name] += taken - self._inner.pop()
        self._inner[-1] += taken

    def clocked(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function, with its time added to a part."""

        def call(*args: Any, **kwargs: Any) -> Any:
            with self.part(name):
                return function(*args, **kwargs)

        return call


class Step:
    """A step of pre-training, ready to be repeated."""

    def __init__(
        self,
        device: torch.device,
        *,
        mode: Mode = "DS",
        batch: int = 128,
        steps: int = 5,
        width: int = 16,
        compiled: bool = False,
        bf16: bool = False,
    ) -> None:
        self.batch, self.bf16, self.device = batch, bf16, device
        torch.manual_seed(0)
        self.images = torch.randint(0, 256, (4 * batch, 3, 32, 32), dtype=torch.uint8, device=device)
        model = network(width, device)
        self.layout = choose_memory_format(model)
        attack = PGDAttack(steps=steps)
        self.acl = ACLTrainer(model, mode=mode, augment=ContrastivePairAugment(32), attack=attack, loss=NTXentLoss())
        self.optimizer = LARS(self.acl.parameters(), lr=0.1)
        self.clock = Clock(device)
        self.wrapped: nn.Module = self.acl
        if compiled:
            model.compile()

    def operations(self) -> float:
        """Return the operations of convolutions and matrix products, a multiplication and an addition being two."""
        x = torch.zeros(1, 3, 32, 32, device=self.device)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.acl.model.eval()
            self.acl.model(x)
        self.acl.model.train()
        passes = forward_equivalents(self.acl, self.images[: self.batch])
        return float(counter.get_total_flops() * passes * self.batch)

    def __call__(self) -> None:
        """Take a step."""
        x = self.images[torch.randint(len(self.images), (self.batch,), device=self.device)]
        x = x.contiguous(memory_format=self.layout)
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            loss = self.wrapped(x).loss
        loss.backward()
        self.optimizer.step()

    def shares(self, repeats: int) -> dict[str, float]:
        """Return the share of the time of each part, clocked."""
        clock, acl = self.clock, self.acl
        plain = acl.loss, acl.attack, acl.augment
        del acl.loss
        acl.loss, acl.attack = clock.clocked("loss", plain[0]), clock.clocked("attack", plain[1])
        acl.augment = clock.clocked("augmentation", plain[2])
        for _ in range(repeats):
            with clock.part("input"):
                x = self.images[torch.randint(len(self.images), (self.batch,), device=self.device)]
                x = x.contiguous(memory_format=self.layout)
            with clock.part("streams"), torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                loss = acl(x).loss
            with clock.part("streams"):
                loss.backward()
            with clock.part("optimizer"):
                self.optimizer.step()
                self.optimizer.zero_grad(set_to_none=True)
        del acl.loss
        acl.loss, acl.attack, acl.augment = plain
        total = sum(clock.seconds.values())
        return {name: seconds / total for name, seconds in sorted(clock.seconds.items(), key=lambda item: -item[1])}


def seconds_of(run: Callable[[], Any], settings: Settings) -> float:
    """Return the median seconds of a run."""
    run()
    taken = []
    for _ in range(settings.repeats):
        wait(settings.device)
        started = time.perf_counter()
        run()
        wait(settings.device)
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def product_rate(settings: Settings, dtype: torch.dtype) -> float:
    """Return the operations a second of a large matrix product."""
    n = 256 if settings.quick else 2048 if settings.device.type == "cpu" else 8192
    a = torch.rand(n, n, device=settings.device, dtype=dtype)
    return 2 * n**3 / seconds_of(lambda: a @ a, settings)


def whole(settings: Settings, sizes: dict[str, int]) -> Table:
    """Return throughput, shares and the fraction of the limit for the paper's mode and for SimCLR."""
    gpu = settings.device.type != "cpu"
    about = (
        f"ResNet-18 of width {sizes['width']}, batches of {sizes['batch']} images, PGD-5. Shares are of the sum of "
        "all parts; the loss includes the one inside the attack's objective and leaves out its backward pass."
    )
    names = ["attack", "streams", "loss", "augmentation", "optimizer", "input"]
    columns = ["mode", "images/s", "of the limit", "TFLOP a step", *names]
    table = Table("End to end", about, "images", columns=columns)
    half = ", bf16" if gpu else ""
    variants: list[tuple[str, dict[str, bool]]] = [("", {}), (f"{half}, compiled", {"bf16": gpu, "compiled": True})]
    if gpu:
        variants.append((half, {"bf16": True}))
    modes: tuple[Mode, ...] = ("DS", "S2S")
    for mode in modes:
        for name, options in variants:
            work = Step(settings.device, mode=mode, **sizes).operations()
            step = Step(settings.device, mode=mode, **sizes, **options)
            dtype = torch.bfloat16 if options.get("bf16") else torch.float32
            rate = product_rate(settings, dtype)
            try:
                seconds = seconds_of(step, settings)
            except TorchDynamoException as error:  # for example without Triton
                table.skipped.append(f"{mode}{name} not run: {str(error).splitlines()[0]}")
                continue
            limit = statistics.mean([rate, product_rate(settings, dtype)])
            shares = step.shares(max(1, settings.repeats // 2))
            parts = [f"{100 * shares.get(part, 0):.1f} %" for part in names]
            row = [mode + name, f"{sizes['batch'] / seconds:,.0f}", f"{100 * work / seconds / limit:.0f} %"]
            table.rows.append([*row, f"{work / 1e12:.3g}", *parts])
    table.skipped.append(f"Measured limit in float32: {product_rate(settings, torch.float32) / 1e9:,.0f} GFLOP/s")
    return table


def growth(settings: Settings, sizes: dict[str, int]) -> Table:
    """Return how the cost grows with batch, attack steps and width."""
    about = f"Mode DS, eager. Otherwise ResNet-18 of width {sizes['width']}, {sizes['batch']} images per batch, PGD-5."
    columns = ["what grows", "ms a step", "images/s", "ms an image", "passes an image"]
    table = Table("How the cost grows", about, "images", columns=columns)
    batch, width = sizes["batch"], sizes["width"]
    values = {
        "batch": (batch // 4, batch // 2, batch, 2 * batch),
        "steps": (0, 1, 3, 5, 10),
        "width": (width // 2, width, 2 * width),
    }
    for name, value in [(name, value) for name, several in values.items() for value in several]:
        step = Step(settings.device, **{**sizes, name: value})
        seconds = seconds_of(step, settings)
        passes = forward_equivalents(step.acl, step.images[: step.batch])
        cells = [f"{1e3 * seconds:,.1f}", f"{step.batch / seconds:,.1f}", f"{1e3 * seconds / step.batch:.2f}"]
        table.rows.append([f"{name} {value}", *cells, f"{passes:.1f}"])
    return table


def processes(settings: Settings, sizes: dict[str, int]) -> Table:
    """Return the speed of one and of two processes on the same whole batch."""
    about = (
        f"Mode DS under DDP, {sizes['batch']} images over all processes, with negatives from all of them; gloo, one "
        "thread per process."
    )
    table = Table("More processes", about, "images", columns=["processes", "ms a step", "images/s", "speed"])
    first = 0.0
    for world in (1, 2):
        seconds = in_group(world, _grouped_seconds, settings, {**sizes, "batch": sizes["batch"] // world})
        first = first or seconds
        cells = [f"{1e3 * seconds:,.1f}", f"{sizes['batch'] / seconds:,.1f}", f"{first / seconds:.2f}"]
        table.rows.append([str(world), *cells])
    return table


def _grouped_seconds(settings: Settings, sizes: dict[str, int]) -> float:
    step = Step(settings.device, **sizes)
    step.acl.loss = NTXentLoss(gather=True)
    step.wrapped = DistributedDataParallel(step.acl)
    return seconds_of(step, settings)


def tables(settings: Settings) -> Iterator[Table]:
    """Yield all tables."""
    gpu = settings.device.type != "cpu"
    sizes = {"batch": 8, "width": 4} if settings.quick else {"batch": 512 if gpu else 128, "width": 64 if gpu else 16}
    yield whole(settings, sizes)
    yield growth(settings, sizes)
    if not gpu:
        yield processes(settings, sizes)
