"""Configuration of Sphinx: ``sphinx-build -W docs docs/_build/html``."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

HERE = Path(__file__).parent
RESULTS = HERE.parent / "examples" / "cifar" / "results"
BENCHMARKS = HERE.parent / "benchmarks" / "results"
sys.path.insert(0, str(HERE))
os.environ.setdefault("OMP_NUM_THREADS", "1")  # the tensors of the gallery are small: more threads are slower
os.environ["TQDM_DISABLE"] = "1"  # pages show results, not progress bars; torch imports tqdm

from diagrams import DIAGRAMS  # noqa: E402
from figures import DRAWINGS, draw_all  # noqa: E402

import advcontrast  # noqa: E402
from tables import write_tables  # noqa: E402

project = "advcontrast"
author = "The advcontrast authors"
copyright = "the advcontrast authors"
version = release = advcontrast.__version__

extensions = [
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "sphinx-mathjax-offline",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.doctest",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build", "gallery", "**/README.rst"]
myst_enable_extensions = ["deflist"]

# References must resolve, except those to other projects.
nitpicky = True
others = "foolbox|huggingface_hub|torch|nn|collections|contextlib|copy|os|pathlib|typing"
nitpick_ignore_regex = [("py:.*", rf"({others}|Tensor|Callable|Any|Curve|Figure|Weight)\b.*")]

# Every page of the gallery is a script that runs when the site is built. One that fails ends the build.
sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "_gallery",
    "within_subsection_order": "FileNameSortKey",
    "copyfile_regex": r".*\.rst",
    "matplotlib_animations": False,
    "min_reported_time": 1,
    "show_signature": False,
    "show_memory": False,
    "remove_config_comments": True,
    "reset_modules_order": "both",
    "write_computation_times": False,
    "download_all_examples": False,
    "abort_on_example_error": True,
}

autodoc_class_signature = "mixed"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autosummary_generate = False
napoleon_custom_sections = [("Attributes", "params_style")]
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_maximum_signature_line_length = 76

html_theme = "furo"
html_title = f"advcontrast {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False


def draw_figures(_app: Sphinx) -> None:
    """Write the figures and tables that the pages include to a folder that git ignores."""
    draw_all(HERE / "_build" / "figures", {**DRAWINGS, **DIAGRAMS})
    write_tables([RESULTS / "small" / "tables.md"], HERE / "_build" / "results.rst")
    for kind in ("cpu", "cheaper"):
        write_tables(sorted((BENCHMARKS / kind).glob("*.md")), HERE / "_build" / f"benchmarks-{kind}.rst", prose=True)
    for name in ("determinism", "long_run", "versions"):
        write_tables([BENCHMARKS / f"{name}.md"], HERE / "_build" / f"{name}.rst", prose=True)
    write_tables([BENCHMARKS / "dial.md"], HERE / "_build" / "backbones-dial.rst", prose=True)
    tried = [BENCHMARKS / "backbones" / f"{kind}.md" for kind in ("batch", "batch-notes", "other", "other-notes")]
    write_tables(tried, HERE / "_build" / "backbones-tried.rst", prose=True)
    for name in ("quickstart", "quickstart-autoattack", "cifar10"):
        write_tables([RESULTS / "evaluation" / name / "results.md"], HERE / "_build" / f"evaluation-{name}.rst")


def readable_numbers(*event: Any) -> tuple[str | None, str | None]:
    """Show fractions as they are written in the source, not as decimal numbers."""
    signature, annotation = event[-2:]
    if signature:
        for fraction in ("1560/255", "96/224", "8/255", "2/255", "1/256"):
            numerator, denominator = fraction.split("/")
            signature = signature.replace(repr(int(numerator) / int(denominator)), fraction)
        # The repr of some defaults is not Python, and leaves the signature unformatted.
        signature = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", signature).replace("<factory>", "...")
    return signature, annotation


def add_other_names(_app: Sphinx, domain: str, _kind: str, content: Any) -> None:
    """Let the entry of an object be the target of links by every package that it belongs to, as those of viewcode."""
    signature = content.parent[0]
    if domain == "py" and signature.get("ids"):
        name = signature["fullname"]
        thing = getattr(sys.modules.get(signature["module"]), name.partition(".")[0], None)
        path = getattr(thing, "__module__", "").split(".")
        names = [".".join([*path[:end], name]) for end in range(1, len(path))]
        signature["ids"] += [other for other in names if other not in signature["ids"]]


def include_changelog(app: Sphinx, page: str, source: list[str]) -> None:
    """Convert the changelog, whose Markdown has headings, code and links only, to its page."""
    if page != "changelog":
        return
    changelog = HERE.parent / "CHANGELOG.md"
    app.env.note_dependency(str(changelog))
    text = changelog.read_text(encoding="utf-8").replace("`", "``")
    text = re.sub(r"\[([^\]]+)\]\(([^)]+)\)", r"`\1 <\2>`__", text)
    for marks, underline in (("###", "~"), ("##", "-"), ("#", "=")):
        text = re.sub(rf"^{marks} (.+)$", lambda m, u=underline: f"{m[1]}\n{u * len(m[1])}", text, flags=re.MULTILINE)
    source[0] = text


def setup(app: Sphinx) -> None:
    """Connect the functions above."""
    app.connect("builder-inited", draw_figures)
    app.connect("autodoc-process-signature", readable_numbers)
    app.connect("object-description-transform", add_other_names)
    app.connect("source-read", include_changelog)
