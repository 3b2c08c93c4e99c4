"""Ctrl-C: the current step is completed and saved before the run stops; a long call of a library is not awaited."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType
from typing import TypeVar

Result = TypeVar("Result")


def interruptible(call: Callable[[], Result]) -> Result:
    """The result of `call`, which works without the GIL for a long time. Ctrl-C ends the waiting at once.

    Python handles signals between two of its own instructions only, so the call runs in another thread.
    """
    if threading.current_thread() is not threading.main_thread():
        return call()
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    return future.result()


class StopRequest:
    """Within this context, the first SIGINT sets `wanted` and calls `on_request`; the second interrupts at once."""

    def __init__(self, on_request: Callable[[], None]):
        self.wanted = False
        self._on_request = on_request

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # signals are handled only there
            self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "_before"):
            signal.signal(signal.SIGINT, self._before)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.wanted = True
        signal.signal(signal.SIGINT, self._before)
        self._on_request()
