"""Agreement of the processes of a run."""

import math
import os
import re
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn

from advcontrast import distributed
from advcontrast.engine import Checkpoint, CheckpointError
from advcontrast.optim import EMA
from tests.engine.learners import Noisy, Separable, labelled, last_step, timeless, train

pytestmark = pytest.mark.distributed


def plain(state):
    return {name: value.tolist() for name, value in state.items()}


def differing_on_a_rank(evaluate):
    """Train from weights, an average and statistics that differ between the processes."""
    torch.manual_seed(dist.get_rank())
    learner = Noisy()
    learner.model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(36, 5))
    learner.model[3].bias.requires_grad_(False)
    ema = EMA(learner.model, decay=0.9)
    started = plain(learner.state_dict())
    train(learner, ema=ema, evaluate=(lambda epoch: {}) if evaluate else None)
    return started, plain(learner.state_dict()), plain(ema.model.state_dict())


@pytest.mark.parametrize("evaluate", [False, True])
def test_all_processes_end_with_the_same_weights_buffers_and_average(ranks, evaluate):
    (ours, mine, my_ema), (theirs, other, other_ema) = ranks.run(differing_on_a_rank, evaluate)
    assert ours["model.0.weight"] != theirs["model.0.weight"]
    assert mine == other
    assert my_ema == other_ema
    assert mine["model.1.num_batches_tracked"] == 6
    assert mine["model.3.bias"] == ours["model.3.bias"]


def statistics_on_a_rank():
    """Train with a norm, and note what the first process alone makes of its shares."""
    learner = Separable(norm=nn.BatchNorm2d)
    learner.model[0].requires_grad_(False)
    outputs = []
    learner.model[0].register_forward_hook(lambda module, args, output: outputs.append(output))
    train(learner)
    alone = nn.BatchNorm2d(4, dtype=torch.float64)
    for output in outputs:
        alone(output)
    return alone.running_mean.tolist(), learner.model[1].running_mean.tolist()


def test_running_statistics_are_those_of_the_first_process(ranks):
    (expected, first), (others, second) = ranks.run(statistics_on_a_rank)
    assert first == second == pytest.approx(expected, rel=1e-12)
    assert first != pytest.approx(others, rel=1e-3)


def spoilt_on_a_rank(what, value, folder, readable, amp):
    """Train; in the third step the loss or the gradient of the second process is not finite."""
    learner = Separable(torch.float32)

    def spoil(module, batch, output):
        loss, terms = output
        if len(learner.seen) == 3 and dist.get_rank() == 1:
            if what == "gradient":
                loss.register_hook(lambda gradient: gradient * value)
            elif what == "constant":
                loss = loss + value  # its gradient is finite
            else:
                loss = loss * value
        return loss, terms

    learner.register_forward_hook(spoil)
    with pytest.MonkeyPatch.context() as patch:
        if not readable:
            patch.setattr("advcontrast.engine.run.readable", lambda tensor: False)
        with pytest.raises(RuntimeError) as error:
            train(learner, folder=folder, save_every=1, amp=amp)
    return str(error.value), all(bool(p.isfinite().all()) for p in learner.parameters())


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("what", ["loss", "constant", "gradient"])
def test_number_that_is_not_finite_in_one_process_stops_all_before_the_weights_are_hurt(ranks, tmp_path, what, value):
    expected = (
        "finite gradients, got (nan|inf) in step 3"
        if what == "gradient"
        else ("a finite loss, got (nan|inf|-inf) in step 3 of process 1")
    )
    remedy = "Lower the learning rate, or look for a division by zero; the last checkpoint is intact."
    message = f"fit: expected {expected}. {remedy}"
    for text, finite in ranks.run(spoilt_on_a_rank, what, value, str(tmp_path), True, "off"):
        assert re.fullmatch(message, text)
        assert finite
    assert last_step(tmp_path) == 2


@pytest.mark.parametrize("amp", ["off", "fp16"])
@pytest.mark.parametrize("what", ["loss", "constant"])
def test_where_values_are_not_read_at_once_all_processes_stop_at_the_next_save(ranks, tmp_path, what, amp):
    message = "fit: expected a finite loss"
    for text, _ in ranks.run(spoilt_on_a_rank, what, math.nan, str(tmp_path), False, amp):
        assert text.startswith(message)
    assert last_step(tmp_path) == 2


def unlike_on_a_rank(what):
    rank = dist.get_rank()
    learner = Separable(norm=(nn.BatchNorm2d if rank and what == "learner" else nn.Identity))
    data = labelled(16, seed=rank) if what == "data" else labelled(16)
    settings = {"seed": rank} if what == "seed" else {}
    train(learner, data, **settings)


@pytest.mark.parametrize(
    ("what", "got"), [("seed", "seed 1 instead of 0"), ("data", "data "), ("learner", "modules (1): BatchNorm2d")]
)
def test_processes_that_call_it_otherwise_are_told_so_in_all_of_them(ranks, what, got):
    for text in ranks.errors(unlike_on_a_rank, what):
        assert f"ValueError: fit: expected the same arguments in all processes, got on process 1 {got}" in text
        assert "Pass all data and the same arguments everywhere; each process takes its share of a batch." in text


def full_on_a_rank(folder):
    real = Checkpoint.save

    def save(self, step, state):
        if step == 2:
            raise CheckpointError("Checkpoint: expected room on the disk")
        return real(self, step, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Checkpoint, "save", save)
        train(Separable(), folder=folder, save_every=1)


def test_checkpoint_that_cannot_be_written_stops_all_processes(ranks, tmp_path):
    for text in ranks.errors(full_on_a_rank, str(tmp_path)):
        assert text.startswith("CheckpointError: Checkpoint: expected room on the disk")
    assert last_step(tmp_path) == 1


def written_on_a_rank(folder):
    """Count the files that this process opens for writing, and the lines that it prints."""
    opened = []
    with pytest.MonkeyPatch.context() as patch:
        sys.addaudithook(
            lambda event, args: (
                opened.append(str(args[0])) if event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR) else None
            )
        )
        shown = []
        patch.setattr("sys.stderr.write", lambda text: shown.append(text) or len(text))
        train(Separable(), folder=folder, save_every=1, progress=True)
    return [path for path in opened if folder in path], bool("".join(shown).strip())


def test_first_process_alone_writes_and_shows_progress(ranks, tmp_path):
    pytest.importorskip("tqdm")
    (files, bar), (others, other_bar) = ranks.run(written_on_a_rank, str(tmp_path))
    assert any("checkpoints" in path for path in files)
    assert (tmp_path / "metrics.csv").exists()
    assert bar
    assert others == []
    assert not other_bar


def synchronised_on_a_rank():
    learner = Separable(norm=nn.BatchNorm2d)
    learner.model = nn.SyncBatchNorm.convert_sync_batchnorm(learner.model)
    try:
        train(learner)
    finally:
        assert learner.seen == []


def test_synchronised_norms_are_refused_on_a_cpu_before_the_first_step(ranks):
    for text in ranks.errors(synchronised_on_a_rank):
        assert (
            "ValueError: fit: expected an accelerator for SyncBatchNorm, got model.1 on the CPU. "
            "PyTorch does not synchronise batch norms on a CPU: use batch norms there, or group norms." in text
        )


def test_synchronised_norms_of_one_process_are_plain_ones():
    plain_norms, synchronised = Separable(norm=nn.BatchNorm2d), Separable(norm=nn.BatchNorm2d)
    synchronised.model = nn.SyncBatchNorm.convert_sync_batchnorm(synchronised.model)
    assert timeless(train(plain_norms)) == timeless(train(synchronised))
    assert plain(plain_norms.state_dict()) == plain(synchronised.state_dict())


def shared_on_a_rank():
    tensors = [torch.full((3,), float(dist.get_rank())), torch.tensor(dist.get_rank()), nn.Parameter(torch.rand(2))]
    distributed.broadcast_(tensors)
    return distributed.broadcast_object({"rank": dist.get_rank()}), [tensor.tolist() for tensor in tensors]


def test_the_state_of_the_first_process_reaches_all(ranks):
    first, second = ranks.run(shared_on_a_rank)
    assert first == second
    assert first[0] == {"rank": 0}
    assert first[1][:2] == [[0.0] * 3, 0]


def test_alone_nothing_is_sent():
    tensor = torch.ones(2)
    distributed.broadcast_([tensor])
    assert distributed.broadcast_object("mine") == "mine"


@pytest.mark.parametrize(
    ("error", "got"),
    [
        (
            RuntimeError("[a/gloo/transport/tcp/pair.cc:5] Connection closed by peer [::1]"),
            "a lost connection",
        ),
        (RuntimeError("[gloo/transport/tcp/u.cc:1] Timed out waiting 5ms for recv"), "a timeout"),
        (dist.DistBackendError("NCCL: watchdog timeout"), "a timeout"),
        (dist.DistNetworkError("refused"), "a lost connection"),
    ],
)
def test_errors_of_the_transport_are_reworded(error, got):
    message = f"here: expected all 1 processes to stay connected, got {got} on process 0. Try again."
    with (
        pytest.raises(RuntimeError, match=f"^{re.escape(message)}$") as caught,
        distributed.explain_lost_peer("here", "Try again"),
    ):
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), ValueError("gloo/transport/"), SystemExit(0)])
def test_other_errors_are_left_as_they_are(error):
    with pytest.raises(type(error)) as caught, distributed.explain_lost_peer("here", "Try again"):
        raise error
    assert caught.value is error
