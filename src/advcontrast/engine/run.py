"""Everything about a run that changes while it trains: how it takes a step, is written down, and is put back."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .. import distributed
from .._checks import complaint, readable
from . import randomness
from .checkpoint import CheckpointMismatchError
from .ema import EMA
from .metrics import Means, Row

_OWNER = "fit"
_AMP = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Run:
    """A learner on its way.

    Attributes:
        learner: what trains.
        optimizer: of its parameters.
        amp: ``"off"``, ``"bf16"`` or ``"fp16"``.
        ema: average of ``learner.model``, or ``None``.
        settings: what must be the same when the run is resumed.
        step: optimizer steps taken.
        means: of the epoch at hand.
        history: one row for each finished epoch.
        best: epoch, value and weights of the best epoch so far.
    """

    learner: nn.Module
    optimizer: Optimizer
    amp: str
    ema: EMA | None
    settings: dict[str, Any]
    step: int = 0
    means: Means = field(default_factory=Means)
    history: list[Row] = field(default_factory=list)
    best: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.device = next(self.learner.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp == "fp16")
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def take_step(self, parts: Sequence[tuple[Tensor, ...]], wrapped: Any, rate: float) -> None:
        """Take one optimizer step on the mean loss of all samples.

        Args:
            parts: the batch, cut into pieces whose gradients are added up.
            wrapped: the learner, or its DDP wrapper.
            rate: learning rate, as a fraction of the one that the optimizer began with.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * rate
        samples = sum(len(part[0]) for part in parts)
        for part in parts:
            waiting = part is not parts[-1] and wrapped is not self.learner
            with wrapped.no_sync() if waiting else nullcontext():
                with torch.autocast(self.device.type, _AMP[self.amp], enabled=self.amp != "off"):
                    loss, terms = wrapped(*part)
                self._require_finite("a finite loss", [loss])
                self.scaler.scale(loss * (len(part[0]) / samples)).backward()
            self.means.add({"loss": loss, **terms}, len(part[0]))
        if not self.scaler.is_enabled():
            gradients = (parameter.grad for parameter in self.learner.parameters())
            self._require_finite("finite gradients", [gradient for gradient in gradients if gradient is not None])
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.learner.get_submodule("model"))

    def end_epoch(
        self, seconds: float, evaluate: Callable[[int], Mapping[str, float]] | None, select: str | None
    ) -> Row:
        """Return the row of the epoch that has ended, now in the history, and keep the weights if it is the best."""
        self.require_finite_means()
        epoch = len(self.history) + 1
        row: Row = {"epoch": epoch, "step": self.step, "seconds": round(seconds, 2)}
        row |= {"lr": self.optimizer.param_groups[0]["lr"], **self.means.result()}
        if evaluate is not None:
            devices = [] if self.device.type == "cpu" else [self.device]
            # What an evaluation draws must not change what training draws after it.
            with torch.random.fork_rng(devices, device_type=self.device.type):
                row |= {name: float(value) for name, value in evaluate(epoch).items()}
        if select is not None and select not in row and not self.history:
            remedy = "Let evaluate return it, after the first epoch at least"
            raise ValueError(complaint(_OWNER, f"a metric {select!r} to select by", str(list(row)), remedy))
        if select is not None and select in row and (self.best is None or row[select] > self.best["value"]):
            weights = {name: value.detach().cpu().clone() for name, value in self.learner.state_dict().items()}
            self.best = {"epoch": epoch, "value": row[select], "weights": weights}
        self.history.append(row)
        self.means = Means()
        return row

    def require_finite_means(self) -> None:
        """Refuse to save what a loss that was not finite has spoilt; this waits for the device."""
        if self.means.sums:
            total = torch.stack(list(self.means.sums.values())).sum().item()
            if not math.isfinite(total):
                raise _not_finite("a finite loss", total, f"the steps before {self.step}")

    def state(self) -> dict[str, Any]:
        """Return all of it as plain data. Every process must call this, as each has random generators of its own."""
        return {
            "settings": self.settings,
            "learner": self.learner.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "step": self.step,
            "sums": self.means.sums,
            "samples": self.means.samples,
            "history": self.history,
            "best": self.best,
            "random": distributed.exchange(randomness.capture(self.device)),
            "threads": torch.get_num_threads(),
        }

    def restore(self, state: Mapping[str, Any], where: str) -> None:
        """Go to where :meth:`state` was called; nothing changes unless everything fits.

        Args:
            state: what it returned.
            where: name of the checkpoint, for messages.

        Raises:
            CheckpointMismatchError: the state belongs to another learner, optimizer or setting.
        """
        differing = _differences(state, self)
        if differing:
            remedy = "Start it as it was started first, or choose another folder"
            raise CheckpointMismatchError(complaint(_OWNER, f"the run that {where} belongs to", differing, remedy))
        if state["threads"] != torch.get_num_threads() and self.device.type == "cpu":
            got = f"{torch.get_num_threads()} instead of {state['threads']}"
            remedy = "Sums are then rounded otherwise: the weights will be close, but not the same to the bit"
            warnings.warn(complaint(_OWNER, "as many threads as before", got, remedy), UserWarning, stacklevel=3)
        if len(state["random"]) != distributed.world_size():
            got = f"{distributed.world_size()} instead of {len(state['random'])}"
            remedy = "The run goes on, with other random numbers"
            warnings.warn(complaint(_OWNER, "as many processes as before", got, remedy), UserWarning, stacklevel=3)
        self.learner.load_state_dict(state["learner"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.step, self.history, self.best = state["step"], list(state["history"]), state["best"]
        self.means = Means()
        self.means.sums = {name: value.to(self.device) for name, value in state["sums"].items()}
        self.means.samples = state["samples"]
        if distributed.rank() < len(state["random"]):
            randomness.restore(state["random"][distributed.rank()], self.device)

    def _require_finite(self, expected: str, values: Sequence[Tensor]) -> None:
        """Stop before the weights are hurt, where looking at values is free; elsewhere before the next save."""
        if values and all(readable(value) for value in values):
            norm = torch.nn.utils.get_total_norm(values).item()
            if not math.isfinite(norm):
                raise _not_finite(expected, norm, f"step {self.step + 1}")


def _not_finite(expected: str, value: float, where: str) -> RuntimeError:
    remedy = "Lower the learning rate, or look for a division by zero; the last checkpoint is good"
    return RuntimeError(complaint(_OWNER, expected, f"{value} in {where}", remedy))


def _differences(state: Mapping[str, Any], run: Run) -> str:
    """Say how a state differs from what a run can take, or nothing."""
    theirs, ours = state.get("settings", {}), run.settings
    changed = [
        f"{k} {ours.get(k)!r} instead of {theirs.get(k)!r}" for k in {**theirs, **ours} if theirs.get(k) != ours.get(k)
    ]
    shapes = {name: list(value.shape) for name, value in run.learner.state_dict().items()}
    stored = {name: list(value.shape) for name, value in state.get("learner", {}).items()}
    for name in [*shapes, *(stored.keys() - shapes.keys())]:
        if shapes.get(name) != stored.get(name):
            changed.append(f"{name} {shapes.get(name, 'absent')} instead of {stored.get(name, 'absent')}")
    return ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
