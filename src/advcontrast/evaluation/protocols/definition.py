"""Evaluation protocols of pre-trained encoders, as data."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from ..._checks import check_bool, check_choice, check_int, check_real, check_type, complaint
from ..._types import Branch
from ...attacks import PGDAttack
from ...functional.semi_supervised import check_settings
from ...optim import MultiStep

Kind = Literal["SLF", "ALF", "AFF", "SFF", "semi", "LP-AFT"]
Loss = Literal["ce", "adversarial-ce", "trades", "semi"]
Augment = Literal["crop-flip", "none"]
Select = Literal["val_ra", "val_ta", "last"]

_OWNER = "Protocol"
# For each kind, whether the encoder is frozen, and the losses to choose from.
_KINDS: dict[Kind, tuple[bool, tuple[Loss, ...]]] = {
    "SLF": (True, ("ce",)),
    "ALF": (True, ("adversarial-ce", "trades")),
    "AFF": (False, ("adversarial-ce", "trades")),
    "SFF": (False, ("ce",)),
    "semi": (False, ("semi",)),
    "LP-AFT": (False, ("adversarial-ce", "trades")),
}
# Settings of single losses; with the other losses they must be None.
_SETTINGS: dict[Loss, tuple[str, ...]] = {
    "ce": (),
    "adversarial-ce": ("attack_steps",),
    "trades": ("attack_steps", "beta"),
    "semi": ("attack_steps", "beta", "alpha", "temperature", "teacher"),
}


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """Settings for training and testing a classifier on an encoder, with their source.

    A protocol is immutable: ``dataclasses.replace(protocol, epochs=2, milestones=(1,))`` returns a changed copy.
    ``dataclasses.asdict(protocol)`` is ready for JSON. :func:`run_protocol` runs it.

    Args:
        preset: name of the set of protocols.
        kind: ``"SLF"`` and ``"ALF"``, a linear head on a frozen encoder, standard and adversarial; ``"SFF"`` and
            ``"AFF"``, fine-tuning of all weights, standard and adversarial; ``"semi"``, the same with few labels and a
            teacher; ``"LP-AFT"``, adversarial fine-tuning that starts with a trained head.
        source: source of the numbers.
        notes: differences from the source, and choices that it leaves open.
        branch: branch of a dual encoder.
        frozen: whether the encoder is frozen; true for SLF and ALF.
        loss: training loss: ``"ce"``, cross-entropy on clean images; ``"adversarial-ce"``, on attacked ones;
            ``"trades"``; or ``"semi"``, equation 3 of ACL.
        epochs: passes over the images with labels, or over all of them with the loss ``"semi"``.
        batch_size: images per step.
        lr: learning rate of SGD.
        momentum: momentum of SGD, in [0, 1).
        nesterov: whether SGD uses Nesterov momentum.
        weight_decay: weight decay of SGD, at least 0.
        milestones: epochs after which the learning rate is divided by ten, ascending, less than ``epochs``.
        augment: ``"crop-flip"``, shift by up to an eighth of the side (4 of 32 pixels) and horizontal flip; or
            ``"none"``.
        eps: L-infinity radius of all attacks, in [0, 1].
        attack_steps: steps of the attack in training.
        beta: weight of the divergence in TRADES and in the semi-supervised loss.
        alpha: weight of the label in the semi-supervised loss of a labelled image.
        temperature: temperature of the distillation in the semi-supervised loss.
        select: epoch to test: the ``"last"``, or that of the largest robust (``"val_ra"``) or standard (``"val_ta"``)
            accuracy on the validation images.
        labels: fraction of the training images whose labels are used, in (0, 1], equally many of each class.
        teacher: for the loss ``"semi"``, protocol of the network that labels all images, trained on the labels alone.
        probe: for the kind ``"LP-AFT"``, protocol of kind SLF of the head to start with, on the same branch.

    Raises:
        ValueError: a number is out of range, an unknown name, or settings that contradict each other.
        TypeError: an argument has the wrong type.

    Example:
        >>> from dataclasses import replace
        >>> from advcontrast.evaluation import protocol
        >>> short = replace(protocol("robustssl", "AFF"), epochs=4, milestones=(2, 3), eps=0.1)
        >>> short.attack.steps, short.attack.step_size, short.test_attack.steps
        (10, 0.025, 20)
    """

    preset: str
    kind: Kind
    source: str
    notes: str = ""
    branch: Branch = "adv"
    frozen: bool
    loss: Loss
    epochs: int
    batch_size: int
    lr: float
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float
    milestones: tuple[int, ...]
    augment: Augment = "crop-flip"
    eps: float = 8 / 255
    attack_steps: int | None = None
    beta: float | None = None
    alpha: float | None = None
    temperature: float | None = None
    select: Select
    labels: float = 1.0
    teacher: Protocol | None = None
    probe: Protocol | None = None

    def __post_init__(self) -> None:
        for name in ("preset", "source", "notes"):
            check_type(_OWNER, name, getattr(self, name), str, remedy="Pass a string")
        for name, kind in {"kind": Kind, "loss": Loss, "branch": Branch, "augment": Augment, "select": Select}.items():
            check_choice(_OWNER, name, getattr(self, name), get_args(kind))
        check_bool(_OWNER, "frozen", self.frozen, remedy="True for SLF and ALF")
        check_bool(_OWNER, "nesterov", self.nesterov, remedy="Pass one of the two")
        check_int(_OWNER, "epochs", self.epochs, low=1, remedy="Pass the length of the training")
        check_int(_OWNER, "batch_size", self.batch_size, low=2, remedy="Pass the number of images per step")
        check_real(_OWNER, "lr", self.lr, low=0, above=True, remedy="0.1 is usual")
        check_real(_OWNER, "momentum", self.momentum, low=0, high=1, remedy="0.9 is usual")
        check_real(_OWNER, "weight_decay", self.weight_decay, low=0, remedy="0.0002 is usual")
        check_real(_OWNER, "labels", self.labels, low=0, high=1, above=True, remedy="0.01 and 0.1 are usual, 1 is all")
        check_real(_OWNER, "eps", self.eps, low=0, high=1, remedy="For images in [0, 1] it is usually 8/255")
        object.__setattr__(self, "milestones", MultiStep(self.milestones).milestones)
        if self.milestones and self.milestones[-1] >= self.epochs:
            expected = f"milestones less than the {self.epochs} epochs"
            raise ValueError(complaint(_OWNER, expected, repr(self.milestones), "Change both together"))
        frozen, losses = _KINDS[self.kind]
        if self.frozen != frozen:
            raise ValueError(complaint(_OWNER, f"frozen to be {frozen} for {self.kind}", repr(self.frozen), "Set it"))
        check_choice(f"{_OWNER} {self.kind}", "loss", self.loss, losses)
        for name in _SETTINGS["semi"]:
            value, needed = getattr(self, name), name in _SETTINGS[self.loss]
            if (value is not None) != needed:
                expected = f"{'' if needed else 'no '}{name} with the loss {self.loss!r}"
                raise ValueError(complaint(_OWNER, expected, repr(value), "Set it" if needed else "Leave it None"))
        if self.attack_steps is not None:
            check_int(_OWNER, "attack_steps", self.attack_steps, low=0, remedy="10 is usual")
        if self.beta is not None:
            check_real(_OWNER, "beta", self.beta, low=0, remedy="6 is usual")
        if self.loss == "semi":
            check_settings(_OWNER, self.alpha, self.temperature, self.beta)
        if self.teacher is not None:
            remedy = "Pass one of kind SFF"
            check_type(_OWNER, "teacher", self.teacher, Protocol, remedy=remedy)
            if self.teacher.loss != "ce":
                raise ValueError(complaint(_OWNER, "a teacher with the loss 'ce'", repr(self.teacher.loss), remedy))
        if (self.probe is not None) != (self.kind == "LP-AFT"):
            expected = f"{'a' if self.kind == 'LP-AFT' else 'no'} probe for {self.kind}"
            raise ValueError(complaint(_OWNER, expected, repr(self.probe), "Only LP-AFT has one"))
        if self.probe is not None:
            check_type(_OWNER, "probe", self.probe, Protocol, remedy="Pass one of kind SLF")
            if (self.probe.kind, self.probe.branch) != ("SLF", self.branch):
                expected, got = f"a probe of kind 'SLF' on branch {self.branch!r}", f"{self.probe.kind!r}"
                raise ValueError(complaint(_OWNER, expected, f"{got} on {self.probe.branch!r}", "Change both together"))

    @property
    def attack(self) -> PGDAttack | None:
        """The attack of the training, with steps of a quarter of the radius, or ``None``."""
        return None if self.attack_steps is None else replace(self.test_attack, steps=self.attack_steps)

    @property
    def test_attack(self) -> PGDAttack:
        """The attack of validation and test, PGD with 20 steps of a quarter of the radius."""
        return PGDAttack(eps=self.eps, step_size=self.eps / 4 or 1 / 255, steps=20)
