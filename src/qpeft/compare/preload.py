"""Imported once by the process that cells are forked from: it imports everything and reads the study's data for all.

Only that process imports this module: it ignores Ctrl-C, which the runner passes on to its cells, and prints nothing.
"""

import io
import os
import signal
from contextlib import redirect_stderr, redirect_stdout, suppress

from qpeft.compare.cell import Cell
from qpeft.compare.local_executor import FIRST_CELL

signal.signal(signal.SIGINT, signal.SIG_IGN)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads do not survive a fork; a cell sets its own number
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
    from qpeft.compare import cell_run

    if FIRST_CELL in os.environ:
        with suppress(Exception):  # a cell that needs it tries again, and its row tells why it cannot be
            cell_run.warm(Cell.model_validate_json(os.environ[FIRST_CELL]))
