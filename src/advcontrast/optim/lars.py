"""Layer-wise adaptive rate scaling, for the large learning rates of contrastive pretraining."""

from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

from .._checks import check_bool, check_callable, check_iterable, check_real, check_type, complaint, type_name

_OWNER = "LARS"
_PARAMS = "Pass model.parameters(), or dicts with params and settings of their own"


class LARS(Optimizer):
    r"""SGD with momentum, in which the step of each tensor is proportional to the norm of that tensor.

    For a parameter :math:`w` with gradient :math:`g`

    .. math::

        r &= \frac{\mathrm{trust} \cdot \|w\|}{\|g\| + \lambda \|w\|} \\
        v &\leftarrow \mu v + \mathrm{lr} \cdot r \, (g + \lambda w) \\
        w &\leftarrow w - v

    with ``momentum`` :math:`\mu`, ``weight_decay`` :math:`\lambda`, and :math:`r = 1` where :math:`\|w\|` or
    :math:`\|g\|` is 0, so a bias that starts at zero takes its first step at the full ``lr``. The learning rate is
    inside the momentum: a change of ``lr`` acts on later gradients only, unlike in :class:`torch.optim.SGD`. With these
    defaults and a peak of 5.0 this is the optimizer of the ACL code, which adapts every tensor. SimCLR excludes norms
    and biases, as does ``exclude_1d=True``. Nothing synchronises with an accelerator. Reference: You et al., "Large
    Batch Training of Convolutional Networks", 2017.

    Args:
        params: parameters, or dicts of parameters with settings of their own, as for every optimizer of PyTorch.
        lr: learning rate, at least 0. May be changed between steps, by a scheduler for example.
        momentum: the momentum :math:`\mu`, in [0, 1].
        weight_decay: at least 0.
        trust: the trust coefficient, positive.
        exclude_1d: whether tensors of at most one dimension have :math:`r = 1` and no weight decay.

    Raises:
        ValueError: a number is out of range, or no parameters.
        TypeError: an argument has the wrong type.

    Example:
        The first step is ``lr * trust`` times as long as the tensor, 10, however large the gradient (without decay).

        >>> weight = torch.nn.Parameter(torch.tensor([[6.0, 8.0]]))
        >>> optimizer = LARS([weight], lr=5.0, weight_decay=0.0, trust=0.01)
        >>> weight.grad = torch.tensor([[0.0, 123.0]])
        >>> optimizer.step()
        >>> weight.tolist()
        [[6.0, 7.5]]
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        trust: float = 1e-3,
        exclude_1d: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        defaults |= {"trust": trust, "exclude_1d": exclude_1d}
        _check_settings(defaults)
        check_iterable(_OWNER, "params", params, remedy=_PARAMS)
        found: list[Any] = list(params)  # an iterator can be read only once
        if not found:
            raise ValueError(complaint(_OWNER, "at least 1 parameter", "none", _PARAMS))
        super().__init__(found, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of ``params`` with settings that differ from the defaults; errors are as for the constructor."""
        if not isinstance(param_group, dict) or "params" not in param_group:
            got = f"one of {list(param_group)}" if isinstance(param_group, dict) else type_name(param_group)
            raise TypeError(complaint(_OWNER, "a group to be a dict with params", got, _PARAMS))
        _check_settings({**self.defaults, **param_group})
        params = param_group["params"]
        if not isinstance(params, Tensor):
            check_iterable(_OWNER, "params", params, remedy=_PARAMS)
            params = list(params)
            for entry in params:
                parameter = entry[1] if isinstance(entry, tuple) and len(entry) == 2 else entry  # of named_parameters()
                check_type(_OWNER, "each of params", parameter, Tensor, remedy=_PARAMS)
                if not (parameter.is_leaf or parameter.retains_grad):
                    remedy = "Pass the tensors that it was computed from"
                    raise ValueError(complaint(_OWNER, "params to be leaves", "the result of an operation", remedy))
        super().add_param_group({**param_group, "params": params})

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Take one step for every parameter that has a gradient, and return the loss of the closure, if any.

        Args:
            closure: a function that recomputes the loss and its gradients.

        Raises:
            RuntimeError: a gradient is sparse. No parameter is changed.
            TypeError: the closure is not a function.
        """
        loss = None
        if closure is not None:
            check_callable(_OWNER, "closure", closure, remedy="Pass a function that returns the loss, or None")
            with torch.enable_grad():
                loss = closure()
        active = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        if any(p.grad.is_sparse for params in active for p in params):
            remedy = "Use sparse=False in the embedding, or another optimizer for it"
            raise RuntimeError(complaint(_OWNER, "dense gradients", "a sparse one", remedy))
        for group, params in zip(self.param_groups, active, strict=True):
            for device in {p.device for p in params}:
                near = [p for p in params if p.device == device]
                if excluded := [p for p in near if group["exclude_1d"] and p.dim() <= 1]:
                    self._move(excluded, [group["lr"] * p.grad for p in excluded], group["momentum"])
                if adapted := [p for p in near if not (group["exclude_1d"] and p.dim() <= 1)]:
                    self._move(adapted, _updates(adapted, group), group["momentum"])
        return loss

    def _move(self, params: list[Tensor], updates: list[Tensor], momentum: float) -> None:
        for p in params:
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        buffers = [self.state[p]["momentum_buffer"] for p in params]
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, updates)
        torch._foreach_sub_(params, buffers)


def _updates(params: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
    """Return the gradients with their decay, scaled for each tensor."""
    weight_decay = group["weight_decay"]
    grads = [p.grad for p in params if p.grad is not None]
    w, g = (torch.stack(torch._foreach_norm(tensors)) for tensors in (params, grads))
    rate = torch.where((w > 0) & (g > 0), group["trust"] * w / (g + weight_decay * w), 1)
    updates = [*torch._foreach_add(grads, params, alpha=weight_decay)]
    # With factors on the device, a foreach function launches a kernel for each tensor. Vectors, which are most of the
    # tensors (norms and biases), are scaled together.
    vectors: list[tuple[int, Tensor]] = []
    for i, (update, factor) in enumerate(zip(updates, (group["lr"] * rate).unbind(), strict=True)):
        if update.dim() == 1:
            vectors.append((i, factor.expand_as(update)))
        else:
            update.mul_(factor)
    if vectors:
        together = torch.cat([updates[i] for i, _ in vectors]).mul_(torch.cat([factor for _, factor in vectors]))
        for (i, _), scaled in zip(vectors, torch.split(together, [len(factor) for _, factor in vectors]), strict=True):
            updates[i] = scaled
    return updates


def _check_settings(settings: dict[str, Any]) -> None:
    check_real(_OWNER, "lr", settings["lr"], low=0, remedy="The ACL code has a peak of 5.0")
    check_real(_OWNER, "momentum", settings["momentum"], low=0, high=1, remedy="0.9 is usual")
    check_real(_OWNER, "weight_decay", settings["weight_decay"], low=0, remedy="The ACL code has 1e-6")
    check_real(_OWNER, "trust", settings["trust"], low=0, above=True, remedy="1e-3 is usual")
    check_bool(_OWNER, "exclude_1d", settings["exclude_1d"], remedy="True leaves norms and biases unadapted")
