"""QPA's generator: a circuit's angles and a map generate all m parameters of an adapter, chunk by
chunk.

    angles -> probabilities (D,) -> K features of each chunk (C, K) -> linear map -> (C, n) -> flat (m,)

(arXiv 2410.09846, which has one feature per chunk, K = 1, and an MLP on the feature and the bits of
the chunk's index.) G generators have a leading axis G everywhere, and each generates its share of
the flat vector: (G, C, n) -> (m,). Only the angles and the map are trained. With
`init_mode="residual"` the result is

    w = w0 + (G - G_ref),

where w0 is the adapter's own initialization and G_ref the generator's initial output, so that the
initial model equals that of the stock adapter.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qpeft.circuits import Ansatz, exact_probabilities
from qpeft.core.folded import Folded
from qpeft.core.generator import (
    ANGLES,
    CircuitModule,
    Generator,
    ParameterGroup,
    State,
    fingerprint,
    is_fingerprint,
)
from qpeft.core.seeded_init import SeededInit
from qpeft.errors import BaseModelWarning
from qpeft.methods.qpa.settings import QPACount, QPAGeneratorConfig

# initial r.m.s. of the generated parameters, with features of norm 1 (measured); bits in their place
# have a larger norm, and so larger initial values, which published results have
_SMALL = 0.01
# of 2^N p; without it the slope of a root at p = 0 is infinite and the gradient of the angles NaN
_FLOOR = 1e-6
_NULL = (
    1e-6  # of the largest eigenvalue: smaller ones would raise float32's rounding errors above 1e-4
)


def scaled(probabilities: Tensor) -> Tensor:
    """(2^N p - 1) / sqrt(2), shape (..., D): mean 0 and variance 1 for a random real circuit."""
    return (probabilities * probabilities.shape[-1] - 1.0) * math.sqrt(0.5)


def root(probabilities: Tensor) -> Tensor:
    """(sqrt(2^N p) - a) / sqrt(1 - a^2) with a = sqrt(2 / pi), shape (..., D): mean 0 and variance
    1 for a random real circuit, whose amplitudes are normal.

    The distribution has lighter tails than that of p: the chunks have about equal norms.
    """
    mean = math.sqrt(2 / math.pi)
    amplitudes = (probabilities * probabilities.shape[-1]).clamp(min=_FLOOR).sqrt()
    return (amplitudes - mean) / math.sqrt(1 - mean**2)


def squash(probabilities: Tensor) -> Tensor:
    """q - mean(q) with q = (0.6 tanh(0.1 * 2^(N-1) p))^0.15 over all D basis states, shape (...,
    D).
    """
    x = (probabilities * probabilities.shape[-1]).clamp(min=_FLOOR)
    q = (0.6 * torch.tanh(0.05 * x)) ** 0.15
    return q - q.mean(-1, keepdim=True)


_MAPS = {"whitened": root, "scaled": scaled, "squash": squash}  # before the whitening


def whitening(features: Tensor) -> Tensor:
    """The symmetric S (..., K, K) that makes features F (..., C, K) orthogonal: (F S)^T F S = C / K
    identity.

    The rows of F S have norm 1 on average. If F has a rank R below K, it is C / R times the
    projection onto its rows.
    """
    values, vectors = torch.linalg.eigh(features.double().mT @ features.double())
    is_kept = values > _NULL * values[..., -1:]
    scale = (features.shape[-2] / is_kept.sum(-1, keepdim=True)).sqrt()
    roots = torch.where(is_kept, scale * values.clamp(min=1e-300).rsqrt(), 0.0)
    return (vectors * roots[..., None, :] @ vectors.mT).float()


class CircuitFeature(CircuitModule):
    """Features of each chunk from the probabilities of G circuits, with trained or frozen angles.

    The K features of chunk c are made from the probabilities of the basis states K c, ..., K c + K
    - 1.
    """

    def __init__(
        self, ansatz: Ansatz, angles: Folded, chunks: tuple[int, int], feature_map: str
    ) -> None:
        super().__init__()
        self.ansatz = ansatz
        self.angles = angles
        self.chunks = chunks
        self.feature_map = _MAPS[feature_map]
        self.is_trained = angles.tau is not None
        self.n_circuits = len(angles.start)

    def forward(self, *, initial: bool = False) -> Tensor:
        """Features (G, C, K); initial features are exact, whatever the backend."""
        angles = self.angles(initial=initial)
        n_chunks, k = self.chunks
        if initial or self.backend is None:
            p = exact_probabilities(self.ansatz, angles)  # (G, D)
        else:
            p = torch.stack([self.backend(of_one) for of_one in angles])
        return self.feature_map(p)[:, : n_chunks * k].view(-1, n_chunks, k)  # (G, C, K)


def _make_feature(
    config: QPAGeneratorConfig, count: QPACount, init: SeededInit
) -> nn.Module | None:
    """The module that computes the features (G, C, K) of `config.feature_source`; None for "none"."""
    source = config.feature_source
    if source == "none":
        return None
    g = config.n_generators
    scale = float(config.angle_scale or 1)
    chunks = (count.n_chunks // g, int(config.features or 1))
    if source in ("free", "random"):
        return Folded(init.normal("feature", (g, *chunks)), scale, trained=source == "free")
    ansatz = Ansatz(config.ansatz, count.n_qubits, config.n_layers)
    drawn = init.uniform("angles", (g, *ansatz.angle_shape), math.pi)
    angles = Folded(drawn, scale, trained=source == "qnn")
    return CircuitFeature(ansatz, angles, chunks, str(config.feature_map))


class FoldedLinear(nn.Module):
    """y = x W^T + b with folded W (G, out, in) and b (G, out), uniform on +-bound at first."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        scale: float,
        bound: float,
        name: str,
        init: SeededInit,
        *,
        has_bias: bool,
    ) -> None:
        super().__init__()
        self.weight = Folded(init.uniform(f"{name}.weight", shape, bound), scale)
        self.bias = None
        if has_bias:
            self.bias = Folded(init.uniform(f"{name}.bias", shape[:-1], bound), scale)

    def forward(self, x: Tensor, *, initial: bool = False) -> Tensor:
        """(G, C, in) -> (G, C, out)"""
        product = x @ self.weight(initial=initial).mT
        return product if self.bias is None else product + self.bias(initial=initial).unsqueeze(-2)


class QPAGenerator(Generator):
    """Generates m parameters as a flat float32 tensor (m,), deterministically.

    Args:
        config: The configuration; `config.count(m)` returns the sizes.
        initial: w0, the adapter's own initialization, shape (m,); not used by `init_mode="raw"`.
        init: Draws the initial angles and weights; the caller may have drawn w0 from it.
        labels: The names of the tensors that the m parameters fill, in order.
        keep_initial: Whether w0 is part of the state dict, because it cannot be drawn again.
    """

    groups: ClassVar[Mapping[str, ParameterGroup]] = {
        "feature": ANGLES,
        "mlp": ParameterGroup("map", decays=True),
    }
    is_coupled = True
    bits: Tensor | None
    whitening: Tensor | None
    initial: Tensor

    def __init__(
        self,
        config: QPAGeneratorConfig,
        initial: Tensor,
        init: SeededInit,
        labels: Sequence[str] = (),
        *,
        keep_initial: bool = False,
    ) -> None:
        super().__init__()
        self.config = config
        self.m = initial.numel()
        count = config.count(self.m)
        self.count = count
        self.feature = _make_feature(config, count, init)
        self._ansatz: Ansatz | None = getattr(self.feature, "ansatz", None)
        g = config.n_generators
        widths = count.widths
        bounds = [1.0 / math.sqrt(n_in) for n_in in widths[:-1]]  # as torch.nn.Linear
        if config.init_mode == "small":
            bounds[-1] = _SMALL * math.sqrt(
                3 if config.feature_map == "whitened" else 3 / widths[-2]
            )
        has_bias = len(widths) > 2
        self.mlp = nn.ModuleList()
        for i, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
            shape = (g, n_out, n_in)
            layer = FoldedLinear(
                shape, config.mlp_scale, bounds[i], f"mlp.{i}", init, has_bias=has_bias
            )
            self.mlp.append(layer)
        n_bits = widths[0] - (0 if self.feature is None else int(config.features or 1))
        # those of the chunk's number as -1 and +1, wire 0 (the most significant) first
        chunk = torch.arange(count.n_chunks // g)[:, None]
        bits = chunk >> torch.arange(n_bits - 1, -1, -1) & 1  # (C, bits)
        bits = (bits.float() * 2 - 1).expand(g, -1, -1) if n_bits else None
        self.register_buffer("bits", bits, persistent=False)
        self.register_buffer(
            "initial",
            initial.detach().float().flatten(),
            persistent=keep_initial,
        )
        self.register_buffer("whitening", None, persistent=False)
        if config.feature_map == "whitened" and self.feature is not None and not initial.is_meta:
            with torch.no_grad(), torch.device("cpu"):
                self.whitening = whitening(deepcopy(self.feature).cpu().double()(initial=True))
        settings = {f.name: getattr(config, f.name) for f in fields(QPAGeneratorConfig)}
        # another circuit may have the same name
        gates = [] if self._ansatz is None else list(self._ansatz.gates())
        parts = (init.hexdigest(), self.m, settings, gates)
        self.register_buffer("fingerprint", fingerprint(*parts, labels))
        self._unordered = fingerprint(*parts)  # as releases before 0.3 saved it
        # G_ref, computed on the device of the first evaluation
        self._reference: Tensor | None = None

    def forward(self) -> Tensor:
        """The adapter's parameters, flat (m,). Raises ConfigError if an angle is not finite (on the
        CPU only).
        """
        output = self._output()
        if self.config.init_mode == "raw":
            return output
        if self.config.init_mode == "residual":
            if self._reference is None:
                with torch.no_grad():
                    self._reference = self._output(initial=True)
            output = output - self._reference
        return self.initial + output

    def _output(self, *, initial: bool = False) -> Tensor:
        of_generators = self.chunks(initial=initial).view(self.config.n_generators, -1)  # (G, C n)
        shares = of_generators[:, : self.config.share(self.m)]  # (G, ceil(m / G))
        if self.config.center_output:
            shares = shares - shares.mean(-1, keepdim=True)
        return shares.flatten()[: self.m]

    def chunks(self, *, initial: bool = False) -> Tensor:
        """The output before flattening, of one generator after the other: shape (G C, n)."""
        inputs = [] if self.bits is None else [self.bits]
        if self.feature is not None:
            features = self.feature(initial=initial)  # (G, C, K)
            if self.whitening is not None:
                features = features @ self.whitening
            inputs.append(features)
        hidden = inputs[0] if len(inputs) == 1 else torch.cat(inputs, dim=-1)
        for layer in self.mlp[:-1]:
            hidden = layer(hidden, initial=initial)
            hidden = F.silu(hidden) if self.config.activation == "silu" else hidden
        return self.mlp[-1](hidden, initial=initial).flatten(0, 1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QPAGenerator:
        self._reference = None
        return super()._apply(fn, recurse)

    def unpack(self, state: State) -> State:
        """As the base class's; the fingerprint of a release before 0.3 becomes the present one.

        Warns with BaseModelWarning if nothing then tells whether the order of tensors was edited.
        """
        saved = state.get("fingerprint")
        if saved is None or not is_fingerprint(saved, self._unordered):
            return state
        if self.is_reordered:
            warnings.warn(
                "the adapter's tensors have another order than this base model's, and a release"
                " before 0.3 saved it, which did not protect the order: if `generated` in its"
                " adapter_config.json was edited, restore it",
                BaseModelWarning,
                stacklevel=2,
            )
        return state | {"fingerprint": self._identity}

    def plan_sizes(self) -> dict[str, Any]:
        count = self.count
        config = self.config
        sizes = {
            "n_qubits": count.n_qubits,
            "n_circuits": config.n_generators if self._ansatz else None,
            "n_chunks": count.n_chunks,
            "chunk_size": count.chunk_size,
            "hidden": count.widths[1:-1] or None,
            "budget": config.budget_count(self.m) if config.chunk_size is None else None,
        }
        return {name: value for name, value in sizes.items() if value is not None}
