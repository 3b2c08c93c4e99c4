"""The drawings in docs/circuits.md equal those of the code."""

import re
from pathlib import Path

import pytest

from qpeft.circuits import Ansatz

PAGE = Path(__file__).parents[2] / "docs" / "circuits.md"


@pytest.fixture(scope="module")
def page():
    return PAGE.read_text(encoding="utf-8")


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", page, flags=re.DOTALL)


def test_drawings_on_the_page_equal_those_of_the_code(page):
    shown = [Ansatz("ry_ladder", n_qubits=4, n_layers=8), Ansatz("two_design", n_qubits=5, n_layers=2)]
    shown += [Ansatz(name, n_qubits=4, n_layers=1) for name in ("square", "qaa", "rxyz")]
    assert blocks(page, "text") == [ansatz.draw() + "\n" for ansatz in shown]
