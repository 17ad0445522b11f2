"""Copies of several tensors at once."""

import torch

from advcontrast._transfer import copied_together

TENSORS = [
    torch.rand(2, 3, 4, 5),
    torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
    torch.rand(4, 6)[:, ::2],
    torch.rand(3, 2).T,
    torch.rand(()),
    torch.rand(0, 3),
    torch.rand(1).expand(3),
    torch.arange(5),
    torch.rand(3, dtype=torch.float64),
]


def test_copies_equal_the_tensors_and_own_their_memory():
    copies = copied_together(TENSORS)
    for tensor, copy in zip(TENSORS, copies, strict=True):
        assert (copy.dtype, copy.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(copy, tensor)
        assert copy.untyped_storage().nbytes() == copy.nbytes


def test_copies_keep_the_strides_of_dense_tensors():
    dense = [tensor for tensor in TENSORS if (tensor.numel() and tensor.is_contiguous()) or tensor.dim() == 4]
    assert [copy.stride() for copy in copied_together(dense)] == [tensor.stride() for tensor in dense]
