"""Small networks with batch norms of every kind, for the promises of dual batch norms."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

LAYOUTS = ("chain", "nested", "twice", "shared", "tied", "root")


class Fused:
    """Mixed into a batch norm: an activation that a rebuilt norm would lose."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class Fused1d(Fused, nn.BatchNorm1d):
    pass


class Fused2d(Fused, nn.BatchNorm2d):
    pass


class Fused3d(Fused, nn.BatchNorm3d):
    pass


_NORMS = {1: (nn.BatchNorm1d, Fused1d), 2: (nn.BatchNorm2d, Fused2d), 3: (nn.BatchNorm3d, Fused3d)}
_MIXERS = {1: nn.Linear, 2: lambda i, o: nn.Conv2d(i, o, 1), 3: lambda i, o: nn.Conv3d(i, o, 1)}


@dataclass(frozen=True)
class Case:
    """A small network and its inputs, the same ones whenever they are asked for."""

    seed: int = 0
    dim: int = 2
    channels: int = 3
    layout: str = "chain"
    affine: bool = True
    track: bool = True
    momentum: float | None = 0.3
    eps: float = 1e-3
    fused: bool = False
    frozen: bool = False
    dtype: torch.dtype = torch.float32

    def model(self) -> nn.Module:
        """Return the plain network, in training mode but for the first norm if that is frozen."""
        norms = [self._norm(), self._norm()]
        mixers = [_MIXERS[self.dim](self.channels, self.channels) for _ in range(2)]
        if self.layout == "tied":
            norms[1].weight = norms[0].weight
        model = {
            "chain": lambda: nn.Sequential(mixers[0], norms[0], nn.Tanh(), mixers[1], norms[1]),
            "nested": lambda: nn.Sequential(mixers[0], nn.Sequential(norms[0], nn.Sequential(mixers[1], norms[1]))),
            "twice": lambda: nn.Sequential(mixers[0], norms[0], norms[0]),
            "shared": lambda: nn.Sequential(nn.Sequential(mixers[0], norms[0]), nn.Sequential(mixers[1], norms[0])),
            "tied": lambda: nn.Sequential(mixers[0], norms[0], mixers[1], norms[1]),
            "root": lambda: norms[0],
        }[self.layout]()
        generator = torch.Generator().manual_seed(self.seed)
        model.to(self.dtype)
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                drawn = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
                tensor.copy_(drawn + 0.5 if tensor.is_floating_point() else drawn * 9)
        if self.frozen:
            norms[0].eval().requires_grad_(False)
        return model

    def x(self, index: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + 1000 * (index + 1))
        shape = (4, self.channels, *(() if self.dim == 1 else [2] * self.dim))
        drawn = torch.randn(shape, generator=generator, dtype=torch.float64)
        return drawn.to(self.dtype)

    def _norm(self) -> nn.Module:
        kind = _NORMS[self.dim][self.fused]
        return kind(self.channels, self.eps, self.momentum, self.affine, self.track)
