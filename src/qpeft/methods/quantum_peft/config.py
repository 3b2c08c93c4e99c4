"""The PEFT config and tuner of Quantum-PEFT."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.tuners.lora import LoraModel
from peft.tuners.tuners_utils import check_target_module_exists
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from torch import Tensor, nn

from qpeft.checks import option
from qpeft.core.config import GeneratedConfig, refuse_lora_options
from qpeft.core.frame_file import FrameFile, read_frame_file, with_frame_settings
from qpeft.core.generated_tuner import GeneratedMixin
from qpeft.core.model_card import users_card
from qpeft.core.seeded_init import SeededInit
from qpeft.core.slots import Slot
from qpeft.core.targets import in_layers
from qpeft.errors import CheckpointError, ConfigError
from qpeft.files import as_json, write_text
from qpeft.methods.quantum_peft import QuantumPeftGeneratorConfig
from qpeft.methods.quantum_peft.generator import QuantumPeftGenerator, parts_of

_FRAME_RANK = QuantumPeftGeneratorConfig.frame_rank  # the default
_OWN = {  # fields of one adapter, and those that are filled in
    "auto_mapping",
    "base_digest",
    "embeddings",
    "format_version",
    "frames",
    "frames_sha256",
    "generated",
    "inference_mode",
    "peft_type",
    "peft_version",
    "runtime_config",
    "saved_scale",
    "weights_sha256",
}


@dataclass
class QuantumPeftConfig(QuantumPeftGeneratorConfig, GeneratedConfig, LoraConfig):
    """LoRA's own settings (target_modules, lora_dropout, rank_pattern, ...) and the generator's.

    `r` is the paper's K. `lora_alpha` is s itself: it is not divided by r, because U and V are
    orthonormal.

    With orthonormal U and V, columns of circuits (QP-2) with angles in radians::

        y = W0 x + s U diag(lambda) V^T x

    Not without gradient frames for the smallest adapters: at 400 and 1,300 parameters Uni-LoRA is
    better than Quantum-PEFT without them.

    Example::

        model = get_peft_model(base, QuantumPeftConfig(r=8, n_layers=2, target_modules="all-linear"))

    Raises:
        ConfigError: a setting is out of range, or a LoRA option that Quantum-PEFT cannot generate.
    """

    r: int = option(8, "Rank of the update, the paper's K.")
    lora_alpha: int = option(16, "The factor s of the update; it is not divided by r.")
    method_name = "QPEFT_QUANTUM_PEFT"
    drawn_init = "zero"  # type: ignore[assignment]  # circuits compute the initial values

    def __post_init__(self) -> None:
        # settings in the frame file, which may be moved before saving
        self._of_file: dict[str, Any] | None = None
        # the frame file, from when it was read until the generator has its frames
        self.held_frame_file: FrameFile | None = None
        GeneratedConfig.__post_init__(self)
        QuantumPeftGeneratorConfig.__post_init__(self)
        if self.init_lora_weights is not True:
            raise ConfigError(
                "init_lora_weights does not apply: circuits compute the initial values"
            )
        refuse_lora_options(self, "Quantum-PEFT", more=("lora_bias", "use_rslora"))

    @property
    def depends_on_base(self) -> bool:  # type: ignore[override]
        """Whether the frame is computed from the base's weights or gradients."""
        return self.frame not in (None, "random")

    def fill_from_frame_file(self, base: nn.Module) -> None:
        """Take hash, largest number of directions and, unless they are set, target modules from the
        frame file.

        Raises CheckpointError as `take_frame_file`, or if the file is for another base model, and
        ConfigError for another kind of frame, more directions than the file has, or without a target
        in the layers.
        """
        if self.frames is None:
            return
        file = self.take_frame_file()
        file.check_base(base)
        self.held_frame_file = file
        self.frames_sha256 = file.sha256
        most = max(shape.n_directions for shape in file.shapes.values())
        asked = self.frame_rank
        if asked > most and asked not in (_FRAME_RANK, file.settings.get("frame_rank")):
            raise ConfigError(
                f"frame_rank={asked}, but {file} has {most} directions; use at most {most}, or make a"
                " frame file with more: qpeft frames --frame-rank"
            )
        self.frame_rank = min(asked, most)
        made_by = file.settings.get("frame", "gradient")
        if self.generated is not None:  # of a folder, whose values are in these frames
            self.frame = made_by
        elif self.frame != made_by:
            raise ConfigError(
                f"frame={self.frame!r}, but {file} has frames of {made_by!r}; set frame={made_by!r}"
            )
        self._of_file = file.settings
        if self.target_modules is None:
            targets: Any = file.settings.get("target_modules")
            self.target_modules = set(targets) if isinstance(targets, list) else targets  # type: ignore[assignment]
            if self.layers_to_transform is not None:
                # PEFT would ignore it beside a pattern or whole names
                names = [name for name, _ in base.named_modules() if name]
                matched = [name for name in names if check_target_module_exists(self, name)]
                self.target_modules = set(in_layers(matched, self))  # type: ignore[assignment]

    def take_frame_file(self) -> FrameFile:
        """The frame file: the one that was read for this adapter, which is then forgotten, because
        frames are large; or it is read.

        Raises CheckpointError if it is damaged, or not that with `frames_sha256`.
        """
        file = self.held_frame_file or read_frame_file(self.frames or "", self.frames_sha256)
        self.held_frame_file = None
        return file

    def settings_beyond(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that many adapters can share, where they differ from those `known` and from
        the defaults.
        """
        usual = as_json(type(self)().to_dict()) | known
        mine = as_json(self.to_dict()).items()
        return {name: v for name, v in mine if name not in _OWN and v != usual.get(name)}

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        """With a frame file only what differs from its settings, and no model card but the user's."""
        super().save_pretrained(save_directory, **kwargs)
        if self.frames is None or self._of_file is None:
            return
        folder = Path(save_directory)
        content = {
            "peft_type": self.peft_type,
            "format_version": self.format_version,
            "frames": Path(self.frames).name,
            "frames_sha256": self.frames_sha256,
        }
        with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
            n_tensors = len(file.keys())
        if n_tensors > 1:  # the generator's tensor contains a checksum, others do not
            content["weights_sha256"] = self.weights_sha256
        if self.embeddings:
            content["embeddings"] = self.embeddings
        content |= self.settings_beyond(self._of_file)
        write_text(folder / CONFIG_NAME, json.dumps(content, separators=(",", ":"), sort_keys=True))
        if users_card(folder) is None:
            (folder / "README.md").unlink(missing_ok=True)

    @classmethod
    def from_json_file(cls, path_json_file: str, **kwargs: Any) -> Any:
        """As PEFT's, with the settings of the frame file that the adapter names."""
        content = super().from_json_file(path_json_file, **kwargs)
        return with_frame_settings(content, Path(path_json_file).parent).content

    def order(self, slots: Sequence[Slot]) -> list[Slot]:
        """By width, so that all factors of one width are computed in one call."""
        here = {slot.label: slot for slot in slots}
        return [here[label] for part in parts_of(self, slots) for label in part.labels]

    def make(
        self, slots: Sequence[Slot], initial: Tensor, init: SeededInit
    ) -> QuantumPeftGenerator:
        """As `GeneratorConfig.make`; `initial`, flat (P,) float32, is not used.

        Raises CheckpointError if the slots are in another order than `order` gives.
        """
        parts = parts_of(self, slots)
        if self.order(slots) != list(slots):
            raise CheckpointError(
                "the table of generated tensors in adapter_config.json is damaged: their order"
                " differs"
            )
        return QuantumPeftGenerator(self, parts, init)


class QuantumPeftModel(GeneratedMixin, LoraModel):
    """The tuner that PEFT builds for a QuantumPeftConfig."""
