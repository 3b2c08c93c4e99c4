"""Which inference servers load an exported adapter as it is: their documented rules, applied to its folder.

vLLM's rules are in its `vllm/lora/peft_helper.py`, `vllm/lora/utils.py` and `vllm/config/lora.py`; TRL's, for trainers
that send an adapter to a vLLM server, in its `validate_lora_for_vllm_sync`. docs/serving.md lists them with sources.
For which architectures vLLM supports LoRA is in its list of supported models, which changes with its releases: only
those of `_WITHOUT_LORA` are known here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from peft import LoraConfig, PeftConfig, PeftType
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import get_pattern_key
from safetensors import safe_open

from qpeft.core.config import GeneratedLoraConfig
from qpeft.files import read_json

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # allowed values of vLLM's --max-lora-rank
_DEFAULT_RANK = 16

_WITHOUT_LORA = ("gpt2", "gptj", "gpt_neox")  # model types, in every list of supported models that we found

_OF_LORA = re.compile(r".*\.(lora_[AB]\.weight|lora_embedding_[AB])")
_A = (".lora_A.weight", ".lora_embedding_A")
_HEADS = ("lm_head", "embed_tokens")  # TRL refuses these names
_OTHER_HEADS = ("wte", "embed_in", "embed_out", "word_embeddings")
_ON_HEADS = "it adapts the output head or the embedding"


class ServerCheck(NamedTuple):
    """Whether a server loads the adapter."""

    server: str
    reasons: list[str]  # why it does not; empty if it does
    option: str = ""  # what the server must be started with
    condition: str = ""  # why it loads it for some models only

    def __str__(self) -> str:
        if self.reasons:
            return f"no, {'; '.join(self.reasons)}"
        option = f", with {self.option}" if self.option else ""
        if self.condition:
            return f"for some models{option}: {self.condition}"
        return f"yes{option}, if vLLM supports LoRA for the architecture"


def check_servers(folder: Path, model_type: str | None = None) -> list[ServerCheck]:
    """The checks of vLLM and of TRL's vLLM sync for the stock adapter in `folder`, on a base of this type."""
    config = read_json(folder / CONFIG_NAME)
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 it is no dict
    return _checks(config, shapes, _rank(shapes), model_type)


def check_config(config: PeftConfig) -> list[ServerCheck]:
    """The checks of what an adapter with this config is exported to, as far as they need no tensors."""
    stock = config.to_stock() if isinstance(config, GeneratedLoraConfig) else config
    found = {**stock.to_dict(), "peft_type": str(PeftType(stock.peft_type).value)}
    return _checks(found, {}, max([found.get("r") or 0, *(found.get("rank_pattern") or {}).values()]))


def _checks(
    config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], rank: int, model_type: str | None = None
) -> list[ServerCheck]:
    reasons = _of_vllm(config, shapes, rank)
    if model_type in _WITHOUT_LORA:
        reasons.append(f"we know of no release of vLLM that supports LoRA for {model_type}")
    option = f"--max-lora-rank {next(r for r in RANKS if r >= rank)}" if _DEFAULT_RANK < rank <= RANKS[-1] else ""
    on_heads = _adapts(config, (*_HEADS, *_OTHER_HEADS)) or any(".lora_embedding_A" in key for key in shapes)
    condition = _ON_HEADS if on_heads else ""
    return [
        ServerCheck("vLLM", reasons, option, condition),
        ServerCheck("TRL's vLLM sync", [*reasons, *_of_trl(config)], option, condition),
    ]


def _of_vllm(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], rank: int) -> list[str]:
    if (kind := config["peft_type"]) != "LORA":
        return [f"it is an adapter of type {kind}, and only LoRA is supported"]
    if config.get("target_parameters"):
        return ["it adapts parameters, such as experts (target_parameters)"]
    reasons = []
    if saved := config.get("modules_to_save"):
        reasons.append(f"it has modules_to_save ({', '.join(saved)}), such as a head or norm gains")
    if config.get("use_dora"):
        reasons.append("it is DoRA")
    if config.get("bias") not in (None, LoraConfig.bias) or config.get("lora_bias"):
        reasons.append("it has biases")
    if not reasons and (others := [key for key in shapes if not _OF_LORA.fullmatch(key)]):
        reasons.append(f"it has tensors other than lora_A and lora_B ({others[0]})")
    if rank > RANKS[-1]:
        reasons.append(f"its rank {rank} is above {RANKS[-1]}")
    if not _has_one_scale(config, shapes):
        reasons.append("its modules have different scales (rank_pattern, alpha_pattern), and only one is read")
    return reasons


def _of_trl(config: Mapping[str, Any]) -> list[str]:
    return [_ON_HEADS] if _adapts(config, _HEADS) else []


def _adapts(config: Mapping[str, Any], heads: Sequence[str]) -> bool:
    targets = config.get("target_modules") or []
    return any(head in name for name in ([targets] if isinstance(targets, str) else targets) for head in heads)


def _rank(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The largest rank of a module."""
    return max((shape[0] for key, shape in shapes.items() if key.endswith(_A)), default=0)


def _has_one_scale(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether PEFT's factor lora_alpha / r of every module is the one that r and lora_alpha give."""
    alphas = config.get("alpha_pattern") or {}
    power = 0.5 if config.get("use_rslora") else 1.0
    usual = config["lora_alpha"] / config["r"] ** power
    for key, shape in shapes.items():
        if key.endswith(_A):
            name = key.removeprefix("base_model.model.").partition(".lora_")[0]
            alpha = alphas.get(get_pattern_key(list(alphas), name), config["lora_alpha"])
            if alpha / shape[0] ** power != usual:
                return False
    return True
