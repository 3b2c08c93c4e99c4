"""The entry point `qpeft`: what there is, and nothing heavy until a command runs."""

from __future__ import annotations

from typing import Annotated

import typer

from qpeft.cli import circuits, compare
from qpeft.cli.demo import demo
from qpeft.cli.diagnose import diagnose
from qpeft.cli.evaluate import evaluate
from qpeft.cli.export import export
from qpeft.cli.generate import generate
from qpeft.cli.help import HelpfulCommand, HelpfulGroup
from qpeft.cli.plan import plan
from qpeft.cli.train import train

COMMANDS = (demo, plan, train, evaluate, generate, export, diagnose)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"qpeft {version('qpeft')}")
        raise typer.Exit


def qpeft(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fine-tune Hugging Face language models with quantum-generated adapter numbers.

    Small quantum circuits, simulated on your machine, make the numbers of a LoRA adapter: with a small
    network (method qpa) or as its orthogonal factors (quantum_peft). The simulation is exact unless
    --shots or --backend say otherwise. What comes out is an ordinary PEFT adapter: it loads where qpeft
    is not installed.

    Start with:

      qpeft demo
      qpeft plan --model gpt2 --method qpa --budget 0.5
      qpeft plan --model gpt2 --method quantum_peft
      qpeft train --model gpt2 --data text.txt --method qpa --out run
      qpeft export run --out my-adapter
      qpeft diagnose run
      qpeft compare run survey --out survey
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def build() -> typer.Typer:
    """The application with every command."""
    app = typer.Typer(cls=HelpfulGroup, add_completion=False, rich_markup_mode=None, invoke_without_command=True)
    app.callback()(qpeft)
    for command in COMMANDS:
        app.command(cls=HelpfulCommand)(command)
    app.add_typer(compare.group(), name="compare")
    app.add_typer(circuits.group(), name="circuits")
    return app


def main() -> None:
    """Run the command line; ends the process with one of the documented exit codes."""
    build()(prog_name="qpeft")
