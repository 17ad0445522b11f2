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


SPLITS = pytest.mark.parametrize("split", ["both", "affine", "stats"])


def differing(split):
    """Return a converted network whose branches differ in all that they do not share."""
    torch.manual_seed(0)
    model = convert_to_dual_bn(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), split=split)
    for number, branch in enumerate(("clean", "adv")):
        with torch.no_grad(), bn_branch(model, branch):
            for parameter in model[1].parameters():
                parameter.add_(torch.rand_like(parameter))
            model(torch.rand(2, 3, 4, 4) + number)
    return model.eval()


def of_both_branches(model):
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    outputs = []
    for branch in ("clean", "adv"):
        with bn_branch(model, branch):
            outputs.append(model(x))
    return outputs


@SPLITS
def test_safetensors_saves_and_loads_a_network(split, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    model, other = (
        differing(split),
        convert_to_dual_bn(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), split=split),
    )
    safetensors.save_model(model, tmp_path / "model.safetensors")
    assert safetensors.load_model(other, tmp_path / "model.safetensors") == (set(), [])
    assert all(map(torch.equal, of_both_branches(other.eval()), of_both_branches(model)))


@SPLITS
def test_safetensors_loads_a_plain_network_into_every_branch(split, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    plain[1].running_mean.fill_(3.0)
    safetensors.save_model(plain, tmp_path / "model.safetensors")
    model = differing(split)
    assert safetensors.load_model(model, tmp_path / "model.safetensors") == (set(), [])
    x = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert all(torch.equal(output, plain(x)) for output in of_both_branches(model))


@SPLITS
def test_entries_of_a_state_dict_share_no_memory(split):
    state = differing(split).state_dict()
    assert len({value.data_ptr() for value in state.values()}) == len(state)


@SPLITS
def test_the_variables_themselves_are_those_of_the_network(split):
    model = differing(split)
    state = model.state_dict(keep_vars=True)
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    assert all(state[name] is tensor for name, tensor in tensors.items())
