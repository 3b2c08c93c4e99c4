"""The metrics, and how they are shown. Each is a field of a row, except `trainable`."""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    """How a metric is shown."""

    title: str
    unit: str = ""
    factor: float = 1.0  # from the stored value to the unit

    @property
    def full_title(self) -> str:
        """`Test loss (nats per token)`."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def difference(self) -> str:
        """The unit of a difference."""
        return "percentage points" if self.unit == "%" else self.unit


TRAINABLE = "trainable"

OF_CLASSES = {
    "test_accuracy": Metric("Test accuracy", "%", 100.0),
    "test_mcc": Metric("Test MCC", "%", 100.0),
    "test_f1": Metric("Test F1", "%", 100.0),
}
OF_NUMBERS = {
    "test_pearson": Metric("Test Pearson correlation", "%", 100.0),
    "test_spearman": Metric("Test Spearman correlation", "%", 100.0),
}
OF_TEXTS = {  # generated ones
    "bleu": Metric("BLEU", "points"),
    "bleu_lowercase": Metric("BLEU, lower case", "points"),
    "chrf": Metric("chrF", "points"),
    "rouge1": Metric("ROUGE-1", "%", 100.0),
    "rouge2": Metric("ROUGE-2", "%", 100.0),
    "rougeL": Metric("ROUGE-L", "%", 100.0),
    "bertscore_f1": Metric("BERTScore F1", "%", 100.0),
}
METRICS = {
    "test_loss": Metric("Test loss", "nats per token"),
    "test_ppl": Metric("Perplexity"),
    "bits_per_byte": Metric("Bits per byte"),
    **OF_CLASSES,
    **OF_NUMBERS,
    **OF_TEXTS,
    TRAINABLE: Metric("Trainable parameters"),
}
