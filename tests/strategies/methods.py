"""Every strategy without labels on tiny networks, and embeddings with known losses."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torchvision.models import VisionTransformer

from advcontrast import ACLTrainer, NTXentLoss, PGDAttack, convert_to_dual_bn
from advcontrast.strategies import (
    AMOC,
    CFAMC,
    DAQSDP,
    FARE,
    TARO,
    AdaptiveGamma,
    AdvCL,
    AInfoNCE,
    DeACL,
    Distillation,
    DynACL,
    Invariance,
    ProFeAT,
    RoCL,
    SimCLIP,
    TeCoA,
)
from tests.strategies.networks import network

#: An attack without randomness, so that two processes can repeat what one does.
FEW = PGDAttack(steps=2, random_start=False)


class Method(NamedTuple):
    """A strategy: ``make(norm, **settings)`` on ``network(norm)`` in float64, and what it takes and attacks."""

    make: Callable[..., nn.Module]
    views: int = 2
    targets: Callable[[int], torch.Tensor] | None = None
    attacked: tuple[str, ...] = ("adv",)


def student(norm, **settings):
    return network(norm, dtype=torch.float64, **settings)


def teacher():
    return network("single", dtype=torch.float64, seed=1).eval()


def acl(norm, **settings):
    return ACLTrainer(student(norm), **{"loss": NTXentLoss(gather=True), "attack": FEW, **settings})


def air(norm, **settings):
    """Return ACL with the terms of AIR, which is called with images."""

    def pair(x, generator=None):
        return x, x.flip(3)

    return acl(norm, **{"augment": pair, "terms": [Invariance()], **settings})


def taught(norm, **settings):
    return acl(norm, **{"terms": [Distillation(teacher())], **settings})


def advcl(norm, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(4)
        heads = [nn.Linear(5, classes).double() for classes in (2, 3)]
    return AdvCL(student(norm, branches=("clean", "adv", "adv_ce")), heads, **{"attack": FEW, **settings})


def ainfonce(norm, **settings):
    return AInfoNCE(student(norm), **{"attack": FEW, **settings})


def adaptive(norm, **settings):
    return ainfonce(norm, gamma=AdaptiveGamma(after=1, nearest=0.0), **settings)


def hard_negatives(norm, **settings):
    return ainfonce(norm, gamma=lambda step: step / 9, hard_negatives=(0.1, 1), **settings)


def amoc(norm, **settings):
    return AMOC(student(norm), **{"queue": 12, "decay": 0.9, "attack": FEW, **settings})


def cfamc(norm, **settings):
    return CFAMC(student(norm), **{"attack": FEW, **settings})


def daqsdp(norm, **settings):
    return DAQSDP(student(norm, branches=DAQSDP.branches), teacher(), **{"attack": FEW, **settings})


def perturbed(norm, **settings):
    return daqsdp(norm, gamma=lambda step: 0.1 * (step > 0), **settings)


def deacl(norm, **settings):
    return DeACL(student(norm), teacher(), **{"attack": FEW, **settings})


def dynacl(norm, **settings):
    return DynACL(student(norm), **{"steps": 4, "every": 2, "attack": FEW, **settings})


def fare(norm, **settings):
    return FARE(student(norm), teacher(), **{"attack": FEW, **settings})


def vit(norm, seed=0):
    """Return a transformer for images ``[N, 3, 6, 6]`` with layer norms, dual ones for ``"dual"``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 8, "num_classes": 5}
        model = VisionTransformer(image_size=6, patch_size=3, **sizes).double()
        nn.init.normal_(model.heads.head.weight, std=0.1)  # zeros otherwise
    return convert_to_dual_bn(model, norms=nn.LayerNorm) if norm == "dual" else model


def fare_vit(norm, **settings):
    return FARE(vit(norm), vit(None, seed=1).eval(), **{"clean": 1.0, "drift": 0.01, "attack": FEW, **settings})


def profeat(norm, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        projector = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 4)).double()
    return ProFeAT(student(norm), projector, teacher(), **{"attack": FEW, **settings})


def rocl(norm, **settings):
    return RoCL(student(norm), **{"attack": FEW, **settings})


def taro(norm, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        predictor = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 5)).double()
    return TARO(student(norm), predictor, **{"attack": FEW, **settings})


def simclip(norm, **settings):
    return SimCLIP(student(norm), teacher(), **{"attack": FEW, **settings})


def simclip_vit(norm, **settings):
    return SimCLIP(vit(norm), vit(None, seed=1).eval(), **{"attack": FEW, **settings})


def tecoa(norm, **settings):
    prototypes = torch.cos(torch.arange(15.0, dtype=torch.float64)).view(3, 5)
    return TeCoA(student(norm), prototypes, **{"attack": FEW, **settings})


def tecoa_vit(norm, **settings):
    prototypes = torch.cos(torch.arange(15.0, dtype=torch.float64)).view(3, 5)
    return TeCoA(vit(norm), prototypes, **{"attack": FEW, **settings})


METHODS = {
    "ACL": Method(acl),
    "ACL with a schedule": Method(lambda norm, **settings: acl(norm, alpha=lambda step: 0.5 + step, **settings)),
    "ACL with a teacher": Method(
        lambda norm, **settings: acl(norm, **{"terms": [Distillation(teacher())], **settings})
    ),
    "AIR": Method(air, views=1),
    "AdvCL": Method(advcl, 3, lambda n: torch.arange(2 * n).view(n, 2) % 2, attacked=("adv", "adv_ce")),
    "AInfoNCE": Method(ainfonce, views=3),
    "AInfoNCE, adaptive": Method(adaptive, views=3),
    "AInfoNCE, hard negatives": Method(hard_negatives, views=3),
    "AMOC": Method(amoc),
    "AMOC released": Method(lambda norm, **settings: amoc(norm, released=True, **settings)),
    "CFAMC": Method(cfamc, views=3),
    "DAQSDP": Method(daqsdp, attacked=("adv", "strong_adv")),
    "DAQSDP, perturbed weights": Method(perturbed, attacked=("adv", "strong_adv")),
    "DeACL": Method(deacl, views=1),
    "DynACL": Method(dynacl),
    "FARE": Method(fare, views=1),
    "FARE on a transformer": Method(fare_vit, views=1),
    "ProFeAT": Method(profeat),
    "RoCL": Method(rocl),
    "RoCL released": Method(lambda norm, **settings: rocl(norm, released=True, **settings)),
    "SimCLIP": Method(simclip, views=1),
    "SimCLIP on a transformer": Method(simclip_vit, views=1),
    "TARO": Method(taro),
    "TARO released": Method(lambda norm, **settings: taro(norm, released=True, **settings)),
    "TeCoA": Method(tecoa, views=1, targets=lambda n: torch.arange(n) % 3),
    "TeCoA on a transformer": Method(tecoa_vit, views=1, targets=lambda n: torch.arange(n) % 3),
}

#: Methods and their arguments that may be functions of the training step.
WEIGHTS = [("ACL", "alpha"), ("AdvCL", "weight"), ("AInfoNCE", "gamma"), ("AInfoNCE", "weight"), ("DAQSDP", "robust")]
WEIGHTS += [("DAQSDP", "gamma"), ("DeACL", "robust"), ("FARE", "clean"), ("ProFeAT", "beta"), ("RoCL", "extra")]


def batch(method, n=4, seed=0):
    """Return random views for a method, with its targets."""
    generator = torch.Generator().manual_seed(seed)
    views = torch.rand(method.views, n, 3, 6, 6, generator=generator, dtype=torch.float64).unbind()
    return views if method.targets is None else (*views, method.targets(n))


# Embeddings of the published oracles --------------------------------------------------------------------------------


def known(v):
    """Return the embeddings Z(v)[i, d] = cos(0.7 i + 1.3 d + 0.5 v + 0.4 i d) as images ``[4, 3, 1, 1]``, a leaf."""
    i, d = torch.arange(4, dtype=torch.float64)[:, None], torch.arange(3, dtype=torch.float64)
    return torch.cos(0.7 * i + 1.3 * d + 0.5 * v + 0.4 * i * d).view(4, 3, 1, 1).requires_grad_()


class Identity(nn.Module):
    """A network whose embeddings are its images."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x):
        return x.flatten(1) * self.weight


class Constant(nn.Module):
    """A teacher that returns known embeddings, whatever it is given."""

    def __init__(self, *embeddings):
        super().__init__()
        self.embeddings = embeddings
        self.calls = 0
        self.eval()

    def forward(self, x):
        self.calls += 1
        return self.embeddings[(self.calls - 1) % len(self.embeddings)].detach().flatten(1)


class Given:
    """An attack that returns known images, one after the other, and has called its objective once."""

    def __init__(self, *images):
        self.images = list(images)
        self.values = []

    def __call__(self, objective, x, generator=None):
        self.values.append(objective(x).detach())
        count = len(x) // 4
        found, self.images = self.images[:count], self.images[count:]
        return torch.cat(found)


def norms(*images):
    """Return the norms of the gradients of images."""
    return [image.grad.norm().item() if image.grad is not None else 0.0 for image in images]
