"""Libraries are silent while a command runs; qpeft's own warnings are shown as notes."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qpeft.cli import console

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
def quiet_libraries(debug: bool) -> Iterator[None]:
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
        warnings.showwarning = _show_own
        yield


def _show_own(message: Warning | str, category: Any, filename: str, *_: Any) -> None:
    if filename.startswith(_PACKAGE):
        console.say("Note:", str(message), style="bold yellow")
