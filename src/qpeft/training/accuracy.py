"""The score of a classifier: its accuracy with a confidence interval, and its loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qpeft.training.metrics import evaluation_mode

if TYPE_CHECKING:
    import torch

_Z = 1.959963984540054  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class ClassificationScore:
    """Negative log-likelihood `nats` of the true classes of `n_examples`, `n_correct` of them predicted."""

    nats: float
    n_correct: int
    n_examples: int

    def __add__(self, other: ClassificationScore) -> ClassificationScore:
        """The score of both sets of examples together."""
        return ClassificationScore(
            self.nats + other.nats, self.n_correct + other.n_correct, self.n_examples + other.n_examples
        )

    @property
    def loss(self) -> float:
        """nats / n_examples."""
        return self.nats / self.n_examples

    @property
    def accuracy(self) -> float:
        """n_correct / n_examples."""
        return self.n_correct / self.n_examples

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the accuracy: (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n).

        It covers the choice of examples, not the seeds of training.
        """
        n, p = self.n_examples, self.accuracy
        middle = p + _Z**2 / (2 * n)
        reach = _Z * math.sqrt(p * (1 - p) / n + _Z**2 / (4 * n**2))
        scale = 1 + _Z**2 / n
        return max(0.0, (middle - reach) / scale), min(1.0, (middle + reach) / scale)

    def to_dict(self) -> dict[str, float]:
        """All metrics; the interval as its two ends."""
        low, high = self.interval
        return {
            "loss": self.loss,
            "accuracy": self.accuracy,
            "accuracy_low": low,
            "accuracy_high": high,
            "nats": self.nats,
            "n_correct": self.n_correct,
            "n_examples": self.n_examples,
        }

    def described(self) -> dict[str, str]:
        """The metrics as text for a table, by name."""
        low, high = self.interval
        return {
            "accuracy": f"{self.accuracy:.4f}",
            "95 % interval": f"{low:.4f} to {high:.4f}",
            "loss, nats per example": f"{self.loss:.6f}",
        }

    @property
    def size(self) -> str:
        """The amount of scored data."""
        return f"{self.n_examples:,} examples"


def evaluate_classifier(
    model: torch.nn.Module,
    examples: Sequence[Any],
    collate: Callable[[Sequence[Any]], Mapping[str, torch.Tensor]],
    batch_size: int = 8,
) -> ClassificationScore:
    """Score every example, summed in float64; `batch_size` changes the time taken, not the score."""
    import torch
    from torch.nn.functional import cross_entropy

    device = next(model.parameters()).device
    nats, n_correct = 0.0, 0
    with evaluation_mode(model):
        for start in range(0, len(examples), batch_size):
            batch = {name: part.to(device) for name, part in collate(examples[start : start + batch_size]).items()}
            labels = batch.pop("labels")  # (B,)
            logits = model(**batch).logits  # (B, classes)
            logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
            nats += cross_entropy(logits, labels, reduction="none").double().sum().item()
            n_correct += int((logits.argmax(-1) == labels).sum())
    return ClassificationScore(nats, n_correct, len(examples))


def classification_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Mean over the examples of an optimizer step, which may have several forward passes; scalar.

    The models' own losses are means over one forward pass, and the Trainer would add them instead of averaging.
    """
    from torch.nn.functional import cross_entropy

    total = cross_entropy(outputs.logits.float(), labels.to(outputs.logits.device), reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)
