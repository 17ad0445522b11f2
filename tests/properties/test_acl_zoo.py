"""Every seeded defect of the trainer is caught by an invariant that the real one fulfils."""

from contextlib import contextmanager
from itertools import product
from typing import get_args

import pytest
import torch

from advcontrast import ACLOutput, ACLTrainer
from advcontrast._types import Mode
from advcontrast.attacks import context as target
from advcontrast.strategies import Step
from advcontrast.strategies import acl as module
from tests.properties.acl_invariants import INVARIANTS, Case

pytestmark = pytest.mark.nightly  # it tests the property tests

CASES = [
    Case(mode, n, alpha, eps, norm, seed)
    for seed, ((n, alpha, eps, norm), mode) in enumerate(
        product([(4, 1.0, 8 / 255, "dual"), (3, 0.5, 0.3, "dual"), (4, 3.0, 0.3, "single")], get_args(Mode))
    )
]


def trainer(**overrides):
    """Return the real trainer with some methods replaced."""
    return type("Defect", (ACLTrainer,), overrides)


def stepping(**overrides):
    """Return the real trainer with some methods of its steps replaced."""
    kind = type("DefectiveStep", (Step,), overrides)

    def _step(self, batch, source):
        step = ACLTrainer._step(self, batch, source)
        step.__class__ = kind
        return step

    return trainer(_step=_step)


def borrowing(**contexts):
    """Return the real trainer with other context managers around the attack."""

    def perturb(self, *args, **kwargs):
        with pytest.MonkeyPatch.context() as patch:
            for name, context in contexts.items():
                patch.setattr(target, name, context)
            return Step.perturb(self, *args, **kwargs)

    return stepping(perturb=perturb)


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
    return branching(lambda _: branch)


def branching(change):
    """Return the real trainer with other branches."""
    return stepping(
        embed=lambda self, branch, *x, by=None: Step.embed(self, change(branch), *x, by=by),
        perturb=lambda self, objective, branch, *x: Step.perturb(self, objective, change(branch), *x),
    )


def left_on():
    def switch(self, branch):
        for part in self._learner.modules():
            if hasattr(part, "branch"):
                part.branch = branch

    def embed(self, branch, *x, by=None):
        switch(self, branch)
        return Step.embed(self, None, *x, by=by)

    def perturb(self, objective, branch, *x):
        switch(self, branch)
        return Step.perturb(self, objective, None, *x)

    return stepping(embed=embed, perturb=perturb)


def one_view_at_a_time(self, objective, branch, *x):
    if len(x) == 1:
        return Step.perturb(self, objective, branch, *x)
    first, second = self.still(branch, *x)
    return (
        *Step.perturb(self, lambda z: objective(z, second), branch, x[0]),
        *Step.perturb(self, lambda z: objective(first, z), branch, x[1]),
    )


def partner_attacked_too(self, step, stream):
    if stream == ("adv", "clean"):
        step.views = step.perturb(self.loss, "adv", *step.views)
    return ACLTrainer._embeddings(self, step, stream)


def attacked_through_the_clean_branch(self, objective, branch, *x):
    through = (lambda *x: self.embed("clean", *x)) if len(x) == 2 else (lambda x: self.embed("clean", x))
    return Step.perturb(self, objective, branch, *x, through=through)


def partner_through_the_adversarial_branch(self, branch, *x):
    return Step.still(self, "adv", *x)


def attacked_everywhere(self, step, stream):
    if stream == ("clean", "clean"):
        step.views = step.perturb(self.loss, "adv", *step.views)
    return ACLTrainer._embeddings(self, step, stream)


def unattacked(self, objective, branch, *x):
    return x


def ungenerated(self, objective, branch, *x):
    self._source = {}
    return Step.perturb(self, objective, branch, *x)


def reseeding(self, objective, branch, *x):
    torch.manual_seed(0)
    return ungenerated(self, objective, branch, *x)


def in_place(self, objective, branch, *x):
    first, *others = Step.perturb(self, objective, branch, *x)
    return x[0].copy_(first), *others


def gradients_left_behind(self, objective, branch, *x):
    objective(*self.embed(branch, *x)).backward()
    return Step.perturb(self, objective, branch, *x)


def view_by_view(self, branch, *x):
    return tuple(z for each in x for z in Step.embed(self, branch, each))


def detached_partner(self, step, stream):
    z1, z2 = ACLTrainer._embeddings(self, step, stream)
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
    "branches swapped": branching({"clean": "adv", "adv": "clean"}.get),
    "branch left as it was last": left_on(),
    "views attacked one at a time": stepping(perturb=one_view_at_a_time),
    "partner of A2S attacked": trainer(_embeddings=partner_attacked_too),
    "attack through the clean branch": stepping(perturb=attacked_through_the_clean_branch),
    "partner of A2S on the adversarial branch": stepping(still=partner_through_the_adversarial_branch),
    "clean stream attacked": trainer(_embeddings=attacked_everywhere),
    "nothing attacked": stepping(perturb=unattacked),
    "generator ignored": stepping(perturb=ungenerated),
    "global state reseeded": stepping(perturb=reseeding),
    "views overwritten": stepping(perturb=in_place),
    "gradients left in the parameters": stepping(perturb=gradients_left_behind),
    "batch statistics of each view": stepping(embed=view_by_view),
    "no gradient through the second view": trainer(_embeddings=detached_partner),
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
