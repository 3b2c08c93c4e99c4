"""The folder of a compact adapter as the tensors of a stock one, without a model of its own.

adapter_config.json       --> the settings, which must equal those of the first adapter but for the seed
adapter_model.safetensors --> the generator of that seed --> flat (P,) --> views, by the keys of a
                              stock file
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from safetensors.torch import load as tensors_in
from torch import Tensor

from qpeft.circuits.numerics import Float32ByDefault
from qpeft.core.base_digest import check_base, digest, name_of, own_weights
from qpeft.core.checkpoint import (
    CONFIG,
    WEIGHTS,
    check_folder,
    check_tensors,
    fixed_fields,
)
from qpeft.core.config import config_of, reading
from qpeft.core.seeded_init import SeededInit
from qpeft.core.slots import draw_initial
from qpeft.core.stock_adapter import stock_key
from qpeft.errors import CheckpointError, ConfigError

# fields of one adapter: its hash, its rows, its seed, and what is compared in another way, because the
# precisions of bases differ, a frame file has a hash, and the fields of the scale are settings
_OWN = ("weights_sha256", "base_digest", "embeddings", "frames", "saved_scale", "seed")
_MOST_SEEDS = 8  # whose generators stay in memory


class PoolReader:
    """Reads adapters that have the settings and the base of a first one.

    Args:
        loaded: The PeftModel with the first adapter, which may be unloaded afterwards.
        config: As in its folder.
    """

    def __init__(self, loaded: Any, config: PeftConfig) -> None:
        tuner = loaded.base_model
        self._settings = fixed_fields(config.to_dict(), *_OWN)
        self._config = tuner.generators.configs["default"]
        self._binding = tuner.generators.bindings["default"]
        self._base = tuner.model
        self._generator_of = lru_cache(_MOST_SEEDS)(self._make_generator)
        self._prefix = tuner.generators.saved_prefix
        self._digest = digest(own_weights(tuner.model, "default"))
        self._base_name = name_of(tuner.model)

    @torch.inference_mode(False)
    @torch.no_grad()
    def read(self, folder: Path, base_state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The adapter's tensors by their keys in a stock file, float32 if generated; valid until
        the next call.

        Args:
            folder: Of the adapter.
            base_state: The state dict of the model that the pool serves.

        Raises CheckpointError if the folder is damaged, foreign, for another base model, or has
        other settings than the first one; ConfigError if the adapter was saved before its frames
        were fitted.
        """
        # without the settings in a frame file, whose hash is compared, so that it is not read again
        config: Any = config_of(check_folder(folder), folder / CONFIG)
        self._check_settings(fixed_fields(config.to_dict(), *_OWN))
        check_base(config, self._digest, self._base_name, f"adapter '{folder.name}'")
        # for small files three times as fast as load_file
        with reading(folder / WEIGHTS):
            tensors = tensors_in((folder / WEIGHTS).read_bytes())
        packed = {}  # of the generator
        others = {}  # trained biases and copied modules, and embeddings of a resized vocabulary
        for key, tensor in tensors.items():
            if key.startswith(self._prefix):
                packed[key.removeprefix(self._prefix)] = tensor
            elif key not in base_state:
                others[key] = tensor
            elif not torch.equal(tensor.to(base_state[key]), base_state[key]):
                raise CheckpointError(
                    f"its base has other values in {key}, where the vocabulary was resized, than"
                    " that of the first adapter of this pool; serve it from another pool"
                )
        generator = self._generator_of(config.seed)
        state = generator.unpack(packed)
        check_tensors(state, generator.state_dict())
        generator.load_state_dict(state)
        if generator.needs_fit:
            raise ConfigError(
                "it was saved before qpeft.fit_frames, without the frames of the loss gradient;"
                " train it"
            )
        parts = generator().split(self._binding.sizes)  # of the flat values (P,)
        for slot, part in zip(self._binding.slots, parts, strict=True):
            others[stock_key(slot.label)] = part.view(slot.shape)
        return others

    def _make_generator(self, seed: int) -> Any:
        """That of the first adapter, or one that was drawn with another seed."""
        first = self._binding.generator
        if seed == self._config.seed:
            return first
        slots = self._binding.slots
        config = copy.copy(self._config)
        config.seed = seed
        init = SeededInit(seed)
        with Float32ByDefault():
            generator = config.make(slots, draw_initial(slots, config.drawn_init, init), init)
        generator.use_base(self._base)
        return generator.to(first.fingerprint.device)

    def _check_settings(self, settings: dict[str, Any]) -> None:
        """Raise CheckpointError if they differ from those of the first adapter."""
        names = sorted(self._settings.keys() | settings.keys())
        differing = [n for n in names if settings.get(n) != self._settings.get(n)]
        if not differing:
            return
        shown = [
            f"{name}={settings.get(name)!r} instead of {self._settings.get(name)!r}"
            for name in differing
            if name != "generated"  # a long table, which follows from the base model
        ]
        raise CheckpointError(
            "it has other settings than the first adapter of this pool: "
            f"{', '.join(shown) or 'it is for another base model'}; serve it from another pool"
        )
