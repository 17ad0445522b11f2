"""An accelerator without a driver: its tensors have no values, and whatever would wait for it raises.

Tensors of the device are those of PyTorch's ``FakeTensorMode``, tensors of the host are real. PyTorch's autograd engine
needs a real device, so that gradients here have the right shape and nothing else.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from advcontrast.attacks import context

aten = torch.ops.aten
#: Functions of ``fit`` that may wait, once in a run or in an epoch: the data move to the device, figures come back.
PER_EPOCH = {("batches.py", "batches"), ("run.py", "require_finite"), ("run.py", "result")}
_READS = (aten._local_scalar_dense.default, aten.nonzero.default, aten.is_nonzero.default)


class _Generator(torch.Generator):
    """A generator of the host, in the place of one of the device."""

    def __new__(cls, device="cpu"):
        self = super().__new__(cls, "cpu")
        self.place = torch.device(device)
        return self

    @property
    def device(self):
        return self.place


class WaitError(AssertionError):
    """The host would wait for the device."""


class _Device(TorchDispatchMode):
    def __init__(self, allowed: set[tuple[str, str]]) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.allowed, self.waits = allowed, 0
        self.pinned: list[Tensor] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is aten.is_pinned.default:
            return any(args[0] is tensor for tensor in self.pinned)
        if func is aten._pin_memory.default:
            self.pinned = [*self.pinned[-99:], args[0].clone()]
            return self.pinned[-1]
        far, to = any(isinstance(value, FakeTensor) for value in tree_leaves((args, kwargs))), kwargs.get("device")
        if far and (func in _READS or (to is not None and to.type == "cpu")):
            self._wait(f"{func} reads values")
            return 1.0 if to is None else torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if not far and (to is None or to.type not in ("cuda", "mps")):
            return func(*args, **kwargs)
        copied = args[1] if func is aten.copy_.default else args[0] if func is aten._to_copy.default else None
        from_host = isinstance(copied, Tensor) and not isinstance(copied, FakeTensor)
        if from_host and not any(copied is tensor for tensor in self.pinned):
            self._wait(f"{func} copies from memory that is not pinned")
        with self.fake:
            return func(*args, **kwargs)

    def _wait(self, what: str) -> None:
        frames = [(frame.filename.rpartition("/")[2], frame.name) for frame in traceback.extract_stack()]
        if not self.allowed.intersection(frames):
            raise WaitError(what)
        self.waits += 1


@contextmanager
def device(allowed: set[tuple[str, str]] = frozenset()) -> Iterator[_Device]:
    """Let ``"cuda"`` and ``"mps"`` be devices without values; ``allowed`` are the files and functions that may wait."""

    def gradient(outputs, inputs, *args, **kwargs):
        assert outputs.requires_grad
        return tuple(torch.empty_like(each) for each in ([inputs] if isinstance(inputs, Tensor) else inputs))

    def copied(tensor, memo):
        if id(tensor) not in memo:
            value = tensor.detach().clone()
            memo[id(tensor)] = nn.Parameter(value, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else value
        return memo[id(tensor)]

    with pytest.MonkeyPatch.context() as patch, _Device(allowed) as mode:
        patch.setattr(torch.cuda, "_lazy_init", lambda: None)
        patch.setattr(torch.accelerator, "device_index", nullcontext)
        patch.setattr(torch, "Generator", _Generator)
        patch.setattr(torch.autograd, "grad", gradient)
        patch.setattr(Tensor, "backward", lambda loss, *args, **kwargs: None)
        patch.setattr(FakeTensor, "__deepcopy__", copied, raising=False)
        # Parameters here are of the class FakeTensor, not nn.Parameter.
        patch.setattr(context, "_foldable_layer", lambda part: isinstance(part, (nn.Conv2d, nn.Linear)))
        yield mode


def on_device(module: nn.Module) -> nn.Module:
    """Replace the parameters and buffers of a module by ones on the device, in :func:`device`."""
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                far = torch.empty_like(parameter, device="cuda")
                part._parameters[name] = nn.Parameter(far, requires_grad=parameter.requires_grad)
        for name, buffer in part._buffers.items():
            if buffer is not None:
                part._buffers[name] = torch.empty_like(buffer, device="cuda")
    return module
