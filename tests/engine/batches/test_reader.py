"""Data sets and settings that a reader cannot take."""

import re
from pathlib import Path

import PIL.Image
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from advcontrast.engine import fit
from advcontrast.engine.batches import DataReader
from tests.engine.learners import (
    Separable,
    images,
    train,
)
from tests.engine.streams import Pictures, nobody_left, write

ROOT = Path(__file__).parents[3]


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "pictures", images())


@pytest.fixture(autouse=True)
def _nobody_left():
    with nobody_left():
        yield


# Data that makes no sense.


class Sampled(Dataset):
    def __init__(self, make, n=22):
        self.make, self.n = make, n

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return self.make(index)


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda i: PIL.Image.new("RGB", (8, 8)),
            TypeError,
            r"sample \d+ to be tensors and numbers",
        ),
        (lambda i: "image", TypeError, r"sample \d+ to be tensors and numbers"),
        (lambda i: None, TypeError, r"sample \d+ to be tensors and numbers"),
        (lambda i: (), ValueError, r"sample \d+ to be tensors and numbers"),
        (
            lambda i: torch.full((3, 8, 8), torch.nan),
            ValueError,
            r"sample \d+ to be finite",
        ),
        (
            lambda i: torch.zeros(3, 8, 8 + i),
            ValueError,
            r"sample \d+ to be float32 \[3, 8, \d+\] like sample \d+",
        ),
        (
            lambda i: (torch.zeros(2), i) if i else torch.zeros(2),
            ValueError,
            r"sample \d+ to be .* like sample \d+",
        ),
    ],
)
def test_samples_that_are_none(make, error, message, workers):
    learner = Separable()
    with pytest.raises(error, match=f"^fit: expected {message}"):
        train(learner, DataReader(Sampled(make), workers=workers), batch_size=22)
    assert learner.seen == []


def stream_of_none():
    class Endless(IterableDataset):
        def __iter__(self):
            yield torch.zeros(3, 8, 8)

    return Endless()


@pytest.mark.parametrize("make", [stream_of_none, lambda: DataLoader(TensorDataset(images()))])
def test_data_with_an_order_of_its_own_is_refused(make):
    data = make()
    with pytest.raises(TypeError, match=r"^fit: expected data to be tensors or a map-style data set"):
        fit(Pictures(), data, epochs=1)


class Endless(Dataset):
    def __getitem__(self, index):
        return torch.zeros(3, 8, 8)


@pytest.mark.parametrize("data", [Endless(), [1, 2], stream_of_none(), images()])
def test_reader_takes_map_style_data_sets(data):
    with pytest.raises(TypeError, match=r"^DataReader: expected a map-style data set"):
        DataReader(data)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (
            {"workers": -1},
            ValueError,
            "expected workers to be an int >= 0",
        ),
        ({"workers": 1.0}, TypeError, "expected workers to be an int >= 0"),
        ({"timeout": 0}, ValueError, "expected timeout to be a finite number > 0"),
        ({"timeout": None}, TypeError, "expected timeout to be a finite number > 0"),
        ({"prefetch": 0}, ValueError, "expected prefetch to be an int >= 1"),
    ],
)
def test_wrong_argument(settings, error, message):
    with pytest.raises(error, match=f"^{re.escape('DataReader: ' + message)}"):
        DataReader(TensorDataset(images()), **settings)


@pytest.mark.parametrize("n", [0, 1])
def test_a_data_set_of_too_few_samples_is_refused(n):
    with pytest.raises(ValueError, match=r"^fit: expected data of one length"):
        fit(Pictures(), Sampled(lambda i: torch.zeros(3, 8, 8), n), epochs=1)
