"""Training run: its settings, its step, and its state, which is saved and restored."""

from __future__ import annotations

import copy
import math
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import reduce
from numbers import Real
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from .. import _random, distributed
from .._checks import check_real, check_within, complaint, readable, type_name
from .._digest import digest
from .._transfer import on_cpu
from ..optim.ema import EMA
from .batches import Batch, Plan
from .checkpoint import CheckpointMismatchError

Row = dict[str, float]
_OWNER = "fit"
_WRAP = "A learner returns a scalar and a dict of scalars; wrap a network in one, as ACLTrainer(network) does"
# The gradient scaler halves its scale in each step whose gradients are not finite, and skips that step.
_SMALLEST_SCALE = 1e-6
_AMP = {"off": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def shown(value: Any) -> str:
    """Return the ``repr`` of a value without memory addresses, which differ between processes."""
    return re.sub(r" at 0x[0-9a-f]+", "", value if isinstance(value, str) else repr(value))


class Means:
    """Means of scalars over the samples of an epoch. They stay on the device until they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.samples = 0

    def add(self, terms: Mapping[str, Tensor], samples: int) -> None:
        """Add the means over a batch of ``samples`` samples."""
        for name, value in terms.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach().as_subclass(Tensor).float() * samples
        self.samples += samples

    def count(self, name: str, samples: int) -> None:
        """Count samples among those added: the mean is their share."""
        self.sums[name] = self.sums.get(name, torch.zeros_like(self.sums["loss"])) + samples

    def loss(self) -> float:
        """Return the mean loss in this process."""
        return self.sums["loss"].item() / self.samples

    def state(self) -> dict[str, Any]:
        """Return the sums of this process, as plain data."""
        return {"sums": on_cpu(self.sums), "samples": self.samples}

    @classmethod
    def from_states(cls, states: Sequence[Mapping[str, Any]], device: torch.device) -> Means:
        """Continue from the states of all processes; rank 0 adds those of processes that no longer exist."""
        means, rank, world = cls(), distributed.rank(), distributed.world_size()
        mine = [state for i, state in enumerate(states) if i == rank or (rank == 0 and i >= world)]
        for name in states[0]["sums"]:
            means.sums[name] = sum((state["sums"][name] for state in mine), torch.zeros(())).to(device)
        means.samples = sum(state["samples"] for state in mine)
        return means

    def result(self) -> Row:
        """Return the means over all processes."""
        if not self.sums:
            return {}
        totals = torch.stack([*self.sums.values()])
        counts = torch.full_like(totals, self.samples)
        if distributed.world_size() > 1:
            dist.all_reduce(totals)
            dist.all_reduce(counts)
        return dict(zip(self.sums, (totals / counts).tolist(), strict=True))


@dataclass
class Run:
    """Training run in progress.

    Attributes:
        learner, optimizer, schedule, amp, ema: arguments of :func:`~advcontrast.engine.fit`.
        settings: entries that must be equal when the run is resumed; those of its parts are added.
        step: optimizer steps taken.
        rates: digest of the fractions that the schedule returned in these steps.
        means: of the current epoch.
        history: one row for each finished epoch.
        recent: means since the last row of ``log``.
        log: rows of means over ``log_every`` steps.
        best: epoch, value and weights of the best epoch so far.
        selected: indices of the samples of the current epoch, ``None`` for all.
    """

    learner: nn.Module
    optimizer: Optimizer
    schedule: Callable[[int], float] | float
    amp: str
    ema: EMA | None
    settings: dict[str, Any]
    step: int = 0
    rates: str = ""
    means: Means = field(default_factory=Means)
    history: list[Row] = field(default_factory=list)
    recent: Means = field(default_factory=Means)
    log: list[Row] = field(default_factory=list)
    best: dict[str, Any] | None = None
    selected: Tensor | None = None

    def __post_init__(self) -> None:
        self.modules = [self.learner] if self.ema is None else [self.learner, self.ema.model]
        self.device = next(self.learner.parameters()).device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp == "fp16")
        groups = self.optimizer.param_groups
        self.base_lrs = [group["lr"] for group in groups]
        generators = _random.generators(self.learner)
        self.generators = set(generators)
        # Without the initial_lr that PyTorch's schedulers add. The repr of a tensor would be rounded.
        options = [{k: v for k, v in group.items() if k not in ("params", "initial_lr")} for group in groups]
        options = [{k: v.tolist() if isinstance(v, Tensor) else v for k, v in group.items()} for group in options]
        named = self.learner.named_modules()
        self.settings = {
            "learner": f"{type(self.learner).__name__}({shown(self.learner.extra_repr())})",
            "modules": shown(self.learner),
            "frozen": str({name: part.fingerprint() for name, part in named if hasattr(part, "fingerprint")}),
            "generators": str([f"{name} on {each.device.type}" for name, each in generators.items()]),
            **self.settings,
            "optimizer": f"{type(self.optimizer).__name__} {shown(options)}",
            "schedule": shown(self.schedule if callable(self.schedule) else float(self.schedule)),
            "ema": shown(self.ema),
        }

    def rate(self, step: int) -> float:
        """Return the fraction of the optimizer's learning rates that the schedule returns for a step."""
        rate = self.schedule(step) if callable(self.schedule) else self.schedule
        remedy = "Let it return the fraction of the learning rate to use"
        check_real(_OWNER, "the value of schedule", rate, low=0, remedy=remedy)
        return float(rate)

    def broadcast_initial_state(self) -> None:
        """Require equal settings in all processes, and give all of them the weights of rank 0."""
        everyone = distributed.all_gather_object(self.settings)
        for rank, theirs in enumerate(everyone):
            for name, value in everyone[0].items():
                if theirs[name] != value:
                    got = f"on process {rank} {_change(name, theirs[name], value)}"
                    remedy = "Pass all data and the same arguments everywhere; each process takes its share of a batch"
                    raise ValueError(complaint(_OWNER, "the same arguments in all processes", got, remedy))
        # DDP does this too, but neither for the average nor for parameters without gradients in this mode.
        for module in self.modules:
            distributed.broadcast_([*module.parameters(), *module.buffers()])

    def restore_lrs(self) -> None:
        """Restore the learning rates that the optimizer had at first; groups added since then keep theirs."""
        for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs, strict=False):
            group["lr"] = base_lr

    def take_step(self, batch: Batch, wrapped: Any, number: int, memory_format: torch.memory_format) -> None:
        """Take one optimizer step on the mean loss of a batch in ``number`` parts, or fewer if it has fewer samples."""
        batch = tuple(x.contiguous(memory_format=memory_format) if x.dim() == 4 else x for x in batch)
        parts = [*zip(*(x.tensor_split(min(number, len(x))) for x in batch), strict=True)]
        rate = self.rate(self.step)
        for group, base_lr in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            group["lr"] = base_lr * rate
        self.learner.zero_grad(set_to_none=True)
        samples, losses = len(batch[0]), []
        for part in parts:
            waiting = part is not parts[-1] and wrapped is not self.learner  # wrapped in DDP
            with wrapped.no_sync() if waiting else nullcontext():
                with torch.autocast(self.device.type, _AMP[self.amp], enabled=self.amp != "off"):
                    loss, terms = _loss_and_terms(wrapped(*part)) if self.step else self._first_pass(wrapped, part)
                losses.append(loss.detach())
                if wrapped is self.learner:
                    self._require_finite("a finite loss", losses[-1:])
                # Zero times inf is NaN: the gradients carry it to every process.
                share = 0 * losses[-1] + len(part[0]) / samples
                self.scaler.scale(loss * share).backward()
            for means in (self.means, self.recent):
                means.add({"loss": loss, **terms}, len(part[0]))
        if not self.scaler.is_enabled():
            gradients = [parameter.grad for parameter in self.learner.parameters() if parameter.grad is not None]
            self._require_finite("finite gradients", gradients, losses)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.rates = _extend(self.rates, rate)
        self.step += 1
        if self.ema is not None:
            self.ema.update(self.learner.get_submodule("model"))

    def _first_pass(self, wrapped: Any, part: tuple[Tensor, ...]) -> Any:
        """Return the loss and the terms of the first forward pass; if it fails, restore the buffers."""
        before = [(buffer, buffer.clone()) for buffer in self.learner.buffers()]
        try:
            return _loss_and_terms(wrapped(*part))
        except Exception as error:
            with torch.no_grad():
                for buffer, value in before:
                    buffer.copy_(value)
            # A plain network fails on uint8 or on several tensors. Subclasses of RuntimeError have other causes.
            floats = type(error) is RuntimeError and part[0].dtype == torch.uint8
            one = type(error) is TypeError and "positional argument" in str(error)
            if (floats or one) and not hasattr(self.learner, "model"):
                expected = "a learner, which takes a batch of each tensor of data"
                got = f"{type_name(self.learner)}, which raised: {str(error).partition(chr(10))[0].rstrip('.')}"
                raise TypeError(complaint(_OWNER, expected, got, _WRAP)) from error
            raise

    def end_epoch(
        self, started: float, evaluate: Callable[[int], Mapping[str, float]] | None, select: str | None
    ) -> Row:
        """Evaluate, append the row of the epoch to the history, and keep its weights if they are the best."""
        self.require_finite()
        epoch = len(self.history) + 1
        row: Row = {"epoch": epoch, "step": self.step, "seconds": round(time.monotonic() - started, 2)}
        row |= {"lr": float(self.optimizer.param_groups[0]["lr"]), **self.means.result()}
        for module in self.modules:
            distributed.broadcast_(module.buffers())
        if evaluate is not None:
            # Random numbers that an evaluation draws must not change those of later steps.
            own = self._own_states()
            with _random.preserve_rng_state(), self.keeping_lrs("evaluate"):
                row |= _numbers(evaluate(epoch))
            self._set_own_states(own)
        if select is not None and select not in row and not self.history:
            raise ValueError(complaint(_OWNER, f"a metric {select!r}", str(list(row)), "Let evaluate return it"))
        if select is not None and select in row:
            value = -math.inf if math.isnan(row[select]) else row[select]
            if self.best is None or value > self.best["value"]:
                weights = copy.deepcopy(on_cpu(dict(self.learner.state_dict())))
                self.best = {"epoch": epoch, "value": value, "weights": weights}
                if self.ema is not None:
                    self.best["ema"] = copy.deepcopy(on_cpu(self.ema.state_dict()))
        self.history.append(row)
        self.means = Means()
        return row

    @contextmanager
    def keeping_lrs(self, caller: str) -> Iterator[None]:
        """Require the block, a call of a function of the user, to leave the learning rates unchanged."""
        before = self._lrs()
        yield
        if self._lrs() != before:
            expected = f"{caller} to leave the learning rates unchanged"
            remedy = "Pass a function of the step as schedule, instead of a scheduler of PyTorch for example"
            raise RuntimeError(complaint(_OWNER, expected, "others", remedy))

    def log_steps(self) -> Row:
        """Append the means over the steps since the last row to the log, and return the row."""
        row: Row = {"epoch": len(self.history) + 1, "step": self.step}
        row |= {"lr": float(self.optimizer.param_groups[0]["lr"]), **self.recent.result()}
        self.log.append(row)
        self.recent = Means()
        return row

    @property
    def epoch_start(self) -> int:
        """The step at which the current epoch began."""
        return int(self.history[-1]["step"]) if self.history else 0

    def plan_epoch(self, plan: Plan, select_data: Callable[[int, nn.Module], Any]) -> Plan:
        """Return the plan of the samples of the next epoch; an epoch that is resumed keeps those that were selected."""
        if self.step == self.epoch_start:
            own = self._own_states()
            with _random.preserve_rng_state():
                chosen = select_data(len(self.history) + 1, self.learner)
            self._set_own_states(own)
            self.selected = _indices(distributed.broadcast_object(chosen), plan)
        return plan if self.selected is None else plan.subset(self.selected)

    def load_best(self) -> None:
        """Load the weights of the best epoch, and those of the average, if one was selected."""
        if self.best is not None:
            self.learner.load_state_dict(self.best["weights"])
            if self.ema is not None:
                self.ema.load_state_dict(self.best["ema"])

    def require_finite(self) -> None:
        """Require the loss and the trained weights to be finite in all processes. This synchronises with the device."""
        weights = [parameter.detach() for parameter in self.learner.parameters() if parameter.requires_grad]
        losses = [value for name, value in self.means.sums.items() if name == "loss"]
        for expected, values in (("a finite loss", losses), ("finite weights", weights)):
            largest = torch.nn.utils.get_total_norm(values, norm_type=math.inf).item()
            _require_finite_everywhere(expected, largest, f"the steps before {self.step}")
        if (scale := self.scaler.get_scale()) < _SMALLEST_SCALE:
            raise _not_finite(f"a loss scale of at least {_SMALLEST_SCALE}", scale, f"the steps before {self.step}")

    def state(self) -> dict[str, Any]:
        """Return the state as plain data; all processes must call this, as each has its own random generators."""
        learner, own = self.learner.state_dict(), self._own_states()
        if late := sorted(own.keys() - self.generators):
            remedy = "Make them in __init__, so that a resumed run can restore their states"
            raise RuntimeError(complaint(_OWNER, "generators to be created before training", ", ".join(late), remedy))
        extra = {name: value for name, value in learner.items() if not isinstance(value, Tensor)}
        return {
            "settings": self.settings,
            "learner": learner,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "ema": None if self.ema is None else self.ema.state_dict(),
            "step": self.step,
            "rates": self.rates,
            "means": distributed.all_gather_object(self.means.state()),
            "history": self.history,
            "recent": distributed.all_gather_object(self.recent.state()),
            "log": self.log,
            "best": self.best,
            "selected": self.selected,
            "random": distributed.all_gather_object({**_random.capture(self.device), "own": own}),
            "extra": distributed.all_gather_object(on_cpu(extra)),
            "threads": torch.get_num_threads(),
        }

    def restore(self, state: Mapping[str, Any], where: str) -> None:
        """Restore what :meth:`state` returned, from the checkpoint ``where``; nothing changes unless all of it fits."""
        differing = self._differences(state)
        if not differing and state["rates"] != reduce(_extend, map(self.rate, range(state["step"])), ""):
            differing = f"a schedule that returns other rates in the {state['step']} steps taken"
        if differing:
            remedy = "Pass the arguments of the first call, or choose another folder"
            raise CheckpointMismatchError(complaint(_OWNER, f"the run that {where} belongs to", differing, remedy))
        if state["threads"] != torch.get_num_threads() and self.device.type == "cpu":
            got = f"{torch.get_num_threads()} instead of {state['threads']}"
            remedy = "This changes the rounding of sums: the weights will be close, but not bit-identical"
            warnings.warn(complaint(_OWNER, "as many threads as before", got, remedy), UserWarning, stacklevel=3)
        rank, world, streams = distributed.rank(), distributed.world_size(), state["random"]
        if len(streams) != world:
            got = f"{world} instead of {len(streams)}"
            remedy = "The run continues with the same batches and rates, and with other random numbers"
            warnings.warn(complaint(_OWNER, "as many processes as before", got, remedy), UserWarning, stacklevel=3)
        learner = copy.copy(state["learner"])  # a dict with attributes of its own
        learner.update(state["extra"][rank if rank < len(streams) else 0])
        self.learner.load_state_dict(learner)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.step, self.rates = state["step"], state["rates"]
        self.history, self.best, self.selected = list(state["history"]), state["best"], state["selected"]
        self.means = Means.from_states(state["means"], self.device)
        self.recent, self.log = Means.from_states(state["recent"], self.device), list(state["log"])
        if rank < len(streams):
            _random.restore(streams[rank], self.device)
            self._set_own_states(streams[rank]["own"])
        else:
            seed = _random.branch_off(streams[0], rank, self.device)
            for i, generator in enumerate(_random.generators(self.learner).values()):
                generator.manual_seed((seed + 1 + i) % 2**63)

    def _differences(self, state: Mapping[str, Any]) -> str:
        """Describe how a state differs in settings, weights and optimizer; empty if it does not."""
        theirs, ours = dict(state["settings"]), dict(self.settings)
        now = (self.learner.state_dict(), self.optimizer.state_dict())
        for entries, weights, optimizer in ((theirs, state["learner"], state["optimizer"]), (ours, *now)):
            entries["optimized parameters"] = [len(group["params"]) for group in optimizer["param_groups"]]
            entries |= {k: f"{w.dtype} {list(w.shape)}" for k, w in weights.items() if isinstance(w, Tensor)}
        names = [name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name)]
        changed = [_change(name, ours.get(name, "absent"), theirs.get(name, "absent")) for name in names]
        return ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")

    def _lrs(self) -> list[Any]:
        # The version of a tensor counts its changes; reading its value would wait for the device.
        return [(group["lr"], getattr(group["lr"], "_version", 0)) for group in self.optimizer.param_groups]

    def _own_states(self) -> dict[str, Tensor]:
        return {name: generator.get_state() for name, generator in _random.generators(self.learner).items()}

    def _set_own_states(self, states: Mapping[str, Tensor]) -> None:
        for name, generator in _random.generators(self.learner).items():
            if name in states:
                generator.set_state(states[name])

    def _require_finite(self, expected: str, values: Sequence[Tensor], losses: Sequence[Tensor] = ()) -> None:
        """Raise before the weights change, if values can be read at no cost; else the next save raises.

        Gradients are equal in all processes, so that all raise together; ``losses`` differ between processes.
        """
        if values and all(readable(value) for value in values):
            norm = torch.nn.utils.get_total_norm(values).item()
            if not math.isfinite(norm):  # a sum of squares may overflow; the maximum is slower on a CPU
                norm = torch.nn.utils.get_total_norm(values, norm_type=math.inf).item()
            if not math.isfinite(norm):
                for loss in losses:
                    _require_finite_everywhere("a finite loss", loss.item(), f"step {self.step + 1}")
                raise _not_finite(expected, norm, f"step {self.step + 1}")


def _change(name: str, ours: Any, theirs: Any) -> str:
    """Describe how an entry changed, by the first line that differs."""
    for our, their in zip(str(ours).splitlines(), str(theirs).splitlines(), strict=False):
        if our != their:
            return f"{name} {our.strip()} instead of {their.strip()}"
    return f"{name} {ours} instead of {theirs}"


def _indices(chosen: Any, plan: Plan) -> Tensor | None:
    """Require ``None`` or indices of samples that all processes can share."""
    if chosen is None:
        return None
    least, remedy = 2 * distributed.world_size(), "Return an int64 tensor of indices into data, or None for all"
    indices = torch.as_tensor(chosen).cpu()
    if indices.dtype != torch.int64:
        raise TypeError(complaint(_OWNER, "select_data to return int64 indices", type_name(indices), remedy))
    if indices.dim() != 1 or len(indices) < least or (len(indices) < plan.batch_size and len(indices) % (least // 2)):
        expected = f"select_data to return at least {least} indices, which all processes share equally"
        raise ValueError(complaint(_OWNER, expected, f"shape {list(indices.shape)}", remedy))
    check_within(_OWNER, "the indices of select_data", indices, (0, plan.samples - 1), remedy=remedy)
    return indices


def _extend(rates: str, rate: float) -> str:
    """Extend a digest of rates by one rate, to six digits: further ones differ between machines."""
    return digest(f"{rates} {rate:.6g}")[:16]


def _require_finite_everywhere(expected: str, value: float, where: str) -> None:
    """Raise in all processes if the value of one is not finite."""
    values = distributed.all_gather_object(value)
    for rank, other in enumerate(values):
        if not math.isfinite(other):
            raise _not_finite(expected, other, where + (f" of process {rank}" if len(values) > 1 else ""))


def _not_finite(expected: str, value: float, where: str) -> RuntimeError:
    remedy = "Lower the learning rate, or look for a division by zero; the last checkpoint is intact"
    return RuntimeError(complaint(_OWNER, expected, f"{value} in {where}", remedy))


def _loss_and_terms(output: Any) -> Any:
    """Require a learner to return a scalar and a dict of scalars."""
    match output:
        case (loss, Mapping() as terms) if isinstance(output, tuple):
            if all(isinstance(value, Tensor) and value.dim() == 0 for value in (loss, *terms.values())):
                return output
    raise TypeError(complaint(_OWNER, "the learner to return a loss and a dict of terms", _kind(output), _WRAP))


def _kind(output: Any) -> str:
    return f"({', '.join(map(_kind, output))})" if isinstance(output, tuple) else type_name(output)


def _numbers(metrics: Any) -> Row:
    """Require an evaluation to return numbers by name."""
    if not isinstance(metrics, Mapping):
        raise TypeError(complaint(_OWNER, "evaluate to return a dict", type_name(metrics), "Return {'val_ra': 0.5}"))
    for name, value in metrics.items():
        one = value.numel() == 1 if isinstance(value, Tensor) else isinstance(value, Real)
        if not isinstance(name, str) or not one:
            remedy = "Return one number for each name"
            raise TypeError(complaint(_OWNER, f"evaluate to return a number as {name!r}", type_name(value), remedy))
    return {name: float(value) for name, value in metrics.items()}
