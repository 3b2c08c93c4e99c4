"""The heap settings of the command, which hold from the start of its process."""

import os
import subprocess
import sys

import pytest
from snippets import ROOT

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="settings of glibc")
SETTINGS = (
    "glibc.malloc.tcache_count=0:glibc.malloc.mxfast=0"
    ":glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=268435456"
)


@pytest.fixture
def starts(tmp_path):
    """Call Python with arguments; the settings with which each of its starts began."""
    seen = tmp_path / "seen"
    (tmp_path / "sitecustomize.py").write_text(
        "import os\n"
        f"with open({str(seen)!r}, 'a') as file:\n"
        "    print(os.environ.get('GLIBC_TUNABLES'), os.getpid(), file=file)\n"
    )

    def call(*arguments, **variables):
        environment = {k: v for k, v in os.environ.items() if k != "GLIBC_TUNABLES"}
        environment |= {"PYTHONPATH": str(tmp_path), **variables}
        done = subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, text=True
        )
        settings, processes = zip(*map(str.split, seen.read_text().splitlines()), strict=True)
        assert len(set(processes)) == 1
        return done, list(settings)

    return call


def test_command_starts_again_in_its_process_with_the_settings(starts):
    done, settings = starts("-m", "qpeft", "train", "--data", "a b", "--nothing")

    assert settings == ["None", SETTINGS]
    assert done.returncode == 2
    assert "--nothing" in done.stderr


def test_page_shows_the_settings():
    page = (ROOT / "docs" / "training.md").read_text("utf-8")
    assert f"export GLIBC_TUNABLES={SETTINGS}\n" in page


def test_settings_of_the_user_are_kept(starts):
    _, settings = starts("-m", "qpeft", "--version", GLIBC_TUNABLES="glibc.malloc.perturb=1")
    assert settings == ["glibc.malloc.perturb=1"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("-m", "cProfile", "-m", "qpeft", "--version"),
        ("-c", "import sys; sys.argv[1:] = ['--version']; from qpeft.__main__ import main; main()"),
    ],
)
def test_command_inside_another_program_does_not_start_again(starts, arguments):
    done, settings = starts(*arguments)

    assert settings == ["None"]
    assert "qpeft" in done.stdout
