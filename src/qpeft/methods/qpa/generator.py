"""QPA's generator: a circuit's angles and a map generate all m parameters of an adapter, chunk by chunk.

    angles -> probabilities (D,) -> K features of each chunk (C, K) -> linear map -> (C, n) -> flat (m,)

(arXiv 2410.09846, which has one feature per chunk, K = 1, and an MLP on the feature and the bits of the chunk's index.)
G generators have a leading axis G everywhere, and each generates its share of the flat vector: (G, C, n) -> (m,).
Only the angles and the map are trained. With `init_mode="residual"` the result is

    w = w0 + output_scale * (G - G_ref),

where w0 is the adapter's own initialization and G_ref the generator's initial output, so that the initial model equals
that of the stock adapter.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qpeft.circuits import Gate
from qpeft.core.binding import Slot
from qpeft.core.generator import ANGLES, Generator, ParameterGroup, check_size, fingerprint
from qpeft.core.lora_init import draw_without_base
from qpeft.core.scaled_parameter import Folded
from qpeft.core.seeded_init import SeededInit
from qpeft.errors import ConfigError, setting
from qpeft.methods.qpa.features import make_feature, slow_circuit, whitening
from qpeft.methods.qpa.settings import QPASettings

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "identity": nn.Identity(),
}


_SMALL = 0.01  # initial r.m.s. of the generated parameters, with features of norm 1 (measured)


class FoldedLinear(nn.Module):
    """y = x W^T + b with folded W (*several, out, in) and b (*several, out), uniform on +-bound at first."""

    bias: Folded | None

    def __init__(
        self, shape: tuple[int, ...], scale: float, bound: float, name: str, init: SeededInit, *, has_bias: bool
    ) -> None:
        super().__init__()
        self.weight = Folded(init.uniform(f"{name}.weight", shape, bound), scale)
        self.bias = None
        if has_bias:
            self.bias = Folded(init.uniform(f"{name}.bias", shape[:-1], bound), scale)

    def forward(self, x: Tensor, *, initial: bool = False) -> Tensor:
        """(..., C, in) -> (..., C, out)"""
        product = x @ self.weight(initial=initial).mT
        return product if self.bias is None else product + self.bias(initial=initial).unsqueeze(-2)


class QPAGenerator(Generator):
    """Generates m parameters as a flat float32 tensor (m,), deterministically.

    Args:
        config: The configuration; `config.count(m)` returns the sizes.
        initial: w0, the adapter's own initialization, shape (m,); not used by `init_mode="raw"`.
        init: Draws the initial angles and weights; the caller may have drawn w0 from it.
        keep_initial: Whether w0 is part of the state dict, because it cannot be drawn again.
    """

    groups: ClassVar[Mapping[str, ParameterGroup]] = {"feature": ANGLES, "mlp": ParameterGroup("map", decays=True)}
    bits: Tensor | None
    whitening: Tensor | None
    initial: Tensor

    def __init__(self, config: QPASettings, initial: Tensor, init: SeededInit, *, keep_initial: bool = False) -> None:
        super().__init__()
        self.config = config
        self.count = count = config.count(initial.numel())
        check_size(count.total, count.m)
        if count.total >= count.m:
            warnings.warn(
                f"QPA trains {count.total} parameters to generate {count.m}: this is not a compression; "
                "use a larger adapter, a smaller budget, or plain PEFT",
                stacklevel=2,
            )
        if slow := slow_circuit(config, count):
            warnings.warn(slow, stacklevel=2)
        self.chunk_shape = count.n_chunks, count.chunk_size
        self.activation = ACTIVATIONS[config.activation]
        self.feature = make_feature(config, count, init)
        size = config.size(count.m)
        n_chunks = count.n_chunks // config.n_generators  # of one generator
        several = (config.n_generators,) if config.n_generators > 1 else ()
        n_bits = count.n_qubits - size.feature_qubits
        widths = (size.inputs(n_bits, count.hidden), *count.hidden, count.chunk_size)
        bounds = [1.0 / math.sqrt(n_in) for n_in in widths[:-1]]  # as torch.nn.Linear
        if config.init_mode == "small":
            bounds[-1] = _SMALL * math.sqrt(3 if config.feature_map == "whitened" else 3 / widths[-2])
        self.mlp = nn.ModuleList(
            FoldedLinear(
                (*several, n_out, n_in), config.mlp_scale, bound, f"mlp.{i}", init, has_bias=bool(count.hidden)
            )
            for i, ((n_in, n_out), bound) in enumerate(zip(itertools.pairwise(widths), bounds, strict=True))
        )
        reads_bits = widths[0] != config.n_features or self.feature is None
        bits = _bits(n_chunks, n_bits).expand(*several, -1, -1) if reads_bits else None
        self.register_buffer("bits", bits, persistent=False)
        self._share = size.share
        self._feature_shape = (*several, n_chunks, config.n_features)
        self.register_buffer("initial", initial.detach().float().flatten(), persistent=keep_initial)
        self.register_buffer("whitening", self._whitening(), persistent=False)
        self.register_buffer(
            "fingerprint", fingerprint(init.hexdigest(), asdict(count), _settings(config), *self._own_gates())
        )
        self._reference: Tensor | None = None  # G_ref, computed on the device of the first evaluation

    @property
    def is_costly(self) -> bool:
        """Whether an evaluation is a job on a backend, and therefore not done in advance."""
        return getattr(self.feature, "backend", None) is not None

    def forward(self) -> Tensor:
        """The adapter's parameters, flat (m,).

        Raises:
            ConfigError: an angle is not finite (checked on the CPU only).
        """
        output = self._output()
        if self.config.init_mode == "raw":
            return output * self.config.output_scale
        if self.config.init_mode == "small":
            return torch.add(self.initial, output, alpha=self.config.output_scale)
        if self._reference is None:
            with torch.no_grad():
                self._reference = self._output(initial=True)
        return torch.add(self.initial, output - self._reference, alpha=self.config.output_scale)

    def redrawn(self, slots: Sequence[Slot], config: Any, init: SeededInit) -> QPAGenerator:
        present = self.initial.cpu().split([slot.shape.numel() for slot in slots])
        labelled = zip((slot.label for slot in slots), present, strict=True)
        magnitudes = {label: part for label, part in labelled if "lora_magnitude_vector" in label}
        initial = draw_without_base(slots, config.drawn_init, init, magnitudes)
        with warnings.catch_warnings():  # about its size, which appeared when it was trained
            warnings.simplefilter("ignore")
            return QPAGenerator(config, initial, init)

    def chunks(self, *, initial: bool = False) -> Tensor:
        """The output before flattening, of one generator after the other: shape (G C, n)."""
        return self._chunks(initial=initial).flatten(0, -2)

    def _chunks(self, *, initial: bool) -> Tensor:
        """(C, n), or (G, C, n)"""
        features = [] if self.feature is None else [self._features(initial=initial)]
        inputs = features if self.bits is None else [self.bits, *features]
        hidden = inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=-1)
        for layer in self.mlp[:-1]:
            hidden = self.activation(layer(hidden, initial=initial))
        return self.mlp[-1](hidden, initial=initial)

    def _features(self, *, initial: bool) -> Tensor:
        """(C, K), or (G, C, K)"""
        assert self.feature is not None
        found = self.feature(initial=initial).view(self._feature_shape)
        return found if self.whitening is None else found @ self.whitening

    def _whitening(self) -> Tensor | None:
        if self.config.feature_map != "whitened" or self.feature is None or self.initial.is_meta:
            return None
        with torch.no_grad(), torch.device("cpu"):
            return whitening(deepcopy(self.feature).double()(initial=True).view(self._feature_shape))

    def _own_gates(self) -> list[list[Gate]]:
        """The gates of a circuit that release 0.1 did not have: its name may be registered for another one later."""
        ansatz = getattr(self.feature, "ansatz", None)
        return [] if ansatz is None or ansatz.name == _BEFORE["ansatz"] else [list(ansatz.gates())]

    def _output(self, *, initial: bool = False) -> Tensor:
        shares = self._chunks(initial=initial).flatten(-2)[..., : self._share]  # (share,) or (G, share)
        if self.config.center_output:
            shares = shares - shares.mean(-1, keepdim=True)
        return shares.flatten()[: self.count.m]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QPAGenerator:
        self._reference = None
        super()._apply(fn, recurse)
        return self


_BEFORE = {"ansatz": "ry_ladder", "features": 1, "n_generators": 1}  # what release 0.1 had, without these fields


def _settings(config: QPASettings) -> dict[str, Any]:
    names = {f.name for f in fields(QPASettings)} - {"budget", "chunk_size", "hidden", "max_qubits"}
    found = {name: getattr(config, name) for name in sorted(names)}
    return {name: value for name, value in found.items() if name not in _BEFORE or value != _BEFORE[name]}


def _bits(n_chunks: int, n_qubits: int) -> Tensor:
    """Row c: the bits of c, wire 0 (the most significant) first, as -1 and +1; shape (C, N)."""
    index = torch.arange(n_chunks)[:, None]
    wires = torch.arange(n_qubits - 1, -1, -1)
    return ((index >> wires) & 1).float() * 2 - 1


@dataclass(kw_only=True)
class QPAGeneratorConfig(QPASettings):
    """QPA's generator of an adapter's parameters: circuit angles and a map of features (arXiv 2410.09846)."""

    def make(self, initial: Tensor, init: SeededInit) -> QPAGenerator:
        """The generator of an adapter with PEFT's initialization `initial` (m,), which raw does not use."""
        if self.init_mode == "small":
            raise ConfigError(f"{setting('init_mode')} small is for LoRA and DoRA; use residual for another host")
        return QPAGenerator(self, initial, init, keep_initial=self.init_mode == "residual")
