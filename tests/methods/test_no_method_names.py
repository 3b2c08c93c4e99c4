"""Nothing outside a method's folder compares names of methods: what differs between methods is in their records."""

import ast
from pathlib import Path

import pytest

import qpeft
from qpeft.methods import records

SOURCE = Path(qpeft.__file__).parent
KEYS = {record.key for record in records()}
RECORDS = SOURCE / "methods" / "stock.py"
FOLDERS = {path.parent.name for path in SOURCE.glob("methods/*/__init__.py") if "METHOD = " in path.read_text()}
IN_FOLDERS = {path for path in SOURCE.rglob("methods/*/*.py") if path.parent.name in FOLDERS}
OUTSIDE = sorted({*SOURCE.rglob("*.py")} - IN_FOLDERS - {RECORDS})


def names_compared(tree):
    """Literals that are keys in comparisons, `match` cases and module constants; and tables of two or more keys."""
    constants = [node.value for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign) and node.value]
    for node in [*ast.walk(tree), *constants]:
        parts = []
        if node in constants:
            parts = [node]
        elif isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue):
            parts = [node.value]
        if isinstance(node, ast.Dict):
            keys = [key for key in node.keys if _keys(key)]
            parts = keys if len(keys) > 1 and _keys(keys[0]) else []
        for part in parts:
            yield from ((key, node.lineno) for key in _keys(part))


def _keys(node):
    items = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    values = (item.value for item in items if isinstance(item, ast.Constant))
    return [value for value in values if isinstance(value, str) and value in KEYS]


def folders_imported(tree):
    """Folders of methods with an imported module or name, also in text such as "qpeft.methods.qpa.plan:count_qpa"."""
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value]
        for name in names:
            package, _, rest = name.partition("qpeft.methods.")
            if not package and (folder := rest.partition(".")[0]) in FOLDERS:
                yield folder, node.lineno


# words that are keys of methods, too, with another meaning there
OTHER_MEANINGS = {
    ("data/sources.py", "prompt"),  # a column of rows
    ("compare/data.py", "prompt"),
    ("demo/run.py", "lora"),  # the runs that the demo makes
    ("demo/run.py", "qpa"),
    ("demo/run.py", "quantum_peft"),
    ("compare/report/charts.py", "full"),  # fill styles of matplotlib
    ("compare/report/charts.py", "none"),
    ("methods/attach.py", "pissa"),  # an initialization
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
        'UNTRAINED = "none"',
        'ADAPTERS: tuple[str, ...] = ("lora", "dora")',
        'match method:\n    case "qaa":\n        pass',
    ],
)
def test_named_method_is_found(code):
    assert list(names_compared(ast.parse(code)))


@pytest.mark.parametrize("file", sorted(SOURCE.rglob("*.py")), ids=lambda file: str(file.relative_to(SOURCE)))
def test_folder_of_a_method_is_imported_only_inside_it(file):
    place = str(file.relative_to(SOURCE))
    found = [(folder, line) for folder, line in folders_imported(ast.parse(file.read_text()))]
    elsewhere = [(f, line) for f, line in found if file.parent.name != f]
    assert [f"{place}:{line} imports from the folder of {folder}" for folder, line in elsewhere] == []


@pytest.mark.parametrize(
    "code",
    [
        "from qpeft.methods.qpa.generator import CircuitFeature",
        "from qpeft.methods.qpa import METHOD",
        "from qpeft.methods import sora",
        "def f():\n    import qpeft.methods.quantum_peft.frames",
        'import_module("qpeft.methods.qaa.model")',
    ],
)
def test_imported_folder_is_found(code):
    assert list(folders_imported(ast.parse(code)))
