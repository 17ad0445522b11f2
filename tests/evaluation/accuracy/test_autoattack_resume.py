"""Resume of an interrupted AutoAttack, and refusal of another model, other batches or other arguments."""

import re
import shutil
from functools import partial

import pytest
import torch
from torch import nn

from advcontrast import bn_branch, convert_to_dual_bn
from advcontrast.engine import (
    Checkpoint,
    CheckpointBusyError,
    CheckpointCorruptError,
    CheckpointMismatchError,
    CheckpointWriteError,
)
from advcontrast.evaluation.accuracy.autoattack import autoattack
from tests.engine.faults import exit_code, fork, kill_everywhere

package = pytest.importorskip("pyautoattack")
ATTACKS = {
    "apgd": package.autopgd_base.APGDAttack,
    "apgd-t": package.autopgd_base.APGDAttack_targeted,
    "fab-t": package.fab_pt.FABAttack_PT,
    "square": package.square.SquareAttack,
}


@pytest.fixture(autouse=True)
def ran(monkeypatch):
    """Let each attack add noise, and note which ones are run on how many images."""
    noted = []

    def noise(self, x, y, name):
        noted.append((name, len(x)))
        torch.manual_seed(self.seed)
        return (x + self.eps * (2 * torch.rand_like(x) - 1)).clamp(0, 1)

    for name, cls in ATTACKS.items():
        monkeypatch.setattr(cls, "perturb", lambda self, x, y, name=name: noise(self, x, y, name))
    return noted


def classifier():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 4))


def data(n=3):
    """Batches of images of which some are wrong, some are broken by each attack, and some are robust."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(10 * n, 3, 2, 2, generator=generator)
    y = classifier()(x).argmax(1)
    y[::5] = 0
    return list(zip(x.split(10), y.split(10), strict=True))


def run(folder, model=None, batches=None, **settings):
    batches = data() if batches is None else batches
    return autoattack(model or classifier(), batches, folder=folder, progress=False, **{"eps": 0.2, **settings})


def same(a, b):
    return torch.equal(a.broken_by, b.broken_by) and a.attacks == b.attacks


def test_the_attacks_of_this_file_leave_verdicts_of_every_kind():
    assert {-2, -1, 0}.issubset(run(None).broken_by.tolist())
    assert run(None).attacks == ("apgd-ce", "apgd-t", "fab-t", "square")


def test_folder_changes_no_verdict(tmp_path):
    assert same(run(tmp_path / "run"), run(None))


class Stop(Exception):
    pass


def stopped(folder, monkeypatch, stages):
    """Run until so many stages have been written."""
    original = Checkpoint.save

    def save(self, step, state):
        original(self, step, state)
        if step == stages:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", save)
        with pytest.raises(Stop):
            run(folder)


@pytest.mark.parametrize("stages", range(1, 13))
def test_interrupted_after_any_attack_only_the_rest_is_run(tmp_path, monkeypatch, ran, stages):
    expected = run(None)
    everything = ran.copy()
    ran.clear()
    stopped(tmp_path, monkeypatch, stages)
    before = ran.copy()
    assert before == everything[:stages]
    ran.clear()
    assert same(run(tmp_path), expected)
    assert ran == everything[stages:]


def test_finished_run_is_returned_without_running_the_model(tmp_path, ran):
    expected = run(tmp_path)
    ran.clear()
    model = classifier()
    model.register_forward_hook(lambda *_: pytest.fail("the model was run"))
    assert same(run(tmp_path, model), expected)
    assert ran == []


def test_interrupted_by_the_batches(tmp_path, ran):
    def torn():
        yield from data()[:2]
        raise Stop

    expected = run(None)
    with pytest.raises(Stop):
        run(tmp_path, batches=torn())
    ran.clear()
    assert same(run(tmp_path), expected)
    assert len(ran) == 4


def test_failed_attack_is_tried_again(tmp_path, monkeypatch):
    def broken(self, x, y):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(ATTACKS["fab-t"], "perturb", broken)
        with pytest.raises(RuntimeError):
            run(tmp_path)
    assert Checkpoint(tmp_path).steps() == [1, 2]
    assert same(run(tmp_path), run(None))


def test_killed_at_any_instant(tmp_path, whole):
    job = partial(run, batches=data(1))
    expected = job(None)
    assert {-2, -1, 0}.issubset(expected.broken_by.tolist())

    def check(folder):
        done = len(Checkpoint(folder).steps())
        assert same(job(folder), expected)
        return done

    found = kill_everywhere(tmp_path / "run", job, check, ("after",), stride=1 if whole else 4)
    assert len(found) >= (30 if whole else 8)
    assert set(found) == {0, 1, 2, 3}


def test_generator_of_batches_can_be_resumed(tmp_path, monkeypatch):
    stopped(tmp_path, monkeypatch, 6)
    assert same(run(tmp_path, batches=iter(data())), run(None))


def test_two_classes_have_fewer_stages(tmp_path):
    x = torch.rand(6, 2, 1, 1)
    batches = [(x, x.flatten(1).argmax(1))]
    expected = run(tmp_path, nn.Flatten(), batches)
    assert expected.attacks == ("apgd-ce", "fab-t", "square")
    assert Checkpoint(tmp_path).steps()[-1] == 3
    assert same(run(tmp_path, nn.Flatten(), batches), expected)


def test_batches_may_follow_those_of_a_finished_run(tmp_path, ran):
    run(tmp_path, batches=data()[:2])
    ran.clear()
    assert same(run(tmp_path), run(None))
    assert len(ran) == 4 + 12


def test_the_first_batches_of_a_finished_run_can_be_asked_for(tmp_path, ran):
    expected = run(tmp_path).broken_by[:20]
    ran.clear()
    assert torch.equal(run(tmp_path, batches=data()[:2]).broken_by, expected)
    assert ran == []


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    (tmp_path / "results.json").write_text("{}")
    assert same(run(tmp_path), run(None))
    assert (tmp_path / "results.json").read_text() == "{}"


def changed():
    model = classifier()
    model[1].bias.data[0] += 1e-6
    return model


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"eps": 0.1}, "eps"),
        ({"norm": "l2"}, "norm"),
        ({"seed": 1}, "seed"),
        ({"version": "rand"}, "version"),
        ({"eps": 0.1, "seed": 1}, "eps and seed"),
        ({"model": changed()}, "model"),
        ({"model": nn.Sequential(*classifier(), nn.ReLU())}, "model"),
    ],
)
def test_another_run_is_refused_before_anything_runs(tmp_path, monkeypatch, ran, settings, what):
    stopped(tmp_path, monkeypatch, 2)
    ran.clear()
    message = f"autoattack: expected the run in {tmp_path}, got another {what}"
    with pytest.raises(CheckpointMismatchError, match=re.escape(message)):
        run(tmp_path, **settings)
    assert ran == []
    assert same(run(tmp_path), run(None))


def test_another_version_of_the_package_is_another_run(tmp_path, monkeypatch):
    run(tmp_path)
    monkeypatch.setattr(package, "__version__", "9.9")
    with pytest.raises(CheckpointMismatchError, match="got another pyautoattack"):
        run(tmp_path)


def test_another_branch_is_another_model(tmp_path):
    model = convert_to_dual_bn(nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.Flatten()))
    with bn_branch(model, "clean"):
        run(tmp_path, model)
    with bn_branch(model, "adv"), pytest.raises(CheckpointMismatchError, match="got another model"):
        run(tmp_path, model)


class Extra(nn.Flatten):
    """Layer with state that is not a tensor, and with a repr that holds an address."""

    def __init__(self, extra=1):
        super().__init__()
        self.extra = extra

    def get_extra_state(self):
        return {"extra": self.extra}

    def __repr__(self):
        return object.__repr__(self)


def network(*layers):
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), *(layers or [nn.ReLU(), Extra()]))


def with_other(name):
    model = network()
    with torch.no_grad():
        model.get_buffer(name).add_(1) if "running" in name else model.get_parameter(name).add_(1e-6)
    return model


def test_addresses_modes_and_flags_of_a_model_do_not_count(tmp_path):
    run(tmp_path, network().train(), data(1))
    run(tmp_path, network().eval().requires_grad_(False), data(1))


@pytest.mark.parametrize(
    "other",
    [
        *map(with_other, ("0.weight", "0.bias", "1.weight", "1.running_mean")),
        network(nn.Sigmoid(), Extra()),
        network(nn.ReLU(), Extra(2)),
    ],
    ids=["weight", "bias", "norm", "statistics", "layer", "extra state"],
)
def test_every_part_of_a_model_counts(tmp_path, other):
    run(tmp_path, network(), data(1))
    with pytest.raises(CheckpointMismatchError, match="got another model"):
        run(tmp_path, other, data(1))


def altered(what):
    batches = data()
    x, y = (tensor.clone() for tensor in batches[1])
    if what == "images":
        x[3, 0, 0, 0] += 1e-6
    if what == "labels":
        y[3] = (y[3] + 1) % 4
    if what == "order":
        x, y = x.flip(0), y.flip(0)
    if what == "size":
        x, y = x[:9], y[:9]
    batches[1] = (x, y)
    return batches


@pytest.mark.parametrize("what", ["images", "labels", "order", "size"])
@pytest.mark.parametrize("stages", [6, 12], ids=["unfinished", "finished"])
def test_other_batches_are_refused_before_anything_runs(tmp_path, monkeypatch, ran, what, stages):
    stopped(tmp_path, monkeypatch, stages)
    ran.clear()
    message = f"autoattack: expected batch 1 of the run in {tmp_path}"
    with pytest.raises(CheckpointMismatchError, match=re.escape(message)):
        run(tmp_path, batches=altered(what))
    assert ran == []
    assert same(run(tmp_path), run(None))


def test_checkpoint_of_something_else_is_refused(tmp_path, ran):
    Checkpoint(tmp_path).save(7, {"weights": torch.ones(2)})
    message = f"autoattack: expected {tmp_path}"
    with pytest.raises(CheckpointMismatchError, match=re.escape(message)):
        run(tmp_path)
    assert ran == []
    assert Checkpoint(tmp_path).steps() == [7]


def test_damaged_newest_file_costs_one_attack(tmp_path, monkeypatch, ran):
    stopped(tmp_path, monkeypatch, 6)
    (tmp_path / "step-00000006/state.pt").write_bytes(b"?")
    ran.clear()
    with pytest.warns(UserWarning, match=r"Falling back to step 5\."):
        assert same(run(tmp_path), run(None))
    assert len(ran) == 7 + 12


def test_damaged_files_are_refused_before_anything_runs(tmp_path, monkeypatch, ran):
    stopped(tmp_path, monkeypatch, 6)
    for path in tmp_path.glob("*/state.pt"):
        path.write_bytes(path.read_bytes()[:-1])
    ran.clear()
    with pytest.raises(CheckpointCorruptError, match=r"expected a good checkpoint in .*step-00000006"):
        run(tmp_path)
    assert ran == []


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointWriteError, match=r"expected to write .*file"):
        run(tmp_path / "file")


def test_folder_of_the_wrong_type():
    with pytest.raises(TypeError, match="expected folder"):
        run(3)


def test_folder_that_another_process_writes_to(tmp_path):
    with Checkpoint(tmp_path).locked():
        code = exit_code(fork(partial(_expect_busy, tmp_path)))
    assert code == 0
    shutil.rmtree(tmp_path)


def _expect_busy(folder):
    with pytest.raises(CheckpointBusyError, match="to be free, got process"):
        run(folder)
