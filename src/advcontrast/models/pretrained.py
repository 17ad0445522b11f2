"""Trained encoders that come with the package."""

from pathlib import Path
from types import NoneType

from .._checks import check_type, complaint
from .._digest import digest
from .._random import preserve_rng_state
from .resnet import ResNet, resnet18

FOLDER = Path(__file__).with_name("weights")
SHA256 = {
    "resnet18w16-cifar10-ds": "350eb2b77cd6bf6d9bfdbd715283944629944aeee578e0b3dd52f0127a22ee61",
    "resnet18w16-cifar10-deacl": "ae60ac664567b0d25fd04c21970608a9044ba90d48358a8cee9e9f98c1d2d50f",
    "resnet18w16-cifar10-s2s": "dd60ae63c49a3ea224b905ee7d14555daf2997887526b33389887cd8e6287c4d",
}


def pretrained(name: str, *, branch: str | None = None) -> ResNet:
    """Return a trained encoder, from images ``[N, 3, H, W]`` in [0, 1] to features ``[N, F]``, in eval mode.

    The encoder has plain batch norms and normalises its images itself. The weights come with the package, in half
    precision on disk and float32 in memory. Their model card, ``advcontrast/models/weights/NAME.md``, lists the data,
    the method, the settings and the accuracy of a linear classifier.

    =============================  =======================================================================  ========
    Name                           Training on the images of CIFAR-10, stored as JPEG, without labels       Features
    =============================  =======================================================================  ========
    ``resnet18w16-cifar10-ds``     ResNet-18 of width 16, ACL (DS), 10 epochs, dual norms                   128
    ``resnet18w16-cifar10-deacl``  ResNet-18 of width 16, DeACL, 11 epochs after 21 of its SimCLR teacher   128
    ``resnet18w16-cifar10-s2s``    ResNet-18 of width 16, SimCLR (not robust), 53 epochs                    128
    =============================  =======================================================================  ========

    Args:
        name: one of the table.
        branch: branch to return, for an encoder trained with dual norms: ``"clean"`` or ``"adv"``; ``None`` for the
            branch that the model card evaluates, ``"adv"`` for DS. The others have single norms.

    Raises:
        ValueError: the name is unknown, or the encoder has no such branch.
        TypeError: an argument has the wrong type.
        ImportError: safetensors is not installed.
        RuntimeError: the file of the weights is missing, or its SHA-256 is not the published one, or they were trained
            with another stem or normalisation than the network built here has.

    Example:
        >>> encoder = pretrained("resnet18w16-cifar10-ds")
        >>> encoder(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 128])
    """
    check_type("pretrained", "name", name, str, remedy='For example "resnet18w16-cifar10-ds"')
    check_type("pretrained", "branch", branch, (str, NoneType), remedy='For example "adv"')
    if name not in SHA256:
        remedy = "backbone returns an untrained encoder by the name of its architecture"
        raise ValueError(complaint("pretrained", f"name to be one of {sorted(SHA256)}", repr(name), remedy))
    try:
        from safetensors import safe_open
    except ImportError as error:
        expected, remedy = "safetensors to be installed", "Call pip install safetensors"
        raise ImportError(complaint("pretrained", expected, "no such package", remedy)) from error
    path = FOLDER / f"{name}.safetensors"
    if (found := digest(path.read_bytes()) if path.exists() else "no file") != SHA256[name]:
        remedy = "Install the package again"
        raise RuntimeError(complaint("pretrained", f"{path} with the SHA-256 {SHA256[name]}", found, remedy))
    with safe_open(path, "pt") as file:
        about = file.metadata()
        weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    branches = about["branches"].split()
    if branch is not None and branch not in branches:
        expected = f"branch to be one of {branches}" if branches else f"no branch for {name}, which has single norms"
        raise ValueError(complaint("pretrained", expected, repr(branch), "None selects the branch of the model card"))
    for other in branches:
        own = other == (branch or branches[0])
        named = {key: key.replace(f".{other}.", ".") for key in weights if f".{other}." in key}
        weights |= {plain: weights[key] for key, plain in named.items() if own}
        weights = {key: value for key, value in weights.items() if key not in named}
    with preserve_rng_state():
        encoder = resnet18(0, width=int(about["width"]))
    for part, built in front_of(encoder).items():
        if about[part] != built:
            remedy = "Install the release of the package that the weights came with"
            raise RuntimeError(complaint("pretrained", f"an encoder with the {part} {about[part]}", built, remedy))
    encoder.load_state_dict(weights)
    return encoder.eval()


def front_of(encoder: ResNet) -> dict[str, str]:
    """Return the stem and the normalisation of an encoder, which its state dict does not determine."""
    conv = encoder.conv1
    stem = f"kernel {conv.kernel_size}, stride {conv.stride}, padding {conv.padding}"
    return {"stem": stem, "normalisation": str(encoder.normalize.extra_repr())}
