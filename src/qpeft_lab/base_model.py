"""The base model of a run: its config, tokenizer, weights and fingerprint."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any, TypeVar

import accelerate
import numpy as np
import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from qpeft.errors import ConfigError, InputError, needs
from qpeft.files import file_hash
from qpeft_lab.base_files import check_base_files
from qpeft_lab.user_files import explain_missing, looks_like_path

Loaded = TypeVar("Loaded")

_LONGEST_DEFAULT = 512
_OTHER_ENCODERS = {"bert-generation", "xlnet"}  # without a class for masked tokens
_ADAPTER = "adapter_config.json"
# suffixes of weights, configs, tokenizers and code
_LOADED = {
    ".safetensors",
    ".bin",
    ".json",
    ".jinja",
    ".txt",
    ".model",
    ".spm",
    ".codes",
    ".tokenizer",
    ".py",
}


def load_config(model: str, trust_remote_code: bool = False) -> PretrainedConfig:
    """The config of a folder or hub id. Raises InputError if there is none."""
    return load(transformers.AutoConfig.from_pretrained, model, trust_remote_code)


def load_tokenizer(model: str, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id. Raises InputError if there is none."""
    tokenizer = load(transformers.AutoTokenizer.from_pretrained, model, trust_remote_code)
    if not tokenizer.vocab_size:  # for a folder without the files of a tokenizer
        raise InputError(
            f"the base model {model!r} has no tokenizer; put its tokenizer.json next to the weights"
        )
    return tokenizer


def load_model(
    model: str, dtype: str = "float32", trust_remote_code: bool = False, load_in_4bit: bool = False
) -> PreTrainedModel:
    """The causal language model of a folder or hub id. Raises InputError if there is none, or if it
    lacks weights.
    """
    loaded, lacking, others = load_weights(
        transformers.AutoModelForCausalLM, model, dtype, trust_remote_code, load_in_4bit
    )
    refuse_lacking(model, lacking | others)
    return loaded


def load_weights(
    auto_class: Any,
    model: str,
    dtype: str,
    trust_remote_code: bool,
    load_in_4bit: bool = False,
    **options: Any,
) -> tuple[Any, set[str], set[str]]:
    """The model, and the names of tensors that transformers made random: the base lacks them; has
    another shape.

    A base for which this is not expected must be refused with `refuse_lacking`. Raises InputError
    if there is no model.
    """
    check_base_files(model)
    options |= {"dtype": dtype, "ignore_mismatched_sizes": True, "output_loading_info": True}
    if load_in_4bit:
        compute = getattr(torch, dtype)
        quantized = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_compute_dtype": compute,
        }
        options["quantization_config"] = transformers.BitsAndBytesConfig(**quantized)
    loaded, info = load(auto_class.from_pretrained, model, trust_remote_code, **options)
    for module in loaded.modules() if load_in_4bit else ():
        module.support_avx512bf16_for_cpu = (
            False  # evaluation would pack weights for a product without gradients
        )
    if is_gguf(model):
        loaded = _without_quantization(loaded, model)
    lacking = {
        key
        for key in info["missing_keys"]
        if loaded.get_parameter_or_buffer(key).is_floating_point()
    }
    return loaded, lacking, {key for key, *_ in info["mismatched_keys"]}


def is_gguf(model: str) -> bool:
    """Whether the base is a GGUF file, which transformers reads from its folder."""
    return model.endswith(".gguf") and Path(model).expanduser().is_file()


def has_files(model: str) -> bool:
    """Whether the base is on this machine, as a folder or a GGUF file."""
    return is_gguf(model) or (Path(model).expanduser() / "config.json").is_file()


def _without_quantization(loaded: Any, model: str) -> Any:
    """The model of a GGUF file as an ordinary one: transformers dequantizes the weights, but calls
    the model quantized, and refuses to save it.
    """
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    settings["_name_or_path"] = model
    config = type(loaded.config)(**settings)
    with accelerate.init_empty_weights(include_buffers=False):
        plain = type(loaded)(config)
    plain.load_state_dict(loaded.state_dict(), assign=True)
    plain.tie_weights()
    plain.generation_config = loaded.generation_config
    return plain.eval()


def refuse_lacking(model: str, names: Collection[str]) -> None:
    """Raise InputError if there are `names` of tensors without weights."""
    if names:
        shown = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
        raise InputError(
            f"the base model {model!r} has no weights of the right shape for {len(names)} of its"
            f" tensors ({shown}), which would be random; copy or download the model again, or name"
            " another base model"
        )


def load(
    loader: Callable[..., Loaded], model: str, trust_remote_code: bool, **options: Any
) -> Loaded:
    """The result of `loader`, a `from_pretrained`, for a folder or hub id. Raises InputError if it
    fails.

    Code in the folder or repository is executed only with `trust_remote_code`. Without the argument
    transformers asks.
    """
    path = Path(model).expanduser()
    if looks_like_path(model) and not path.exists():
        raise InputError(f"no model folder {model}: {explain_missing(model)}")
    if (path / _ADAPTER).is_file():
        raise InputError(
            f"{model} has an {_ADAPTER}, which transformers would load in addition to the base;"
            " name the folder of the base model alone, and an adapter with --adapter"
        )
    source = str(path) if path.is_dir() else model
    if is_gguf(model):
        with needs(f"the GGUF file {model}", "gguf"):
            import gguf  # noqa: F401
        source = str(path.parent)
        options["gguf_file"] = path.name
    try:
        return loader(source, trust_remote_code=trust_remote_code, **options)
    except (
        Exception
    ) as error:  # transformers, safetensors, torch and tokenizers raise any type for a damaged file
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"the model {model!r} needs Python code from its folder or repository, which is not"
                " executed; read the code, and set trust_remote_code if you trust it"
            ) from error
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        if not path.exists():
            reason = f"there is no such folder, and of the hub: {reason}"
        hint = (
            "; if a file is damaged or cut off, copy or download it again" if path.exists() else ""
        )
        raise InputError(f"cannot load the base model {model!r}: {reason}{hint}") from error


def block_length(seq_len: int | None, config: PretrainedConfig, reserved: int = 0) -> int:
    """`seq_len`, or by default the model's context minus `reserved` positions, at most 512.

    Raises ConfigError if it is too long for the context.
    """
    context = getattr(config, "max_position_embeddings", None)
    if context is None:
        return seq_len or _LONGEST_DEFAULT
    room = context - reserved
    if room < 2:
        raise ConfigError(
            f"{reserved} virtual tokens leave no room in the model's context of {context}; use"
            " fewer"
        )
    if seq_len is None:
        return min(room, _LONGEST_DEFAULT)
    if seq_len > room:
        prefix = f", minus {reserved} virtual tokens" if reserved else ""
        raise ConfigError(
            f"seq_len={seq_len} is longer than the model's context of {context} tokens{prefix}"
        )
    return seq_len


def warn_of_own_tokenizer(folder: Path | None, tokenizer: Any) -> None:
    """Warn if the folder of an adapter has another tokenizer than its base's, `tokenizer`, which is
    the one that is used. Trainers save theirs there.
    """
    names = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
    if folder is None or not any((folder / name).is_file() for name in names):
        return
    try:
        own = _tokens(transformers.AutoTokenizer.from_pretrained(str(folder)))
    except Exception:  # of a class that transformers does not know, or without a file
        own = None
    if own != _tokens(tokenizer):
        warnings.warn(
            f"{folder} has a tokenizer of its own, which differs from the base's; the base's is used."
            " If the adapter was trained with its own, put that into a copy of the base's folder,"
            " and give this as --model",
            stacklevel=2,
        )


def _tokens(tokenizer: Any) -> tuple[Any, ...]:
    sample = tokenizer("A sample: it is <b>short</b>.\n").input_ids
    return tokenizer.get_vocab(), tokenizer.special_tokens_map, sample


def check_is_causal(config: PretrainedConfig, model: str) -> None:
    """Raise InputError for an encoder, which predicts a token from those behind it as well.

    transformers makes a causal language model of it all the same, unless its config says
    `is_decoder`, and the loss of such a model comes near 0, whatever the text.
    """
    predicts_masked = config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    is_encoder = predicts_masked or config.model_type in _OTHER_ENCODERS
    # XLM's name for it is `causal`
    is_causal = any(getattr(config, name, False) for name in ("is_decoder", "causal"))
    if is_encoder and not config.is_encoder_decoder and not is_causal:
        raise InputError(
            f"{model} is an encoder ({config.model_type}), which sees the tokens that it would have"
            " to predict, so it is no language model; name a decoder such as GPT-2 or Llama, or"
            " for labelled data --task text-classification"
        )


def check_vocabulary(texts: Iterable[np.ndarray], config: PretrainedConfig) -> None:
    """Raise InputError if a text, token ids (T,), has a token outside the vocabulary of the model."""
    size = config.get_text_config().vocab_size
    highest = max((int(ids.max()) for ids in texts if len(ids)), default=0)
    if highest >= size:
        raise InputError(
            f"the tokenizer gives token {highest}, but the model has {size} tokens; use the"
            " tokenizer of the model"
        )


def fingerprint(model: str, config: PretrainedConfig | None = None) -> str:
    """Identifies the base and its tokenizer: the commit on the hub, or the SHA-256 of the files
    that may be loaded.

    A folder needs no `config`.
    """
    folder = Path(model).expanduser()
    if is_gguf(model):
        return f"sha256:{file_hash(folder)}"
    if not folder.is_dir():
        return f"commit:{getattr(config, '_commit_hash', None)}"
    templates = (folder / "additional_chat_templates").glob("*.jinja")
    files = [file for file in folder.iterdir() if file.suffix in _LOADED]
    parts = [f"{file.name} {file_hash(file)}" for file in [*sorted(files), *sorted(templates)]]
    return f"sha256:{hashlib.sha256(' '.join(parts).encode()).hexdigest()}"
