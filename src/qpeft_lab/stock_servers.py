"""Whether vLLM loads an exported adapter as it is: the rules of vLLM 0.33, applied to the adapter's
config or folder.

The rules are in vLLM's `vllm/lora/peft_helper.py`, `lora/lora_model.py` and `config/lora.py`, which
docs/small_adapters.md lists. `make compat` compares them with vLLM's own check. Which architectures
support LoRA changes with vLLM's releases: only those of `_WITHOUT_LORA` are known here.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from peft import LoraConfig, PeftConfig
from peft.utils import CONFIG_NAME

from qpeft.core.config import GeneratedConfig
from qpeft.files import read_json

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # allowed values of vLLM's --max-lora-rank
_DEFAULT_RANK = 16

# model types, in every list of supported models that we found
_WITHOUT_LORA = ("gpt2", "gptj", "gpt_neox")
_HEADS = ("lm_head", "embed_tokens", "wte", "embed_in", "embed_out", "word_embeddings")
# the heads of classification models, the only modules_to_save that vLLM reads
_SAVED = {"classifier", "score"}
# initializations of PEFT that keep the base: the others change the base model
_INITS = (
    "gaussian",
    "eva",
    "orthogonal",
    "mica",
    "lora_ga",
)
_VARIANTS = {
    "use_dora": "DoRA",
    "lora_bias": "LoRA with biases",
    "alora_invocation_tokens": "activated LoRA",
    "layer_replication": "LoRA with replicated layers",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
    "trainable_token_indices": "LoRA with trained tokens",
}


def check_export(folder: Path, model_type: str | None = None) -> str:
    """Whether vLLM loads the stock adapter in `folder` on a base of this type: "yes", "no" or "for
    some models".
    """
    config = read_json(folder / CONFIG_NAME)
    if reasons := _reasons(config, model_type):
        return f"no, {'; '.join(reasons)}"
    rank = _rank(config)
    option = (
        f", with --max-lora-rank {next(r for r in RANKS if r >= rank)}"
        if rank > _DEFAULT_RANK
        else ""
    )
    if condition := _condition(config):
        return f"for some models{option}: {condition}"
    return f"yes{option}, if vLLM supports LoRA for the architecture"


def refusals(
    config: PeftConfig, model_type: str | None = None, *, certain: bool = False
) -> list[str]:
    """Why vLLM does not load what an adapter with this config is exported to; before training, from
    the config alone.

    Also why it loads it for some models only, unless only `certain` refusals are asked for.
    """
    stock = stock_settings(config)
    if reasons := _reasons(stock, model_type):
        return [f"vLLM does not load its export: {'; '.join(reasons)}"]
    condition = "" if certain else _condition(stock)
    return [f"vLLM loads its export for some models only: {condition}"] if condition else []


def stock_settings(config: PeftConfig) -> dict[str, Any]:
    """The settings of what an adapter with this config is exported to."""
    stock = config.to_stock() if isinstance(config, GeneratedConfig) else config
    kind = (
        "LORA"
        if isinstance(stock, LoraConfig)
        else str(getattr(stock.peft_type, "value", stock.peft_type))
    )
    return {**stock.to_dict(), "peft_type": kind}  # SoRA is exported as a LoRA


def not_plain(config: Mapping[str, Any]) -> list[str]:
    """What makes a stock adapter another one than a LoRA of two matrices for each module."""
    if (kind := config["peft_type"]) != "LORA":
        return [f"it is an adapter of type {kind}, and only LoRA is supported"]
    reasons = [f"it is {name}" for field, name in _VARIANTS.items() if config.get(field)]
    if config.get("bias") not in (None, LoraConfig.bias):
        reasons.append("it has biases")
    if isinstance(init := config.get("init_lora_weights"), str) and init not in _INITS:
        reasons.append(f"its initialization {init} changes the base model")
    return reasons


def _reasons(config: Mapping[str, Any], model_type: str | None) -> list[str]:
    reasons = not_plain(config)
    if config["peft_type"] != "LORA":
        return reasons
    saved = sorted({*(config.get("modules_to_save") or ())})
    if not _SAVED.issuperset(saved):
        reasons.append(
            f"it has modules_to_save ({', '.join(saved)}), such as norm layers or an output head"
        )
    if (rank := _rank(config)) > RANKS[-1]:
        reasons.append(f"its rank {rank} is above {RANKS[-1]}")
    if model_type in _WITHOUT_LORA:
        reasons.append(f"we know of no release of vLLM that supports LoRA for {model_type}")
    return reasons


def _condition(config: Mapping[str, Any]) -> str:
    targets = config.get("target_modules") or []
    names = [targets] if isinstance(targets, str) else targets
    if any(head in name for name in names for head in _HEADS):
        return "it adapts the output head or the embedding"
    if config.get("target_parameters"):
        return "it adapts experts (target_parameters)"
    return "it has the head of a classification model" if config.get("modules_to_save") else ""


def _rank(config: Mapping[str, Any]) -> int:
    """The largest rank of a module."""
    return max(config.get("r") or 0, *(config.get("rank_pattern") or {}).values(), 0)
