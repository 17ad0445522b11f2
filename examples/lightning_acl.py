"""Pre-train with ACL under Lightning, on images that are part of the repository.

    python examples/lightning_acl.py
    python examples/lightning_acl.py --devices 2     # two processes, by DDP

Needs ``pip install lightning``, or ``pytorch-lightning``, its older name. An evaluation that attacks needs gradients,
which the inference mode of Lightning's validation and test loops forbids. The attacks of advcontrast
disable that mode while they run, but gradients that you compute yourself need ``Trainer(inference_mode=False)``.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torchvision.models import resnet18

from advcontrast import ACLTrainer, ContrastivePairAugment, NTXentLoss, PGDAttack, convert_to_dual_bn
from advcontrast.adapters.lightning import LightningLearner

try:
    import lightning.pytorch as pl
except ImportError:
    import pytorch_lightning as pl


def learner() -> LightningLearner:
    """Return ACL as a Lightning module, which attacks in training and in validation."""
    model, augment = convert_to_dual_bn(resnet18(num_classes=64)), ContrastivePairAugment(28)
    attack, loss = PGDAttack(eps=0.1, step_size=0.05, steps=2), NTXentLoss(gather=True)
    acl = ACLTrainer(model, loss=loss, attack=attack, augment=augment)
    return LightningLearner(acl, optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9))


def batches(split: str, count: int, size: int) -> DataLoader[torch.Tensor]:
    """Return shuffled uint8 batches; Lightning gives each process its own."""
    with np.load(Path(__file__).parent / "data" / "fashion-mini.npz") as file:
        images = torch.from_numpy(file[f"{split}_images"][:count])[:, None].repeat(1, 3, 1, 1)
    dataset: Any = images  # a tensor is a data set: it has a length, and samples by number
    return DataLoader(dataset, batch_size=size, shuffle=split == "train", drop_last=True)


def main() -> None:
    """Train, and print the losses of the last epoch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=512, help="how many to train on, of 5,000")
    parser.add_argument("--batch-size", type=int, default=64, help="images per step and process")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--devices", type=int, default=1, help="processes")
    parser.add_argument("--out", default="runs/lightning", help="folder of checkpoints and logs")
    given = parser.parse_args()
    pl.seed_everything(1)
    where = {"devices": given.devices, "default_root_dir": given.out}
    trainer = pl.Trainer(max_epochs=given.epochs, log_every_n_steps=1, inference_mode=False, **where)
    size = given.batch_size
    trainer.fit(learner(), batches("train", given.images, size), batches("test", 2 * size, size))
    print({name: round(float(value), 4) for name, value in sorted(trainer.callback_metrics.items())})


if __name__ == "__main__":
    main()
