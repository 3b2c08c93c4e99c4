"""The methods of `classification.py`, with the learning rates that each is given to choose from."""

from __future__ import annotations

from typing import Any, NamedTuple


class Row(NamedTuple):
    """A method and its settings; a control has no rates of its own but those of the row it is `like`."""

    method: str
    settings: dict[str, Any]
    rates: tuple[float, ...] = ()
    like: str = ""


_RATES = (1e-3, 2e-3, 5e-3)
_ALPHA = {"lora_alpha": 16}
_QPA = {"r": 4, **_ALPHA}
_QUANTUM_PEFT = {"r": 8, **_ALPHA}
_WIDE = {"r": 32, "n_layers": 4, **_ALPHA}

BASELINE = "head alone"
ROWS = {
    BASELINE: Row("head", {}, (5e-3, 1.5e-2, 5e-2, 1.5e-1)),
    "LoRA r=4": Row("lora", {"r": 4, **_ALPHA}, _RATES),
    "QPA r=4": Row("qpa", _QPA, (2e-4, 5e-4, 1e-3)),
    "Quantum-PEFT r=8": Row("quantum_peft", _QUANTUM_PEFT, _RATES),
    "QPA r=4, no feature": Row("qpa", {**_QPA, "feature_source": "none"}, like="QPA r=4"),
    "Quantum-PEFT r=8, signs for CZ": Row(
        "quantum_peft", {**_QUANTUM_PEFT, "entangler": "signs"}, like="Quantum-PEFT r=8"
    ),
    "Quantum-PEFT r=8, framed": Row("quantum_peft", {**_QUANTUM_PEFT, "frame": "gradient"}, _RATES),
    "Quantum-PEFT r=32": Row("quantum_peft", _WIDE, _RATES),
    "Quantum-PEFT r=32, signs for CZ": Row("quantum_peft", {**_WIDE, "entangler": "signs"}, like="Quantum-PEFT r=32"),
    "LoRA r=1": Row("lora", {"r": 1, **_ALPHA}, _RATES),
    "bottleneck of 8": Row("bottleneck", {"bottleneck_size": 8}, (2e-3, 5e-3, 2e-2)),
}
