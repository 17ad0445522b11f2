"""Recompute the running statistics of one branch."""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .._checks import check_module, complaint, type_name
from .._modes import eval_mode
from .._transfer import to_device
from .branch import bn_branch
from .dual_norm import check_branch, dual_norms, dual_norms_in

_OWNER = "update_bn"


def update_bn(model: nn.Module, loader: Iterable[Any], branch: str | None = None) -> None:
    """Recompute the running statistics of one branch in a pass over ``loader``.

    Use it for averaged or interpolated weights, and for other data than those trained on. All batches have the same
    weight, as in ``torch.optim.swa_utils.update_bn``, which resets all batch norms and updates those in use. This
    function changes neither other branches nor norms that are not dual. All other modules are in eval mode: no dropout,
    no stochastic depth. For the adversarial branch, pass adversarial images. Under DDP each process uses its own
    batches. After any error, also one raised by the model, the model is unchanged.

    Args:
        model: a network whose ``branch`` has its own running statistics; for ``branch=None``, one without dual norms,
            whose batch norms are all updated.
        loader: batches, each a tensor ``[N, C, H, W]`` or a tuple that begins with one; moved to the model's device.
        branch: ``"clean"``, ``"adv"`` or another name of a branch.

    Raises:
        ValueError: the branch is missing or unknown, it has no running statistics or shares them
            (``split="affine"``), there is no batch, or statistics are not finite.
        TypeError: ``model`` is not a module, or a batch has no tensor in front.

    Example:
        >>> model = convert_to_dual_bn(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(1)))
        >>> update_bn(model, [torch.tensor([[1.0], [3.0]]), torch.tensor([[6.0], [8.0]])], "adv")
        >>> model[1].adv.running_mean.item(), model[1].clean.running_mean.item()
        (4.5, 0.0)
    """
    norms, batches = _norms(model, branch), _images(loader, model)
    first = next(batches, None)
    if first is None:
        raise ValueError(complaint(_OWNER, "a loader with batches", "none", "A generator can be used once"))
    before = [({name: buffer.clone() for name, buffer in norm.named_buffers()}, norm.momentum) for norm in norms]
    counters = [norm.get_buffer("num_batches_tracked") for norm in norms]
    try:
        with torch.no_grad(), eval_mode(model):
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # the average of all batches
                # The forward pass reads it, which would synchronise with an accelerator.
                norm.num_batches_tracked = torch.zeros((), dtype=torch.int64)
                norm.training = True
            for x in chain([first], batches):
                with nullcontext() if branch is None else bn_branch(model, branch):
                    model(x)
        floats = (buffer for norm in norms for buffer in norm.buffers() if buffer.is_floating_point())
        if not torch.stack([buffer.isfinite().all() for buffer in floats]).all():  # synchronises once
            remedy = "Look for NaN in the images, or for batches too large for the dtype"
            raise ValueError(complaint(_OWNER, "finite statistics", "some that are not", remedy))
    except BaseException:
        for norm, (buffers, _) in zip(norms, before, strict=True):
            for name, buffer in norm.named_buffers():
                buffer.copy_(buffers[name])
        raise
    finally:
        for norm, counter, (_, momentum) in zip(norms, counters, before, strict=True):
            norm.num_batches_tracked = counter.fill_(int(norm.get_buffer("num_batches_tracked")))
            norm.momentum = momentum


def _norms(model: nn.Module, branch: str | None) -> list[_BatchNorm]:
    check_module(_OWNER, model)
    if branch is None:
        if found := dual_norms_in(model):
            remedy = 'Pass the branch, as in update_bn(model, loader, "adv")'
            raise ValueError(complaint(_OWNER, f"branch to be one of {found[0].branches}", "None", remedy))
        modules = list(model.modules())
    else:
        duals = dual_norms(_OWNER, model)
        check_branch(_OWNER, duals, branch)
        if any(dual.split == "affine" for dual in duals):
            rule, got = f"branch {branch!r} to have running statistics of its own", 'shared ones, of split="affine"'
            remedy = "Update a copy: update_bn(export_branch(model, branch), loader)"
            raise ValueError(complaint(_OWNER, rule, got, remedy))
        modules = [module for dual in duals for module in getattr(dual, branch).modules()]
    norms = [norm for norm in modules if isinstance(norm, _BatchNorm) and norm.running_mean is not None]
    if not norms:
        remedy = "Only batch norms with track_running_stats=True keep them"
        raise ValueError(complaint(_OWNER, "norms with running statistics", "none", remedy))
    return list(dict.fromkeys(norms))


def _images(loader: Iterable[Any], model: nn.Module) -> Iterator[Tensor]:
    if not isinstance(loader, Iterable) or isinstance(loader, Tensor):
        remedy = "Pass a DataLoader, or a list of tensors [N, C, H, W]"
        raise TypeError(complaint(_OWNER, "loader to be an iterable of batches", type_name(loader), remedy))
    device = next(chain(model.parameters(), model.buffers())).device
    for batch in loader:
        x = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
        if not isinstance(x, Tensor):
            expected = "a batch to be a tensor or a tuple with one in front"
            raise TypeError(complaint(_OWNER, expected, type_name(x), "Return images, or tuples that begin with them"))
        yield to_device(x, device)
