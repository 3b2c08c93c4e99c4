"""Quantum circuits as data, and their exact simulation in plain torch.

The names are in `__init__.pyi`; their modules are imported when first used, because a configuration
reads the table of ansaetze without torch.
"""

from qpeft.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
