"""Preloaded by the process from which cells are forked: it imports all packages and reads the
study's data once.

The process ignores Ctrl-C, which the runner sends to its cells, and prints nothing.
"""

import gc
import io
import os
import signal
from contextlib import redirect_stderr, redirect_stdout, suppress

signal.signal(signal.SIGINT, signal.SIG_IGN)
# threads do not survive a fork; a cell sets its own number
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
    from qpeft_lab.compare import cell
    from qpeft_lab.compare.local import DATA

    if DATA in os.environ:
        # a cell that needs the data reads them again, and its row has the reason
        with suppress(Exception):
            cell.read_ahead(os.environ[DATA])

# a cell's garbage collections need not go through all packages, and leave the shared memory shared
gc.freeze()
