"""How the documentation is built; ``make docs`` does it.

Nothing is fetched, neither here nor by the pages: formulas become MathML, which browsers draw themselves.
"""

import re
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.writers.html5 import HTML5Translator

from guided_backprop import __version__

project = "guided-backprop"
release = version = __version__
copyright = "the authors of guided-backprop"
html_title = f"guided-backprop {__version__}"

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
# Notebooks are shown with the output that they are stored with.
nb_execution_mode = "off"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# Dashes alone: quotation marks are those of the code.
smartquotes_action = "D"

# Docstrings say in words what types cannot: shapes, ranges, signs.
autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
napoleon_use_ivar = True
napoleon_attr_annotations = False
python_maximum_signature_line_length = 80

html_theme = "furo"
pygments_dark_style = "github-dark"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_copy_source = False
copybutton_exclude = ".linenos, .gp, .go"

# Files that stand elsewhere in the repository, and which page here includes each.
ELSEWHERE = {
    "benchmarks/README": "benchmarks",
    "CHANGELOG": "changelog",
    "CONTRIBUTING": "contributing",
    "suite/README": "suite",
}


def link_to_pages(text: str) -> str:
    """Return a page whose links, right in the repository, are right on the site."""
    text = re.sub(r"\]\(\.\./README\.md[^)]*\)", "](index.md)", text)
    text = re.sub(rf"\]\((?:\.\./)?({'|'.join(ELSEWHERE)})\.md", lambda link: f"]({ELSEWHERE[link[1]]}.md", text)
    return text.replace("](docs/", "](")


def read_page(app: Sphinx, page: str, text: list[str]) -> None:
    """Correct the links of a page."""
    text[0] = link_to_pages(text[0])


def read_included(app: Sphinx, path: Path, page: str, text: list[str]) -> None:
    """Correct the links of a file that a page includes."""
    text[0] = link_to_pages(text[0])


def public_name(app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, text: nodes.Node) -> nodes.Node | None:
    """Find what the docstring of another module calls by its public name alone, such as Method."""
    if node["refdomain"] != "py" or node["reftarget"].startswith("guided_backprop."):
        return None
    name = f"guided_backprop.{node['reftarget']}"
    domain = env.get_domain("py")
    return domain.resolve_xref(env, node["refdoc"], app.builder, node["reftype"], name, node, text)


def inline_math(translator: HTML5Translator, node: nodes.math) -> None:
    """Write a formula within a line."""
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def block_math(translator: HTML5Translator, node: nodes.math_block) -> None:
    """Write a formula of its own line."""
    translator.body.append(f'<div class="formula">{convert(node.astext(), display="block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Register what is above."""
    app.add_html_math_renderer("mathml", (inline_math, None), (block_math, None))
    app.connect("source-read", read_page)
    app.connect("include-read", read_included)
    app.connect("missing-reference", public_name)
