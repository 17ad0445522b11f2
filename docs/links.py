"""Check every link of the built site without a network: ``python docs/links.py docs/_build/html``.

A link within the site must lead to a file, and to a place that this file has; so must every image, script and style. A
link elsewhere must be an https address with a host; whether it answers is not checked.
"""

from __future__ import annotations

import sys
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """The links of a page, and the places in it that can be linked to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.places: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Note links and names of a tag."""
        for name, value in attributes:
            if name in ("href", "src") and value is not None:
                self.links.append(value)
            elif value and (name == "id" or (name, tag) == ("name", "a")):  # not the "name" of a form
                self.places.add(value)


@cache
def page(path: Path) -> Page:
    """Return a page; each file is read once."""
    return Page(path.read_text(encoding="utf-8"))


def mistake(source: Path, link: str, site: Path) -> str | None:
    """Return what is wrong with a link of the page ``source``, or None."""
    try:
        address = urlsplit(link)
    except ValueError as error:
        return f"is not an address: {error}"
    if address.scheme in ("data", "mailto"):
        return None
    if address.scheme or address.netloc:
        return None if address.scheme == "https" and "." in address.netloc else "is not an https address"
    target = (source.parent / unquote(address.path)).resolve() if address.path else source
    if target.is_dir():
        target /= "index.html"
    if site not in target.parents or not target.is_file():
        return "leads to no file of the site"
    place = unquote(address.fragment)
    if place and target.suffix == ".html" and place not in page(target).places:
        return f"leads to no such place in {target.relative_to(site)}"
    return None


def mistakes(site: Path) -> list[str]:
    """Return what is wrong with the links of a site, a line each."""
    site = site.resolve()
    found = []
    for source in sorted(site.rglob("*.html")):
        for link in dict.fromkeys(page(source).links):
            if wrong := mistake(source, link, site):
                found.append(f"{source.relative_to(site)}: {link} {wrong}")
    return found


def main() -> None:
    """Print all mistakes, and fail if there are any."""
    site = Path(sys.argv[1])
    pages = len(list(site.rglob("*.html")))
    if not pages:
        raise SystemExit(f"links: expected a built site in {site}, got no page. Run sphinx-build first.")
    found = mistakes(site)
    print(*found, f"{len(found)} broken links in {pages} pages", sep="\n")
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
