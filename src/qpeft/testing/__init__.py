"""Contract tests for an ansatz, a generator or an adapter of your own.

The names are in `__init__.pyi`; their modules are imported when first used, so that a circuit is tested without PEFT.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
