"""The text of a model card: how to load an encoder, what it takes, and what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .._checks import complaint, type_name
from ..evaluation import ResultCard

_BUILT_BY = "It was built by `HubEncoder("
_TEXT = """# {title}

An encoder, from images `[N, C, H, W]` in [0, 1] to {features} features. They are normalised inside.

```python
from advcontrast.adapters.hub import HubEncoder

encoder = HubEncoder.from_pretrained("name of the repository, or a folder")
features = encoder(images)
```

{call}

{results}"""


def model_card(
    owner: str, config: Mapping[str, Any], features: int, result: ResultCard | None, metadata: Mapping[str, Any]
) -> Any:
    """Return the card, with ``metadata`` in front; figures come from ``result`` and nowhere else."""
    from huggingface_hub import ModelCard, ModelCardData

    if result is not None and not isinstance(result, ResultCard):
        remedy = "Pass what ResultCard.read returns"
        raise TypeError(complaint(owner, "result to be a ResultCard", type_name(result), remedy))
    branch = config["branch"]
    if result is not None and None not in (result.branch, branch) and result.branch != branch:
        expected, remedy = f"result of branch {branch!r}", "Pass the result of the branch that is saved"
        raise ValueError(complaint(owner, expected, repr(result.branch), remedy))
    text = _TEXT.format(
        title=config["name"] + (f", branch {branch!r}" if branch else ""),
        features=features,
        call=_call(config),
        results="No figures were given with it.\n" if result is None else _results(result),
    )
    try:
        return ModelCard(f"---\n{ModelCardData(**metadata).to_yaml()}\n---\n\n{text}")
    except Exception as error:  # of YAML, of pickle, or of huggingface_hub
        rule, remedy = "metadata that a model card can hold", "Pass strings, numbers, and lists of them"
        raise ValueError(complaint(owner, rule, " ".join(str(error).split()), remedy)) from error


def is_of_another(card: str, config: Mapping[str, Any]) -> bool:
    """Return whether a card is one that :func:`model_card` wrote for another encoder."""
    return _BUILT_BY in card and _call(config) not in card


def _call(config: Mapping[str, Any]) -> str:
    return f"{_BUILT_BY}{', '.join(f'{name}={value!r}' for name, value in config.items())})`."


def _results(card: ResultCard) -> str:
    """Return the metrics of a card in percent, and below them the settings that they hold for."""
    figures = "".join(f"- {metric}: {result.percent()} %\n" for metric, result in card.results.items())
    names = ("name", "data", "fingerprint", "images", "branch", "seeds", "attacks", "settings", "versions", "revision")
    details = json.dumps({name: getattr(card, name) for name in names}, indent=2)
    return f"## Results\n\nTA is accuracy, RA that under attack.\n\n{figures}\n```json\n{details}\n```\n"
