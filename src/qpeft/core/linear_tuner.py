"""The base class of tuners that put an adapter in front of, behind, or in parallel with frozen
linear maps.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from dataclasses import fields
from typing import Any, ClassVar, NamedTuple

import torch
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qpeft.core.config import OwnTunerConfig
from qpeft.core.generator import ANGLES, FullPrecision, ParameterGroup, fingerprint
from qpeft.core.half_precision import measured_merge
from qpeft.core.own_tuner import OwnTuner
from qpeft.core.seeded_init import SeededInit
from qpeft.core.targets import check_not_tied, is_linear, sizes
from qpeft.errors import ConfigError, QpeftWarning


class LinearAdapter(FullPrecision):
    """An adapter of y = W x + b, with W (outputs, inputs), by a change f that is 0 before training.

        side "input"     y = W (x + f(x)) + b
        side "output"    y = W x + f(W x) + b
        side "parallel"  y = W x + b + f(x)

    It is computed in the dtype of its parameters, float32, or float64 on a float64 base. All fields
    of the dataclass `settings` determine the adapter, as `parts` do. A subclass defines `change`.

    If f reads probabilities of circuits of `n_qubits` on its inputs, `measure(a, circuit, values)`
    replaces them where it is set: squared amplitudes (..., D) of states a (..., D) of any norm,
    behind a circuit at the angles `values`, or for None behind orthogonal matrices (..., D, D).
    """

    groups: ClassVar[Any] = {"angles": ANGLES, "gates": ParameterGroup("gates")}
    is_linear = True  # whether f is, so that it can be merged
    n_qubits = 0
    measure: Callable[[Tensor, Any, Tensor], Tensor] | None = None
    fingerprint: Tensor

    def __init__(self, side: str, settings: Any, *parts: Any) -> None:
        super().__init__()
        self.side = side
        of_peft = {field.name for field in fields(OwnTunerConfig)}
        names = [field.name for field in fields(settings) if field.name not in of_peft]
        own = {name: getattr(settings, name) for name in names}
        self.register_buffer("fingerprint", fingerprint(type(self).__name__, own, *parts))

    def forward(self, x: Tensor) -> Tensor:
        """f(x), in float32, or float64 of x in float64."""
        with torch.autocast(x.device.type, enabled=False):
            return self.change(x.to(torch.promote_types(x.dtype, torch.float32)))

    def change(self, x: Tensor) -> Tensor:
        """f(x) for x (..., width), computed in its dtype."""
        raise NotImplementedError

    def merge_into(self, weight: Tensor) -> Tensor:
        """The weight (outputs, inputs) of the adapted map, for that of the map, in its dtype."""
        # `change` acts on rows: the columns of W behind the map, those of the identity in front
        is_behind = self.side == "output"
        rows = weight.mT if is_behind else torch.eye(weight.shape[1]).to(weight)
        change = self.change(rows).mT
        return weight + (weight @ change if self.side == "input" else change)


class LinearLayer(nn.Module, BaseTunerLayer):
    """A linear map with its adapters, the first active one nearest to the map: W Q_1 Q_2, or Q_2
    Q_1 W, as merging.
    """

    adapter_layer_names = ("qpeft_adapter",)

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = sizes(base_layer)
        self.qpeft_adapter = nn.ModuleDict()
        self.merged_adapters = []
        self._unmerged: Tensor | None = None  # the weight without adapters, while some are merged
        self._merged_sum: Tensor | None = None  # of the weight with them

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters:
            self.unmerge()
        names = [] if self.disable_adapters or self.merged else self.active_adapters
        active: list[Any] = [
            self.qpeft_adapter[name] for name in names if name in self.qpeft_adapter
        ]
        if x.shape[-1] != self.in_features and any(a.side != "output" for a in active):
            raise ConfigError(
                f"a map of {self.in_features} inputs got {x.shape[-1]}, such as under tensor"
                " parallelism, which this method does not support; use FSDP2 to divide the base"
            )
        adapted = x  # (..., inputs)
        for adapter in reversed(active):
            if adapter.side == "input":
                adapted = (adapted + adapter(adapted)).to(x.dtype)
        y = self.base_layer(adapted, *args, **kwargs)  # (..., outputs)
        bias = getattr(self.get_base_layer(), "bias", None)
        for adapter in active:
            if adapter.side == "output":
                change = adapter(y if bias is None else y - bias)  # f(W x)
                y = (y + change).to(y.dtype)
            elif adapter.side == "parallel":
                y = (y + adapter(x)).to(y.dtype)
        return y

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """As PEFT's, in float64 on the CPU; a copy of the weight is kept for `unmerge`."""
        base: Any = self.get_base_layer()
        weight = base.weight.data
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.qpeft_adapter:
                continue
            adapter: Any = copy.deepcopy(self.qpeft_adapter[name]).cpu()
            old = weight.cpu().double()  # accelerators may have no float64
            # a Conv1D stores (inputs, outputs), a Linear (outputs, inputs)
            is_transposed = isinstance(base, Conv1D)
            new = adapter.merge_into(old.mT).mT if is_transposed else adapter.merge_into(old)
            if safe_merge and not torch.isfinite(new).all():
                raise ValueError(
                    f"NaNs detected in the merged weights. The adapter {name} seems to be broken"
                )
            if self._unmerged is None:
                self._unmerged = weight.clone()
            weight.copy_(new)
            self._merged_sum = weight.cpu().sum(dtype=torch.float64)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Restore the weight exactly, as it was before; warns if somebody has changed it since then."""
        if self._unmerged is not None:
            weight = self.weight.data
            found = weight.cpu().sum(dtype=torch.float64)
            is_cast = weight.dtype != self._unmerged.dtype
            expected = self._merged_sum
            if expected is not None and not is_cast and not torch.isclose(found, expected):
                warnings.warn(
                    QpeftWarning(
                        "a weight was changed while adapters were merged into it, and unmerging"
                        " restores the one from before the merge; change it without merged adapters"
                    ),
                    stacklevel=2,
                )
            weight.copy_(self._unmerged)
            self._unmerged = None
            self.merged_adapters = []


class AdaptedMap(NamedTuple):
    """A linear map of the base model with one of its adapters."""

    name: str
    layer: LinearLayer
    adapter: Any  # a LinearAdapter


class LinearTuner(OwnTuner):
    """A `LinearLayer` around each target; by default all linear maps apart from the output head.

    A subclass sets `adapter_class`, of which one is made of the config, the name and (inputs,
    outputs) of a map, and a SeededInit; ConfigError if it does not fit.
    """

    prefix = "qpeft_"
    tuner_layer_cls = LinearLayer
    adapter_class: Any

    def _default_targets(self, modules: dict[str, nn.Module]) -> list[str] | str:
        if not any(map(is_linear, modules.values())):
            raise ConfigError("the model has no Linear or Conv1D to adapt; set target_modules")
        return "all-linear"

    def _check_target(self, config: Any, name: str, module: nn.Module) -> None:
        if not is_linear(module):
            raise ConfigError(
                f"this method adapts Linear or Conv1D; {name} is {type(module).__name__}"
            )
        with torch.device("meta"):
            self.adapter_class(config, name, sizes(module), SeededInit(0, "meta"))

    def _add_adapter(self, layer: Any, adapter_name: str, config: Any, name: str) -> None:
        weight = next(layer.get_base_layer().parameters(), torch.empty(0))
        init = SeededInit(getattr(config, "seed", 0), weight.device.type)
        shape = (layer.in_features, layer.out_features)
        adapter = self.adapter_class(config, name, shape, init).to(weight.device)
        if weight.dtype == torch.float64:
            adapter = adapter.double()
        layer.qpeft_adapter[adapter_name] = adapter

    def adapted_maps(self, adapter_name: str | None = None) -> list[AdaptedMap]:
        """The maps that an adapter adapts, by default all adapters."""
        return [
            AdaptedMap(module_name, layer, adapter)
            for module_name, layer in self.model.named_modules()
            if isinstance(layer, LinearLayer)
            for key, adapter in layer.qpeft_adapter.items()
            if adapter_name in (None, key)
        ]

    # -- merging

    @property
    def merges(self) -> bool:
        """Whether every adapter is a change of weights."""
        return all(adapted.adapter.is_linear for adapted in self.adapted_maps())

    def _check_merge_allowed(self) -> None:
        if not self.merges:
            super()._check_merge_allowed()
        check_not_tied(self.model, self.targeted_module_names)
        dtypes = {adapted.layer.weight.dtype for adapted in self.adapted_maps()}
        if not all(dtype.is_floating_point for dtype in dtypes):
            raise ConfigError(
                "the weights are quantized; load the base model without quantization to merge"
                " into it"
            )

    def merge_adapter(self, *args: Any, **kwargs: Any) -> None:
        with measured_merge(self.model):
            super().merge_adapter(*args, **kwargs)

    def _unload_and_optionally_merge(self, *args: Any, **kwargs: Any) -> Any:
        with measured_merge(self.model):
            return super()._unload_and_optionally_merge(*args, **kwargs)

    def stock_problem(self) -> str:
        """Why no stock adapter equals those of this tuner; empty if one does.

        A subclass with an equal one defines `count_more` and `stock_adapter` as well, see
        `RotationTuner`.
        """
        return f"{type(self).__name__} has no equal method of PEFT"
