"""The demo's texts: documentation that lies on every machine with qpeft's dependencies.

Two domains. `stdlib_docs` (Python's standard library) made the embedded base; `numpy_docs` is what the
demo adapts it to. Sources are read and parsed, never imported or executed, so reading is safe, light and
the same in every process.
"""

import ast
import hashlib
import importlib.util
import inspect
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from qpeft.errors import DataError

_STDLIB_SKIPPED = frozenset({"test", "tests", "idlelib", "site-packages", "dist-packages"})
_NUMPY_SKIPPED = frozenset({"tests", "distutils"})  # numpy.distutils repeats the standard library's
_WITH_DOCSTRING = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


class Split(NamedTuple):
    """Documents of one corpus in three disjoint parts, each in the corpus's order."""

    train: list[str]
    validation: list[str]
    test: list[str]


def stdlib_docs() -> list[str]:
    """Docstrings of Python's standard library, then the topics of `pydoc`: about 2 MB.

    Raises DataError if this Python comes without its sources.
    """
    root = Path(sysconfig.get_paths()["stdlib"])
    texts = [*_docstrings(root, _STDLIB_SKIPPED), *_topics(root / "pydoc_data" / "topics.py")]
    return _distinct(texts, f"Python's standard library at {root}")


def numpy_docs() -> list[str]:
    """NumPy's docstrings, including those its sources add to compiled functions: about 1.7 MB.

    Raises DataError if NumPy is not installed, or without its sources.
    """
    spec = importlib.util.find_spec("numpy")
    if spec is None or spec.origin is None:
        raise DataError("NumPy's documentation was not found: NumPy is not installed. Run: pip install numpy")
    root = Path(spec.origin).parent
    return _distinct(_docstrings(root, _NUMPY_SKIPPED), f"NumPy at {root}")


def digest(docs: Iterable[str]) -> str:
    """SHA-256 (hex) of the documents in their order; each is closed by a zero byte."""
    sha = hashlib.sha256()
    for text in docs:
        sha.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return sha.hexdigest()


def split(docs: Iterable[str], held_out: float = 0.05) -> Split:
    """Deal documents into train, validation and test, the last two with a share of `held_out` each.

    A document's own hash decides, so its part does not depend on the others: another version of the
    library moves no shared document from one part to another.
    """
    parts = Split([], [], [])
    for text in docs:
        u = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2**64
        parts[1 if u < held_out else 2 if u < 2 * held_out else 0].append(text)
    return parts


def _docstrings(root: Path, skipped: frozenset[str]) -> Iterator[str]:
    for path in sorted(root.rglob("*.py*")):
        if path.suffix in {".py", ".pyi"} and not skipped & set(path.relative_to(root).parts):
            yield from _docstrings_of(_parse(path))


def _docstrings_of(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, _WITH_DOCSTRING):
            yield ast.get_docstring(node, clean=False) or ""
        elif isinstance(node, ast.Call) and "add_newdoc" in _called(node):
            yield from (text for text in _strings(node) if " " in text)  # names have no blanks, prose has


def _called(call: ast.Call) -> str:
    """Last part of the called name: `add_newdoc` for `add_newdoc(...)` and for `core.add_newdoc(...)`."""
    return getattr(call.func, "id", getattr(call.func, "attr", ""))


def _strings(call: ast.Call) -> Iterator[str]:
    for argument in call.args:
        for node in ast.walk(argument):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def _topics(path: Path) -> Iterator[str]:
    """The dictionary of help topics; some distributions leave the file out."""
    for statement in _parse(path).body if path.is_file() else []:
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Dict):
            yield from ast.literal_eval(statement.value).values()


def _parse(path: Path) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other people's invalid escape sequences
        return ast.parse(path.read_bytes())


def _distinct(texts: Iterable[str], source: str) -> list[str]:
    docs = list(dict.fromkeys(filter(None, map(_normalise, texts))))
    if not docs:
        raise DataError(f"No documentation in {source}: its .py sources are missing. Use a Python with them.")
    return docs


def _normalise(text: str) -> str:
    """Common indentation and blanks at line ends removed, as `help` shows it."""
    return "\n".join(line.rstrip() for line in inspect.cleandoc(text).splitlines()).strip()
