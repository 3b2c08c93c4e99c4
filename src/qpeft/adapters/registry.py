"""Make qpeft's methods known to PEFT, without a fork and without patching it."""

from __future__ import annotations

from typing import Any

import peft
from packaging.version import Version
from peft import mapping

from qpeft.adapters.attached_config import ATTACHED, AttachedConfig, AttachedTuner
from qpeft.adapters.bottleneck import BOTTLENECK, BottleneckConfig, BottleneckModel
from qpeft.adapters.generated_config import MethodName
from qpeft.adapters.qaa import QAA, QAAConfig, QAAModel
from qpeft.adapters.qpa import QPA, QPAConfig, QPAModel
from qpeft.adapters.quantum_peft import QUANTUM_PEFT, QuantumPeftConfig, QuantumPeftModel
from qpeft.adapters.sora import SORA, SoRAConfig, SoRAModel
from qpeft.errors import ConfigError

METHODS = {
    QPA: (QPAConfig, QPAModel, QPAModel.container),
    QUANTUM_PEFT: (QuantumPeftConfig, QuantumPeftModel, QuantumPeftModel.container),
    ATTACHED: (AttachedConfig, AttachedTuner, AttachedTuner.container),
    BOTTLENECK: (BottleneckConfig, BottleneckModel, BottleneckModel.prefix),
    QAA: (QAAConfig, QAAModel, QAAModel.prefix),
    SORA: (SoRAConfig, SoRAModel, SoRAModel.prefix),
}  # config, tuner, and what the names of its own modules begin with
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
    for name, (config, tuner, prefix) in METHODS.items():
        _enter(mapping.PEFT_TYPE_TO_CONFIG_MAPPING, name, config)
        _enter(mapping.PEFT_TYPE_TO_TUNER_MAPPING, name, tuner)
        _enter(mapping.PEFT_TYPE_TO_PREFIX_MAPPING, name, prefix)


def _enter(table: dict[Any, Any], name: MethodName, value: Any) -> None:
    if table.setdefault(name, value) != value:
        raise ConfigError(f"PEFT type {name.value} is already taken by {table[name]}; another package registered it")
