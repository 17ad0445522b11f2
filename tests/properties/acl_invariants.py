"""Invariants of a step of adversarial contrastive learning, for any implementation."""

import warnings
from typing import NamedTuple

import pytest
import torch

from advcontrast import PGDAttack, bn_branch
from advcontrast._types import Mode
from advcontrast.functional import nt_xent
from tests.strategies.networks import batches_seen, flags, gradients, network, unlike_branches, views

EQUAL = {"rtol": 1e-12, "atol": 1e-12}  # float64; largest measured difference 4e-16


class Case(NamedTuple):
    mode: Mode
    n: int
    alpha: float
    eps: float
    norm: str
    seed: int


def build(implementation, model, case, **settings):
    settings = {"attack": PGDAttack(eps=case.eps, steps=2), "mode": case.mode, "alpha": case.alpha} | settings
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\w+: expected dual batch norms")
        return implementation(model, **settings)


def model_of(case):
    return unlike_branches(network(case.norm, dtype=torch.float64, seed=case.seed))


def views_of(case):
    return views(case.n, dtype=torch.float64, seed=case.seed)


def seeded(case):
    return torch.Generator().manual_seed(case.seed)


def run(acl, case):
    return acl(*views_of(case), generator=seeded(case))


def embed(model, branch, x):
    if not any(hasattr(module, "branch") for module in model.modules()):
        return model(x)
    with bn_branch(model, branch):
        return model(x)


def by_the_formula(model, case):
    """Return the loss of a mode, step by step."""
    attack, (x1, x2), generator = PGDAttack(eps=case.eps, steps=2), views_of(case), seeded(case)
    both = torch.cat([x1, x2])
    if case.mode == "S2S" or (case.mode == "DS" and case.alpha == 0):
        return nt_xent(*embed(model, "clean", both).chunk(2))
    model.eval()
    if case.mode == "A2S":
        fixed = embed(model, "clean", x2).detach()
        x1 = attack(lambda x: nt_xent(embed(model, "adv", x), fixed), x1, generator=generator)
        model.train()
        return nt_xent(embed(model, "adv", x1), embed(model, "clean", x2))
    attacked = attack(lambda x: nt_xent(*embed(model, "adv", x).chunk(2)), both, generator=generator)
    model.train()
    adversarial = nt_xent(*embed(model, "adv", attacked).chunk(2))
    if case.mode == "A2A":
        return adversarial
    clean = nt_xent(*embed(model, "clean", both).chunk(2))
    return (clean + case.alpha * adversarial) / (1 + case.alpha)


def assert_close(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(value, theirs[name], **EQUAL)


def equals_its_formula(implementation, case):
    ours, theirs = model_of(case), model_of(case)
    loss, expected = run(build(implementation, ours, case), case).loss, by_the_formula(theirs, case)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(loss, expected, **EQUAL)
    assert_close(gradients(ours), gradients(theirs))
    assert_close(ours.state_dict(), theirs.state_dict())


def no_perturbation_makes_two_equal_streams(implementation, case):
    """Take both branches alike: with eps = 0 the dual stream is S2S, its branches sharing the gradient of one."""
    case = case._replace(eps=0.0, mode="DS", alpha=1.0, norm="dual")
    dual, single = (network("dual", dtype=torch.float64, seed=case.seed) for _ in range(2))
    out = run(build(implementation, dual, case), case)
    expected = run(build(implementation, single, case, mode="S2S"), case)
    out.loss.backward()
    expected.loss.backward()
    assert torch.equal(out.loss, expected.loss)
    ours, theirs = gradients(dual), gradients(single)
    for name, gradient in theirs.items():
        if ".clean." in name:
            adversarial = ours[name.replace(".clean.", ".adv.")]
            assert torch.equal(ours[name], gradient / 2)
            assert torch.equal(adversarial, gradient / 2)
        elif ".adv." not in name:
            assert torch.equal(ours[name], gradient)
    for branch in ("clean", "adv"):
        for name, value in single.state_dict().items():
            if ".clean." in name:
                assert torch.equal(dual.state_dict()[name.replace(".clean.", f".{branch}.")], value)


def no_weight_makes_the_dual_stream_standard(implementation, case):
    ours, theirs = model_of(case), model_of(case)

    def never(objective, x, *, generator=None):
        raise AssertionError("the attack is called")

    out = run(build(implementation, ours, case, mode="DS", alpha=0, attack=never), case)
    expected = run(build(implementation, theirs, case, mode="S2S"), case)
    out.loss.backward()
    expected.loss.backward()
    assert torch.equal(out.loss, expected.loss)
    for name, gradient in gradients(theirs).items():
        assert (gradients(ours)[name] is None) == (gradient is None)
        assert gradient is None or torch.equal(gradients(ours)[name], gradient)
    assert all(map(torch.equal, ours.state_dict().values(), theirs.state_dict().values()))


def the_weighted_loss_is_affine_in_alpha(implementation, case):
    alphas = (0.5, 1.0, 4.0)
    losses = [
        (1 + alpha) * run(build(implementation, model_of(case), case, mode="DS", alpha=alpha), case).loss
        for alpha in alphas
    ]
    slopes = [(losses[i + 1] - losses[i]) / (alphas[i + 1] - alphas[i]) for i in range(2)]
    torch.testing.assert_close(*slopes, rtol=1e-10, atol=0)


def the_terms_make_the_loss(implementation, case):
    loss, terms = run(build(implementation, model_of(case), case), case)
    alpha = case.alpha if case.mode == "DS" else 1.0
    streams = [(terms[name], weight) for name, weight in (("loss_clean", 1.0), ("loss_adv", alpha)) if name in terms]
    expected = sum(term * weight for term, weight in streams) / sum(weight for _, weight in streams)
    torch.testing.assert_close(loss.detach(), expected, **EQUAL)
    assert not any(term.requires_grad for term in terms.values())


def flags_and_gradients_stay(implementation, case):
    model = model_of(case)
    model[1].eval()
    model[4].bias.requires_grad_(False)
    before = flags(model)
    run(build(implementation, model, case), case)
    assert flags(model) == before
    assert set(gradients(model).values()) == {None}


def flags_survive_an_error(implementation, case):
    if case.mode == "S2S":
        return
    for at in (1, 2):
        model, calls = model_of(case), []
        model[1].eval()
        model[4].bias.requires_grad_(False)
        before = flags(model)

        def loss(z1, z2, at=at, calls=calls):
            calls.append(z1)
            if len(calls) == at:
                raise KeyboardInterrupt
            return nt_xent(z1, z2)

        acl = build(implementation, model, case._replace(alpha=1.0), loss=loss)
        with pytest.raises(KeyboardInterrupt):
            run(acl, case)
        assert flags(model) == before
        assert set(gradients(model).values()) == {None}


def statistics_count_each_forward_pass_once(implementation, case):
    case = case._replace(norm="dual", alpha=1.0)
    model = model_of(case)
    run(build(implementation, model, case), case)
    clean, adv = {"S2S": (1, 0), "A2A": (0, 1), "A2S": (1, 1), "DS": (1, 1)}[case.mode]
    counts = batches_seen(model)
    assert {count for name, count in counts.items() if ".clean." in name} == {clean}
    assert {count for name, count in counts.items() if ".adv." in name} == {adv}


def a_generator_decides_alone(implementation, case):
    losses = []
    for seed in (1, 2):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            before = torch.get_rng_state()
            losses.append(run(build(implementation, model_of(case), case), case).loss)
            assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(*losses)


def views_are_not_changed(implementation, case):
    x1, x2 = views_of(case)
    build(implementation, model_of(case), case)(x1, x2, generator=seeded(case))
    assert torch.equal(x1, views_of(case)[0])
    assert torch.equal(x2, views_of(case)[1])


def no_grad_gives_the_same_loss(implementation, case):
    expected = run(build(implementation, model_of(case), case), case).loss
    with torch.no_grad():
        loss = run(build(implementation, model_of(case), case), case).loss
    assert torch.equal(loss, expected.detach())


INVARIANTS = (
    equals_its_formula,
    no_perturbation_makes_two_equal_streams,
    no_weight_makes_the_dual_stream_standard,
    the_weighted_loss_is_affine_in_alpha,
    the_terms_make_the_loss,
    flags_and_gradients_stay,
    flags_survive_an_error,
    statistics_count_each_forward_pass_once,
    a_generator_decides_alone,
    views_are_not_changed,
    no_grad_gives_the_same_loss,
)
