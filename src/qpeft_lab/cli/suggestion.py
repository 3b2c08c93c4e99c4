"""The options with which `plan` and `train` choose a method: what an adapter may cost, and what serves it."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qpeft.checks import option
from qpeft.errors import ConfigError
from qpeft_lab.cli.adapters import base_model
from qpeft_lab.cli.console import line, remarks, say, size, table, working
from qpeft_lab.cli.frames import SETTINGS
from qpeft_lab.cli.method import as_options
from qpeft_lab.cli.options import flag
from qpeft_lab.settings import RunSettings
from qpeft_lab.training.methods import build_config

if TYPE_CHECKING:
    from peft import PeftConfig
    from rich.console import Console

    from qpeft.methods.suggest import Suggestion

AUTO = "auto"


@dataclass(kw_only=True)
class Budget:
    """What an adapter may cost, with which the method is chosen; and what must load its export."""

    parameters: int | None = option(
        None, "With --method auto: the best measured method with at most so many trainable parameters."
    )
    bytes: int | None = option(
        None,
        "The same with at most so many bytes of stored tensors, without the header of their file, the adapter's config "
        "and a frame file.",
    )
    server: str | None = option(
        None, "Refuse an adapter whose export this server does not load; a budget chooses another.", choices=("vllm",)
    )
    mixed_batches: bool = option(
        False,
        "With a budget: only adapters that `qpeft.AdapterPool` serves in one batch with others of their kind.",
        panel="Serving",
    )


def suggested(model: str, run: Mapping[str, Any], others: Mapping[str, Any], budget: Budget) -> Suggestion | None:
    """What the evidence suggests for the options of a command; None unless a budget is given.

    `run` are the given fields of RunSettings, `others` all options that describe an adapter, of which --frames is the
    only one that a suggestion takes. Raises ConfigError if they do not fit --method auto, and as `qpeft.suggest`.
    """
    method, usual = run.get("method"), RunSettings.task
    chosen = [name for name in ("host",) if name in run] + [name for name in others if name != "frames"]
    if budget.parameters is None and budget.bytes is None:
        if method == AUTO:
            raise ConfigError("method auto needs a budget: --parameters N or --bytes N")
        if budget.mixed_batches:
            raise ConfigError("--mixed-batches needs a budget: --parameters N or --bytes N")
        return None
    if method not in (None, AUTO):
        raise ConfigError(
            f"--parameters and --bytes choose the method; use --method auto instead of --method {method}, or leave out "
            "the budget"
        )
    if chosen:
        raise ConfigError(
            f"method auto chooses the adapter with all its settings; leave out {', '.join(map(flag, chosen))}"
        )
    if run.get("task", usual) != usual:
        raise ConfigError(f"there is evidence for task {usual} only, not for {run['task']}; name a --method instead")
    with working("Choosing the method"):
        import qpeft
        from qpeft_lab.stock_servers import refusals

        def refuses(config: PeftConfig) -> str | None:
            return next(iter(refusals(config)), None) if budget.server else None

        found = qpeft.suggest(
            base_model(model),
            parameters=budget.parameters,
            bytes=budget.bytes,
            frames=others.get("frames"),
            mixed_batches=budget.mixed_batches,
            refuses=refuses,
            trust_remote_code=run.get("trust_remote_code", False),
        )
        return replace(found, notes=[*found.notes, *refusals(found.config)])


def trained_settings(found: Suggestion, run: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the suggested adapter for the run with these options.

    Raises ConfigError if it needs a frame file and none is given.
    """
    if found.needs_frame_file and "frames" not in found.settings:
        modules = sorted({name.rpartition(".")[2] for name in found.plan.target_modules})
        given = {name: value for name, value in run.items() if name in SETTINGS and value is not True}
        options = {**given, "target_modules": ",".join(modules), "out": "frames.safetensors"}
        words = (word for name, value in options.items() for word in (flag(name), str(value)))
        raise ConfigError(
            f"{found.label} has so few bytes only with a frame file: write one, "
            f"{shlex.join(['qpeft', 'frames', *words])}, and add --frames frames.safetensors; or give a budget in "
            "--parameters"
        )
    return found.settings


def refuse_unserved(settings: RunSettings, server: str | None) -> None:
    """Raise ConfigError, with the reasons, if `server` does not load the export of the run's adapter."""
    if server is None or settings.record.config is None:
        return
    from qpeft_lab.base_model import load_config
    from qpeft_lab.stock_servers import refusals

    model_type = load_config(base_model(settings.model), settings.trust_remote_code).model_type
    if reasons := refusals(build_config(settings), model_type, certain=True):
        raise ConfigError(f"{'; '.join(reasons)}; choose another adapter or base, or leave out --server")


def announce(found: Suggestion, lr: float) -> None:
    """The suggestion on standard error, before a training run with this learning rate."""
    say("Suggested:", f"{found.label}: {as_options(found.method, found.settings)} --lr {lr:g}")
    reached = f"{found.share:.0%} of the gain of {found.reference} in {found.study}"
    say("Evidence:", f"{reached}; qpeft plan with the same budget shows all of it")
    for note in found.notes:
        say("Note:", note)


def show(console: Console, found: Suggestion) -> None:
    """The suggestion and its evidence."""
    line(console, f"Suggested: {found.label}\n", "bold")
    line(console, f"{as_options(found.method, found.settings)} --lr {found.learning_rate:g}", "cyan")
    rows = [
        (
            *(one["base"], one["data"], f"{one['trainable']:,}"),
            *(f"{one['loss']:.3f} [{one['low']:.3f}, {one['high']:.3f}]", f"{one['share']:.0%}"),
        )
        for one in found.evidence
    ]
    share = f"Share of the gain of {found.reference}, mean {found.share:.0%}"
    title = f"Evidence: {found.study}, {found.evidence[0]['seeds']} seeds. {share}"
    console.print("\n", table(("base", "text", "trainable", "test loss [95 %]", "share"), rows, title), sep="")
    shown = [
        (
            "or",
            f"{one.label} ({one.plan.trainable:,} parameters, {size(one.plan.stored_bytes)}"
            f"{' and a frame file' * one.needs_frame_file}, {one.share:.0%} of the gain)",
        )
        for one in found.alternatives
    ]
    if shown:
        console.print("\nThe next best within the budget:", remarks(shown), sep="\n")
    console.print("", remarks([("note", note) for note in found.notes]), sep="\n")
