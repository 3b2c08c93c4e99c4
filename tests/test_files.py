"""Files and folders are whole or absent, whatever happens while they are written."""

from pathlib import Path

import pytest

from qpeft.files import is_disk_full, replace_folder, write_json, write_text


@pytest.fixture
def old(tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "adapter").write_text("old")
    return tmp_path / "old"


def test_a_folder_is_replaced_when_its_successor_is_complete(old):
    with replace_folder(old) as new:
        (new / "adapter").write_text("new")
        assert (old / "adapter").read_text() == "old"
    assert (old / "adapter").read_text() == "new"
    assert list(old.parent.iterdir()) == [old]


def test_an_error_while_filling_leaves_the_old_folder(old):
    with pytest.raises(FileNotFoundError), replace_folder(old) as new:
        (new / "adapter").write_text((new / "missing").read_text())
    assert (old / "adapter").read_text() == "old"
    assert list(old.parent.iterdir()) == [old]


def test_an_interruption_between_the_renames_puts_the_old_folder_back(old, monkeypatch):
    rename, calls = Path.replace, []

    def interrupted(self, target):
        calls.append(target)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), replace_folder(old) as new:
        (new / "adapter").write_text("new")
    assert (old / "adapter").read_text() == "old"
    assert list(old.parent.iterdir()) == [old]


def test_a_file_keeps_its_old_content_until_the_new_one_is_whole(tmp_path, monkeypatch):
    write_text(tmp_path / "a.json", "old")
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left") as failed:
        write_json(tmp_path / "a.json", {"new": 1})
    assert is_disk_full(failed.value)
    assert (tmp_path / "a.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.json"]
