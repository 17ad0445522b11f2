"""Blocks of strategies: frozen and momentum networks, queues, scheduled augmentations and attacks, schedules."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from typing_extensions import Self

from .. import distributed
from .._checks import (
    check_callable,
    check_copyable,
    check_int,
    check_module,
    check_real,
    check_shape,
    check_state,
    check_tensor,
    complaint,
    type_name,
)
from .._digest import digest
from .._transfer import to_device
from ..functional.nt_xent import cosine, unit_rows
from .learner import Block


class Frozen(nn.Module):
    """A network that does not change, such as a teacher: in eval mode, without gradients, not in the state dict.

    It stays in eval mode when the learner that holds it is put into train mode. A resumed run compares its
    :meth:`fingerprint` instead of loading it.

    Args:
        model: the network; the object itself is frozen and put into eval mode.

    Raises:
        TypeError: ``model`` is not an ``nn.Module``.

    Example:
        >>> from advcontrast.strategies import Frozen
        >>> teacher = Frozen(torch.nn.Linear(2, 2)).train()
        >>> teacher.training, teacher.model.training, list(teacher.state_dict())
        (False, False, [])
    """

    def __init__(self, model: nn.Module) -> None:
        check_module("Frozen", model)
        super().__init__()
        self.model = model.requires_grad_(False)
        self.eval()
        self.register_state_dict_post_hook(_without_entries)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_with_own_entries)  # type: ignore[no-untyped-call]

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002 (a frozen network has one mode)
        """Stay in eval mode."""
        return super().train(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output for images, without a gradient.

        Raises:
            RuntimeError: the network was put into train mode.
            TypeError: it returns something other than a floating-point tensor.
        """
        check_tensor("Frozen", "x", x, remedy="Pass images")
        if self.model.training:
            raise RuntimeError(complaint("Frozen", "model in eval mode", "train mode", "Call eval() on it"))
        with torch.inference_mode(False), torch.no_grad():
            output: Tensor = self.model(x.clone())  # a model may change its input in place
        check_tensor("Frozen", "the result of model", output, remedy="Return the embeddings [N, D] only")
        return output

    def fingerprint(self) -> str:
        """Return a digest of the weights and buffers."""
        state = self.model.state_dict()
        return digest(*(part for name, value in state.items() if isinstance(value, Tensor) for part in (name, value)))


def _without_entries(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        del state[name]


def _with_own_entries(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Add the weights of the frozen network to a state dict, so that strict loading does not report them missing."""
    state.update({f"{prefix}model.{name}": value for name, value in module.get_submodule("model").state_dict().items()})


def frozen_teacher(owner: str, teacher: nn.Module, model: nn.Module | None = None) -> Frozen:
    """Check that a teacher is in eval mode and fits the student, and freeze it."""
    if not isinstance(teacher, nn.Module):
        raise TypeError(complaint(owner, "teacher to be an nn.Module", type_name(teacher), "Pass the network itself"))
    if any(module.training for module in teacher.modules()):
        raise ValueError(complaint(owner, "teacher in eval mode", "train mode", "Call teacher.eval()"))
    if model is None:
        return Frozen(teacher)
    places = [next((p.device for p in network.parameters()), None) for network in (model, teacher)]
    if None not in places and places[0] != places[1]:
        expected = "model and teacher on one device"
        raise ValueError(complaint(owner, expected, f"{places[0]} and {places[1]}", "Move both to it"))
    if {*model.parameters()} & {*teacher.parameters()}:
        remedy = "Pass copy.deepcopy(teacher) as model to start from its weights"
        raise ValueError(complaint(owner, "a teacher with parameters of its own", "those of model", remedy))
    theirs = {name: part for name, part in teacher.named_modules() if isinstance(part, _ConvNd)}
    for name, part in model.named_modules():
        other = theirs.get(name)
        if other is None or not isinstance(part, _ConvNd) or part.weight.shape != other.weight.shape:
            continue
        ours, fits = (
            ", ".join(f"{key} {getattr(conv, key)}" for key in ("stride", "padding", "dilation", "groups"))
            for conv in (part, other)
        )
        if ours != fits and torch.equal(part.weight, other.weight):
            expected = f"model.{name}, which has the weights of the teacher, to have its {fits}"
            remedy = "Build the student like the teacher; with another stem its outputs differ"
            raise ValueError(complaint(owner, expected, ours, remedy))
    return Frozen(teacher)


def check_teacher_output(owner: str, z: Tensor, target: Tensor) -> None:
    """Require the outputs of student and teacher to have one shape."""
    if z.shape != target.shape:
        expected = "model and teacher to return embeddings of one shape"
        remedy = "Remove or replace the last layer of one of them"
        raise ValueError(complaint(owner, expected, f"{list(z.shape)} and {list(target.shape)}", remedy))


def away_from(owner: str, target: Tensor) -> Callable[[Tensor], Tensor]:
    """Return an objective of embeddings that grows as they turn away from those of a teacher."""

    def objective(z: Tensor) -> Tensor:
        check_teacher_output(owner, z, target)
        return -cosine(z, target)

    return objective


class Momentum(Block):
    r"""A copy of a network whose parameters follow those of the original.

    At the end of each forward pass of the learner in train mode, before the optimizer steps, they become
    :math:`\bar\theta \leftarrow m\, \bar\theta + (1 - m)\, \theta` with the decay :math:`m`. Running statistics are not
    averaged: batch norms of the copy see the batches themselves. The copy gets no gradients.

    Args:
        model: the network to follow.
        decay: the decay m, in [0, 1].

    Attributes:
        model: the copy.

    Raises:
        ValueError: decay outside [0, 1].
        TypeError: an argument has the wrong type.
        RuntimeError: ``model`` cannot be copied, as in :func:`advcontrast.export_branch`.

    Example:
        >>> from advcontrast.strategies import Momentum
        >>> model = torch.nn.Linear(1, 1)
        >>> _ = torch.nn.init.constant_(model.weight, 1.0)
        >>> momentum = Momentum(model, decay=0.75)
        >>> _ = torch.nn.init.constant_(model.weight, 5.0)
        >>> momentum.advance()
        >>> momentum.model.weight.item()
        2.0
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        check_module("Momentum", model)
        check_real("Momentum", "decay", decay, low=0, high=1, remedy="0.99 is usual")
        check_copyable("Momentum", model)
        super().__init__()
        self.model, self.decay = copy.deepcopy(model).requires_grad_(False), decay
        self._original = [model]  # a list, so that it is not registered a second time

    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the copy."""
        output: Tensor = self.model(x)
        return output

    @torch.no_grad()
    def advance(self) -> None:
        """Take a step towards the original."""
        torch._foreach_lerp_([*self.model.parameters()], [*self._original[0].parameters()], 1 - self.decay)

    def extra_repr(self) -> str:
        """Show the decay."""
        return f"decay={self.decay}"


class Queue(Block):
    """The last embeddings of earlier batches, scaled to length one, as further negatives.

    It starts with fixed random directions. Embeddings that are pushed are gathered over all processes, and enter at the
    end of the forward pass of the learner in train mode, so that an image is never its own negative. The embeddings are
    extra state, since their length is known only from the first ones.

    Args:
        size: number of embeddings, at least that of a batch.
        dim: length D of an embedding; by default that of the first ones.

    Attributes:
        rows: the embeddings, ``[size, D]``, the latest first, or ``None`` before the first step if ``dim`` is ``None``.

    Raises:
        ValueError: a number < 1, or, in use, more embeddings than the queue holds or of another length.
        TypeError: an argument has the wrong type.

    Example:
        >>> from advcontrast.strategies import Queue
        >>> queue = Queue(3)
        >>> queue.push(torch.tensor([[3.0, 0.0]]))
        >>> queue.advance()
        >>> queue.read(torch.ones(1, 2))[0].tolist()
        [1.0, 0.0]
    """

    def __init__(self, size: int, dim: int | None = None) -> None:
        check_int("Queue", "size", size, low=1, remedy="MoCo uses 65536")
        if dim is not None:
            check_int("Queue", "dim", dim, low=1, remedy="None takes that of the first embeddings")
        super().__init__()
        self.size = size
        self.rows: Tensor | None = None if dim is None else self._directions(dim)
        self._next: Tensor | None = None

    @torch.inference_mode(False)  # an attack computes its gradient with them
    def read(self, z: Tensor) -> Tensor:
        """Return the embeddings of earlier batches, ``[size, D]``, to compare with embeddings ``[N, D]``."""
        check_tensor("Queue", "z", z, remedy="Pass embeddings")
        dim = z.shape[-1] if self.rows is None else self.rows.shape[1]
        if z.dim() != 2 or len(z) * distributed.world_size() > self.size or z.shape[1] != dim:
            expected = f"at most {self.size} embeddings of length {dim} in all processes"
            raise ValueError(complaint("Queue", expected, f"{list(z.shape)}", "Build a longer queue, or pass fewer"))
        rows = self._directions(dim) if self.rows is None else self.rows
        return to_device(rows, z.device).to(torch.promote_types(z.dtype, torch.float32))

    @torch.no_grad()
    def push(self, z: Tensor) -> None:
        """Add embeddings ``[N, D]`` at the end of the step, in place of the oldest ones."""
        rows = self.read(z)
        pushed = distributed.all_gather(unit_rows(z)).flatten(0, 1)
        self._next = torch.cat([pushed, rows])[: self.size]

    def advance(self) -> None:
        """Add the embeddings that were pushed."""
        if self._next is not None:
            self.rows, self._next = self._next, None

    def get_extra_state(self) -> dict[str, Tensor | None]:
        """Return the embeddings for the state dict."""
        return {"rows": self.rows}

    def set_extra_state(self, state: dict[str, Tensor | None]) -> None:
        """Load the embeddings from a state dict."""
        check_state("Queue", state, "rows")
        rows = state["rows"]
        if rows is not None:
            check_tensor("Queue", "rows of the state", rows, remedy="Pass what get_extra_state returned")
            fits, remedy = rows.dim() == 2 and len(rows) == self.size, "Build a queue of that size"
            check_shape("Queue", "rows of the state", rows, f"[{self.size}, D]", fits, remedy=remedy)
        self.rows = rows

    def extra_repr(self) -> str:
        """Show the size."""
        return f"size={self.size}"

    def _directions(self, dim: int) -> Tensor:
        return F.normalize(torch.randn(self.size, dim, generator=torch.Generator().manual_seed(0)), dim=1)


class Scheduled(nn.Module):
    """An augmentation or attack whose strength is a function of the training step.

    It counts its calls in train mode from 0; the count is in the state dict. A strategy that attacks twice a step makes
    two calls of its attack.

    Args:
        make: ``make(strength)`` returns an augmentation, for example ``lambda s: ContrastivePairAugment(32,
            strength=s)``, or an attack, ``lambda eps: PGDAttack(eps=eps, step_size=eps / 4)``.
        strength: a function of the training step, such as :class:`Staircase`.

    Raises:
        ValueError: the strength is not finite.
        TypeError: an argument is not callable, or ``make`` fails for the first strength.

    Example:
        >>> from advcontrast.strategies import Scheduled
        >>> augment = Scheduled(lambda s: lambda x: s * x, lambda step: float(step))
        >>> [augment(torch.ones(())).item() for _ in range(3)]
        [0.0, 1.0, 2.0]
    """

    def __init__(self, make: Callable[[float], Callable[..., Any]], strength: Callable[[int], float]) -> None:
        check_callable("Scheduled", "make", make, remedy="Pass a function of the strength")
        check_callable("Scheduled", "strength", strength, remedy="Pass a function of the step")
        super().__init__()
        self.make, self.strength = make, strength
        self._calls = 0
        self._made()  # raises here, not in the first step

    def forward(self, *arguments: Any, **source: Any) -> Any:
        """Return the result of the augmentation or attack of this step."""
        images = self._made()(*arguments, **source)
        self._calls += self.training
        return images

    def _made(self) -> Callable[..., Any]:
        """Return the augmentation or attack of this step."""
        value = self.strength(self._calls)
        check_real("Scheduled", "strength(step)", value, remedy=f"Check its value for step {self._calls}")
        remedy = "Pass lambda s: ContrastivePairAugment(32, strength=s) for example"
        try:
            made = self.make(value)
        except TypeError as error:
            expected, got = "make to be a function of the strength", f"the error {str(error).rstrip('.')!r} for {value}"
            raise TypeError(complaint("Scheduled", expected, got, remedy)) from error
        check_callable("Scheduled", "the result of make", made, remedy=remedy)
        return made

    def get_extra_state(self) -> dict[str, int]:
        """Return the number of calls for the state dict."""
        return {"calls": self._calls}

    def set_extra_state(self, state: dict[str, int]) -> None:
        """Load the number of calls from a state dict."""
        check_state("Scheduled", state, "calls")
        check_int("Scheduled", "calls of the state", state["calls"], low=0, remedy="Pass what get_extra_state returned")
        self._calls = state["calls"]

    def extra_repr(self) -> str:
        """Show both functions."""
        return f"{self.make!r}, {self.strength!r}"


@dataclass(frozen=True)
class Staircase:
    """Schedule from one value to another, in equal steps of ``every`` training steps.

    At step s of E = ``steps`` with K = ``every`` the value is ``start + (end - start) * floor(s / K) * K / E``; later
    steps keep the last value.

    Args:
        start: value of the first K steps.
        end: value that step E would have.
        steps: length E of the training, at least 1.
        every: K, at least 1; ``None`` changes the value at every step.

    Raises:
        ValueError: a number is out of range.
        TypeError: an argument has the wrong type.

    Example:
        >>> from advcontrast.strategies import Staircase
        >>> schedule = Staircase(1.0, 0.0, steps=100, every=50)
        >>> [schedule(step) for step in (0, 49, 50, 99, 100)]
        [1.0, 1.0, 0.5, 0.5, 0.5]
    """

    start: float
    end: float
    steps: int
    every: int | None = None

    def __post_init__(self) -> None:
        check_real("Staircase", "start", self.start, remedy="Pass the value of the first step")
        check_real("Staircase", "end", self.end, remedy="Pass the value to approach")
        check_int("Staircase", "steps", self.steps, low=1, remedy="Pass the length of the training")
        if self.every is not None:
            check_int("Staircase", "every", self.every, low=1, remedy="Pass the steps of 50 epochs for example")

    def __call__(self, step: int) -> float:
        """Return the value at a training step, which counts from 0."""
        check_int("Staircase", "step", step, low=0, remedy="Steps count from 0")
        every = self.every or 1
        return self.start + (self.end - self.start) * (min(step, self.steps - 1) // every * every / self.steps)
