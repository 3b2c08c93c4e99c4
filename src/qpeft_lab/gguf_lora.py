"""An exported LoRA as a GGUF file, which llama.cpp and Ollama load on a base in GGUF.

    adapter_model.safetensors                    GGUF
    ...layers.0.self_attn.q_proj.lora_A  (r, in)   -->  blk.0.attn_q.weight.lora_a  (r, in)
    ...layers.0.self_attn.q_proj.lora_B  (out, r)  -->  blk.0.attn_q.weight.lora_b  (out, r), its rows
                                                        in the order of the base's in GGUF

llama.cpp adds `alpha / r * lora_b @ lora_a` with one alpha for all modules. Another scaling of PEFT
(rsLoRA, `alpha_pattern`) is multiplied into `lora_b`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from transformers import PretrainedConfig

from qpeft.errors import ConfigError, needs
from qpeft.files import read_json, replace_file, write_text
from qpeft_lab.stock_servers import not_plain

ARCHITECTURES = {  # of transformers' model types in the package gguf
    "llama": "LLAMA",
    "mistral": "LLAMA",
    "qwen2": "QWEN2",
    "qwen3": "QWEN3",
    "gemma2": "GEMMA2",
    "gemma3": "GEMMA3",
    "gemma3_text": "GEMMA3",
    "gpt2": "GPT2",
}
_SUFFIXES = {".lora_A.weight": ".weight.lora_a", ".lora_B.weight": ".weight.lora_b"}
_MODEL_PREFIX = "base_model.model."


def check_base(config: PretrainedConfig) -> None:
    """Raise ConfigError if the package gguf is missing, or the names of this base are unknown."""
    with needs("--gguf", "gguf"):
        import gguf  # noqa: F401
    if config.model_type not in ARCHITECTURES:
        raise ConfigError(
            f"--gguf has no names of tensors for {config.model_type}; it has them for"
            f" {', '.join(ARCHITECTURES)}. Export without --gguf"
        )


def refuse_other_file(path: Path) -> None:
    """Raise ConfigError if there is a file that is no adapter in GGUF, such as the base: it would
    be lost.
    """
    if not path.exists():
        return
    with needs("--gguf", "gguf"):
        from gguf import GGUFReader
    try:
        field = GGUFReader(path).get_field("general.type")
    except (OSError, ValueError, IndexError):  # the file is no GGUF, or damaged
        field = None
    if field is None or field.contents() != "adapter":
        raise ConfigError(
            f"{path} exists, is no adapter in GGUF, and would be lost; give --gguf another file"
        )


def check_adapter(config: Mapping[str, Any]) -> None:
    """Raise ConfigError if the stock adapter with this config is more than a plain LoRA."""
    reasons = not_plain(config)
    if saved := config.get("modules_to_save"):
        reasons.append(f"it has modules_to_save ({', '.join(sorted(saved))})")
    if config.get("target_parameters"):
        reasons.append("it adapts experts (target_parameters)")
    if reasons:
        raise ConfigError(
            f"--gguf writes a plain LoRA, and this adapter is none: {'; '.join(reasons)}. Export it"
            " without --gguf, or merge it with --merge"
        )


def write_gguf(exported: Path, base: PretrainedConfig, out: Path) -> None:
    """Write the LoRA in the folder `exported` as GGUF, in float32, and the Modelfile of Ollama.

    Args:
        exported: A folder of `qpeft.export`.
        base: The config of its base model.
        out: The file; its Modelfile is written next to it, unless it is there.

    Raises ConfigError if the adapter is no plain LoRA, or GGUF has no tensor for a module of it.
    """
    import gguf

    check_base(base)
    config = read_json(exported / CONFIG_NAME)
    check_adapter(config)
    # 0 would mean "no alpha" to llama.cpp; the scaling of 0 is then in lora_b
    alpha = float(config["lora_alpha"] or 1)
    architecture = gguf.MODEL_ARCH[ARCHITECTURES[base.model_type]]
    tensors = _tensors(exported, base, config, alpha)
    with replace_file(out) as temporary:
        writer = gguf.GGUFWriter(temporary, gguf.MODEL_ARCH_NAMES[architecture])
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        for name, value in tensors.items():
            writer.add_tensor(name, value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    modelfile = modelfile_of(out)
    base_name = " ".join(str(config.get("base_model_name_or_path")).split())
    text = (
        f"# ollama create {modelfile.stem} -f {modelfile.name}\n"
        "# FROM is the base model: its name in Ollama, a GGUF file, or a folder of safetensors\n"
        f"FROM {base_name}\nADAPTER ./{out.name}\n"
    )
    if not modelfile.exists():
        write_text(modelfile, text)
    elif modelfile.read_bytes() != text.encode():  # its user has edited it
        warnings.warn(f"{modelfile} is kept; its FROM must be {base_name}", stacklevel=2)


def modelfile_of(out: Path) -> Path:
    """The Modelfile of a GGUF file: `NAME.Modelfile` of `NAME.gguf`, and of `NAME` without it."""
    return out.with_name(f"{out.name.removesuffix('.gguf')}.Modelfile")


def _tensors(
    exported: Path, base: PretrainedConfig, config: Mapping[str, Any], alpha: float
) -> dict[str, np.ndarray]:
    """The tensors in float32 by their names in GGUF: `lora_a` (r, in) and `lora_b` (out, r)."""
    import gguf

    text = base.get_text_config()
    architecture = gguf.MODEL_ARCH[ARCHITECTURES[base.model_type]]
    names = gguf.get_tensor_name_map(architecture, text.num_hidden_layers)
    made = {}
    for key, tensor in load_file(exported / SAFETENSORS_WEIGHTS_NAME).items():
        suffix = next((end for end in _SUFFIXES if key.endswith(end)), "")
        module = key.removeprefix(_MODEL_PREFIX).removesuffix(suffix)
        # of a model with a vision tower
        text_module = module.replace("model.language_model.", "model.", 1)
        name = names.get_name(text_module) if suffix else None
        is_tied_head = module == "lm_head" and text.tie_word_embeddings
        if name is None or is_tied_head:
            raise ConfigError(
                f"--gguf: {base.model_type} has no tensor in GGUF for {module}; leave it out of"
                " target_modules, or export without --gguf"
            )
        value = tensor.float().numpy()
        if suffix == ".lora_B.weight":
            rank = value.shape[1]
            value = value * np.float32(_scaling(module, rank, config) * rank / alpha)
            if architecture == gguf.MODEL_ARCH.LLAMA:
                value = _in_rotary_pairs(value, module, text)
        made[name + _SUFFIXES[suffix]] = np.ascontiguousarray(value)
    return made


def _scaling(module: str, rank: int, config: Mapping[str, Any]) -> float:
    """What PEFT multiplies `lora_B @ lora_A` of this module with."""
    patterns = config.get("alpha_pattern") or {}
    alpha = patterns.get(get_pattern_key([*patterns], module), config["lora_alpha"])
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _in_rotary_pairs(rows: np.ndarray, module: str, text: Any) -> np.ndarray:
    """`rows` (out, r) of a query or key as llama.cpp orders a Llama's; those of others unchanged.

    transformers rotates the first half of a head with the second, llama.cpp neighbouring rows.
    """
    n_heads = {
        "q_proj": text.num_attention_heads,
        "k_proj": text.num_key_value_heads,
    }.get(module.rpartition(".")[2])
    if n_heads is None:
        return rows
    halves = rows.reshape(n_heads, 2, -1, rows.shape[1])  # (heads, halves, head / 2, r)
    return halves.swapaxes(1, 2).reshape(rows.shape)
