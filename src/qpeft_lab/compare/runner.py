"""Run the cells of a study: trials of learning rates, then every seed, then time and memory.

Each cell runs in a process of its own and gets a row, also if it fails. A stopped or killed run
resumes with the cells that have no row, and an unfinished cell resumes from its last checkpoint.
"""

from __future__ import annotations

from dataclasses import dataclass

from qpeft_lab.compare import cell as cells
from qpeft_lab.compare.cell import Cell, RunCell, work_folder
from qpeft_lab.compare.local import LocalExecutor
from qpeft_lab.compare.plan import Plan
from qpeft_lab.compare.report import write_outputs
from qpeft_lab.compare.rows import Row, RowFile, is_failure, succeeded
from qpeft_lab.compare.summary import Summary
from qpeft_lab.files import locked, remove_folder, remove_unfinished
from qpeft_lab.progress import CompareProgress, stop_request


@dataclass(frozen=True)
class RunOutcome:
    """The result of a call of `run`."""

    n_done: int
    n_skipped: int  # cells that had rows already
    failures: list[Row]  # of all cells, those of earlier runs included
    summary: Summary


def run(
    plan: Plan,
    workers: int = 1,
    progress: CompareProgress | None = None,
    executor: str = "local",
    retry: bool = False,
    threads: int = 1,
    run_cell: RunCell | None = None,
) -> RunOutcome:
    """Run every cell of `plan` that has no row yet, then write the outputs.

    Args:
        workers: cells that run in parallel; cells that measure time always run alone.
        executor: `local` or `ray`.
        retry: run the cells that failed in an earlier call again.
        threads: CPU threads of a cell; a different number changes the last bits of its losses.
        run_cell: what runs a cell, importable by a child process; `cell.run_cell` by default.

    Raises:
        ConfigError: another run uses the same folder; nothing was done.
        KeyboardInterrupt: stopped by Ctrl-C, after the running cells saved the step in progress.
    """
    make_executor: type[LocalExecutor] = LocalExecutor
    if executor == "ray":
        from qpeft_lab.compare.ray import RayExecutor

        make_executor = RayExecutor
    with locked(plan.folder):
        plan.claim()
        remove_unfinished(plan.folder)
        progress = progress or CompareProgress()
        study = _Run(plan, progress, retry)
        run_one = run_cell or cells.run_cell
        with make_executor(plan.folder, run_one, workers, threads, progress.on_cell) as pool:
            study.run(pool)
        outcome = study.outcome(write_outputs(plan.folder))
        if not outcome.failures and (work := plan.folder / "work").exists():
            remove_folder(work)
        return outcome


class _Run:
    """One call of `run`."""

    def __init__(self, plan: Plan, progress: CompareProgress, retry: bool):
        self._plan = plan
        self._progress = progress
        self._retry = retry
        self._file = RowFile(plan.folder)
        self._ended: set[str] = set()  # cells of this call

    def run(self, pool: LocalExecutor) -> None:
        """Run the phases in order; the rows of the first determine the learning rates of the
        others.
        """
        with stop_request(pool.stop) as stop:
            for phase in (self._plan.tuning_cells, self._plan.final_cells, self._plan.cost_cells):
                # trials may make further ones necessary
                while left := self._left(phase(self._file.rows)):
                    self._report_total()
                    for cell, row in pool.run(left, is_exclusive=left[0].role == "cost"):
                        self._keep(cell, row)
                    if stop.is_set():
                        n_left = len(self._left(self._plan.cells(self._file.rows)))
                        raise KeyboardInterrupt(
                            f"{n_left} cells are left. Run the same command again to resume."
                        )
        self._report_total()

    def _keep(self, cell: Cell, row: Row) -> None:
        """Append the row, which is all that is kept of a cell that succeeded."""
        self._file.append(row)
        work = work_folder(cell, self._plan.folder)
        if succeeded(row) and work.exists():
            remove_folder(work)
        self._ended.add(cell.cell_id)
        self._progress.on_row(cell, row)

    def _report_total(self) -> None:
        cells = self._plan.cells(self._file.rows)
        self._progress.on_total(len(cells), len(cells) - len(self._left(cells)))

    def outcome(self, summary: Summary) -> RunOutcome:
        """The outcome, after all phases."""
        rows = self._file.rows
        cells = self._plan.cells(rows)
        finished = [rows[cell.cell_id] for cell in cells if cell.cell_id in rows]
        failures = [row for row in finished if is_failure(row)]
        return RunOutcome(len(self._ended), len(cells) - len(self._ended), failures, summary)

    def _left(self, cells: list[Cell]) -> list[Cell]:
        return [cell for cell in cells if not self._is_done(cell)]

    def _is_done(self, cell: Cell) -> bool:
        """Whether the cell has a row that is kept."""
        if cell.cell_id in self._ended:  # failed cells are retried once
            return True
        row = self._file.rows.get(cell.cell_id)
        reference = self._plan.setup.reference.hash  # of which a row of costs has the ratios
        return (
            row is not None
            and row.get("lr") == cell.lr
            and row.get("reference", reference) == reference
            and not (self._retry and row["status"] == "failed")
        )
