"""Public names, the cost of the import, and the examples of the README."""

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

import advcontrast
from advcontrast import strategies
from advcontrast.strategies.learner import Block

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


def test_importing_brings_in_nothing_heavier_than_torch_and_leaves_the_random_state_alone():
    code = """
import sys, torch
modules, state = set(sys.modules), torch.get_rng_state()
import advcontrast
print(torch.equal(state, torch.get_rng_state()), *set(sys.modules) - modules)
"""
    same, *modules = run_python(code).split()
    assert same == "True"
    new = {name.split(".")[0] for name in modules}
    # torch loads parts of itself late, and those may load the standard library.
    assert new - sys.stdlib_module_names - {"torch", "typing_extensions"} == {"advcontrast"}


def test_importing_works_without_numpy_and_torchvision():
    code = "import sys; sys.modules.update(numpy=None, torchvision=None); import advcontrast; print('imported')"
    assert run_python(code).strip() == "imported"


def test_the_version_is_written_once():
    assert f'__version__ = "{advcontrast.__version__}"' in (ROOT / "src/advcontrast/__init__.py").read_text()
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text()


def test_the_package_is_typed():
    assert (Path(advcontrast.__file__).parent / "py.typed").exists()


README = (ROOT / "README.md").read_text()


def test_the_readme_has_at_most_700_words():
    assert len(README.split()) <= 700


def test_the_example_of_the_readme_trains_on_a_folder_of_images_and_prints_ta_and_ra(tmp_path, monkeypatch, capsys):
    (example,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(example.split("\n\n")[-1].strip().splitlines()) + example.count("import ") <= 15
    images = pytest.importorskip("PIL.Image")
    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(2):
            images.effect_noise((40, 36), 50 + i).save(tmp_path / "images" / name / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(re.sub(r"epochs=\d+", "epochs=1", example), "README.md", "exec"), names)
    assert re.fullmatch(r"TA \d+\.\d%, RA \d+\.\d%\n", capsys.readouterr().out)
    assert not [module for module in names["classifier"].modules() if isinstance(module, advcontrast.DualBatchNorm2d)]
    assert (tmp_path / "runs/acl/metrics.csv").exists()


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)#]+)", README))))
def test_the_readme_links_to_files(target):
    assert (ROOT / target).is_file()


def test_the_readme_names_every_method():
    page = (ROOT / "docs/api/methods.rst").read_text()
    classes = (getattr(strategies, name) for name in re.findall(r"autoclass:: (\w+)", page))
    modules = [each for each in classes if issubclass(each, torch.nn.Module) and not issubclass(each, Block)]
    methods = [module.__name__ for module in modules]
    assert "DeACL" in methods
    assert [name for name in methods if name not in README.replace("-", "")] == []


def test_the_citation_is_of_this_version():
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {advcontrast.__version__}\n" in citation
    (day,) = re.findall(r"date-released: (\S+)", citation)
    assert f"\n## {advcontrast.__version__} - {day}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_the_readme_names_the_commands_that_ci_runs():
    command = 'pip install -e ".[test]" && pytest'
    assert command in README
    assert command in (ROOT / ".ci/run").read_text()


def test_a_run_of_the_tests_prints_the_version_of_torch(pytestconfig):
    header = pytestconfig.hook.pytest_report_header(config=pytestconfig, start_path=ROOT)
    assert f"torch {version('torch')}, " in str(header)


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
def test_a_page_explains_every_mode(mode):
    assert re.search(rf"^{mode}: .+\n-+$", (ROOT / "docs/modes.rst").read_text(), flags=re.MULTILINE)
