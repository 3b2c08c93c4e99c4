"""Targets of an adapter: a name that matches nothing is an error, not a smaller adapter; weights
that they share.
"""

from __future__ import annotations

import copy
import re
import warnings
from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

from peft import LoraConfig, PeftConfig, PeftType
from peft.tuners.tuners_utils import (
    BaseTunerLayer,
    _maybe_include_all_linear_layers,
    check_target_module_exists,
)
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from peft.utils.constants import DUMMY_TARGET_MODULES
from peft.utils.other import AuxiliaryTrainingWrapper, get_pattern_key
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from qpeft.checks import unknown
from qpeft.core.config import AdapterConfig
from qpeft.core.patterns import check_patterns
from qpeft.errors import ConfigError, InputError, TiedWeightError

# fields of a config that PEFT's conversion for transformers reads; it changes the first ones
_CONVERTED = ("target_modules", "target_parameters", "rank_pattern", "alpha_pattern")
_READ = (*_CONVERTED, "exclude_modules", "modules_to_save", "r", "lora_alpha", "task_type")
_SPECIAL = ("all-linear", DUMMY_TARGET_MODULES)  # texts in target_modules that are no patterns
_ADDED_HEADS = {"classifier", "score"}  # which PEFT adds, whether or not the model has them
# as in PEFT: kernels of these types of models read the weights of these modules
_MAMBA = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}
_READ_BY_KERNELS = {"conv1d", "out_proj"}


def check_target_modules(model: nn.Module, config: PeftConfig) -> None:
    """Check `target_modules`, `modules_to_save`, and the keys of `rank_pattern` and
    `alpha_pattern`.

    Before that, the targets of a LoRA or of qpeft's methods become what PEFT makes of LoRA's: its
    default for the type of model if there are none, and `target_parameters` instead of the names of
    experts, whose weights transformers keeps in one parameter for all experts.

    Raises ConfigError if a name matches nothing in `model`, the order of `rank_pattern` or `alpha_pattern`
    decides a rank or scale, or the targets contain experts, and the method adapts modules alone.
    """
    check_patterns(model, vars(config))
    try:
        _convert_targets(model, config)
        _leave_out_copies(model, config)
        _check_names(model, config)
    except InputError:
        raise
    except (re.error, ValueError) as error:  # of a regular expression, from PEFT
        raise ConfigError(f"target_modules or a pattern is invalid: {error}") from error


def _convert_targets(model: nn.Module, config: Any) -> None:
    """Set PEFT's default targets, and name experts by their parameters, as PEFT does for LoRA."""
    is_own = isinstance(config, AdapterConfig)
    if not is_own and config.peft_type != PeftType.LORA:
        return  # PEFT converts LoRA's targets alone
    if (
        is_own
        and isinstance(config, LoraConfig)
        and config.target_modules is None
        and not config.target_parameters
    ):
        config.target_modules = _default_targets(model)
    # PEFT converts a LoraConfig only
    given = {name: copy.copy(getattr(config, name, None)) for name in _READ}
    stock = LoraConfig(**{name: value for name, value in given.items() if value is not None})
    convert_peft_config_for_transformers(stock, model, None)
    experts = sorted(stock.target_parameters or ())
    if not experts or experts == sorted(_given(config, "target_parameters")):
        if is_own and not _given(config, "target_modules"):
            vars(config)["target_modules"] = stock.target_modules  # none, not PEFT's default
        return
    if is_own and not getattr(config, "adapts_parameters", False):
        raise ConfigError(
            "target_modules contain experts or their router, whose weights are the parameters"
            f" {', '.join(experts)} instead of modules, and {type(config).__name__} adapts modules"
            f" alone; give some of {_linear_names(model)}, or use LoRA or QPA"
        )
    stock.target_parameters = experts  # in order: it is saved
    for name in _CONVERTED:
        setattr(config, name, getattr(stock, name))


def _leave_out_copies(model: nn.Module, config: Any) -> None:
    """Let all-linear mean no copy of a module that another adapter trains in full: the base of a
    saved adapter has none.
    """
    copies = _in_copies(model)
    if copies and str(getattr(config, "target_modules", "")).lower() == "all-linear":
        expanded: Any = _maybe_include_all_linear_layers(config, model)
        config.target_modules = {n for n in expanded.target_modules if not n.startswith(copies)}


def _in_copies(model: nn.Module) -> tuple[str, ...]:
    """What the names of modules begin with that are copies for `modules_to_save` and the like."""
    return tuple(
        f"{name}."
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, AuxiliaryTrainingWrapper)
    )


def _default_targets(model: nn.Module) -> Any:
    """PEFT's targets of LoRA for this type of model."""
    model_type = getattr(getattr(model, "config", None), "model_type", "")
    default: Any = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING.get(model_type)
    if default is None:
        raise ConfigError(f"set target_modules to all-linear, or to some of {_linear_names(model)}")
    return default if isinstance(default, str) else set(default)


def _linear_names(model: nn.Module) -> str:
    modules = model.named_modules()
    return ", ".join(last_parts(name for name, module in modules if is_linear(module)))


def _check_names(model: nn.Module, config: Any) -> None:
    """Raise ConfigError if a name or a pattern of `config` matches nothing in `model`."""
    by_name = dict(model.named_modules(remove_duplicate=False))
    inside = tuple(
        f"{name}."
        for name, module in by_name.items()
        if isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper))
    )
    modules = [name for name in by_name if name and not name.startswith(inside)]
    parameters = [
        name.replace(".base_layer", "")
        for name, _ in model.named_parameters(remove_duplicate=False)
    ]
    targets = _given(config, "target_modules")
    copied = _given(config, "modules_to_save")
    if config.task_type in ("SEQ_CLS", "TOKEN_CLS"):
        copied = set(copied) - _ADDED_HEADS
    adapted_parameters = _given(config, "target_parameters")
    adapted = modules + parameters if adapted_parameters else modules

    for field in ("rank_pattern", "alpha_pattern"):
        for key in _given(config, field):
            _check_pattern(field, rf"(.*\.)?({key})", adapted)
    check_order(config, adapted)
    if not isinstance(targets, str):
        _check_ends("target_modules", targets, modules)
    elif targets not in _SPECIAL:
        _check_pattern("target_modules", targets, adapted)
    _warn_of_missing(config, modules)
    _check_ends("modules_to_save", copied, modules)
    _check_ends("target_parameters", adapted_parameters, parameters)


def check_order(config: Any, names: Iterable[str]) -> None:
    """Raise ConfigError if the order of `rank_pattern` or `alpha_pattern` decides the rank or scale
    of one of the modules `names`: PEFT takes the first pattern that matches, and saves them sorted.
    """
    for field, name in product(("rank_pattern", "alpha_pattern"), names):
        patterns = [*_given(config, field)]
        if get_pattern_key(patterns, name) != get_pattern_key(sorted(patterns), name):
            raise ConfigError(
                f"several patterns of {field} match {name}: PEFT takes the first, and saves"
                " them in alphabetical order. Give them in this order, or such that one matches"
            )


def _given(config: Any, field: str) -> Any:
    """A field that some configs lack; empty if it is not set."""
    return getattr(config, field, None) or ()


def _check_pattern(field: str, pattern: str, names: list[str]) -> None:
    if not any(re.fullmatch(pattern, name) for name in names):
        raise ConfigError(unknown(f"{field} pattern", pattern, last_parts(names)))


def _check_ends(field: str, ends: Iterable[str], names: list[str]) -> None:
    for end in sorted(ends):
        if not _is_end(end, names):
            raise ConfigError(unknown(field, end, last_parts(names)))


def _warn_of_missing(config: Any, names: list[str]) -> None:
    """Warn of layers in `layers_to_transform`, and of names in `exclude_modules`, that the model does
    not have; PEFT ignores them, and refuses if it has none of the layers.
    """
    given = _given(config, "layers_to_transform")
    layers = [given] if isinstance(given, int) else given
    numbers = {part for name in names for part in name.split(".")}
    no_layers = [number for number in layers if str(number) not in numbers]
    missing = {"layers_to_transform": no_layers if len(no_layers) < len(layers) else []}
    excluded = _given(config, "exclude_modules")
    if not isinstance(excluded, str):
        missing["exclude_modules"] = [end for end in excluded if not _is_end(end, names)]
    for field, absent in missing.items():
        if absent:
            shown = ", ".join(map(str, sorted(absent)))
            warnings.warn(f"{field}: the model does not have {shown}", stacklevel=2)


def _is_end(end: str, names: list[str]) -> bool:
    return any(f".{name}".endswith(f".{end}") for name in names)


def last_parts(names: Iterable[str]) -> list[str]:
    """The last parts of the names of modules, without the numbers of layers."""
    parts = {name.rpartition(".")[2] for name in names}
    return sorted(part for part in parts if not part.isdigit())


def norm_targets(model: nn.Module) -> list[str]:
    """The last parts of the names of all normalizations of a model.

    Raises ConfigError if it has none.
    """
    return sorted({name.rpartition(".")[2] for name in _norm_names(model)})


def last_norm(model: nn.Module) -> str:
    """The name of the normalization after the last block. Raises ConfigError as `norm_targets`."""
    names = _norm_names(model)
    outside = [name for name in names if not re.search(r"(^|\.)\d+(\.|$)|embed", name)]
    return (outside or names)[-1]  # neither in a block nor in the embeddings


def _norm_names(model: nn.Module) -> list[str]:
    names = [
        name for name, module in model.named_modules() if "norm" in type(module).__name__.lower()
    ]
    if not names:
        raise ConfigError(f"{type(model).__name__} has no normalization; name other modules")
    return names


def set_target_names(model: nn.Module, config: Any, modules: Mapping[str, nn.Module]) -> None:
    """As `check_target_modules`; all-linear becomes the names of linear maps in `modules`."""
    _convert_targets(model, config)
    if str(config.target_modules).lower() == "all-linear":
        # like PEFT, without the output head; PEFT's own search skips modules that have an adapter
        head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
        head = getattr(head, "base_layer", head)
        copies = _in_copies(model)
        config.target_modules = [
            name
            for name, m in modules.items()
            if is_linear(m) and m is not head and not (copies and name.startswith(copies))
        ]
    check_target_modules(model, config)


def is_linear(module: Any) -> bool:
    """Whether it is a Linear, also of a quantized base, or a Conv1D."""
    return isinstance(module, Conv1D) or (
        isinstance(getattr(module, "in_features", None), int)
        and isinstance(getattr(module, "out_features", None), int)
    )


def sizes(linear: Any) -> tuple[int, int]:
    """Width of the input and of the output of a linear map."""
    if isinstance(linear, Conv1D):
        return linear.nx, linear.nf
    return linear.in_features, linear.out_features


# that tie more than the head, which transformers ties nevertheless when the head is untied
_UNTIED_ALONE = ("t5", "mt5")


def untie_lm_head(model: Any) -> Any:
    """Give the output head its own copy of the weight it shares with the input embedding, in place.

    Needed before merging an adapter of the head: merging would otherwise change the embedding as
    well. `model` is a transformers model or a PeftModel over one; it is returned. A head with its
    own weight is not changed.

    Raises:
        ConfigError: the model has no output head, or ties more weights than this one, as most
            encoder-decoders do. Then transformers reads more from `tie_word_embeddings` than
            whether the head is tied: the scale of the logits (UMT5, Switch), or the embeddings of
            both halves (BART). T5 and mT5 are right.
    """
    base = getattr(model, "get_base_model", lambda: model)()
    head = getattr(base, "get_output_embeddings", lambda: None)()
    if head is None:
        raise ConfigError(f"{type(base).__name__} has no output head to untie")
    layer = getattr(head, "base_layer", head)
    embedding = base.get_input_embeddings()
    shared = layer.weight
    if shared is getattr(embedding, "base_layer", embedding).weight:
        tied = [getattr(module, "_tied_weights_keys", None) or () for module in base.modules()]
        n_tied = sum(name.endswith(".weight") for names in tied for name in names)
        if n_tied > 1 and base.config.model_type not in _UNTIED_ALONE:
            raise ConfigError(
                f"the output head of {type(base).__name__} cannot be untied alone: transformers"
                " would scale its logits differently, or not load its other embeddings; do not"
                " merge the adapter, but export it with qpeft.export"
            )
        copied = shared.detach().clone()
        layer.weight = nn.Parameter(copied, requires_grad=shared.requires_grad)
        for config in (base.config, base.config.get_text_config()):
            config.tie_word_embeddings = False
    return model


def check_not_tied(model: nn.Module, target_names: list[str]) -> None:
    """Raise TiedWeightError if another module shares the weight of a target."""
    owners: dict[int, list[str]] = {}  # names of the modules that have a parameter, by its id
    for name, parameter in model.named_parameters(remove_duplicate=False):
        module_name = name.rpartition(".")[0].removesuffix(".base_layer")
        owners.setdefault(id(parameter), []).append(module_name)
    for names in owners.values():
        for target in target_names:
            others = [name for name in names if name != target]
            if target in names and others:
                raise TiedWeightError(
                    f"{target} shares its weight with {others[0]}, which merging would change as"
                    " well; untie an output head with qpeft.untie_lm_head(model), or qpeft export"
                    " --untie"
                )


def check_called(model: nn.Module, target_names: Iterable[str]) -> None:
    """Raise ConfigError if a target is a `torch.nn.MultiheadAttention`, where PEFT's LoRA adds the
    update of the output map twice, or if the parent of a target reads its weight instead of calling
    it.

    An adapter there has no part in the forward pass, so no gradient reaches it, but a generator
    fills it, and merging adds it. These are the output map of a `torch.nn.MultiheadAttention`, and
    what PEFT refuses of Mamba.
    """
    is_mamba = getattr(getattr(model, "config", None), "model_type", None) in _MAMBA
    for name in target_names:
        path, _, last = name.rpartition(".")
        parent = model.get_submodule(path)
        target = model.get_submodule(name)
        if isinstance(getattr(target, "base_layer", target), nn.MultiheadAttention):
            raise ConfigError(
                f"{name} is a MultiheadAttention, where PEFT's LoRA adds the update of the output map"
                " twice, with half of its gradient; adapt other modules"
            )
        if isinstance(parent, nn.MultiheadAttention) or (is_mamba and last in _READ_BY_KERNELS):
            raise ConfigError(
                f"{type(parent).__name__} reads the weight of {name} instead of calling it, so an"
                f" adapter there would not be trained; leave it out, with exclude_modules={[name]}"
            )


def in_layers(names: list[str], config: Any) -> list[str]:
    """Those of the modules that are in `layers_to_transform`.

    PEFT applies it to the last parts of names, not to whole names or patterns. Raises ConfigError if
    none is left.
    """
    by_last_part = copy.copy(config)
    kept = []
    for name in names:
        by_last_part.target_modules = [name.rpartition(".")[2]]
        if check_target_module_exists(by_last_part, name):
            kept.append(name)
    if not kept:
        raise ConfigError(
            f"none of the {len(names)} targets is in layers_to_transform="
            f"{config.layers_to_transform!r}; give numbers of layers, or another layers_pattern"
        )
    return kept
