"""No file of the library, its examples, its benchmarks or its documentation can be made to run what it reads."""

import re
from pathlib import Path

import pytest

import advcontrast
from tests.security.lint import violations

PACKAGE = Path(advcontrast.__file__).parent
ROOT = Path(__file__).parents[2]
FILES = sorted(
    [
        *PACKAGE.rglob("*.py"),
        *(path for folder in ("examples", "benchmarks", "docs") for path in (ROOT / folder).rglob("*.py")),
    ]
)
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.rst") if not {"_build", "_gallery"} & set(path.parts))
#: Allowed uses by file, and why the promises of SECURITY.md hold nevertheless.
EXCEPTIONS = {
    # Processes of one run trust each other: who can connect to them can run code, as in any run of torchrun.
    "advcontrast/distributed.py": [
        "torch.distributed.all_gather_object, which pickles",
        "torch.distributed.broadcast_object_list, which pickles",
    ],
}


def name_of(path):
    return "/".join(path.parts[-2:])


def test_nothing_that_is_read_can_be_run():
    found = {path: {violation.partition(": ")[2] for violation in violations(path.read_text())} for path in FILES}
    assert {name_of(path): names for path, names in found.items() if names} == {
        name: set(names) for name, names in EXCEPTIONS.items()
    }


def test_all_folders_are_searched():
    names = {path.name for path in FILES}
    assert {"checkpoint.py", "cifar.py", "quickstart.py", "sidebyside.py", "conf.py"} <= names


def test_examples_in_the_documentation_do_not_do_it_either():
    pattern = re.compile(r"^(?:\.\. code-block:: python.*\n|.*::\n)\n((?:[ ]{3,}.*\n|\n)+)", re.M)
    for path in PAGES:
        for block in pattern.findall(path.read_text()):
            lines = [line[3:].removeprefix(">>> ").removeprefix("... ") for line in block.splitlines()]
            try:
                found = violations("\n".join(lines))
            except SyntaxError:  # a command line, or output
                continue
            assert found == [], path


def test_users_are_never_told_to_switch_it_off():
    unsafe = re.compile(r"weights_only\s*=\s*False|allow_pickle\s*=\s*True|trust_repo|http://")
    assert [path for path in (ROOT / "README.md", *PAGES) if unsafe.search(path.read_text())] == []


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "exec('1')",
        "f = eval",
        "import builtins\nbuiltins.exec('1')",
        "from builtins import eval as e\ne('1')",
        "__import__('os')",
        "import pickle\npickle.load(f)",
        "import pickle\npickle.loads(b)",
        "import _pickle\n_pickle.loads(b)",
        "import pickle as p\np.Unpickler(f).load()",
        "from pickle import loads\nloads(b)",
        "from pickle import load as read\nread(f)",
        "from pickle import *",
        "import pickle\nclass P(pickle.Unpickler): pass",
        "import dill\ndill.loads(b)",
        "import cloudpickle\ncloudpickle.load(f)",
        "def f():\n    import marshal\n    return marshal.loads(b)",
        "import shelve\nshelve.open(p)",
        "import joblib\njoblib.load(p)",
        "import pandas as pd\npd.read_pickle(p)",
        "import yaml\nyaml.load(f)",
        "import yaml\nyaml.load(f, Loader=yaml.Loader)",
        "import yaml\nyaml.unsafe_load(f)",
        "import os\nos.system('ls')",
        "from os import system\nsystem('ls')",
        "import os\nos.popen('ls')",
        "import subprocess\nsubprocess.run('ls', shell=True)",
        "import subprocess\nsubprocess.getoutput('ls')",
        "import tempfile\ntempfile.mktemp()",
        "from tempfile import mktemp\nmktemp()",
        "import torch\ntorch.load(p)",
        "import torch\ntorch.load(p, weights_only=safe)",
        "import torch\ntorch.load(p, 'cpu', weights_only=None)",
        "import torch\ntorch.load(p, weights_only=1)",
        "import torch\ntorch.load(p, **{'weights_only': True})",
        "import torch as t\nt.load(p)",
        "from torch import load\nload(p)",
        "load(p, weights_only=False)",
        "import torch\ntorch.hub.load(p, 'm')",
        "import torch.hub\ntorch.hub.load(p, 'm')",
        "from torch import hub\nhub.load(p, 'm')",
        "import torch\ntorch.jit.load(p)",
        "import torch\ntorch.serialization.add_safe_globals([Path])",
        "from torch.serialization import safe_globals\nsafe_globals([Path])",
        "import numpy as np\nnp.load(p, allow_pickle=True)",
        "import numpy as np\nnp.load(p, None, True)",
        "import tarfile\ntarfile.open(p).extractall(p)",
        "with tarfile.open(p) as tar:\n    tar.extract('a', filter='fully_trusted')",
        "with zipfile.ZipFile(p) as archive:\n    archive.extractall(p)",
        "import shutil\nshutil.unpack_archive(p)",
        "url = 'http://example.org/data.tar.gz'",
        "import urllib.request\nurllib.request.urlopen(f'http://{host}/x')",
        "import torch.distributed as dist\ndist.all_gather_object(values, value)",
        "import torch.distributed as dist\ndist.broadcast_object_list(values, 0)",
        "import requests\nrequests.get(url, verify=False)",
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
        "def f(compile=False): ...",
        "import torch\ntorch.compile(model)",
        "import pickle\npickle.dumps(x)",
        "tar.extractall(p, filter='data')",
        "url = 'https://example.org'",
        "import tempfile\ntempfile.mkdtemp()",
        "import torch.distributed as dist\ndist.all_gather(parts, part)",
        "from .. import distributed\ndistributed.all_gather_object(value)",
    ],
)
def test_harmless_code_passes(source):
    assert violations(source) == []
