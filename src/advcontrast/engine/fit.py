"""The training loop."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.utils.data import Dataset

from .. import distributed
from .._checks import check_bool, check_choice, check_int, complaint
from .._memory_format import choose_memory_format
from .._progress import ProgressBar, check_progress
from ..optim.ema import EMA
from ..optim.lars import LARS
from ..optim.schedules import WarmupCosine
from .arguments import check_data, check_optimizer, check_parts, check_savable, warn_of_untrained
from .batches.plan import Plan
from .batches.reader import Reader
from .batches.source import Batch
from .metrics import Row
from .parallel import LOST, agree, check_shares
from .run import Run
from .run_folder import Records
from .run_settings import identity
from .signals import termination

_OWNER = "fit"
_LOG = logging.getLogger(__name__)
_ASK_EVERY = 16


@distributed.explain_lost_peer(_OWNER, LOST)
def fit(
    learner: nn.Module,
    data: Tensor | Sequence[Tensor] | Dataset[Any] | Reader,
    *,
    epochs: int,
    batch_size: int = 512,
    optimizer: Optimizer | None = None,
    schedule: Callable[[int], float] | float | None = None,
    seed: int = 0,
    groups: Tensor | None = None,
    evaluate: Callable[[int], Mapping[str, float]] | None = None,
    select: str | None = None,
    folder: str | os.PathLike[str] | None = None,
    save_every: int | None = None,
    accumulate: int = 1,
    amp: Literal["off", "bf16", "fp16"] = "off",
    ema: EMA | None = None,
    compile: bool = False,  # noqa: A002 (the field's word)
    tensorboard: bool = False,
    progress: bool | None = None,
) -> list[Row]:
    """Train a learner.

    A learner is a module whose forward pass is a training step, as :class:`advcontrast.ACLTrainer` is: it takes a batch
    of each tensor of ``data`` and returns a loss and a dict of scalars to report. Augmentation and attack are the
    learner's; ``fit`` runs the loop alone.

    With a ``folder`` the run can be interrupted. Checkpoints hold everything that changes: on the CPU, in one process
    or two, a resumed run ends with the very weights of an uninterrupted one. (With more processes DDP adds up in
    another order after a restart; a GPU is as exact as its kernels are deterministic.) Called again with the same
    arguments, ``fit`` continues; when the run is complete it returns at once. SIGTERM saves after the current step and
    exits with status 0, Ctrl-C saves and raises ``KeyboardInterrupt``.

    Under ``torchrun``, with a process group, each process takes its share of every batch. Batches, steps and rates do
    not depend on the number of processes, and a run may be continued by another number of them. Only the first process
    needs the ``folder``. When ``fit`` returns all have the same weights, and the running statistics of the first
    process; :func:`advcontrast.surgery.convert_sync_batchnorm` makes them those of the whole batch.

    Args:
        learner: on the device to train on. It is put into train mode and into channels-last format, but for networks
            with 3-d convolutions, and on a CPU for those so narrow that PyTorch crashes in that format.
        data: tensors with one entry a sample, or a single such tensor: uint8 images ``[N, C, H, W]`` and whatever else
            the learner takes. They are moved to the device of the learner as a whole. Or a map-style data set, such as
            :class:`advcontrast.data.ImageStream`, that is read while it is trained on; :class:`Reader` says how.
        epochs: passes over the data, at least 1.
        batch_size: samples a step, of all processes together, who share them equally. The last batch of an epoch is
            filled up with the first samples of the epoch; if there are fewer samples than that, a step takes all.
        optimizer: of the learner's parameters, by default :class:`~advcontrast.optim.LARS` with the ACL code's rate of
            5. ``schedule`` scales the learning rates that it has at the time of the call; afterwards it has them again.
        schedule: ``schedule(step)``, the fraction of the optimizer's learning rate to use, a function of the step
            alone; or one fraction for all steps, such as 1.0. By default, also for an ``optimizer`` that is passed,
            :class:`~advcontrast.optim.WarmupCosine` with a warm-up of 10 epochs, or of a tenth of the run if that is
            shorter. The first line of the log names it.
        seed: of the order of the samples. Everything else draws from torch's global generators, which are never
            seeded here.
        groups: group of each sample, int64 ``[N]``: each batch then holds its share of every group.
        evaluate: ``evaluate(epoch)``, metrics to report after each epoch, counted from 1. Every process calls it. It
            must leave the learning rates of the optimizer alone, which are those of ``schedule``.
        select: name of a metric; the learner ends with the weights of the epoch in which it was largest. ``evaluate``
            must return it after the first epoch, and may leave it out after others; NaN counts as the lowest value. A
            name with the word "test" in it is refused: what is selected on test images is not tested by them.
        folder: where to keep ``checkpoints/``, ``metrics.csv`` and ``tensorboard/``.
        save_every: steps between checkpoints, beside those at the end of each epoch.
        accumulate: into how many parts to cut each batch to save memory; their gradients are added up. Refused for a
            learner whose loss compares the samples of a batch with each other.
        amp: ``"bf16"`` or ``"fp16"`` runs the learner under autocast; fp16 with a gradient scaler.
        ema: average of ``learner.model`` to update after each step.
        compile: whether to compile ``learner.model`` in place, each graph once: in ``evaluate``, where batches may have
            another size, it runs uncompiled.
        tensorboard: whether to write the metrics for TensorBoard too.
        progress: whether to show a progress bar, where tqdm is installed; ``None`` shows it on terminals only.

    Returns:
        A row for each epoch: its number, the steps taken, learning rate, seconds, the means of the loss and of the
        learner's terms, and what ``evaluate`` returned. ``unreadable`` is the share of samples in whose place another
        one was taken, for a data set that does so.

    Raises:
        ValueError: an argument out of its range; data that is empty, not finite or of unequal lengths; an optimizer of
            parameters that the learner does not hold.
        TypeError: an argument of the wrong kind, such as an optimizer that needs a closure; or the learner returns
            something other than a loss and a dict of scalars, as a plain network does.
        RuntimeError: the loss, a gradient or a trained weight is not finite, in any process. On the CPU the weights are
            still those of the step before; elsewhere this is raised at the next checkpoint, which is not written.
            Buffers, frozen weights and terms may be infinite or NaN. Or ``evaluate`` has set a learning rate. Or
            another process has ended, or has not responded within the timeout of the process group.
        CheckpointError: the checkpoints in ``folder`` are damaged, belong to another run, cannot be written, or are
            being written by another process.

    Warns:
        UserWarning: ``optimizer`` lacks parameters that require gradients, as one made before the conversion does.

    Example:
        >>> from torchvision.models import resnet18
        >>> model = convert_to_dual_bn(resnet18(num_classes=16))
        >>> acl = ACLTrainer(model, attack=PGDAttack(steps=1), augment=ContrastivePairAugment(16))
        >>> images = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
        >>> history = fit(acl, images, epochs=1)
        >>> sorted(history[0])[:4]
        ['alignment_adv', 'alignment_clean', 'epoch', 'loss']
    """
    source = check_data(learner, data, batch_size, groups)
    check_parts(optimizer, schedule, evaluate, select, folder, ema)
    if optimizer is not None:
        check_optimizer(_OWNER, learner, optimizer)
        warn_of_untrained(learner, optimizer)
    samples = source.lengths[0]
    check_shares(learner, samples, batch_size)
    for name, number in (("epochs", epochs), ("accumulate", accumulate)):
        check_int(_OWNER, name, number, low=1, remedy="Pass a number of at least 1")
    check_int(_OWNER, "seed", seed, low=0, remedy="Pass any number from 0")
    check_choice(_OWNER, "amp", amp, ("off", "bf16", "fp16"))
    check_bool(_OWNER, "compile", compile, remedy="True compiles learner.model")
    check_bool(_OWNER, "tensorboard", tensorboard, remedy="True writes folder/tensorboard")
    check_progress(_OWNER, progress)
    if save_every is not None:
        check_int(_OWNER, "save_every", save_every, low=1, remedy="Pass a number of steps, or None")
    if (ema is not None or compile) and not isinstance(getattr(learner, "model", None), nn.Module):
        remedy = "Hold the network in an attribute of that name"
        raise ValueError(complaint(_OWNER, "learner.model to average or compile", "none", remedy))
    if folder is not None:
        check_savable(learner)
    elif tensorboard or save_every is not None:
        raise ValueError(complaint(_OWNER, "a folder to write to", "None", "Pass folder="))
    if accumulate > 1 and getattr(learner, "couples_samples", False):
        expected = f"accumulate to be 1 for {type(learner).__name__}, whose loss compares all images of a batch"
        remedy = "Save memory with NTXentLoss(tile=), activation checkpointing or more processes instead"
        raise ValueError(complaint(_OWNER, expected, repr(accumulate), remedy))

    memory_format = choose_memory_format(learner)
    device = next(learner.parameters()).device
    plan = Plan(samples=samples, batch_size=batch_size, seed=seed, groups=groups)
    steps = epochs * plan.steps
    optimizer = LARS(learner.parameters(), lr=5.0) if optimizer is None else optimizer
    schedule = WarmupCosine(steps, warmup=min(10 * plan.steps, steps // 10)) if schedule is None else schedule
    settings = {
        **identity(learner, source.identity(), groups, optimizer, schedule, ema),
        "epochs": epochs,
        "steps": steps,
        "batch_size": batch_size,
        "accumulate": accumulate,
        "seed": seed,
        "select": select,
        "amp": amp,
    }
    run = Run(learner, optimizer, schedule, amp, ema, settings)
    records = Records(folder, tensorboard=tensorboard)
    agree(learner, ema, settings)
    with ExitStack() as stack:
        stack.callback(run.reset_rates)
        stack.enter_context(records.resumed(run))
        if distributed.rank() == 0:
            peaks = " and ".join(dict.fromkeys(f"{float(peak):.4g}" for peak in run.peaks))
            _LOG.info("%s with lr %s, schedule %s", type(optimizer).__name__, peaks, settings["schedule"])
        asked = stack.enter_context(termination(folder is not None))
        visible = progress if distributed.rank() == 0 else False
        bar = stack.enter_context(ProgressBar(steps, unit="step", shown=visible, done=run.step))
        after = ""
        done = len(run.history)
        left = source.batches(plan, device, epochs=range(done, epochs), skip=run.step - done * plan.steps)
        batches = stack.enter_context(left)
        if compile and len(run.history) < epochs:
            learner.get_submodule("model").compile()
        wrapped = DistributedDataParallel(learner) if distributed.world_size() > 1 else learner
        while len(run.history) < epochs:
            epoch, started = len(run.history), time.monotonic()
            learner.train()
            for batch, replaced in islice(batches, (epoch + 1) * plan.steps - run.step):
                run.take_step(_cut(batch, accumulate, memory_format), wrapped)
                if replaced is not None:
                    run.means.count("unreadable", replaced)
                bar.update(lambda: f"loss {run.means.loss():.4g}{after}")  # noqa: B023 (called at once)
                # The last step of an epoch is saved together with the row of the epoch.
                if run.step < (epoch + 1) * plan.steps:
                    stop = run.step % _ASK_EVERY == 0 or distributed.world_size() == 1
                    stop = stop and asked.wanted()
                    if stop or (save_every is not None and run.step % save_every == 0):
                        records.save(run)
                    if stop:
                        asked.end()
            with torch.compiler.set_stance("force_eager") if compile else nullcontext():
                row = run.end_epoch(started, evaluate, select)
            records.save(run)
            records.report(run)
            shown = {name: value for name, value in row.items() if name not in ("step", "seconds")}
            line = ", ".join(f"{name} {value:.4g}" for name, value in shown.items())
            bar.set_postfix_str(line)
            after = f" after {line}"
            if distributed.rank() == 0:
                _LOG.info(line)
            if asked.wanted():
                asked.end()
    run.take_best()
    return run.history


def _cut(batch: Batch, parts: int, memory_format: torch.memory_format) -> list[Batch]:
    """Cut a batch into so many parts, or into single samples."""
    batch = tuple(x.contiguous(memory_format=memory_format) if x.dim() == 4 else x for x in batch)
    return [*zip(*(x.tensor_split(min(parts, len(x))) for x in batch), strict=True)]
