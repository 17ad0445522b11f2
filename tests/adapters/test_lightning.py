"""Learners of this library under Lightning."""

import re
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advcontrast import ACLTrainer, PGDAttack, convert_to_dual_bn
from advcontrast.attacks import WarmStart
from advcontrast.optim import WarmupCosine
from advcontrast.strategies import AdversarialTrainer
from tests.processes import run

try:
    import lightning.pytorch as pl
except ImportError:
    pl = pytest.importorskip("pytorch_lightning", reason="neither lightning nor pytorch-lightning is installed")
from advcontrast.adapters.lightning import LightningLearner

pytestmark = pytest.mark.filterwarnings("ignore")
ATTACK = PGDAttack(eps=0.1, step_size=0.05, steps=1, random_start=False)
SGD = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
X = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
VIEWS = TensorDataset(X, X.flip(3))
LABELLED = TensorDataset(X, torch.arange(16) % 4)


def network():
    torch.manual_seed(0)
    return convert_to_dual_bn(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    )


def learner(mode="DS", attack=ATTACK):
    return ACLTrainer(network(), attack=attack, mode=mode)


def loader(data=VIEWS, size=8):
    return DataLoader(data, batch_size=size)


def trainer(folder, **settings):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "devices": 1}
    return pl.Trainer(**{**quiet, "default_root_dir": folder, "log_every_n_steps": 1, **settings})


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items() if torch.is_tensor(value)}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("mode", ["S2S", "A2A", "A2S", "DS"])
def test_it_trains_as_a_plain_loop_does(tmp_path, mode):
    plain = learner(mode)
    optimizer = SGD(plain.parameters())
    for x1, x2 in loader():
        optimizer.zero_grad()
        plain(x1, x2).loss.backward()
        optimizer.step()
    under = learner(mode)
    trainer(tmp_path, max_epochs=1, logger=False, enable_checkpointing=False).fit(
        LightningLearner(under, optimizer=SGD), loader()
    )
    assert same(weights(under), weights(plain))


def test_an_optimizer_of_another_network_is_refused():
    module = LightningLearner(learner(), optimizer=lambda _: SGD(network().parameters()))
    with pytest.raises(
        ValueError, match=r"^LightningLearner: expected an optimizer of the parameters of the learner, "
    ):
        module.configure_optimizers()


def test_the_rate_of_a_second_stage_is_the_one_that_was_set():
    module = learner()
    optimizer = SGD(module.parameters())
    torch.optim.lr_scheduler.StepLR(optimizer, 10)
    optimizer.param_groups[0]["lr"] = 0.001
    LightningLearner(module, optimizer=lambda _: optimizer).configure_optimizers()
    assert optimizer.param_groups[0]["lr"] == 0.001


def test_the_schedule_is_asked_at_every_step(tmp_path):
    rates, schedule = [], WarmupCosine(4, warmup=1)

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, index):
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    module = LightningLearner(learner(), optimizer=SGD, schedule=schedule)
    trainer(tmp_path, max_epochs=2, logger=False, callbacks=[Watch()], enable_checkpointing=False).fit(module, loader())
    assert rates == pytest.approx([0.1 * schedule(step) for step in range(4)])


def test_terms_are_logged_for_training_and_validation(tmp_path):
    run = trainer(tmp_path, max_epochs=1, logger=False, enable_checkpointing=False)
    run.fit(LightningLearner(learner(), optimizer=SGD), loader(), loader())
    terms = {"loss", "loss_adv", "loss_clean", "alignment_adv", "alignment_clean"}
    assert set(run.callback_metrics) == {f"{stage}_{name}" for stage in ("train", "val") for name in terms}


def test_a_name_of_training_is_not_prefixed_twice(tmp_path):
    run = trainer(tmp_path, max_epochs=1, logger=False, enable_checkpointing=False)
    run.fit(LightningLearner(AdversarialTrainer(network(), attack=ATTACK), optimizer=SGD), *2 * [loader(LABELLED)])
    assert set(run.callback_metrics) == {"train_loss", "train_ra", "val_loss", "val_ra"}


def test_a_batch_may_be_one_tensor(tmp_path):
    acl = ACLTrainer(network(), attack=ATTACK, augment=lambda x: (x, x.flip(3)))
    trainer(tmp_path, max_epochs=1, logger=False, enable_checkpointing=False).fit(
        LightningLearner(acl, optimizer=SGD), DataLoader(X, batch_size=8)
    )
    plain = learner()
    trainer(tmp_path, max_epochs=1, logger=False, enable_checkpointing=False).fit(
        LightningLearner(plain, optimizer=SGD), loader()
    )
    assert same(weights(acl), weights(plain))


@pytest.mark.parametrize("inference_mode", [True, False])
def test_validation_attacks_in_either_mode_and_leaves_the_weights(tmp_path, inference_mode):
    module = LightningLearner(AdversarialTrainer(network(), attack=ATTACK), optimizer=SGD)
    before = weights(module)
    run = trainer(tmp_path, logger=False, inference_mode=inference_mode)
    (found,) = run.validate(module, loader(LABELLED, 16), verbose=False)
    assert same(weights(module), before)
    module.eval()
    assert found["val_loss"] == pytest.approx(module.learner(*LABELLED.tensors).loss.item())
    assert found["val_loss"] > nn.functional.cross_entropy(module.learner.model(X), LABELLED.tensors[1]).item()


@pytest.mark.parametrize("attack", [ATTACK, WarmStart(ATTACK)], ids=["PGD", "WarmStart"])
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, attack):
    def module():
        torch.manual_seed(0)
        fresh = WarmStart(ATTACK) if isinstance(attack, WarmStart) else attack
        return LightningLearner(learner(attack=fresh), optimizer=SGD, schedule=WarmupCosine(6, warmup=2))

    whole, part, resumed = module(), module(), module()
    trainer(tmp_path / "whole", max_epochs=3).fit(whole, loader())
    trainer(tmp_path / "part", max_epochs=1).fit(part, loader())
    (checkpoint,) = (tmp_path / "part").rglob("*.ckpt")
    trainer(tmp_path / "part", max_epochs=3).fit(resumed, loader(), ckpt_path=checkpoint)
    assert same(weights(resumed), weights(whole))
    assert not same(weights(resumed), weights(part))


@pytest.mark.parametrize("mode", ["S2S", "A2A", "A2S", "DS"])
def test_ddp_is_told_which_parameters_the_mode_leaves_idle(mode):
    module = LightningLearner(learner(mode), optimizer=SGD)
    module.training_step = lambda *_: None
    module.learner(*VIEWS.tensors).loss.backward()
    idle = [name for name, parameter in module.named_parameters() if parameter.grad is None]
    assert sorted(module._ddp_params_and_buffers_to_ignore) == sorted(idle)
    assert bool(idle) == (mode in ("S2S", "A2A"))


def test_a_learner_that_tells_ddp_nothing_is_fine():
    assert LightningLearner(AdversarialTrainer(network()), optimizer=SGD)._ddp_params_and_buffers_to_ignore == []


DDP = """
import os, warnings
warnings.simplefilter("ignore")
from tests.adapters.test_lightning import *
if __name__ == "__main__":
    module = LightningLearner(learner("{mode}"), optimizer=SGD)
    run = trainer(r"{folder}", max_epochs=2, devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
    run.fit(module, loader(size=4), loader(size=4))
    assert torch.distributed.get_world_size() == 2
    sums = [None, None]
    torch.distributed.all_gather_object(sums, [float(p.sum()) for p in module.parameters()])
    assert sums[0] == sums[1]
    os.write(1, b"done %d\\n" % torch.distributed.get_rank())  # at once, or the processes' words mix
"""


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("mode", ["S2S", "A2A"])
@pytest.mark.sample(1)
def test_a_mode_with_an_idle_branch_trains_under_ddp_with_its_default_flags(tmp_path, mode):
    script = tmp_path / "train.py"
    script.write_text(DDP.format(mode=mode, folder=tmp_path))
    done = run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script)
    assert done.returncode == 0, done.stderr
    assert "done 0" in done.stdout


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LightningLearner(1, optimizer=SGD), "LightningLearner: expected model to be an nn.Module"),
        (
            lambda: LightningLearner(nn.ReLU(), optimizer=3),
            "expected optimizer to be callable",
        ),
        (lambda: LightningLearner(nn.ReLU(), optimizer=SGD, schedule=3), "expected schedule to be callable"),
        (lambda: LightningLearner(nn.ReLU(), optimizer=SGD, schedule=0), "expected schedule to be callable"),
        (
            lambda: LightningLearner(nn.ReLU(), optimizer=list).configure_optimizers(),
            "LightningLearner: expected the optimizer to be",
        ),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(TypeError, match=re.escape(message)):
        make()


@pytest.mark.parametrize("have", ["lightning", "pytorch_lightning"])
def test_either_name_of_lightning_will_do(have):
    code = (
        f"import sys, types, torch\n"
        f"sys.modules.update(lightning=None, pytorch_lightning=None)\n"
        f"fake = types.ModuleType('fake'); fake.LightningModule = torch.nn.Module\n"
        f"sys.modules['{have}'] = fake; sys.modules['{have}.pytorch'] = fake; fake.pytorch = fake\n"
        f"from advcontrast.adapters.lightning import LightningLearner"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("have", ["lightning", "pytorch_lightning"])
def test_where_both_are_installed_it_is_the_one_that_the_caller_uses(have):
    code = (
        f"import sys, types, torch\n"
        f"for name in ('lightning', 'pytorch_lightning'):\n"
        f"    fake = types.ModuleType(name); fake.LightningModule = type(name, (torch.nn.Module,), {{}})\n"
        f"    fake.pytorch = fake; fake.__path__ = []\n"
        f"    if name == '{have}': sys.modules.update({{name: fake, name + '.pytorch': fake}})\n"
        f"    else: other = fake\n"
        f"from advcontrast.adapters.lightning import LightningLearner\n"
        f"assert LightningLearner.__mro__[1].__name__ == '{have}'"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr


def test_without_lightning_the_adapter_says_what_to_install():
    code = (
        "import sys; sys.modules.update(lightning=None, pytorch_lightning=None); import advcontrast.adapters.lightning"
    )
    done = run("-c", code)
    assert "ImportError: advcontrast.adapters.lightning: expected lightning" in done.stderr
    assert "Install it with pip install lightning." in done.stderr


@pytest.mark.parametrize("images", [{"images": torch.zeros(1)}, [torch.zeros(1), torch.zeros(1)], None])
def test_the_learner_says_what_is_wrong_with_a_batch(images):
    module = LightningLearner(AdversarialTrainer(network()), optimizer=SGD)
    with pytest.raises(TypeError, match=r"^AdversarialTrainer: expected images to be"):
        module.training_step((images, torch.zeros(1, dtype=torch.int64)), 0)
