"""All figures about an adapter or a config, in the order of a reader's questions, and one paragraph over them."""

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
    """Ask everything of `target`.

    Args:
        target: `target.of_folder(...)` or `target.of_config(...)`.
        samples: Random circuits for each figure of gradients and entanglement; ten times as many pairs of states for
            expressibility.
        seed: Of the random circuits.
        trainings: What `circuit_matters` found, if it was asked.
        on_question: Told what is being asked.

    Raises:
        ConfigError: fewer than 10 samples.
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
    facts = [("Method", target.method), ("State", "trained" if target.saved else "at its seeded start")]
    circuit = target.circuit
    if circuit is not None:
        facts += [("Qubits", str(circuit.ansatz.n_qubits)), ("Layers", str(circuit.ansatz.n_layers))]
        facts += [("Angles", f"{circuit.ansatz.n_angles:,}")]
    if target.generator is not None:
        count = target.generator.count
        facts += [("Chunks", f"{count.n_chunks:,} of {count.chunk_size:,} numbers"), ("Trained", f"{count.total:,}")]
    return tuple(facts)


def _summary(findings: tuple[Finding, ...]) -> str:
    """One paragraph in plain words; what was left out is not spoken of."""
    by_key = {finding.key: finding.figures for finding in findings}
    said = [_SAY[key](figures) for key, figures in by_key.items() if figures]
    if "trainings" not in by_key["matters"] and by_key["random"]:
        said.append("Whether the circuit matters to the result, only trainings tell.")
    return " ".join(part for part in said if part)


def _say_random(figures: Mapping[str, Any]) -> str:
    """By many circuits: one alone has too few probabilities to tell."""
    if "random angles" not in figures:
        return ""
    found = figures["random angles"]
    if found.is_random:
        return "At random angles, as at its start, the circuit cannot be told from a random vector."
    return (
        f"At random angles, as at its start, the circuit is near a random vector, but not one (distance "
        f"{found.distance:.2g})."
    )


def _say_redundant(figures: Mapping[str, Any]) -> str:
    found = figures["angles"]
    spare = found.n_angles - found.rank
    return f"{spare:,} of its {found.n_angles:,} angles are redundant." if spare else "None of its angles is redundant."


def _say_gradients(figures: Mapping[str, Any]) -> str:
    (depth,) = figures[questions.BARE].n_layers  # the circuit's own
    vanishes = next(figure.vanishes(depth) for figure in figures.values() if depth in figure.n_layers)
    if vanishes is None:
        return "Whether its gradients vanish with width, these samples do not tell."
    return f"Its gradients, as QPA reads them, {'vanish' if vanishes else 'do not vanish'} with width."


def _say_moved(figures: Mapping[str, Any]) -> str:
    found = figures["angles"]
    if found.is_frozen:
        return "Training hardly moved its angles: it is practically frozen."
    return f"Training moved its angles by {found.mean:.2g} rad in the mean."


def _say_rank(figures: Mapping[str, Any]) -> str:
    said = [
        f"{what} {found.entropy_rank:.1f} of {found.possible:.3g} possible directions"
        for name, what in (("change", "what training changed in the chunks uses"), ("updates", "the updates use"))
        if (found := figures.get(name)) is not None
    ]
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]}." if said else ""


_SAY: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "random": _say_random,
    "redundant": _say_redundant,
    "gradients": _say_gradients,
    "expressive": lambda figures: "",
    "moved": _say_moved,
    "rank": _say_rank,
    "matters": lambda figures: figures["trainings"].sentence,
}
