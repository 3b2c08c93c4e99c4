"""Tables, plots and the report of a study's folder, made from study.json and the rows alone."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qpeft.compare.analysis.types import Summary

_SECONDS_BETWEEN = 30.0
_SHARE = 10  # what a refresh took, this many times over, is spent on cells before the next one


def write_all(folder: Path) -> Summary:
    """Write all outputs; the same rows give the same bytes. Raises InputError where there is no study."""
    from qpeft.compare.report.files import write_outputs

    return write_outputs(folder)


class Refresher:
    """Rewrites the outputs while a study runs, now and then; it says why it cannot, and lets the study go on."""

    def __init__(self, folder: Path, say: Callable[[str], None]):
        self._folder, self._say = folder, say
        self._next = time.monotonic() + _SECONDS_BETWEEN

    def refresh(self) -> None:
        """Write the outputs if it is time."""
        begun = time.monotonic()
        if begun < self._next:
            return
        try:
            write_all(self._folder)
        except Exception as error:
            self._say(f"The report could not be refreshed: {error}")
        now = time.monotonic()
        self._next = now + max(_SECONDS_BETWEEN, _SHARE * (now - begun))
