"""How training runs and studies report their progress, for example to a progress bar, and how
Ctrl-C stops them.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from qpeft_lab.compare.cell import Cell
    from qpeft_lab.compare.cell_progress import Reached
    from qpeft_lab.compare.rows import Row
    from qpeft_lab.training.score import Score

Item = TypeVar("Item")


class Progress:
    """Receives a run's events in the training process, between steps. The methods do nothing;
    override any of them.
    """

    def on_stage(self, what: str) -> None:
        """A part of the work begins: `Reading the data`."""

    def on_part(self, what: str, done: int, total: int) -> None:
        """Of a part of the work that takes longer, `done` of `total` batches are done."""

    def on_note(self, text: str) -> None:
        """A fact about the run: `circuits on lightning.qubit: ...`."""

    def on_start(self, total: int, done: int) -> None:
        """Training starts, or resumes, after `done` of `total` steps."""

    def on_step(self, step: int, loss: float) -> None:
        """Step `step` (from 1) is done; `loss` is its mean over scored tokens or examples, in nats."""

    def on_eval(self, step: int, score: Score) -> None:
        """The validation data was scored after `step` steps (0 is before training)."""


def counted(progress: Progress, what: str, items: Sequence[Item]) -> Iterator[Item]:
    """The items one by one; `progress` learns how many are done before each, and at the end."""
    for done, item in enumerate(items):
        progress.on_part(what, done, len(items))
        yield item
    progress.on_part(what, len(items), len(items))


class CompareProgress:
    """Receives the events of a comparison, in the process of the runner; this base class ignores
    them.

    Methods should return quickly.
    """

    def on_total(self, n_cells: int, n_finished: int) -> None:
        """The study has `n_cells`, of which `n_finished` have rows. A grid of learning rates may
        extend itself.
        """

    def on_cell(self, cell: Cell, reached: Reached) -> None:
        """About once a second for each running cell: what it is doing."""

    def on_row(self, cell: Cell, row: Row) -> None:
        """A cell ended or failed, and its row is written."""


@contextmanager
def stop_request(on_request: Callable[[], None]) -> Iterator[threading.Event]:
    """Within this context, the first SIGINT sets the event and calls `on_request`; the second
    interrupts at once.

    The caller completes and saves the current step before it stops.
    """
    wanted = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals are handled only there
        yield wanted
        return

    def handle(*_: Any) -> None:
        wanted.set()
        signal.signal(signal.SIGINT, before)
        on_request()

    before = signal.getsignal(signal.SIGINT)
    signal.signal(signal.SIGINT, handle)
    try:
        yield wanted
    finally:
        signal.signal(signal.SIGINT, before)
