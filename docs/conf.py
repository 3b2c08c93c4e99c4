"""How the documentation is built; `make docs` builds it and runs every example in it."""

import os
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent / "extensions"), str(Path(__file__).parent)]
# examples run without a network and print their results only
os.environ |= {
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}

project = "qpeft"
author = "the qpeft authors"
project_copyright = "the qpeft authors; Apache License 2.0"
extensions = [
    "api_reference",
    "drawn",
    "mathml",
    "myst_parser",
    "settings_table",
    "sphinx.ext.autodoc",
    "sphinx.ext.doctest",
    "sphinx.ext.napoleon",
]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "qpeft"
# colours of the pictures (extensions/figure_style.py)
html_theme_options = {
    "light_css_variables": {"quantum": "#1559b7", "classical": "#3f4248", "control": "#a34a00"},
    "dark_css_variables": {"quantum": "#86b6ff", "classical": "#c3c5ca", "control": "#f0a868"},
}
html_static_path = ["static"]
html_css_files = ["formulas.css"]
html_copy_source = False
html_show_sphinx = False

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

default_role = "literal"  # docstrings write `name` for code
smartquotes = False  # and "name" for values
autodoc_default_options = {"members": True, "exclude-members": "save_pretrained, on_train_begin, on_train_end"}
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False

doctest_test_doctest_blocks = ""
doctest_global_setup = "import warnings; warnings.simplefilter('ignore')"
