"""Quantum-PEFT's generator: all LoRA factors of a model from U, V of circuits and a diagonal lambda.

    dW = s U diag(lambda) V^T,    lora_B = s U diag(lambda) (d_out, K),    lora_A = V^T (K, d_in)

(ICLR 2025, arXiv 2503.05431.) Inside frozen frames P (d_out, R) and Q (d_in, R), U and V have width R and
dW = s P U diag(lambda) V^T Q^T. Factors of one width are computed in one batch. lambda, and so dW, is initially 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from qpeft.core.binding import Slot
from qpeft.core.generator import ANGLES, Generator, ParameterGroup, check_size, fingerprint
from qpeft.core.scaled_parameter import Folded
from qpeft.core.seeded_init import SeededInit
from qpeft.errors import CheckpointError
from qpeft.methods.quantum_peft.factors import BANKS, Bank, count_drawn
from qpeft.methods.quantum_peft.frames import fit_initial, frame_hash, leading_frame, random_frame, singular_frame
from qpeft.methods.quantum_peft.layout import Layout, Part
from qpeft.methods.quantum_peft.quantize import pack, quantize, unpack
from qpeft.methods.quantum_peft.settings import QuantumPeftGeneratorConfig

STREAM = "values"  # the one tensor in the compact adapter that refers to a frame file

_SEAL = 8  # bytes


class QuantumPeftGenerator(Generator):
    """Generates lora_A and lora_B of every matrix, then norm gains, as a flat float32 tensor (P,).

    The order of the tensors is `layout.order()`.

    Args:
        config: The configuration.
        layout: The matrices, and the batches in which their factors are computed.
        init: Draws the initial parameters.
        gains: Initial values of the trained norm gains, flat; may be empty.
    """

    groups: ClassVar[Mapping[str, ParameterGroup]] = {
        "banks": ANGLES,
        "lam": ParameterGroup("lambda"),
        "gains": ParameterGroup("gains"),
    }
    fitted: Tensor

    def __init__(self, config: QuantumPeftGeneratorConfig, layout: Layout, init: SeededInit, gains: Tensor) -> None:
        super().__init__()
        self.config, self.layout = config, layout
        check_size(count_drawn(config, layout), layout.size + gains.numel())
        self.banks = nn.ModuleDict(
            {_key(*key): BANKS[config.family](config, names, *key, init) for key, names in layout.banks.items()}
        )
        ranks = [part.rank * len(part.matrices) for part in layout.parts if part.side == "u"]
        self.lam = Folded(torch.zeros(sum(ranks)), config.lambda_scale) if config.family != "core" else None
        self.gains = Folded(gains.detach().float(), config.gain_scale) if gains.numel() else None
        self.frames = nn.Module()
        for part in layout.parts:
            self._register_part(part, init)
        self.register_buffer("fitted", torch.tensor(not self._wants_fit, dtype=torch.uint8), persistent=self._wants_fit)
        self._drawn = init.hexdigest()
        self.register_buffer("fingerprint", fingerprint(self._drawn, _settings(config), layout.matrices))
        self._base: str | None = None  # fingerprint of the base model whose weights determine the frames
        self._ready = False
        self.latent = False  # whether `pack` keeps unquantized parameters and frames, for resuming
        self._sizes: dict[str, tuple[torch.dtype, tuple[int, ...], int]] | None = None  # of the parts of a stream
        self._expected: Tensor | None = None  # digest of the frames of a loaded adapter

    def forward(self) -> Tensor:
        """The adapter's parameters, flat (P,).

        Raises:
            CircuitError: the current angles give no usable factor.
        """
        factors = {name: bank() for name, bank in self.banks.items()}
        lam = iter(self._lambdas())
        pieces = [self._assemble(part, factors, lam) for part in self.layout.parts]
        if self.gains is not None:
            pieces.append(self._rounded(self.gains))
        return torch.cat(pieces)

    def _lambdas(self) -> list[Tensor]:
        """s lambda of each u part, shape (M, 1, K)."""
        parts = [part for part in self.layout.parts if part.side == "u"]
        scales = [self.get_buffer(f"scale_{part.label}") for part in parts]
        if self.lam is None:
            return scales
        split = self._rounded(self.lam).split([len(part.matrices) * part.rank for part in parts])
        return [lam.view(-1, 1, part.rank) * s for lam, part, s in zip(split, parts, scales, strict=True)]

    def _rounded(self, trained: Folded) -> Tensor:
        """The values of lambda or gains, with a distance from the initial values of `lambda_bits` bits if it is set."""
        if self.config.lambda_bits is None:
            return trained()
        return trained.start + quantize(trained.distance(), self.config.lambda_bits, self.config.group_size)

    def _assemble(self, part: Part, factors: Mapping[str, Tensor], lam: Any) -> Tensor:
        """The flat values of one part's tensors."""
        frame = getattr(self.frames, part.label, None)  # (M, d, R)
        if part.rows:
            x = _take(factors[_key(part.inner, part.rank)], part.rows, self.get_buffer(f"rows_{part.label}"))
        else:
            assert frame is not None
            x, frame = frame, None
        if part.side == "u":
            x = x * next(lam)  # (M, R, K)
            return (x if frame is None else torch.bmm(frame, x)).flatten()  # (M, d, K)
        return (x.mT if frame is None else torch.bmm(x.mT, frame.mT)).flatten()  # (M, K, d)

    def _register_part(self, part: Part, init: SeededInit) -> None:
        def constant(name: str, value: Tensor) -> None:
            self.register_buffer(f"{name}_{part.label}", value, persistent=False)

        constant("rows", torch.tensor(part.rows, dtype=torch.int64))
        if part.side == "u":
            constant("scale", torch.tensor([self.layout.matrices[i].scale for i in part.matrices]).view(-1, 1, 1))
        if self.config.frame in ("gradient", "sign", "weights"):
            empty = torch.zeros(len(part.matrices), part.width, part.inner)
            self.frames.register_buffer(part.label, empty, persistent=self.config.follows_gradient)
        elif self.config.frame == "random":
            names = [f"{self.layout.matrices[i].name}.{part.side}.frame" for i in part.matrices]
            drawn = torch.stack([random_frame(name, part.width, part.inner, init) for name in names])
            self.frames.register_buffer(part.label, drawn, persistent=False)

    def redrawn(self, slots: Sequence[Slot], config: Any, init: SeededInit) -> QuantumPeftGenerator:
        gains = torch.empty(0) if self.gains is None else self.gains.start
        drawn = QuantumPeftGenerator(config, self.layout, init, gains.cpu())
        if self.config.frames is not None:
            drawn.set_frame_file(dict(self.frames.named_buffers()))
        elif self.config.frame == "weights":
            drawn.frames = self.frames
            drawn._seal_base(self._base)
        return drawn

    # -- fitting to the initial gradient

    @property
    def _wants_fit(self) -> bool:
        return self.config.frames is None and (self.config.follows_gradient or self.config.start == "gradient")

    @property
    def needs_fit(self) -> bool:  # type: ignore[override]
        """Whether `fit` is required before training."""
        self._ready = self._ready or bool(self.fitted.item())  # cached, because it synchronizes with a GPU
        return not self._ready

    @property
    def was_fitted_elsewhere(self) -> bool:
        """Whether it was loaded from a file without its frames."""
        return self._expected is not None

    def set_frame_file(self, frames: Mapping[str, Tensor]) -> None:
        """Use the frames of the file that the config names, by the labels of the parts; they are no longer saved."""
        for label, frame in frames.items():
            self.frames.register_buffer(label, frame, persistent=False)
        self.register_buffer("fitted", torch.ones_like(self.fitted), persistent=False)
        found = fingerprint(self._drawn, _settings(self.config), self.layout.matrices)
        self.fingerprint.copy_(found)

    def matrix_frames(self) -> dict[str, tuple[Tensor, Tensor]]:
        """The frame P (d_out, R) and Q (d_in, R) of each matrix, by its name."""
        found: dict[str, dict[str, Tensor]] = {}
        for part in self.layout.parts:
            for index, frame in zip(part.matrices, self.frames.get_buffer(part.label), strict=True):
                found.setdefault(self.layout.matrices[index].name, {})[part.side] = frame
        return {name: (sides["u"], sides["v"]) for name, sides in found.items()}

    @torch.no_grad()
    def fit(self, gradients: Mapping[str, Tensor]) -> None:
        """Fit frames or initial angles to the loss gradient (d_out, d_in) of each matrix, by its name.

        Raises:
            CheckpointError: the loaded adapter was trained in other frames.
        """
        if self.config.follows_gradient:
            self._fit_frames(gradients)
        else:
            self._fit_initial(gradients)
        self.fitted.fill_(1)

    def _fit_frames(self, gradients: Mapping[str, Tensor]) -> None:
        ranks, found = self._frame_ranks(), []
        for i, matrix in enumerate(self.layout.matrices):
            gradient = gradients[matrix.name]
            is_sign = self.config.frame == "sign"
            pair = singular_frame(-gradient.sign(), ranks[i])[:2] if is_sign else leading_frame(gradient, ranks[i])
            found.append(pair)
        new = self._by_part(found)
        _check_frames(self._expected, _digest(new))
        self._set_frames(new)

    @torch.no_grad()
    def set_weight_frames(self, weights: Sequence[Tensor], base: str | None) -> None:
        """Set the frames to the singular vectors of the base weights (d_out, d_in), in the order of the layout.

        The left frame of a core is also multiplied by the singular values: U S core V^T, which is LoRA-XS. `base` is
        the fingerprint of the base model: the adapter does not load on another one.
        """
        ranks, found = self._frame_ranks(), []
        for i, weight in enumerate(weights):
            left, right, values = singular_frame(weight, ranks[i])
            found.append((left * values if self.config.family == "core" else left, right))
        self._set_frames(self._by_part(found))
        self._seal_base(base)

    def _seal_base(self, base: str | None) -> None:
        self._base = base
        self.fingerprint.copy_(fingerprint(self._drawn, _settings(self.config), self.layout.matrices, base))

    def _frame_ranks(self) -> dict[int, int]:
        return {i: part.inner for part in self.layout.parts for i in part.matrices}

    def _by_part(self, pairs: Sequence[tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """The left and right frames of the matrices, stacked by the label of their part (M, d, R)."""
        return {
            part.label: torch.stack([pairs[i]["uv".index(part.side)] for i in part.matrices])
            for part in self.layout.parts
        }

    def _set_frames(self, frames: Mapping[str, Tensor]) -> None:
        for label, frame in frames.items():
            self.frames.get_buffer(label).copy_(frame)

    def _fit_initial(self, gradients: Mapping[str, Tensor]) -> None:
        shapes = {(m.d_out, m.d_in, m.rank) for m in self.layout.matrices}
        rows = {name: (key, row) for key, names in self.layout.banks.items() for row, name in enumerate(names)}
        for d_out, d_in, rank in sorted(shapes):
            chosen = [m.name for m in self.layout.matrices if (m.d_out, m.d_in, m.rank) == (d_out, d_in, rank)]
            u, v = self.banks[_key(d_out, rank)], self.banks[_key(d_in, rank)]
            assert isinstance(u, Bank)
            assert isinstance(v, Bank)
            at_u, at_v = ([rows[f"{name}.{side}"][1] for name in chosen] for side in "uv")
            gradient = torch.stack([gradients[name] for name in chosen])
            angles = u.numbers()[at_u], v.numbers()[at_v]
            with torch.enable_grad():
                fitted_u, fitted_v = fit_initial(u.columns, v.columns, gradient, *angles)
            u.numbers.set_values(at_u, fitted_u)
            v.numbers.set_values(at_v, fitted_v)

    # -- the compact state

    def find_broken(self) -> str | None:
        """As `Generator`; for a factor the module and side, such as `model.layers.0.mlp.up_proj.u`."""
        for (width, rank), names in self.layout.banks.items():
            bank = self.banks[_key(width, rank)]
            assert isinstance(bank, Bank)
            broken = (~torch.isfinite(bank.numbers().detach())).any(1).nonzero().flatten().tolist()
            if broken:
                return names[broken[0]]
        return super().find_broken()

    def pack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Frames as float16 or as a hash; quantized parameters as packed codes; with a frame file, one stream."""
        if self.config.frames is None or self.latent:
            return self._packed(state)
        payload = torch.cat([_as_bytes(part) for _, part in self._stored_parts(state)])
        return {STREAM: torch.cat([self._seal(payload), payload])}

    def _packed(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.config.follows_gradient and not (self.config.store_frames or self.latent or self.config.frames):
            digest = {} if self.needs_fit else {"frame_digest": self._frame_digest()}
            state = {k: v for k, v in state.items() if not k.startswith("frames.") and k != "fitted"} | digest
        else:
            state = {k: v.half() if k.startswith("frames.") else v for k, v in state.items()}
        if self.latent:
            return state
        for key, bits in self._quantized():
            if f"{key}tau" not in state:  # frozen
                continue
            folded = self._folded(key)
            values = folded.scale * state.pop(f"{key}tau")
            if f"{key}start" in state:
                values = state.pop(f"{key}start") + values
            codes, header = pack(values, bits, self.config.group_size)
            state |= {f"{key}codes": codes, f"{key}header": header}
        return state

    def _stored_parts(self, state: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
        """What a stream contains, in its order: a file with one tensor has the smallest header."""
        return sorted((name, part) for name, part in self._packed(state).items() if name != "fingerprint")

    def unpack(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        state = self._parts_of(state[STREAM]) if STREAM in state else dict(state)
        state = {k: v.float() if k.startswith("frames.") else v for k, v in state.items()}
        digest = state.pop("frame_digest", None)
        if digest is not None and not self.needs_fit:
            _check_frames(digest, self._frame_digest())
        if self._wants_fit and self.config.follows_gradient and "fitted" not in state:
            self._expected, own = digest, self.state_dict()  # saved without frames: keep the current ones
            state |= {k: v for k, v in own.items() if k.startswith("frames.") or k == "fitted"}
        for key, bits in self._quantized():
            if f"{key}codes" not in state:
                continue
            folded = self._folded(key)
            codes, header = state.pop(f"{key}codes"), state.pop(f"{key}header", torch.empty(0))
            values = unpack(codes, header, tuple(folded.start.shape), bits, self.config.group_size)
            if key in ("lam.", "gains."):  # their initial values are those of the base
                state[f"{key}tau"] = values / folded.scale
            else:
                state |= {f"{key}start": values, f"{key}tau": torch.zeros_like(values)}
        return state

    def _quantized(self) -> list[tuple[str, int]]:
        """The beginning of the keys, such as `banks.w768r8.numbers.`, of quantized parameters, and their bits."""
        banks = [(f"banks.{name}.numbers.", self.config.bits) for name in self.banks]
        others = [(f"{name}.", self.config.lambda_bits) for name in ("lam", "gains") if getattr(self, name) is not None]
        return [(key, bits) for key, bits in (*banks, *others) if bits is not None]

    def _folded(self, key: str) -> Folded:
        folded = self.get_submodule(key.removesuffix("."))
        assert isinstance(folded, Folded)
        return folded

    def _parts_of(self, stream: Tensor) -> dict[str, Tensor]:
        """The tensors of a stream by their names. Raises CheckpointError if they are not of this adapter."""
        if self._sizes is None:
            parts = self._stored_parts(self.state_dict())
            self._sizes = {name: (part.dtype, tuple(part.shape), _as_bytes(part).numel()) for name, part in parts}
        stored = _SEAL + sum(size for *_, size in self._sizes.values())
        if stream.dtype != torch.uint8 or stream.numel() != stored:
            raise CheckpointError(
                f"the checkpoint has {stream.numel()} bytes of {stream.dtype}, expected {stored} of torch.uint8; it is "
                "damaged or was written with other settings"
            )
        seal, *pieces = stream.cpu().split([_SEAL, *(size for *_, size in self._sizes.values())])
        if not torch.equal(seal, self._seal(torch.cat(pieces))):
            raise CheckpointError(
                "the checkpoint is damaged, or has other initial values or settings (seed, scales, frames, ...) than "
                "when it was saved; restore its files"
            )
        found = {
            name: piece.clone().view(dtype).view(shape)
            for (name, (dtype, shape, _)), piece in zip(self._sizes.items(), pieces, strict=True)
        }
        return {**found, "fingerprint": self.fingerprint}

    def _seal(self, payload: Tensor) -> Tensor:
        """The beginning of a hash of settings, initial values and stored values, uint8 (8,)."""
        parts = (self.fingerprint.cpu(), payload.cpu())
        digest = hashlib.sha256(b"".join(part.numpy().tobytes() for part in parts)).digest()
        return torch.tensor(list(digest[:_SEAL]), dtype=torch.uint8)

    def _frame_digest(self) -> Tensor:
        return _digest(dict(self.frames.named_buffers()))


def _as_bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)


def _key(width: int, rank: int) -> str:
    return f"w{width}r{rank}"


def _take(x: Tensor, rows: tuple[int, ...], index: Tensor) -> Tensor:
    """x[rows] along the first axis; a view if the rows are adjacent."""
    if rows == tuple(range(rows[0], rows[0] + len(rows))):
        return x[rows[0] : rows[0] + len(rows)]
    return x.index_select(0, index)


def _settings(config: QuantumPeftGeneratorConfig) -> dict[str, Any]:
    names = {f.name for f in fields(QuantumPeftGeneratorConfig)} - {"store_frames", "frames"}
    names -= {name for name in ("frames_sha256", "lambda_bits") if getattr(config, name) is None}  # not in 0.1
    return {name: getattr(config, name) for name in sorted(names)}


def _digest(frames: Mapping[str, Tensor]) -> Tensor:
    """`frame_hash` of all frames, uint8 (32,)."""
    return torch.tensor(list(bytes.fromhex(frame_hash(frames[label] for label in sorted(frames)))), dtype=torch.uint8)


def _check_frames(expected: Tensor | None, found: Tensor) -> None:
    if expected is not None and not torch.equal(expected.cpu(), found.cpu()):
        raise CheckpointError(
            "the computed gradient frames differ from those of the adapter's training: other calibration batches, base "
            "weights, precision or libraries; use the original ones, or an adapter saved with "
            "store_frames=True"
        )
