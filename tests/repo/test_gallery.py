"""Scripts of the gallery, checked without running them."""

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted((ROOT / "docs" / "gallery").glob("*.py"))
EMBEDDED = "examples/data/fashion-mini.npz"
OWN = {"metrics.csv"}  # what fit writes, into a folder that the script made
INSTALLED = {"advcontrast", "matplotlib", "numpy", "torch"} | sys.stdlib_module_names
REMOTE = {"http", "requests", "socket", "urllib"}
WIDTH = 88  # characters of code that a page shows without a scroll bar


def calls(tree, name):
    return [
        node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name
    ]


def imports(tree):
    """Yield each module that is imported from, and the name, ``None`` for the module itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.module, alias.name) for alias in node.names)


def private(module, name):
    return name is None or name not in importlib.import_module(module).__all__


def defects(source):
    """Return what is wrong with a script of the gallery."""
    tree = ast.parse(source)
    found = []
    title, underline, blank = ((ast.get_docstring(tree, clean=False) or "").strip("\n") + "\n\n\n").split("\n")[:3]
    if not title or underline != "=" * len(title) or blank:
        found.append("no title")
    for module, name in imports(tree):
        package = module.split(".")[0]
        if package not in INSTALLED or package in REMOTE:
            found.append(f"imports {package}")
        if package == "advcontrast" and private(module, name):
            found.append(f"{name or module} is not public")
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    files = {text for text in texts if re.fullmatch(r"[\w./~-]+\.[A-Za-z]\w{1,4}", text)}
    found += [f"reads {file}" for file in sorted(files - {EMBEDDED} - OWN)]
    if calls(tree, "load") and EMBEDDED not in files:
        found.append("does not say what it loads")
    figures, shown = (
        len([*calls(tree, "subplots"), *calls(tree, "figure")]),
        len(calls(tree, "show")),
    )
    if not shown:
        found.append("no plot")
    if re.findall(r"^# %%", source, re.M)[1:] == []:
        found.append("no cells")
    thumbnail = re.search(r"^# sphinx_gallery_thumbnail_number = (-?\d+)$", source, re.M)
    number = int(thumbnail[1]) if thumbnail else 1
    if number == 0 or abs(number) > shown or (shown > 1 and not thumbnail):
        found.append("no thumbnail")
    if figures < shown:
        found.append("shows a figure twice")
    if (calls(tree, "fit") or calls(tree, "backward")) and not calls(tree, "manual_seed"):
        found.append("trains without a seed")
    text = set(range(1, tree.body[0].end_lineno + 1))
    for number, line in enumerate(source.splitlines(), 1):
        if len(line) > WIDTH and number not in text and not line.startswith("#"):
            found.append(f"line {number} is wider than a page")
    return found


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_keeps_what_the_gallery_promises(script):
    assert defects(script.read_text()) == []


def test_the_gallery_has_a_tutorial_and_pages_in_order():
    assert [script.name.split("_")[:2] for script in SCRIPTS] == [["plot", str(i)] for i in range(len(SCRIPTS))]
    assert SCRIPTS[0].stem == "plot_0_tutorial"
    assert len(SCRIPTS) >= 7


def test_the_file_that_the_scripts_read_is_part_of_the_repository():
    assert (ROOT / EMBEDDED).is_file()


def test_the_gallery_has_a_title():
    title, underline = (ROOT / "docs" / "gallery" / "GALLERY_HEADER.rst").read_text().splitlines()[:2]
    assert underline == "=" * len(title)


SOUND = f'''"""
Title
=====

Text.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from advcontrast import fit

torch.manual_seed(0)
np.load("{EMBEDDED}")

# %%
fit()

# %%
figure, ax = plt.subplots()
plt.show()
'''


def test_a_sound_script_has_no_defect():
    assert defects(SOUND) == []


@pytest.mark.parametrize(
    ("old", "new", "defect"),
    [
        ("Title\n=====", "Title\n===", "no title"),
        ("Title\n=====\n", "", "no title"),
        ('"""\nTitle', 'x = 1\n"""\nTitle', "no title"),
        ("import torch\n", "import torch\nimport timm\n", "imports timm"),
        ("import torch\n", "import torch\nimport urllib.request\n", "imports urllib"),
        ("import fit", "import fit, attacks", "attacks is not public"),
        ("import fit", "import fit\nimport advcontrast.engine", "advcontrast.engine is not public"),
        ("advcontrast import fit", "advcontrast.engine import fit, Plan", "Plan is not public"),
        ("fit()", 'fit("results.csv")', "reads results.csv"),
        ("fit()", 'open("../data/labels.txt")', "reads ../data/labels.txt"),
        (f'"{EMBEDDED}"', "path", "does not say what it loads"),
        ("plt.show()", "", "no plot"),
        ("# %%\nfit()", "fit()", "no cells"),
        ("plt.show()\n", "plt.show()\nplt.subplots()\nplt.show()\n", "no thumbnail"),
        ("plt.show()\n", "plt.show()\n\n# sphinx_gallery_thumbnail_number = 2\n", "no thumbnail"),
        ("plt.show()\n", "plt.show()\nplt.show()\n\n# sphinx_gallery_thumbnail_number = 2\n", "shows a figure twice"),
        ("torch.manual_seed(0)", "", "trains without a seed"),
        ("fit()", f"fit({', '.join('12345678')}, {'x' * 70})", "line 17 is wider than a page"),
    ],
)
def test_a_defect_is_noticed(old, new, defect):
    assert old in SOUND
    assert defect in defects(SOUND.replace(old, new, 1))
