"""The base of the strategies without labels: views, attacks, weights that follow a schedule, and the loss of a step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any, ClassVar, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from .. import distributed
from .._checks import (
    check_callable,
    check_copyable,
    check_finite,
    check_iterable,
    check_module,
    check_real,
    check_shape,
    check_tensor,
    check_type,
    complaint,
    source_device,
    type_name,
)
from .._memory_format import warn_of_channels_last
from .._random import capture, in_use, restore
from ..attacks import PGDAttack
from ..functional.image import as_floats
from ..norm.dual_norm import dual_norms_in
from ..surgery import export_branch
from .step import Step

#: A number, or a function of the training step, which counts from 0.
Weight: TypeAlias = float | Callable[[int], float]


class StepOutput(NamedTuple):
    """Result of a training step of a strategy.

    Attributes:
        loss: the scalar to call ``backward`` on.
        terms: detached scalars to log: ``"loss_<name>"`` for each part of the loss, ``"loss_<name>_2"`` for a second
            part of that name.
    """

    loss: Tensor
    terms: dict[str, Tensor]


class Part(NamedTuple):
    """A part of a loss.

    Attributes:
        name: name of the part in the log, ``"clean"`` and ``"adv"`` for those two streams.
        loss: a scalar.
        weight: a number of at least 0, or a function of the training step that returns one.
        logged: further detached scalars to log.
    """

    name: str
    loss: Tensor
    weight: Weight = 1.0
    logged: dict[str, Tensor] = {}


class ContrastiveLearner(nn.Module):
    r"""Base class of strategies: a module whose forward pass returns the loss of a training step.

    A subclass implements :meth:`parts`, which yields the parts of the loss. The loss is their weighted mean
    :math:`\sum_i w_i L_i / \sum_i w_i` if ``normalised`` is set, and otherwise their weighted sum; the parts of
    ``terms`` are added to it. The learner owns no optimizer, loop or device. Every module that is an attribute of it,
    such as a predictor, is trained, and is in eval mode and without weight gradients while images are attacked.

    Any weight may be a function of the training step. The learner counts its own calls in train mode, from 0, so that a
    schedule works in any loop; with ``fit(accumulate=k)`` a step has k calls. The count is in the state dict of a
    learner that has a schedule. Pass weights to :meth:`weight`, which checks and registers them.

    Class attributes, which a subclass may override:

    - ``views``: number of views, ``None`` for two or more. Called with as many tensors, the learner uses them as they
      are.
    - ``labelled``: whether targets follow the images or views.
    - ``branches``: branches of dual norms that the strategy uses.
    - ``normalised``: whether the loss is a weighted mean.
    - ``couples_samples``: whether the loss compares the images of a batch with each other.

    Args:
        model: network from images ``[N, C, H, W]`` to embeddings ``[N, D]``. Its dual norms, if any, need all
            ``branches``.
        attack: ``attack(objective, x)`` returns perturbed images, by default ``PGDAttack()``.
        augment: ``augment(images)`` returns a batch of views, or a tuple with one batch for each view. It and
            ``attack`` get the ``generator=`` of the forward call, if any.
        terms: modules that add parts to the loss, such as :class:`~advcontrast.strategies.Invariance`: called with the
            :class:`~advcontrast.strategies.Step`, they yield parts.

    Raises:
        ValueError: a dual norm lacks one of the branches.
        TypeError: an argument has the wrong type.
    """

    views: ClassVar[int | None] = 2
    labelled: ClassVar[bool] = False
    normalised: ClassVar[bool] = True
    branches: tuple[str, ...] = ("clean", "adv")
    couples_samples: bool = True

    def __init__(
        self,
        model: nn.Module,
        *,
        attack: Callable[..., Tensor] | None = None,
        augment: Callable[..., Any] | None = None,
        terms: Iterable[nn.Module] = (),
    ) -> None:
        owner = type(self).__name__
        check_module(owner, model)
        for name, part in (("attack", attack), ("augment", augment)):
            if part is not None:
                check_callable(owner, name, part, remedy="Pass a function, or None")
        remedy = "Pass modules such as [Invariance()]"
        check_iterable(owner, "terms", terms, remedy=remedy)
        terms = [*terms]
        for term in terms:
            check_type(owner, "each of terms", term, nn.Module, remedy=remedy)
        super().__init__()
        self.model = model
        self.attack = PGDAttack() if attack is None else attack
        self.augment = augment
        self._schedules: dict[str, Callable[[int], float]] = {}
        # The devices of the last call that succeeded: parts that do not fit show in the first one on a device.
        self._tried: set[torch.device] = set()
        self.require_branches(model)
        if terms:
            self.terms = nn.ModuleList(terms)
            own = {*model.parameters()}
            for i, term in enumerate(terms):
                if any(p in own for p in term.parameters() if not p.requires_grad):
                    expected, got = f"terms[{i}] to share no frozen weights with model", f"{type_name(term)} with some"
                    raise ValueError(complaint(owner, expected, got, "Build it from copy.deepcopy(model)"))
                self.weight(f"the weight of terms[{i}]", getattr(term, "weight", 1.0))

    def parts(self, step: Step) -> Iterator[Part]:  # noqa: ARG002 (for subclasses)
        """Yield the parts of the loss of a batch."""
        remedy = "Define parts(self, step) in the subclass"
        raise NotImplementedError(complaint(type(self).__name__, "a method parts", "none", remedy))

    def forward(self, *batch: Tensor, generator: torch.Generator | None = None) -> StepOutput:
        """Return the loss of a batch.

        Args:
            *batch: the views, each ``[N, C, H, W]`` in [0, 1], row i of each of the same image; or images for
                ``augment``. If the strategy uses targets, they come last.
            generator: source of the randomness of ``augment`` and ``attack``, by default the global one.

        Raises:
            ValueError: the number of tensors is wrong, views differ in shape or are fewer than two, images come
                without ``augment``, or a schedule returns something other than a finite number of at least 0.
            TypeError: a view is not a floating-point tensor.
        """
        source_device(type(self).__name__, generator)
        for name, schedule in self._schedules.items():
            self._check_weight(name, schedule(self._clock.calls))
        devices = {x.device for x in batch if isinstance(x, Tensor)}
        with _undone_on_error(self, batch, generator, first=devices != self._tried):
            step = self._step(batch, {} if generator is None else {"generator": generator})
            main = [*self.parts(step)]
            added = [part for term in getattr(self, "terms", ()) for part in term(step)]
            self._check_parts(main + added)
            weights = [self.now(part.weight) for part in main]
            if not main or (self.normalised and sum(weights) == 0):
                expected, remedy = "parts with weights, not all zero", "Yield a Part with a weight of more than 0"
                raise ValueError(complaint(type(self).__name__, expected, f"{weights}", remedy))
        self._tried = devices
        total = sum(weights) if self.normalised else 1.0
        loss = reduce(torch.add, [weight / total * part.loss for weight, part in zip(weights, main, strict=True)])
        for part in added:
            loss = loss + self.now(part.weight) * part.loss
        terms: dict[str, Tensor] = {}
        for i, part in enumerate(main + added):
            earlier = [each.name for each in (main + added)[:i]].count(part.name)
            name = f"loss_{part.name}_{earlier + 1}" if earlier else f"loss_{part.name}"
            terms |= {name: part.loss.detach(), **part.logged}
        if self.training:
            self._advance()
        return StepOutput(loss, terms)

    def weight(self, name: str, value: Weight, *, remedy: str = "Pass a number, or a function of the step") -> Weight:
        """Check a weight, register it if it is a schedule, and return it.

        Args:
            name: name of the argument, for errors.
            value: a number of at least 0, or a function of the training step.
            remedy: a sentence for errors, without its full stop.

        Raises:
            ValueError: the number, or that of the first step, is negative or not finite.
            TypeError: it is not a number.
        """
        self._check_weight(name, value(0) if callable(value) else value, remedy)
        if callable(value):
            self._schedules[name] = value
            if not hasattr(self, "_clock"):
                self._clock = _Clock()
        return value

    def now(self, weight: Weight) -> float:
        """Return the value of a weight at the current training step; :meth:`weight` must have registered a schedule."""
        if callable(weight):
            if weight not in self._schedules.values():
                expected, remedy = "a schedule that is registered", "Pass it to self.weight in the constructor"
                raise ValueError(complaint(type(self).__name__, expected, repr(weight), remedy))
            weight = weight(self._clock.calls)
        self._check_weight("weight", weight)
        return weight

    def encoder(self, branch: str | None = None) -> nn.Module:
        """Return a plain copy of the network to use downstream, without dual norms.

        Args:
            branch: branch of its dual norms; by default the one that the paper exports, the adversarial one if it is
                trained.

        Raises:
            ValueError: the dual norms lack the branch.
            RuntimeError: the network cannot be copied, as in :func:`advcontrast.export_branch`.
        """
        return exported(self._trained_network(), self._branch_to_ship() if branch is None else branch)

    def extra_repr(self) -> str:
        """Show the settings that are not modules."""
        settings = {name: value for name, value in vars(self).items() if not name.startswith("_")}
        return ", ".join(f"{name}={value!r}" for name, value in settings.items() if name != "training")

    def parts_under_attack(self) -> list[nn.Module]:
        """Return the modules that are in eval mode and without weight gradients while images are attacked."""
        return [part for name, part in self.named_children() if name not in ("attack", "augment", "_clock")]

    def require_branches(self, *modules: nn.Module) -> None:
        """Raise a ``ValueError`` unless all dual norms of the modules have the branches of the strategy."""
        for module in modules:
            check_module(type(self).__name__, module)
        for found in {norm.branches for module in modules for norm in dual_norms_in(module)}:
            if not set(self.branches) <= set(found):
                expected = f"dual norms to have the branches {' and '.join(map(repr, self.branches))}"
                remedy = "Convert with these among branches="
                raise ValueError(complaint(type(self).__name__, expected, repr(found), remedy))

    def _trained_network(self) -> nn.Module:
        return self.model

    def _branch_to_ship(self) -> str:
        return "adv" if "adv" in self.branches else self.branches[-1]

    def _branches_of(self, part: nn.Module) -> Iterable[str]:  # noqa: ARG002 (for subclasses)
        """Return the branches of a part that receive gradients."""
        return self.branches

    def _step(self, batch: tuple[Any, ...], source: dict[str, Any]) -> Step:
        """Return the step of a batch, with its views checked."""
        owner, targets = type(self).__name__, None
        for i, x in enumerate(batch, 1):
            if isinstance(x, (tuple, list)):
                remedy = "Pass batch[0], the images of a batch with labels, or the two views one by one"
                raise TypeError(complaint(owner, f"x{i} to be a tensor of images", type_name(x), remedy))
            labels = isinstance(x, Tensor) and x.dim() == 1 and not x.is_floating_point()
            if i > 1 and labels and not self.labelled:
                remedy = (
                    "Leave the labels out, as data.ImageStream(folder) does: pass images alone, or two views of them"
                )
                got = f"{x.dtype} of shape {list(x.shape)}"
                raise TypeError(complaint(owner, f"x{i} to be views", got, remedy))
        if self.labelled:
            if len(batch) < 2:
                remedy = "Pass the images, then their targets"
                raise ValueError(complaint(owner, "images and targets", f"{len(batch)} tensors", remedy))
            *batch, targets = batch  # type: ignore[assignment]
            if isinstance(targets, Tensor) and targets.is_inference():
                with torch.inference_mode(False):
                    targets = targets.clone()  # an attack has a gradient
        images, views = None, tuple(batch)
        count = "one view" if self.views == 1 else f"{self.views or 'two or more'} views"
        if len(views) == 1 and (self.augment is not None or self.views != 1):
            if self.augment is None:
                remedy = "Pass both views, or build the trainer with augment=ContrastivePairAugment(size)"
                raise ValueError(complaint(owner, "x2" if self.views == 2 else count, "None and no augment", remedy))
            images = as_floats(views[0]) if isinstance(views[0], Tensor) else None
            made = self.augment(views[0], **source)
            views = tuple(made) if isinstance(made, (tuple, list)) else (made,)
            if not self._takes(len(views)):
                expected = f"augment to return {'a pair' if self.views == 2 else count}"
                remedy = "Return a batch for each view, row i of each of image i"
                raise ValueError(complaint(owner, expected, type_name(made), remedy))
        elif not self._takes(len(views)):
            expected = f"{count} of each image, or the images{', and targets' if self.labelled else ''}"
            got, remedy = f"{len(views) + self.labelled} tensors", "Pass each view as one tensor"
            raise ValueError(complaint(owner, expected, got, remedy))
        self._check_views(views)
        if images is None and any(getattr(term, "needs_images", False) for term in getattr(self, "terms", ())):
            remedy = "Call the learner with images, and build it with augment="
            raise ValueError(complaint(owner, "images, which a term compares with the views", "views alone", remedy))
        return Step(self, views, images=images, targets=targets, source=source)

    def _takes(self, views: int) -> bool:
        return views > 1 if self.views is None else views == self.views

    def _check_views(self, views: tuple[Any, ...]) -> None:
        owner, first = type(self).__name__, views[0]
        for i, x in enumerate(views, 1):
            remedy = "Pass float images in [0, 1], or uint8 ones to a trainer with augment"
            check_tensor(owner, f"x{i}", x, remedy=remedy)
            check_finite(owner, f"x{i}", x, remedy=remedy)
            if (x.shape, x.dtype, x.device) != (first.shape, first.dtype, first.device):
                got = " and ".join(f"{list(each.shape)} {each.dtype} on {each.device}" for each in (first, x))
                expected = f"x1 and x{i} of one shape, dtype and device"
                raise ValueError(complaint(owner, expected, got, "Pass views of the same images"))
        least = 2 if self.couples_samples else 1
        if first.dim() == 0 or (len(first) < least and len(first) * distributed.world_size() < least):
            remedy = "Skip a short last batch with drop_last=True"
            expected = f"at least {least} image{'s' * (least > 1)}"
            raise ValueError(complaint(owner, expected, f"shape {list(first.shape)}", remedy))
        warn_of_channels_last(self.model, *views)

    def _check_parts(self, parts: list[Any]) -> None:
        owner, remedy = type(self).__name__, "Yield Part(name, loss, weight)"
        for part in parts:
            check_type(owner, "each part", part, Part, remedy=remedy)
            name = f"the loss of {part.name!r}"
            check_tensor(owner, name, part.loss, remedy=remedy)
            check_shape(owner, name, part.loss, "[]", part.loss.dim() == 0, remedy="Average it over the batch")

    def _check_weight(self, name: str, value: Any, remedy: str = "Check its value for this step") -> None:
        check_real(type(self).__name__, name, value, low=0, remedy=remedy)

    def _advance(self) -> None:
        """Change the state of momentum networks, queues and schedules."""
        for block in self.children():
            if isinstance(block, Block):
                block.advance()

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """Parameters of branches that get no gradients, under the name that DDP looks up."""
        parts = self.parts_under_attack()
        norms = [(norm, self._branches_of(part)) for part in parts for norm in dual_norms_in(part)]
        used = {p for norm, names in norms for name in names for p in getattr(norm, name).parameters()}
        idle = {p for norm, _ in norms for p in norm.parameters()} - used
        return [name for name, parameter in self.named_parameters(remove_duplicate=False) if parameter in idle]


class Block(nn.Module):
    """Part of a learner with a state that changes at the end of each training step."""

    def advance(self) -> None:
        """Change the state; called at the end of a forward pass in train mode."""
        raise NotImplementedError


class _Clock(Block):
    """Count of the training steps, in the state dict."""

    calls = 0

    def advance(self) -> None:
        self.calls += 1

    def get_extra_state(self) -> dict[str, int]:
        return {"calls": self.calls}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.calls = state["calls"]


@contextmanager
def _undone_on_error(
    learner: nn.Module, batch: tuple[Any, ...], generator: torch.Generator | None, *, first: bool
) -> Iterator[None]:
    """Restore extra state and random state if the block raises."""
    # Buffers and generators of devices are copied in a first call only: a later one may be captured as a CUDA graph.
    buffers = [(buffer, buffer.detach().clone()) for buffer in learner.buffers() if first and not is_lazy(buffer)]
    counters = [part for part in learner.modules() if type(part).get_extra_state is not nn.Module.get_extra_state]
    states, devices = [part.get_extra_state() for part in counters], in_use() if first else []
    random = capture(*devices)
    drawn = generator.get_state() if generator is not None and (first or generator.device.type == "cpu") else None
    try:
        yield
    except Exception as error:
        for buffer, value in buffers:
            with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                buffer.copy_(value)
        for part, state in zip(counters, states, strict=True):
            part.set_extra_state(state)
        restore(random, *devices)
        if generator is not None and drawn is not None:
            generator.set_state(drawn)
        if isinstance(error, RuntimeError):
            _check_placement(learner, batch, error)
        raise


def _check_placement(learner: nn.Module, batch: tuple[Any, ...], error: RuntimeError) -> None:
    """Raise from an error if views and networks are on several devices, or if it names types and theirs differ."""
    views = [(f"x{i}", x) for i, x in enumerate(batch, 1) if isinstance(x, Tensor)]
    tensors = [*views, *learner.named_parameters(), *learner.named_buffers()]
    floats = [(name, tensor) for name, tensor in tensors if tensor.is_floating_point() and "type" in str(error)]
    for one, form, named in (("on one device", "on {0.device}", tensors), ("of one dtype", "of {0.dtype}", floats)):
        found: dict[str, str] = {}
        for name, tensor in named:
            found.setdefault(form.format(tensor), name)
        if len(found) > 1:
            got = " and ".join(f"{name} {place}" for place, name in found.items())
            remedy = "Move the learner and the images to it"
            raise ValueError(complaint(type(learner).__name__, f"views and networks {one}", got, remedy)) from error


def exported(network: nn.Module, branch: str) -> nn.Module:
    """Return a copy of a network with the plain norms of a branch, or of a network without dual norms."""
    if dual_norms_in(network):
        return export_branch(network, branch)
    check_copyable("encoder", network)
    return copy.deepcopy(network)
