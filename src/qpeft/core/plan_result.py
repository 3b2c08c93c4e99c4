"""The result of `plan`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

BYTES = 4  # float32


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The cost of a method: numbers, bytes, qubits, and notes worth reading before training."""

    method: str
    trainable: int  #: parameters that the optimizer sees, `modules_to_save` included
    trainable_parts: dict[str, int]
    acting: int | None = None  #: Quantum-PEFT: of the trainable, those that can move the adapter, where that is known
    deployed: int  #: parameters of the adapter at inference
    stored_bytes: int  #: compact checkpoint: parameters and frames, without the file's header and fingerprints
    exported_bytes: int | None  #: exported adapter, tensors only; None: stock PEFT has no such adapter
    needs_qpeft: bool  #: to load the compact checkpoint
    base_parameters: int
    target_modules: list[str]
    lora_rank_1: int | None = None  #: Quantum-PEFT: parameters of a LoRA of rank 1 on the same modules
    n_qubits: int | None = None  #: of the largest circuit
    n_circuits: int | None = None
    dead_angles: int | None = None  #: QAA: of all circuits, angles without any effect on what is read
    n_chunks: int | None = None
    chunk_size: int | None = None
    hidden: tuple[int, ...] | None = None
    rank_bound: int | None = None  #: QPA: of the (C, n) matrix of chunks; Quantum-PEFT: of every update, the largest K
    circuits: dict[str, Any] | None = None  #: what a training's circuits cost on a backend, see `Forecast`
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
