"""`qpeft demo`: LoRA, QPA and Quantum-PEFT on the embedded base model, in about two minutes and offline."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from qpeft.checks import option
from qpeft_lab.cli.command import command
from qpeft_lab.cli.console import Answer, line, say, size, table
from qpeft_lab.cli.progress import TrainingBar, bars

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from qpeft_lab.training.run_folder import TrainResult


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

    Nothing is downloaded: the base model comes with qpeft and the text with NumPy. Each method has the learning rate
    that our studies chose for it. The demo takes about two minutes on two cores. Run the same command again to resume
    it, or to print its results again.

    Examples:

      qpeft demo
      qpeft demo --methods lora,qpa,qpa-frozen --steps 150 --out longer
    """
    from qpeft_lab.demo import run

    names = [name.strip() for name in methods.split(",") if name.strip()]
    with bars() as shown:
        results = run.run_demo(out, names, steps, partial(TrainingBar, shown))
    if all(result.already_finished for result in results.values()):
        say("Note:", f"{out} holds the results of this demo; remove the folder to run it again")
    return Answer(run.to_dict(results), lambda console: _show(console, results, run.load_lines(results)))


def _show(console: Console, results: dict[str, TrainResult], load: str) -> None:
    from qpeft_lab.demo.run import learning_rate

    first, last = next(iter(results.values())), list(results.values())[-1]
    rates = ", ".join(f"{name} {learning_rate(name):g}" for name in results)
    console.print(
        f"NumPy's documentation, {first.steps} steps for each method on the same data in the same order, scored on "
        f"{first.after.n_scored:,} held-out tokens. Learning rates, as chosen in our studies: "
        f"{rates}\n"
    )
    console.print(_table(results))
    line(console, f"Exported adapter: {last.exported}", "bold")
    console.print("Load it with plain PEFT, without qpeft:\n")
    line(console, load, "cyan")
    console.print(
        "\nOne seed and one learning rate cannot rank the methods; qpeft compare tunes each method. To test whether "
        "the circuit contributes, add the control:\n"
    )
    line(console, "qpeft demo --methods lora,qpa,qpa-frozen", "cyan")


def _table(results: dict[str, TrainResult]) -> Table:
    names = ("trainable\nparameters", "deployed\nparameters", "file size", "perplexity", "seconds\nper step")
    base = next(iter(results.values())).before.to_dict()["perplexity"]
    rows = [
        (
            *(name, f"{run.trainable:,}", f"{run.deployed:,}", size(run.stored_bytes)),
            f"{run.after.to_dict()['perplexity']:.1f}",
            "" if run.seconds_per_step is None else f"{run.seconds_per_step:.2f}",
        )
        for name, run in results.items()
    ]
    return table(("method", *names), [("base model", "", "", "", f"{base:.1f}", ""), *rows])
