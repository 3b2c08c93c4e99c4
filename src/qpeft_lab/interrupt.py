"""Ctrl-C: the current step is completed and saved before the run stops."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType


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
