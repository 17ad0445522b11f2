"""Pseudo-labels: clusters of the features of an encoder."""

import importlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .._checks import check_finite, check_int, check_module, check_real, check_shape, check_tensor, complaint
from ..attacks import under_attack
from ..functional.image import as_floats, check_images

_OWNER = "pseudo_labels"
_BATCH = 500


def pseudo_labels(encoder: nn.Module, images: Tensor, clusters: int | Sequence[int], *, seed: int = 0) -> Tensor:
    """Return the cluster of each image by k-means on the features of an encoder.

    The encoder runs in eval mode and does not change. The k-means is that of scikit-learn, the best of ten starts;
    equal arguments give equal clusters. DynACL++ uses the features before the projection head, of clean images through
    the clean branch, and 10 clusters; AdvCL uses five numbers of clusters.

    Args:
        encoder: images ``[N, C, H, W]`` in [0, 1] to features ``[N, D]``.
        images: images ``[N, C, H, W]``, uint8, or floats in [0, 1].
        clusters: number of clusters, between 1 and N; or a sequence of K numbers.
        seed: seed of the starts, in [0, 2**32).

    Returns:
        Numbers from 0, int64 on the device of the images: ``[N]``, or ``[N, K]`` for a sequence.

    Raises:
        ValueError: more clusters than images, images of another shape or range, or features that are not finite or not
            ``[N, D]``.
        TypeError: an argument has the wrong type.
        ImportError: scikit-learn is not installed.

    Example:
        >>> from advcontrast.strategies import pseudo_labels
        >>> images = torch.tensor([0.0, 0.9, 0.1, 1.0]).view(4, 1, 1, 1)
        >>> y = pseudo_labels(torch.nn.Flatten(), images, 2)
        >>> bool(y[0] == y[2]), bool(y[1] == y[3]), bool(y[0] == y[1])
        (True, True, False)
    """
    check_module(_OWNER, encoder)
    check_images(_OWNER, images)
    check_int(_OWNER, "seed", seed, low=0, remedy="Pass any number from 0")
    check_real(_OWNER, "seed", seed, high=2**32 - 1, remedy="scikit-learn accepts 32 bits only")
    counts = [*clusters] if isinstance(clusters, Sequence) else [clusters]
    if not counts:
        raise ValueError(complaint(_OWNER, "at least one number of clusters", "none", "Pass [2, 10] for example"))
    for count in counts:
        check_int(_OWNER, "clusters", count, low=1, remedy="The number of classes is usual")
        if count > len(images):
            expected = f"clusters of at most {len(images)}, the number of images"
            raise ValueError(complaint(_OWNER, expected, str(count), "Pass more images"))
    try:
        cluster = importlib.import_module("sklearn.cluster")
    except ImportError as error:
        remedy = "Install it with pip install scikit-learn"
        raise ImportError(complaint(_OWNER, "scikit-learn to be installed", str(error), remedy)) from error
    device = next((parameter.device for parameter in encoder.parameters()), images.device)
    with under_attack(encoder), torch.no_grad():
        features = torch.cat([encoder(as_floats(batch.to(device))).cpu() for batch in torch.split(images, _BATCH)])
    remedy = "Pool the feature maps"
    check_tensor(_OWNER, "the output of the encoder", features, remedy=remedy)
    fits = features.dim() == 2 and len(features) == len(images)
    check_shape(_OWNER, "the output of the encoder", features, f"[{len(images)}, D]", fits, remedy=remedy)
    check_finite(_OWNER, "the output of the encoder", features, remedy="Check the weights of the encoder")
    points = features.double().numpy()
    fitted = [cluster.KMeans(count, n_init=10, random_state=seed).fit_predict(points) for count in counts]
    found = [torch.from_numpy(each).long() for each in fitted]
    labels = torch.stack(found, 1) if isinstance(clusters, Sequence) else found[0]
    return labels.to(images.device)
