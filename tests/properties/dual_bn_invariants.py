"""Invariants of dual batch norms, as functions of an implementation and a case that raise AssertionError."""

import copy
import io
import pickle
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from advcontrast import bn_branch, branch_parameters, checkpoint_context_fn, convert_to_dual_bn, export_branch
from advcontrast._modes import eval_mode, frozen
from advcontrast.norm import DualBatchNorm
from tests.properties.dual_bn_cases import Case

BRANCHES = ("clean", "adv")


@dataclass(frozen=True)
class Implementation:
    """The functions under test; a defect replaces one of them."""

    convert: Callable[[nn.Module], nn.Module] = convert_to_dual_bn
    branch: Callable[[nn.Module, str], Any] = bn_branch
    export: Callable[[nn.Module, str], nn.Module] = export_branch
    parameters: Callable[[nn.Module, str], list[nn.Parameter]] = branch_parameters
    context_fn: Callable[[nn.Module], Callable] = checkpoint_context_fn
    eval_mode: Callable[[nn.Module], Any] = eval_mode
    frozen: Callable[[nn.Module], Any] = frozen


def norms_of(model: nn.Module, kind: type = nn.modules.batchnorm._BatchNorm) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, kind)]


def state_of(model: nn.Module, branch: str) -> dict[str, Tensor]:
    """Return what a plain network would hold if it were this branch."""
    idle = {"clean": "adv", "adv": "clean"}[branch]
    parts = ((key.split("."), value) for key, value in model.state_dict().items())
    return {".".join(part for part in key if part != branch): value.clone() for key, value in parts if idle not in key}


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert list(actual) == list(expected)
    for key, value in expected.items():
        assert actual[key].dtype == value.dtype, key
        assert torch.equal(actual[key], value), key


def train(model: nn.Module, case: Case, steps: int = 2) -> list[Tensor]:
    """Take a few steps of SGD with momentum on whatever is not frozen; return the outputs."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1)), *model.parameters()], lr=0.1, momentum=0.9)
    outputs = []
    for step in range(steps):
        outputs.append(model(case.x(step)))
        if outputs[-1].requires_grad:
            optimizer.zero_grad()
            (outputs[-1] * case.x(step + 50)).sum().backward()
            optimizer.step()
    return outputs


def conversion_keeps_outputs(implementation: Implementation, case: Case) -> None:
    for branch in BRANCHES:
        for training in (True, False):
            plain, dual = case.model(), implementation.convert(case.model())
            if not training:
                plain.eval(), dual.eval()
            with implementation.branch(dual, branch):
                assert torch.equal(dual(case.x()), plain(case.x())), (branch, training)


def conversion_keeps_settings_in_both_branches(implementation: Implementation, case: Case) -> None:
    for plain, dual in zip(
        norms_of(case.model()), norms_of(implementation.convert(case.model()), DualBatchNorm), strict=True
    ):
        assert dual.training == plain.training
        for branch in BRANCHES:
            norm = getattr(dual, branch)
            assert type(norm) is type(plain)
            for name in ("num_features", "eps", "momentum", "affine", "track_running_stats", "training"):
                assert getattr(norm, name) == getattr(plain, name), (branch, name)
            flags = [(name, p.requires_grad, p.dtype) for name, p in norm.named_parameters()]
            assert flags == [(name, p.requires_grad, p.dtype) for name, p in plain.named_parameters()], branch
            assert_same(norm.state_dict(), plain.state_dict())


def conversion_keeps_the_original_parameters(implementation: Implementation, case: Case) -> None:
    plain = case.model()
    before = list(plain.parameters())
    dual = implementation.convert(plain)
    after = {id(parameter) for parameter in dual.parameters()}
    assert all(id(parameter) in after for parameter in before)
    adv = {id(parameter) for parameter in implementation.parameters(dual, "adv")}
    assert after == adv | {id(parameter) for parameter in before}
    assert not adv & {id(parameter) for parameter in before}


def every_norm_becomes_dual_once(implementation: Implementation, case: Case) -> None:
    plain, dual = case.model(), implementation.convert(case.model())
    owned = [id(norm) for module in norms_of(dual, DualBatchNorm) for norm in (module.clean, module.adv)]
    assert sorted(owned) == sorted(id(norm) for norm in norms_of(dual))
    assert len(norms_of(dual, DualBatchNorm)) == len(norms_of(plain))
    slots = [name for name, module in dual.named_modules(remove_duplicate=False) if isinstance(module, DualBatchNorm)]
    kind = nn.modules.batchnorm._BatchNorm
    assert slots == [name for name, module in plain.named_modules(remove_duplicate=False) if isinstance(module, kind)]


def converting_twice_changes_nothing(implementation: Implementation, case: Case) -> None:
    once = implementation.convert(case.model())
    before, modules = once.state_dict(), list(once.modules())
    twice = implementation.convert(once)
    assert list(map(id, twice.modules())) == list(map(id, modules))
    assert_same(twice.state_dict(), before)


def branches_share_no_tensor(implementation: Implementation, case: Case) -> None:
    for norm in norms_of(implementation.convert(case.model()), DualBatchNorm):
        clean = {tensor.data_ptr() for tensor in norm.clean.state_dict().values()}
        assert not clean & {tensor.data_ptr() for tensor in norm.adv.state_dict().values()}


def tied_parameters_stay_tied(implementation: Implementation, case: Case) -> None:
    plain, dual = case.model(), implementation.convert(case.model())
    own = {id(p) for norm in norms_of(plain) for p in norm.parameters()}
    for branch in BRANCHES:
        assert len({id(p) for n in norms_of(dual, DualBatchNorm) for p in getattr(n, branch).parameters()}) == len(own)


def training_a_branch_is_training_the_plain_network(implementation: Implementation, case: Case) -> None:
    for branch in BRANCHES:
        plain, dual = case.model(), implementation.convert(case.model())
        expected = train(plain, case)
        with implementation.branch(dual, branch):
            actual = train(dual, case)
        assert all(map(torch.equal, actual, expected)), branch
        assert_same(state_of(dual, branch), plain.state_dict())


def an_idle_branch_is_left_alone(implementation: Implementation, case: Case) -> None:
    for branch, idle in (BRANCHES, BRANCHES[::-1]):
        dual = implementation.convert(case.model())
        norms = [getattr(norm, idle) for norm in norms_of(dual, DualBatchNorm)]
        before = [copy.deepcopy(norm.state_dict()) for norm in norms]
        with implementation.branch(dual, branch):
            train(dual, case)
        for norm, state in zip(norms, before, strict=True):
            assert_same(norm.state_dict(), state)
            assert all(parameter.grad is None for parameter in norm.parameters())


def training_adv_leaves_what_clean_evaluates_to(implementation: Implementation, case: Case) -> None:
    dual, plain = implementation.convert(case.model()), case.model()
    shared = {key: value.clone() for key, value in dual.state_dict().items() if key in state_of(dual, "clean")}
    train(plain, case)
    with implementation.branch(dual, "adv"):
        train(dual, case)
        with eval_mode(dual), eval_mode(plain):
            assert torch.equal(dual(case.x(7)), plain(case.x(7)))
    dual.load_state_dict(dual.state_dict() | shared)
    with implementation.branch(dual, "clean"), eval_mode(dual):
        assert torch.equal(dual(case.x(7)), case.model().eval()(case.x(7)))


def an_exported_branch_is_that_branch(implementation: Implementation, case: Case) -> None:
    dual = implementation.convert(case.model())
    for branch in BRANCHES:
        with implementation.branch(dual, branch):
            train(dual, case)
    for branch in BRANCHES:
        plain = implementation.export(dual, branch)
        assert not norms_of(plain, DualBatchNorm)
        assert_same(plain.state_dict(), state_of(dual, branch))
        assert list(plain.state_dict()) == list(case.model().state_dict())
        assert list(map(type, plain.modules())) == list(map(type, case.model().modules()))
        assert [module.training for module in plain.modules()] == [m.training for m in case.model().modules()]
        again = implementation.convert(copy.deepcopy(plain))
        for model in (dual, again):
            with implementation.branch(model, branch), eval_mode(model), eval_mode(plain):
                assert torch.equal(model(case.x()), plain(case.x()))


def exporting_leaves_the_dual_network_alone(implementation: Implementation, case: Case) -> None:
    dual = implementation.convert(case.model())
    before, modules = copy.deepcopy(dual.state_dict()), list(map(id, dual.modules()))
    with torch.no_grad():
        for branch in BRANCHES:
            for tensor in implementation.export(dual, branch).state_dict().values():
                tensor.zero_()
    assert list(map(id, dual.modules())) == modules
    assert_same(dual.state_dict(), before)
    assert all(norm.branch == "clean" for norm in norms_of(dual, DualBatchNorm))


def contexts_nest_and_restore(implementation: Implementation, case: Case) -> None:
    dual = implementation.convert(case.model())
    norms = norms_of(dual, DualBatchNorm)
    norms[-1].branch = "adv"
    before = [norm.branch for norm in norms]
    with implementation.branch(dual, "adv"):
        with implementation.branch(dual, "clean"):
            assert {norm.branch for norm in norms} == {"clean"}
        assert {norm.branch for norm in norms} == {"adv"}
    assert [norm.branch for norm in norms] == before


def an_exception_restores_the_branch(implementation: Implementation, case: Case) -> None:
    dual = implementation.convert(case.model())
    with implementation.branch(dual, "adv"):
        try:
            with implementation.branch(dual, "clean"):
                raise KeyError(case.seed)
        except KeyError:
            pass
        assert {norm.branch for norm in norms_of(dual, DualBatchNorm)} == {"adv"}


def models_do_not_see_each_others_branch(implementation: Implementation, case: Case) -> None:
    first, second = implementation.convert(case.model()), implementation.convert(case.model())
    with implementation.branch(first, "adv"):
        assert {norm.branch for norm in norms_of(second, DualBatchNorm)} == {"clean"}
        with implementation.branch(second, "clean"):
            assert {norm.branch for norm in norms_of(first, DualBatchNorm)} == {"adv"}


def threads_of_one_model_see_its_branch(implementation: Implementation, case: Case) -> None:
    dual = implementation.convert(case.model())
    seen = []
    with implementation.branch(dual, "adv"):
        thread = threading.Thread(target=lambda: seen.extend(n.branch for n in norms_of(dual, DualBatchNorm)))
        thread.start()
        thread.join()
    assert set(seen) == {"adv"}


def a_plain_state_dict_fills_both_branches(implementation: Implementation, case: Case) -> None:
    for assign in (False, True):
        dual = implementation.convert(case.model())
        state = {key: value + 1 for key, value in case.model().state_dict().items()}
        dual.load_state_dict(state, assign=assign)
        for branch in BRANCHES:
            assert_same(state_of(dual, branch), state)
        branches_share_no_tensor(Implementation(convert=lambda _: dual), case)  # noqa: B023 - called at once


def a_wrong_state_dict_is_refused(implementation: Implementation, case: Case) -> None:
    plain = case.model().state_dict()
    dual = implementation.convert(case.model())
    wrong: list[dict[str, Tensor]] = [{**plain, "stray": torch.zeros(1)}]
    for whole in (plain, dual.state_dict()):
        # PyTorch itself fills in the counter, which old checkpoints lack.
        needed = [key for key in whole if not key.endswith("num_batches_tracked")]
        wrong += [{key: value for key, value in whole.items() if key != missing} for missing in needed]
    for state in wrong:
        refused = False
        try:
            dual.load_state_dict(state)
        except RuntimeError:
            refused = True
        assert refused, list(state)


def copies_equal_the_original(implementation: Implementation, case: Case) -> None:
    dual = implementation.convert(case.model())
    with implementation.branch(dual, "adv"):
        train(dual, case)
        copied, unpickled = copy.deepcopy(dual), pickle.loads(pickle.dumps(dual))
    file = io.BytesIO()
    torch.save(dual.state_dict(), file)
    file.seek(0)
    loaded = implementation.convert(case.model())
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for other in (copied, unpickled, loaded):
        assert_same(other.state_dict(), dual.state_dict())
    for other in (copied, unpickled):
        assert {norm.branch for norm in norms_of(other, DualBatchNorm)} == {"adv"}


def checkpointed_gradients_are_the_unchecked_ones(implementation: Implementation, case: Case) -> None:
    gradients = []
    for checkpointed in (False, True):
        dual = implementation.convert(case.model()).eval()
        with torch.no_grad():
            for parameter in implementation.parameters(dual, "adv"):
                parameter.add_(1)
        context_fn = implementation.context_fn(dual)
        x = case.x().requires_grad_()
        outputs = []
        for branch in ("adv", "clean"):
            with implementation.branch(dual, branch):
                outputs.append(
                    checkpoint(dual, x, use_reentrant=False, context_fn=context_fn) if checkpointed else dual(x)
                )
        sum((output * case.x(3)).sum() * (2 + i) for i, output in enumerate(outputs)).backward()
        assert {norm.branch for norm in norms_of(dual, DualBatchNorm)} == {"clean"}
        gradients.append([x.grad, *(parameter.grad for parameter in dual.parameters())])
    for expected, actual in zip(*gradients, strict=True):
        assert (expected is None) == (actual is None)
        assert expected is None or torch.equal(actual, expected)


def eval_mode_gives_every_flag_back(implementation: Implementation, case: Case) -> None:
    dual = implementation.convert(case.model())
    generator = torch.Generator().manual_seed(case.seed)
    for module in dual.modules():
        module.training = bool(torch.randint(2, (), generator=generator))
    before = [module.training for module in dual.modules()]
    try:
        with implementation.eval_mode(dual):
            assert not any(module.training for module in dual.modules())
            raise KeyError(case.seed)
    except KeyError:
        pass
    assert [module.training for module in dual.modules()] == before


def frozen_gives_every_flag_back(implementation: Implementation, case: Case) -> None:
    dual = implementation.convert(case.model())
    generator = torch.Generator().manual_seed(case.seed)
    for parameter in dual.parameters():
        parameter.requires_grad_(bool(torch.randint(2, (), generator=generator)))
    before = [parameter.requires_grad for parameter in dual.parameters()]
    try:
        with implementation.frozen(dual):
            assert not any(parameter.requires_grad for parameter in dual.parameters())
            raise KeyError(case.seed)
    except KeyError:
        pass
    assert [parameter.requires_grad for parameter in dual.parameters()] == before


INVARIANTS = (
    every_norm_becomes_dual_once,
    branches_share_no_tensor,
    tied_parameters_stay_tied,
    conversion_keeps_the_original_parameters,
    conversion_keeps_settings_in_both_branches,
    converting_twice_changes_nothing,
    contexts_nest_and_restore,
    an_exception_restores_the_branch,
    models_do_not_see_each_others_branch,
    threads_of_one_model_see_its_branch,
    eval_mode_gives_every_flag_back,
    frozen_gives_every_flag_back,
    a_plain_state_dict_fills_both_branches,
    a_wrong_state_dict_is_refused,
    checkpointed_gradients_are_the_unchecked_ones,
    exporting_leaves_the_dual_network_alone,
    an_idle_branch_is_left_alone,
    training_adv_leaves_what_clean_evaluates_to,
    an_exported_branch_is_that_branch,
    conversion_keeps_outputs,
    copies_equal_the_original,
    training_a_branch_is_training_the_plain_network,
)
