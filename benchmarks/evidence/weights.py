"""Write an encoder of pretrain.py as ``advcontrast.models.pretrained`` reads it, with a model card.

    python examples/cifar/tables.py --budget medium --amp bf16 --out runs/medium --only methods-DS-linear
    python -m benchmarks.evidence.weights resnet18w16-cifar10-ds runs/medium/seed1/methods-DS --data "CIFAR-10" \
        --cards runs/medium/seed1/methods-DS-linear/card.json

Convolutions and linear layers are rounded to half precision; everything else stays float32. Prints the SHA-256 for the
table in ``advcontrast/models/pretrained.py``, whose docstring needs a row for the encoder too.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from advcontrast._digest import file_digest
from advcontrast.evaluation import ResultCard, markdown_table
from advcontrast.models import resnet18
from advcontrast.models.pretrained import FOLDER, front_of

CARD = """# {name}

An encoder: ResNet-18 of width {width}, from images `[N, 3, 32, 32]` in [0, 1] to {features} features.

```python
from advcontrast.models import pretrained

encoder = pretrained("{name}")
```

- Data: {data}. Labels were not used.
- Method: {method}, `examples/cifar/pretrain.py` with the flags below; {cost}.
- Branches: {branches}. Stem: {stem}. Normalisation: {normalisation}.
- Made with: torch {torch}, {device}, one seed.

{results}

TA is the accuracy on the test images in percent, RA that under PGD-20 with eps 8/255. The linear classifier was trained
on clean images, on the frozen encoder. The encoder is small and was trained for far fewer epochs than the 1,000 of
the ACL paper: it shows the method, and is not a strong baseline. Weights are in half precision; the accuracies were
measured before rounding.

Flags: `{flags}`
"""


def main() -> None:
    """Write the weights and the card."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the encoder, and of its files")
    parser.add_argument("run", type=Path, help="folder of a finished run of pretrain.py with a ResNet-18")
    parser.add_argument("--data", required=True, help="the images, for the card")
    parser.add_argument("--cards", type=Path, nargs="*", default=[], help="further results, for the card")
    given = parser.parse_args()
    with safe_open(given.run / "final.safetensors", "pt") as file:
        about = json.loads(file.metadata()["advcontrast"])
        own = {key.removeprefix("encoder."): file.get_tensor(key) for key in file.keys() if key.startswith("encoder.")}  # noqa: SIM118
    encoder = resnet18(0, width=about["width"])
    branches = "adv clean" if about["norms"] == "dual" else ""
    metadata = {"width": str(about["width"]), "branches": branches, **front_of(encoder)}
    halved = {key: value.half() if value.dim() > 1 else value for key, value in own.items()}
    path = FOLDER / f"{given.name}.safetensors"
    path.parent.mkdir(exist_ok=True)
    save_file(halved, path, {"format": "pt", **metadata})
    path.chmod(0o644)  # safetensors makes it readable by the owner only
    cards = [ResultCard.read(each) for each in (given.run / "card.json", *given.cards)]
    cards[0] = replace(cards[0], name="linear classifier")
    flags, cost, extent = cards[0].settings["flags"], passes(cards[0]), " in all"
    if flags.get("teacher"):
        extent = f", after {passes(ResultCard.read(Path(flags['teacher']).with_name('card.json')))} for its teacher"
    text = CARD.format(
        name=given.name,
        features=encoder.num_features,
        data=given.data,
        method=flags["mode"] if flags["method"] == "acl" else flags["method"],
        cost=f"{cost} forward passes per image{extent}",
        torch=cards[0].versions["torch"],
        device=cards[0].versions["device"],
        results=markdown_table(cards),
        flags=" ".join(
            f"--{'no-' * (value is False)}{key.replace('_', '-')}" + ("" if isinstance(value, bool) else f" {value}")
            for key, value in flags.items()
            if value not in ("", None)
        ),
        **{**metadata, "branches": branches.replace(" ", ", ") or "none"},
    )
    path.with_suffix(".md").write_text(text)
    with path.open("rb") as file:
        print(f'"{given.name}": "{file_digest(file)}",')


def passes(card: ResultCard) -> str:
    """Return the forward passes per image of a run of pretrain.py."""
    settings: Any = card.settings
    return f"{settings['training']['cost'] * settings['flags']['epochs']:.0f}"


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
