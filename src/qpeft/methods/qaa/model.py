"""QAA, quantum-amplitude-embedded adaptation (arXiv 2509.16244), as a PEFT tuner: our interpretation of its abstract.

A branch of a frozen linear map embeds the map's input x in the amplitudes of n = ceil(log2 d) qubits, runs a small
circuit, and reads n features f(x):

    y = W0 x + b0 + (alpha / n) (V f(x) + c)        V (outputs, features) and c (outputs,) are initialized to 0

`features.py` contains f and its classical controls. f is even in x, so no change of the weight equals the branch: it
can be neither merged nor exported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from torch.nn.functional import linear

from qpeft.circuits import amplitude_qubits
from qpeft.core.config import MethodName, OwnTunerConfig
from qpeft.core.generator import ANGLES, FullPrecision, ParameterGroup, fingerprint
from qpeft.core.own_tuner import OwnTuner
from qpeft.core.seeded_init import SeededInit
from qpeft.core.targets import is_linear, sizes
from qpeft.errors import ConfigError
from qpeft.methods.qaa import ANGLE_SCALE, QAASettings
from qpeft.methods.qaa.features import Features

# names of query and value projections, or of one map that computes both
_NAMES = "q_proj v_proj, query value, query_proj value_proj, q_lin v_lin, q v, c_attn, query_key_value, qkv_proj"
_QUERY_VALUE = [list[str](names.split()) for names in f"{_NAMES}, qkv, Wqkv, in_proj".split(", ")]


@dataclass
class QAAConfig(QAASettings, OwnTunerConfig):
    """QAA of linear maps, by default the query and value projections.

    Each has angles, (features) x (outputs) and (outputs) parameters.

    Example::

        model = get_peft_model(base, QAAConfig(task_type="CAUSAL_LM"))

    Raises:
        ConfigError: a setting is out of range.
    """

    def __post_init__(self) -> None:
        OwnTunerConfig.__post_init__(self)
        QAASettings.__post_init__(self)
        self.peft_type = MethodName("QPEFT_QAA")  # type: ignore[assignment]


class QAABranch(FullPrecision):
    """(alpha / n) (V f(x) + c), for the adapted outputs; `features` is f, None without features.

    V (written, n) and c (written,) are initialized to 0. All arithmetic is float32, or float64 in a model of float64,
    because squares of small amplitudes underflow in half precision.
    """

    groups: ClassVar[Mapping[str, ParameterGroup]] = {
        "features": ANGLES,
        "V": ParameterGroup("V", decays=True),
        "c": ParameterGroup("offset"),
    }
    fingerprint: Tensor

    def __init__(
        self,
        settings: QAASettings,
        features: Features | None,
        width: int,
        slices: list[list[int]],
        start_hash: str,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        self.carry_norm, self.features, n_qubits = settings.carry_norm, features, amplitude_qubits(width)
        self.scale, self.slices = settings.alpha / n_qubits, slices
        written = sum(stop - start for start, stop in slices)
        self.V = nn.Parameter(torch.zeros(written, n_qubits, device=device)) if features else None
        self.c = nn.Parameter(torch.zeros(written, device=device))
        hashed = {f.name: getattr(settings, f.name) for f in fields(QAASettings)}
        self.register_buffer("fingerprint", fingerprint(ANGLE_SCALE, start_hash, width, slices, hashed).to(device))

    def forward(self, x: Tensor) -> Tensor:
        """The added term, (..., written), for an input x (..., width)."""
        with torch.autocast(x.device.type, enabled=False):
            if self.V is None:
                return (self.scale * self.c).expand(*x.shape[:-1], -1)
            return self.scale * linear(self.read(x), self.V, self.c)

    def read(self, x: Tensor) -> Tensor:
        """Features f(x), (..., n), in the branch's dtype."""
        assert self.features is not None
        assert self.V is not None
        x = x.to(self.V.dtype)
        f = self.features(x)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True) / x.shape[-1] ** 0.5
        return f * norm if self.carry_norm else f

    def add(self, y: Tensor, x: Tensor) -> Tensor:
        """y (..., outputs) plus the branch of x at the adapted outputs; the other values are unchanged."""
        y, added = y.clone(), self(x).to(y.dtype)
        for (start, stop), part in zip(self.slices, added.split([b - a for a, b in self.slices], -1), strict=True):
            y[..., start:stop] += part
        return y


class QAALayer(nn.Module, BaseTunerLayer):
    """A linear map with QAA's branches; several active ones have the same input and are summed."""

    adapter_layer_names = ("qaa_branch",)

    def __init__(self, base_layer: nn.Module, name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = sizes(base_layer)
        self.qaa_branch = nn.ModuleDict()

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y = self.base_layer(x, *args, **kwargs)
        for name in () if self.disable_adapters else self.active_adapters:
            if name in self.qaa_branch:
                branch: Any = self.qaa_branch[name]
                y = branch.add(y, x)
        return y


def written_slices(config: QAASettings, name: str, module: nn.Module) -> list[list[int]]:
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


class QAAModel(OwnTuner):
    """The tuner that PEFT builds for a QAAConfig."""

    prefix = "qaa_"
    tuner_layer_cls = QAALayer

    def _default_targets(self, modules: dict[str, nn.Module]) -> list[str]:
        parts = {name.rpartition(".")[2] for name, module in modules.items() if is_linear(module)}
        for names in _QUERY_VALUE:
            if parts.issuperset(names):
                return names
        raise ConfigError(f"no query and value projections of a known name; set target_modules to some of {parts}")

    def _check_target(self, config: Any, name: str, module: nn.Module) -> None:
        if not is_linear(module):
            raise ConfigError(f"QAA adapts Linear or Conv1D; {name} is {type(module).__name__}")
        amplitude_qubits(sizes(module)[0])
        written_slices(config, name, module)

    def _add_adapter(self, layer: Any, adapter_name: str, config: Any, name: str) -> None:
        base = layer.get_base_layer()
        weight = next(base.parameters(), torch.empty(0))
        init = SeededInit(config.seed, weight.device.type)
        features = None
        if config.feature_source != "none":
            features = Features(config, layer.in_features, name, init, weight.device)
        slices = written_slices(config, name, base)
        branch = QAABranch(config, features, layer.in_features, slices, init.hexdigest(), weight.device)
        layer.qaa_branch[adapter_name] = branch.double() if weight.dtype == torch.float64 else branch

    def plan_sizes(self) -> dict[str, Any]:
        n_qubits = [m.n_qubits for m in self.modules() if isinstance(m, Features) and m.source == "qnn"]
        return {"n_qubits": max(n_qubits), "n_circuits": len(n_qubits)} if n_qubits else {}
