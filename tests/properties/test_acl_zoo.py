"""Every seeded defect of the trainer is caught by an invariant that the real one fulfils."""

from contextlib import contextmanager
from itertools import product
from typing import get_args

import pytest
import torch

from advcontrast import ACLOutput, ACLTrainer
from advcontrast._modes import eval_mode, frozen
from advcontrast._types import Mode
from advcontrast.attacks import context as target
from advcontrast.strategies import acl as module
from tests.properties.acl_invariants import INVARIANTS, Case

CASES = [
    Case(mode, n, alpha, eps, norm, seed)
    for seed, ((n, alpha, eps, norm), mode) in enumerate(
        product([(4, 1.0, 8 / 255, "dual"), (3, 0.5, 0.3, "dual"), (4, 3.0, 0.3, "single")], get_args(Mode))
    )
]


def trainer(**overrides):
    """Return the real trainer with some methods replaced."""
    return type("Defect", (ACLTrainer,), overrides)


def borrowing(**contexts):
    """Return the real trainer with other context managers around the attack."""

    def _perturb(self, *args):
        with pytest.MonkeyPatch.context() as patch:
            for name, context in contexts.items():
                patch.setattr(target, name, context)
            return ACLTrainer._perturb(self, *args)

    return trainer(_perturb=_perturb)


def finishing(change):
    def forward(self, x1, x2=None, *, generator=None):
        return change(self, ACLTrainer.forward(self, x1, x2, generator=generator))

    return trainer(forward=forward)


@contextmanager
def nothing(*models):
    yield


@contextmanager
def root_only(*models):
    before = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, training in zip(models, before, strict=True):
            model.training = training


@contextmanager
def everything_trains_after(*models):
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model in models:
            model.train()


@contextmanager
def forgotten_after_an_error(*models):
    before = [(part, part.training) for model in models for part in model.modules()]
    for model in models:
        model.eval()
    yield
    for part, training in before:
        part.training = training


@contextmanager
def everything_thaws_after(*models):
    try:
        yield
    finally:
        for model in models:
            model.requires_grad_(True)


def always_on(branch):
    return trainer(_on=lambda self, _, x: ACLTrainer._on(self, branch, x))


def swapped(self, branch, x):
    return ACLTrainer._on(self, "adv" if branch == "clean" else "clean", x)


def left_on(self, branch, x):
    for part in self.model.modules():
        if hasattr(part, "branch"):
            part.branch = branch
    return self.model(x)


def one_view_at_a_time(self, stream, x1, x2, source):
    with eval_mode(self.model), frozen(self.model):
        fixed = [self._on("adv", x).detach() for x in (x1, x2)]
        views = (x1, x2)
        if "adv" in stream:
            views = (
                self.attack(lambda x: self.loss(self._on("adv", x), fixed[1]), x1, **source),
                self.attack(lambda x: self.loss(fixed[0], self._on("adv", x)), x2, **source),
            )
    return views if stream[1] == "adv" else (views[0], x2)


def partner_attacked_too(self, stream, x1, x2, source):
    return ACLTrainer._perturb(self, ("adv", "adv") if "adv" in stream else stream, x1, x2, source)


def attacked_through_the_clean_branch(self, stream, x1, x2, source):
    on = self._on
    self._on = lambda branch, x: on("clean", x)
    try:
        return ACLTrainer._perturb(self, stream, x1, x2, source)
    finally:
        del self._on


def partner_through_the_adversarial_branch(self, stream, x1, x2, source):
    on = self._on
    self._on = lambda branch, x: on("adv", x)
    try:
        return ACLTrainer._perturb(self, stream, x1, x2, source)
    finally:
        del self._on


def attacked_everywhere(self, stream, x1, x2, source):
    return ACLTrainer._perturb(self, ("adv", "adv"), x1, x2, source)


def unattacked(self, stream, x1, x2, source):
    return x1, x2


def ungenerated(self, stream, x1, x2, source):
    return ACLTrainer._perturb(self, stream, x1, x2, {})


def reseeding(self, stream, x1, x2, source):
    torch.manual_seed(0)
    return ACLTrainer._perturb(self, stream, x1, x2, {})


def in_place(self, stream, x1, x2, source):
    first, second = ACLTrainer._perturb(self, stream, x1, x2, source)
    return x1.copy_(first), second


def gradients_left_behind(self, stream, x1, x2, source):
    self.loss(*self._embed(stream, x1, x2)).backward()
    return ACLTrainer._perturb(self, stream, x1, x2, source)


def view_by_view(self, stream, x1, x2):
    return self._on(stream[0], x1), self._on(stream[1], x2)


def detached_partner(self, stream, x1, x2):
    z1, z2 = ACLTrainer._embed(self, stream, x1, x2)
    return z1, z2.detach()


def reversed_streams(self):
    return ACLTrainer._streams(self)[::-1]


def both_streams_always(self):
    return module._STREAMS[self.mode]


def weighed(clean, adv, total):
    def change(self, out):
        if len(out.terms) < 4:
            return out
        loss_clean, loss_adv = out.terms["loss_clean"], out.terms["loss_adv"]
        aim = (clean(self.alpha) * loss_clean + adv(self.alpha) * loss_adv) / total(self.alpha)
        return out._replace(loss=out.loss + (aim - out.loss).detach())

    return finishing(change)


DEFECTS = {
    "attack in train mode": borrowing(eval_mode=nothing),
    "mode of the root only": borrowing(eval_mode=root_only),
    "everything in train mode after": borrowing(eval_mode=everything_trains_after),
    "modes lost after an error": borrowing(eval_mode=forgotten_after_an_error),
    "everything unfrozen after": borrowing(frozen=everything_thaws_after),
    "everything through the clean branch": always_on("clean"),
    "everything through the adversarial branch": always_on("adv"),
    "branches swapped": trainer(_on=swapped),
    "branch left as it was last": trainer(_on=left_on),
    "views attacked one at a time": trainer(_perturb=one_view_at_a_time),
    "partner of A2S attacked": trainer(_perturb=partner_attacked_too),
    "attack through the clean branch": trainer(_perturb=attacked_through_the_clean_branch),
    "partner of A2S on the adversarial branch": trainer(_perturb=partner_through_the_adversarial_branch),
    "clean stream attacked": trainer(_perturb=attacked_everywhere),
    "nothing attacked": trainer(_perturb=unattacked),
    "generator ignored": trainer(_perturb=ungenerated),
    "global state reseeded": trainer(_perturb=reseeding),
    "views overwritten": trainer(_perturb=in_place),
    "gradients left in the parameters": trainer(_perturb=gradients_left_behind),
    "batch statistics of each view": trainer(_embed=view_by_view),
    "no gradient through the second view": trainer(_embed=detached_partner),
    "clean stream first": trainer(_streams=reversed_streams),
    "attack for nothing at alpha zero": trainer(_streams=both_streams_always),
    "sum instead of mean": weighed(lambda a: 1, lambda a: a, lambda a: 1),
    "always halved": weighed(lambda a: 1, lambda a: a, lambda a: 2),
    "alpha on the clean stream": weighed(lambda a: a, lambda a: 1, lambda a: 1 + a),
    "terms hold the graph": finishing(lambda self, out: ACLOutput(out.loss, dict.fromkeys(out.terms, out.loss))),
    "loss doubled": finishing(lambda self, out: out._replace(loss=2 * out.loss)),
}


def passes(invariant, implementation, case):
    try:
        invariant(implementation, case)
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("defect", DEFECTS.values(), ids=DEFECTS.keys())
def test_a_defect_is_caught(defect):
    assert not all(passes(invariant, defect, case) for case in CASES for invariant in INVARIANTS)


@pytest.mark.parametrize("invariant", INVARIANTS, ids=lambda invariant: invariant.__name__)
def test_the_real_trainer_passes(invariant):
    for case in CASES:
        invariant(ACLTrainer, case)
