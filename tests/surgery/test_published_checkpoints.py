"""The layout of the published ACL checkpoints is imported loudly."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models import ResNet
from torchvision.models.resnet import BasicBlock

from advcontrast import convert_to_dual_bn, load_published
from advcontrast.surgery import load_acl_checkpoint

TRANSLATION = {
    ".clean.": ".bn_list.0.",
    ".adv.": ".bn_list.1.",
    ".downsample.0.": ".downsample.conv.",
    ".downsample.1.": ".downsample.bn.",
}


class Head(nn.Module):
    """The first two layers of the authors' projection head, under their names."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(512, 8)
        self.bn1 = nn.BatchNorm1d(8)

    def forward(self, x):
        return self.bn1(self.fc1(x))


def network():
    model = ResNet(BasicBlock, [1, 1, 1, 1])
    model.fc = Head()
    return convert_to_dual_bn(model)


def published_name(name):
    for ours, theirs in TRANSLATION.items():
        name = name.replace(ours, theirs)
    return name


def published(model, prefix="module."):
    """Return other values under the names that the authors' code saves."""
    generator = torch.Generator().manual_seed(0)
    drawn = {name: torch.rand(value.shape, generator=generator) for name, value in model.state_dict().items()}
    return {
        prefix + published_name(name): drawn[name] if value.is_floating_point() else (100 * drawn[name]).long()
        for name, value in model.state_dict().items()
    }


def refused(model, state, message, error=ValueError, **settings):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        load_published(model, state, **settings, layout="acl")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("prefix", ["module.", ""])
def test_every_tensor_arrives(prefix):
    model = network()
    state = published(model, prefix)
    load_published(model, state, layout="acl")
    assert all(map(torch.equal, model.state_dict().values(), state.values()))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("module.bn1.bn_list.0.weight", "bn1.clean.weight"),
        ("module.layer1.0.bn1.bn_list.1.running_var", "layer1.0.bn1.adv.running_var"),
        ("module.layer2.0.downsample.conv.weight", "layer2.0.downsample.0.weight"),
        ("module.layer2.0.downsample.bn.bn_list.1.weight", "layer2.0.downsample.1.adv.weight"),
        ("module.fc.bn1.bn_list.0.num_batches_tracked", "fc.bn1.clean.num_batches_tracked"),
    ],
)
def test_a_published_name_arrives_at_ours(theirs, ours):
    model = network()
    state = published(model)
    load_published(model, state, layout="acl")
    assert torch.equal(model.state_dict()[ours], state[theirs])


def test_a_head_that_the_model_lacks_is_left_out():
    model = network()
    state = published(model)
    model.fc = nn.Identity()
    load_published(model, state, layout="acl")
    assert torch.equal(model.conv1.weight, state["module.conv1.weight"])


def test_the_old_name_loads_and_warns():
    model = network()
    state = published(model)
    with pytest.warns(DeprecationWarning, match=r'load_acl_checkpoint has moved .* layout="acl"') as caught:
        load_acl_checkpoint(model, state, ignore="fc.")
    assert caught[0].filename == __file__
    assert torch.equal(model.conv1.weight, state["module.conv1.weight"])


def test_the_state_dict_is_not_touched():
    model = network()
    state = published(model)
    keys = list(state)
    load_published(model, state, layout="acl")
    assert list(state) == keys


def test_the_parameters_stay_the_same_objects():
    model = network()
    before = list(map(id, model.parameters()))
    load_published(model, published(model), layout="acl")
    assert list(map(id, model.parameters())) == before


@pytest.mark.parametrize("ignore", ["fc.", ("fc.", "absent.")])
def test_ignored_names_keep_the_values_of_the_model(ignore):
    model = network()
    before = model.fc.fc1.weight.clone()
    state = published(model)
    load_published(model, state, ignore=ignore, layout="acl")
    assert torch.equal(model.fc.fc1.weight, before)
    assert torch.equal(model.conv1.weight, state["module.conv1.weight"])


def test_ignored_names_may_be_absent_from_the_file():
    model = network()
    state = {name: value for name, value in published(model).items() if ".fc." not in name}
    load_published(model, state, ignore="fc.", layout="acl")
    assert torch.equal(model.conv1.weight, state["module.conv1.weight"])


def test_ignored_names_may_be_absent_from_the_model():
    model = network()
    state = published(model)
    model.fc = nn.Identity()
    load_published(model, state, ignore="fc.", layout="acl")
    assert torch.equal(model.conv1.weight, state["module.conv1.weight"])


def test_everything_that_does_not_match_is_listed():
    model = network()
    state = published(model)
    for name in ("conv1.weight", "bn1.bn_list.1.bias"):
        del state[f"module.{name}"]
    state["module.stray"] = torch.zeros(1)
    state["module.fc.fc1.bias"] = torch.zeros(9)
    message = r"^load_published: expected names and shapes to match"
    refused(model, state, message)


def test_a_checkpoint_with_a_third_branch_is_refused():
    model = network()
    state = published(model) | {"module.bn1.bn_list.2.weight": torch.zeros(64)}
    refused(model, state, "expected a state dict in the layout 'acl'")


def test_a_whole_checkpoint_is_refused_for_its_state_dict():
    model = network()
    message = r"^load_published: expected a state dict of tensors"
    refused(model, {"state_dict": published(model), "epoch": 1000}, message, TypeError)


def test_a_path_is_refused():
    refused(network(), "model_1000.pt", r"expected a state dict of tensors", TypeError)


def test_an_empty_checkpoint_is_refused():
    model = network()
    refused(model, {}, "expected plain norms, as in the file, got")


def test_a_name_that_comes_twice_is_listed():
    model = convert_to_dual_bn(nn.Sequential(nn.BatchNorm1d(2)))
    state = {k.replace("clean", "bn_list.0").replace("adv", "bn_list.1"): v for k, v in model.state_dict().items()}
    with pytest.raises(ValueError, match=r"5 twice: 0\.adv\.bias, ") as error:
        load_published(
            model, state | {f"module.{k}": v + 1 for k, v in state.items() if "bn_list.1" in k}, layout="acl"
        )
    assert "clean" not in str(error.value)


@pytest.mark.parametrize(
    ("state", "ignore", "message"),
    [
        ({}, ["fc."], r"expected ignore to be"),
        ({}, ("",), r"expected ignore to be"),
        ({}, ("fc.", 3), r"expected ignore to be"),
        ({0: torch.zeros(2)}, (), "expected a state dict of tensors"),
        ({"epoch": 3}, (), "expected a state dict of tensors"),
    ],
)
def test_wrong_arguments(state, ignore, message):
    model = convert_to_dual_bn(nn.Sequential(nn.BatchNorm1d(2)))
    with pytest.raises(TypeError, match=f"^load_published: {message}"):
        load_published(model, state, ignore=ignore, layout="acl")
