"""The demo: the embedded base adapted to NumPy's documentation by several methods."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpeft.demo import base_path
from qpeft.errors import ConfigError
from qpeft.files import read_json, write_json
from qpeft.training.settings import TrainSettings

if TYPE_CHECKING:
    from qpeft.training.progress import Progress
    from qpeft.training.result import TrainResult

_LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", _LORA),
    "qpa": ("qpa", {**_LORA, "budget": 0.5}),
    "qpa-none": ("qpa", {**_LORA, "budget": 0.5, "feature_source": "none"}),
    "quantum_peft": ("quantum_peft", {"r": 8, "target_modules": "all-linear"}),
}

PROMPT = "Parameters\n----------\nx : array_like\n"
SAMPLING = {"do_sample": True, "temperature": 0.5, "top_k": 40, "max_new_tokens": 40}


@dataclass(frozen=True)
class Demo:
    """The request and the results of a demo, in JSON types."""

    request: dict[str, Any]
    base: str
    runs: dict[str, dict[str, Any]]  # method -> TrainResult.to_dict()
    samples: dict[str, str]  # "base" or method -> the text generated after PROMPT
    load: str  # the lines of Python that load the last method's adapter

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_methods(methods: Sequence[str]) -> None:
    """Raise ConfigError for an unknown method, or none."""
    unknown = [name for name in methods if name not in METHODS]
    if unknown or not methods:
        raise ConfigError(
            f"unknown demo methods: {', '.join(unknown) or 'none given'}; choose from {', '.join(METHODS)}"
        )


def settings_of(name: str, out: Path, steps: int) -> TrainSettings:
    """The run of one method; data, order, learning rate and steps are the same for all methods."""
    method, method_settings = METHODS[name]
    return TrainSettings(
        model=str(base_path()),
        data="numpy-docs",
        out=str(out / name),
        method=method,
        method_settings=dict(method_settings),
        steps=steps,
        lr=2e-3,
        batch_size=16,
        seq_len=128,
        eval_every=steps,
        eval_blocks=64,
    )


def finished(out: Path, methods: Sequence[str], steps: int) -> Demo | None:
    """The finished demo in `out` for the same request; None if there is none or a run is missing."""
    try:
        found = Demo(**read_json(out / "demo.json"))
    except (ValueError, TypeError):
        return None
    is_whole = all((out / name / "result.json").is_file() for name in methods)
    is_same = (found.request, found.base) == (_request(methods, steps), str(base_path()))
    if not (is_whole and is_same):
        return None
    from qpeft.training.result import read_result

    results = {name: read_result(out / name / "result.json") for name in methods}  # the folder may have been moved
    runs = {name: result.to_dict() for name, result in results.items() if result is not None}
    return replace(found, runs=runs, load=_load_lines(out, methods))


def run_demo(
    out: Path, methods: Sequence[str], steps: int, progress: Callable[[str], Progress], say: Callable[[str], None]
) -> Demo:
    """Train each method, generate a sample with it, and save the results to `out`/demo.json.

    Finished runs are not repeated. `progress(method)` receives the events of a method's run.

    Raises:
        ConfigError: a method is unknown.
        CheckpointError: `out` has runs with other settings.
    """
    from qpeft.training import train

    check_methods(methods)
    results = {name: train(settings_of(name, out, steps), progress(name)) for name in methods}
    say("Generating a sample with each method")
    demo = Demo(
        request=_request(methods, steps),
        base=str(base_path()),
        runs={name: result.to_dict() for name, result in results.items()},
        samples=_samples(results),
        load=_load_lines(out, methods),
    )
    write_json(out / "demo.json", demo.to_dict())
    return demo


def _load_lines(out: Path, methods: Sequence[str]) -> str:
    """The code that loads the last method's adapter without qpeft."""
    from qpeft.core.model_card import load_lines

    return load_lines(str(base_path()), str((out / methods[-1] / "exported").resolve()), needs_qpeft=False)


def _request(methods: Sequence[str], steps: int) -> dict[str, Any]:
    return {"methods": list(methods), "steps": steps}


def _samples(results: dict[str, TrainResult]) -> dict[str, str]:
    """Continuations of PROMPT, sampled with one seed, by the base and by each exported adapter with plain PEFT."""
    from peft import PeftModel

    from qpeft.training.base_model import load_model, load_tokenizer

    tokenizer, base = load_tokenizer(str(base_path())), load_model(str(base_path())).eval()
    samples = {"base": _continue(base, tokenizer)}
    for name, result in results.items():
        adapted = PeftModel.from_pretrained(base, str(result.exported)).eval()
        samples[name] = _continue(adapted, tokenizer)
        base = adapted.unload()
    return samples


def _continue(model: Any, tokenizer: Any) -> str:
    from transformers import set_seed

    inputs = tokenizer(PROMPT, return_tensors="pt")
    set_seed(0)
    written = model.generate(**inputs, **SAMPLING, pad_token_id=tokenizer.pad_token_id)
    return tokenizer.decode(written[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
