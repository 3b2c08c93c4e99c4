"""Which class of transformers an adapter's base model is loaded with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}  # by PEFT's task type


def base_class(config: Mapping[str, Any]) -> str:
    """By the content of an adapter_config.json: of its task, or else the class that PEFT noted."""
    mapping = config.get("auto_mapping")
    noted = mapping.get("base_model_class") if isinstance(mapping, Mapping) else None
    return AUTO_CLASSES.get(str(config.get("task_type"))) or noted or "AutoModelForCausalLM"
