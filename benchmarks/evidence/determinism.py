"""Compare the weights of runs with the same seed, with one thing changed at a time.

    python -m benchmarks.evidence.determinism                                     # prints the table
    python -m benchmarks.evidence.determinism --out benchmarks/results            # writes determinism.md

Takes about a minute; starts two processes and a compiler.
"""

from __future__ import annotations

import argparse
import os
import signal
import tempfile
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset

from advcontrast import ACLTrainer, ContrastivePairAugment, NTXentLoss, PGDAttack, convert_to_dual_bn
from advcontrast.engine import fit
from advcontrast.engine.batches import DataReader
from advcontrast.norm import checkpoint_context_fn
from benchmarks.common import conditions, in_group, markdown_table

ABOUT = """\
A tiny dual-stream run on random images: 8 steps with batch norm, augmentation, PGD and LARS, on one thread. Each row
changes one thing and compares with the run without the change, or with the row that it names. Equal: bit-identical; a
number is the largest difference in a tensor over its largest entry, of the tensor where that is largest. Differences
that begin as rounding in the first step grow, since the attack takes the signs of gradients."""
ADVICE = """\
To get bit-identical weights on a CPU, keep these fixed: the seed of torch's global generator before the model is built
and before ``fit`` is called, ``fit(seed=)``, data and batch size, the number of threads and of processes, the versions
of torch and of its kernels, the kind of processor, and whether the network is compiled, in half precision
or channels last. Interruptions, checkpoints, metrics that draw no random numbers, the number of workers that read the
images, torch's switch for deterministic algorithms, and activation checkpointing with ``checkpoint_context_fn`` do not
matter. GPUs were not measured. Two processes differ from one by more than rounding: each normalises its own half of the
batch, and draws its own random numbers."""

Weights = dict[str, Tensor]
BATCH, IMAGES, EPOCHS = 16, 64, 2
KILLED_BEFORE = 5
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
HEAD = ("what was changed", "parameters, first step", "parameters, last step", "statistics, last step")


class Run(NamedTuple):
    """The weights after the first step and after the last."""

    first: Weights
    last: Weights


class Row(NamedTuple):
    """A line of the table."""

    change: str
    run: Run
    reference: Run


class Network(nn.Module):
    """Two blocks and a head for images of 16 x 16 pixels, perhaps recomputing the blocks in the backward pass."""

    def __init__(self, recompute: bool = False) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        )
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 16))
        self.recompute = recompute

    def forward(self, x: Tensor) -> Tensor:
        """Embed images."""
        if self.recompute and torch.is_grad_enabled():
            context_fn = checkpoint_context_fn(self)
            features = checkpoint(self.blocks, x, use_reentrant=False, context_fn=context_fn)
        else:
            features = self.blocks(x)
        embeddings: Tensor = self.head(features)
        return embeddings


class Watch:
    """A constant learning rate that copies the weights after the first step, and can end the process before another."""

    def __init__(self, learner: nn.Module, killed_before: int | None) -> None:
        self.learner, self.killed_before = learner, killed_before
        self.first: Weights = {}
        self.step = 0
        learner.register_forward_pre_hook(self.note)

    def __repr__(self) -> str:
        return "Watch()"

    def __call__(self, step: int) -> float:
        """Return the fraction of the learning rate."""
        self.step = step
        if step == self.killed_before:
            os.kill(os.getpid(), signal.SIGKILL)
        return 1.0

    def note(self, *_: object) -> None:
        """Copy the weights before the second forward pass; a resumed run asks again for the rates of earlier steps."""
        if self.step == 1:
            self.first = weights(self.learner)


def weights(learner: nn.Module) -> Weights:
    """Return a copy of parameters and running statistics."""
    return {name: value.detach().clone() for name, value in learner.state_dict().items()}


def learner(*, recompute: bool = False, **settings: Any) -> ACLTrainer:
    """Return the learner: dual stream with the attack and the augmentation of the paper."""
    torch.manual_seed(0)
    settings = {"attack": PGDAttack(), "augment": ContrastivePairAugment(16), **settings}
    return ACLTrainer(convert_to_dual_bn(Network(recompute)), **settings)


def images(n: int = IMAGES) -> Tensor:
    """Return uint8 images."""
    return torch.randint(0, 256, (n, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def trained(
    *, seed: int = 0, killed_before: int | None = None, evaluate: int | None = None, recompute: bool = False,
    loss: nn.Module | None = None, workers: int | None = None, **settings: Any
) -> Run:  # fmt: skip
    """Train from ``seed``, and embed images after each epoch in batches of ``evaluate``, read by ``workers``."""
    acl = learner(recompute=recompute, loss=loss)
    watch = Watch(acl, killed_before)
    if evaluate is not None:
        settings["evaluate"] = lambda _: {"mean": embeddings(acl, evaluate).mean().item()}
    torch.manual_seed(seed)
    data = images() if workers is None else DataReader(TensorDataset(images()), workers=workers)
    fit(acl, data, epochs=EPOCHS, batch_size=BATCH, schedule=watch, **settings)
    return Run(watch.first, weights(acl))


@torch.no_grad()
def embeddings(acl: ACLTrainer, batch: int) -> Tensor:
    """Embed the images in eval mode, ``batch`` at a time."""
    training = acl.training
    acl.eval()
    found = torch.cat([acl.model(x.float() / 255) for x in images().split(batch)])
    acl.train(training)
    return found


def looped(memory_format: torch.memory_format) -> Run:
    """Train in a plain loop, in a memory format."""
    acl = learner().to(memory_format=memory_format)
    optimizer = torch.optim.SGD(acl.parameters(), lr=0.1)
    torch.manual_seed(0)
    found = []
    for batch in images().repeat(EPOCHS, 1, 1, 1).split(BATCH):
        acl(batch.contiguous(memory_format=memory_format)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(weights(acl))
    return Run(found[0], found[-1])


def rows() -> Iterator[Row]:
    """Measure; the first rows come first."""
    with tempfile.TemporaryDirectory() as folder:
        plain = trained()
        yield Row("nothing, again in the same process", trained(), plain)
        yield Row("nothing, in another process", in_group(1, grouped, {}), plain)
        resumable = {"folder": str(Path(folder) / "run"), "save_every": 1}
        with suppress(BrokenProcessPool):
            in_group(1, grouped, {"killed_before": KILLED_BEFORE, **resumable})
            raise SystemExit("determinism: expected the run to be killed, but it ended.")
        resumed = in_group(1, grouped, resumable)
        yield Row(f"killed before step {KILLED_BEFORE + 1} and resumed in another process", resumed, plain)
        yield Row("metrics that embed images after each epoch", trained(evaluate=16), plain)
        yield Row("these metrics in batches of 64 instead of 16", trained(evaluate=64), plain)
        yield Row("embeddings, not weights, in batches of 64 instead of 1", embedded(64), embedded(1))
        yield Row("images read by 1 worker process instead of from memory", trained(workers=1), plain)
        yield Row("images read by 2 worker processes", trained(workers=2), plain)
        deterministic = setting(torch.use_deterministic_algorithms, True, False)
        for change, during, settings in (
            ("torch.use_deterministic_algorithms(True)", deterministic, {}),
            ("2 threads", setting(torch.set_num_threads, 2, 1), {}),
            ("oneDNN off", torch.backends.mkldnn.flags(enabled=False), {}),
            ("activation checkpointing with checkpoint_context_fn", nullcontext(), {"recompute": True}),
            ("NTXentLoss(tile=8)", nullcontext(), {"loss": NTXentLoss(tile=8)}),
            ('fit(amp="bf16")', nullcontext(), {"amp": "bf16"}),
            ("fit(compile=True)", nullcontext(), {"compile": True}),
        ):
            with during:
                yield Row(change, trained(**settings), plain)
        channels_last = looped(torch.channels_last)
        yield Row("a loop without channels last", looped(torch.contiguous_format), channels_last)
        two = in_group(2, grouped, {})
        yield Row("2 processes, each with half of a batch", two, plain)
        yield Row("2 processes, again", in_group(2, grouped, {}), two)
        yield Row("another seed", trained(seed=1), plain)


def embedded(batch: int) -> Run:
    """Return embeddings instead of weights."""
    acl = learner()
    found = {"embeddings": embeddings(acl, batch)}
    return Run(found, found)


@contextmanager
def setting(change: Callable[[Any], None], value: Any, before: Any) -> Iterator[None]:
    """Change a setting within the context."""
    change(value)
    try:
        yield
    finally:
        change(before)


def grouped(settings: dict[str, Any]) -> Run:
    """Train in a process of a group, with the negatives of all of them."""
    if torch.distributed.get_world_size() > 1:
        settings["loss"] = NTXentLoss(gather=True)
    return trained(**settings)


def distance(found: Weights, expected: Weights, *, statistics: bool) -> str:
    """Return "equal" if parameters or statistics are bit-identical, otherwise the largest relative difference."""
    kept = [name for name in expected if name.endswith(STATISTICS) == statistics]
    pairs = [(found[name].double(), expected[name].double()) for name in kept if found]
    if not pairs:
        return ""
    if all(torch.equal(a, b) for a, b in pairs):
        return "equal"
    return f"{max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-30)) for a, b in pairs):.0e}"


def main() -> None:
    """Print the table, or write it to a file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="folder to write determinism.md to")
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    lines = []
    for change, run, reference in rows():
        pairs = [
            (run.first, reference.first, False),
            (run.last, reference.last, False),
            (run.last, reference.last, True),
        ]
        cells = [distance(found, expected, statistics=which) for found, expected, which in pairs]
        lines.append([change, *cells])
    table = markdown_table(HEAD, lines)
    print(table)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        (given.out / "determinism.md").write_text(
            f"# Determinism\n\n{conditions(__spec__.name)} {ABOUT}\n\n{table}\n\n{ADVICE}\n"
        )


if __name__ == "__main__":
    main()
