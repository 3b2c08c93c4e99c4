"""How the documentation is built, by `make docs`; tests/docs runs its examples."""

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / "extensions"), str(Path(__file__).parent)]

project = "qpeft"
author = "the qpeft authors"
project_copyright = "the qpeft authors; Apache License 2.0"
extensions = [
    "api_reference",
    "mathml",
    "myst_parser",
    "page_list",
    "repository_links",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "qpeft"
html_static_path = ["static"]
html_css_files = ["formulas.css", "pictures.css"]
html_copy_source = False
html_show_sphinx = False

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

default_role = "literal"  # docstrings write `name` for code
smartquotes = False  # and "name" for values
autodoc_default_options = {
    "members": True,
    "exclude-members": "save_pretrained, on_train_begin, on_train_end",
}
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
