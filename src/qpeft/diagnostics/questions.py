"""The questions of a diagnosis: the measurements of a target that answer each."""

from __future__ import annotations

import torch

from qpeft import circuits
from qpeft.compare.analysis.types import MethodSummary
from qpeft.compare.report.format import interval
from qpeft.diagnostics.effective_rank import EffectiveRank, effective_rank
from qpeft.diagnostics.entanglement import meyer_wallach
from qpeft.diagnostics.expressibility import expressibility
from qpeft.diagnostics.finding import Finding, Value
from qpeft.diagnostics.gradient_variance import GradientVariance, gradient_variance, layers
from qpeft.diagnostics.movement import angle_movement
from qpeft.diagnostics.porter_thomas import PorterThomas, porter_thomas
from qpeft.diagnostics.redundancy import redundancy
from qpeft.diagnostics.retraining import CircuitMatters
from qpeft.diagnostics.states import random_probabilities, random_states
from qpeft.diagnostics.target import Circuit, Target
from qpeft.errors import ConfigError

WIDEST = 14  # qubits: with more, sampling many circuits or shifting every angle takes minutes
PAIRS = 10  # pairs of states per sample: fidelities are cheap
BARE = "bare probability"  # name of the measurement
_READ, _RAW = "scaled", "p_0"  # observables: QPA's input, and a bare probability
_WIDEST_MATRIX = 4096  # rows and columns: the singular values take seconds


def is_random(circuit: Circuit, samples: int, seed: int) -> Finding:
    """Whether the probabilities are those of a random state: at random, initial and trained angles."""
    key = "random"
    figures: dict[str, PorterThomas] = {}
    left_out: tuple[str, ...] = ()
    if circuit.ansatz.n_qubits <= WIDEST:
        figures["random angles"] = porter_thomas(random_probabilities(circuit.ansatz, samples, seed))
    else:
        left_out = (_too_wide(circuit, "the law at random angles"),)
    figures["start"] = porter_thomas(circuits.probabilities(circuit.start))
    if circuit.is_moved:
        figures["trained"] = porter_thomas(circuits.probabilities(circuit.angles))
    measures = [measure for name, figure in figures.items() for measure in _law(name, figure)]
    sentences = [f"{_WHERE[name]} {_lower(figure.sentence)}" for name, figure in figures.items()]
    return Finding(key, figures=figures, measures=tuple(measures), sentences=tuple(sentences), left_out=left_out)


def is_redundant(circuit: Circuit, samples: int, seed: int) -> Finding:
    """Whether there are more angles than independent directions of the probabilities."""
    key = "redundant"
    if circuit.ansatz.n_qubits > WIDEST:
        return Finding(key, left_out=(_too_wide(circuit, "the rank of the Jacobian"),))
    figure = redundancy(circuit.ansatz, circuit.angles)
    measures = (
        Value("rank of the Jacobian", f"{figure.rank:,}", f"at most {figure.limit:,}"),
        Value("angles", f"{figure.n_angles:,}", f"{figure.n_free:,} free probabilities"),
    )
    return Finding(key, figures={"angles": figure}, measures=measures, sentences=(figure.sentence,))


def has_gradients(circuit: Circuit, samples: int, seed: int) -> Finding:
    """Whether gradients vanish, at sizes around the circuit's own width and depth."""
    key = "gradients"
    n_qubits, n_layers = circuit.ansatz.n_qubits, circuit.ansatz.n_layers
    widths = range(max(1, min(n_qubits, WIDEST - 2) - 3), min(n_qubits, WIDEST - 2) + 3)
    depths = sorted({max(1, n_layers // 2), n_layers, 2 * n_layers})
    figures = {layers(depth): gradient_variance(widths, [depth], _READ, samples, seed) for depth in depths}
    figures[BARE] = gradient_variance(widths, [n_layers], _RAW, samples, seed)
    left_out = (_too_wide(circuit, f"widths above {widths[-1]} qubits"),) if n_qubits > widths[-1] else ()
    sentences = (
        f"Gradients of 2^N p, QPA's input: {_lower(figures[layers(n_layers)].sentence)}",
        f"Gradients of a bare probability p: {_lower(figures[BARE].sentence)}",
    )
    measures = tuple(measure for name, figure in figures.items() for measure in _slope(name, figure))
    return Finding(key, figures, measures, sentences, left_out)


def is_expressive(circuit: Circuit, samples: int, seed: int) -> Finding:
    """Whether random angles reach all real states, and how entangled the states are."""
    key = "expressive"
    if circuit.ansatz.n_qubits > WIDEST:
        return Finding(key, left_out=(_too_wide(circuit, "expressibility and entanglement"),))
    spread = expressibility(circuit.ansatz, PAIRS * samples, seed)
    entangled = meyer_wallach(random_states(circuit.ansatz, samples, seed))
    measures = (
        Value("divergence of fidelities", f"{spread.divergence:.3g} nats", f"{spread.floor:.3g} for random states"),
        Value("Meyer-Wallach Q", f"{entangled.mean:.3f}", f"{entangled.expected:.3f} for random states"),
    )
    sentences = (spread.sentence, entangled.sentence)
    return Finding(
        key, figures={"expressibility": spread, "entanglement": entangled}, measures=measures, sentences=sentences
    )


def is_moved(target: Target) -> Finding:
    """How far training moved the angles."""
    key = "moved"
    if target.saved is None:
        return Finding(key, left_out=("nothing is trained yet: the circuit has its initial angles",))
    try:
        figure = angle_movement(target.saved.folder)
    except ConfigError as error:
        return Finding(key, left_out=(str(error),))
    measures = (
        Value("mean movement", f"{figure.mean:.3g} rad", "initial angles lie in [-π, π)"),
        Value("largest movement", f"{figure.maximum:.3g} rad"),
        Value("moved less than 0.01 rad", f"{figure.still_share:.0%}", f"of {figure.n_angles:,} angles"),
    )
    return Finding(key, figures={"angles": figure}, measures=measures, sentences=(figure.sentence,))


def uses_rank(target: Target) -> Finding:
    """How many directions the generated matrices use: the chunks, and the updates of the weights."""
    key = "rank"
    figures: dict[str, EffectiveRank] = {}
    left_out: list[str] = []
    if target.generator is not None:
        _add_chunks(target, figures, left_out)
    try:
        updates = {} if target.saved is None else target.saved.factors()
    except ConfigError as error:
        updates = {}
        left_out.append(str(error))
    if updates:
        figures["updates"] = effective_rank(updates)
    elif target.saved is None:
        left_out.append("the updates of the weights are zero before training")
    elif not left_out:
        left_out.append("the host adapter is not LoRA: it has no update B A of a weight")
    measures = tuple(measure for name, figure in figures.items() for measure in _ranks(name, figure))
    sentences = tuple(f"{_OF_WHAT[name]} {_lower(figure.sentence)}" for name, figure in figures.items())
    return Finding(key, figures=figures, measures=measures, sentences=sentences, left_out=tuple(left_out))


def matters(target: Target, trainings: CircuitMatters | None) -> Finding:
    """Whether the circuit matters to the result: the results of training runs without it."""
    key = "matters"
    if trainings is not None:
        measures = tuple(measure for control in trainings.controls for measure in _difference(control))
        return Finding(key, {"trainings": trainings}, measures, (trainings.sentence,))
    if target.circuit is None:
        return Finding(key, left_out=(target.no_circuit,))
    if target.run is None:
        return Finding(
            key,
            left_out=(
                "this needs training runs, which need data: train with qpeft train --out RUN, then "
                "qpeft diagnose RUN --trainings",
            ),
        )
    return Finding(key, left_out=(f"this needs training runs: qpeft diagnose {target.run} --trainings",))


OF_CIRCUITS = {
    "random": is_random,
    "redundant": is_redundant,
    "gradients": has_gradients,
    "expressive": is_expressive,
}
OF_ADAPTERS = {"moved": is_moved, "rank": uses_rank}

_WHERE = {"random angles": "At random angles:", "start": "At the initial angles:", "trained": "After training:"}
_OF_WHAT = {
    "chunks": "Chunks, one per row:",
    "change": "Change of the chunks in training:",
    "updates": "Updates of the weights:",
}


def _law(name: str, figure: PorterThomas) -> list[Value]:
    return [
        Value(f"distance, {name}", f"{figure.distance:.3f}", f"p = {figure.p_value:.2g}"),
        Value(f"IPR, {name}", f"{figure.ipr:.3g}", f"{figure.expected_ipr:.3g} ± {figure.ipr_error:.2g} expected"),
    ]


def _slope(name: str, figure: GradientVariance) -> list[Value]:
    slope, error = figure.slopes[0], figure.slope_errors[0]
    if slope is None or error is None:
        return []
    what = "slope, bare p" if name == BARE else f"slope, 2^N p, {name}"
    found = f"{slope:+.2f} ± {error:.2f}".replace("-", "\u2212")
    return [Value(what, found, "0: gradients do not vanish")]


def _difference(control: MethodSummary) -> list[Value]:
    found = control.difference_to_target
    if found is None:
        return []
    return [Value(control.label, interval(found), found.verdict)]


def _ranks(name: str, figure: EffectiveRank) -> list[Value]:
    of = f"of {figure.possible:.4g}" + (f", mean of {len(figure.used):,}" if len(figure.used) > 1 else "")
    return [
        Value(f"entropy rank, {name}", f"{figure.entropy_rank:.3g}", of),
        Value(f"stable rank, {name}", f"{figure.stable_rank:.3g}", of),
        Value(f"numerical rank, {name}", f"{figure.numerical_rank:.3g}", of),
    ]


def _add_chunks(target: Target, figures: dict[str, EffectiveRank], left_out: list[str]) -> None:
    """The matrix (C, n) that QPA's network produces, and its change in training."""
    assert target.generator is not None
    count = target.generator.count
    if min(count.n_chunks, count.chunk_size) > _WIDEST_MATRIX:
        left_out.append(f"the {count.n_chunks:,} x {count.chunk_size:,} matrix of chunks is too large for ranks")
        return
    with torch.no_grad():
        now, start = target.generator.chunks(), target.generator.chunks(at_start=True)
    figures["chunks"] = effective_rank({"chunks": now})
    if not torch.equal(now, start):
        figures["change"] = effective_rank({"change of the chunks": now - start})


def _too_wide(circuit: Circuit, what: str) -> str:
    return f"{what}: {circuit.ansatz.n_qubits} qubits would take too long (at most {WIDEST})"


def _lower(sentence: str) -> str:
    """A sentence after a colon; symbols such as Q keep their case."""
    first, _, rest = sentence.partition(" ")
    return sentence if len(first) > 1 and first.isupper() else f"{first[0].lower()}{first[1:]} {rest}".strip()
