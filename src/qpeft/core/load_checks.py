"""Checks of loaded adapters: complete, of this model, finite, and with an effect."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig, get_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import _filter_state_dict_by_key_prefixes, _get_tuner_state_dict_key_prefixes
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from torch import Tensor, nn

from qpeft.circuits.ansatz import OWN_ANSATZE
from qpeft.core.adapter_form import form_of
from qpeft.core.binding import Slot
from qpeft.core.config import GeneratedConfig
from qpeft.core.generator import CircuitModule
from qpeft.core.generator_holder import GeneratorHolder, holder_of
from qpeft.core.seeded_init import SeededInit
from qpeft.errors import CheckpointError, ConfigError, InputError

_BITS = 32  # of a stored value, which may contain that many quantized parameters
_UNCHECKED = 2**20  # that many parameters are drawn at once
_LARGEST = 2**40  # entries of a generated tensor


class _Undrawn(SeededInit):
    """Tensors of the shapes that would be drawn, on the meta device."""

    def uniform(self, name: str, shape: Sequence[int], bound: float) -> Tensor:
        return torch.empty(tuple(shape), device="meta")

    def normal(self, name: str, shape: Sequence[int], std: float = 1.0) -> Tensor:
        return torch.empty(tuple(shape), device="meta")


def check_generator(content: Mapping[str, Any], folder: Path) -> None:
    """Raise ConfigError if adapter_config.json describes a generator that the weights cannot contain.

    Before the generator is built: its parameters are counted on the meta device, without values.
    """
    if not issubclass(PEFT_TYPE_TO_CONFIG_MAPPING[content["peft_type"]], GeneratedConfig):
        return
    if content.get("frames_sha256") is not None:  # it has no table of tensors; its values are counted when loaded
        return
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
        shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118 it is no dict
    try:
        table = [(str(label), torch.Size(shape)) for label, shape in content.get("generated") or ()]
        if not table:
            raise ValueError("it is empty")
        if wrong := [label for label, shape in table if min(shape, default=1) < 1 or math.prod(shape) > _LARGEST]:
            raise ValueError(f"the shape of {wrong[0]}")
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"the table of generated tensors is damaged ({error})") from error
    with warnings.catch_warnings(action="ignore"), torch.device("meta"):
        try:
            config = PeftConfig.from_pretrained(str(folder))
            assert isinstance(config, GeneratedConfig)
            slots = [Slot(nn.Module(), "", label, shape, torch.float32) for label, shape in table]
            prefix = config.tensor_prefix
            own = {k.removeprefix(prefix): torch.empty(v) for k, v in shapes.items() if k.startswith(prefix)}
            generator = config.without_base(slots, _Undrawn(0), own)
            wanted = sum(p.numel() for p in generator.parameters()) if generator else config.count_without_base(slots)
        except InputError:
            raise
        except Exception:  # reported where the adapter is built; or a user's generator that computes with values
            return
    stored = sum(map(math.prod, shapes.values()))
    if (wanted or 0) > max(_UNCHECKED, _BITS * stored):
        raise ConfigError(f"its generator would have {wanted:,} parameters, the weights contain {stored:,} values")
    _check_angles(generator, own)


def _check_angles(generator: nn.Module | None, stored: Mapping[str, Tensor]) -> None:
    """Raise ConfigError if a circuit has other angles than the checkpoint: other layers, or another ansatz."""
    for name, circuit in () if generator is None else generator.named_modules():
        if not isinstance(circuit, CircuitModule):
            continue
        for key, angles in circuit.named_parameters(name):
            if key in stored and stored[key].shape != angles.shape:
                ansatz = circuit.ansatz.name
                remedy = (
                    "; import the module that registered this ansatz when the adapter was trained, or give its file on "
                    "the command line with --ansatz FILE.py:NAME"
                )
                raise ConfigError(
                    f"with these settings ansatz {ansatz} needs angles of shape {list(angles.shape)}, the checkpoint "
                    f"has {list(stored[key].shape)}{'' if ansatz in OWN_ANSATZE else remedy}"
                )


def check_whole(model: Any, folder: Path, name: str) -> None:
    """Raise CheckpointError if the file lacks a tensor or has an unknown one; PEFT at most warns."""
    form = form_of(model)
    wanted = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False).keys()
    with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
        found = {form.current_key(key) if form else key for key in file.keys()}  # noqa: SIM118 it is no dict
    # the tensors of generators were checked when they were loaded: a file may have a hash instead of frames
    generated = {key for key in wanted | found if key.startswith(f"base_model.{GeneratorHolder.container}.")}
    missing = sorted(wanted - found - generated)
    surplus = sorted(found - wanted - generated - model.state_dict().keys())
    if missing or surplus:
        raise CheckpointError(
            f"{folder} does not contain this adapter: missing {missing[:3] or 'nothing'}, unknown "
            f"{surplus[:3] or 'nothing'}; {SAFETENSORS_WEIGHTS_NAME} or {CONFIG_NAME} is damaged, or for another base "
            "model"
        )


def check_acts(model: Any, folder: Path, name: str) -> None:
    """Raise CheckpointError if the adapter's parameters are not finite, or its config scales them by 0 or infinity."""
    if broken := find_not_finite(model, name):
        raise CheckpointError(f"{folder} contains NaN or Inf, in {broken}; use an earlier checkpoint")
    for module_name, module in model.named_modules():
        scaling = getattr(module, "scaling", None)
        factor = scaling.get(name, 1.0) if isinstance(scaling, dict) else 1.0
        if not torch.finfo(torch.float32).tiny <= abs(factor) < torch.finfo(torch.float32).max:
            raise CheckpointError(
                f"{folder / CONFIG_NAME} multiplies the adapter of {module_name} by {factor}; restore lora_alpha and "
                "the related fields"
            )


def find_not_finite(model: Any, name: str) -> str | None:
    """The name of a saved or generated tensor with NaN or Inf; None if there is none."""
    holder = holder_of(model)
    if holder is not None and name in holder.generators:
        with holder.exact():  # as in an export, without a job on a device
            state = holder.stock_state(model, name)
    else:
        state = get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)
    return next((key for key, value in state.items() if not value.is_meta and not torch.isfinite(value).all()), None)


def check_tensors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Raise CheckpointError unless `found` has the names, shapes and fingerprint of `expected`, and is finite."""
    missing, surplus = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    if missing or surplus:
        raise CheckpointError(
            f"the checkpoint does not contain this adapter: missing {missing or 'nothing'}, "
            f"unknown {surplus or 'nothing'}; it is damaged or was written with other settings"
        )
    for name, value in expected.items():
        if found[name].shape != value.shape:
            raise CheckpointError(
                f"the checkpoint's {name} has shape {list(found[name].shape)}, expected {list(value.shape)}; "
                "it was written with other settings or for another model"
            )
        if found[name].is_floating_point() != value.is_floating_point():
            raise CheckpointError(f"the checkpoint's {name} has type {found[name].dtype}, expected {value.dtype}")
        if name.endswith("fingerprint") and not torch.equal(found[name].cpu(), value.cpu()):
            raise CheckpointError(
                "the checkpoint has other initial values or settings (seed, scales, activation, gates of an ansatz of "
                "your own, ...), or another base model whose weights determine its frames; build the adapter with the "
                "settings in its adapter_config.json, or load it with qpeft.load on its base model"
            )
    # as they are loaded: a float64 value may be infinite in float32
    if broken := _first_nonfinite({name: found[name].to(value.dtype) for name, value in expected.items()}):
        raise CheckpointError(f"the checkpoint's {broken} contains NaN or Inf; use an earlier checkpoint")


def _first_nonfinite(found: dict[str, Tensor]) -> str | None:
    floats = [tensor.flatten() for tensor in found.values() if tensor.is_floating_point()]
    # together, because for a small adapter checking each tensor takes longer than reading the file
    if not floats or torch.isfinite(torch.cat(floats).sum()):
        return None
    return next((name for name, tensor in found.items() if not torch.isfinite(tensor).all()), None)


def check_adapter(tuner: Any, model: Any, adapter_name: str, found: dict[str, Tensor]) -> None:
    """`check_tensors` for the tensors `found`, by their name in `model`, of an adapter of the class `tuner`.

    Without it PEFT silently leaves tensors that the file lacks at their initial values.
    """
    present = model.state_dict()
    mine = _filter_state_dict_by_key_prefixes(present, _get_tuner_state_dict_key_prefixes(model, adapter_name))
    expected = tuner._get_adapter_state_dict(model, model.peft_config[adapter_name], adapter_name, mine, [])
    check_tensors({k: v for k, v in found.items() if k in expected or k not in present}, expected)
