"""Hugging Face hub: encoders saved without pickle, with the settings to rebuild them and a model card."""

import inspect
import json
import os
from collections.abc import Mapping
from itertools import zip_longest
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Self

from .._checks import check_device, check_path, check_type, complaint
from .._deprecated import warn
from .._random import preserve_rng_state
from ..evaluation import ResultCard
from ..models import Normalize, backbone
from ..models.normalize import input_layer
from ._export import plain_copy, saving

try:
    from huggingface_hub import ModelCard, ModelCardData, PyTorchModelHubMixin
    from safetensors import SafetensorError, safe_open
except ImportError as error:
    needed, remedy = "huggingface_hub and safetensors", "Call pip install huggingface_hub safetensors"
    raise ImportError(complaint("adapters.hub", needed, "no such package", remedy)) from error

_BUILT_BY = "It was built by `HubEncoder("
_TEXT = """# {title}

An encoder, from images `[N, C, H, W]` in [0, 1] to {features} features. The network normalises them itself.

```python
from advcontrast.adapters.hub import HubEncoder

encoder = HubEncoder.from_pretrained("name of the repository, or a folder")
features = encoder(images)
```

{call}

{results}"""


class HubEncoder(nn.Module, PyTorchModelHubMixin, library_name="advcontrast", pipeline_tag="image-feature-extraction"):
    """Untrained network of :func:`advcontrast.models.backbone`; :meth:`from_encoder` copies a trained one."""

    def __init__(self, name: str, *, branch: str | None = None, normalize: Any = None, **settings: Any) -> None:
        super().__init__()
        check_type("HubEncoder", "branch", branch, (str, NoneType), remedy='For example "adv"')
        given = tuple(normalize) if isinstance(normalize, list) else normalize  # as JSON has it
        layer = None if given is None else input_layer("HubEncoder", given, 3)
        self.encoder, self.num_features = backbone(name, **settings)
        path, usual = next((path, part) for path, part in self.encoder.named_modules() if type(part) is Normalize)
        self.encoder.set_submodule(path, layer := layer or usual)
        self.config = {"name": name, "branch": branch, "normalize": layer.values, **dict(sorted(settings.items()))}
        self._hub_mixin_config = self.config

    @classmethod
    def from_encoder(cls, encoder: nn.Module, name: str, *, branch: str | None = None, **settings: Any) -> Self:
        """Return a copy of a trained ``encoder`` that ``backbone(name, **settings)`` made, with one branch only."""
        plain = plain_copy("HubEncoder.from_encoder", encoder, branch).cpu()
        layer = next((part for part in plain.modules() if type(part) is Normalize), Normalize())
        with preserve_rng_state(), torch.device("cpu"):  # what is drawn is replaced
            hub = cls(name, branch=branch, normalize=layer.values, **settings)
        _fill("HubEncoder.from_encoder", hub.encoder, plain, f"the network of backbone({name!r}) with the settings")
        return hub.eval()

    @classmethod
    def of(cls, encoder: nn.Module, name: str, **settings: Any) -> Self:
        """Old name of :meth:`from_encoder`, kept for one release."""
        warn("HubEncoder.of", "HubEncoder.from_encoder", stacklevel=2)
        return cls.from_encoder(encoder, name, **settings)

    def forward(self, x: Tensor) -> Tensor:
        """Return the features ``[N, F]`` of images ``[N, C, H, W]`` in [0, 1]."""
        features: Tensor = self.encoder(x)
        return features

    def save_pretrained(
        self, save_directory: str | Path, *, config: Any = None, model_card_kwargs: Any = None, **settings: Any
    ) -> str | None:
        """Write weights, config and model card into a folder that :meth:`from_pretrained` can load.

        Args:
            save_directory: the folder. An existing README is kept.
            config: ``None``, or what is in ``self.config``: the encoder is rebuilt from it.
            model_card_kwargs: arguments of :meth:`generate_model_card`.
            settings: other arguments of the mixin, such as ``push_to_hub=True``.

        Raises:
            OSError: the files cannot be written. With the other errors, nothing is written.
            ValueError: ``config`` differs from ``self.config``, the network no longer matches its config, or the README
                is the card of another encoder.
            TypeError: upload arguments, such as ``branch``, without ``push_to_hub=True``.
        """
        owner = "HubEncoder.save_pretrained"
        folder = check_path(owner, "save_directory", save_directory, remedy="Pass the folder to write")
        self._check(owner, config, model_card_kwargs)
        unused = settings.keys() - {"push_to_hub", "repo_id"}
        if unused and not settings.get("push_to_hub"):
            expected, got = "other arguments with push_to_hub=True", ", ".join(sorted(unused))
            raise TypeError(complaint(owner, expected, got, "HubEncoder.from_encoder takes the branch"))
        readme = folder / "README.md"
        card = readme.read_text(encoding="utf-8") if readme.is_file() else ""
        if _BUILT_BY in card and _call(self.config) not in card:
            got, remedy = "the card of another encoder", "Remove it, or save into another folder"
            raise ValueError(complaint(owner, f"{str(readme)!r} to be of this encoder", got, remedy))
        with saving(owner, folder):
            return super().save_pretrained(folder, config=config, model_card_kwargs=model_card_kwargs, **settings)

    def push_to_hub(self, repo_id: str, *, config: Any = None, model_card_kwargs: Any = None, **settings: Any) -> str:
        """Upload the encoder; ``branch`` is a git branch, all else as for :meth:`save_pretrained` and the mixin."""
        self._check("HubEncoder.push_to_hub", config, model_card_kwargs)
        return super().push_to_hub(repo_id, config=config, model_card_kwargs=model_card_kwargs, **settings)

    def _check(self, owner: str, config: Any, model_card_kwargs: Mapping[str, Any] | None) -> None:
        """Require an encoder that :meth:`from_pretrained` can load, before anything is written."""
        remedy = 'For example {"license": "mit"}'
        check_type(owner, "model_card_kwargs", model_card_kwargs, (Mapping, NoneType), remedy=remedy)
        if config is not None and _as_json(config) != _as_json(self.config):
            remedy = "Leave it out; pass further facts as model_card_kwargs"
            raise ValueError(complaint(owner, f"config to be None or {self.config!r}", repr(config), remedy))
        with preserve_rng_state(), torch.device("cpu"):
            built = type(self)(**self.config)
        _fill(owner, built, self, "the encoder that its config builds")
        self.generate_model_card(**(model_card_kwargs or {}))

    def generate_model_card(self, *, result: ResultCard | None = None, **metadata: Any) -> Any:
        """Return the card; ``save_pretrained(folder, model_card_kwargs={"result": ..., "license": ...})`` writes it."""
        check_type("HubEncoder", "result", result, (ResultCard, NoneType), remedy="Pass what ResultCard.read returns")
        branch = self.config["branch"]
        if result is not None and None not in (result.branch, branch) and result.branch != branch:
            expected, remedy = f"result of branch {branch!r}", "Pass the result of the branch that is saved"
            raise ValueError(complaint("HubEncoder", expected, repr(result.branch), remedy))
        text = _TEXT.format(
            title=self.config["name"] + (f", branch {branch!r}" if branch else ""),
            features=self.num_features,
            call=_call(self.config),
            results="No figures were given with it.\n" if result is None else _results(result),
        )
        data = self._hub_mixin_info.model_card_data.to_dict() | metadata  # type: ignore[no-untyped-call]
        try:
            return ModelCard(f"---\n{ModelCardData(**data).to_yaml()}\n---\n\n{text}")
        except Exception as error:  # of YAML, of pickle, or of huggingface_hub
            rule, remedy = "metadata that a model card can hold", "Pass strings, numbers, and lists of them"
            raise ValueError(complaint("HubEncoder", rule, " ".join(str(error).split()), remedy)) from error

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **settings: Any) -> Self:
        """Return the encoder of a folder or a repository in eval mode.

        Args:
            pretrained_model_name_or_path: the folder, or the name of the repository.
            settings: download arguments of the mixin; ``map_location``, a device; settings that equal the saved ones.

        Raises:
            ValueError: a setting that differs from the saved one, ``strict=False``, no config, or a damaged file.
            RuntimeError: names, shapes or dtypes of the weights do not match the config.
            TypeError: the config has no such setting.
        """
        owner, remedy = "HubEncoder.from_pretrained", "Pass a folder or the name of a repository"
        check_path(owner, "pretrained_model_name_or_path", pretrained_model_name_or_path, remedy=remedy)
        place = os.path.expanduser(pretrained_model_name_or_path)  # noqa: PTH111 (a repository is not a path)
        try:
            return super().from_pretrained(place, **settings)
        except (json.JSONDecodeError, UnicodeDecodeError, SafetensorError) as error:
            remedy = "Save it again, or pass force_download=True"
            raise ValueError(complaint(owner, f"whole files in {place!r}", str(error), remedy)) from error

    @classmethod
    def _from_pretrained(
        cls, *, config: Any = None, strict: bool = True, map_location: Any = "cpu", **settings: Any
    ) -> Any:
        owner = "HubEncoder.from_pretrained"
        if not isinstance(config, Mapping) or "name" not in config:
            remedy = "Pass a folder or a repository that HubEncoder.save_pretrained wrote, and check the connection"
            raise ValueError(complaint(owner, "a config.json with the name of an encoder", repr(config), remedy))
        if strict is not True:
            raise ValueError(complaint(owner, "strict to be True", repr(strict), "All weights are needed"))
        device = check_device(owner, map_location)
        remedy = "Leave it out: the files hold one encoder. For a branch of the repository pass revision"
        download = inspect.signature(super()._from_pretrained).parameters
        for name in [name for name in settings if name not in download]:
            if name not in config:
                raise TypeError(complaint(owner, f"settings among {list(config)}", repr(name), remedy))
            if _as_json(settings[name]) != _as_json(config[name]):
                raise ValueError(complaint(owner, f"{name} to be {config[name]!r}", repr(settings[name]), remedy))
        with preserve_rng_state(), torch.device("cpu"):
            # With map_location the mixin would load the file there, but leave the network on the CPU.
            return super()._from_pretrained(strict=True, map_location="cpu", **settings).to(device)

    @classmethod
    def _load_as_safetensor(cls, model: Any, model_file: str, *others: Any) -> Any:
        loaded = super()._load_as_safetensor(model, model_file, *others)
        state = loaded.state_dict()
        with safe_open(model_file, framework="pt") as file:
            dtypes = {name: file.get_tensor(name).dtype for name in file.keys()}  # noqa: SIM118 (not a mapping)
            # Metadata name tensors that are stored once under another name.
            missing = sorted(state.keys() - dtypes.keys() - (file.metadata() or {}).keys())
        cast = sorted(name for name in state.keys() & dtypes.keys() if state[name].dtype != dtypes[name])
        if missing or cast:  # PyTorch fills in missing counts of batches, and casts
            expected, remedy = f"the tensors of the encoder in {model_file!r}", "Save the encoder again"
            got = f"none for {', '.join(missing)}" if missing else f"another dtype for {', '.join(cast)}"
            raise RuntimeError(complaint("HubEncoder.from_pretrained", expected, got, remedy))
        return loaded

    @classmethod
    def _load_as_pickle(cls, *arguments: Any) -> Any:
        remedy = "Pass a repository that HubEncoder.push_to_hub wrote"
        raise ValueError(complaint("HubEncoder.from_pretrained", "a file model.safetensors", arguments[1], remedy))


def _fill(owner: str, model: nn.Module, source: nn.Module, expected: str) -> None:
    """Load ``model`` with the state of a network that has the same layers, settings and dtypes, or raise."""
    # Constants and paddings are not part of a state.
    for theirs, ours in zip_longest(repr(source).splitlines(), repr(model).splitlines(), fillvalue="nothing"):
        if theirs != ours:
            got, remedy = f"{theirs.strip()} instead of {ours.strip()}", "Pass its name and settings, without a head"
            raise ValueError(complaint(owner, expected, got, remedy))
    state = model.state_dict()
    for name, tensor in source.state_dict().items():
        if tensor.dtype != state[name].dtype:
            got, remedy = f"{name} in {tensor.dtype}", "Pass encoder.float(), and evaluate that"
            raise ValueError(complaint(owner, f"{name} in {state[name].dtype}", got, remedy))
    model.load_state_dict(source.state_dict())


def _as_json(value: Any) -> str:
    """Return a setting as ``config.json`` has it, where tuples are lists."""
    return json.dumps(value, sort_keys=True, default=repr)


def _call(config: Mapping[str, Any]) -> str:
    return f"{_BUILT_BY}{', '.join(f'{name}={value!r}' for name, value in config.items())})`."


def _results(card: ResultCard) -> str:
    """Return the metrics of a card in percent, followed by the settings of the evaluation."""
    figures = "".join(f"- {metric}: {result.percent()} %\n" for metric, result in card.results.items())
    names = ("name", "data", "fingerprint", "images", "branch", "seeds", "attacks", "settings", "versions", "revision")
    details = json.dumps({name: getattr(card, name) for name in names}, indent=2)
    return f"## Results\n\nTA is clean accuracy, RA robust accuracy.\n\n{figures}\n```json\n{details}\n```\n"
