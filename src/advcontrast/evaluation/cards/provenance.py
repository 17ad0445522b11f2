"""Versions of the software, and the revision of the code, that a result comes from."""

import os
import platform
import subprocess

import torch

from ..._checks import check_device, check_path


def versions(device: torch.device | str = "cpu") -> dict[str, str]:
    """Return the versions of advcontrast, PyTorch and Python, the platform, and the device that an evaluation ran on.

    On the CPU the device includes the number of threads, since sums are split among them. An NVIDIA GPU adds the
    versions of CUDA and cuDNN, and a note that evaluations of this library disable TF32.

    Example:
        >>> versions()["torch"] == torch.__version__
        True
    """
    import advcontrast  # the package is not complete yet when this file is imported

    device = check_device("versions", device)
    threads = torch.get_num_threads()
    found = {
        "advcontrast": advcontrast.__version__,
        "device": f"cpu, {threads} thread{'s' if threads > 1 else ''}" if device.type == "cpu" else device.type,
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }
    if device.type == "cuda":
        cuda, cudnn = torch.version.cuda, torch.backends.cudnn.version()  # type: ignore[no-untyped-call]
        found |= {"device": torch.cuda.get_device_name(device), "cuda": str(cuda), "cudnn": str(cudnn), "tf32": "off"}
    return found


def revision(folder: str | os.PathLike[str] = ".") -> str | None:
    """Return the git commit of a folder of a working tree, with the suffix "-dirty" if a tracked file differs from it.

    The result is ``None`` outside a repository, before the first commit, or if git is not installed or fails.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print(revision(folder))
        None
    """
    place = check_path("revision", "folder", folder, remedy="Pass a folder of the working tree")
    command = ["git", "--no-optional-locks", "-C", str(place), "describe", "--always", "--dirty", "--abbrev=64"]
    try:
        done = subprocess.run([*command, "--exclude=*"], capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
