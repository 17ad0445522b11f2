"""A dual-stream step written out straight: interleaved views, summed exponentials, one branch after the other."""

import math

import pytest
import torch

from advcontrast import ACLTrainer, PGDAttack, bn_branch
from tests.strategies.networks import gradients, network, unlike_branches, views

EPS, STEP, STEPS, TEMPERATURE = 8 / 255, 2 / 255, 5, 0.5

# Largest measured difference in brackets.
STEP_TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-14}  # (3.6e-7, 9.5e-16)
TRAINING_TOLERANCE = 1e-13  # (2.9e-16, after three steps in float64)


def interleaved(x1, x2):
    """Return rows of which 2i and 2i + 1 are the views of image i."""
    return torch.stack([x1, x2], 1).flatten(0, 1)


def summed_exponentials(z):
    """Return NT-Xent of interleaved embeddings: all exponentials of an anchor, less its own."""
    z = z / z.norm(dim=1, keepdim=True)
    similarity = z @ z.T / TEMPERATURE
    partner = torch.arange(len(z)) ^ 1
    normaliser = similarity.exp().sum(1) - math.exp(1 / TEMPERATURE)
    return (normaliser.log() - similarity[torch.arange(len(z)), partner]).mean()


def contrastive_pgd(model, x, start):
    """Return interleaved images ``x`` attacked from ``start`` through the adversarial branch in eval mode."""
    model.eval()
    delta = start - x
    for _ in range(STEPS):
        delta = delta.detach().requires_grad_()
        with bn_branch(model, "adv"):
            (slope,) = torch.autograd.grad(summed_exponentials(model(x + delta)), delta)
        delta = (delta.detach() + STEP * slope.sign()).clamp(-EPS, EPS)
        delta = (x + delta).clamp(0, 1) - x
    model.train()
    return (x + delta).detach()


def dual_stream_loss(model, x, x_adv):
    """Return the loss of a step on interleaved images: the adversarial forward pass first."""
    with bn_branch(model, "adv"):
        adversarial = summed_exponentials(model(x_adv))
    with bn_branch(model, "clean"):
        clean = summed_exponentials(model(x))
    return (adversarial + clean) / 2


def start_of(attack, x1, x2, seed):
    """Return where a random start with this seed puts the images."""
    nowhere = PGDAttack(eps=attack.eps, steps=0)
    return nowhere(torch.sum, torch.cat([x1, x2]), generator=torch.Generator().manual_seed(seed)).chunk(2)


def pair_of_models(dtype):
    return [unlike_branches(network(dtype=dtype)) for _ in range(2)]


def assert_equal(ours, theirs, tolerance):
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(
            value, theirs[name], rtol=tolerance, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


def buffers(model):
    return {name: buffer.double() for name, buffer in model.named_buffers()}


@pytest.mark.parametrize("what", ["loss", "gradients", "buffers"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(5))
def test_a_step_with_given_perturbations(what, dtype, seed):
    (x1, x2), deltas = views(16, dtype=dtype, seed=seed), views(16, dtype=dtype, seed=100 + seed)
    x1_adv, x2_adv = (x + EPS * (2 * delta - 1) for x, delta in zip((x1, x2), deltas, strict=True))
    ours, theirs = pair_of_models(dtype)
    out = ACLTrainer(ours, attack=lambda objective, x: torch.cat([x1_adv, x2_adv]))(x1, x2)
    out.loss.backward()
    expected = dual_stream_loss(theirs, interleaved(x1, x2), interleaved(x1_adv, x2_adv))
    expected.backward()
    values = {
        "loss": ({"loss": out.loss}, {"loss": expected}),
        "gradients": (gradients(ours), gradients(theirs)),
        "buffers": (buffers(ours), buffers(theirs)),
    }
    assert_equal(*values[what], STEP_TOLERANCE[dtype])


@pytest.mark.parametrize("seed", range(5))
def test_the_contrastive_attack_from_a_given_start(seed):
    x1, x2 = views(16, dtype=torch.float64, seed=seed)
    model, seen = unlike_branches(network(dtype=torch.float64)), []
    attack = PGDAttack(eps=EPS, step_size=STEP, steps=STEPS)

    def noted(objective, x, *, generator):
        seen.append(attack(objective, x, generator=generator))
        return seen[-1]

    theirs = contrastive_pgd(model, interleaved(x1, x2), interleaved(*start_of(attack, x1, x2, seed)))
    ACLTrainer(model, attack=noted)(x1, x2, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(interleaved(*seen[0].chunk(2)), theirs, rtol=0, atol=1e-15)


def test_three_steps_of_training():
    ours, theirs = pair_of_models(torch.float64)
    acl = ACLTrainer(ours, attack=PGDAttack(eps=EPS, step_size=STEP, steps=STEPS))
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9) for model in (ours, theirs)]
    for seed in range(3):
        x1, x2 = views(16, dtype=torch.float64, seed=seed)
        acl(x1, x2, generator=torch.Generator().manual_seed(seed)).loss.backward()
        x = interleaved(x1, x2)
        x_adv = contrastive_pgd(theirs, x, interleaved(*start_of(acl.attack, x1, x2, seed)))
        dual_stream_loss(theirs, x, x_adv).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    assert_equal(ours.state_dict(), theirs.state_dict(), TRAINING_TOLERANCE)
