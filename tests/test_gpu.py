"""Tests that need a GPU: no waiting for the device, half precision, compilation, graphs, a second device, resume."""

import copy
import traceback
import warnings

import pytest
import torch
from torch import nn

from advcontrast import ACLTrainer, ContrastivePairAugment, PGDAttack, convert_to_dual_bn, fit
from advcontrast._modes import without_tf32
from advcontrast._random import on_host
from advcontrast.attacks import FreeAttack, ProgressiveAttack, WarmStart
from advcontrast.augment import CORRUPTIONS, Corruption, CropFlip
from advcontrast.engine import DataReader
from advcontrast.evaluation import accuracy, branch_gap, gradient_masking, robust_accuracy
from advcontrast.evaluation.cards import versions
from advcontrast.models import resnet18
from advcontrast.norm import update_bn
from advcontrast.optim import EMA, LARS
from tests.device import PER_EPOCH

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def learner(device="cuda", **settings):
    torch.manual_seed(0)
    model = convert_to_dual_bn(resnet18(16, width=8))
    settings = {"attack": PGDAttack(steps=2), "augment": ContrastivePairAugment(16), **settings}
    return ACLTrainer(model, **settings).to(device)


def images():
    return torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class Images(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, i):
        return images()[i]


def batches(count):
    x, y = images().float() / 255, torch.arange(40) % 10
    return [(x, y)] * count


def set_sync_debug_mode(mode):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*prototype feature")
        torch.cuda.set_sync_debug_mode(mode)


@pytest.fixture
def no_waiting():
    yield lambda: set_sync_debug_mode("error")
    set_sync_debug_mode("default")


def waits(function):
    """Return the file and name of the function of the library, or of this file, behind each wait for the device."""
    found = []

    def note(message, category, filename, lineno, file=None, line=None):
        if "synchronizing CUDA operation" in str(message):
            frames = traceback.extract_stack()
            found.append({(frame.filename.rpartition("/")[2], frame.name) for frame in frames})

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        set_sync_debug_mode("warn")
        try:
            function()
        finally:
            set_sync_debug_mode("default")
    return found


ATTACKS = [
    PGDAttack(steps=2),
    WarmStart(PGDAttack(steps=1)),
    FreeAttack(),
    ProgressiveAttack([(1, PGDAttack(steps=1)), (None, PGDAttack(steps=2))]),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
@pytest.mark.parametrize("mode", ["S2S", "A2A", "A2S", "DS"])
def test_a_step_does_not_wait_for_the_device(mode, attack, no_waiting):
    acl, x = learner(mode=mode, attack=copy.deepcopy(attack)), images().cuda()
    optimizer, average = LARS(acl.parameters(), lr=0.1), EMA(acl.model, decay=0.9)
    acl.train()
    for warm in (True, False):
        if not warm:
            no_waiting()
        acl(x).loss.backward()
        optimizer.step()
        average.update(acl.model)


@pytest.mark.parametrize(
    "augment", [ContrastivePairAugment(16), CropFlip()], ids=lambda augment: type(augment).__name__
)
def test_views_with_a_generator_of_the_device_do_not_wait(augment, no_waiting):
    x, generator = images().cuda(), torch.Generator("cuda")
    augment(x, generator)
    no_waiting()
    augment(x, generator)


def test_a_generator_of_the_device_seeds_one_of_the_host_and_moves_on():
    first, again = (torch.Generator("cuda").manual_seed(3) for _ in range(2))
    draws = [torch.rand(3, generator=on_host(each)).tolist() for each in (first, again, first)]
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize("name", [name for name in CORRUPTIONS if name not in ("shot_noise", "jpeg_compression")])
def test_corruptions_do_not_wait(name, no_waiting):
    x = (images().float() / 255).cuda()
    Corruption(name)(x)
    no_waiting()
    Corruption(name)(x)


DATA = {"tensors": images, "stream": lambda: DataReader(Images(), workers=0)}


@pytest.mark.parametrize("data", DATA)
def test_fit_waits_a_few_times_an_epoch(data):
    acl = learner()
    average = EMA(acl.model, decay=0.9)

    def train(epochs, batch_size):
        return waits(lambda: fit(acl, DATA[data](), epochs=epochs, batch_size=batch_size, ema=average))

    train(1, 20)
    one, longer = train(1, 20), train(1, 8)
    assert len(one) == len(longer) <= 8
    assert all(frames & PER_EPOCH for frames in longer)


def test_a_save_waits_once_for_each_dtype(tmp_path):
    acl = learner()

    def save_each(steps, folder):
        return len(waits(lambda: fit(acl, images(), epochs=1, batch_size=8, folder=folder, save_every=steps)))

    save_each(1, tmp_path / "warm")
    once, thrice = save_each(5, tmp_path / "once"), save_each(2, tmp_path / "thrice")
    assert thrice - once <= 2 * 10


EVALUATIONS = {
    "accuracy": lambda model, count: accuracy(model, batches(count)),
    "robust_accuracy": lambda model, count: robust_accuracy(model, batches(count), PGDAttack(steps=1)),
    "branch_gap": lambda model, count: branch_gap(model, [x for x, _ in batches(count)]),
    "update_bn": lambda model, count: update_bn(model, [x for x, _ in batches(count)], "adv"),
}


@pytest.mark.parametrize("name", EVALUATIONS)
def test_an_evaluation_waits_as_often_for_more_batches(name):
    model = learner().model
    EVALUATIONS[name](model, 1)
    counts = [len(waits(lambda count=count: EVALUATIONS[name](model, count))) for count in (1, 3)]
    assert counts[0] == counts[1] <= 8


def test_gradient_masking_waits_a_few_times():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10)).cuda()
    x = batches(1)[0][0]
    y = model(x.cuda()).argmax(1).cpu()
    counts = [len(waits(lambda count=count: gradient_masking(model, [(x, y)] * count, images=400))) for count in (1, 3)]
    assert counts[0] == counts[1] <= 16


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_the_loop_trains_on_the_gpu(amp):
    acl = learner()
    history = fit(acl, images(), epochs=2, batch_size=20, amp=amp)
    assert len(history) == 2
    assert all(value.isfinite().all() for value in acl.state_dict().values())


def test_a_compiled_network_trains_to_close_values():
    compiled, eager = learner(), learner()
    for acl, setting in ((compiled, True), (eager, False)):
        torch.manual_seed(1)
        with without_tf32():
            fit(acl, images(), epochs=1, batch_size=20, schedule=0.01, compile=setting)
    for name, value in eager.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=1e-2, atol=1e-3, msg=name)


def test_a_step_of_two_views_is_captured_as_a_graph():
    acl = learner(augment=None)
    optimizer = LARS(acl.parameters(), lr=0.1)
    x1, x2 = (torch.rand(8, 3, 16, 16, device="cuda") for _ in range(2))

    def step():
        optimizer.zero_grad(set_to_none=True)
        loss = acl(x1, x2).loss
        loss.backward()
        optimizer.step()
        return loss.detach()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = step()
    before = acl.model.conv1.weight.clone()
    graph.replay()
    assert loss.isfinite()
    assert not torch.equal(acl.model.conv1.weight, before)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_a_run_on_the_second_device_while_the_first_is_current(tmp_path):
    acl, current = learner("cuda:1"), []

    def evaluate(epoch):
        current.append(torch.cuda.current_device())
        return {"ta": accuracy(acl.model, batches(1)).accuracy}

    for epochs in (1, 2):
        fit(acl, images(), epochs=2, batch_size=20, folder=tmp_path / str(epochs), evaluate=evaluate)
    assert set(current) == {1}
    assert torch.cuda.current_device() == 0
    views = ContrastivePairAugment(16)(images().to("cuda:1"), torch.Generator("cuda:0"))
    assert {view.device.index for view in views} == {1}


def test_a_run_resumes_on_the_gpu(tmp_path, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:

        def stop(step):
            if step == 3:
                raise KeyboardInterrupt
            return 0.5

        def steady(step):
            return 0.5

        steady.__qualname__ = stop.__qualname__
        whole, first, second = learner(), learner(), learner()
        torch.manual_seed(1)
        fit(whole, images(), epochs=2, batch_size=20, schedule=steady)
        torch.manual_seed(1)
        with pytest.raises(KeyboardInterrupt):
            fit(first, images(), epochs=2, batch_size=20, schedule=stop, folder=tmp_path, save_every=1)
        fit(second, images(), epochs=2, batch_size=20, schedule=steady, folder=tmp_path, save_every=1)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(second.state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_evaluation_runs_on_the_gpu_and_leaves_its_generator_alone():
    model = resnet18(10, width=8).cuda()
    before = torch.cuda.get_rng_state()
    clean = accuracy(model, batches(1))
    robust = robust_accuracy(model, batches(1), PGDAttack(steps=2))
    assert robust.accuracy <= clean.accuracy
    assert torch.equal(before, torch.cuda.get_rng_state())


def test_cards_note_the_libraries_and_that_tf32_is_off():
    assert versions("cuda").keys() >= {"cuda", "cudnn", "tf32"}
