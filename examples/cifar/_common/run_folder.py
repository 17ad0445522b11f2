"""The folder of a run: ``run.json`` from its start, ``card.json`` and ``final.safetensors`` from its end."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from advcontrast import distributed
from advcontrast.data import ImageSet
from advcontrast.evaluation import Accuracy, ResultCard
from advcontrast.evaluation.cards import revision

from .flags import Common
from .images import Images

SCRIPTS = Path(__file__).parents[1]
MAY_CHANGE = ("out", "device", "data_dir", "timeout", "stream", "workers")  # when a run is continued


@dataclass
class Run:
    """A run of a script.

    Attributes:
        settings: flags of the script.
        folder: where the run is kept.
        about: script, settings and digests of the images, which are compared when the run is continued.
    """

    settings: Common
    folder: Path
    about: dict[str, Any]

    def finish(
        self,
        model: nn.Module,
        network: Mapping[str, Any],
        test: ImageSet,
        verdicts: Mapping[str, Accuracy],
        *,
        training: Mapping[str, Any] | None = None,
        **fields: Any,
    ) -> None:
        """Write the final weights and the card of the run, and print the results.

        Args:
            model: the network to write.
            network: what is needed to rebuild it, stored with the weights.
            test: the images that were evaluated.
            verdicts: for each metric the outcomes on them.
            training: other results, such as the selected epoch, or a list with a value for each epoch; the
                card has them among its settings.
            **fields: further fields of the card.
        """
        save(model.state_dict(), self.folder / "final.safetensors", network)
        settings = {**self.about, "processes": distributed.world_size(), "training": dict(training or {})}
        card = ResultCard.from_verdicts(
            self.folder.resolve().name,
            {metric: [found] for metric, found in verdicts.items()},
            seeds=[self.settings.seed],
            data=test,
            device=test.x.device,
            revision=revision(SCRIPTS),
            settings=settings,
            **fields,
        )
        if distributed.rank() == 0:
            card.write(self.folder / "card.json")
        numbers = {metric: found.accuracy for metric, found in verdicts.items()} | settings["training"]
        last = {name: value[-1] if isinstance(value, list) else value for name, value in numbers.items()}
        shown = (f"{name} {f'{value:.4f}' if isinstance(value, float) else value}" for name, value in last.items())
        say(f"{self.folder}: {', '.join(shown)}")


def begin(settings: Common, images: Images | None = None, *, card: str = "card.json", **parts: Tensor) -> Run | None:
    """Open the folder of a run; return ``None`` if the run is finished.

    Args:
        settings: flags of the script.
        images: the images of the run.
        card: name of the file that a finished run has.
        **parts: indices of further parts of the training images, for ``split.json``.

    Raises:
        ValueError: the folder cannot be used, or holds a run with other settings or images.
    """
    flags = {name: value for name, value in asdict(settings).items() if name not in MAY_CHANGE}
    digests = {}
    if images is not None:
        digests = {name: getattr(images, name).fingerprint() for name in ("everything", "test")}
    run = Run(settings, Path(settings.out), {"script": Path(sys.argv[0]).name, "flags": flags, "data": digests})
    finished = _in_first_process(lambda: _open(run, card))
    if finished is not None:
        say(f"{settings.out} is finished: {finished}")
        return None
    if images is not None and distributed.rank() == 0:
        indices = {name: part.tolist() for name, part in {**images.split, **parts}.items()}
        (run.folder / "split.json").write_text(json.dumps(indices))
    if distributed.world_size() > 1:
        torch.manual_seed(settings.seed + 1_000_003 * distributed.rank())  # different noise in each process
    return run


def _open(run: Run, card: str) -> str | None:
    """Begin a run, or check that it is the one in the folder; return its results if it is finished."""
    started, done = run.folder / "run.json", run.folder / card
    try:
        run.folder.mkdir(parents=True, exist_ok=True)
        finished = str(ResultCard.read(done)) if done.exists() else None
        if not started.exists():
            for part in ("", "_common", "baselines"):
                (run.folder / "source" / part).mkdir(parents=True, exist_ok=True)
                for file in (SCRIPTS / part).glob("*.py"):  # and not the runs that may lie beside them
                    shutil.copy(file, run.folder / "source" / part)
            write_json(run.about, started)
        known = json.loads(started.read_text())
        theirs = {"script": known["script"], **known["flags"]}, known["data"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = str(error).replace("\n", " ").rstrip(".")
        raise ValueError(f"--out: expected a folder for a run, got {run.folder} ({reason}). Choose another.") from error
    ours = {"script": run.about["script"], **run.about["flags"]}
    names = [name for name in {**theirs[0], **ours} if theirs[0].get(name) != ours.get(name)]
    if names:
        got = ", ".join(f"{name} {ours.get(name)!r} instead of {theirs[0].get(name)!r}" for name in names)
        expected = f"the settings of the run in {run.folder}"
        raise ValueError(f"--out: expected {expected}, got {got}. Choose another folder.")
    if theirs[1] != run.about["data"]:
        raise ValueError(
            f"--data-dir: expected the images that {run.folder} began with, got others. Pass the same images."
        )
    return finished


def _in_first_process(action: Callable[[], Any]) -> Any:
    """Return the result of the first process, or raise its error, in all processes: only its disk needs the folder."""
    result, complaint = None, None
    if distributed.rank() == 0:
        try:
            result = action()
        except ValueError as error:
            complaint = str(error)
    result, complaint = distributed.broadcast_object((result, complaint))
    if complaint is not None:
        raise ValueError(complaint)
    return result


def write_json(content: Any, path: Path) -> None:
    """Write a file atomically."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(content, indent=1) + "\n")
    partial.replace(path)


def save(tensors: Mapping[str, Tensor], path: Path, about: Mapping[str, Any]) -> None:
    """Write tensors to a file atomically; ``about`` is stored with them."""
    if distributed.rank() == 0:
        partial = path.with_name(f".{path.name}.partial")
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        # One entry, as several come in any order: equal runs write equal files.
        save_file(plain, partial, {"advcontrast": json.dumps(about, sort_keys=True)})
        partial.chmod(path.parent.stat().st_mode & 0o666)  # safetensors lets nobody but the owner read
        partial.replace(path)


def say(text: str) -> None:
    """Print a line, in the first process only."""
    if distributed.rank() == 0:
        print(text, flush=True)
