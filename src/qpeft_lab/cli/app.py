"""The application `qpeft`: a command's module is imported when the command runs."""

from __future__ import annotations

from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from qpeft_lab.cli import console
from qpeft_lab.cli.command import application

COMMANDS = {  # with the lines of `qpeft --help`
    "demo": "Adapt a small language model with LoRA, QPA and Quantum-PEFT, offline.",
    "base": "Build a real pretrained base model from a Python package.",
    "plan": "Count the parameters that a method trains, deploys and stores.",
    "frames": "Write a frame file, which many adapters share.",
    "train": "Fine-tune a model.",
    "evaluate": "Score a base model, and an adapter on it.",
    "generate": "Continue a prompt.",
    "export": "Export an adapter in PEFT's own format, and verify it.",
    "rollback": "Restore an earlier revision of a served adapter.",
    "verify-served": "Tell whether a server applies an adapter.",
    "diagnose": "Measure whether a circuit is random, redundant and trainable.",
    "verdict": "Is it the circuit? Compare a circuit of yours with what replaces it.",
    "compare": "Compare methods under equal conditions.",
    "circuits": "Draw circuits, count their gates, and export them.",
}


def load(name: str) -> Any:
    """The command or group of this name."""
    own_name = name.replace("-", "_")
    module = import_module(f"qpeft_lab.cli.{own_name}")
    made = module.group() if hasattr(module, "group") else application([getattr(module, own_name)])
    return typer.main.get_command(made)


class _Commands(TyperGroup):
    """The group of all commands; with --json, a usage error is printed as JSON too."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        name, _, rest = super().resolve_command(ctx, args)
        return name, load(str(name)), rest

    def invoke(self, ctx: Any) -> Any:
        as_json = "--json" in ctx.args  # now: parsing empties the list
        try:
            return super().invoke(ctx)
        except Exception as error:
            # a usage error, whichever click Typer comes with
            if as_json and hasattr(error, "format_message"):
                console.print_failure(error, error.format_message(), error.exit_code)  # type: ignore[attr-defined]
            raise


def qpeft(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", metavar="", help="Print the version.")
    ] = False,
) -> None:
    """Fine-tune Hugging Face models with adapters that small quantum circuits generate.

    The circuits are simulated on your machine. With method qpa, a circuit and a linear map generate
    a LoRA adapter; with quantum_peft, circuits generate its orthogonal factors. The simulation is
    exact unless --shots or --backend is given. The result is a stock PEFT adapter, which loads
    without qpeft.

    Examples:

      qpeft demo
      qpeft plan --model gpt2 --method qpa --budget 0.5
      qpeft train --model gpt2 --data text.txt --method qpa --out run
      qpeft export run --out my-adapter
      qpeft compare run survey --out survey
    """
    if version:
        from importlib import metadata

        typer.echo(f"qpeft {metadata.version('qpeft')}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def build() -> typer.Typer:
    """The application with every command."""
    app = application([], qpeft, cls=_Commands, invoke_without_command=True)
    for name, text in COMMANDS.items():
        app.command(name, help=text)(lambda: None)  # replaced by `load` when the command runs
    return app
