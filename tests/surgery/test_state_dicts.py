"""Plain and dual state dicts load into dual networks, and wrong ones are refused."""

import io

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn

from advcontrast import bn_branch, convert_to_dual_bn, export_branch


def network():
    return nn.Sequential(nn.Conv2d(3, 4, 3), BatchNormAct2d(4, act_layer=nn.PReLU), nn.Flatten(), nn.BatchNorm1d(16))


def trained(model):
    for step in range(3):
        model(torch.rand(6, 3, 4, 4) + step)
    return model


def same(actual, expected):
    return list(actual) == list(expected) and all(torch.equal(actual[name], expected[name]) for name in expected)


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("branch", ["clean", "adv"])
def test_a_plain_state_dict_fills_the_branch(assign, branch):
    plain = trained(network())
    dual = convert_to_dual_bn(network())
    dual.load_state_dict(plain.state_dict(), strict=True, assign=assign)
    assert same(export_branch(dual, branch).state_dict(), plain.state_dict())


def test_a_plain_state_dict_assigns_without_aliasing():
    dual = convert_to_dual_bn(network())
    dual.load_state_dict(trained(network()).state_dict(), assign=True)
    pointers = [tensor.data_ptr() for tensor in dual.state_dict().values()]
    assert len(set(pointers)) == len(pointers)


def test_loading_leaves_the_state_dict_as_it_was():
    state = trained(network()).state_dict()
    keys = list(state)
    convert_to_dual_bn(network()).load_state_dict(state)
    assert list(state) == keys


def test_a_plain_norm_loads_into_a_dual_root():
    norm = nn.BatchNorm2d(3)
    norm(torch.rand(4, 3, 2, 2))
    dual = convert_to_dual_bn(nn.BatchNorm2d(3))
    dual.load_state_dict(norm.state_dict())
    assert same(dual.clean.state_dict(), norm.state_dict())
    assert same(dual.adv.state_dict(), norm.state_dict())


def test_a_plain_state_dict_loads_behind_a_shared_norm():
    norm = nn.BatchNorm2d(3)
    plain = nn.Sequential(norm, nn.Sequential(norm))
    plain(torch.rand(4, 3, 2, 2))
    state = plain.state_dict()
    twin = nn.BatchNorm2d(3)
    dual = convert_to_dual_bn(nn.Sequential(twin, nn.Sequential(twin)))
    dual.load_state_dict(state)
    assert same(dual[1][0].adv.state_dict(), norm.state_dict())


def test_a_checkpoint_from_before_the_batch_counter_loads():
    state = {name: value for name, value in trained(network()).state_dict().items() if "num_batches" not in name}
    dual = convert_to_dual_bn(network())
    dual.load_state_dict(state)
    assert torch.equal(dual[1].adv.running_mean, state["1.running_mean"])


@pytest.mark.parametrize("assign", [False, True])
def test_a_dual_state_dict_survives_a_file(assign):
    dual = convert_to_dual_bn(trained(network()))
    with bn_branch(dual, "adv"):
        trained(dual)
    file = io.BytesIO()
    torch.save(dual.state_dict(), file)
    file.seek(0)
    loaded = convert_to_dual_bn(network())
    loaded.load_state_dict(torch.load(file, weights_only=True), assign=assign)
    assert same(loaded.state_dict(), dual.state_dict())


def test_a_missing_key_of_a_plain_state_dict_is_missed_in_both_branches():
    state = network().state_dict()
    del state["1.weight"]
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "1\.clean\.weight", "1\.adv\.weight"'):
        convert_to_dual_bn(network()).load_state_dict(state)


def test_a_missing_norm_is_missed():
    state = {name: value for name, value in network().state_dict().items() if not name.startswith("3.")}
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "3\.clean\.weight"'):
        convert_to_dual_bn(network()).load_state_dict(state)


def test_a_missing_branch_is_missed():
    state = convert_to_dual_bn(network()).state_dict()
    state = {name: value for name, value in state.items() if ".adv." not in name}
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "1\.adv\.weight"'):
        convert_to_dual_bn(network()).load_state_dict(state)


@pytest.mark.parametrize(
    ("stray", "reported"), [("1.stray", "1.clean.stray"), ("stray", "stray"), ("1.clean.stray", "1.clean.stray")]
)
def test_an_unexpected_key_is_reported(stray, reported):
    dual = convert_to_dual_bn(network())
    state = (dual if ".clean." in stray else network()).state_dict()
    state[stray] = torch.zeros(1)
    with pytest.raises(RuntimeError, match=f'Unexpected key\\(s\\) in state_dict: "{reported}"'):
        dual.load_state_dict(state)


def test_plain_keys_beside_dual_ones_are_unexpected():
    state = convert_to_dual_bn(network()).state_dict()
    state["1.weight"] = torch.zeros(4)
    with pytest.raises(RuntimeError, match=r'Unexpected key\(s\) in state_dict: "1\.weight"'):
        convert_to_dual_bn(network()).load_state_dict(state)


def test_a_wrong_shape_is_reported_for_both_branches():
    state = network().state_dict()
    state["1.weight"] = torch.zeros(5)
    with pytest.raises(RuntimeError, match=r"(?s)size mismatch for 1\.clean\.weight.*size mismatch for 1\.adv\.weight"):
        convert_to_dual_bn(network()).load_state_dict(state)
