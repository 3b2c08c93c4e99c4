"""QAA, quantum-amplitude-embedded adaptation (arXiv 2509.16244), as a PEFT tuner: our interpretation of its abstract.

A branch of a frozen linear map embeds the map's input x in the amplitudes of n = ceil(log2 d) qubits, runs a small
circuit, and reads n features f(x):

    y = W0 x + b0 + (alpha / n) (V f(x) + c)        V (outputs, features) and c (outputs,) are initialized to 0

`features.py` contains f and its classical controls. f is even in x, so no change of the weight equals the branch: it
can be neither merged nor exported.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from qpeft.core.own_tuner import OwnTuner
from qpeft.errors import NotMergeableError
from qpeft.methods.qaa.layer import QAALayer
from qpeft.methods.qaa.targets import set_targets


class QAAModel(OwnTuner):
    """The tuner that PEFT builds for a QAAConfig."""

    prefix = "qaa_"
    own_kind = "a QAA adapter"
    tuner_layer_cls = QAALayer

    def _set_targets(self, model: nn.Module, config: Any) -> None:
        set_targets(model, config)

    def _new_layer(self, target: nn.Module, name: str) -> nn.Module:
        return QAALayer(target, name)

    def _add_adapter(self, layer: Any, adapter_name: str, config: Any, name: str) -> None:
        shared = self._shared_features(layer.in_features, adapter_name) if config.share_circuit else None
        layer.update_layer(adapter_name, config, shared)

    def _shared_features(self, width: int, adapter_name: str) -> nn.Module | None:
        """The adapter's existing features for inputs of this width."""
        for layer in self.model.modules():
            if isinstance(layer, QAALayer) and layer.in_features == width and adapter_name in layer.qaa_branch:
                branch: Any = layer.qaa_branch[adapter_name]
                return branch.features
        return None

    def _check_merge_allowed(self) -> None:
        raise NotMergeableError(
            "QAA updates depend on the input and cannot be merged into the weight. Keep the adapter, or remove it with "
            "unload()."
        )

    # -- saving: trained parameters and fingerprints, those of shared circuits once

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: Any,
        config: Any,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        state = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        again = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        again -= {name for name, _ in model.named_parameters()}
        return {name: tensor for name, tensor in state.items() if name not in again}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        site, is_own, rest = key.partition(f".qaa_branch.{adapter_name}.")
        if not is_own:
            return super()._remove_adapter_name_from_key(key, adapter_name)
        # "default", because release 0.1 left the adapter's name there
        return f"{site}.qaa_branch.{'default.' if rest.startswith('features.') else ''}{rest}"

    @classmethod
    def current_key(cls, key: str) -> str:
        return re.sub(r"\.qaa_branch\.[^.]+\.features\.", ".qaa_branch.default.features.", key)

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: Any, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        state = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        names: dict[int, str] = {}  # a shared tensor is stored under its first name; PEFT warns if others are missing
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if f".qaa_branch.{adapter_name}." in name:
                state[name] = state[names.setdefault(id(parameter), name)].to(parameter.dtype)
        return state
