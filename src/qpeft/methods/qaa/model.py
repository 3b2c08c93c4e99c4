"""QAA, quantum-amplitude-embedded adaptation (arXiv 2509.16244), as a PEFT tuner: our reading of its abstract.

Beside a frozen linear map stands a branch that embeds the map's input x in the amplitudes of n = ceil(log2 d) qubits,
runs a small circuit, and reads n features f(x):

    y = W0 x + b0 + (alpha / n) (V f(x) + c)        V (outputs, features) and c (outputs,) start at 0

`generators.qaa_features` has f, and the classical controls in its place. f is even in x, so no change of a weight
equals the branch: it is neither merged nor exported.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from qpeft.core import model_card
from qpeft.core.config import MethodName
from qpeft.core.generator_state import check_tensors
from qpeft.core.layer_tuner import OwnTuner
from qpeft.core.seeded_init import SeededStart
from qpeft.core.targets import sizes
from qpeft.core.weights_hash import SealedConfig
from qpeft.errors import ConfigError, NotMergeableError
from qpeft.methods.qaa.branch import QAABranch
from qpeft.methods.qaa.features import make_features
from qpeft.methods.qaa.settings import QAASettings
from qpeft.methods.qaa.targets import settle_targets, written_slices

QAA = MethodName("QPEFT_QAA")


@dataclass
class QAAConfig(QAASettings, SealedConfig):
    """Settings of QAA; angles, (features) x (outputs) and (outputs) numbers for each target module.

    Example::

        model = get_peft_model(base, QAAConfig(task_type="CAUSAL_LM"))

    Raises:
        ConfigError: a setting is out of range.
    """

    target_modules: Collection[str] | str | None = field(
        default=None,
        metadata={
            "help": "Linear maps to adapt: ends of names, a pattern of whole names, or all-linear. "
            "Default: the query and value projections."
        },
    )
    exclude_modules: Collection[str] | str | None = field(
        default=None, metadata={"help": "Modules to leave out of target_modules."}
    )
    modules_to_save: list[str] | None = field(
        default=None, metadata={"help": "Modules to train whole, beside the adapter."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.peft_type = QAA  # type: ignore[assignment]
        self.check()
        if self.target_modules is not None and not self.target_modules:
            raise ConfigError("target_modules is empty; name modules such as q_proj, or leave it unset")

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """Write adapter_config.json, and a model card that says how to load this folder."""
        super().save_pretrained(save_directory, **kwargs)
        model_card.write_qaa_card(Path(save_directory))


class QAALayer(nn.Module, BaseTunerLayer):
    """A linear map with QAA's branches beside it; several active ones read the same input and are summed."""

    adapter_layer_names = ("qaa_branch",)

    def __init__(self, base_layer: nn.Module, name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.name = name
        self.in_features, self.out_features = sizes(base_layer)
        self.qaa_branch = nn.ModuleDict()

    def update_layer(self, adapter_name: str, config: QAAConfig, shared: nn.Module | None) -> None:
        """Add an adapter that starts at nothing, with the features `shared` or its own, drawn from the seed."""
        base = self.get_base_layer()
        weight = next(base.parameters(), torch.empty(0))
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        start = SeededStart(config.seed)
        name = f"width {self.in_features}" if config.share_circuit else self.name
        features = shared or make_features(config, self.in_features, name, start, weight.device)
        branch = QAABranch(
            config,
            features,
            self.in_features,
            written_slices(config, self.name, base),
            start.hexdigest(),
            device=weight.device,
            dtype=dtype,
        )
        self.qaa_branch[adapter_name] = branch

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return y
        for name in self.active_adapters:
            if name in self.qaa_branch:
                branch: Any = self.qaa_branch[name]
                y = branch.add(y, x)
        return y


class QAAModel(OwnTuner):
    """The tuner that PEFT builds for a QAAConfig."""

    prefix = "qaa_"
    own_kind = "a QAA adapter"
    tuner_layer_cls = QAALayer

    def _settle_targets(self, model: nn.Module, config: Any) -> None:
        settle_targets(model, config)

    def _new_layer(self, target: nn.Module, name: str) -> nn.Module:
        return QAALayer(target, name)

    def _add_adapter(self, layer: Any, adapter_name: str, config: Any, name: str) -> None:
        shared = self._shared_features(layer.in_features, adapter_name) if config.share_circuit else None
        layer.update_layer(adapter_name, config, shared)

    def _shared_features(self, width: int, adapter_name: str) -> nn.Module | None:
        """The features that the adapter has already for inputs of this width."""
        for layer in self.model.modules():
            if isinstance(layer, QAALayer) and layer.in_features == width and adapter_name in layer.qaa_branch:
                branch: Any = layer.qaa_branch[adapter_name]
                return branch.features
        return None

    def _check_merge_allowed(self) -> None:
        raise NotMergeableError(
            "QAA updates depend on the input and cannot be merged into the weight. Keep the adapter, or use unload() "
            "to drop it."
        )

    # -- what is saved: trained numbers and fingerprints, those of shared circuits once

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
    def _remap_adapter_state_dict_for_load(
        cls, model: Any, config: Any, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        state = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        mine = f".qaa_branch.{adapter_name}."
        everything = cls._get_adapter_state_dict(model, config, adapter_name, model.state_dict(), [])
        expected = {name: tensor for name, tensor in everything.items() if mine in name}
        present = model.state_dict()
        found = {name: tensor for name, tensor in state.items() if ".qaa_branch." in name or name not in present}
        check_tensors(found, expected)
        found = {name: tensor.to(expected[name].dtype) for name, tensor in found.items()}
        names: dict[int, str] = {}  # a shared tensor is stored by its first name; PEFT warns where others are missing
        for name, parameter in model.named_parameters(remove_duplicate=False):
            if mine in name:
                found[name] = found[names.setdefault(id(parameter), name)]
        return state | found
