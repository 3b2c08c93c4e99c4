"""Libraries are silent while a command runs; qpeft's own warnings are shown as notes."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from qpeft.cli import console
from qpeft.errors import QpeftWarning

_PACKAGE = str(Path(__file__).parents[1])

# libraries read these when they are imported; commands import them inside their functions
_SILENCE = {
    "DATASETS_VERBOSITY": "critical",  # it logs the errors that it also raises
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
_VERBOSE = ("bitsandbytes", "torchao", "torch.utils._pytree")  # PEFT imports those that are installed


@contextmanager
def quiet_libraries(debug: bool, options: Collection[str] = ()) -> Iterator[None]:
    """Silence the warnings, progress bars and logs of other libraries, unless `debug`."""
    if debug:
        yield
        return
    for name, value in _SILENCE.items():
        os.environ.setdefault(name, value)
    for name in _VERBOSE:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = partial(_show_own, options)
        yield


class _Lasting(io.TextIOWrapper):
    """Text that is dropped from when it cannot be written: the reader of a pipe has ended, or a log's disk is full."""

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError:
            self._drop()

    def _drop(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)


def open_closed() -> None:
    """Replace standard input and output if the shell has closed them, as in `qpeft train ... >&-`."""
    if sys.stdin is None:
        sys.stdin = Path(os.devnull).open()  # noqa: SIM115 to the end
    if sys.stdout is None:
        sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115


def lasting_stderr() -> TextIO:
    """Standard error whose loss does not end a run, as in `qpeft train ... 2>&1 | head -1`."""
    if sys.stderr is None:  # closed by the shell
        return Path(os.devnull).open("w")
    # unbuffered: a buffer raises an error where Ctrl-C interrupts a write and its handler prints
    raw: Any = open(sys.stderr.fileno(), "wb", buffering=0, closefd=False)  # noqa: SIM115 a descriptor, open to the end
    return _Lasting(raw, encoding=sys.stderr.encoding, errors="backslashreplace", line_buffering=True)


def _show_own(options: Collection[str], message: Warning | str, category: Any, filename: str, *_: Any) -> None:
    if filename.startswith(_PACKAGE):
        text = message.message(options) if isinstance(message, QpeftWarning) else str(message)
        console.say("Note:", text, style="bold yellow")
