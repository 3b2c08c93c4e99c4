"""`qpeft evaluate` for a classification: the accuracy of a base model, and of an adapter on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpeft.cli.adapters import virtual_tokens
from qpeft.cli.console import count, scored, table
from qpeft.errors import InputError
from qpeft.training.settings import TrainSettings

if TYPE_CHECKING:
    from rich.console import Console

    from qpeft.training.tasks.record import TaskRecord

Scores = dict[str, dict[str, float] | None]


def score_classes(settings: TrainSettings, folder: Path | None, record: TaskRecord | None) -> Scores:
    """The scores of `base` (None if it has no head for the classes), and of `adapted` where there is an adapter."""
    import qpeft
    from qpeft.training.tasks import task_class

    labels = _own_classes(settings) if folder is None else _trained_classes(folder, record)
    reserved = 0 if folder is None else virtual_tokens(folder)
    made: Any = task_class(settings.task)
    task = made(settings, reserved, labels)
    model = task.load_base()
    scores: Scores = {"base": None if task.has_new_head else _measure(task, model, "base")}
    if folder is not None:
        scores["adapted"] = _measure(task, qpeft.load(model, folder), "adapted")
    return scores


def show_classes(console: Console, scores: Scores) -> None:
    """Print a table of the scores."""
    columns = ["", "accuracy", "95 % interval", "nats per example"]
    console.print(table(columns, [[who, *_metrics(score)] for who, score in scores.items()]))
    n_examples = next(int(score["n_examples"]) for score in scores.values() if score)
    console.print(f"{count(n_examples)} examples")
    if scores["base"] is None:
        console.print("The base has no head for these classes; the adapter folder holds the trained one.")


def _metrics(score: dict[str, float] | None) -> list[str]:
    if score is None:
        return ["n/a", "", ""]
    interval = f"{score['accuracy_low']:.1%} to {score['accuracy_high']:.1%}"
    return [f"{score['accuracy']:.1%}", interval, f"{score['loss']:.4f}"]


def _trained_classes(folder: Path, record: TaskRecord | None) -> tuple[str, ...]:
    if record is None:
        raise InputError(f"{folder} has no task.json with its classes; give the run folder of a classification")
    return record.labels


def _own_classes(settings: TrainSettings) -> tuple[str, ...]:
    from qpeft.training import base_model as base
    from qpeft.training.tasks.classifier import class_names, is_classifier

    config = base.load_config(settings.model)
    if not is_classifier(config):
        raise InputError(f"{settings.model} has no classification head to score; pass --adapter with a trained run")
    return class_names(config)


def _measure(task: Any, model: Any, who: str) -> dict[str, float]:
    """All metrics of `model`; `who` is its name for the progress shown."""
    import torch

    from qpeft.training.accuracy import ClassificationScore, evaluate_classifier

    model.to("cuda" if torch.cuda.is_available() else "cpu")
    size = task.settings.batch_size
    batches = scored(task.evaluation, size, who)
    parts = (evaluate_classifier(model, batch, task.collate, size) for batch in batches)
    return sum(parts, ClassificationScore(0.0, 0, 0)).to_dict()
