"""Fine-tune Hugging Face models with quantum-generated parameters, and save the result as a stock PEFT adapter.

`import qpeft` imports no other module: the public names, in `__init__.pyi`, are imported when first used. The methods
are registered with PEFT when peft is imported, before or after qpeft.
"""

import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def __getattr__(name: str) -> "Any":
    """A public name. The first use of one replaces this function by lazy_loader's."""
    from importlib.metadata import version

    import lazy_loader

    own = globals()
    own["__getattr__"], _, names = lazy_loader.attach_stub(__name__, __file__)
    own |= {"__version__": version("qpeft"), "__all__": sorted([*names, "__version__"])}
    return own[name] if name in own else own["__getattr__"](name)


def __dir__() -> list[str]:
    return getattr(sys.modules[__name__], "__all__")  # noqa: B009 may not exist yet


class _PeftFinder:
    """In `sys.meta_path` until peft is imported, which then registers the methods; it finds no module itself."""

    @classmethod
    def find_spec(cls, name: str, _path: "Any" = None, _target: "Any" = None) -> "Any":
        if name != "peft" or cls not in sys.meta_path:
            return None
        sys.meta_path.remove(cls)
        from importlib.util import find_spec

        _register_with_peft()
        return find_spec(name)


def _register_with_peft() -> None:
    """Register the methods now, or directly after the import of peft."""
    import wrapt

    @wrapt.when_imported("peft")
    def _register(_peft: "Any") -> None:
        from qpeft.methods.peft_types import register_all

        register_all()


if "peft" in sys.modules:
    _register_with_peft()
else:
    sys.meta_path.insert(0, _PeftFinder)
