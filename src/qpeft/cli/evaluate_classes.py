"""`qpeft evaluate` for a classification: how often a model is right, with an adapter and without."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpeft.cli.adapters import virtual_tokens
from qpeft.cli.console import count, stderr, table
from qpeft.errors import InputError
from qpeft.training.settings import TrainSettings

if TYPE_CHECKING:
    from rich.console import Console

    from qpeft.training.tasks.record import TaskRecord

Scores = dict[str, dict[str, float] | None]


def score_classes(settings: TrainSettings, folder: Path | None, record: TaskRecord | None) -> Scores:
    """`base`, None where the base has no head for the classes, and `adapted` where there is an adapter."""
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
    """A table of the scores."""
    columns = ["", "accuracy", "95 % interval", "nats an example"]
    console.print(table(columns, [[who, *_figures(score)] for who, score in scores.items()]))
    n_examples = next(int(score["n_examples"]) for score in scores.values() if score)
    console.print(f"{count(n_examples)} examples")
    if scores["base"] is None:
        console.print("The base has no head for these classes; the adapter's folder holds the one that was trained.")


def _figures(score: dict[str, float] | None) -> list[str]:
    if score is None:
        return ["n/a", "", ""]
    interval = f"{score['accuracy_low']:.1%} to {score['accuracy_high']:.1%}"
    return [f"{score['accuracy']:.1%}", interval, f"{score['loss']:.4f}"]


def _trained_classes(folder: Path, record: TaskRecord | None) -> tuple[str, ...]:
    if record is None:
        raise InputError(f"{folder} has no task.json with its classes; give a folder that a classification wrote")
    return record.labels


def _own_classes(settings: TrainSettings) -> tuple[str, ...]:
    from qpeft.training import base_model as base
    from qpeft.training.tasks.classifier import class_names, is_classifier

    config = base.load_config(settings.model)
    if not is_classifier(config):
        raise InputError(f"{settings.model} has no classification head to score; give --adapter, a trained run")
    return class_names(config)


def _measure(task: Any, model: Any, who: str) -> dict[str, float]:
    """Every figure, with the time left shown meanwhile."""
    import torch
    from rich.progress import track

    from qpeft.training.accuracy import ClassificationScore, evaluate_classifier

    model.to("cuda" if torch.cuda.is_available() else "cpu")
    console, size = stderr(), task.settings.batch_size
    batches = [task.evaluation[start : start + size] for start in range(0, len(task.evaluation), size)]
    shown = track(batches, f"Scoring {who}", console=console, disable=not console.is_terminal, transient=True)
    parts = (evaluate_classifier(model, batch, task.collate, size) for batch in shown)
    return sum(parts, ClassificationScore(0.0, 0, 0)).to_dict()
