"""`qpeft train`: fine-tune in a run folder, which resumes after any interruption."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from qpeft.cli.adapters import base_model
from qpeft.cli.bar import TrainingBar
from qpeft.cli.command import command
from qpeft.cli.console import Answer, count, facts, print_code, size
from qpeft.cli.method import AdapterOptions, BackendOptions, GeneratorOptions, PresetOption, SetOption, method_settings
from qpeft.cli.options import Fields
from qpeft.cli.suggestion import (
    BytesOption,
    MixedBatchesOption,
    ParametersOption,
    StockServersOption,
    announce,
    suggested,
    trained_settings,
)
from qpeft.methods import Trains
from qpeft.training.settings import TrainSettings

if TYPE_CHECKING:
    from rich.console import Console

    from qpeft.training.result import TrainResult


@command
def train(
    run: Annotated[
        dict[str, Any], Fields(TrainSettings, panel="Options", leave_out=("method_settings", "backend_settings"))
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
) -> Answer:
    """Fine-tune a model. Run the same command again to resume an interrupted run.

    The run folder holds the compact adapter, the exported adapter that loads with plain PEFT, all losses and scores
    in metrics.jsonl, and a model card.

    Text classification reads rows with a text and a label; a .tsv file without a header has the text in its first
    column and the label in its second. Image classification reads a folder with one sub-folder for each class, or an
    .npz file with the arrays images and labels. Both report the accuracy with its 95 % confidence interval.

    Examples:

      qpeft train --model embedded --data numpy-docs --steps 70 --out run
      qpeft train --model gpt2 --data text.txt --out run
      qpeft train --model gpt2 --data text.txt --method lora --r 4 --out run
      qpeft train --model gpt2 --data text.txt --method quantum_peft --out run
      qpeft train --model gpt2 --data text.txt --host prefix --out run
      qpeft train --model gpt2 --data text.txt --method auto --parameters 5000 --out run
      qpeft train --model gpt2 --data text.txt --shots 4096 --out run
      qpeft train --model gpt2 --data text.txt --ansatz mine.py:ring --out run
      qpeft train --model gpt2 --data text.txt --feature-source qnn_frozen --out run
      qpeft train --model gpt2 --data chats.jsonl --budget 0.25 --out run
      qpeft train --model roberta-base --data reviews.tsv --out run \\
          --task text-classification
      qpeft train --model google/vit-base-patch16-224 --data photos --out run \\
          --task image-classification
    """
    described = {**adapter, **generator, **backend, "preset": preset, "set": others}
    suggestion = suggested(run["model"], run, described, parameters, bytes, stock_servers, mixed_batches)
    if suggestion is not None:
        run = {"lr": suggestion.learning_rate, **run, "method": suggestion.method}
    chosen = suggestion and trained_settings(suggestion, run)
    method = run.get("method", TrainSettings.method)
    run = {**run, "model": base_model(run["model"])}
    settings = TrainSettings(**run, backend_settings=backend)
    settings.method_settings = chosen or method_settings(settings, preset, adapter, generator, others)
    settings.check()
    if suggestion is not None:
        announce(suggestion, settings.lr)
    from qpeft.training import train as fine_tune

    with TrainingBar([method], settings.steps) as bar:
        result = fine_tune(settings, bar.run(method))
    trained = settings.record.trains
    data = result.to_dict()
    if suggestion is not None:
        data["suggestion"] = suggestion.to_dict()
    return Answer(data, lambda console: _show(console, result, trained))


def _show(console: Console, result: TrainResult, trained: Trains = Trains.ADAPTER) -> None:
    if result.already_finished:
        console.print(f"{result.out} is finished; nothing was trained. Its result:\n", style="bold", soft_wrap=True)
    console.print(facts(_rows(result)))
    if result.after.loss > result.before.loss:
        console.print(f"\nNote: {_higher_loss(result)}; try a lower --lr or other data", soft_wrap=True)
    if trained is Trains.MODEL:
        console.print(f"\nThe model and its tokenizer or image processor: {result.exported}", soft_wrap=True)
        return
    from qpeft.training.outputs import loading_code

    loader = "plain PEFT" if result.has_stock_form else "qpeft"
    console.print(f"\n{result.to_load} loads with {loader}:\n", soft_wrap=True)
    print_code(console, loading_code(result, str(result.to_load.resolve())))


def _higher_loss(result: TrainResult) -> str:
    before, after = (score.to_dict().get("accuracy", 0.0) for score in (result.before, result.after))
    what = "the accuracy rose, but the loss" if after > before else "the loss"
    return f"{what} is higher than before training"


def _rows(result: TrainResult) -> list[tuple[str, str, str]]:
    a_step = "" if result.seconds_per_step is None else f"{result.seconds_per_step:.3g} s per step"
    exported = f"exported: {size(result.exported_bytes)}" if result.has_stock_form else "needs qpeft"
    scores = {"before": result.before, "after": result.after}
    head = f" ({count(result.trainable_head)} in the classification head)" if result.trainable_head else ""
    return [
        *((f"{s.headline[0]} {when}", s.headline[1], s.details) for when, s in scores.items()),
        ("trainable", count(result.trainable), f"parameters{head}"),
        ("deployed", count(result.deployed), "parameters at inference, in addition to the base"),
        ("weights file", size(result.stored_bytes or result.exported_bytes), exported),
        *_circuits(result),
        ("time", f"{result.seconds:.1f} s", a_step),
    ]


def _circuits(result: TrainResult) -> list[tuple[str, str, str]]:
    if (used := result.circuits) is None:
        return []
    shots = f", {count(used['shots'])} shots" if used["shots"] else ""
    again = f", {count(used['failures'])} jobs failed and were repeated" if used["failures"] else ""
    where = f"on {used['backend']} in {count(used['jobs'])} jobs{shots}, {used['seconds']:.1f} s{again}"
    return [("circuits", count(used["circuits"]), where)]
