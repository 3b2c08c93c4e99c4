"""Scores of predicted classes, predicted numbers, generated texts and language models, as plain functions.

The names are in `__init__.pyi`; their modules, and the libraries that compute the scores, are imported on first use.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
