"""What ``python -m advcontrast`` prints."""

import ast
import getpass
import os
import re
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import advcontrast
from advcontrast import __main__ as main
from tests.processes import run

ROOT = Path(__file__).parents[1]


needs_lightning = pytest.mark.skipif(
    not any(map(find_spec, ("lightning", "pytorch_lightning"))), reason="lightning is not installed"
)


def lines(*, before="", path=ROOT / "src", **environment):
    """Return what a process prints, after the statements ``before``."""
    code = f"import sys, runpy\n{before}\nrunpy.run_module('advcontrast', run_name='__main__')"
    done = run("-c", code, env={**os.environ, "PYTHONPATH": str(path), **environment}, cwd=path)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def rows(printed):
    """Return the two columns, the lines of a wrapped one put together."""
    found, last = {}, None
    for line in printed:
        name, _, text = line.partition("  ")
        if name:
            last, found[name] = name, text.strip()
        elif last is not None and line.strip():
            found[last] += " " + text.strip()
    return found


@pytest.fixture(scope="module")
def printed():
    return lines(SECRET_TOKEN="hunter2")


def test_it_is_a_block_of_markdown_that_fits_a_terminal(printed):
    assert printed[0] == "```text"
    assert printed[-1] == "```"
    assert max(map(len, printed)) <= 80
    assert all(line.isascii() and line == line.rstrip() for line in printed)


def test_it_names_the_versions_and_the_devices(printed):
    found = rows(printed)
    assert found["advcontrast"] == advcontrast.__version__
    assert found["torch"] == torch.__version__
    assert found["torchvision"] == metadata.version("torchvision")
    assert found["Python"] == ".".join(map(str, sys.version_info[:3]))
    assert re.fullmatch(r"\S+, \S.*, \d+ of \d+ threads", found["CPU"])


def test_it_tells_neither_paths_nor_the_environment(printed):
    text = "\n".join(printed)
    assert "hunter2" not in text
    assert str(Path.home()) not in text
    assert str(ROOT) not in text
    assert getpass.getuser() == "root" or getpass.getuser() not in text


def test_columns_are_aligned(printed):
    start = printed.index("Adapters and examples") + 1
    assert len({re.search(r"\S(\s{2,})\S", line).end() for line in printed[start:-1] if not line.startswith(" ")}) == 1


def test_it_runs_as_a_module():
    done = subprocess.run([sys.executable, "-m", "advcontrast"], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("```text\nadvcontrast  ")
    assert done.stderr == ""


def test_it_imports_nothing_heavy_but_torchvision():
    before = "import atexit\natexit.register(lambda: print('loaded', *sys.modules))"
    loaded = lines(before=before)[-1].split()
    assert not {"timm", "lightning", "pytorch_lightning", "accelerate", "foolbox", "matplotlib.pyplot"} & set(loaded)


def test_adapters_and_examples_are_all_there(printed):
    adapters = {f"adapters.{file.stem}" for file in (ROOT / "src/advcontrast/adapters").glob("[!_]*.py")}
    scripts = {f"examples/{file.name}" for file in (ROOT / "examples").glob("*.py")}
    assert adapters | scripts | {"examples/cifar"} <= set(rows(printed))


def imported(file):
    """Return every module that a file imports by an absolute name at its beginning, by another way than ours."""
    statements = [
        node for node in ast.parse(file.read_text()).body if not isinstance(node, (ast.FunctionDef, ast.ClassDef))
    ]
    nodes = [node for statement in statements for node in ast.walk(statement)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level == 0}
    return {name.split(".")[0] for name in names}


FILES = sorted([*(ROOT / "examples").glob("*.py"), *(ROOT / "src/advcontrast/adapters").glob("[!_]*.py")])


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.parent.name}/{file.name}")
def test_what_a_file_needs_is_what_it_imports(file):
    found = {name for group in main.needs([file]) for name in group}
    assert found == imported(file) - set(sys.stdlib_module_names) - {"advcontrast", "torch"}


def test_the_scripts_of_a_folder_need_what_all_of_them_import_but_not_each_other():
    files = sorted((ROOT / "examples/cifar").glob("*.py"))
    stems = {file.stem for file in files}
    found = {name for group in main.needs(files, stems) for name in group}
    known = {"advcontrast", "torch", *sys.stdlib_module_names, *stems}
    assert found == set().union(*map(imported, files)) - known
    assert "numpy" in found


def test_what_takes_the_place_of_each_other_is_one_need():
    assert ["lightning", "pytorch_lightning"] in main.needs([ROOT / "examples/lightning_acl.py"])
    assert main.needs([ROOT / "src/advcontrast/adapters/lightning.py"]) == [["lightning", "pytorch_lightning"]]


def test_what_is_tried_together_is_needed_together():
    assert main.needs([ROOT / "src/advcontrast/adapters/hub.py"]) == [["huggingface_hub"], ["safetensors"]]


def test_every_need_has_the_name_that_pip_knows():
    known = metadata.packages_distributions()
    plain = lambda name: re.sub(r"[-_.]+", "-", name).lower()  # noqa: E731
    needed = {name for file in FILES for group in main.needs([file]) for name in group} | set(main._DISTRIBUTIONS)
    for name in needed & set(known):
        assert plain(main._distribution(name)) in map(plain, known[name])


REQUIRES = ["torch>=2.10", "tqdm; extra == 'eval'", 'a_b.c[x]>=1 ; python_version > "3" and extra == "eval"']
REQUIRES += ["advcontrast[eval]; extra == 'all'", "tqdm; extra == 'all'", "ruff; extra == 'all'"]


def test_extras_are_those_of_the_metadata(monkeypatch):
    monkeypatch.setattr(metadata, "requires", lambda name: REQUIRES)
    assert main.extras() == {"eval": ["tqdm", "a_b.c"], "all": ["tqdm", "a_b.c", "ruff"]}


def test_extras_that_are_installed_are_known_to_the_metadata():
    assert set(main.extras()) <= set(metadata.metadata("advcontrast").get_all("Provides-Extra"))
    assert "pyautoattack" in main.extras()["eval"]


BLIND = """
from importlib import metadata, util
old_version, old_spec = metadata.version, util.find_spec
def version(name):
    if name in {names}: raise metadata.PackageNotFoundError(name)
    return old_version(name)
metadata.version = version
util.find_spec = lambda name, *rest: None if name in {names} - {{"advcontrast"}} else old_spec(name, *rest)
"""


def without(*names):
    return BLIND.format(names=set(names))


def test_what_is_missing_is_named_with_the_command_that_mends_it():
    found = rows(
        lines(before=without("accelerate", "lightning", "pytorch_lightning", "pytorch-lightning", "matplotlib", "tqdm"))
    )
    assert found["accelerate"] == found["tqdm"] == "missing"
    assert found["examples/accelerate_acl.py"] == "missing: pip install accelerate"
    assert found["adapters.accelerate"] == "missing: pip install accelerate"
    assert found["examples/lightning_acl.py"] == "missing: pip install lightning"
    assert found["examples/quickstart.py"] == "missing: pip install matplotlib"
    assert found["examples"].startswith("missing: pip install ")
    assert "tqdm" in found["examples"]


@pytest.mark.parametrize("name", ["lightning", "pytorch_lightning"])
def test_either_name_of_lightning_will_do(monkeypatch, name):
    monkeypatch.setattr(main, "importable", lambda module: module in (name, "numpy", "torchvision"))
    assert main._missing(main.needs([ROOT / "examples/lightning_acl.py"])) == []


@needs_lightning
def test_a_broken_torchvision_is_told_from_a_missing_one(tmp_path):
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    before = f"del sys.modules['torchvision']; sys.path.insert(0, {str(tmp_path)!r})"
    found = rows(lines(before=before))
    assert found["torchvision"] == f"{metadata.version('torchvision')}, broken: RuntimeError on import"
    assert found["examples/lightning_acl.py"] == "missing: pip install --upgrade torch torchvision"
    assert found["adapters.lightning"] == "can run"


@needs_lightning
def test_a_missing_torchvision_is_told_too():
    found = rows(lines(before=without("torchvision")))
    assert found["torchvision"] == "missing"
    assert found["examples/lightning_acl.py"] == "missing: pip install torchvision"


def test_a_folder_of_that_name_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "surely_no_package").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    assert not main.importable("surely_no_package")
    assert not main.importable("nothing_of_that_name")
    assert main.importable("ast")


def test_a_source_tree_without_metadata_is_enough():
    found = rows(lines(before=without("advcontrast") + "metadata.requires = version"))
    assert found["unknown"] == "advcontrast is not installed: pip install -e . in its folder"
    assert found["advcontrast"] == advcontrast.__version__
    assert found["examples/quickstart.py"] == "can run"


def test_a_package_without_examples_says_where_they_are(monkeypatch, tmp_path):
    monkeypatch.setattr(main, "_EXAMPLES", tmp_path / "examples")
    found = rows(main.report())
    assert found["examples"] == "not here: they come with a clone of the repository"
    assert not any(name.startswith("examples/") for name in found)


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


def test_long_rows_are_wrapped_below_their_column():
    names = " ".join(f"some-package-{i}" for i in range(20))
    printed = list(main._section("Title", {"a": "short", "longer": names}))
    assert printed[:3] == ["", "Title", "a       short"]
    assert max(map(len, printed)) <= 80
    assert all(line.startswith(" " * 8) for line in printed[4:])
    assert " ".join(line[8:] for line in printed[3:]) == names
