"""ARCHITECTURE.md names modules that exist, and describes every package."""

import re

import pytest
from snippets import ROOT

PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
SOURCE = ROOT / "src" / "qpeft"
PACKAGES = sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?!src/)\w+/[\w/]*(?:\.py)?)`", PAGE))))
def test_path_exists(path):
    assert (SOURCE / path).exists() or any(SOURCE.glob(f"*/{path}")), f"ARCHITECTURE.md names {path}"


@pytest.mark.parametrize("package", PACKAGES)
def test_package_is_described(package):
    assert re.search(rf"^\| .*`{package}/`.*\|", PAGE, flags=re.MULTILINE)
