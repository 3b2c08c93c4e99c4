"""No code names a single method: each fact about a method stands in its record."""

import ast
from pathlib import Path

from qpeft.methods import keys, registry

SOURCE = Path(__file__).resolve().parents[1] / "src"
METHODS = SOURCE / "qpeft" / "methods"
KEYS = set(keys())  # before tests register others
FOLDERS = {path.parent.name for path in METHODS.glob("*/__init__.py")}
# words in code that are also names of methods; the reason stands behind each file
ALLOWED = {
    "qpeft/methods/stock.py": KEYS,  # the records of PEFT's methods
    "qpeft/methods/qpa/__init__.py": {"lora", "dora"},  # the hosts that its own config generates
    "qpeft/methods/attach.py": {"qpa"},  # the default of an option
    "qpeft/methods/counting.py": {"lora"},  # what sizes of adapters are counted in
    "qpeft/circuits/ansatz.py": {"qaa"},  # an ansatz
    "qpeft_lab/method_records.py": {"trainable_tokens"},  # the laboratory's own method
    "qpeft_lab/settings.py": {"qpa", "lora", "prompt"},  # defaults of options; a column of data
    "qpeft_lab/cli/demo.py": {"qpa", "lora", "quantum_peft"},  # the recipes of the demo
    "qpeft_lab/cli/generate.py": {"prompt"},  # a field of an answer
    "qpeft_lab/compare/study.py": {"lora"},  # the default of a field
    "qpeft_lab/compare/data.py": {"prompt"},  # a column of data
    "qpeft_lab/compare/smoke.py": {"prompt", "road"},  # a column of data; a word
    # the study of a verdict: adapters that a circuit is compared with, and its default
    "qpeft_lab/verdict/protocol.py": {"lora", "quantum_peft", "uni_lora"},
    "qpeft_lab/cli/verdict.py": {"qpa"},
    "qpeft_lab/data/sources.py": {"prompt"},  # a column of data
    "qpeft_lab/data/text.py": {"prompt"},
    "qpeft_lab/served.py": {"prompt"},  # a field of a request
    "qpeft_lab/gguf_lora.py": {"lora"},  # the type of an adapter in GGUF
}


def named_methods(code: str) -> set[str]:
    """The methods whose keys or modules are named in this code."""
    names = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            names |= {node.value} & KEYS
            names |= _method_of(node.value.partition(":")[0])
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= _method_of(node.module)
            names |= {a.name for a in node.names if node.module == "qpeft.methods"} & FOLDERS
        elif isinstance(node, ast.Import):
            for alias in node.names:
                names |= _method_of(alias.name)
    return names


def _method_of(module: str) -> set[str]:
    parts = module.split(".")
    return {parts[2]} & FOLDERS if parts[:2] == ["qpeft", "methods"] and len(parts) > 2 else set()


def test_methods_are_named_in_their_folders_only():
    wrong = {}
    for file in SOURCE.rglob("*.py"):
        place = str(file.relative_to(SOURCE))
        own = {file.relative_to(METHODS).parts[0]} if file.is_relative_to(METHODS) else set()
        others = named_methods(file.read_text(encoding="utf-8")) - own - ALLOWED.get(place, set())
        if others:
            wrong[place] = others
    assert not wrong


def test_names_are_found():
    assert named_methods('if method == "sora": pass') == {"sora"}
    assert named_methods('table = {"prefix": 1}') == {"prefix"}
    assert named_methods("from qpeft.methods.qaa import QAASettings") == {"qaa"}
    assert named_methods("from qpeft.methods import quic") == {"quic"}
    assert named_methods("import qpeft.methods.cua.model") == {"cua"}
    assert named_methods('tuner = "qpeft.methods.quanta.model:QuanTAModel"') == {"quanta"}
    assert not named_methods("from qpeft.methods import records")


def test_every_folder_is_a_method():
    assert {method.key for method in registry.records()} >= FOLDERS
