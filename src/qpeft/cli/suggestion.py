"""The options --parameters and --bytes of `plan` and `train`, with which the evidence chooses the method."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qpeft.cli.adapters import base_model
from qpeft.cli.console import count, print_code, remarks, say, size, table, working
from qpeft.cli.frames import SETTINGS
from qpeft.cli.method import as_options
from qpeft.errors import ConfigError
from qpeft.training.settings import TrainSettings

if TYPE_CHECKING:
    from rich.console import Console

    from qpeft.compare.suggest import Suggestion

AUTO = "auto"
_PANEL = "Choice of the method"
_MOST_SHOWN = 6
# words of the labels in the evidence
_LEGEND = {
    "framed": "inside the leading directions of the loss gradient",
    "shared": "one pair of circuits for all matrices of a type",
    "signs": "fixed random signs instead of the circuits' CZ gates",
    "Lie": "rotations of a Lie algebra instead of circuits",
    "core": "a trained matrix between fixed directions, classical",
    "R=": "frame_rank",
    "L=": "n_layers",
}

ParametersOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        rich_help_panel=_PANEL,
        help="Choose the method with --method auto: the best measured one with at most so many trainable parameters.",
    ),
]
BytesOption = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        rich_help_panel=_PANEL,
        help="The same with at most so many bytes of stored tensors, without the header of their file, the adapter's "
        "config and a frame file.",
    ),
]
StockServersOption = Annotated[
    bool | None,
    typer.Option(
        "--stock-servers",
        metavar="",
        rich_help_panel=_PANEL,
        help="With a budget: only adapters whose export vLLM and TRL load, if vLLM supports LoRA for the architecture.",
    ),
]

MixedBatchesOption = Annotated[
    bool | None,
    typer.Option(
        "--mixed-batches",
        metavar="",
        rich_help_panel=_PANEL,
        help="With a budget: only adapters of which qpeft.AdapterPool serves several in one batch.",
    ),
]


def suggested(
    model: str,
    run: dict[str, Any],
    others: dict[str, Any],
    parameters: int | None,
    n_bytes: int | None,
    stock_servers: bool | None,
    mixed_batches: bool | None,
) -> Suggestion | None:
    """What the evidence suggests for the options of a command; None unless a budget is given.

    `run` are the given fields of TrainSettings, `others` all options that describe an adapter, of which --frames is the
    only one that a suggestion takes. Raises ConfigError if they do not fit --method auto, and as `qpeft.suggest`.
    """
    method = run.get("method")
    if parameters is None and n_bytes is None:
        if method == AUTO:
            raise ConfigError("method auto needs a budget: --parameters N or --bytes N")
        if stock_servers or mixed_batches:
            option = "--stock-servers" if stock_servers else "--mixed-batches"
            raise ConfigError(f"{option} is for the choice of a method: add --parameters N or --bytes N")
        return None
    if method not in (None, AUTO):
        raise ConfigError(
            f"--parameters and --bytes choose the method; use --method auto instead of --method {method}, or leave out "
            "the budget"
        )
    own = [
        *(name for name in ("host",) if name in run),
        *(name for name, value in others.items() if value not in (None, []) and name != "frames"),
    ]
    if own:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in own)
        raise ConfigError(f"method auto chooses the adapter with all its settings; leave out {names}")
    if run.get("task", TrainSettings.task) != TrainSettings.task:
        raise ConfigError(
            f"there is evidence for task {TrainSettings.task} only, not for {run['task']}; name a --method instead"
        )
    with working("Choosing the method"):
        import qpeft

        return qpeft.suggest(
            base_model(model),
            parameters=parameters,
            bytes=n_bytes,
            frames=others.get("frames"),
            stock_servers=bool(stock_servers),
            mixed_batches=bool(mixed_batches),
            trust_remote_code=run.get("trust_remote_code", False),
        )


def trained_settings(found: Suggestion, run: dict[str, Any]) -> dict[str, Any]:
    """The settings of the suggested adapter for the run with these options.

    Raises ConfigError if it needs a frame file and none is given.
    """
    if found.needs_frame_file and "frames" not in found.settings:
        modules = sorted({name.rpartition(".")[2] for name in found.plan.target_modules})
        given = {name: value for name, value in run.items() if name in SETTINGS and value is not True}
        options = {**given, "target_modules": ",".join(modules), "out": "frames.safetensors"}
        words = (word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value)))
        made = shlex.join(["qpeft", "frames", *words])
        raise ConfigError(
            f"{found.label} has so few bytes only with a frame file: write one, {made}, and add --frames "
            "frames.safetensors; or give a budget in --parameters"
        )
    return found.settings


def announce(found: Suggestion, lr: float) -> None:
    """The suggestion on standard error, before a training run with this learning rate."""
    say("Suggested:", f"{found.label}: {as_options(found.method, found.settings)} --lr {lr:g}", style="bold")
    reached = f"{found.share:.0%} of the gain of {found.reference} in {found.study}"
    say("Evidence:", f"{reached}; qpeft plan with the same budget shows all of it", style="bold")
    for note in found.notes:
        say("Note:", note, style="bold")


def show(console: Console, found: Suggestion) -> None:
    """The suggestion and its evidence."""
    console.print(f"Suggested: {found.label}\n", style="bold", soft_wrap=True)
    print_code(console, f"{as_options(found.method, found.settings)} --lr {found.learning_rate:g}")
    lines = [
        (
            one.base,
            one.data,
            count(one.trainable),
            f"{one.loss:.3f}" + ("" if one.low is None else f" [{one.low:.3f}, {one.high:.3f}]"),
            f"{one.share:.0%}",
        )
        for one in found.evidence
    ]
    columns = ("base", "text", "trainable", "test loss [95 %]", "share")
    console.print()
    share = f"Share of the gain of {found.reference}, mean {found.share:.0%}"
    console.print(table(columns, lines, f"Evidence: {found.study}, {found.evidence[0].seeds} seeds. {share}"))
    shown = [
        (
            "or",
            f"{one.label} ({count(one.trainable)} parameters, {size(one.stored_bytes)}"
            f"{' and a frame file' * one.needs_frame_file}, {one.share:.0%} of the gain)",
        )
        for one in found.alternatives[:_MOST_SHOWN]
    ]
    if more := len(found.alternatives) - len(shown):
        shown.append(("or", f"{more} {'others' if more > 1 else 'other'}"))
    if shown:
        cases = f"at least one of {len(found.evidence)} cases"
        console.print(f"\nOthers within the budget, each not shown to be worse in {cases}:", soft_wrap=True)
        console.print(remarks(shown))
    labels = " ".join([found.label, *(one.label for one in found.alternatives[:_MOST_SHOWN])])
    if legend := [f"{word.rstrip('=')}: {meaning}" for word, meaning in _LEGEND.items() if word in labels]:
        console.print(f"\n{'; '.join(legend)}", style="dim", soft_wrap=True)
    if found.notes:
        console.print()
        console.print(remarks([("note", note) for note in found.notes]))
    console.print()
