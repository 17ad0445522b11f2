"""Run a protocol: train a classifier on an encoder, select an epoch without the test images, and test it once."""

import copy
import os
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ... import distributed
from ..._checks import check_copyable, check_int, check_module, check_path, check_tensor, check_type, complaint
from ..._digest import digest
from ..._memory_format import choose_memory_format
from ..._random import preserve_rng_state
from ...augment import CropFlip
from ...data import ImageSet, labelled_subset
from ...engine import fit, steps_per_epoch
from ...losses import SemiSupervisedLoss
from ...optim import MultiStep
from ...strategies import AdversarialTrainer, SemiSupervisedTrainer, StandardTrainer, TRADESTrainer
from ...surgery import export_branch
from ..accuracy.measure import Accuracy, accuracy, robust_accuracy
from ..inputs import branch_in_use, device_of, prepared_for_evaluation
from .definition import Protocol

_OWNER = "run_protocol"
_BATCH = 500  # images at a time without training
_DUPLICATES = 0.01  # share of images that splits may have in common; some test images of CIFAR-10 are training images


@dataclass(frozen=True, eq=False)
class ProtocolResult:
    """Result of a protocol.

    Attributes:
        protocol: the protocol.
        model: the classifier, a sequence of ``encoder`` and ``head``, in eval mode.
        ta: verdicts on the clean test images; ``ta.accuracy`` is the standard accuracy.
        ra: verdicts on them under ``protocol.test_attack``; ``ra.accuracy`` is the robust accuracy.
        history: one row per epoch, as :func:`advcontrast.engine.fit` returns them; accuracies are in [0, 1].
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
    learner: Callable[[nn.Module], nn.Module] | None = None,
    evaluate_every: int = 1,
    **options: Any,
) -> ProtocolResult:
    """Train a classifier on an encoder, and measure its standard and robust accuracy.

    A copy of the encoder, with the norms of ``protocol.branch`` if it is dual, is trained with a linear head that
    starts at zero, or as ``protocol.probe`` trains it. The validation images select the epoch; the test images are used
    once, at the end. The encoder that is passed and the global random state do not change. Selection on the test split
    is excluded: the call raises if more than 1 % of the images of any of the three splits are also in another one (data
    sets have some duplicates). So are changes of a frozen encoder: it stays in eval mode, and
    :func:`~advcontrast.evaluation.protocols.unchanged` compares it before and after.

    Args:
        encoder: maps images ``[N, C, H, W]`` in [0, 1] to features ``[N, D]``, with single or dual norms.
        protocol: the protocol, for example ``protocol("robustssl", "SLF")``.
        train: training images, of which a fraction ``protocol.labels`` is used with labels.
        validation: images to select an epoch with; ``None`` for a protocol that takes the last one.
        test: test images.
        seed: seed of the choice of labels, the order of the images, and all noise.
        folder: folder of checkpoints, from which an interrupted run is resumed; see :func:`advcontrast.engine.fit`.
            A folder of another encoder or of other validation images raises an error.
        learner: ``learner(model)`` returns the learner of the classifier, for another method under the same protocol;
            by default the trainer of ``protocol.loss``. It is called with the same tensors. A teacher has its own loss.
        evaluate_every: epochs between validations; the first and the last epoch have one too.
        **options: ``amp``, ``compile``, ``save_every``, ``tensorboard`` and ``progress`` of ``fit``.

    Raises:
        ValueError: images of one split are in another; the splits differ in classes or image size; ``validation`` is
            ``None`` though the protocol selects with it; or the encoder does not return ``[N, D]``.
        TypeError: an argument has the wrong type.
        RuntimeError: a frozen encoder changed, the training diverged, or the encoder cannot be copied.
        CheckpointError: the folder holds another run.

    Example:
        Black and white images, whose pixels are good features.

        >>> from dataclasses import replace
        >>> from advcontrast.data import ImageSet
        >>> from advcontrast.evaluation import protocol, run_protocol
        >>> def images(*shades):
        ...     x = torch.tensor(shades, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
        ...     return ImageSet(x, (x[:, 0, 0, 0] > 127).long(), ("black", "white"))
        >>> probe = replace(protocol("robustssl", "SLF"), epochs=30, milestones=(20,), lr=0.1)
        >>> run_protocol(torch.nn.Flatten(), probe, images(0, 1, 254, 255), None, images(2, 3, 252, 253))
        ProtocolResult(robustssl SLF: TA 100.00%, RA 100.00%, epoch 30)
    """
    check_module(_OWNER, encoder)
    check_copyable(_OWNER, encoder)
    check_type(_OWNER, "protocol", protocol, Protocol, remedy='Pass protocol("robustssl", "SLF")')
    check_int(_OWNER, "seed", seed, low=0, remedy="Pass any number from 0")
    check_int(_OWNER, "evaluate_every", evaluate_every, low=1, remedy="1 validates after each epoch")
    if folder is not None:
        folder = check_path(_OWNER, "folder", folder, remedy="Pass a folder, or None to keep nothing")
    _check_splits(protocol, train, validation, test)
    device = device_of(encoder)
    train, test = train.to(device), test.to(device)
    validation = None if validation is None else validation.to(device)
    options |= {"seed": seed, "folder": folder}
    with preserve_rng_state((seed + 1_000_003 * distributed.rank()) % 2**63):  # each process has noise of its own
        model, history = _train(encoder, protocol, train, validation, learner, evaluate_every, options)
    select = protocol.select
    tested = history[-1] if select == "last" else max((r for r in history if select in r), key=lambda r: r[select])
    ta = accuracy(model, test.batches(_BATCH))
    ra = robust_accuracy(model, test.batches(_BATCH), protocol.test_attack)
    return ProtocolResult(protocol, model, ta, ra, history, int(tested["epoch"]))


@contextmanager
def unchanged(encoder: nn.Module, images: Tensor) -> Iterator[None]:
    """Raise at the end of the block unless an encoder is bit-identical to before.

    Parameters, all buffers, and the features of ``images``, a batch on the device of the encoder, in eval mode (one
    tensor) are compared. Memory format and device must not change, as sums are then rounded differently.

    Raises:
        RuntimeError: at the end of the block, if something differs; the message lists the differences.
        TypeError: an argument has the wrong type.

    Example:
        >>> encoder = torch.nn.BatchNorm2d(3)
        >>> with unchanged(encoder, torch.rand(2, 3, 4, 4)):
        ...     _ = encoder.train()(torch.rand(8, 3, 4, 4))
        Traceback (most recent call last):
        RuntimeError: unchanged: expected a frozen encoder to be unchanged, got 4 changed: buffer running_mean, ...
    """
    check_module("unchanged", encoder)
    check_tensor("unchanged", "images", images, remedy="Pass a batch that the encoder takes")
    before = _digests(encoder) | {"features": _features(encoder, images)}
    yield
    after = _digests(encoder) | {"features": _features(encoder, images)}
    differing = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if differing:
        got = f"{len(differing)} changed: {', '.join(differing[:5])}{', ...' * (len(differing) > 5)}"
        remedy = "Look for a module that changes in eval mode, or that leaves eval mode"
        raise RuntimeError(complaint("unchanged", "a frozen encoder to be unchanged", got, remedy))


def _train(
    encoder: nn.Module,
    protocol: Protocol,
    train: ImageSet,
    validation: ImageSet | None,
    make_learner: Callable[[nn.Module], nn.Module] | None,
    evaluate_every: int,
    options: dict[str, Any],
) -> tuple[nn.Module, list[dict[str, float]]]:
    """Return the classifier of the epoch that a protocol selects, and the history of its training."""
    own = export_branch(encoder, protocol.branch) if branch_in_use(encoder) else copy.deepcopy(encoder)
    own.requires_grad_(True)
    probe = train.x[:16].float() / 255
    model = nn.Sequential(OrderedDict(encoder=own, head=_zero_head(own, probe, len(train.classes))))
    chosen = labelled_subset(train.y, protocol.labels, seed=options["seed"])
    labelled = train.subset(chosen)
    data: Sequence[Tensor] = (labelled.x, labelled.y)
    groups = None
    if protocol.probe is not None:
        inner = options | {"folder": options["folder"] and options["folder"] / "probe"}
        probe_model, _ = _train(encoder, protocol.probe, labelled, validation, None, evaluate_every, inner)
        model.get_submodule("head").load_state_dict(probe_model.get_submodule("head").state_dict())
    if protocol.teacher is not None:
        inner = options | {"folder": options["folder"] and options["folder"] / "teacher"}
        teacher, _ = _train(encoder, protocol.teacher, labelled, validation, None, evaluate_every, inner)
        with prepared_for_evaluation(_OWNER, teacher):
            logits = torch.cat([teacher(x) for x, _ in train.batches(_BATCH)])
        unlabelled = torch.ones(len(train), dtype=torch.bool, device=train.y.device).index_fill(0, chosen, False)
        data = train.x, torch.where(unlabelled, -1, train.y), logits
        groups = unlabelled.long().cpu()

    learner = _learner(protocol, model, train.x.shape[-1]) if make_learner is None else make_learner(model)
    # The loop compares the attributes of the learner when it resumes a run: raise for another encoder.
    state = digest(*(f"{name} {value}\n" for name, value in _digests(own).items()))[:16]
    learner.began_with = state, validation and validation.fingerprint()
    # Features depend on the memory format in the last bits: set that of the training loop before they are compared.
    choose_memory_format(model)
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    settings = {name: getattr(protocol, name) for name in ("lr", "momentum", "nesterov", "weight_decay")}
    steps = steps_per_epoch(len(data[0]), protocol.batch_size)

    def evaluate(epoch: int) -> dict[str, float]:
        if validation is None or (epoch not in (1, protocol.epochs) and epoch % evaluate_every):
            return {}
        found = {"val_ta": accuracy(model, validation.batches(_BATCH)).accuracy}
        if protocol.select == "val_ra":
            found["val_ra"] = robust_accuracy(model, validation.batches(_BATCH), protocol.test_attack).accuracy
        return found

    with unchanged(own, probe) if protocol.frozen else nullcontext():
        history = fit(
            learner,
            data,
            epochs=protocol.epochs,
            batch_size=protocol.batch_size,
            optimizer=torch.optim.SGD(trained, **settings),
            schedule=MultiStep(tuple(epoch * steps for epoch in protocol.milestones)),
            groups=groups,
            evaluate=evaluate,
            select=None if protocol.select == "last" else protocol.select,
            **options,
        )
    return model.eval(), history


def _zero_head(encoder: nn.Module, images: Tensor, classes: int) -> nn.Linear:
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


def _learner(protocol: Any, model: nn.Module, size: int) -> Any:
    """Return the learner of a protocol, for images of ``size`` pixels a side."""
    augment = CropFlip(size // 8) if protocol.augment == "crop-flip" else CropFlip(0, flip=0.0)
    settings = {"augment": augment} if protocol.attack is None else {"augment": augment, "attack": protocol.attack}
    if protocol.loss == "semi":
        loss = SemiSupervisedLoss(alpha=protocol.alpha, temperature=protocol.temperature, beta=protocol.beta)
        return SemiSupervisedTrainer(model, loss=loss, **settings)
    if protocol.loss == "trades":
        return TRADESTrainer(model, beta=protocol.beta, frozen=protocol.frozen, **settings)
    trainer = StandardTrainer if protocol.loss == "ce" else AdversarialTrainer
    return trainer(model, frozen=protocol.frozen, **settings)


def _check_splits(protocol: Protocol, train: ImageSet, validation: ImageSet | None, test: ImageSet) -> None:
    """Require splits of one data set that share few images, and one for validation if a stage selects an epoch."""
    splits = {"train": train, "test": test} | ({} if validation is None else {"validation": validation})
    for name, split in splits.items():
        check_type(_OWNER, name, split, ImageSet, remedy="Pass what advcontrast.data reads")
        facts = {"classes": (train.classes, split.classes), "shape [C, H, W]": (train.x.shape[1:], split.x.shape[1:])}
        for rule, (one, other) in facts.items():
            if one != other:
                got = f"{list(one)} in train and {list(other)} in {name}"
                raise ValueError(complaint(_OWNER, f"splits with the same {rule}", got, "Pass splits of one data set"))
    remedy = "Split the training images, for example with train_validation_split"
    digests = {name: [digest(image) for image in split.x.cpu()] for name, split in splits.items()}
    for name, against in (("validation", "test"), ("train", "test"), ("validation", "train")):
        part, whole = digests.get(name, []), digests[against]
        mine, theirs = set(part), set(whole)
        shared, of_other = sum(image in theirs for image in part), sum(image in mine for image in whole)
        # Counted on both sides: a few of many test images may be all validation images.
        if shared > _DUPLICATES * len(part) or of_other > _DUPLICATES * len(whole):
            got = f"{shared} of {len(part)} that are, {of_other} of the {len(whole)} of {against}"
            raise ValueError(complaint(_OWNER, f"{name} images that are not in {against}", got, remedy))
    stages = protocol, protocol.teacher, protocol.probe
    selecting = [stage.select for stage in stages if stage is not None and stage.select != "last"]
    if validation is None and selecting:
        raise ValueError(complaint(_OWNER, f"validation images to select {selecting[0]} on", "None", remedy))


def _digests(model: nn.Module) -> dict[str, str]:
    named = {"parameter": model.named_parameters(), "buffer": model.named_buffers()}
    return {f"{kind} {name}": digest(tensor) for kind, tensors in named.items() for name, tensor in tensors}


def _features(encoder: nn.Module, images: Tensor) -> str:
    # With a fixed seed: drawing random numbers in eval mode is not a change of the encoder.
    with prepared_for_evaluation("unchanged", encoder), preserve_rng_state(0):
        features = encoder(images)
    check_tensor("unchanged", "the output of the encoder", features, remedy="Return the features as one tensor")
    return digest(features)
