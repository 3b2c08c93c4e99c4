"""Measurements of circuits and adapters, as functions; `diagnose` runs all of them.

Circuits: is it random, redundant, trainable, does it reach all states, is it entangled? Trained adapters: did the
angles move, how many directions are generated, does the circuit matter? The names are in `__init__.pyi`; those that
need peft are imported on first use.
"""

import lazy_loader

# These functions have the names of their modules, whose import must not replace them later.
from qpeft.diagnostics.effective_rank import effective_rank as effective_rank
from qpeft.diagnostics.expressibility import expressibility as expressibility
from qpeft.diagnostics.gradient_variance import gradient_variance as gradient_variance
from qpeft.diagnostics.porter_thomas import porter_thomas as porter_thomas
from qpeft.diagnostics.redundancy import redundancy as redundancy

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
