"""Run a protocol: make a classifier of an encoder, select it without the test images, and test it once."""

from __future__ import annotations

import copy
import os
from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..._checks import check_copyable, check_int, check_module, check_path, check_tensor, complaint, type_name
from ..._memory_format import choose_memory_format
from ..._random import kept
from ...augment import CropFlip
from ...data import ImageSet, labelled_subset
from ...engine import fit, steps_per_epoch
from ...losses import SemiSupervisedLoss
from ...norm import DualNorm
from ...optim import MultiStep
from ...strategies.semi_supervised import SemiSupervisedTrainer
from ...strategies.supervised import AdversarialTrainer, StandardTrainer
from ...strategies.trades import TRADESTrainer
from ...surgery import export_branch
from ..accuracy.measure import Accuracy, accuracy, robust_accuracy
from ..inputs import device_of, prepared_for_evaluation
from ._splits import check_splits
from .definition import Protocol
from .frozen import fingerprint, unchanged

_OWNER = "run_protocol"
_BATCH = 500  # images at a time where nothing is trained


@dataclass(frozen=True, eq=False)
class ProtocolResult:
    """What a protocol found.

    Attributes:
        protocol: what was run.
        model: the classifier, a sequence of ``encoder`` and ``head``, in eval mode.
        ta: verdicts on the test images as they are; ``ta.accuracy`` is the standard accuracy.
        ra: verdicts on them under ``protocol.test_attack``; ``ra.accuracy`` is the robust accuracy.
        history: one row an epoch, as :func:`advcontrast.engine.fit` returns them; accuracies are in [0, 1].
        epoch: the epoch that was tested, counted from 1.
    """

    protocol: Protocol
    model: nn.Module
    ta: Accuracy
    ra: Accuracy
    history: list[dict[str, float]]
    epoch: int

    def __repr__(self) -> str:
        name = f"{self.protocol.preset} {self.protocol.kind}"
        return f"ProtocolResult({name}: TA {self.ta.accuracy:.2%}, RA {self.ra.accuracy:.2%}, epoch {self.epoch})"


def run_protocol(
    encoder: nn.Module,
    protocol: Protocol,
    train: ImageSet,
    validation: ImageSet | None,
    test: ImageSet,
    *,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
) -> ProtocolResult:
    """Make a classifier of an encoder, and say how accurate and how robust it is.

    A copy of the encoder, with the norms of ``protocol.branch`` if it is dual, gets a linear head of zeros and is
    trained. The validation images select the epoch; the test images are looked at once, at the end. What cannot happen:

    - **Selecting on the test split.** Images are compared by their content. If more than 1 % of a split, or of the
      images it is held against, are the same, be it test images among those for validation or training, or training
      images among those for validation, nothing is run. (Below that are the duplicates that data sets have.)
    - **A frozen encoder that is not.** It stays in eval mode, and
      :func:`~advcontrast.evaluation.protocols.unchanged` compares it before and after.
    - **Traces.** The caller's encoder is not touched, nor is the global random state.

    Args:
        encoder: images ``[N, C, H, W]`` in [0, 1] in, features ``[N, D]`` out, with single or dual norms.
        protocol: what to do, for example ``protocol("robustssl", "SLF")``.
        train: images to train on. Of these ``protocol.labels`` says how many show their label.
        validation: images to select an epoch with; ``None`` for a protocol that takes the last one.
        test: images to report on.
        seed: of the choice of labels, the order of the images, and all noise.
        folder: where to keep checkpoints, so that an interrupted run goes on when it is started again; see
            :func:`advcontrast.engine.fit`. Another encoder or other images for validation are refused.

    Returns:
        The classifier and its verdicts.

    Raises:
        ValueError: images of one split are in another; the splits differ in classes or size of the images; there is no
            validation though the protocol selects with it; or the encoder does not return ``[N, D]``.
        TypeError: an argument of the wrong kind.
        RuntimeError: a frozen encoder changed, or the training diverged; or the encoder cannot be copied, as in
            :func:`advcontrast.export_branch`.
        CheckpointError: the folder holds another run.

    Example:
        Black and white images, on which even the pixels are good features.

        >>> from dataclasses import replace
        >>> from advcontrast.data import ImageSet
        >>> from advcontrast.evaluation.protocols.presets import protocol
        >>> from advcontrast.evaluation.protocols.run import run_protocol
        >>> def images(*shades):
        ...     x = torch.tensor(shades, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
        ...     return ImageSet(x, (x[:, 0, 0, 0] > 127).long(), ("black", "white"))
        >>> probe = replace(protocol("robustssl", "SLF"), epochs=30, milestones=(20,), lr=0.1)
        >>> run_protocol(torch.nn.Flatten(), probe, images(0, 1, 254, 255), None, images(2, 3, 252, 253))
        ProtocolResult(robustssl SLF: TA 100.00%, RA 100.00%, epoch 30)
    """
    _check(encoder, protocol, train, validation, test, seed, folder)
    device = device_of(encoder)
    train, test = train.to(device), test.to(device)
    validation = None if validation is None else validation.to(device)
    where = None if folder is None else Path(folder)
    with kept(seed):
        model, history = _classifier(encoder, protocol, train, validation, seed, where)
    tested = history[-1] if protocol.select == "last" else max(history, key=lambda row: row[protocol.select])
    ta = accuracy(model, test.batches(_BATCH))
    ra = robust_accuracy(model, test.batches(_BATCH), protocol.test_attack)
    return ProtocolResult(protocol, model, ta, ra, history, int(tested["epoch"]))


def _classifier(
    encoder: nn.Module,
    protocol: Protocol,
    train: ImageSet,
    validation: ImageSet | None,
    seed: int,
    folder: Path | None,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Return the classifier of the epoch that a protocol selects, and the history of its training."""
    dual = any(isinstance(module, DualNorm) for module in encoder.modules())
    own = export_branch(encoder, protocol.branch) if dual else copy.deepcopy(encoder)
    own.requires_grad_(True)
    few = train.x[:16].float() / 255
    model = nn.Sequential(OrderedDict(encoder=own, head=_zero_head(own, few, len(train.classes))))
    chosen = labelled_subset(train.y, protocol.labels, seed=seed)
    data: Sequence[Tensor]
    groups = None
    if protocol.teacher is None:
        labelled = train.subset(chosen)
        data = labelled.x, labelled.y
    else:
        inner = None if folder is None else folder / "teacher"
        teacher, _ = _classifier(encoder, protocol.teacher, train.subset(chosen), validation, seed, inner)
        with prepared_for_evaluation(_OWNER, teacher):
            logits = torch.cat([teacher(x) for x, _ in train.batches(_BATCH)])
        unlabelled = torch.ones(len(train), dtype=torch.bool, device=train.y.device).index_fill(0, chosen, False)
        data = train.x, torch.where(unlabelled, -1, train.y), logits
        groups = unlabelled.long().cpu()

    learner: Any = _learner(protocol, model, train.x.shape[-1])
    # A run that is resumed must be that of the same encoder; this becomes part of what the loop compares.
    learner.began_with = fingerprint(own), validation and validation.fingerprint()
    # The loop does the same; here it comes before the features are compared, which depend on it in the last bits.
    choose_memory_format(model)
    wanted = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    sgd = torch.optim.SGD(
        wanted,
        protocol.lr,
        momentum=protocol.momentum,
        nesterov=protocol.nesterov,
        weight_decay=protocol.weight_decay,
    )
    steps = steps_per_epoch(len(data[0]), protocol.batch_size)
    with unchanged(own, few) if protocol.frozen else nullcontext():
        history = fit(
            learner,
            data,
            epochs=protocol.epochs,
            batch_size=protocol.batch_size,
            optimizer=sgd,
            schedule=MultiStep(tuple(epoch * steps for epoch in protocol.milestones)),
            seed=seed,
            groups=groups,
            evaluate=None if validation is None else _validator(model, protocol, validation),
            select=None if protocol.select == "last" else protocol.select,
            folder=folder,
        )
    return model.eval(), history


def _zero_head(encoder: nn.Module, images: Tensor, classes: int) -> nn.Linear:
    """Return a linear layer of zeros for what an encoder makes of images."""
    with prepared_for_evaluation(_OWNER, encoder):
        features = encoder(images)
    remedy = "Pool the feature maps, and leave out projection head and classifier"
    check_tensor(_OWNER, "the output of the encoder", features, remedy=remedy)
    if features.dim() != 2 or len(features) != len(images):
        expected = f"the output of the encoder of shape [{len(images)}, D]"
        raise ValueError(complaint(_OWNER, expected, f"{list(features.shape)}", remedy))
    head = nn.Linear(features.shape[1], classes, device=features.device, dtype=features.dtype)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    return head


def _learner(protocol: Protocol, model: nn.Module, size: int) -> nn.Module:
    """Return what trains a classifier of images of so many pixels a side."""
    augment = CropFlip(size // 8) if protocol.augment == "crop-flip" else CropFlip(0, flip=0.0)
    frozen, attack = protocol.frozen, protocol.attack
    if protocol.loss == "ce":
        return StandardTrainer(model, augment=augment, frozen=frozen)
    if protocol.loss == "adversarial-ce":
        return AdversarialTrainer(model, attack=attack, augment=augment, frozen=frozen)
    beta: Any = protocol.beta
    if protocol.loss == "trades":
        return TRADESTrainer(model, attack=attack, augment=augment, beta=beta, frozen=frozen)
    alpha: Any = protocol.alpha
    temperature: Any = protocol.temperature
    loss = SemiSupervisedLoss(alpha=alpha, temperature=temperature, beta=beta)
    return SemiSupervisedTrainer(model, loss=loss, attack=attack, augment=augment)


def _validator(model: nn.Module, protocol: Protocol, validation: ImageSet) -> Callable[[int], dict[str, float]]:
    """Return what measures, after an epoch, the accuracies that a protocol selects by."""

    def evaluate(_: int) -> dict[str, float]:
        found = {"val_ta": accuracy(model, validation.batches(_BATCH)).accuracy}
        if protocol.select == "val_ra":
            robust = robust_accuracy(model, validation.batches(_BATCH), protocol.test_attack)
            found["val_ra"] = robust.accuracy
        return found

    return evaluate


def _check(
    encoder: nn.Module,
    protocol: Protocol,
    train: ImageSet,
    validation: ImageSet | None,
    test: ImageSet,
    seed: int,
    folder: Any,
) -> None:
    """Refuse whatever cannot be run, and whatever would not be worth running."""
    check_module(_OWNER, encoder)
    check_copyable(_OWNER, encoder)
    if not isinstance(protocol, Protocol):
        remedy = 'Pass protocol("robustssl", "SLF")'
        raise TypeError(complaint(_OWNER, "protocol to be a Protocol", type_name(protocol), remedy))
    check_int(_OWNER, "seed", seed, low=0, remedy="Pass any number from 0")
    if folder is not None:
        check_path(_OWNER, "folder", folder, remedy="Pass a folder, or None to keep nothing")
    check_splits(_OWNER, train, validation, test)
    each = [protocol] if protocol.teacher is None else [protocol, protocol.teacher]
    selecting = [part.select for part in each if part.select != "last"]
    if validation is None and selecting:
        remedy = "Split the training images, for example with train_validation_split"
        raise ValueError(complaint(_OWNER, f"validation images to select {selecting[0]} on", "None", remedy))
