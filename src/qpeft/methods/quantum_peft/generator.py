"""Quantum-PEFT's generator: all LoRA factors of a model from U, V of circuits and a diagonal
lambda.

    dW = s U diag(lambda) V^T,    lora_B = K U diag(lambda) (d_out, K),    lora_A = V^T (K, d_in),    s = lora_alpha

(ICLR 2025, arXiv 2503.05431), because LoRA multiplies by lora_alpha / K. Inside frozen frames P
(d_out, R) and Q (d_in, R), U and V have width R and dW = s P U diag(lambda) V^T Q^T. lambda, and so
dW, is initially 0.

The factors (w, K) of tensors of one shape have n rows of p parameters; all are in one flat tensor,
and all factors are computed at once. The family decides how parameters are drawn and what factors
they give.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from qpeft.circuits.lie import count_lie, lie_columns, lie_matrix
from qpeft.circuits.numerics import cached_tables
from qpeft.circuits.orthogonal import (
    basis_columns,
    check_rank,
    column_qubits,
    count_orthogonal,
    orthogonal_batches,
)
from qpeft.core.folded import Folded
from qpeft.core.generator import (
    ANGLES,
    Generator,
    ParameterGroup,
    State,
    as_index,
    fingerprint,
    is_fingerprint,
)
from qpeft.core.quantize import pack, stored_bytes, unpack
from qpeft.core.seeded_init import SeededInit
from qpeft.errors import CheckpointError, ConfigError
from qpeft.methods.quantum_peft import QuantumPeftGeneratorConfig
from qpeft.methods.quantum_peft.frames import (
    base_weight,
    core_frame,
    frame_rank_for,
    leading_frame,
    singular_frame,
)

if TYPE_CHECKING:
    from qpeft.core.slots import Slot
    from qpeft.methods.quantum_peft.config import QuantumPeftConfig

VALUES = "values"  # the tensor of the compact adapter with all trained values

_FRAMED_STD = 0.1  # inside a frame the initial columns are near the frame's leading directions
_CHECKSUM_BYTES = 8


class Part(NamedTuple):
    """All lora_A (side "v") or lora_B (side "u") tensors of one shape, adjacent in the flat vector."""

    side: str
    width: int  # d_in or d_out
    inner: int  # width of the factors: that of the tensors, or the directions of the frames
    rank: int
    names: list[str]  # of the modules
    units: list[str]  # the name of the parameters of each tensor's factor, equal for shared ones

    @property
    def label(self) -> str:
        """A name for buffers, for example u768w32r8: d_out 768, factors of width 32 and rank 8."""
        return f"{self.side}{self.width}w{self.inner}r{self.rank}"

    @property
    def labels(self) -> list[str]:
        """The labels of its tensors."""
        return [f"{name}.lora_{'A' if self.side == 'v' else 'B'}.weight" for name in self.names]


def parts_of(config: QuantumPeftConfig, slots: Sequence[Slot]) -> list[Part]:
    """The parts of these lora_A and lora_B, given in PEFT's order or in that of the flat vector, in
    the latter.

    Raises ConfigError if a rank is larger than its matrix or frame, or a module is no linear layer.
    """
    shapes = {slot.label: slot.shape for slot in slots}
    parts: dict[tuple[str, int, int, int], Part] = {}
    for label in shapes:
        name, is_lora, end = label.rpartition(".lora_")
        if not is_lora:
            continue
        if end not in ("A.weight", "B.weight") or len(shapes[label]) != 2:
            raise ConfigError(
                f"Quantum-PEFT adapts linear layers, and {name} is none; leave it out"
            )
        d_out, rank = shapes[f"{name}.lora_B.weight"]
        _, d_in = shapes[f"{name}.lora_A.weight"]
        side, width = ("v", d_in) if end == "A.weight" else ("u", d_out)
        inner = width
        most = min(d_out, d_in)
        if config.frame is not None:
            inner = rank if config.family == "core" else frame_rank_for(most, config.frame_rank)
            most = most if config.family == "core" else inner
        if rank > most:
            raise ConfigError(
                f"r={rank} exceeds {most}, the most for {name}; choose a smaller r, set it "
                "for this module in rank_pattern, or exclude the module"
            )
        if config.family == "lie" and inner <= config.lie_rank <= rank:
            change = "choose a smaller lie_rank, or " if inner > 1 else ""
            raise ConfigError(
                f"family='lie' with lie_rank={config.lie_rank} needs factors wider than that, and"
                f" one of {name} has width {inner}; {change}exclude the module"
            )
        part = parts.setdefault((side, width, inner, rank), Part(side, width, inner, rank, [], []))
        part.names.append(name)
        shared = re.sub(r"(^|\.)\d+\.", r"\1*.", name) if config.share == "type" else name
        part.units.append(f"{shared}.{side}")
    return [*parts.values()]


# -- the families


def draw(
    config: QuantumPeftGeneratorConfig, init: SeededInit, name: str, width: int, rank: int
) -> Tensor:
    """The initial parameters of one factor (p,). Raises ConfigError if the options do not fit width
    and rank.
    """
    std = None if config.frame is None else _FRAMED_STD
    if config.family == "pauli":
        check_rank(rank, width, config.construction)
        shape = (count_orthogonal(width, config.n_layers, config.construction),)
        return init.normal(name, shape, std) if std else init.uniform(name, shape, math.pi)
    if config.family == "lie":
        shape = (count_lie(width, config.lie_rank),)
        lie_columns(torch.zeros(width, config.lie_rank), rank)  # raises if the rank does not fit
        return init.normal(name, shape, std or 1.0 / math.sqrt(width))
    # a core is between U and V^T that are frames
    return torch.zeros(width * rank if name.endswith(".u") else 0, device=init.device)


def columns(
    config: QuantumPeftGeneratorConfig, batches: Sequence[tuple[Tensor, int, int]]
) -> list[Tensor]:
    """The factors (n, w, K) of each batch: parameters (n, p), w and K."""
    if config.family == "pauli":
        n_layers = config.n_layers
        cut = config.construction
        circuits = []
        for p, width, rank in batches:
            index = basis_columns(str(config.columns), column_qubits(width, cut), rank)
            circuits.append((p, width, index))
        signs = None
        if config.entangler != "cz":
            signs = partial(_entangler_signs, config.entangler, n_layers, config.seed)
        return orthogonal_batches(circuits, n_layers, cut, signs)
    factors = []
    for p, width, rank in batches:
        if config.family == "lie":
            b = lie_matrix(p, width, config.lie_rank)  # (n, w, K')
            factors.append(lie_columns(b, rank, config.lie_map))
        else:  # a core (n, K, K), and the identity on its other side
            eye = torch.eye(rank, dtype=p.dtype, device=p.device).expand(len(p), -1, -1)
            factors.append(p.view_as(eye) if p.numel() else eye)
    return factors


@cached_tables
def _entangler_signs(entangler: str, n_layers: int, seed: int, n_qubits: int) -> Tensor:
    """Instead of the CZs of all circuits of a size: one draw of signs, or ones; (2 L, 2**n_qubits)."""
    shape = (2 * n_layers, 2**n_qubits)
    if entangler != "signs":
        return torch.ones(shape)
    drawn = SeededInit(seed).uniform(f"signs.{n_qubits}", shape, 1.0)
    return torch.where(drawn < 0, -1.0, 1.0)


# -- the generator


class QuantumPeftGenerator(Generator):
    """Generates lora_A and lora_B of every matrix as a flat float32 tensor (P,).

    Args:
        config: The configuration.
        parts: The tensors in the order of the flat vector.
        init: Draws the initial parameters.
    """

    groups: ClassVar[Mapping[str, ParameterGroup]] = {
        "angles": ANGLES,
        "lam": ParameterGroup("lambda"),
    }
    scale: Tensor

    def __init__(self, config: QuantumPeftConfig, parts: Sequence[Part], init: SeededInit) -> None:
        super().__init__()
        self.config = config
        self.parts = parts
        self.frames = nn.Module()
        drawn: list[Tensor] = []  # (n, p) of each part
        for part in parts:
            units = list(dict.fromkeys(part.units))
            parameters = [draw(config, init, unit, part.inner, part.rank) for unit in units]
            drawn.append(torch.stack(parameters))
            # of each tensor, an index buffer
            rows = [float(units.index(unit)) for unit in part.units]
            shared = None if units == part.units else torch.tensor(rows)
            self.register_buffer(f"rows_{part.label}", shared, persistent=False)
            size = (len(part.names), part.width, part.inner)
            frame = None if config.frame is None else torch.zeros(size, device=init.device)
            if config.frame == "random":
                labels = [f"{name}.{part.side}.frame" for name in part.names]
                bases = [init.orthonormal(label, part.width, part.inner) for label in labels]
                frame = torch.stack(bases)  # (M, d, R)
            self.frames.register_buffer(part.label, frame)
        self.shapes = [rows.shape for rows in drawn]
        self.angles = self._angles(torch.cat([rows.flatten() for rows in drawn]))
        ranks: list[float] = []  # r of each lambda
        for part in parts:
            if part.side == "u":
                ranks += [float(part.rank)] * len(part.names) * part.rank
        self.register_buffer("scale", torch.tensor(ranks), persistent=False)
        start = torch.zeros(len(ranks), device=init.device)
        lam = Folded(start, config.lambda_scale, bits=config.lambda_bits)
        self.lam = None if config.family == "core" else lam
        # a frame file has a hash, and the widths of frames are in the labels
        of_file = {"frames", "frames_sha256", "frame_rank"}
        names = {f.name for f in fields(QuantumPeftGeneratorConfig)} - of_file
        settings = {name: getattr(config, name) for name in sorted(names)}
        alphas = (config.lora_alpha, config.alpha_pattern)
        layout = [(part.label, part.names) for part in parts]
        self._settings = (init.hexdigest(), settings, *alphas, layout)
        # as releases before 0.3 saved it, which did not protect the reference to a frame file
        self._without_file = fingerprint(*self._settings)
        self.identify()
        # the frames are those of the loss gradient, and still 0
        self._is_unfitted = config.stores_frames
        self.latent = False  # whether `pack` keeps unquantized parameters and frames, for resuming

    def identify(self) -> None:
        """Set the fingerprint, with the hash of the frame file that the config refers to."""
        file = self.config.frames_sha256
        hashed = self._without_file if file is None else fingerprint(*self._settings, file)
        self.register_buffer("fingerprint", hashed.to(getattr(self, "fingerprint", hashed).device))

    def _angles(self, drawn: Tensor) -> Folded:
        config = self.config
        scale = config.lambda_scale if config.family == "core" else float(config.angle_scale or 1)
        if config.freeze_angles or config.bits is None:
            return Folded(drawn, scale, trained=not config.freeze_angles)
        # with bits the parameters themselves are rounded, not their distance from the initial
        # values
        angles = Folded(torch.zeros_like(drawn), scale, bits=config.bits)
        angles.tau.data.copy_(drawn / scale)  # type: ignore[union-attr]
        return angles

    def forward(self) -> Tensor:
        """The adapter's parameters, flat (P,). Raises CircuitError if the current angles give no
        usable factor.
        """
        angles = self.angles().split([shape.numel() for shape in self.shapes])
        batches = [
            (x.view(shape), part.inner, part.rank)
            for x, shape, part in zip(angles, self.shapes, self.parts, strict=True)
        ]
        factors = columns(self.config, batches)  # (n, w, K) of each part
        scale = self.scale if self.lam is None else self.lam() * self.scale
        sizes = [len(part.names) * part.rank for part in self.parts if part.side == "u"]
        scales = iter(scale.split(sizes))
        tensors = [
            self._tensors(part, x, scales) for part, x in zip(self.parts, factors, strict=True)
        ]
        return torch.cat(tensors)

    def _tensors(self, part: Part, x: Tensor, scales: Iterator[Tensor]) -> Tensor:
        """The flat values of one part, x its factors (n, w, K)."""
        frame: Tensor | None = getattr(self.frames, part.label)  # (M, d, R)
        rows = getattr(self, f"rows_{part.label}")
        if rows is not None:  # tensors share factors
            x = x.index_select(0, as_index(rows))
        if part.side == "u":
            x = x * next(scales).view(-1, 1, part.rank)
            return (x if frame is None else torch.bmm(frame, x)).flatten()  # (M, d, K)
        return (x.mT if frame is None else torch.bmm(x.mT, frame.mT)).flatten()  # (M, K, d)

    def use_base(self, base: nn.Module) -> None:
        """Take the frames from the frame file that the config names, or compute them from the
        weights of the base.
        """
        config = self.config
        if config.frames is not None:
            self._set_frames(config.take_frame_file().frame)
        elif config.frame == "weights":
            frame = core_frame if config.family == "core" else singular_frame

            def frame_of(name: str, rank: int) -> tuple[Tensor, Tensor]:
                return frame(base_weight(name, base.get_submodule(name)), rank)

            self._set_frames(frame_of)

    @torch.no_grad()
    def fit(self, gradients: Mapping[str, Tensor]) -> None:
        """Compute the frames from the loss gradient (d_out, d_in) of each matrix, by its name, or
        from its signs.
        """
        if self.config.frame == "sign":
            self._set_frames(lambda name, rank: singular_frame(-gradients[name].sign(), rank))
        else:
            self._set_frames(lambda name, rank: leading_frame(gradients[name], rank))
        self._is_unfitted = False

    @property
    def needs_fit(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether the frames are still 0; a state dict may have brought others."""
        if self._is_unfitted:
            frames = self.frames.buffers()
            self._is_unfitted = not all(not each.is_meta and bool(each.any()) for each in frames)
        return self._is_unfitted

    def _set_frames(self, frame: Callable[[str, int], tuple[Tensor, Tensor]]) -> None:
        """Set the left and right frame of each matrix, a function of its name and the number of
        directions.
        """
        pairs = {
            name: frame(name, part.inner)
            for part in self.parts
            if part.side == "u"
            for name in part.names
        }
        for part in self.parts:
            side = "uv".index(part.side)
            frames = torch.stack([pairs[name][side] for name in part.names])  # (M, d, R)
            self.frames.get_buffer(part.label).copy_(frames)

    def matrix_frames(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The frame P (d_out, R) and Q (d_in, R) of each matrix, by its name."""
        sides: dict[str, State] = {"u": {}, "v": {}}
        for part in self.parts:
            sides[part.side] |= zip(part.names, self.frames.get_buffer(part.label), strict=True)
        return {name: (frame, sides["v"][name]) for name, frame in sides["u"].items()}

    def plan_sizes(self) -> dict[str, Any]:
        config = self.config
        if config.frames is not None:
            self._set_frames(config.take_frame_file().frame)  # raises if the file lacks one
        sizes: dict[str, Any] = {"rank_bound": max(part.rank for part in self.parts)}
        if config.family == "pauli":
            sizes["n_circuits"] = sum(n for n, _ in self.shapes)
            cut = config.construction
            sizes["n_qubits"] = max(column_qubits(part.inner, cut) for part in self.parts)
        return sizes

    def pack(self, state: State) -> State:
        """A stream with the bytes of all trained parameters after a checksum, and frames as float16
        unless they are known.

        With `latent`, for resuming: the parameters as they are.
        """
        parameters = {name: t for name, t in state.items() if not name.startswith("frames.")}
        frames = {}
        if self.config.stores_frames:
            frames = {name: state[name].half() for name in state.keys() - parameters}
        if self.latent:
            return parameters | frames
        streams = [pack(state[name], folded.bits) for name, folded in self._stored().items()]
        payload = torch.cat(streams)
        checksum = self._checksum(payload, self._identity)
        return {VALUES: torch.cat([checksum, payload]), **frames}

    def unpack(self, state: State) -> State:
        stores_frames = self.config.stores_frames
        frames = {}
        if not stores_frames:
            frames = {f"frames.{name}": frame for name, frame in self.frames.named_buffers()}
        frames |= {name: t.float() for name, t in state.items() if name.startswith("frames.")}
        self._is_unfitted = stores_frames and not all(frame.any() for frame in frames.values())
        if VALUES not in state:
            saved = state.get("fingerprint")
            if saved is not None and is_fingerprint(saved, self._without_file):
                frames["fingerprint"] = self._identity
            return state | frames
        stream = state[VALUES].cpu()
        if stream.is_floating_point():
            raise CheckpointError(
                "adapter_model.safetensors or a state of Quantum-PEFT has packed bytes, which"
                " cannot be averaged; take each state inside"
                " `with model.base_model.generators.keeping_latent():`, which gives floating-point"
                " parameters"
            )
        stored = self._stored()
        sizes = [_CHECKSUM_BYTES, *(stored_bytes(len(f.start), f.bits) for f in stored.values())]
        fits = stream.dtype == torch.uint8 and stream.shape == (sum(sizes),)
        checksum, payload = stream[:_CHECKSUM_BYTES], stream[_CHECKSUM_BYTES:]
        identities = (self._identity, self._without_file)
        if not fits or not any(
            torch.equal(checksum, self._checksum(payload, identity)) for identity in identities
        ):
            raise CheckpointError(
                "adapter_model.safetensors is damaged, or has other initial values or settings (seed, scales,"
                " frames, ...) than when it was saved; restore its files"
            )
        values = {
            name: unpack(part, len(folded.start), folded.bits)
            for (name, folded), part in zip(stored.items(), stream.split(sizes)[1:], strict=True)
        }
        return {**values, **frames, "fingerprint": self._identity}

    def _stored(self) -> dict[str, Folded]:
        """The trained parameters in the order of the stream, by their names in the state dict."""
        folded = {"angles.tau": self.angles, "lam.tau": self.lam}
        return {name: f for name, f in folded.items() if f is not None and f.tau is not None}

    def _checksum(self, payload: Tensor, identity: Tensor) -> Tensor:
        """The beginning of a hash of settings and initial values, which `identity` is of, and of the
        stored values, uint8 (8,); empty in a plan.
        """
        if payload.is_meta:
            return payload[:0]
        content = torch.cat([identity.cpu(), payload.cpu()]).numpy().tobytes()
        checksum = hashlib.sha256(content).digest()[:_CHECKSUM_BYTES]
        return torch.tensor([*checksum], dtype=torch.uint8, device=payload.device)
