"""Regression of texts: a number for each text or pair of texts."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from qpeft.training.metrics import RegressionScore, evaluate_regression, regression_loss
from qpeft.training.tasks.classification import Example
from qpeft.training.tasks.classifier import class_names
from qpeft.training.tasks.labelled_data import Labelled, hold_out, label_number
from qpeft.training.tasks.text_classification import TextClassification

if TYPE_CHECKING:
    from torch import Tensor

_OUTPUT = "LABEL_0"  # transformers' name of a single output
_IGNORED = -100.0  # the Trainer does not count such labels


class TextRegression(TextClassification):
    """As a classification of texts with one output, trained on the squared error."""

    name = "text-regression"
    score_class = RegressionScore

    _evaluate = staticmethod(evaluate_regression)

    def label(self, value: Any, where: str) -> float:
        return label_number(value, where)

    def loss(self, label_smoothing: float) -> Callable[..., Tensor]:
        return regression_loss

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """As for a classification; labels float32 (B,)."""
        import torch

        batch = super().collate(examples)
        labels = batch["labels"].float()
        nearly = torch.nextafter(torch.tensor(_IGNORED), torch.tensor(0.0))
        return {**batch, "labels": labels.where(labels != _IGNORED, nearly)}

    def _hold_out(self, rows: list[Labelled]) -> tuple[list[Labelled], list[Labelled]]:
        return hold_out(rows, self.settings.data, has_classes=False)

    def _labels_of(self, train: Sequence[Labelled]) -> tuple[str, ...]:
        names = class_names(self.config)
        return names if len(names) == 1 else (_OUTPUT,)

    def _label_bytes(self, label: float) -> bytes:
        return struct.pack("<d", label)

    def _examples(self, rows: Sequence[Labelled], source: str) -> list[Example]:
        return list(rows)
