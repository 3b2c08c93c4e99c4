"""Scores over all tokens or examples, whatever the batch size; and the losses of training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn.functional import cross_entropy, mse_loss

from qpeft_lab.data.task_types import TASKS
from qpeft_lab.data.text import IGNORED, Tokens, collate
from qpeft_lab.metrics import f1, mcc, pearson, spearman
from qpeft_lab.progress import Progress, counted

Collate = Callable[[Sequence[Any]], Mapping[str, torch.Tensor]]

_HOPELESS_LOSS = 20.0  # nats per token; beyond it the digits of a perplexity are meaningless
# titles of the metrics, the most important metric of a task first
_TITLES = {
    "perplexity": "perplexity",
    "padded_perplexity": "padded perplexity",
    "accuracy": "accuracy (95 % interval)",
    "pearson": "Pearson",
    "bits_per_byte": "bits per byte",
    "mcc": "MCC",
    "f1": "F1",
    "spearman": "Spearman",
}


@dataclass(frozen=True)
class Score:
    """The loss, a mean over all scored tokens or examples, and the metrics of a task by name.

    Of texts `perplexity`, exp(loss), and `bits_per_byte`, nats / (ln 2 * UTF-8 bytes), which
    compares tokenizers; or `padded_perplexity`, if padding is scored. Of classes `accuracy`, with
    Wilson's 95 % interval from `accuracy_low` to `accuracy_high` (over the choice of examples, not
    the seeds of training), `mcc` and `f1`. Of numbers `pearson` and `spearman`.
    """

    loss: float
    unit: str  # of the loss
    n_scored: int  # tokens or examples
    metrics: dict[str, float | None]  # None where a metric is undefined
    # a loss for each block of a text with scored tokens
    block_losses: list[float] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Loss, amount of data and metrics."""
        return {"loss": self.loss, "n_scored": self.n_scored, **self.metrics}

    @classmethod
    def from_logs(cls, row: Mapping[str, Any], unit: str) -> Score:
        """The score of a row of the Trainer's logs, in which an undefined metric is NaN."""
        logged = {
            name.removeprefix("eval_"): value
            for name, value in row.items()
            if name.startswith("eval_")
        }
        loss = logged.pop("loss")
        n_scored = logged.pop("n_scored")
        metrics = {name: None if math.isnan(value) else value for name, value in logged.items()}
        return cls(loss, unit, n_scored, metrics)

    def described(self) -> dict[str, str]:
        """Metrics and loss as text for a table, by title; the most important one first."""
        texts = {}
        for name in (name for name in _TITLES if name in self.metrics):
            if (value := self.metrics[name]) is None:
                text = "undefined"
            elif name == "accuracy":
                text = (
                    f"{value:.1%} ({self.metrics['accuracy_low']:.1%} to"
                    f" {self.metrics['accuracy_high']:.1%})"
                )
            else:
                text = f"{value:,.2f}" if name.endswith("perplexity") else f"{value:.4f}"
            texts[_TITLES[name]] = text
        return texts | {self.unit: f"{self.loss:.4f}"}

    @property
    def headline(self) -> tuple[str, str]:
        """The name and the text of the most important metric."""
        name, text = next(iter(self.described().items()))
        return name.partition(" (")[0], text


def evaluate_language_model(
    model: torch.nn.Module,
    blocks: Sequence[Tokens],
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Score:
    """Score the marked tokens of `blocks`, except the first of each block: it has no predecessor.

    The sum runs in float64. `batch_size` changes the time taken, not the score.
    """
    of_blocks: list[tuple[float, int]] = []  # nats and scored tokens of each block
    for logits, labels in _outputs(model, blocks, collate, batch_size, progress):
        # the last T positions: virtual tokens of a prompt precede the text
        predicted = logits[:, -labels.shape[1] : -1].flatten(0, 1)  # (B (T-1), vocabulary)
        each = cross_entropy(
            predicted, labels[:, 1:].flatten(), ignore_index=IGNORED, reduction="none"
        )
        each = each.cpu().double()  # accelerators may have no float64
        of_blocks += zip(
            each.view(len(labels), -1).sum(1).tolist(),
            (labels != IGNORED).sum(1).tolist(),
            strict=True,
        )
    nats, n_scored = map(sum, zip(*of_blocks, strict=True))
    loss = nats / n_scored
    metrics = {"perplexity": math.exp(loss) if loss <= _HOPELESS_LOSS else None}
    if not all(block.attended.all() for block in blocks):
        metrics = {"padded_perplexity": metrics["perplexity"]}
    elif n_bytes := sum(int(block.n_bytes[1:][block.scored[1:]].sum()) for block in blocks):
        metrics["bits_per_byte"] = nats / (math.log(2) * n_bytes)
    return Score(
        loss, TASKS["causal-lm"].unit, n_scored, metrics, [part / n for part, n in of_blocks if n]
    )


def evaluate_examples(
    model: torch.nn.Module,
    examples: Sequence[Any],
    collate: Collate,
    batch_size: int = 8,
    is_regression: bool = False,
    progress: Progress | None = None,
) -> Score:
    """Score every example, summed in float64; `batch_size` changes the time taken, not the score."""
    from scipy.stats import binomtest  # slow to import, and for classes alone

    total = 0.0
    n_classes = 0
    true: list[Any] = []
    predictions: list[Any] = []
    for logits, labels in _outputs(model, examples, collate, batch_size, progress):
        if is_regression:
            predicted = logits.squeeze(-1).cpu().double()
            total += (predicted - labels.cpu()).square().sum().item()
        else:
            each = cross_entropy(logits, labels, reduction="none")
            total += each.cpu().double().sum().item()
            # argmax takes NaN for the largest
            predicted = logits.argmax(-1).where(~logits.isnan().any(-1), -1)
            n_classes = logits.shape[-1]
        predictions += predicted.tolist()
        true += labels.tolist()
    n = len(true)
    metrics: dict[str, float | None]
    if is_regression:
        numbers = [number for _, number in examples]
        metrics = {
            "pearson": pearson(numbers, predictions),
            "spearman": spearman(numbers, predictions),
        }
        return Score(total / n, TASKS["text-regression"].unit, n, metrics)
    pairs = zip(true, predictions, strict=True)
    correct = binomtest(sum(label == predicted for label, predicted in pairs), n)
    low, high = correct.proportion_ci(method="wilson")
    metrics = {
        "accuracy": correct.statistic,
        "accuracy_low": float(low),
        "accuracy_high": float(high),
    }
    metrics |= {"mcc": mcc(true, predictions), "f1": f1(true, predictions, n_classes)}
    return Score(total / n, TASKS["text-classification"].unit, n, metrics)


def _outputs(
    model: torch.nn.Module,
    examples: Sequence[Any],
    collate: Collate,
    batch_size: int,
    progress: Progress | None,
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Logits, at least float32, and labels of each batch."""
    device = next(model.parameters()).device
    with evaluation_mode(model):
        starts = range(0, len(examples), batch_size)
        for start in counted(progress or Progress(), "Evaluating", starts):
            batch = {
                name: part.to(device)
                for name, part in collate(examples[start : start + batch_size]).items()
            }
            labels = batch.pop("labels")
            logits = model(**batch).logits
            yield logits.to(torch.promote_types(logits.dtype, torch.float32)), labels


def mean_nats(
    outputs: Any,
    labels: torch.Tensor,
    num_items_in_batch: Any = None,
    label_smoothing: float = 0.0,
    of_tokens: bool = False,
) -> torch.Tensor:
    """Mean over the examples, or scored tokens, of an optimizer step, which may have several
    forward passes; scalar.

    The losses of models are means over one forward pass, and the Trainer would add those of
    classifiers instead of averaging. Its label smoothing recognizes language models by the names of
    transformers' classes, so it would not shift the labels of other models, and not skip virtual
    tokens.
    """
    logits = outputs.logits.float()
    if of_tokens:
        # the last T positions, as in evaluate_language_model
        logits = logits[:, -labels.shape[1] : -1].flatten(0, 1)  # (B (T-1), vocabulary)
        labels = labels[:, 1:].flatten()  # (B (T-1),)
    options: dict[str, Any] = {
        "ignore_index": IGNORED,
        "reduction": "sum",
        "label_smoothing": label_smoothing,
    }
    total = cross_entropy(logits, labels.to(logits.device), **options)
    return total / ((labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)


def regression_loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None
) -> torch.Tensor:
    """Mean squared error over the examples of an optimizer step, as `mean_nats`; scalar."""
    numbers = outputs.logits.float().squeeze(-1)
    total = mse_loss(numbers, labels.to(numbers.device), reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """No dropout and no gradients. (Tensors made in torch's inference mode could not be used in a
    later backward.)
    """
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
