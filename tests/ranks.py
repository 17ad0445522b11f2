"""Processes in a gloo group, started once a session because starting them takes longer than all their tests."""

import shutil
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist

from tests.processes import WARM

WORLD_SIZE = 2
_SECONDS = 120


def _serve(rank: int, world_size: int, folder: str, pipe: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    while (job := pipe.recv()) is not None:
        function, args = job
        torch.manual_seed(rank)
        try:
            pipe.send((True, function(*args)))
        except Exception as error:
            pipe.send((False, f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
    dist.destroy_process_group()


class Ranks:
    """Runs a module-level function on all ranks at once."""

    def __init__(self, world_size: int = WORLD_SIZE) -> None:
        self._folder = tempfile.mkdtemp()  # a free port may be taken before it is used
        self._pipes, self._processes = [], []
        for rank in range(world_size):
            ours, theirs = WARM.Pipe()
            process = WARM.Process(target=_serve, args=(rank, world_size, self._folder, theirs), daemon=True)
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)

    def _answers(self, function: Callable[..., Any], args: tuple[Any, ...]) -> list[tuple[bool, Any]]:
        for pipe in self._pipes:
            pipe.send((function, args))
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(_SECONDS):
                self.close()
                raise TimeoutError(f"rank {rank} gave no answer within {_SECONDS} s")
        return [pipe.recv() for pipe in self._pipes]

    def run(self, function: Callable[..., Any], *args: Any) -> list[Any]:
        """Return what ``function(*args)`` returned on each rank; it finds its rank in ``torch.distributed``."""
        answers = self._answers(function, args)
        for rank, (ok, value) in enumerate(answers):
            assert ok, f"rank {rank}: {value}"
        return [value for _, value in answers]

    def errors(self, function: Callable[..., Any], *args: Any) -> list[str]:
        """Return the text of the error that ``function(*args)`` raised on each rank; it must raise on every one."""
        answers = self._answers(function, args)
        for rank, (ok, value) in enumerate(answers):
            assert not ok, f"rank {rank} raised nothing and returned {value!r}"
        return [value for _, value in answers]

    def close(self) -> None:
        """End the processes."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            if process.is_alive():
                pipe.send(None)
        for process in self._processes:
            process.join(2)
            process.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
