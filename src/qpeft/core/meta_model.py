"""The class of an adapter's base model, and the base model without weights: every tensor on the meta device."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoConfig, PretrainedConfig

from qpeft.core.adapter_form import check_model
from qpeft.errors import ConfigError, setting

AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}  # by PEFT's task type


def base_class(config: Mapping[str, Any]) -> str:
    """The class for the content of an adapter_config.json: by its task, or else as recorded by PEFT."""
    mapping = config.get("auto_mapping")
    recorded = mapping.get("base_model_class") if isinstance(mapping, Mapping) else None
    return AUTO_CLASSES.get(str(config.get("task_type"))) or recorded or "AutoModelForCausalLM"


# where neither the task nor the config determines it: the first that has a model for the config
_IN_TURN = (
    "AutoModelForCausalLM",
    "AutoModelForSeq2SeqLM",
    "AutoModelForSequenceClassification",
    "AutoModelForImageClassification",
    "AutoModelForImageTextToText",
    "AutoModel",
)


def on_meta(
    base: nn.Module | PretrainedConfig | str | Path, task_type: str | None = None, trust_remote_code: bool = False
) -> nn.Module:
    """The model of `base` on the meta device; a given model is left untouched.

    For a config the class is that of PEFT's `task_type`, or the one in its `architectures`, or the first available of:
    causal or sequence-to-sequence language model, sequence or image classifier, image-and-text model, headless model.

    Raises:
        ConfigError: there is no model at `base`, transformers has none for its config, it has an adapter already, or
            the task does not fit.
    """
    if isinstance(base, nn.Module):
        refuse_adapted(base)
        if getattr(base, "is_quantized", False):  # packed parameters cannot be copied, and have other shapes
            with torch.device("meta"):
                return _checked(type(base)(base.config), task_type)
        return _checked(_meta_copy(base), task_type)
    if isinstance(base, (str, Path)):
        try:
            base = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as error:
            refuse_code(str(base), error)
            raise ConfigError(
                f"no model at '{base}': give a hub id that can be reached, or a local folder with config.json "
                f"({str(error).splitlines()[0]})"
            ) from error
    auto = AUTO_CLASSES.get(task_type or "", "AutoModelForCausalLM")
    with torch.device("meta"):
        if trust_remote_code and auto in (getattr(base, "auto_map", None) or {}):
            return getattr(transformers, auto).from_config(base, trust_remote_code=True)
        return _checked(_model_class(base, task_type)(base), task_type)


def refuse_adapted(model: nn.Module) -> None:
    """Raise ConfigError if PEFT has adapted the model, or if it is none."""
    check_model(model)
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ConfigError("the base model has an adapter already; give the model without it")


def _checked(model: nn.Module, task_type: str | None) -> nn.Module:
    """`model`; PEFT raises AttributeError for a model that generates no text, where its task is a language model's."""
    if task_type == "CAUSAL_LM" and not hasattr(model, "prepare_inputs_for_generation"):
        raise ConfigError(
            f"the base is a {type(model).__name__}, which is no language model; set {setting('task')}, for example "
            "text-classification or image-classification, or name another base model"
        )
    return model


def refuse_code(model: str, error: Exception) -> None:
    """Raise ConfigError if transformers raised `error` because the model needs code, without `trust_remote_code`."""
    if "trust_remote_code" in str(error):
        raise ConfigError(
            f"the model {model!r} needs Python code from its folder or repository, which is not executed; read the "
            f"code, and set {setting('trust_remote_code')} if you trust it"
        ) from error


def _model_class(config: PretrainedConfig, task_type: str | None) -> Any:
    if (found := _in_mapping(AUTO_CLASSES.get(task_type or "", ""), config)) is not None:
        return found
    for name in getattr(config, "architectures", None) or ():
        if isinstance(found := getattr(transformers, name, None), type):
            return found
    for auto_name in _IN_TURN:
        if (found := _in_mapping(auto_name, config)) is not None:
            return found
    raise ConfigError(f"transformers has no model for {type(config).__name__}; give the model itself to plan for it")


def _in_mapping(auto_name: str, config: PretrainedConfig) -> Any:
    """The class that an Auto class selects for `config`, if any."""
    mapping = getattr(getattr(transformers, auto_name, None), "_model_mapping", {})
    if type(config) not in mapping:
        return None
    found = mapping[type(config)]
    return found[0] if isinstance(found, (list, tuple)) else found


def _meta_copy(model: nn.Module) -> nn.Module:
    """The same modules with every tensor on the meta device."""
    shells = {
        id(t): nn.Parameter(t.to("meta"), t.requires_grad) if isinstance(t, nn.Parameter) else t.to("meta")
        for t in (*model.parameters(), *model.buffers())
    }
    return copy.deepcopy(model, shells)
