"""The base class of tuners that put an adapter in front of, behind, or in parallel with frozen
linear maps.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import fields
from itertools import pairwise
from math import comb
from typing import Any, ClassVar

import torch
from peft import OFTConfig, get_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from qpeft.circuits.cayley import block_change
from qpeft.core.config import OwnTunerConfig
from qpeft.core.folded import Folded
from qpeft.core.generator import ANGLES, FullPrecision, ParameterGroup, fingerprint
from qpeft.core.own_tuner import OwnTuner
from qpeft.core.seeded_init import SeededInit
from qpeft.core.stock_adapter import StockAdapter
from qpeft.core.targets import check_not_tied, is_linear, sizes
from qpeft.errors import ConfigError, QpeftWarning

_PLAIN_ATTENTION = (
    "gemma3_text",
    "llama",
    "mistral",
    "qwen3",
)  # nothing but heads between v_proj and o_proj
_MOST_CONDITION = 1e4  # of I + Q, before its inverse loses too many digits of float32


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
        names = {f.name for f in fields(settings)} - {f.name for f in fields(OwnTunerConfig)}
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
        change = self.change(
            weight.mT if self.side == "output" else torch.eye(weight.shape[1]).to(weight)
        ).mT
        return weight + (weight @ change if self.side == "input" else change)


class Rotation(LinearAdapter):
    """A block-diagonal rotation Q = I + D of the input or of the output; on the input it is equal
    to PEFT's OFT.

    A subclass sets `size`, the width of a block, and `angles` of its N blocks, and defines `parts`.
    """

    size: int
    angles: Folded  # (N, ..)

    def parts(self, dtype: torch.dtype) -> list[Tensor]:
        """D as the parts (N, m, m) of `block_change`."""
        raise NotImplementedError

    def change(self, x: Tensor) -> Tensor:
        return block_change(x, self.parts(x.dtype), self.size)

    def merge_into(self, weight: Tensor) -> Tensor:
        if self.side == "output":
            return super().merge_into(weight)
        return weight + block_change(
            weight, [part.mT for part in self.parts(weight.dtype)], self.size
        )

    @torch.no_grad()
    def oft_weight(self) -> Tensor:
        """The weight (N, size (size - 1) / 2) of the equal OFT; ConfigError for a rotation by 180
        degrees.
        """
        parts, size = self.parts(torch.float64), self.size
        eye = torch.eye(size, dtype=torch.float64, device=parts[0].device)
        columns = block_change(
            eye.repeat(1, len(parts[0])), parts, size
        )  # of all blocks, one after the other
        q = eye + columns.unflatten(-1, (-1, size)).permute(1, 2, 0)  # (N, size, size)
        if not q.is_meta and not q.isfinite().all():
            raise ConfigError(
                "a rotation has angles that are not finite; train again, or load a checkpoint"
            )
        if not q.is_meta and not (torch.linalg.cond(q + eye) < _MOST_CONDITION).all():
            raise ConfigError(
                "a rotation by about 180 degrees has no parameters of OFT; merge the adapter"
                " instead"
            )
        row, column = torch.triu_indices(size, size, 1, device=q.device)
        # OFT multiplies rows x^T by cay(skew(w)), so skew(w) = -cay^-1(Q) = (Q + I)^-1 (Q - I)
        return torch.linalg.solve(q + eye, q - eye)[:, row, column].to(self.angles.start.dtype)


def rotated_width(settings: Any, field: str, name: str, shape: tuple[int, int]) -> int:
    """The width of the rotated side of the map `name`; ConfigError if `field` exceeds it."""
    width, number = shape[settings.side == "output"], getattr(settings, field)
    if number > width:
        raise ConfigError(
            f"{field}={number} is more than {width}, the {settings.side} width of {name}; choose"
            " less"
        )
    return width


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

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if self.disable_adapters:
            self.unmerge()
        names = [] if self.disable_adapters or self.merged else self.active_adapters
        active: list[Any] = [
            self.qpeft_adapter[name] for name in names if name in self.qpeft_adapter
        ]
        given, bias = x, getattr(self.get_base_layer(), "bias", None)
        for adapter in reversed(active):
            if adapter.side == "input":
                x = (x + adapter(x)).to(x.dtype)
        y = self.base_layer(x, *args, **kwargs)
        for adapter in active:
            if adapter.side == "output":
                y = (y + adapter(y if bias is None else y - bias)).to(y.dtype)
            elif adapter.side == "parallel":
                y = (y + adapter(given)).to(y.dtype)
        return y

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """As PEFT's, in float64; a copy of the weight is kept for `unmerge`."""
        base: Any = self.get_base_layer()
        weight = base.weight.data
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.qpeft_adapter:
                continue
            adapter: Any = self.qpeft_adapter[name]
            old = weight.double()
            new = (
                adapter.merge_into(old.mT).mT
                if isinstance(base, Conv1D)
                else adapter.merge_into(old)
            )
            if safe_merge and not torch.isfinite(new).all():
                raise ValueError(
                    f"NaNs detected in the merged weights. The adapter {name} seems to be broken"
                )
            if self._unmerged is None:
                self._unmerged = weight.clone()
            weight.copy_(new)
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Restore the weight exactly."""
        if self._unmerged is not None:
            self.weight.data.copy_(self._unmerged)
            self._unmerged, self.merged_adapters = None, []


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
        adapter = self.adapter_class(
            config, name, (layer.in_features, layer.out_features), init
        ).to(weight.device)
        layer.qpeft_adapter[adapter_name] = (
            adapter.double() if weight.dtype == torch.float64 else adapter
        )

    def _pairs(self, adapter_name: str | None = None) -> list[tuple[str, LinearLayer, Any]]:
        """Name, layer and adapter of each target, of one adapter or of all."""
        layers = [
            (name, layer)
            for name, layer in self.model.named_modules()
            if isinstance(layer, LinearLayer)
        ]
        found = [
            (name, layer, *item) for name, layer in layers for item in layer.qpeft_adapter.items()
        ]
        return [
            (name, layer, one) for name, layer, key, one in found if adapter_name in (None, key)
        ]

    # -- merging and export

    @property
    def merges(self) -> bool:
        """Whether every adapter is a change of weights."""
        return all(adapter.is_linear for _, _, adapter in self._pairs())

    def _check_merge_allowed(self) -> None:
        if not self.merges:
            super()._check_merge_allowed()
        check_not_tied(self.model, self.targeted_module_names)
        dtypes = {layer.weight.dtype for _, layer, _ in self._pairs()}
        if not all(dtype.is_floating_point for dtype in dtypes):
            raise ConfigError(
                "the weights are quantized; load the base model without quantization to merge"
                " into it"
            )
        if any(dtype.itemsize < 4 for dtype in dtypes):
            text = (
                "merging into weights of half precision loses small changes: rotations by 1e-3 rad"
                " leave most weights of bfloat16 as they are; load the base model in float32 to"
                " merge"
            )
            warnings.warn(QpeftWarning(text), stacklevel=4)

    def stock_problem(self) -> str:
        """Why no stock adapter equals those of this tuner; empty if there is one."""
        try:
            self.count_more()
        except ConfigError as error:
            return str(error)
        return ""

    def _equal_oft(self, name: str, layer: LinearLayer, adapter: Any) -> tuple[str, Tensor]:
        """The map whose inputs the equal OFT rotates, and for each of its blocks the number of the
        adapter's.

        A rotation inside the heads commutes with attention. Behind a v_proj it is one in front of
        the o_proj, where the blocks of a key-value head are repeated for its query heads. Raises
        ConfigError if no OFT is equal.
        """
        if not isinstance(adapter, Rotation):
            raise ConfigError(f"{type(self).__name__} has no equal method of PEFT")
        base: Any = layer.get_base_layer()
        if not adapter.is_linear or isinstance(base, Conv1D):
            what = "does not adapt Conv1D" if adapter.is_linear else "rotates by a linear map"
            raise ConfigError(f"OFT, its nearest in PEFT, {what}")
        blocks = torch.arange(len(adapter.angles.start))
        if adapter.side == "input" and layer.in_features % adapter.size:
            raise ConfigError(
                f"OFT, its equal, needs blocks that divide {layer.in_features}, the width of {name}"
            )
        if adapter.side == "output":
            parent, _, end = name.rpartition(".")
            is_plain = (
                getattr(getattr(self.model, "config", None), "model_type", "") in _PLAIN_ATTENTION
            )
            attention: Any = self.model.get_submodule(parent)
            if (
                not is_plain
                or end != "v_proj"
                or base.bias is not None
                or hasattr(attention.o_proj, "modules_to_save")
            ):
                raise ConfigError(
                    f"OFT, its equal in PEFT, rotates inputs, not the output of {name}; that of a"
                    " v_proj without bias is the input of an o_proj that is not trained, in models"
                    f" of type {', '.join(_PLAIN_ATTENTION)}"
                )
            widths = (
                adapter.size,
                attention.head_dim,
                layer.out_features,
                sizes(attention.o_proj)[0],
            )
            if any(b % a for a, b in pairwise(widths)):
                raise ConfigError(
                    f"OFT, its equal in PEFT, needs blocks that divide a head of {widths[1]}"
                )
            name, n_heads = f"{parent}.o_proj", layer.out_features // widths[1]
            blocks = blocks.view(n_heads, -1).repeat_interleave(widths[3] // widths[2], 0).flatten()
        return name, blocks

    def count_more(self) -> int:
        """The parameters that the equal stock adapters have in addition; ConfigError if no OFT is
        equal.
        """
        oft = [(len(self._equal_oft(*pair)[1]), pair[2]) for pair in self._pairs()]
        return sum(n_blocks * comb(one.size, 2) - one.angles.start.numel() for n_blocks, one in oft)

    def stock_adapter(self, model: Any, adapter_name: str) -> StockAdapter:
        """The equal OFT with the exact Cayley transform; also on the meta device."""
        config: Any = self.peft_config[adapter_name]
        names = {f.name for f in fields(OFTConfig) if f.init} & {
            f.name for f in fields(OwnTunerConfig)
        } - {"peft_type"}
        same = {name: getattr(config, name) for name in names}
        held = [(*self._equal_oft(*pair), pair[2]) for pair in self._pairs(adapter_name)]
        if config.side == "output":  # its targets are others
            same |= {"target_modules": [name for name, _, _ in held], "exclude_modules": None}
            same |= {"layers_to_transform": None, "layers_pattern": None}
        widths = {
            adapter.size for _, _, adapter in held
        }  # of blocks; if they differ, their number does not
        r, width = (0, widths.pop()) if len(widths) == 1 else (len(held[0][1]), 0)
        stock = OFTConfig(**same, r=r, oft_block_size=width, use_cayley_neumann=False)
        tensors = {
            f"base_model.model.{name}.oft_R.weight": one.oft_weight()[blocks]
            for name, blocks, one in held
        }
        n_trained = sum(p.numel() for *_, adapter in held for p in adapter.parameters())
        state = get_peft_model_state_dict(
            model, adapter_name=adapter_name, save_embedding_layers=False
        )
        others = {
            key: value for key, value in state.items() if f".{self.prefix}" not in key
        }  # modules_to_save
        n_deployed = sum(value.numel() for value in tensors.values())
        return StockAdapter(stock, tensors | others, n_trained, n_deployed)
