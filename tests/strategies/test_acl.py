"""A step of adversarial contrastive learning, in every mode and inside any loop."""

import math
import re
import warnings
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from advcontrast import (
    ACLOutput,
    ACLTrainer,
    ContrastivePairAugment,
    NTXentLoss,
    PGDAttack,
    convert_to_dual_bn,
    set_bn_branch,
)
from advcontrast._types import Mode
from advcontrast.functional import alignment, nt_xent
from advcontrast.norm import bn_branch
from advcontrast.surgery import branch_parameters
from tests.strategies.networks import batches_seen, flags, gradients, network, unlike_branches, views

MODES = get_args(Mode)
ATTACKED = ("A2A", "A2S", "DS")
FAST = PGDAttack(steps=2)
TERMS = {
    "S2S": {"loss_clean", "alignment_clean"},
    "A2A": {"loss_adv", "alignment_adv"},
    "A2S": {"loss_adv", "alignment_adv"},
    "DS": {"loss_clean", "alignment_clean", "loss_adv", "alignment_adv"},
}
every_mode = pytest.mark.parametrize("mode", MODES)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Shift:
    """An attack that adds a constant and notes what it was asked."""

    def __init__(self):
        self.calls = []

    def __call__(self, objective, x, *, generator=None):
        self.calls.append((x, generator, objective(x)))
        return x + 0.01


class FailingLoss(nn.Module):
    """NT-Xent that raises at one of its calls."""

    def __init__(self, at, error):
        super().__init__()
        self.calls, self.at, self.error = 0, at, error

    def forward(self, z1, z2):
        self.calls += 1
        if self.calls == self.at:
            raise self.error("broken on purpose")
        return nt_xent(z1, z2)


@every_mode
def test_a_step_returns_a_loss_with_a_gradient(mode):
    out = ACLTrainer(network(), attack=FAST, mode=mode)(*views())
    assert isinstance(out, ACLOutput)
    assert out.loss.shape == ()
    assert out.loss.requires_grad


@every_mode
def test_terms_are_detached_scalars_of_the_streams(mode):
    terms = ACLTrainer(network(), attack=FAST, mode=mode)(*views()).terms
    assert terms.keys() == TERMS[mode]
    assert not any(term.requires_grad or term.shape for term in terms.values())


@pytest.mark.parametrize("mode", ["S2S", "A2A", "A2S"])
def test_the_loss_of_one_stream_is_its_term(mode):
    out = ACLTrainer(network(), attack=FAST, mode=mode)(*views())
    assert torch.equal(out.loss, out.terms["loss_clean" if mode == "S2S" else "loss_adv"])


@pytest.mark.parametrize("alpha", [1.0, 0.5, 3.0])
def test_the_loss_of_the_dual_stream_is_the_weighted_mean_of_its_terms(alpha):
    out = ACLTrainer(network(), attack=FAST, alpha=alpha)(*views())
    expected = (out.terms["loss_clean"] + alpha * out.terms["loss_adv"]) / (1 + alpha)
    torch.testing.assert_close(out.loss.detach(), expected, rtol=1e-6, atol=0)


def test_alignment_is_that_of_the_embeddings():
    model, (x1, x2) = network(), views()
    out = ACLTrainer(model, mode="S2S").eval()(x1, x2)
    torch.testing.assert_close(out.terms["alignment_clean"], alignment(model(x1), model(x2)), rtol=1e-6, atol=0)


def test_defaults_are_those_of_the_paper():
    acl = ACLTrainer(network())
    assert (acl.mode, acl.alpha, acl.attack, acl.loss.temperature) == ("DS", 1.0, PGDAttack(), 0.5)


@every_mode
def test_a_step_leaves_all_flags(mode):
    model = network()
    model[1].adv.eval()
    model[4].bias.requires_grad_(False)
    set_bn_branch(model[5], "adv")
    before = flags(model)
    ACLTrainer(model, attack=FAST, mode=mode)(*views())
    assert flags(model) == before


@every_mode
def test_a_norm_frozen_on_purpose_keeps_its_statistics(mode):
    model = network()
    model[1].eval()
    acl = ACLTrainer(model, attack=FAST, mode=mode)
    before = [buffer.clone() for buffer in model[1].buffers()]
    acl(*views())
    assert all(map(torch.equal, model[1].buffers(), before))


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("call", [1, 2, 3, 4])
@pytest.mark.parametrize("mode", ATTACKED)
def test_flags_and_gradients_survive_an_error_at_any_call(mode, call, error):
    model = network()
    model[1].eval()
    model[4].bias.requires_grad_(False)
    model[4].weight.grad = torch.ones_like(model[4].weight)
    before = flags(model)
    acl = ACLTrainer(model, loss=FailingLoss(call if mode == "DS" else min(call, 3), error), attack=FAST, mode=mode)
    with pytest.raises(error, match="broken on purpose"):
        acl(*views())
    assert flags(model) == before
    grads = gradients(model)
    assert torch.equal(grads.pop("4.weight"), torch.ones_like(model[4].weight))
    assert set(grads.values()) == {None}


@pytest.mark.parametrize("layer", [0, 3, 5])
@pytest.mark.parametrize("mode", ATTACKED)
def test_flags_survive_an_error_inside_the_model(mode, layer):
    model, calls = network(), []

    def fail(module, args):
        calls.append(module)
        if len(calls) == 2:
            raise RuntimeError("broken on purpose")

    model[layer].register_forward_pre_hook(fail)
    before = flags(model)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        ACLTrainer(model, attack=FAST, mode=mode)(*views())
    assert flags(model) == before


@every_mode
def test_a_forward_pass_leaves_gradients_to_backward(mode):
    model = network()
    ACLTrainer(model, attack=FAST, mode=mode)(*views())
    assert set(gradients(model).values()) == {None}


@pytest.mark.parametrize(
    ("mode", "clean", "adv"), [("S2S", 1, 0), ("A2A", 0, 1), ("A2S", 1, 1), ("DS", 1, 1)], ids=MODES
)
def test_statistics_see_each_stream_once_and_the_attack_never(mode, clean, adv):
    model = network()
    ACLTrainer(model, mode=mode)(*views())
    assert batches_seen(model) == {
        f"{layer}.{branch}.num_batches_tracked": count
        for layer in (1, 5)
        for branch, count in (("clean", clean), ("adv", adv))
    }


@pytest.mark.parametrize("mode", ["A2A", "DS"])
def test_the_attack_gets_both_views_at_once(mode):
    attack, (x1, x2) = Shift(), views()
    ACLTrainer(network(), attack=attack, mode=mode)(x1, x2)
    assert [call[0].tolist() for call in attack.calls] == [torch.cat([x1, x2]).tolist()]


def test_the_attack_of_a2s_gets_the_first_view():
    attack, (x1, x2) = Shift(), views()
    ACLTrainer(network(), attack=attack, mode="A2S")(x1, x2)
    assert [call[0].tolist() for call in attack.calls] == [x1.tolist()]


@pytest.mark.parametrize("mode", ["A2A", "DS"])
def test_the_attack_maximises_the_loss_through_the_adversarial_branch_in_eval_mode(mode):
    model, attack, x = unlike_branches(network()), Shift(), views()
    ACLTrainer(model, attack=attack, mode=mode)(*x)
    fresh = unlike_branches(network()).eval()
    with bn_branch(fresh, "adv"):
        expected = nt_xent(*fresh(torch.cat(x)).chunk(2))
    assert torch.equal(attack.calls[0][2], expected)


def test_the_attack_of_a2s_compares_with_the_clean_embedding_in_eval_mode():
    model, attack, (x1, x2) = unlike_branches(network()), Shift(), views()
    ACLTrainer(model, attack=attack, mode="A2S")(x1, x2)
    fresh = unlike_branches(network()).eval()
    with bn_branch(fresh, "adv"):
        z1 = fresh(x1)
    assert torch.equal(attack.calls[0][2], nt_xent(z1, fresh(x2)))


def test_a2s_embeds_only_the_attacked_view_through_the_adversarial_branch():
    model, fresh, (x1, x2) = unlike_branches(network()), unlike_branches(network()), views()
    out = ACLTrainer(model, attack=Shift(), mode="A2S")(x1, x2)
    with bn_branch(fresh, "adv"):
        z1 = fresh(x1 + 0.01)
    assert torch.equal(out.loss, nt_xent(z1, fresh(x2)))


@pytest.mark.parametrize("mode", ATTACKED)
def test_the_attack_raises_the_loss(mode):
    losses = [
        ACLTrainer(network(dtype=torch.float64), attack=PGDAttack(eps=eps, random_start=False), mode=mode)
        .eval()(*views(8, dtype=torch.float64))
        .terms["loss_adv"]
        for eps in (0.0, 8 / 255)
    ]
    assert losses[1] > losses[0]


def test_parameters_need_no_gradient_during_the_attack():
    model, seen = network(), []

    def attack(objective, x, *, generator=None):
        seen.extend(parameter.requires_grad for parameter in model.parameters())
        return x

    ACLTrainer(model, attack=attack)(*views())
    assert seen
    assert not any(seen)


def test_alpha_zero_never_attacks():
    attack = Shift()
    out = ACLTrainer(network(), attack=attack, alpha=0)(*views())
    assert attack.calls == []
    assert out.terms.keys() == TERMS["S2S"]


@every_mode
def test_the_input_is_not_changed(mode):
    x1, x2 = views()
    before = x1.clone(), x2.clone()
    ACLTrainer(network(), attack=FAST, mode=mode)(x1, x2)
    assert torch.equal(x1, before[0])
    assert torch.equal(x2, before[1])


@every_mode
def test_under_no_grad_the_loss_is_the_same(mode):
    expected = ACLTrainer(network(), attack=FAST, mode=mode)(*views(), generator=seeded()).loss
    with torch.no_grad():
        loss = ACLTrainer(network(), attack=FAST, mode=mode)(*views(), generator=seeded()).loss
    assert not loss.requires_grad
    assert torch.equal(loss, expected.detach())


@every_mode
def test_under_inference_mode_the_loss_is_the_same(mode):
    expected = ACLTrainer(network(), attack=FAST, mode=mode)(*views(), generator=seeded()).loss
    acl = ACLTrainer(network(), attack=FAST, mode=mode)
    with torch.inference_mode():
        loss = acl(*views(), generator=seeded()).loss
    assert loss.item() == expected.item()


@every_mode
def test_in_eval_mode_no_statistics_move(mode):
    model = network().eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ACLTrainer(model, attack=FAST, mode=mode).eval()(*views())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@every_mode
def test_under_autocast_the_loss_is_float32(mode):
    with torch.autocast("cpu", torch.bfloat16):
        out = ACLTrainer(network(), attack=FAST, mode=mode)(*views())
    assert out.loss.dtype == torch.float32
    out.loss.backward()


@every_mode
def test_a_generator_makes_a_step_reproducible(mode):
    outs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        acl = ACLTrainer(network(), attack=FAST, augment=ContrastivePairAugment(6), mode=mode)
        outs.append(acl(views()[0], generator=seeded(7)).loss)
    assert torch.equal(*outs)


@every_mode
def test_with_a_generator_the_global_state_stays(mode):
    before = torch.get_rng_state()
    acl = ACLTrainer(network(), attack=FAST, augment=ContrastivePairAugment(6), mode=mode)
    acl(views()[0], generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_generator_every_step_draws_anew():
    acl = ACLTrainer(network(), attack=PGDAttack(steps=0), mode="A2A").eval()
    assert acl(*views()).loss != acl(*views()).loss


def test_augment_makes_both_views_of_one_batch():
    images = (255 * views(6)[0]).to(torch.uint8)
    augment = ContrastivePairAugment(6)
    ours = ACLTrainer(network(), augment=augment, mode="S2S")(images, generator=seeded())
    assert torch.equal(ours.loss, ACLTrainer(network(), mode="S2S")(*augment(images, seeded())).loss)


def test_two_views_are_not_augmented():
    assert ACLTrainer(network(), augment=Shift(), mode="S2S")(*views()).loss.isfinite()


def test_the_loss_may_be_any_function():
    out = ACLTrainer(network(), loss=lambda z1, z2: (z1 - z2).square().mean(), attack=FAST)(*views())
    out.loss.backward()
    assert out.terms["loss_adv"] > 0


def test_the_loss_may_be_a_module_with_parameters():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, z1, z2):
            return self.scale * nt_xent(z1, z2)

    acl = ACLTrainer(network(), loss=Scaled(), attack=FAST)
    acl(*views()).loss.backward()
    assert acl.loss.scale in set(acl.parameters())
    torch.testing.assert_close(acl.loss.scale.grad, acl(*views()).loss.detach(), rtol=0.2, atol=0)


def test_the_attack_may_be_any_function():
    attack, generator = Shift(), seeded()
    ACLTrainer(network(), attack=attack)(*views(), generator=generator)
    assert attack.calls[0][1] is generator


@every_mode
def test_attack_and_augment_get_no_generator_where_there_is_none(mode):
    acl = ACLTrainer(network(), attack=lambda objective, x: x, augment=lambda x: (x, x), mode=mode)
    assert acl(views()[0]).loss.isfinite()


def test_embeddings_of_zeros_have_a_finite_loss_and_gradient():
    model = nn.Sequential(nn.Flatten(), nn.Linear(108, 5))
    nn.init.zeros_(model[1].weight)
    nn.init.zeros_(model[1].bias)
    out = ACLTrainer(model, attack=FAST, mode="A2A")(*views())
    out.loss.backward()
    assert math.isclose(out.loss.item(), math.log(7), rel_tol=1e-6)
    assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients(model).values())


@every_mode
def test_only_the_branches_of_the_mode_get_gradients(mode):
    model = network()
    ACLTrainer(model, attack=FAST, mode=mode)(*views()).loss.backward()
    used = {"S2S": {"clean"}, "A2A": {"adv"}}.get(mode, {"clean", "adv"})
    for branch in ("clean", "adv"):
        assert {parameter.grad is not None for parameter in branch_parameters(model, branch)} == {branch in used}


def test_an_optimizer_from_before_the_conversion_trains_the_new_branch_once_told():
    model = network("single")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    convert_to_dual_bn(model)
    optimizer.add_param_group({"params": branch_parameters(model, "adv")})
    before = [parameter.clone() for parameter in model.parameters()]
    ACLTrainer(model, attack=FAST)(*views()).loss.backward()
    optimizer.step()
    unmoved = [torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    # A batch norm behind it takes away what the bias of a layer adds.
    assert unmoved.count(True) <= 2


@pytest.mark.parametrize("norm", ["single", None])
@pytest.mark.parametrize("mode", ["A2S", "DS"])
def test_a_model_without_dual_norms_is_warned_about_and_runs(mode, norm):
    match = (
        rf"^ACLTrainer: expected dual batch norms for mode '{mode}', got none in Sequential\. "
        r"Call convert_to_dual_bn\(model\) first, unless this is the single-norm ablation\.$"
    )
    with pytest.warns(UserWarning, match=match):
        acl = ACLTrainer(network(norm), attack=FAST, mode=mode)
    acl(*views()).loss.backward()
    assert all(gradient is not None for gradient in gradients(acl.model).values())


@pytest.mark.parametrize("mode", ["S2S", "A2A"])
def test_a_mode_of_one_branch_needs_no_dual_norms(mode):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        acl = ACLTrainer(network("single"), attack=FAST, mode=mode)
    acl(*views()).loss.backward()
    assert set(batches_seen(acl.model).values()) == {1}


def test_the_dual_stream_updates_single_norms_twice():
    with pytest.warns(UserWarning, match="expected dual batch norms"):
        acl = ACLTrainer(network("single"), attack=FAST)
    acl(*views())
    assert set(batches_seen(acl.model).values()) == {2}


def train(step, parameters, n=2):
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    for seed in range(n):
        step(views(seed=seed)).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


class Lit(nn.Module):
    """Stand-in for a Lightning module."""

    def __init__(self, acl):
        super().__init__()
        self.acl = acl

    def training_step(self, batch, batch_index):
        return self.acl(*batch).loss


class Prepared(nn.Module):
    """Wrapper that forwards calls, as accelerate makes it."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


@every_mode
@pytest.mark.parametrize("loop", ["Lightning", "accelerate"])
def test_every_loop_trains_alike(mode, loop):
    plain, wrapped = (ACLTrainer(network(), attack=PGDAttack(random_start=False), mode=mode) for _ in range(2))
    train(lambda batch: plain(*batch).loss, plain.parameters())
    if loop == "Lightning":
        lit = Lit(wrapped)
        train(lambda batch: lit.training_step(batch, 0), lit.parameters())
    else:
        prepared = Prepared(wrapped)
        train(lambda batch: prepared(*batch).loss, prepared.parameters())
    assert all(map(torch.equal, plain.state_dict().values(), wrapped.state_dict().values()))


def test_state_dict_is_that_of_the_model():
    model = network()
    assert ACLTrainer(model).state_dict().keys() == {f"model.{name}" for name in model.state_dict()}


def test_repr_shows_mode_and_alpha():
    assert "mode='A2S', alpha=1.0, attack=PGDAttack(eps=" in repr(ACLTrainer(network(), mode="A2S"))


ALPHA = r"alpha to be a finite number >= 0"
MODE = r"mode to be one of 'S2S', 'A2A', 'A2S', 'DS'"


@pytest.mark.parametrize(
    ("error", "settings", "match"),
    [
        (ValueError, {"mode": "ds"}, rf"{MODE}, got 'ds'\. Did you mean 'DS'\."),
        (ValueError, {"mode": "S2A"}, rf"{MODE}, got 'S2A'\. Choose one of the 4\."),
        (TypeError, {"mode": None}, rf"{MODE}, got NoneType\. Pass mode as a string\."),
        (ValueError, {"alpha": -0.1}, rf"{ALPHA}, got -0\.1\. 1 gives both streams the same weight\."),
        (ValueError, {"alpha": float("nan")}, rf"{ALPHA}, got nan\. 1 gives both streams the same weight\."),
        (ValueError, {"alpha": float("inf")}, rf"{ALPHA}, got inf\. 1 gives both streams the same weight\."),
        (TypeError, {"alpha": "1"}, rf"{ALPHA}, got str\. 1 gives both streams the same weight\."),
        (TypeError, {"alpha": True}, rf"{ALPHA}, got bool\. 1 gives both streams the same weight\."),
        (TypeError, {"loss": 0.5}, r"loss to be callable, got float\. Pass a function, or None\."),
        (TypeError, {"attack": "pgd"}, r"attack to be callable, got str\. Pass a function, or None\."),
        (TypeError, {"augment": True}, r"augment to be callable, got bool\. Pass a function, or None\."),
    ],
)
def test_wrong_settings_are_refused(error, settings, match):
    with pytest.raises(error, match=f"^ACLTrainer: expected {match}$"):
        ACLTrainer(network(), **settings)


def test_a_function_is_no_model():
    match = r"^ACLTrainer: expected model to be an nn\.Module, got function\. Pass the network itself\.$"
    with pytest.raises(TypeError, match=match):
        ACLTrainer(lambda x: x)


X1, X2 = views()
FLOATS = r"Pass float images in \[0, 1\], or uint8 ones to a trainer with augment\."


@pytest.mark.parametrize(
    ("error", "batch", "match"),
    [
        (ValueError, (X1,), r"x2, got None and no augment\. Pass both views, or build the trainer with augment=Con"),
        (
            ValueError,
            (X1, X2[:3]),
            r"x1 and x2 of one shape, dtype and device, got \[4, 3, 6, 6\] torch\.float32 on cpu and \[3, 3, 6, 6\] ",
        ),
        (TypeError, (X1.int(), X2), rf"x1 to be a floating point tensor, got torch\.int32\. {FLOATS}"),
        (TypeError, (X1, X2.byte()), rf"x2 to be a floating point tensor, got torch\.uint8\. {FLOATS}"),
        (
            TypeError,
            (X1, torch.arange(len(X1))),
            rf"x2 to be views, got torch\.int64 of shape \[{len(X1)}\]\. "
            r"Leave the labels out, as data\.ImageStream\(folder\) does: pass images alone, or two views of them\.",
        ),
        (TypeError, (X1.byte(), torch.arange(len(X1))), r"x2 to be views, got torch\.int64 .*\. Leave the labels out"),
        (TypeError, (X1, X2.numpy()), rf"x2 to be a floating point tensor, got ndarray\. {FLOATS}"),
    ],
)
@every_mode
def test_wrong_views_are_refused_before_anything_moves(error, batch, match, mode):
    model = network()
    with pytest.raises(error, match=f"^ACLTrainer: expected {match}"):
        ACLTrainer(model, mode=mode)(*batch)
    assert set(batches_seen(model).values()) == {0}


@every_mode
def test_a_single_pair_has_no_negatives(mode):
    with pytest.raises(
        ValueError,
        match=r"^ACLTrainer: expected at least 2 images, got shape \[1, .*\]\. Skip a short last batch with drop_last",
    ):
        ACLTrainer(network(), loss=NTXentLoss(), attack=FAST, mode=mode)(*views(1))


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_runs_under_inference_mode(mode):
    acl = ACLTrainer(network(), loss=lambda z1, z2: -(z1 * z2).sum(1).mean(), attack=FAST, mode=mode)
    with torch.inference_mode():
        assert acl(*views()).loss.isfinite()


@pytest.mark.parametrize(("augment", "got"), [(lambda x: x, r"torch\.float32"), (lambda x: (x, x, x), "tuple")])
def test_an_augment_that_makes_no_pair_is_named(augment, got):
    with pytest.raises(ValueError, match=rf"^ACLTrainer: expected augment to return a pair, got {got}\."):
        ACLTrainer(network(), augment=augment)(views()[0])


def test_views_of_two_dtypes_are_refused():
    x1, x2 = views()
    with pytest.raises(ValueError, match=r"^ACLTrainer: expected x1 and x2 of one shape, dtype and device"):
        ACLTrainer(network())(x1.float(), x2.double())


@pytest.mark.parametrize("mode", MODES)
def test_a_seed_is_no_generator(mode):
    with pytest.raises(TypeError, match=r"^ACLTrainer: expected generator to be a torch\.Generator"):
        ACLTrainer(network(), mode=mode)(*views(), generator=3)


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = network()

    def forward(self, x):
        return self.inner(x), x


@every_mode
def test_a_model_must_return_embeddings_alone(mode):
    with pytest.raises(TypeError, match=r"^ACLTrainer: expected the result of model to be a .* tensor, got tuple\."):
        ACLTrainer(Two(), mode=mode)(*views())


@every_mode
def test_a_loss_must_be_a_scalar(mode):
    with pytest.raises(ValueError, match=r"^ACLTrainer: expected loss to return a scalar, got shape \[\d+\]\."):
        ACLTrainer(network(), loss=lambda z1, z2: (z1 - z2).square().sum(1), mode=mode)(*views())


@pytest.mark.parametrize("mode", ATTACKED)
@pytest.mark.parametrize(
    ("attack", "error", "match"),
    [
        (lambda objective, x: None, TypeError, "the result of attack to be a .* tensor, got NoneType"),
        (lambda objective, x: x[1:], ValueError, "attack to return shape"),
    ],
)
def test_an_attack_must_return_images(attack, error, match, mode):
    with pytest.raises(error, match=f"^ACLTrainer: expected {match}"):
        ACLTrainer(network(), attack=attack, mode=mode)(*views())


@pytest.mark.parametrize("generator", [np.ones(3), 7], ids=["array", "int"])
def test_a_generator_that_is_none_is_refused(generator):
    message = (
        f"ACLTrainer: expected generator to be a torch.Generator on cpu or None, got {type(generator).__name__}. "
        "Create it with torch.Generator('cpu')."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        ACLTrainer(network(), attack=FAST)(*views(), generator=generator)
