"""AutoAttack: the standard suite of four attacks, with a verdict for each image that can be resumed."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sized
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..._checks import (
    check_choice,
    check_int,
    check_iterable,
    check_module,
    check_real,
    check_tensor,
    complaint,
)
from ..._progress import ProgressBar, check_progress
from ..._random import kept
from ..._types import NORMS, Norm
from ...engine import Checkpoint
from ..inputs import branch_in_use, checked_batches, checked_logits, prepared_for_evaluation, refuse_probabilities
from ._pyautoattack import SUITES, Suite, misclassified, pyautoattack
from ._resumable import Ledger, Page, digest_of_model, locked
from .measure import Accuracy

_OWNER = "autoattack"
_STOOD, _WRONG = -1, -2


@dataclass(frozen=True, eq=False)
class AutoAttackResult(Accuracy):
    """What AutoAttack found; ``accuracy`` is the robust accuracy AA.

    Attributes:
        correct: whether each image is classified correctly with and without every attack, bool ``[N]`` on the CPU, in
            the order of the batches.
        clean: whether each image is classified correctly as it is, bool ``[N]``.
        broken_by: the index in ``attacks`` of the attack that changed the verdict of each image, -1 for images that are
            robust and -2 for those that are wrong without an attack, int8 ``[N]``.
        attacks: the attacks that were run, in order; each saw the images that had stood all before it.
        branch: the one that a network with dual norms was on; ``None`` for every other network.

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
    """Return which images a classifier gets right under AutoAttack, run by the package ``pyautoattack``.

    The standard version runs four attacks one after the other, each on the images that have stood all before it: APGD
    on the cross-entropy, APGD on the targeted DLR loss, targeted FAB and Square. An image counts as broken only if the
    perturbed image lies in the ball and in [0, 1], up to rounding, and this function's own forward pass misclassifies
    it. With fewer than ten classes the targeted attacks aim at all wrong ones. DLR compares three logits and its
    targeted form four: with three classes APGD on the untargeted DLR loss stands in for the targeted one, and with two
    classes it is left out; ``attacks`` of the result says what was run. Square fails in l2 on images of some sizes,
    such as 14 pixels; it gets those with a margin of a few pixels, which the model does not see.

    The model is in eval mode and everything in float32, whatever autocast surrounds the call. Before each attack on
    each batch the random state is set to ``seed``, as ``pyautoattack`` does it: verdicts depend on the batch and on
    nothing that was run before. As :func:`accuracy`, the call leaves no trace, and neither on Python's and NumPy's
    random state.

    With ``folder``, what is known is on the disk after each attack on each batch. Called again, the function goes on
    where it ended, however it ended, and returns what one call would have returned; a finished run is returned without
    running the model. More batches may follow those of a finished run. The folder may hold other files, and belongs to
    one model, told by its weights and by its ``repr``, and one set of arguments.

    Args:
        model: a float32 classifier of images in [0, 1], the normalisation inside, that returns logits ``[N, C]``.
        batches: pairs of images ``[N, C, H, W]``, float32 in [0, 1], and labels ``[N]``, int64 in [0, C). Large ones
            are faster; a resumed run needs the same in the same order.
        eps: radius of the ball, at least 0, in the units of the images. Papers on CIFAR-10 use 8/255 for ``"linf"`` and
            0.5 for ``"l2"``.
        norm: ``"linf"`` or ``"l2"``.
        version: ``"standard"``, ``"plus"`` (more attacks and five restarts) or ``"rand"`` (for randomised models,
            gradients averaged over 20 passes), with the budgets of ``pyautoattack``.
        seed: of the attacks, at least 0.
        folder: where to keep the verdicts, ``None`` for nowhere.
        progress: whether to show a progress bar over the batches, where tqdm is installed; ``None`` shows it on
            terminals only.

    Returns:
        The verdicts, with their mean as ``accuracy``.

    Raises:
        ImportError: ``pyautoattack`` is not installed.
        ValueError: a number out of its range, an unknown norm or version, or as for :func:`accuracy`.
        TypeError: an argument of the wrong kind, or a model or images in another precision.
        CheckpointMismatchError: the folder belongs to other arguments, another model or other batches.
        CheckpointCorruptError: what is in the folder is damaged.
        CheckpointBusyError: another process is writing to the folder.
        RuntimeError: an attack failed; the message says which one, on which batch and why.

    Example:
        The brighter of two pixels is the class. An attack of radius 1/4 closes gaps below 1/2: one of three.

        >>> images = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2]]).view(3, 2, 1, 1)
        >>> autoattack(torch.nn.Flatten(), [(images, torch.tensor([0, 1, 0]))], eps=0.25)  # doctest: +SKIP
        AutoAttackResult(2 of 3, 66.67%; 3 correct without attack; broken by apgd-ce 1, fab-t 0, square 0)

    References:
        Croce and Hein, "Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse Parameter-free
        Attacks", ICML 2020.
    """
    check_module(_OWNER, model)
    _check_precision(model)
    check_choice(_OWNER, "norm", norm, NORMS)
    largest = 1.0 if norm == "linf" else math.inf
    check_real(_OWNER, "eps", eps, low=0, high=largest, remedy="Images have values in [0, 1]: write 8 / 255")
    check_choice(_OWNER, "version", version, tuple(SUITES))
    check_int(_OWNER, "seed", seed, low=0, remedy="Keep it the same to get the same verdicts")
    check_progress(_OWNER, progress)
    check_iterable(_OWNER, "batches", batches, remedy="Pass a DataLoader, [(images, labels)] or ImageSet.batches(size)")
    package = pyautoattack()
    suite = Suite(package, model, float(eps), norm, version, int(seed))
    checkpoint = None if folder is None else Checkpoint(folder)
    settings = {"eps": suite.eps, "norm": norm, "version": version, "seed": suite.seed}
    total = len(batches) if isinstance(batches, Sized) else None
    pages: list[Page] = []
    with (
        torch.inference_mode(False),
        prepared_for_evaluation(_OWNER, model) as device,
        torch.autocast(device.type, enabled=False),
        locked(checkpoint),
        ProgressBar(total, unit="batch", shown=progress) as bar,
    ):
        identity = {**settings, "pyautoattack": str(package.__version__), "model": digest_of_model(model)}
        ledger = Ledger(_OWNER, checkpoint, identity)
        for i, (x, y, labels) in enumerate(checked_batches(_OWNER, batches, device)):
            _check_images(x)
            digest = ledger.digest(x, y)
            page = ledger.page(i, digest)
            with kept():  # pyautoattack seeds every device
                if page is None:
                    torch.manual_seed(suite.seed)
                    logits = checked_logits(_OWNER, model, x, labels)
                    refuse_probabilities(_OWNER, model, x, logits)
                    verdicts = torch.where(misclassified(logits, y), _WRONG, _STOOD)
                    page = Page(digest, logits.shape[1], verdicts.to(torch.int8).cpu())
                for attack in suite.attacks(page.classes)[page.done :]:
                    standing = page.verdicts == _STOOD
                    bar.set_postfix_str(f"{attack} on {int(standing.sum())} of {len(y)} images")
                    if standing.any():
                        which = standing.to(device)
                        fooled = suite.fooled(attack, page.classes, x[which], y[which], f"batch {i}")
                        page.verdicts[standing] = torch.where(fooled.cpu(), page.done, _STOOD).to(torch.int8)
                    page.done += 1
                    ledger.write(i, page)
            pages.append(page)
            bar.update()
    broken_by = torch.cat([page.verdicts for page in pages])
    attacks = suite.attacks(pages[0].classes)
    return AutoAttackResult(broken_by == _STOOD, broken_by != _WRONG, broken_by, attacks, branch=branch_in_use(model))


def _check_images(x: Tensor) -> None:
    check_tensor(_OWNER, "images", x, (torch.float32,), remedy="Convert them with images.float()")
    if x.dim() != 4:
        raise ValueError(complaint(_OWNER, "images of shape [N, C, H, W]", f"{list(x.shape)}", "Add the missing axes"))


def _check_precision(model: nn.Module) -> None:
    other = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()} - {torch.float32}
    if other:
        got = " and ".join(sorted(map(str, other)))
        remedy = "Call model.float(); the attacks need its precision and know no other"
        raise TypeError(complaint(_OWNER, "the parameters of model to be float32", got, remedy))
