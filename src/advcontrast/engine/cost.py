"""Cost of a training step."""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from .._checks import check_copyable, check_module, complaint
from .._random import preserve_rng_state

_OWNER = "forward_equivalents"


def forward_equivalents(learner: nn.Module, *batch: Tensor) -> float:
    """Return the cost of a training step, in forward passes of the network per image of the batch.

    The unit is one forward pass of ``learner.model`` for one image of the size that reaches the network. A backward
    pass costs one unit for the gradient of the inputs and one for the gradient of the weights. SimCLR therefore costs 6
    per image (two views), and ACL with PGD-5 costs 32; the authors' code costs 42, since it computes weight gradients
    in the attack too. Convolutions and matrix products are counted while a copy of the learner runs one step. The
    learner and the global random state do not change.

    Args:
        learner: as for :func:`fit`, before it is wrapped in DDP.
        batch: arguments of the learner, for at least two images. A loss that compares the images of a batch costs more
            per image in larger batches, for NT-Xent by twice the width of the embeddings for each other view.

    Returns:
        Forward passes per image.

    Raises:
        TypeError: ``learner`` is not a module.
        ValueError: ``learner.model`` is missing or has nothing to count, or the learner cannot train on the batch.
        RuntimeError: ``learner`` cannot be copied, as in :func:`advcontrast.export_branch`.

    Example:
        >>> from advcontrast.engine import forward_equivalents
        >>> encoder = torch.nn.Sequential(torch.nn.Conv2d(3, 64, 3), torch.nn.Conv2d(64, 64, 3), torch.nn.Flatten())
        >>> acl = ACLTrainer(encoder, mode="S2S")
        >>> round(forward_equivalents(acl, torch.rand(2, 3, 16, 16), torch.rand(2, 3, 16, 16)), 1)
        5.9
    """
    check_module(_OWNER, learner)
    if not isinstance(getattr(learner, "model", None), nn.Module):
        raise ValueError(complaint(_OWNER, "learner.model", "none", "Assign the network to that attribute"))
    check_copyable(_OWNER, learner)
    learner = copy.deepcopy(learner)
    model = learner.get_submodule("model")
    seen: list[tuple[Any, Any]] = []
    model.register_forward_pre_hook(lambda _, *inputs: seen.append(inputs), with_kwargs=True)
    with preserve_rng_state(), torch.enable_grad():
        with _Counter() as step:  # type: ignore[no-untyped-call]
            try:
                learner(*batch)[0].backward()
            except RuntimeError as error:
                got, remedy = str(error).partition("\n")[0], "Pass the arguments that fit would pass to it"
                raise ValueError(complaint(_OWNER, "a batch that the learner can train on", got, remedy)) from error
        model.eval()
        with _Counter() as forward, torch.no_grad():  # type: ignore[no-untyped-call]
            inputs, named = seen[0]
            model(*inputs, **named)
    if not forward.operations:
        expected = "learner.model with convolutions or matrix products"
        raise ValueError(complaint(_OWNER, expected, "none", "Count the passes by hand"))
    passes: float = step.operations / (forward.operations / len(inputs[0])) / len(batch[0])
    return passes


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counter of floating-point operations. PyTorch's own cannot follow gradients taken within a forward pass."""

    operations: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch.utils.flop_counter import flop_registry  # it imports triton, which is heavier than torch

        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.operations += count(*args, **kwargs, out_val=out)
        return out
