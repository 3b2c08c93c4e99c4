"""Cells on the machines of a Ray cluster: one task per cell, which runs it with a LocalExecutor on its machine.

All machines need access to the study's folder and the base under the same path. If a worker is lost, its task runs once
more and resumes from the checkpoint. An error in the cell itself becomes a row, as without Ray.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from qpeft.errors import ConfigError, DataError
from qpeft_lab.compare.cell import Cell, RunCell, failed_row, lost_row
from qpeft_lab.compare.local import LocalExecutor
from qpeft_lab.compare.progress import CompareProgress
from qpeft_lab.compare.rows import Row

_SECONDS_BETWEEN_CHECKS = 0.5  # signals are handled in between


class RayExecutor:
    """Runs cells of the study in `folder` on the cluster of RAY_ADDRESS, or on one of `workers` CPUs started here.

    On a cluster Ray decides how many run at once. Each cell asks for `threads` CPUs, and for a GPU where there is one;
    cells that measure time ask for all CPUs of one and the same machine.
    """

    def __init__(
        self,
        folder: Path,
        run_cell: RunCell,
        progress: CompareProgress,
        workers: int = 1,
        timeout: float | None = None,
        threads: int = 1,
    ):
        try:
            import ray
        except ImportError as error:
            raise ConfigError("--executor ray needs the package ray: pip install ray") from error
        self._ray: Any = ray
        self._folder, self._run_cell, self._progress = folder.resolve(), run_cell, progress
        self._workers, self._threads, self._timeout = workers, threads, timeout
        self._tasks: dict[Any, Cell] = {}
        self._is_stopping = False

    def __enter__(self) -> Self:
        self._is_ours = not self._ray.is_initialized()
        if self._is_ours:
            self._progress.on_note("Starting Ray" if "RAY_ADDRESS" not in os.environ else "Connecting to Ray")
            self._start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_ours:
            self._ray.shutdown()

    def run(self, cells: Sequence[Cell], is_exclusive: bool = False) -> Iterator[tuple[Cell, Row]]:
        """Yield each cell with its row when it ends; `is_exclusive`: one by one, alone on its machine."""
        task = self._task(is_exclusive)
        for cell in cells:
            arguments = (cell, self._folder, self._run_cell, self._timeout)
            self._tasks[task.remote(*arguments)] = cell
        while self._tasks:
            ended, _ = self._ray.wait(list(self._tasks), timeout=_SECONDS_BETWEEN_CHECKS)
            for reference in ended:
                cell = self._tasks.pop(reference)
                if (row := self._row(cell, reference)) is not None:
                    yield cell, row

    def stop(self) -> None:
        """Cancel running and waiting cells; running ones resume from their checkpoints the next time."""
        self._is_stopping = True
        for reference in list(self._tasks):
            self._ray.cancel(reference)

    def _row(self, cell: Cell, reference: Any) -> Row | None:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.TaskCancelledError:
            return None
        except self._ray.exceptions.RayTaskError as error:
            return None if self._is_stopping else failed_row(cell, error.cause or error)
        except self._ray.exceptions.RayError as error:
            lost = lost_row(cell, "failed", f"its Ray worker was lost, twice: {error}")
            return None if self._is_stopping else lost

    def _task(self, is_exclusive: bool) -> Any:
        gpus = 1 if self._ray.cluster_resources().get("GPU") else 0
        options: dict[str, Any] = {"num_cpus": self._threads, "num_gpus": gpus}
        if is_exclusive:
            options |= _whole_machine(self._ray)
        return self._ray.remote(max_retries=1, retry_exceptions=False, **options)(_run_one)

    def _start(self) -> None:
        quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "error"}
        if "RAY_ADDRESS" in os.environ:
            try:
                self._ray.init(**quiet)
            except (ConnectionError, ValueError) as error:
                address = os.environ["RAY_ADDRESS"]
                raise ConfigError(f"no Ray cluster answers at RAY_ADDRESS={address}: {error}") from error
        else:
            cpus = self._workers * self._threads
            self._ray.init(address="local", num_cpus=cpus, include_dashboard=False, **quiet)


def _run_one(cell: Cell, folder: Path, run_cell: RunCell, timeout: float | None) -> Row | None:
    """Run the cell on the worker, in a process of its own."""
    if not (folder / "study.json").exists():
        raise DataError(f"this machine has no access to {folder}; all machines of the cluster must share it")
    executor = LocalExecutor(folder, run_cell, CompareProgress(), timeout=timeout)
    return next((row for _, row in executor.run([cell])), None)


def _whole_machine(ray: Any) -> dict[str, Any]:
    """All resources of one machine, the same for all cells: this one, if it has CPUs."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = ray.get_runtime_context().get_node_id()
    able = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    chosen = min(able, key=lambda node: (node["NodeID"] != here, node["NodeID"]))
    strategy = NodeAffinitySchedulingStrategy(chosen["NodeID"], soft=False)
    return {"num_cpus": chosen["Resources"]["CPU"], "scheduling_strategy": strategy}
