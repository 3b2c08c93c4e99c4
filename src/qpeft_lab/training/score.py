"""Scores of language models, classifiers and regressions over all tokens or examples, whatever the batch size."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from qpeft_lab.data.task_types import TASKS
from qpeft_lab.data.text import IGNORED, Padding, Tokens, collate
from qpeft_lab.metrics import f1, mcc, pearson, spearman

if TYPE_CHECKING:
    import torch

Watch = Callable[[Sequence[int]], Iterable[int]]  # gives what it is given, batch by batch, and may show progress
Collate = Callable[[Sequence[Any]], Mapping[str, "torch.Tensor"]]

HOPELESS_LOSS = 20.0  # nats per token; beyond it the digits of a perplexity are meaningless


@dataclass(frozen=True)
class Score(ABC):
    """The sums that a run stores, and the metrics that follow from them."""

    unit: ClassVar[str]  # of the loss

    @property
    @abstractmethod
    def loss(self) -> float:
        """The mean over tokens or examples."""

    @abstractmethod
    def described(self) -> dict[str, str]:
        """The metrics as text for a table, by name; the most important one first."""

    @property
    @abstractmethod
    def size(self) -> str:
        """The amount of scored data."""

    def to_dict(self) -> dict[str, Any]:
        """All metrics."""
        return {"loss": self.loss, **asdict(self)}

    @property
    def headline(self) -> tuple[str, str]:
        """The name and the text of the most important metric."""
        name, text = next(iter(self.described().items()))
        return name.partition(" (")[0], text

    @property
    def details(self) -> str:
        """The metrics that accompany the headline, as text."""
        others = [f"{name} {text}" for name, text in list(self.described().items())[1:] if name != self.unit]
        return ", ".join([f"{self.loss:.4f} {self.unit}", *others])


@dataclass(frozen=True)
class LanguageModelScore(Score):
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
        return self.nats / self.n_tokens

    @property
    def perplexity(self) -> float:
        """exp(nats / n_tokens) over all tokens; infinity on overflow."""
        return math.exp(self.loss) if self.loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        """nats / (ln 2 * n_bytes): comparable across tokenizers. NaN with padding, which has no bytes."""
        return self.nats / (math.log(2) * self.n_bytes) if self.n_bytes and not self.n_padding else math.nan

    def to_dict(self) -> dict[str, Any]:
        return {**super().to_dict(), "perplexity": self.perplexity, "bits_per_byte": self.bits_per_byte}

    def described(self) -> dict[str, str]:
        name = "padded perplexity" if self.n_padding else "perplexity"
        shown = f"{self.perplexity:,.2f}" if self.loss <= HOPELESS_LOSS else "inf-like"
        bits = {} if self.n_padding else {"bits per byte": f"{self.bits_per_byte:.4f}"}
        return {name: shown, self.unit: f"{self.loss:.4f}", **bits}

    @property
    def size(self) -> str:
        share = self.n_unknown / self.n_tokens
        unknown = f", {self.n_unknown:,} unknown tokens ({share:.1%})" if share else ""
        padding = f", {self.n_padding:,} of them padding" if self.n_padding else ""
        return f"{self.n_tokens:,} tokens{padding}, {self.n_bytes:,} bytes{unknown}"


@dataclass(frozen=True)
class ClassificationScore(Score):
    """Negative log-likelihood `nats` of the true classes of `n_examples`, `n_correct` of them predicted."""

    unit: ClassVar[str] = "nats per example"

    nats: float
    n_correct: int
    n_examples: int
    mcc: float  # as in `qpeft_lab.metrics`
    f1: float

    @property
    def loss(self) -> float:
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
        low, high = self.interval
        return {**super().to_dict(), "accuracy": self.accuracy, "accuracy_low": low, "accuracy_high": high}

    def described(self) -> dict[str, str]:
        low, high = self.interval
        others = {"MCC": f"{self.mcc:.4f}", "F1": f"{self.f1:.4f}", self.unit: f"{self.loss:.4f}"}
        return {"accuracy (95 % interval)": f"{self.accuracy:.1%} ({low:.1%} to {high:.1%})", **others}

    @property
    def size(self) -> str:
        return f"{self.n_examples:,} examples"


@dataclass(frozen=True)
class RegressionScore(Score):
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
        return self.squared_error / self.n_examples

    def described(self) -> dict[str, str]:
        found = {"Pearson": self.pearson, "Spearman": self.spearman, self.unit: self.loss}
        return {name: "undefined" if value is None else f"{value:.4f}" for name, value in found.items()}

    @property
    def size(self) -> str:
        return f"{self.n_examples:,} examples"


def score_class(task: str) -> type[Score]:
    """The class of the scores of a task in `RunSettings`."""
    kind = TASKS[task]
    other = RegressionScore if kind.is_regression else ClassificationScore
    return LanguageModelScore if kind.is_language_model else other


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
    for logits, labels in _outputs(model, blocks, lambda part: collate(part, padding), batch_size, watch):
        # the last T positions: virtual tokens of a prompt precede the text
        nats += _nats(logits[:, -labels.shape[1] : -1].flatten(0, 1), labels[:, 1:].flatten())  # (B (T-1), vocabulary)
        n_scored += int((labels != IGNORED).sum())
    n_bytes = sum(int(block.n_bytes[1:][block.scored[1:]].sum()) for block in blocks)
    n_padding = n_scored - sum(block.n_targets for block in blocks)
    return LanguageModelScore(nats, n_scored, n_bytes, n_padding=n_padding)


def evaluate_examples(
    model: torch.nn.Module,
    examples: Sequence[Any],
    collate: Collate,
    batch_size: int = 8,
    watch: Watch = iter,
    is_regression: bool = False,
) -> ClassificationScore | RegressionScore:
    """Score every example, summed in float64; `batch_size` changes the time taken, not the score."""
    total, true, predictions, n_classes = 0.0, [], [], 0
    for logits, labels in _outputs(model, examples, collate, batch_size, watch):
        if is_regression:
            predicted = logits.squeeze(-1).double()
            total += (predicted - labels).square().sum().item()
        else:
            total += _nats(logits, labels)
            predicted = logits.argmax(-1).where(~logits.isnan().any(-1), -1)  # argmax takes NaN for the largest
            n_classes = logits.shape[-1]
        predictions += predicted.tolist()
        true += labels.tolist()
    if is_regression:
        numbers = [number for _, number in examples]
        return RegressionScore(total, len(true), pearson(numbers, predictions), spearman(numbers, predictions))
    n_correct = sum(one == other for one, other in zip(true, predictions, strict=True))
    return ClassificationScore(total, n_correct, len(true), mcc(true, predictions), f1(true, predictions, n_classes))


def _outputs(
    model: torch.nn.Module, examples: Sequence[Any], collate: Collate, batch_size: int, watch: Watch
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Logits, at least float32, and labels of each batch."""
    import torch

    device = next(model.parameters()).device
    with evaluation_mode(model):
        for start in watch(range(0, len(examples), batch_size)):
            batch = {name: part.to(device) for name, part in collate(examples[start : start + batch_size]).items()}
            labels = batch.pop("labels")
            logits = model(**batch).logits
            yield logits.to(torch.promote_types(logits.dtype, torch.float32)), labels


def _nats(logits: torch.Tensor, labels: torch.Tensor) -> float:
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits, labels, ignore_index=IGNORED, reduction="none").double().sum().item()


def mean_nats(
    outputs: Any,
    labels: torch.Tensor,
    num_items_in_batch: Any = None,
    label_smoothing: float = 0.0,
    of_tokens: bool = False,
) -> torch.Tensor:
    """Mean over the examples, or scored tokens, of an optimizer step, which may have several forward passes; scalar.

    The losses of models are means over one forward pass, and the Trainer would add those of classifiers instead of
    averaging. Its label smoothing recognizes language models by the names of transformers' classes, so it would not
    shift the labels of other models, and not skip virtual tokens.
    """
    from torch.nn.functional import cross_entropy

    logits = outputs.logits.float()
    if of_tokens:
        logits, labels = logits[:, -labels.shape[1] : -1].flatten(0, 1), labels[:, 1:].flatten()
    options: dict[str, Any] = {"ignore_index": IGNORED, "reduction": "sum", "label_smoothing": label_smoothing}
    total = cross_entropy(logits, labels.to(logits.device), **options)
    return total / ((labels != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch)


def regression_loss(outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Mean squared error over the examples of an optimizer step, as `mean_nats`; scalar."""
    from torch.nn.functional import mse_loss

    numbers = outputs.logits.float().squeeze(-1)
    total = mse_loss(numbers, labels.to(numbers.device), reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


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
