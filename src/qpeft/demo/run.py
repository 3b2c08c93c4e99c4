"""The demo: the embedded base adapted to NumPy's documentation by several methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpeft import methods
from qpeft.demo import base_path
from qpeft.errors import ConfigError
from qpeft.files import output_folder, read_json, write_json
from qpeft.names import unknown
from qpeft.training.settings import TrainSettings

if TYPE_CHECKING:
    from qpeft.training.progress import Progress
    from qpeft.training.result import TrainResult

_RESULTS = "demo.json"
_LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", _LORA),
    "qpa": ("qpa", {**_LORA, "budget": 0.5}),
    "qpa-frozen": ("qpa", {**_LORA, "budget": 0.5, "feature_source": "qnn_frozen"}),
    "quantum_peft": ("quantum_peft", {"r": 8, "target_modules": "all-linear"}),
}


def check_methods(names: Sequence[str]) -> None:
    """Raise ConfigError for an unknown method, or none."""
    if not names:
        raise ConfigError(f"no demo method given; choose from {', '.join(METHODS)}")
    for name in names:
        if name not in METHODS:
            raise ConfigError(unknown("demo method", name, METHODS))


def learning_rate(name: str) -> float:
    """The one that our studies chose for the method."""
    return methods.named(METHODS[name][0]).learning_rate


def settings_of(name: str, out: Path, steps: int) -> TrainSettings:
    """The run of one method; data, order and steps are the same for all methods."""
    method, method_settings = METHODS[name]
    return TrainSettings(
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
    """Train each method, and save the results and the lines that load the last adapter to `out`/demo.json.

    Finished runs are not repeated. `progress(name)` receives the events of a method's run.

    Raises:
        ConfigError: a method is unknown, or `out` cannot be written or holds something else.
        CheckpointError: `out` has runs with other settings.
    """
    from qpeft.training import train

    check_methods(names)
    _check_folder(out)
    results = {name: train(settings_of(name, out, steps), progress(name)) for name in names}
    write_json(out / _RESULTS, to_dict(results))
    return results


def _check_folder(out: Path) -> None:
    """Raise ConfigError unless `out` is new, empty or a demo's."""
    output_folder(out)
    try:
        is_ours = "runs" in read_json(out / _RESULTS)
    except (OSError, ValueError, TypeError):
        is_ours = False
    others = [path.name for path in out.iterdir() if path.name[0] != "."] if out.is_dir() and not is_ours else []
    if not METHODS.keys() >= set(others):  # an interrupted demo has only the folders of its runs
        raise ConfigError(f"{out} is not empty and holds no demo; choose another folder")


def to_dict(results: dict[str, TrainResult]) -> dict[str, Any]:
    """The content of demo.json."""
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
