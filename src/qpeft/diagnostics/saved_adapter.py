"""An adapter folder, read as far as the figures need it; no weights of a base are read."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from safetensors.torch import load_file
from torch import Tensor, nn

from qpeft.core.binding import Slot
from qpeft.core.checkpoint import CONFIG, WEIGHTS, check_folder, load
from qpeft.core.generator_state import check_tensors
from qpeft.core.holder import GeneratorHolder, holder_of
from qpeft.core.lora_init import draw_start
from qpeft.core.meta_model import on_meta
from qpeft.core.seeded_init import SeededStart
from qpeft.errors import CheckpointError, ConfigError, InputError
from qpeft.methods.attach.config import ATTACHED
from qpeft.methods.attach.folder import read_config
from qpeft.methods.qaa.features import ANGLE_SCALE
from qpeft.methods.qaa.model import QAA
from qpeft.methods.qpa.generator import QPAGenerator
from qpeft.methods.qpa.model import QPA
from qpeft.methods.qpa.settings import QPAGeneratorConfig
from qpeft.methods.quantum_peft.model import QUANTUM_PEFT

_LORA = "LORA"
_METHODS = {QPA: "qpa", ATTACHED: "qpa", QUANTUM_PEFT: "quantum_peft", QAA: "qaa", _LORA: "lora"}
_ABSURD = 2**31  # numbers of one tensor
Factors = dict[str, tuple[Tensor, Tensor]]  # by module: B (rows, r) and A (r, columns)


@dataclass(frozen=True)
class SavedAdapter:
    """What adapter_config.json and adapter_model.safetensors of `folder` hold."""

    folder: Path
    method: str  # key of `qpeft train`
    config: Any  # PEFT's, or the AttachedConfig of a generator over another host than LoRA
    tensors: dict[str, Tensor]

    @property
    def settings(self) -> QPAGeneratorConfig:
        """The generator's settings, of method qpa."""
        settings = self.config.to_generator() if self._is_attached else self.config
        assert isinstance(settings, QPAGeneratorConfig)
        return settings

    @property
    def _is_attached(self) -> bool:
        return self.config.peft_type == ATTACHED

    def generator(self) -> QPAGenerator:
        """QPA's generator as it was trained; the magnitudes of DoRA, which begin at the base's weights, begin at 0.

        Raises:
            CheckpointError: the tensors do not make it.
        """
        start, prefix = SeededStart(self.settings.seed), "generator."
        if self._is_attached:
            own = {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}
            m = sum(shape.numel() for _, shape in self._table())
            initial = own["initial"] if "initial" in own else torch.zeros(m)
            if initial.shape != (m,):
                raise self._damaged_table(f"it has {m} numbers, the weights are for {initial.numel()}")
            generator = quiet_generator(self.settings, initial, start, keep_initial="initial" in own)
        else:
            prefix = f"base_model.{GeneratorHolder.container}."
            own = {name.removeprefix(prefix): t for name, t in self.tensors.items() if name.startswith(prefix)}
            initial = torch.cat([_drawn(label, shape, self.config, start) for label, shape in self._table()])
            generator = quiet_generator(self.settings, initial, start)
        self.config.check_start(start.hexdigest())
        check_tensors(own, generator.state_dict())
        generator.load_state_dict(own)
        return generator

    def _table(self) -> list[tuple[str, torch.Size]]:
        """Name and shape of each generated tensor. Raises CheckpointError if the config's table is damaged."""
        try:
            table = [(str(label), torch.Size(shape)) for label, shape in self.config.generated]
        except (TypeError, ValueError, RuntimeError) as error:
            raise self._damaged_table(error) from error
        if absurd := [label for label, shape in table if not 0 < shape.numel() < _ABSURD]:
            raise self._damaged_table(f"the shape of {absurd[0]}")
        return table

    def _damaged_table(self, reason: object) -> CheckpointError:
        return CheckpointError(
            f"the table of generated tensors in {self.folder / CONFIG} is damaged ({reason}); restore it"
        )

    def angle_moves(self) -> list[Tensor]:
        """scale * tau of every circuit whose angles are trained, in radians.

        Raises:
            ConfigError: there is none, or its angles are not kept as a distance from the start.
            CheckpointError: the weights hold none.
        """
        ending, scale = self._angles()
        moves = [scale * tensor.float() for name, tensor in self.tensors.items() if name.endswith(ending)]
        if not moves:
            raise CheckpointError(f"{self.folder / WEIGHTS} lacks the angles that {CONFIG} tells of; restore both")
        return moves

    def _angles(self) -> tuple[str, float]:
        """How the names of the angles' tensors end, and the factor before them."""
        if self.method == "qpa" and self.settings.feature_source == "qnn":
            return ".angles.tau", self.settings.angle_scale
        if self.method == "qaa" and self.config.feature_source == "qnn" and self.config.train_circuit:
            return ".angles.tau", ANGLE_SCALE
        if self.method == "quantum_peft":
            check_keeps_start(self.config)
            return ".numbers.tau", self.config.angle_scale
        raise ConfigError(f"{self.folder} has no circuit whose angles are trained, so there is no movement to tell")

    def factors(self, base: nn.Module | str | None = None) -> Factors:
        """The LoRA factors that the adapter is, or generates, without LoRA's scale; empty for other hosts.

        Args:
            base: The base model, of which the shapes alone are read, and these for Quantum-PEFT alone. By default what
                the folder names.

        Raises:
            ConfigError: no such base, or an adapter without such factors.
        """
        if self.method == "lora":
            return _paired(self.tensors)
        if self.method == "qpa":
            return _paired(self._generated())
        if self.method == "quantum_peft":
            return _paired(self._generated_on(base or self.config.base_model_name_or_path))
        raise ConfigError(f"method {self.method} changes no weight: there is no matrix to take a rank of")

    @torch.no_grad()
    def _generated(self) -> dict[str, Tensor]:
        labels, shapes = zip(*self._table(), strict=True)
        parts = self.generator()().split([shape.numel() for shape in shapes])
        return {label: part.view(shape) for label, part, shape in zip(labels, parts, shapes, strict=True)}

    def _generated_on(self, base: nn.Module | str) -> dict[str, Tensor]:
        model = load(on_meta(base, self.config.task_type), self.folder)
        holder = holder_of(model)
        assert holder is not None
        if getattr(holder.generators["default"], "needs_fit", False):
            raise ConfigError(
                f"{self.folder} was saved without its frames, which its matrices lie in; diagnose the folder exported "
                "from it"
            )
        return holder.stock_state(model, "default")


def read_adapter(folder: str | Path) -> SavedAdapter:
    """The adapter in `folder`.

    Raises:
        CheckpointError: a file is missing, damaged or foreign.
        ConfigError: an adapter that no figure applies to.
    """
    folder = Path(folder)
    kind = str(check_folder(folder)["peft_type"])
    if kind not in _METHODS:
        raise ConfigError(
            f"{folder} is an adapter of type {kind}, to which no figure applies; there are figures of QPA, "
            "Quantum-PEFT, QAA and LoRA"
        )
    config: Any = read_config(folder) if kind == ATTACHED else _read_stock_config(folder)
    if kind == ATTACHED and config.generator_name != "qpa":
        raise ConfigError(
            f"{folder} comes from the generator '{config.generator_name}'; there are figures of QPA's alone"
        )
    return SavedAdapter(folder, _METHODS[kind], config, load_file(folder / WEIGHTS))


def _read_stock_config(folder: Path) -> PeftConfig:
    try:
        return PeftConfig.from_pretrained(str(folder))
    except InputError:
        raise
    except Exception as error:  # a field of another type can fail anywhere in PEFT
        raise CheckpointError(f"{folder / CONFIG} is damaged ({type(error).__name__}: {error}); restore it") from error


def check_keeps_start(config: Any) -> None:
    """Raise ConfigError unless Quantum-PEFT's angles are trained as a distance from their seeded start."""
    if config.family != "pauli":
        raise ConfigError(f"family {config.family} of Quantum-PEFT has no circuit, so there are no angles")
    if config.freeze_angles:
        raise ConfigError("freeze_angles: the angles are not trained, so there is no movement to tell")
    if config.bits is not None:
        raise ConfigError("quantised angles are stored without their start, so there is no movement to tell")
    if config.start == "gradient":
        raise ConfigError("start='gradient' moved the angles before training, so what training moved cannot be told")


def _drawn(label: str, shape: torch.Size, config: Any, start: SeededStart) -> Tensor:
    slot = Slot(nn.Module(), "", label, shape, torch.float32)
    if "lora_magnitude_vector" in label:
        return torch.zeros(slot.shape.numel())
    return draw_start(slot, None, "default", config.init_lora_weights, start).flatten()


def quiet_generator(settings: QPAGeneratorConfig, initial: Tensor, start: SeededStart, **options: Any) -> QPAGenerator:
    """What the generator says of its size it said when it was trained."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return QPAGenerator(settings, initial, start, **options)


def _paired(state: Mapping[str, Tensor]) -> Factors:
    """lora_B and lora_A of each module that has both, convolutions as matrices."""
    found: Factors = {}
    for name, a in state.items():
        if ".lora_A" not in name and ".lora_embedding_A" not in name:
            continue
        b = state.get(name.replace("lora_A", "lora_B").replace("embedding_A", "embedding_B"))
        if b is not None:
            module = name.partition(".lora_")[0].removeprefix("base_model.model.")
            found[module] = b.flatten(1), a.flatten(1)
    return found
