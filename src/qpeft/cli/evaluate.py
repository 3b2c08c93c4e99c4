"""`qpeft evaluate`: how well a model predicts a text, or its class, with an adapter and without."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qpeft.cli.adapters import OptionalModel, base_named, find_adapter, virtual_tokens
from qpeft.cli.command import command
from qpeft.cli.console import Answer, count, stderr, table
from qpeft.cli.evaluate_classes import score_classes, show_classes
from qpeft.cli.options import Fields
from qpeft.cli.score import perplexity
from qpeft.errors import ConfigError, DataError, InputError
from qpeft.training.settings import TrainSettings

if TYPE_CHECKING:
    from rich.console import Console

    from qpeft.training.tasks.record import TaskRecord

_SETTINGS = (
    *("task", "seq_len", "batch_size", "dtype"),
    *("text_column", "label_column", "prompt_column", "completion_column"),
)


@command
def evaluate(
    data: Annotated[str, typer.Option(metavar="SOURCE", help="Data to score, in the forms that train takes.")],
    run: Annotated[dict[str, Any], Fields(TrainSettings, panel="Options", only=_SETTINGS)],
    model: OptionalModel = None,
    adapter: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Adapter folder (compact or stock) or run folder. Default: the bare base."),
    ] = None,
    padded: Annotated[
        bool,
        typer.Option(
            "--padded-perplexity",
            help="Also the figure of the QPA paper: every line padded to --seq-len, and the pads counted. "
            "Only to compare with the paper.",
        ),
    ] = False,
) -> Answer:
    """Score data, for the base and with an adapter: a text by its perplexity, a classification by its accuracy.

    All of a text is scored: perplexity, nats a token, bits a byte. Prompts are read and not scored. The score is the
    same for every batch size.

    The adapter of a classification is scored by its accuracy, with a 95 % interval; so is the base, if it has a head
    for the same classes.

    Examples:

      qpeft evaluate --model gpt2 --data text.txt
      qpeft evaluate --adapter run --data text.txt
      qpeft evaluate --task text-classification --adapter run --data dev.tsv
    """
    folder = None if adapter is None else find_adapter(adapter)
    base_name = base_named(model, folder, "score")
    record = _record(folder, run.get("task"))
    settings = TrainSettings(model=base_name, data=data, out="", **{**run, **({"task": record.task} if record else {})})
    settings.check()
    found = {"model": base_name, "adapter": folder, "data": data}
    if settings.task != "causal-lm":
        if padded:
            raise InputError("--padded-perplexity is a figure of texts that are continued, not of a classification")
        sorted_by_class = score_classes(settings, folder, record)
        answer = {**found, "task": settings.task, **sorted_by_class}
        return Answer(answer, lambda console: show_classes(console, sorted_by_class))
    scores = _scores(settings, folder, padded)
    return Answer({**found, **scores}, lambda console: _show(console, scores))


def _record(folder: Path | None, wanted: str | None) -> TaskRecord | None:
    """What the adapter's folder says of its task. Raises ConfigError if another one is asked for."""
    from qpeft.training.tasks.record import read_record

    record = None if folder is None else read_record(folder)
    if record is not None and wanted not in (None, record.task):
        raise ConfigError(f"{folder} was trained for task {record.task}, not {wanted}; leave --task out")
    return record


def _scores(settings: TrainSettings, folder: Path | None, padded: bool) -> dict[str, dict[str, float]]:
    """`base`, and `adapted` where there is an adapter -> every figure."""
    import qpeft
    from qpeft.training import base_model as base
    from qpeft.training.sources import Columns, load_examples

    columns = Columns(settings.text_column, settings.prompt_column, settings.completion_column)
    tokenizer = base.load_tokenizer(settings.model)
    reserved = 0 if folder is None else virtual_tokens(folder)
    seq_len = base.block_length(settings.seq_len, base.load_config(settings.model), reserved)
    ruler = _Ruler(load_examples(settings.data, "validation", columns), seq_len, settings.batch_size, tokenizer, padded)
    model: Any = base.load_model(settings.model, settings.dtype)
    scores = {"base": ruler.measure(model, "base")}
    if folder is not None:
        scores["adapted"] = ruler.measure(qpeft.load(model, folder), "adapted")
    return scores


class _Ruler:
    """One text, cut into blocks once, to measure several models with."""

    def __init__(self, rows: list[dict[str, Any]], seq_len: int, batch_size: int, tokenizer: Any, padded: bool):
        from qpeft.training.blocks import cut

        self._blocks = cut(rows, seq_len, tokenizer)
        if not self._blocks:
            raise DataError(f"the data has no token to score within seq_len={seq_len}; give more, or raise seq_len")
        if padded and "text" not in rows[0]:
            raise InputError("--padded-perplexity pads the lines of a text; this data has prompts or messages")
        self._lines = [line for row in rows for line in row["text"].splitlines()] if padded else []
        self._seq_len, self._batch_size, self._tokenizer = seq_len, batch_size, tokenizer

    def measure(self, model: Any, who: str) -> dict[str, float]:
        """Every figure, with the time left shown meanwhile."""
        import torch
        from rich.progress import track

        from qpeft.training.metrics import LanguageModelScore, evaluate_language_model, padded_perplexity

        model.to("cuda" if torch.cuda.is_available() else "cpu")
        console, size = stderr(), self._batch_size
        batches = [self._blocks[start : start + size] for start in range(0, len(self._blocks), size)]
        shown = track(batches, f"Scoring {who}", console=console, disable=not console.is_terminal, transient=True)
        total = sum((evaluate_language_model(model, batch, size) for batch in shown), LanguageModelScore(0.0, 0, 0))
        figures = total.to_dict()
        if self._lines:
            figures["padded_perplexity"] = padded_perplexity(model, self._lines, self._tokenizer, self._seq_len, size)
        return figures


def _show(console: Console, scores: dict[str, dict[str, float]]) -> None:
    is_padded = "padded_perplexity" in scores["base"]
    columns = ["", "perplexity", "nats a token", "bits a byte", *(["padded perplexity"] if is_padded else [])]
    console.print(table(columns, [[who, *_figures(score)] for who, score in scores.items()]))
    console.print(f"{count(int(scores['base']['n_tokens']))} tokens of {count(int(scores['base']['n_bytes']))} bytes")
    if is_padded:
        console.print("Padded perplexity is the QPA paper's: pads are in the loss, so it says little about the text.")


def _figures(score: dict[str, float]) -> list[str]:
    padded = [f"{score['padded_perplexity']:.4f}"] if "padded_perplexity" in score else []
    return [perplexity(score), f"{score['loss']:.4f}", f"{score['bits_per_byte']:.4f}", *padded]
