"""Old module paths and names: they work for one release and warn. A row here is all that a move needs."""

from __future__ import annotations

import importlib
import sys
import warnings
from types import ModuleType
from typing import Any

# All paths are below advcontrast. Modules and names that only moved are listed by package, others by their new name.
_MOVED_MODULES = {
    ("attacks", "evaluation.uar"): "elastic frank_wolfe jpeg",
    ("engine", "optim"): "ema lars schedules",
    ("evaluation", "evaluation.accuracy"): "autoattack corruptions curves",
    ("evaluation", "evaluation.cards"): "card comparison provenance",
    ("evaluation", "evaluation.protocols"): "presets",
    ("evaluation", "evaluation.representation"): "branch_gap label_free",
    ("functional", "evaluation.uar"): "jpeg",
}
_RENAMED_MODULES = {
    "attacks.context": "attacks.target",
    "attacks.pgd": "attacks.ascent",
    "attacks.stateful": "attacks.carried attacks.progressive",
    "augment.corruptions": "augment.formulas",
    "data.folder": "data.listing",
    "engine.batches": "engine.batches.plan engine.batches.reader engine.batches.source engine.batches.worker "
    + "engine.reader engine.sampling engine.source",
    "engine.checkpoint": "engine.checkpoint.errors engine.checkpoint.protocol engine.checkpoint.state engine.errors",
    "engine.fit": "engine.arguments engine.learner engine.signals engine.termination",
    "engine.run": "engine.identity engine.metrics engine.run_settings",
    "evaluation.masking": "evaluation.alarms evaluation.overfitting evaluation.symptoms",
    "evaluation.plots.accuracies": "evaluation.figures",
    "evaluation.plots.images": "evaluation.pictures",
    "evaluation.protocols.run": "evaluation.frozen evaluation.probing",
    "evaluation.uar.elastic": "functional.flow",
    "functional.image": "augment.images",
}
_MOVED_NAMES = {
    ("attacks", "evaluation.uar"): "ElasticAttack FrankWolfeAttack JPEGAttack",
    ("engine", "optim"): "EMA LARS MultiStep WarmupCosine",
    ("evaluation", "evaluation.accuracy"): "corrupted",
    ("evaluation", "evaluation.cards"): "AlarmRecord Comparison CurveRecord MetricComparison Result revision versions",
    ("evaluation", "evaluation.masking"): "Overfitting batch_dependence loss_beaten probability_output "
    + "randomised_output train_mode unbounded_attack zero_gradients",
    ("evaluation", "evaluation.plots"): "plot_branches plot_corruptions plot_curves plot_images",
    ("evaluation", "evaluation.protocols"): "unchanged",
    ("evaluation", "evaluation.representation"): "BranchGap",
    ("evaluation", "evaluation.uar"): "CALIBRATIONS Calibration UAR calibrated_attacks",
    ("functional", "evaluation.uar"): "jpeg_decode jpeg_encode warp",
    ("surgery.export", "surgery.interpolate"): "blend",
}
_RENAMED_NAMES = {
    "adapters.losses.PairsAsLabels": "adapters.losses.NumberedPairs",
    "adapters.losses.TrainOnlyMemoryBank": "adapters.losses.Remembering",
    "adapters.robustbench.robustbench_model_info": "adapters.robustbench.claim",
    "adapters.torchattacks.AsTorchattack": "adapters.torchattacks.TorchattacksStyle",
    "attacks.ClassificationObjective": "attacks.Classification attacks.classification.Classification",
    "distributed.all_gather_object": "distributed.exchange",
    "distributed.broadcast_": "distributed.share",
    "distributed.broadcast_object": "distributed.from_first",
    "distributed.explain_lost_peer": "distributed.together",
    "distributed.init_from_torchrun": "distributed.join",
    "engine.DataReader": "engine.Reader engine.reader.Reader",
    "evaluation.cards.CurveRecord": "evaluation.figures.Curve",
    "evaluation.cards.DiscordantPairs": "evaluation.Flips evaluation.comparison.Flips",
    "evaluation.masking.attack_not_converged": "evaluation.incomplete_search evaluation.masking.incomplete_search",
    "evaluation.masking.loss_decreases_with_strength": "evaluation.falling_loss evaluation.masking.falling_loss",
    "evaluation.masking.weaker_attack_wins": "evaluation.masking.white_box_beaten evaluation.white_box_beaten",
}


def _table(moved: dict[tuple[str, str], str], renamed: dict[str, str]) -> dict[str, str]:
    rows = {f"{old}.{name}": f"{new}.{name}" for (old, new), names in moved.items() for name in names.split()}
    rows |= {old: new for new, names in renamed.items() for old in names.split()}
    return {f"advcontrast.{old}": f"advcontrast.{new}" for old, new in rows.items()}


MODULES = _table(_MOVED_MODULES, _RENAMED_MODULES)
NAMES = _table(_MOVED_NAMES, _RENAMED_NAMES)


#: Names without a successor: what to use instead, and an object that works until the next release.
REMOVED: dict[str, tuple[str, Any]] = dict.fromkeys(
    ("advcontrast.engine.Constant", "advcontrast.engine.schedules.Constant"),
    ("schedule=1.0 in fit", lambda: lambda _: 1.0),
)


def warn(old: str, new: str, *, stacklevel: int) -> None:
    """Warn that ``old`` is now ``new``, at the line of the caller's caller."""
    message = f"{old} has moved and will be removed in the next release. Use {new}"
    warnings.warn(message, DeprecationWarning, stacklevel=stacklevel + 1)


def serve_old_names(package: str) -> None:
    """Make the old names of a package attributes of it."""

    def find(name: str) -> Any:
        old = f"{package}.{name}"
        if old in MODULES:
            return sys.modules[old]
        if old not in NAMES and old not in REMOVED:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return _find(old)

    # Set at run time: with a __getattr__ in its source, type checkers would accept every name of the module.
    sys.modules[package].__dict__["__getattr__"] = find


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
