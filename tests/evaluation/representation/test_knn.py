"""Nearest neighbours as a classifier."""

import math

import pytest
import torch
from torch import nn

from advcontrast import ACLTrainer, PGDAttack, bn_branch, fit
from advcontrast.evaluation import accuracy, robust_accuracy
from advcontrast.evaluation.representation import KNNClassifier, knn_monitor
from tests.strategies.networks import network, unlike_branches, views


def labelled(n, seed=0):
    x = views(n, seed=seed)[0]
    return x, torch.arange(n) % 3


def slow_logits(features, bank, labels, k, temperature):
    """Let the neighbours vote one after the other."""
    rows = []
    for f in features:
        similarity = [(float(f @ b / f.norm() / b.norm()), int(y)) for b, y in zip(bank, labels, strict=True)]
        votes = [0.0] * (int(max(labels)) + 1)
        for s, y in sorted(similarity, reverse=True)[:k]:
            votes[y] += math.exp(s / temperature)
        rows.append([math.log(max(v / sum(votes), 1e-6)) for v in votes])
    return torch.tensor(rows)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.1), (5, 0.1), (12, 1.0)])
def test_logits_are_the_votes(k, temperature):
    encoder, (x, y) = network("single").eval(), labelled(12)
    test = views(4, seed=1)[0]
    knn = KNNClassifier(encoder, [(x[:5], y[:5]), (x[5:], y[5:])], k=k, temperature=temperature)
    expected = slow_logits(encoder(test).detach(), encoder(x).detach(), y, k, temperature)
    torch.testing.assert_close(knn(test).detach(), expected, rtol=1e-4, atol=1e-4)


def test_each_image_is_its_own_nearest_neighbour():
    batch = labelled(12)
    assert accuracy(KNNClassifier(network("single"), [batch], k=1), [batch]).accuracy == 1


def test_attacks_find_another_class():
    batch = labelled(12)
    knn = KNNClassifier(network("single"), [batch], k=3)
    clean, attack = accuracy(knn, [batch]).accuracy, PGDAttack(eps=0.3, step_size=0.1, steps=10)
    assert robust_accuracy(knn, [batch], attack).accuracy < clean


def test_features_are_those_of_the_branch():
    model, batch = unlike_branches(network()), labelled(12)
    found = []
    for branch in ("clean", "adv"):
        with bn_branch(model, branch):
            found.append(KNNClassifier(model, [batch], k=3).features)
    assert not torch.allclose(*found)


def test_a_monitored_run_ends_with_the_same_bits(tmp_path):
    ended = []
    for monitored in (False, True):
        torch.manual_seed(0)
        acl = ACLTrainer(network(), attack=PGDAttack(steps=1))
        batch = labelled(12)
        evaluate = knn_monitor(acl.model, [batch], [batch], attack=PGDAttack(steps=1), branch="adv", k=3, every=2)
        history = fit(acl, views(8), epochs=3, batch_size=4, evaluate=evaluate if monitored else None)
        ended.append(acl.state_dict())
    assert [{"knn_ta", "knn_ra"} <= row.keys() for row in history] == [True, False, True]
    assert all(torch.equal(a, b) for a, b in zip(ended[0].values(), ended[1].values(), strict=True))


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"k": 0}, "k to be an int >= 1"),
        ({"k": 13}, "k of at most the 12 images, got 13"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_numbers_out_of_range(settings, match):
    with pytest.raises(ValueError, match=f"^KNNClassifier: expected {match}"):
        KNNClassifier(network("single"), [labelled(12)], **settings)


def test_images_instead_of_features():
    with pytest.raises(ValueError, match=r"^KNNClassifier: expected the output of the model of shape"):
        KNNClassifier(nn.Identity(), [labelled(12)], k=1)
