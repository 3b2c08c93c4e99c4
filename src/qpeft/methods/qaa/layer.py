"""A linear map with QAA's branches."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from qpeft.core.seeded_init import SeededInit
from qpeft.core.targets import sizes
from qpeft.methods.qaa.branch import QAABranch
from qpeft.methods.qaa.config import QAAConfig
from qpeft.methods.qaa.features import make_features
from qpeft.methods.qaa.targets import written_slices


class QAALayer(nn.Module, BaseTunerLayer):
    """A linear map with QAA's branches; several active ones have the same input and are summed."""

    adapter_layer_names = ("qaa_branch",)

    def __init__(self, base_layer: nn.Module, name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.name = name
        self.in_features, self.out_features = sizes(base_layer)
        self.qaa_branch = nn.ModuleDict()

    def update_layer(self, adapter_name: str, config: QAAConfig, shared: nn.Module | None) -> None:
        """Add an adapter that initially adds 0, with the features `shared` or its own, drawn from the seed."""
        base = self.get_base_layer()
        weight = next(base.parameters(), torch.empty(0))
        dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
        init = SeededInit(config.seed)
        name = f"width {self.in_features}" if config.share_circuit else self.name
        features = shared or make_features(config, self.in_features, name, init, weight.device)
        branch = QAABranch(
            config,
            features,
            self.in_features,
            written_slices(config, self.name, base),
            init.hexdigest(),
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
