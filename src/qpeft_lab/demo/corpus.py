"""The built-in texts: documentation that every installation of qpeft has.

The embedded base was trained on `stdlib_docs` (Python's standard library), and the demo adapts it
to `numpy_docs`. Source files are parsed, never imported or executed, so the texts are the same in
every process.
"""

import ast
import importlib.util
import inspect
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from functools import cache, partial
from itertools import chain
from pathlib import Path

from qpeft.errors import DataError

_STDLIB_SKIPPED = frozenset({"test", "tests", "idlelib", "site-packages", "dist-packages"})
_SKIPPED = frozenset({"tests", "distutils"})  # numpy.distutils repeats the standard library's
_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def stdlib_docs() -> list[str]:
    """Docstrings of Python's standard library, then the topics of `pydoc`: about 2 MB.

    Raises DataError if this Python has no source files.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    texts = chain(_docstrings(root, _STDLIB_SKIPPED), _topics(root / "pydoc_data" / "topics.py"))
    return _distinct(texts, f"Python's standard library at {root}")


@cache  # parsing takes seconds, and a study reads its data more than once
def package_docs(*names: str) -> list[str]:
    """The docstrings of installed packages. Raises DataError if they have no source files."""
    specs = map(importlib.util.find_spec, names)  # without importing them
    roots = [Path(str(spec and spec.origin)).parent for spec in specs]
    docs = chain.from_iterable(_docstrings(root, _SKIPPED) for root in roots)
    return _distinct(docs, f"{', '.join(names)} at {roots[0]}")


# the docstrings of NumPy, including those of compiled functions: about 1.7 MB
numpy_docs = partial(package_docs, "numpy")


def _docstrings(root: Path, skipped: frozenset[str]) -> Iterator[str]:
    for path in sorted(root.rglob("*.py*")):
        if path.suffix in {".py", ".pyi"} and not skipped & set(path.relative_to(root).parts):
            for node in ast.walk(ast.parse(path.read_bytes())):
                if isinstance(node, _WITH_DOCSTRING):
                    yield ast.get_docstring(node, clean=False) or ""
                elif isinstance(node, ast.Call) and "add_newdoc" in ast.unparse(
                    node.func
                ):  # perhaps of a module
                    strings = (part for argument in node.args for part in ast.walk(argument))
                    values = (part.value for part in strings if isinstance(part, ast.Constant))
                    # names have no blank
                    yield from (text for text in values if isinstance(text, str) and " " in text)


def _topics(path: Path) -> Iterator[str]:
    """The help topics of pydoc; some distributions do not include the file."""
    for statement in ast.parse(path.read_bytes()).body if path.is_file() else []:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            yield from ast.literal_eval(statement.value).values()


def _distinct(texts: Iterable[str], source: str) -> list[str]:
    """The texts as `help` shows them: without common indentation and trailing spaces; each once."""
    # invalid escape sequences in the files, which are parsed here
    with warnings.catch_warnings(action="ignore"):
        lines = (inspect.cleandoc(text).splitlines() for text in texts)
        shown = ("\n".join(line.rstrip() for line in text).strip() for text in lines)
        docs = list(dict.fromkeys(filter(None, shown)))
    if not docs:
        raise DataError(
            f"no documentation in {source}: its .py sources are missing; use a Python that has them"
        )
    return docs
