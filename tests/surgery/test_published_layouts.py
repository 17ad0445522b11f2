"""The encoders of ACL, DynACL, AdvCL and DeACL load from the layouts that their authors' code writes.

The layouts are written down here name for name, for a ResNet-18, and what is loaded is compared with a forward pass
that takes its tensors from the file.
"""

import copy
import re
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from advcontrast import bn_branch, convert_to_dual_bn
from advcontrast.models import backbone, resnet18
from advcontrast.surgery.published import load_published

WIDTHS = (64, 128, 256, 512)
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CIFAR = ((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))


def norms(name, width, count):
    """Yield the tensors of a norm; of ``count`` ones in a list, or of a single one for 0."""
    for prefix in [f"{name}.bn_list.{number}" for number in range(count)] or [name]:
        yield from ((f"{prefix}.{part}", (width,)) for part in ("weight", "bias", "running_mean", "running_var"))
        yield f"{prefix}.num_batches_tracked", ()


def encoder(count, statistics=None):
    """Yield names and shapes of a ResNet-18 of which each norm has ``count`` copies in a list, or one for 0."""
    shortcut = ("conv", "bn") if count else ("0", "1")
    if statistics:
        yield from (("normalize.mean", (3,)), ("normalize.std", (3,)))
    yield "conv1.weight", (64, 3, 3, 3)
    yield from norms("bn1", 64, count)
    for stage, width in enumerate(WIDTHS, 1):
        for block in range(2):
            channels = width // 2 if stage > 1 and block == 0 else width
            name = f"layer{stage}.{block}"
            yield f"{name}.conv1.weight", (width, channels, 3, 3)
            yield from norms(f"{name}.bn1", width, count)
            yield f"{name}.conv2.weight", (width, width, 3, 3)
            yield from norms(f"{name}.bn2", width, count)
            if channels != width:
                yield f"{name}.downsample.{shortcut[0]}.weight", (width, channels, 1, 1)
                yield from norms(f"{name}.downsample.{shortcut[1]}", width, count)


def linear(name, width, out, bias=True):
    yield f"{name}.weight", (out, width)
    if bias:
        yield f"{name}.bias", (out,)


def acl_head(count=2):
    for number in (1, 2, 3):
        yield from linear(f"fc.fc{number}", 512, 512, bias=number == 1)
        yield from norms(f"fc.bn{number}", 512, count)


def advcl_heads():
    for classes in ("002", "010", "050", "100", "500"):
        yield from linear(f"fc_{classes}", 512, int(classes))
    for name, width, out in (("head_ce", 512, 1000), ("head_proj", 512, 128), ("head_pred", 128, 128)):
        yield from linear(f"{name}.0", width, width)
        yield from norms(f"{name}.1", width, 0)
        yield from linear(f"{name}.3", width, out)


def prefixed(prefix, named):
    return ((prefix + name, shape) for name, shape in named)


def drawn(named, statistics=None, seed=0):
    """Return a state dict with random values, small enough for activations to stay finite."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in named:
        part = name.rpartition(".")[2]
        if part == "num_batches_tracked":
            state[name] = torch.randint(1, 1000, shape, generator=generator)
        elif "normalize." in name:
            state[name] = torch.tensor(statistics[part == "std"])
        elif len(shape) > 1:
            state[name] = torch.randn(shape, generator=generator) * (2 / shape[0]) ** 0.5
        else:
            state[name] = torch.rand(shape, generator=generator) + 0.5
    return state


def reference(state, x, norm, shortcut=("conv", "bn"), statistics=None, padding=1):
    """Return the features of a file's network; ``norm`` follows the name of each norm, as in ``".bn_list.1"``."""

    def normalized(name, x):
        mean, var, weight, bias = (
            state[f"{name}{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, weight, bias, eps=1e-5)

    if statistics:
        mean, std = (state[f"normalize.{part}"].view(3, 1, 1) for part in ("mean", "std"))
        x = (x - mean) / std
    x = F.relu(normalized("bn1", F.conv2d(x, state["conv1.weight"], padding=padding)))
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = F.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = F.relu(normalized(f"{name}.bn1", y))
            y = normalized(f"{name}.bn2", F.conv2d(y, state[f"{name}.conv2.weight"], padding=1))
            if stride == 2:
                conv, bn = shortcut
                x = F.conv2d(x, state[f"{name}.downsample.{conv}.weight"], stride=2)
                x = normalized(f"{name}.downsample.{bn}", x)
            x = F.relu(x + y)
    return x.mean((2, 3))


def acl():
    return drawn([*encoder(2, IMAGENET), *acl_head()], IMAGENET)


def dynacl_momentum():
    pair = [*prefixed("encoder_q.", encoder(2, IMAGENET)), *prefixed("encoder_q.", acl_head())]
    pair += [*prefixed("encoder_k.", encoder(2, IMAGENET)), *prefixed("encoder_k.", acl_head())]
    return drawn(pair, IMAGENET)


def dynacl_single():
    return drawn([*encoder(0, IMAGENET), *linear("fc", 512, 10)], IMAGENET)


def dynacl_classifier():
    return drawn([*encoder(2, IMAGENET), *linear("fc", 512, 10)], IMAGENET)


def advcl():
    return drawn(prefixed("module.", [*encoder(3), *advcl_heads()]))


def deacl():
    student, teacher = (prefixed(f"{name}.", encoder(0, CIFAR)) for name in ("backbone", "momentum_backbone"))
    classifiers = [*linear("classifier", 512, 10), *linear("classifier_adv", 512, 10)]
    return drawn([*student, *classifiers, *teacher], CIFAR)


def dual():
    return convert_to_dual_bn(resnet18(0))


def three():
    return convert_to_dual_bn(resnet18(0, normalize=None), branches=("clean", "adv", "adv_ce"))


def strided():
    model = resnet18(0, normalize=CIFAR)
    model.conv1 = nn.Conv2d(3, 64, 3, 2, 2, bias=False)
    return model


def pooled():
    model = resnet18(0, normalize=CIFAR)
    model.maxpool = nn.MaxPool2d(3, 2, 1)
    return model


def padded():
    model = resnet18(0, normalize=CIFAR)
    model.conv1.padding = (2, 2)
    return model


# The file, whose it is, the network, the branch, the prefix of the encoder, and how the reference finds the tensors.
DUAL = {"statistics": IMAGENET}
SINGLE = {"norm": "", "shortcut": ("0", "1")}
FILES = {
    "acl-clean": (acl, "acl", dual, "clean", "", {"norm": ".bn_list.0", **DUAL}),
    "acl-adv": (acl, "acl", dual, "adv", "", {"norm": ".bn_list.1", **DUAL}),
    "dynacl": (acl, "dynacl", dual, "adv", "", {"norm": ".bn_list.1", **DUAL}),
    "dynacl-momentum": (dynacl_momentum, "dynacl", dual, "adv", "encoder_k.", {"norm": ".bn_list.1", **DUAL}),
    "dynacl-classifier": (dynacl_classifier, "dynacl", dual, "clean", "", {"norm": ".bn_list.0", **DUAL}),
    "dynacl-single": (dynacl_single, "dynacl", lambda: resnet18(0), None, "", {**SINGLE, "statistics": IMAGENET}),
    "advcl-clean": (advcl, "advcl", three, "clean", "module.", {"norm": ".bn_list.0"}),
    "advcl-adv": (advcl, "advcl", three, "adv", "module.", {"norm": ".bn_list.1"}),
    "advcl-adv_ce": (advcl, "advcl", three, "adv_ce", "module.", {"norm": ".bn_list.2"}),
    "deacl": (deacl, "deacl", padded, None, "backbone.", {**SINGLE, "statistics": CIFAR, "padding": 2}),
}


@pytest.mark.parametrize("case", FILES)
@pytest.mark.sample(6)
def test_the_features_are_those_of_the_file(case):
    make, layout, network, branch, prefix, how = FILES[case]
    state, model = make(), network()
    load_published(model, state, layout=layout)
    model.eval()
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    own = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    with torch.no_grad():
        expected = reference(own, x, **how)
        if branch is None:
            found = model(x)
        else:
            with bn_branch(model, branch):
                found = model(x)
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected)


def test_counts_of_batches_arrive_too():
    state, model = deacl(), padded()
    load_published(model, state, layout="deacl")
    assert model.bn1.num_batches_tracked == state["backbone.bn1.num_batches_tracked"]


def test_the_network_may_be_that_of_torchvision():
    model = backbone("torchvision/resnet18")[0]
    convert_to_dual_bn(model)
    state = acl()
    load_published(model[1], state, layout="acl", ignore="normalize.")
    assert torch.equal(model[1].bn1.adv.weight, state["bn1.bn_list.1.weight"])


def test_a_network_with_statistics_of_its_own_gets_those_of_the_file():
    model = dual()
    model.normalize = nn.Module()
    model.normalize.register_buffer("mean", torch.zeros(3))
    model.normalize.register_buffer("std", torch.ones(3))
    load_published(model, acl(), layout="acl")
    assert torch.equal(model.normalize.mean, torch.tensor(IMAGENET[0]))


def test_a_half_precision_network_knows_its_normalisation():
    model = dual().bfloat16()
    load_published(model, acl(), layout="acl")


def test_a_classifier_of_ones_own_is_kept():
    model = convert_to_dual_bn(resnet18(10))
    before = model.fc.weight.clone()
    load_published(model, acl(), layout="acl", ignore="fc.")
    assert torch.equal(model.fc.weight, before)


def test_the_parameters_stay_the_same_objects():
    model = dual()
    before = list(map(id, model.parameters()))
    load_published(model, acl(), layout="acl")
    assert list(map(id, model.parameters())) == before


def test_the_state_dict_is_not_touched():
    state = acl()
    names = list(state)
    load_published(dual(), state, layout="acl")
    assert list(state) == names


def refused(model, state, layout, message, error=ValueError, **settings):
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(error, match=message):
        load_published(model, state, layout=layout, **settings)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


CASES = {"acl": (acl, dual), "dynacl": (dynacl_momentum, dual), "advcl": (advcl, three), "deacl": (deacl, padded)}
# As in the table of the documentation.
TABLE = {
    "acl": "convert_to_dual_bn(resnet18(0))",
    "dynacl": "convert_to_dual_bn(resnet18(0)), or resnet18(0) for DynACL++",
    "advcl": 'convert_to_dual_bn(resnet18(0, normalize=None), branches=("clean", "adv", "adv_ce"))',
    "deacl": "resnet18(0, normalize=((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261))) "
    "with model.conv1.padding = (2, 2), not converted",
}
PREFIXES = {"acl": "", "dynacl": "encoder_k.", "advcl": "module.", "deacl": "backbone."}


@pytest.mark.parametrize("layout", CASES)
def test_everything_that_does_not_match_is_named(layout):
    make, network = CASES[layout]
    state, prefix = make(), PREFIXES[layout]
    del state[f"{prefix}layer3.1.conv2.weight"]
    state[f"{prefix}layer1.2.conv1.weight"] = torch.zeros(1)
    state[f"{prefix}layer4.0.conv1.weight"] = torch.zeros(512, 256, 1, 1)
    state[f"module.{prefix}conv1.weight".removeprefix("module.module.")] = torch.zeros(64, 3, 3, 3)
    message = (
        "load_published: expected names and shapes to match the model's, got 1 missing: layer3.1.conv2.weight; "
        "1 unexpected: layer1.2.conv1.weight; 1 twice: conv1.weight; "
        "1 of another shape: layer4.0.conv1.weight [512, 256, 1, 1] for [512, 256, 3, 3]. "
        f"The network for {layout!r} is {TABLE[layout]}; leave parts out with ignore, such as "
    )
    refused(network(), state, layout, f"^{re.escape(message)}")


def test_unknown_parts_of_a_file_are_named():
    refused(padded(), deacl() | {"projector.0.weight": torch.zeros(1)}, "deacl", "1 unexpected: projector.0.weight")


def test_a_classifier_of_ones_own_is_named():
    refused(
        convert_to_dual_bn(resnet18(10)), acl(), "acl", "got 2 missing: fc.bias, fc.weight. The network for 'acl' is"
    )


@pytest.mark.parametrize(
    ("layout", "network", "message"),
    [
        (
            "acl",
            lambda: convert_to_dual_bn(resnet18(0, normalize=None)),
            "got 2 of another value: normalize.mean [0.485, 0.456, 0.406] for none, normalize.std "
            "[0.229, 0.224, 0.225] for none. The network for 'acl' is ",
        ),
        (
            "acl",
            lambda: convert_to_dual_bn(resnet18(0, normalize=(IMAGENET[0], CIFAR[1]))),
            "got 1 of another value: normalize.std [0.229, 0.224, 0.225] for [0.247, 0.243, 0.261]. The network for ",
        ),
        (
            "advcl",
            lambda: convert_to_dual_bn(resnet18(0), branches=("clean", "adv", "adv_ce")),
            "got 2 of another value: normalize.mean none for [0.485, 0.456, 0.406], normalize.std none for ",
        ),
    ],
)
def test_another_normalisation_is_refused(layout, network, message):
    refused(network(), CASES[layout][0](), layout, re.escape(message))


def test_one_statistic_can_be_ignored():
    model = convert_to_dual_bn(resnet18(0, normalize=(IMAGENET[0], CIFAR[1])))
    load_published(model, acl(), layout="acl", ignore="normalize.std")


@pytest.mark.parametrize(
    ("layout", "network", "message"),
    [
        ("deacl", lambda: resnet18(0, normalize=CIFAR), "expected conv1 with stride 1 and a padding of 2"),
        ("acl", lambda: convert_to_dual_bn(padded()), "expected conv1 with stride 1 and a padding of 1"),
        ("deacl", strided, "expected conv1 with stride 1 and a padding of 2"),
        ("acl", lambda: convert_to_dual_bn(pooled()), "expected no pooling after conv1"),
        (
            "advcl",
            dual,
            "expected norms with 3 branches, as in the file, got ('clean', 'adv'). "
            f"The network for 'advcl' is {TABLE['advcl']}.",
        ),
        (
            "acl",
            lambda: resnet18(0),
            "expected norms with 2 branches, as in the file",
        ),
        (
            "deacl",
            lambda: convert_to_dual_bn(padded()),
            "expected plain norms, as in the file",
        ),
    ],
)
def test_another_network_is_refused(layout, network, message):
    refused(network(), CASES[layout][0](), layout, f"^load_published: {re.escape(message)}")


OTHERS = {
    "deacl": (deacl, ("deacl",), ("acl", "dynacl", "advcl"), "'backbone.normalize.mean' as in 'deacl'"),
    "dynacl": (dynacl_momentum, ("dynacl",), ("acl", "advcl", "deacl"), "'encoder_q.normalize.mean' as in 'dynacl'"),
    "advcl": (advcl, ("advcl",), ("acl", "dynacl", "deacl"), "'bn1.bn_list.2.weight' as in 'advcl'"),
    "acl": (acl, ("acl", "dynacl"), ("advcl", "deacl"), "'bn1.bn_list.0.weight' as in 'acl' or 'dynacl'"),
    "single": (dynacl_single, ("dynacl", "deacl"), ("acl", "advcl"), "'bn1.running_mean' as in 'dynacl' or 'deacl'"),
}


@pytest.mark.parametrize(
    ("case", "layout"), [(case, layout) for case, (_, _, layouts, _) in OTHERS.items() for layout in layouts]
)
def test_a_file_of_another_layout_is_recognised(case, layout):
    make, own, _, got = OTHERS[case]
    message = (
        f"load_published: expected a state dict in the layout {layout!r}, got {got}. "
        f"Pass {'; or '.join(f'layout={name!r} with {TABLE[name]}' for name in own)}."
    )
    refused(nn.Identity(), make(), layout, f"^{re.escape(message)}$")


@pytest.mark.parametrize("layout", CASES)
def test_a_state_dict_of_this_library_is_recognised(layout):
    message = "got 'bn1.clean.running_mean' as in a network of this library. Call model.load_state_dict(state_dict)."
    own = convert_to_dual_bn(resnet18(0, width=2)).state_dict()
    refused(nn.Identity(), own, layout, re.escape(message))


def test_the_table_of_the_guide_names_the_same_networks():
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "paper.rst").read_text()
    for layout in ("acl", "advcl"):
        assert f"``{TABLE[layout]}``" in guide
    assert "``resnet18(0, normalize=((0.4914, 0.4822, 0.4465), (0.247, 0.243, 0.261)))``, then\n" in guide


def test_the_remedy_names_a_key_that_the_file_has():
    file = {"model": advcl(), "epoch": 1000}
    refused(
        nn.Identity(),
        file,
        "acl",
        r'Pass what torch\.load\(path, weights_only=True\) holds under "model"\.$',
        TypeError,
    )


def test_the_remedy_names_the_key_of_the_file():
    refused(three(), {"model": advcl(), "epoch": 1000}, "advcl", 'holds under "model"', TypeError)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "resnet18"}, TypeError, "expected model to be"),
        ({"layout": "simclr"}, ValueError, "expected layout to be"),
        ({"layout": "ACL"}, ValueError, "got 'ACL'. Did you mean 'acl'."),
        ({"layout": None}, TypeError, "expected layout to be"),
        ({"state_dict": [("a", torch.zeros(1))]}, TypeError, "expected a state dict of tensors"),
        ({"state_dict": {1: torch.zeros(1)}}, TypeError, "expected a state dict of tensors"),
        ({"ignore": ["fc."]}, TypeError, "expected ignore to be"),
        ({"ignore": ""}, TypeError, "expected ignore to be"),
        ({"state_dict": {}}, ValueError, "got 2 missing: 0.bias, 0.weight"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    given = {"model": nn.Sequential(nn.Linear(2, 1)), "state_dict": {}, "layout": "acl"} | arguments
    with pytest.raises(error, match=f"^load_published: .*{re.escape(message)}"):
        load_published(**given)


def test_the_file_says_which_branch_is_clean():
    model = convert_to_dual_bn(resnet18(0), branches=("adv", "clean"))
    message = "expected branches that begin with ('clean', 'adv')"
    refused(model, acl(), "acl", re.escape(message))


def test_the_normalisation_of_a_file_in_half_precision_is_recognised():
    half = {name: value.half() if value.is_floating_point() else value for name, value in acl().items()}
    model = dual()
    load_published(model, half, layout="acl")
    assert model.conv1.weight.dtype == torch.float32


def test_a_tensor_that_cannot_be_copied_changes_nothing():
    published = acl()
    published["layer4.1.conv2.weight"] = published["layer4.1.conv2.weight"].to_sparse()
    refused(dual(), published, "acl", "copy", RuntimeError)


def test_a_network_without_values_is_refused():
    model = dual().to("meta")
    message = "load_published: expected model to hold"
    with pytest.raises(ValueError, match=f"^{message}"):
        load_published(model, acl(), layout="acl")


def test_a_network_that_was_given_memory_is_loaded():
    model, filled = dual().to("meta").to_empty(device="cpu"), dual()
    for network in (model, filled):
        load_published(network, acl(), layout="acl")
    ours, theirs = model.state_dict(), filled.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_file_without_values_is_refused_and_the_network_is_left_as_it_was():
    model, published = dual(), {name: value.to("meta") for name, value in acl().items()}
    before = copy.deepcopy(model.state_dict())
    message = "load_published: expected state_dict to hold"
    with pytest.raises(ValueError, match=f"^{message}"):
        load_published(model, published, layout="acl")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
