"""Losses of the strategies on known embeddings, whose values were computed from the papers' formulas and codes."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from advcontrast import ACLTrainer
from advcontrast.functional import cosine, nt_xent
from advcontrast.strategies import (
    AMOC,
    CFAMC,
    DAQSDP,
    FARE,
    TARO,
    AdvCL,
    AInfoNCE,
    DeACL,
    Distillation,
    DynACL,
    Invariance,
    ProFeAT,
    RoCL,
    SimCLIP,
    TeCoA,
)
from tests.strategies.methods import Constant, Given, Identity, known, norms

pytestmark = pytest.mark.filterwarnings(r"ignore:\w+. expected dual batch norms")
CLOSE = {"rel": 0, "abs": 1e-9}


def test_nt_xent():
    z = [known(v).flatten(1) for v in range(4)]
    assert nt_xent(z[0], z[1]).item() == pytest.approx(0.9642490370, **CLOSE)
    assert nt_xent(z[2], z[3]).item() == pytest.approx(0.8564001222, **CLOSE)


@pytest.mark.parametrize(("a", "b", "value"), [(0, 1, 0.8291483123), (2, 0, 0.4396719957), (3, 1, 0.5237582983)])
def test_cosine(a, b, value):
    assert cosine(known(a).flatten(1), known(b).flatten(1)).item() == pytest.approx(value, **CLOSE)


def infonce(q, k, negatives):
    """Return the mean loss of queries and keys, from the formula at temperature 0.2."""
    q, k, negatives = (F.normalize(z.detach().flatten(1), dim=1) for z in (q, k, negatives))
    losses = []
    for query, key in zip(q, k, strict=True):
        positive, *others = [math.exp(float(query @ other) / 0.2) for other in (key, *negatives)]
        losses.append(-math.log(positive / (positive + sum(others))))
    return sum(losses) / len(losses)


def test_infonce_with_the_own_keys_among_the_negatives():
    assert infonce(known(0), known(1), known(4)) == pytest.approx(0.5841466393, **CLOSE)
    assert infonce(known(0), known(1), torch.cat([known(4), known(1)])) == pytest.approx(1.3102461748, **CLOSE)


@pytest.mark.parametrize(("released", "clean"), [(False, 0.5841466393), (True, 1.3102461748)])
def test_amoc(released, clean):
    """The released code has the own keys among the negatives."""
    learner = AMOC(Identity(), queue=8 if released else 4, released=released, attack=Given(known(2)))
    for queue, v in ((learner.queue, 4), (learner.queue_adv, 3)):
        earlier = F.normalize(known(v).detach().flatten(1), dim=1)
        queue.rows = earlier.repeat(queue.size // 4, 1)
    q, k = known(0), known(1)
    out = learner(q, k)
    assert out.terms["loss_clean"].item() == pytest.approx(clean, **CLOSE)
    if not released:
        assert out.terms["loss_adv"].item() == pytest.approx(0.9432469984, **CLOSE)
        assert out.loss.item() == pytest.approx(0.7636968189, **CLOSE)
    out.loss.backward()
    assert norms(k) == [0]


def test_cfamc():
    out = CFAMC(Identity(), attack=Given(*(known(v) for v in range(3))))(*(known(5) for _ in range(3)))
    assert out.terms["loss_invariance"].item() == pytest.approx(-0.8971560335, **CLOSE)
    assert out.terms["loss_coding"].item() == pytest.approx(-2.3185468125, **CLOSE)
    assert out.loss.item() == pytest.approx(-181.7497535129, **CLOSE)


def test_gradients_of_cfamc():
    ours, theirs = ([known(v) for v in range(3)] for _ in range(2))
    CFAMC(Identity(), attack=Given(*ours))(*(known(5) for _ in range(3))).loss.backward()
    z = [F.normalize(each.flatten(1), dim=1) for each in theirs]
    mean = sum(z) / 3
    rates = [0.5 * torch.logdet(torch.eye(3) + 3 / (4 * 0.2) * each.T @ each) for each in z]
    invariance = sum(F.cosine_similarity(each, mean).mean() for each in z) / 3
    (-200 * invariance - sum(rates) / 3).backward()
    assert norms(*ours) == pytest.approx(norms(*theirs), **CLOSE)


def test_the_attack_of_cfamc_maximises_the_loss():
    attack = Given(*(known(5) for _ in range(3)))
    CFAMC(Identity(), attack=attack)(*(known(v) for v in range(3)))
    assert attack.values[0].item() == pytest.approx(-181.7497535129, **CLOSE)


def test_daqsdp():
    teacher, attack = Constant(known(1), known(2)), Given(known(2), known(3))
    assert DAQSDP(Identity(), teacher, attack=attack)(known(0), known(1)).loss.item() == pytest.approx(
        -1.8074901032, **CLOSE
    )


def test_deacl():
    x, x_adv = known(0), known(2)
    loss = DeACL(Identity(), Constant(known(1)), attack=Given(x_adv))(x).loss
    assert loss.item() == pytest.approx(-1.7084923036, **CLOSE)
    loss.backward()
    assert norms(x, x_adv) == pytest.approx([1.08649, 0.745262], abs=1e-5)


def test_the_attack_of_deacl_moves_away_from_the_teacher():
    attack = Given(known(2))
    DeACL(Identity(), Constant(known(1)), attack=attack)(known(0))
    assert -attack.values[0].item() == pytest.approx(0.8291483123, **CLOSE)  # the mean cosine of Z0 and Z1


def test_dynacl():
    views, adv = (known(0), known(1)), (known(2), known(3))
    attack = Given(*adv, *adv)
    learner = DynACL(Identity(), steps=10, every=2, attack=attack)
    assert learner(*views).loss.item() == pytest.approx((0.9642490370 + 0.8564001222) / 2, **CLOSE)
    assert attack.values[0].item() == pytest.approx(0.9642490370, **CLOSE)
    learner.load_state_dict({**learner.state_dict(), "_clock._extra_state": {"calls": 6}})  # w = 0.4
    loss = learner.eval()(*views).loss
    assert loss.item() == pytest.approx(0.8887547967, **CLOSE)
    loss.backward()
    leaves = known(0), known(2)
    clean, attacked = (nt_xent(z.flatten(1), known(v).detach().flatten(1)) for z, v in zip(leaves, (1, 3), strict=True))
    (0.3 * clean + 0.7 * attacked).backward()
    assert norms(views[0], adv[0]) == pytest.approx(norms(*leaves), **CLOSE)
    assert learner.momentum.model.weight.grad is None


def test_fare():
    x, x_adv, attack = known(2), known(0), Given(known(0))
    attack.images = [x_adv]
    learner = FARE(Identity(), Constant(known(1)), attack=attack)
    loss = learner(x).loss
    assert loss.item() == pytest.approx(0.4072212321, **CLOSE)
    assert attack.values[0].mean().item() == pytest.approx((known(2) - known(1)).square().sum().item() / 4, **CLOSE)
    loss.backward()
    assert norms(x, x_adv) == pytest.approx([0, (known(0) - known(1)).norm().item() / 2], **CLOSE)


def test_fare_with_a_limit_of_the_drift():
    x, x_adv = known(0), known(2)
    out = FARE(Identity(), Constant(known(1)), clean=3.0, drift=0.4, attack=Given(x_adv))(x)
    drifts = (known(0) - known(1)).flatten(1).square().sum(1)
    assert 0 < (drifts > 0.4).sum() < 4
    clean = drifts.sub(0.4).clamp(min=0).mean().item()
    assert out.terms["drift"].item() == pytest.approx(0.4072212321, **CLOSE)
    assert out.terms["loss_clean"].item() == pytest.approx(clean, **CLOSE)
    assert out.loss.item() == pytest.approx(out.terms["loss_adv"].item() + 3 * clean, **CLOSE)
    out.loss.backward()
    expected = 6 / 4 * ((known(0) - known(1)).flatten(1) * (drifts > 0.4)[:, None]).norm().item()
    assert norms(x) == pytest.approx([expected], **CLOSE)


def test_simclip():
    x_adv, attack = known(0), Given(known(0))
    attack.images = [x_adv]
    loss = SimCLIP(Identity(), Constant(known(1)), attack=attack)(known(2)).loss
    assert loss.item() == pytest.approx(-0.8291483123, **CLOSE)
    assert attack.values[0].mean().item() == pytest.approx((known(2) - known(1)).square().sum().item() / 4, **CLOSE)
    loss.backward()
    other = known(0)
    F.cosine_similarity(other.flatten(1), known(1).detach().flatten(1)).mean().backward()
    assert norms(x_adv) == pytest.approx([norms(other)[0] / 2], **CLOSE)


def test_tecoa():
    attack = Given(known(0))
    learner = TeCoA(Identity(), known(1).flatten(1), attack=attack)
    loss = learner(known(0), torch.arange(4)).loss
    assert loss.item() == pytest.approx(5.4535362449, **CLOSE)
    assert attack.values[0].mean().item() == pytest.approx(5.4535362449, **CLOSE)


class Table(nn.Module):
    """A projector of known features to known projections, with the gradients of the identity."""

    def __init__(self, *pairs):
        super().__init__()
        self.pairs = [(features.detach().flatten(1), known(v).detach().flatten(1)) for features, v in pairs]

    def forward(self, z):
        return next(p for features, p in self.pairs if torch.equal(features, z)) + z - z.detach()


def test_profeat():
    x, x_adv = known(0), known(4)
    projector = Table((x, 1), (known(2), 3), (x_adv, 0))
    attack = Given(x_adv)
    loss = ProFeAT(Identity(), projector, Constant(known(2)), attack=attack)(x).loss
    assert loss.item() == pytest.approx(-1.9803087854, **CLOSE)
    assert -attack.values[0].item() == pytest.approx(1 + 0.5237582983, **CLOSE)  # at x itself: S = S(x), P = Z1, Z3
    loss.backward()
    s, s_adv = known(0), known(4)
    z, z_adv, t, p_t = (each.flatten(1) for each in (s, s_adv, known(2), known(3)))
    p, p_adv = (known(v).detach().flatten(1) + z - z.detach() for v, z in ((1, z), (0, z_adv)))
    clean, adv = (
        sum(F.cosine_similarity(*pair).mean() for pair in pairs) / 2
        for pairs in ([(z, t), (p, p_t)], [(z_adv, z), (p_adv, p)])
    )
    (-clean - 8 * adv).backward()
    assert norms(x, x_adv) == pytest.approx(norms(s, s_adv), **CLOSE)


@pytest.mark.parametrize(
    ("released", "sir", "air"),
    [(True, -1.5516004389, -0.6993054853), (False, 0.0580839628, 0.0268137447)],
)
def test_invariance(released, sir, air):
    views, adv, image = (known(0), known(1)), (known(2), known(3)), known(4)
    terms = [Invariance(0.25, released=released)]
    learner = ACLTrainer(Identity(), attack=Given(*adv), augment=lambda x: views, alpha=1.4 / 0.6, terms=terms)
    out = learner(image)
    assert out.terms["loss_sir"].item() == pytest.approx(sir, **CLOSE)
    assert out.terms["loss_air"].item() == pytest.approx(air, **CLOSE)
    if released:
        assert 2 * out.loss.item() == pytest.approx(0.6520566312, **CLOSE)


@pytest.mark.parametrize(
    ("views", "released", "value"),
    [((1, 0), False, 0.0602802944), ((4, 4), True, -math.log(4) - 1 / 4)],  # equal views have equal relations
)
def test_the_invariance_of_clean_views(views, released, value):
    attack, terms = Given(known(2), known(3)), [Invariance(released=released)]
    learner = ACLTrainer(Identity(), attack=attack, augment=lambda x: [known(v) for v in views], terms=terms)
    assert learner(known(4)).terms["loss_sir"].item() == pytest.approx(value, **CLOSE)


def test_gradients_of_the_invariance():
    ours, theirs = ([known(v) for v in range(5)] for _ in range(2))

    def loss(*terms):
        learner = ACLTrainer(Identity(), attack=Given(*ours[2:4]), augment=lambda x: ours[:2], terms=terms)
        return learner(ours[4]).loss

    (loss(Invariance(1.0)) - loss()).backward()
    z1, z2, a1, a2, z0 = (each.flatten(1) for each in theirs)
    p1, p2, b1, b2, c1, c2 = (
        (F.cosine_similarity(*pair) / 0.5).exp()
        for pair in ((z1, z0), (z2, z0), (a1, z0), (a2, z0), (a1, z1), (a2, z2))
    )
    for first, second in ((p1, p2), (b1 * c1, b2 * c2)):
        p, q = first / first.sum(), second / second.sum()
        (p * (p / q).log()).sum().backward(retain_graph=True)
    assert norms(*ours) == pytest.approx(norms(*theirs), **CLOSE)


def test_distillation():
    terms = [Distillation(Constant(known(1), known(0)), 2.0)]
    out = ACLTrainer(Identity(), mode="S2S", terms=terms)(known(0), known(1))
    assert out.terms["loss_teacher"].item() == pytest.approx(1 - 0.8291483123, **CLOSE)
    assert (out.loss - out.terms["loss_clean"]).item() == pytest.approx(2 * (1 - 0.8291483123), **CLOSE)


def test_two_teachers_have_a_log_each():
    terms = [Distillation(Constant(known(v))) for v in (1, 4)]
    logged = ACLTrainer(Identity(), mode="S2S", terms=terms)(known(0), known(0)).terms
    for name, v in (("loss_teacher", 1), ("loss_teacher_2", 4)):
        expected = 1 - cosine(known(0).flatten(1), known(v).flatten(1)).item()
        assert logged[name].item() == pytest.approx(expected, **CLOSE)


def test_gradients_of_the_distillation():
    ours, theirs = ((known(0), known(2)) for _ in range(2))
    with_term = ACLTrainer(Identity(), mode="S2S", terms=[Distillation(Constant(known(1), known(3)))])
    (with_term(*ours).loss - ACLTrainer(Identity(), mode="S2S")(*ours).loss).backward()
    for z, v in zip(theirs, (1, 3), strict=True):
        (F.cosine_similarity(z.flatten(1), known(v).detach().flatten(1)).mean() / 2).backward()
    assert norms(*ours) == pytest.approx(norms(*theirs), **CLOSE)


def test_the_teacher_of_a_term_sees_each_view():
    seen, teacher, views = [], Identity().eval(), (known(0), known(1))
    teacher.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0]))
    ACLTrainer(Identity(), mode="S2S", terms=[Distillation(teacher)])(*views)
    assert [torch.equal(x, view) for x, view in zip(seen, views, strict=True)] == [True, True]


@pytest.mark.parametrize(
    ("released", "gradients"),
    [(False, [0.894828, 0.151259, 0.71841]), (True, [0.46476, 0.101082, 0.348374])],
)
def test_rocl(released, gradients):
    x = [known(v) for v in range(3)]
    out = RoCL(Identity(), released=released, attack=Given(x[2]))(*x[:2])
    assert out.loss.item() == pytest.approx(3.4045022620, **CLOSE)
    assert out.terms["loss_views"].item() == pytest.approx(3.4011725447, **CLOSE)
    RoCL(Identity(), extra=0, released=released, attack=Given(x[2]))(*x[:2]).loss.backward()
    assert norms(*x) == pytest.approx(gradients, abs=1e-5)


def test_gradients_of_the_last_term_of_rocl():
    ours, theirs = ([known(v) for v in range(3)] for _ in range(2))
    with_term, without = (RoCL(Identity(), extra=extra, attack=Given(ours[2]))(*ours[:2]).loss for extra in (1, 0))
    (with_term - without).backward()
    nt_xent(theirs[2].flatten(1), theirs[1].flatten(1)).backward()
    assert norms(*ours) == pytest.approx(norms(*theirs), **CLOSE)


def test_the_attack_of_rocl_moves_the_first_view_away_from_the_second():
    attack = Given(known(0))
    RoCL(Identity(), attack=attack)(known(2), known(1))
    assert attack.values[0].item() == pytest.approx(0.8524076, abs=1e-7)  # NT-Xent of Z2 and Z1


def test_taro():
    z, p = [known(v) for v in (1, 2, 3)], [known(v) for v in range(3)]

    class Predictor(nn.Module):
        def forward(self, z):
            return torch.cat(p).flatten(1) if len(z) == 12 else z

    out = TARO(Identity(), Predictor(), attack=Given(*z[1:]))(z[0], known(5))
    assert out.loss.item() == pytest.approx(-1.9030908753, **CLOSE)
    out.loss.backward()
    assert norms(*z) == [0, 0, 0]  # embeddings are targets
    assert all(norms(*p))


class WithHighFrequencies(Identity):
    """A network that returns given embeddings for the high frequencies of constant images, which are zero."""

    def __init__(self, high):
        super().__init__()
        self.high = high

    def forward(self, x):
        return super().forward(torch.cat([each if each.any() else self.high for each in x.split(4)]))


#: Constant images of one pixel.
FLAT = torch.ones(4, 3, 1, 1, dtype=torch.float64)


def test_advcl():
    z_adv, z1, z2, high = (known(v) for v in (2, 0, 1, 3))
    labels = torch.zeros(4, 1, dtype=torch.int64)
    heads = [nn.Linear(3, 2).double()]
    learner = AdvCL(WithHighFrequencies(high), heads, weight=0, attack=Given(z_adv, known(5)))
    out = learner(z1, z2, FLAT, labels)
    assert out.loss.item() == pytest.approx(16.1964874906, **CLOSE)
    assert out.loss.item() * 0.07 / 0.5 == pytest.approx(2.2675082487, **CLOSE)


def test_gradients_of_advcl():
    ours, theirs = ([known(v) for v in (2, 0, 1, 3)] for _ in range(2))
    learner = AdvCL(WithHighFrequencies(ours[3]), [nn.Linear(3, 2).double()], weight=0, attack=Given(ours[0], known(5)))
    learner(*ours[1:3], FLAT, torch.zeros(4, 1, dtype=torch.int64)).loss.backward()
    z = F.normalize(torch.cat(theirs).flatten(1), dim=1)
    e = (z @ z.T / 0.5).exp()
    partners = torch.eye(4, dtype=torch.float64).repeat(4, 4).fill_diagonal_(0)
    (0.5 / 0.07 * (-(e / (e.sum(1, keepdim=True) - e.diag()[:, None])).log() * partners).sum() / 48).backward()
    assert norms(*ours) == pytest.approx(norms(*theirs), **CLOSE)


def ainfonce(**settings):
    """Return the loss of known embeddings, and the gradients of the attacked ones and of a clean view."""
    z_adv, z1, z2, high = (known(v) for v in (2, 0, 1, 3))
    loss = AInfoNCE(WithHighFrequencies(high), attack=Given(z_adv), **settings)(z1, z2, FLAT).loss
    loss.backward()
    return loss.item(), z_adv.grad, z1.grad


@pytest.mark.parametrize(
    ("settings", "value"),
    [
        ({}, 17.6718723404),
        ({"gamma": 0.5, "weight": 1}, 16.1964874906),
        ({"gamma": None, "weight": 1}, 16.1964874906),
        ({"gamma": None, "weight": 1, "released": True}, 16.2655862376),
        ({"gamma": None, "weight": 1, "released": True, "hard_negatives": (0.1, 1)}, 20.5647094068),
        ({"weight": 0.7, "released": True, "hard_negatives": (0.1, 1)}, 17.6642999544),
    ],
)
def test_ainfonce(settings, value):
    assert ainfonce(**settings)[0] == pytest.approx(value, **CLOSE)


@pytest.mark.parametrize(
    ("gamma", "adv", "clean"),
    [(0.0, 3.219519, 0.0), (0.2, 2.575615, 0.610638), (0.5, 1.609759, 1.526596), (1.0, 0.0, 3.053191)],
)
def test_gradients_across_the_branches_of_ainfonce(gamma, adv, clean):
    """The loss is linear in the weight of these pairs, which the reference adds up instead of averaging."""
    with_them, without = (ainfonce(gamma=gamma, weight=weight)[1:] for weight in (1, 0))
    found = [(a - b).norm().item() for a, b in zip(with_them, without, strict=True)]
    assert found == pytest.approx([0.5 / 0.07 / 6 / 4 * adv, 0.5 / 0.07 / 6 / 4 * clean], abs=1e-5)
