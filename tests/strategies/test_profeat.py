"""ProFeAT: views, projector and errors."""

import copy

import pytest
import torch
from torch import nn

from advcontrast.functional import cosine
from advcontrast.strategies import ProFeAT
from tests.strategies.methods import FEW, METHODS, batch, student, teacher
from tests.strategies.networks import batches_seen


class Noted(nn.Module):
    """A network that notes its inputs."""

    def __init__(self, network):
        super().__init__()
        self.network, self.inputs = network, []

    def forward(self, x):
        self.inputs.append(x.detach().clone())
        return self.network(x)


def test_the_teacher_sees_the_first_view_and_the_student_the_second():
    of_student, of_teacher = Noted(student("single")), Noted(teacher()).eval()
    weak, strong = batch(METHODS["ProFeAT"])
    ProFeAT(of_student, nn.Linear(5, 4).double(), of_teacher, attack=FEW)(weak, strong)
    assert [torch.equal(x, weak) for x in of_teacher.inputs] == [True]
    assert torch.equal(of_student.inputs[0], strong)
    assert all((x - strong).abs().max() <= FEW.eps + 1e-12 for x in of_student.inputs)


def test_each_view_has_a_forward_pass_of_its_own_and_the_attack_departs_from_the_first():
    values, model = [], student("single")
    x, _ = batch(METHODS["ProFeAT"])

    def attack(objective, x):
        values.append(objective(x))
        return x

    learner = ProFeAT(model, nn.Identity(), teacher(), attack=attack)
    once = copy.deepcopy(model)
    target, trained = learner.teacher(x), once(x)
    learner(x)
    assert set(batches_seen(model).values()) == {2}
    z = once.eval()(x)  # with the statistics after the first pass
    assert values[0].item() == pytest.approx(-(cosine(z, trained) + cosine(z, target)).item(), abs=1e-12)


def test_one_batch_of_images_is_both_views():
    make = METHODS["ProFeAT"].make
    x, _ = batch(METHODS["ProFeAT"])
    assert torch.equal(make("single")(x).loss, make("single")(x, x).loss)


def test_augment_makes_a_pair():
    make = METHODS["ProFeAT"].make
    weak, strong = batch(METHODS["ProFeAT"])
    augmented = make("single", augment=lambda x: (x, strong))
    assert torch.equal(augmented(weak).loss, make("single")(weak, strong).loss)


def test_a_projector_gets_no_gradient_and_is_not_saved():
    projector = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)).double()
    learner = ProFeAT(student("single"), projector, teacher(), attack=FEW)
    before = copy.deepcopy(projector.state_dict())
    learner.train()(*batch(METHODS["ProFeAT"])).loss.backward()
    assert all(p.grad is None for p in projector.parameters())
    assert all(torch.equal(before[name], value) for name, value in projector.state_dict().items())
    assert not any("projector" in name for name in learner.state_dict())


@pytest.mark.parametrize(
    ("change", "error", "argument"),
    [
        ({"projector": torch.tanh}, TypeError, "projector"),
        ({"teacher": teacher().train()}, ValueError, "teacher"),
        ({"beta": -1.0}, ValueError, "beta"),
        ({"beta": lambda step: float("nan")}, ValueError, "beta"),
    ],
)
def test_an_argument_is_refused(change, error, argument):
    settings = {"projector": nn.Linear(5, 4), "teacher": teacher(), **change}
    with pytest.raises(error, match=rf"^ProFeAT: expected .*{argument}"):
        ProFeAT(student("single"), **settings)


def test_a_teacher_of_another_size_is_refused():
    narrow = nn.Sequential(teacher(), nn.Linear(5, 3).double()).eval()
    learner = ProFeAT(student("single"), nn.Linear(3, 3).double(), narrow, attack=FEW)
    with pytest.raises(ValueError, match=r"^ProFeAT: expected model and teacher"):
        learner(*batch(METHODS["ProFeAT"]))
