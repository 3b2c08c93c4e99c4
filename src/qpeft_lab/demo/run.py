"""The demo: the embedded base adapted to NumPy's documentation by several methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpeft import methods
from qpeft.checks import unknown
from qpeft.errors import ConfigError
from qpeft_lab.demo import base_path
from qpeft_lab.files import output_folder
from qpeft_lab.settings import RunSettings

if TYPE_CHECKING:
    from qpeft_lab.training.progress import Progress
    from qpeft_lab.training.run_folder import TrainResult

_LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", _LORA),
    "qpa": ("qpa", {**_LORA, "budget": 0.5}),
    "qpa-frozen": ("qpa", {**_LORA, "budget": 0.5, "feature_source": "qnn_frozen"}),
    "quantum_peft": ("quantum_peft", {"r": 8, "target_modules": "all-linear"}),
}


def learning_rate(name: str) -> float:
    """The one that our studies chose for the method."""
    return methods.named(METHODS[name][0]).learning_rate


def settings_of(name: str, out: Path, steps: int) -> RunSettings:
    """The run of one method; data, order and steps are the same for all methods."""
    method, method_settings = METHODS[name]
    return RunSettings(
        model=str(base_path()),
        data="numpy-docs",
        out=str(out / name),
        method=method,
        method_settings=dict(method_settings),
        steps=steps,
        lr=learning_rate(name),
        batch_size=16,
        seq_len=128,
        eval_every=steps,
        eval_blocks=64,
    )


def run_demo(
    out: Path, names: Sequence[str], steps: int, progress: Callable[[str], Progress]
) -> dict[str, TrainResult]:
    """Train each method in a run folder of its own in `out`; finished runs are not repeated.

    `progress(name)` receives the events of a method's run.

    Raises:
        ConfigError: a method is unknown, there is none, or `out` cannot be written.
        CheckpointError: `out` has runs with other settings.
    """
    from qpeft_lab import train

    for name in names or ("",):
        if name not in METHODS:
            raise ConfigError(unknown("demo method", name, METHODS))
    output_folder(out)
    return {name: train(settings_of(name, out, steps), progress(name)) for name in names}


def to_dict(results: dict[str, TrainResult]) -> dict[str, Any]:
    """Plain JSON values."""
    first = next(iter(results.values()))
    return {
        "request": {"learning_rates": {name: learning_rate(name) for name in results}, "steps": first.steps},
        "base": first.model,
        "runs": {name: result.to_dict() for name, result in results.items()},
        "load": load_lines(results),
    }


def load_lines(results: dict[str, TrainResult]) -> str:
    """The lines of Python that load the last method's adapter without qpeft."""
    from qpeft.core import model_card

    last = list(results.values())[-1]
    return model_card.load_lines(str(base_path()), str(last.exported.resolve()), needs_qpeft=False)
