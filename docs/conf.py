"""Builds the site: `sphinx-build -W --keep-going docs build/docs`. A warning, such as a broken link, is an error."""

from importlib.metadata import version as version_of

project = "arbstr-asgi"
project_copyright = ""
version = release = version_of("arbstr-asgi")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_theme = "furo"
html_title = f"{project} {version}"
html_show_copyright = False
html_show_sphinx = False
nitpicky = False
exclude_patterns = ["examples"]

myst_heading_anchors = 3
suppress_warnings = ["myst.xref_ambiguous"]

default_role = "code"  # docstrings are Markdown's: `name`
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
