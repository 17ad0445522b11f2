"""Links of the documentation lead somewhere, and one that does not is noticed."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("links", ROOT / "docs" / "links.py")
links = importlib.util.module_from_spec(spec)
spec.loader.exec_module(links)


@pytest.fixture
def site(tmp_path):
    (tmp_path / "guides").mkdir()
    (tmp_path / "index.html").write_text('<h1 id="top">Home</h1><a href="guides/a%20b.html#here">a</a>')
    (tmp_path / "guides" / "a b.html").write_text('<a name="here"></a><a href="../index.html">home</a><a href="#here">')
    (tmp_path / "picture.png").touch()
    return tmp_path


def test_a_site_in_order_has_no_mistakes(site):
    (site / "c.html").write_text(
        '<img src="picture.png"><a href="guides/../">x</a><a href="https://example.org/a#b">y</a>'
    )
    assert links.mistakes(site) == []


@pytest.mark.parametrize(
    ("link", "wrong"),
    [
        ("gone.html", "leads to no file of the site"),
        ("picture.jpg", "leads to no file of the site"),
        ("../outside.html", "leads to no file of the site"),
        ("/etc/hostname", "leads to no file of the site"),
        ("index.html#nowhere", "leads to no such place in index.html"),
        ("#nowhere", "leads to no such place in c.html"),
        ("http://example.org", "is not an https address"),
        ("https://localhost", "is not an https address"),
        ("file:///etc/hostname", "is not an https address"),
        ("https://[example.org", "is not an address: Invalid IPv6 URL"),
    ],
)
@pytest.mark.parametrize("tag", ['<a href="{}">x</a>', '<img src="{}">'])
def test_a_broken_link_is_named(site, tag, link, wrong):
    links.page.cache_clear()
    (site / "c.html").write_text(tag.format(link))
    assert links.mistakes(site) == [f"c.html: {link} {wrong}"]


def test_a_folder_without_pages_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["links.py", str(tmp_path)])
    with pytest.raises(SystemExit, match="expected a built site"):
        links.main()


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_files_that_a_page_of_the_repository_names_exist(page):
    text = (ROOT / page).read_text()
    local = [target for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text) if not target.startswith("https://")]
    named = re.findall(r"`((?:docs|examples|benchmarks|tests|src)/[\w./-]+\.\w+)`", text)
    missing = [target for target in (*local, *named) if not (ROOT / target).exists()]
    assert missing == []


def test_the_name_of_a_field_or_a_setting_is_not_a_target(site):
    links.page.cache_clear()
    (site / "c.html").write_text('<meta name="viewport"><input name="q"><a href="#viewport">x</a><a href="#q">y</a>')
    assert links.mistakes(site) == [f"c.html: #{name} leads to no such place in c.html" for name in ("viewport", "q")]
