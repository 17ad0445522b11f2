"""AutoAttack: the standard suite of attacks of the package ``pyautoattack``, with verdicts that can be resumed."""

import importlib
import math
import operator
import os
import re
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..._checks import check_choice, check_int, check_module, check_real, check_shape, check_tensor, complaint
from ..._digest import digest
from ..._progress import ProgressBar, check_progress
from ..._random import preserve_rng_state
from ..._types import NORMS, Norm
from ...engine import Checkpoint, CheckpointMismatchError
from ..inputs import branch_in_use, checked_batches, checked_logits, prepared_for_evaluation, refuse_probabilities
from .measure import Accuracy, finite_verdicts, verdict

_OWNER = "autoattack"
_STOOD, _WRONG = -1, -2
_SLACK = 1e-6  # by which float32 arithmetic of the attacks may leave the ball and the bounds
_SUITES = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}


@dataclass(frozen=True, eq=False)
class AutoAttackResult(Accuracy):
    """Verdicts under AutoAttack; ``accuracy`` is the robust accuracy AA.

    Attributes:
        correct: whether each image is classified correctly with and without every attack, bool ``[N]`` on the CPU.
        clean: whether each image is classified correctly without attack, bool ``[N]``.
        broken_by: the index in ``attacks`` of the attack that changed the verdict of each image, -1 for images that are
            robust and -2 for those that are wrong without an attack, int8 ``[N]``.
        attacks: the attacks that were run, in order, each on the images that no earlier one broke.
        branch: active branch of the dual norms, ``None`` for a network without.

    Example:
        >>> broken_by = torch.tensor([-1, 0, -2, 1, 0], dtype=torch.int8)
        >>> AutoAttackResult(broken_by == -1, broken_by != -2, broken_by, ("apgd-ce", "square"))
        AutoAttackResult(1 of 5, 20.00%; 4 correct without attack; broken by apgd-ce 2, square 1)
    """

    clean: Tensor
    broken_by: Tensor
    attacks: tuple[str, ...]

    def __repr__(self) -> str:
        counts = ", ".join(f"{name} {int((self.broken_by == i).sum())}" for i, name in enumerate(self.attacks))
        robust = f"{int(self.correct.sum())} of {len(self.correct)}, {self.accuracy:.2%}"
        return f"AutoAttackResult({robust}; {int(self.clean.sum())} correct without attack; broken by {counts})"


def autoattack(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    eps: float = 8 / 255,
    norm: Norm = "linf",
    version: str = "standard",
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> AutoAttackResult:
    """Return which images are classified correctly under AutoAttack, run by the package ``pyautoattack``.

    The standard version runs APGD on the cross-entropy, APGD on the targeted DLR loss, targeted FAB and Square, each on
    the images that no earlier one broke. An image counts as broken only if the perturbed image lies in the ball
    and in [0, 1], up to rounding, and a forward pass of this function misclassifies it. With fewer than ten classes the
    targeted attacks try all wrong classes. With three classes APGD uses the untargeted DLR loss, with two no DLR loss.
    In l2 Square fails on images of some sizes, such as 14 pixels: they are padded for the attack, not for the model.

    The model runs in eval mode and float32, also under autocast. As in ``pyautoattack``, the random state is set to
    ``seed`` before each attack on each batch. Model and global random states are restored as in :func:`accuracy`.

    With ``folder``, verdicts are saved after each attack on each batch. The same call resumes an interrupted run with
    the same result, and returns a finished run without running the model. Batches may be added to a finished run. The
    folder may hold other files; it belongs to one set of arguments and one model, known by its weights and ``repr``.
    Reference: Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
    Attacks", ICML 2020.

    Args:
        model: a float32 classifier of images in [0, 1], the normalisation inside, that returns logits ``[N, C]``.
        batches: pairs of images ``[N, C, H, W]``, float32 in [0, 1], and labels ``[N]``, int64 in [0, C). Large ones
            are faster. A resumed run needs the same batches in the same order.
        eps: radius of the ball, at least 0; papers on CIFAR-10 use 8/255 for ``"linf"`` and 0.5 for ``"l2"``.
        norm: ``"linf"`` or ``"l2"``.
        version: ``"standard"``, ``"plus"`` (more attacks and five restarts) or ``"rand"`` (for randomised models,
            with gradients averaged over 20 passes); the budgets are those of ``pyautoattack``.
        seed: of the attacks, at least 0.
        folder: folder for the verdicts; by default they are not saved.
        progress: whether to show a progress bar, if tqdm is installed; ``None`` shows it on terminals only.

    Raises:
        ImportError: ``pyautoattack`` is not installed.
        ValueError: a number is out of range, an unknown norm or version, or as for :func:`accuracy`.
        TypeError: an argument has the wrong type, or a model or images in another precision.
        CheckpointMismatchError: the folder belongs to other arguments, another model or other batches.
        CheckpointCorruptError: a file in the folder is damaged.
        CheckpointBusyError: another process is writing to the folder.
        RuntimeError: an attack failed; the message names the attack, the batch and the reason.

    Example:
        The brighter of two pixels is the class. An attack of radius 1/4 closes gaps below 1/2: one of three.

        >>> images = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2]]).view(3, 2, 1, 1)
        >>> autoattack(torch.nn.Flatten(), [(images, torch.tensor([0, 1, 0]))], eps=0.25)  # doctest: +SKIP
        AutoAttackResult(2 of 3, 66.67%; 3 correct without attack; broken by apgd-ce 1, fab-t 0, square 0)
    """
    check_module(_OWNER, model)
    other = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()} - {torch.float32}
    if other:
        got = " and ".join(sorted(map(str, other)))
        raise TypeError(complaint(_OWNER, "the parameters of model to be float32", got, "Call model.float()"))
    check_choice(_OWNER, "norm", norm, NORMS)
    largest = 1.0 if norm == "linf" else math.inf
    check_real(_OWNER, "eps", eps, low=0, high=largest, remedy="Images have values in [0, 1]: write 8 / 255")
    check_choice(_OWNER, "version", version, tuple(_SUITES))
    check_int(_OWNER, "seed", seed, low=0, remedy="Keep it the same to get the same verdicts")
    check_progress(_OWNER, progress)
    try:
        package = importlib.import_module("pyautoattack")
    except ImportError as error:
        remedy = "Install it with pip install pyautoattack"
        raise ImportError(complaint(_OWNER, "pyautoattack to be installed", str(error), remedy)) from error
    suite = _Suite(package, model, {"eps": float(eps), "norm": norm, "version": version, "seed": int(seed)})
    checkpoint = None if folder is None else Checkpoint(folder)
    pages: list[dict[str, Any]] = []
    with (
        torch.inference_mode(False),
        prepared_for_evaluation(_OWNER, model) as device,
        torch.autocast(device.type, enabled=False),
        nullcontext() if checkpoint is None else checkpoint.locked(),
        ProgressBar(operator.length_hint(batches) or None, unit="batch", shown=progress) as bar,
    ):
        identity = suite.identity() if checkpoint else {}
        saved = _saved(checkpoint, identity) if checkpoint else []
        for i, (x, y, labels) in enumerate(checked_batches(_OWNER, batches, device)):
            check_tensor(_OWNER, "images", x, (torch.float32,), remedy="Convert them with images.float()")
            check_shape(_OWNER, "images", x, "[N, C, H, W]", x.dim() == 4, remedy="Add the missing axes")
            key = digest(x, y) if checkpoint else ""
            page = saved[i] if i < len(saved) else {}
            if page.get("digest", key) != key:
                remedy = "Pass the same batches in the same order, unshuffled, or choose another folder"
                expected = f"batch {i} of the run in {folder}"
                raise CheckpointMismatchError(complaint(_OWNER, expected, "other images or labels", remedy))
            with preserve_rng_state(int(seed)):  # pyautoattack seeds every device
                if not page:
                    logits = checked_logits(_OWNER, model, x, labels)
                    refuse_probabilities(_OWNER, model, x, logits)
                    correct = finite_verdicts(_OWNER, verdict(logits, y)[None])[0]
                    verdicts = torch.where(correct, _STOOD, _WRONG).to(torch.int8).cpu()
                    page = {"digest": key, "classes": logits.shape[1], "verdicts": verdicts, "done": 0}
                pages.append(page)
                for attack in suite.attacks(page["classes"])[page["done"] :]:
                    standing = page["verdicts"] == _STOOD
                    bar.set_postfix_str(f"{attack} on {int(standing.sum())} of {len(y)} images")
                    if standing.any():
                        which = standing.to(device)
                        fooled = suite.fooled(attack, page["classes"], x[which], y[which], f"batch {i}")
                        page["verdicts"][standing] = torch.where(fooled.cpu(), page["done"], _STOOD).to(torch.int8)
                    page["done"] += 1
                    if checkpoint:
                        checkpoint.save(sum(each["done"] for each in pages), {"identity": identity, "pages": pages})
            bar.update()
    broken_by = torch.cat([page["verdicts"] for page in pages])
    attacks = suite.attacks(pages[0]["classes"])
    return AutoAttackResult(broken_by == _STOOD, broken_by != _WRONG, broken_by, attacks, branch=branch_in_use(model))


def _saved(checkpoint: Checkpoint, identity: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the pages of an interrupted or finished run, one a batch; only the last one can be unfinished."""
    found = checkpoint.load()
    state: Any = found[1] if found else {"identity": identity, "pages": []}
    theirs = state.get("identity")
    if set(state) != {"identity", "pages"} or not isinstance(theirs, dict):
        rule, remedy = f"{checkpoint.folder} to hold verdicts", "Choose another folder"
        raise CheckpointMismatchError(complaint(_OWNER, rule, "something else", remedy))
    differing = sorted(key for key in {*theirs, *identity} if theirs.get(key) != identity.get(key))
    if differing:
        rule, remedy = f"the run in {checkpoint.folder}", "Pass the arguments of its first call, or another folder"
        raise CheckpointMismatchError(complaint(_OWNER, rule, f"another {' and '.join(differing)}", remedy))
    return list(state["pages"])


@dataclass(frozen=True)
class _Suite:
    """The attacks of ``pyautoattack`` on one model in eval mode."""

    package: ModuleType
    model: nn.Module
    settings: dict[str, Any]  # eps, norm, version and seed

    def identity(self) -> dict[str, Any]:
        """Return the settings that must match when a run is resumed; modes and device of the model may change."""
        parts = (
            # An address in memory differs from process to process.
            part if isinstance(part, Tensor) else re.sub(r" at 0x[0-9a-f]+", "", repr(part))
            for part in chain([self.model], *self.model.state_dict().items())
        )
        return {**self.settings, "pyautoattack": str(self.package.__version__), "model": digest(*parts)}

    def attacks(self, classes: int) -> tuple[str, ...]:
        """Return the names of the attacks that are defined for this number of classes."""
        names = ("apgd-dlr" if name == "apgd-t" and classes < 4 else name for name in _SUITES[self.settings["version"]])
        return tuple(dict.fromkeys(name for name in names if name != "apgd-dlr" or classes > 2))

    def fooled(self, attack: str, classes: int, x: Tensor, y: Tensor, where: str) -> Tensor:
        """Return which of the correctly classified images ``x`` are misclassified under one attack."""
        try:
            adv = self._perturb(attack, classes, x, y)
        except Exception as error:
            expected = f"{attack} to run on {len(x)} images of {where}"
            remedy = "If a smaller batch does not help, look at the error above, of the model or of pyautoattack"
            raise RuntimeError(complaint(_OWNER, expected, f"{type(error).__name__}: {error}", remedy)) from error
        eps, order = self.settings["eps"], math.inf if self.settings["norm"] == "linf" else 2
        wide, centre = (images.cpu().double().flatten(1) for images in (adv, x))
        inside = torch.linalg.vector_norm(wide - centre, ord=order, dim=1) <= eps + _SLACK * max(1.0, eps)
        inside &= (wide.amin(1) >= -_SLACK) & (wide.amax(1) <= 1 + _SLACK)
        logits = self._logits(torch.where(inside.to(x.device)[:, None, None, None], adv, x))
        return ~finite_verdicts(_OWNER, verdict(logits, y)[None])[0]

    def _perturb(self, attack: str, classes: int, x: Tensor, y: Tensor) -> Tensor:
        height, width = x.shape[2:]
        norm = self.settings["norm"]
        margin = _margin(height, width) if attack == "square" and norm == "l2" else 0
        # A new object for each call: its attacks keep targets, sizes and seeds.
        settings = {**self.settings, "norm": norm.capitalize(), "device": x.device}
        attacks: Any = self.package.AutoAttack(lambda framed: self._logits(framed[..., :height, :width]), **settings)
        attacks.apgd_targeted.n_target_classes = attacks.fab.n_target_classes = min(9, classes - 1)
        if attack == "fab-t":
            attacks.fab.targeted, attacks.fab.n_restarts = True, 1
        attacks.apgd.loss = attack.removeprefix("apgd-")
        runner = {"apgd-t": attacks.apgd_targeted, "fab": attacks.fab, "fab-t": attacks.fab, "square": attacks.square}
        # They take views of gradients, which fails in other memory formats than the contiguous one.
        framed = F.pad(x.contiguous(), (0, margin, 0, margin))
        adv: Tensor = runner.get(attack, attacks.apgd).perturb(framed, y)
        return adv.detach()[..., :height, :width]

    def _logits(self, x: Tensor) -> Tensor:
        """Return logits that can be written into, as Square does; the model's own may be a view of the images."""
        logits: Tensor = self.model(x)
        return logits.to(torch.float32, copy=True)


def _margin(height: int, width: int) -> int:
    """Return the number of rows and columns of padding that Square needs in l2."""
    # It places tiles of a fifth of the height side by side, from an offset that is meant for five tiles: if more fit,
    # as in 14 pixels, the last one exceeds the image. Five tiles fit a multiple of five without an offset.
    tile, offset = height // 5, height % 5 // 2
    fits = tile == 1 or (tile > 1 and all(size % tile >= offset for size in (height, width)))
    return 0 if fits else -height % 5
