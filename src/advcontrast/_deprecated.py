"""Old module paths and names: they work for one release and warn.

A row here is all that a move needs: :data:`MODULES` for a module, :data:`NAMES` for a public name of a package,
:data:`REMOVED` for a name without a successor.
"""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any

MODULES: dict[str, str] = {
    "advcontrast.evaluation.autoattack": "advcontrast.evaluation.accuracy.autoattack",
    "advcontrast.evaluation.corruptions": "advcontrast.evaluation.accuracy.corruptions",
    "advcontrast.evaluation.curves": "advcontrast.evaluation.accuracy.curves",
    "advcontrast.evaluation.alarms": "advcontrast.evaluation.masking",
    "advcontrast.evaluation.symptoms": "advcontrast.evaluation.masking",
    "advcontrast.evaluation.overfitting": "advcontrast.evaluation.masking",
    "advcontrast.evaluation.label_free": "advcontrast.evaluation.representation.label_free",
    "advcontrast.evaluation.branch_gap": "advcontrast.evaluation.representation.branch_gap",
    "advcontrast.evaluation.presets": "advcontrast.evaluation.protocols.presets",
    "advcontrast.evaluation.probing": "advcontrast.evaluation.protocols.run",
    "advcontrast.evaluation.frozen": "advcontrast.evaluation.protocols.run",
    "advcontrast.evaluation.card": "advcontrast.evaluation.cards.card",
    "advcontrast.evaluation.provenance": "advcontrast.evaluation.cards.provenance",
    "advcontrast.evaluation.comparison": "advcontrast.evaluation.cards.comparison",
    "advcontrast.evaluation.pictures": "advcontrast.evaluation.plots.images",
    "advcontrast.evaluation.figures": "advcontrast.evaluation.plots.accuracies",
    "advcontrast.attacks.elastic": "advcontrast.evaluation.uar.elastic",
    "advcontrast.attacks.jpeg": "advcontrast.evaluation.uar.jpeg",
    "advcontrast.attacks.frank_wolfe": "advcontrast.evaluation.uar.frank_wolfe",
    "advcontrast.functional.flow": "advcontrast.evaluation.uar.elastic",
    "advcontrast.functional.jpeg": "advcontrast.evaluation.uar.jpeg",
    "advcontrast.engine.manifest": "advcontrast.engine.checkpoint.manifest",
    "advcontrast.engine.errors": "advcontrast.engine.checkpoint.errors",
    "advcontrast.engine.archive": "advcontrast.engine.checkpoint.archive",
    "advcontrast.engine.source": "advcontrast.engine.batches.source",
    "advcontrast.engine.sampling": "advcontrast.engine.batches.plan",
    "advcontrast.engine.reader": "advcontrast.engine.batches.reader",
    "advcontrast.engine.reading": "advcontrast.engine.batches.reader",
    "advcontrast.engine.shelf": "advcontrast.engine.batches.worker",
    "advcontrast.engine.arguments": "advcontrast.engine.fit",
    "advcontrast.engine.metrics": "advcontrast.engine.run",
    "advcontrast.engine.records": "advcontrast.engine.run_folder",
    "advcontrast.engine.identity": "advcontrast.engine.run_settings",
    "advcontrast.engine.termination": "advcontrast.engine.signals",
    "advcontrast.engine.lars": "advcontrast.optim.lars",
    "advcontrast.engine.ema": "advcontrast.optim.ema",
    "advcontrast.engine.schedules": "advcontrast.optim.schedules",
    "advcontrast.attacks.ascent": "advcontrast.attacks.pgd",
    "advcontrast.attacks.progressive": "advcontrast.attacks.stateful",
    "advcontrast.attacks.carried": "advcontrast.attacks.stateful",
    "advcontrast.attacks.target": "advcontrast.attacks.context",
    "advcontrast.augment.formulas": "advcontrast.augment._corruption_ops",
}
NAMES: dict[str, str] = {
    "advcontrast.adapters.robustbench.claim": "advcontrast.adapters.robustbench.robustbench_model_info",
    "advcontrast.adapters.torchattacks.TorchattacksStyle": "advcontrast.adapters.torchattacks.AsTorchattack",
    "advcontrast.adapters.losses.NumberedPairs": "advcontrast.adapters.losses.PairsAsLabels",
    "advcontrast.adapters.losses.Remembering": "advcontrast.adapters.losses.TrainOnlyMemoryBank",
    "advcontrast.engine.EMA": "advcontrast.optim.EMA",
    "advcontrast.engine.LARS": "advcontrast.optim.LARS",
    "advcontrast.engine.Reader": "advcontrast.engine.DataReader",
    "advcontrast.engine.reader.Reader": "advcontrast.engine.DataReader",
    "advcontrast.engine.MultiStep": "advcontrast.optim.MultiStep",
    "advcontrast.engine.WarmupCosine": "advcontrast.optim.WarmupCosine",
    "advcontrast.distributed.join": "advcontrast.distributed.init_from_torchrun",
    "advcontrast.distributed.share": "advcontrast.distributed.broadcast_",
    "advcontrast.distributed.exchange": "advcontrast.distributed.all_gather_object",
    "advcontrast.distributed.from_first": "advcontrast.distributed.broadcast_object",
    "advcontrast.distributed.together": "advcontrast.distributed.explain_lost_peer",
    "advcontrast.attacks.Classification": "advcontrast.attacks.ClassificationObjective",
    "advcontrast.attacks.classification.Classification": "advcontrast.attacks.ClassificationObjective",
    "advcontrast.surgery.export.blend": "advcontrast.surgery.interpolate.blend",
    "advcontrast.attacks.ElasticAttack": "advcontrast.evaluation.uar.ElasticAttack",
    "advcontrast.attacks.FrankWolfeAttack": "advcontrast.evaluation.uar.FrankWolfeAttack",
    "advcontrast.attacks.JPEGAttack": "advcontrast.evaluation.uar.JPEGAttack",
    "advcontrast.functional.warp": "advcontrast.evaluation.uar.warp",
    "advcontrast.functional.jpeg_encode": "advcontrast.evaluation.uar.jpeg_encode",
    "advcontrast.functional.jpeg_decode": "advcontrast.evaluation.uar.jpeg_decode",
    "advcontrast.evaluation.corrupted": "advcontrast.evaluation.accuracy.corrupted",
    "advcontrast.evaluation.falling_loss": "advcontrast.evaluation.masking.loss_decreases_with_strength",
    "advcontrast.evaluation.masking.falling_loss": "advcontrast.evaluation.masking.loss_decreases_with_strength",
    "advcontrast.evaluation.incomplete_search": "advcontrast.evaluation.masking.attack_not_converged",
    "advcontrast.evaluation.masking.incomplete_search": "advcontrast.evaluation.masking.attack_not_converged",
    "advcontrast.evaluation.loss_beaten": "advcontrast.evaluation.masking.loss_beaten",
    "advcontrast.evaluation.unbounded_attack": "advcontrast.evaluation.masking.unbounded_attack",
    "advcontrast.evaluation.white_box_beaten": "advcontrast.evaluation.masking.weaker_attack_wins",
    "advcontrast.evaluation.masking.white_box_beaten": "advcontrast.evaluation.masking.weaker_attack_wins",
    "advcontrast.evaluation.batch_dependence": "advcontrast.evaluation.masking.batch_dependence",
    "advcontrast.evaluation.probability_output": "advcontrast.evaluation.masking.probability_output",
    "advcontrast.evaluation.randomised_output": "advcontrast.evaluation.masking.randomised_output",
    "advcontrast.evaluation.train_mode": "advcontrast.evaluation.masking.train_mode",
    "advcontrast.evaluation.zero_gradients": "advcontrast.evaluation.masking.zero_gradients",
    "advcontrast.evaluation.Overfitting": "advcontrast.evaluation.masking.Overfitting",
    "advcontrast.evaluation.BranchGap": "advcontrast.evaluation.representation.BranchGap",
    "advcontrast.evaluation.unchanged": "advcontrast.evaluation.protocols.unchanged",
    "advcontrast.evaluation.AlarmRecord": "advcontrast.evaluation.cards.AlarmRecord",
    "advcontrast.evaluation.CurveRecord": "advcontrast.evaluation.cards.CurveRecord",
    "advcontrast.evaluation.Result": "advcontrast.evaluation.cards.Result",
    "advcontrast.evaluation.Comparison": "advcontrast.evaluation.cards.Comparison",
    "advcontrast.evaluation.Flips": "advcontrast.evaluation.cards.DiscordantPairs",
    "advcontrast.evaluation.comparison.Flips": "advcontrast.evaluation.cards.DiscordantPairs",
    "advcontrast.evaluation.figures.Curve": "advcontrast.evaluation.cards.CurveRecord",
    "advcontrast.evaluation.MetricComparison": "advcontrast.evaluation.cards.MetricComparison",
    "advcontrast.evaluation.revision": "advcontrast.evaluation.cards.revision",
    "advcontrast.evaluation.versions": "advcontrast.evaluation.cards.versions",
    "advcontrast.evaluation.plot_corruptions": "advcontrast.evaluation.plots.plot_corruptions",
    "advcontrast.evaluation.plot_curves": "advcontrast.evaluation.plots.plot_curves",
    "advcontrast.evaluation.plot_branches": "advcontrast.evaluation.plots.plot_branches",
    "advcontrast.evaluation.plot_images": "advcontrast.evaluation.plots.plot_images",
    "advcontrast.evaluation.CALIBRATIONS": "advcontrast.evaluation.uar.CALIBRATIONS",
    "advcontrast.evaluation.UAR": "advcontrast.evaluation.uar.UAR",
    "advcontrast.evaluation.Calibration": "advcontrast.evaluation.uar.Calibration",
    "advcontrast.evaluation.calibrated_attacks": "advcontrast.evaluation.uar.calibrated_attacks",
}


class _Constant:
    """Schedule that keeps the learning rate."""

    def __call__(self, _: int) -> float:
        return 1.0


#: Names without a successor: what to use instead, and an object that works until the next release.
REMOVED: dict[str, tuple[str, Any]] = {
    "advcontrast.engine.Constant": ("schedule=1.0 in fit", _Constant),
    "advcontrast.engine.schedules.Constant": ("schedule=1.0 in fit", _Constant),
}


def warn(old: str, new: str, *, stacklevel: int) -> None:
    """Warn that ``old`` is now ``new``, at the line of the caller's caller."""
    message = f"{old} has moved and will be removed in the next release. Use {new}"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel + 1)


def names_of(package: str) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package, which finds its old names."""

    def find(name: str) -> Any:
        old = f"{package}.{name}"
        if old in MODULES:
            return sys.modules[old]
        if old not in NAMES and old not in REMOVED:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return _find(old)

    return find


def _find(old: str) -> Any:
    if old in REMOVED:
        new, value = REMOVED[old]
    else:
        new = NAMES[old]
        module, _, attribute = new.rpartition(".")
        value = getattr(importlib.import_module(module), attribute)
    warn(old, new, stacklevel=3)
    return value


class _MovedModule(ModuleType):
    """Module under its old path, which finds its names in the new one."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        if (old := f"{self.__name__}.{name}") in NAMES or old in REMOVED:
            return _find(old)
        new = MODULES[self.__name__]
        value = getattr(importlib.import_module(new), name)
        warn(self.__name__, new, stacklevel=2)
        return value


# In sys.modules from the start: an import of the old path would otherwise replace a function of the same name, such as
# evaluation.autoattack.
sys.modules.update((old, _MovedModule(old)) for old in MODULES)
