"""The questions of a diagnosis, and the measurements that answer each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from qpeft.circuits import exact_probabilities
from qpeft.compare.report.format import interval
from qpeft.diagnostics.effective_rank import EffectiveRank, effective_rank
from qpeft.diagnostics.entanglement import meyer_wallach
from qpeft.diagnostics.expressibility import expressibility
from qpeft.diagnostics.finding import Diagnosis, Finding, Value
from qpeft.diagnostics.gradient_variance import GradientVariance, gradient_variance, layers
from qpeft.diagnostics.movement import angle_movement
from qpeft.diagnostics.porter_thomas import PorterThomas, porter_thomas
from qpeft.diagnostics.redundancy import redundancy
from qpeft.diagnostics.retraining import CircuitMatters
from qpeft.diagnostics.states import field_of, random_probabilities, random_states
from qpeft.diagnostics.target import Circuit, Target
from qpeft.errors import ConfigError

BARE = "bare probability"  # name of the measurement
_WIDEST = 14  # qubits: with more, sampling many circuits or shifting every angle takes minutes
_PAIRS = 10  # pairs of states per sample: fidelities are cheap
_WIDEST_MATRIX = 4096  # rows and columns: the singular values take seconds
_FEWEST = 10  # samples
_WHERE = {"random angles": "At random angles:", "start": "At the initial angles:", "trained": "After training:"}
_OF_WHAT = {
    "chunks": "Chunks, one per row:",
    "change": "Change of the chunks in training:",
    "updates": "Updates of the weights:",
}


def diagnose(
    target: Target,
    samples: int = 200,
    seed: int = 0,
    trainings: CircuitMatters | None = None,
    on_question: Callable[[str], None] = lambda _: None,
) -> Diagnosis:
    """Answer every question about `target`.

    Args:
        target: `target.of_folder(...)` or `target.of_config(...)`.
        samples: Random circuits for each measurement; ten times as many pairs of states for expressibility.
        seed: Seed of the random circuits.
        trainings: The result of `circuit_matters`, if it was run.
        on_question: Called with each question before it is answered.

    Raises:
        ConfigError: Fewer than 10 samples, or no Target.
    """
    if samples < _FEWEST:
        raise ConfigError(f"samples must be at least {_FEWEST}, got {samples}")
    if not isinstance(target, Target):
        raise ConfigError(f"diagnose takes a Target, got {type(target).__name__}; make one with of_folder(adapter)")
    circuit, findings = target.circuit, []

    def answer(key: str, question: str, find: Callable[[], Finding]) -> None:
        on_question(question)
        findings.append(replace(find(), key=key, question=question))

    for key, (question, ask) in _OF_CIRCUITS.items():
        if circuit is None:
            answer(key, question, lambda: Finding(left_out=(target.no_circuit,)))
        else:
            answer(key, question, lambda ask=ask: ask(circuit, samples, seed))
    answer("moved", "Did the angles move?", lambda: _moved(target))
    answer("rank", "How many directions does it generate?", lambda: _rank(target))
    answer("matters", "Does the circuit matter?", lambda: _matters(target, trainings))
    return Diagnosis(target.name, _facts(target), tuple(findings))


def _facts(target: Target) -> tuple[tuple[str, str], ...]:
    facts = [("Method", target.method), ("State", "trained" if target.saved else "untrained, initial angles")]
    circuit = target.circuit
    if circuit is not None:
        facts += [("Ansatz", circuit.ansatz.name), ("Qubits", str(circuit.ansatz.n_qubits))]
        facts += [("Layers", str(circuit.ansatz.n_layers)), ("Angles", f"{circuit.ansatz.n_angles:,}")]
        if target.which:
            facts.append(("Circuit", f"{target.which}; each has angles of its own"))
    if target.generator is not None:
        if (shape := target.generator.chunk_shape) is not None:
            facts.append(("Chunks", f"{shape[0]:,} of {shape[1]:,} parameters"))
        facts.append(("Trainable parameters", f"{sum(p.numel() for p in target.generator.parameters()):,}"))
    return tuple(facts)


def _random(circuit: Circuit, samples: int, seed: int) -> Finding:
    """Whether the probabilities are those of a random state: at random, initial and trained angles."""
    found: dict[str, PorterThomas] = {}
    field, is_wide = field_of(circuit.ansatz), circuit.ansatz.n_qubits > _WIDEST
    if not is_wide:
        found["random angles"] = porter_thomas(random_probabilities(circuit.ansatz, samples, seed), field)
    found["start"] = porter_thomas(exact_probabilities(circuit.ansatz, circuit.start), field)
    if circuit.is_moved:
        found["trained"] = porter_thomas(exact_probabilities(circuit.ansatz, circuit.angles), field)
    values: list[Value] = []
    for name, law in found.items():
        expected = f"{law.expected_ipr:.3g} ± {law.ipr_error:.2g} expected"
        values += [Value(f"distance, {name}", f"{law.distance:.3f}", f"p = {law.p_value:.2g}")]
        values += [Value(f"IPR, {name}", f"{law.ipr:.3g}", expected)]
    return Finding(
        measurements=found,
        values=tuple(values),
        sentences=tuple(f"{_WHERE[name]} {_lower(law.sentence)}" for name, law in found.items()),
        left_out=(_too_wide(circuit, "the law at random angles"),) if is_wide else (),
    )


def _redundant(circuit: Circuit, samples: int, seed: int) -> Finding:
    """Whether there are more angles than independent directions of the probabilities."""
    if circuit.ansatz.n_qubits > _WIDEST:
        return Finding(left_out=(_too_wide(circuit, "the rank of the Jacobian"),))
    found = redundancy(circuit.ansatz, circuit.angles)
    values = (
        Value("rank of the Jacobian", f"{found.rank:,}", f"at most {found.limit:,}"),
        Value("angles", f"{found.n_angles:,}", f"{found.n_free:,} free probabilities"),
    )
    return Finding(measurements={"angles": found}, values=values, sentences=(found.sentence,))


def _gradients(circuit: Circuit, samples: int, seed: int) -> Finding:
    """Whether gradients vanish, at sizes around the circuit's own width and depth."""
    name, n_qubits, n_layers = circuit.ansatz.name, circuit.ansatz.n_qubits, circuit.ansatz.n_layers
    widths = range(max(1, min(n_qubits, _WIDEST - 2) - 3), min(n_qubits, _WIDEST - 2) + 3)
    depths = sorted({max(1, n_layers // 2), n_layers, 2 * n_layers})
    found = {layers(depth): gradient_variance(widths, [depth], "scaled", samples, seed, name) for depth in depths}
    found[BARE] = gradient_variance(widths, [n_layers], "p_0", samples, seed, name)
    return Finding(
        measurements=found,
        values=tuple(value for name, variance in found.items() for value in _slope(name, variance)),
        sentences=(
            f"Gradients of 2^N p, the generator's input: {_lower(found[layers(n_layers)].sentence)}",
            f"Gradients of a bare probability p: {_lower(found[BARE].sentence)}",
        ),
        left_out=(_too_wide(circuit, f"widths above {widths[-1]} qubits"),) if n_qubits > widths[-1] else (),
    )


def _expressive(circuit: Circuit, samples: int, seed: int) -> Finding:
    """Whether random angles reach all states of the field, and how entangled the states are."""
    if circuit.ansatz.n_qubits > _WIDEST:
        return Finding(left_out=(_too_wide(circuit, "expressibility and entanglement"),))
    spread = expressibility(circuit.ansatz, _PAIRS * samples, seed)
    entangled = meyer_wallach(random_states(circuit.ansatz, samples, seed))
    values = (
        Value("divergence of fidelities", f"{spread.divergence:.3g} nats", f"{spread.floor:.3g} for random states"),
        Value("Meyer-Wallach Q", f"{entangled.mean:.3f}", f"{entangled.expected:.3f} for random states"),
    )
    found = {"expressibility": spread, "entanglement": entangled}
    return Finding(measurements=found, values=values, sentences=(spread.sentence, entangled.sentence))


_OF_CIRCUITS = {
    "random": ("Is the circuit random?", _random),
    "redundant": ("Is it redundant?", _redundant),
    "gradients": ("Do gradients vanish?", _gradients),
    "expressive": ("Which states does it reach, and how entangled are they?", _expressive),
}


def _moved(target: Target) -> Finding:
    """How far training moved the angles."""
    if target.saved is None:
        return Finding(left_out=("nothing is trained yet: the circuit has its initial angles",))
    try:
        found = angle_movement(target.saved.folder)
    except ConfigError as error:
        return Finding(left_out=(str(error),))
    values = (
        Value("mean movement", f"{found.mean:.3g} rad", "initial angles lie in [-π, π)"),
        Value("largest movement", f"{found.maximum:.3g} rad"),
        Value("moved less than 0.01 rad", f"{found.still_share:.0%}", f"of {found.n_angles:,} angles"),
    )
    return Finding(measurements={"angles": found}, values=values, sentences=(found.sentence,))


def _rank(target: Target) -> Finding:
    """How many directions the generated matrices use: the chunks, and the updates of the weights."""
    found, left_out = _chunks(target)
    try:
        if target.saved is None:
            left_out.append("the updates of the weights are zero before training")
        elif updates := target.saved.factors():
            found["updates"] = effective_rank(updates)
        else:
            left_out.append("the host adapter is not LoRA: it has no update B A of a weight")
    except ConfigError as error:
        left_out.append(str(error))
    values: list[Value] = []
    for name, rank in found.items():
        of = f"of {rank.possible:.4g}" + (f", mean of {len(rank.used):,}" if len(rank.used) > 1 else "")
        kinds = {"entropy": rank.entropy_rank, "stable": rank.stable_rank, "numerical": rank.numerical_rank}
        values += [Value(f"{kind} rank, {name}", f"{value:.3g}", of) for kind, value in kinds.items()]
    sentences = tuple(f"{_OF_WHAT[name]} {_lower(rank.sentence)}" for name, rank in found.items())
    return Finding(measurements=found, values=tuple(values), sentences=sentences, left_out=tuple(left_out))


def _chunks(target: Target) -> tuple[dict[str, EffectiveRank], list[str]]:
    """Ranks of the generator's matrix of chunks and of its change in training, and what is left out."""
    if target.generator is None or (shape := target.generator.chunk_shape) is None:
        return {}, []
    if min(shape) > _WIDEST_MATRIX:
        return {}, [f"the {shape[0]:,} x {shape[1]:,} matrix of chunks is too large for ranks"]
    with torch.no_grad():
        now, start = target.generator.chunks(), target.generator.chunks(initial=True)
    found = {"chunks": effective_rank({"chunks": now})}
    if not torch.equal(now, start):
        found["change"] = effective_rank({"change of the chunks": now - start})
    return found, []


def _matters(target: Target, trainings: CircuitMatters | None) -> Finding:
    """Whether the circuit matters to the result: the results of training runs without it."""
    if trainings is not None:
        compared = [(m.label, m.difference_to_target) for m in trainings.controls]
        values = tuple(Value(label, interval(found), found.verdict) for label, found in compared if found is not None)
        return Finding(measurements={"trainings": trainings}, values=values, sentences=(trainings.sentence,))
    if target.circuit is None:
        return Finding(left_out=(target.no_circuit,))
    if target.run is None:
        needed = "which need data: train with qpeft train --out RUN, then qpeft diagnose RUN --trainings"
        return Finding(left_out=(f"this needs training runs, {needed}",))
    return Finding(left_out=(f"this needs training runs: qpeft diagnose {target.run} --trainings",))


def _slope(name: str, found: GradientVariance) -> list[Value]:
    slope, error = found.slopes[0], found.slope_errors[0]
    if slope is None or error is None:
        return []
    what = "slope, bare p" if name == BARE else f"slope, 2^N p, {name}"
    return [Value(what, f"{slope:+.2f} ± {error:.2f}".replace("-", "\u2212"), "0: the same at every width")]


def _too_wide(circuit: Circuit, what: str) -> str:
    return f"{what}: {circuit.ansatz.n_qubits} qubits would take too long (at most {_WIDEST})"


def _lower(sentence: str) -> str:
    """A sentence after a colon; symbols such as Q keep their case."""
    first, _, rest = sentence.partition(" ")
    return sentence if len(first) > 1 and first.isupper() else f"{first[0].lower()}{first[1:]} {rest}".strip()
