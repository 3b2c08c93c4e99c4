"""The linear maps that QAA adapts, and the outputs to which it adds."""

from __future__ import annotations

import warnings
from typing import Any

from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
from torch import nn

from qpeft.circuits import amplitude_qubits, count_angles
from qpeft.core.targets import is_linear, set_target_names, sizes
from qpeft.errors import ConfigError, UnsupportedTypeError, setting
from qpeft.methods.qaa.features import count_features

# names of query and value projections, or of one map that computes both
_QUERY_VALUE = (
    ("q_proj", "v_proj"),
    ("query", "value"),
    ("q_lin", "v_lin"),
    ("q", "v"),
    ("c_attn",),
    ("query_key_value",),
    ("qkv_proj",),
    ("qkv",),
    ("Wqkv",),
)


def set_targets(model: nn.Module, config: Any) -> None:
    """Set the config's `target_modules` if they are unset or all-linear, and check every target.

    Raises:
        ConfigError: a name matches no module, or the options do not suit a target.
        UnsupportedTypeError: a target is not a linear map.
    """
    set_target_names(model, config, default_targets, _sites)
    for name, module in _sites(model):
        if check_target_module_exists(config, name):
            _check_site(config, name, module)


def default_targets(model: nn.Module) -> list[str]:
    """The last parts of the names of the query and value projections, or LoRA's targets for this type of model.

    Raises ConfigError if no name is known.
    """
    parts = {name.rpartition(".")[2] for name, module in _sites(model) if is_linear(module)}
    for names in _QUERY_VALUE:
        if parts.issuperset(names):
            return list(names)
    of_lora = TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    names = of_lora.get(getattr(getattr(model, "config", None), "model_type", ""), ())
    if names and parts.issuperset(names):
        return list(names)
    raise ConfigError(
        f"no query and value projections of a known name; name {setting('target_modules')} yourself, of: "
        f"{', '.join(sorted(parts))}"
    )


def written_slices(config: Any, name: str, module: nn.Module) -> list[list[int]]:
    """The ranges of the module's output to which the adapter adds; by default queries and values of GPT-2's c_attn.

    Raises ConfigError if `out_slices` exceed the output.
    """
    width, outputs = sizes(module)
    if config.out_slices is None:
        is_fused = name.rpartition(".")[2] == "c_attn" and outputs == 3 * width
        return [[0, width], [2 * width, 3 * width]] if is_fused else [[0, outputs]]
    for start, stop in config.out_slices:
        if start < 0 or stop > outputs:
            raise ConfigError(f"out_slices [{start}, {stop}) is outside 0..{outputs} for {name}.")
    return config.out_slices


def _check_site(config: Any, name: str, module: nn.Module) -> None:
    if not is_linear(module):
        raise UnsupportedTypeError(f"QAA cannot adapt {name}: expected Linear or Conv1D, got {type(module).__name__}.")
    width, slices = sizes(module)[0], written_slices(config, name, module)
    n_qubits = amplitude_qubits(width)
    if width == 1:
        warnings.warn("QAA on an input of width 1 has constant features.", stacklevel=2)
    if config.readout == "z" or config.allow_large or config.feature_source == "none":
        return
    written = sum(stop - start for start, stop in slices)
    trained = written * (count_features(config, width) + config.use_offset)
    if config.feature_source in ("qnn", "givens") and config.train_circuit:
        trained += count_angles(config.ansatz, n_qubits, config.n_layers)
    if trained >= width * written:
        raise ConfigError(
            f"{setting('readout')}='probs' would train {trained} parameters at {name}, not fewer than the "
            f"{width * written} of the full weight. Use {setting('readout')}='z'. ({setting('allow_large')} allows it.)"
        )


def _sites(model: nn.Module) -> list[tuple[str, Any]]:
    """Modules by their names without QAA adapters."""
    return [
        (name, getattr(module, "base_layer", module))
        for name, module in model.named_modules()
        if name and ".qaa_" not in name and not name.endswith(".base_layer")
    ]
