"""Links to files outside of docs, such as `../results/README.md`, lead to the repository: on the
site to its address, in a local build to the files of the clone.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

_OUTSIDE = re.compile(r"(?<=\]\()\.\.(?=/)")  # in Markdown
_MARK = "https://repository.invalid"  # an address, so that MyST looks for no page there


def repository(folder: Path) -> str:
    """Where the files are, for the pages in `folder`. The variables are those of GitHub Actions,
    which builds the site.
    """
    name = os.environ.get("GITHUB_REPOSITORY")
    if name is None:
        return os.path.relpath(Path(__file__).parents[2], folder)
    return f"{os.environ['GITHUB_SERVER_URL']}/{name}/blob/{os.environ['GITHUB_SHA']}"


def mark(app: Sphinx, page: str, source: list[str]) -> None:
    source[0] = _OUTSIDE.sub(_MARK, source[0])


def lead_to_repository(app: Sphinx, doctree: nodes.document, page: str) -> None:
    for link in doctree.findall(nodes.reference):
        address = link.get("refuri", "")
        link["refuri"] = address.replace(_MARK, repository(app.outdir))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("source-read", mark)
    app.connect("doctree-resolved", lead_to_repository)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
