"""Contract tests for your own ansatz, generator or adapter.

The names are in `__init__.pyi`; their modules are imported on first use; testing a circuit does not import PEFT.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
