"""Checks of a folder after a kill, and of the folder of the finished run."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers.trainer_pt_utils import safe_globals

from qpeft.compare.report.files import write_outputs

State = dict[str, Any]
_TIMED = {"seconds", "seconds_per_step", "created_at", "peak_mem_bytes", "circuits", "out", "command"}
_DERIVED = {"results.jsonl", "results.csv", "summary.csv", "summary.md", "report.html", "estimate.json"}


def damaged(folder: Path) -> list[str]:
    """Complete files that cannot be read."""
    found = []
    for path in _files(folder):
        try:
            _read(path)
        except Exception as error:
            found.append(f"{path.relative_to(folder)} is damaged: {error}")
    return found


def finished_work(folder: Path) -> State:
    """The work that a resumed command must not repeat: rows, and the last complete checkpoint of each run."""
    rows = _result_rows(folder)
    found = [path.relative_to(folder) for path in folder.glob("**/checkpoints/checkpoint-*/complete")]
    runs = {folder / path.parents[2] for path in found if "/." not in str(path)}  # hidden: being removed
    steps = {str(run.relative_to(folder)): max(map(_step, _whole_checkpoints(run))) for run in runs}
    jobs = folder / "jobs.jsonl"
    shots = sum(row["shots"] for row in _rows(jobs)) if jobs.exists() else 0
    return {"rows": rows, "steps": steps, "shots": shots, "result": (folder / "result.json").exists()}


def lost_work(before: State, after: State) -> list[str]:
    """Work of `before` that is missing in `after`."""
    rows = [f"{name} was written again" for name, was in before["rows"].items() if after["rows"].get(name) != was]
    steps = [
        f"{run or 'the run'} restarted before step {step}"
        for run, step in before["steps"].items()
        if after["steps"].get(run, 0) < step and not _has_row(run, after["rows"])
    ]
    shots = ["shots that were sent are not counted"] if after["shots"] < before["shots"] else []
    result = ["the run is unfinished again"] if after["result"] < before["result"] else []
    return [*rows, *steps, *shots, *result]


def share_done(state: State, whole: State) -> float:
    """Approximate fraction of finished work, at most 1."""
    done, every = (len(found["rows"]) + sum(found["steps"].values()) for found in (state, whole))
    return min(1.0, done / every)


def wrong_so_far(folder: Path, whole: Path) -> list[str]:
    """Rows, and losses up to the last complete checkpoint, that differ from the uninterrupted run in `whole`."""
    rows, unbroken = _result_rows(folder), _result_rows(whole)
    wrong = [f"{name} differs" for name, row in rows.items() if _timeless_row(row) != _timeless_row(unbroken[name])]
    last = max(map(_step, _whole_checkpoints(folder)), default=-1)
    ours, theirs = (_up_to(last, place / "metrics.jsonl") for place in (folder, whole))
    return wrong if ours == theirs else [*wrong, f"metrics.jsonl differs up to step {last}"]


def differences(folder: Path, whole: Path) -> list[str]:
    """Between the finished run and the uninterrupted one, bit for bit except for times."""
    ours, theirs = (_names(place) for place in (folder, whole))
    found = [f"{name} is missing" for name in sorted(theirs - ours)]
    found += [f"{name} is left over" for name in sorted(ours - theirs)]
    for name in sorted(ours & theirs):
        if (folder / name).is_file() and not _is_derived(name) and _timeless(folder / name) != _timeless(whole / name):
            found.append(f"{name} differs")
    return found + (_stale(folder) if (folder / "rows.jsonl").exists() else [])


def _stale(folder: Path) -> list[str]:
    """Outputs of a study that do not follow from its rows."""
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / folder.name
        shutil.copytree(folder, copy)
        write_outputs(copy)
        files = [p for p in folder.rglob("*") if p.is_file() and p.name != "estimate.json"]
        names = [name for p in files if _is_derived(name := str(p.relative_to(folder)))]
        return [f"{name} is stale" for name in names if (folder / name).read_bytes() != (copy / name).read_bytes()]


def _is_derived(name: str) -> bool:
    """Whether the file contains times, and follows from rows alone."""
    return name in _DERIVED or name.startswith("plots/")


def _names(folder: Path) -> set[str]:
    """All files and folders, also hidden ones, except the empty lock of a run folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != ".lock"}


def _files(folder: Path) -> Iterator[Path]:
    """Complete files: not hidden, not in an unfinished checkpoint."""
    for path in folder.rglob("*"):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith(".") for part in parts) and not _is_in_broken(path):
            yield path


def _is_in_broken(path: Path) -> bool:
    place = next((p for p in path.parents if re.fullmatch(r"checkpoint-\d+", p.name)), None)
    return place is not None and not (place / "complete").exists()


def _read(path: Path) -> Any:
    """Content of any file of qpeft; raises if it is damaged."""
    if path.suffix == ".json":
        return json.loads(path.read_text(encoding="utf-8"))
    if path.suffix == ".jsonl":
        return _rows(path)
    if path.suffix == ".safetensors":
        return {name: (str(t.dtype), t.shape, t.numpy().tobytes()) for name, t in load_file(path).items()}
    if path.suffix in (".pt", ".pth"):
        with safe_globals():
            return _plain(torch.load(path, weights_only=True))
    if path.name == "complete":
        return _names_in(path)
    if path.suffix == ".html" and not path.read_text(encoding="utf-8").rstrip().endswith("</html>"):
        raise ValueError("its end is missing")
    return path.read_bytes()


def _names_in(marker: Path) -> list[str]:
    """The files that a checkpoint's `complete` lists; raises if one is missing or has another SHA-256."""
    lines = [line.split("  ", 1) for line in marker.read_text().splitlines()]
    for digest, name in lines:
        if hashlib.sha256((marker.parent / name).read_bytes()).hexdigest() != digest:
            raise ValueError(f"{name} has another hash")
    return [name for _, name in lines]


def _plain(value: Any) -> Any:
    """Tensors as bytes, so that values can be compared."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), tuple(value.shape), value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value.tobytes() if hasattr(value, "tobytes") else value


def _rows(path: Path) -> list[Any]:
    """Rows of a log without an unfinished last line."""
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def _timeless(path: Path) -> Any:
    """Content without times, paths and everything that depends on the number of attempts."""
    if path.name in ("jobs.jsonl", "README.md", "training_args.bin"):
        return None  # jobs after the last checkpoint are sent again; the model card contains their number
    if path.name == "rows.jsonl":
        return {cell_id: _timeless_row(row) for cell_id, row in _result_rows(path.parent).items()}
    return _untimed(_read(path))


def _result_rows(folder: Path) -> dict[str, Any]:
    """The rows of a study by cell_id."""
    path = folder / "rows.jsonl"
    return {row["cell_id"]: row for row in _rows(path)} if path.exists() else {}


def _timeless_row(row: dict[str, Any]) -> dict[str, Any]:
    train = row["train"]
    curve = {"curve": [point[:3] for point in train["curve"]]} if "curve" in train else {}
    return _untimed({**row, "train": {**train, **curve}})


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _untimed(item) for key, item in value.items() if key not in _TIMED}
    return [_untimed(item) for item in value] if isinstance(value, list) else value


def _up_to(step: int, path: Path) -> list[Any]:
    return [_untimed(row) for row in _rows(path) if row["step"] <= step] if path.exists() and step >= 0 else []


def _whole_checkpoints(run: Path) -> list[Path]:
    return [path.parent for path in run.glob("checkpoints/checkpoint-*/complete")]


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _has_row(run: str, rows: dict[str, Any]) -> bool:
    """Whether the cell of a run, `work/METHOD/HASH/NAME-lrRATE/run`, has a row."""
    if not run.startswith("work/"):
        return False
    _, method, config, name, _ = run.split("/")
    return any(row.endswith(f"/{method}/{config}/{name.rsplit('-lr', 1)[0]}") for row in rows)
