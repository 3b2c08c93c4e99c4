"""Fine-tuning methods: one folder each, one record each, and the table of all records.

A method of your own is a `Method` in a file of yours: `examples/own_method.py`. The other names here are what such a
file is made of; they are imported, with torch and peft, when first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpeft.methods.method import Method, Trains
from qpeft.methods.registry import file_sha256, find, get, hosts, is_file, keys, named, records, register

if TYPE_CHECKING:
    from qpeft.core.adapter_form import AdapterForm
    from qpeft.core.binding import Slot
    from qpeft.core.config import GeneratedConfig, GeneratedLoraConfig, MethodName
    from qpeft.core.folded import Folded
    from qpeft.core.generator import FullPrecision, Generator, fingerprint
    from qpeft.core.generator_state import check_adapter
    from qpeft.core.lora_init import draw_initial
    from qpeft.core.lora_slots import lora_slots
    from qpeft.core.own_tuner import OwnTuner
    from qpeft.core.seeded_init import SeededInit
    from qpeft.core.slots import find_slots
    from qpeft.core.targets import check_is_matrix, check_target_modules
    from qpeft.core.tuner import GeneratedMixin
    from qpeft.core.weights_hash import SealedConfig
    from qpeft.generator_config import GeneratorConfig

_HOME = {
    "AdapterForm": "qpeft.core.adapter_form",
    "Folded": "qpeft.core.folded",
    "FullPrecision": "qpeft.core.generator",
    "GeneratedConfig": "qpeft.core.config",
    "GeneratedLoraConfig": "qpeft.core.config",
    "GeneratedMixin": "qpeft.core.tuner",
    "Generator": "qpeft.core.generator",
    "GeneratorConfig": "qpeft.generator_config",
    "MethodName": "qpeft.core.config",
    "OwnTuner": "qpeft.core.own_tuner",
    "SealedConfig": "qpeft.core.weights_hash",
    "SeededInit": "qpeft.core.seeded_init",
    "Slot": "qpeft.core.binding",
    "check_adapter": "qpeft.core.generator_state",
    "check_is_matrix": "qpeft.core.targets",
    "check_target_modules": "qpeft.core.targets",
    "draw_initial": "qpeft.core.lora_init",
    "find_slots": "qpeft.core.slots",
    "fingerprint": "qpeft.core.generator",
    "lora_slots": "qpeft.core.lora_slots",
}

__all__ = [
    "AdapterForm",
    "Folded",
    "FullPrecision",
    "GeneratedConfig",
    "GeneratedLoraConfig",
    "GeneratedMixin",
    "Generator",
    "GeneratorConfig",
    "Method",
    "MethodName",
    "OwnTuner",
    "SealedConfig",
    "SeededInit",
    "Slot",
    "Trains",
    "check_adapter",
    "check_is_matrix",
    "check_target_modules",
    "draw_initial",
    "file_sha256",
    "find",
    "find_slots",
    "fingerprint",
    "get",
    "hosts",
    "is_file",
    "keys",
    "lora_slots",
    "named",
    "records",
    "register",
]


class _PeftFirst(MetaPathFinder):
    """Imports peft before any module here that is built on it.

    The import of peft registers all methods (`qpeft.__init__`), which needs every module of theirs complete: a module
    that imported peft itself would be found half executed.
    """

    _light = ("method", "registry", "stock", "settings", "budget")

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        parent, _, name = fullname.rpartition(".")
        if not parent.startswith("qpeft.methods") or name in self._light or "peft" in sys.modules:
            return
        if not (Path(__file__).parent / name).is_dir():
            import_module("peft")


sys.meta_path.insert(0, _PeftFirst())


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'qpeft.methods' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
