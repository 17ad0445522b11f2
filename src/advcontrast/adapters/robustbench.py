"""robustbench: export a network for its benchmark, and write its ``model_info``; robustbench itself is not needed."""

import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import _deprecated
from .._checks import check_finite, check_real, check_tensor, check_type, check_within, complaint, type_name
from .._random import preserve_rng_state
from ..evaluation import ResultCard
from ..evaluation.inputs import checked_logits, device_of, refuse_probabilities
from ..models.normalize import Normalize, Statistics, input_layer
from ._export import plain_copy

__all__ = ["export_plain", "robustbench_model_info"]

_KINDS: dict[str, type] = dict.fromkeys(("link", "name", "authors", "dataset", "venue", "architecture"), str)
_KINDS["additional_data"] = bool


def export_plain(
    model: nn.Module, images: Tensor, *, branch: str | None = None, normalize: Statistics | None = None
) -> nn.Module:
    """Return a copy of a classifier in eval mode, with one branch, from images in [0, 1] to logits.

    ``normalize=(mean, std)`` is for a model that does not normalise its input. The copy is checked on ``images``
    ``[N, C, H, W]``: it must return finite logits ``[N, classes]``, the same in two calls, and no probabilities.
    """
    owner = "export_plain"
    plain: nn.Module = plain_copy(owner, model, branch)
    check_tensor(owner, "images", images, remedy="Convert 8-bit images with images.float() / 255")
    if images.dim() != 4 or not images.numel():
        raise ValueError(complaint(owner, "images [N, C, H, W] with N >= 1", f"{list(images.shape)}", "Pass some"))
    check_within(owner, "images", images, (0.0, 1.0), remedy="Pass images of the test set in [0, 1]")
    if normalize is not None:
        if any(isinstance(module, Normalize) for module in plain.modules()):
            raise ValueError(complaint(owner, "a model without Normalize", "one with it", "Leave out normalize"))
        plain = nn.Sequential(input_layer(owner, normalize, images.shape[1]), plain).to(device_of(plain)).eval()
    x, labels = images.to(device_of(plain)), torch.zeros(len(images), dtype=torch.int64)
    with preserve_rng_state(), torch.no_grad():
        logits, again = (checked_logits(owner, plain, x, labels) for _ in range(2))
        refuse_probabilities(owner, plain, x, logits)
    check_finite(owner, "the logits", logits.cpu(), remedy="Look for a division by zero in the model")
    if not torch.equal(logits, again):
        raise ValueError(complaint(owner, "the same logits twice", "others", "Remove the source of randomness"))
    return plain


def robustbench_model_info(figures: ResultCard | Mapping[str, float], *, eps: float, **about: Any) -> str:
    """Return the JSON of robustbench's ``model_info`` for a card of one run, or for ``{"TA": 0.82, "AA": 0.5}``.

    TA and AA are fractions, for the whole test set; ``eps`` is in units of pixels. ``about`` are the strings link,
    name, authors, dataset ("cifar10"), venue and architecture, and whether additional_data was used.
    """
    owner = "robustbench_model_info"
    if isinstance(figures, ResultCard) and len(figures.seeds) != 1:
        raise ValueError(complaint(owner, "a card of one run", f"{len(figures.seeds)} runs", "Pass one for each model"))
    found = {k: r.mean for k, r in figures.results.items()} if isinstance(figures, ResultCard) else figures
    if not isinstance(found, Mapping) or not {"TA", "AA"} <= found.keys():
        got = ", ".join(map(str, found)) or "none" if isinstance(found, Mapping) else type_name(found)
        raise ValueError(complaint(owner, "figures with TA and AA", got, "Evaluate with autoattack first"))
    check_real(owner, "TA", found["TA"], low=0, high=1, remedy="Pass fractions, not percent")
    check_real(owner, "AA", found["AA"], low=0, high=float(found["TA"]), remedy="Attacks cannot raise the accuracy")
    check_real(owner, "eps", eps, low=0, above=True, remedy="Pass the radius in units of pixels, such as 8 / 255")
    if about.keys() != _KINDS.keys():
        raise TypeError(complaint(owner, ", ".join(_KINDS), ", ".join(about) or "none", "Pass these and no others"))
    for name, kind in _KINDS.items():
        check_type(owner, name, about[name], kind, remedy="Pass one")
    pixels = round(255 * eps) if eps < 1 else 0
    radius = f"{pixels}/255" if pixels and abs(255 * eps - pixels) < 1e-6 else f"{eps:g}"
    clean, robust = (f"{100 * found[name]:.2f}" for name in ("TA", "AA"))
    entries = {"number_forward_passes": 1, "eps": radius, "clean_acc": clean, "reported": robust}
    return json.dumps({**about, **entries, "autoattack_acc": robust}, indent=2) + "\n"


_deprecated.serve_old_names(__name__)
