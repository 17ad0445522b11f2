"""Training loop."""

import logging
import os
import re
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from inspect import signature
from itertools import islice
from numbers import Real
from types import FrameType, NoneType
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.backends import cudnn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.utils.data import Dataset

from .. import distributed
from .._checks import (
    check_bool,
    check_callable,
    check_choice,
    check_int,
    check_module,
    check_path,
    check_real,
    check_tensor,
    check_type,
    complaint,
    type_name,
)
from .._memory_format import choose_memory_format
from .._progress import ProgressBar, check_progress
from ..optim.ema import EMA
from ..optim.lars import LARS
from ..optim.schedules import WarmupCosine
from ..surgery.sync_batchnorm import SynchronisedNorm
from .batches import DataReader, Plan, Source, fingerprint, source_of
from .run import Row, Run, shown
from .run_folder import RunFolder

_OWNER = "fit"
CONNECTION_LOST_REMEDY = (
    "Look for the first error among all processes; when restarted, the run resumes from the last intact checkpoint"
)
_LOG = logging.getLogger(__name__)
_POLL = 16  # steps between two checks of whether any of several processes was asked to stop


class Learner(Protocol):
    """Protocol of a learner: an ``nn.Module`` whose forward pass is a training step.

    :func:`fit` needs no base class. It calls ``learner(*batch)`` with a batch of each tensor of its data, in train
    mode, differentiates the loss, and logs the terms. State that changes from step to step, such as a momentum network,
    a queue or a counter, belongs in modules, buffers or extra state (``get_extra_state`` and ``set_extra_state`` of
    ``nn.Module``, plain data). It is then saved, so that a resumed run ends with bit-identical weights. A
    ``torch.Generator`` that is an attribute is saved too. Settings belong in ``extra_repr``: a resumed run compares
    them.

    :class:`advcontrast.strategies.ContrastiveLearner` is a base for learners that attack their images.
    """

    #: The network: ``ema=``, ``compile=`` and :func:`forward_equivalents` need it.
    model: nn.Module

    #: Whether the loss compares the images of a batch with each other; ``fit`` then rejects ``accumulate``.
    couples_samples: bool

    def forward(self, *batch: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Return the loss, a scalar to differentiate, and detached scalars to log by name."""
        ...


@distributed.explain_lost_peer(_OWNER, CONNECTION_LOST_REMEDY)
def fit(
    learner: nn.Module,
    data: Tensor | Sequence[Tensor] | Dataset[Any] | DataReader,
    *,
    # Training
    epochs: int,
    batch_size: int = 512,
    optimizer: Optimizer | None = None,
    schedule: Callable[[int], float] | float | None = None,
    seed: int = 0,
    groups: Tensor | None = None,
    select_data: Callable[[int, nn.Module], Tensor | None] | None = None,
    accumulate: int = 1,
    amp: Literal["off", "bf16", "fp16"] = "off",
    ema: EMA | None = None,
    compile: bool = False,  # noqa: A002 (the field's word)
    after_step: Callable[[int], object] | None = None,
    # Evaluation
    evaluate: Callable[[int], Mapping[str, float]] | None = None,
    select: str | None = None,
    # Output
    folder: str | os.PathLike[str] | None = None,
    save_every: int | None = None,
    log_every: int | None = None,
    tensorboard: bool = False,
    progress: bool | None = None,
) -> list[Row]:
    """Train a learner.

    A learner, such as :class:`advcontrast.ACLTrainer`, is a module whose forward pass is a training step: it takes a
    batch of each tensor of ``data`` and returns a loss and a dict of scalars to report. The learner owns augmentation
    and attack; ``fit`` owns the loop only.

    The keyword arguments form three groups, *training* (``epochs`` to ``after_step``), *evaluation* (``evaluate`` and
    ``select``) and *output* (``folder`` to ``progress``). Most runs set a few of the first group and ``folder``.

    With a ``folder`` the run can be interrupted. Called again with the same arguments, ``fit`` continues; a complete
    run returns immediately. On the CPU, in one process or two, a resumed run ends with bit-identical weights. With more
    processes it may not, since DDP sums in another order after a restart; on a GPU it requires deterministic kernels.
    SIGTERM saves after the current step and exits with status 0, Ctrl-C saves and raises ``KeyboardInterrupt``.

    Under ``torchrun``, with a process group, each process takes its share of every batch. Batches, steps and rates do
    not depend on the number of processes, which may change when a run is resumed. Only the first process needs the
    ``folder``. Afterwards all processes have the same weights, and the running statistics of the first process. With
    :func:`advcontrast.surgery.convert_sync_batchnorm` the statistics are computed over the whole batch.

    Args:
        learner: on the device to train on. It is put into train mode and into channels-last format, except networks
            with 3-d convolutions, and on a CPU those so narrow that PyTorch crashes in that format.
        data: tensors with one entry per sample, or a single such tensor: uint8 images ``[N, C, H, W]`` and the other
            inputs of the learner, moved to its device as a whole. Or a map-style data set, such as
            :class:`advcontrast.data.ImageStream`, that is read during training; see :class:`DataReader`.
        epochs: passes over the data, at least 1.
        batch_size: samples per step, shared equally by all processes. The last batch of an epoch is filled up with the
            first samples of the epoch; if there are fewer samples than that, a step takes all.
        optimizer: of the learner's parameters, by default :class:`~advcontrast.optim.LARS` with the ACL code's rate of
            5. ``schedule`` scales the learning rates that it has at the time of the call; they are restored afterwards.
        schedule: ``schedule(step)``, the fraction of the optimizer's learning rate to use, a function of the step
            alone; or one fraction for all steps, such as 1.0. By default, also for an ``optimizer`` that is passed,
            :class:`~advcontrast.optim.WarmupCosine` with a warm-up of 10 epochs, or of a tenth of the run if that is
            shorter. The first line of the log names it.
        seed: of the order of the samples. All else draws from torch's global generators, which only a
            resumed run sets: to their saved states, or in additional processes to states derived from these.
        groups: group of each sample, int64 ``[N]``: each batch then holds its share of every group.
        select_data: ``select_data(epoch, learner)``, the indices int64 ``[M]`` of the samples of an epoch, counted from
            1, or ``None`` for all. Every process calls it, and those of the first process are used. An epoch has as
            many steps as its samples fill, and ``schedule``, which must be given, counts the steps that are taken.
        accumulate: number of parts into which each batch is cut to save memory; their gradients are added up. Raises an
            error for a learner whose loss compares the samples of a batch with each other.
        amp: ``"bf16"`` or ``"fp16"`` runs the learner under autocast; fp16 with a gradient scaler.
        ema: average of ``learner.model`` to update after each step.
        compile: whether to compile ``learner.model`` in place, each graph once: in ``evaluate``, where batches may have
            another size, it runs uncompiled.
        after_step: ``after_step(step)``, called in every process after each optimizer step with the number of steps
            taken, for an average of your own or a limit on the weights. A resumed run restores the learner only: assign
            the modules that ``after_step`` changes to attributes of it, with ``requires_grad_(False)``. Random numbers
            that it draws from the global generators change those of later steps.
        evaluate: ``evaluate(epoch)``, metrics to report after each epoch, counted from 1. Every process calls it.
            Neither it nor ``after_step`` may change the learning rates of the optimizer, which ``schedule`` sets.
        select: name of a metric; the learner ends with the weights of the epoch in which it was largest. ``evaluate``
            must return it after the first epoch, and may omit it after others. NaN counts as the lowest value. A
            name that contains "test" raises an error: images that select a model cannot test it.
        folder: of ``checkpoints/``, ``metrics.csv`` with a row for each epoch, ``steps.csv`` and ``tensorboard/``.
        save_every: steps between checkpoints, in addition to those at the end of each epoch.
        log_every: steps between reports of the means of loss and terms since the last report: on the progress bar, in
            the log, in ``steps.csv``, and as ``steps/...`` in TensorBoard. By default only epochs are reported. Each
            report writes all of ``steps.csv`` again, which takes about 0.1 s after 20,000 reports.
        tensorboard: whether to write the metrics for TensorBoard too.
        progress: whether to show a progress bar, where tqdm is installed; ``None`` shows it on terminals only. Without
            ``log_every`` it shows the mean loss of the epoch so far.

    Returns:
        A row for each epoch: its number, the steps taken, learning rate, seconds, the means of loss and terms, and what
        ``evaluate`` returned. For a data set that replaces unreadable samples, ``unreadable`` is the share of these.

    Raises:
        ValueError: an argument out of range; data that is empty, not finite or of unequal lengths; an optimizer of
            parameters that the learner does not hold.
        TypeError: an argument has the wrong type, such as an optimizer that needs a closure; or the learner returns
            something other than a loss and a dict of scalars, as a plain network does.
        RuntimeError: the loss, a gradient or a trained weight is not finite, in any process. On the CPU the weights are
            still those of the step before; elsewhere this is raised at the next checkpoint, which is not written.
            Buffers, frozen weights and terms may be infinite or NaN. Or ``evaluate`` or ``after_step`` has set a
            learning rate. Or another process has ended, or has not responded within the timeout of the process group.
        CheckpointError: checkpoints in ``folder`` are damaged, unwritable, of another run or in use by another process.

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
    # Validate
    _check_learner(learner)
    source = source_of(data)
    _check_data(learner, source, batch_size, groups)
    _check_optimizer(learner, optimizer, schedule, select_data)
    _check_training(learner, epochs, seed, accumulate, amp, ema, compile, after_step)
    _check_evaluation(evaluate, select)
    _check_output(learner, folder, save_every, log_every, tensorboard, progress)

    # Prepare
    memory_format = choose_memory_format(learner)
    plan = Plan(samples=source.lengths[0], batch_size=batch_size, seed=seed, groups=groups)
    steps = epochs * plan.steps
    optimizer = LARS(learner.parameters(), lr=5.0) if optimizer is None else optimizer
    schedule = WarmupCosine(steps, warmup=min(10 * plan.steps, steps // 10)) if schedule is None else schedule
    settings: dict[str, Any] = {"data": source.identity(), "groups": None if groups is None else fingerprint([groups])}
    settings |= {"epochs": epochs, "steps": steps, "batch_size": batch_size, "accumulate": accumulate, "seed": seed}
    settings |= {"select": select, "amp": amp, "select_data": shown(select_data)}
    run = Run(learner, optimizer, schedule, amp, ema, settings)
    run_folder = RunFolder(folder, tensorboard=tensorboard)
    first = distributed.rank() == 0

    # Run
    with ExitStack() as stack:
        # A group with NCCL alone sends objects from the current device, which must differ between processes.
        stack.enter_context(torch.accelerator.device_index(run.device.index))
        run.broadcast_initial_state()
        stack.callback(run.restore_lrs)
        stack.callback(setattr, cudnn, "benchmark", cudnn.benchmark)
        cudnn.benchmark |= not (cudnn.deterministic or torch.are_deterministic_algorithms_enabled())
        stack.enter_context(run_folder.resumed(run))
        if first:
            lrs = " and ".join(dict.fromkeys(f"{float(lr):.4g}" for lr in run.base_lrs))
            _LOG.info("%s with lr %s, schedule %s", type(optimizer).__name__, lrs, run.settings["schedule"])
        received = stack.enter_context(_deferred_signals(folder is not None))
        bar = stack.enter_context(ProgressBar(steps, unit="step", shown=progress if first else False, done=run.step))
        done = len(run.history)
        reading = stack.enter_context(ExitStack())
        if compile and done < epochs:
            learner.get_submodule("model").compile()
        wrapped = DistributedDataParallel(learner) if distributed.world_size() > 1 else learner
        after = ""
        for epoch in range(done + 1, epochs + 1):
            started = time.monotonic()
            planned = plan if select_data is None else run.plan_epoch(plan, select_data)
            if epoch == done + 1 or select_data is not None:
                reading.close()
                ahead = range(epoch - 1, epochs if select_data is None else epoch)
                left = source.batches(planned, run.device, epochs=ahead, skip=run.step - run.epoch_start)
                batches = reading.enter_context(left)
            last = run.epoch_start + planned.steps
            learner.train()
            for batch, replaced in islice(batches, last - run.step):
                run.take_step(batch, wrapped, accumulate, memory_format)
                if after_step is not None:
                    with run.keeping_lrs("after_step"):
                        after_step(run.step)
                    learner.train()
                if replaced is not None:
                    run.means.count("unreadable", replaced)
                # The lambda is called at once.
                bar.update(None if log_every else lambda: f"loss {run.means.loss():.4g}{after}")  # noqa: B023
                if log_every is not None and run.step % log_every == 0:
                    row = run.log_steps()
                    run_folder.report("steps.csv", run.log, "steps/")
                    bar.set_postfix_str(f"loss {row['loss']:.4g}{after}")
                    if first:
                        _LOG.info(_line(row))
                # The last step of an epoch is saved together with the row of the epoch.
                if run.step < last:
                    stop = bool(received)
                    if wrapped is not learner:
                        stop = run.step % _POLL == 0 and any(distributed.all_gather_object(stop))
                    if stop or (save_every is not None and run.step % save_every == 0):
                        run_folder.save(run)
                    if stop:
                        _end(received)
            with torch.compiler.set_stance("force_eager") if compile else nullcontext():
                row = run.end_epoch(started, evaluate, select)
            run_folder.save(run)
            run_folder.report("metrics.csv", run.history)
            line = _line({name: value for name, value in row.items() if name not in ("step", "seconds")})
            bar.set_postfix_str(line)
            after = f" after {line}"
            if first:
                _LOG.info(line)
            if any(distributed.all_gather_object(bool(received))):
                _end(received)
    run.load_best()
    return run.history


@contextmanager
def _deferred_signals(deferred: bool) -> Iterator[list[int]]:
    """Collect SIGTERM or SIGINT in the block instead of ending at once, if ``deferred``; a second signal ends at once.

    Handlers can only be set in the main thread; in other threads signals keep their usual effect.
    """
    received: list[int] = []
    numbers = (signal.SIGTERM, signal.SIGINT) if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in numbers if deferred}

    def reset() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def record(number: int, _: FrameType | None) -> None:
        received.append(number)
        reset()

    try:
        for number in before:
            signal.signal(number, record)
        yield received
    finally:
        reset()


def _end(received: Sequence[int]) -> None:
    """End the process: with ``KeyboardInterrupt`` after Ctrl-C, else with status 0."""
    if signal.SIGINT in received:
        raise KeyboardInterrupt
    if distributed.rank() == 0:
        _LOG.warning("fit was stopped by SIGTERM and has saved a checkpoint; call it again to resume")
    raise SystemExit(0)


def _line(row: Row) -> str:
    return ", ".join(f"{name} {value:{'.4g' if isinstance(value, float) else ''}}" for name, value in row.items())


def _check_learner(learner: Any) -> None:
    check_module(_OWNER, learner)
    if name := next((name for name, parameter in learner.named_parameters() if is_lazy(parameter)), None):
        remedy = "Call the network on a batch of images first"
        raise ValueError(complaint(_OWNER, "a learner whose weights have shapes", f"the lazy {name}", remedy))
    if not any(parameter.requires_grad for parameter in learner.parameters()):
        raise ValueError(complaint(_OWNER, "a learner with parameters to train", "none", "Unfreeze some of them"))


def _check_data(learner: nn.Module, source: Source, batch_size: int, groups: Tensor | None) -> None:
    """Require samples that all processes can share, and norms that work where the learner is."""
    lengths, world = source.lengths, distributed.world_size()
    if len(set(lengths)) != 1 or lengths[0] < 2 * world:
        remedy = "Pass the images as a tensor [N, C, H, W], and labels beside them as (images, labels)"
        raise ValueError(complaint(_OWNER, f"data of one length, at least {2 * world}", f"lengths {lengths}", remedy))
    check_int(_OWNER, "batch_size", batch_size, low=2 * world, remedy="A batch has at least two samples per process")
    samples = lengths[0]
    if batch_size % world:
        rule = f"batch_size to be a multiple of {world} processes"
        raise ValueError(complaint(_OWNER, rule, repr(batch_size), "All processes take equal shares"))
    if samples < batch_size and samples % world:
        expected, got = f"a batch that {world} processes can share equally", f"one of all {samples} samples"
        raise ValueError(complaint(_OWNER, expected, got, "Pass a smaller batch_size, a multiple of the processes"))
    if groups is not None:
        remedy = "Pass the number of its group for each sample"
        check_tensor(_OWNER, "groups", groups, (torch.int64,), remedy=remedy)
        if list(groups.shape) != [samples]:
            raise ValueError(complaint(_OWNER, f"groups of shape {[samples]}", str(list(groups.shape)), remedy))
    on_cpu = next(learner.parameters()).device.type == "cpu"
    if on_cpu and dist.is_available() and dist.is_initialized():
        for name, module in learner.named_modules():
            if isinstance(module, (nn.SyncBatchNorm, SynchronisedNorm)):
                remedy = "PyTorch does not synchronise batch norms on a CPU: use batch norms there, or group norms"
                raise ValueError(complaint(_OWNER, "an accelerator for SyncBatchNorm", f"{name} on the CPU", remedy))


def _check_optimizer(learner: nn.Module, optimizer: Any, schedule: Any, select_data: Any) -> None:
    remedy = "Pass the optimizer itself, such as LARS(learner.parameters(), lr=5.0)"
    check_type(_OWNER, "optimizer", optimizer, (Optimizer, NoneType), remedy=remedy)
    if optimizer is not None:
        closure = signature(optimizer.step).parameters.get("closure")
        if closure is not None and closure.default is closure.empty:
            remedy = "Pass one that takes a step from the gradients alone, such as SGD, Adam or LARS"
            raise TypeError(complaint(_OWNER, "an optimizer that needs no closure", type_name(optimizer), remedy))
        check_parameters(_OWNER, learner, optimizer)
        known = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if lacks := [name for name, p in learner.named_parameters() if p.requires_grad and id(p) not in known]:
            got = f"one without {len(lacks)} of them: {', '.join(lacks[:3])}{', ...' if len(lacks) > 3 else ''}"
            remedy = "Create it after the network is converted and complete, or set their requires_grad to False"
            text = complaint(_OWNER, "an optimizer of all parameters that require gradients", got, remedy)
            warnings.warn(text, UserWarning, stacklevel=4)
    if isinstance(schedule, Real):
        remedy = "1.0 keeps the learning rate; for another one, set it in the optimizer"
        check_real(_OWNER, "schedule", schedule, low=0, above=True, remedy=remedy)
    elif schedule is not None:
        remedy = "Pass a function of the step that returns the fraction of the learning rate, a number, or None"
        check_callable(_OWNER, "schedule", schedule, remedy=remedy)
    if select_data is not None:
        remedy = "Pass a function of the epoch and the learner, or None"
        check_callable(_OWNER, "select_data", select_data, remedy=remedy)
        if schedule is None:
            remedy = "The number of steps depends on the selection; 1.0 keeps the learning rate"
            raise ValueError(complaint(_OWNER, "a schedule with select_data", "None", remedy))


def _check_training(
    learner: nn.Module, epochs: int, seed: int, accumulate: int, amp: str, ema: Any, compiled: bool, after_step: Any
) -> None:
    for name, number in (("epochs", epochs), ("accumulate", accumulate)):
        check_int(_OWNER, name, number, low=1, remedy="Pass a number of at least 1")
    check_int(_OWNER, "seed", seed, low=0, remedy="Pass any number from 0")
    check_choice(_OWNER, "amp", amp, ("off", "bf16", "fp16"))
    check_bool(_OWNER, "compile", compiled, remedy="True compiles learner.model")
    if after_step is not None:
        check_callable(_OWNER, "after_step", after_step, remedy="Pass a function of the step, or None")
    check_type(_OWNER, "ema", ema, (EMA, NoneType), remedy="Pass EMA(learner.model, decay=0.999)")
    if (ema is not None or compiled) and not isinstance(getattr(learner, "model", None), nn.Module):
        raise ValueError(complaint(_OWNER, "learner.model to average or compile", "none", "Assign the network to it"))
    if accumulate > 1 and getattr(learner, "couples_samples", False):
        expected = f"accumulate to be 1 for {type_name(learner)}, whose loss compares all images of a batch"
        remedy = "Save memory with NTXentLoss(tile=), activation checkpointing or more processes instead"
        raise ValueError(complaint(_OWNER, expected, repr(accumulate), remedy))


def _check_evaluation(evaluate: Any, select: Any) -> None:
    if evaluate is not None:
        check_callable(_OWNER, "evaluate", evaluate, remedy="Pass a function, or None")
    check_type(_OWNER, "select", select, (str, NoneType), remedy="Pass the name of a metric")
    if select is not None and "test" in re.split("[^a-z]+", select.lower()):
        remedy = "Select on validation images, and look at the test images once, at the end"
        raise ValueError(complaint(_OWNER, "a metric of validation images to select by", repr(select), remedy))


def _check_output(
    learner: nn.Module, folder: Any, save_every: Any, log_every: Any, tensorboard: Any, progress: Any
) -> None:
    check_bool(_OWNER, "tensorboard", tensorboard, remedy="True writes folder/tensorboard")
    check_progress(_OWNER, progress)
    for name, steps in (("save_every", save_every), ("log_every", log_every)):
        if steps is not None:
            check_int(_OWNER, name, steps, low=1, remedy="Pass a number of steps, or None")
    if folder is None:
        if tensorboard or save_every is not None:
            raise ValueError(complaint(_OWNER, "a folder to write to", "None", "Pass folder="))
        return
    check_path(_OWNER, "folder", folder, remedy="Pass a string or a Path, or None")
    for name, tensor in learner.state_dict().items():
        if isinstance(tensor, Tensor) and tensor.is_meta:
            remedy = "Load its values, register a buffer with persistent=False, or leave out folder="
            raise ValueError(complaint(_OWNER, f"{name} to have values", "a tensor on the meta device", remedy))


def check_parameters(owner: str, learner: nn.Module, optimizer: Optimizer) -> None:
    """Require an optimizer of the learner's parameters, and of no others, which would be neither saved nor reset."""
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    ours = {id(parameter): parameter.requires_grad for parameter in learner.parameters()}
    if not any(ours.get(parameter) for parameter in held):
        remedy = "Make it from learner.parameters(), once the network has been converted"
        got = f"{type_name(optimizer)} of other parameters"
        raise ValueError(complaint(owner, "an optimizer of the parameters of the learner", got, remedy))
    if others := len(held - ours.keys()):
        remedy = "Assign the modules that hold these to attributes of the learner, or make it from learner.parameters()"
        got = f"{type_name(optimizer)} with {others} other tensors"
        raise ValueError(complaint(owner, "an optimizer of the parameters of the learner alone", got, remedy))
