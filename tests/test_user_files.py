"""What identifies a user's code: FILE.py, and the modules next to it that it imports."""

import pytest

from qpeft.files import file_hash
from qpeft_lab.user_files import file_hashes

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
