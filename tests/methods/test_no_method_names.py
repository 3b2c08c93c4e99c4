"""Nothing outside a method's folder compares names of methods, or imports the folder."""

import ast
from pathlib import Path

import qpeft
from qpeft.methods import records

SOURCE = Path(qpeft.__file__).parent
KEYS = {record.key for record in records()}
FOLDERS = {path.parent.name for path in SOURCE.glob("methods/*/__init__.py") if "METHOD = " in path.read_text()}
OTHER_MEANINGS = {("attach.py", "pissa"), ("ansatz.py", "qaa"), ("amplitude.py", "qaa")}  # an initialization, ansatze


def names_in(tree):
    """Keys of methods in comparisons, `match` cases, module constants and tables; folders of methods in imports."""
    for node in ast.walk(tree):
        parts, imported = [], []
        if isinstance(node, ast.Compare):
            parts = [node.left, *node.comparators]
        elif isinstance(node, ast.MatchValue) or (isinstance(node, ast.Assign | ast.AnnAssign) and node in tree.body):
            parts = [node.value]
        elif isinstance(node, ast.Dict) and len(found := [key for key in node.keys if _keys(key)]) > 1:
            parts = found if found[0] is node.keys[0] else []
        elif isinstance(node, ast.ImportFrom):
            imported = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            imported = [node.value]  # such as "qpeft.methods.qpa.plan:count_qpa"
        yield from (key for part in parts for key in _keys(part))
        names = (name.removeprefix("qpeft.methods.").partition(".")[0] for name in imported if "qpeft.methods." in name)
        yield from (f"folder {name}" for name in names if name in FOLDERS)


def _keys(node):
    items = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
    values = (item.value for item in items if isinstance(item, ast.Constant))
    return [value for value in values if isinstance(value, str) and value in KEYS]


def test_methods_are_named_and_imported_only_in_their_folder():
    wrong = []
    for file in SOURCE.rglob("*.py"):
        of_method = file.parent.parent.name == "methods" or file == SOURCE / "methods" / "stock.py"
        for name in names_in(ast.parse(file.read_text(encoding="utf-8"))):
            own = name == f"folder {file.parent.name}" or (of_method and not name.startswith("folder "))
            if not own and (file.name, name) not in OTHER_MEANINGS:
                wrong.append((str(file.relative_to(SOURCE)), name))
    assert not wrong
