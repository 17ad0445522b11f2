"""Projection heads between the features of an encoder and the contrastive loss."""

from torch import nn

from .._checks import check_int


def acl_head(num_features: int, *, hidden: int | None = None, out: int = 512) -> nn.Sequential:
    """Return the projection head of the ACL authors' code: three linear layers, each followed by a batch norm.

    Linear, norm, ReLU, linear, norm, ReLU, linear, norm; only the first linear layer has a bias, and every norm is
    affine. The published checkpoints have this head; the paper describes SimCLR's, :func:`simclr_head`. Convert its
    norms to dual norms together with those of the encoder. Reference: Jiang et al., NeurIPS 2020.

    Args:
        num_features: width of the features ``[N, num_features]``, at least 1; in training N is at least 2.
        hidden: width of both hidden layers, by default that of the features.
        out: width of the embeddings ``[N, out]``.

    Raises:
        ValueError: a width is less than 1.
        TypeError: a width is not an int.

    Example:
        >>> acl_head(16)(torch.rand(4, 16)).shape
        torch.Size([4, 512])
    """
    hidden = _check_widths("acl_head", num_features, hidden, out)
    return nn.Sequential(
        nn.Linear(num_features, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden, bias=False),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Linear(hidden, out, bias=False),
        nn.BatchNorm1d(out),
    )


def simclr_head(num_features: int, *, hidden: int | None = None, out: int = 128) -> nn.Sequential:
    """Return the projection head of the SimCLR paper: two linear layers with a ReLU between them.

    The ACL paper describes this head; the authors' code has :func:`acl_head`, with the same arguments and errors.
    Reference: Chen et al., ICML 2020.

    Example:
        >>> simclr_head(16)(torch.rand(4, 16)).shape
        torch.Size([4, 128])
    """
    hidden = _check_widths("simclr_head", num_features, hidden, out)
    return nn.Sequential(nn.Linear(num_features, hidden), nn.ReLU(), nn.Linear(hidden, out))


def _check_widths(owner: str, num_features: int, hidden: int | None, out: int) -> int:
    hidden = num_features if hidden is None else hidden
    check_int(owner, "num_features", num_features, low=1, remedy="Pass num_features of the encoder")
    check_int(owner, "hidden", hidden, low=1, remedy="None is the width of the features")
    check_int(owner, "out", out, low=1, remedy="Pass the width of the embeddings")
    return hidden
