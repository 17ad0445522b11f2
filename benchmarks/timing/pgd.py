"""PGD-10 on the cross-entropy, in an L-infinity ball of 8/255 and in an L2 ball of 0.5, compared with other libraries.

All attack the same untrained network in eval mode, from a random start, on random images labelled with the network's
own predictions, so that no image is misclassified before the attack. Before they are timed, all run once without a
random start and without TF32. Agreement in the L-infinity ball is the share of pixels that an attack moved as the first
one did, to within half a step; in the L2 ball it is the largest distance between two results, in radii. A gradient near
zero changes its sign with the order of sums, so that some steps differ. An agreement below 98 %, or a distance above
5 %, raises an error; ART is closest to these limits, as it projects onto the bounds before the ball. APGD chooses its
own 10 steps, so that only its loss can be compared.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advcontrast._memory_format import choose_memory_format
from advcontrast._modes import without_tf32
from advcontrast.attacks import ClassificationObjective, PGDAttack, under_attack
from advcontrast.models import resnet18
from benchmarks.timing.sidebyside import Candidate, Settings, Table

EPS = {"linf": 8 / 255, "l2": 0.5}
STEP = {"linf": 2 / 255, "l2": 0.1}
TITLES = {"linf": "in an L-infinity ball of 8/255, steps of 2/255", "l2": "in an L2 ball of 0.5, steps of 0.1"}
Attack = Callable[[Tensor, Tensor, bool], Tensor]


def tables(settings: Settings) -> Iterator[Table]:
    """Yield a table for each norm."""
    for norm in ("linf", "l2"):
        yield table(norm, settings)


def table(norm: str, settings: Settings) -> Table:
    """Time the attacks of one norm on a network that costs little and on a ResNet-18."""
    steps = 2 if settings.quick else 10
    width = 4 if settings.quick else 16 if settings.device.type == "cpu" else 64
    batch = 8 if settings.quick else 128
    about = (
        "Random images of 3 x 32 x 32. Speed is relative to the first row of a setting. Agreement is that of a run "
        "without random start with the first row; the loss is its mean cross-entropy, which every attack maximises."
    )
    result = Table(f"PGD-{steps} {TITLES[norm]}", about, "images")
    for name, make in (("small CNN", small_cnn), (f"ResNet-18 x {width}", lambda: resnet18(width=width))):
        torch.manual_seed(0)
        model = make().to(settings.device).eval()
        x = torch.rand(batch, 3, 32, 32, device=settings.device)
        with torch.no_grad():
            y = model(x).argmax(1)
        attacks = peers(result, norm, steps, model) | ours(norm, steps, model, compiled=not settings.quick)
        agreement = agreements(attacks, norm, model, x, y)
        candidates = [Candidate(each, partial(attacks[each], x, y, True), agreement[each]) for each in attacks]
        result.race(candidates, settings, items=batch, setting=f"{name}, {batch} images")
    result.skipped = list(dict.fromkeys(result.skipped))
    return result


def small_cnn() -> nn.Module:
    """Return a network that is cheap enough for the attack's own work to show."""
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1024, 10))


def ours(norm: str, steps: int, model: nn.Module, *, compiled: bool) -> dict[str, Attack]:
    """Return our attack on a network as it is, in another memory format, and compiled."""

    def on(model: nn.Module, layout: torch.memory_format = torch.contiguous_format) -> Attack:
        def run(x: Tensor, y: Tensor, random: bool) -> Tensor:
            attack = PGDAttack(eps=EPS[norm], step_size=STEP[norm], steps=steps, norm=norm, random_start=random)
            x = x.contiguous(memory_format=layout)
            with under_attack(model):
                return attack(ClassificationObjective(model, y), x)

        return run

    other = copy.deepcopy(model)
    found = {"advcontrast": on(model), "advcontrast, channels_last": on(other, choose_memory_format(other))}
    if compiled:
        found["advcontrast, compiled"] = on(torch.compile(model, dynamic=False))
    return found


def peers(table: Table, norm: str, steps: int, model: nn.Module) -> dict[str, Attack]:
    """Return the attacks of the other libraries that are installed."""
    found: dict[str, tuple[ModuleType | None, Callable[..., Attack]]] = {
        "torchattacks PGD": (table.peer("torchattacks", "torchattacks"), torchattacks_pgd),
        "foolbox PGD": (table.peer("foolbox", "foolbox"), foolbox_pgd),
        "ART PGD": (table.peer("art.attacks.evasion", "adversarial-robustness-toolbox"), art_pgd),
        "pyautoattack APGD-CE": (table.peer("pyautoattack.autopgd_base", "pyautoattack"), apgd),
    }
    return {name: make(module, norm, steps, model) for name, (module, make) in found.items() if module is not None}


def torchattacks_pgd(torchattacks: ModuleType, norm: str, steps: int, model: nn.Module) -> Attack:
    """Return ``PGD`` or ``PGDL2``."""
    kind = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm]
    settings = {"eps": EPS[norm], "alpha": STEP[norm], "steps": steps}
    return lambda x, y, random: kind(model, random_start=random, **settings)(x, y)


def foolbox_pgd(foolbox: ModuleType, norm: str, steps: int, model: nn.Module) -> Attack:
    """Return ``LinfPGD`` or ``L2PGD``, of whose results the one in the ball is used."""
    kind = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=next(model.parameters()).device)

    def run(x: Tensor, y: Tensor, random: bool) -> Tensor:
        attack = kind(abs_stepsize=STEP[norm], steps=steps, random_start=random)
        return attack(wrapped, x, y, epsilons=EPS[norm])[1]

    return run


def art_pgd(evasion: ModuleType, norm: str, steps: int, model: nn.Module) -> Attack:
    """Return ``ProjectedGradientDescentPyTorch``, which takes and returns arrays."""
    from art.estimators.classification import PyTorchClassifier

    device = next(model.parameters()).device
    kind = "cpu" if device.type == "cpu" else "gpu"
    shape = {"input_shape": (3, 32, 32), "nb_classes": 10, "clip_values": (0, 1)}
    classifier = PyTorchClassifier(model, loss=nn.CrossEntropyLoss(), device_type=kind, **shape)
    settings = {"norm": {"linf": "inf", "l2": 2}[norm], "eps": EPS[norm], "eps_step": STEP[norm], "max_iter": steps}

    def run(x: Tensor, y: Tensor, random: bool) -> Tensor:
        start = {"num_random_init": int(random), "batch_size": len(x), "verbose": False}
        attack = evasion.ProjectedGradientDescentPyTorch(classifier, **settings, **start)
        return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(device)

    return run


def apgd(autopgd: ModuleType, norm: str, steps: int, model: nn.Module) -> Attack:
    """Return ``APGDAttack`` with the cross-entropy; it always starts at random."""
    device = str(next(model.parameters()).device)
    attack = autopgd.APGDAttack(model, n_iter=steps, norm=norm.capitalize(), eps=EPS[norm], device=device)

    def run(x: Tensor, y: Tensor, random: bool) -> Tensor:  # noqa: ARG001
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it passes arguments to PyTorch that are deprecated
            return attack.perturb(x, y)

    return run


@without_tf32()
def agreements(attacks: dict[str, Attack], norm: str, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, str]:
    """Return the difference of each attack without random start to the first one, as text."""
    found = {name: attack(x, y, False) for name, attack in attacks.items()}
    first = next(iter(found.values()))
    words = {}
    for name, adv in found.items():
        with torch.no_grad():
            words[name] = f"loss {F.cross_entropy(model(adv), y).item():.3f}"
        if name.startswith("pyautoattack"):
            continue
        if norm == "linf":
            equal = ((adv - first).abs() < STEP[norm] / 2).float().mean().item()
            fine, word = equal > 0.98, f"{100 * equal:.2f} % of pixels"
        else:
            apart = (adv - first).flatten(1).norm(dim=1).max().item() / EPS[norm]
            fine, word = apart < 0.05, f"{apart:.1e} radii"
        words[name] = f"{word}, {words[name]}"
        if not fine:
            raise RuntimeError(f"{name} has computed something else: {words[name]}")
    return words
