"""Gradient variance: closed forms of one layer, finite differences, the specification's slopes, invalid input."""

import json
import sys

import numpy as np
import pytest
import torch

from qpeft.circuits import Ansatz
from qpeft.circuits.gates import gate_probabilities
from qpeft.diagnostics import gradient_variance
from qpeft.diagnostics.gradient_variance import OBSERVABLES, _gradients
from qpeft.diagnostics.states import random_angles
from qpeft.errors import ConfigError

# One layer of n independent rotations before a ladder: p is a product; <Z> of the last wire is a product of cosines,
# that of the first wire is unchanged. For a uniform angle E sin^2 = 1/2, E cos^4(t/2) = 3/8.
ONE_LAYER = {
    "z_first": lambda n: 1 / (2 * n),  # one wire of n has a slope
    "z_last": lambda n: 0.5**n,
    "p_0": lambda n: (3 / 8) ** (n - 1) / 8,
    "random": lambda n: (
        1 / 4 * (3 / 4) ** (n - 1)
    ),  # sum_i of squares: 2 (1/4) (1/2) and (3/8 + 3/8) for each other wire
    "scaled": lambda n: 1 / 2 * (3 / 2) ** (n - 1),  # 2^n times as much
}


@pytest.mark.parametrize("observable", OBSERVABLES)
@pytest.mark.parametrize("n_qubits", [1, 2, 4])
def test_variance_of_one_layer_has_a_closed_form(observable, n_qubits):
    result = gradient_variance([n_qubits], [1], observable, samples=6000, seed=1)
    (variance,), (error,) = result.variances[0], result.errors[0]
    assert variance == pytest.approx(ONE_LAYER[observable](n_qubits), abs=4 * error)
    assert error < 0.1 * variance


def test_gradients_equal_finite_differences():
    ansatz = Ansatz("ry_ladder", 3, 4)
    angles = random_angles(ansatz, 2, seed=5)
    weights = torch.from_numpy(np.random.default_rng(0).standard_normal((2, 8)))
    found = _gradients(ansatz, angles, weights)[:, 2]
    step = 1e-5
    for sample in range(2):
        for wire in range(3):
            moved = torch.zeros(4, 3, dtype=torch.float64)
            moved[2, wire] = step
            ends = [gate_probabilities(ansatz, angles[sample] + sign * moved) @ weights[sample] for sign in (1, -1)]
            assert found[sample, wire].item() == pytest.approx(((ends[0] - ends[1]) / (2 * step)).item(), abs=1e-9)


def test_slopes_at_eight_layers_are_those_of_the_specification():
    widths = [5, 6, 8, 10]
    by_observable = {name: gradient_variance(widths, [8], name, samples=400) for name in OBSERVABLES}
    slopes = {name: result.slopes[0] for name, result in by_observable.items()}
    assert slopes["z_last"] == pytest.approx(-1, abs=0.15)
    assert slopes["random"] == pytest.approx(-1, abs=0.15)
    assert slopes["p_0"] == pytest.approx(-1.9, abs=0.25)
    assert slopes["z_first"] > -0.4
    assert abs(slopes["scaled"]) < 0.15
    assert "gradients vanish: each qubit divides their variance by" in by_observable["z_last"].sentence
    assert by_observable["z_last"].vanishes(8) is True
    assert "do not vanish" in by_observable["scaled"].sentence
    assert by_observable["scaled"].vanishes(8) is False
    rms = np.sqrt(by_observable["scaled"].variances[0])
    assert ((rms > 0.9) & (rms < 1.5)).all()


def test_rows_per_depth_depend_only_on_the_seed():
    table = gradient_variance([2, 3, 5], [1, 4], "z_last", samples=20, seed=7)
    assert np.shape(table.variances) == np.shape(table.errors) == (2, 3)
    assert table == gradient_variance([2, 3, 5], [1, 4], "z_last", samples=20, seed=7)
    assert table.variances[1][2] == gradient_variance([5], [4], "z_last", samples=20, seed=7).variances[0][0]
    assert table != gradient_variance([2, 3, 5], [1, 4], "z_last", samples=20, seed=8)
    assert table.sentence.count("At ") == 2
    json.dumps(table.to_dict(), allow_nan=False)


def test_one_width_or_few_samples_are_inconclusive():
    alone = gradient_variance([3], [2], "z_last", samples=5)
    assert (alone.slopes, alone.slope_errors) == ((None,), (None,))
    assert "one width shows no trend" in alone.sentence
    few = gradient_variance([4, 5], [8], "z_last", samples=3)
    assert "inconclusive" in few.sentence
    assert few.vanishes(8) is alone.vanishes(2) is None


def test_result_does_not_depend_on_the_batch_size(monkeypatch):
    whole = gradient_variance([3], [2], "random", samples=9)
    monkeypatch.setattr(sys.modules["qpeft.diagnostics.gradient_variance"], "_AT_ONCE", 16)
    assert gradient_variance([3], [2], "random", samples=9).variances[0][0] == pytest.approx(whole.variances[0][0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([4], [8], "z_middle"), "unknown observable 'z_middle'; choose one of z_first, z_last, p_0, random, scaled"),
        (([], [8]), "at least one width and one depth"),
        (([4], []), "at least one width and one depth"),
        (([0], [8]), "n_qubits must be an integer of at least 1, got 0"),
        (([4], [0]), "n_layers must be an integer of at least 1, got 0"),
        (([4, 4], [8]), r"n_qubits must be in ascending order, got \[4, 4\]"),
        (([4], [8], "p_0", 1), "at least 2 samples, got 1"),
    ],
)
def test_invalid_input_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        gradient_variance(*arguments)
