import errno
import shutil
import subprocess
from types import SimpleNamespace

import pytest
from transformers import TrainerState

from qpeft.errors import CheckpointError
from qpeft_lab.files import is_disk_full, remove_unfinished
from qpeft_lab.interrupt import StopRequest
from qpeft_lab.progress import Progress
from qpeft_lab.settings import Intervals
from qpeft_lab.training.checkpoints import checkpoint_path, find_damaged, last_complete, prune, seal, step_of
from qpeft_lab.training.fit import RunCallback
from qpeft_lab.training.run_folder import MetricsLog, RunFolder, read_rows, read_scores


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


@pytest.mark.parametrize(
    "damage",
    [
        lambda checkpoint: (checkpoint / "complete").unlink(),
        lambda checkpoint: (checkpoint / "weights").unlink(),
        lambda checkpoint: (checkpoint / "complete").write_bytes(b"\xff"),
    ],
    ids=["no marker", "no weights", "damaged marker"],
)
def test_incomplete_checkpoint_is_ignored_and_removed(tmp_path, damage):
    complete, other = save(tmp_path, 5), save(tmp_path, 10)
    (tmp_path / "checkpoint-of-mine").mkdir()
    assert last_complete(tmp_path) == other
    damage(other)
    assert last_complete(tmp_path) == complete
    prune(tmp_path)
    assert names(tmp_path) == ["checkpoint-5", "checkpoint-of-mine"]


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


def test_metrics_are_synced_before_the_checkpoint_marker(tmp_path, monkeypatch):
    done = []
    log = MetricsLog(tmp_path / "metrics.jsonl", None)
    monkeypatch.setattr("qpeft_lab.training.run_folder.sync", lambda path: done.append(path.name))
    monkeypatch.setattr("qpeft_lab.training.fit.seal", lambda checkpoint: done.append(checkpoint.name))
    callback = RunCallback(RunFolder(tmp_path), Intervals(1, 1, 1), StopRequest(lambda: None), Progress(), None)
    callback.attach(SimpleNamespace(add_callback=lambda _: None), log)
    callback.on_save(None, TrainerState(global_step=5), None)
    assert done == ["metrics.jsonl", "checkpoint-5"]


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


@pytest.mark.parametrize(
    "content",
    [
        *[
            f'{{"step": 0, "seconds": 0.1}}\n{line}\n{{"step": 2, "seconds": 0.2}}\n'
            for line in ('{"step": 1, "lo', "[1]", '{"loss": 1.0, "seconds": 0.1}', '{"step": 1, "seconds": null}')
        ],
        "",
        '{"step": 2, "seconds": 0.2}\n',
    ],
)
def test_damaged_metrics_are_refused_on_resume(tmp_path, content):
    path = tmp_path / "metrics.jsonl"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl"):
        MetricsLog(path, 2)
    assert path.read_text() == content
    MetricsLog(path, None)
    assert read_rows(path) == []


@pytest.mark.parametrize("value", ["", ', "eval_n_scored": "two"', ', "eval_n_scored": null'])
def test_scores_that_are_not_numbers_are_refused(tmp_path, value):
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 0, "seconds": 0.1, "eval_loss": 1.0{value}}}\n')
    with pytest.raises(CheckpointError, match=r"metrics\.jsonl"):
        read_scores(path, "nats per token")


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
