"""Ctrl-C on the command line: one line and exit code 130, at any moment.

Outside a command nothing needs to be cleaned up, and the process ends at once. In a command the first Ctrl-C raises
KeyboardInterrupt, and the next one ends the process.
"""

from __future__ import annotations

import atexit
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

INTERRUPTED = 130
MESSAGE = "Interrupted. Run the same command again to resume."

_SHOW_CURSOR = "\x1b[?25h"  # progress bars hide it


class _State:
    is_in_command = False
    was_raised = False
    is_shown = False  # the message


def handle() -> None:
    """Handle SIGINT from now on, unless the process was started in the background and ignores it."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _on_ctrl_c)
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # Python would end with the signal instead of 130


@contextmanager
def raised() -> Iterator[None]:
    """In this context the first Ctrl-C raises KeyboardInterrupt, also where a library turns it into another error."""
    _State.is_in_command = True
    try:
        yield
    except Exception as error:
        if _State.was_raised:  # an interrupted import can raise any error
            raise KeyboardInterrupt from error
        raise
    finally:
        _State.is_in_command = False


def shown() -> None:
    """The message is shown: another Ctrl-C does not repeat it."""
    _State.is_shown = True


def _on_ctrl_c(_number: int, _frame: FrameType | None) -> None:
    if _State.is_in_command and not _State.was_raised:
        _State.was_raised = True
        raise KeyboardInterrupt
    with suppress(OSError):
        cursor = _SHOW_CURSOR if os.isatty(2) else ""
        os.write(2, (cursor + ("" if _State.is_shown else f"{MESSAGE}\n")).encode())
    os._exit(INTERRUPTED)
