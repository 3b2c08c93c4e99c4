"""All measurements of an adapter or a config, in the order of the questions, and a summary paragraph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from qpeft.diagnostics import questions
from qpeft.diagnostics.finding import QUESTIONS, Diagnosis, Finding
from qpeft.diagnostics.retraining import CircuitMatters
from qpeft.diagnostics.target import Target
from qpeft.errors import ConfigError

_FEWEST = 10  # samples


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
        ConfigError: Fewer than 10 samples.
    """
    if samples < _FEWEST:
        raise ConfigError(f"samples must be at least {_FEWEST}, got {samples}")
    circuit, findings = target.circuit, []
    for key, ask in questions.OF_CIRCUITS.items():
        on_question(QUESTIONS[key])
        unasked = Finding(key, left_out=(target.no_circuit,))
        findings.append(unasked if circuit is None else ask(circuit, samples, seed))
    for key, ask in questions.OF_ADAPTERS.items():
        on_question(QUESTIONS[key])
        findings.append(ask(target))
    findings.append(questions.matters(target, trainings))
    found = tuple(findings)
    return Diagnosis(target.name, _facts(target), found, _summary(found))


def _facts(target: Target) -> tuple[tuple[str, str], ...]:
    facts = [("Method", target.method), ("State", "trained" if target.saved else "untrained, initial angles")]
    circuit = target.circuit
    if circuit is not None:
        facts += [("Qubits", str(circuit.ansatz.n_qubits)), ("Layers", str(circuit.ansatz.n_layers))]
        facts += [("Angles", f"{circuit.ansatz.n_angles:,}")]
    if target.generator is not None:
        count = target.generator.count
        facts += [
            ("Chunks", f"{count.n_chunks:,} of {count.chunk_size:,} parameters"),
            ("Trainable parameters", f"{count.total:,}"),
        ]
    return tuple(facts)


def _summary(findings: tuple[Finding, ...]) -> str:
    """One paragraph; questions without an answer are omitted."""
    by_key = {finding.key: finding.figures for finding in findings}
    parts = [_SUMMARY[key](figures) for key, figures in by_key.items() if figures]
    if "trainings" not in by_key["matters"] and by_key["random"]:
        parts.append("Whether the circuit matters to the result is a question for training runs.")
    return " ".join(part for part in parts if part)


def _about_random(figures: Mapping[str, Any]) -> str:
    """From many circuits: a single one has too few probabilities for a conclusion."""
    if "random angles" not in figures:
        return ""
    found = figures["random angles"]
    if found.is_random:
        return "At random angles, as at its initial angles, the circuit is indistinguishable from a random vector."
    return (
        "At random angles, as at its initial angles, the circuit is close to a random vector but measurably different "
        f"(distance {found.distance:.2g})."
    )


def _about_redundant(figures: Mapping[str, Any]) -> str:
    found = figures["angles"]
    spare = found.n_angles - found.rank
    return f"{spare:,} of its {found.n_angles:,} angles are redundant." if spare else "None of its angles is redundant."


def _about_gradients(figures: Mapping[str, Any]) -> str:
    (depth,) = figures[questions.BARE].n_layers  # the circuit's own
    vanishes = next(figure.vanishes(depth) for figure in figures.values() if depth in figure.n_layers)
    if vanishes is None:
        return "The samples are inconclusive as to whether its gradients vanish with width."
    return f"The gradients of QPA's input {'vanish' if vanishes else 'do not vanish'} with width."


def _about_moved(figures: Mapping[str, Any]) -> str:
    found = figures["angles"]
    if found.is_frozen:
        return "Training hardly moved its angles: the circuit is practically frozen."
    return f"Training moved its angles by {found.mean:.2g} rad on average."


def _about_rank(figures: Mapping[str, Any]) -> str:
    parts = [
        f"{what} {found.entropy_rank:.1f} of {found.possible:.3g} possible directions"
        for name, what in (("change", "the change of the chunks in training uses"), ("updates", "the updates use"))
        if (found := figures.get(name)) is not None
    ]
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}." if parts else ""


_SUMMARY: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "random": _about_random,
    "redundant": _about_redundant,
    "gradients": _about_gradients,
    "expressive": lambda figures: "",
    "moved": _about_moved,
    "rank": _about_rank,
    "matters": lambda figures: figures["trainings"].sentence,
}
