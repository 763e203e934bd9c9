"""README and the site: links, the long description of the package, addresses."""

import importlib.metadata
import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"\[[^\]]*\]\(([^)]+)\)")
PAGES = sorted(p.name for p in ROOT.glob("*.md"))


def slugs(page):
    """Anchors of a page's headings, as GitHub and MyST make them."""
    heads = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("name", PAGES)
def test_links_between_files_lead_somewhere(name):
    # Those of docs/ are checked when the site is built.
    for link in LINK.findall((ROOT / name).read_text(encoding="utf-8")):
        if link.startswith(("http:", "https:")):
            continue
        path, _, anchor = link.partition("#")
        target = ROOT / (path or name)
        assert target.exists(), link
        assert not anchor or anchor in slugs(target), link


def test_the_long_description_has_no_relative_links():
    try:
        # The field, not get_payload(): once importlib_metadata has been imported, and from
        # Python 3.14 on, the text is taken out of the payload.
        text = importlib.metadata.metadata("normcore")["Description"]
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("normcore is not installed, but imported from its sources")
    assert "## Install" in text
    links = LINK.findall(text)
    assert len(links) > 10
    assert [link for link in links if not link.startswith("https://")] == []


def test_the_address_of_the_project_is_one():
    # Not by tomllib, which Python 3.10 does not have.
    settings = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (home,) = re.findall(r'^Source = "(.*)"$', settings, re.M)
    for address in re.findall(r"https://[^\s'\"]+", settings):
        assert address.startswith(home), address
    assert f'repository-code: "{home}"' in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_dead_links_of_the_site_are_found(tmp_path):
    spec = importlib.util.spec_from_file_location("check_links", ROOT / "docs/check_links.py")
    check_links = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check_links)
    (tmp_path / "a").mkdir()
    (tmp_path / "a/index.html").write_text(
        '<h1 id="top"></h1> <a href="#top"></a> <a href="../b.html#here"></a> <a href="../a/"></a>'
        '<a href="https://example.org/none"></a> <img src="../picture.png">'
    )
    (tmp_path / "b.html").write_text('<a name="here"></a>')
    (tmp_path / "picture.png").touch()
    assert check_links.dead_links(tmp_path) == []
    (tmp_path / "picture.png").unlink()
    (tmp_path / "b.html").write_text('<a href="../outside.html"></a><a href="#there"></a>')
    assert check_links.dead_links(tmp_path) == [
        "a/index.html: ../b.html#here: no such anchor",
        "a/index.html: ../picture.png: no such file",
        "b.html: ../outside.html: no such file",
        "b.html: #there: no such anchor",
    ]
