"""`qpeft evaluate`: the score of a base model, and of an adapter on it."""

from __future__ import annotations

import warnings
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qpeft.cli.adapters import (
    AnsatzFile,
    FramesFile,
    MethodFile,
    OptionalAdapter,
    OptionalModel,
    base_of,
    find_optional,
    run_of,
    use_files,
    virtual_tokens,
)
from qpeft.cli.answers import BertscoreModel, Generate, Meteor, refuse_without_generate, score_answers
from qpeft.cli.command import command
from qpeft.cli.console import Answer, scored, table
from qpeft.cli.options import Fields
from qpeft.errors import ConfigError, InputError
from qpeft.training.decoding import Decoding
from qpeft.training.glue import find_glue
from qpeft.training.settings import TrainSettings

if TYPE_CHECKING:
    from rich.console import Console

    from qpeft.training.run_folder import RunFolder
    from qpeft.training.tasks import Score
    from qpeft.training.tasks.record import TaskRecord

    Scores = dict[str, tuple[Score, float | None] | None]  # with the padded perplexity

_SETTINGS = (
    *("task", "seq_len", "separator", "batch_size", "dtype", "trust_remote_code"),
    *("text_column", "text_pair_column", "label_column", "prompt_column", "completion_column"),
)
# of the adapter's run, where they are not given
_LENGTHS = ("seq_len", "separator")
_COLUMNS = ("text_column", "text_pair_column", "label_column", "prompt_column", "completion_column")


@command
def evaluate(
    data: Annotated[str, typer.Option(metavar="SOURCE", help="Data to score, in the same formats as for train.")],
    run: Annotated[dict[str, Any], Fields(TrainSettings, panel="Options", only=_SETTINGS)],
    model: OptionalModel = None,
    adapter: OptionalAdapter = None,
    method: MethodFile = None,
    ansatz: AnsatzFile = None,
    frames: FramesFile = None,
    padded: Annotated[
        bool,
        typer.Option(
            "--padded-perplexity",
            metavar="",
            help="Also give the perplexity of the QPA paper, which pads every row, also an empty one, to --seq-len and "
            "scores the padding. The rows of a .txt are its lines. Use it only to compare with the paper.",
        ),
    ] = False,
    generate: Generate = False,
    meteor: Meteor = False,
    bertscore_model: BertscoreModel = None,
    *,
    search: Annotated[dict[str, Any], Fields(Decoding, panel="Generated answers")],
) -> Answer:
    """Score a base model, and an adapter on it: perplexity on texts, accuracy of classes, correlation of numbers.

    Texts are scored as a whole, in blocks of --seq-len tokens, by default those of the adapter's run; prompts are not
    scored. The score does not depend on the batch size. Between two texts is an end-of-text token, or --separator.

    With --generate, answers to the prompts are generated and scored instead.

    The accuracy is given with its 95 % confidence interval, MCC and F1; a regression has Pearson's and Spearman's
    correlation. The base alone is scored if it has a head for the same classes. Columns are by default those of the
    adapter's run.

    Examples:

      qpeft evaluate --model gpt2 --data text.txt
      qpeft evaluate --adapter run --data text.txt
      qpeft evaluate --model gpt2 --seq-len 1024 --separator "" \\
          --data Salesforce/wikitext:wikitext-2-raw-v1:test
      qpeft evaluate --adapter run --data dev.tsv --task text-classification
      qpeft evaluate --adapter run --data e2e.csv --generate --num-beams 10
    """
    from qpeft.training.tasks import task_class

    use_files(method, ansatz)
    folder = find_optional(adapter, frames)
    base_name = base_of(model, folder)
    record = _record(folder, run.get("task"))
    trained = None if folder is None else run_of(folder)
    names = _LENGTHS if find_glue(data) else (*_LENGTHS, *_COLUMNS)
    of_run = {name: value for name, value in asdict(trained.settings()).items() if name in names} if trained else {}
    known = {**of_run, **run, **({"task": record.task} if record else {})}
    settings = TrainSettings(model=base_name, data=data, out="", **known)
    settings.check()
    if trained:
        _warn_of_training_data(trained, settings)
    if generate and padded:
        raise InputError("--generate and --padded-perplexity cannot be combined; set one of them")
    if generate:
        return score_answers(settings, folder, Decoding(**search), meteor, bertscore_model)
    refuse_without_generate({**search, "meteor": meteor, "bertscore_model": bertscore_model})
    rows = _rows(settings) if padded else []
    labels = _classes(settings, folder, record)
    task = task_class(settings.task)(settings, 0 if folder is None else virtual_tokens(folder), labels)
    scores = _score(task, settings.batch_size, folder, rows)
    found = {"model": base_name, "adapter": folder, "data": data, "task": settings.task}
    return Answer({**found, **_metrics(scores)}, lambda console: _show(console, scores))


def _warn_of_training_data(run: RunFolder, settings: TrainSettings) -> None:
    """Warn if the data are those that the run was trained on, or a copy."""
    from qpeft.training.source_names import parse_source
    from qpeft.training.sources import content_hash, has_validation_split
    from qpeft.training.task_types import TASKS
    from qpeft.training.tasks.images import has_validation_images

    data, trained = settings.data, run.settings().data
    are_local = parse_source(data).is_local and Path(trained).expanduser().exists()
    is_copy = are_local and parse_source(data).is_whole and content_hash(trained) == content_hash(data)
    has_validation = has_validation_images if TASKS[settings.task].has_images else has_validation_split
    if (is_copy or trained == data) and not has_validation(data):
        warnings.warn(
            f"{data} are the training data of {run.path}: the metrics of the adapter describe learned examples, except "
            "for the part that the run held out",
            stacklevel=2,
        )


def _record(folder: Path | None, wanted: str | None) -> TaskRecord | None:
    from qpeft.training.tasks.record import read_record

    record = None if folder is None else read_record(folder)
    if record is not None and wanted not in (None, record.task):
        raise ConfigError(f"{folder} was trained for task {record.task}, not {wanted}; leave out --task")
    return record


def _classes(settings: TrainSettings, folder: Path | None, record: TaskRecord | None) -> tuple[str, ...]:
    """The classes of the adapter, or of the base alone; none for a language model."""
    from qpeft.core import base_model as base

    if settings.is_language_model:
        return ()
    if record is not None:
        return record.labels
    if folder is not None:
        raise InputError(f"{folder} has no task.json with its classes; give the run folder of a classification")
    from qpeft.training.task_types import TASKS
    from qpeft.training.tasks.classifier import class_names, is_classifier

    config = base.load_config(settings.model, settings.trust_remote_code)
    if not is_classifier(config):
        raise InputError(f"{settings.model} has no classification head to score; pass --adapter with a trained run")
    names = class_names(config)
    if TASKS[settings.task].is_regression and len(names) != 1:
        raise InputError(f"the head of {settings.model} has {len(names)} outputs, not one number; pass --adapter")
    return names


def _rows(settings: TrainSettings) -> list[str]:
    """Every row of text, also an empty one, for the padded perplexity."""
    from qpeft.training.blocks import columns_of
    from qpeft.training.sources import load_examples

    if not settings.is_language_model:
        raise InputError("--padded-perplexity is for task causal-lm, not for labelled data; leave it out")
    rows = load_examples(settings.data, "validation", columns_of(replace(settings, separator=None, pad_rows=True)))
    if "text" not in rows[0]:
        raise InputError("--padded-perplexity is for rows of text; this data has prompts or messages")
    return [row["text"] for row in rows]


def _score(task: Any, batch_size: int, folder: Path | None, rows: list[str]) -> Scores:
    """The scores of `base` (None if it has no head for the classes), and of `adapted` if there is an adapter."""
    import torch

    import qpeft
    from qpeft.metrics import padded_perplexity

    def score(model: Any, who: str) -> tuple[Score, float | None]:
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        found = task.score(model, watch=partial(scored, who=who))
        padded = padded_perplexity(model, rows, task.tokenizer, task.seq_len, batch_size) if rows else None
        return found, padded

    model = task.load_base()
    scores: Scores = {"base": None if task.has_new_head else score(model, "base")}
    if folder is not None:
        scores["adapted"] = score(qpeft.load(model, folder), "adapted")
    return scores


def _metrics(scores: Scores) -> dict[str, dict[str, Any] | None]:
    return {
        who: found and found[0].to_dict() | ({} if found[1] is None else {"padded_perplexity": found[1]})
        for who, found in scores.items()
    }


def _show(console: Console, scores: Scores) -> None:
    measured = {who: found for who, found in scores.items() if found is not None}
    score, padded = next(iter(measured.values()))
    columns = ["", *score.described(), *([] if padded is None else ["padded perplexity"])]
    rows = [
        [who, *one.described().values(), *([] if padded is None else [f"{padded:.4f}"])]
        for who, (one, padded) in measured.items()
    ]
    console.print(table(columns, rows))
    console.print(score.size)
    if padded is not None:
        console.print("The padded perplexity scores the padding too; compare it with the QPA paper only.")
    if scores["base"] is None:
        console.print("The base has no head for these classes; the adapter folder holds the trained one.")
