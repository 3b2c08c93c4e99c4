"""The application with every command; a command imports what it needs when it runs."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from qpeft.cli import circuits, compare
from qpeft.cli.command import application
from qpeft.cli.console import print_failure
from qpeft.cli.demo import demo
from qpeft.cli.diagnose import diagnose
from qpeft.cli.evaluate import evaluate
from qpeft.cli.export import export
from qpeft.cli.frames import frames
from qpeft.cli.generate import generate
from qpeft.cli.plan import plan
from qpeft.cli.train import train

COMMANDS = (demo, plan, frames, train, evaluate, generate, export, diagnose)


class _Commands(TyperGroup):
    """The group of all commands; with --json, a usage error is printed as JSON too."""

    def invoke(self, ctx: Any) -> Any:
        as_json = "--json" in ctx.args  # now: parsing empties the list
        try:
            return super().invoke(ctx)
        except Exception as error:
            if as_json and hasattr(error, "format_message"):  # a usage error, whichever click Typer comes with
                print_failure(error, error.format_message(), error.exit_code)  # type: ignore[attr-defined]
            raise


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"qpeft {version('qpeft')}")
        raise typer.Exit


def qpeft(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", metavar="", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fine-tune Hugging Face models with adapters that small quantum circuits generate.

    The circuits are simulated on your machine. With method qpa, a circuit and a linear map generate a LoRA adapter;
    with quantum_peft, circuits generate its orthogonal factors. The simulation is exact unless --shots or --backend is
    given. The result is an ordinary PEFT adapter, which loads without qpeft.

    Examples:

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
    app = application(qpeft, COMMANDS, cls=_Commands, invoke_without_command=True)
    app.add_typer(compare.group(), name="compare")
    app.add_typer(circuits.group(), name="circuits")
    return app
