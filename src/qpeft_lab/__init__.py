"""The laboratory of qpeft: the `qpeft` command, training runs, studies, diagnosis, metrics and the
demo.

It is installed with `pip install 'qpeft[lab]'`. The public names are in `__init__.pyi` and imported
when first used.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


def __getattr__(name: str) -> "Any":
    """A public name. The first use of one replaces this function by that of `lazy_names`."""
    from qpeft.lazy import lazy_names

    own = globals()
    own["__getattr__"], own["__dir__"], own["__all__"] = lazy_names(__name__, __file__)
    return own[name] if name in own else own["__getattr__"](name)
