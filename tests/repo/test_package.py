"""Public names, the cost of the import, and the examples of the README."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import advcontrast

ROOT = Path(__file__).parents[2]

CONTRACT = {
    "ACLOutput",
    "ACLTrainer",
    "Checkpoint",
    "ContrastivePairAugment",
    "DualBatchNorm1d",
    "DualBatchNorm2d",
    "DualBatchNorm3d",
    "NTXentLoss",
    "PGDAttack",
    "SemiSupervisedLoss",
    "TRADESLoss",
    "bn_branch",
    "branch_parameters",
    "checkpoint_context_fn",
    "convert_to_dual_bn",
    "export_branch",
    "fit",
    "functional",
    "set_bn_branch",
}


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_public_names_are_those_of_the_contract():
    assert set(advcontrast.__all__) >= CONTRACT


def test_every_public_name_exists_and_is_documented():
    for name in set(advcontrast.__all__) - {"__version__"}:
        assert getattr(advcontrast, name).__doc__, name


def test_importing_brings_in_torch_and_nothing_heavier():
    code = "import sys, torch; before = set(sys.modules); import advcontrast; print(*set(sys.modules) - before)"
    new = {name.split(".")[0] for name in run_python(code).split()}
    # torch loads parts of itself late, and those may load the standard library.
    assert new - sys.stdlib_module_names - {"torch", "typing_extensions"} == {"advcontrast"}


def test_importing_works_without_numpy_and_torchvision():
    code = "import sys; sys.modules.update(numpy=None, torchvision=None); import advcontrast; print('imported')"
    assert run_python(code).strip() == "imported"


def test_importing_leaves_the_global_random_state_alone():
    code = "import torch; a = torch.get_rng_state(); import advcontrast; print(torch.equal(a, torch.get_rng_state()))"
    assert run_python(code).strip() == "True"


def test_the_version_is_written_once():
    assert f'__version__ = "{advcontrast.__version__}"' in (ROOT / "src/advcontrast/__init__.py").read_text()
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()


def test_the_package_is_typed():
    assert (Path(advcontrast.__file__).parent / "py.typed").exists()


def readme_examples():
    return re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)


def test_the_readme_example_runs():
    example, _ = readme_examples()
    assert len(example.strip().splitlines()) <= 16
    names = {}
    exec(compile(example, "README.md", "exec"), names)
    assert set(names["encoder"].state_dict()) == set(names["resnet18"]().state_dict())
    assert all(value.isfinite().all() for value in names["encoder"].state_dict().values())


def test_the_readme_example_of_evaluation_runs(tmp_path, monkeypatch):
    pytest.importorskip("pyautoattack")
    monkeypatch.chdir(tmp_path)
    _, example = readme_examples()
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
    x = torch.rand(6, 3, 8, 8)
    names = {"model": model, "loader": [(x, model(x).argmax(1))]}
    exec(compile(example, "README.md", "exec"), names)
    assert names["aa"].accuracy <= names["ra"].accuracy
    assert (tmp_path / "runs" / "aa").is_dir()


def test_the_readme_names_the_commands_that_ci_runs():
    readme = (ROOT / "README.md").read_text()
    command = 'pip install -e ".[test]" && pytest'
    assert command in readme
    assert command in (ROOT / ".ci/run").read_text()


def test_nothing_is_installed_from_an_index_that_does_not_have_this_package():
    files = [
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.rst"),
        *(ROOT / "src").rglob("*.py"),
        *ROOT.glob("examples/**/*.py"),
    ]
    commands = re.compile(r"""pip install (-\S+ )*["'`]*advcontrast""")
    assert [str(file) for file in files if commands.search(file.read_text())] == []


@pytest.mark.parametrize("mode", ["S2S", "A2A", "A2S", "DS"])
def test_the_readme_explains_every_mode(mode):
    assert re.search(rf"^\| `{mode}` \|", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
