"""Quantum-PEFT: circuits generate U and V of dW = s U diag(lambda) V^T, which is a LoRA."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft.tuners.lora import LoraLayer, LoraModel
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from qpeft.core.base_digest import digest, own_weights, signs
from qpeft.core.binding import Slot
from qpeft.core.config import in_saved_order
from qpeft.core.frame_file import FrameFile
from qpeft.core.seeded_init import SeededInit
from qpeft.core.slots import find_slots
from qpeft.core.targets import check_is_matrix
from qpeft.core.tuner import GeneratedMixin
from qpeft.errors import CheckpointError, ConfigError
from qpeft.methods.quantum_peft.config import QuantumPeftConfig
from qpeft.methods.quantum_peft.generator import QuantumPeftGenerator
from qpeft.methods.quantum_peft.layout import Layout, Matrix


class QuantumPeftModel(GeneratedMixin, LoraModel):
    """The tuner that PEFT builds for a QuantumPeftConfig."""

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        self._adapted: dict[int, str] = {}  # the adapter's modules by the id of their weight
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _create_and_replace(  # pyright: ignore[reportIncompatibleMethodOverride]  as LoraModel's own does
        self,
        lora_config: Any,
        adapter_name: str,
        target: Any,
        target_name: str,
        parent: Any,
        current_key: str,
        **options: Any,
    ) -> None:
        layer = target.get_base_layer() if isinstance(target, LoraLayer) else target
        check_is_matrix(layer, current_key)
        first = self._adapted.setdefault(id(layer.weight), current_key)
        if first != current_key:
            warnings.warn(f"{current_key} shares its weight with {first}, which is adapted once", stacklevel=2)
            return
        super()._create_and_replace(lora_config, adapter_name, target, target_name, parent, current_key, **options)

    def _build(self, adapter_name: str, config: Any, init: SeededInit) -> tuple[QuantumPeftGenerator, list[Slot]]:
        matrices: list[Matrix] = []
        slots: list[dict[str, Slot]] = []
        layers: list[Any] = []
        for slot, layer in find_slots(self.model, adapter_name, LoraLayer):
            name, _, part = slot.label.rpartition(".lora_")
            if part == "A.weight":
                matrices.append(_matrix(name, layer, adapter_name))
                slots.append({"v": slot})
                layers.append(layer)
            else:
                slots[-1]["u"] = slot
        layout = Layout.of(config, matrices)
        gains = gain_slots(self.model, adapter_name)
        ordered = [*(slots[index][side] for index, side in layout.order()), *gains]
        _check_saved(ordered, config)
        generator = QuantumPeftGenerator(config, layout, init, _values(gains))
        if config.frames is not None:
            _set_frames(generator, config.frame_file())
        elif config.frame == "weights":
            _set_weight_frames(generator, layers, signs(digest(own_weights(self.model, adapter_name))))
        return generator, ordered


def _matrix(name: str, layer: Any, adapter_name: str) -> Matrix:
    """The layer's matrix; PEFT's own scaling of it is set to 1."""
    rank, scale = layer.r[adapter_name], float(layer.lora_alpha[adapter_name])
    layer.lora_alpha[adapter_name], layer.scaling[adapter_name] = rank, 1.0
    return Matrix(name, layer.out_features, layer.in_features, rank, scale)


def _set_frames(generator: QuantumPeftGenerator, file: FrameFile) -> None:
    """Take the frames of the matrices from the frame file."""
    matrices, parts = generator.layout.matrices, generator.layout.parts
    frames = {
        part.label: file.frame([matrices[i].name for i in part.matrices], part.side, part.inner) for part in parts
    }
    generator.set_frame_file(frames)


def _set_weight_frames(generator: QuantumPeftGenerator, layers: list[Any], base: str | None) -> None:
    """Compute the frames of the matrices from the weights of their layers."""
    names = [matrix.name for matrix in generator.layout.matrices]
    weights = [_weight(name, layer) for name, layer in zip(names, layers, strict=True)]
    generator.set_weight_frames(weights, base)


def _weight(name: str, layer: Any) -> Tensor:
    """The base weight of a layer, (d_out, d_in); raises ConfigError if its singular vectors cannot be computed."""
    weight = layer.get_base_layer().weight
    if weight.is_meta:
        problem = "is on the meta device; load the base model's weights first"
    elif not weight.is_floating_point():
        problem = "is quantized; load the base model in float32 or bfloat16, or use frame='gradient'"
    elif layer.merged:
        problem = "contains a merged adapter; call model.unmerge_adapter() first"
    elif not torch.isfinite(weight).all():
        problem = "contains NaN or Inf; check the base model"
    else:
        return weight.mT if layer.fan_in_fan_out else weight
    raise ConfigError(f"frame='weights' needs the weight of {name}, which {problem}")


def gain_slots(model: nn.Module, adapter_name: str) -> list[Slot]:
    """The weights and biases of norm layers in modules_to_save: modules whose parameters are all vectors."""
    found = []
    for name, wrapper in model.named_modules():
        if isinstance(wrapper, ModulesToSaveWrapper) and adapter_name in wrapper.modules_to_save:
            module: Any = wrapper.modules_to_save[adapter_name]
            parameters = dict(module.named_parameters())
            if all(p.ndim == 1 and "." not in key for key, p in parameters.items()):
                found += [
                    Slot(module, key, f"{name}.{key}", p.shape, p.dtype, widens=False) for key, p in parameters.items()
                ]
    return found


def _values(slots: list[Slot]) -> Tensor:
    """The current values of stock parameters, flat; zeros for those on the meta device."""
    parameters = [slot.owner._parameters[slot.name] for slot in slots]
    flat = [torch.zeros(p.numel()) if p.is_meta else p.detach().float().flatten() for p in parameters if p is not None]
    return torch.cat(flat) if flat else torch.empty(0)


def _check_saved(slots: list[Slot], config: QuantumPeftConfig) -> None:
    if config.generated is None:
        return
    saved = in_saved_order([(slot, None) for slot in slots], config.generated)
    if [slot.label for slot, _ in saved] != [slot.label for slot in slots]:
        raise CheckpointError("the base model has another order of modules than when the adapter was trained")
