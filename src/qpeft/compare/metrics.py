"""How metrics are shown: titles, units, decimals. Each is a field of `rows.Quality`, except `trainable`."""

from __future__ import annotations

from typing import NamedTuple


class Metric(NamedTuple):
    """How a metric is shown."""

    title: str
    unit: str = ""
    difference_unit: str = ""
    factor: float = 1.0  # from the stored value to the unit
    decimals: int = 4  # in sentences


TRAINABLE = "trainable"

METRICS = {
    "test_loss": Metric("Test loss", "nats per token", "nats per token", decimals=3),
    "test_ppl": Metric("Perplexity"),
    "bits_per_byte": Metric("Bits per byte"),
    "test_accuracy": Metric("Test accuracy", "%", "percentage points", 100.0, 1),
    "bleu": Metric("BLEU", "points", "points", decimals=1),
    "rouge1": Metric("ROUGE-1"),
    "rouge2": Metric("ROUGE-2"),
    "rougeL": Metric("ROUGE-L"),
    "bertscore_f1": Metric("BERTScore F1"),
    "forgetting_shifted": Metric("Forgetting", "nats"),
    TRAINABLE: Metric("Trainable parameters", decimals=0),
}
