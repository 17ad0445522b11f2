"""The attacks of the package ``pyautoattack``, run one by one, and their findings judged."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..._checks import complaint
from ..._types import Norm

_OWNER = "autoattack"
_SLACK = 1e-6  # what the float32 arithmetic of the attacks may exceed the ball by

SUITES = {
    "standard": ("apgd-ce", "apgd-t", "fab-t", "square"),
    "plus": ("apgd-ce", "apgd-dlr", "fab", "square", "apgd-t", "fab-t"),
    "rand": ("apgd-ce", "apgd-dlr"),
}


def pyautoattack() -> ModuleType:
    """Import the package, which is an extra."""
    try:
        package = importlib.import_module("pyautoattack")
    except ImportError as error:
        remedy = "Install it with pip install pyautoattack"
        raise ImportError(complaint(_OWNER, "pyautoattack to be installed", str(error), remedy)) from error
    return package


@dataclass(frozen=True)
class Suite:
    """The attacks of ``pyautoattack`` on one model, which is in eval mode and differentiable with respect to images."""

    package: ModuleType
    model: nn.Module
    eps: float
    norm: Norm
    version: str
    seed: int

    def attacks(self, classes: int) -> tuple[str, ...]:
        """Return the names of the attacks that are defined for so many classes."""
        names = SUITES[self.version]
        if classes < 4:
            names = tuple("apgd-dlr" if name == "apgd-t" else name for name in names)
        if classes < 3:
            names = tuple(name for name in names if name != "apgd-dlr")
        return tuple(dict.fromkeys(names))

    def fooled(self, attack: str, classes: int, x: Tensor, y: Tensor, where: str) -> Tensor:
        """Run one attack on images that the model gets right, and return which of them it gets wrong now."""
        try:
            adv = self._perturb(attack, classes, x, y)
        except Exception as error:
            expected = f"{attack} to run on {len(x)} images of {where}"
            remedy = "If a smaller batch does not help, look at the error above, of the model or of pyautoattack"
            raise RuntimeError(complaint(_OWNER, expected, f"{type(error).__name__}: {error}", remedy)) from error
        inside = within(adv, x, self.eps, self.norm).to(x.device)
        return misclassified(self._logits(torch.where(inside[:, None, None, None], adv, x)), y)

    def _perturb(self, attack: str, classes: int, x: Tensor, y: Tensor) -> Tensor:
        height, width = x.shape[2:]
        margin = _margin(height, width) if attack == "square" and self.norm == "l2" else 0
        # A new one each time: they keep targets, sizes and seeds from one call to the next.
        attacks: Any = self.package.AutoAttack(
            lambda framed: self._logits(framed[..., :height, :width]),
            norm={"linf": "Linf", "l2": "L2"}[self.norm],
            eps=self.eps,
            seed=self.seed,
            version=self.version,
            device=x.device,
        )
        attacks.apgd_targeted.n_target_classes = attacks.fab.n_target_classes = min(9, classes - 1)
        if attack == "fab-t":
            attacks.fab.targeted, attacks.fab.n_restarts = True, 1
        attacks.apgd.loss = attack.removeprefix("apgd-")
        runner = {"apgd-t": attacks.apgd_targeted, "fab": attacks.fab, "fab-t": attacks.fab, "square": attacks.square}
        # They take views of gradients, which fails in other memory formats than the contiguous one.
        framed = F.pad(x.contiguous(), (0, margin, 0, margin))
        adv: Tensor = runner.get(attack, attacks.apgd).perturb(framed, y)
        return adv.detach()[..., :height, :width]

    def _logits(self, x: Tensor) -> Tensor:
        """Return logits that can be written into, as Square does; the model's own may be a view of the images."""
        logits: Tensor = self.model(x)
        return logits.to(torch.float32, copy=True)


def _margin(height: int, width: int) -> int:
    """Return how many rows and columns Square needs at the end of images in order to cover them with its first tiles.

    In l2 it puts tiles of a fifth of the height side by side, from an offset that is meant for five of them. Where six
    or more fit, as in 14 pixels, the last one sticks out and the attack fails. The model does not see the margin.
    """
    margin = max(0, 5 - height)
    while True:
        tile, offset = (height + margin) // 5, (height + margin) % 5 // 2
        if tile == 1 or all(size % tile >= offset for size in (height + margin, width + margin)):
            return margin
        margin += 1


def within(adv: Tensor, x: Tensor, eps: float, norm: Norm) -> Tensor:
    """Return which perturbed images lie in the ball and in [0, 1], up to rounding; NaN lies nowhere. On the CPU."""
    adv, x = adv.cpu().double().flatten(1), x.cpu().double().flatten(1)
    delta = adv - x
    size = delta.abs().amax(1) if norm == "linf" else delta.norm(dim=1)
    return (size <= eps + _SLACK * max(1.0, eps)) & (adv.amin(1) >= -_SLACK) & (adv.amax(1) <= 1 + _SLACK)


def misclassified(logits: Tensor, y: Tensor) -> Tensor:
    """Return which images get another class than their own, once the logits are finite."""
    bad = int((~logits.isfinite().all(1)).sum())
    if bad:
        remedy = "Look for a division by zero in the model"
        raise ValueError(complaint(_OWNER, "finite logits", f"non-finite ones for {bad} of {len(y)} images", remedy))
    return logits.argmax(1) != y
