"""`qpeft plan`: what a method costs on a base model, before any work."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from qpeft.errors import ConfigError
from qpeft_lab.cli.command import command
from qpeft_lab.cli.console import Answer, facts, listed, stderr
from qpeft_lab.cli.method import BackendOptions, MethodOptions
from qpeft_lab.cli.options import Fields
from qpeft_lab.cli.suggestion import Budget, settled, show_suggestion
from qpeft_lab.settings import RunSettings

if TYPE_CHECKING:
    from rich.console import Console

_SETTINGS = ("model", "method", "host", "task", "steps", "trust_remote_code")


@command
def plan(
    *,
    run: Annotated[dict[str, Any], Fields(RunSettings, only=_SETTINGS)],
    method: MethodOptions,
    budget: Budget,
    backend: BackendOptions,
) -> Answer:
    """Count the parameters that a method trains, deploys and stores, before any work.

    Only the configuration of the base model is read; its weights are not downloaded. For a
    classification, the new head counts as trainable, with as many classes as the base has. With
    --backend or --shots, the plan also gives the circuits and shots of --steps steps.

    With --parameters or --bytes, the plan is that of the adapter which the published evidence
    suggests for this budget, classical ones included, and shows this evidence.

    Examples:

      qpeft plan --model embedded --method qpa --r 4 --budget 0.5
      qpeft plan --model TinyLlama/TinyLlama-1.1B-Chat-v1.0 --parameters 5000 --server vllm
      qpeft plan --model gpt2 --backend qiskit:aer --shots 4096 --steps 200
    """
    if "steps" in run and not backend:
        raise ConfigError("--steps is for --backend or --shots: add one of them, or leave it out")
    settings, suggestion = settled({**run, "data": "", "out": ""}, method, backend, budget)
    if settings.record.config is None:
        raise ConfigError(f"method {settings.method} has no adapter to count; name another method")
    with stderr().status("Counting"):
        import qpeft
        from qpeft_lab.training.classifier import base_on_meta
        from qpeft_lab.training.methods import build_configs

        if suggestion is None:
            base, head = base_on_meta(settings.model, settings.task, settings.trust_remote_code)
            configs = build_configs(settings, head)
            planned = qpeft.plan(
                base, *configs, steps=settings.n_steps, **settings.backend_settings
            )
        else:
            planned = suggestion.plan
    data = {"model": run["model"], **asdict(planned)}
    kinds = dict.fromkeys(
        name.removesuffix(".weight").rpartition(".")[2] for name in planned.target_modules
    )
    fields = asdict(planned)
    del fields["target_modules"], fields["notes"]  # as texts below
    host = {"host": settings.host} if settings.attaches else {}
    shown = {
        "model": run["model"],
        **host,
        **fields,
        "trainable_share_of_base": f"{planned.trainable / planned.base_parameters:.2g}",
        "trainable_share_of_deployed": (
            f"{planned.trainable / planned.deployed:.3%}" if planned.deployed else None
        ),
        "modules": f"{len(planned.target_modules)}: {', '.join(kinds)}",  # "24: c_attn, c_proj"
        "notes": "; ".join(planned.notes),
    }
    if suggestion is not None:
        data["suggestion"] = {**asdict(suggestion), "learning_rate": suggestion.learning_rate}

    def show(console: Console) -> None:
        if suggestion is not None:
            show_suggestion(console, suggestion)
        console.print(facts(listed(shown)))

    return Answer(data, show)
