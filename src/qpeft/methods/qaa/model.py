"""QAA, quantum-amplitude-embedded adaptation (arXiv 2509.16244), as a PEFT tuner: our
interpretation of its abstract.

A branch of a frozen linear map embeds the map's input x in the amplitudes of n = ceil(log2 d)
qubits, runs a small circuit, and reads n features f(x):

    y = W0 x + b0 + (alpha / n) (V f(x) + c)        V (outputs, features) and c (outputs,) are initialized to 0

With readout last_r and ansatz mps or all_pairs this is QCHFT, of which n is n_read, and V is B; it
has no c.

`features.py` contains f and its classical controls. f is even in x, so no change of the weight
equals the branch: it can be neither merged nor exported.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from qpeft.circuits.amplitude import amplitude_qubits
from qpeft.core.config import OwnTunerConfig
from qpeft.core.generator import ANGLES, ParameterGroup
from qpeft.core.linear_tuner import LinearAdapter, LinearTuner
from qpeft.core.seeded_init import SeededInit
from qpeft.core.targets import is_linear
from qpeft.errors import ConfigError
from qpeft.methods.qaa import ANGLE_SCALE, QAASettings
from qpeft.methods.qaa.features import Features

# names of query and value projections, or of one map that computes both
_NAMES = (
    "q_proj v_proj, query value, query_proj value_proj, q_lin v_lin, q v, c_attn, query_key_value,"
    " qkv_proj"
)
_QUERY_VALUE = [list[str](names.split()) for names in f"{_NAMES}, qkv, Wqkv, in_proj".split(", ")]


@dataclass
class QAAConfig(QAASettings, OwnTunerConfig):
    """QAA of linear maps, by default the query and value projections.

    Each has angles, (features) x (outputs) and, with readout z, (outputs) parameters.

    With features f of x, embedded in amplitudes (QAA-1), angles in radians::

        y = W0 x + (alpha / n) (V f(x) + c)

    Not to merge or to export: the update depends on the input, so the model keeps it at inference.
    Not to save parameters: LoRA of its size has a lower loss in all setups that we measured.

    Example::

        model = get_peft_model(base, QAAConfig(task_type="CAUSAL_LM"))

    QCHFT is ``QAAConfig(ansatz="all_pairs", readout="last_r", n_read=2, n_layers=4)``.

    Raises:
        ConfigError: a setting is out of range; on the model, n_read exceeds the number of qubits.
    """

    method_name = "QPEFT_QAA"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.alpha = float(self.alpha)  # 16 and 16.0 are one setting
        if self.readout == "last_r" and self.feature_source == "none":
            raise ConfigError(
                "feature_source='none' leaves the offset, which readout='last_r' lacks; use"
                " readout='z'"
            )
        if self.out_slices is not None:
            try:
                pairs = [(start, stop) for start, stop in self.out_slices]
            except TypeError:
                pairs = []
            if not pairs or not all(type(n) is int for pair in pairs for n in pair):
                raise ConfigError(
                    f"out_slices must be pairs [start, stop), got {self.out_slices!r}"
                )
            self.out_slices = [list(pair) for pair in pairs]


class QAABranch(LinearAdapter):
    """(alpha / n) (V f(x) + c), at the adapted outputs of the module `name`; `features` is f, None
    without features.

    V (written, features) and c (written,), None with readout last_r, are initialized to 0. All
    arithmetic is float32, or float64 in a model of float64, because squares of small amplitudes
    underflow in half precision.
    """

    groups: ClassVar[Mapping[str, ParameterGroup]] = {
        "features": ANGLES,
        "V": ParameterGroup("V", decays=True),
        "c": ParameterGroup("offset"),
    }
    is_linear = False
    V: Tensor | None
    c: Tensor | None

    def __init__(
        self, settings: QAASettings, name: str, shape: tuple[int, int], init: SeededInit
    ) -> None:
        width, outputs = shape
        slices = settings.out_slices
        if slices is None:  # of GPT-2's c_attn queries and values
            is_fused = name.rpartition(".")[2] == "c_attn" and outputs == 3 * width
            slices = [[0, width], [2 * width, outputs]] if is_fused else [[0, outputs]]
        for start, stop in slices:
            if not 0 <= start < stop <= outputs:
                raise ConfigError(
                    f"out_slices [{start}, {stop}) is not a range within 0..{outputs} of {name}"
                )
        features = None
        if settings.feature_source != "none":
            features = Features(settings, width, name, init)
        super().__init__("parallel", settings, ANGLE_SCALE, init.hexdigest(), width, slices)
        self.carry_norm = settings.carry_norm
        self.features = features
        self.outputs = outputs
        self.slices = slices
        self.n_qubits = features.n_qubits if features and features.source == "qnn" else 0
        count = amplitude_qubits(width) if features is None else features.n_features
        self.scale = settings.alpha / count
        written = sum(stop - start for start, stop in slices)
        # not by register_parameter, as in `Folded`
        has_offset = settings.readout == "z"
        self._parameters["V"] = nn.Parameter(torch.zeros(written, count)) if features else None
        self._parameters["c"] = nn.Parameter(torch.zeros(written)) if has_offset else None

    def change(self, x: Tensor) -> Tensor:
        """The added term, (..., outputs), for an input x (..., width); 0 at the outputs that are
        not adapted.
        """
        added: Any = self.c
        if self.features is not None and self.V is not None:
            f = self.features(x, self.measure)
            norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True) / x.shape[-1] ** 0.5
            added = linear(f * norm if self.carry_norm else f, self.V, self.c)
        widths = [stop - start for start, stop in self.slices]
        parts = added.expand(*x.shape[:-1], -1).split(widths, -1)
        y = x.new_zeros(*x.shape[:-1], self.outputs)
        for (start, stop), part in zip(self.slices, parts, strict=True):
            y[..., start:stop] += self.scale * part
        return y


class QAAModel(LinearTuner):
    """The tuner that PEFT builds for a QAAConfig."""

    adapter_class = QAABranch

    def _default_targets(self, modules: dict[str, nn.Module]) -> list[str]:
        parts = {name.rpartition(".")[2] for name, module in modules.items() if is_linear(module)}
        for names in _QUERY_VALUE:
            if parts.issuperset(names):
                return names
        raise ConfigError(
            f"no query and value projections of a known name; set target_modules to some of {parts}"
        )

    def plan_sizes(self) -> dict[str, Any]:
        branches = [adapted.adapter for adapted in self.adapted_maps()]
        n_qubits = [branch.n_qubits for branch in branches if branch.n_qubits]
        return {"n_qubits": max(n_qubits), "n_circuits": len(n_qubits)} if n_qubits else {}
