"""Entry points for torch.hub, in a clone: ``torch.hub.load(".", "pretrained", NAME, source="local")``."""

import sys as _sys
from pathlib import Path as _Path
from typing import Any as _Any

from torch import nn as _nn

dependencies = ["torch"]

# A clone need not be installed. Its source is on sys.path during these imports only: whatever the package imports
# later, it finds through itself.
_source = str(_Path(__file__).parent / "src")
_sys.path.insert(0, _source)
try:
    from advcontrast import convert_to_dual_bn as _convert_to_dual_bn
    from advcontrast.models import backbone as _backbone
    from advcontrast.models import pretrained, resnet18, resnet34, resnet50, wide_resnet34_10
finally:
    _sys.path.remove(_source)

__all__ = ["backbone", "pretrained", "resnet18", "resnet34", "resnet50", "wide_resnet34_10"]


def backbone(name: str, *, dual: bool = True, **settings: _Any) -> _nn.Module:
    """Return an untrained encoder by its name, of this package, torchvision or timm, from images in [0, 1] to features.

    Args:
        name: as for ``advcontrast.models.backbone``, for example ``"resnet18"`` or ``"timm/resnet50"``.
        dual: whether its batch norms become dual, with the branches ``"clean"`` and ``"adv"``.
        **settings: ``width`` or ``small_images``, passed on to ``advcontrast.models.backbone``.

    Returns:
        The encoder.
    """
    encoder, _ = _backbone(name, **settings)
    return _convert_to_dual_bn(encoder) if dual else encoder
