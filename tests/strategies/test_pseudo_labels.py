"""Clusters of features: determinism, shapes and errors."""

import sys

import pytest
import torch
from torch import nn

from advcontrast.strategies import pseudo_labels
from tests.strategies.networks import flags, network


def groups(n=3, size=6):
    """Return images of ``n`` shades with noise, and the number of the shade of each."""
    shade = torch.arange(n).repeat(size)
    noise = 0.02 * torch.rand(n * size, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return 0.9 * shade.view(-1, 1, 1, 1) / n + noise, shade


def test_clusters_are_the_groups_of_the_images():
    images, shade = groups()
    y = pseudo_labels(nn.Flatten(), images, 3)
    assert (y.dtype, y.shape) == (torch.int64, (18,))
    assert len({*zip(y.tolist(), shade.tolist(), strict=True)}) == 3


def test_bytes_are_images_too():
    images, _ = groups()
    levels, encoder = (255 * images).round().byte(), nn.Sequential(nn.Flatten(), nn.Tanh())
    assert torch.equal(pseudo_labels(encoder, levels, 3), pseudo_labels(encoder, levels.float() / 255, 3))


def test_equal_seeds_give_equal_clusters_and_others_may_not():
    images = torch.rand(300, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    first, again, other = (pseudo_labels(nn.Flatten(), images, 10, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_several_numbers_give_a_column_each():
    images, _ = groups()
    y = pseudo_labels(nn.Flatten(), images, [2, 3])
    assert y.shape == (18, 2)
    assert [int(column.max()) for column in y.unbind(1)] == [1, 2]
    assert torch.equal(y[:, 1], pseudo_labels(nn.Flatten(), images, 3))


def test_the_encoder_and_the_random_state_do_not_change():
    encoder, (images, _) = network("single"), groups()
    before, state = flags(encoder), {name: value.clone() for name, value in encoder.state_dict().items()}
    random = torch.get_rng_state()
    pseudo_labels(encoder, images, 3)
    assert flags(encoder) == before
    assert all(torch.equal(state[name], value) for name, value in encoder.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize(
    ("change", "error", "argument"),
    [
        ({"encoder": torch.flatten}, TypeError, "model"),
        ({"encoder": nn.Identity()}, ValueError, "the output of the encoder"),
        ({"clusters": 0}, ValueError, "clusters"),
        ({"clusters": [2, 19]}, ValueError, "clusters"),
        ({"clusters": 2.0}, TypeError, "clusters"),
        ({"seed": -1}, ValueError, "seed"),
        ({"images": torch.full((18, 3, 2, 2), 2.0)}, ValueError, "x within bounds"),
    ],
)
def test_an_argument_is_refused(change, error, argument):
    settings = {"encoder": nn.Flatten(), "images": groups()[0], "clusters": 2, **change}
    with pytest.raises(error, match=rf"^pseudo_labels: expected .*{argument}"):
        pseudo_labels(**settings)


def test_features_that_are_not_finite_are_refused():
    class Broken(nn.Module):
        def forward(self, x):
            return x.flatten(1) / 0

    with pytest.raises(ValueError, match=r"^pseudo_labels: expected the output of the encoder to be finite"):
        pseudo_labels(Broken(), groups()[0], 2)


def test_the_library_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ImportError, match=r"^pseudo_labels: expected scikit-learn to be installed"):
        pseudo_labels(nn.Flatten(), groups()[0], 2)
