"""Fine-tuning in a run folder that can be interrupted and resumed.

The names are in `__init__.pyi`; their modules are imported when first used, because the command line reads `settings`
without torch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
