"""The study of a circuit, and what is fixed before its first row.

The circuit, trained, is compared with itself at frozen angles and with Gaussian features (or, in
Quantum-PEFT, random signs in place of its CZ gates), which differ in nothing else; and with LoRA,
LoRA-SB and Uni-LoRA of at most as many trained parameters. The unit is what LoRA of rank 8 gains
over the base without an adapter.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from qpeft import methods
from qpeft.errors import ConfigError
from qpeft.files import read_json, write_json
from qpeft_lab.compare.rows import read_rows
from qpeft_lab.compare.study import Study
from qpeft_lab.method_records import UNTRAINED
from qpeft_lab.verdict import MARGIN, PROTOCOL
from qpeft_lab.verdict.circuit import Circuit

CIRCUIT = "circuit"  # the key of the trained circuit in the study
UNIT = "lora_r8"
UNIT_METHOD = "lora"
_GRID = [0.3, 1.0, 3.0]
_RANK = 4
HOST = {"r": _RANK, "lora_alpha": _RANK}  # the LoRA that QPA generates
_RANKS = [1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32]


@dataclass(frozen=True)
class Protocol:
    """What is fixed before the first row, in protocol.json of the study's folder.

    Attributes:
        question: In words.
        circuit: The name of the circuit.
        method: The method that it generates an adapter with.
        margin: Per cent of the gain of LoRA r=8; a smaller difference counts as none.
        seeds: Of the runs that decide.
        steps: Of each run.
        twins: Keys of the controls that differ in the circuit alone.
        rivals: Keys of the adapters of at most its size.
    """

    question: str
    circuit: str
    method: str
    margin: float
    seeds: list[int]
    steps: int
    twins: list[str]
    rivals: list[str]

    @property
    def others(self) -> list[str]:
        """The keys of all that the circuit is compared with: each is one question."""
        return [*self.twins, *self.rivals]

    def keep(self, folder: Path) -> None:
        """Write it. Raises ConfigError if the folder has rows of another one."""
        refuse_change(folder, **asdict(self))
        path = folder / PROTOCOL
        if not path.exists() or read_protocol(folder) != self:
            write_json(path, asdict(self))


def refuse_change(folder: Path, **fields: Any) -> None:
    """Raise ConfigError if the study in `folder` has rows and fixed other values of these fields."""
    path = folder / PROTOCOL
    if not path.exists():
        return
    fixed = asdict(read_protocol(folder))
    changed = [
        f"{name} {value!r} instead of {fixed[name]!r}"
        for name, value in fields.items()
        if fixed[name] != value
    ]
    if changed and read_rows(folder):
        raise ConfigError(
            f"{path} was fixed before the rows of {folder}, and cannot change now:"
            f" {'; '.join(changed)}. Name another --out for another study"
        )


def read_protocol(folder: Path) -> Protocol:
    """That of a study's folder. Raises ConfigError if there is none, or it is damaged."""
    path = folder / PROTOCOL
    try:
        return Protocol(**read_json(path))
    except FileNotFoundError:
        raise ConfigError(f"{folder} has no {PROTOCOL}: it is no folder of qpeft verdict") from None
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path} is damaged ({error}); run the study in a new folder") from error


def protocol_of(study: Study, margin: float) -> Protocol:
    """What a study of `study_of` fixes. Raises ConfigError for any other study."""
    circuit = next((method for method in study.methods if method.key == CIRCUIT), None)
    if circuit is None:
        raise ConfigError(f"the study {study.name!r} is none of qpeft verdict: it has no {CIRCUIT}")
    return Protocol(
        question=study.question,
        circuit=circuit.label,
        method=circuit.method,
        margin=margin,
        seeds=list(study.seeds),
        steps=study.run.steps or 0,
        twins=[method.key for method in study.methods if method.against],
        rivals=[method.key for method in study.methods if method.at_size_of],
    )


def name_at(margin: float) -> str:
    """The name of a study, which each row contains: so a margin that was changed after it is seen."""
    return "verdict" if margin == MARGIN else f"verdict-margin-{margin}"


def study_of(
    circuit: Circuit,
    method: str,
    n_layers: int | None,
    n_generated: int,
    run: Mapping[str, Any],
    seeds: Sequence[int],
    angle_scale: float | None = None,
) -> dict[str, Any]:
    """The fields of the study, as a study file has them, without the name.

    `n_generated` is the number of parameters of the LoRA that QPA generates (`HOST`), and
    `angle_scale` the factor on the learning rate of the angles, by default the method's.

    Raises ConfigError for a method or a number of layers that the circuit cannot have.
    """
    record = methods.get(method)
    settings: dict[str, Any]
    if record.only_ansatz is None:
        settings = _of_any_circuit(circuit, n_layers, n_generated)
    elif circuit.ansatz == record.only_ansatz:
        settings = {"r": 2 * _RANK, "n_layers": n_layers or 2}
    else:
        raise ConfigError(
            f"{record.title} has the circuit {record.only_ansatz}, not {circuit.label}; leave out"
            " --method to test it in QPA"
        )
    if angle_scale is not None:
        settings["angle_scale"] = angle_scale
    core = {"family": "core", "frame": "sign"}
    uni = {"r": _RANK, "theta_d_length": "@budget"}
    compared: list[dict[str, Any]] = [
        {"key": UNTRAINED, "label": "base without an adapter", "method": UNTRAINED},
        {
            "key": UNIT,
            "label": "LoRA r=8",
            "method": UNIT_METHOD,
            "settings": {"r": 8, "lora_alpha": 8},
        },
        {"key": CIRCUIT, "label": circuit.label, "method": method, "settings": settings},
    ]
    for key, control in record.controls.items():
        compared.append(
            {
                "key": key,
                "label": control.label,
                "method": method,
                "settings": {**settings, **control.settings},
                "against": CIRCUIT,
            }
        )
    compared += [
        _rival("lora", "LoRA", UNIT_METHOD, {"lora_alpha": _RANK}, _RANKS),
        _rival("lora_sb", "LoRA-SB", "quantum_peft", core, _RANKS),
        _rival("uni_lora", "Uni-LoRA", "uni_lora", uni, []),
    ]
    return {
        "title": f"Is it the circuit? {circuit.label}",
        "question": (
            f"Does the circuit {circuit.label} improve the adapter that it generates, beyond what"
            " the same adapter has without it?"
        ),
        "reference": UNIT,
        "seeds": list(seeds),
        "tuning": {"grid": _GRID},
        "costs": False,
        "run": dict(run),
        "methods": compared,
    }


def _rival(
    key: str, label: str, method: str, settings: Mapping[str, Any], ranks: Sequence[int]
) -> dict[str, Any]:
    """An adapter with at most as many trained parameters as the circuit has."""
    sized = {"vary": "r", "values": list(ranks)} if ranks else {}
    return {
        "key": key,
        "label": label,
        "method": method,
        "settings": dict(settings),
        "at_size_of": CIRCUIT,
        **sized,
    }


def _of_any_circuit(circuit: Circuit, n_layers: int | None, n_generated: int) -> dict[str, Any]:
    """QPA's settings for this circuit, with about half as many trained parameters as it generates, or fewer.

    A circuit of N qubits has 2^N probabilities: K = 2^k of them for each of 2^(N - k) chunks of m /
    2^(N - k) parameters. A linear map from K features to a chunk has m 2^(2k - N) weights, at most
    m / 2 for k = (N - 1) // 2.
    """
    settings = {**HOST, "ansatz": circuit.ansatz}
    if circuit.fixed is None:
        # LoRA of half the rank, which has half the parameters, is not larger
        return {**settings, "budget": 0.52, "n_layers": n_layers or 8}
    if n_layers is not None:
        raise ConfigError(f"{circuit.label} is one circuit, of one size; leave out --n-layers")
    n_qubits = circuit.fixed.n_qubits
    log_features = (n_qubits - 1) // 2
    n_chunks = 2 ** (n_qubits - log_features)
    return {
        **settings,
        "n_layers": 1,
        "features": 2**log_features,
        "chunk_size": -(-n_generated // n_chunks),
    }
