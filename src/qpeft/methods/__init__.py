"""Fine-tuning methods: one folder each, one record each, and the table of all records.

A method of your own is a `Method` in a file of yours, see `examples/own_method.py`. All names that such a file needs
are in `__init__.pyi` and imported when first used.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import lazy_loader


class _PeftFirst(MetaPathFinder):
    """Imports peft before any module here that needs it, also when unpickling imports one directly.

    The import of peft registers all methods (`qpeft.__init__`), so none of their modules may be partly executed then.
    """

    _light = ("method", "registry", "stock", "settings", "budget")

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> None:
        parent, _, name = fullname.rpartition(".")
        is_light = name in self._light or (Path(__file__).parent / name).is_dir()
        if parent.startswith("qpeft.methods") and not is_light and "peft" not in sys.modules:
            import_module("peft")


sys.meta_path.insert(0, _PeftFirst())

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
