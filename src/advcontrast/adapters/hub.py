"""Hugging Face hub: an encoder that is saved with all that rebuilds it, without pickle, and with a model card."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .._checks import complaint
from .._random import kept
from ..evaluation import ResultCard
from ..models import Normalize
from ._hub_network import network
from ._model_card import model_card
from ._plain import fill, plain_copy

try:
    import safetensors.torch  # noqa: F401 (the mixin needs it, and does not ask for it)
    from huggingface_hub import PyTorchModelHubMixin
except ImportError as error:
    needed, remedy = "huggingface_hub and safetensors", "Call pip install huggingface_hub safetensors"
    raise ImportError(complaint("adapters.hub", needed, "no such package", remedy)) from error


class HubEncoder(nn.Module, PyTorchModelHubMixin, library_name="advcontrast", pipeline_tag="image-feature-extraction"):
    """An untrained network of :func:`advcontrast.models.backbone`, whose (mean, std) may be others; see :meth:`of`."""

    def __init__(self, name: str, *, branch: str | None = None, normalize: Any = None, **settings: Any) -> None:
        super().__init__()
        self.encoder, self.num_features, self.config = network("HubEncoder", name, branch, normalize, settings)
        self._hub_mixin_config = self.config

    @classmethod
    def of(cls, encoder: nn.Module, name: str, *, branch: str | None = None, **settings: Any) -> HubEncoder:
        """Return a copy of a trained ``encoder`` that ``backbone(name, **settings)`` made, with one branch only."""
        plain = plain_copy("HubEncoder.of", encoder, branch).cpu()
        layer = next((part for part in plain.modules() if type(part) is Normalize), Normalize())
        with kept(), torch.device("cpu"):  # what is drawn is replaced
            hub = cls(name, branch=branch, normalize=layer.values, **settings)
        fill("HubEncoder.of", hub.encoder, plain, f"what backbone makes of {name!r} and the settings")
        return hub.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return the features ``[N, F]`` of images ``[N, C, H, W]`` in [0, 1]."""
        features: Tensor = self.encoder(x)
        return features

    def generate_model_card(self, *, result: ResultCard | None = None, **metadata: Any) -> Any:
        """Return the card; ``save_pretrained(folder, model_card_kwargs={"result": ..., "license": ...})`` writes it."""
        data = self._hub_mixin_info.model_card_data.to_dict() | metadata  # type: ignore[no-untyped-call]
        return model_card("HubEncoder", self.config, self.num_features, result, data)

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **settings: Any) -> Any:
        with kept(), torch.device("cpu"):
            return super()._from_pretrained(strict=strict, **settings)
