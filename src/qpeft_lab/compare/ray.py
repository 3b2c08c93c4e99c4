"""Cells on the machines of a Ray cluster: one task per cell, which runs it with a LocalExecutor on
its machine.

All machines need access to the study's folder and the base under the same path. If a worker is
lost, its task runs once more and resumes from the checkpoint. An error in the cell itself becomes a
row, as without Ray.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from qpeft.errors import ConfigError, DataError
from qpeft_lab.compare.cell import Cell, RunCell, failed_row
from qpeft_lab.compare.local import LocalExecutor
from qpeft_lab.compare.rows import Row

_SECONDS_BETWEEN_CHECKS = 0.5  # signals are handled in between


@dataclass
class RayExecutor(LocalExecutor):
    """Runs cells of the study in `folder` on the cluster of RAY_ADDRESS, or on one of `workers`
    CPUs started here.

    On a cluster Ray decides how many run at once. Each cell asks for `threads` CPUs, and for a GPU
    where there is one. Time is measured on this machine.
    """

    def __post_init__(self) -> None:
        try:
            import ray
        except ImportError as error:
            raise ConfigError("--executor ray needs the package ray: pip install ray") from error
        self._ray: Any = ray
        self._tasks: dict[Any, Cell] = {}

    def __enter__(self) -> Self:
        self._is_ours = not self._ray.is_initialized()
        if self._is_ours:
            address = os.environ.get("RAY_ADDRESS")
            cpus = self.workers * self.threads
            local = (
                {}
                if address
                else {"address": "local", "num_cpus": cpus, "include_dashboard": False}
            )
            try:
                self._ray.init(log_to_driver=False, logging_level="error", **local)
            except (ConnectionError, ValueError) as error:
                raise ConfigError(
                    f"no Ray cluster answers at RAY_ADDRESS={address}: {error}"
                ) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_ours:
            self._ray.shutdown()

    def run(self, cells: Sequence[Cell], is_exclusive: bool = False) -> Iterator[tuple[Cell, Row]]:
        """Yield each cell with its row when it ends; `is_exclusive`: one by one on this machine,
        without Ray.
        """
        if is_exclusive:
            yield from super().run(cells, is_exclusive)
            return
        gpus = 1 if self._ray.cluster_resources().get("GPU") else 0
        options: dict[str, Any] = {"num_cpus": self.threads, "num_gpus": gpus}
        task = self._ray.remote(max_retries=1, retry_exceptions=False, **options)(_run_one)
        for cell in cells:
            self._tasks[task.remote(cell, self.folder.resolve(), self.run_cell, self.threads)] = (
                cell
            )
        while self._tasks:
            ended, _ = self._ray.wait(list(self._tasks), timeout=_SECONDS_BETWEEN_CHECKS)
            self._report(self._tasks.values())
            for reference in ended:
                cell = self._tasks.pop(reference)
                if (row := self._result(cell, reference)) is not None:
                    yield cell, row

    def stop(self) -> None:
        """Cancel running and waiting cells; running ones resume from their checkpoints the next
        time.
        """
        super().stop()
        for reference in list(self._tasks):
            self._ray.cancel(reference)

    def _result(self, cell: Cell, reference: Any) -> Row | None:
        try:
            return self._ray.get(reference)
        except (
            self._ray.exceptions.RayError
        ) as error:  # it was cancelled, its worker was lost twice, or it raised
            return (
                None
                if self.is_stopping
                else failed_row(cell, getattr(error, "cause", None) or error)
            )


def _run_one(cell: Cell, folder: Path, run_cell: RunCell, threads: int) -> Row | None:
    """Run the cell on the worker, in a process of its own."""
    if not (folder / "study.json").exists():
        raise DataError(
            f"this machine has no access to {folder}; all machines of the cluster must share it"
        )
    executor = LocalExecutor(folder, run_cell, threads=threads)
    return next((row for _, row in executor.run([cell])), None)
