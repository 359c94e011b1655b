"""Sphinx: `sphinx-build -W --keep-going -b html docs build/docs`."""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "docs" / "_ext"), str(ROOT)]

project = "fedjax-sim"
author = "The fedjax-sim developers"
copyright = "The fedjax-sim developers"
release = version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = [
    "methods_table",
    "myst_parser",
    "public",
    "which",
    "pictures",
    "speeds",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
exclude_patterns = ["_ext"]
html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["front.css"]
html_title = "fedjax-sim"
html_theme_options = {"source_repository": "https://github.com/fedjax-sim/fedjax-sim/"}

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True  # else an attribute told twice is an object described twice
napoleon_use_rtype = False
napoleon_attr_annotations = False  # the signature has the types
napoleon_custom_sections = [("Metrics", "notes_style")]
maximum_signature_line_length = 88
default_role = "py:obj"  # `Cohort` in a docstring: a link where there is one, code elsewhere
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True


def out_of_docs(app, docname, source):
    """Pages of the repository may link to files beside docs/: these links lead to the repository."""
    if docname == "design":
        source[0] = re.sub(r"\]\(\.\./", "](https://github.com/fedjax-sim/fedjax-sim/blob/main/", source[0])


def setup(app):
    app.connect("source-read", out_of_docs)
