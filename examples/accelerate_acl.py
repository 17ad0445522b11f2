"""Pre-train with ACL under Hugging Face accelerate, on images that are part of the repository.

    python examples/accelerate_acl.py
    torchrun --nproc-per-node=2 examples/accelerate_acl.py --out encoder.pt    # or accelerate launch

accelerate wraps the trainer and distributes the batches over the processes. With ``--state FOLDER`` an interrupted run
resumes after its last complete epoch. Needs ``pip install accelerate``.
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
    parser.add_argument("--batch-size", type=int, default=64, help="images per step and process")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file for the weights")
    parser.add_argument("--state", type=Path, help="folder for the state of the run, from which it continues")
    given = parser.parse_args()
    accelerator = Accelerator(cpu=not torch.accelerator.is_available())  # or else it ignores the processes of torchrun
    set_seed(1)  # the same weights everywhere
    model = convert_to_dual_bn(resnet18(num_classes=64))
    attack = PGDAttack(eps=0.1, step_size=0.05, steps=2)
    loss = NTXentLoss(gather=True)  # negatives from all processes
    acl = ACLTrainer(model, loss=loss, attack=attack, augment=ContrastivePairAugment(28))
    optimizer = torch.optim.SGD(acl.parameters(), lr=0.1, momentum=0.9)
    set_seed(1, device_specific=True)  # and different noise in each process

    step, optimizer, batches = accelerator.prepare(acl, optimizer, loader(given.images, given.batch_size))
    done = len(list(given.state.glob("epoch-*"))) if given.state else 0
    if done:
        accelerator.load_state(str(given.state / f"epoch-{done}"))
    for epoch in range(done + 1, given.epochs + 1):
        losses = []
        for images in batches:
            out = step(images)
            accelerator.backward(out.loss)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(out.loss.detach())
        mean = float(accelerator.reduce(torch.stack(losses).mean(), "mean"))
        accelerator.print(f"epoch {epoch}: loss {mean:.4f} over {accelerator.num_processes} processes")
        if given.state:
            draft = given.state / "draft"
            accelerator.save_state(str(draft), safe_serialization=False)  # safetensors holds nothing but tensors
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                draft.rename(given.state / f"epoch-{epoch}")  # only a whole state has this name
            accelerator.wait_for_everyone()
    if given.out is not None:
        accelerator.save(model.state_dict(), given.out)  # by the first process
    accelerator.end_training()


if __name__ == "__main__":
    main()
