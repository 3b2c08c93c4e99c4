"""Files and folders are written atomically: after an error or a kill, the old content is complete."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from qpeft import folders
from qpeft.files import write_json, write_text
from qpeft.folders import replace_folder
from qpeft_lab.files import is_disk_full, remove_unfinished


def test_folder_is_replaced_after_the_block_or_kept_on_an_error_or_interrupt(tmp_path, monkeypatch):
    (old := tmp_path / "old").mkdir()
    (old / "adapter").write_text("first")
    with replace_folder(old) as new:
        (new / "adapter").write_text("old")
        assert (old / "adapter").read_text() == "first"

    assert list(old.parent.iterdir()) == [old]

    rename = Path.replace
    calls = []

    def interrupted(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(folders, "_exchange", lambda *_: False)
    monkeypatch.setattr(Path, "replace", interrupted)

    with pytest.raises(FileNotFoundError) as raised, replace_folder(old) as new:
        (new / "adapter").write_text((new / "missing").read_text())
    assert raised.value.__notes__ == [f"{old} was not written; if it existed, it is unchanged"]
    with pytest.raises(KeyboardInterrupt), replace_folder(old) as new:
        (new / "adapter").write_text("new")
    assert (old / "adapter").read_text() == "old"
    assert list(old.parent.iterdir()) == [old]


KILLED = """
import os, sys
from pathlib import Path
from qpeft.files import replace_file
from qpeft.folders import replace_folder
place = Path(sys.argv[1])
with replace_folder(place / "adapter") as folder, replace_folder(folder) as inner, replace_file(inner / "a") as file:
    file.write_text("half")
    os._exit(9)
"""


def test_remove_unfinished_removes_only_temporary_files(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, tmp_path], check=False)
    # the inner folder is created next to the outer one, with two dots
    assert len(list(tmp_path.iterdir())) == 2

    (tmp_path / ".mine.unfinished").write_text("")
    (tmp_path / ".x.abcd0123.unfinished").symlink_to(tmp_path)  # a link is removed, not followed
    remove_unfinished(tmp_path)

    assert list(tmp_path.iterdir()) == [tmp_path / ".mine.unfinished"]


@pytest.fixture
def on_disk(monkeypatch):
    """The names of flushed and renamed files, in order."""
    found = []
    fsync = os.fsync
    rename = Path.replace

    def flushed(handle):
        found.append(f"flush {Path(f'/proc/self/fd/{handle}').readlink().name.split('.')[-1]}")
        fsync(handle)

    def renamed(self, target):
        found.append(f"rename to {target.name}")
        return rename(self, target)

    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc to name an open file by")
    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", renamed)
    return found


def test_file_is_synced_before_the_rename_and_its_folder_after(tmp_path, on_disk):
    write_text(tmp_path / "a", "new")
    assert on_disk == ["flush unfinished", "rename to a", f"flush {tmp_path.name}"]


def test_folder_content_is_synced_before_the_rename(tmp_path, on_disk):
    with replace_folder(tmp_path / "a") as folder:
        (folder / "deep").mkdir()
        (folder / "deep" / "weights").write_text("values")
    assert {"flush weights", "flush deep"} < set(on_disk[:-2])
    assert on_disk[-2:] == ["rename to a", f"flush {tmp_path.name}"]


@pytest.mark.parametrize("name", ["n" * 255, "\N{CAT}" * 63], ids=["ascii", "wide"])
def test_longest_names_of_the_file_system_are_written(tmp_path, name):
    for _ in range(2):
        write_text(tmp_path / name, "new")
    (tmp_path / name).unlink()
    for _ in range(2):
        with replace_folder(tmp_path / name) as folder:
            (folder / "file").write_text("new")

    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_full_disk_keeps_the_old_file(tmp_path, monkeypatch):
    write_text(tmp_path / "a.json", "old")
    monkeypatch.setattr(
        "os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(OSError, match="No space left") as failed:
        write_json(tmp_path / "a.json", {"new": 1})
    assert is_disk_full(failed.value)
    assert (tmp_path / "a.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.json"]


def test_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    for name, target in (("file", "mine/file"), ("folder", "mine")):
        (tmp_path / name).symlink_to(target)
    write_text(tmp_path / "file", "new")
    with replace_folder(tmp_path / "folder") as folder:
        (folder / "file").write_text("new")

    assert [(tmp_path / name).is_symlink() for name in ("file", "folder")] == [False, False]
    assert (tmp_path / "mine" / "file").read_text() == "mine"
