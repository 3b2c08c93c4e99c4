"""The list of pages in index.md is the navigation of the built pages, so that index.md has no
directive and reads well where Markdown is shown as it is.
"""

from __future__ import annotations

import re

from sphinx.application import Sphinx

_PAGE = re.compile(r"^- \[[^]]*\]\((\w+)\.md\)$", re.MULTILINE)


def add_navigation(app: Sphinx, page: str, source: list[str]) -> None:
    """Append a hidden table of contents with the pages that index.md lists."""
    if page == "index":
        pages = "\n".join(_PAGE.findall(source[0]))
        source[0] += f"\n```{{toctree}}\n:hidden:\n\n{pages}\n```\n"


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", add_navigation)
    return {"parallel_read_safe": True}
