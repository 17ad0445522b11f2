"""The checks where no public argument shows what they do."""

import inspect
import math
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

from advcontrast import _checks, attacks, augment, data, evaluation, strategies


@pytest.mark.parametrize(
    ("limits", "rule"),
    [
        ({}, "a to be a finite number"),
        ({"low": 0}, "a to be a finite number >= 0"),
        ({"low": 0, "above": True}, "a to be a finite number > 0"),
        ({"high": 1}, "a to be a finite number <= 1"),
        ({"low": 0.25, "high": 1}, "a to be a finite number >= 0.25 and <= 1"),
        ({"finite": False}, "a to be a number"),
    ],
)
def test_rule_names_the_limits(limits, rule):
    with pytest.raises(ValueError, match=re.escape(f"Me: expected {rule}, got nan. Do this.")):
        _checks.check_real("Me", "a", math.nan, remedy="Do this", **limits)


@pytest.mark.parametrize("number", [0.25, 1, np.float32(0.5), np.int64(1)])
def test_limits_are_included(number):
    _checks.check_real("Me", "a", number, low=0.25, high=1, remedy="Do this")


def test_lower_limit_is_excluded_on_request():
    with pytest.raises(ValueError, match=re.escape("got 0.25. Do this.")):
        _checks.check_real("Me", "a", 0.25, low=0.25, above=True, remedy="Do this")


def test_infinity_passes_on_request():
    _checks.check_real("Me", "a", -math.inf, finite=False, remedy="Do this")


def test_choice_points_at_the_one_that_was_meant():
    with pytest.raises(ValueError, match=re.escape("a to be one of 'S2S', 'DS', got 'ds'. Did you mean 'DS'.")):
        _checks.check_choice("Me", "a", "ds", ("S2S", "DS"))


def test_model_is_a_module():
    expected = "Me: expected model to be an nn.Module, got function. Pass the network itself."
    with pytest.raises(TypeError, match=re.escape(expected)):
        _checks.check_module("Me", lambda x: x)


def caching(model):
    model[0].seen = {"features": [model(torch.ones(1, 2))]}


def locked(model):
    model[0].lock = threading.Lock()


COMPUTED = r"the result of a computation in '0\.{}'\. Use torch\.nn\.utils\.parametrizations in place of the old"


@pytest.mark.parametrize(
    ("spoil", "got"),
    [
        (lambda model: prune.l1_unstructured(model[0], "weight", 1), COMPUTED.format("weight")),
        (lambda model: setattr(model[0], "bias", model[0]._parameters.pop("bias") * 2), COMPUTED.format("bias")),
        (lambda model: model[0].register_buffer("mean", model[0].weight.mean()), COMPUTED.format("mean")),
        (caching, COMPUTED.format("seen")),
        (locked, r"'0\.lock': cannot pickle '_thread\.lock' object\. Keep such objects outside of the model"),
    ],
)
def test_a_part_that_cannot_be_copied_is_named(spoil, got):
    model = nn.Sequential(nn.Linear(2, 2))
    spoil(model)
    with pytest.raises(RuntimeError, match=rf"^Me: expected a model that copy\.deepcopy can copy, got {got}"):
        _checks.check_copyable("Me", model)


def test_a_model_that_can_be_copied_passes_and_its_tensors_are_not_copied():
    model = parametrizations.weight_norm(nn.Linear(2, 2, device="meta"))
    model.seen = model(torch.ones(1, 2, device="meta")).detach()
    _checks.check_copyable("Me", model)


def test_generator_belongs_to_the_device():
    expected = "Me: expected generator to be a torch.Generator on meta or None, got one on cpu. Create it with torch.G"
    with pytest.raises(ValueError, match=re.escape(expected)):
        _checks.check_generator("Me", torch.Generator(), torch.device("meta"))


def test_values_elsewhere_are_not_read():
    away = torch.empty(3, device="meta")
    assert not _checks.readable(away)
    _checks.check_finite("Me", "a", away, remedy="Do this")
    _checks.check_within("Me", "a", away, (0.0, 1.0), remedy="Do this")


def test_finite_values_whose_sum_overflows_are_let_pass():
    _checks.check_finite("Me", "a", torch.full((4,), 3e38), remedy="Do this")


@pytest.mark.parametrize("value", [-1e-6, 1 + 1e-6])
def test_a_millionth_of_the_range_is_let_pass(value):
    _checks.check_within("Me", "a", torch.tensor([value * (1 - 1e-9)]), (0.0, 1.0), remedy="Do this")


@pytest.mark.parametrize("value", [-1.1e-6, 1 + 1.1e-6])
def test_more_than_a_millionth_is_not(value):
    with pytest.raises(ValueError, match=re.escape("a within bounds [0.0, 1.0], got values in [")):
        _checks.check_within("Me", "a", torch.tensor([value], dtype=torch.float64), (0.0, 1.0), remedy="Do this")


def test_infinite_bounds_still_want_finite_values():
    bounds = (-math.inf, math.inf)
    _checks.check_within("Me", "a", torch.tensor([-1e30, 1e30]), bounds, remedy="Do this")
    with pytest.raises(ValueError, match=re.escape("a to be finite, got 1 non-finite of 2 values. Do this.")):
        _checks.check_within("Me", "a", torch.tensor([0, math.inf]), bounds, remedy="Do this")


def test_half_open_bounds_bound_one_side():
    with pytest.raises(ValueError, match=re.escape("a within bounds [0.0, inf], got values in [-1, 5]. Do this.")):
        _checks.check_within("Me", "a", torch.tensor([-1.0, 5.0]), (0.0, math.inf), remedy="Do this")


def test_empty_tensors_are_within_any_bounds():
    _checks.check_within("Me", "a", torch.empty(0, 3), (0.0, 1.0), remedy="Do this")


@pytest.mark.parametrize("value", [2**64, 10**30])
def test_an_int_that_no_tensor_holds_is_refused(value):
    message = "Me: expected n to be an int >= 1, got one of more than 64 bits. Remedy."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        _checks.check_int("Me", "n", value, low=1, remedy="Remedy")
    message = "Me: expected x to be a finite number, got an int of more than 64 bits. Remedy."
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        _checks.check_real("Me", "x", value, remedy="Remedy")


def test_the_largest_int_of_a_tensor_is_accepted():
    _checks.check_int("Me", "n", 2**64 - 1, low=1, remedy="Remedy")
    _checks.check_real("Me", "x", -(2**64) + 1, remedy="Remedy")


def test_a_sparse_tensor_is_refused():
    message = "Me: expected x to be a dense tensor, got torch.sparse_coo. Call to_dense() on it."
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        _checks.check_tensor("Me", "x", torch.eye(2).to_sparse(), remedy="Remedy")


@pytest.mark.parametrize(
    ("value", "error", "got"),
    [
        (None, TypeError, "NoneType"),
        (b"a", TypeError, "bytes"),
        ("", ValueError, "''"),
        ("a\0", ValueError, "'a\\x00'"),
    ],
)
def test_other_types_than_paths_are_refused(value, error, got):
    with pytest.raises(error, match=f"^{re.escape(f'Me: expected root to be a path, got {got}. Remedy.')}$"):
        _checks.check_path("Me", "root", value, remedy="Remedy")


class OfBytes:
    """A path that its system knows as bytes."""

    def __fspath__(self):
        return b"a"


def test_a_path_of_bytes_is_refused():
    with pytest.raises(TypeError, match=r"^Me: expected root to be a path, got OfBytes"):
        _checks.check_path("Me", "root", OfBytes(), remedy="Remedy")


@pytest.mark.parametrize(
    ("value", "path"), [("~", ""), ("~/a", "a"), (Path("~/a"), "a"), ("~nobody-of-this-name/a", None), ("a/~", None)]
)
def test_a_leading_tilde_is_the_home_directory(value, path, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    found = _checks.check_path("Me", "root", value, remedy="Remedy")
    assert found == (Path(value) if path is None else tmp_path / path)


class ByIndex:
    """Iterable by its length and its items alone."""

    def __len__(self):
        return 0

    def __getitem__(self, i):
        raise IndexError


@pytest.mark.parametrize("value", [[], "ab", (i for i in ()), ByIndex()], ids=["list", "text", "generator", "by index"])
def test_iterables_are_accepted(value):
    _checks.check_iterable("Me", "batches", value, remedy="Remedy")


@pytest.mark.parametrize(
    ("value", "got"), [(None, "NoneType"), (3, "int"), (torch.ones(2, 3), "torch.float32"), (list, "type")]
)
def test_other_types_than_iterables_are_refused(value, got):
    message = f"Me: expected batches to be an iterable, got {got}. Remedy."
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        _checks.check_iterable("Me", "batches", value, remedy="Remedy")


@pytest.mark.parametrize("value", ["cpu", torch.device("cpu"), "meta"])
def test_a_device_is_returned(value):
    assert _checks.check_device("Me", value) == torch.device(value)


@pytest.mark.parametrize("value", ["", "nowhere", None, 1.5, "cpu:x"])
def test_other_values_than_devices_are_refused(value):
    message = f"Me: expected device to be a device or its name, got {value!r}. Pass 'cpu', 'cuda' or a torch.device."
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        _checks.check_device("Me", value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_refused():
    message = "Me: expected device to be one of this machine, got cuda:0. Pass 'cpu'."
    with pytest.raises(RuntimeError, match=f"^{re.escape(message)}$"):
        _checks.check_device("Me", 0)


def _with_generators():
    for subpackage in (attacks, augment, data, evaluation, strategies):
        for name in subpackage.__all__:
            thing = getattr(subpackage, name)
            methods = [*vars(thing).values()] if isinstance(thing, type) else [thing]
            yield from (
                pytest.param(each, id=f"{name}.{each.__name__}")
                for each in methods
                if inspect.isfunction(each) and "generator" in inspect.signature(each).parameters
            )


@pytest.mark.parametrize("call", [*_with_generators()])
def test_every_generator_is_none_by_default_and_by_position_comes_last(call):
    parameters = inspect.signature(call).parameters
    by_position = [name for name, parameter in parameters.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    assert parameters["generator"].default is None
    assert "generator" not in by_position[:-1]


def test_whole_numbers_are_compared_exactly():
    with pytest.raises(ValueError, match=r"^Me: expected a within bounds"):
        _checks.check_within("Me", "a", torch.tensor([10_000_000]), (0, 9_999_999), remedy="Do this")


@pytest.mark.parametrize(("kinds", "names"), [(int, "int"), ((list, tuple), "list or tuple")])
def test_a_type_is_named(kinds, names):
    with pytest.raises(TypeError, match=f"^Me: expected a to be of type {names}, got str"):
        _checks.check_type("Me", "a", "text", kinds, remedy="Do this")
