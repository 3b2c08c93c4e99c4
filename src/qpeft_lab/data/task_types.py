"""The table of tasks, importable without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TaskType:
    """What can be asked about a task before its data is read; its class is in `qpeft_lab.training.tasks`."""

    auto_class: str  # the class of transformers that loads its base
    peft_type: str | None  # PEFT's task type, which adds a head; PEFT has none for images
    is_language_model: bool = False  # predicts the tokens of texts; the others are classifications or regressions
    has_images: bool = False
    is_regression: bool = False  # predicts a number

    @property
    def unit(self) -> str:
        """Of the loss."""
        if self.is_regression:
            return "mean squared error"
        return "nats per token" if self.is_language_model else "nats per example"


TASKS = {
    "causal-lm": TaskType("AutoModelForCausalLM", "CAUSAL_LM", is_language_model=True),
    "text-classification": TaskType("AutoModelForSequenceClassification", "SEQ_CLS"),
    "text-regression": TaskType("AutoModelForSequenceClassification", "SEQ_CLS", is_regression=True),
    "image-classification": TaskType("AutoModelForImageClassification", None, has_images=True),
}
