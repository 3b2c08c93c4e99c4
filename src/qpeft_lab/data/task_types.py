"""The table of tasks, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskType:
    """What can be asked about a task before its data is read; its class is in
    `qpeft_lab.training.tasks`.
    """

    auto_class: str  # the class of transformers that loads its base
    peft_type: str | None  # PEFT's task type, which adds a head; PEFT has none for images
    is_language_model: bool = (
        False  # predicts the tokens of texts; the others are classifications or regressions
    )
    has_images: bool = False
    is_regression: bool = False  # predicts a number
    unit: str = "nats per example"  # of the loss


TASKS = {
    "causal-lm": TaskType(
        "AutoModelForCausalLM", "CAUSAL_LM", is_language_model=True, unit="nats per token"
    ),
    "text-classification": TaskType("AutoModelForSequenceClassification", "SEQ_CLS"),
    "text-regression": TaskType(
        "AutoModelForSequenceClassification",
        "SEQ_CLS",
        is_regression=True,
        unit="mean squared error",
    ),
    "image-classification": TaskType("AutoModelForImageClassification", None, has_images=True),
}
