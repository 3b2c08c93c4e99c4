"""Fine-tune Hugging Face models with quantum-generated parameters, and save the result as a stock PEFT adapter.

`import qpeft` loads neither torch nor peft: the public names, in `__init__.pyi`, are imported when first used. The
methods are registered with PEFT when peft is imported, before or after qpeft.
"""

from importlib import import_module
from importlib.metadata import version
from typing import Any

import lazy_loader
import wrapt

__version__ = version("qpeft")

__getattr__, _, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ = sorted([*__all__, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]


def __dir__() -> list[str]:
    return __all__


@wrapt.when_imported("peft")
def _register(_peft: Any) -> None:
    import_module("qpeft.methods.peft_types").register_all()
