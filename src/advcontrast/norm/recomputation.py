"""Recompute checkpointed activations on the branch of the forward pass, and leave running statistics alone."""

import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from threading import Thread, current_thread
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from .._checks import complaint

Moment = tuple[int, int]


def recomputation() -> Moment | None:
    """Return the ids of the backward pass and the node in which the caller runs; ``None`` outside a backward pass.

    A forward pass within a backward pass is a recomputation: ``torch.utils.checkpoint`` runs a segment of the network
    again when a node needs its activations. Compiled autograd executes no nodes; the second id is then -2.
    """
    task = torch._C._current_graph_task_id()
    if task == -1:
        return None
    node = torch._C._current_autograd_node()
    return task, -2 if node is None else node._sequence_nr()


@contextmanager
def copied_buffers(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Run ``modules`` on copies of their buffers, so that a recomputed batch is not counted twice."""
    before = [(module, dict(module._buffers)) for module in modules]
    try:
        with _disable_current_modes():  # selective checkpointing expects exactly the operations of the forward pass
            for module, buffers in before:
                copies = {name: None if buffer is None else buffer.clone() for name, buffer in buffers.items()}
                module._buffers.update(copies)
        yield
    finally:
        for module, buffers in before:
            module._buffers.update(buffers)


class _Compiled(ModuleType):
    """Attributes that compiled code checks before each call. Those of a Python module are evaluated, never traced."""

    contexts: dict[int, Moment] = {}  # contexts of branches that were entered in a backward pass

    @property
    def in_forward(self) -> bool:
        """``True``; raises in a recomputation, as compiled code records no branch."""
        if recomputation() is None:
            return True
        raise unknown_branch("DualNorm", "a compiled module")

    @property
    def in_forward_or_context(self) -> bool:
        """``True``; raises in a recomputation outside of ``contexts``."""
        return recomputation() in self.contexts.values() or self.in_forward


COMPILED = _Compiled("COMPILED")


def unknown_branch(owner: str, got: str) -> RuntimeError:
    """Return the error of a recomputation that cannot find its branch."""
    remedy = "Pass context_fn=checkpoint_context_fn(model) and use_reentrant=False to torch.utils.checkpoint, "
    remedy += "and enter bn_branch outside the checkpointed function"
    return RuntimeError(complaint(owner, "to know the branch of the forward pass that is recomputed", got, remedy))


def refuse_unchecked_switch(owner: str) -> None:
    """Raise on a switch under the stance of ``torch.compiler`` in which compiled code does not check its branch."""
    compiler = sys.modules.get("torch._dynamo.eval_frame")
    if compiler is not None and compiler._is_skip_guard_eval_unsafe_stance():
        expected, got = "compiled code to check which branch is in use", "the stance skip_guard_eval_unsafe=True"
        raise RuntimeError(complaint(owner, expected, got, "Switch branches outside of this stance"))


class History:
    """History of the branches of a dual norm, in which a recomputation finds the branch of its forward pass.

    A thread numbers the autograd nodes that it creates; ``entries`` holds the first number of each period of a branch.
    The node that triggers a recomputation belongs to the recomputed segment, so its number identifies the branch.
    Copies and pickles start with an empty history, as they have no graphs yet.
    """

    def __init__(self) -> None:
        self.thread: Thread | None = None  # thread of the numbers in the entries
        self.several_threads = False
        self.entries: deque[tuple[int, str]] = deque(maxlen=256)
        # Contexts in use, the innermost last; ``True`` for those that a recomputation enters again.
        self.contexts: list[tuple[dict[Any, str], Moment | None, bool]] = []
        self.backwards: dict[int, str] = {}  # the branch that each backward pass in progress recomputes
        self.looked_up: Moment | None = None
        self.switched: Moment | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return History, ()

    def call(self, branch: str) -> None:
        """Record a forward pass on ``branch``."""
        if self.thread is None:
            self.thread = current_thread()
            self.entries.append((-1, branch))
        elif self.thread is not current_thread():
            self.several_threads = True
        if self.entries[-1][1] != branch:  # compiled code has switched it, which is not recorded
            self.entries.clear()
            self.entries.append((torch._C._autograd._get_sequence_nr(), branch))
        self.backwards.clear()  # of a backward pass that raised

    def switch(self, branch: str) -> None:
        """Record that ``branch`` is in use from now on."""
        self.thread = self.thread or current_thread()  # compiled code may have run the norm, which is not recorded
        self.several_threads |= self.thread is not current_thread()
        number = torch._C._autograd._get_sequence_nr()
        if self.entries and self.entries[-1][0] == number:
            self.entries.pop()
        if not self.entries or self.entries[-1][1] != branch:
            self.entries.append((number, branch))

    def recompute(self, owner: str, moment: Moment, branch: str) -> str:
        """Return the branch of the forward pass that is being recomputed; ``branch`` is the one in use now."""
        if not self.contexts or self.contexts[-1][1] != moment:
            branch = self._look_up(owner, moment)
        task = moment[0]
        if task not in self.backwards:
            at_its_end: Any = partial(self.backwards.pop, task, None)
            torch.autograd.Variable._execution_engine.queue_callback(at_its_end)
        self.backwards[task] = branch
        return branch

    def _look_up(self, owner: str, moment: Moment) -> str:
        if torch._C._dynamo.eval_frame.get_eval_frame_callback() is not None:  # the rest of it may have run compiled
            raise unknown_branch(owner, "a compiled module")
        task, number = moment
        found = next((branch for first, branch in reversed(self.entries) if first <= number), None)
        # A backward pass within another one may execute nodes of a recomputation, created on the branch of the latter.
        others = {branch for other, branch in self.backwards.items() if other != task}
        switched = len(self.entries) > 1 or (self.entries and self.entries[0][0] >= 0)
        if found is None or (switched and self.several_threads) or not others <= {found} or self.switched == moment:
            raise unknown_branch(owner, "several that are possible")
        self.looked_up = moment
        return found
