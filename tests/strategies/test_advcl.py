"""The branches, attacks and pseudo-labels of AdvCL."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from advcontrast.functional import high_frequency
from advcontrast.norm import bn_branch
from advcontrast.strategies import AdvCL
from advcontrast.strategies.contrast import view_losses
from tests.strategies.methods import FEW, METHODS, Given, Identity, batch, known
from tests.strategies.test_methods import same, state

pytestmark = pytest.mark.filterwarnings(r"ignore:\w+. expected dual batch norms")
METHOD = METHODS["AdvCL"]
LABELS = torch.tensor([[0], [1], [0], [1]])


def head():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(3, 2).double()


def test_each_branch_sees_its_views():
    learner = METHOD.make("dual")
    learner(*batch(METHOD))
    norm = learner.model[1]
    counts = [getattr(norm, branch).num_batches_tracked.item() for branch in ("clean", "adv", "adv_ce")]
    assert counts == [3, 1, 1]


def test_the_attacks_maximise_one_term_each():
    attack, g = Given(known(2), known(3)), head()
    learner = AdvCL(Identity(), [g], radius=0, attack=attack)
    out = learner(known(0), known(1), known(5), LABELS)
    clean = AdvCL(Identity(), [g], radius=0, attack=Given(known(5), known(5)))
    clean = clean(known(0), known(1), known(5), LABELS).terms
    contrast, cross_entropy = attack.values
    assert contrast.item() == pytest.approx(clean["loss_contrast"].item(), abs=1e-12)
    assert cross_entropy.item() == pytest.approx(clean["loss_labels"].item(), abs=1e-12)
    logits = g(known(3).flatten(1))
    assert out.terms["loss_labels"].item() == pytest.approx(F.cross_entropy(logits, LABELS[:, 0]).item(), abs=1e-12)
    expected = out.terms["loss_contrast"] + 0.2 * out.terms["loss_labels"]
    assert out.loss.item() == pytest.approx(expected.item(), abs=1e-12)


def test_attacked_images_are_compared_with_views_on_the_clean_branch():
    found = []

    def records(objective, x, generator=None):
        found.append(objective(x).item())
        return x

    learner = METHOD.make("dual", attack=records).eval()
    with torch.no_grad():
        for i, branch in enumerate(AdvCL.branches):
            getattr(learner.model[5], branch).bias.add_(i)
    x1, x2, x, labels = batch(METHOD)
    learner(x1, x2, x, labels)
    with bn_branch(learner.model, "clean"):
        clean = [learner.model(view) for view in (x1, x2, high_frequency(x))]
    with bn_branch(learner.model, "adv"):
        losses = view_losses(learner.model(x), *clean)
    assert found[0] == pytest.approx(0.5 / 0.07 * losses.sum().item() / 12, abs=1e-12)


def test_unknown_labels_are_ignored():
    g, x = head(), known(3)
    learner = AdvCL(Identity(), [g], attack=Given(*[x] * 4))
    labels = torch.tensor([[-1], [1], [-1], [0]])
    loss = learner(known(0), known(1), x, labels).terms["loss_labels"].item()
    assert loss == pytest.approx(F.cross_entropy(g(x.flatten(1))[[1, 3]], labels[[1, 3], 0]).item(), abs=1e-12)
    assert learner(known(0), known(1), x, torch.full((4, 1), -1)).terms["loss_labels"].item() == 0


def test_heads_get_gradients_of_their_branch_alone():
    learner = METHOD.make("dual")
    assert not [name for name in learner._ddp_params_and_buffers_to_ignore if name.startswith("heads")]
    heads = [nn.Sequential(METHOD.make("dual").model[5], nn.Linear(5, 2).double())]
    learner = AdvCL(METHOD.make("dual").model, heads, attack=FEW)
    learner(*batch(METHOD)[:3], LABELS).loss.backward()
    ignored = learner._ddp_params_and_buffers_to_ignore
    assert {name.split(".")[3] for name in ignored} == {"clean", "adv"}
    assert {name for name, p in learner.named_parameters() if p.grad is None} <= {*ignored}


@pytest.mark.parametrize(
    ("labels", "error", "argument"),
    [
        (LABELS, ValueError, "pseudo-labels of shape"),
        (LABELS.repeat(1, 2).double(), TypeError, "pseudo-labels to be a torch.int64"),
        (LABELS.repeat(1, 2) - 2, ValueError, r"pseudo-labels\[:, 0\] within"),
        (LABELS * torch.tensor([0, 3]), ValueError, r"pseudo-labels\[:, 1\] within"),
    ],
)
def test_wrong_labels_are_refused_before_anything_moves(labels, error, argument):
    learner = METHOD.make("dual", attack=lambda objective, x: x)
    before = {name: value.clone() for name, value in state(learner).items()}
    with pytest.raises(error, match=f"^AdvCL: expected {argument}"):
        learner(*batch(METHOD)[:3], labels)
    assert same(before, state(learner))


@pytest.mark.parametrize(
    ("heads", "settings", "error", "argument"),
    [
        ([], {}, ValueError, "at least one of heads"),
        (nn.Linear(3, 2), {}, TypeError, "heads to be an iterable"),
        ([len], {}, TypeError, "each of heads"),
        ([nn.Linear(3, 2)], {"weight": -1}, ValueError, "weight"),
        ([nn.Linear(3, 2)], {"radius": -1}, ValueError, "radius"),
    ],
)
def test_wrong_arguments(heads, settings, error, argument):
    with pytest.raises(error, match=f"^AdvCL: expected {argument}"):
        AdvCL(Identity(), heads, **settings)
