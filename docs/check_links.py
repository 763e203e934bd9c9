"""Looks for dead links within a folder of HTML: files that are not there, and missing anchors.

    python docs/check_links.py build/site

Other hosts are not asked: `python3 dev.py site --external` does that.
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit


class Page(HTMLParser):
    """The links of a page, and what may be linked to within it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if value is None:
                continue
            if name == "id" or (tag == "a" and name == "name"):
                self.anchors.add(value)
            elif name in ("href", "src"):
                self.links.append(value)


def dead_links(folder: Path) -> list[str]:
    """A line for each link that leads nowhere."""
    folder = folder.resolve()
    pages = {
        path: Page(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))
    }
    dead = []
    for path, page in pages.items():
        for link in page.links:
            address, anchor = urldefrag(link)
            if urlsplit(address).scheme or address.startswith("//"):
                continue
            target = (path.parent / unquote(address.partition("?")[0])).resolve()
            if not address:
                target = path
            elif target.is_dir():
                target /= "index.html"
            where = f"{path.relative_to(folder)}: {link}"
            if not target.is_file() or not target.is_relative_to(folder):
                dead.append(f"{where}: no such file")
            elif anchor and target in pages and unquote(anchor) not in pages[target].anchors:
                dead.append(f"{where}: no such anchor")
    return dead


if __name__ == "__main__":
    found = dead_links(Path(sys.argv[1]))
    print(*found, sep="\n")
    print(f"{len(found)} dead links in {sys.argv[1]}")
    sys.exit(bool(found))
