"""Measurements of circuits and adapters, as functions; `diagnose` runs all of them.

Circuits: is it random, redundant, trainable, does it reach all states, is it entangled? Trained
adapters: did the angles move, how many directions are generated?
"""

from qpeft.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
