"""The page of the API lists every public name, and what is said there names every parameter."""

import inspect
import re
from dataclasses import fields, is_dataclass
from importlib import import_module

import pytest
from snippets import ROOT

from qpeft import errors

MODULES = ("qpeft", "qpeft.backends", "qpeft.circuits", "qpeft.diagnostics", "qpeft.testing", "qpeft.training")
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")


def public():
    for module in map(import_module, MODULES):
        for name in (name for name in module.__all__ if not name.startswith("__")):
            yield pytest.param(getattr(module, name), f"{module.__name__}.{name}", id=f"{module.__name__}.{name}")


@pytest.mark.parametrize(("what", "name"), list(public()))
def test_a_public_name_is_on_the_page(what, name):
    listed = set(re.findall(r"qpeft[\w.]+", PAGE))
    assert name in listed or inspect.ismodule(what)


@pytest.mark.parametrize(("what", "name"), list(public()))
def test_what_is_called_names_its_parameters(what, name):
    if not callable(what) or f"{name}()" in PAGE or f"{name}(**settings)" in PAGE:
        pytest.skip("made by qpeft alone, or its fields have help, which the page of settings shows")
    said = (inspect.getdoc(what) or "") + (inspect.getdoc(what.__init__) or "" if isinstance(what, type) else "")
    unsaid = [p for p in inspect.signature(what).parameters if not re.search(rf"\b{p}\b", said)]
    assert said
    assert not unsaid
    assert isinstance(what, type) or "Raises" in said or "raises" in said


@pytest.mark.parametrize(("what", "name"), list(public()))
def test_every_setting_has_help(what, name):
    if not (is_dataclass(what) and f"{name}(**settings)" in PAGE):
        pytest.skip("no settings")
    ours = [field for field in fields(what) if field.name in vars(what).get("__annotations__", {})]
    assert not [field.name for field in ours if not field.metadata.get("help")]


ERRORS = [name for name, value in vars(errors).items() if isinstance(value, type) and issubclass(value, Exception)]


@pytest.mark.parametrize("name", ERRORS)
def test_error_table_of_troubleshooting_gives_the_exit_code(name):
    from qpeft.cli.failures import exit_code

    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    row = re.search(rf"^\| `{name}` \|.*\| (\d*) ?\|$", page, flags=re.MULTILINE)
    assert row is not None
    assert name == "QpeftError" or int(row[1]) == exit_code(getattr(errors, name)("x"))
