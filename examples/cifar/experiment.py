"""The folder of a run: card, split, source and final weights."""

from __future__ import annotations

import json
import platform
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from flags import Common
from images import Images
from safetensors.torch import save_file
from torch import Tensor, nn

import advcontrast
from advcontrast import PGDAttack, distributed
from advcontrast.data import ImageSet
from advcontrast.evaluation import accuracy, robust_accuracy

EVALUATION_BATCH = 500
FRACTIONS = "fractions"  # the unit of accuracies in a card, which earlier versions gave in percent


@dataclass
class Experiment:
    """A run of a script. What it finds goes to ``card.json``, its weights to ``final.safetensors``."""

    settings: Common
    folder: Path
    card: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def record(self, **entries: Any) -> None:
        """Add entries to the card, on the disk too."""
        self.card |= entries
        if first_process():
            partial = self.folder / ".card.json.partial"
            partial.write_text(json.dumps(self.card, indent=1) + "\n")
            partial.replace(self.folder / "card.json")

    def describe(self, images: Images, **split: Tensor) -> None:
        """Write down which images were used for what."""
        data = {name: getattr(images, name).fingerprint() for name in ("everything", "test")}
        if self.card.get("data", data) != data:
            raise ValueError(
                f"--data-dir: expected the images that {self.folder} began with, got others. Pass the same."
            )
        self.record(data=data)
        if first_process():
            indices = {name: part.tolist() for name, part in {**images.split, **split}.items()}
            (self.folder / "split.json").write_text(json.dumps(indices))

    def finish(self, model: nn.Module, about: dict[str, Any], **results: Any) -> None:
        """Write the final weights and results, and print the results."""
        save(model.state_dict(), self.folder / "final.safetensors", about)
        self.record(results=results, seconds=round(time.monotonic() - self.started, 1), finished=True)
        say(f"{self.folder}: " + ", ".join(f"{name} {_short(value)}" for name, value in results.items()))


def begin(settings: Common) -> Experiment | None:
    """Open the folder of a run; ``None`` where the run is finished already."""
    experiment = Experiment(settings, Path(settings.out))
    identity = {"script": Path(sys.argv[0]).name, "settings": _lasting(settings)}
    card = once(lambda: _earlier_card(experiment.folder))
    if card is not None:
        _require_same(settings.out, card, identity)
        if card.get("finished"):
            say(f"{settings.out} is finished: {card.get('results')}")
            return None
        if card.get("accuracies") != FRACTIONS:
            got = f"accuracies in percent in {settings.out}"
            raise ValueError(f"--out: expected a run with accuracies as fractions, got {got}. Choose another folder.")
        experiment.card = card
    if dist.is_initialized():
        torch.manual_seed(settings.seed + 1_000_003 * dist.get_rank())  # each process has noise of its own
    versions = {"advcontrast": advcontrast.__version__, "torch": torch.__version__, "python": platform.python_version()}
    machine = {"processor": platform.machine(), "threads": torch.get_num_threads(), "device": settings.device}
    machine["processes"] = distributed.world_size()

    def write() -> None:
        try:
            about = {"eps": settings.radius, "versions": versions, "machine": machine, "accuracies": FRACTIONS}
            experiment.record(**identity, **about, finished=False)
            (experiment.folder / "source").mkdir(exist_ok=True)
            for file in Path(__file__).parent.glob("*.py"):  # and not the runs that may lie beside them
                shutil.copy(file, experiment.folder / "source")
        except OSError as error:
            raise _unusable(experiment.folder, error) from error

    once(write)
    return experiment


def once(action: Callable[[], Any]) -> Any:
    """Return what the first process gets, or raise its mistake, in all of them; only its disk need hold the folder."""
    result, mistake = None, None
    if first_process():
        try:
            result = action()
        except ValueError as error:
            mistake = str(error)
    result, mistake = distributed.broadcast_object((result, mistake))
    if mistake is not None:
        raise ValueError(mistake)
    return result


def _lasting(settings: Common) -> dict[str, Any]:
    """Return the settings that a run must be continued with."""
    passing = ("out", "device", "data_dir", "timeout", "stream", "workers")
    return {name: value for name, value in asdict(settings).items() if name not in passing}


def _earlier_card(folder: Path) -> dict[str, Any] | None:
    """Return the card in a folder, which is made if there is none; ``None`` where there is no card."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        card = json.loads((folder / "card.json").read_text())
        if not isinstance(card, dict) or not isinstance(card.get("settings"), dict):
            raise ValueError("card.json is no card")
        return card
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise _unusable(folder, error) from error


def _unusable(folder: Path, error: Exception) -> ValueError:
    reason = str(error).replace("\n", " ").rstrip(".")
    return ValueError(f"--out: expected a folder for a run, got {folder} ({reason}). Choose another.")


def _require_same(out: str, card: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    theirs, ours = ({"script": part.get("script"), **part.get("settings", {})} for part in (card, identity))
    names = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    if names:
        got = ", ".join(f"{name} {ours.get(name)!r} instead of {theirs.get(name)!r}" for name in names)
        raise ValueError(f"--out: expected the settings of the run in {out}, got {got}. Choose another folder.")


def save(tensors: Mapping[str, Tensor], path: Path, about: Mapping[str, Any] | None = None) -> None:
    """Write tensors to a file, whole or not at all."""
    if first_process():
        partial = path.with_name(f".{path.name}.partial")
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        # One entry, as several come in any order: equal runs write equal files.
        save_file(plain, partial, {"advcontrast": json.dumps(about or {}, sort_keys=True)})
        partial.chmod(path.parent.stat().st_mode & 0o666)  # safetensors lets nobody but the owner read
        partial.replace(path)


def final_accuracies(model: nn.Module, images: Images, settings: Common, *, robust: bool = True) -> dict[str, float]:
    """Return standard (TA) and robust accuracy (RA) on the test images, in [0, 1]."""
    return _accuracies(model, images.test, settings, "", robust=robust)


def validation_accuracies(model: nn.Module, images: Images, settings: Common, *, robust: bool) -> dict[str, float]:
    """Return them, or the first of them, on the validation images."""
    return _accuracies(model, images.validation, settings, "val_", robust=robust)


def _accuracies(model: nn.Module, images: ImageSet, settings: Common, prefix: str, *, robust: bool) -> dict[str, float]:
    found = {f"{prefix}ta": accuracy(model, images.batches(EVALUATION_BATCH)).accuracy}
    if robust:
        attack = PGDAttack(eps=settings.radius, step_size=settings.step, steps=20)
        found[f"{prefix}ra"] = robust_accuracy(model, images.batches(EVALUATION_BATCH), attack).accuracy
    return found


def first_process() -> bool:
    """Tell whether this is the process that writes and speaks."""
    return not dist.is_initialized() or dist.get_rank() == 0


def say(text: str) -> None:
    """Print a line, once."""
    if first_process():
        print(text, flush=True)


def _short(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else str(value)
