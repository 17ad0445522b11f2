"""Adversarial contrastive learning (Jiang et al., NeurIPS 2020)."""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .._checks import check_callable, check_choice, check_tensor, complaint, type_name
from .._modes import buffers_kept
from .._types import Branch, Mode
from ..functional import alignment
from ..losses import NTXentLoss
from ..norm.dual_norm import dual_norms_in
from .learner import ContrastiveLearner, Part, StepOutput, Weight
from .step import Step, switched

# The streams of each mode; a stream is the branch of view 1 and that of view 2. Views on branch "adv" are attacked. The
# adversarial stream comes first, as in the authors' code: the order affects the running statistics of a single norm.
_STREAMS: dict[Mode, tuple[tuple[Branch, Branch], ...]] = {
    "S2S": (("clean", "clean"),),
    "A2A": (("adv", "adv"),),
    "A2S": (("adv", "clean"),),
    "DS": (("adv", "adv"), ("clean", "clean")),
}


ACLOutput = StepOutput  # the name in earlier versions


class ACLTrainer(ContrastiveLearner):
    r"""Adversarial contrastive learning: a module whose forward pass returns the loss of a step.

    The modes differ in the streams of view pairs that are trained on:

    ======  ==========================================  =========================================
    mode    stream                                      meaning
    ======  ==========================================  =========================================
    S2S     (x1, x2)                                    standard to standard, SimCLR
    A2A     (x1 + d1, x2 + d2)                          adversarial to adversarial
    A2S     (x1 + d1, x2)                               adversarial to standard
    DS      (x1, x2) and (x1 + d1, x2 + d2)             dual stream, the paper's choice
    ======  ==========================================  =========================================

    Perturbed views pass through the adversarial branch of the batch norms, the others through the clean one. The
    perturbations maximise the loss of their stream, through the adversarial branch in eval mode; both views of a stream
    are attacked jointly, and in A2S the clean partner is fixed. A loss with layers is treated like the model: its
    parameters are trained, it is in eval mode under attack, and its dual norms are on the branch of the stream, for A2S
    the adversarial one. The loss of DS is

    .. math:: L = \frac{L_\mathrm{clean} + \alpha L_\mathrm{adv}}{1 + \alpha}

    which for alpha = 1 is the mean, as in the authors' code. Their paper has the sum, which makes almost no difference
    to their optimizer, LARS.

    The trainer owns no optimizer, loop, device or log, so ``DDP(trainer)``, ``accelerator.prepare(trainer)`` and
    Lightning's ``training_step`` each wrap a single forward call. In a mode that uses one branch of a dual network, the
    other receives no gradients; ``DDP(trainer)`` ignores its parameters. Reference: Jiang et al., NeurIPS 2020.

    Args:
        model: network from images ``[N, C, H, W]`` to embeddings ``[N, D]``, normally encoder and projection head after
            :func:`advcontrast.convert_to_dual_bn`. A2S and DS warn about single norms, which clean and perturbed
            images share: they were less accurate in the paper (Table 4).
        loss: ``loss(z1, z2)`` returns a scalar, by default ``NTXentLoss()`` with temperature 0.5. A loss with layers or
            a memory must be a module: the trainer cannot inspect a function that wraps one. In eval mode, as under
            attack, its buffers do not change.
        attack: ``attack(objective, x)`` returns perturbed images, by default ``PGDAttack()``: 5 steps of 2/255 in an
            L-infinity ball of 8/255. It and ``augment`` get the ``generator=`` of the forward call, if any.
        augment: ``augment(x)`` returns two views, used when the forward call gets one batch of images.
        mode: ``"S2S"``, ``"A2A"``, ``"A2S"`` or ``"DS"``.
        alpha: weight of the adversarial stream of DS, at least 0, or a function of the training step; 1 in the paper.
            With the number 0 the attack does not run.
        terms: as for :class:`~advcontrast.strategies.ContrastiveLearner`.

    Raises:
        ValueError: an unknown mode, alpha < 0, or a dual norm that lacks one of the two branches.
        TypeError: an argument has the wrong type.

    Warns:
        UserWarning: A2S or DS on a model without dual norms, or with single batch norms in the model or the loss beside
            dual ones.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 8), torch.nn.BatchNorm1d(8))
        >>> acl = ACLTrainer(convert_to_dual_bn(model), attack=PGDAttack(steps=1), mode="DS")
        >>> out = acl(torch.rand(4, 3, 4, 4), torch.rand(4, 3, 4, 4))
        >>> out.loss.backward()
        >>> sorted(out.terms)
        ['alignment_adv', 'alignment_clean', 'loss_adv', 'loss_clean']
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        attack: Callable[..., Tensor] | None = None,
        augment: Callable[..., tuple[Tensor, Tensor]] | None = None,
        mode: Mode = "DS",
        alpha: Weight = 1.0,
        terms: Iterable[nn.Module] = (),
    ) -> None:
        owner = type(self).__name__
        check_choice(owner, "mode", mode, get_args(Mode))
        if loss is not None:
            check_callable(owner, "loss", loss, remedy="Pass a function, or None")
        super().__init__(model, attack=attack, augment=augment, terms=terms)
        self.mode: Mode = mode
        self.alpha = self.weight("alpha", alpha, remedy="1 gives both streams the same weight")
        self.loss = NTXentLoss() if loss is None else loss
        if isinstance(self.loss, nn.Module):
            self.require_branches(self.loss)
        if len(self._used_branches()) > 1:
            # The loss of A2S is always on one branch.
            _warn_of_single_norms(owner, model, loss if isinstance(loss, nn.Module) and mode == "DS" else None, mode)

    def forward(  # type: ignore[override]
        self, x1: Tensor, x2: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> StepOutput:
        """Attack the views, embed them, and return the loss of the mode and its terms.

        Args:
            x1: first views ``[N, C, H, W]`` in [0, 1], N at least 2; or images for ``augment``.
            x2: second views, row i of the same image as row i of ``x1``; ``None`` calls ``augment``.
            generator: source of the randomness of ``augment`` and ``attack``, by default the global one.

        Raises:
            ValueError: the views differ in shape or are fewer than two, or ``x2`` and ``augment`` are both missing.
            TypeError: a view is not a floating-point tensor.
            RuntimeError: in DS the loss has one memory for both streams, or an attack changes its memory, so that each
                image becomes its own negative.
        """
        return super().forward(*((x1,) if x2 is None else (x1, x2)), generator=generator)

    def parts(self, step: Step) -> Iterator[Part]:
        """Yield the loss of each stream."""
        for stream in self._streams():
            name = _name(stream)
            z1, z2 = step.z[name] = self._embeddings(step, stream)
            weight = self.alpha if self.mode == "DS" and name == "adv" else 1.0
            logged = {f"alignment_{name}": alignment(z1.detach(), z2.detach())}
            yield Part(name, self._contrast(name, z1, z2), weight, logged)

    def extra_repr(self) -> str:
        """Show the settings that are not modules."""
        return f"mode={self.mode!r}, alpha={self.alpha}, attack={self.attack!r}, augment={self.augment!r}"

    def _embeddings(self, step: Step, stream: tuple[Branch, Branch]) -> tuple[Tensor, Tensor]:
        """Return the embeddings of both views; views on one branch share a forward pass and its statistics."""
        x1, x2 = step.views
        if stream == ("adv", "clean"):
            (fixed,) = step.still("clean", x2)
            (x1,) = step.perturb(lambda z: self._contrast("adv", z, fixed), "adv", x1)
            return step.embed("adv", x1)[0], step.embed("clean", x2)[0]
        if stream == ("adv", "adv"):
            x1, x2 = step.perturb(partial(self._contrast, "adv"), "adv", x1, x2)
        z1, z2 = step.embed(stream[0], x1, x2)
        return z1, z2

    def _contrast(self, branch: Branch, z1: Tensor, z2: Tensor) -> Tensor:
        """Return the loss on a branch; in eval mode its buffers do not change."""
        owner = type(self).__name__
        if isinstance(self.loss, nn.Module):
            with (
                switched([self.loss], branch),
                nullcontext() if self.loss.training else buffers_kept(self.loss),
                _raise_if_memory_changes(owner, self.loss)
                if len(self._streams()) > 1 or not self.loss.training
                else nullcontext(),
            ):
                loss: Tensor = self.loss(z1, z2)
        else:
            loss = self.loss(z1, z2)
        check_tensor(owner, "the result of loss", loss, remedy="Return a scalar tensor")
        if loss.dim() != 0:
            remedy = "Average it over the batch"
            raise ValueError(complaint(owner, "loss to return a scalar", f"shape {list(loss.shape)}", remedy))
        return loss

    def _streams(self) -> tuple[tuple[Branch, Branch], ...]:
        streams = _STREAMS[self.mode]
        return streams if self.mode != "DS" or self.alpha else (("clean", "clean"),)

    def _used_branches(self) -> set[str]:
        return {branch for stream in self._streams() for branch in stream}

    def _branches_of(self, part: nn.Module) -> set[str]:
        if part is self.loss:
            return {_name(stream) for stream in self._streams()}
        return self._used_branches()

    def _branch_to_ship(self) -> str:
        return "clean" if self.mode == "S2S" else "adv"


def _name(stream: tuple[Branch, Branch]) -> Branch:
    return "adv" if "adv" in stream else "clean"


def _warn_of_single_norms(owner: str, model: nn.Module, loss: nn.Module | None, mode: str) -> None:
    """Warn about norms that clean and perturbed images share, unless the split of the dual ones intends it."""
    dual = dual_norms_in(model)
    single = _single_norms(model)
    of_loss = [] if loss is None else [f"loss.{name}" for name in _single_norms(loss)]
    if not dual:
        got = f"none in {type(model).__name__}"
        remedy = "Call convert_to_dual_bn(model) first, unless this is the single-norm ablation"
    elif (single or of_loss) and any(norm.split != "affine" for norm in dual):
        names = single + of_loss
        got = f"single ones beside them: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
        call = "convert_to_dual_bn(model) once its head is attached" if single else "convert_to_dual_bn(loss) too"
        remedy = f"Call {call}, unless these are meant to be shared"
    else:
        return
    text = complaint(owner, f"dual batch norms for mode {mode!r}", got, remedy)
    warnings.warn(text, UserWarning, stacklevel=3)


def _single_norms(module: nn.Module) -> list[str]:
    parts = _outside_dual_norms(module)
    return [name for name, part in parts if isinstance(part, _BatchNorm) and part.track_running_stats]


@contextmanager
def _raise_if_memory_changes(owner: str, loss: nn.Module) -> Iterator[None]:
    """Raise if the block changes a memory of a loss, which all streams share: images become their own negatives."""
    # A memory is a tensor of two dimensions or more, one row per embedding; running statistics and counters have fewer.
    # Versions are compared, not values: this does not synchronise with the device.
    before = _memories(loss)
    yield
    after = _memories(loss)
    for key in before.keys() | after.keys():
        (tensor, version), (other, now) = (found.get(key, (None, 0)) for found in (before, after))
        if tensor is not other or version != now:
            expected = "loss to have a memory for each stream, which no attack changes"
            got = f"{type_name(loss)} with one, {key[0]}"
            remedy = "Wrap it in adapters.losses.TrainOnlyMemoryBank, so that no image becomes its own negative"
            raise RuntimeError(complaint(owner, expected, got, remedy))


def _memories(loss: nn.Module) -> dict[tuple[str, int], tuple[Tensor, int]]:
    """Return the tensors that may be memories, with their versions: buffers in train mode, and plain attributes."""
    found: dict[tuple[str, int], tuple[Tensor, int]] = {}
    for name, module in _outside_dual_norms(loss):
        held: dict[str, Any] = {**module._buffers} if loss.training else {}
        if not type(module).__module__.startswith("torch."):  # layers of torch with weight_norm set their weight
            held |= vars(module)
        for key, value in held.items():
            for i, tensor in enumerate(value if isinstance(value, deque) else [value]):
                if isinstance(tensor, Tensor) and tensor.dim() >= 2:
                    version = 0 if tensor.is_inference() else tensor._version
                    found[f"{name}.{key}".lstrip("."), i] = tensor, version
    return found


def _outside_dual_norms(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules that are not part of a dual norm, with their names."""
    inside = {part for norm in dual_norms_in(module) for part in norm.modules()}
    return [(name, part) for name, part in module.named_modules() if part not in inside]
