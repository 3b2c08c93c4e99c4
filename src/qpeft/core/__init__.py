"""What all methods share.

peft is imported here, before any submodule: its import registers all methods, which needs complete submodules.
"""

import peft as _peft  # noqa: F401
