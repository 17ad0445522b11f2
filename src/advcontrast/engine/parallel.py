"""What several processes must agree on before they train one learner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torch import nn

from .. import distributed
from .._checks import complaint
from ..optim.ema import EMA
from ..surgery.sync_batchnorm import SynchronisedNorm
from .run_settings import change

_OWNER = "fit"

#: What to do where a process has gone or hangs.
LOST = "Look for the first message of all; started again, the run goes on from the last checkpoint, which is good"


def check_shares(learner: nn.Module, samples: int, batch_size: int) -> None:
    """Require batches that the processes can share, and norms that work where the learner is."""
    world = distributed.world_size()
    if samples < batch_size and samples % world:
        expected = f"a batch that {world} processes can share equally"
        remedy = "Pass a batch_size of at most that, and a multiple of the processes"
        raise ValueError(complaint(_OWNER, expected, f"one of all {samples} samples", remedy))
    on_cpu = next(learner.parameters()).device.type == "cpu"
    if on_cpu and dist.is_available() and dist.is_initialized():
        for name, module in learner.named_modules():
            if isinstance(module, (nn.SyncBatchNorm, SynchronisedNorm)):
                remedy = "PyTorch does not synchronise batch norms on a CPU: use batch norms there, or group norms"
                raise ValueError(complaint(_OWNER, "an accelerator for SyncBatchNorm", f"{name} on the CPU", remedy))


def agree(learner: nn.Module, ema: EMA | None, settings: Mapping[str, Any]) -> None:
    """Give all processes the weights of the first one, once all were called alike."""
    everyone = distributed.all_gather_object(dict(settings))
    for rank, theirs in enumerate(everyone):
        for name, value in everyone[0].items():
            if theirs[name] != value:
                got = f"on process {rank} {change(name, theirs[name], value)}"
                remedy = "Pass all data and the same arguments everywhere; each process takes its share of a batch"
                raise ValueError(complaint(_OWNER, "all processes to call it alike", got, remedy))
    # DDP does this too, but neither for the average nor for parameters without gradients in this mode.
    for module in (learner,) if ema is None else (learner, ema.model):
        distributed.broadcast_([*module.parameters(), *module.buffers()])
