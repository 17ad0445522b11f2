"""Lightning: any learner of this library as a ``LightningModule``."""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .._checks import check_callable, check_module, check_type, complaint
from ..engine.fit import check_parameters

try:
    try:
        if "pytorch_lightning" in sys.modules and "lightning.pytorch" not in sys.modules:
            raise ImportError("the caller uses the other one; neither takes the modules of its twin")
        import lightning.pytorch as pl
    except ImportError:
        import pytorch_lightning as pl  # type: ignore[no-redef, unused-ignore]
except ImportError as error:
    raise ImportError(complaint(__name__, "lightning", str(error), "Install it with pip install lightning")) from error


class LightningLearner(pl.LightningModule):  # type: ignore[misc, unused-ignore]
    """Train ``ACLTrainer`` or another ``learner`` of this library under Lightning.

    ``optimizer(parameters)`` returns the optimizer, ``schedule(step)`` the fraction of its learning rate, by default 1.
    A batch is a tensor, or a tuple of the learner's inputs. Loss and terms are logged as ``train_...`` and ``val_...``.
    Validation attacks too, with any ``Trainer(inference_mode=...)``. DDP ignores parameters without a gradient.
    """

    def __init__(self, learner: nn.Module, *, optimizer: Callable[..., Any], schedule: Any = lambda _: 1.0) -> None:
        check_module("LightningLearner", learner)
        for name, function in {"optimizer": optimizer, "schedule": schedule}.items():
            check_callable("LightningLearner", name, function, remedy="Pass a function")
        super().__init__()
        self.learner, self._optimizer, self._schedule = learner, optimizer, schedule
        idle: list[str] = getattr(learner, "_ddp_params_and_buffers_to_ignore", [])
        self._ddp_params_and_buffers_to_ignore = [f"learner.{name}" for name in idle]

    def training_step(self, batch: Any, _: int, stage: str = "train") -> Tensor:
        """Return the loss of a batch, and log it with the terms."""
        parts = batch if isinstance(batch, (tuple, list)) else [batch]
        loss, terms = self.learner(*(part.clone() if isinstance(part, Tensor) else part for part in parts))
        named = {f"{stage}_{name.removeprefix('train_')}": value for name, value in {"loss": loss, **terms}.items()}
        self.log_dict(named, batch_size=len(parts[0]), sync_dist=stage != "train")
        return loss  # type: ignore[no-any-return]

    def validation_step(self, batch: Any, index: int) -> Tensor:
        """Return the loss of a batch, and log it with the terms."""
        with torch.inference_mode(False), torch.no_grad():  # clones of the batch can then be differentiated through
            return self.training_step(batch, index, "val")

    def configure_optimizers(self) -> Any:
        """Return the optimizer and the schedule, which is called after every step."""
        optimizer = self._optimizer(self.parameters())
        remedy = "Return one of torch.optim, such as SGD(parameters, lr=0.1)"
        check_type("LightningLearner", "the optimizer", optimizer, torch.optim.Optimizer, remedy=remedy)
        check_parameters("LightningLearner", self, optimizer)
        for group in optimizer.param_groups:
            group.pop("initial_lr", None)  # of an earlier scheduler, which LambdaLR would take for the rate
        rates = {"scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, self._schedule), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": rates}
