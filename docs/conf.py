"""Settings of the documentation's site: `make docs`."""

import sys
from pathlib import Path

from sphinx.addnodes import pending_xref

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]

from config_reference import write_reference  # noqa: E402

import d2_contrast  # noqa: E402

project = "d2_contrast"
author = "d2_contrast contributors"
version = release = d2_contrast.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "results"]
html_theme = "furo"
html_title = "d2_contrast"

myst_heading_anchors = 3
myst_enable_extensions = ["deflist"]

# first_steps.ipynb is kept without outputs and runs here.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300  # seconds a cell
nb_output_stderr = "remove"

autodoc_member_order = "bysource"
autodoc_typehints = "description"

write_reference(DOCS / "config_reference.md")


def is_no_page(target: str) -> bool:
    """Whether the target of a link is a file of the repository outside of this site, such as LICENSE."""
    paths = [(root / name).resolve() for root in (DOCS, DOCS.parent) for name in (target, f"{target}.md")]
    found = next((path for path in paths if path.exists()), None)
    return found is not None and (found.suffix not in (".md", ".ipynb") or found.parent != DOCS)


def unlink_repository_files(app, doctree):
    """Show links to such files as text."""
    for node in list(doctree.findall(pending_xref)):
        target = node.get("reftarget", "").partition("#")[0]
        if target and is_no_page(target):
            node.replace_self(node.children)


def setup(app):
    """Called by Sphinx."""
    app.connect("doctree-read", unlink_repository_files)
