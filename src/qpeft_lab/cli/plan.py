"""`qpeft plan`: what a method costs on a base model, before any work."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from qpeft.checks import option
from qpeft.errors import ConfigError
from qpeft_lab.cli.adapters import base_model
from qpeft_lab.cli.command import command
from qpeft_lab.cli.console import Answer, facts, percent, remarks, size, working
from qpeft_lab.cli.method import BackendOptions, MethodOptions, method_settings
from qpeft_lab.cli.options import Fields
from qpeft_lab.cli.suggestion import Budget, refuse_unserved, show, suggested
from qpeft_lab.data.task_types import TASKS
from qpeft_lab.method_records import lab_record
from qpeft_lab.settings import RunSettings

if TYPE_CHECKING:
    from rich.console import Console

    from qpeft.methods.plan import Plan
    from qpeft.methods.suggest import Suggestion

_SETTINGS = ("model", "method", "host", "task", "steps", "trust_remote_code")


@command
def plan(
    *,
    run: Annotated[dict[str, Any], Fields(RunSettings, only=_SETTINGS)],
    method: MethodOptions,
    budget: Budget,
    backend: BackendOptions,
    num_labels: int | None = option(
        None, "Number of classes. Default: as many as the base has.", at_least=2, at_most=10**6
    ),
) -> Answer:
    """Count the parameters that a method trains, deploys and stores, before any work.

    Only the configuration of the base model is read; its weights are not downloaded. For a classification, the new
    head counts as trainable. With --backend or --shots, the plan also gives the circuits, shots and seconds of --steps
    steps; three small jobs are run to measure the time.

    With --parameters or --bytes, the plan is that of the adapter which the published evidence suggests for this budget,
    classical ones included, and shows this evidence.

    Examples:

      qpeft plan --model embedded --method qpa --r 4 --budget 0.5
      qpeft plan --model TinyLlama/TinyLlama-1.1B-Chat-v1.0 --parameters 5000 --server vllm
      qpeft plan --model gpt2 --method quantum_peft --share type --frame gradient
      qpeft plan --model gpt2 --backend qiskit:aer --shots 4096 --steps 200
      qpeft plan --model roberta-base --task text-classification --num-labels 3
    """
    suggestion = suggested(run["model"], run, {**method, **backend}, budget)
    if suggestion is not None:
        run = {**run, "method": suggestion.method}
    settings = RunSettings(data="", out="", backend_settings=backend, **run)
    settings.method_settings = method_settings(settings, method) if suggestion is None else suggestion.settings
    settings.check()
    if settings.record.config is None:
        raise ConfigError(f"method {settings.method} has no adapter to count; name another method")
    refuse_unserved(settings, budget.server)
    if num_labels is not None and (settings.is_language_model or TASKS[settings.task].is_regression):
        raise ConfigError(f"--num-labels is for a classification; task {settings.task} has no classes. Set --task")
    with working("Counting"):
        found = plan_of(settings, num_labels) if suggestion is None else suggestion.plan
    data = {"model": settings.model, **asdict(found)}
    if suggestion is not None:
        data["suggestion"] = asdict(suggestion)
    return Answer(data, lambda console: _show(console, settings, found, suggestion))


def plan_of(settings: RunSettings, num_labels: int | None = None) -> Plan:
    """What the method of a run costs on its base model."""
    import qpeft
    from qpeft_lab.training.methods import build_config, build_generator, train_in_full

    config, name = build_config(settings), base_model(settings.model)
    circuits = {**settings.backend_settings, "steps": settings.n_steps}
    trusted = settings.trust_remote_code
    if settings.is_language_model:
        return qpeft.plan(name, config, build_generator(settings), **circuits, trust_remote_code=trusted)
    from qpeft_lab.training.classifier import classifier_on_meta

    n_outputs = 1 if TASKS[settings.task].is_regression else num_labels
    base = classifier_on_meta(name, settings.task, n_outputs, trusted)
    train_in_full(config, base.trained)
    return qpeft.plan(base.model, config, build_generator(settings), **circuits)


def _show(console: Console, settings: RunSettings, found: Plan, suggestion: Suggestion | None) -> None:
    if suggestion is not None:
        show(console, suggestion)
    over = f" over {settings.host}" if settings.attaches else ""
    base = f"{settings.model} ({found.base_parameters:,} parameters)"
    console.print(f"{settings.method}{over} on {base}\n", style="bold")
    console.print(facts([*_sizes(found), *_circuit(found, lab_record(settings.record).circuit_role)]))
    lines = [("note", note) for note in found.notes]
    if names := found.target_modules:
        kinds = dict.fromkeys(name.removesuffix(".weight").rpartition(".")[2] for name in names)  # "24: c_attn, c_proj"
        lines.insert(0, ("modules", f"{len(names)}: {', '.join(kinds)}"))
    if lines:
        console.print("", remarks(lines), sep="\n")


def _sizes(found: Plan) -> list[tuple[Any, ...]]:
    rows: list[tuple[Any, ...]] = [
        ("trainable", found.trainable, f"{percent(found.trainable / found.base_parameters)} of the base")
    ]
    parts = [(f"  {name}", n, "") for name, n in found.trainable_parts.items() if n]
    rows += parts if len(parts) > 1 else []
    rows.append(("deployed", found.deployed, "adapter parameters at inference"))
    if found.trainable < found.deployed:
        rows.append(("  trainable", percent(found.trainable / found.deployed), "of these"))
    stock = "loads with plain PEFT"
    rows.append(("stored bytes", size(found.stored_bytes), "needs qpeft" if found.needs_qpeft else stock))
    if found.needs_qpeft and found.exported_bytes:
        rows.append(("exported weights", size(found.exported_bytes), stock))
    return rows


def _circuit(found: Plan, role: str) -> list[tuple[Any, ...]]:
    """Lines for those that the method has."""
    sizes = found.sizes
    n_circuits = sizes.get("n_circuits") if role or sizes.get("n_circuits") != 1 else None
    n_chunks = sizes.get("n_chunks")
    rows = [
        ("circuits", n_circuits, role),
        ("qubits", sizes.get("n_qubits"), f"in {'the largest' if role else 'each'} circuit" if n_circuits else ""),
        ("chunks", n_chunks, f"of {sizes.get('chunk_size', 0):,} parameters each"),
        ("rank bound", sizes.get("rank_bound"), f"of {'each update' if n_chunks is None else 'the matrix of chunks'}"),
        ("hidden widths", ",".join(map(str, sizes["hidden"])) if "hidden" in sizes else None, ""),
    ]
    if cost := found.circuits:
        each, per_step = cost["shots_per_circuit"], f"{cost['circuits_per_step']:,} in each of {cost['steps']} steps"
        rows += [
            ("circuits to run", cost["circuits"], per_step),
            ("  shots", cost["shots"] if each else None, f"{each or 0:,} of each circuit"),
            ("  on", cost["backend"], f"gradients by {cost['gradient']}, {cost['jobs_per_step']} jobs per step"),
        ]
    return [row for row in rows if row[1] is not None]
