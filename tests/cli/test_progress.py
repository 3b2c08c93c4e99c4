"""Progress on standard error: lines without a terminal, bars with one; nothing on standard output."""

import pytest

from qpeft_lab.cli.compare import CompareBar
from qpeft_lab.cli.console import stderr
from qpeft_lab.cli.progress import TrainingBar, bars
from qpeft_lab.training.score import Score


class Planned:
    """The fields of a cell that the bar reads."""

    def __init__(self, method, name):
        self.method, self.name = method, name

    def row(self, status="success", **fields):
        return {"study": "s", "method": self.method, "hash": "h", "name": self.name, "status": status, **fields}


@pytest.fixture
def show():
    """A run in progress, and a study of which one cell succeeded, one failed and one is in progress."""

    def work():
        with bars() as shown:
            run = TrainingBar(shown, "qpa")
            run.on_start(4, 2)
            run.on_step(3, 2.5)
            run.on_eval(3, Score(2.0, "nats per token", 1, {"perplexity": 7.39}))
            cells = [Planned("lora", "lr0.1"), Planned("qpa", "seed0"), Planned("lora", "seed0")]
            bar = CompareBar(shown)
            bar.on_total(5, 2)
            for cell, row in (
                (cells[0], cells[0].row(valid_loss=2.5, best_step=0, lr=0.1)),
                (cells[1], cells[1].row("failed", error="no\nluck")),
            ):
                bar.on_start(cell)
                bar.on_step(cell, 1, 2)
                bar.on_row(cell, row)
            bar.on_start(cells[2])
            bar.on_step(cells[2], 1, 4)

    stderr.cache_clear()  # whether it is a terminal was seen before
    yield work
    stderr.cache_clear()


@pytest.mark.parametrize("terminal", [False, True])
def test_progress_has_a_line_per_event_and_bars_on_a_terminal(show, terminal, capsys, monkeypatch):
    if terminal:
        for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "120"}.items():
            monkeypatch.setenv(name, value)
    show()
    captured = capsys.readouterr()
    assert captured.out == ""
    for found in ("resuming from step 2", "perplexity 7.39", "validation loss 2.5000", "failed: no luck"):
        assert found in captured.err
    for found in ("75%", "lora seed0", "25%"):
        assert (found in captured.err) == terminal
