"""`qpeft plan`: what a method will cost on a base model, before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from qpeft.cli.adapters import ModelOption, base_model
from qpeft.cli.command import command
from qpeft.cli.console import Answer, count, facts, remarks, size, working
from qpeft.cli.method import AdapterOptions, GeneratorOptions, PresetOption, method_settings
from qpeft.cli.options import Fields
from qpeft.errors import ConfigError
from qpeft.training.settings import TrainSettings

if TYPE_CHECKING:
    from rich.console import Console

    from qpeft.planning import Plan


@command
def plan(
    model: ModelOption,
    run: Annotated[dict[str, Any], Fields(TrainSettings, panel="Options", only=("method",))],
    adapter: AdapterOptions,
    generator: GeneratorOptions,
    preset: PresetOption = None,
) -> Answer:
    """Count what a method will train, deploy and store, before any work.

    The model's configuration is enough: no weights are read, and a hub model's are not downloaded.

    Examples:

      qpeft plan --model embedded --method qpa --r 4 --budget 0.5
      qpeft plan --model gpt2 --preset official
      qpeft plan --model gpt2 --method lora --r 4 --target-modules c_attn
    """
    method = run.get("method", TrainSettings.method)
    if method == "full":
        raise ConfigError("method full adds nothing to count: it trains every number of the base; name another method")
    with working("Counting"):
        found = _plan(model, method, method_settings(method, preset, adapter, generator))
    return Answer({"model": model, **found.to_dict()}, lambda console: _show(console, model, method, found))


def _plan(model: str, method: str, settings: dict[str, Any]) -> Plan:
    import qpeft
    from qpeft.training.methods import build_config

    config = build_config(TrainSettings(model=model, data="", out="", method=method, method_settings=settings))
    return qpeft.plan(base_model(model), config)


def _show(console: Console, model: str, method: str, found: Plan) -> None:
    console.print(f"{method} on {model}, a base of {count(found.base_parameters)} numbers\n", style="bold")
    console.print(facts([*_sizes(found), *_circuit(found)]))
    modules = [("modules", _kinds(found.target_modules))] if found.target_modules else []
    if lines := [*modules, *(("note", note) for note in found.notes)]:
        console.print()
        console.print(remarks(lines))


def _sizes(found: Plan) -> list[tuple[str, str, str]]:
    is_generated = found.n_qubits is not None
    parts = [(f"  {name}", count(n), "") for name, n in found.trainable_parts.items() if n]
    return [
        ("trainable", count(found.trainable), f"{found.trainable / found.base_parameters:.3%} of the base"),
        *(parts if len(parts) > 1 else []),
        ("deployed", count(found.deployed), "numbers of the adapter at inference"),
        ("saved folder", size(found.stored_bytes), "needs qpeft" if is_generated else "loads with plain PEFT"),
        *([("exported folder", size(found.exported_bytes), "loads with plain PEFT")] if is_generated else []),
    ]


def _circuit(found: Plan) -> list[tuple[str, str, str]]:
    if found.n_qubits is None:
        return []
    return [
        ("qubits", str(found.n_qubits), ""),
        ("chunks", count(found.n_chunks or 0), f"of {count(found.chunk_size or 0)} numbers each"),
        ("rank bound", count(found.rank_bound or 0), "of the matrix of chunks, whatever is learned"),
        ("hidden widths", ",".join(map(str, found.hidden or ())), ""),
    ]


def _kinds(names: list[str]) -> str:
    """`24: c_attn, c_proj` for two kinds of modules in twelve layers."""
    kinds = dict.fromkeys(name.rpartition(".")[2] for name in names)
    return f"{len(names)}: {', '.join(kinds)}"
