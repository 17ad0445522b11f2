"""Every seeded defect of dual batch norms breaks at least one invariant."""

import copy
import itertools
import random
import threading
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from advcontrast import bn_branch, convert_to_dual_bn, export_branch
from advcontrast.norm import DualBatchNorm
from advcontrast.norm.dual_batch_norm import dual_of
from tests.properties.dual_bn_cases import LAYOUTS, Case
from tests.properties.dual_bn_invariants import BRANCHES, INVARIANTS, Implementation, norms_of

pytestmark = pytest.mark.nightly  # it tests the property tests

REAL = Implementation()


def _cases():
    draw = random.Random(0)
    options = {
        "dim": (1, 2, 3),
        "layout": LAYOUTS,
        "affine": (True, True, False),
        "track": (True, True, False),
        "momentum": (0.3, None),
        "fused": (False, True),
        "frozen": (False, False, True),
        "dtype": (torch.float32, torch.float64),
    }
    return [Case(seed=seed, **{name: draw.choice(values) for name, values in options.items()}) for seed in range(36)]


CASES = _cases()


def _adversarial(change):
    """Convert, then change the adversarial norms that were made; ``change(norm, dual)`` may return another norm."""

    def convert(model):
        done = set(norms_of(model, DualBatchNorm))
        model = convert_to_dual_bn(model)
        for dual in norms_of(model, DualBatchNorm):
            if dual not in done:
                dual.adv = change(dual.adv, dual) or dual.adv
        return model

    return replace(REAL, convert=convert)


def _dual(defective):
    """Convert, then make every dual norm one of a defective class; ``defective(base)`` derives it."""

    def convert(model):
        model = convert_to_dual_bn(model)
        for dual in norms_of(model, DualBatchNorm):
            if not dual.__dict__.get("seeded"):
                dual.__class__ = defective(type(dual))
                dual.seeded = True
        return model

    return replace(REAL, convert=convert)


def _rebuilt(norm, dual):
    """Recreate a norm from its constructor, as conversions by inheritance do."""
    fresh = type(norm)(norm.num_features, norm.eps, norm.momentum, norm.affine, norm.track_running_stats)
    fresh.load_state_dict(norm.state_dict())
    return fresh


def _set(**values):
    def change(norm, dual):
        for name, value in values.items():
            setattr(norm, name, value)

    return _adversarial(change)


def _unfreeze(norm, dual):
    norm.requires_grad_(True)


def _reset_counter(norm, dual):
    if norm.track_running_stats:
        norm.num_batches_tracked.zero_()


def _reset_statistics(norm, dual):
    norm.reset_running_stats()


def _tie_statistics(norm, dual):
    norm._buffers = dual.clean._buffers


def _tie_affine(norm, dual):
    norm._parameters = dual.clean._parameters


def _untie(norm, dual):
    for name, parameter in list(norm.named_parameters()):
        setattr(norm, name, copy.deepcopy(parameter))


def _through_float32(norm, dual):
    norm.load_state_dict({name: value.float() for name, value in norm.state_dict().items()})


def _drop_activation(norm, dual):
    norm.__class__ = next(kind for kind in type(norm).__mro__ if kind.__module__ == nn.BatchNorm2d.__module__)


def _both_fed(base):
    def forward(self, x):
        if self.training:
            with torch.no_grad():
                (self.adv if self.branch == "clean" else self.clean)(x)
        return base.forward(self, x)

    return type(base.__name__, (base,), {"forward": forward})


def _clean_in_eval(base):
    def forward(self, x):
        return base.forward(self, x) if self.training else self.clean(x)

    return type(base.__name__, (base,), {"forward": forward})


def _always_clean(base):
    return type(base.__name__, (base,), {"forward": lambda self, x: self.clean(x)})


def _swapped(base):
    active = property(lambda self: self.adv if self.branch == "clean" else self.clean)
    return type(base.__name__, (base,), {"active": active})


_GLOBAL = {"branch": "clean"}
_LOCAL = threading.local()


def _flag_property(store):
    return property(
        lambda self: store(self).get("branch", "clean"), lambda self, value: store(self).update(branch=value)
    )


def _process_wide(base):
    return type(base.__name__, (base,), {"branch": _flag_property(lambda self: _GLOBAL)})


def _thread_local(base):
    return type(
        base.__name__, (base,), {"branch": _flag_property(lambda self: _LOCAL.__dict__.setdefault(id(self), {}))}
    )


def _loading(fill):
    """Load the state of a plain norm by ``fill(state_dict, prefix, name, value)``."""

    def defective(base):
        def load(self, state_dict, prefix, *args):
            own = [key for key in state_dict if key.startswith(prefix)]
            if not any(key.startswith((f"{prefix}clean.", f"{prefix}adv.")) for key in own):
                for key in own:
                    fill(self, state_dict, prefix, key.removeprefix(prefix), state_dict.pop(key))
            nn.Module._load_from_state_dict(self, state_dict, prefix, *args)

        return type(base.__name__, (base,), {"_load_from_state_dict": load})

    return _dual(defective)


def _fill_without_clone(norm, state_dict, prefix, name, value):
    state_dict[f"{prefix}clean.{name}"] = state_dict[f"{prefix}adv.{name}"] = value


def _fill_clean_only(norm, state_dict, prefix, name, value):
    state_dict[f"{prefix}clean.{name}"] = value
    state_dict[f"{prefix}adv.{name}"] = norm.adv.state_dict()[name]


def _tolerant(base):
    def load(self, state_dict, prefix, *args):
        if any(key.startswith(f"{prefix}clean.") for key in state_dict):
            state_dict.update(
                {f"{prefix}{k}": v for k, v in self.state_dict().items() if f"{prefix}{k}" not in state_dict}
            )
        base._load_from_state_dict(self, state_dict, prefix, *args)

    return type(base.__name__, (base,), {"_load_from_state_dict": load})


def _walk(model, slots):
    """Convert the norms in ``slots(model)``, which are triples of parent, name and norm, one dual norm for each."""
    if isinstance(model, _BatchNorm):
        return dual_of(model, BRANCHES, "both", [{}])
    for parent, name, norm in slots(model):
        setattr(parent, name, dual_of(norm, BRANCHES, "both", [{}]))
    return model


def _one_dual_per_slot(model):
    parents = [parent for parent in model.modules() if not isinstance(parent, DualBatchNorm)]
    return _walk(
        model, lambda _: [(p, n, c) for p in parents for n, c in p._modules.items() if isinstance(c, _BatchNorm)]
    )


def _named_children_only(model):
    parents = [parent for parent in model.modules() if not isinstance(parent, DualBatchNorm)]
    return _walk(
        model, lambda _: [(p, n, c) for p in parents for n, c in p.named_children() if isinstance(c, _BatchNorm)]
    )


def _top_level_only(model):
    if isinstance(model, DualBatchNorm):
        return model
    return _walk(model, lambda _: [(model, n, c) for n, c in model._modules.items() if isinstance(c, _BatchNorm)])


def _wraps_again(model):
    for dual in norms_of(model, DualBatchNorm):
        dual.clean = type(dual).from_batchnorm(dual.clean)
    return convert_to_dual_bn(model)


def _wakes_frozen(model):
    return convert_to_dual_bn(model).train()


def _forgets_own_flag(model):
    model = convert_to_dual_bn(model)
    for dual in norms_of(model, DualBatchNorm):
        dual.training = True
    return model


def _copies(model):
    return convert_to_dual_bn(model, inplace=False)


@contextmanager
def _without_finally(model, branch):
    norms = norms_of(model, DualBatchNorm)
    before = [norm.branch for norm in norms]
    for norm in norms:
        norm.branch = branch
    yield
    for norm, previous in zip(norms, before, strict=True):
        norm.branch = previous


@contextmanager
def _back_to_clean(model, branch):
    with bn_branch(model, branch):
        yield
    for norm in norms_of(model, DualBatchNorm):
        norm.branch = "clean"


@contextmanager
def _never_back(model, branch):
    for norm in norms_of(model, DualBatchNorm):
        norm.branch = branch
    yield


@contextmanager
def _first_norm_only(model, branch):
    with bn_branch(norms_of(model, DualBatchNorm)[0], branch):
        yield


def _exports_active(model, branch):
    return export_branch(model, norms_of(model, DualBatchNorm)[0].branch)


def _exports_the_other(model, branch):
    return export_branch(model, BRANCHES[1 - BRANCHES.index(branch)])


def _exports_views(model, branch):
    plain = export_branch(model, branch)
    norms = {norm.clean if branch == "clean" else norm.adv for norm in norms_of(model, DualBatchNorm)}
    memo = {id(tensor): tensor for norm in norms for tensor in (*norm.parameters(), *norm.buffers())}
    exported = [copy.deepcopy(getattr(norm, branch), memo) for norm in norms_of(model, DualBatchNorm)]
    for mine, theirs in zip(norms_of(plain), exported, strict=True):
        mine._parameters, mine._buffers = theirs._parameters, theirs._buffers
    return plain


def _exports_in_eval(model, branch):
    return export_branch(model, branch).eval()


def _recomputes_on_clean(model):
    return lambda: (nullcontext(), bn_branch(model, "clean"))


def _recomputes_on_first(model):
    contexts = []

    def context_fn():
        contexts.append(norms_of(model, DualBatchNorm)[0].branch)
        return nullcontext(), bn_branch(model, contexts[0])

    return context_fn


@contextmanager
def _train_on_exit(model):
    model.eval()
    yield
    model.train()


@contextmanager
def _root_flag_on_exit(model):
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@contextmanager
def _thaws_everything(model):
    model.requires_grad_(False)
    try:
        yield
    finally:
        model.requires_grad_(True)


DEFECTS = {
    "eps of adv is the default": _set(eps=1e-5),
    "momentum of adv is the default": _set(momentum=0.1),
    "adv is always in training mode": _set(training=True),
    "adv no longer tracks statistics": _set(track_running_stats=False),
    "adv is never frozen": _adversarial(_unfreeze),
    "adv counts its batches anew": _adversarial(_reset_counter),
    "adv starts with fresh statistics": _adversarial(_reset_statistics),
    "adv is rebuilt without its flags": _adversarial(_rebuilt),
    "adv loses bits on the way through float32": _adversarial(_through_float32),
    "adv loses its activation": _adversarial(_drop_activation),
    "adv shares the statistics": _adversarial(_tie_statistics),
    "adv shares the affine parameters": _adversarial(_tie_affine),
    "adv unties tied parameters": _adversarial(_untie),
    "both branches are fed": _dual(_both_fed),
    "evaluation is always clean": _dual(_clean_in_eval),
    "everything is clean": _dual(_always_clean),
    "branches are swapped": _dual(_swapped),
    "one branch for the whole process": _dual(_process_wide),
    "one branch for each thread": _dual(_thread_local),
    "plain state is not cloned": _loading(_fill_without_clone),
    "plain state fills clean only": _loading(_fill_clean_only),
    "missing keys are filled in": _dual(_tolerant),
    "a shared norm becomes two": replace(REAL, convert=_one_dual_per_slot),
    "a norm used twice is converted once": replace(REAL, convert=_named_children_only),
    "only the top level is converted": replace(REAL, convert=_top_level_only),
    "a second conversion wraps again": replace(REAL, convert=_wraps_again),
    "conversion wakes frozen norms": replace(REAL, convert=_wakes_frozen),
    "a dual norm forgets its own flag": replace(REAL, convert=_forgets_own_flag),
    "conversion strands the optimizer": replace(REAL, convert=_copies),
    "an exception keeps the branch": replace(REAL, branch=_without_finally),
    "a context resets to clean": replace(REAL, branch=_back_to_clean),
    "a context restores nothing": replace(REAL, branch=_never_back),
    "a context reaches one norm": replace(REAL, branch=_first_norm_only),
    "export takes the active branch": replace(REAL, export=_exports_active),
    "export takes the other branch": replace(REAL, export=_exports_the_other),
    "export shares its tensors": replace(REAL, export=_exports_views),
    "export changes modes": replace(REAL, export=_exports_in_eval),
    "recomputation is always clean": replace(REAL, context_fn=_recomputes_on_clean),
    "recomputation is on the first branch seen": replace(REAL, context_fn=_recomputes_on_first),
    "eval mode wakes frozen norms": replace(REAL, eval_mode=_root_flag_on_exit),
    "eval mode survives an exception": replace(REAL, eval_mode=_train_on_exit),
    "frozen thaws everything": replace(REAL, frozen=_thaws_everything),
}


def _broken(implementation):
    for case, invariant in itertools.product(CASES, INVARIANTS):
        try:
            invariant(implementation, case)
        except AssertionError:
            return invariant.__name__
    return None


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_breaks_an_invariant(defect):
    assert _broken(DEFECTS[defect]) is not None


def test_the_real_thing_breaks_none():
    assert _broken(REAL) is None
