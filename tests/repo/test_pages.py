"""The code on the pages runs, block after block, as a reader would run it, and gives what the comments say."""

import ast
import contextlib
import importlib
import io
import pkgutil
import re
import textwrap
import tokenize
import warnings
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.distributed as dist

import advcontrast

DOCS = Path(__file__).parents[2] / "docs"
SHOWN, HIDDEN = "code-block:: python", "testsetup::"  # the reader does not see what a page sets up
PAGES = sorted(page for page in DOCS.rglob("*.rst") if not {"_build", "_gallery"} & set(page.parts))
OPTIONAL = (
    "accelerate",
    "foolbox",
    "kornia",
    "lightly",
    "lightning",
    "pytorch_metric_learning",
    "timm",
    "torchattacks",
)

# A comment behind a statement that is no word of explanation, such as 0.25, [1, 2], torch.Size([16]) or Accuracy(...)
VALUE = re.compile(r"-?\d|True\b|False\b|[\[('{]|tensor\(|torch\.|[A-Z]\w*\(")


def blocks(text):
    """Return the Python of a page, with the line that each block begins in."""
    pattern = rf"\.\. (?:{SHOWN}|{HIDDEN})\n(?:   :.*\n)*\n((?:   .*\n|\n)+)"
    return [(text[: found.start(1)].count("\n") + 1, textwrap.dedent(found[1])) for found in re.finditer(pattern, text)]


def run(code, names, line=1, page="page"):
    """Run a block, and return how many of its comments told what a statement gives; raise if one is wrong."""
    comments = {
        token.start[0]: token.string[1:].strip()
        for token in tokenize.generate_tokens(io.StringIO(code).readline)
        if token.type == tokenize.COMMENT and token.line[: token.start[1]].strip()
    }
    told = 0
    for statement in ast.parse("\n" * (line - 1) + code).body:
        comment = comments.get(statement.end_lineno - line + 1, "")
        given, printed = None, io.StringIO()
        with contextlib.redirect_stdout(printed):
            if isinstance(statement, ast.Expr):
                given = eval(compile(ast.Expression(statement.value), page, "eval"), names)
            else:
                exec(compile(ast.Module([statement], []), page, "exec"), names)
                if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                    given = names[statement.targets[0].id] if re.fullmatch(r"\d+|\w+\(.*\)", comment) else None
        found = printed.getvalue().strip() if given is None else repr(given)
        if found and VALUE.match(comment):
            assert re.match(re.escape(found) + r"($|[:,])", comment), f"{page}:{statement.end_lineno}: {found}"
            told += 1
    return told


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """An empty folder to work in, one process that torchrun may have started, and nothing left behind."""
    monkeypatch.chdir(tmp_path)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "0")
    random = torch.get_rng_state()
    torch.manual_seed(0)
    yield
    if dist.is_initialized():
        dist.destroy_process_group()
    torch.set_rng_state(random)


CODE = [pytest.param(page, id=page.stem) for page in PAGES if blocks(page.read_text())]


@pytest.mark.nightly
@pytest.mark.parametrize("page", CODE)
def test_the_code_of_a_page_runs(page, bench):
    text = page.read_text()
    others = [package for package in OPTIONAL if re.search(rf"^   (?:import|from) {package}\b", text, re.M)]
    for package in others:
        pytest.importorskip(package)
    names = {"__name__": page.stem}
    with warnings.catch_warnings():
        if others:  # which may warn about themselves
            warnings.simplefilter("ignore")
        for line, code in blocks(text):
            run(code, names, line, page.name)


def test_a_page_whose_code_does_not_run_is_noticed():
    page = f".. {HIDDEN}\n\n   x = 1\n\nText.\n\n.. {SHOWN}\n   :emphasize-lines: 1\n\n   y = x + z\n\nText.\n"
    (_, setup), (line, code) = blocks(page)
    names = {}
    exec(setup, names)
    assert (line, code.strip()) == (10, "y = x + z")
    with pytest.raises(NameError, match="'z'"):
        exec(code, names)


def test_every_guide_has_code_that_runs():
    without = {page.stem for page in (DOCS / "guides").glob("*.rst") if not blocks(page.read_text())}
    assert without == {"pipeline"}  # whose commands the tests of the examples run


@pytest.mark.parametrize(
    "code",
    [
        "[1][0]  # 2",
        "print(1, 2)  # 1 3",
        "(\n    1,\n    2,\n)  # (1, 3)",
        "x = dict(a=1)\nx['a']  # 12",
        "y = 3  # 33",
    ],
)
def test_a_comment_that_tells_another_value_is_noticed(code):
    with pytest.raises(AssertionError, match=r"page:\d: "):
        run(code, {})


def test_comments_in_words_tell_no_value():
    code = "x = [1, 2]  # yours\nlen(x)  # 2: the images\nprint(x)  # [1, 2]\nx  # so many\n# 3\nz = 4  # -1: none"
    assert run(code, {}) == 2


def documented(text):
    """Return the objects that the directives of a page document."""
    found, module = [], None
    for kind, name in re.findall(r"^\.\. ([\w:]+):: *([\w.]+)(?:\(\))?$", text, re.M):
        if kind in ("py:module", "currentmodule"):
            module = name
        elif kind in ("autofunction", "autoclass", "autoexception", "autodata", "py:data"):
            path = name if name.startswith("advcontrast.") else f"{module}.{name}"
            found.append(pkgutil.resolve_name(":".join(path.rsplit(".", 1))))
    return found


def test_every_public_name_is_documented_once():
    found = [thing for page in (DOCS / "api").glob("*.rst") for thing in documented(page.read_text())]
    modules = {info.name for info in pkgutil.walk_packages(advcontrast.__path__, "advcontrast.")}
    for name in ["advcontrast", *sorted(name for name in modules if "._" not in name)]:
        try:
            module = importlib.import_module(name)
        except ImportError:  # an adapter whose library is not installed
            continue
        for public in getattr(module, "__all__", ()):
            thing = getattr(module, public)
            times = sum(other is thing for other in found)
            assert times == 1 or isinstance(thing, ModuleType), f"{name}.{public} is documented {times} times"
