"""Difference of two branches: closed forms, and a model that is restored."""

import math
import re

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from advcontrast import convert_to_dual_bn, set_bn_branch
from advcontrast.evaluation.representation.branch_gap import BranchGap, branch_gap


def model(*widths, **settings):
    """Return a dual network with a norm of each of the widths, whose branches are equal."""
    torch.manual_seed(2)
    layers = [nn.Flatten()]
    for before, width in zip((12, *widths), widths, strict=False):
        layers += [nn.Linear(before, width), nn.BatchNorm1d(width, **settings)]
    return convert_to_dual_bn(nn.Sequential(*layers))


def apart(*widths):
    """Return such a network whose branches differ in everything."""
    network = model(*widths)
    for norm in network[2::2]:
        for branch in (norm.clean, norm.adv):
            branch.running_mean.normal_()
            branch.running_var.uniform_(0.5, 2)
            branch.weight.data.normal_()
            branch.bias.data.normal_()
    return network


def images(n=10):
    return torch.rand(n, 3, 2, 2, generator=torch.Generator().manual_seed(5))


def features(network, branch, x):
    set_bn_branch(network, branch)
    with torch.no_grad():
        return network.eval()(x)


def test_equal_branches_have_no_gap():
    assert branch_gap(model(8, 4), [images()]) == BranchGap(features=0.0, statistics=0.0, affine=0.0)


def test_gap_of_the_features_is_one_minus_the_mean_cosine():
    network, x = apart(8, 4), images()
    expected = 1 - nn.functional.cosine_similarity(features(network, "clean", x), features(network, "adv", x)).mean()
    assert branch_gap(network, [x]).features == pytest.approx(expected.item(), rel=1e-5)


def test_gap_of_opposite_features_is_two():
    network = model(4)
    network[2].adv.weight.data.neg_()
    network[2].adv.bias.data.neg_()
    assert branch_gap(network, [images()]).features == pytest.approx(2, rel=1e-6)


def test_gap_of_the_features_is_a_mean_over_the_images_of_all_batches():
    network, x = apart(4), images()
    assert branch_gap(network, x.split([7, 3])).features == pytest.approx(branch_gap(network, [x]).features, rel=1e-5)


def test_gap_of_the_statistics_is_the_mean_divergence_of_both_directions_over_channels_and_norms():
    network, means = apart(8, 3), []
    for norm in network[2::2]:
        clean, adv = (Normal(b.running_mean, (b.running_var + b.eps).sqrt()) for b in (norm.clean, norm.adv))
        means.append((kl_divergence(clean, adv) + kl_divergence(adv, clean)).mean().item() / 2)
    assert branch_gap(network, [images()]).statistics == pytest.approx(sum(means) / 2, rel=1e-5)


def test_gap_of_the_statistics_is_finite_for_a_channel_that_never_varied():
    network = model(4)
    network[2].adv.running_var.zero_()
    eps = network[2].clean.eps
    assert branch_gap(network, [images()]).statistics == pytest.approx(1 / (4 * eps * (1 + eps)), rel=1e-5)


def test_affine_gap_is_the_distance_relative_to_the_length():
    network = apart(8, 3)
    clean, adv = (
        torch.cat([torch.cat([getattr(norm, branch).weight, getattr(norm, branch).bias]) for norm in network[2::2]])
        for branch in ("clean", "adv")
    )
    expected = (clean - adv).norm() / ((clean.norm() ** 2 + adv.norm() ** 2) / 2).sqrt()
    assert branch_gap(network, [images()]).affine == pytest.approx(expected.item(), rel=1e-5)


def test_affine_gap_of_opposite_parameters_is_two():
    network = model(4)
    network[2].adv.weight.data.neg_()
    assert branch_gap(network, [images()]).affine == pytest.approx(2, rel=1e-12)


def test_affine_gap_of_parameters_that_are_all_zero_is_zero():
    network = model(4)
    for parameter in network[2].parameters():
        parameter.data.zero_()
    assert branch_gap(network, [images()]).affine == 0


def test_norms_without_scale_and_shift_have_no_affine_gap():
    assert branch_gap(model(4, affine=False), [images()]).affine == 0


def test_norms_without_running_statistics_have_no_gap_in_them():
    assert branch_gap(model(4, track_running_stats=False), [images()]).statistics == 0


def test_norms_without_running_statistics_do_not_dilute_those_of_others():
    network = model(4, 4)
    network[2].adv.running_mean.add_(1)
    alone = branch_gap(network, [images()]).statistics
    network[4] = model(4, track_running_stats=False)[2]
    assert branch_gap(network, [images()]).statistics == pytest.approx(2 * alone, rel=1e-12)


def test_gap_is_the_same_from_either_branch():
    network = apart(4)
    expected = branch_gap(network, [images()])
    set_bn_branch(network, "adv")
    assert branch_gap(network, [images()]) == expected


def test_one_image_labels_and_a_generator_will_do():
    network, x = apart(4), images()
    assert branch_gap(network, ((part, "label") for part in x[:1].split(1))) == branch_gap(network, [x[:1]])


def gap_of_a_model_in_use(data, error=None):
    """Return whether modes, flags, branches, values and random state survive a call, also one that raises."""
    network = apart(4, 4).train()
    network[2].eval()
    network[1].weight.requires_grad_(False)
    network[4].branch = "adv"

    def state():
        modes = [part.training for part in network.modules()]
        flags = [(weight.requires_grad, weight.grad) for weight in network.parameters()]
        return modes, flags, [norm.branch for norm in network[2::2]], torch.get_rng_state().tolist()

    before, values = state(), {name: value.clone() for name, value in network.state_dict().items()}
    if error:
        with pytest.raises(error):
            branch_gap(network, data)
    else:
        branch_gap(network, data)
    equal = all(torch.equal(value, values[name]) for name, value in network.state_dict().items())
    return state() == before and equal


def test_model_is_left_as_it_was():
    assert gap_of_a_model_in_use([images()])


def test_model_is_left_as_it_was_when_something_raises():
    def data():
        yield images()
        torch.rand(1)
        raise ZeroDivisionError

    assert gap_of_a_model_in_use(data(), ZeroDivisionError)


def test_dropout_sleeps():
    network = nn.Sequential(apart(4), nn.Dropout(0.5))
    assert branch_gap(network, [images()]) == branch_gap(network[0], [images()])


def test_gaps_are_floats():
    gap = branch_gap(apart(4), [images()])
    assert [type(value) for value in (gap.features, gap.statistics, gap.affine)] == [float] * 3
    assert all(math.isfinite(value) and value > 0 for value in (gap.features, gap.statistics, gap.affine))


@pytest.mark.parametrize(
    ("network", "data", "error", "message"),
    [
        (
            nn.Sequential(nn.Flatten(), nn.BatchNorm1d(12)),
            [images()],
            ValueError,
            "a model with dual batch norms, found none in Sequential. Call convert_to_dual_bn(model) first.",
        ),
        (print, [images()], TypeError, "model"),
        (model(4), [], ValueError, "a batch of at least 1 image"),
        (model(4), images(), TypeError, "batches"),
        (model(4), [images() + 1], ValueError, "images"),
        (
            model(4).append(nn.Unflatten(1, (2, 2))),
            [images()],
            ValueError,
            "the output of the model",
        ),
        (
            model(4).append(nn.Threshold(1e9, math.nan)),
            [images()],
            ValueError,
            "features",
        ),
    ],
)
def test_wrong_calls(network, data, error, message):
    with pytest.raises(error, match=re.escape(message)) as caught:
        branch_gap(network, data)
    assert str(caught.value).startswith("branch_gap: expected ")
