"""Scores of adapters whose circuits on inputs, of QAA and CUA, are measured with simulated shots and noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qpeft.backends import BackendSettings, ExactBackend, Jobs
from qpeft.circuits.amplitude import squares_behind
from qpeft.core.linear_tuner import LinearAdapter
from qpeft.errors import ConfigError
from qpeft_lab.training.score import Score


def measured_scores(
    model: Any,
    score: Callable[[], Score],
    chosen: BackendSettings,
    seed: int = 0,
    forecast: Callable[[dict[str, Any]], None] = lambda costs: None,
) -> tuple[dict[str, Any], dict[str, Score]]:
    """The score `adapted` with exact probabilities P, and `measured` with counts of (1 - noise) P + noise / 2**q.

    Without shots the probabilities are not sampled. The circuits and shots of `measured`, which are returned first, are
    passed to `forecast` before they are run.

    Raises ConfigError if the model has other adapters, or the shot budget does not suffice.
    """
    adapters = [module for module in model.modules() if isinstance(module, LinearAdapter)]
    if not adapters or not all(adapter.n_qubits for adapter in adapters):
        raise ConfigError(
            "this adapter has no circuits that are measured at inference. QAA has them with feature_source qnn, CUA "
            "with readout magnitude and blocks of 2**q values: no measurement gives the signs of readout linear"
        )
    random, n_circuits = np.random.default_rng(seed), 0

    def counted(a: Tensor, circuit: Any, values: Tensor) -> Tensor:
        nonlocal n_circuits
        n_circuits += a[..., 0].numel()
        return _squares(a, circuit, values)

    def measured(a: Tensor, circuit: Any, values: Tensor) -> Tensor:
        squares = _squares(a.double(), circuit, values.double())
        total = squares.sum(-1, keepdim=True)  # |a|^2, which is kept classically
        p = (1 - chosen.noise) * squares / total.where(total > 0, 1) + chosen.noise / a.shape[-1]
        if chosen.shots is not None:
            p = torch.from_numpy(random.multinomial(chosen.shots, p.cpu().numpy()) / chosen.shots).to(p)
        return (p * total).to(a)

    def scored(measure: Callable[[Tensor, Any, Tensor], Tensor]) -> Score:
        for adapter in adapters:
            adapter.measure = measure
        try:
            return score()
        finally:
            for adapter in adapters:
                adapter.measure = None

    exact, shots = scored(counted), chosen.shots or 0
    costs = {"noise": chosen.noise, "shots_per_circuit": shots, "circuits": n_circuits, "shots": n_circuits * shots}
    forecast(costs)
    Jobs(ExactBackend(), shot_budget=chosen.shot_budget).check_budget(costs["shots"], ConfigError)
    return costs, {"adapted": exact, "measured": scored(measured)}


def _squares(a: Tensor, circuit: Any, values: Tensor) -> Tensor:
    """As `LinearAdapter.measure`, exactly."""
    if circuit is None:
        return torch.einsum("...ij,...j->...i", values, a).square()
    return squares_behind(a.reshape(-1, a.shape[-1]), circuit, values).view(a.shape)
