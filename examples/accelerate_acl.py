"""Pre-train with ACL under Hugging Face accelerate, on the images that come with the repository.

    python examples/accelerate_acl.py
    torchrun --nproc-per-node=2 examples/accelerate_acl.py --out encoder.pt    # or accelerate launch

``advcontrast.adapters.accelerate.pretrain`` is a page of plain PyTorch, should you want a loop of your own. accelerate
wraps the trainer and shares the batches among the processes. Needs ``pip install accelerate``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.utils.data import DataLoader
from torchvision.models import resnet18

from advcontrast import ACLTrainer, ContrastivePairAugment, NTXentLoss, PGDAttack, convert_to_dual_bn
from advcontrast.adapters.accelerate import pretrain

IMAGES = Path(__file__).parent / "data" / "fashion-mini.npz"


def loader(count: int, size: int) -> DataLoader[torch.Tensor]:
    """Return shuffled uint8 batches."""
    with np.load(IMAGES) as file:
        images = torch.from_numpy(file["train_images"][:count])[:, None].repeat(1, 3, 1, 1)
    dataset: Any = images  # a tensor is a data set: it has a length, and samples by number
    return DataLoader(dataset, batch_size=size, shuffle=True, drop_last=True)


def main() -> None:
    """Train, and print the mean loss of each epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="how many to train on, of 5,000")
    parser.add_argument("--batch-size", type=int, default=64, help="images a step and process")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file for the weights")
    parser.add_argument("--state", type=Path, help="folder to keep the run in: started again, it goes on")
    given = parser.parse_args()
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())  # or else it ignores what torchrun says
    set_seed(1)  # the same weights everywhere
    model = convert_to_dual_bn(resnet18(num_classes=64))
    attack = PGDAttack(eps=0.1, step_size=0.05, steps=2)
    loss = NTXentLoss(gather=True)  # negatives from all processes
    acl = ACLTrainer(model, loss=loss, attack=attack, augment=ContrastivePairAugment(28))
    optimizer = torch.optim.SGD(acl.parameters(), lr=0.1, momentum=0.9)
    set_seed(1, device_specific=True)  # and noise of its own in each process

    def report(epoch: int, mean: float) -> None:
        accelerator.print(f"epoch {epoch}: loss {mean:.4f} over {accelerator.num_processes} processes")

    batches = loader(given.images, given.batch_size)
    settings = {"epochs": given.epochs, "accelerator": accelerator, "folder": given.state, "report": report}
    pretrain(acl, batches, optimizer=optimizer, **settings)
    if given.out is not None:
        accelerator.save(model.state_dict(), given.out)  # by the first process
    accelerator.end_training()


if __name__ == "__main__":
    main()
