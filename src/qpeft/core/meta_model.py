"""What is a model, the classes of base models, and the base without weights: tensors on the meta
device.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any

import torch
import transformers
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedModel

from qpeft.errors import ConfigError

_default_dtype = Lock()  # threads put back what they have found one at a time
# by PEFT's task type
AUTO_CLASSES = {
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "FEATURE_EXTRACTION": "AutoModel",
}


def on_meta(
    base: nn.Module | PretrainedConfig | str | Path,
    task_type: str | None = None,
    trust_remote_code: bool = False,
) -> nn.Module:
    """The model of `base` on the meta device; a given model is left untouched.

    For a config the class is that of PEFT's `task_type`, or the one in its `architectures`, or a
    language model, or a model without a head.

    Raises ConfigError if there is no model at `base`, transformers has none for its config, it has
    an adapter already, or the task does not fit.
    """
    if isinstance(base, (str, Path)):
        try:
            base = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"no model at '{base}' ({str(error).splitlines()[0]}); give a hub id that can be"
                " reached, or a local folder with config.json, and set trust_remote_code if you"
                " trust the code it contains"
            ) from error
    with torch.device("meta"):
        if not isinstance(base, nn.Module):
            model = _new(base, task_type, trust_remote_code)
        else:
            refuse_adapted(base)
            model = _on_meta(base)
    # PEFT would raise AttributeError
    if task_type == "CAUSAL_LM" and not hasattr(model, "prepare_inputs_for_generation"):
        raise ConfigError(
            f"the base is a {type(model).__name__}, which is no language model; set task, for"
            " example text-classification or image-classification, or name another base model"
        )
    return model


def _on_meta(base: Any) -> nn.Module:
    """A copy of the model without its values."""
    if getattr(base, "is_quantized", False):  # such parameters cannot be copied
        return type(base)(base.config)
    shells: dict[int, Any] = {id(t): t.to("meta") for t in base.buffers()}
    for p in base.parameters():
        shells[id(p)] = nn.Parameter(p.to("meta"), p.requires_grad)
    return copy.deepcopy(base, shells)  # `shells` is its memo of what is copied already


def check_model(model: Any) -> None:
    """Raise ConfigError for anything but a torch model, such as its name."""
    if not isinstance(model, nn.Module):
        raise ConfigError(f"a torch model is needed, got {type(model).__name__}; load it first")


def peft_model_of(model: Any) -> Any:
    """The PeftModel, also if torch.compile has wrapped it. Raises ConfigError for anything else."""
    check_model(model)
    if not hasattr(model, "get_base_model"):
        raise ConfigError(
            f"{type(model).__name__} has no adapter; give the PeftModel that"
            " peft.get_peft_model(base, config) or qpeft.load(base, folder) returns"
        )
    return getattr(model, "_orig_mod", model)


def refuse_adapted(model: nn.Module) -> None:
    """Raise ConfigError if PEFT has adapted the model, or if it is none."""
    check_model(model)
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ConfigError("the base model has an adapter already; give the model without it")


def refuse_merged(modules: Iterable[Any]) -> None:
    """Raise ConfigError if one of these layers has an adapter merged into its weight."""
    if any(getattr(module, "merged", False) for module in modules):
        raise ConfigError(
            "an adapter is merged into the base model; call model.unmerge_adapter() first"
        )


def _new(config: PretrainedConfig, task_type: str | None, trust_remote_code: bool) -> Any:
    names = [AUTO_CLASSES[task_type]] if task_type in AUTO_CLASSES else []
    names += getattr(config, "architectures", None) or ()
    for name in (*names, "AutoModelForCausalLM", "AutoModel"):
        kind: Any = getattr(transformers, name, None)
        if isinstance(kind, type) and issubclass(kind, PreTrainedModel):
            return kind(config)
        # transformers sets the default dtype of the process meanwhile, to that of the config
        with _default_dtype, suppress(ValueError):  # the class has no model for this config
            if kind is not None:
                return kind.from_config(config, trust_remote_code=trust_remote_code)
    raise ConfigError(
        f"transformers has no model for {type(config).__name__}; give the model itself to plan"
        " for it"
    )
