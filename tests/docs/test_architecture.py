"""ARCHITECTURE.md names modules that exist, and describes every package."""

import re

import pytest
from snippets import ROOT

PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
SOURCES = [ROOT / "src" / "qpeft", ROOT / "src" / "qpeft_lab"]
PACKAGES = sorted(path.parent.name for source in SOURCES for path in source.glob("*/__init__.py"))


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`(\w+/[\w/]*(?:\.py)?)`", PAGE))))
def test_path_exists(path):
    folders = [
        ROOT / "src",
        ROOT,
        *SOURCES,
        *(path for source in SOURCES for path in source.iterdir() if path.is_dir()),
    ]
    assert any((folder / path).exists() for folder in folders), f"ARCHITECTURE.md names {path}"


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_described(package):
    assert re.search(rf"^\| .*`{package}/`.*\|", PAGE, flags=re.MULTILINE)
