"""The options with which `plan` and `train` choose a method: what an adapter may cost, and what
serves it.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from qpeft.checks import option
from qpeft.errors import ConfigError
from qpeft_lab.cli.console import facts, line, size, stderr, table
from qpeft_lab.cli.method import as_options, method_settings
from qpeft_lab.cli.options import flag
from qpeft_lab.data.task_types import TASKS
from qpeft_lab.demo import base_model
from qpeft_lab.settings import RunSettings, settings_from
from qpeft_lab.training.inputs import check_inputs
from qpeft_lab.training.methods import build_configs

if TYPE_CHECKING:
    from rich.console import Console

    from qpeft.methods.suggest import Suggestion

AUTO = "auto"
OF_FRAMES = (  # options of `qpeft frames` that are those of a run
    "model",
    "data",
    "task",
    "seq_len",
    "batch_size",
    "dtype",
    "seed",
    "trust_remote_code",
    "text_column",
    "text_pair_column",
    "label_column",
    "prompt_column",
    "completion_column",
    "chat_template",
)


@dataclass(kw_only=True)
class Budget:
    """What an adapter may cost, with which the method is chosen; and what must load its export."""

    parameters: int | None = option(
        None,
        "With --method auto: the best measured method with at most so many trainable parameters.",
    )
    bytes: int | None = option(
        None,
        "The same with at most so many bytes of stored tensors, without the header of their file,"
        " the adapter's config and a frame file.",
    )
    server: str | None = option(
        None,
        "Refuse an adapter whose export this server does not load; a budget chooses another.",
        choices=("vllm",),
    )
    mixed_batches: bool = option(
        False,
        "With a budget: only adapters that `qpeft.AdapterPool` serves in one batch with others of"
        " their kind.",
        panel="Serving",
    )


def settled(
    run: dict[str, Any], method: dict[str, Any], backend: dict[str, Any], budget: Budget
) -> tuple[RunSettings, Suggestion | None]:
    """The checked settings of a run with these options, and what the evidence suggests if a budget
    is given.

    Raises ConfigError for options that contradict each other, and if `--server` does not load the
    run's export.
    """
    run = {**run, "model": base_model(run["model"])}
    usual = {"method": RunSettings.method} if run.get("method") == AUTO else {}
    draft = settings_from(RunSettings, {**run, **usual, "backend_settings": backend})
    if draft.out:  # as far as it is possible without torch, which takes seconds to import
        check_inputs(draft)
        line(stderr(), "Importing PyTorch and PEFT")
    else:
        draft.check()
    # not of the settings: a study has one for texts, whatever its task
    if TASKS[draft.task].has_images and draft.seq_len is not None:
        raise ConfigError(f"--seq-len does not apply to task {draft.task}; leave it out")
    suggestion = _suggested(run, {**method, **backend}, budget)
    if suggestion is not None:
        run = {"lr": suggestion.learning_rate, **run, "method": suggestion.method}
    settings = settings_from(RunSettings, {**run, "backend_settings": backend})
    settings.method_settings = (
        method_settings(settings, method) if suggestion is None else suggestion.settings
    )
    settings.check()
    if budget.server is not None and (config := build_configs(settings)[0]) is not None:
        from qpeft_lab.base_model import load_config
        from qpeft_lab.stock_servers import refusals

        model_type = load_config(settings.model, settings.trust_remote_code).model_type
        if reasons := refusals(config, model_type, certain=True):
            raise ConfigError(
                f"{'; '.join(reasons)}; choose another adapter or base, or leave out --server"
            )
    return settings, suggestion


def _suggested(
    run: Mapping[str, Any], others: Mapping[str, Any], budget: Budget
) -> Suggestion | None:
    """The adapter for the budget, if there is one. Raises ConfigError for options that do not fit."""
    if budget.parameters is None and budget.bytes is None:
        if run.get("method") == AUTO or budget.mixed_batches:
            raise ConfigError(
                "method auto and --mixed-batches need a budget: --parameters N or --bytes N"
            )
        return None
    usual = {"method": AUTO, "task": RunSettings.task}
    chosen = [
        name for name in ("method", "task", "host") if run.get(name) not in (None, usual.get(name))
    ]
    if chosen := [*chosen, *(name for name in others if name != "frames")]:
        raise ConfigError(
            f"a budget chooses the method, with --method {AUTO}, and all its settings, for task"
            f" {RunSettings.task}; leave out the budget, or {', '.join(map(flag, chosen))}"
        )
    import qpeft
    from qpeft_lab.stock_servers import refusals

    with stderr().status("Choosing the method"):
        suggestion = qpeft.suggest(
            run["model"],
            parameters=budget.parameters,
            bytes=budget.bytes,
            frames=others.get("frames"),
            mixed_batches=budget.mixed_batches,
            refuses=lambda config: next(iter(refusals(config)), None) if budget.server else None,
            trust_remote_code=run.get("trust_remote_code", False),
        )
    return replace(suggestion, notes=[*suggestion.notes, *refusals(suggestion.config)])


def check_frames(suggestion: Suggestion, run: Mapping[str, Any]) -> None:
    """Raise ConfigError if the suggestion for a run with these options needs a frame file and none
    is given.
    """
    if suggestion.needs_frame_file and "frames" not in suggestion.settings:
        modules = sorted({name.rpartition(".")[2] for name in suggestion.plan.target_modules})
        given = {
            name: value for name, value in run.items() if name in OF_FRAMES and value is not True
        }
        options = {**given, "target_modules": ",".join(modules), "out": "frames.safetensors"}
        words = (word for name, value in options.items() for word in (flag(name), str(value)))
        raise ConfigError(
            f"{suggestion.label} has so few bytes only with a frame file: write one,"
            f" {shlex.join(['qpeft', 'frames', *words])}, and add --frames frames.safetensors; or"
            " give a budget in --parameters"
        )


def show_suggestion(console: Console, suggestion: Suggestion) -> None:
    """The suggestion and its evidence."""
    line(console, f"Suggested: {suggestion.label}\n", "bold")
    line(
        console,
        f"{as_options(suggestion.method, suggestion.settings)} --lr {suggestion.learning_rate:g}\n",
        "cyan",
    )
    columns = ("base", "data", "trainable", "seeds", "loss", "low", "high", "share")
    rows = ([result[name] for name in columns] for result in suggestion.results)
    title = (
        "Evidence: the family's best adapter, test loss, 95 % interval, share of the gain of"
        f" {suggestion.reference}"
    )
    console.print(table(columns, rows, title))
    rows = [
        (
            alternative.label,
            alternative.plan.trainable,
            size(alternative.plan.stored_bytes),
            f"{alternative.share:.3g} of {alternative.reference}",
        )
        for alternative in suggestion.alternatives
    ]
    if rows:
        console.print(table(("next best", "trainable", "stored", "share of the gain"), rows))
    console.print(facts([("notes", "; ".join(suggestion.notes))]), "", sep="\n")
