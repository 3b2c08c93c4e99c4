"""What identifies a user's code: FILE.py, and the modules next to it that it imports."""

import sys

import pytest

from qpeft.circuits import ansatz as ansatz_table
from qpeft.errors import ConfigError
from qpeft.files import file_hash
from qpeft_lab.compare.plan import make_plan
from qpeft_lab.compare.study import Study
from qpeft_lab.user_files import circuit_hashes, file_hashes, named_ansatz

CODE = {
    "mine.py": "import helper\nfrom parts import gates, shape\nimport parts.deep.inner\nimport numpy",
    "helper.py": "from second import f\n1 / 0  # nothing is executed",
    "second.py": "import mine",
    "parts/__init__.py": "shape = 2",
    "parts/gates.py": "from . import angles",
    "parts/angles.py": "",
    "parts/deep/inner.py": "from ..angles import x",
    "other.py": "",
    "numpy.txt": "",
    "parts/unused.py": "",
}
UNUSED = {"other.py", "numpy.txt", "parts/unused.py"}


@pytest.fixture
def folder(tmp_path):
    for name, code in CODE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(code)
    return tmp_path


def hash_of(folder):
    return file_hashes("qpa", {"ansatz": f"{folder / 'mine.py'}:circuit"}, {})["ansatz"]


@pytest.mark.parametrize("name", CODE)
def test_changed_module_next_to_the_file_changes_its_hash(folder, name):
    before = hash_of(folder)
    (folder / name).write_text(CODE[name] + "\n# changed")
    assert (hash_of(folder) == before) == (name in UNUSED)


def test_moved_folder_and_a_single_file_keep_their_hash(folder, tmp_path_factory):
    before = hash_of(folder)
    moved = tmp_path_factory.mktemp("moved") / "elsewhere"
    folder.rename(moved)
    assert hash_of(moved) == before

    (moved / "mine.py").write_text("import numpy\nfrom ... import above")
    assert hash_of(moved) == file_hash(moved / "mine.py")  # as releases before
    (moved / "mine.py").write_text("def broken(")
    assert hash_of(moved) == file_hash(moved / "mine.py")


def test_file_that_changed_in_this_process_is_refused(tmp_path, monkeypatch):
    """Its earlier code would run, under the hash of the new one."""
    monkeypatch.setattr(ansatz_table, "_families", {**ansatz_table._families})
    code = """
from qpeft.circuits import Gate, register_ansatz
register_ansatz("turned", lambda n, n_layers: (1,), lambda n, n_layers: [[Gate("ry", (0,), (0,))]])
"""
    (file := tmp_path / "turned_once.py").write_text("1 / 0")
    with pytest.raises(ConfigError, match="division by zero"):
        named_ansatz(f"{file}:turned")
    file.write_text(code)  # mended
    assert named_ansatz(f"{file}:turned") == named_ansatz(f"{file}:turned") == "turned"

    file.write_text(code.replace('"ry"', '"rx"'))
    with pytest.raises(
        ConfigError, match=r"turned_once\.py has changed since .* start Python again"
    ):
        named_ansatz(f"{file}:turned")


READS_ITS_GATES = """
import json
from pathlib import Path

from qpeft.circuits import Gate, register_ansatz

rotation, pair = json.loads(Path(__file__).with_suffix(".json").read_text())


def layers(n_qubits, n_layers):
    if n_qubits > 20:
        raise ValueError("too many qubits")
    for layer in range(n_layers):
        yield [
            Gate(pair, (0, n_qubits - 1)),
            *(Gate(rotation, (wire,), (layer, wire)) for wire in range(n_qubits)),
        ]


register_ansatz("read", lambda n, n_layers: (n_layers, n), layers)
"""


def test_circuit_whose_gates_are_read_from_another_file_is_known_by_its_gates(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(ansatz_table, "_families", {**ansatz_table._families})
    (file := tmp_path / "gates_of.py").write_text(READS_ITS_GATES)
    own = {"ansatz": f"{file}:read"}

    def hash_with(gates):
        file.with_suffix(".json").write_text(gates)
        sys.modules.pop("gates_of", None)  # as in a new process
        return circuit_hashes(own)["gates"]

    first = hash_with('["ry", "cx"]')
    assert hash_with('["rx", "cz"]') != first
    assert hash_with('["ry", "cx"]') == first
    assert len(first) == 64
    hash_with('["ry", "cz"]')
    (tmp_path / "text.txt").write_text("a text of few words and more\n" * 200)
    study = Study(
        name="read",
        title="Gates that are read",
        question="Which gates?",
        reference="lora",
        seeds=[0],
        tuning={"grid": [1.0]},
        run={
            "model": "embedded",
            "data": str(tmp_path / "text.txt"),
            "steps": 1,
            "batch_size": 2,
            "seq_len": 16,
        },
        methods=[
            {"key": "lora", "label": "LoRA", "method": "lora", "settings": {"r": 1}},
            {"key": "read", "label": "read", "method": "qpa", "settings": own},
        ],
    )
    folder = tmp_path / "study"
    make_plan(study, folder).claim()
    make_plan(study, folder)
    hash_with('["ry", "cx"]')
    with pytest.raises(ConfigError, match=r"gates of .* are others than before"):
        make_plan(study, folder)

    assert circuit_hashes({"ansatz": "ry_ladder"}) == circuit_hashes({}) == {}
    sys.modules.pop("gates_of")
