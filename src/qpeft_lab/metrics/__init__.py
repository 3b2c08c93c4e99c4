"""Scores of predicted classes and numbers, and of generated texts, imported on first use."""

from qpeft.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
