"""`qpeft plan`: what a method costs on a base model, before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from qpeft.cli.adapters import ModelOption, base_model
from qpeft.cli.command import command
from qpeft.cli.console import Answer, count, duration, facts, percent, remarks, size, working
from qpeft.cli.method import AdapterOptions, BackendOptions, GeneratorOptions, PresetOption, SetOption, method_settings
from qpeft.cli.options import Fields
from qpeft.cli.suggestion import BytesOption, MixedBatchesOption, ParametersOption, StockServersOption, show, suggested
from qpeft.errors import ConfigError
from qpeft.training.settings import TrainSettings
from qpeft.training.task_types import TASKS

if TYPE_CHECKING:
    from rich.console import Console

    from qpeft.compare.suggest import Suggestion
    from qpeft.methods.planning import Plan


@command
def plan(
    model: ModelOption,
    run: Annotated[
        dict[str, Any],
        Fields(TrainSettings, panel="Options", only=("method", "host", "task", "steps", "trust_remote_code")),
    ],
    adapter: AdapterOptions,
    generator: GeneratorOptions,
    backend: BackendOptions,
    preset: PresetOption = None,
    others: SetOption = None,
    parameters: ParametersOption = None,
    bytes: BytesOption = None,
    stock_servers: StockServersOption = None,
    mixed_batches: MixedBatchesOption = None,
    num_labels: Annotated[
        int | None,
        typer.Option(metavar="N", min=2, max=10**6, help="Number of classes. Default: as many as the base has."),
    ] = None,
) -> Answer:
    """Count the parameters that a method trains, deploys and stores, before any work.

    Only the configuration of the base model is read; its weights are not downloaded. For a classification, the new
    head counts as trainable. With --backend or --shots, the plan also gives the circuits, shots and seconds of --steps
    steps; three small jobs are run to measure the time.

    With --parameters or --bytes, the plan is that of the adapter which the published evidence suggests for this budget,
    classical ones included, and shows this evidence.

    Examples:

      qpeft plan --model embedded --method qpa --r 4 --budget 0.5
      qpeft plan --model TinyLlama/TinyLlama-1.1B-Chat-v1.0 --parameters 5000 --stock-servers
      qpeft plan --model gpt2 --preset official
      qpeft plan --model gpt2 --method quantum_peft --share type --frame gradient
      qpeft plan --model gpt2 --method lora --r 4 --target-modules c_attn
      qpeft plan --model gpt2 --host prefix --num-virtual-tokens 20 --budget 0.25
      qpeft plan --model gpt2 --backend qiskit:aer --shots 4096 --steps 200
      qpeft plan --model roberta-base --task text-classification --num-labels 3
    """
    described = {**adapter, **generator, **backend, "preset": preset, "set": others}
    suggestion = suggested(model, run, described, parameters, bytes, stock_servers, mixed_batches)
    if suggestion is not None:
        run = {**run, "method": suggestion.method}
    settings = TrainSettings(model=model, data="", out="", backend_settings=backend, **run)
    chosen = suggestion and suggestion.settings
    settings.method_settings = chosen or method_settings(settings, preset, adapter, generator, others)
    settings.check()
    if settings.record.config is None:
        raise ConfigError(f"method {settings.method} has no adapter to count; name another method")
    if num_labels is not None and (settings.is_language_model or TASKS[settings.task].is_regression):
        raise ConfigError(f"--num-labels is for a classification; task {settings.task} has no classes. Set --task")
    with working("Counting"):
        found = plan_of(settings, num_labels) if suggestion is None else suggestion.plan
    data = {"model": model, **found.to_dict()}
    if suggestion is not None:
        data["suggestion"] = suggestion.to_dict()
    return Answer(data, lambda console: _show(console, settings, found, suggestion))


def plan_of(settings: TrainSettings, num_labels: int | None) -> Plan:
    """What the method of a run costs on its base model."""
    import qpeft
    from qpeft.training.methods import build_config, build_generator, train_in_full

    config, name = build_config(settings), base_model(settings.model)
    circuits = {**settings.backend_settings, "steps": settings.n_steps}
    trusted = settings.trust_remote_code
    if settings.is_language_model:
        return qpeft.plan(name, config, build_generator(settings), **circuits, trust_remote_code=trusted)
    from qpeft.training.tasks.classifier import classifier_on_meta

    n_outputs = 1 if TASKS[settings.task].is_regression else num_labels
    base = classifier_on_meta(name, settings.task, n_outputs, trusted)
    train_in_full(config, base.trained)
    return qpeft.plan(base.model, config, build_generator(settings), **circuits)


def _show(console: Console, settings: TrainSettings, found: Plan, suggestion: Suggestion | None) -> None:
    if suggestion is not None:
        show(console, suggestion)
    over = f" over {settings.host}" if settings.attaches else ""
    base = f"{settings.model} ({count(found.base_parameters)} parameters)"
    console.print(f"{settings.method}{over} on {base}\n", style="bold")
    console.print(facts([*_sizes(found), *_circuit(found, settings.record.circuit_role), *_forecast(found)]))
    lines = [("note", note) for note in found.notes]
    if names := found.target_modules:
        kinds = dict.fromkeys(name.removesuffix(".weight").rpartition(".")[2] for name in names)  # "24: c_attn, c_proj"
        lines.insert(0, ("modules", f"{len(names)}: {', '.join(kinds)}"))
    if lines:
        console.print()
        console.print(remarks(lines))


def _sizes(found: Plan) -> list[tuple[str, str, str]]:
    rows = [("trainable", count(found.trainable), f"{percent(found.trainable / found.base_parameters)} of the base")]
    parts = [(f"  {name}", count(n), "") for name, n in found.trainable_parts.items() if n]
    if len(parts) > 1:
        rows += parts
    if found.acting is not None:
        rows.append(("acting", count(found.acting), "of these can change the adapter"))
    if found.lora_rank_1 is not None:
        rows.append(("LoRA, rank 1", count(found.lora_rank_1), "on the same modules"))
    rows.append(("deployed", count(found.deployed), "adapter parameters at inference"))
    if found.trainable < found.deployed:
        rows.append(("  trainable", percent(found.trainable / found.deployed), "of these"))
    loads = "needs qpeft" if found.needs_qpeft else "loads with plain PEFT"
    rows.append(("stored bytes", size(found.stored_bytes), loads))
    if found.needs_qpeft and found.exported_bytes:
        rows.append(("exported weights", size(found.exported_bytes), "loads with plain PEFT"))
    return rows


def _circuit(found: Plan, role: str) -> list[tuple[str, str, str]]:
    """Lines for those that the method has."""
    n_circuits = found.n_circuits if role or found.n_circuits != 1 else None
    rows = [
        ("circuits", n_circuits, role),
        ("qubits", found.n_qubits, f"in {'the largest' if role else 'each'} circuit" if n_circuits else ""),
        ("chunks", found.n_chunks, f"of {count(found.chunk_size or 0)} parameters each"),
        ("rank bound", found.rank_bound, f"of {'each update' if found.n_chunks is None else 'the matrix of chunks'}"),
    ]
    hidden = [("hidden widths", ",".join(map(str, found.hidden)), "")] if found.hidden else []
    return [(name, count(n), remark) for name, n, remark in rows if n is not None] + hidden


def _forecast(found: Plan) -> list[tuple[str, str, str]]:
    if (cost := found.circuits) is None:
        return []
    each = cost["shots_per_circuit"]
    shots = [("  shots", count(cost["shots"]), f"{count(each)} of each circuit")] if each else []
    return [
        (
            "circuits to run",
            count(cost["circuits"]),
            f"{count(cost['circuits_per_step'])} in each of {cost['steps']} steps",
        ),
        *shots,
        ("  on", cost["backend"], f"gradients by {cost['gradient']}, {cost['jobs_per_step']} jobs per step"),
        (
            "  time",
            duration(cost["seconds"]),
            f"{cost['seconds_per_step']:.3g} s per step for the circuits alone, measured on {cost['sample']} circuits",
        ),
    ]
