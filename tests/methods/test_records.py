"""Records of methods have the learning rates of the studies; nothing outside a method's folder compares its name."""

import ast
import json
import lzma
from collections import defaultdict
from pathlib import Path
from statistics import median

import pytest

import qpeft
from qpeft import methods
from qpeft.methods import Method, records
from qpeft_lab.method_records import kind_with

RESULTS = Path(__file__).resolve().parents[2] / "results"


def test_learning_rate_of_a_record_is_the_median_of_the_studies_medians():
    medians = defaultdict(list)
    for file in RESULTS.glob("*/*.jsonl.xz"):
        study, *rows = map(json.loads, lzma.decompress(file.read_bytes()).splitlines())
        if len(study["tuning"]["grid"]) == 1:
            continue
        rates = {row["method"]: row["lr"] for row in rows if row["role"] not in ("tuning", "cost")}
        chosen = defaultdict(list)
        for method in study["methods"]:
            if rates.get(method["key"]):
                chosen[method["method"]].append(rates[method["key"]])
        for method, rates in chosen.items():
            medians[method].append(median(rates))
    wrong = {
        method: (rate, median(found))
        for method, found in medians.items()
        if not 0.8 < (rate := methods.named(method).learning_rate) / median(found) < 1.25  # one digit
    }
    assert len(medians) > 10
    assert not wrong


@pytest.mark.parametrize(
    ("settings", "kind"), [({}, "quantum"), ({"family": "pauli"}, "quantum"), ({"family": "core"}, "classical")]
)
def test_settings_without_a_circuit_are_classical(settings, kind):
    assert kind_with(methods.named("quantum_peft"), settings) == kind
    assert kind_with(Method(key="x", title="x", kind="quantum"), settings) == "quantum"


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
            parts = found
        elif isinstance(node, ast.ImportFrom):
            imported = [f"{node.module}.{alias.name}" for alias in node.names]
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
