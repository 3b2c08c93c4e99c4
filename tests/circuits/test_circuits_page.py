"""The drawings in docs/circuits.md equal those of the code."""

import re
from pathlib import Path

import pytest

from qpeft.circuits import Ansatz

PAGE = (Path(__file__).parents[2] / "docs" / "circuits.md").read_text(encoding="utf-8")
DRAWN = re.findall(
    r'`Ansatz\("(\w+)", n_qubits=(\d+), n_layers=(\d+)\)\.draw\(\)`:\n\n```text\n(.*?)```', PAGE, flags=re.DOTALL
)


@pytest.mark.parametrize(("name", "n_qubits", "n_layers", "shown"), DRAWN, ids=[name for name, *_ in DRAWN])
def test_drawing_on_the_page_equals_that_of_the_code(name, n_qubits, n_layers, shown):
    assert shown == Ansatz(name, int(n_qubits), int(n_layers)).draw() + "\n"


def test_page_has_drawings():
    assert [name for name, *_ in DRAWN] == ["ry_ladder"]
