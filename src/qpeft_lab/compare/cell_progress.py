"""The progress of a cell's run: its process writes a small file, which the runner reads."""

from __future__ import annotations

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from qpeft_lab.progress import Progress

_FILE = "progress.json"
_SECONDS = 0.5  # at least, between two writes


class Reached(NamedTuple):
    """What a cell is doing."""

    what: str  # a part of the work, such as `Loading the base model`; empty between steps
    step: int = 0
    steps: int | None = None  # None before the training
    loss: float | None = None
    seconds_left: float | None = None  # of the training


class ProgressFile(Progress):
    """Writes the progress of a run to a file in the work folder of its cell, at most twice a second."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / _FILE
        self._reached = Reached("")
        self._written = 0.0

    def on_stage(self, what: str) -> None:
        self._write(self._reached._replace(what=what), at_once=True)

    def on_part(self, what: str, done: int, total: int) -> None:
        self._write(self._reached._replace(what=f"{what}: {done} of {total}"))

    def on_start(self, total: int, done: int) -> None:
        self._began = time.monotonic()
        self._resumed = done
        self._write(Reached("", done, total), at_once=True)

    def on_step(self, step: int, loss: float) -> None:
        # with the evaluations so far, which the next steps have in the same proportion
        per_step = (time.monotonic() - self._began) / (step - self._resumed)
        left = per_step * ((self._reached.steps or step) - step)
        self._write(Reached("", step, self._reached.steps, loss, left))

    def _write(self, reached: Reached, *, at_once: bool = False) -> None:
        self._reached = reached
        if not at_once and time.monotonic() - self._written < _SECONDS:
            return
        self._written = time.monotonic()
        temporary = self._path.with_suffix(".unfinished")
        with suppress(OSError):  # a full disk is reported by what needs the space
            temporary.write_text(json.dumps(reached), encoding="utf-8")
            temporary.replace(self._path)


def read_progress(folder: Path) -> Reached | None:
    """The progress of the cell with this work folder; None if it has written none."""
    with suppress(OSError, ValueError):
        return Reached(*json.loads((folder / _FILE).read_text(encoding="utf-8")))
    return None
