"""The questions of a diagnosis, the measurements that answer each, and the page."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import torch

from qpeft.circuits import exact_probabilities
from qpeft.errors import ConfigError
from qpeft.files import write_text
from qpeft_lab.diagnose import circuits
from qpeft_lab.diagnose.adapters import Adapter, Circuit, angle_movement, effective_rank
from qpeft_lab.diagnose.circuits import Measurement
from qpeft_lab.files import output_file

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
_STYLE = (
    "body{max-width:46rem;margin:2rem auto;padding:0 1rem;font:1rem/1.5 sans-serif}h2{font-size:1.1rem}i{color:#666}"
)


@dataclass
class Finding:
    """The answer to one question. `left_out` lists what could not be measured, and why."""

    key: str
    question: str
    measurements: dict[str, Measurement] = field(default_factory=dict)  # by subject: "start", "trained", ...
    left_out: list[str] = field(default_factory=list)

    @property
    def sentences(self) -> list[str]:
        """What the measurements mean."""
        return [f"{_SUBJECTS.get(key, key.capitalize())}: {found.sentence}" for key, found in self.measurements.items()]


@dataclass(frozen=True)
class Diagnosis:
    """The answers to all questions about one adapter."""

    name: str
    facts: dict[str, str]  # what it is: method, qubits, layers, ...
    findings: tuple[Finding, ...]

    def __getitem__(self, key: str) -> Finding:
        return {finding.key: finding for finding in self.findings}[key]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        findings = []
        for found in self.findings:
            values = {subject: measured.values for subject, measured in found.measurements.items()}
            findings.append({**vars(found), "measurements": values, "sentences": found.sentences})
        return {"target": self.name, "facts": self.facts, "findings": findings}


def diagnose(
    folder: str | Path,
    samples: int = 200,
    seed: int = 0,
    circuit: int = 1,
    on_question: Callable[[str], None] = lambda _: None,
) -> Diagnosis:
    """Answer every question about a trained adapter.

    Args:
        folder: Of the adapter, or of its run.
        samples: Random circuits for each measurement; ten times as many pairs of states for expressibility.
        seed: Seed of the random circuits.
        circuit: Which of several circuits of the adapter, counted from 1.
        on_question: Called with each question before it is answered.

    Raises:
        ConfigError: Too few samples, no such circuit, or an adapter to which no measurement applies.
        CheckpointError: The folder is damaged, or not an adapter.
    """
    adapter = Adapter(folder)
    chosen, findings = adapter.circuit(circuit), []
    for key, (question, measure) in _QUESTIONS.items():
        on_question(question)
        findings.append(finding := Finding(key, question))
        if measure in (_moved, _rank):
            try:
                measure(finding, adapter)
            except ConfigError as error:
                finding.left_out.append(str(error))
        elif chosen is None:
            finding.left_out.append(f"method {adapter.method} has no circuit whose probabilities are read from |0...0>")
        elif chosen.ansatz.n_qubits > _WIDEST:
            finding.left_out.append(f"{chosen.ansatz.n_qubits} qubits would take too long (at most {_WIDEST})")
        else:
            finding.measurements |= measure(chosen, samples, seed)
    return Diagnosis(str(folder), _facts(adapter, chosen), tuple(findings))


def _facts(adapter: Adapter, circuit: Circuit | None) -> dict[str, str]:
    facts = {"Method": adapter.method}
    if circuit is not None:
        ansatz = circuit.ansatz
        facts |= {"Ansatz": ansatz.name, "Qubits": f"{ansatz.n_qubits}", "Layers": f"{ansatz.n_layers}"}
        facts["Angles"] = f"{ansatz.n_angles:,}"
        if circuit.n_circuits > 1:
            facts["Circuit"] = f"{circuit.number} of {circuit.n_circuits}; each has angles of its own"
    if adapter.generator is not None:
        if (shape := adapter.generator.chunk_shape) is not None:
            facts["Chunks"] = f"{shape[0]:,} of {shape[1]:,} parameters"
        facts["Trainable parameters"] = f"{sum(p.numel() for p in adapter.generator.parameters()):,}"
    return facts


def _random(circuit: Circuit, samples: int, seed: int) -> dict[str, Measurement]:
    """Whether the probabilities are those of a random state: at random, initial and trained angles."""
    at = {"random angles": circuits.random_states(circuit.ansatz, samples, seed).abs().square()}
    at["start"] = exact_probabilities(circuit.ansatz, circuit.start)
    if not torch.equal(circuit.start, circuit.angles):
        at["trained"] = exact_probabilities(circuit.ansatz, circuit.angles)
    return {name: circuits.porter_thomas(p, circuits.field_of(circuit.ansatz)) for name, p in at.items()}


def _redundant(circuit: Circuit, samples: int, seed: int) -> dict[str, Measurement]:
    return {"angles": circuits.redundancy(circuit.ansatz, circuit.angles)}


def _gradients(circuit: Circuit, samples: int, seed: int) -> dict[str, Measurement]:
    """Whether gradients vanish, at widths around the circuit's own."""
    last = min(circuit.ansatz.n_qubits + 2, _WIDEST)
    widths, depth, name = range(max(1, last - 5), last + 1), circuit.ansatz.n_layers, circuit.ansatz.name
    of = circuits.OBSERVABLES
    return {one: circuits.gradient_variance(widths, depth, one, samples, seed, name) for one in of}


def _expressive(circuit: Circuit, samples: int, seed: int) -> dict[str, Measurement]:
    """Whether random angles reach all states of the field, and how entangled the states are."""
    return {
        "overlap": circuits.expressibility(circuit.ansatz, _PAIRS * samples, seed),
        "entanglement": circuits.meyer_wallach(circuits.random_states(circuit.ansatz, samples, seed)),
    }


def _moved(finding: Finding, adapter: Adapter) -> None:
    finding.measurements["angles"] = angle_movement(adapter)


def _rank(finding: Finding, adapter: Adapter) -> None:
    """How many directions the generated matrices use: the chunks, and the updates of the weights.

    The matrix of chunks has at most the rank that `qpeft.plan` gives as `rank_bound`. Its change in training is the
    difference of two such matrices, and so has at most twice that rank.
    """
    generator = adapter.generator
    if generator is not None and (shape := generator.chunk_shape) is not None:
        if min(shape) > _WIDEST_MATRIX:
            finding.left_out.append(f"the {shape[0]:,} x {shape[1]:,} matrix of chunks is too large for ranks")
        else:
            bound = generator.plan_sizes().get("rank_bound")
            with torch.no_grad():
                now, start = generator.chunks(), generator.chunks(initial=True)
            finding.measurements["chunks"] = effective_rank({"chunks": now}, bound)
            if not torch.equal(now, start):
                finding.measurements["change"] = effective_rank({"change": now - start}, bound and 2 * bound)
    if updates := adapter.factors():
        finding.measurements["updates"] = effective_rank(updates)
    else:
        finding.left_out.append("the host adapter is not LoRA: it has no update B A of a weight")


_QUESTIONS: dict[str, tuple[str, Any]] = {
    "random": ("Is the circuit random?", _random),
    "redundant": ("Are angles redundant?", _redundant),
    "gradients": ("Do gradients vanish?", _gradients),
    "expressive": ("Which states does it reach, and how entangled are they?", _expressive),
    "moved": ("Did the angles move?", _moved),
    "rank": ("How many directions does it generate?", _rank),
}


def write_page(diagnosis: Diagnosis, file: Path) -> None:
    """Write `diagnosis` as one HTML `file`. Raises ConfigError if something other than a file is there."""
    facts = " · ".join(f"{name} {value}" for name, value in diagnosis.facts.items())
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><style>{_STYLE}</style>'
    page = [f'<!doctype html>\n<html lang="en"><head>{head}<title>Diagnosis</title></head><body>']
    page += [f"<h1>Diagnosis of {escape(diagnosis.name)}</h1>", f"<p><i>{escape(facts)}</i></p>"]
    for finding in diagnosis.findings:
        page.append(f'<h2 id="{finding.key}">{escape(finding.question)}</h2>')
        page += [f"<p>{escape(sentence)}</p>" for sentence in finding.sentences]
        page += [f"<p><i>Left out: {escape(reason)}.</i></p>" for reason in finding.left_out]
    write_text(output_file(file), "\n".join([*page, "</body></html>\n"]))
