"""Steps that a command runs in new processes, run in this one: a new one takes seconds to import
torch and PEFT.
"""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest


@pytest.fixture
def verified_here(monkeypatch):
    """Exports are verified in this process."""
    import torch

    def stock_logits(code, inputs):
        exec(code, found := {})
        with torch.no_grad():
            return found["model"].eval()(**inputs).logits

    monkeypatch.setattr("qpeft_lab.cli.export.stock_logits", stock_logits)


@pytest.fixture
def inline(monkeypatch):
    """The cells of a study run in this process."""
    from qpeft_lab.compare import runner
    from qpeft_lab.compare.cell import run_cell

    @contextmanager
    def executor(folder, *_):
        def run(cells, is_exclusive=False):
            return ((cell, run_cell(cell, folder)) for cell in cells)

        yield SimpleNamespace(run=run, stop=lambda: None)

    monkeypatch.setattr(runner, "LocalExecutor", executor)
