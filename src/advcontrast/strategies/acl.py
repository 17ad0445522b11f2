"""Adversarial contrastive learning (Jiang et al., NeurIPS 2020)."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .. import distributed
from .._checks import (
    check_callable,
    check_choice,
    check_module,
    check_real,
    check_tensor,
    complaint,
    source_device,
    type_name,
)
from .._memory_format import warn_of_channels_last
from .._modes import buffers_kept
from .._types import BRANCHES, Branch, Mode, Objective
from ..attacks import PGDAttack, under_attack
from ..functional import alignment
from ..losses import NTXentLoss
from ..norm import DualNorm, bn_branch

_OWNER = "ACLTrainer"

# The streams of each mode; a stream is the branch of view 1 and that of view 2. Views on branch "adv" are attacked. The
# adversarial stream comes first, as in the authors' code: the order affects the running statistics of a single norm.
_STREAMS: dict[Mode, tuple[tuple[Branch, Branch], ...]] = {
    "S2S": (("clean", "clean"),),
    "A2A": (("adv", "adv"),),
    "A2S": (("adv", "clean"),),
    "DS": (("adv", "adv"), ("clean", "clean")),
}


class ACLOutput(NamedTuple):
    """Result of a step of :class:`ACLTrainer`.

    Attributes:
        loss: the scalar to call ``backward`` on.
        terms: detached scalars to log: for each stream its loss and the alignment of its pairs, ``"loss_clean"``,
            ``"alignment_clean"``, ``"loss_adv"``, ``"alignment_adv"``. The stream of A2S is named adversarial.
    """

    loss: Tensor
    terms: dict[str, Tensor]


class ACLTrainer(nn.Module):
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

    which for alpha = 1 is the mean that the authors' code takes; their paper writes the sum, to which their optimizer,
    LARS, is invariant.

    The trainer owns no optimizer, loop, device or log, so ``DDP(trainer)``, ``accelerator.prepare(trainer)`` and
    Lightning's ``training_step`` each wrap a single forward call. In a mode that uses one branch of a dual network the
    other receives no gradients; ``DDP(trainer)`` ignores its parameters. Reference: Jiang et al., NeurIPS 2020.

    Args:
        model: images ``[N, C, H, W]`` in, embeddings ``[N, D]`` out, normally encoder and projection head after
            :func:`advcontrast.convert_to_dual_bn`. Single norms, which both kinds of images then share, make A2S and DS
            worse (Table 4 of the paper): there is a warning.
        loss: ``loss(z1, z2)`` to a scalar, by default ``NTXentLoss()`` with temperature 0.5. A loss with layers or
            memories must be a module, not a function around one, which the trainer cannot see. In eval mode, as under
            attack, its buffers do not change.
        attack: ``attack(objective, x)`` to perturbed images, by default ``PGDAttack()``: 5 steps of 2/255 in an
            L-infinity ball of 8/255. It and ``augment`` get the ``generator=`` of the forward call, if any.
        augment: ``augment(x)`` to two views, used when the forward call gets one batch of images.
        mode: ``"S2S"``, ``"A2A"``, ``"A2S"`` or ``"DS"``.
        alpha: weight of the adversarial stream of DS, at least 0; with 0 the attack is not run. The paper's 1.

    Raises:
        ValueError: an unknown mode, alpha < 0, or a dual norm that lacks one of the two branches.
        TypeError: an argument of the wrong kind.

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

    #: The loss compares the images of a batch with each other, so gradients of its parts do not add up to its own.
    couples_samples = True

    def __init__(
        self,
        model: nn.Module,
        *,
        loss: Callable[[Tensor, Tensor], Tensor] | None = None,
        attack: Callable[..., Tensor] | None = None,
        augment: Callable[..., tuple[Tensor, Tensor]] | None = None,
        mode: Mode = "DS",
        alpha: float = 1.0,
    ) -> None:
        check_module(_OWNER, model)
        check_choice(_OWNER, "mode", mode, get_args(Mode))
        check_real(_OWNER, "alpha", alpha, low=0, remedy="1 weighs both streams alike")
        for name, part in (("loss", loss), ("attack", attack), ("augment", augment)):
            if part is not None:
                check_callable(_OWNER, name, part, remedy="Pass a function, or None")
        super().__init__()
        self.model = model
        self.loss = NTXentLoss() if loss is None else loss
        self.attack = PGDAttack() if attack is None else attack
        self.augment = augment
        self.mode: Mode = mode
        self.alpha = alpha
        for found in {norm.branches for part in self._parts() for norm in _dual_norms(part)}:
            if not set(BRANCHES) <= set(found):
                expected = f"dual norms to have the branches {' and '.join(map(repr, BRANCHES))}"
                remedy = "Convert with these among branches="
                raise ValueError(complaint(_OWNER, expected, repr(found), remedy))
        if len(self._branches()) > 1:
            # The loss of A2S is always on one branch.
            _warn_of_single_norms(model, loss if isinstance(loss, nn.Module) and mode == "DS" else None, mode)

    def forward(self, x1: Tensor, x2: Tensor | None = None, *, generator: torch.Generator | None = None) -> ACLOutput:
        """Attack the views, embed them, and return the loss of the mode and its terms.

        Args:
            x1: first views ``[N, C, H, W]`` in [0, 1], N at least 2; or images for ``augment``.
            x2: second views, row i of the same image as row i of ``x1``; ``None`` calls ``augment``.
            generator: source of the randomness of ``augment`` and ``attack``, by default the global one.

        Raises:
            ValueError: the views differ in shape or are fewer than two, or ``x2`` and ``augment`` are both missing.
            TypeError: a view is not a floating-point tensor.
            RuntimeError: in DS the loss has one memory for both streams, so that each image becomes its own negative.
        """
        source_device(_OWNER, generator)
        source: dict[str, Any] = {} if generator is None else {"generator": generator}
        x1, x2 = self._views(x1, x2, source)
        losses: list[Tensor] = []
        weights: list[float] = []
        terms: dict[str, Tensor] = {}
        for stream in self._streams():
            z1, z2 = self._embed(stream, *self._perturb(stream, x1, x2, source))
            name = _name(stream)
            loss = self._contrast(name, z1, z2)
            terms[f"loss_{name}"] = loss.detach()
            terms[f"alignment_{name}"] = alignment(z1.detach(), z2.detach())
            weights.append(self.alpha if self.mode == "DS" and name == "adv" else 1.0)
            losses.append(weights[-1] * loss)
        return ACLOutput(torch.stack(losses).sum() / sum(weights), terms)

    def extra_repr(self) -> str:
        """Show the settings that are not modules."""
        return f"mode={self.mode!r}, alpha={self.alpha}, attack={self.attack!r}, augment={self.augment!r}"

    def _streams(self) -> tuple[tuple[Branch, Branch], ...]:
        streams = _STREAMS[self.mode]
        return streams if self.mode != "DS" or self.alpha else (("clean", "clean"),)

    def _views(self, x1: Tensor, x2: Tensor | None, source: dict[str, Any]) -> tuple[Tensor, Tensor]:
        if isinstance(x1, (tuple, list)):
            remedy = "Pass batch[0], the images of a batch with labels, or the two views one by one"
            raise TypeError(complaint(_OWNER, "x1 to be a tensor of images", type_name(x1), remedy))
        if x2 is None:
            if self.augment is None:
                remedy = "Pass both views, or build the trainer with augment=ContrastivePairAugment(size)"
                raise ValueError(complaint(_OWNER, "x2", "None and no augment", remedy))
            pair = self.augment(x1, **source)
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                remedy = "Return two batches of views"
                raise ValueError(complaint(_OWNER, "augment to return a pair", type_name(pair), remedy))
            x1, x2 = pair
        if isinstance(x2, Tensor) and x2.dim() == 1 and not x2.is_floating_point():
            remedy = "Leave the labels out, as data.ImageStream(folder) does: pass images alone, or two views of them"
            raise TypeError(complaint(_OWNER, "x2 to be views", f"{x2.dtype} of shape {list(x2.shape)}", remedy))
        remedy = "Pass float images in [0, 1], or uint8 ones to a trainer with augment"
        check_tensor(_OWNER, "x1", x1, remedy=remedy)
        check_tensor(_OWNER, "x2", x2, remedy=remedy)
        first, second = ((list(x.shape), x.dtype, x.device) for x in (x1, x2))
        if first != second:
            remedy = "Pass two views of the same images"
            got = " and ".join(f"{shape} {dtype} on {device}" for shape, dtype, device in (first, second))
            raise ValueError(complaint(_OWNER, "x1 and x2 of one shape, dtype and device", got, remedy))
        if x1.dim() == 0 or len(x1) * distributed.world_size() < 2:
            remedy = "Skip a short last batch with drop_last=True"
            raise ValueError(complaint(_OWNER, "at least 2 images", f"shape {list(x1.shape)}", remedy))
        warn_of_channels_last(self.model, x1, x2)
        return x1, x2

    def _perturb(
        self, stream: tuple[Branch, Branch], x1: Tensor, x2: Tensor, source: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Return the views of a stream, with those on branch ``"adv"`` perturbed."""
        if "adv" not in stream:
            return x1, x2
        with under_attack(*self._parts()):
            if stream == ("adv", "adv"):
                both = torch.cat([x1, x2])
                x1, x2 = self._attacked(
                    lambda x: self._contrast("adv", *self._on("adv", x).chunk(2)), both, source
                ).chunk(2)
            else:
                # The attack differentiates also under inference_mode, where it could not save this tensor.
                with torch.inference_mode(False), torch.no_grad():
                    fixed = self._on("clean", x2.clone())  # a model may change its input in place
                x1 = self._attacked(lambda x: self._contrast("adv", self._on("adv", x), fixed), x1, source)
        return x1, x2

    def _attacked(self, objective: Objective, x: Tensor, source: dict[str, Any]) -> Tensor:
        perturbed = self.attack(objective, x, **source)
        check_tensor(_OWNER, "the result of attack", perturbed, remedy="Return images like its argument")
        if perturbed.shape != x.shape:
            expected, remedy = f"attack to return shape {list(x.shape)}", "Return images like its argument"
            raise ValueError(complaint(_OWNER, expected, f"{list(perturbed.shape)}", remedy))
        return perturbed

    def _contrast(self, branch: Branch, z1: Tensor, z2: Tensor) -> Tensor:
        with self._loss_on(branch):
            loss = self.loss(z1, z2)
        check_tensor(_OWNER, "the result of loss", loss, remedy="Return a scalar tensor")
        if loss.dim() != 0:
            remedy = "Average it over the batch"
            raise ValueError(complaint(_OWNER, "loss to return a scalar", f"shape {list(loss.shape)}", remedy))
        return loss

    @contextmanager
    def _loss_on(self, branch: Branch) -> Iterator[None]:
        """Switch the loss to a branch; in eval mode restore its buffers."""
        if not isinstance(self.loss, nn.Module):
            yield
            return
        several = len(self._streams()) > 1
        with (
            _switched(self.loss, branch),
            nullcontext() if self.loss.training else buffers_kept(self.loss),
            _raise_if_memory_changes(self.loss, self.mode) if several else nullcontext(),
        ):
            yield

    def _embed(self, stream: tuple[Branch, Branch], x1: Tensor, x2: Tensor) -> tuple[Tensor, Tensor]:
        """Return the embeddings of both views; views on one branch share a forward pass and its statistics."""
        if stream[0] == stream[1]:
            z1, z2 = self._on(stream[0], torch.cat([x1, x2])).chunk(2)
            return z1, z2
        return self._on(stream[0], x1), self._on(stream[1], x2)

    def _on(self, branch: Branch, x: Tensor) -> Tensor:
        """Embed ``x`` through one branch, or through a model without branches."""
        with _switched(self.model, branch):
            z: Tensor = self.model(x)
        check_tensor(_OWNER, "the result of model", z, remedy="Return the embeddings [N, D] only")
        return z

    def _branches(self) -> set[Branch]:
        return {branch for stream in self._streams() for branch in stream}

    def _parts(self) -> list[nn.Module]:
        return [self.model, self.loss] if isinstance(self.loss, nn.Module) else [self.model]

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """Parameters without gradients in this mode, under the name that DDP looks up."""
        branches = {self.model: self._branches(), self.loss: {_name(stream) for stream in self._streams()}}
        norms = [(norm, branches[part]) for part in self._parts() for norm in _dual_norms(part)]
        used = {p for norm, names in norms for name in names for p in getattr(norm, name).parameters()}
        idle = {p for norm, _ in norms for p in norm.parameters()} - used
        return [name for name, parameter in self.named_parameters(remove_duplicate=False) if parameter in idle]


def _name(stream: tuple[Branch, Branch]) -> Branch:
    return "adv" if "adv" in stream else "clean"


def _dual_norms(module: nn.Module) -> list[DualNorm]:
    return [part for part in module.modules() if isinstance(part, DualNorm)]


def _switched(module: nn.Module, branch: Branch) -> AbstractContextManager[None]:
    """Return a context in which a module uses one branch, if it has branches."""
    return bn_branch(module, branch) if _dual_norms(module) else nullcontext()


def _warn_of_single_norms(model: nn.Module, loss: nn.Module | None, mode: str) -> None:
    """Warn of norms that clean and perturbed images share, unless the split of the dual ones intends it."""
    dual = _dual_norms(model)
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
    text = complaint(_OWNER, f"dual batch norms for mode {mode!r}", got, remedy)
    warnings.warn(text, UserWarning, stacklevel=3)


def _single_norms(module: nn.Module) -> list[str]:
    parts = _outside_dual_norms(module)
    return [name for name, part in parts if isinstance(part, _BatchNorm) and part.track_running_stats]


@contextmanager
def _raise_if_memory_changes(loss: nn.Module, mode: str) -> Iterator[None]:
    """Raise if the block changes a memory of a loss that all branches share: images become their own negatives.

    A memory is a buffer of two dimensions or more, a row an embedding; running statistics and counters have fewer.
    Versions are compared, not values: nothing waits for the device.
    """
    before = _memories(loss)
    yield
    after = _memories(loss)
    for name in before.keys() | after.keys():
        (buffer, version), (other, now) = (found.get(name, (None, 0)) for found in (before, after))
        if buffer is not other or version != now:
            expected, got = (
                f"loss to have a memory for each stream of mode {mode!r}",
                f"{type_name(loss)} with one, {name}",
            )
            remedy = "Wrap it, adapters.losses.TrainOnlyMemoryBank(loss), so that no image becomes its own negative"
            raise RuntimeError(complaint(_OWNER, expected, got, remedy))


def _memories(loss: nn.Module) -> dict[str, tuple[Tensor, int]]:
    return {
        f"{name}.{key}".lstrip("."): (buffer, 0 if buffer.is_inference() else buffer._version)
        for name, module in _outside_dual_norms(loss)
        for key, buffer in module._buffers.items()
        if buffer is not None and buffer.dim() >= 2
    }


def _outside_dual_norms(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the modules that are not part of a dual norm, with their names."""
    inside = {part for norm in _dual_norms(module) for part in norm.modules()}
    return [(name, part) for name, part in module.named_modules() if part not in inside]
