"""`qpeft demo`: see it work in about two minutes, with nothing to download."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qpeft.cli.bar import TrainingBar
from qpeft.cli.command import command
from qpeft.cli.console import Answer, count, print_code, say, size, table

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from qpeft.demo.run import Demo


@command
def demo(
    steps: Annotated[int, typer.Option(metavar="N", min=1, help="Optimiser steps for each method.")] = 70,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where runs and adapters go.")] = Path("demo-run"),
    methods: Annotated[
        str,
        typer.Option(metavar="NAME,...", help="Any of lora, qpa, qpa-none (QPA without its circuit), quantum_peft."),
    ] = "lora,qpa,quantum_peft",
) -> Answer:
    """Adapt a small language model to NumPy's documentation: stock LoRA, QPA and Quantum-PEFT side by side.

    The base model comes with qpeft, the text with NumPy, so nothing is downloaded. It takes about two
    minutes on two cores. The same command again goes on where it stopped, or shows the result at once.

    Examples:

      qpeft demo
      qpeft demo --methods lora,qpa,qpa-none --steps 150 --out longer
    """
    from qpeft.demo import run

    names = [name.strip() for name in methods.split(",") if name.strip()]
    run.check_methods(names)
    found = run.finished(out, names, steps)
    if found is not None:
        say("Note:", f"{out} holds this demo already, here is its result; remove the folder to run it again", "bold")
    else:
        with TrainingBar(names, steps) as bar:
            found = run.run_demo(out, names, steps, bar.run, bar.describe)
    return Answer(found.to_dict(), lambda console: _show(console, found))


def _show(console: Console, found: Demo) -> None:
    first = next(iter(found.runs.values()))
    console.print(
        f"NumPy's documentation, {found.request['steps']} steps a method, the same data in the same order; "
        f"scored on {count(first['after']['n_tokens'])} held-out tokens\n"
    )
    console.print(_results(found))
    _show_samples(console, found)
    last = list(found.runs.values())[-1]
    console.print(f"Exported adapter: {last['exported']}", style="bold", soft_wrap=True)
    console.print("It loads with plain PEFT, where qpeft was never installed:\n")
    print_code(console, found.load)
    console.print(
        "\nOne seed and few steps show that it works, not which method is better. To see whether the circuit "
        "matters, run it without one beside it:\n"
    )
    print_code(console, "qpeft demo --methods lora,qpa,qpa-none")


def _results(found: Demo) -> Table:
    columns = ("method", "trained", "deployed", "stored", "ppl before", "ppl after", "s/step")
    return table(
        columns,
        [
            (
                name,
                count(run["trainable"]),
                count(run["deployed"]),
                size(run["stored_bytes"]),
                f"{run['before']['perplexity']:.1f}",
                f"{run['after']['perplexity']:.1f}",
                "" if run["seconds_per_step"] is None else f"{run['seconds_per_step']:.2f}",
            )
            for name, run in found.runs.items()
        ],
    )


def _show_samples(console: Console, found: Demo) -> None:
    from qpeft.demo.run import PROMPT

    for name, text in found.samples.items():
        title = "Before, the base writes" if name == "base" else f"After, with {name}, it writes"
        console.print(f"{title}\n", style="bold")
        for line in (PROMPT + text.rstrip()).splitlines():
            console.print(f"  {line}".rstrip(), style="dim", soft_wrap=True)
        console.print()
