"""Choose where a model's circuits take their probabilities from; a matter of this run, never saved."""

from __future__ import annotations

from typing import Any

from qpeft.adapters.holder import holder_of
from qpeft.backends import shots as sampling
from qpeft.errors import ConfigError
from qpeft.generators.features import CircuitFeature


def set_backend(model: Any, backend: str = "exact", shots: int | None = None, gradient: str = "auto") -> None:
    """Let every circuit of the model's generators run on `backend` from now on.

    Args:
        model: A PeftModel whose adapter has a circuit.
        backend: "exact", the state-vector simulator.
        shots: Count outcomes over so many shots instead of reading exact probabilities; None reads them.
        gradient: "adjoint" (exact probabilities only), "parameter-shift", or "auto".

    With shots, training and evaluation carry sampling noise (one draw per optimiser step); the start of a residual
    adapter, merging and `qpeft.export` stay exact.

    Raises:
        ConfigError: no circuit in the model, or settings that do not go together.
    """
    holder = holder_of(model)
    features = [m for m in model.modules() if isinstance(m, CircuitFeature)]
    if holder is None or not features:
        raise ConfigError(
            "the model has no circuit; backends are for adapters with feature_source 'qnn' or 'qnn_frozen'"
        )
    for feature in features:
        n_qubits = feature.angles.start.shape[1]
        feature.backend = sampling.choose(backend, shots, gradient, n_qubits, seed=0)
    holder.invalidate()
