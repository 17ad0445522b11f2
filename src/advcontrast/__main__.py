"""``python -m advcontrast``: print the versions, the devices and the missing optional packages, for a bug report."""

import importlib
import os
import platform
import re
import textwrap
from importlib import metadata

import torch

import advcontrast


def version(distribution: str) -> str:
    """Return the version of a distribution, or ``"missing"``."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "missing"


def torchvision() -> str:
    """Return the version of torchvision, and the error of its import where it does not match torch."""
    found = version("torchvision")
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # a mismatch of compiled libraries can raise anything
        return found if found == "missing" else f"{found}, broken: {type(error).__name__} on import"
    return found


def devices() -> dict[str, str]:
    """Return the devices that torch can use."""
    capability = torch.backends.cpu.get_cpu_capability()
    rows = {"CPU": f"{platform.machine()}, {capability}, {torch.get_num_threads()} of {os.cpu_count()} threads"}
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        card = torch.cuda.get_device_properties(index)
        bf16 = "bf16" if torch.cuda.is_bf16_supported() else "no bf16"
        rows[f"CUDA {index}"] = f"{card.name}, {card.total_memory / 2**30:.0f} GiB, {bf16}"
    if torch.backends.mps.is_available():
        rows["MPS"] = "available"
    return rows if len(rows) > 1 else {**rows, "accelerator": "none"}


def extras() -> dict[str, str]:
    """Return for each extra of the installed package the command that installs what is missing, or ``"complete"``."""
    try:
        requirements = metadata.requires("advcontrast") or []
    except metadata.PackageNotFoundError:
        return {"unknown": "advcontrast is not installed: pip install -e . in its folder"}
    names: dict[str, list[str]] = {}
    for requirement in requirements:
        match = re.match(r"([\w.-]+).*\bextra\s*==\s*['\"]([\w.-]+)['\"]", requirement)
        if match and match[1] != "advcontrast":  # an extra that includes another one
            names.setdefault(match[2], []).append(match[1])
    missing = {extra: [name for name in found if version(name) == "missing"] for extra, found in sorted(names.items())}
    return {extra: f"missing: pip install {' '.join(gaps)}" if gaps else "complete" for extra, gaps in missing.items()}


def report() -> list[str]:
    """Return the lines: two aligned columns of at most 80 characters."""
    system = {"Python": platform.python_version(), "platform": platform.platform()}
    versions = {"advcontrast": advcontrast.__version__, **system, "torch": torch.__version__}
    rows = {**versions, "torchvision": torchvision(), **devices()}
    rows |= {f"extra {name}": verdict for name, verdict in extras().items()}
    width = max(map(len, rows)) + 2
    wrapped = (
        textwrap.wrap(f"{name:<{width}}{text}", 80, subsequent_indent=" " * width, break_on_hyphens=False)
        for name, text in rows.items()
    )
    return [line for lines in wrapped for line in lines]


if __name__ == "__main__":
    print("```text", *report(), "```", sep="\n")
