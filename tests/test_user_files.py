"""What identifies a user's code: FILE.py, and the modules next to it that it imports."""

import sys

import pytest

from qpeft.errors import ConfigError
from qpeft.files import file_hash
from qpeft_lab.user_files import file_hashes, named_ansatz

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


@pytest.mark.parametrize("changed", ["edited_circuit.py", "its_gates.py"])
def test_code_that_changed_since_its_execution_is_refused(tmp_path, monkeypatch, changed):
    """Its hash would be that of the new code, and the run that of the old one."""
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "edited_circuit.py"
    (tmp_path / "its_gates.py").write_text(
        "from qpeft.circuits import Gate\ngates = [Gate('ry', (0,), (0, 0))]\n", encoding="utf-8"
    )
    file.write_text(
        "from qpeft.circuits import register_ansatz\n"
        "from its_gates import gates\n"
        "register_ansatz('edited', lambda n, m: (1, 1), lambda n, m: [gates])\n",
        encoding="utf-8",
    )
    settings = {"ansatz": f"{file}:edited"}
    file_hashes("qpa", settings, {})
    file.write_text(file.read_text() + "# edited before its execution\n", encoding="utf-8")
    before = file_hashes("qpa", settings, {})
    named_ansatz(settings["ansatz"])
    try:
        assert file_hashes("qpa", settings, {}) == before
        path = tmp_path / changed
        code = path.read_text(encoding="utf-8")
        path.write_text(code + "# edited\n", encoding="utf-8")
        with pytest.raises(ConfigError, match=r"edited_circuit\.py.* changed .* new process"):
            file_hashes("qpa", settings, {})
        path.write_text(code, encoding="utf-8")
        assert file_hashes("qpa", settings, {}) == before
    finally:
        for name in ("edited_circuit", "its_gates"):
            sys.modules.pop(name, None)
