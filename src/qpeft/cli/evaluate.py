"""`qpeft evaluate`: the score of a base model, and of an adapter on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qpeft.cli.adapters import MethodFile, OptionalModel, base_named, find_adapter, use_method, virtual_tokens
from qpeft.cli.command import command
from qpeft.cli.console import Answer, count, scored, table
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
    data: Annotated[str, typer.Option(metavar="SOURCE", help="Data to score, in the same formats as for train.")],
    run: Annotated[dict[str, Any], Fields(TrainSettings, panel="Options", only=_SETTINGS)],
    model: OptionalModel = None,
    adapter: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Run folder, or adapter folder (compact or stock). Default: the base model alone."
        ),
    ] = None,
    method: MethodFile = None,
    padded: Annotated[
        bool,
        typer.Option(
            "--padded-perplexity",
            metavar="",
            help="Also give the perplexity of the QPA paper, which pads every line to --seq-len and scores the "
            "padding. Use it only to compare with the paper.",
        ),
    ] = False,
) -> Answer:
    """Score a base model, and an adapter on it: perplexity on texts, or accuracy on a classification.

    Texts are scored as a whole; prompts are not scored. The score does not depend on the batch size.

    The accuracy is given with its 95 % confidence interval. The base alone is scored if it has a head for the same
    classes.

    Examples:

      qpeft evaluate --model gpt2 --data text.txt
      qpeft evaluate --adapter run --data text.txt
      qpeft evaluate --adapter run --data dev.tsv --task text-classification
    """
    use_method(method)
    folder = None if adapter is None else find_adapter(adapter)
    base_name = base_named(model, folder, "score")
    record = _record(folder, run.get("task"))
    settings = TrainSettings(model=base_name, data=data, out="", **{**run, **({"task": record.task} if record else {})})
    settings.check()
    found = {"model": base_name, "adapter": folder, "data": data}
    if settings.task != "causal-lm":
        if padded:
            raise InputError("--padded-perplexity is for task causal-lm, not for a classification; leave it out")
        by_class = score_classes(settings, folder, record)
        answer = {**found, "task": settings.task, **by_class}
        return Answer(answer, lambda console: show_classes(console, by_class))
    scores = _scores(settings, folder, padded)
    return Answer({**found, **scores}, lambda console: _show(console, scores))


def _record(folder: Path | None, wanted: str | None) -> TaskRecord | None:
    """The task record in the adapter folder. Raises ConfigError if `wanted` is another task."""
    from qpeft.training.tasks.record import read_record

    record = None if folder is None else read_record(folder)
    if record is not None and wanted not in (None, record.task):
        raise ConfigError(f"{folder} was trained for task {record.task}, not {wanted}; leave out --task")
    return record


def _scores(settings: TrainSettings, folder: Path | None, padded: bool) -> dict[str, dict[str, float]]:
    """The scores of `base`, and of `adapted` where there is an adapter."""
    import qpeft
    from qpeft.training import base_model as base
    from qpeft.training.sources import Columns, load_examples

    columns = Columns(settings.text_column, settings.prompt_column, settings.completion_column)
    tokenizer = base.load_tokenizer(settings.model)
    reserved = 0 if folder is None else virtual_tokens(folder)
    seq_len = base.block_length(settings.seq_len, base.load_config(settings.model), reserved)
    text = _Text(load_examples(settings.data, "validation", columns), seq_len, settings.batch_size, tokenizer, padded)
    model: Any = base.load_model(settings.model, settings.dtype)
    scores = {"base": text.score(model, "base")}
    if folder is not None:
        scores["adapted"] = text.score(qpeft.load(model, folder), "adapted")
    return scores


class _Text:
    """A text, cut into blocks once, to score several models on."""

    def __init__(self, rows: list[dict[str, Any]], seq_len: int, batch_size: int, tokenizer: Any, padded: bool):
        from qpeft.training.blocks import cut

        self._blocks = cut(rows, seq_len, tokenizer)
        if not self._blocks:
            raise DataError(f"the data has no token to score within seq_len={seq_len}; give more data or raise seq_len")
        if padded and "text" not in rows[0]:
            raise InputError("--padded-perplexity is for lines of text; this data has prompts or messages")
        self._lines = [line for row in rows for line in row["text"].splitlines()] if padded else []
        self._seq_len, self._batch_size, self._tokenizer = seq_len, batch_size, tokenizer

    def score(self, model: Any, who: str) -> dict[str, float]:
        """All metrics of `model`; `who` is its name for the progress shown."""
        import torch

        from qpeft.training.metrics import LanguageModelScore, evaluate_language_model, padded_perplexity

        model.to("cuda" if torch.cuda.is_available() else "cpu")
        size = self._batch_size
        parts = (evaluate_language_model(model, batch, size) for batch in scored(self._blocks, size, who))
        metrics = sum(parts, LanguageModelScore(0.0, 0, 0)).to_dict()
        if self._lines:
            metrics["padded_perplexity"] = padded_perplexity(model, self._lines, self._tokenizer, self._seq_len, size)
        return metrics


def _show(console: Console, scores: dict[str, dict[str, float]]) -> None:
    is_padded = "padded_perplexity" in scores["base"]
    columns = ["", "perplexity", "nats per token", "bits per byte", *(["padded perplexity"] if is_padded else [])]
    console.print(table(columns, [[who, *_metrics(score)] for who, score in scores.items()]))
    console.print(f"{count(int(scores['base']['n_tokens']))} tokens, {count(int(scores['base']['n_bytes']))} bytes")
    if is_padded:
        console.print("The padded perplexity scores the padding too; compare it with the QPA paper only.")


def _metrics(score: dict[str, float]) -> list[str]:
    padded = [f"{score['padded_perplexity']:.4f}"] if "padded_perplexity" in score else []
    return [perplexity(score), f"{score['loss']:.4f}", f"{score['bits_per_byte']:.4f}", *padded]
