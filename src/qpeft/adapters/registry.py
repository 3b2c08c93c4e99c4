"""Make qpeft's methods known to PEFT, without a fork and without patching it."""

from __future__ import annotations

from typing import Any

import peft
from packaging.version import Version
from peft import mapping

from qpeft.adapters.qpa import QPA, QPAConfig, QPAModel
from qpeft.errors import ConfigError

SUPPORTED_PEFT = ("0.21", "0.22")  # internals are used: from the first, below the second


def register() -> None:
    """Register every method; safe to call again.

    Raises:
        ConfigError: peft's version is not supported, or another package took a name.
    """
    low, high = SUPPORTED_PEFT
    if not Version(low) <= Version(peft.__version__) < Version(high):
        raise ConfigError(
            f"qpeft works with peft from {low} and below {high}, found {peft.__version__}; "
            f"install it with: pip install 'peft>={low},<{high}'"
        )
    _enter(mapping.PEFT_TYPE_TO_CONFIG_MAPPING, QPAConfig)
    _enter(mapping.PEFT_TYPE_TO_TUNER_MAPPING, QPAModel)
    _enter(mapping.PEFT_TYPE_TO_PREFIX_MAPPING, QPAModel.container)


def _enter(table: dict[Any, Any], value: Any) -> None:
    if table.setdefault(QPA, value) != value:
        raise ConfigError(f"PEFT type {QPA.value} is already taken by {table[QPA]}; another package registered it")
