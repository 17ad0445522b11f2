"""A process of a run that torchrun, or a test in its place, starts; perhaps one that meets with an accident.

Arguments: folder, accident (none, kill, hang or raise), and the step in which it happens to the last process, once.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from advcontrast import distributed
from advcontrast.optim import EMA
from tests.engine.learners import Noisy, scramble, train


class Unlucky(Noisy):
    """A learner to whose last process something happens."""

    def __init__(self, folder, accident, step):
        super().__init__()
        self.accident, self.step, self.mark = accident, step, folder / "happened"

    def extra_repr(self):
        return ""

    def forward(self, *batch):
        mine = dist.get_rank() == dist.get_world_size() - 1
        if self.accident != "none" and mine and len(self.seen) + 1 == self.step and not self.mark.exists():
            self.mark.touch()
            if self.accident == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.accident == "hang":
                time.sleep(600)
            raise ZeroDivisionError("an accident")
        return super().forward(*batch)


def main():
    folder, accident, step = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    folder.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    distributed.init_from_torchrun(timeout=5 if accident == "hang" else 60)  # a disk may take seconds for a save
    scramble(dist.get_rank())
    learner = Unlucky(folder, accident, step)
    ema = EMA(learner.model, decay=0.9)
    train(learner, folder=folder, save_every=1, ema=ema)
    torch.save({**learner.state_dict(), "ema": ema.model.state_dict()}, folder / f"final-{dist.get_rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
