"""Libraries keep silent while a command runs; what qpeft itself warns of is shown as a note."""

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

# read by the libraries when they are imported, which is why a command imports them inside its function
_SILENCE = {
    "DATASETS_VERBOSITY": "critical",  # it logs what it also raises
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_VERBOSITY": "error",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
_TALKATIVE = ("bitsandbytes", "torchao", "torch.utils._pytree")  # PEFT imports those that are installed


@contextmanager
def quiet_libraries(debug: bool) -> Iterator[None]:
    """Silence warnings, progress bars and chatter that are not qpeft's, unless `debug`."""
    if debug:
        yield
        return
    for name, value in _SILENCE.items():
        os.environ.setdefault(name, value)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = _show_own
        yield


def _show_own(message: Warning | str, category: Any, filename: str, *_: Any) -> None:
    if filename.startswith(_PACKAGE):
        console.say("Note:", str(message), style="bold yellow")
