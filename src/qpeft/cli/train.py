"""`qpeft train`: fine-tune in a run folder that can be interrupted at any moment."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from qpeft.cli.adapters import base_model
from qpeft.cli.bar import TrainingBar
from qpeft.cli.command import command
from qpeft.cli.console import Answer, count, facts, print_code, size
from qpeft.cli.method import AdapterOptions, BackendOptions, GeneratorOptions, PresetOption, method_settings
from qpeft.cli.options import Fields
from qpeft.cli.score import headline, loss
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
) -> Answer:
    """Fine-tune a model; the same command again goes on where it stopped.

    The run folder holds the compact adapter, the exported one that loads with plain PEFT, every loss and
    score in metrics.jsonl, and a model card. `--model embedded` is the small base model inside qpeft.

    `--task text-classification` learns the class of each text from rows with a text and a label; of a .tsv file
    without a header, the first column is the text and the second the label. `--task image-classification` learns
    the class of each image from a folder with a sub-folder for each class, or from an .npz with the arrays images
    and labels. Both train a head for the classes whole, beside the adapter (`--method head`: the head alone), and
    report accuracy with its 95 % interval. Without --eval-data every 20th example of each class is held out.

    Examples:

      qpeft train --model embedded --data numpy-docs --r 4 --lr 2e-3 --steps 70 --seq-len 128 --out run
      qpeft train --model gpt2 --data text.txt --out run
      qpeft train --model gpt2 --data text.txt --method quantum_peft --frame gradient --lr 2e-3 --out run
      qpeft train --model gpt2 --data text.txt --backend pennylane:lightning.qubit --shots 4096 --steps 50 --out run
      qpeft train --model gpt2 --data chats.jsonl --budget 0.25 --out run
      qpeft train --model gpt2 --data text.txt --host prefix --num-virtual-tokens 20 --out run
      qpeft train --model gpt2 --data Salesforce/wikitext:wikitext-2-raw-v1 --method lora --r 4 --out run
      qpeft train --task text-classification --model roberta-base --data train.tsv --eval-data dev.tsv --out run
      qpeft train --task image-classification --model google/vit-base-patch16-224-in21k --data photos --out run
    """
    method = run.get("method", TrainSettings.method)
    run = {**run, "model": base_model(run["model"])}
    settings = TrainSettings(**run, backend_settings=backend)
    settings.method_settings = method_settings(settings, preset, adapter, generator)
    settings.check()
    from qpeft.training import train as fine_tune

    with TrainingBar([method], settings.steps) as bar:
        result = fine_tune(settings, bar.run(method))
    return Answer(result.to_dict(), lambda console: _show(console, result))


def _show(console: Console, result: TrainResult) -> None:
    if result.already_finished:
        console.print(f"{result.out} is finished; nothing was done. Its result:\n", style="bold", soft_wrap=True)
    console.print(facts(_rows(result)))
    if result.after.loss > result.before.loss:
        console.print("\nNote: worse than before training; try a lower --lr, or other data.", soft_wrap=True)
    if result.method == "full":
        console.print(f"\nThe model, with what makes its inputs: {result.exported}", soft_wrap=True)
        return
    from qpeft.core.model_card import load_lines
    from qpeft.training.tasks.record import how_to_load

    stock = result.has_stock_form
    folder, loader = (result.exported, "plain PEFT") if stock else (result.adapter, "qpeft")
    console.print(f"\n{folder} loads with {loader}:\n", soft_wrap=True)
    lines = load_lines(result.model, str(folder.resolve()), needs_qpeft=not stock, **how_to_load(folder))
    print_code(console, lines)


def _rows(result: TrainResult) -> list[tuple[str, str, str]]:
    a_step = "" if result.seconds_per_step is None else f"{result.seconds_per_step:.3g} s a step"
    exported = f"exported: {size(result.exported_bytes)}" if result.has_stock_form else "needs qpeft"
    scores = {"before": result.before.to_dict(), "after": result.after.to_dict()}
    shown = [(f"{headline(score)[0]} {when}", headline(score)[1], loss(score)) for when, score in scores.items()]
    head = f", {count(result.trainable_head)} of them the head's" if result.trainable_head else ""
    return [
        *shown,
        ("trainable", count(result.trainable), f"numbers{head}"),
        ("deployed", count(result.deployed), "numbers at inference beside the base"),
        ("stored", size(result.stored_bytes or result.exported_bytes), exported),
        *_circuits(result),
        ("time", f"{result.seconds:.1f} s", a_step),
    ]


def _circuits(result: TrainResult) -> list[tuple[str, str, str]]:
    if (used := result.circuits) is None:
        return []
    shots = f", {count(used['shots'])} shots" if used["shots"] else ""
    again = f", {count(used['failures'])} jobs failed and were sent again" if used["failures"] else ""
    where = f"on {used['backend']} in {count(used['jobs'])} jobs{shots}, {used['seconds']:.1f} s{again}"
    return [("circuits", count(used["circuits"]), where)]
