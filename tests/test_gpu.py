"""Tests that need a GPU: no waiting for the device, half precision, resume."""

import copy

import pytest
import torch

from advcontrast import ACLTrainer, ContrastivePairAugment, PGDAttack, convert_to_dual_bn, fit
from advcontrast.attacks import FreeAttack, ProgressiveAttack, WarmStart
from advcontrast.evaluation import accuracy, robust_accuracy
from advcontrast.models import resnet18
from advcontrast.optim import LARS

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def learner():
    torch.manual_seed(0)
    model = convert_to_dual_bn(resnet18(16, width=8))
    return ACLTrainer(model, attack=PGDAttack(steps=2), augment=ContrastivePairAugment(16)).cuda()


def images():
    return torch.randint(0, 256, (40, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def no_waiting():
    yield lambda: torch.cuda.set_sync_debug_mode("error")
    torch.cuda.set_sync_debug_mode("default")


ATTACKS = [
    PGDAttack(steps=2),
    WarmStart(PGDAttack(steps=1)),
    FreeAttack(),
    ProgressiveAttack([(1, PGDAttack(steps=1)), (None, PGDAttack(steps=2))]),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
@pytest.mark.parametrize("mode", ["S2S", "A2A", "A2S", "DS"])
def test_a_step_does_not_wait_for_the_device(mode, attack, no_waiting):
    acl, x = learner(), images().cuda()
    acl.mode, acl.attack = mode, copy.deepcopy(attack)
    optimizer = LARS(acl.parameters(), lr=0.1)
    acl.model.train()
    for warm in (True, False):
        if not warm:
            no_waiting()
        acl(x).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("amp", ["off", "bf16", "fp16"])
def test_the_loop_trains_on_the_gpu(amp):
    acl = learner()
    history = fit(acl, images(), epochs=2, batch_size=20, amp=amp)
    assert len(history) == 2
    assert all(value.isfinite().all() for value in acl.state_dict().values())


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
    x, y = images().float() / 255, torch.arange(40) % 10
    before = torch.cuda.get_rng_state()
    clean = accuracy(model, [(x, y)])
    robust = robust_accuracy(model, [(x, y)], PGDAttack(steps=2))
    assert robust.accuracy <= clean.accuracy
    assert torch.equal(before, torch.cuda.get_rng_state())
