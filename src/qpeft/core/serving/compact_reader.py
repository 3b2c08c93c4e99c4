"""Read compact checkpoints into existing generators.

adapter_config.json       --> the settings, which must equal those of the other adapters except for the seed
adapter_model.safetensors --> the generator of that seed --> flat (P,) --> views under the keys of a stock file
"""

from __future__ import annotations

import copy
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from safetensors.torch import load
from torch import Tensor

from qpeft.core.base_digest import check_base, digest, name_of, own_weights
from qpeft.core.checkpoint import CONFIG, WEIGHTS, check_folder
from qpeft.core.frame_file import inherited
from qpeft.core.load_checks import check_tensors
from qpeft.core.seeded_init import SeededInit
from qpeft.core.tuner import GeneratedMixin, stock_key
from qpeft.errors import CheckpointError, ConfigError

# fields in which the adapters may differ: initial values, and fields that only training uses
_FREE = (
    *("seed", "start_hash", "base_model_name_or_path", "revision", "inference_mode", "auto_mapping", "peft_version"),
    *("lora_dropout", "store_frames", "weights_sha256"),
    *("base_digest", "frames"),  # not compared as texts: precisions differ, and a frame file has a hash
)


class CompactReader:
    """Reads the folders of adapters that have one configuration and any seed.

    Args:
        model: The PeftModel with the first of these adapters, from `qpeft.load`; its generator is used for all.
        folder: The folder of the first adapter.
        n_seeds: For how many seeds generators are kept in memory.
        allow_other_base: Do not warn of adapters of another base model.
    """

    def __init__(self, model: Any, folder: Path, n_seeds: int, allow_other_base: bool) -> None:
        tuner: GeneratedMixin = model.base_model
        binding = tuner.binding("default")
        self._config: Any = tuner.generated_config("default")
        self._slots, self._sizes = binding.slots, binding.sizes
        self._keys = [stock_key(slot.label) for slot in binding.slots]
        self._first: Any = binding.generator
        self._base = digest(own_weights(tuner.model, "default")), name_of(tuner.model)
        self._allow_other_base = allow_other_base
        self._heard = {folder}  # a warning is given once
        content = check_folder(folder)
        self._settings = _shared(content)
        self._inherited = inherited(content, folder)
        self._prefix = f"base_model.{tuner.container}."
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
        self._others = {k: t.clone() for k, t in state.items() if not k.startswith(self._prefix)}
        self._drawn = lru_cache(maxsize=n_seeds)(self._draw)

    @torch.inference_mode(False)
    @torch.no_grad()
    def read(self, folder: Path) -> dict[str, Tensor]:
        """The adapter's tensors by their keys in a stock file, float32 if generated; valid until the next call.

        Raises:
            CheckpointError: the folder is damaged, foreign, for another base model, or has other settings than the
                first one.
            ConfigError: the adapter was saved without the frames in which it acts.
        """
        settings = check_folder(folder)
        self._check_same(settings)
        self._check_base(settings, folder)
        generator, present = self._drawn(*_start({**self._inherited, **settings}))
        tensors = load((folder / WEIGHTS).read_bytes())  # for small files three times as fast as load_file
        others = {k: t for k, t in tensors.items() if not k.startswith(self._prefix)}
        check_tensors(others, self._others)
        _load(generator, present, {k.removeprefix(self._prefix): t for k, t in tensors.items() if k not in others})
        flat = generator()
        if not (torch.isfinite(flat.sum()) or torch.isfinite(flat).all()):
            raise CheckpointError("it generates NaN or Inf; use an earlier checkpoint")
        parts = zip(self._keys, self._slots, flat.split(self._sizes), strict=True)
        return others | {key: part.view(slot.shape) for key, slot, part in parts}

    def _check_same(self, settings: dict[str, Any]) -> None:
        found = _shared(settings)
        if found == self._settings:
            return
        own = copy.copy(self._config)
        own.format_version = settings.get("format_version", 0)
        own.check_format()
        defaults = _shared(
            json.loads(json.dumps(type(own)().to_dict(), default=list))
        )  # the fields depend on the version of PEFT
        mine, its = defaults | self._settings, defaults | found
        differing = sorted(k for k in mine.keys() | its.keys() if mine.get(k) != its.get(k))
        if differing == ["generated"]:
            raise CheckpointError("it fills other tensors than the adapters of this pool: it is for another base model")
        if differing:
            shown = (f"{k}={its.get(k)!r} instead of {mine.get(k)!r}" for k in differing if k != "generated")
            raise CheckpointError(
                f"it has other settings than this pool was made with: {', '.join(shown)}; serve it from another pool"
            )

    def _check_base(self, settings: dict[str, Any], folder: Path) -> None:
        own = copy.copy(self._config)
        own.base_digest, own.base_model_name_or_path = map(settings.get, ("base_digest", "base_model_name_or_path"))
        quiet = self._allow_other_base or folder in self._heard
        check_base(own, *self._base, adapter="" if quiet else f"adapter '{folder.name}'")
        self._heard.add(folder)

    def _draw(self, seed: int, start_hash: str | None) -> tuple[Any, dict[str, Tensor]]:
        """The generator of a seed, and its state without copies."""
        generator, config = self._first, copy.copy(self._config)
        if seed != config.seed or start_hash not in (None, config.start_hash):
            config.seed, config.start_hash = seed, start_hash
            config.__post_init__()
            init = SeededInit(seed)
            generator = self._first.redrawn(self._slots, config, init)
            config.check_start(init.hexdigest())
            generator.to(next(self._first.buffers()).device)
        return generator, generator.state_dict()


def _start(settings: dict[str, Any]) -> tuple[int, str | None]:
    seed, start_hash = settings.get("seed", 0), settings.get("start_hash")
    if not isinstance(seed, int) or not isinstance(start_hash, str | None):
        raise CheckpointError(f"{CONFIG} has seed {seed!r} and start_hash {start_hash!r}; restore the original file")
    return seed, start_hash


def _shared(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that all adapters of a pool share, with sorted sets of names, which PEFT saves in any order."""
    shared = {name: value for name, value in settings.items() if name not in _FREE}
    sets = {k: sorted(v) for k, v in shared.items() if isinstance(v, list) and all(isinstance(i, str) for i in v)}
    return shared | sets


def _load(generator: Any, present: dict[str, Tensor], packed: dict[str, Tensor]) -> None:
    """Check `packed` and copy it into the generator's state `present`."""
    if "fitted" in present and not packed.get("fitted", False):
        raise ConfigError(
            "it was saved without the frames of the loss gradient in which it acts (store_frames=False, or before "
            "qpeft.fit_frames); save it with store_frames=True, or serve what qpeft.export makes of it"
        )
    state = generator.unpack(packed)
    check_tensors(state, present)
    for name, tensor in present.items():
        tensor.copy_(state[name])
