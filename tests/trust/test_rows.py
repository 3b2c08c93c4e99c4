"""Where the rows of issue 67 are tested: `pytest tests/trust -k test_a1` runs one.

A test has the letter of its row at the beginning or at the end of its name; those of pools are in
`tests/core/test_pool.py`. The lists "Loud but wrong" and
"Low" are `test_loud.py` and `test_low.py`; `test_windows.py` has faults that were found later.
"""

import re
from pathlib import Path

import pytest

ROWS = {
    "A1": "TRL copies a trained adapter to its reference through `.data`",
    "A2": "weight averaging and hand-written steps write through `.data`",
    "B": "embeddings and heads that are tied, resized, targets, or trained in full",
    "D": "deleted models and adapters are freed",
    "E": "circuits that Qiskit has transpiled",
    "H": "rounding of adapters on bases of half precision",
    "T": "one thread evaluates a model while another one trains it",
    "P1": "requests to a pool inside a running call",
    "P2": "threads and interruptions of a pool",
    "N": "edited fields and numbers that are not finite in a config",
    "R": "patterns of a stranger that never end",
    "F": "a kill while a folder is replaced",
    "M": "every refusal names its file",
    "U1": "training continues after PEFT refused to merge",
    "U2": "`layers_to_transform` is not ignored",
    "U3": "what other adapters do to frozen ones",
    "U4": '`family="lie"` on a layer with one output',
    "U5": "an unknown target in a second adapter",
}
FILES = [*Path(__file__).parent.glob("test_*.py"), Path(__file__).parents[1] / "core/test_pool.py"]
TESTS = [name for file in FILES for name in re.findall(r"^def test_(\w+)", file.read_text(), re.M)]


@pytest.mark.parametrize("row", ROWS)
def test_row_of_the_issue_has_a_test(row):
    assert any(row.lower() in (name.partition("_")[0], name.rpartition("_")[2]) for name in TESTS)
