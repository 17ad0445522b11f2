"""Selfie: pre-train an encoder without labels by assigning hidden patches of an image to their places."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advcontrast import ACLOutput, PGDAttack
from advcontrast.attacks import under_attack
from advcontrast.augment import CropFlip
from advcontrast.models import ResNet

GRID = 4  # patches a side
PATCHES = GRID**2
TARGETS = 4  # patches to predict; the others are the context
# Flags of pretrain.py with the numbers of Chen et al.
RECIPE = {"mode": "selfie", "epochs": 200, "batch_size": 128, "optimizer": "nesterov", "lr": 0.1, "weight_decay": 1e-4}
RECIPE |= {"warmup": 0, "attack_steps": 10}


class Jigsaw(nn.Module):
    """Predict which of the hidden patches belongs to which place.

    The first three stages of the encoder turn each patch into D features. Transformer layers pool those of the context
    patches, without their places, in a learned token. Token plus place is the query that is compared with
    each of the hidden patches.

    Args:
        encoder: a ResNet; its last stage and its classifier are not used.
        layers: number of transformer layers.
    """

    def __init__(self, encoder: ResNet, *, layers: int) -> None:
        super().__init__()
        d = encoder.num_features // 2  # what the third stage returns
        heads = max(1, math.gcd(d, 256) // 16)  # 16 of them from width 64 on, none with fewer than 16 features
        self.encoder = encoder
        self.pooling = nn.Sequential(
            *(nn.TransformerEncoderLayer(d, heads, 2 * d, activation="gelu", batch_first=True) for _ in range(layers))
        )
        self.token = nn.Parameter(torch.zeros(d))
        self.row = nn.Parameter(torch.randn(GRID, d))
        self.column = nn.Parameter(torch.zeros(GRID, d))

    def features(self, images: Tensor) -> Tensor:
        """Return the features of all patches, row by row.

        Args:
            images: ``[N, 3, H, W]`` in [0, 1], H and W multiples of 4.

        Returns:
            A tensor ``[N, 16, D]``.
        """
        encoder = self.encoder
        x = encoder.normalize(cut(images))
        x = F.relu(encoder.bn1(encoder.conv1(x)))
        x = encoder.layer3(encoder.layer2(encoder.layer1(x)))
        features: Tensor = x.mean((2, 3)).view(len(images), PATCHES, -1)
        return features

    def forward(self, images: Tensor, order: Tensor) -> Tensor:
        """Return how well each hidden patch fits each of the places to fill.

        Args:
            images: ``[N, 3, H, W]`` in [0, 1], H and W multiples of 4.
            order: a permutation of the numbers of the 16 patches: first the 4 to hide, then the context.

        Returns:
            Logits ``[N, 4, 4]``: for each place, that of patch ``order[i]``, one for each hidden patch.
        """
        features = self.features(images)[:, order]
        hidden, context = features[:, :TARGETS], features[:, TARGETS:]
        token = self.token.expand(len(images), 1, -1)
        summary = self.pooling(torch.cat([token, context], 1))[:, :1]
        places = order[:TARGETS]
        query = summary + self.row[places // GRID] + self.column[places % GRID]
        # A matrix product would run in half precision under autocast, and these sums can exceed its range.
        logits: Tensor = (query[:, :, None] * hidden[:, None]).sum(3)
        return logits


class SelfieLearner(nn.Module):
    """A training step of adversarial Selfie, the baseline of Chen et al. to which ACL is compared.

    Images are shifted by up to two pixels and cut into 4 x 4 patches. One permutation per batch chooses four of them to
    hide. An attack on the pixels makes it hard to infer their places from the other twelve patches; the loss is the
    mean of the cross-entropies of clean and of attacked images. Afterwards the first three stages of ``encoder`` are
    pre-trained; its last stage and its classifier have not changed.

    Differences from the code of Chen et al.:

    - the attack sees the network in eval mode, not in train mode, as every attack in this folder does;
    - the cross-entropy is that of one softmax; theirs takes a softmax of a softmax, which bounds the loss;
    - the loss is the mean over the four places, not their sum;
    - the patches go through the first three stages of a ResNet-18, not of a ResNet-50, so that D is 256 instead of
      1024, and the transformer is as much narrower (16 heads, 2 D hidden units) and has 3 layers instead of 13.

    Their recipe: 200 epochs in batches of 128; SGD with Nesterov momentum 0.9, weight decay 1e-4 and a rate that falls
    from 0.1 to 0 on a cosine; PGD with 10 steps of 2/255 in a ball of 8/255.

    Args:
        encoder: the ResNet to pre-train.
        attack: attack that perturbs the images.
        layers: number of transformer layers, at least 1.
        augment: ``augment(images)`` to images in [0, 1], by default a shift of up to two pixels.

    Raises:
        ValueError: ``layers`` < 1.
        TypeError: ``encoder`` is not a ResNet.

    References:
        Trinh et al., "Selfie: Self-supervised Pretraining for Image Embedding", 2019.

        Chen et al., "Adversarial Robustness: From Self-Supervised Pre-Training to Fine-Tuning", CVPR 2020.
    """

    def __init__(
        self,
        encoder: ResNet,
        *,
        attack: PGDAttack,
        layers: int = 3,
        augment: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if not isinstance(encoder, ResNet):
            got = type(encoder).__name__
            raise TypeError(f"SelfieLearner: expected encoder to be a ResNet, got {got}. Pass resnet18().")
        if layers < 1:
            raise ValueError(f"SelfieLearner: expected layers to be at least 1, got {layers}. 3 is the default.")
        super().__init__()
        self.model = Jigsaw(encoder, layers=layers)
        self.attack = attack
        self.augment = CropFlip(padding=2, flip=0.0) if augment is None else augment

    def forward(self, images: Tensor) -> ACLOutput:
        """Hide patches, attack the images, and return the loss.

        Args:
            images: ``[N, 3, H, W]``, uint8 or floats in [0, 1], H and W multiples of 4.

        Returns:
            The loss, and for clean and attacked images its parts and the fraction of patches assigned to their places:
            ``"loss_clean"``, ``"accuracy_clean"``, ``"loss_adv"``, ``"accuracy_adv"``.

        Raises:
            ValueError: images of another shape.
        """
        if images.dim() != 4 or images.shape[2] % GRID or images.shape[3] % GRID:
            expected, got = "images of shape [N, 3, H, W] with H and W multiples of 4", list(images.shape)
            raise ValueError(f"SelfieLearner: expected {expected}, got {got}. Crop or resize them.")
        clean = self.augment(images)
        order = torch.randperm(PATCHES, device=images.device)
        with under_attack(self.model):
            adv = self.attack(lambda x: self.judge(x, order)[0], clean)
        terms = {}
        for name, x in (("clean", clean), ("adv", adv)):
            terms[f"loss_{name}"], terms[f"accuracy_{name}"] = self.judge(x, order)
        loss = (terms["loss_clean"] + terms["loss_adv"]) / 2
        return ACLOutput(loss, {name: term.detach() for name, term in terms.items()})

    def judge(self, images: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """Return the cross-entropy and the fraction of hidden patches that are assigned to their places."""
        logits = self.model(images, order).flatten(0, 1)
        places = torch.arange(TARGETS, device=images.device).repeat(len(images))
        return F.cross_entropy(logits, places), (logits.argmax(1) == places).float().mean()

    def extra_repr(self) -> str:
        """Show the settings that must match when a run is resumed."""
        return f"{self.attack!r}, {self.augment!r}, layers={len(self.model.pooling)}"

    @property
    def _ddp_params_and_buffers_to_ignore(self) -> list[str]:
        """Parameters that get no gradients, under the name that DDP looks up."""
        idle = ("model.encoder.layer4.", "model.encoder.fc.")
        return [name for name, _ in self.named_parameters() if name.startswith(idle)]


def cut(images: Tensor) -> Tensor:
    """Cut images ``[N, C, H, W]`` into 4 x 4 patches ``[16 N, C, H / 4, W / 4]``, row by row, image by image."""
    n, channels, height, width = images.shape
    patches = images.reshape(n, channels, GRID, height // GRID, GRID, width // GRID)
    return patches.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
