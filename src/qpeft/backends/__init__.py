"""Backends of QPA's circuit in training: the exact simulator, shots, PennyLane, Qiskit; names are
in `__init__.pyi`.
"""

from qpeft.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
