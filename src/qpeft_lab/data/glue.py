"""GLUE's tasks as data sources: `glue/TASK` on the hub, or `glue/TASK:SOURCE` in a local file or
folder.

A name gives the columns, the splits, the kind of task and the classes in GLUE's order.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from qpeft.checks import unknown
from qpeft.errors import DataError

PREFIX = "glue/"
HUB = "nyu-mll/glue"
LABEL = "label"  # column


@dataclass(frozen=True)
class GlueTask:
    """A task of GLUE. Its test labels are withheld, so that its validation data measure what is
    published.
    """

    config: str  # on the hub
    columns: tuple[str, ...]  # of one or two texts
    classes: tuple[str, ...] = ()  # by index; none: a number
    validation: str = "validation"  # split
    metrics: tuple[str, ...] = ("accuracy",)  # of `qpeft_lab.metrics`, as GLUE reports them

    def settings(self) -> dict[str, Any]:
        """The fields of `RunSettings` that the task determines."""
        task = "text-classification" if self.classes else "text-regression"
        second = self.columns[1] if len(self.columns) == 2 else None
        return {
            "task": task,
            "text_column": self.columns[0],
            "text_pair_column": second,
            "label_column": LABEL,
        }

    def split(self, wanted: str) -> str:
        """The name of the split for "train" or "validation"."""
        return self.validation if wanted == "validation" else wanted

    def name_class(self, label: Any, where: str) -> Any:
        """The class of a label, an index or already a name; a number is unchanged.

        Raises DataError, which names `where`, for any other label.
        """
        if not self.classes or label is None or label in self.classes:
            return label
        for index, name in enumerate(self.classes):
            if label in (index, str(index)) and not isinstance(label, bool):
                return name
        known = ", ".join(f"{index} {name}" for index, name in enumerate(self.classes))
        raise DataError(
            f"{where}: the label is {label!r}; GLUE's are {known}, and -1 where they are withheld"
        )


_SENTENCES = ("sentence1", "sentence2")
_ENTAILMENT = ("entailment", "not_entailment")
_MNLI = GlueTask(
    "mnli",
    ("premise", "hypothesis"),
    ("entailment", "neutral", "contradiction"),
    "validation_matched",
)
TASKS = {
    "cola": GlueTask("cola", ("sentence",), ("unacceptable", "acceptable"), metrics=("mcc",)),
    "sst2": GlueTask("sst2", ("sentence",), ("negative", "positive")),
    "mrpc": GlueTask(
        "mrpc", _SENTENCES, ("not_equivalent", "equivalent"), metrics=("f1", "accuracy")
    ),
    "qqp": GlueTask(
        "qqp",
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        metrics=("f1", "accuracy"),
    ),
    "stsb": GlueTask("stsb", _SENTENCES, metrics=("pearson", "spearman")),
    "mnli": _MNLI,
    "mnli_mismatched": replace(_MNLI, validation="validation_mismatched"),
    "qnli": GlueTask("qnli", ("question", "sentence"), _ENTAILMENT),
    "rte": GlueTask("rte", _SENTENCES, _ENTAILMENT),
    "wnli": GlueTask("wnli", _SENTENCES, _ENTAILMENT[::-1]),
}


def find_glue(source: str) -> GlueTask | None:
    """The task of GLUE that a source names, if it names one.

    Raises DataError for `glue/NAME` with an unknown task, unless it is a path.
    """
    if not source.startswith(PREFIX):
        return None
    name = source.removeprefix(PREFIX).partition(":")[0]
    if name in TASKS:
        return TASKS[name]
    if "/" in name or Path(source).suffix or Path(source).exists():
        return None
    raise DataError(f"{unknown('task of GLUE', name, TASKS)}; a folder is ./{source}")
