"""Encoders by name, from this package, torchvision or timm."""

import copy
import difflib
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_bool, check_type, complaint, type_name
from .normalize import Normalize
from .resnet import resnet18, resnet34, resnet50
from .stem import cifar_stem, first_convolution
from .wide_resnet import wide_resnet34_10

_OWN: dict[str, Any] = {make.__name__: make for make in (resnet18, resnet34, resnet50, wide_resnet34_10)}
_LIBRARIES = ("torchvision", "timm")
# With the default settings both return a tuple in train mode, and warn about the initialisation of their weights.
_TORCHVISION_SETTINGS = {name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")}


def backbone(name: str, *, width: int | None = None, small_images: bool = True) -> tuple[nn.Module, int]:
    """Return an untrained encoder, from images ``[N, 3, H, W]`` to features ``[N, F]``, and the number F.

    A name is looked up in this package (``"resnet18"``, ``"resnet34"``, ``"resnet50"``, ``"wide_resnet34_10"``), then
    in torchvision, then in timm; ``"torchvision/resnet18"`` and ``"timm/resnet18"`` choose the library. Networks of
    other libraries lose their classifier and get a :class:`Normalize` in front, so that they take images in [0, 1] too.

    Args:
        name: name of the network.
        width: channels of the first stage, for the networks of this package only; ``None`` for the usual number.
        small_images: whether to give a ResNet of torchvision or timm the stem of :func:`cifar_stem`. Other networks are
            not changed, and may not take small images.

    Raises:
        ValueError: the name is unknown, the network has no classifier to remove or no flat features, ``width`` is < 1
            or is given for a network of another library, or ``small_images`` is False for one of this package.
        TypeError: an argument has the wrong type.
        ImportError: the library in the name is not installed.

    Example:
        >>> encoder, features = backbone("resnet18", width=4)
        >>> encoder(torch.rand(2, 3, 32, 32)).shape, features
        (torch.Size([2, 32]), 32)
    """
    check_type("backbone", "name", name, str, remedy='For example "resnet18"')
    check_bool("backbone", "small_images", small_images, remedy="False keeps the stem of a ResNet for large images")
    if name in _OWN:
        if not small_images:
            remedy = f'Pass "torchvision/{name}" for large images' if name.startswith("resnet") else "Leave it out"
            raise ValueError(complaint("backbone", f"small_images=True for {name}", "False", remedy))
        own = _OWN[name](0, **({} if width is None else {"width": width}))
        return own, own.num_features
    library, rest = _find(name)
    if width is not None:
        remedy = f"Leave it out, or choose one of {', '.join(_OWN)}"
        raise ValueError(complaint("backbone", f"no width for {name}", repr(width), remedy))
    model = _without_classifier(library, rest)
    if small_images and first_convolution(model) is not None:
        cifar_stem(model)
    return nn.Sequential(Normalize(), model), _num_features(name, model)


def _find(name: str) -> tuple[str, str]:
    """Return the library of a network, and the name of the network in it."""
    prefix, _, rest = name.partition("/")
    explicit, hint = prefix in _LIBRARIES, ""
    libraries, known, wanted = ([prefix], [], rest) if explicit else (list(_LIBRARIES), list(_OWN), name)
    for library in libraries:
        try:
            names = _names(library)
        except ImportError as error:
            if explicit:
                expected, remedy = f"{library} to be installed", f"Install it with pip install {library}"
                raise ImportError(complaint("backbone", expected, "no such package", remedy)) from error
            hint += f"; {library}, which is not installed, was not searched"
            continue
        if wanted in names:
            return library, wanted
        known += [f"{library}/{each}" for each in names] if explicit else names
    close = difflib.get_close_matches(name, dict.fromkeys(known))
    remedy = f"Did you mean {' or '.join(map(repr, close))}" if close else "Choose one that they list"
    expected = f"the name of a network of {prefix if explicit else ' or '.join(['advcontrast', *libraries])}"
    raise ValueError(complaint("backbone", expected, repr(name), remedy + hint))


def _names(library: str) -> list[str]:
    if library == "timm":
        import timm

        return timm.list_models()
    from torchvision import models

    return list(models.list_models(module=models))


def _without_classifier(library: str, name: str) -> nn.Module:
    """Return an untrained network of a library; one of torchvision gets an identity as its last linear layer."""
    if library == "timm":
        import timm

        return timm.create_model(name, num_classes=0)
    from torchvision import models

    model: nn.Module = models.get_model(name, weights=None, **_TORCHVISION_SETTINGS.get(name, {}))
    path, last = [(path, part) for path, part in model.named_modules() if part._parameters][-1]
    if not isinstance(last, nn.Linear):
        expected, remedy = f"{name} to end in a linear layer", "Choose a network with a linear classifier"
        raise ValueError(complaint("backbone", expected, type(last).__name__, remedy))
    model.set_submodule(path, nn.Identity())
    return model


def _num_features(name: str, model: nn.Module) -> int:
    """Return the number of features of ``model``, from a copy on the meta device."""
    shapes: dict[int, Any] = {id(tensor): tensor.to("meta") for tensor in model.buffers()}
    shapes |= {id(tensor): nn.Parameter(tensor.to("meta"), requires_grad=False) for tensor in model.parameters()}
    twin = copy.deepcopy(model, shapes).eval()
    size = getattr(model, "pretrained_cfg", {}).get("input_size", (3, 224, 224))
    with torch.device("meta"), torch.no_grad():
        features = twin(torch.empty(1, *size))
    if not isinstance(features, Tensor) or features.dim() != 2:
        got = f"{list(features.shape)}" if isinstance(features, Tensor) else type_name(features)
        remedy = "Choose a network that pools its features"
        raise ValueError(complaint("backbone", f"{name} to yield features [N, F]", got, remedy))
    return features.shape[1]
