"""Fine-tuning methods: one folder each.

peft is imported here, before any submodule, so that the registration which follows its import finds every submodule
complete.
"""

import peft as _peft  # noqa: F401
