"""Digests, which stay the same from release to release: checkpoints and result cards hold them."""

import hashlib
import io

import pytest
import torch

from advcontrast._digest import digest, file_digest, raw


def test_a_digest_is_that_of_all_parts_one_after_the_other():
    values = torch.tensor([1, 2], dtype=torch.uint8)
    assert digest(values, "é", b"2") == hashlib.sha256("torch.uint8 [2]\1\2é2".encode()).hexdigest()


def test_digests_of_tensors_are_those_of_earlier_releases():
    found = digest(torch.arange(4).view(2, 2), torch.tensor(1.5))
    assert found == "a32cd87d622631dbcdcdc3f3a5f993f362dccf9d4178db5d40e59ffc66369c4d"


@pytest.mark.parametrize(
    "tensor",
    [torch.arange(6).view(2, 3).t(), torch.arange(12)[::2], torch.tensor([1 + 2j]).conj(), torch.empty(0)],
    ids=["transposed", "strided", "conjugated", "empty"],
)
def test_only_the_values_count_not_where_they_lie(tensor):
    assert digest(tensor) == digest(tensor.resolve_conj().clone(memory_format=torch.contiguous_format))


def test_a_buffer_outlives_its_tensor():
    assert bytes(raw(torch.full((1000,), 7, dtype=torch.uint8))) == b"\7" * 1000


def test_a_file_is_left_at_its_beginning():
    file = io.BytesIO(b"abc")
    file.read()
    assert file_digest(file) == hashlib.sha256(b"abc").hexdigest()
    assert file.tell() == 0
