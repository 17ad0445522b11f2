"""Whatever a public callable is given, it works or says what is wrong; and where it fails it has changed nothing."""

import importlib
import inspect
import random
import re
import signal
import traceback
import warnings
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
import torch
from typing_extensions import is_protocol

import advcontrast
from tests.fuzz import adapter_calls, calls
from tests.fuzz.pool import BOUNDARY, values
from tests.fuzz.state import changes, everything

CALLS = calls.CALLS | adapter_calls.CALLS
ROOMS = (
    "functional",
    "losses",
    "attacks",
    "augment",
    "norm",
    "surgery",
    "data",
    "models",
    "optim",
    "engine",
    "strategies",
    "evaluation.accuracy",
    "evaluation.cards",
    "evaluation.masking",
    "evaluation.plots",
    "evaluation.protocols",
    "evaluation.representation",
    "evaluation.uar",
)
PACKAGE = str(Path(advcontrast.__file__).parent)
TEMPLATE = re.compile(r".+: expected .+, (got|found) .+\. .+\.", re.DOTALL)
SECONDS = 5

# Arguments whose mistakes may show only when something has changed, because nothing but the network, the function or
# the loop that they are passed to can show them. The message must say what is wrong with them all the same.
LATE = {
    # The value of a schedule shows when the folder is there; the result of an evaluation, and whether the metric to
    # select by is among it, when the first epoch is over.
    "engine.fit": {"schedule", "evaluate", "select"},
    # How many classes a network has, only its output tells, when its batch norms have seen the images.
    "strategies.StandardTrainer.forward": {"labels"},
    # Whether a network takes the images, and how many classes it has, shows in the attack, which has drawn its start.
    "strategies.AdversarialTrainer.forward": {"images", "labels"},
    "strategies.AdversarialTrainer.attacked": {"x", "objective"},
    "strategies.SemiSupervisedTrainer.forward": {"images"},
    # An attack without a generator has drawn its start before it calls the objective.
    "evaluation.uar.ElasticAttack.__call__": {"objective"},
}

# The files of these data sets are not there.
MISSING = {"data.cifar10", "data.cifar100", "data.cifar10_c"}

# A huge tensor takes no memory, but a mean over its values takes forever.
ENDLESS = {"strategies.AdaptiveGamma.forward": {"a huge tensor"}}


def public(*rooms):
    """Yield the name of every public callable and of every public method that its class defines."""
    seen = set()
    for room in rooms:
        module = importlib.import_module(f"advcontrast.{room}".strip("."))
        for name in getattr(module, "__all__", None) or _written_in(module):
            thing = getattr(module, name)
            if not callable(thing) or id(thing) in seen or _is_a_record(thing) or is_protocol(thing):
                continue
            seen.add(id(thing))
            yield f"{room}.{name}"
            if inspect.isclass(thing):
                yield from (f"{room}.{name}.{method}" for method in vars(thing) if _is_called_by_users(thing, method))


def _written_in(module):
    """Return what a file without ``__all__`` defines."""
    names = (name for name in vars(module) if not name.startswith("_"))
    return [name for name in names if getattr(vars(module)[name], "__module__", None) == module.__name__]


def _is_a_record(thing):
    return inspect.isclass(thing) and issubclass(thing, (tuple, Exception))


def _is_called_by_users(kind, name):
    hidden = name.startswith("_") and name != "__call__"
    return (
        callable(getattr(kind, name))
        and not hidden
        and name != "extra_repr"
        and getattr(getattr(kind, name), "__name__", name) == name  # not an old name of another method
        and not (getattr(kind, name).__doc__ or "").startswith("Old name of")
        and not inspect.isclass(getattr(kind, name))
    )


def test_every_public_callable_has_a_valid_call():
    assert sorted(public(*ROOMS, "")) == sorted(calls.CALLS)


@pytest.mark.parametrize("name", adapter_calls.ADAPTERS)
def test_every_public_callable_of_an_adapter_has_a_valid_call(name):
    adapter_calls.adapter(name)
    room = f"adapters.{name}"
    assert sorted(public(room)) == sorted(call for call in adapter_calls.CALLS if call.startswith(f"{room}."))


@pytest.fixture(autouse=True, scope="module")
def _imported():
    """Import first what the library imports late, lest the limit of time interrupts that."""
    for name in ("matplotlib.pyplot", "sklearn.cluster", "timm", "torchvision.datasets", "torchvision.models"):
        importlib.import_module(name)


def attempt(name, folder, changed):
    """Make a call with some of its arguments changed, and return what is wrong with how it fails."""
    torch.manual_seed(0)
    function, arguments = CALLS[name](folder)
    arguments |= {key: make() for key, make in changed.items()}
    huge = any(isinstance(value, torch.Tensor) and value.numel() >= 2**50 for value in arguments.values())
    held = [arguments, getattr(function, "__self__", function)]
    before = everything(held, folder)
    try:
        with limited_time():
            function(**arguments)
    except Exception as error:
        wrong = [] if is_clear(error, huge) else [f"{type(error).__name__}: {str(error)[:300]}"]
        return [*wrong, *(f"changed {name}" for name in changes(before, everything(held, folder)))]
    return []


@contextmanager
def limited_time():
    def stop(*_):
        raise TimeoutError(f"computed for more than {SECONDS} s")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def is_clear(error, huge):
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return huge  # and of a shape that would be right
    if came_from_the_user(error):
        return True
    # Whatever is indexed must end with an IndexError.
    expected = isinstance(error, (TypeError, ValueError, RuntimeError, OSError, IndexError))
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = frames[-1].f_code.co_filename.startswith(PACKAGE)
    return expected and ours and TEMPLATE.fullmatch(str(error)) is not None


@pytest.mark.parametrize(
    ("text", "clear"),
    [
        ("nt_xent: expected z1 to be finite, got nan. The network has diverged.", True),
        ("expected z1 to be finite, got nan.", False),
        ("nt_xent: expected z1 to be finite, got nan", False),
        ("mat1 and mat2 shapes cannot be multiplied", False),
    ],
)
def test_clear_is_what_follows_the_template(text, clear):
    assert (TEMPLATE.fullmatch(text) is not None) == clear


def came_from_the_user(error):
    """Tell whether the network or the function that was passed raised it, in what the library called it with."""
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    ours = [i for i, file in enumerate(files) if file.startswith(PACKAGE) and "/models/" not in file]
    beyond = files[ours[-1] + 1 :] if ours else []
    return bool(beyond) and ("tests/fuzz" in beyond[0] or beyond[0].endswith("nn/modules/module.py"))


def sample(name, pool):
    """Return a third of the boundary values of a pool and a sixteenth of the others, drawn by name."""
    boundary, others = sorted(pool.keys() & BOUNDARY), sorted(pool.keys() - BOUNDARY)
    chance = random.Random(name)
    drawn = {*chance.sample(boundary, len(boundary) // 3), *chance.sample(others, len(others) // 16)}
    return {value: make for value, make in pool.items() if value in drawn}


@pytest.mark.parametrize("name", CALLS)
def test_arguments(name, tmp_path, monkeypatch, whole):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    folders = (tmp_path / str(i) for i in range(1_000_000))

    def fresh():
        folder = next(folders)
        folder.mkdir()
        return folder

    function, arguments = CALLS[name](fresh())
    with pytest.raises(FileNotFoundError) if name in MISSING else nullcontext():
        function(**arguments)
    endless = ENDLESS.get(name, ())
    pools = {
        key: {value: make for value, make in values(valid).items() if value not in endless}
        for key, valid in CALLS[name](fresh()).arguments.items()
    }
    if not whole:
        pools = {key: sample(f"{name} {key}", pool) for key, pool in pools.items()}
    trials = [{key: value} for key, pool in pools.items() for value in pool]
    chance, pairs = random.Random(name), 50 if whole else 3
    for _ in range(pairs if len(pools) > 1 else 0):
        trials.append({key: chance.choice(sorted(pools[key])) for key in chance.sample(sorted(pools), 2)})
    found, late = {}, set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for trial in trials:
            wrong = attempt(name, fresh(), {key: pools[key][value] for key, value in trial.items()})
            unclear = [reason for reason in wrong if not reason.startswith("changed ")]
            may_be_late = LATE.get(name, set()).intersection(trial)
            late |= may_be_late if wrong and not unclear else set()
            if unclear or (wrong and not may_be_late):
                found[str(trial)] = wrong
    assert found == {}
    assert not whole or late == LATE.get(name, set()), "in time: take it out of LATE"
