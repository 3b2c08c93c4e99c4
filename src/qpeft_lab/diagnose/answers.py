"""The questions of a diagnosis, and the measurements that answer each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from qpeft.circuits import exact_probabilities
from qpeft.errors import ConfigError
from qpeft_lab.diagnose import circuits
from qpeft_lab.diagnose.adapters import Adapter, Circuit, angle_movement, effective_rank
from qpeft_lab.diagnose.circuits import Measurement

_WIDEST = 14  # qubits: with more, sampling many circuits or shifting every angle takes minutes
_PAIRS = 10  # pairs of states per sample: fidelities are cheap
Answers = Iterator[tuple[str, Measurement]]  # by subject: "start", "trained", ...


def diagnose(
    folder: str | Path,
    samples: int = 200,
    seed: int = 0,
    *,
    frames: str | Path | None = None,
) -> dict[str, Any]:
    """Answer every question about a trained adapter.

    Args:
        folder: Of the adapter, or of its run.
        samples: Random circuits for each measurement; ten times as many pairs of states for
            expressibility.
        seed: Seed of the random circuits.
        frames: The frame file of an adapter that refers to one, as for `qpeft.load`.

    Returns:
        `facts`, by name, and `findings`, by key: the `question`, the values of its `measurements`
        by subject, their `sentences`, and why a part was `left_out`, or None.

    Raises:
        ConfigError: An adapter to which no measurement applies.
        CheckpointError: The folder is damaged, or not an adapter.
    """
    adapter = Adapter(folder, frames)
    findings = {}
    for key, (question, measure) in _QUESTIONS.items():
        measurements: dict[str, Measurement] = {}
        left_out = None
        try:
            for subject, measurement in measure(adapter, samples, seed):
                measurements[subject] = measurement
        except ConfigError as error:
            left_out = str(error)
        findings[key] = {
            "question": question,
            "measurements": {
                subject: measurement.values for subject, measurement in measurements.items()
            },
            "sentences": [
                f"{subject[0].upper()}{subject[1:]}: {measurement.sentence}"
                for subject, measurement in measurements.items()
            ],
            "left_out": left_out,
        }
    return {"facts": _facts(adapter), "findings": findings}


def _facts(adapter: Adapter) -> dict[str, Any]:
    facts: dict[str, Any] = {"method": adapter.method}
    if (circuit := adapter.circuit()) is not None:
        ansatz = circuit.ansatz
        facts |= {"ansatz": ansatz.name, "n_qubits": ansatz.n_qubits, "n_layers": ansatz.n_layers}
        facts |= {"n_angles": ansatz.n_angles, "n_circuits": circuit.n_circuits}
        if circuit.n_circuits > 1:
            facts["measured_circuit"] = "the first; but all angles for how far they moved"
    if adapter.generator is not None:
        facts["trainable"] = sum(p.numel() for p in adapter.generator.parameters())
    return facts


def _circuit(adapter: Adapter) -> Circuit:
    """The circuit to measure. Raises ConfigError if there is none, or if it is too wide."""
    if (circuit := adapter.circuit()) is None:
        raise ConfigError(
            f"method {adapter.method} has no circuit whose probabilities are read from |0...0>"
        )
    if circuit.ansatz.n_qubits > _WIDEST:
        raise ConfigError(
            f"{circuit.ansatz.n_qubits} qubits would take too long (at most {_WIDEST})"
        )
    return circuit


def _random(adapter: Adapter, samples: int, seed: int) -> Answers:
    """Whether the probabilities are those of a random state: at random, initial and trained angles."""
    ansatz, start, trained, _ = _circuit(adapter)
    at = {"random angles": circuits.random_states(ansatz, samples, seed).abs().square()}
    at |= {
        "start": exact_probabilities(ansatz, start),
        "trained": exact_probabilities(ansatz, trained),
    }
    for name, probabilities in at.items():
        yield name, circuits.porter_thomas(probabilities, circuits.field_of(ansatz))


def _redundant(adapter: Adapter, samples: int, seed: int) -> Answers:
    circuit = _circuit(adapter)
    yield "angles", circuits.redundancy(circuit.ansatz, circuit.angles)
    yield "features", circuits.equal_features(circuit.ansatz, seed)


def _gradients(adapter: Adapter, samples: int, seed: int) -> Answers:
    """Whether gradients vanish, at widths around the circuit's own."""
    ansatz = _circuit(adapter).ansatz
    last = min(ansatz.n_qubits + 2, _WIDEST)
    widths = range(max(1, last - 5), last + 1)
    variance = circuits.gradient_variance(widths, ansatz.n_layers, samples, seed, ansatz.name)
    yield "the generator's input 2^N p", variance


def _expressive(adapter: Adapter, samples: int, seed: int) -> Answers:
    """Whether random angles reach all states of the field, and how entangled the states are."""
    ansatz = _circuit(adapter).ansatz
    yield "overlap", circuits.expressibility(ansatz, _PAIRS * samples, seed)
    yield "entanglement", circuits.meyer_wallach(circuits.random_states(ansatz, samples, seed))


def _moved(adapter: Adapter, samples: int, seed: int) -> Answers:
    yield "angles", angle_movement(adapter)


def _rank(adapter: Adapter, samples: int, seed: int) -> Answers:
    if not (updates := adapter.factors()):
        raise ConfigError("the host adapter is not LoRA: it has no update B A of a weight")
    yield "updates of the weights", effective_rank(updates)


_QUESTIONS: dict[str, tuple[str, Callable[..., Answers]]] = {
    "random": ("Is the circuit random?", _random),
    "redundant": ("Are angles redundant?", _redundant),
    "gradients": ("Do gradients vanish?", _gradients),
    "expressive": ("Which states does it reach, and how entangled are they?", _expressive),
    "moved": ("Did the angles move?", _moved),
    "rank": ("How many directions does it generate?", _rank),
}
