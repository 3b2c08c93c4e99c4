"""Scores of language models, classifiers and regressions over all tokens or examples, whatever the batch size."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from qpeft.metrics import f1, mcc, pearson, spearman
from qpeft.training.blocks import IGNORED, Padding, collate
from qpeft.training.encoding import Tokens

if TYPE_CHECKING:
    import torch


Watch = Callable[[Sequence[int]], Iterable[int]]  # gives what it is given, batch by batch, and may show progress
Collate = Callable[[Sequence[Any]], Mapping[str, "torch.Tensor"]]

HOPELESS_LOSS = 20.0  # nats per token; beyond it the digits of a perplexity are meaningless


@dataclass(frozen=True)
class LanguageModelScore:
    """Negative log-likelihood `nats` of `n_tokens` scored tokens, which encode `n_bytes` UTF-8 bytes.

    `n_unknown` of the tokens stand for text that the tokenizer cannot represent, and `n_padding` of them are padding.
    Predicting both is easy.
    """

    unit: ClassVar[str] = "nats per token"

    nats: float
    n_tokens: int
    n_bytes: int
    n_unknown: int = 0
    n_padding: int = 0

    @property
    def loss(self) -> float:
        """nats / n_tokens."""
        return self.nats / self.n_tokens

    @property
    def perplexity(self) -> float:
        """exp(nats / n_tokens) over all tokens; infinity on overflow."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """nats / (ln 2 * n_bytes): comparable across tokenizers. NaN with padding, which has no bytes."""
        return self.nats / (math.log(2) * self.n_bytes) if self.n_bytes and not self.n_padding else math.nan

    def to_dict(self) -> dict[str, float]:
        """All metrics."""
        derived = {"loss": self.loss, "perplexity": self.perplexity, "bits_per_byte": self.bits_per_byte}
        return derived | asdict(self)

    @property
    def headline(self) -> tuple[str, str]:
        """`perplexity`, or `padded perplexity`, and its text; `inf-like` beyond a loss of 20."""
        name = "padded perplexity" if self.n_padding else "perplexity"
        return name, f"{self.perplexity:,.2f}" if self.loss <= HOPELESS_LOSS else "inf-like"

    def described(self) -> dict[str, str]:
        """The metrics as text for a table, by name."""
        bits = {} if self.n_padding else {"bits per byte": f"{self.bits_per_byte:.4f}"}
        return dict([self.headline]) | {self.unit: f"{self.loss:.4f}"} | bits

    @property
    def details(self) -> str:
        """The metrics that accompany the headline, as text."""
        return f"{self.loss:.4f} {self.unit}"

    @property
    def size(self) -> str:
        """The amount of scored data."""
        unknown = (
            f", {self.n_unknown:,} unknown tokens ({self.n_unknown / self.n_tokens:.1%})" if self.n_unknown else ""
        )
        padding = f", {self.n_padding:,} of them padding" if self.n_padding else ""
        return f"{self.n_tokens:,} tokens{padding}, {self.n_bytes:,} bytes{unknown}"


@dataclass(frozen=True)
class ClassificationScore:
    """Negative log-likelihood `nats` of the true classes of `n_examples`, `n_correct` of them predicted.

    `mcc` and `f1` are those of `qpeft.metrics`; a result of an earlier version lacks them.
    """

    unit: ClassVar[str] = "nats per example"

    nats: float
    n_correct: int
    n_examples: int
    mcc: float | None = None
    f1: float | None = None

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
        """Wilson's 95 % interval of the accuracy. It covers the choice of examples, not the seeds of training."""
        from scipy.stats import binomtest

        low, high = binomtest(self.n_correct, self.n_examples).proportion_ci(method="wilson")
        return float(low), float(high)

    def to_dict(self) -> dict[str, Any]:
        """All metrics; the interval as its two ends."""
        low, high = self.interval
        derived = {"loss": self.loss, "accuracy": self.accuracy, "accuracy_low": low, "accuracy_high": high}
        return derived | asdict(self)

    @property
    def headline(self) -> tuple[str, str]:
        """`accuracy` and its text, `81.2% (78.4% to 83.7%)`, with the 95 % interval."""
        low, high = self.interval
        return "accuracy", f"{self.accuracy:.1%} ({low:.1%} to {high:.1%})"

    def described(self) -> dict[str, str]:
        """The metrics as text for a table, by name."""
        name, accuracy = self.headline
        return {f"{name} (95 % interval)": accuracy, **self._others, self.unit: f"{self.loss:.4f}"}

    @property
    def details(self) -> str:
        """The metrics that accompany the headline, as text."""
        return ", ".join([f"{self.loss:.4f} {self.unit}", *map(" ".join, self._others.items())])

    @property
    def _others(self) -> dict[str, str]:
        known = {"MCC": self.mcc, "F1": self.f1}
        return {name: f"{value:.4f}" for name, value in known.items() if value is not None}

    @property
    def size(self) -> str:
        """The amount of scored data."""
        return f"{self.n_examples:,} examples"


@dataclass(frozen=True)
class RegressionScore:
    """Sum of the squared errors of `n_examples` predicted numbers, and their correlations with the labels.

    A correlation is None where it is undefined, for example if all predictions are equal.
    """

    unit: ClassVar[str] = "mean squared error"

    squared_error: float
    n_examples: int
    pearson: float | None = None
    spearman: float | None = None

    @property
    def loss(self) -> float:
        """squared_error / n_examples."""
        return self.squared_error / self.n_examples

    def to_dict(self) -> dict[str, Any]:
        """All metrics."""
        return {"loss": self.loss} | asdict(self)

    @property
    def headline(self) -> tuple[str, str]:
        """`Pearson` and its text."""
        return "Pearson", _correlation(self.pearson)

    def described(self) -> dict[str, str]:
        """The metrics as text for a table, by name."""
        return dict([self.headline]) | {"Spearman": _correlation(self.spearman), self.unit: f"{self.loss:.4f}"}

    @property
    def details(self) -> str:
        """The metrics that accompany the headline, as text."""
        return f"{self.loss:.4f} {self.unit}, Spearman {_correlation(self.spearman)}"

    @property
    def size(self) -> str:
        """The amount of scored data."""
        return f"{self.n_examples:,} examples"


def _correlation(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"


def evaluate_language_model(
    model: torch.nn.Module,
    blocks: Sequence[Tokens],
    batch_size: int = 8,
    padding: Padding | None = None,
    watch: Watch = iter,
) -> LanguageModelScore:
    """Score the marked tokens of `blocks` and the `padding`, except the first of each block: it has no predecessor.

    The sum runs in float64. `batch_size` changes the time taken, not the score.
    """
    nats, n_scored = 0.0, 0
    with evaluation_mode(model):
        for start in watch(range(0, len(blocks), batch_size)):
            batch = collate(blocks[start : start + batch_size], padding)
            nats += _nats(model, batch, batch["labels"])
            n_scored += int((batch["labels"] != IGNORED).sum())
    n_bytes = sum(int(block.n_bytes[1:][block.scored[1:]].sum()) for block in blocks)
    n_padding = n_scored - sum(block.n_targets for block in blocks)
    return LanguageModelScore(nats, n_scored, n_bytes, n_padding=n_padding)


def evaluate_classifier(
    model: torch.nn.Module, examples: Sequence[Any], collate: Collate, batch_size: int = 8, watch: Watch = iter
) -> ClassificationScore:
    """Score every example, summed in float64; `batch_size` changes the time taken, not the score."""
    from torch.nn.functional import cross_entropy

    nats, labels, predictions, n_classes = 0.0, [], [], 0
    for logits, true in _predict(model, examples, collate, batch_size, watch):
        nats += cross_entropy(logits, true, reduction="none").double().sum().item()
        predicted = logits.argmax(-1).where(~logits.isnan().any(-1), -1)  # argmax takes NaN for the largest
        labels += true.tolist()
        predictions += predicted.tolist()
        n_classes = logits.shape[-1]
    n_correct = sum(one == other for one, other in zip(labels, predictions, strict=True))
    return ClassificationScore(
        nats, n_correct, len(examples), mcc(labels, predictions), f1(labels, predictions, n_classes)
    )


def evaluate_regression(
    model: torch.nn.Module, examples: Sequence[Any], collate: Collate, batch_size: int = 8, watch: Watch = iter
) -> RegressionScore:
    """Score every example in float64; `batch_size` changes the time taken, not the score."""
    squared, predictions = 0.0, []
    for logits, true in _predict(model, examples, collate, batch_size, watch):
        predicted = logits.squeeze(-1).double()
        squared += (predicted - true).square().sum().item()
        predictions += predicted.tolist()
    labels = [number for _, number in examples]
    return RegressionScore(squared, len(examples), pearson(labels, predictions), spearman(labels, predictions))


def _predict(
    model: torch.nn.Module, examples: Sequence[Any], collate: Collate, batch_size: int, watch: Watch
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Logits (B, classes), at least float32, and labels (B,) of each batch."""
    import torch

    device = next(model.parameters()).device
    with evaluation_mode(model):
        for start in watch(range(0, len(examples), batch_size)):
            batch = {name: part.to(device) for name, part in collate(examples[start : start + batch_size]).items()}
            labels = batch.pop("labels")
            logits = model(**batch).logits
            yield logits.to(torch.promote_types(logits.dtype, torch.float32)), labels


def language_model_loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Mean over the scored tokens of an optimizer step, which may have several forward passes; scalar.

    The Trainer's own label smoothing recognizes language models by the names of transformers' classes, so it would
    not shift the labels of other models, and not skip virtual tokens.
    """
    from torch.nn.functional import cross_entropy

    logits = outputs.logits[:, -labels.shape[1] : -1].float().flatten(0, 1)
    targets = labels[:, 1:].flatten().to(logits.device)
    total = cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing)
    return total / ((targets != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)


def classification_loss(
    outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None, label_smoothing: float = 0.0
) -> torch.Tensor:
    """Mean over the examples of an optimizer step, which may have several forward passes; scalar.

    The models' own losses are means over one forward pass, and the Trainer would add them instead of averaging.
    """
    from torch.nn.functional import cross_entropy

    labels = labels.to(outputs.logits.device)
    total = cross_entropy(outputs.logits.float(), labels, reduction="sum", label_smoothing=label_smoothing)
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def regression_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Mean squared error over the examples of an optimizer step, as `classification_loss`; scalar."""
    from torch.nn.functional import mse_loss

    numbers = outputs.logits.float().squeeze(-1)
    total = mse_loss(numbers, labels.to(numbers.device), reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def _nats(model: torch.nn.Module, batch: dict[str, torch.Tensor], labels: torch.Tensor) -> float:
    """Sum over the labels (B, T) that are not -100, each predicted by the position before it."""
    import torch
    from torch.nn.functional import cross_entropy

    device = next(model.parameters()).device
    inputs: dict[str, Any] = {name: part.to(device) for name, part in batch.items() if name != "labels"}
    # the last T positions: virtual tokens of a prompt precede the text
    logits = model(**inputs).logits[:, -labels.shape[1] : -1]  # (B, T-1, vocabulary)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)).flatten(0, 1)
    targets = labels[:, 1:].flatten().to(device)
    return cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none").double().sum().item()


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """No dropout and no gradients. (Tensors made in torch's inference mode could not be used in a later backward.)"""
    import torch

    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
