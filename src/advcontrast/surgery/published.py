"""Load what the authors of the paper published."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from .._checks import complaint, type_name
from ..norm.dual_norm import dual_norms


def load_acl_checkpoint(
    model: nn.Module, state_dict: Mapping[str, Tensor], *, ignore: str | tuple[str, ...] = ()
) -> None:
    """Load a state dict in the layout of the published ACL checkpoints into a converted ResNet.

    The layout differs from that of a converted torchvision ResNet in three ways, which are translated: the branches are
    called ``bn_list.0`` (clean) and ``bn_list.1`` (adversarial), the shortcut ``downsample.conv`` and
    ``downsample.bn``, and parallel training left the prefix ``module.``. Nothing is skipped in silence.

    Args:
        model: a network whose norms are dual, for example ``convert_to_dual_bn(resnet18())`` with a CIFAR stem.
        state_dict: names and tensors; of a published file, what its key ``"state_dict"`` holds.
        ignore: prefix or prefixes of the names that are not wanted, for example ``"fc."`` to leave out the projection
            head; the model then keeps its own values for them.

    Raises:
        ValueError: the model holds no dual norm, or names or shapes do not match; every one of them is listed, and
            the model is left as it was.
        TypeError: ``model`` is no module, or ``state_dict`` holds something other than tensors.

    Example:
        >>> model = convert_to_dual_bn(torch.nn.Sequential(torch.nn.BatchNorm2d(8, affine=False)))
        >>> published = {f"module.0.bn_list.{branch}.running_mean": torch.ones(8) * branch for branch in (0, 1)}
        >>> published |= {f"module.0.bn_list.{branch}.running_var": torch.ones(8) for branch in (0, 1)}
        >>> published |= {f"module.0.bn_list.{branch}.num_batches_tracked": torch.tensor(7) for branch in (0, 1)}
        >>> load_acl_checkpoint(model, published)
        >>> model[0].adv.running_mean.mean().item()
        1.0
    """
    owner = "load_acl_checkpoint"
    dual_norms(owner, model)
    tensors = isinstance(state_dict, Mapping) and all(isinstance(value, Tensor) for value in state_dict.values())
    if not tensors or not all(isinstance(name, str) for name in state_dict):
        remedy = 'Pass what torch.load(path, weights_only=True) holds under "state_dict"'
        raise TypeError(complaint(owner, "a state dict of tensors", type_name(state_dict), remedy))
    prefixes = (ignore,) if isinstance(ignore, str) else ignore
    if not isinstance(prefixes, tuple) or not all(isinstance(prefix, str) and prefix for prefix in prefixes):
        raise TypeError(complaint(owner, "ignore to be prefixes, a str or a tuple", repr(ignore), 'Pass ignore="fc."'))
    own = model.state_dict()
    translated = [(_translate(name), value) for name, value in state_dict.items()]
    theirs = {name: value for name, value in translated if not name.startswith(prefixes)}
    wanted = {name for name in own if not name.startswith(prefixes)}
    names = [name for name, _ in translated]
    problems = {
        "missing": sorted(wanted - theirs.keys()),
        "unexpected": sorted(theirs.keys() - own.keys()),
        "twice": sorted(name for name in theirs if names.count(name) > 1),
        "of another shape": sorted(
            f"{name} {list(theirs[name].shape)} for {list(own[name].shape)}"
            for name in wanted & theirs.keys()
            if theirs[name].shape != own[name].shape
        ),
    }
    found = "; ".join(f"{len(which)} {kind}: {', '.join(which)}" for kind, which in problems.items() if which)
    if found:
        remedy = 'Build the network that was saved, or leave parts out with ignore="fc."'
        raise ValueError(complaint(owner, "names and shapes to match the model's", found, remedy))
    own.update(theirs)
    model.load_state_dict(own)


def _translate(name: str) -> str:
    name = f".{name.removeprefix('module.')}"
    for published, ours in (
        (".bn_list.0.", ".clean."),
        (".bn_list.1.", ".adv."),
        (".downsample.conv.", ".downsample.0."),
        (".downsample.bn.", ".downsample.1."),
    ):
        name = name.replace(published, ours)
    return name.removeprefix(".")
