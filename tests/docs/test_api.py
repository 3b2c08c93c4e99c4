"""The API page lists every public name, and the docstrings document every parameter."""

import inspect
import re
from dataclasses import fields, is_dataclass
from importlib import import_module

import pytest
from snippets import ROOT

from qpeft import errors

MODULES = (
    "qpeft",
    "qpeft.backends",
    "qpeft.circuits",
    "qpeft_lab.diagnose",
    "qpeft.methods",
    "qpeft_lab.metrics",
    "qpeft.testing",
    "qpeft_lab",
)
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


def public():
    for module in map(import_module, MODULES):
        for name in (name for name in module.__all__ if not name.startswith("__")):
            yield pytest.param(
                getattr(module, name), f"{module.__name__}.{name}", id=f"{module.__name__}.{name}"
            )


def on_the_page():
    yield from re.findall(r"auto(?:class|function):: ([\w.]+)", PAGE)
    for module in re.findall(r"automodule:: ([\w.]+)", PAGE):
        yield from (f"{module}.{name}" for name in getattr(import_module(module), "__all__", ()))


@pytest.mark.parametrize("what, name", list(public()))
def test_public_name_is_on_the_page(what, name):
    assert name in set(on_the_page()) or inspect.ismodule(what)


def test_names_on_the_page_exist():
    for name in on_the_page():
        module, _, attribute = name.rpartition(".")
        assert getattr(import_module(module), attribute).__doc__, name


def explained_by_its_docstring(what, name):
    functions = [f"qpeft.methods.{function}" for function in ("get", "register")]
    is_part_of_methods = name.startswith("qpeft.methods.") and name not in functions
    # results and parts have other tests
    return callable(what) and not is_dataclass(what) and not is_part_of_methods


@pytest.mark.parametrize(
    "what, name", [p for p in public() if explained_by_its_docstring(*p.values)]
)
def test_docstring_documents_every_parameter(what, name):
    text = (inspect.getdoc(what) or "") + (
        inspect.getdoc(what.__init__) or "" if isinstance(what, type) else ""
    )
    missing = [p for p in inspect.signature(what).parameters if not re.search(rf"\b{p}\b", text)]
    assert text
    assert not missing

    # scikit-learn's and scipy's
    has_errors_of_others = what.__module__ == "qpeft_lab.metrics.predictions"
    assert isinstance(what, type) or has_errors_of_others or "Raises" in text or "raises" in text


@pytest.mark.parametrize("what, name", [p for p in public() if is_dataclass(p.values[0])])
def test_fields_of_configurations_have_help(what, name):
    """Either all or none: a field without it would be no option."""
    own = [field for field in fields(what) if field.name in vars(what).get("__annotations__", {})]
    assert len({"help" in field.metadata for field in own}) <= 1


ERRORS = [
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, Exception) and not issubclass(value, Warning)
]


@pytest.mark.parametrize("name", ERRORS)
def test_error_table_of_the_reference_gives_the_exit_code(name):
    from qpeft_lab.cli.command import exit_code

    page = (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| `{name}` \|.*\| (\d*) ?\|$", page, flags=re.MULTILINE)
    assert row is not None
    assert name == "QpeftError" or int(row[1]) == exit_code(getattr(errors, name)("x"))
