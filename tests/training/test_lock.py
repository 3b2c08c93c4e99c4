"""Locks change no file, follow no link, and are not held by other users."""

import os
import stat

import pytest

from qpeft.compare import local_executor
from qpeft.compare.rows import RowFile
from qpeft.errors import ConfigError
from qpeft.files import open_own
from qpeft.training.lock import locked, waiting_for

fcntl = pytest.importorskip("fcntl")


def lock_folder(place):
    with locked(place.parent):
        pass


def lock_file(place):
    with waiting_for(place, lambda: False):
        pass


def write_output(place):
    os.close(open_own(place))


@pytest.mark.parametrize("use", [lock_folder, lock_file, write_output], ids=lambda use: use.__name__)
@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe"])
def test_planted_lock_is_refused_and_its_target_unchanged(use, kind, tmp_path):
    target, place = tmp_path / "mine", tmp_path / "folder" / ".lock"
    place.parent.mkdir()
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to(target)
    if kind == "link":
        target.write_text("mine")
    with pytest.raises(ConfigError, match="is not a regular file; remove it"):
        use(place)
    assert target.exists() == (kind == "link")
    assert kind != "link" or target.read_text() == "mine"


def test_lock_keeps_the_content_of_its_file(tmp_path):
    (tmp_path / ".lock").write_text("mine")
    with waiting_for(tmp_path / ".lock", lambda: False) as is_ours:
        assert is_ours
    assert (tmp_path / ".lock").read_text() == "mine"


def test_rows_are_not_appended_through_a_link(tmp_path):
    from qpeft.compare.rows import Row

    (tmp_path / "mine").write_text("")
    (tmp_path / "rows.jsonl").symlink_to("mine")
    with pytest.raises(ConfigError, match="is not a regular file"):
        RowFile(tmp_path).append(Row(cell_id="s/m/h/seed0", study="s", method="m", role="main", seed=0))
    assert (tmp_path / "mine").read_text() == ""


def plant_link(place, tmp_path):
    (tmp_path / "other").mkdir(mode=0o700)
    place.symlink_to("other")


def plant_open_folder(place, _tmp_path):
    place.mkdir()
    place.chmod(0o777)


def plant_file(place, _tmp_path):
    place.write_text("")


@pytest.mark.parametrize("plant", [plant_link, plant_open_folder, plant_file], ids=lambda plant: plant.__name__)
def test_times_are_measured_without_a_lock_that_others_can_hold(plant, tmp_path, monkeypatch):
    monkeypatch.setattr(local_executor.tempfile, "gettempdir", lambda: str(tmp_path))
    plant(tmp_path / f"qpeft-{os.getuid()}", tmp_path)
    notes, was = [], sorted(tmp_path.rglob("*"))
    with local_executor.measuring_time(notes.append):
        pass
    assert len(notes) == 1
    assert "is not a folder of this user alone; remove it" in notes[0]
    assert sorted(tmp_path.rglob("*")) == was


def test_times_are_measured_after_the_longest_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(local_executor.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(local_executor, "_LONGEST_MEASUREMENT", 0.0)
    notes = []
    with waiting_for(local_executor.timing_lock(), lambda: False), local_executor.measuring_time(notes.append):
        pass
    assert [note.split(":")[0].split(" for ")[0] for note in notes] == [
        "Waiting, at most 1 h,",
        "The other study is still measuring",
    ]
    assert stat.S_IMODE(local_executor.timing_lock().parent.stat().st_mode) == 0o700


def test_folder_behind_a_link_is_created(tmp_path):
    (tmp_path / "run").symlink_to("disk/run")
    with locked(tmp_path / "run"):
        (tmp_path / "run" / "file").write_text("new")
    assert (tmp_path / "disk" / "run" / "file").read_text() == "new"
    assert (tmp_path / "run").is_symlink()
