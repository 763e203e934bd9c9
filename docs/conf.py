"""The site: `python3 dev.py site` builds it in build/site, with warnings as errors."""

from __future__ import annotations

import importlib.util
import sys
from importlib import metadata
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import Directive
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx

import normcore

HERE = Path(__file__).resolve().parent

project = "normcore"
author = "The normcore authors"
project_copyright = author
version = release = normcore.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
]
exclude_patterns = ["doxygen.md"]  # of the reference of C++
# The references of torch and JAX need them; without, the site has no such pages.
for library in ("torch", "jax"):
    if importlib.util.find_spec(library) is None:
        exclude_patterns.append(f"api/{library}.rst")

html_theme = "furo"
html_title = f"normcore {release}"
html_static_path = ["static"]
html_css_files = ["normcore.css"]
html_show_sphinx = False
html_copy_source = False
templates_path = ["templates"]
highlight_language = "none"

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "none"  # numpydoc has the types
numpydoc_show_class_members = False

# `python3 dev.py site --external` asks other hosts too.
linkcheck_timeout = 20
linkcheck_retries = 2


# ---- formulas --------------------------------------------------------------------------------
# As MathML, which browsers draw by themselves: no script, and none from another host.


def visit_math(self, node: nodes.math) -> None:
    self.body.append(tex2mathml(node.astext()))
    raise nodes.SkipNode


def visit_math_block(self, node: nodes.math_block) -> None:
    formula = tex2mathml(node.astext(), as_block=True)
    self.body.append(f'<div class="formula">{formula}</div>')
    raise nodes.SkipNode


# ---- the gallery -----------------------------------------------------------------------------

CAPTIONS = {
    "pool": "What one element of y (dark) depends on",
    "effect": "What it does",
    "field": "Gradient field",
    "cost": "Cost",
}


def picture(name: str, panel: str) -> nodes.image:
    uri = f"/gallery/pictures/{name}-{panel}.png"
    return nodes.image(uri=uri, alt=f"{name}: {CAPTIONS[panel].lower()}")


class Panels(Directive):
    """The four pictures of a method, which is the argument."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        box = nodes.container(classes=["panels"])
        for panel, caption in CAPTIONS.items():
            drawing = picture(self.arguments[0], panel)
            box += nodes.figure("", drawing, nodes.caption("", caption))
        return [box]


class Pools(Directive):
    """The first picture of several methods. Each line has a method, a link and a caption."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        box = nodes.container(classes=["panels", "pools"])
        for line in self.content:
            name, address, caption = line.split(maxsplit=2)
            # These are links of HTML, which the check of links follows.
            link = nodes.reference("", "", picture(name, "pool"), refuri=address, internal=True)
            box += nodes.figure("", link, nodes.caption("", caption))
        return [box]


def draw_gallery(app: Sphinx) -> None:
    sys.path.insert(0, str(HERE / "gallery"))
    import draw

    draw.draw(HERE / "gallery/pictures")


def setup(app: Sphinx) -> None:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    app.add_directive("panels", Panels)
    app.add_directive("pools", Pools)
    app.connect("builder-inited", draw_gallery)


html_math_renderer = "mathml"


def home() -> str:
    """The project's own address, as pyproject.toml has it: from the installed package."""
    for line in metadata.metadata("normcore").get_all("Project-URL") or []:
        label, _, address = line.partition(", ")
        if label == "Source":
            return address
    return ""


html_theme_options = {
    "navigation_with_keys": True,
    "footer_icons": [{"name": "Source", "url": home(), "html": "Source", "class": ""}],
}
