"""From an exception to an exit code, and to one message: what happened and what to do."""

from __future__ import annotations

from collections.abc import Collection

from qpeft.cli.ctrl_c import INTERRUPTED, MESSAGE
from qpeft.errors import InputError, QpeftError
from qpeft.files import is_disk_full

WORK_FAILED = 1
BAD_INPUT = 2
SOME_FAILED = 3  # some cells of a comparison; the others have results

_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


def exit_code(error: BaseException) -> int:
    """130 for an interruption, 2 for bad input, which is refused before any work, 1 for other errors."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    return BAD_INPUT if isinstance(error, InputError) else WORK_FAILED


def explain(error: BaseException, options: Collection[str] = ()) -> str:
    """The message for the user: qpeft's own errors, other known failures with a remedy.

    An error of qpeft names settings that are `options` of the command as options.
    """
    if isinstance(error, KeyboardInterrupt):
        return str(error) or MESSAGE
    if isinstance(error, QpeftError):
        return error.message(options)
    if isinstance(error, SystemExit):
        return f"Code of a method, ansatz or backend of your own called sys.exit({error.code!r}). Remove the call."
    if is_out_of_memory(error):
        return "Out of memory. Use a smaller --batch-size or --seq-len, or a smaller model."
    if is_disk_full(error):
        return f"The disk is full{_where(error)}. Free some space and run the same command again."
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}{_where(error)}."
    return f"Unexpected {type(error).__name__}: {_first_line(error)}. Run again with --debug to see the traceback."


def is_out_of_memory(error: BaseException) -> bool:
    """True for Python's MemoryError and for the RuntimeErrors of torch's allocators."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(phrase in str(error).lower() for phrase in _OUT_OF_MEMORY)


def _where(error: BaseException) -> str:
    filename = getattr(error, "filename", None)
    return f": {filename}" if filename else ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or "no message").splitlines()[0].rstrip(".")
