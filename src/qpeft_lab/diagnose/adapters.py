"""Measurements of trained adapters: how far angles moved, and how many directions are used.

An adapter is read without its base model, or, if its frames are elsewhere, with the shapes of the
base.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from qpeft.circuits import Ansatz
from qpeft.core.checkpoint import CONFIG, WEIGHTS, check_tensors, load, read_config
from qpeft.core.config import GeneratedConfig, reading, type_name
from qpeft.core.folded import Folded
from qpeft.core.generator import CircuitModule, Generator
from qpeft.core.generator_holder import CONTAINER, holder_of
from qpeft.core.meta_model import on_meta
from qpeft.core.seeded_init import SeededInit
from qpeft.core.slots import Slot, draw_initial
from qpeft.errors import CheckpointError, ConfigError, InputError
from qpeft.generator_config import generator_name
from qpeft.methods import of_config
from qpeft_lab.diagnose.circuits import Measurement

Factors = dict[str, tuple[Tensor, Tensor]]  # by module: B (rows, r) and A (r, columns)
STILL = 0.01  # radians: an angle that moved less counts as still
_FROZEN = 0.9  # fraction of still angles from which the circuit counts as frozen
_ZERO = 1e-6  # a singular value below this share of the largest is zero


class Circuit(NamedTuple):
    """A circuit that starts in |0...0>: its initial and trained angles of `ansatz.angle_shape`,
    float64, radians.
    """

    ansatz: Ansatz
    start: Tensor
    angles: Tensor
    n_circuits: int  # of the adapter, of which it is the first


class Adapter:
    """A saved adapter: its config, its tensors in the file, and its generator if it has one.

    Raises:
        CheckpointError: A file is missing or damaged.
        ConfigError: No measurement applies to this kind of adapter, or its base model is not found.
    """

    def __init__(self, folder: str | Path, frames: str | Path | None = None) -> None:
        inside = Path(folder) / "adapter"  # of a run
        self.folder = inside if inside.is_dir() else Path(folder)
        self._frames = frames
        self.config: Any = read_config(self.folder, frames)
        kind = str(getattr(self.config.peft_type, "value", self.config.peft_type))
        with reading(self.folder / WEIGHTS):
            self.tensors = load_file(self.folder / WEIGHTS)
        self.generator: Generator | None = None
        self.model: Any = None  # on the meta device, if only the base can make the generator
        try:
            if isinstance(self.config, GeneratedConfig):
                self._make_generator(self.config)
        except InputError:
            raise
        except Exception as error:  # a field of another type can fail anywhere in PEFT
            raise CheckpointError(
                f"{self.folder / CONFIG} is damaged ({error}); restore it"
            ) from error
        if self.generator is None and kind != "LORA" and self.angle_scale is None:
            raise ConfigError(
                f"{self.folder} is an adapter of type {kind}, to which no measurement applies."
                " Ranks apply to what it exports if that is a LoRA: diagnose the folder of qpeft"
                " export, or `exported` of the run"
            )

    def _make_generator(self, config: Any) -> None:
        if (
            getattr(config, "frames_sha256", None) is not None
            or getattr(config, "frame", None) == "weights"
        ):
            if not (base := config.base_model_name_or_path):
                raise ConfigError(
                    f"{self.folder / CONFIG} has no base_model_name_or_path, whose shapes are"
                    " needed"
                )
            model = on_meta(base, config.task_type)
            self.model = load(model, self.folder, frames=self._frames)
            self.generator = holder_of(self.model)["default"]  # type: ignore[index]
            return
        settings = config.to_generator()
        slots = self._slots()
        mark = f"{CONTAINER}."
        own = {
            name.partition(mark)[2]: tensor for name, tensor in self.tensors.items() if mark in name
        }
        init = SeededInit(settings.seed)
        initial = own.get("initial")  # drawn by PEFT
        if initial is None:
            initial = draw_initial(slots, getattr(config, "drawn_init", "zero"), init)
        generator = settings.make(slots, initial, init)
        state = generator.unpack(own)
        check_tensors(state, generator.state_dict())
        generator.load_state_dict(state)
        self.generator = generator

    def _slots(self) -> list[Slot]:
        """The generated tensors in the order of the flat vector."""
        table = [(str(label), torch.Size(shape)) for label, shape in self.config.generated]
        return [Slot(nn.Module(), "", label, shape, torch.float32) for label, shape in table]

    @property
    def angle_scale(self) -> float | None:
        """As `qpeft.methods.Method.angle_scale`."""
        record = of_config(self.config)
        return None if record is None else record.angle_scale

    @property
    def has_circuit(self) -> bool:
        """Whether the method computes with a circuit, if its settings have not replaced it."""
        record = of_config(self.config)
        return record is None or record.kind_with(vars(self.config)) == "quantum"

    @property
    def method(self) -> str:
        """The name of the method or of the generator, or the type of a stock adapter."""
        if (
            isinstance(self.config, GeneratedConfig)
            and (maker := self.config.to_generator()) is not self.config
        ):
            return generator_name(maker)
        return type_name(self.config)

    def circuit(self) -> Circuit | None:
        """The generator's circuit, of several the first; None if it has none."""
        modules = () if self.generator is None else self.generator.modules()
        if (
            module := next(
                (module for module in modules if isinstance(module, CircuitModule)), None
            )
        ) is None:
            return None
        shape = module.n_circuits, *module.ansatz.angle_shape
        start, angles = (
            module.angles(initial=i).detach().cpu().double().view(shape)[0] for i in (True, False)
        )
        return Circuit(module.ansatz, start, angles, module.n_circuits)

    @torch.no_grad()
    def factors(self) -> Factors:
        """The LoRA factors that the adapter has or generates, without LoRA's scaling; empty for
        other hosts.

        Raises ConfigError for experts, and if there are no frames yet.
        """
        stock = self.config.to_stock() if isinstance(self.config, GeneratedConfig) else self.config
        if getattr(stock, "target_parameters", None):
            raise ConfigError(
                "the ranks of updates of experts (target_parameters) are not measured"
            )
        state: Mapping[str, Tensor] = self.tensors
        if self.generator is not None and self.generator.needs_fit:
            raise ConfigError(
                f"{self.folder} was saved without its frames: its matrices are unknown; train it"
                " first"
            )
        if self.model is not None:
            state = holder_of(self.model).stock_state(self.model, "default")  # type: ignore[union-attr]
        elif self.generator is not None:
            slots = self._slots()
            parts = self.generator().split([slot.shape.numel() for slot in slots])
            state = {
                slot.label: part.view(slot.shape) for slot, part in zip(slots, parts, strict=True)
            }
        factors: Factors = {}
        for name, a in state.items():
            b = state.get(name.replace("lora_A", "lora_B").replace("embedding_A", "embedding_B"))
            if b is not None and (".lora_A" in name or ".lora_embedding_A" in name):
                module = name.partition(".lora_")[0].removeprefix("base_model.model.")
                factors[module] = b.flatten(1), a.flatten(1)  # convolutions as matrices
        return factors


def angle_movement(adapter: Adapter | str | Path) -> Measurement:
    """How far the trained angles of QPA, Quantum-PEFT (family pauli) or QAA are from their initial
    values, in radians; of QAA's control also those of its Givens rotations.

    Args:
        adapter: The folder of a saved adapter.

    Returns:
        Over all `angles`: `mean`, `maximum`, and `still`, the share that moved less than 0.01 rad.

    Raises:
        ConfigError: There is no circuit whose angles are trained, or they are quantized.
        CheckpointError: The folder is damaged.
    """
    read = adapter if isinstance(adapter, Adapter) else Adapter(adapter)
    moves: list[Tensor] = []
    if read.generator is not None and read.has_circuit:
        moves = list(angle_moves(read.generator))
    elif read.angle_scale is not None:
        saved = [tensor for name, tensor in read.tensors.items() if ".angles.tau" in name]
        moves = [read.angle_scale * tensor for tensor in saved]
    if not moves:
        raise ConfigError(
            "the adapter has no circuit whose angles are trained, or they have bits and thus no"
            " initial values, so there is no movement to measure"
        )
    moved = torch.cat([move.detach().cpu().double().flatten().abs() for move in moves])
    still = (moved < STILL).double().mean().item()
    mean = moved.mean().item()
    maximum = moved.max().item()
    values = {"angles": len(moved), "mean": mean, "maximum": maximum, "still": still}
    if maximum == 0:
        return Measurement("The angles did not move", values)
    if still >= _FROZEN:
        return Measurement(f"{still:.0%} of the angles moved less than {STILL:g} radians", values)
    return Measurement("The angles moved, in radians", values)


def angle_moves(generator: Any) -> Iterator[Tensor]:
    """Trained minus initial angles of a generator's circuits; quantized angles have no initial
    values.
    """
    for name, part in generator.named_modules():
        if (
            name.rpartition(".")[2] == "angles"
            and isinstance(part, Folded)
            and part.tau is not None
            and part.bits is None
        ):
            yield part() - part(initial=True)


def effective_rank(updates: Mapping[str, Tensor | tuple[Tensor, Tensor]]) -> Measurement:
    """Ranks of generated matrices, from their singular values: means over the matrices that are not
    zero.

    Args:
        updates: By name a matrix (rows, columns), or the factors (B, A) of B A with shapes (rows,
            r) and (r, columns): such as lora_B and lora_A. Their product is never formed. Of any
            real dtype; computed in float64 on the CPU.

    Returns:
        `entropy_rank` = exp(-sum p ln p) with p = s / sum s, from 1 to `possible`, the highest rank
        that the shapes allow; `numerical_rank`, the number of singular values above 1e-6 of the
        largest; `matrices`, the number of matrices that are not zero. No rank depends on a scalar
        factor of a matrix, such as LoRA's scaling.

    Raises ConfigError if a matrix is not finite.
    """
    singular = [_singular_values(name, update) for name, update in updates.items()]
    used = [s for s in singular if s.any()]
    verdict = (
        "Ranks, the mean over the matrices that are not zero" if used else "Every matrix is zero"
    )
    values = {
        "entropy_rank": (
            fmean(torch.special.entr(s / s.sum()).sum().exp().item() for s in used) if used else 0.0
        ),
        "numerical_rank": fmean(int((s > _ZERO * s[0]).sum()) for s in used) if used else 0.0,
        "possible": fmean(map(len, used or singular)),
    }
    return Measurement(verdict, {**values, "matrices": len(used)})


def _singular_values(name: str, update: Tensor | tuple[Tensor, Tensor]) -> Tensor:
    """Descending, as many as the shapes allow."""
    factors = [
        f.detach().cpu().double() for f in ((update,) if isinstance(update, Tensor) else update)
    ]
    if not all(torch.isfinite(factor).all() for factor in factors):
        raise ConfigError(f"{name} contains NaN or Inf; use an earlier checkpoint")
    matrix = factors[0]
    # the product has the singular values of that of the triangles of two QR decompositions
    if len(factors) == 2:
        matrix = torch.linalg.qr(factors[0]).R @ torch.linalg.qr(factors[1].mT).R.mT
    return torch.linalg.svdvals(matrix)[: min(side for factor in factors for side in factor.shape)]
