"""Preloaded by the process from which cells are forked: it imports all packages and reads the
study's data once.

The process ignores Ctrl-C, which the runner sends to its cells, and prints nothing.
"""

import gc
import io
import os
import signal
import threading
from contextlib import redirect_stderr, redirect_stdout, suppress

signal.signal(signal.SIGINT, signal.SIG_IGN)
# threads do not survive a fork; a cell sets its own number
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

_RUNNER = os.getppid()
_imported = threading.Event()


def _end_with_runner() -> None:
    """End this process if the runner ends during the imports, which take up to a minute."""
    while not _imported.wait(timeout=0.2):
        if os.getppid() != _RUNNER:
            os._exit(1)


_watch = threading.Thread(target=_end_with_runner, daemon=True)
_watch.start()

with redirect_stderr(io.StringIO()), redirect_stdout(io.StringIO()):
    from qpeft_lab.compare import cell
    from qpeft_lab.compare.local import DATA

    if DATA in os.environ:
        # a cell that needs the data reads them again, and its row has the reason
        with suppress(Exception):
            cell.read_ahead(os.environ[DATA])

_imported.set()
_watch.join()  # threads do not survive a fork

# a cell's garbage collections need not go through all packages, and leave the shared memory shared
gc.freeze()
