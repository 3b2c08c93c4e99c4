"""The PEFT config of Quantum-PEFT."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME
from safetensors import safe_open
from torch import nn

from qpeft.checks import option
from qpeft.core.binding import Slot
from qpeft.core.config import FORMAT_VERSION, GeneratedLoraConfig, MethodName
from qpeft.core.frame_file import FrameFile, complete, read_frame_file
from qpeft.core.model_card import is_users_own
from qpeft.errors import CheckpointError, ConfigError, setting
from qpeft.files import write_text
from qpeft.methods.quantum_peft.factors import count_drawn
from qpeft.methods.quantum_peft.layout import Layout, Matrix
from qpeft.methods.quantum_peft.quantize import HALF
from qpeft.methods.quantum_peft.settings import QuantumPeftGeneratorConfig

_A = ".lora_A.weight"
_CHOOSE_MODULES = ("exclude_modules", "layers_to_transform", "layers_pattern")
_OWN = {  # fields of one adapter, and those that are filled in
    *("frames", "frames_sha256", "format_version", "weights_sha256", "generated", "start_hash", "peft_type"),
    *("base_digest", "inference_mode", "peft_version", "auto_mapping", "runtime_config"),
}
QUANTUM_PEFT = MethodName("QPEFT_QUANTUM_PEFT")


@dataclass
class QuantumPeftConfig(QuantumPeftGeneratorConfig, GeneratedLoraConfig):
    """LoRA's own settings (target_modules, lora_dropout, rank_pattern, ...) and the generator's.

    `r` is the paper's K. `lora_alpha` is s itself: it is not divided by r, because U and V are orthonormal. Norm
    layers named in `modules_to_save` are trained with a folded learning rate as well.

    Example::

        model = get_peft_model(base, QuantumPeftConfig(r=8, n_layers=2, target_modules="all-linear"))

    Raises:
        ConfigError: a setting is out of range, or a LoRA option that Quantum-PEFT cannot generate.
    """

    r: int = option(8, "Rank of the update, the paper's K.")
    lora_alpha: int = option(16, "The factor s of the update; it is not divided by r.")

    def __post_init__(self) -> None:
        self._of_file: dict[str, Any] | None = None  # settings in the frame file, which may be moved before saving
        GeneratedLoraConfig.__post_init__(self)
        QuantumPeftGeneratorConfig.__post_init__(self)
        self.peft_type = QUANTUM_PEFT  # type: ignore[assignment]
        self.check_format()
        if self.frames is not None or self.lambda_bits is not None or self.bits == HALF or self.group_size == 0:
            self.format_version = FORMAT_VERSION
        if self.use_rslora:
            raise ConfigError(
                f"{setting('use_rslora')} rescales by r, but Quantum-PEFT's scale is "
                f"{setting('lora_alpha')} itself; leave it unset"
            )
        if self.init_lora_weights is not True:
            raise ConfigError(
                f"init_lora_weights={self.init_lora_weights!r} does not apply: circuits compute the initial values; "
                "leave it unset"
            )
        self.refuse_lora_options("Quantum-PEFT", more=("lora_bias",))

    @property
    def depends_on_base(self) -> bool:
        return self.frame in ("gradient", "sign", "weights")

    def read_files(self, base: nn.Module) -> None:
        """Take hash, largest number of directions and, unless they are set, target modules from the frame file.

        Raises:
            CheckpointError: the file is damaged, for another base model, or another one than that with `frames_sha256`.
        """
        if self.frames is None:
            return
        file = self.frame_file()
        file.check_base(base)
        self.frames_sha256 = file.sha256
        self.frame_rank = min(self.frame_rank, max(n_directions for _, _, n_directions in file.shapes.values()))
        self._of_file = file.settings
        if self.target_modules is None:
            found: Any = file.settings.get("target_modules")
            modules: Any = set(found) if isinstance(found, list) else found
            self.target_modules = modules
            for name in _CHOOSE_MODULES:
                setattr(self, name, file.settings.get(name))

    def frame_file(self) -> FrameFile:
        """Read the frame file. Raises CheckpointError if it is damaged, or not that with `frames_sha256`."""
        file = read_frame_file(self.frames or "")
        if self.frames_sha256 not in (None, file.sha256):
            raise CheckpointError(
                f"{file} is not the one that is needed, with SHA-256 {self.frames_sha256}; name that file as "
                f"{setting('frames')}"
            )
        return file

    def shared_settings(self) -> dict[str, Any]:
        """The fields for the header of a frame file: those that adapters share, where they are not the defaults."""
        given, usual = _plain(self.to_dict()), _plain(type(self)().to_dict())
        return {name: value for name, value in given.items() if name not in _OWN and value != usual.get(name)}

    def save_pretrained(self, save_directory: str, **kwargs: Any) -> None:
        if self.frames is None:
            super().save_pretrained(save_directory, **kwargs)
            return
        of_file = self._of_file if self._of_file is not None else self.frame_file().settings
        super().save_pretrained(save_directory, **kwargs)
        self._shorten(Path(save_directory), of_file)

    def _shorten(self, folder: Path, of_file: Mapping[str, Any]) -> None:
        """Leave only what differs from the settings in the frame file, and no model card but the user's."""
        known = {**_plain(type(self)().to_dict()), **of_file}
        keep = {"peft_type": self.peft_type, "format_version": self.format_version}
        keep |= {"frames": Path(self.frames or "").name, "frames_sha256": self.frames_sha256}
        with safe_open(folder / SAFETENSORS_WEIGHTS_NAME, framework="pt") as file:
            if len(file.keys()) > 1:  # other tensors than the generator's, which contains a seal
                keep["weights_sha256"] = self.weights_sha256
        found = {k: v for k, v in _plain(self.to_dict()).items() if k not in _OWN and v != known.get(k)}
        write_text(folder / CONFIG_NAME, json.dumps({**keep, **found}, separators=(",", ":"), sort_keys=True))
        if not is_users_own(folder / "README.md"):
            (folder / "README.md").unlink(missing_ok=True)

    @classmethod
    def from_json_file(cls, path_json_file: str, **kwargs: Any) -> Any:
        return complete(super().from_json_file(path_json_file, **kwargs), Path(path_json_file).parent)

    def count_without_base(self, slots: Sequence[Slot]) -> int | None:
        if self.freeze_angles:  # a compact checkpoint does not contain them
            return None
        shapes = {slot.label: slot.shape for slot in slots}
        names = [label.removesuffix(_A) for label in shapes if label.endswith(_A)]
        pairs = [(name, shapes[f"{name}.lora_B.weight"], shapes[name + _A]) for name in names]
        matrices = [Matrix(name, b[0], a[1], a[0], 1.0) for name, b, a in pairs]
        return count_drawn(self, Layout.of(self, matrices))

    def to_stock(self) -> LoraConfig:
        """The stock LoRA, with scaling 1."""
        stock = super().to_stock()
        stock.lora_alpha, stock.alpha_pattern = stock.r, dict(stock.rank_pattern or {})
        return stock

    def description(self) -> dict[str, Any]:
        names = ["r", "family", "entangler", "share", "frame", "bits", "seed"]
        return {
            "method": "Quantum-PEFT (ICLR 2025, arXiv 2503.05431)",
            **{name: getattr(self, name) for name in (["n_layers"] if self.family == "pauli" else []) + names},
        }


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """Fields as read back from JSON, with sets in order."""
    found: dict[str, Any] = json.loads(json.dumps(dict(values), default=sorted))
    return found
