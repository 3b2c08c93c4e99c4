"""`qpeft demo`: LoRA, QPA and Quantum-PEFT on the embedded base model, in about two minutes and
offline.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpeft import methods as registry
from qpeft.checks import option, unknown
from qpeft.errors import ConfigError
from qpeft_lab.cli.command import command
from qpeft_lab.cli.console import Answer, TrainingBar, bars, line, say, size, table
from qpeft_lab.demo import base_path
from qpeft_lab.files import output_file
from qpeft_lab.settings import RunSettings

if TYPE_CHECKING:
    from rich.console import Console

    from qpeft_lab.training.run_folder import TrainResult

_LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "lora": ("lora", _LORA),
    "qpa": ("qpa", {**_LORA, "budget": 0.5}),
    "qpa-frozen": ("qpa", {**_LORA, "budget": 0.5, "feature_source": "qnn_frozen"}),
    "quantum_peft": ("quantum_peft", {"r": 8, "target_modules": "all-linear"}),
}
_COLUMNS = (
    "method",
    "trainable\nparameters",
    "deployed\nparameters",
    "file size",
    "perplexity",
    "seconds\nper step",
)


@command
def demo(
    *,
    steps: int = option(70, "Optimizer steps of each method.", at_least=1),
    out: Path = option(Path("demo-run"), "Folder for the runs and their adapters.", metavar="DIR"),
    methods: str = option(
        "lora,qpa,quantum_peft",
        "Any of lora, qpa, qpa-frozen (its circuit is frozen), quantum_peft.",
        metavar="NAME,...",
    ),
) -> Answer:
    """Adapt a small language model to NumPy's documentation with stock LoRA, QPA and Quantum-PEFT.

    Nothing is downloaded: the base model comes with qpeft and the text with NumPy. Each method has
    the learning rate that our studies chose for it. The demo takes about two minutes on two cores.
    Run the same command again to resume it, or to print its results again.

    Examples:

      qpeft demo
      qpeft demo --methods lora,qpa,qpa-frozen --steps 150 --out longer
    """
    names = list(dict.fromkeys(name.strip() for name in methods.split(",")))
    for name in names:
        if name not in METHODS:
            raise ConfigError(unknown("demo method", name, METHODS))
    output_file(out, is_folder=True)
    from qpeft.core.model_card import load_lines
    from qpeft_lab.training.fit import train

    with bars() as shown:
        results = {
            name: train(settings_of(name, out, steps), TrainingBar(shown, name)) for name in names
        }
    if all(result.already_finished for result in results.values()):
        say("Note:", f"{out} holds the results of this demo; remove the folder to run it again")
    last = results[names[-1]]
    data = {
        "base": last.model,
        "steps": steps,
        "learning_rates": {name: settings_of(name, out, steps).lr for name in names},
        "runs": {name: result.to_dict() for name, result in results.items()},
        "load": load_lines(str(base_path()), str(last.exported.resolve()), None),
    }
    return Answer(data, lambda console: _show(console, results, data))


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
        lr=registry.get(method).learning_rate,
        batch_size=16,
        seq_len=128,
        eval_every=steps,
        eval_blocks=64,
    )


def _show(console: Console, results: dict[str, TrainResult], data: dict[str, Any]) -> None:
    last = list(results.values())[-1]
    rates = ", ".join(f"{name} {rate:g}" for name, rate in data["learning_rates"].items())
    console.print(
        f"NumPy's documentation, {last.steps} steps for each method on the same data in the same"
        f" order, scored on {last.after.n_scored:,} held-out tokens. Learning rates, as chosen in"
        f" our studies: {rates}\n"
    )
    rows: list[tuple[Any, ...]] = [
        ("base model", "", "", "", f"{last.before.metrics['perplexity']:.1f}", "")
    ]
    for name, run in results.items():
        seconds = "" if run.seconds_per_step is None else f"{run.seconds_per_step:.2f}"
        costs = (run.trainable, run.deployed, size(run.stored_bytes))
        rows.append((name, *costs, f"{run.after.metrics['perplexity']:.1f}", seconds))
    console.print(table(_COLUMNS, rows))
    line(console, f"Exported adapter: {last.exported}", "bold")
    console.print("Load it with PEFT alone, without qpeft:\n")
    line(console, data["load"], "cyan")
    console.print(
        "\nOne seed and one learning rate cannot rank the methods; qpeft compare tunes each method."
        " To test whether the circuit contributes, add the control:\n"
    )
    line(console, "qpeft demo --methods lora,qpa,qpa-frozen", "cyan")
