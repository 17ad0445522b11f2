"""Selfie learns where patches belong, and leaves alone what it does not train."""

import re
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel as DDP

from advcontrast import PGDAttack
from advcontrast.engine import fit
from advcontrast.models import resnet18, resnet50
from advcontrast.optim import LARS

CIFAR = str(Path(__file__).parents[2] / "examples" / "cifar")
TOLERANCE = 1e-5  # of logits in float32
ORDER = torch.tensor([6, 3, 12, 9, 0, 1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 15])
NO_ATTACK = PGDAttack(eps=0.0, steps=0)


@pytest.fixture
def selfie(monkeypatch):
    monkeypatch.syspath_prepend(CIFAR)
    from baselines import selfie

    return selfie


def encoder(width=4):
    return resnet18(num_classes=3, width=width)


def learner(selfie, *, attack=None, **settings):
    torch.manual_seed(0)
    attack = PGDAttack(steps=2) if attack is None else attack
    return selfie.SelfieLearner(encoder(), attack=attack, layers=1, **settings)


def images(n=4, size=16):
    return torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8)


def test_patches_are_numbered_row_by_row(selfie):
    x = torch.rand(2, 3, 8, 12)
    expected = [image[:, 2 * r : 2 * r + 2, 3 * c : 3 * c + 3] for image in x for r in range(4) for c in range(4)]
    assert torch.equal(selfie.cut(x), torch.stack(expected))


def test_features_are_those_of_the_first_three_stages(selfie):
    model = learner(selfie).model.eval()
    stages = {}
    model.encoder.layer3.register_forward_hook(lambda module, x, y: stages.update(third=y))
    x = torch.rand(2, 3, 32, 32)
    features = model.features(x)
    for k in range(16):
        row, column = 8 * (k // 4), 8 * (k % 4)
        model.encoder(x[:, :, row : row + 8, column : column + 8])
        expected = stages["third"].mean((2, 3))
        torch.testing.assert_close(features[:, k], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("size", [16, 32])
def test_logits_have_a_row_a_place_and_a_column_a_hidden_patch(selfie, size):
    model = learner(selfie).model
    x = torch.rand(3, 3, size, size)
    assert model.features(x).shape == (3, 16, 16)
    assert model(x, ORDER).shape == (3, 4, 4)


def test_logits_compare_token_plus_place_with_each_hidden_patch(selfie):
    model = learner(selfie).model.eval()
    torch.nn.init.normal_(model.column)
    torch.nn.init.normal_(model.token)
    x = torch.rand(2, 3, 16, 16)
    features = model.features(x)
    for n in range(2):
        context = [features[n, k] for k in ORDER[4:]]
        summary = model.pooling(torch.stack([model.token, *context])[None])[0, 0]
        for i in range(4):
            query = summary + model.row[ORDER[i] // 4] + model.column[ORDER[i] % 4]
            for j in range(4):
                expected = query @ features[n, ORDER[j]]
                torch.testing.assert_close(model(x, ORDER)[n, i, j], expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_another_order_of_the_hidden_patches_reorders_the_logits(selfie):
    model = learner(selfie).model.eval()
    x, swap = torch.rand(2, 3, 16, 16), torch.tensor([2, 0, 3, 1])
    other = torch.cat([ORDER[:4][swap], ORDER[4:]])
    expected = model(x, ORDER)[:, swap][:, :, swap]
    torch.testing.assert_close(model(x, other), expected, rtol=TOLERANCE, atol=TOLERANCE)


def test_the_order_of_the_context_does_not_matter(selfie):
    model = learner(selfie).model.eval()
    x, other = torch.rand(2, 3, 16, 16), torch.cat([ORDER[:4], ORDER[4:].flip(0)])
    torch.testing.assert_close(model(x, other), model(x, ORDER), rtol=TOLERANCE, atol=TOLERANCE)


def test_the_pixels_of_hidden_patches_do_not_reach_the_token(selfie):
    model = learner(selfie).model.eval()
    x = torch.rand(1, 3, 16, 16)
    changed = x.clone()
    changed[:, :, 4:8, 8:12] = 0  # patch 6, the first hidden one
    before, after = model(x, ORDER), model(changed, ORDER)
    assert not torch.equal(after[:, :, 0], before[:, :, 0])
    torch.testing.assert_close(after[:, :, 1:], before[:, :, 1:], rtol=0, atol=TOLERANCE)


def test_transformer_of_the_full_network_has_sixteen_heads_of_sixteen(selfie):
    attention = selfie.Jigsaw(encoder(width=64), layers=1).pooling[0].self_attn
    assert (attention.embed_dim, attention.num_heads) == (256, 16)


@pytest.mark.parametrize("width", [1, 3, 4, 12, 25])
def test_every_width_has_heads_that_fit(selfie, width):
    assert selfie.Jigsaw(encoder(width), layers=1)(torch.rand(2, 3, 16, 16), ORDER).isfinite().all()


def test_bottlenecks_are_as_welcome(selfie):
    model = selfie.Jigsaw(resnet50(width=2), layers=1)
    assert model(torch.rand(2, 3, 16, 16), ORDER).shape == (2, 4, 4)


def test_judge_is_cross_entropy_with_each_patch_in_its_own_place(selfie):
    step = learner(selfie).eval()
    x = torch.rand(3, 3, 16, 16)
    logits = step.model(x, ORDER)
    loss, accuracy = step.judge(x, ORDER)
    expected = [F.cross_entropy(row, torch.tensor(i)) for table in logits for i, row in enumerate(table)]
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    right = [row.argmax().item() == i for table in logits for i, row in enumerate(table)]
    assert accuracy.item() == pytest.approx(sum(right) / 12)


@pytest.mark.parametrize("size", [16, 32])
def test_loss_is_the_mean_of_both_terms(selfie, size):
    out = learner(selfie)(images(size=size))
    assert list(out.terms) == ["loss_clean", "accuracy_clean", "loss_adv", "accuracy_adv"]
    assert torch.equal(out.loss.detach(), (out.terms["loss_clean"] + out.terms["loss_adv"]) / 2)
    assert not any(term.requires_grad for term in out.terms.values())
    assert all(0 <= out.terms[name] <= 1 for name in ("accuracy_clean", "accuracy_adv"))


def test_attack_raises_the_loss_with_the_same_permutation_in_eval_mode(selfie):
    step = learner(selfie, attack=PGDAttack(steps=5))
    # Dropout and batch statistics would make the two terms differ without any attack.
    step.eval()
    for _ in range(3):
        terms = step(images()).terms
        assert terms["loss_adv"] > terms["loss_clean"]


def test_without_a_perturbation_both_terms_agree(selfie):
    terms = learner(selfie, attack=NO_ATTACK).eval()(images()).terms
    assert torch.equal(terms["loss_adv"], terms["loss_clean"])


def test_attack_meets_a_frozen_network_in_eval_mode(selfie):
    seen = []

    def attack(objective, x):
        seen.extend((module.training, all(not p.requires_grad for p in module.parameters())) for module in modules)
        return PGDAttack(steps=1)(objective, x)

    step = learner(selfie, attack=attack)
    modules = list(step.model.modules())
    step(images())
    assert seen == [(False, True)] * len(modules)


def test_forward_leaves_modes_flags_and_gradients_as_they_were(selfie):
    step = learner(selfie)
    step.model.encoder.bn1.eval()
    step.model.encoder.conv1.requires_grad_(False)
    step(images())
    assert [name for name, module in step.named_modules() if not module.training] == ["model.encoder.bn1"]
    assert [name for name, p in step.named_parameters() if not p.requires_grad] == ["model.encoder.conv1.weight"]
    assert all(parameter.grad is None for parameter in step.parameters())


def test_modes_and_flags_come_back_after_an_error(selfie):
    def attack(objective, x):
        raise ArithmeticError

    step = learner(selfie, attack=attack)
    with pytest.raises(ArithmeticError):
        step(images())
    assert all(module.training for module in step.modules())
    assert all(parameter.requires_grad for parameter in step.parameters())


def test_permutations_come_from_the_global_generator(selfie):
    step = learner(selfie, attack=NO_ATTACK, augment=lambda x: x.float() / 255).eval()
    batch, losses = images(), []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        losses.append(step(batch).loss.item())
    assert losses[0] == losses[1] != losses[2]


def test_default_augmentation_shifts_by_two_pixels_and_mirrors_nothing(selfie):
    assert repr(learner(selfie).augment) == "CropFlip(2, flip=0.0)"


@pytest.mark.parametrize("optimizer", [LARS, torch.optim.SGD, torch.optim.AdamW])
def test_last_stage_and_classifier_stay_as_they_were(selfie, optimizer):
    step = learner(selfie)
    before = {name: value.clone() for name, value in step.model.encoder.state_dict().items()}
    descent = optimizer(step.parameters(), lr=0.1, weight_decay=0.1)
    for _ in range(2):
        step(images()).loss.backward()
        descent.step()
        descent.zero_grad()
    for name, value in step.model.encoder.state_dict().items():
        assert torch.equal(value, before[name]) == name.startswith(("layer4.", "fc.")), name


def test_ddp_is_told_of_exactly_the_parameters_without_gradients(selfie):
    step = learner(selfie)
    step(images()).loss.backward()
    idle = {name for name, parameter in step.named_parameters() if parameter.grad is None}
    assert idle == set(step._ddp_params_and_buffers_to_ignore)
    assert idle


def train_on_a_rank():
    sys.path.insert(0, CIFAR)
    try:
        from baselines import selfie
    finally:
        sys.path.remove(CIFAR)
    step = learner(selfie)
    ddp = DDP(step)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    for seed in range(3):
        torch.manual_seed(10 * seed + dist.get_rank())
        ddp(images()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name: parameter.tolist() for name, parameter in step.named_parameters()}


@pytest.mark.distributed
def test_two_processes_keep_the_same_weights(ranks):
    ours, theirs = ranks.run(train_on_a_rank)
    assert ours == theirs


@pytest.mark.nightly
def test_four_images_can_be_learned(selfie):
    step = learner(selfie, attack=PGDAttack(eps=2 / 255, steps=1), augment=lambda x: x.float() / 255)
    batch = images(size=16)
    optimizer = torch.optim.Adam(step.parameters(), lr=3e-3)
    losses = []
    for _ in range(120):
        out = step(batch)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(out.loss.item())
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])


def test_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(selfie, tmp_path):
    batch = images()

    def train(evaluate=None, folder=None):
        step = learner(selfie)
        optimizer = torch.optim.SGD(step.parameters(), lr=0.05, momentum=0.9)
        save_every = None if folder is None else 1
        fit(
            step,
            batch,
            epochs=2,
            batch_size=2,
            optimizer=optimizer,
            evaluate=evaluate,
            folder=folder,
            save_every=save_every,
        )
        return step.state_dict()

    def breaks_down(epoch):
        if epoch == 2:
            raise ArithmeticError
        return {}

    whole = train()
    with pytest.raises(ArithmeticError):
        train(breaks_down, tmp_path)
    resumed = train(None, tmp_path)
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


@pytest.mark.parametrize("shape", [(2, 3, 30, 32), (2, 3, 32, 30), (3, 32, 32)])
def test_images_that_cannot_be_cut_are_refused(selfie, shape):
    expected = "images of shape [N, 3, H, W] with H and W multiples of 4"
    message = f"SelfieLearner: expected {expected}, got {list(shape)}. Crop or resize them."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        learner(selfie)(torch.zeros(shape, dtype=torch.uint8))


def test_other_networks_are_refused(selfie):
    message = "SelfieLearner: expected encoder to be a ResNet, got Identity. Pass resnet18()."
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        selfie.SelfieLearner(torch.nn.Identity(), attack=NO_ATTACK)


def test_a_transformer_without_layers_is_refused(selfie):
    message = "SelfieLearner: expected layers to be at least 1, got 0. 3 is the default."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        selfie.SelfieLearner(encoder(), attack=NO_ATTACK, layers=0)


def test_settings_are_shown(selfie):
    assert learner(selfie).extra_repr() == f"{PGDAttack(steps=2)!r}, CropFlip(2, flip=0.0), layers=1"
