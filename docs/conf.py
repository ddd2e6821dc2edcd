"""The documentation site: Sphinx, MyST, Furo. `make docs` builds it without warnings into docs/_build."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import latentknobs  # noqa: E402
from docs import tables  # noqa: E402

project, author = "latentknobs", "the latentknobs developers"
version = release = latentknobs.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "examples", "**/*.ipynb"]
html_theme = "furo"
html_title = f"latentknobs {version}"
html_static_path: list[str] = []
myst_heading_anchors = 4
myst_enable_extensions = ["dollarmath"]
napoleon_custom_sections = [("Class variables", "params_style")]
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
nitpicky = False


def setup(app: object) -> None:
    """The tables of the reference are written from the code, before anything is read."""
    tables.write(Path(__file__).parent / "reference")
