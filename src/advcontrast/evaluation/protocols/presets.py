"""The protocols of papers and benchmarks, by name."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from ..._checks import check_choice
from .definition import Protocol

_CE: dict[str, Any] = {"loss": "ce", "attack_steps": None, "beta": None}
_ADVERSARIAL: dict[str, Any] = {"loss": "adversarial-ce", "attack_steps": 10}
_TRADES: dict[str, Any] = {"loss": "trades", "attack_steps": 10, "beta": 6.0}
_SEMI: dict[str, Any] = {"loss": "semi", "alpha": 0.5, "temperature": 1.0}
_SGD: dict[str, dict[str, Any]] = {
    "acl": {"epochs": 25, "milestones": (15, 20), "batch_size": 128, "lr": 0.1, "weight_decay": 2e-4},
    "acl SFF": {"epochs": 100, "milestones": (39, 59), "batch_size": 128, "lr": 0.1, "weight_decay": 2e-4},
    "acl semi": {"epochs": 15, "milestones": (4, 9), "batch_size": 250, "lr": 0.1, "weight_decay": 5e-4},
    "robustssl": {"epochs": 25, "milestones": (10, 20), "batch_size": 512, "lr": 0.01, "weight_decay": 2e-4},
    "robustssl AFF": {"epochs": 100, "milestones": (40, 60), "batch_size": 128, "lr": 0.1, "weight_decay": 2e-4},
    "dynacl AFF": {"epochs": 25, "milestones": (15, 20), "batch_size": 128, "lr": 0.1, "weight_decay": 2e-4},
    "dynacl LP-AFT": {"epochs": 25, "milestones": (10, 20), "batch_size": 512, "lr": 0.1, "weight_decay": 1e-4},
    "dynacl probe": {"epochs": 10, "milestones": (), "batch_size": 512, "lr": 0.01, "weight_decay": 1e-4},
}

_ACL = "Jiang et al., NeurIPS 2020"
_START = "The attack of TRADES starts at random in the ball, theirs 0.001 N(0, 1) from the image. "
_LINEAR = (
    "The paper gives no number for linear evaluation; the authors said in an issue which flags they used. How an epoch "
    "was selected is not known. Table 5 has both branches. "
)
_ACL_AFF = Protocol(
    preset="acl2020",
    kind="AFF",
    source=f"{_ACL}: text of the paper (Tables 1 and 3); weight decay, momentum and attack of the authors' code.",
    notes="The README of their code has 100 epochs with decays at the start of epochs 40 and 60, and their code decays "
    f"at the start of the epochs that it is given. {_START}Trained on 45,000 images, selected on 5,000.",
    frozen=False,
    select="val_ra",
    **_SGD["acl"],
    **_TRADES,
)
_ACL_ALF = replace(
    _ACL_AFF,
    kind="ALF",
    source=f"{_ACL}: Table 5, with the defaults of the authors' code and its flags --fixmode f3 --fixbn.",
    notes=f"{_LINEAR}{_START}",
    frozen=True,
)
_ACL_SLF = replace(
    _ACL_ALF,
    kind="SLF",
    notes=f"{_LINEAR}Their code keeps the epoch of the best standard accuracy.",
    select="val_ta",
    **_CE,
)
_ACL_SFF = replace(
    _ACL_SLF,
    kind="SFF",
    source=f"{_ACL}: step ii of semi-supervised training, as the README of the authors' code runs it.",
    notes="The paper does not give these numbers. The code decays at the start of epochs 40 and 60.",
    branch="clean",
    frozen=False,
    **_SGD["acl SFF"],
)
_ACL_SEMI = replace(
    _ACL_AFF,
    kind="semi",
    source=f"{_ACL}: equation 3; numbers of the authors' code.",
    notes="The paper does not give learning rate, epochs, batch size and weight decay. The code decays at the start of "
    "epochs 5 and 10. With 1 % of the labels its batches have 200 images: replace(..., labels=0.01, batch_size=200). "
    "The validation images have labels too. Here every epoch uses all images, and a batch holds its share of labelled "
    "ones. After each epoch the code loads the weights of the best standard accuracy and continues from them; this is "
    "not repeated.",
    labels=0.1,
    teacher=_ACL_SFF,
    **_SGD["acl semi"],
    **_SEMI,
)

_LAST = "Their code trains on all training images and tests the last epoch; pass the same, and no validation images. "
_RATES = "lr is that for CIFAR-10; 0.05 for CIFAR-100, 0.1 for STL-10 with 96 pixels. "
_DUAL = (
    "Their code fine-tunes both branches at once, clean images through the clean one and attacked ones through the "
    "other, which it tests; here only this one is trained, on both. Their attack starts at the image itself, where the "
    "divergence has no gradient; here at random in the ball. "
)
_ROBUSTSSL_ALF = Protocol(
    preset="robustssl",
    kind="ALF",
    source="RobustSSL benchmark, released code for encoders of ACL.",
    notes=f"{_RATES}{_LAST}The benchmark gives AutoAttack, not the PGD of test_attack. For encoders of other methods "
    "it has other numbers.",
    frozen=True,
    select="last",
    **_SGD["robustssl"],
    **_ADVERSARIAL,
)
_ROBUSTSSL_SLF = replace(_ROBUSTSSL_ALF, kind="SLF", **_CE)
_ROBUSTSSL_AFF = replace(
    _ROBUSTSSL_ALF,
    kind="AFF",
    notes=f"{_DUAL}{_LAST}The benchmark gives AutoAttack, not the PGD of test_attack.",
    frozen=False,
    **_SGD["robustssl AFF"],
    **_TRADES,
)

_DYNACL = "Luo et al., ICLR 2023 (DynACL), released code"
_DYNACL_ALF = replace(
    _ROBUSTSSL_ALF,
    preset="dynacl2023",
    source=f"{_DYNACL}: the probe at the end of LPAFT.py; attack of test_LF.py.",
    notes=f"{_RATES}{_LAST}test_LF.py, for encoders without post-processing, has the same numbers but no Nesterov "
    "momentum. The head of the probe starts at random; here, as in test_LF.py, at zero.",
    nesterov=True,
)
_DYNACL_SLF = replace(_DYNACL_ALF, kind="SLF", **_CE)
_DYNACL_AFF = replace(
    _ROBUSTSSL_AFF,
    preset="dynacl2023",
    source=f"{_DYNACL}: test_AFF.py.",
    notes=f"{_DUAL}{_LAST}",
    **_SGD["dynacl AFF"],
)
_DYNACL_LP_AFT = replace(
    _DYNACL_AFF,
    kind="LP-AFT",
    source=f"{_DYNACL}: LPAFT.py, the post-processing of DynACL++.",
    notes="For the clusters of pseudo_labels in place of labels; result.model.encoder is then the encoder to evaluate. "
    f"{_START}The head of the probe starts at random, here at zero. No epoch is selected.",
    probe=replace(
        _DYNACL_SLF, source=f"{_DYNACL}: LPAFT.py, its linear probe.", nesterov=False, **_SGD["dynacl probe"]
    ),
    **_SGD["dynacl LP-AFT"],
)

_PRESETS = (
    (_ACL_SLF, _ACL_ALF, _ACL_AFF, _ACL_SFF, _ACL_SEMI),
    (_ROBUSTSSL_SLF, _ROBUSTSSL_ALF, _ROBUSTSSL_AFF),
    (_DYNACL_SLF, _DYNACL_ALF, _DYNACL_AFF, _DYNACL_LP_AFT),
)
#: All protocols, by the name of the preset and the kind.
PROTOCOLS: Mapping[str, Mapping[str, Protocol]] = MappingProxyType(
    {preset[0].preset: MappingProxyType({each.kind: each for each in preset}) for preset in _PRESETS}
)


def protocol(preset: str, kind: str) -> Protocol:
    """Return a protocol of a paper or benchmark; its ``notes`` list the choices that its source leaves open.

    Args:
        preset: ``"acl2020"``, ``"robustssl"`` or ``"dynacl2023"``.
        kind: ``"SLF"``, ``"ALF"`` or ``"AFF"``; also ``"SFF"`` or ``"semi"`` of acl2020, ``"LP-AFT"`` of dynacl2023.

    Raises:
        ValueError: an unknown name.
        TypeError: a name that is not a str.

    Example:
        >>> protocol("robustssl", "ALF").milestones
        (10, 20)
    """
    check_choice("protocol", "preset", preset, tuple(PROTOCOLS))
    check_choice(f"protocol {preset}", "kind", kind, tuple(PROTOCOLS[preset]))
    return PROTOCOLS[preset][kind]
