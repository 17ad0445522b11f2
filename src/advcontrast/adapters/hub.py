"""Hugging Face hub: an encoder that is saved with all that rebuilds it, without pickle, and with a model card."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .._checks import complaint
from ..evaluation import ResultCard
from ..models import Normalize, backbone
from ..models.normalize import input_layer
from ._model_card import card_text
from ._plain import fill, plain_copy

try:
    import safetensors.torch  # noqa: F401 (the mixin needs it, and does not ask for it)
    from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin
except ImportError as error:
    needed, remedy = "huggingface_hub and safetensors", "Call pip install huggingface_hub safetensors"
    raise ImportError(complaint("adapters.hub", needed, "no such package", remedy)) from error


class HubEncoder(nn.Module, PyTorchModelHubMixin, library_name="advcontrast", pipeline_tag="image-feature-extraction"):
    """An untrained network of :func:`advcontrast.models.backbone`, whose (mean, std) may be others; see :meth:`of`."""

    def __init__(self, name: str, *, branch: str | None = None, normalize: Any = None, **settings: Any) -> None:
        super().__init__()
        self.encoder, self.num_features = backbone(name, **settings)
        layer: Any
        path, layer = next((path, part) for path, part in self.encoder.named_modules() if type(part) is Normalize)
        given = tuple(normalize) if isinstance(normalize, list) else normalize  # as JSON has it
        layer = layer if given is None else input_layer("HubEncoder", given, 3)
        self.encoder.set_submodule(path, layer)
        self.config = {"name": name, "branch": branch, "normalize": layer.values, **settings}
        self._hub_mixin_config = self.config

    @classmethod
    def of(cls, encoder: nn.Module, name: str, *, branch: str | None = None, **settings: Any) -> HubEncoder:
        """Return a copy of a trained ``encoder`` that ``backbone(name, **settings)`` made, with one branch only."""
        plain = plain_copy("HubEncoder.of", encoder, branch).cpu()
        layer = next((part for part in plain.modules() if type(part) is Normalize), Normalize())
        hub = cls(name, branch=branch, normalize=layer.values, **settings)
        fill("HubEncoder.of", hub.encoder, plain, f"what backbone makes of {name!r} and the settings")
        return hub.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Return the features ``[N, F]`` of images ``[N, C, H, W]`` in [0, 1]."""
        features: Tensor = self.encoder(x)
        return features

    def generate_model_card(self, *, result: ResultCard | None = None, **metadata: Any) -> ModelCard:
        """Return the card; ``save_pretrained(folder, model_card_kwargs={"result": ..., "license": ...})`` writes it."""
        data = self._hub_mixin_info.model_card_data.to_dict() | metadata  # type: ignore[no-untyped-call]
        text = card_text("HubEncoder", self.config, self.num_features, result)
        return ModelCard(f"---\n{ModelCardData(**data).to_yaml()}\n---\n\n{text}")

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **settings: Any) -> Any:
        return super()._from_pretrained(strict=strict, **settings)
