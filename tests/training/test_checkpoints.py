import errno
import os
import shutil
import subprocess
from types import SimpleNamespace

import pytest
from transformers import TrainerState

from qpeft.errors import CheckpointError
from qpeft.files import is_disk_full, remove_unfinished
from qpeft.training.callbacks import RunCallback
from qpeft.training.checkpoints import checkpoint_path, find_damaged, last_complete, prune, seal, step_of
from qpeft.training.interrupt import StopRequest
from qpeft.training.metrics import LanguageModelScore
from qpeft.training.metrics_log import MetricsLog, read_rows, read_scores
from qpeft.training.progress import Progress
from qpeft.training.settings import Intervals


def save(folder, step, *, whole=True):
    path = checkpoint_path(folder, step)
    path.mkdir(parents=True)
    (path / "weights").write_text("values")
    if whole:
        seal(path)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_only_the_last_two_checkpoints_are_kept(tmp_path):
    for step in (5, 10, 95, 100):
        save(tmp_path, step)
    assert names(tmp_path) == ["checkpoint-100", "checkpoint-95"]
    assert step_of(last_complete(tmp_path)) == 100


def damage_marker(checkpoint):
    (checkpoint / "complete").write_bytes(b"\xff")


def replace_marker_by_folder(checkpoint):
    (checkpoint / "complete").unlink()
    (checkpoint / "complete").mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        lambda checkpoint: (checkpoint / "complete").unlink(),
        lambda checkpoint: (checkpoint / "weights").unlink(),
        damage_marker,
        replace_marker_by_folder,
    ],
    ids=["no marker", "no weights", "damaged marker", "folder"],
)
def test_incomplete_checkpoint_is_ignored_and_removed(tmp_path, damage):
    complete, other = save(tmp_path, 5), save(tmp_path, 10)
    assert last_complete(tmp_path) == other
    damage(other)
    assert last_complete(tmp_path) == complete
    prune(tmp_path)
    assert names(tmp_path) == ["checkpoint-5"]


def test_marker_that_lacks_a_file_is_damaged(tmp_path):
    (path := checkpoint_path(tmp_path, 5)).mkdir()
    for name in ("optimizer", "weights"):
        (path / name).write_text("values")
    seal(path)
    marker = path / "complete"
    marker.write_text("".join(marker.read_text().splitlines(keepends=True)[:1]))
    (path / "weights").write_text("other values")
    assert "the file complete does not list weights" in str(find_damaged(path))


def test_other_files_are_kept(tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "checkpoint-of-mine").mkdir()
    save(tmp_path, 5, whole=False)
    prune(tmp_path)
    assert names(tmp_path) == ["checkpoint-of-mine", "runs"]


def test_kill_while_removing_a_checkpoint_leaves_no_partial_one(tmp_path, monkeypatch):
    for step in (5, 10):
        save(tmp_path, step)
    monkeypatch.setattr(shutil, "rmtree", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 15)
    monkeypatch.undo()
    assert step_of(last_complete(tmp_path)) == 15
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-15"]


def test_kill_before_removal_leaves_the_checkpoint_to_the_next_run(tmp_path, monkeypatch):
    for step in (5, 10):
        save(tmp_path, step)
    with monkeypatch.context() as patch:
        patch.setattr("qpeft.training.checkpoints.prune", lambda _: None)
        save(tmp_path, 15)
    prune(tmp_path)
    assert names(tmp_path) == ["checkpoint-10", "checkpoint-15"]


def test_metrics_are_synced_before_the_checkpoint_marker(tmp_path, monkeypatch):
    done = []
    log = MetricsLog(tmp_path / "metrics.jsonl", None)
    monkeypatch.setattr("qpeft.training.metrics_log.sync", lambda path: done.append(path.name))
    monkeypatch.setattr("qpeft.training.callbacks.seal", lambda checkpoint: done.append(checkpoint.name))
    callback = RunCallback(tmp_path, Intervals(1, 1, 1), StopRequest(lambda: None), Progress())
    callback.attach(SimpleNamespace(add_callback=lambda _: None), log, lambda: None)
    callback.on_save(None, TrainerState(global_step=5), None)
    assert done == ["metrics.jsonl", "checkpoint-5"]


def test_missing_checkpoint_folder_is_empty(tmp_path):
    assert last_complete(tmp_path / "absent") is None
    prune(tmp_path / "absent")


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), True),
        (OSError(errno.EACCES, "Permission denied"), False),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534"), True),
        (RuntimeError("basic_ios::clear: iostream error"), True),
        (Exception("Error while serializing: I/O error: No space left on device (os error 28)"), True),
        (RuntimeError("shape mismatch"), False),
    ],
)
def test_full_disk_is_recognized_by_message(error, full):
    assert is_disk_full(error) is full


def test_metrics_resume_at_the_resumed_step(tmp_path):
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, None)
    for step in range(5):
        log.append(step, {"loss": float(step)})
    with path.open("a") as file:
        file.write('{"step": 5, "lo')
    MetricsLog(path, 3).append(4, {"loss": float("inf")})
    rows = read_rows(path)
    assert [(row["step"], row["loss"]) for row in rows] == [(0, 0.0), (1, 1.0), (2, 2.0), (3, 3.0), (4, None)]
    assert [row["seconds"] for row in rows] == sorted(row["seconds"] for row in rows)


def test_reading_metrics_from_a_pipe_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(CheckpointError, match="it is not a file"):
        read_rows(tmp_path / "metrics.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"step": 1, "lo', "line 2: "),
        ("[1]", "line 2 is not an object"),
        ('{"loss": 1.0, "seconds": 0.1}', "a row lacks step or seconds: 'step'"),
        ('{"step": 1, "seconds": null}', "a row lacks step or seconds"),
    ],
)
def test_damaged_metrics_are_refused_on_resume(tmp_path, line, message):
    path = tmp_path / "metrics.jsonl"
    content = f'{{"step": 0, "seconds": 0.1}}\n{line}\n{{"step": 2, "seconds": 0.2}}\n'
    path.write_text(content)
    with pytest.raises(CheckpointError) as refused:
        MetricsLog(path, 2)
    assert message in str(refused.value)
    assert path.read_text() == content
    MetricsLog(path, None)
    assert read_rows(path) == []


def test_metrics_without_first_rows_are_refused(tmp_path):
    path = tmp_path / "metrics.jsonl"
    for content in ("", '{"step": 2, "seconds": 0.2}\n'):
        path.write_text(content)
        with pytest.raises(CheckpointError, match="its first rows are missing"):
            MetricsLog(path, 2)


@pytest.mark.parametrize("value", ["", ', "eval_nats": "1.5"', ', "eval_nats": null'])
def test_scores_that_are_not_numbers_are_refused(tmp_path, value):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 0, "seconds": 0.1, "eval_loss": 1.0, "eval_n_tokens": 2, "eval_n_bytes": 3{value}}}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl is damaged .a score: .*eval_nats|nats is"):
        read_scores(path, LanguageModelScore)


def test_marker_has_the_format_of_sha256sum(tmp_path):
    checkpoint = save(tmp_path, 1)
    check = ["sha256sum", "--check", "--quiet", "complete"]
    if shutil.which("sha256sum") is None:
        pytest.skip("there is no program sha256sum")
    assert subprocess.run(check, cwd=checkpoint, capture_output=True, check=False).returncode == 0
    assert find_damaged(checkpoint) is None
    (checkpoint / "weights").write_text("other values")
    assert subprocess.run(check, cwd=checkpoint, capture_output=True, check=False).returncode == 1
    assert find_damaged(checkpoint) == "the SHA-256 of weights has changed"
