"""Protocols: the numbers of their sources, and the settings that are refused."""

import json
import math
import re
from dataclasses import FrozenInstanceError, asdict, replace

import pytest

from advcontrast import PGDAttack
from advcontrast.evaluation.protocols import Protocol
from advcontrast.evaluation.protocols.presets import PROTOCOLS, protocol

ALL = [each for preset in PROTOCOLS.values() for each in preset.values()]
NAMES = [f"{each.preset}-{each.kind}" for each in ALL]
SLF, AFF, SEMI = protocol("acl2020", "SLF"), protocol("acl2020", "AFF"), protocol("acl2020", "semi")
LP_AFT = protocol("dynacl2023", "LP-AFT")


@pytest.mark.parametrize(
    ("preset", "kind", "loss", "epochs", "batch_size", "lr", "nesterov", "milestones", "select"),
    [
        ("acl2020", "SLF", "ce", 25, 128, 0.1, False, (15, 20), "val_ta"),
        ("acl2020", "ALF", "trades", 25, 128, 0.1, False, (15, 20), "val_ra"),
        ("acl2020", "AFF", "trades", 25, 128, 0.1, False, (15, 20), "val_ra"),
        ("acl2020", "SFF", "ce", 100, 128, 0.1, False, (39, 59), "val_ta"),
        ("acl2020", "semi", "semi", 15, 250, 0.1, False, (4, 9), "val_ra"),
        ("robustssl", "SLF", "ce", 25, 512, 0.01, False, (10, 20), "last"),
        ("robustssl", "ALF", "adversarial-ce", 25, 512, 0.01, False, (10, 20), "last"),
        ("robustssl", "AFF", "trades", 100, 128, 0.1, False, (40, 60), "last"),
        ("dynacl2023", "SLF", "ce", 25, 512, 0.01, True, (10, 20), "last"),
        ("dynacl2023", "ALF", "adversarial-ce", 25, 512, 0.01, True, (10, 20), "last"),
        ("dynacl2023", "AFF", "trades", 25, 128, 0.1, False, (15, 20), "last"),
        ("dynacl2023", "LP-AFT", "trades", 25, 512, 0.1, False, (10, 20), "last"),
    ],
)
def test_the_numbers_of_the_sources(preset, kind, loss, epochs, batch_size, lr, nesterov, milestones, select):
    found = protocol(preset, kind)
    assert (found.preset, found.kind, found.loss, found.select) == (preset, kind, loss, select)
    assert (found.epochs, found.batch_size, found.milestones) == (epochs, batch_size, milestones)
    assert (found.lr, found.momentum, found.nesterov) == (lr, 0.9, nesterov)
    assert found.weight_decay == {"semi": 5e-4, "LP-AFT": 1e-4}.get(kind, 2e-4)
    assert found.branch == ("clean" if kind == "SFF" else "adv")
    assert found.frozen == (kind in ("SLF", "ALF"))
    assert found.labels == (0.1 if kind == "semi" else 1.0)
    assert found.beta == (6.0 if loss in ("trades", "semi") else None)
    assert found.attack_steps == (None if loss == "ce" else 10)
    assert (found.eps, found.augment) == (8 / 255, "crop-flip")


def test_every_protocol_is_in_the_table_above():
    assert len(ALL) == 12
    assert {preset: list(kinds) for preset, kinds in PROTOCOLS.items()} == {
        "acl2020": ["SLF", "ALF", "AFF", "SFF", "semi"],
        "robustssl": ["SLF", "ALF", "AFF"],
        "dynacl2023": ["SLF", "ALF", "AFF", "LP-AFT"],
    }


def test_the_semi_supervised_protocol_knows_equation_3_and_its_teacher():
    assert (SEMI.alpha, SEMI.temperature) == (0.5, 1.0)
    assert SEMI.teacher == protocol("acl2020", "SFF")


def test_the_head_of_lp_aft_is_trained_as_in_dynacl():
    probe = LP_AFT.probe
    assert (probe.kind, probe.branch, probe.loss, probe.frozen, probe.select) == ("SLF", "adv", "ce", True, "last")
    assert (probe.epochs, probe.batch_size, probe.milestones) == (10, 512, ())
    assert (probe.lr, probe.momentum, probe.nesterov, probe.weight_decay) == (0.01, 0.9, False, 1e-4)


@pytest.mark.parametrize("each", ALL, ids=NAMES)
def test_a_protocol_says_where_it_is_from_and_what_that_leaves_open(each):
    assert each.source.endswith(".")
    assert each.notes.strip().endswith(".")


@pytest.mark.parametrize("preset", ["robustssl", "dynacl2023"])
@pytest.mark.parametrize("kind", ["SLF", "ALF", "AFF"])
def test_protocols_without_validation_say_so(preset, kind):
    assert "tests the last epoch" in protocol(preset, kind).notes


@pytest.mark.parametrize("each", ALL, ids=NAMES)
def test_a_protocol_is_ready_for_json(each):
    found = json.loads(json.dumps(asdict(each)))
    assert (found["preset"], found["milestones"], found["eps"]) == (each.preset, list(each.milestones), each.eps)


def test_attacks_follow_the_radius():
    small = replace(AFF, eps=0.1)
    assert small.attack == PGDAttack(eps=0.1, step_size=0.025, steps=10)
    assert small.test_attack == PGDAttack(eps=0.1, step_size=0.025, steps=20)
    assert AFF.test_attack == PGDAttack(eps=8 / 255, step_size=2 / 255, steps=20)


def test_standard_training_has_no_attack_but_a_test_has():
    assert SLF.attack is None
    assert SLF.test_attack.steps == 20


def test_a_radius_of_0_leaves_the_images_alone():
    assert replace(AFF, eps=0).attack.eps == 0


def test_milestones_may_be_a_list():
    assert replace(AFF, milestones=[2, 3]).milestones == (2, 3)


def test_a_protocol_cannot_be_changed():
    with pytest.raises(FrozenInstanceError):
        AFF.epochs = 5


def test_a_preset_cannot_be_changed():
    with pytest.raises(TypeError):
        PROTOCOLS["robustssl"] = {}
    with pytest.raises(TypeError):
        PROTOCOLS["robustssl"]["SLF"] = AFF


def test_a_changed_copy_leaves_the_preset_alone():
    assert replace(protocol("robustssl", "SLF"), epochs=5, milestones=()).epochs == 5
    assert protocol("robustssl", "SLF").epochs == protocol("robustssl", "ALF").epochs == 25


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (
            ("acl2021", "SLF"),
            ValueError,
            "protocol: expected preset",
        ),
        (("RobustSSL", "SLF"), ValueError, "got 'RobustSSL'"),
        (
            ("robustssl", "semi"),
            ValueError,
            "protocol robustssl: expected kind",
        ),
        (("acl2020", "slf"), ValueError, "got 'slf'"),
        (("acl2020", None), TypeError, "expected kind"),
        ((2020, "SLF"), TypeError, "expected preset"),
    ],
)
def test_unknown_names(names, error, message):
    with pytest.raises(error, match=re.escape(message)):
        protocol(*names)


@pytest.mark.parametrize(
    ("base", "changes", "error", "message"),
    [
        (AFF, {"preset": 1}, TypeError, "expected preset"),
        (AFF, {"notes": None}, TypeError, "expected notes"),
        (AFF, {"kind": "aff"}, ValueError, "got 'aff'"),
        (AFF, {"loss": "TRADES"}, ValueError, "got 'TRADES'"),
        (AFF, {"branch": "pgd"}, ValueError, "expected branch"),
        (AFF, {"augment": "simclr"}, ValueError, "expected augment"),
        (
            AFF,
            {"select": "test_ra"},
            ValueError,
            "expected select",
        ),
        (AFF, {"nesterov": 1}, TypeError, "expected nesterov"),
        (AFF, {"epochs": 0}, ValueError, "expected epochs"),
        (AFF, {"batch_size": 1}, ValueError, "expected batch_size"),
        (AFF, {"lr": 0}, ValueError, "expected lr"),
        (AFF, {"lr": math.nan}, ValueError, "expected lr"),
        (AFF, {"momentum": 1.5}, ValueError, "expected momentum"),
        (AFF, {"weight_decay": -1}, ValueError, "expected weight_decay"),
        (AFF, {"labels": 0}, ValueError, "expected labels"),
        (AFF, {"labels": "all"}, TypeError, "expected labels"),
        (AFF, {"eps": 8}, ValueError, "expected eps"),
        (AFF, {"milestones": (20, 15)}, ValueError, "MultiStep: expected milestones"),
        (
            AFF,
            {"epochs": 5},
            ValueError,
            "expected milestones less than the 5 epochs",
        ),
        (AFF, {"frozen": True}, ValueError, "expected frozen"),
        (SLF, {"frozen": False}, ValueError, "expected frozen"),
        (
            SLF,
            {"loss": "trades"},
            ValueError,
            "Protocol SLF: expected loss",
        ),
        (AFF, {"beta": None}, ValueError, "expected beta"),
        (SLF, {"beta": 6.0}, ValueError, "expected no beta"),
        (SLF, {"attack_steps": 10}, ValueError, "expected no attack_steps"),
        (AFF, {"teacher": SLF}, ValueError, "expected no teacher"),
        (SEMI, {"teacher": None}, ValueError, "expected teacher"),
        (SEMI, {"teacher": "SFF"}, TypeError, "expected teacher"),
        (SEMI, {"teacher": AFF}, ValueError, "expected a teacher"),
        (AFF, {"attack_steps": -1}, ValueError, "expected attack_steps"),
        (AFF, {"beta": -1}, ValueError, "expected beta"),
        (SEMI, {"alpha": 2}, ValueError, "expected alpha"),
        (SEMI, {"temperature": 0}, ValueError, "expected temperature"),
        (AFF, {"probe": SLF}, ValueError, "expected no probe"),
        (LP_AFT, {"probe": None}, ValueError, "expected a probe"),
        (LP_AFT, {"probe": "SLF"}, TypeError, "expected probe"),
        (LP_AFT, {"probe": AFF}, ValueError, "expected a probe"),
        (LP_AFT, {"branch": "clean"}, ValueError, "expected a probe"),
    ],
)
def test_wrong_settings(base, changes, error, message):
    with pytest.raises(error, match=re.escape(message)):
        replace(base, **changes)


def test_errors_name_their_owner():
    with pytest.raises(ValueError, match=r"^Protocol: expected epochs"):
        replace(AFF, epochs=0)


def test_a_protocol_needs_every_number():
    with pytest.raises(TypeError, match=r"missing .* required keyword-only arguments"):
        Protocol(preset="mine", kind="SLF", source="Me.")
