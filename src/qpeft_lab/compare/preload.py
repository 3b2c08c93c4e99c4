"""Preloaded by the process from which cells are forked: it imports all packages and reads the
study's data once.

The process ignores Ctrl-C, which the runner sends to its cells, and prints nothing.
"""

import gc
import io
import os
import pickle
import signal
from contextlib import redirect_stderr, redirect_stdout, suppress

signal.signal(signal.SIGINT, signal.SIG_IGN)
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # threads do not survive a fork; a cell sets its own number
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
    from qpeft_lab.compare import cell
    from qpeft_lab.compare.local import FIRST_CELL

    if FIRST_CELL in os.environ:
        with suppress(
            Exception
        ):  # a cell that needs the data reads them again, and its row has the reason
            first = pickle.loads(bytes.fromhex(os.environ[FIRST_CELL]))  # noqa: S301  (our own)
            cell.read_data(cell.settings_of(first))
            cell.read_data(cell.test_settings_of(first))

# a cell's garbage collections need not go through all packages, and leave the shared memory shared
gc.freeze()
