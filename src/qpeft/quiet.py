"""Without the warnings of a library, also where several threads ask for it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

_filters = RLock()  # Python's, which are those of the process


@contextmanager
def quiet(library: str) -> Iterator[None]:
    """Within: warnings that concern the modules of `library`, a pattern, are not shown."""
    # one thread at a time: each puts back the filters that it has found
    with _filters, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=rf"{library}\b")
        yield
