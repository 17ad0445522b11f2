"""Checks of a network whose norms get two branches.

Each check gets a function that copies the network, one that converts a copy, and an input; it raises if it fails.
"""

from __future__ import annotations

import copy
import math
import resource
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from advcontrast import ACLTrainer, PGDAttack, bn_branch, export_branch
from advcontrast.attacks import under_attack
from advcontrast.norm import DualNorm
from advcontrast.surgery import branch_parameters
from benchmarks.evidence.backbones.parts import (
    FirstOutput,
    MismatchError,
    anatomy,
    built,
    equal,
    expect,
    flags,
    input_for,
    one_line,
    out_of_memory,
    outputs,
    state,
    tensors,
)
from benchmarks.evidence.backbones.zoo import Architecture, input_shapes

Branch = Literal["clean", "adv"]
Mode = Literal["S2S", "A2A", "A2S", "DS"]
BRANCHES: tuple[Branch, ...] = ("clean", "adv")
OTHER: dict[Branch, Branch] = {"clean": "adv", "adv": "clean"}
USED: dict[Mode, tuple[Branch, ...]] = {"S2S": ("clean",), "A2A": ("adv",), "A2S": BRANCHES, "DS": BRANCHES}
Make = Callable[[], nn.Module]
Check = Callable[[Make, Make, Tensor], None]


def equals_plain(plain: Make, dual: Make, x: Tensor, *, branch: Branch) -> None:
    """Outputs and statistics of a branch, converted and exported, are those of the network; the other is idle."""
    expected, found = plain(), dual()
    if not any(isinstance(module, DualNorm) for module in found.modules()):
        raise MismatchError("nothing was converted")
    with bn_branch(found, branch):
        expect(outputs(expected, x), outputs(found, x), "outputs")
    exported, idle = export_branch(found, branch), export_branch(found, OTHER[branch])
    expect(state(expected), state(exported), "state dict of export_branch")
    if anatomy(exported) != anatomy(expected):
        raise MismatchError("export_branch: modules of other names or classes")
    norms = tuple(f"{name}." for name, module in found.named_modules() if isinstance(module, DualNorm))
    rested = [{k: v for k, v in state(model).items() if k.startswith(norms)} for model in (plain(), idle)]
    expect(rested[0], rested[1], "idle branch")
    with bn_branch(found, branch):
        expect(outputs(found, x), outputs(exported, x), "outputs of export_branch")


def branches_apart(_plain: Make, dual: Make, x: Tensor) -> None:
    """Parameters of the adversarial branch affect its outputs, and those of no other branch."""
    model = dual()
    before = outputs(model, x, (False,))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in branch_parameters(model, "adv"):
            parameter.mul_(1 + torch.rand(parameter.shape, generator=generator))
    expect(before, outputs(model, x, (False,)), "clean outputs after a change of the adv branch")
    with bn_branch(model, "adv"):
        if all(map(equal, before, outputs(model, x, (False,)))):
            raise MismatchError("the adv branch has no influence on the outputs")


def state_dicts_load(plain: Make, dual: Make, x: Tensor) -> None:
    """A state dict restores another converted network, and one of the plain network fills both branches."""
    model, fresh = dual(), dual()
    with torch.no_grad():
        for value in model.state_dict().values():
            value.mul_(1.5) if value.is_floating_point() else None
    fresh.load_state_dict(model.state_dict())
    expect(state(model), state(fresh), "state dict after a round trip")
    for branch in BRANCHES:
        with bn_branch(model, branch), bn_branch(fresh, branch):
            expect(outputs(model, x, (False,)), outputs(fresh, x, (False,)), f"{branch} outputs after a round trip")
    fresh.load_state_dict(plain().state_dict(), strict=True)
    for branch in BRANCHES:
        expect(state(plain()), state(export_branch(fresh, branch)), f"{branch} branch of a plain state dict")


def attack_leaves_no_trace(_plain: Make, dual: Make, x: Tensor) -> None:
    """A step of PGD moves images within the ball, and nothing else."""
    model = FirstOutput(dual()).train()
    leaf = next(module for module in model.modules() if not list(module.children()))
    leaf.eval()  # a mode unlike the others, which must be restored too
    before, found = state(model), flags(model)
    attack = PGDAttack(steps=1, random_start=False)
    with under_attack(model), through(model, "adv"):
        moved = attack(lambda images: model(images).logsumexp(1), x)
    expect(before, state(model), "state dict after the attack")
    if found != flags(model):
        raise MismatchError("the attack changed a mode or flag, or left a gradient")
    if equal(moved, x) or float((moved - x).abs().max()) > attack.eps:
        raise MismatchError("the attack moved nothing, or left the ball")


def step_trains(plain: Make, dual: Make, x: Tensor, *, mode: Mode) -> None:
    """A step has a finite loss and gradients in the branches of its mode, and the next attack sees the new weights."""
    reference, model = plain(), dual()
    first = FirstOutput(reference.train())(x)
    first.sum().backward()
    learning = {name for name, parameter in reference.named_parameters() if parameter.grad is not None}
    net = nn.Sequential(FirstOutput(model), nn.Linear(first.shape[1], 8))
    trainer = ACLTrainer(net, attack=PGDAttack(steps=1), mode=mode).train()
    optimizer = torch.optim.SGD(trainer.parameters(), lr=0.01)
    loss = trainer(x, x.flip(-1)).loss
    if not math.isfinite(loss.item()):
        raise MismatchError(f"a loss of {loss.item()}")
    loss.backward()
    for branch in USED[mode] if is_dual(model) else ():
        if not any(p.grad is not None and bool(p.grad.any()) for p in branch_parameters(model, branch)):
            raise MismatchError(f"no gradients in the {branch} branch")
        for name, norm in model.named_modules():
            if isinstance(norm, DualNorm):
                for parameter, value in getattr(norm, branch).named_parameters(name):
                    if (parameter in learning) != (value.grad is not None):
                        raise MismatchError(
                            f"a gradient of {parameter} in one of plain network and {branch} branch only"
                        )
    before = state(net)
    optimizer.step()
    if all(map(equal, before.values(), state(net).values())):
        raise MismatchError("the step changed nothing")
    fresh = dual()
    fresh.load_state_dict(model.state_dict())
    expected = outputs(fresh, x, (False,))
    # A cache that the network keeps of its weights would show here.
    with under_attack(model), torch.no_grad():
        expect(expected, list(tensors(model(x))), "what the next attack sees, and a copy that was loaded")
    copy.deepcopy(model)


def through(model: nn.Module, branch: Branch) -> AbstractContextManager[None]:
    """Use a branch, or the only set of norms."""
    return bn_branch(model, branch) if is_dual(model) else nullcontext()


def is_dual(model: nn.Module) -> bool:
    """Return whether a network was converted."""
    return any(isinstance(module, DualNorm) for module in model.modules())


#: Checks of a converted network, and of an unconverted one.
CONVERTED: dict[str, Check] = {
    "clean branch": partial(equals_plain, branch="clean"),
    "adv branch": partial(equals_plain, branch="adv"),
    "branches apart": branches_apart,
    "state dicts": state_dicts_load,
    "PGD step": attack_leaves_no_trace,
    "DS step": partial(step_trains, mode="DS"),
}
UNCONVERTED: dict[str, Check] = {
    "PGD step, unconverted": attack_leaves_no_trace,
    "S2S step, unconverted": partial(step_trains, mode="S2S"),
    "A2A step, unconverted": partial(step_trains, mode="A2A"),
    "A2S step, unconverted": partial(step_trains, mode="A2S"),
}


def examine(
    architecture: Architecture,
    convert: Callable[[nn.Module], nn.Module],
    converted: Mapping[str, Check],
    unconverted: Mapping[str, Check],
) -> dict[str, Any]:
    """Make the checks of one architecture.

    Returns:
        The status (``"converted"``, ``"failed"``, or ``"unfit"`` if the network itself does not work), problems,
        warnings of the conversion, shape of an input, seconds of processor time, and the largest memory in MB.
    """
    started = time.process_time()
    problems: list[str] = []
    remarks: list[str] = []
    try:
        original = built(architecture.build, seed=0)
        x = input_for(copy.deepcopy(original), input_shapes(architecture, original))
        plain = partial(copy.deepcopy, original)
        expect(outputs(plain(), x), outputs(plain(), x), "two copies of the network")
    except Exception as error:
        return {"status": "unfit", "problems": [_problem(error)], "remarks": []}

    def dual() -> nn.Module:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model = convert(plain())
        remarks.extend(text for warning in caught if (text := one_line(warning.message)) not in remarks)
        return model

    for make, checks in ((dual, converted), (plain, unconverted)):
        for name, check in checks.items():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    check(plain, make, x)
                except Exception as error:
                    problems.append(f"{name}: {_problem(error)}")
    return {
        "status": "failed" if problems else "converted",
        "problems": problems,
        "remarks": remarks,
        "shape": list(x.shape[1:]),
        "seconds": round(time.process_time() - started, 1),
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def _problem(error: Exception) -> str:
    """Return an error on one line; raise it if memory was exhausted, which is not a fault of the network."""
    if out_of_memory(error):
        raise error
    return f"{type(error).__name__}: {one_line(error)}"
