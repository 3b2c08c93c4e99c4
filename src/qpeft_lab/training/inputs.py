"""What can be refused before torch is imported, which takes seconds, and before any work."""

from __future__ import annotations

import os
from pathlib import Path

from qpeft.errors import ConfigError, DataError
from qpeft_lab.base_files import (
    NO_CHAT_TEMPLATE,
    check_base_files,
    context_of,
    lacks_chat_template,
)
from qpeft_lab.data.names import parse_source
from qpeft_lab.data.sources import begins_with_messages
from qpeft_lab.files import output_file
from qpeft_lab.settings import RunSettings

RESULT = "result.json"  # in a run folder: the run is finished


def check_inputs(settings: RunSettings) -> None:
    """Raise InputError for values out of range, and for a base, data or folder that cannot be used.

    The settings of the method are not checked: those of PEFT's methods need PEFT.
    """
    settings.check()
    for name in ("model", "data", "out", "eval_data"):
        if getattr(settings, name) == "":  # a shell variable that is not set
            raise ConfigError(f"{name} is empty; give a value")
    if os.path.lexists(Path(settings.out).expanduser() / RESULT):
        return  # a finished run is only read; its data may be gone
    for data in filter(None, (settings.data, settings.eval_data)):
        source = parse_source(data)
        if source.is_local:
            source.path  # noqa: B018  (raises for a missing file)
    check_base_files(settings.model)
    context = context_of(settings.model)
    if context is not None and settings.seq_len is not None and settings.seq_len > context:
        raise ConfigError(
            f"seq_len={settings.seq_len} is longer than the model's context of {context} tokens"
        )
    if (
        settings.is_language_model
        and settings.chat_template is None
        and begins_with_messages(settings.data)
        and lacks_chat_template(settings.model)
    ):
        raise DataError(NO_CHAT_TEMPLATE)
    output_file(Path(settings.out).expanduser(), is_folder=True)
