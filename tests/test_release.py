"""The wheel has every file of the package, and the changelog has an entry for its version."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import qpeft

ROOT = Path(__file__).parents[1]


def test_changelog_has_this_version():
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert qpeft.__version__ in headings


@pytest.mark.long
def test_wheel_has_every_file_of_the_package(tmp_path):
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob(f"qpeft-{qpeft.__version__}-*.whl")
    source = ROOT / "src"
    ours = {f.relative_to(source).as_posix() for f in source.rglob("*") if f.is_file() and f.suffix != ".pyc"}
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith(("qpeft/", "qpeft_lab/"))}
    assert packed == ours
    assert {"qpeft/py.typed", "qpeft_lab/demo/base/model.safetensors"} <= packed
