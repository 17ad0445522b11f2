"""No file of the library or its examples can be made to run what it reads."""

import ast
from pathlib import Path

import pytest

import advcontrast

PACKAGE = Path(advcontrast.__file__).parent
ROOT = Path(__file__).parents[1]
FORBIDDEN = {
    *("eval", "exec", "__import__", "builtins.eval", "builtins.exec"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open"),
    *("dill.load", "dill.loads", "joblib.load", "cloudpickle.load", "cloudpickle.loads", "pandas.read_pickle"),
    *("yaml.load", "yaml.full_load", "yaml.unsafe_load", "torch.hub.load", "torch.jit.load"),
    *("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput", "tempfile.mktemp"),
    *("torch.serialization.add_safe_globals",),
}
TELLTALES = {("weights_only", False), ("shell", True), ("allow_pickle", True), ("trust_repo", True)}


def real_names(tree):
    """Return what each imported name of a file stands for."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.split(".")[0]: alias.asname and alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return {name: real for name, real in names.items() if real}


def violations(source):
    """Return a line for each name that must not be used and each call that must not be made so."""
    tree = ast.parse(source)
    imported, found = real_names(tree), []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)):
            first, *rest = ast.unparse(node).split(".")
            name = ".".join([imported.get(first, first), *rest])
            if name in FORBIDDEN and isinstance(node.ctx, ast.Load):
                found.append(f"line {node.lineno}: {name}")
        if isinstance(node, ast.Call):
            given = {word.arg: getattr(word.value, "value", ...) for word in node.keywords}
            first, *rest = ast.unparse(node.func).split(".")
            name = ".".join([imported.get(first, first), *rest])
            if name == "torch.load" and given.get("weights_only") is not True:
                found.append(f"line {node.lineno}: torch.load without weights_only=True")
            if name.endswith((".extractall", ".extract")) and given.get("filter") != "data":
                found.append(f"line {node.lineno}: {name} without filter='data'")
            found += [f"line {node.lineno}: {key}={value}" for key, value in given.items() if (key, value) in TELLTALES]
    return found


FILES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "examples").rglob("*.py")])


@pytest.mark.parametrize("path", FILES, ids=lambda path: "/".join(path.parts[-3:]))
def test_nothing_that_is_read_can_be_run(path):
    assert violations(path.read_text()) == []


def test_library_and_examples_are_looked_at():
    names = {path.name for path in FILES}
    assert {"checkpoint.py", "cifar.py", "quickstart.py"} <= names


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec('1')",
        "f = eval",
        "import builtins\nbuiltins.exec('1')",
        "__import__('os')",
        "import pickle\npickle.load(f)",
        "import pickle\npickle.loads(b)",
        "import pickle as p\np.Unpickler(f).load()",
        "from pickle import loads\nloads(b)",
        "from pickle import load as read\nread(f)",
        "def f():\n    import marshal\n    return marshal.loads(b)",
        "import shelve\nshelve.open(p)",
        "import joblib\njoblib.load(p)",
        "import yaml\nyaml.load(f)",
        "import yaml\nyaml.unsafe_load(f)",
        "import os\nos.system('ls')",
        "from os import system\nsystem('ls')",
        "import os\nos.popen('ls')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import subprocess\nsubprocess.getoutput('ls')",
        "import tempfile\ntempfile.mktemp()",
        "import torch\ntorch.load(p)",
        "import torch\ntorch.load(p, weights_only=safe)",
        "import torch\ntorch.load(p, 'cpu', weights_only=None)",
        "import torch as t\nt.load(p)",
        "from torch import load\nload(p)",
        "load(p, weights_only=False)",
        "import torch\ntorch.hub.load(p, 'm')",
        "import torch.hub\ntorch.hub.load(p, 'm')",
        "import torch\ntorch.jit.load(p)",
        "import torch\ntorch.serialization.add_safe_globals([Path])",
        "import numpy as np\nnp.load(p, allow_pickle=True)",
        "import tarfile\ntarfile.open(p).extractall(p)",
        "with tarfile.open(p) as tar:\n    tar.extract('a', filter='fully_trusted')",
    ],
)
def test_a_planted_violation_is_caught(source):
    assert len(violations(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "model.eval()",
        "import torch\ntorch.load(p, map_location='cpu', weights_only=True)",
        "import subprocess\nsubprocess.run(['ls'])",
        "import subprocess\nsubprocess.run(['ls'], shell=False)",
        "import numpy as np\nnp.load(p)",
        "import json\njson.load(f)",
        "import yaml\nyaml.safe_load(f)",
        "import re\nre.compile('a')",
        "model.compile()",
        "def f(compile=False): compile",
        "import pickle\npickle.dumps(x)",
        "tar.extractall(p, filter='data')",
    ],
)
def test_what_is_harmless_is_let_through(source):
    assert violations(source) == []
