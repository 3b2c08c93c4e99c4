"""The questions of a diagnosis, and the measurements that answer each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from qpeft.circuits import exact_probabilities
from qpeft.errors import ConfigError
from qpeft_lab.diagnose import circuits
from qpeft_lab.diagnose.adapters import Adapter, Circuit, angle_movement, effective_rank
from qpeft_lab.diagnose.circuits import Measurement

_WIDEST = 14  # qubits: with more, sampling many circuits or shifting every angle takes minutes
_PAIRS = 10  # pairs of states per sample: fidelities are cheap
_WIDEST_MATRIX = 4096  # rows and columns: the singular values take seconds
_SUBJECTS = {
    "scaled": "The generator's input 2^N p",
    "p_0": "A probability p",
    "chunks": "The matrix of chunks",
    "change": "Its change in training, the difference of two such matrices",
    "updates": "The updates of the weights",
}
Answers = Iterator[tuple[str, Measurement]]  # by subject: "start", "trained", ...


def diagnose(
    folder: str | Path,
    samples: int = 200,
    seed: int = 0,
    on_question: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Answer every question about a trained adapter.

    Args:
        folder: Of the adapter, or of its run.
        samples: Random circuits for each measurement; ten times as many pairs of states for expressibility.
        seed: Seed of the random circuits.
        on_question: Called with each question before it is answered.

    Returns:
        `facts`, by name, and `findings`, by key: the `question`, the values of its `measurements` by subject, their
        `sentences`, and what was `left_out`, and why.

    Raises:
        ConfigError: Too few samples, or an adapter to which no measurement applies.
        CheckpointError: The folder is damaged, or not an adapter.
    """
    adapter = Adapter(folder)
    circuit, findings = adapter.circuit(), {}
    unmeasured = ""
    if circuit is None:
        unmeasured = f"method {adapter.method} has no circuit whose probabilities are read from |0...0>"
    elif circuit.ansatz.n_qubits > _WIDEST:
        unmeasured = f"{circuit.ansatz.n_qubits} qubits would take too long (at most {_WIDEST})"
    for key, (question, measure) in (_OF_CIRCUITS | _OF_ADAPTERS).items():
        on_question(question)
        found: dict[str, Measurement] = {}
        reason = unmeasured if key in _OF_CIRCUITS else ""
        if key in _OF_CIRCUITS and not reason:
            found = dict(measure(circuit, samples, seed))
        elif key in _OF_ADAPTERS:
            try:
                for subject, measurement in measure(adapter):
                    found[subject] = measurement
            except ConfigError as error:
                reason = str(error)
        findings[key] = {
            "question": question,
            "measurements": {subject: one.values for subject, one in found.items()},
            "sentences": [f"{_SUBJECTS.get(name, name.capitalize())}: {one.sentence}" for name, one in found.items()],
            "left_out": [reason] * bool(reason),
        }
    return {"facts": _facts(adapter, circuit), "findings": findings}


def _facts(adapter: Adapter, circuit: Circuit | None) -> dict[str, str]:
    facts = {"Method": adapter.method}
    if circuit is not None:
        ansatz = circuit.ansatz
        facts |= {"Ansatz": ansatz.name, "Qubits": f"{ansatz.n_qubits}", "Layers": f"{ansatz.n_layers}"}
        facts["Angles"] = f"{ansatz.n_angles:,}"
        if circuit.n_circuits > 1:
            facts["Circuits"] = f"{circuit.n_circuits}, of which the first is measured"
    if adapter.generator is not None:
        facts["Trainable parameters"] = f"{sum(p.numel() for p in adapter.generator.parameters()):,}"
    return facts


def _random(circuit: Circuit, samples: int, seed: int) -> Answers:
    """Whether the probabilities are those of a random state: at random, initial and trained angles."""
    at = {"random angles": circuits.random_states(circuit.ansatz, samples, seed).abs().square()}
    at |= {"start": exact_probabilities(circuit.ansatz, circuit.start)}
    at |= {"trained": exact_probabilities(circuit.ansatz, circuit.angles)}
    for name, probabilities in at.items():
        yield name, circuits.porter_thomas(probabilities, circuits.field_of(circuit.ansatz))


def _redundant(circuit: Circuit, samples: int, seed: int) -> Answers:
    yield "angles", circuits.redundancy(circuit.ansatz, circuit.angles)


def _gradients(circuit: Circuit, samples: int, seed: int) -> Answers:
    """Whether gradients vanish, at widths around the circuit's own."""
    last = min(circuit.ansatz.n_qubits + 2, _WIDEST)
    widths, depth, name = range(max(1, last - 5), last + 1), circuit.ansatz.n_layers, circuit.ansatz.name
    for one in circuits.OBSERVABLES:
        yield one, circuits.gradient_variance(widths, depth, one, samples, seed, name)


def _expressive(circuit: Circuit, samples: int, seed: int) -> Answers:
    """Whether random angles reach all states of the field, and how entangled the states are."""
    yield "overlap", circuits.expressibility(circuit.ansatz, _PAIRS * samples, seed)
    yield "entanglement", circuits.meyer_wallach(circuits.random_states(circuit.ansatz, samples, seed))


def _moved(adapter: Adapter) -> Answers:
    yield "angles", angle_movement(adapter)


@torch.no_grad()
def _rank(adapter: Adapter) -> Answers:
    """How many directions the generated matrices use: the chunks, and the updates of the weights.

    The matrix of chunks has at most the rank that `qpeft.plan` gives as `rank_bound`. Its change in training is the
    difference of two such matrices, and so has at most twice that rank.
    """
    generator = adapter.generator
    if generator is not None and (shape := generator.chunk_shape) is not None and min(shape) <= _WIDEST_MATRIX:
        bound = generator.plan_sizes().get("rank_bound")
        now, start = generator.chunks(), generator.chunks(initial=True)
        yield "chunks", effective_rank({"chunks": now}, bound)
        yield "change", effective_rank({"change": now - start}, bound and 2 * bound)
    if not (updates := adapter.factors()):
        raise ConfigError("the host adapter is not LoRA: it has no update B A of a weight")
    yield "updates", effective_rank(updates)


_OF_CIRCUITS: dict[str, tuple[str, Callable[..., Answers]]] = {
    "random": ("Is the circuit random?", _random),
    "redundant": ("Are angles redundant?", _redundant),
    "gradients": ("Do gradients vanish?", _gradients),
    "expressive": ("Which states does it reach, and how entangled are they?", _expressive),
}
_OF_ADAPTERS: dict[str, tuple[str, Callable[..., Answers]]] = {
    "moved": ("Did the angles move?", _moved),
    "rank": ("How many directions does it generate?", _rank),
}
