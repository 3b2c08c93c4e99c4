"""Docstrings of the public names state shapes, units, errors, and of configs the equation."""

import inspect
import re

import pytest

import qpeft
import qpeft.circuits
import qpeft.errors
import qpeft.methods
import qpeft.testing
import qpeft_lab
from qpeft_lab import compare, demo, diagnose, metrics

MODULES = [qpeft, qpeft.circuits, qpeft.errors, qpeft.methods, qpeft.testing]
MODULES += [qpeft_lab, compare, demo, diagnose, metrics]
METHODS = ("QPA", "QuantumPeft", "QAA", "CUA", "QuIC", "QuanTA", "SoRA", "Bottleneck")
DTYPE = re.compile(r"dtype|float32|float64|complex|int64|uint8")
SHAPE = re.compile(r"\(\w[^()]*,[^()]*\)|\(\d?\w+\)|\(2\*\*N|shape")


def public():
    """The functions and classes by their names, each once."""
    by_id = {}
    for module in MODULES:
        for name in getattr(module, "__all__", None) or dir(module):
            value = getattr(module, name)
            is_ours = getattr(value, "__module__", "").startswith("qpeft")
            if is_ours and (inspect.isfunction(value) or inspect.isclass(value)):
                by_id.setdefault(id(value), (f"{module.__name__}.{name}", value))
    return dict(by_id.values())


def own_methods(cls):
    """Public methods and properties that `cls` defines, and not a class of another package first."""
    others = [base for base in cls.__mro__ if not base.__module__.startswith("qpeft")]
    for name, value in vars(cls).items():
        function = getattr(value, "__func__", getattr(value, "fget", value))
        is_theirs = any(hasattr(base, name) for base in others)
        if inspect.isfunction(function) and not name.startswith("_") and not is_theirs:
            yield name, function


FUNCTIONS = public()
METHODS_OF_CLASSES = {
    f"{name}.{method}": function
    for name, cls in FUNCTIONS.items()
    if inspect.isclass(cls)
    for method, function in own_methods(cls)
}
PUBLIC = FUNCTIONS | METHODS_OF_CLASSES


def lacks(value):
    """What the docstring of a function or class lacks."""
    text = inspect.getdoc(value) or ""
    signature = str(inspect.signature(value)) if inspect.isfunction(value) else ""
    stated = {
        "a docstring": value.__doc__,
        "shapes of tensors": "Tensor" not in signature or SHAPE.search(text),
        "dtypes of tensors": "Tensor" not in signature or DTYPE.search(text),
        "radians": "angles" not in signature or "radian" in text.lower(),
        "what it raises": "raise " not in inspect.getsource(value) or "Raise" in text,
    }
    return [what for what, is_there in stated.items() if not is_there]


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_is_complete(name):
    assert lacks(PUBLIC[name]) == []


@pytest.mark.parametrize("method", METHODS)
def test_config_has_the_equation_and_when_not_to_use_it(method):
    text = inspect.getdoc(getattr(qpeft, f"{method}Config"))
    assert re.search(r"^    (y|adapter\[c\]) = ", text, flags=re.MULTILINE)
    assert re.search(r"^Not ", text, flags=re.MULTILINE)
    assert "Raises:" in text


def test_incomplete_docstrings_are_found():
    def turned(angles: "torch.Tensor"):  # noqa: F821
        """Turn."""
        raise ValueError

    assert lacks(turned) == ["shapes of tensors", "dtypes of tensors", "radians", "what it raises"]

    turned.__doc__ = "Turn angles (M,), radians, float32. Raises ValueError."
    assert lacks(turned) == []
    assert len(FUNCTIONS) > 80
    assert len(METHODS_OF_CLASSES) > 40
