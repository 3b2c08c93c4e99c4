"""Fine-tune Hugging Face models with quantum-generated parameters, and save the result as a stock
PEFT adapter.

The public names, in `__init__.pyi`, are imported when first used. The methods are registered with
PEFT when peft is imported, before or after qpeft.
"""

import sys
from typing import Any

from qpeft.lazy import lazy_names

_find, __dir__, __all__ = lazy_names(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("qpeft")
    return _find(name)


class _Registering:
    """In `sys.meta_path` until peft is imported, after which the methods are registered."""

    @classmethod
    def find_spec(cls, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "peft":
            return None
        others: Any = (finder for finder in sys.meta_path if finder is not cls)
        spec = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if spec is not None:  # transformers asks whether peft exists and does not import it
            execute = spec.loader.exec_module

            def then_register(module: Any) -> None:
                execute(module)
                if cls in sys.meta_path:
                    sys.meta_path.remove(cls)
                    _register()

            spec.loader.exec_module = then_register
        return spec


def _register() -> None:
    from qpeft.methods.registry import register_all

    register_all()


if "peft" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _Registering)
