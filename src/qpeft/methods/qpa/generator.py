"""QPA's generator: circuit angles and a small MLP generate all m parameters of an adapter, chunk by chunk.

    angles (L, N) -> probabilities (D,) -> features (C,) and the bits of the chunk's index (C, N + 1)
                  -> MLP -> (C, n) -> flat (m,)

(arXiv 2410.09846.) Only the angles and the MLP are trained. With `init_mode="residual"` the result is

    w = w0 + output_scale * (G - G_ref),

where w0 is the adapter's own initialization and G_ref the generator's initial output, so that the initial model equals
that of the stock adapter.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qpeft.core.binding import Slot
from qpeft.core.generator import ANGLES, Generator, ParameterGroup, check_size, fingerprint
from qpeft.core.lora_init import draw_without_base
from qpeft.core.scaled_parameter import Folded
from qpeft.core.seeded_init import SeededInit
from qpeft.methods.qpa.features import make_feature
from qpeft.methods.qpa.settings import QPASettings

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "identity": nn.Identity(),
}


class FoldedLinear(nn.Module):
    """y = x W^T + b with folded W (out, in) and b (out,), initialized like torch.nn.Linear."""

    def __init__(self, n_in: int, n_out: int, scale: float, name: str, init: SeededInit) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(n_in)
        self.weight = Folded(init.uniform(f"{name}.weight", (n_out, n_in), bound), scale)
        self.bias = Folded(init.uniform(f"{name}.bias", (n_out,), bound), scale)

    def forward(self, x: Tensor, *, initial: bool = False) -> Tensor:
        """(C, in) -> (C, out)."""
        return F.linear(x, self.weight(initial=initial), self.bias(initial=initial))


class QPAGenerator(Generator):
    """Generates m parameters as a flat float32 tensor (m,), deterministically.

    Args:
        config: The configuration; `config.count(m)` returns the sizes.
        initial: w0, the adapter's own initialization, shape (m,); used by `init_mode="residual"`.
        init: Draws the initial angles and weights; the caller may have drawn w0 from it.
        keep_initial: Whether w0 is part of the state dict, because it cannot be drawn again.
    """

    groups: ClassVar[Mapping[str, ParameterGroup]] = {"feature": ANGLES, "mlp": ParameterGroup("mlp", decays=True)}
    bits: Tensor
    initial: Tensor

    def __init__(self, config: QPASettings, initial: Tensor, init: SeededInit, *, keep_initial: bool = False) -> None:
        super().__init__()
        self.config = config
        self.count = count = config.count(initial.numel())
        check_size(count.total, count.m)
        if count.total >= count.m:
            warnings.warn(
                f"QPA trains {count.total} parameters to generate {count.m}: this is not a compression; "
                "use a larger adapter, smaller hidden widths, or plain PEFT",
                stacklevel=2,
            )
        self.chunk_shape = count.n_chunks, count.chunk_size
        self.activation = ACTIVATIONS[config.activation]
        self.feature = make_feature(config, count, init)
        widths = (count.n_qubits + (self.feature is not None), *count.hidden, count.chunk_size)
        self.mlp = nn.ModuleList(
            FoldedLinear(n_in, n_out, config.mlp_scale, f"mlp.{i}", init)
            for i, (n_in, n_out) in enumerate(itertools.pairwise(widths))
        )
        self.register_buffer("bits", _bits(count.n_chunks, count.n_qubits), persistent=False)
        self.register_buffer("initial", initial.detach().float().flatten(), persistent=keep_initial)
        self.register_buffer("fingerprint", fingerprint(init.hexdigest(), asdict(count), _settings(config)))
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
        if self._reference is None:
            with torch.no_grad():
                self._reference = self._output(initial=True)
        return torch.add(self.initial, output - self._reference, alpha=self.config.output_scale)

    def redrawn(self, slots: Sequence[Slot], config: Any, init: SeededInit) -> QPAGenerator:
        present = self.initial.cpu().split([slot.shape.numel() for slot in slots])
        labelled = zip((slot.label for slot in slots), present, strict=True)
        magnitudes = {label: part for label, part in labelled if "lora_magnitude_vector" in label}
        initial = draw_without_base(slots, config.init_lora_weights, init, magnitudes)
        with warnings.catch_warnings():  # about its size, which appeared when it was trained
            warnings.simplefilter("ignore")
            return QPAGenerator(config, initial, init)

    def chunks(self, *, initial: bool = False) -> Tensor:
        """The MLP's output before flattening, shape (C, n)."""
        hidden = self.bits
        if self.feature is not None:
            hidden = torch.cat([self.bits, self.feature(initial=initial)[:, None]], dim=1)  # (C, N + 1)
        for layer in self.mlp[:-1]:
            hidden = self.activation(layer(hidden, initial=initial))
        return self.mlp[-1](hidden, initial=initial)

    def _output(self, *, initial: bool = False) -> Tensor:
        flat = self.chunks(initial=initial).flatten()[: self.count.m]
        return flat - flat.mean() if self.config.center_output else flat

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QPAGenerator:
        self._reference = None
        super()._apply(fn, recurse)
        return self


def _settings(config: QPASettings) -> dict[str, Any]:
    names = {f.name for f in fields(QPASettings)} - {"budget", "chunk_size", "hidden", "max_qubits"}
    return {name: getattr(config, name) for name in sorted(names)}


def _bits(n_chunks: int, n_qubits: int) -> Tensor:
    """Row c: the bits of c, wire 0 (the most significant) first, as -1 and +1; shape (C, N)."""
    index = torch.arange(n_chunks)[:, None]
    wires = torch.arange(n_qubits - 1, -1, -1)
    return ((index >> wires) & 1).float() * 2 - 1


@dataclass(kw_only=True)
class QPAGeneratorConfig(QPASettings):
    """QPA's generator of an adapter's parameters: circuit angles and a small MLP (arXiv 2410.09846)."""

    def make(self, initial: Tensor, init: SeededInit) -> QPAGenerator:
        """The generator of an adapter with PEFT's initialization `initial` (m,), which raw does not use."""
        return QPAGenerator(self, initial, init, keep_initial=self.init_mode == "residual")
