"""The built pages need no network: formulas are part of the page, and nothing is loaded from
elsewhere. Their links to other files lead to the repository.
"""

import os
import re
import subprocess
import sys

import pytest
from snippets import FENCE, ROOT

pytestmark = [pytest.mark.long, pytest.mark.xdist_group("offline")]  # the pages are built once

REMOTE = re.compile(
    r"<(?:script|img|iframe|source)\b[^>]*\bsrc=[\"']?(?:https?:)?//|"
    r"<link\b(?=[^>]*\brel=[\"']?(?:stylesheet|preload|preconnect|icon))[^>]*\bhref=[\"']?(?:https?:)?//|"
    r"@import\s*[\"'(]|url\(\s*[\"']?(?:https?:)?//|repository\.invalid"
)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The text of all pages of docs, without their code and pictures, built with the configuration
    of docs.
    """
    source = tmp_path_factory.mktemp("source")
    out = tmp_path_factory.mktemp("out")
    for page in (ROOT / "docs").glob("*.md"):
        (source / page.name).write_text(
            FENCE.sub("", page.read_text(encoding="utf-8")), encoding="utf-8"
        )
    options = "-m sphinx --quiet --fail-on-warning -D suppress_warnings=myst,toc,ref,image -c"
    command = [sys.executable, *options.split(), str(ROOT / "docs"), str(source), str(out)]
    # as on GitHub Actions, which builds the site
    site = {"SERVER_URL": "https://host", "REPOSITORY": "owner/name", "SHA": "1a2b"}
    env = os.environ | {f"GITHUB_{name}": value for name, value in site.items()}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)

    assert done.returncode == 0, done.stderr

    return out


def test_pages_load_nothing_from_the_network_and_link_to_the_repository(built):
    read = [path for path in built.rglob("*") if path.suffix in (".html", ".css")]
    texts = [path.read_text(encoding="utf-8") for path in read]
    assert len(texts) > 20
    assert sum(text.count("<math ") for text in texts) > 100
    assert not [path for path, text in zip(read, texts, strict=True) if REMOTE.search(text)]

    link = 'href="https://host/owner/name/blob/1a2b/evidence/PROTOCOL.md#changes"'
    assert any(link in text for text in texts)


def test_unsupported_latex_command_raises(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "docs" / "extensions")
    import mathml

    with pytest.raises(ValueError, match="unsupported"):
        mathml.to_mathml(r"\undefinedcommand{x}")
