"""The training loop under accelerate."""

import json
import re
import shutil
from math import nan

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from advcontrast import ACLTrainer, PGDAttack, convert_to_dual_bn
from advcontrast.attacks import WarmStart
from advcontrast.strategies import StandardTrainer
from tests.processes import run

accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
from advcontrast.adapters.accelerate import pretrain  # noqa: E402

ATTACK = PGDAttack(eps=0.1, step_size=0.05, steps=1)
X = torch.rand(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
VIEWS = TensorDataset(X, X.flip(3))


@pytest.fixture(autouse=True)
def _fresh_state():
    """Accelerate keeps its state for the process."""
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)


def learner(mode="DS", attack=ATTACK):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    return ACLTrainer(convert_to_dual_bn(model), attack=attack, mode=mode)


def sgd(module):
    return torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9)


def loader(data=VIEWS, size=8, shuffle=True):
    return DataLoader(data, batch_size=size, shuffle=shuffle)


def weights(module):
    return {name: value.clone() for name, value in module.state_dict().items() if torch.is_tensor(value)}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("mode", ["S2S", "A2A", "A2S", "DS"])
def test_it_trains_as_a_plain_loop_does(mode):
    plain, losses = learner(mode), []
    optimizer = sgd(plain)
    torch.manual_seed(1)
    for x1, x2 in loader():
        out = plain(x1, x2)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(out.loss.item())
    under = learner(mode)
    torch.manual_seed(1)
    found = pretrain(under, loader(), optimizer=sgd(under), epochs=1)
    assert same(weights(under), weights(plain))
    assert found == pytest.approx([sum(losses) / 2])


def test_a_batch_may_be_one_tensor():
    acl = learner()
    acl.augment = lambda x: (x, x.flip(3))
    assert len(pretrain(acl, DataLoader(X, batch_size=8), optimizer=sgd(acl), epochs=2)) == 2


def test_the_schedule_is_asked_once_an_update_and_each_epoch_is_reported():
    acl, steps, seen = learner(), [], []
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    losses = pretrain(
        acl,
        loader(size=4),
        optimizer=sgd(acl),
        epochs=2,
        schedule=lambda step: steps.append(step) or 1.0,
        accelerator=accelerator,
        report=lambda epoch, loss: seen.append((epoch, loss)),
    )
    assert steps == [0, 1, 2, 3]
    assert seen == [(1, losses[0]), (2, losses[1])]


def test_accumulated_gradients_are_those_of_the_whole_batch():
    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.model = nn.Linear(4, 1)

        def forward(self, x, y):
            return StandardTrainer(nn.Linear(4, 2))(x, y)._replace(loss=(self.model(x)[:, 0] - y).square().mean())

    data = TensorDataset(torch.rand(8, 4), torch.ones(8).long())
    whole, parts = Linear(), Linear()
    pretrain(whole, loader(data, 8, shuffle=False), optimizer=sgd(whole), epochs=1)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=4)
    pretrain(parts, loader(data, 2, shuffle=False), optimizer=sgd(parts), epochs=1, accelerator=accelerator)
    torch.testing.assert_close(parts.model.weight, whole.model.weight)


@pytest.mark.parametrize("carried", [False, True], ids=["PGD", "WarmStart"])
@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_run_that_was_cut_off_ends_as_one_that_was_not(tmp_path, carried, done):
    def run(epochs, folder):
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        acl = learner(attack=WarmStart(ATTACK) if carried else ATTACK)
        torch.manual_seed(1)
        losses = pretrain(
            acl, loader(), optimizer=sgd(acl), epochs=epochs, schedule=lambda step: 0.9**step, folder=folder
        )
        return losses, weights(acl)

    whole, expected = run(4, None)
    first, _ = run(done, tmp_path)
    torch.rand(7)
    resumed, found = run(4, tmp_path)
    assert first == whole[:done]
    assert resumed == whole
    assert same(found, expected)


def test_a_complete_run_is_not_run_again(tmp_path):
    acl = learner()
    losses = pretrain(acl, loader(), optimizer=sgd(acl), epochs=2, folder=tmp_path)
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    again, seen = learner(), []
    report = lambda *of: seen.append(of)  # noqa: E731
    assert pretrain(again, loader(), optimizer=sgd(again), epochs=2, folder=tmp_path, report=report) == losses
    assert same(weights(again), weights(acl))
    assert seen == []


def test_a_state_that_was_cut_off_while_it_was_written_does_not_count(tmp_path):
    acl = learner()
    losses = pretrain(acl, loader(), optimizer=sgd(acl), epochs=2, folder=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1"]
    (tmp_path / "0" / "progress.json").unlink()  # as it is while the second epoch is being written
    (tmp_path / "0" / "pytorch_model.bin").write_bytes(b"half")
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    again = learner()
    assert pretrain(again, loader(), optimizer=sgd(again), epochs=2, folder=tmp_path) == losses
    assert same(weights(again), weights(acl))
    assert json.loads((tmp_path / "0" / "progress.json").read_text())[:2] == [losses, 4]


SCRIPT = """
import sys, torch
from tests.adapters.test_accelerate import *
if __name__ == "__main__":
    acl = learner("{mode}")
    accelerator = accelerate.Accelerator(cpu=True)
    torch.manual_seed(10 + accelerator.process_index)
    folder = None if sys.argv[2] == "none" else sys.argv[2]
    settings = {{"epochs": int(sys.argv[1]), "accelerator": accelerator, "folder": folder}}
    losses = pretrain(acl, loader(size=4), optimizer=sgd(acl), **settings)
    sums = accelerator.gather(torch.stack([p.detach().double().sum() for p in acl.parameters()]).sum()[None])
    assert accelerator.num_processes == 2 and sums[0] == sums[1]
    accelerator.print("found", losses, sums[0].item())
    accelerator.free_memory()  # what DDP keeps of the process group can abort Python 3.13 at the end
    accelerator.end_training()
"""


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.parametrize("mode", ["A2A"])
def test_two_processes_resume_exactly_too_also_with_an_idle_branch(tmp_path, mode):
    script = tmp_path / "train.py"
    script.write_text(SCRIPT.format(mode=mode))

    def trained(*words):
        done = run("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", script, *words)
        assert done.returncode == 0, done.stderr
        return re.search(r"found (.*)", done.stdout).group(1)

    whole = trained(3, "none")
    trained(1, tmp_path / "state")
    assert trained(3, tmp_path / "state") == whole


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"learner": 1}, TypeError, "pretrain: expected model to be an nn.Module, got int"),
        ({"batches": 3}, TypeError, "pretrain: expected batches to be an iterable, got int. Pass a DataLoader."),
        ({"epochs": 0}, ValueError, "pretrain: expected epochs to be an int >= 1, got 0. "),
        ({"batches": []}, ValueError, "pretrain: expected at least one batch an epoch, got none. "),
    ],
)
def test_mistakes_are_named(settings, error, message):
    acl = learner()
    arguments = {"learner": acl, "batches": loader(), "optimizer": sgd(acl), "epochs": 1, **settings}
    with pytest.raises(error, match=re.escape(message)):
        pretrain(**arguments)


def test_without_accelerate_the_adapter_says_what_to_install():
    code = "import sys; sys.modules['accelerate'] = None; import advcontrast.adapters.accelerate"
    done = run("-c", code)
    assert "ImportError: advcontrast.adapters.accelerate: expected accelerate, got " in done.stderr
    assert "Install it with pip install accelerate." in done.stderr


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"optimizer": None},
            "an optimizer, got NoneType. Take one of torch.optim, such as SGD(learner.parameters(), lr=0.1).",
        ),
        ({"batches": np.ones((2, 3))}, "batches to be an iterable, got ndarray. Pass a DataLoader."),
        ({"accelerator": 3}, "an Accelerator, got int. Leave it out, or pass yours."),
        ({"schedule": "cosine"}, "schedule to be callable, got str. Pass a function."),
        ({"report": None}, "report to be callable, got NoneType. Pass a function."),
        ({"folder": 3}, "folder to be a path, got int. Pass a string or a Path, or None."),
    ],
)
def test_an_argument_of_the_wrong_kind_is_refused_before_anything_changes(wrong, message):
    module = learner().eval()
    with pytest.raises(TypeError, match=f"^{re.escape(f'pretrain: expected {message}')}$"):
        pretrain(module, **{"batches": loader(), "optimizer": sgd(module), "epochs": 1, **wrong})
    assert not module.training


def resumed(folder, module=None, optimizer=None, epochs=2):
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    module = learner() if module is None else module
    optimizer = sgd(module) if optimizer is None else optimizer
    return pretrain(module, loader(), optimizer=optimizer, folder=folder, epochs=epochs)


def wide():
    return ACLTrainer(nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), attack=ATTACK, mode="S2S")


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (learner, torch.optim.AdamW, "SGD of 8 tensors, as in the run in {}, got AdamW of 8 tensors"),
        (wide, torch.optim.SGD, "SGD of 8 tensors, as in the run in {}, got SGD of 2 tensors"),
    ],
)
def test_a_run_is_not_continued_with_another_optimizer_or_network(tmp_path, make, kind, message):
    resumed(tmp_path, epochs=1)
    module = make().eval()
    optimizer = kind(module.parameters(), lr=0.3)
    before, settings, random = weights(module), repr(optimizer.state_dict()), torch.get_rng_state()
    message = message.format(repr(str(tmp_path)))
    text = f"pretrain: expected {message}. Pass what it began with, or another folder."
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        resumed(tmp_path, module, optimizer)
    assert same(weights(module), before)
    assert repr(optimizer.state_dict()) == settings
    assert torch.equal(torch.get_rng_state(), random)
    assert not module.training


def test_a_run_is_not_continued_with_a_network_of_other_shapes(tmp_path):
    resumed(tmp_path, wide(), epochs=1)
    other = ACLTrainer(nn.Sequential(nn.Flatten(), nn.Linear(192, 5)), attack=ATTACK, mode="S2S")
    message = f"model.1.weight [4, 192], as in the run in {str(tmp_path)!r}, got model.1.weight [5, 192]. "
    with pytest.raises(ValueError, match=re.escape(message)):
        resumed(tmp_path, other)


def test_a_run_is_not_continued_with_a_network_of_fewer_layers(tmp_path):
    module = ACLTrainer(nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Linear(4, 4)), attack=ATTACK, mode="S2S")
    optimizer = torch.optim.SGD(list(module.parameters())[:2], lr=0.1)
    resumed(tmp_path, module, optimizer, epochs=1)
    message = f"model.2.weight [4, 4], as in the run in {str(tmp_path)!r}, got nothing. "
    with pytest.raises(ValueError, match=re.escape(message)):
        resumed(tmp_path, wide())


@pytest.mark.parametrize("name", ["optimizer.bin", "pytorch_model.bin"])
@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"half")])
def test_a_damaged_state_is_named_with_the_way_out(tmp_path, name, damage):
    losses = resumed(tmp_path)
    damage(tmp_path / "0" / name)
    place = re.escape(repr(str(tmp_path / "0")))
    remedy = r"\. Remove it; the run goes on from the epoch before\.$"
    with pytest.raises(ValueError, match=rf"(?s)^pretrain: expected a whole state in {place}, got \w+: .*[^.]{remedy}"):
        resumed(tmp_path)
    shutil.rmtree(tmp_path / "0")
    assert resumed(tmp_path) == losses


@pytest.mark.parametrize("text", ["", "[]", "[[1.0], 2]", "[1.0, 2, []]", "\x00"])
def test_a_damaged_progress_is_named_with_the_way_out(tmp_path, text):
    losses = resumed(tmp_path)
    (file := tmp_path / "0" / "progress.json").write_text(text)
    message = f"pretrain: expected the progress of a run in {str(file)!r}, got "
    with pytest.raises(ValueError, match=f"^{re.escape(message)}.*Remove it; the run goes on from the epoch before"):
        resumed(tmp_path)
    file.unlink()
    assert resumed(tmp_path) == losses


def test_a_file_is_no_folder_for_a_run(tmp_path):
    (file := tmp_path / "file").write_text("mine")
    message = f"pretrain: expected folder to be one, got the file {str(file)!r}. Pass another."
    with pytest.raises(NotADirectoryError, match=f"^{re.escape(message)}$"):
        resumed(file)
    assert file.read_text() == "mine"


def test_an_optimizer_of_something_else_is_refused():
    message = (
        "pretrain: expected an optimizer of the parameters of the learner, got SGD of other parameters. "
        "Make it from learner.parameters(), once the network has been converted."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        pretrain(learner(), loader(), optimizer=sgd(learner()), epochs=1)


@pytest.mark.parametrize(
    ("fraction", "error", "got"), [(None, TypeError, "NoneType"), (-1.0, ValueError, "-1.0"), (nan, ValueError, "nan")]
)
def test_a_schedule_that_returns_no_fraction_is_refused_and_nothing_has_moved(fraction, error, got):
    module = learner()
    optimizer, before = sgd(module), weights(module)
    settings = repr(optimizer.state_dict())
    message = f"pretrain: expected what schedule returns to be a finite number >= 0, got {got}. Return the fraction "
    with pytest.raises(error, match=f"^{re.escape(message)}"):
        pretrain(module, loader(), optimizer=optimizer, epochs=1, schedule=lambda _: fraction)
    assert same(weights(module), before)
    assert repr(optimizer.state_dict()) == settings


def test_the_learning_rate_is_that_of_the_schedule_and_afterwards_what_it_was():
    module, seen = learner(), []
    optimizer = sgd(module)
    optimizer.register_step_pre_hook(lambda *_: seen.append(optimizer.param_groups[0]["lr"]))
    pretrain(module, loader(), optimizer=optimizer, epochs=2, schedule=lambda step: 0.5**step)
    assert seen == [0.1, 0.05, 0.025, 0.0125]
    assert optimizer.param_groups[0]["lr"] == 0.1


def test_every_epoch_is_in_train_mode_whatever_the_report_left(tmp_path):
    module, modes = learner(), []
    module.register_forward_pre_hook(lambda *_: modes.append(module.training))
    pretrain(module, loader(), optimizer=sgd(module), epochs=2, report=lambda *_: module.eval())
    assert modes == [True] * 4
