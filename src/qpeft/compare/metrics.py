"""The metrics, and how they are shown. Each is a field of `rows.Quality`, except `trainable`."""

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

OF_CLASSES = {
    "test_accuracy": Metric("Test accuracy", "%", "percentage points", 100.0, 1),
    "test_mcc": Metric("Test MCC", "%", "percentage points", 100.0, 1),
    "test_f1": Metric("Test F1", "%", "percentage points", 100.0, 1),
}
OF_NUMBERS = {
    "test_pearson": Metric("Test Pearson correlation", "%", "percentage points", 100.0, 1),
    "test_spearman": Metric("Test Spearman correlation", "%", "percentage points", 100.0, 1),
}
OF_TEXTS = {  # generated ones
    "bleu": Metric("BLEU", "points", "points", decimals=1),
    "bleu_lowercase": Metric("BLEU, lower case", "points", "points", decimals=1),
    "nist": Metric("NIST", "points", "points", decimals=2),
    "chrf": Metric("chrF", "points", "points", decimals=1),
    "rouge1": Metric("ROUGE-1", "%", "percentage points", 100.0, 1),
    "rouge2": Metric("ROUGE-2", "%", "percentage points", 100.0, 1),
    "rougeL": Metric("ROUGE-L", "%", "percentage points", 100.0, 1),
    "rougeL_coco": Metric("ROUGE-L, COCO", "%", "percentage points", 100.0, 1),
    "cider": Metric("CIDEr", "points", "points", decimals=2),
    "meteor": Metric("METEOR", "%", "percentage points", 100.0, 1),
    "bertscore_f1": Metric("BERTScore F1", "%", "percentage points", 100.0, 1),
}
METRICS = {
    "test_loss": Metric("Test loss", "nats per token", "nats per token", decimals=3),
    "test_ppl": Metric("Perplexity"),
    "bits_per_byte": Metric("Bits per byte"),
    **OF_CLASSES,
    **OF_NUMBERS,
    **OF_TEXTS,
    "forgetting_shifted": Metric("Forgetting", "nats"),
    TRAINABLE: Metric("Trainable parameters", decimals=0),
}
