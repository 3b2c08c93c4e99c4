"""Nothing outside a method's folder compares names of methods: what differs between methods is in their records."""

import ast
from pathlib import Path

import pytest

import qpeft
from qpeft.methods import records

SOURCE = Path(qpeft.__file__).parent
KEYS = {record.key for record in records()}
RECORDS = SOURCE / "methods" / "stock.py"
IN_FOLDERS = set(SOURCE.rglob("methods/*/*.py"))
OUTSIDE = sorted({*SOURCE.rglob("*.py")} - IN_FOLDERS - {RECORDS})


def names_compared(tree):
    """Literals that are keys in comparisons, membership tests, `match` cases; and tables keyed by two or more keys."""
    for node in ast.walk(tree):
        parts = []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        elif isinstance(node, ast.Dict):
            keys = [key for key in node.keys if _keys(key)]
            parts = keys if len(keys) > 1 and _keys(keys[0]) else []
        for part in parts:
            yield from ((key, node.lineno) for key in _keys(part))


def _keys(node):
    items = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    values = (item.value for item in items if isinstance(item, ast.Constant))
    return [value for value in values if isinstance(value, str) and value in KEYS]


# words that are keys of methods, too, with another meaning there
OTHER_MEANINGS = {
    ("training/sources.py", "prompt"),  # a column of rows
    ("compare/data.py", "prompt"),
    ("diagnostics/retraining.py", "none"),  # a feature source
    ("demo/run.py", "lora"),  # the runs that the demo makes
    ("demo/run.py", "qpa"),
    ("demo/run.py", "quantum_peft"),
    ("circuits/ansatz.py", "qaa"),  # an ansatz
    ("circuits/amplitude.py", "qaa"),
}


@pytest.mark.parametrize("file", OUTSIDE, ids=lambda file: str(file.relative_to(SOURCE)))
def test_methods_are_named_only_in_their_folder(file):
    place = str(file.relative_to(SOURCE))
    found = [(key, line) for key, line in names_compared(ast.parse(file.read_text()))]
    assert [f"{place}:{line} names {key!r}" for key, line in found if (place, key) not in OTHER_MEANINGS] == []


@pytest.mark.parametrize(
    "code",
    [
        'settings.method == "sora"',
        'method in ("prefix", "prompt")',
        '"full" != method',
        'TABLE = {"qpa": 1, "lora": 2}',
        'match method:\n    case "qaa":\n        pass',
    ],
)
def test_named_method_is_found(code):
    assert list(names_compared(ast.parse(code)))
