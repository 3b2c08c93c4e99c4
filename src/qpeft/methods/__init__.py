"""Fine-tuning methods: one folder each, one record each, and the table of all records.

A method of your own is a `Method` in a file of yours, see `examples/own_method.py`. All names that
such a file needs are in `__init__.pyi` and imported when first used.
"""

from qpeft.lazy import lazy_names

__getattr__, __dir__, __all__ = lazy_names(__name__, __file__)
