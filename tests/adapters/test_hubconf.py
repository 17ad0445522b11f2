"""torch.hub finds the entry points of a clone, installed or not."""

import sys
from pathlib import Path

import pytest
import torch

import advcontrast
from advcontrast.norm import DualNorm
from tests import processes

ROOT = Path(advcontrast.__file__).parents[2]
pytestmark = pytest.mark.skipif(not (ROOT / "hubconf.py").exists(), reason="needs a clone, not an installed package")

NOT_INSTALLED = """
import sys, importlib.util, warnings
warnings.simplefilter("error")
sys.path[:] = [path for path in sys.path if not path.rstrip("/").endswith("/src")]
if importlib.util.find_spec("advcontrast"):
    sys.exit(77)
import torch
root, before = sys.argv[1], list(sys.path)
"""


def run(code):
    """Run code in a process that cannot import the package, and return what it prints."""
    done = processes.run("-c", NOT_INSTALLED + code, ROOT)
    if done.returncode == 77:
        pytest.skip("the package is installed, and not as a link to a clone")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def load(name, *arguments, **settings):
    return torch.hub.load(str(ROOT), name, *arguments, source="local", **settings)


@pytest.fixture
def _cloned(tmp_path, monkeypatch):
    """Let torch.hub, which lists and helps for GitHub only, find this folder where it would put its clone."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_get_cache_or_reload", lambda *_, **__: str(ROOT))


@pytest.mark.usefixtures("_cloned")
def test_every_entry_point_is_listed_and_nothing_else():
    entries = torch.hub.list("owner/advcontrast", trust_repo=True)
    assert entries == ["backbone", "pretrained", "resnet18", "resnet34", "resnet50", "wide_resnet34_10"]


@pytest.mark.parametrize("name", ["backbone", "pretrained", "resnet18", "resnet34", "resnet50", "wide_resnet34_10"])
@pytest.mark.usefixtures("_cloned")
def test_the_help_of_every_entry_point_tells_whether_it_is_trained(name):
    found = torch.hub.help("owner/advcontrast", name, trust_repo=True)
    assert ("trained encoder" if name == "pretrained" else "untrained") in found


def test_a_network_of_the_package_is_loaded_with_its_settings():
    assert load("resnet18", num_classes=3, width=2)(torch.rand(2, 3, 8, 8)).shape == (2, 3)


def test_a_backbone_is_dual():
    assert any(isinstance(module, DualNorm) for module in load("backbone", "resnet18", width=2).modules())


def test_a_backbone_need_not_be_dual():
    model = load("backbone", "resnet18", width=2, dual=False)
    assert not any(isinstance(module, DualNorm) for module in model.modules())


def test_the_path_is_given_back():
    before = list(sys.path)
    load("resnet18", width=2)
    assert sys.path == before


def test_a_clone_that_is_not_installed_works():
    code = """
model = torch.hub.load(root, "resnet18", source="local", num_classes=3, width=2)
print(list(model(torch.rand(2, 3, 8, 8)).shape), sys.path == before)
"""
    assert run(code) == "[2, 3] True"


def test_late_imports_are_found_in_a_clone():
    code = """
model = torch.hub.load(root, "backbone", "torchvision/resnet18", source="local")
from advcontrast.evaluation import accuracy
print(type(model[1].bn1).__name__)
"""
    assert run(code) == "DualBatchNorm2d"


def test_the_clone_is_listed_where_it_is_not_installed():
    code = """
torch.hub._get_cache_or_reload = lambda *_, **__: root
entries = torch.hub.list("owner/advcontrast", trust_repo=True)
print(len(entries), all("trained" in torch.hub.help("owner/advcontrast", name, trust_repo=True) for name in entries))
"""
    assert run(code) == "6 True"


def test_wrong_arguments_say_so():
    with pytest.raises(ValueError, match=r"^backbone: expected the name of a network of "):
        load("backbone", "resnet1")
