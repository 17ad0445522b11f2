"""The projection heads."""

import re

import pytest
import torch
from torch import nn

from advcontrast import convert_to_dual_bn
from advcontrast.models import acl_head, simclr_head
from advcontrast.norm import DualBatchNorm


def kinds(head):
    return [type(layer) for layer in head]


def linears(head):
    return [(m.in_features, m.out_features, m.bias is not None) for m in head if isinstance(m, nn.Linear)]


def test_acl_head_has_three_layers_each_with_a_norm():
    once = [nn.Linear, nn.BatchNorm1d]
    assert kinds(acl_head(8)) == [*once, nn.ReLU, *once, nn.ReLU, *once]


def test_acl_head_of_the_authors_has_512_everywhere_and_one_bias():
    assert linears(acl_head(512)) == [(512, 512, True), (512, 512, False), (512, 512, False)]


def test_parameters_of_the_acl_head_are_those_of_the_published_one():
    assert sum(parameter.numel() for parameter in acl_head(512).parameters()) == 786_944 + 3_072


def test_hidden_width_of_the_acl_head_is_that_of_the_features():
    assert linears(acl_head(8)) == [(8, 8, True), (8, 8, False), (8, 512, False)]


def test_widths_of_the_acl_head_are_settings():
    assert linears(acl_head(8, hidden=6, out=4)) == [(8, 6, True), (6, 6, False), (6, 4, False)]


def test_embeddings_of_the_acl_head_are_normalised_over_the_batch():
    z = acl_head(8, out=4)(torch.rand(64, 8))
    torch.testing.assert_close(z.mean(0), torch.zeros(4), rtol=0, atol=1e-5)


def test_all_norms_of_the_acl_head_become_dual():
    head = convert_to_dual_bn(acl_head(4, out=4))
    assert [isinstance(head[i], DualBatchNorm) for i in (1, 4, 7)] == [True] * 3


def test_simclr_head_has_two_layers():
    assert kinds(simclr_head(8)) == [nn.Linear, nn.ReLU, nn.Linear]


def test_simclr_head_yields_128_by_default():
    assert linears(simclr_head(512)) == [(512, 512, True), (512, 128, True)]


def test_widths_of_the_simclr_head_are_settings():
    assert linears(simclr_head(8, hidden=6, out=4)) == [(8, 6, True), (6, 4, True)]


@pytest.mark.parametrize("head", [acl_head, simclr_head])
@pytest.mark.parametrize(
    ("args", "settings", "error", "message"),
    [
        ((0,), {}, ValueError, "num_features to be"),
        (("8",), {}, TypeError, "num_features to be"),
        ((8,), {"hidden": 0}, ValueError, "hidden to be"),
        ((8,), {"out": 0}, ValueError, "out to be"),
    ],
)
def test_wrong_widths(head, args, settings, error, message):
    with pytest.raises(error, match=re.escape(f"{head.__name__}: expected {message}")):
        head(*args, **settings)
