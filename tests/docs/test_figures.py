"""Figures of the pages that stand in no table are those that the code gives."""

import math

import pytest
import torch
from scipy.stats import chi2, expon, kstest
from snippets import ROOT

from qpeft.circuits import Ansatz, exact_probabilities
from qpeft_lab.verdict.planning import Size, detectable

N_QUESTIONS = 5  # of a verdict: two twins and three rivals


def words(name):
    return " ".join((ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8").split())


@pytest.mark.parametrize(
    "name, n_qubits, law, distance",
    [("ry_ladder", 7, chi2(1), 0.02), ("ry_ladder", 10, chi2(1), 0.04), ("rxyz", 7, expon(), 0.0)],
)
def test_scaled_probabilities_follow_the_porter_thomas_law(name, n_qubits, law, distance):
    """As far as docs/circuits.md says: 0.02, 0.04, and less than 0.01."""
    ansatz = Ansatz(name, n_qubits, 8)
    uniform = torch.rand(400, *ansatz.angle_shape, generator=torch.Generator().manual_seed(0))
    drawn = exact_probabilities(ansatz, math.pi * (2 * uniform - 1))  # (400, 2**N)

    measured = kstest((2**n_qubits * drawn).flatten().numpy(), law.cdf).statistic

    assert measured == pytest.approx(distance, abs=0.005)
    assert "by at most 0.02 with 7 qubits and 0.04 with 10" in words("circuits")
    assert "that of `rxyz` by less than 0.01" in words("circuits")


def test_forecast_of_a_verdict_by_its_steps():
    steps = (30, 100, 200, 400)
    forecast = [round(detectable(Size(10, n), N_QUESTIONS)) for n in steps]

    assert f"with ten seeds | {' | '.join(map(str, steps))} |" in words("verdict")
    assert f"per cent of LoRA's gain, about | {' | '.join(map(str, forecast))} |" in words(
        "verdict"
    )
