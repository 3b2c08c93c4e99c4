"""Imported once by the process that cells are forked from: seconds of imports that no cell pays again.

It is for that process alone: it ignores Ctrl-C, which the runner passes on to its cells itself.
"""

import os
import signal
from contextlib import suppress
from pathlib import Path

STUDY = "QPEFT_COMPARE_STUDY"  # the environment variable that names the study's folder

signal.signal(signal.SIGINT, signal.SIG_IGN)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads do not survive a fork; a cell sets its own number

import peft  # noqa: E402, F401
import torch  # noqa: E402, F401
import transformers  # noqa: E402, F401

import qpeft.training.run  # noqa: E402, F401
from qpeft.studies.comparison import cell  # noqa: E402

if STUDY in os.environ:
    with suppress(Exception):  # a cell that needs it tries again, and its row tells why it cannot be
        cell.warm(Path(os.environ[STUDY]))
