"""``python -m advcontrast``."""

import getpass
import os
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

import advcontrast
from advcontrast import __main__ as main

ROOT = Path(__file__).parents[1]


def rows(lines):
    """Return the two columns, with wrapped lines joined."""
    found, last = {}, None
    for line in lines:
        name, text = (line[:0], line) if line.startswith(" ") else re.split(r"\s{2,}", line, maxsplit=1)
        last = name or last
        found[last] = f"{found.get(last, '')} {text.strip()}".strip()
    return found


def test_the_command_prints_a_block_of_markdown_without_secrets_and_heavy_imports():
    code = (
        "import sys, runpy; runpy.run_module('advcontrast', run_name='__main__'); print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore::RuntimeWarning", "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "SECRET_TOKEN": "hunter2"},
        cwd=ROOT / "src",
    )
    first, *lines, last = done.stdout.splitlines()
    assert (first, last) == ("```text", "```")
    assert max(map(len, lines)) <= 80
    assert all(line.isascii() and line == line.rstrip() for line in lines)
    found = rows(lines)
    assert found["advcontrast"] == advcontrast.__version__
    assert found["torch"] == torch.__version__
    assert found["torchvision"] == metadata.version("torchvision")
    assert found["Python"] == ".".join(map(str, sys.version_info[:3]))
    assert re.fullmatch(r"\S+, \S.*, \d+ of \d+ threads", found["CPU"])
    assert not {"timm", "lightning", "accelerate", "foolbox", "matplotlib.pyplot"} & set(done.stderr.split())
    assert "hunter2" not in done.stdout
    assert str(ROOT) not in done.stdout
    assert getpass.getuser() == "root" or getpass.getuser() not in done.stdout


def test_missing_packages_are_named_with_the_command_that_installs_them(monkeypatch):
    requires = ["torch>=2.10", "tqdm; extra == 'eval'", 'a_b.c[x]>=1 ; python_version > "3" and extra == "eval"']
    requires += ["advcontrast[eval]; extra == 'all'", "torch; extra == 'all'"]
    monkeypatch.setattr(metadata, "requires", lambda _: requires)
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: real("no-such-package" if name == "tqdm" else name))
    assert main.extras() == {"all": "complete", "eval": "missing: pip install tqdm a_b.c"}


def test_a_source_tree_without_metadata_is_enough(monkeypatch):
    def requires(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    assert rows(main.report())["extra unknown"].startswith("advcontrast is not installed")


@pytest.mark.parametrize(
    ("module", "expected"),
    [("raise RuntimeError('operator torchvision::nms does not exist')", ", broken: RuntimeError on import"), ("", "")],
)
def test_a_broken_torchvision_is_reported(monkeypatch, tmp_path, module, expected):
    (tmp_path / "torchvision.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    assert main.torchvision() == metadata.version("torchvision") + expected
    sys.modules.pop("torchvision", None)


def test_a_missing_torchvision_is_reported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setattr(main, "version", lambda _: "missing")
    assert main.torchvision() == "missing"


class _Card:
    name, total_memory = "NVIDIA H100 80GB HBM3", 79 * 2**30


def test_accelerators_are_named(monkeypatch):
    assert main.devices().get("accelerator", "none") == "none"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: _Card)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    found = main.devices()
    assert list(found) == ["CPU", "CUDA 0", "CUDA 1", "MPS"]
    assert found["CUDA 1"] == "NVIDIA H100 80GB HBM3, 79 GiB, bf16"


def test_long_rows_are_wrapped_below_their_column(monkeypatch):
    names = " ".join(f"some-package-{i}" for i in range(20))
    monkeypatch.setattr(main, "extras", lambda: {"longer": names})
    printed = main.report()
    assert max(map(len, printed)) <= 80
    assert rows(printed)["extra longer"] == names
